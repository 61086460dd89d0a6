"""A membership's way: into a group of its scheme, to another one, and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from services.chassis.ids import new_id
from services.groups import events, seating
from services.groups.domain.profile import (
    Basis,
    Ending,
    LapseReason,
    Membership,
    MembershipStatus,
    MoveReason,
)
from services.groups.domain.schemes import Scheme
from services.groups.domain.seats import Group, SeriesName
from services.groups.steps import Scene, Step

NEIGHBOURS = 8  # sites that are asked for a group for somebody who left
LEFT = 16  # groups of which it is remembered that a member left them

# What is told of a seat that nobody ever came to, by what would be told of a member who was there.
_LAPSES: Mapping[Ending, LapseReason] = {
    Ending.SEAT_LAPSED: LapseReason.TIMEOUT,
    Ending.THRESHOLD_LOST: LapseReason.THRESHOLD_LOST,
    Ending.GROUP_DISSOLVED: LapseReason.GROUP_CLOSED,
    Ending.SITE_CLOSED: LapseReason.GROUP_CLOSED,
}
_STATUSES: Mapping[Ending, MembershipStatus] = {
    Ending.LEFT: MembershipStatus.LEFT,
    Ending.RECONCILED: MembershipStatus.LEFT,
    Ending.SEAT_LAPSED: MembershipStatus.LAPSED,
}
# Who goes on purpose, or has no business in the scheme any more, is not asked back.
_FOR_GOOD = (Ending.REMOVED, Ending.THRESHOLD_LOST)


# --- in -----------------------------------------------------------------------------------------------


def assign(step: Step, scheme: Scheme, group: Group, basis: Basis, **details: Any) -> Membership:
    """Begins a membership with a seat that is kept for some time. Raises Again."""
    seat = {"status": MembershipStatus.ASSIGNED, "seat_expire_time": step.at + step.seat_hold(scheme)}
    membership, group = _begin(step, group, basis, **seat, **details)
    step.announce(
        events.member_assigned, (membership, group, scheme.kind, step.rendered(scheme.welcome, group))
    )
    return membership


def join(step: Step, group: Group, moment: datetime, entry_source: str) -> tuple[Membership, bool]:
    """Begins a membership of a member who came by itself; and whether the group had no seat. Raises Again."""
    seated = group.has_seat
    came = {"status": MembershipStatus.JOINED, "join_time": moment, "arrive_time": moment}
    membership, _ = _begin(step, group, Basis.JOINED, entry_source=entry_source, **came)
    _tell_joined(step, membership, overbooked=not seated)
    return membership, not seated


def _begin(step: Step, group: Group, basis: Basis, **details: Any) -> tuple[Membership, Group]:
    latest = step.profile.latest(group.scheme_id)
    group = seating.enter(step, group)
    membership = Membership(
        membership_id=new_id("mbs"),
        scheme_id=group.scheme_id,
        group_id=group.group_id,
        anchor=group.anchor,
        site_id=group.site_id,
        number=latest.number + 1 if latest is not None else 1,
        basis=basis,
        assign_time=step.at,
        **details,
    )
    step.keep(membership)
    return membership, group


def arrive(
    step: Step, membership: Membership, group: Group, moment: datetime, entry_source: str
) -> tuple[Membership, bool]:
    """Notes that a member is in a group, its own or another; and whether that had no seat. Raises Again."""
    known = membership.status is MembershipStatus.JOINED and membership.group_id == group.group_id
    came: dict[str, Any] = {
        "status": MembershipStatus.JOINED,
        "seat_expire_time": None,
        "join_time": membership.join_time or moment,
        "arrive_time": moment,
        "entry_source": entry_source or membership.entry_source,
    }
    if membership.group_id == group.group_id:
        arrived, overbooked = replace(membership, **came), False
        step.keep(arrived)
    else:
        overbooked = not group.has_seat
        arrived = move(step, membership, group, MoveReason.JOINED_ELSEWHERE, distance_m=0, **came)
    if not known:  # told twice; that it left meanwhile may come later
        _tell_joined(step, arrived, overbooked=overbooked)
    return arrived, overbooked


def _tell_joined(step: Step, membership: Membership, *, overbooked: bool) -> None:
    scheme, group = step.scheme(membership.scheme_id), step.group_of(membership)
    joined = events.Joined(
        membership=membership,
        group=group,
        kind=scheme.kind,
        overbooked=overbooked,
        welcome=step.rendered(scheme.welcome, group),
        benefits=step.scene.upcoming(scheme),
    )
    step.announce(events.member_joined, joined, membership.arrive_time)


# --- to another group ---------------------------------------------------------------------------------


def move(step: Step, membership: Membership, group: Group, reason: MoveReason, **details: Any) -> Membership:
    """Moves a membership to another group of its scheme, where a seat is kept until the member comes.

    Of one that is there already `details` say so. Raises Again.
    """
    scheme, left = step.scheme(membership.scheme_id), step.group_of(membership)
    seating.leave(step, left)
    group = seating.enter(step, group)
    seat = {
        "status": MembershipStatus.ASSIGNED,
        "seat_expire_time": step.at + step.seat_hold(scheme),
        "arrive_time": None,
    }
    moved = replace(
        membership,
        group_id=group.group_id,
        anchor=group.anchor,
        site_id=group.site_id,
        **{**seat, **details},
    )
    step.keep(moved)
    note_left(step, left.group_id, step.at)
    step.announce(events.member_moved, (moved, left.group_id, group, scheme.kind, reason))
    return moved


# --- out ----------------------------------------------------------------------------------------------


def end(
    step: Step,
    membership: Membership,
    ending: Ending,
    moment: datetime | None = None,
    lapse: LapseReason | None = None,
) -> tuple[Membership, Group | None]:
    """Ends a membership, and says which group is the next best for its member. Raises Again.

    Of a seat that nobody ever came to it is told that it lapsed.
    """
    group, moment = seating.leave(step, step.group_of(membership)), moment or step.at
    lapse = lapse or _LAPSES.get(ending)
    if lapse is not None and membership.join_time is None:
        ended = replace(membership, status=MembershipStatus.LAPSED, end_time=moment)
        step.keep(ended)
        step.announce(events.seat_lapsed, (ended, lapse), moment)
        return ended, None
    status = _STATUSES.get(ending, MembershipStatus.REMOVED)
    ended = replace(membership, status=status, ending=ending, end_time=moment)
    step.keep(ended)
    note_left(step, group.group_id, moment)
    following = None if ending in _FOR_GOOD else next_best(step, group)
    step.announce(events.member_left, (ended, following), moment)
    return ended, following


def note_left(step: Step, group_id: str, moment: datetime) -> None:
    """Notes that the member is no longer in a group, of the groups that it left last."""
    left = {**step.profile.left, group_id: max(moment, step.profile.left.get(group_id, moment))}
    kept = sorted(left, key=lambda name: (left[name], name))[-LEFT:]
    step.profile.left = {name: left[name] for name in kept}


def next_best(step: Step, left: Group) -> Group | None:
    """Another group of the scheme with a seat: of the same series, else at one of the next sites."""
    others = (group for group in step.groups_of(left.series) if group.group_id != left.group_id)
    found = next((group for group in others if group.has_seat and not group.over(step.at)), None)
    if found is not None:
        return found
    near = neighbours(step.scene, left.scheme_id, left.site_id)
    rooms = (step.scene.rooms.get(series) for series in near)
    return next((group for group in rooms if group is not None), None)


def neighbours(scene: Scene, scheme_id: str, site_id: str) -> Iterator[SeriesName]:
    """The series of a scheme at the sites around one."""
    site = scene.atlas.site(site_id)
    if site is not None:
        others = (near.site.site_id for near in scene.nearest(site.point, NEIGHBOURS))
        yield from ((scheme_id, other) for other in others if other != site_id)
