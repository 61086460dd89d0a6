"""What is known of a member, looked at: the tags that callers set and those that follow, and what members of
schemes become by it.

A look comes after each change of a member's tags, of its orders, or of what other services told; when time
alone changes what is known; and when a scheme or the programme was put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.due import Due
from services.chassis.errors import FailedPrecondition
from services.groups import assigning, events, moving, rules, seating
from services.groups.commands import Reevaluate, TagMember, UntagMember
from services.groups.domain import facts
from services.groups.domain.facts import Purchase
from services.groups.domain.profile import RULE, Basis, Ending, Membership, MoveReason, Tag
from services.groups.domain.schemes import Scheme, SchemeKind, Segment, ThresholdLost
from services.groups.domain.seats import Group
from services.groups.errors import TagDerived, TagTimePast, TooManyTags
from services.groups.events import Retagged
from services.groups.rules import CompiledScheme
from services.groups.steps import Again, Scene, Step, together

TAGS = 200  # that callers may set of a member

# --- tags ---------------------------------------------------------------------------------------------


def tag(step: Step, command: TagMember) -> pb.TagChanges:
    """Sets tags. Raises TagDerived, TagTimePast, TooManyTags, and Again."""
    before, now = dict(step.profile.tags), dict(step.profile.tags)
    for new in command.tags:
        _check_derived(step, new.key)
        if not new.holds(step.at):
            raise TagTimePast(key=new.key)
        if _saying(now.get(new.key)) != _saying(new):
            now[new.key] = replace(new, set_time=step.at)
    if sum(one.source != RULE for one in now.values()) > TAGS:
        raise TooManyTags(limit=TAGS)
    return _changed(step, before, now)


def untag(step: Step, command: UntagMember) -> pb.TagChanges:
    """Removes tags. Raises TagDerived, and Again."""
    for key in command.keys:
        _check_derived(step, key)
    before = dict(step.profile.tags)
    return _changed(step, before, {key: one for key, one in before.items() if key not in command.keys})


def _check_derived(step: Step, key: str) -> None:
    if key in step.scene.programme.rules:
        raise TagDerived(key=key)


def _changed(step: Step, before: Mapping[str, Tag], now: dict[str, Tag]) -> pb.TagChanges:
    step.profile.tags = now
    return pb.TagChanges(changes=[events.tag_change(changed) for changed in evaluate(step, before)])


def reevaluate(step: Step, _command: Reevaluate) -> None:
    """Looks at the member anew. Raises Again."""
    evaluate(step)


# --- looking at a member ------------------------------------------------------------------------------


def foreseen(scene: Scene, command: Reevaluate) -> Again | None:
    """What a look at a member, as it is seen unlocked, would lack; None where it would change nothing.

    Who stays as it is needs neither a lock nor a write: with whatever is asked of the member at the same
    time, by the same schemes and programme, it is as if the look had come first.
    """
    profile = scene.seen.profiles[command.member_id]
    if profile.next_due_time is not None and profile.next_due_time <= scene.at:
        return Again()
    step = Step(scene, command)
    try:
        evaluate(step)
    except Again as lacked:
        return lacked
    return None if step.profile == profile and not step.events else Again()


def evaluate(step: Step, before: Mapping[str, Tag] | None = None) -> list[Retagged]:
    """Looks at the member: its tags, its groups, and when the next look is due. Raises Again.

    Returns what changed of its tags, since they were as `before` says, and announces it.
    """
    profile, known = step.profile, step.known()
    if before is None:
        before = profile.tags
    profile.tags = step.scene.programme.tags_of(profile, known, step.at)
    changes = _changes(before, profile.tags)
    if changes:
        step.announce(events.tags_changed, changes)
    _reseat(step, known.with_tags({key: one.value for key, one in profile.tags.items()}))
    recent = profile.recent()
    profile.evaluate_time = _next_look(step, recent)
    profile.past = facts.aged(profile.past, recent, step.at, step.zone)
    return changes


def _changes(before: Mapping[str, Tag], now: Mapping[str, Tag]) -> list[Retagged]:
    both = [Retagged(before.get(key), now.get(key)) for key in sorted({*before, *now})]
    return [changed for changed in both if _saying(changed.was) != _saying(changed.now)]


def _saying(one: Tag | None) -> Any:
    return one and (one.value, one.source, one.expire_time)


def _next_look(step: Step, recent: Sequence[Purchase]) -> datetime | None:
    """When time alone changes what is known: facts at local midnight, and tags when they end."""
    profile, horizon_days = step.profile, step.programme.horizon_days
    midnight = facts.next_change(recent, step.at, step.zone, horizon_days, profile.past)
    ends = [one.expire_time for one in profile.tags.values()]
    return min((at for at in (midnight, *ends) if at is not None), default=None)


def upcoming(step: Step) -> Iterator[Due]:
    """The next look."""
    if step.profile.evaluate_time is not None:
        yield Due(step.profile.evaluate_time, partial(_look, step))


def _look(step: Step, _: datetime) -> None:
    evaluate(step)


# --- what becomes of memberships ----------------------------------------------------------------------


def _reseat(step: Step, known: rules.Known) -> None:
    """Seats the member by what is known now; of a scheme that was withdrawn all stays as it is."""
    schemes = (compiled for _, compiled in sorted(step.scene.schemes.items()))
    together(partial(_reseat_in, step, one, known) for one in schemes if not one.scheme.withdrawn)


def _reseat_in(step: Step, compiled: CompiledScheme, known: rules.Known) -> None:
    scheme = compiled.scheme
    current, by_tag = step.profile.active(scheme.scheme_id), scheme.kind is SchemeKind.BY_TAG
    if current is None and not by_tag:
        return
    segment = compiled.segment(known) if by_tag else None
    lost = compiled.failing(known) or (rules.NO_SEGMENT if by_tag and segment is None else "")
    if current is not None:
        current = _weigh(step, scheme, current, lost)
    if segment is None or lost:
        return
    if current is not None:
        _follow(step, current, segment)
    elif _wanted(step, compiled, known, segment):
        group = seating.find(step, (scheme.scheme_id, segment.segment_id))
        if group is not None:
            moving.assign(step, scheme, group, Basis.SEGMENT)


def _weigh(step: Step, scheme: Scheme, current: Membership, lost: str) -> Membership | None:
    """Notes which condition a membership does not meet, if any, and does what the scheme says of that."""
    if lost and scheme.on_threshold_lost is ThresholdLost.REMOVE:
        moving.end(step, replace(current, lost_condition=lost), Ending.THRESHOLD_LOST)
        return None
    if lost == current.lost_condition:
        return current
    weighed = replace(current, lost_condition=lost)
    step.keep(weighed)
    if not current.lost_condition and scheme.on_threshold_lost is ThresholdLost.NOTIFY:
        step.announce(events.threshold_lost, weighed)
    return weighed


def _follow(step: Step, current: Membership, segment: Segment) -> None:
    """Moves a membership to the groups of the segment that the member is in."""
    if current.anchor == segment.segment_id:
        return
    both: list[Callable[[], Group | None]] = [  # where it goes and what it leaves are asked for at once
        partial(seating.find, step, (current.scheme_id, segment.segment_id)),
        partial(step.group_of, current),
    ]
    group, _ = together(both)
    if group is not None:
        moving.move(step, current, group, MoveReason.TAGS_CHANGED, basis=Basis.SEGMENT)


def _wanted(step: Step, compiled: CompiledScheme, known: rules.Known, segment: Segment) -> bool:
    """Whether a seat is kept for a member who did not ask for it.

    Whoever left, or let a seat of the segment lapse, is not asked again until the segment changes.
    """
    if not compiled.is_for(known):
        return False
    latest = step.profile.latest(compiled.scheme.scheme_id)
    if latest is not None and latest.anchor == segment.segment_id and not _taken_back(latest):
        return False
    try:
        assigning.check(step, compiled.scheme)
    except FailedPrecondition:
        return False
    return True


def _taken_back(ended: Membership) -> bool:
    """Whether it was ours that a membership ended: its member may have a seat again."""
    if ended.ending is None:
        return bool(ended.lost_condition)
    return ended.ending in (Ending.THRESHOLD_LOST, Ending.GROUP_DISSOLVED, Ending.SITE_CLOSED)
