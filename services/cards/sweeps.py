"""Time-driven work. It only catches up: reads and writes are right to the second without it.

What falls due of a gift that nobody claims is known by the gift alone: it touches its giver only then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import structlog

from services.cards import store
from services.cards import tables as t
from services.cards.batches import Batches
from services.cards.commands import Command, ReturnGift, Settle
from services.cards.domain.payments import HOLD_BEYOND
from services.chassis import telemetry
from services.chassis.asked import by_clock
from services.chassis.clock import Clock
from services.chassis.database import Database
from services.chassis.jobs import Job, Lease
from services.chassis.retention import retention

SETTLE_BATCH = 256  # members, and gifts, a step
SETTLE_EVERY = 1.0  # seconds
LOOK_EVERY = 3600.0  # seconds
SETTLED_WITHIN = timedelta(days=1)  # after the points service gave the points back at the latest
REFUNDED_WITHIN = timedelta(days=7)  # after it was announced that money has to be paid back
SHOWN = 5  # of what is overdue

log = structlog.get_logger()


class Sweeps:
    """What falls due, what others leave undone, and what is kept no longer."""

    def __init__(self, database: Database, clock: Clock, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._batches = batches

    def jobs(self) -> list[Job]:
        """Each claimed by one replica at a time."""
        return [
            Job("settle", SETTLE_EVERY, self._settle),
            Job("overdue", LOOK_EVERY, self._look),
            retention(self._database, t.outbox, t.inbox),
        ]

    async def _settle(self, _lease: Lease) -> bool:
        """Posts what is due for members whom nobody touched; says whether more waits."""
        now = self._clock.now()
        async with self._database.read() as connection:
            members = await store.due_members(connection, now, SETTLE_BATCH)
            gifts = await store.unclaimed_gifts(connection, now, SETTLE_BATCH)
        await self._post(Settle(**by_clock(member)) for member in members)
        await self._post(ReturnGift(**by_clock(gift.giver_id), order_id=gift.order_id) for gift in gifts)
        more = SETTLE_BATCH in (len(members), len(gifts))
        if not more:
            self._clock.settled(now)
        return more

    async def _post(self, commands: Iterable[Command]) -> None:
        await asyncio.gather(*(self._batches.posts.submit(command) for command in commands))

    async def _look(self, _lease: Lease) -> bool:
        """Reports what others should have ended by now: nothing here can, and nothing is lost meanwhile."""
        now = self._clock.now()
        async with self._database.read() as connection:
            orders = await store.settling(connection, now - SETTLED_WITHIN - HOLD_BEYOND, SHOWN)
            refunds = await store.unreturned(connection, now - REFUNDED_WITHIN, SHOWN)
        for what, (count, first) in (("settling_orders", orders), ("refunds", refunds)):
            telemetry.OVERDUE.labels(what).set(count)
            if count:
                log.warning("overdue", what=what, count=count, first=first)
        return False
