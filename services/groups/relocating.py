"""Members of groups that are closed or dissolved: they go where the next best seat is."""

from __future__ import annotations

from services.chassis.errors import FailedPrecondition, NotFound
from services.groups import choosing, moving
from services.groups.choosing import Option
from services.groups.commands import AssignMember, MoveOut
from services.groups.domain.profile import Basis, Ending, Membership, MoveReason, Profile
from services.groups.domain.schemes import SchemeKind
from services.groups.domain.seats import GroupStatus
from services.groups.steps import Scene, Step


def move_out(step: Step, command: MoveOut) -> None:
    """Takes the member out of a group that is closed or dissolved; of a closed one within the day's quota."""
    mine = (m for m in step.profile.memberships.values() if m.active and m.group_id == command.group_id)
    membership = next(mine, None)
    if membership is None:
        return
    if step.group_of(membership).status is GroupStatus.CLOSED:
        day = step.at.astimezone(step.zone).date()
        moves = step.moves_on(day)
        if moves >= step.programme.moves_per_day:
            return
        step.moves[day] = moves + 1
    resettle(step, membership)


def resettle(step: Step, membership: Membership) -> Membership | None:
    """The active membership, where its group is closed or dissolved in another group; None where it ended.

    Raises Again.
    """
    group = step.group_of(membership)
    if group.living and not group.over(step.at):
        return membership
    if group.status is GroupStatus.CLOSED:
        reason, ending = MoveReason.SITE_CLOSED, Ending.SITE_CLOSED
        found = choosing.take(step, after_closing(step.scene, membership), [])
    else:
        reason, ending = MoveReason.GROUP_DISSOLVED, Ending.GROUP_DISSOLVED
        found = choosing.take(step, after_dissolving(step.scene, step.profile, membership), [])
    if found is None:
        moving.end(step, membership, ending)
        return None
    option, target = found
    if target.scheme_id == membership.scheme_id:
        return moving.move(step, membership, target, reason, distance_m=0)
    moving.end(step, membership, ending)
    scheme = step.scheme(target.scheme_id)
    moving.assign(step, scheme, target, option.basis, entry_source=membership.entry_source)
    return None


def after_closing(scene: Scene, membership: Membership) -> list[Option]:
    """Where the member of a group goes whose site is closed: to the nearest sites."""
    site = scene.atlas.site(membership.site_id)
    if site is None:
        return []
    return choosing.near(scene, scene.schemes[membership.scheme_id].scheme, site.point, Basis.HOME_SITE)


def after_dissolving(scene: Scene, profile: Profile, membership: Membership) -> list[Option]:
    """Where the member of a dissolved group goes: to the groups of the successor, if there is one.

    It is asked for nothing there but that its place is known.
    """
    own = scene.schemes[membership.scheme_id].scheme
    compiled = scene.schemes.get(own.successor_scheme_id)
    if compiled is None or compiled.scheme.withdrawn:
        return []
    successor = compiled.scheme
    if successor.scheme_id == own.scheme_id:
        return [Option(membership.series, membership.basis, membership.site_id)]
    if profile.active(successor.scheme_id) is not None:
        return []
    asked = AssignMember(
        member_id=profile.member_id,
        request_id="",
        payload_hash=b"",
        actor="",
        home_site_id=membership.site_id,
        inviter_id=membership.anchor if own.kind is SchemeKind.INVITE else "",
    )
    try:
        return choosing.options(scene, profile, asked, successor)
    except (FailedPrecondition, NotFound):
        return []
