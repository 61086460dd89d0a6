"""Sites: put, opened again, and closed, with what becomes of their groups.

Whoever opens or closes a site locks its series in every scheme first, then the revision of all sites. So
nobody who holds a series opens a group there against what the sites say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.chassis.database import Connection, TransactionConflict
from services.groups import choosing, seating, store
from services.groups.choosing import Option
from services.groups.domain.profile import Basis
from services.groups.domain.schemes import SchemeKind
from services.groups.domain.seats import DissolveReason, Group, GroupStatus, SeriesName
from services.groups.domain.sites import Site
from services.groups.errors import SiteHasGroups, SiteUnknown
from services.groups.rules import CompiledScheme
from services.groups.service import Lore, scene, work_on
from services.groups.steps import Scene
from services.groups.store import WantedSeries

MOVED_WITHIN = timedelta(days=90)  # the days in which a group may be moved out so many times


# --- putting ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Put:
    """How many of the sites that were put were new, known and changed, or known and the same."""

    added: int
    changed: int
    unchanged: int


async def put_sites(
    connection: Connection, lore: Lore, at: datetime, sites: Sequence[Site], author: str
) -> Put:
    """Adds and changes sites; the groups of one that is opened again give seats again.

    Raises SiteHasGroups where one that has groups is put closed.
    """
    names = [site.site_id for site in sites]
    turning = _turning(await _known(connection, names), sites)
    wanted = WantedSeries(_series(await lore.schemes(connection), turning), sites=turning)
    async with work_on(connection, wanted, lore, at) as work:
        known = await _lock(connection, names)
        if _turning(known, sites) - turning:
            raise TransactionConflict
        for group in work.scene.seen.groups.values():
            if known[group.site_id].open and group.status is not GroupStatus.DISSOLVED:
                raise SiteHasGroups(site_id=group.site_id)
            if group.status is GroupStatus.CLOSED:
                next_time = seating.next_occasion(work, work.scheme(group.scheme_id))
                reopened = replace(group.reopened(), next_occasion_time=next_time)
                work.groups[group.group_id] = reopened
        changed = [site for site in sites if known.get(site.site_id) != site]
        await store.save_sites(connection, changed, author, at)
    added = len(set(names) - known.keys())
    return Put(added, len(changed) - added, len(sites) - len(changed))


async def _known(connection: Connection, names: Iterable[str]) -> dict[str, Site]:
    return {row["site_id"]: store.to_site(row) for row in await store.sites(connection, list(names))}


async def _lock(connection: Connection, names: Iterable[str]) -> dict[str, Site]:
    """Sites as they are, until commit."""
    await store.change_sites(connection)
    return await _known(connection, names)


def _turning(known: Mapping[str, Site], sites: Iterable[Site]) -> set[str]:
    """The sites that are opened again, or closed."""
    return {s.site_id for s in sites if s.site_id in known and known[s.site_id].open is not s.open}


def _series(schemes: Mapping[str, CompiledScheme], site_ids: Iterable[str]) -> dict[SeriesName, int]:
    """All series that sites have or may have."""
    by_place = [name for name, one in schemes.items() if one.scheme.kind is SchemeKind.BY_LOCATION]
    return {(scheme_id, site_id): 0 for scheme_id in by_place for site_id in site_ids}


# --- closing ------------------------------------------------------------------------------------------


async def close_site(connection: Connection, lore: Lore, at: datetime, site_id: str, author: str) -> None:
    """Closes a site: its groups give no seats, and empty ones are dissolved. Raises SiteUnknown."""
    wanted = WantedSeries(_series(await lore.schemes(connection), [site_id]), sites={site_id})
    async with work_on(connection, wanted, lore, at) as work:
        known = await _lock(connection, [site_id])
        if site_id not in known:
            raise SiteUnknown(site_id=site_id)
        await store.save_sites(connection, [replace(known[site_id], open=False)], author, at)
        for group in list(work.scene.seen.groups.values()):
            if not group.living:
                continue
            if group.members:
                work.groups[group.group_id] = replace(group, status=GroupStatus.CLOSED)
                await store.add_relocation(connection, group.group_id, at)
            else:
                seating.dissolve(work, group, DissolveReason.SITE_CLOSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A group of a closed site, and where the next of its members goes."""

    group: Group
    to: Option | None
    """None where there is nowhere to go."""
    to_group: Group | None
    """None where it opens with the first of them."""
    blocked: bool
    """It was moved out as often as it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What closing a site takes, or still takes."""

    site: Site
    leaving: Sequence[Leaving]
    local_days: int
    """Under the quota, today included; 0 where nothing is left."""

    @property
    def members(self) -> int:
        """Who has still to be moved."""
        return sum(one.group.members for one in self.leaving)


async def closing(connection: Connection, lore: Lore, at: datetime, site_id: str) -> Closing:
    """What closing a site would take, or still takes, as of now. Raises SiteUnknown."""
    seen = await scene(connection, lore, at)
    site = seen.atlas.site(site_id)
    if site is None:
        raise SiteUnknown(site_id=site_id)
    groups = [
        group
        for group in await store.groups_of_site(connection, site_id)
        if group.members and group.status is not GroupStatus.DISSOLVED
    ]
    options = {
        name: choosing.near(seen, seen.schemes[name].scheme, site.point, Basis.EXACT, but=site_id)
        for name in {group.scheme_id for group in groups}
    }
    rooms = await store.rooms(connection, {one.series for found in options.values() for one in found})
    moved = await store.relocations(connection, [group.group_id for group in groups], at - MOVED_WITHIN)
    programme = seen.programme.programme
    leaving = []
    for group in groups:
        to = next((one for one in options[group.scheme_id] if _takes(seen, one, rooms)), None)
        times = moved.get(group.group_id, 0) + group.living
        leaving.append(
            Leaving(
                group=group,
                to=to,
                to_group=rooms.get(to.series) if to is not None else None,
                blocked=times > programme.moves_per_group,
            )
        )
    members = sum(one.group.members for one in leaving if not one.blocked)
    today = max(
        0, programme.moves_per_day - await store.moves(connection, at.astimezone(lore.terms.zone).date())
    )
    later = -(-max(0, members - today) // max(1, programme.moves_per_day))
    days = (1 if members else 0) + later
    return Closing(site=replace(site, open=False), leaving=leaving, local_days=days)


def _takes(seen: Scene, option: Option, rooms: Mapping[SeriesName, Group | None]) -> bool:
    return option.series in rooms or not choosing.ends(seen, option.series)
