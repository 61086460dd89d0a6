"""Time-driven work. It only catches up: reads and writes are right to the second without it."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa

from services.chassis.clock import Clock, wall
from services.chassis.database import Database, Statement
from services.chassis.ids import new_id
from services.chassis.jobs import Job, Lease
from services.points import store
from services.points import tables as t
from services.points.batches import Batches
from services.points.commands import Settle

SETTLE_BATCH = 256  # members a step
SETTLE_EVERY = 0.2  # seconds
RETENTION_EVERY = 600.0  # seconds
RETENTION_BATCH = 5_000  # rows a step and table


def _old(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> Statement:
    key = list(table.primary_key.columns)
    most = sa.bindparam("most", type_=sa.BigInteger)
    old = sa.select(*key).where(*conditions).limit(most)
    return Statement(sa.delete(table).where(sa.tuple_(*key).in_(old)))


_OLD_EVENTS = _old(
    t.outbox,
    t.outbox.c.sent_at.is_not(None),
    t.outbox.c.create_time < sa.bindparam("before", type_=t.INSTANT),
)
_OLD_RECEIPTS = _old(t.inbox, t.inbox.c.receive_time < sa.bindparam("before", type_=t.INSTANT))


class Sweeps:
    """What falls due, and what is kept no longer."""

    def __init__(self, database: Database, clock: Clock, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._batches = batches

    def jobs(self) -> list[Job]:
        """Each claimed by one replica at a time."""
        return [
            Job("settle", SETTLE_EVERY, self._settle),
            Job("retention", RETENTION_EVERY, self._retain),
        ]

    async def _settle(self, _lease: Lease) -> bool:
        """Posts what is due for members whom nobody touched; says whether more waits."""
        now = self._clock.now()
        async with self._database.read() as connection:
            members = await store.due_members(connection, now, SETTLE_BATCH)
        await asyncio.gather(
            *(
                self._batches.posts.submit(
                    Settle(member_id=member, request_id=new_id("~due"), payload_hash=b"", actor="due")
                )
                for member in members
            )
        )
        if len(members) < SETTLE_BATCH:
            self._clock.settled(now)
        return len(members) == SETTLE_BATCH

    async def _retain(self, _lease: Lease) -> bool:
        """Drops sent events after 30 days and receipts after 90, in wall time; says whether more waits."""
        async with self._database.begin() as connection:
            events = await _OLD_EVENTS.execute(
                connection, before=wall() - store.OUTBOX_KEPT, most=RETENTION_BATCH
            )
            receipts = await _OLD_RECEIPTS.execute(
                connection, before=wall() - store.INBOX_KEPT, most=RETENTION_BATCH
            )
        return RETENTION_BATCH in (events, receipts)
