"""What the commands of a batch want to see: of members, which are locked first, and then of groups.

It may name too little: what a handler misses goes into another batch, which has it named (`steps.Again`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.chassis.database import Connection
from services.chassis.errors import ServiceError
from services.groups import assigning, choosing, learning, moving, relocating, store
from services.groups.choosing import Option
from services.groups.commands import (
    AssignMember,
    ClawBack,
    Command,
    GrantReward,
    JoinGroup,
    LapseSeat,
    LearnFact,
    LeaveGroup,
    MoveOut,
    OrderTold,
    Reevaluate,
    RefundTold,
    TagMember,
    UntagMember,
)
from services.groups.domain.profile import Membership, MembershipStatus, Profile
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.domain.seats import Group, SeriesName
from services.groups.steps import Again, Scene
from services.groups.store import Wanted, WantedSeries

_ABOUT_FACTS = (TagMember, UntagMember, OrderTold, RefundTold, LearnFact, Reevaluate, MoveOut)


@dataclass(frozen=True, slots=True)
class Asked:
    """A command, and what an earlier batch lacked for it: series, and what is known of its member."""

    command: Command
    series: frozenset[SeriesName] = frozenset()
    facts: bool = False

    def again(self, lacked: Again) -> Asked:
        """The same, for a batch that has what this one lacked."""
        return Asked(self.command, self.series | lacked.series, self.facts or lacked.facts)


# --- of members ---------------------------------------------------------------------------------------


def of_members(asked: Sequence[Asked], scene: Scene) -> Wanted:
    """What commands need to see of their members."""
    wanted = Wanted(scene.at)
    for one in asked:
        command = one.command
        wanted.members.add(command.member_id)
        if command.event is not None:
            wanted.events.append(command.event)
        if command.event is None or isinstance(command, GrantReward | ClawBack):
            wanted.requests.add((command.member_id, command.request_id))
        if isinstance(command, GrantReward):
            wanted.requests.add((command.member_id, assigning.claw_back_name(command.reward_id)))
        if one.facts or _needs_facts(command, scene):
            wanted.facts_of.add(command.member_id)
        if isinstance(command, OrderTold | RefundTold):
            wanted.orders.add((command.member_id, command.order_id))
    return wanted


def _needs_facts(command: Command, scene: Scene) -> bool:
    match command:
        case AssignMember(chosen_group_id=""):
            return any(_asks(scheme, command) for scheme in _schemes(command, scene))
        case AssignMember() | GrantReward():
            return True
        case _:
            return isinstance(command, _ABOUT_FACTS)


def _asks(scheme: Scheme, command: AssignMember) -> bool:
    """Whether a scheme goes by what is known of a member, for want of a place too."""
    placed = command.location is not None or command.home_site_id
    conditions = scheme.threshold or (scheme.audience and not command.scheme_id)
    return (
        bool(conditions)
        or scheme.kind is SchemeKind.BY_TAG
        or (scheme.kind is SchemeKind.BY_LOCATION and not placed)
    )


def _schemes(command: AssignMember, scene: Scene) -> list[Scheme]:
    """The schemes that a command may be about, of which no group is chosen."""
    if not command.scheme_id:
        return assigning.for_all(scene)
    named = scene.schemes.get(command.scheme_id)
    return [named.scheme] if named is not None else []


# --- of groups ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Plan:
    """What one command may need of groups."""

    seats: list[SeriesName] = field(default_factory=list)
    """Series in which it may take a seat."""
    seen: list[SeriesName] = field(default_factory=list)
    """Series that it may change, or looks at, otherwise."""
    groups: list[str] = field(default_factory=list)
    """Groups of these by name."""
    options: list[Sequence[Option]] = field(default_factory=list)
    """Where it may take a seat: of each the best with one."""
    around: list[SeriesName] = field(default_factory=list)
    """Series that it may point to; they are not locked."""

    def see(self, membership: Membership | None) -> None:
        """The group of a membership."""
        if membership is not None:
            self.seen.append(membership.series)
            self.groups.append(membership.group_id)


async def of_series(connection: Connection, asked: Sequence[Asked], scene: Scene) -> WantedSeries:
    """What commands need to see of groups, now that their members are locked.

    Before the locks it looks which series have a seat, where that decides which of them are locked.
    """
    fresh = [one for one in asked if not scene.seen.done.has(one.command)]
    heads = await store.groups(connection, _unnamed_groups(fresh, scene))
    plans = [_plan(one, scene, heads) for one in fresh]
    looked = {series for plan in plans for series in _looked_at(plan)}
    rooms = await store.rooms(connection, looked) if looked else {}
    scene.rooms = {series: group for series, group in rooms.items() if group is not None}
    scene.full = {series for series in looked - rooms.keys() if choosing.ends(scene, series)}
    wanted = WantedSeries()
    for plan in plans:
        chosen = (series for found in plan.options for series in choosing.to_lock(scene, found))
        for series in (*plan.seats, *chosen):
            wanted.seats[series] = wanted.seats.get(series, 0) + 1
        for series in plan.seen:
            wanted.seats.setdefault(series, 0)
        wanted.groups.update(plan.groups)
    if any(isinstance(one.command, MoveOut) for one in fresh):
        wanted.moves_on = scene.at.astimezone(scene.terms.zone).date()
    return wanted


def _unnamed_groups(asked: Iterable[Asked], scene: Scene) -> set[str]:
    """Groups that are named, and whose series no membership says."""
    found = set()
    for one in asked:
        command = one.command
        match command:
            case AssignMember(chosen_group_id=group_id) | GrantReward(group_id=group_id):
                found.add(group_id)
            case JoinGroup(group_id=group_id) | LeaveGroup(group_id=group_id):
                if _in_group(scene.seen.profiles[command.member_id], group_id) is None:
                    found.add(group_id)
    return found - {""}


def _in_group(profile: Profile, group_id: str) -> Membership | None:
    """The active membership in a group."""
    mine = (m for m in profile.memberships.values() if m.active and m.group_id == group_id)
    return next(mine, None)


def _looked_at(plan: _Plan) -> Iterable[SeriesName]:
    """The series of which it is asked without a lock whether they have a seat."""
    yield from plan.around
    for found in plan.options:
        if len(found) > 1:
            yield from (option.series for option in found)


def _plan(one: Asked, scene: Scene, heads: Mapping[str, Group]) -> _Plan:
    command, profile = one.command, scene.seen.profiles[one.command.member_id]
    plan = _Plan(seats=list(one.series))
    for membership in profile.memberships.values():
        expire = membership.seat_expire_time if membership.status is MembershipStatus.ASSIGNED else None
        if membership.active and (membership.series in one.series or (expire and expire <= scene.at)):
            plan.see(membership)
    match command:
        case AssignMember():
            _plan_seats(plan, command, scene, profile, heads)
        case GrantReward():
            _plan_seats(plan, assigning.as_assignment(command), scene, profile, heads)
        case ClawBack(reward_id=reward_id):
            for membership in profile.memberships.values():
                plan.see(membership if membership.active and membership.reward_id == reward_id else None)
        case JoinGroup() | LeaveGroup():
            _plan_fact(plan, command, scene, profile, heads)
        case OrderTold():
            plan.around += learning.around(scene, profile, command)
        case LapseSeat(group_id=group_id):
            plan.see(_in_group(profile, group_id))
        case MoveOut(group_id=group_id):
            leaving = _in_group(profile, group_id)
            if leaving is not None:
                plan.see(leaving)
                plan.options.append(relocating.after_closing(scene, leaving))
                plan.options.append(relocating.after_dissolving(scene, profile, leaving))
    return plan


def _plan_seats(
    plan: _Plan, command: AssignMember, scene: Scene, profile: Profile, heads: Mapping[str, Group]
) -> None:
    if command.chosen_group_id:
        group = heads.get(command.chosen_group_id)
        if group is not None:
            plan.see(profile.active(group.scheme_id))
            plan.seats.append(group.series)
            plan.groups.append(group.group_id)
            plan.around.extend(moving.neighbours(scene, group.scheme_id, group.site_id))
        return
    for scheme in _schemes(command, scene):
        current = profile.active(scheme.scheme_id)
        plan.see(current)
        if current is None:
            plan.options.append(_options(command, scheme, scene, profile))
        elif command.location is not None and scheme.kind is SchemeKind.BY_LOCATION:
            near = assigning.nearer(scene, command.location, scheme, current, scheme.margin_m)
            plan.options.append(near)


def _options(command: AssignMember, scheme: Scheme, scene: Scene, profile: Profile) -> list[Option]:
    """Where a command may take a seat in a scheme; nowhere, where it will be refused."""
    try:
        if not command.scheme_id and not assigning.is_for(scene, scheme, profile):
            return []
        return choosing.options(scene, profile, command, scheme)
    except (ServiceError, Again):
        return []


def _plan_fact(
    plan: _Plan,
    command: JoinGroup | LeaveGroup,
    scene: Scene,
    profile: Profile,
    heads: Mapping[str, Group],
) -> None:
    """Who comes may need a seat; who goes is told of another group."""
    current = _in_group(profile, command.group_id)
    plan.see(current)
    if current is not None:
        if isinstance(command, LeaveGroup):
            plan.seats.append(current.series)
            plan.around.extend(moving.neighbours(scene, current.scheme_id, current.site_id))
        return
    group = heads.get(command.group_id)
    if group is not None:
        plan.groups.append(group.group_id)
        plan.seats.append(group.series)
        plan.see(profile.active(group.scheme_id))
