"""Leases and periodic work, claimed in the database: once, with any number of replicas.

A lease carries a token that rises with each new holder. Who writes under a lease checks the token in the
same transaction, so a holder that was paused past its time changes nothing when it wakes. Times of leases
are the database's own: the replicas' clocks do not matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
import structlog

from services.chassis import telemetry
from services.chassis.database import Connection, Database, Statement
from services.chassis.errors import INFRASTRUCTURE, Aborted

LEASE = 6.0  # seconds a holder may be silent; losing a lease too early is harmless, waiting is not
RETRY = 1.0  # seconds between tries after a fault of the infrastructure

log = structlog.get_logger()


class LeaseLost(Aborted):
    """Another process has taken over; nothing was changed."""


def jobs_table(metadata: sa.MetaData) -> sa.Table:
    """One row per lease."""
    return sa.Table(
        "jobs",
        metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_run_time", sa.DateTime(timezone=True), nullable=False),
    )


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do `name`, as long as `token` is the one in the database."""

    name: str
    token: int


class Jobs:
    """The leases of one service."""

    def __init__(self, table: sa.Table, holder: str) -> None:
        self._holder = holder
        now = sa.func.now()
        until = now + sa.bindparam("seconds", type_=sa.Interval)
        self._add = Statement(
            sa.dialects.postgresql.insert(table)
            .values(name=sa.bindparam("name"), token=0, holder="", lease_until=now, next_run_time=now)
            .on_conflict_do_nothing()
        )
        self._claim = Statement(
            sa.update(table)
            .where(
                table.c.name == sa.bindparam("job"),
                table.c.next_run_time <= now,
                sa.or_(table.c.lease_until <= now, table.c.holder == sa.bindparam("me")),
            )
            .values(token=table.c.token + 1, holder=sa.bindparam("me"), lease_until=until)
            .returning(table.c.token)
        )
        held = sa.and_(table.c.name == sa.bindparam("job"), table.c.token == sa.bindparam("mine"))
        self._renew = Statement(sa.update(table).where(held).values(lease_until=until))
        self._finish = Statement(sa.update(table).where(held).values(lease_until=now, next_run_time=until))
        self._check = Statement(sa.select(table.c.token).where(held).with_for_update(read=True))

    async def claim(self, database: Database, name: str) -> Lease | None:
        """The lease, or None while another process holds it or its time has not come."""
        async with database.begin() as connection:
            arguments = {"job": name, "me": self._holder, "seconds": timedelta(seconds=LEASE)}
            token = await self._claim.fetch_value(connection, **arguments)
            if token is None and await self._add.execute(connection, name=name):
                token = await self._claim.fetch_value(connection, **arguments)
        return None if token is None else Lease(name, token)

    async def renew(self, database: Database, lease: Lease) -> None:
        """Keeps the lease for another term. Raises LeaseLost."""
        async with database.begin() as connection:
            if not await self._renew.execute(
                connection, job=lease.name, mine=lease.token, seconds=timedelta(seconds=LEASE)
            ):
                raise LeaseLost(job=lease.name)

    async def check(self, connection: Connection, lease: Lease) -> None:
        """Makes the caller's transaction valid only under the lease. Raises LeaseLost."""
        if await self._check.fetch_value(connection, job=lease.name, mine=lease.token) is None:
            raise LeaseLost(job=lease.name)

    @asynccontextmanager
    async def held(self, database: Database, lease: Lease, pause: float) -> AsyncIterator[None]:
        """Does the block under a lease, and gives it back also when this process is asked to stop."""
        try:
            yield
        except asyncio.CancelledError:
            with suppress(*INFRASTRUCTURE):
                await self.finish(database, lease, 0.0)
            raise
        await self.finish(database, lease, pause)

    async def finish(self, database: Database, lease: Lease, pause: float) -> None:
        """Gives the lease back; the next run is due after `pause` seconds."""
        async with database.begin() as connection:
            await self._finish.execute(
                connection, job=lease.name, mine=lease.token, seconds=timedelta(seconds=pause)
            )


@dataclass(frozen=True, slots=True)
class Job:
    """Periodic work. `run` does one bounded step and says whether more waits."""

    name: str
    every: float  # seconds between runs when nothing waits
    run: Callable[[Lease], Awaitable[bool]]


async def run_job(database: Database, jobs: Jobs, job: Job) -> None:
    """Runs a job for ever, whenever this process gets its lease."""
    while True:
        try:
            lease = await jobs.claim(database, job.name)
            if lease is not None:
                async with jobs.held(database, lease, job.every):
                    while await job.run(lease):
                        await jobs.renew(database, lease)
                telemetry.JOB_RUNS.labels(job.name, "done").inc()
        except INFRASTRUCTURE:
            telemetry.JOB_RUNS.labels(job.name, "interrupted").inc()
        await asyncio.sleep(min(job.every, RETRY))
