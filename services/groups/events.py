"""Domain facts as messages: what is announced of members and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.outbox import About, Event, announcement
from services.chassis.timestamps import timestamp, timestamp_of
from services.groups.domain.calendar import Occurrence
from services.groups.domain.profile import (
    Basis,
    Ending,
    LapseReason,
    Membership,
    MoveReason,
    Tag,
)
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.domain.seats import DissolveReason, Group, OpenReason

STREAM = "GROUPS"
SUBJECTS = ("loyalty.groups.v1.>",)
LONGEST_TEXT = 4000  # characters; names that are filled in make a text longer than it was put

BASES = {basis: pb.AssignBasis.Value(f"ASSIGN_BASIS_{basis}") for basis in Basis}
LEAVE_REASONS = {ending: epb.MemberLeaveReason.Value(f"MEMBER_LEAVE_REASON_{ending}") for ending in Ending}
MOVE_REASONS = {reason: epb.MemberMoveReason.Value(f"MEMBER_MOVE_REASON_{reason}") for reason in MoveReason}
LAPSE_REASONS = {reason: epb.SeatLapseReason.Value(f"SEAT_LAPSE_REASON_{reason}") for reason in LapseReason}
OPEN_REASONS = {reason: epb.GroupOpenReason.Value(f"GROUP_OPEN_REASON_{reason}") for reason in OpenReason}
DISSOLVE_REASONS = {
    reason: epb.GroupDissolveReason.Value(f"GROUP_DISSOLVE_REASON_{reason}") for reason in DissolveReason
}


def segment_id(kind: SchemeKind, anchor: str) -> str:
    """The segment of a group, or of a membership in one, by its anchor; empty where that is none."""
    return anchor if kind is SchemeKind.BY_TAG else ""


def inviter_id(kind: SchemeKind, anchor: str) -> str:
    """The inviter of a group by its anchor; empty where that is none."""
    return anchor if kind is SchemeKind.INVITE else ""


def upcoming_benefits(occurrences: Sequence[Occurrence]) -> list[epb.UpcomingBenefit]:
    """What a calendar announces next, as it was found."""
    return [
        epb.UpcomingBenefit(
            benefit_code=one.occasion.benefit_code,
            text=one.occasion.text,
            due_time=timestamp(one.at),
            claim_until_time=timestamp(one.claim_until),
        )
        for one in occurrences
    ]


@dataclass(frozen=True, slots=True)
class Retagged:
    """A tag before and after; one of them is there."""

    was: Tag | None
    now: Tag | None


def tag_change(changed: Retagged) -> epb.TagChange:
    """A tag that was set, changed or removed."""
    one = changed.now or changed.was
    assert one is not None  # noqa: S101 - nothing changed otherwise
    return epb.TagChange(
        key=one.key,
        value=changed.now.value if changed.now else "",
        previous_value=changed.was.value if changed.was else "",
        source=one.source,
        expire_time=timestamp_of(one.expire_time),
        removed=changed.now is None,
    )


# --- what is announced of members ---------------------------------------------------------------------


_event = partial(announcement, STREAM)


def _stay(one: Membership) -> dict[str, Any]:
    """The membership that an event is about."""
    return {"membership_id": one.membership_id, "group_id": one.group_id, "scheme_id": one.scheme_id}


def member_assigned(about: About, assigned: tuple[Membership, Group, SchemeKind, str]) -> Event:
    """A seat is kept for a member: in which group, of a scheme of which kind, and what the member is told."""
    one, where, kind, welcome = assigned
    return _event(
        about,
        epb.MemberAssigned,
        **_stay(one),
        site_id=one.site_id,
        group_name=where.name,
        entry_link=where.entry_link,
        entry_source=one.entry_source,
        seat_expire_time=timestamp_of(one.seat_expire_time),
        welcome=welcome[:LONGEST_TEXT],
        segment_id=segment_id(kind, one.anchor),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A member who came to a group, and what it is told there."""

    membership: Membership
    group: Group
    kind: SchemeKind
    overbooked: bool
    """It got no seat."""
    welcome: str
    benefits: Sequence[Occurrence]


def member_joined(about: About, joined: Joined) -> Event:
    """A member is in a group."""
    one, where = joined.membership, joined.group
    return _event(
        about,
        epb.MemberJoined,
        **_stay(one),
        entry_source=one.entry_source,
        site_id=one.site_id,
        group_name=where.name,
        chat_id=where.chat_id,
        membership_number=one.number,
        overbooked=joined.overbooked,
        welcome=joined.welcome[:LONGEST_TEXT],
        benefits=upcoming_benefits(joined.benefits),
        segment_id=segment_id(joined.kind, one.anchor),
    )


def member_moved(about: About, moved: tuple[Membership, str, Group, SchemeKind, MoveReason]) -> Event:
    """A membership changed its group: from which to which, of a scheme of which kind, and why."""
    one, from_group_id, where, kind, reason = moved
    return _event(
        about,
        epb.MemberMoved,
        **_stay(one),
        from_group_id=from_group_id,
        reason=MOVE_REASONS[reason],
        site_id=one.site_id,
        group_name=where.name,
        entry_link=where.entry_link,
        seat_expire_time=timestamp_of(one.seat_expire_time),
        segment_id=segment_id(kind, one.anchor),
    )


def member_left(about: About, left: tuple[Membership, Group | None]) -> Event:
    """A membership ended, and where its member may be reached again."""
    one, following = left
    assert one.ending is not None  # noqa: S101 - only of a seat that nobody came to there is none
    return _event(
        about,
        epb.MemberLeft,
        **_stay(one),
        reason=LEAVE_REASONS[one.ending],
        next_group_id=following.group_id if following else "",
        next_group_name=following.name if following else "",
        next_entry_link=following.entry_link if following else "",
        site_id=one.site_id,
        join_time=timestamp_of(one.join_time),
    )


def seat_lapsed(about: About, lapsed: tuple[Membership, LapseReason]) -> Event:
    """A seat was given up before its member came, and why."""
    one, reason = lapsed
    return _event(about, epb.SeatLapsed, **_stay(one), reason=LAPSE_REASONS[reason])


def threshold_lost(about: About, one: Membership) -> Event:
    """A member who stays in a group no longer meets its scheme's threshold."""
    return _event(about, epb.ThresholdLost, **_stay(one), condition=one.lost_condition)


def tags_changed(about: About, changes: Sequence[Retagged]) -> Event:
    """What is known of a member changed."""
    return _event(about, epb.TagsChanged, changes=[tag_change(changed) for changed in changes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An entry that is offered after an order; of the groups the best comes first."""

    order_id: str
    store_id: str
    groups: Sequence[Group]
    scene: str
    """What the entry carries."""


def entry_offered(about: About, offer: Offer) -> Event:
    """A member who paid an order is to be offered a group."""
    groups = [
        epb.OfferedGroup(
            group_id=one.group_id,
            scheme_id=one.scheme_id,
            site_id=one.site_id,
            group_name=one.name,
            entry_link=one.entry_link,
        )
        for one in offer.groups
    ]
    return _event(
        about,
        epb.EntryOffered,
        order_id=offer.order_id,
        store_id=offer.store_id,
        groups=groups,
        scene=offer.scene,
    )


def reward_fulfilled(about: About, done: tuple[str, Membership]) -> Event:
    """A reward was handed over: which, and the seat that it gave."""
    reward_id, one = done
    return _event(about, epb.RewardFulfilled, reward_id=reward_id, **_stay(one))


def fulfilment_refused(about: About, refused: tuple[str, str]) -> Event:
    """A reward cannot be handed over: which, and why."""
    return _event(about, epb.FulfilmentRefused, reward_id=refused[0], reason=refused[1])


# --- what is announced of groups ----------------------------------------------------------------------


_group_event = partial(announcement, STREAM, names="group_id")


def group_opened(about: About, opened: tuple[Group, tuple[Scheme, OpenReason, str]]) -> Event:
    """A group was opened: of which scheme, why, and what its notice says."""
    one, (scheme, reason, notice) = opened
    return _group_event(
        about,
        epb.GroupOpened,
        scheme_id=one.scheme_id,
        site_id=one.site_id,
        seq=one.seq,
        group_name=one.name,
        capacity=one.capacity,
        notice=notice[:LONGEST_TEXT],
        reason=OPEN_REASONS[reason],
        previous_group_id=one.previous_group_id,
        sale_time=timestamp_of(one.sale_time),
        close_time=timestamp_of(one.close_time),
        segment_id=segment_id(scheme.kind, one.anchor),
        inviter_id=inviter_id(scheme.kind, one.anchor),
    )


def group_full(about: About, full: tuple[Group, str]) -> Event:
    """A group has no seat to give, and which group takes whoever comes now."""
    one, next_group_id = full
    return _group_event(
        about,
        epb.GroupFull,
        scheme_id=one.scheme_id,
        site_id=one.site_id,
        capacity=one.capacity,
        seats_taken=one.seats_taken,
        overbooked=one.overbooked,
        next_group_id=next_group_id,
    )


def group_dissolved(about: About, dissolved: tuple[Group, tuple[DissolveReason, str]]) -> Event:
    """A group is no more: why, and which group takes over."""
    one, (reason, successor_group_id) = dissolved
    return _group_event(
        about,
        epb.GroupDissolved,
        scheme_id=one.scheme_id,
        site_id=one.site_id,
        chat_id=one.chat_id,
        reason=DISSOLVE_REASONS[reason],
        successor_group_id=successor_group_id,
        member_count=one.members,
    )


def benefit_due(about: About, due: tuple[Group, Occurrence]) -> Event:
    """An occasion of a group's calendar has come."""
    one, occurrence = due
    return _group_event(
        about,
        epb.BenefitDue,
        occasion_id=occurrence.occasion_id(one.scheme_id),
        scheme_id=one.scheme_id,
        chat_id=one.chat_id,
        benefit_code=occurrence.occasion.benefit_code,
        text=occurrence.occasion.text,
        claim_until_time=timestamp(occurrence.claim_until),
    )
