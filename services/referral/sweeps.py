"""Time-driven work. It only catches up: reads and writes are right to the second without it.

But for granting: rewards are granted here alone, of each campaign in one order, under a lease, so that the
budget goes to whom it is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta

import structlog

from services.chassis import failpoints, telemetry
from services.chassis.asked import by_clock
from services.chassis.clock import Clock, wall
from services.chassis.database import Database
from services.chassis.jobs import Job, Jobs, Lease
from services.chassis.retention import retention
from services.referral import service, store
from services.referral import tables as t
from services.referral.batches import Batches
from services.referral.commands import Command, Recount, Settle
from services.referral.service import Lore

SETTLE_BATCH = 256  # members a step
SETTLE_EVERY = 1.0  # seconds
RECOUNT_BATCH = 256  # inviters a step
RECOUNT_EVERY = 1.0  # seconds
GRANT_EVERY = 1.0  # seconds
LOOK_EVERY = 3600.0  # seconds
FORGET_EVERY = 600.0  # seconds
FORGET_BATCH = 1_000  # facts a step, whose members are locked
FACTS_KEPT = timedelta(days=90)  # of wall time, of members whom nobody brought
TRIES_KEPT = 60  # minutes
SHOWN = 5  # of what is overdue

log = structlog.get_logger()


class Sweeps:
    """What falls due, what is granted, what others leave undone, and what is kept no longer."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs, lore: Lore, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._jobs = jobs
        self._lore = lore
        self._batches = batches

    def jobs(self) -> list[Job]:
        """Each claimed by one replica at a time."""
        return [
            Job("settle", SETTLE_EVERY, self._settle),
            Job("recount", RECOUNT_EVERY, self._recount),
            Job("grant", GRANT_EVERY, self._grant),
            Job("overdue", LOOK_EVERY, self._look),
            Job("forget", FORGET_EVERY, self._forget),
            retention(self._database, t.outbox, t.inbox),
        ]

    async def _settle(self, _lease: Lease) -> bool:
        """Posts what is due for members whom nobody touched; says whether more waits."""
        now = self._clock.now()
        async with self._database.read() as connection:
            members = await store.due_members(connection, now, SETTLE_BATCH)
        await self._post(Settle(**by_clock(member)) for member in members)
        more = len(members) == SETTLE_BATCH
        if not more:
            self._clock.settled(now)
        return more

    async def _post(self, commands: Iterable[Command]) -> None:
        await asyncio.gather(*(self._batches.posts.submit(command) for command in commands))

    async def _recount(self, _lease: Lease) -> bool:
        """Counts again for inviters whose campaign changed; says whether more wait.

        What says so is the inviter's own row, so it does not matter where a step was cut off, nor whether a
        batch that knew an older version counted last.
        """
        async with self._database.read() as connection:
            inviters = await store.outdated(connection, RECOUNT_BATCH)
        await self._post(Recount(**by_clock(member), campaign_id=campaign) for member, campaign in inviters)
        return len(inviters) == RECOUNT_BATCH

    async def _grant(self, lease: Lease) -> bool:
        """Grants what waits in each campaign, as far as its budget goes; says whether more can be granted."""
        now = self._clock.now()
        async with self._database.read() as connection:
            campaigns = await store.granting(connection, now)
        steps = [await self._grant_in(lease, campaign_id, now) for campaign_id in campaigns]
        return any(steps)

    async def _grant_in(self, lease: Lease, campaign_id: str, now: datetime) -> bool:
        async with self._database.begin() as connection:
            await self._jobs.check(connection, lease)
            announced, more = await service.grant(connection, self._lore, campaign_id, now)
            failpoints.reach("before_commit")
        failpoints.reach("after_commit")
        if announced:
            self._batches.wake()
        return more

    async def _look(self, _lease: Lease) -> bool:
        """Reports rewards that an operator has to look after: nothing here can, and none is lost."""
        async with self._database.read() as connection:
            count, first = await store.troubled(connection, SHOWN)
        telemetry.OVERDUE.labels("rewards").set(count)
        if count:
            log.warning("overdue", what="rewards", count=count, first=first)
        return False

    async def _forget(self, _lease: Lease) -> bool:
        """Drops what members did whom nobody brought since, and codes that were tried in vain."""
        now = wall()
        async with self._database.begin() as connection:
            facts = await store.drop_early_facts(connection, now - FACTS_KEPT, FORGET_BATCH)
            await store.drop_tries(connection, int(now.timestamp()) // 60 - TRIES_KEPT)
        return facts == FORGET_BATCH
