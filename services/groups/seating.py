"""The seats of a series: who enters and who goes, and groups that open by themselves.

What becomes of a group's seats is said here alone, so that FULL is told each time it comes about, and a group
that follows by itself is there as soon as the one before it is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from services.chassis.ids import new_id
from services.groups import events
from services.groups.domain.schemes import Overflow, Scheme, SchemeKind
from services.groups.domain.seats import DissolveReason, Group, GroupStatus, OpenReason, SeriesName
from services.groups.steps import Work


def find(work: Work, series: SeriesName, *, after: str = "") -> Group | None:
    """A group of a series with a seat: the first that has one, else the next, where it opens by itself.

    `after` is the group that it takes over from, if any. None where the series is full. Raises Again.
    """
    groups = [group for group in work.groups_of(series) if group.living and not group.over(work.at)]
    found = next((group for group in groups if group.has_seat), None)
    if found is not None or not _opens_by_itself(work, series, groups):
        return found
    if after:
        return open_next(work, series, OpenReason.SUCCESSOR, follows=after)
    if groups:
        return open_next(work, series, OpenReason.OVERFLOW, follows=groups[-1].group_id)
    return open_next(work, series, OpenReason.FIRST)


def _opens_by_itself(work: Work, series: SeriesName, living: Sequence[Group]) -> bool:
    """A sale's group is opened by hand, and so is the first of no site; of a site there may be but one."""
    scheme, anchor = work.scheme(series[0]), series[1]
    if scheme.withdrawn or scheme.kind is SchemeKind.FLASH:
        return False
    if scheme.kind is not SchemeKind.BY_LOCATION:
        return True
    if not anchor:
        return bool(living)
    site = work.scene.atlas.site(anchor)
    return site is not None and site.open and (scheme.overflow is Overflow.NEXT_OF_SITE or not living)


def open_next(
    work: Work,
    series: SeriesName,
    reason: OpenReason,
    *,
    follows: str = "",
    close_time: datetime | None = None,
    sale_time: datetime | None = None,
) -> Group:
    """Opens the next group of a locked series, behind the one that it follows."""
    scheme_id, anchor = series
    scheme, seq = work.scheme(scheme_id), work.last_seq(series) + 1
    if close_time is None and scheme.lifetime is not None:
        close_time = work.at + scheme.lifetime
    group = Group(
        group_id=new_id("grp"),
        scheme_id=scheme_id,
        scheme_version=scheme.version,
        anchor=anchor,
        seq=seq,
        name=scheme.group_name(work.place_name(scheme, anchor), seq),
        capacity=scheme.capacity,
        room=scheme.room,
        site_id=anchor if scheme.kind is SchemeKind.BY_LOCATION else "",
        open_time=work.at,
        close_time=close_time,
        sale_time=sale_time,
        previous_group_id=follows,
        next_occasion_time=next_occasion(work, scheme),
    )
    work.series[series] = seq
    return work.announce_group(
        group, events.group_opened, (scheme, reason, work.rendered(scheme.notice, group))
    )


def next_occasion(work: Work, scheme: Scheme) -> datetime | None:
    """When a calendar has to be looked at next."""
    upcoming = work.scene.upcoming(scheme)
    return upcoming[0].at if upcoming else None


def enter(work: Work, group: Group) -> Group:
    """Takes a seat in a group, or comes without one. Raises Again."""
    if group.has_seat:
        work.take_seat(group.series)
    entered = work.groups[group.group_id] = group.enter()
    if entered.status is not GroupStatus.FULL or group.status is GroupStatus.FULL:
        return entered
    follows = find(work, group.series)
    return work.announce_group(entered, events.group_full, follows.group_id if follows else "")


def leave(work: Work, group: Group) -> Group:
    """Gives a seat back. A group of a closed site that nobody is in any more is dissolved by that."""
    left = work.groups[group.group_id] = group.exit()
    if left.status is GroupStatus.CLOSED and not left.members:
        return dissolve(work, left, DissolveReason.SITE_CLOSED)
    return left


def dissolve(work: Work, group: Group, reason: DissolveReason, successors: SeriesName | None = None) -> Group:
    """Ends a group. Whoever is in it goes to a group of the successors, if there are such, or has to go."""
    ended = replace(group, status=GroupStatus.DISSOLVED, close_time=work.at, next_occasion_time=None)
    work.groups[group.group_id] = ended
    successor = find(work, successors, after=group.group_id) if successors is not None else None
    told = (reason, successor.group_id if successor is not None else "")
    return work.announce_group(ended, events.group_dissolved, told)
