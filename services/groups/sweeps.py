"""Time-driven work. It only catches up: reads and writes are right to the second without it.

What it takes on is the state itself, so a step that is cut off leaves nothing to clean up, and whoever gets
the lease next goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import structlog

from services.chassis import telemetry
from services.chassis.asked import by_clock
from services.chassis.clock import Clock
from services.chassis.database import Connection, Database
from services.chassis.ids import bucket
from services.chassis.jobs import Job, Lease
from services.chassis.retention import retention
from services.groups import opening, service, store, tagging
from services.groups import tables as t
from services.groups.batches import Batches
from services.groups.closing import MOVED_WITHIN
from services.groups.commands import Command, LapseSeat, MoveOut, Reevaluate, Settle
from services.groups.domain.seats import DissolveReason, Group, GroupStatus
from services.groups.service import Lore
from services.groups.steps import Again, Scene
from services.groups.store import Evaluation

SETTLE_BATCH = 256  # members a step
GROUPS_BATCH = 64  # groups a step, whose series are locked
LEAVING_PAGE = 256  # groups that are looked at at once
CROWDED_BATCH = 16  # groups a step
SETTLE_EVERY = 1.0  # seconds
CROWDED_EVERY = 5.0  # seconds: it reads every member of a crowded group
EVALUATE_EVERY = 1.0  # seconds
EVALUATE_PAGE = 1024  # members a step
LOOKS = 32  # members after which others get their turn
OTHERS_END = 3.0  # seconds, less than a lease
OTHERS_POLL = 0.02  # seconds

log = structlog.get_logger()


class Sweeps:
    """What falls due, who has to leave, whom a change concerns, and what is kept no longer."""

    def __init__(self, database: Database, clock: Clock, lore: Lore, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self._batches = batches
        self._crowded_after = ""
        self._begun: tuple[str, str, int] | None = None  # the job over all members that is at work

    def jobs(self) -> list[Job]:
        """Each claimed by one replica at a time."""
        return [
            Job("settle", SETTLE_EVERY, self._settle),
            Job("crowded", CROWDED_EVERY, self._give_seats_up),
            Job("evaluate", EVALUATE_EVERY, self._evaluate),
            retention(self._database, t.outbox, t.inbox),
        ]

    # --- what falls due -------------------------------------------------------------------------------

    async def _settle(self, _lease: Lease) -> bool:
        """Does what is due for members and groups that nobody touched; says whether more waits.

        Groups come first: whom they leave behind is moved by the same step.
        """
        now = self._clock.now()
        async with self._database.read() as connection:
            closing = await store.closing_groups(connection, now, GROUPS_BATCH)
            announcing = await store.announcing_groups(connection, now, GROUPS_BATCH)
            due = await store.due_members(connection, now, SETTLE_BATCH)
        for group in closing:
            await self._dissolve(group, now)
        await self._announce(announcing, now)
        await self._post(Settle(**by_clock(member)) for member in due)
        left = await self._move_out(now)
        more = GROUPS_BATCH in (len(closing), len(announcing)) or SETTLE_BATCH in (len(due), left)
        if not more:
            self._clock.settled(now)
        return more

    async def _dissolve(self, group: Group, now: datetime) -> None:
        async with self._database.begin() as connection:
            await opening.dissolve_group(
                connection, self._lore, now, group_id=group.group_id, reason=DissolveReason.LIFETIME
            )
        self._batches.wake()

    async def _announce(self, groups: Sequence[Group], now: datetime) -> None:
        if not groups:
            return
        names = [group.group_id for group in groups]
        async with self._database.begin() as connection:
            announced = await opening.announce_due(connection, self._lore, now, names)
        if announced:
            self._batches.wake()

    # --- who has to leave -----------------------------------------------------------------------------

    async def _move_out(self, now: datetime) -> int:
        """Takes members out of groups that are closed or dissolved; says how many it tried."""
        async with self._database.read() as connection:
            leaving = await self._leaving(connection, now)
        await self._post(MoveOut(**by_clock(member), group_id=group_id) for member, group_id in leaving)
        return len(leaving)

    async def _leaving(self, connection: Connection, now: datetime) -> list[tuple[str, str]]:
        """Members with the groups that they are to leave now, as many as a step takes.

        Of closed groups no more than the platform lets us move today, and none of a group that was moved out
        too often.
        """
        found: list[tuple[str, str]] = []
        after, quota = "", 0
        while len(found) < SETTLE_BATCH:
            groups = await store.leaving_groups(connection, after, LEAVING_PAGE)
            if not groups:
                break
            if not after:
                quota = await self._quota(connection, now)
            after = groups[-1].group_id
            for group in await self._movable(connection, groups, now):
                closed = group.status is GroupStatus.CLOSED
                most = min(SETTLE_BATCH - len(found), quota if closed else SETTLE_BATCH)
                if most > 0:
                    rows = await store.group_members(connection, group.group_id, store.BEFORE_ALL, most)
                    found += [(row["member_id"], group.group_id) for row in rows]
                    quota -= len(rows) if closed else 0
        return found

    async def _quota(self, connection: Connection, now: datetime) -> int:
        """How many members of closed groups may still be moved on this local day."""
        programme = (await self._lore.programme(connection)).programme
        day = now.astimezone(self._lore.terms.zone).date()
        return programme.moves_per_day - await store.moves(connection, day)

    async def _movable(self, connection: Connection, groups: Iterable[Group], now: datetime) -> list[Group]:
        """Groups without the closed ones that were moved out too often."""
        closed = [group.group_id for group in groups if group.status is GroupStatus.CLOSED]
        times = await store.relocations(connection, closed, now - MOVED_WITHIN) if closed else {}
        most = (await self._lore.programme(connection)).programme.moves_per_group if times else 0
        return [group for group in groups if times.get(group.group_id, 0) <= most]

    async def _give_seats_up(self, _lease: Lease) -> bool:
        """Lets the seats lapse that are kept in groups of which the platform takes nobody more."""
        async with self._database.read() as connection:
            seats = await store.crowded_seats(connection, self._crowded_after, CROWDED_BATCH)
        await self._post(
            LapseSeat(**by_clock(member), group_id=group_id)
            for group_id, members in seats.items()
            for member in members
        )
        more = len(seats) == CROWDED_BATCH
        self._crowded_after = max(seats) if more else ""
        return more

    # --- whom a change concerns -----------------------------------------------------------------------

    async def _evaluate(self, _lease: Lease) -> bool:
        """Looks anew at the next members of the oldest job over all members; says whether more wait.

        Most stay as they are, which is seen without a lock. So nobody else may still go by what was in force
        before: what began earlier is waited for once.
        """
        async with self._database.read() as connection:
            evaluation = next(iter(await store.open_evaluations(connection, 1)), None)
            if evaluation is None:
                return False
            if evaluation.name != self._begun:
                if not await _others_end(connection):
                    return True
                self._begun = evaluation.name
            # No `snapshot`, which has no timeouts: whoever takes over would wait for ours.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                scene = await service.scene(connection, self._lore, self._clock.now())
                members = await store.profile_page(connection, evaluation.after, EVALUATE_PAGE)
        scene.seen.profiles = members
        await self._look_anew(scene)
        await self._advance(evaluation, list(members))
        return True

    async def _look_anew(self, scene: Scene) -> None:
        """Posts those of whom something would change, a batch at a time: calls are to get in between.

        While the database writes one, the members of the next are looked at.
        """
        changing: dict[Command, Again] = {}
        posted = asyncio.ensure_future(self._post(()))
        try:
            for number, member in enumerate(scene.seen.profiles, 1):
                command = Reevaluate(**by_clock(member))
                lacked = tagging.foreseen(scene, command)
                if lacked is not None:
                    changing[command] = lacked
                if len(changing) == SETTLE_BATCH:
                    await posted
                    posted, changing = asyncio.ensure_future(self._post(changing, changing)), {}
                elif number % LOOKS == 0:
                    await asyncio.sleep(0)
        finally:
            await posted
        await self._post(changing, changing)

    async def _advance(self, evaluation: Evaluation, members: Sequence[str]) -> None:
        """Notes how far a job over all members has come."""
        telemetry.EVALUATED.inc(len(members))
        last = len(members) < EVALUATE_PAGE
        after = (bucket(members[-1]), members[-1]) if members else evaluation.after
        end = self._clock.now() if last else None
        async with self._database.begin() as connection:
            mine = await store.advance_evaluation(connection, evaluation, after, len(members), end)
        if mine and last:
            log.info(
                "evaluated",
                kind=evaluation.kind,
                subject=evaluation.subject_id,
                version=evaluation.version,
                members=evaluation.done + len(members),
            )

    # --- what they share ------------------------------------------------------------------------------

    async def _post(self, commands: Iterable[Command], lacks: Mapping[Command, Again] = {}) -> None:
        posts = (self._batches.post(command, lacks.get(command)) for command in commands)
        await asyncio.gather(*posts)


async def _others_end(connection: Connection) -> bool:
    """Waits, for some time, until what the service's processes have begun by now has ended."""
    since = await store.database_time(connection)
    for _ in range(round(OTHERS_END / OTHERS_POLL)):
        if not await store.older_transactions(connection, since):
            return True
        await asyncio.sleep(OTHERS_POLL)
    return False
