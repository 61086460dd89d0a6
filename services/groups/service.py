"""Use cases inside the caller's transaction; none commits.

A batch of commands is *lock, fold, save*: the members are locked, and what is known of them says which series
of groups are locked after them; each command folds over that state in the order of arrival, and what changed
is written with a statement per table. A command that is refused leaves nothing behind; one that needs series
that nobody foresaw does so too, and says which (`steps.Again`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

from services.chassis import telemetry
from services.chassis.clock import wall
from services.chassis.database import Connection
from services.groups import store, wanting
from services.groups.atlas import Atlas
from services.groups.errors import MemberUnknown
from services.groups.folding import Answer, Fold
from services.groups.rules import CompiledProgramme, CompiledScheme, Rulebook
from services.groups.steps import Scene, Terms, Work
from services.groups.store import Changes, Erased, Seen, Wanted, WantedSeries
from services.groups.wanting import Asked


class Lore:
    """What a process keeps of schemes, programme and sites. The database says each time what is in force.

    It keeps what it is shown: after a change of theirs a transaction that may yet be undone asks a new one.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._rulebook = Rulebook()
        self._atlas = Atlas()

    async def schemes(self, connection: Connection) -> dict[str, CompiledScheme]:
        """The latest versions of all schemes, by id."""
        heads = await store.scheme_heads(connection)
        found = {scheme_id: self._rulebook.scheme(scheme_id, version) for scheme_id, version in heads.items()}
        missing = [(scheme_id, heads[scheme_id]) for scheme_id, compiled in found.items() if compiled is None]
        for row in await store.schemes(connection, missing) if missing else ():
            found[row["scheme_id"]] = self._rulebook.keep_scheme(row["body"])
        return {scheme_id: compiled for scheme_id, compiled in found.items() if compiled is not None}

    async def programme(self, connection: Connection) -> CompiledProgramme:
        """The programme in force."""
        version = await store.programme_head(connection)
        known = self._rulebook.programme(version)
        if known is not None:
            return known
        row = await store.programme(connection, version)
        assert row is not None  # noqa: S101 - versions are never removed
        return self._rulebook.keep_programme(row["body"])

    async def atlas(self, connection: Connection) -> Atlas:
        """The sites as they are now."""
        revision = await store.revision(connection)
        if revision != self._atlas.revision:
            self._atlas = Atlas(revision, await store.all_sites(connection))
        return self._atlas


async def scene(connection: Connection, lore: Lore, at: datetime) -> Scene:
    """How groups are formed at an instant, with nobody in it yet."""
    schemes, programme = await lore.schemes(connection), await lore.programme(connection)
    return Scene(Seen(), schemes, programme, await lore.atlas(connection), lore.terms, at)


async def post(
    connection: Connection, asked: Sequence[Asked], lore: Lore, at: datetime
) -> tuple[list[Answer], int]:
    """Applies commands of any members in order of arrival, at business time `at`.

    Answers each with its serialized answer, its error, None (an event, or the clock, waits for none), or what
    it lacks (`Again`); and says how many events went to the outbox.
    """
    batch = await scene(connection, lore, at)
    batch.seen = await store.lock(connection, wanting.of_members(asked, batch))
    await lock_series(connection, await wanting.of_series(connection, asked, batch), batch, lore)
    fold = Fold(batch)
    answers = [fold.answer(one.command) for one in asked]
    received = wall()
    await store.save(connection, fold.changes, received)
    await store.OUTBOX.add(connection, fold.announcements, received)
    return answers, len(fold.announcements)


async def lock_series(connection: Connection, wanted: WantedSeries, batch: Scene, lore: Lore) -> None:
    """Locks what a batch wants of groups, and shows it.

    A seat more than wanted is looked for: then it is known whether another group has one, once all are taken.
    """
    batch.wanted = wanted.seats
    seats = {series: count + 1 if count else 0 for series, count in wanted.seats.items()}
    await store.lock_series(connection, replace(wanted, seats=seats), batch.seen)
    living = {group.series for group in batch.seen.groups.values() if group.living}
    if any(count and series not in living for series, count in wanted.seats.items()):
        # The site of a first group may have been closed while its series was waited for.
        batch.look_at(await lore.atlas(connection))


@asynccontextmanager
async def work_on(
    connection: Connection, wanted: WantedSeries, lore: Lore, at: datetime
) -> AsyncIterator[Work]:
    """Locks series, for work on their groups alone; what was done is kept at the end of the block."""
    seen = Seen()
    await store.lock_series(connection, wanted, seen)
    batch = await scene(connection, lore, at)
    batch.seen, before = seen, seen.copy()
    work = Work(batch, telemetry.TRACEPARENT.get())
    yield work
    batch.keep(work)
    received = wall()
    await store.save(connection, Changes(before, seen), received)
    await store.OUTBOX.add(connection, work.events, received)


async def erase(connection: Connection, member_id: str, at: datetime) -> Erased:
    """Removes a member's tags, orders, facts, places, first answers and events. Raises MemberUnknown."""
    seen = await store.lock(connection, Wanted(at, {member_id}))
    erased = await store.erase(connection, member_id)
    if member_id in seen.made:
        if not (erased.events or erased.refused):
            raise MemberUnknown(member_id=member_id)
        await store.save(connection, Changes(seen, seen), wall())
    return erased
