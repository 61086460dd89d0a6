"""Seats: who gets one, in which group, and why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.ids import own_request_id
from services.groups import choosing, events, messages, moving, relocating
from services.groups.choosing import Option
from services.groups.commands import AssignMember, ClawBack, GrantReward
from services.groups.domain.coordinates import Point, coarse_cell
from services.groups.domain.profile import (
    Basis,
    Ending,
    LapseReason,
    Membership,
    MoveReason,
    Profile,
)
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.domain.seats import Group
from services.groups.errors import (
    Cooldown,
    GroupFull,
    GroupUnknown,
    NotInSegment,
    RewardTakenBack,
    SchemeWithdrawn,
    ThresholdNotMet,
)
from services.groups.steps import Scene, Step

OFFERED = 8  # groups that are named in the place of one that is full

Way = list[pb.AssignStep]
"""What was found on the way to a group, nearest first."""


def assign(step: Step, command: AssignMember) -> pb.AssignMemberResponse:
    """Reserves a seat, or one in each scheme that is for the member.

    Raises SchemeUnknown, GroupUnknown, SiteUnknown, SchemeWithdrawn, ThresholdNotMet, Cooldown, GroupFull,
    NoSite, NotInSegment, InviterNeeded, and Again.
    """
    response = pb.AssignMemberResponse()
    if command.scheme_id or command.chosen_group_id:
        response.assignments.append(_assign(step, command, _scheme(step, command)))
        return response
    for scheme in for_member(step):
        try:
            response.assignments.append(_assign(step, command, scheme))
        except FailedPrecondition as refusal:
            response.refusals.add(
                scheme_id=scheme.scheme_id, reason=refusal.reason, metadata=refusal.metadata
            )
    return response


def _scheme(step: Step, command: AssignMember) -> Scheme:
    """The scheme that is named, or that of the chosen group."""
    if not command.chosen_group_id:
        return step.scheme(command.scheme_id)
    group = step.group(command.chosen_group_id)
    if command.scheme_id not in ("", group.scheme_id):
        raise GroupUnknown(group_id=group.group_id)
    return step.scheme(group.scheme_id)


def for_all(scene: Scene) -> list[Scheme]:
    """The schemes that take members whom nobody sends there, by priority."""
    kinds = (SchemeKind.BY_LOCATION, SchemeKind.BY_TAG)
    schemes = (compiled.scheme for compiled in scene.schemes.values())
    asked = [scheme for scheme in schemes if scheme.kind in kinds and not scheme.withdrawn]
    return sorted(asked, key=lambda scheme: (scheme.priority, scheme.scheme_id))


def is_for(scene: Scene, scheme: Scheme, profile: Profile) -> bool:
    """Whether such a scheme is for a member. Raises Again."""
    return not scheme.audience or scene.schemes[scheme.scheme_id].is_for(scene.known(profile))


def for_member(step: Step) -> list[Scheme]:
    """Such schemes that are for the member. Raises Again."""
    return [scheme for scheme in for_all(step.scene) if is_for(step.scene, scheme, step.profile)]


def _assign(step: Step, command: AssignMember, scheme: Scheme) -> pb.Assignment:
    current = step.profile.active(scheme.scheme_id)
    if current is not None:
        current = relocating.resettle(step, current)
    if current is not None:
        return _keep_or_move(step, command, scheme, current)
    check(step, scheme)
    way: Way = []
    option, group = _choose(step, command, scheme, way)
    membership = moving.assign(
        step, scheme, group, option.basis, entry_source=command.entry_source, **_whence(command, option)
    )
    return _shown(step, command, membership, [*way, _taken(step, option, group)])


def check(step: Step, scheme: Scheme) -> None:
    """Whether a scheme takes the member."""
    if scheme.withdrawn:
        raise SchemeWithdrawn(scheme_id=scheme.scheme_id)
    failing = step.compiled(scheme.scheme_id).failing(step.known()) if scheme.threshold else None
    if failing is not None:
        raise ThresholdNotMet(condition=failing)
    latest = step.profile.latest(scheme.scheme_id)
    if latest is not None and latest.ending is Ending.LEFT and latest.end_time is not None:
        until = latest.end_time + scheme.cooldown
        if step.at < until:
            raise Cooldown(until=until.isoformat())


# --- in which group -----------------------------------------------------------------------------------


def _choose(step: Step, command: AssignMember, scheme: Scheme, way: Way) -> tuple[Option, Group]:
    """The chosen group, or the best one with a seat."""
    if command.chosen_group_id:
        return _chosen(step, command.chosen_group_id)
    found = choosing.take(step, choosing.options(step.scene, step.profile, command, scheme), way)
    if found is None:
        raise GroupFull(next_group_ids="")
    return found


def _chosen(step: Step, group_id: str) -> tuple[Option, Group]:
    """A group that the member chose and may have. Raises NotInSegment, GroupFull."""
    group = step.group(group_id)
    compiled = step.compiled(group.scheme_id)
    if compiled.scheme.kind is SchemeKind.BY_TAG:
        segment = compiled.segment(step.known())
        if segment is None or segment.segment_id != group.anchor:
            raise NotInSegment(scheme_id=group.scheme_id)
    if not group.has_seat or group.over(step.at):
        raise GroupFull(next_group_ids=",".join(_offered(step, group)))
    return Option(group.series, Basis.CHOSEN, group.site_id), group


def _offered(step: Step, full: Group) -> list[str]:
    """What may be chosen in the place of a group: others of its series, then those of the sites around."""
    scene = step.scene
    around = (scene.rooms.get(each) for each in moving.neighbours(scene, full.scheme_id, full.site_id))
    groups = [*step.groups_of(full.series), *(group for group in around if group is not None)]
    return [one.group_id for one in groups if one.has_seat and not one.over(step.at)][:OFFERED]


def _keep_or_move(step: Step, command: AssignMember, scheme: Scheme, current: Membership) -> pb.Assignment:
    """The group that the member has, unless it chose another, or one is nearer by more than the margin."""
    way: Way = []
    found, reason = None, MoveReason.CHOSEN
    if not command.chosen_group_id:
        found, reason = _nearer(step, command, scheme, current, way), MoveReason.NEARER
    elif command.chosen_group_id != current.group_id:
        found = _chosen(step, command.chosen_group_id)
    here = _here(step, command, current)
    if found is None:
        kept = choosing.note(pb.ASSIGN_NOTE_KEPT, here, current.group_id)
        return _shown(step, command, current, [*way, kept])
    option, group = found
    moved = moving.move(step, current, group, reason, basis=option.basis, **_whence(command, option))
    left = choosing.note(pb.ASSIGN_NOTE_MOVED_FROM, here, current.group_id)
    return _shown(step, command, moved, [*way, _taken(step, option, group), left])


def _nearer(
    step: Step, command: AssignMember, scheme: Scheme, current: Membership, way: Way
) -> tuple[Option, Group] | None:
    """A group at a site that is nearer than the member's by more than the margin. Raises Again."""
    if command.location is None or scheme.kind is not SchemeKind.BY_LOCATION:
        return None
    found = choosing.take(step, nearer(step.scene, command.location, scheme, current, scheme.margin_m), way)
    if found is None:
        closer = nearer(step.scene, command.location, scheme, current, 0)
        full = {line.site_id for line in way}
        within = [option for option in closer if option.site_id not in full]
        way.extend(choosing.note(pb.ASSIGN_NOTE_WITHIN_MARGIN, option) for option in within)
    return found


def nearer(scene: Scene, location: Point, scheme: Scheme, current: Membership, margin_m: int) -> list[Option]:
    """The options at sites that are nearer than the member's by more than a margin."""
    limit_m = scene.atlas.distance_m(location, current.site_id) - margin_m
    options = choosing.near(scene, scheme, location, Basis.EXACT)
    return [one for one in options if one.distance_m < limit_m and one.series != current.series]


def _whence(command: AssignMember, option: Option) -> dict[str, Any]:
    """What is kept of the place that a group was chosen by: no more than a coarse cell."""
    cell = coarse_cell(command.location) if option.basis is Basis.EXACT and command.location else ""
    return {"cell": cell, "distance_m": option.distance_m}


# --- as it is answered --------------------------------------------------------------------------------


def _here(step: Step, command: AssignMember, membership: Membership) -> Option:
    """The group that a member has, as an option; how far it is, if a location is given."""
    atlas, distance_m = step.scene.atlas, 0
    if command.location is not None and atlas.site(membership.site_id) is not None:
        distance_m = round(atlas.distance_m(command.location, membership.site_id))
    return Option(membership.series, membership.basis, membership.site_id, distance_m)


def _taken(step: Step, option: Option, group: Group) -> pb.AssignStep:
    known = group.group_id in step.scene.seen.groups
    return choosing.note(pb.ASSIGN_NOTE_TAKEN if known else pb.ASSIGN_NOTE_OPENED, option, group.group_id)


def _shown(step: Step, command: AssignMember, membership: Membership, way: Way) -> pb.Assignment:
    """A seat as the contract shows it."""
    scheme, group = step.scheme(membership.scheme_id), step.group_of(membership)
    shown = messages.membership(step.profile.member_id, membership, scheme.kind, step.at)
    return pb.Assignment(
        membership=shown,
        group=messages.group(group, scheme.kind, step.at),
        distance_m=_here(step, command, membership).distance_m,
        basis=shown.basis,
        explanation=way,
        seat_expire_time=shown.seat_expire_time if shown.HasField("seat_expire_time") else None,
        welcome=step.rendered(scheme.welcome, group),
        benefits=events.upcoming_benefits(step.scene.upcoming(scheme)),
    )


# --- rewards ------------------------------------------------------------------------------------------


def claw_back_name(reward_id: str) -> str:
    """The request under which it is kept that a reward was taken back."""
    return own_request_id("reward taken back", reward_id)


def as_assignment(command: GrantReward) -> AssignMember:
    """The seat that a reward asks for."""
    return AssignMember(
        member_id=command.member_id,
        request_id=command.request_id,
        payload_hash=command.payload_hash,
        actor=command.actor,
        scheme_id=command.scheme_id,
        chosen_group_id=command.group_id,
    )


def grant(step: Step, command: GrantReward) -> pb.AssignMemberResponse | None:
    """Gives a seat as a reward, once, or announces why not: then it can be asked for again. Raises Again."""
    had = step.profile.active(command.scheme_id)
    try:
        if (command.member_id, claw_back_name(command.reward_id)) in step.scene.seen.done.answers:
            raise RewardTakenBack
        assign(step, as_assignment(command))
    except (FailedPrecondition, NotFound) as refusal:
        step.announce(events.fulfilment_refused, (command.reward_id, refusal.reason))
        return None
    membership = step.profile.active(command.scheme_id)
    assert membership is not None  # noqa: S101 - or it is refused
    if had is None:  # else the seat is not the reward's to take back
        step.keep(replace(membership, reward_id=command.reward_id))
    step.announce(events.reward_fulfilled, (command.reward_id, membership))
    return pb.AssignMemberResponse()


def claw_back(step: Step, command: ClawBack) -> pb.AssignMemberResponse:
    """Takes a reward back: the seat that it gave, or, told before the reward, the reward to come."""
    given = (m for m in step.profile.memberships.values() if m.reward_id == command.reward_id and m.active)
    for membership in list(given):
        moving.end(step, membership, Ending.REMOVED, lapse=LapseReason.REWARD_TAKEN_BACK)
    return pb.AssignMemberResponse()
