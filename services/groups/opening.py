"""Groups, apart from who is in them: opened by hand, attached to chats, dissolved, and announced in.

Each use case locks the series that it is about, changes its groups, and announces it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from services.chassis.database import Connection
from services.groups import events, seating, store
from services.groups.domain import calendar
from services.groups.domain.calendar import Occurrence
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.domain.seats import DissolveReason, Group, GroupStatus, OpenReason, SeriesName
from services.groups.errors import (
    ChatAttached,
    FlashTimeInvalid,
    GroupDissolved,
    GroupUnknown,
    SchemeUnknown,
    SchemeWithdrawn,
    SegmentUnknown,
    SiteClosed,
    SiteUnknown,
    WrongKind,
)
from services.groups.rules import CompiledScheme
from services.groups.service import Lore, work_on
from services.groups.steps import Work
from services.groups.store import Announced, WantedSeries

FLASH_AHEAD = timedelta(hours=3)  # from when a flash group is opened until its sale
FLASH_LIFE = timedelta(hours=4)  # of a flash group in all


async def open_group(
    connection: Connection,
    lore: Lore,
    at: datetime,
    *,
    scheme_id: str,
    site_id: str = "",
    segment_id: str = "",
    inviter_id: str = "",
) -> Group:
    """Opens the next group at a site, of a segment or of an inviter, though others have room.

    Raises SchemeUnknown, SchemeWithdrawn, WrongKind, SiteUnknown, SiteClosed, SegmentUnknown.
    """
    scheme = await _scheme(connection, lore, scheme_id)
    places = {
        SchemeKind.BY_LOCATION: site_id,
        SchemeKind.BY_TAG: segment_id,
        SchemeKind.INVITE: inviter_id,
    }
    anchor = places.get(scheme.kind, "")
    nowhere = not anchor and scheme.kind is not SchemeKind.BY_LOCATION
    if nowhere or anchor != (site_id or segment_id or inviter_id):
        raise WrongKind(kind=scheme.kind)
    if scheme.kind is SchemeKind.BY_TAG and all(one.segment_id != anchor for one in scheme.segments):
        raise SegmentUnknown(segment_id=anchor)
    series = (scheme_id, anchor)
    async with work_on(connection, WantedSeries({series: 0}), lore, at) as work:
        if scheme.kind is SchemeKind.BY_LOCATION and anchor:
            _check_open(work, anchor)
        living = [group for group in work.groups_of(series) if group.living]
        return seating.open_next(
            work, series, OpenReason.OPERATOR, follows=living[-1].group_id if living else ""
        )


async def _scheme(connection: Connection, lore: Lore, scheme_id: str) -> Scheme:
    compiled = (await lore.schemes(connection)).get(scheme_id)
    if compiled is None:
        raise SchemeUnknown(scheme_id=scheme_id)
    if compiled.scheme.withdrawn:
        raise SchemeWithdrawn(scheme_id=scheme_id)
    return compiled.scheme


def _check_open(work: Work, site_id: str) -> None:
    site = work.scene.atlas.site(site_id)
    if site is None:
        raise SiteUnknown(site_id=site_id)
    if not site.open:
        raise SiteClosed(site_id=site_id)


async def open_flash_group(
    connection: Connection,
    lore: Lore,
    at: datetime,
    *,
    scheme_id: str,
    sale_time: datetime,
    close_time: datetime | None = None,
) -> Group:
    """Opens a group for a sale, to be dissolved by itself: by default after the scheme's lifetime.

    Raises SchemeUnknown, SchemeWithdrawn, WrongKind, FlashTimeInvalid.
    """
    scheme = await _scheme(connection, lore, scheme_id)
    if scheme.kind is not SchemeKind.FLASH:
        raise WrongKind(kind=scheme.kind)
    close_time = close_time or at + (scheme.lifetime or FLASH_LIFE)
    if not at < sale_time <= at + FLASH_AHEAD or not sale_time < close_time <= at + FLASH_LIFE:
        raise FlashTimeInvalid(sale_time=sale_time.isoformat(), close_time=close_time.isoformat())
    series = (scheme_id, "")
    async with work_on(connection, WantedSeries({series: 0}), lore, at) as work:
        return seating.open_next(work, series, OpenReason.FLASH, close_time=close_time, sale_time=sale_time)


async def _of_group(connection: Connection, group_id: str) -> Group:
    """A group before its series is locked: what it belongs to never changes. Raises GroupUnknown."""
    found = (await store.groups(connection, [group_id])).get(group_id)
    if found is None:
        raise GroupUnknown(group_id=group_id)
    return found


async def attach_chat(
    connection: Connection,
    lore: Lore,
    at: datetime,
    *,
    group_id: str,
    chat_id: str = "",
    entry_link: str = "",
    keep: bool = False,
) -> Group:
    """Notes which chat a group is, and where it is entered; what is empty stays as it is.

    With `keep` what is known stays, too. Raises GroupUnknown, GroupDissolved, ChatAttached.
    """
    head = await _of_group(connection, group_id)
    async with work_on(connection, WantedSeries({head.series: 0}, {group_id}), lore, at) as work:
        group = work.group(group_id)
        if group.status is GroupStatus.DISSOLVED or group.over(at):
            raise GroupDissolved(group_id=group_id)
        other = await store.lock_chat(connection, chat_id) if chat_id else None
        if other not in (None, group_id):
            raise ChatAttached(group_id=other)
        said, known = (chat_id, entry_link), (group.chat_id, group.entry_link)
        first, second = (known, said) if keep else (said, known)
        attached = replace(group, chat_id=first[0] or second[0], entry_link=first[1] or second[1])
        work.groups[group_id] = attached
        return attached


async def dissolve_group(
    connection: Connection,
    lore: Lore,
    at: datetime,
    *,
    group_id: str,
    reason: DissolveReason = DissolveReason.OPERATOR,
) -> Group:
    """Dissolves a group, by LIFETIME only if its time is over; its members follow. Raises GroupUnknown."""
    head = await _of_group(connection, group_id)
    successors = _successors(await lore.schemes(connection), head)
    seats = {head.series: 0} | ({successors: 1} if successors is not None else {})
    async with work_on(connection, WantedSeries(seats, {group_id}), lore, at) as work:
        group = work.group(group_id)
        early = reason is DissolveReason.LIFETIME and not group.over(at)
        if early or group.status is GroupStatus.DISSOLVED:
            return group
        return seating.dissolve(work, group, reason, successors)


def _successors(schemes: Mapping[str, CompiledScheme], group: Group) -> SeriesName | None:
    """The series whose groups take over from a group, where that is the same for all of its members."""
    scheme = schemes[group.scheme_id].scheme
    successor = schemes.get(scheme.successor_scheme_id)
    if successor is None or successor.scheme.kind is not scheme.kind:
        return None
    return (scheme.successor_scheme_id, group.anchor)


async def announce_due(connection: Connection, lore: Lore, at: datetime, group_ids: Collection[str]) -> int:
    """Announces what has come of the calendars of groups, each occasion once; says how many it were.

    What came while nobody looked is announced as long as it can be claimed.
    """
    heads = await store.groups(connection, group_ids)
    seats = {head.series: 0 for head in heads.values()}
    async with work_on(connection, WantedSeries(seats, set(heads)), lore, at) as work:
        found: dict[Announced, Occurrence] = {}
        for group_id in heads:
            for occurrence in _look(work, work.group(group_id)):
                name = occurrence.occasion_id(heads[group_id].scheme_id)
                found[Announced(group_id, name, occurrence.at)] = occurrence
        fresh = await store.add_occasions(connection, found)
        for occasion in fresh:
            work.announce_group(work.group(occasion.group_id), events.benefit_due, found[occasion])
        return len(fresh)


def _look(work: Work, group: Group) -> list[Occurrence]:
    """What a group's calendar has come to since it was looked at; then it is looked at again for the next."""
    since = group.next_occasion_time
    if since is None or since > work.at:
        return []
    living = group.living and not group.over(work.at)
    scheme = work.scheme(group.scheme_id)
    next_time = seating.next_occasion(work, scheme) if living else None
    work.groups[group.group_id] = replace(group, next_occasion_time=next_time)
    return calendar.due(scheme.calendar, since, work.at, work.zone) if living else []
