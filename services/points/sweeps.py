"""Time-driven work. It only catches up: reads and writes are right to the second without it."""

from __future__ import annotations

import asyncio

from services.chassis.asked import by_clock
from services.chassis.clock import Clock
from services.chassis.database import Database
from services.chassis.jobs import Job, Lease
from services.chassis.retention import retention
from services.points import store
from services.points import tables as t
from services.points.batches import Batches
from services.points.commands import Settle

SETTLE_BATCH = 256  # members a step
SETTLE_EVERY = 1.0  # seconds


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
            retention(self._database, t.outbox, t.inbox),
        ]

    async def _settle(self, _lease: Lease) -> bool:
        """Posts what is due for members whom nobody touched; says whether more waits."""
        now = self._clock.now()
        async with self._database.read() as connection:
            members = await store.due_members(connection, now, SETTLE_BATCH)
        await asyncio.gather(*(self._batches.posts.submit(Settle(**by_clock(member))) for member in members))
        if len(members) < SETTLE_BATCH:
            self._clock.settled(now)
        return len(members) == SETTLE_BATCH
