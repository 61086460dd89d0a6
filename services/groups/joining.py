"""Who came and who left: facts that the messaging side tells, in any order; and seats whose time is over."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.due import Due
from services.groups import messages, moving
from services.groups.commands import JoinGroup, LapseSeat, LeaveGroup
from services.groups.domain.profile import Ending, LapseReason, Membership, MembershipStatus
from services.groups.steps import Step


def join(step: Step, command: JoinGroup) -> pb.JoinGroupResponse:
    """Notes that the member is in a group. Raises GroupUnknown, and Again."""
    group, moment = step.group(command.group_id), min(command.occur_time, step.at)
    current = step.profile.active(group.scheme_id)
    if _left_since(step, group.group_id, moment) or _came_since(current, moment):
        return pb.JoinGroupResponse(membership=_shown(step, current), stale=True)
    if current is None:
        joined, overbooked = moving.join(step, group, moment, command.entry_source)
    else:
        joined, overbooked = moving.arrive(step, current, group, moment, command.entry_source)
    return pb.JoinGroupResponse(membership=_shown(step, joined), overbooked=overbooked)


def leave(step: Step, command: LeaveGroup) -> pb.LeaveGroupResponse:
    """Notes that the member is no longer in a group. Raises GroupUnknown, and Again."""
    group, moment = step.group(command.group_id), min(command.occur_time, step.at)
    current = step.profile.active(group.scheme_id)
    if current is None or current.group_id != group.group_id:
        stale = _left_since(step, group.group_id, moment)
        moving.note_left(step, group.group_id, moment)
        latest = step.profile.latest(group.scheme_id)
        return pb.LeaveGroupResponse(membership=_shown(step, latest), stale=stale)
    if moment < (current.arrive_time or current.assign_time):
        return pb.LeaveGroupResponse(membership=_shown(step, current), stale=True)
    if command.ending is Ending.RECONCILED and current.status is MembershipStatus.ASSIGNED:
        return pb.LeaveGroupResponse(membership=_shown(step, current))  # it has yet to come
    ended, following = moving.end(step, current, command.ending, moment)
    kind = step.scheme(group.scheme_id).kind
    return pb.LeaveGroupResponse(
        membership=_shown(step, ended),
        next_group=None if following is None else messages.group(following, kind, step.at),
    )


def _left_since(step: Step, group_id: str, moment: datetime) -> bool:
    """Whether it is known that the member left a group later, or was taken out of it."""
    left = step.profile.left.get(group_id)
    return left is not None and moment < left


def _came_since(current: Membership | None, moment: datetime) -> bool:
    """Whether it is known that the member came later, here or to another group of the scheme."""
    return current is not None and current.arrive_time is not None and moment < current.arrive_time


def _shown(step: Step, membership: Membership | None) -> pb.Membership | None:
    if membership is None:
        return None
    kind = step.scheme(membership.scheme_id).kind
    return messages.membership(step.profile.member_id, membership, kind, step.at)


# --- by the clock -------------------------------------------------------------------------------------


def upcoming(step: Step) -> Iterator[Due]:
    """Seats that lapse."""
    for membership in step.profile.memberships.values():
        if membership.status is MembershipStatus.ASSIGNED and membership.seat_expire_time is not None:
            yield Due(membership.seat_expire_time, partial(_lapse, step, membership))


def _lapse(step: Step, membership: Membership, moment: datetime) -> None:
    moving.end(step, membership, Ending.SEAT_LAPSED, moment)


def lapse_seat(step: Step, command: LapseSeat) -> None:
    """Gives up a seat that is kept in a group of which the platform takes nobody more. Raises Again."""
    for membership in list(step.profile.memberships.values()):
        kept = membership.status is MembershipStatus.ASSIGNED and membership.group_id == command.group_id
        if kept and step.group_of(membership).crowded:
            moving.end(step, membership, Ending.SEAT_LAPSED, lapse=LapseReason.GROUP_FULL)
