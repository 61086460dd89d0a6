"""Messages of the contract: requests as commands, and what is kept as calls are answered with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.asked import by_call, by_caller
from services.chassis.auth import CALLER
from services.chassis.database import Row
from services.chassis.errors import Violation, refused
from services.chassis.ids import own_request_id
from services.chassis.timestamps import instant, instant_of, timestamp, timestamp_of
from services.groups import events, rules, store
from services.groups.commands import AssignMember, JoinGroup, LeaveGroup, TagMember, UntagMember
from services.groups.domain import coordinates
from services.groups.domain.coordinates import Datum, Fault, Point
from services.groups.domain.profile import Ending, Membership, MembershipStatus, Profile, Tag
from services.groups.domain.schemes import SchemeKind
from services.groups.domain.seats import Group, GroupStatus
from services.groups.domain.sites import Site
from services.groups.errors import LocationInvalid
from services.groups.rules import CompiledProgramme

SERVICE = "/loyalty.groups.v1.GroupsService/"
"""What the path of a method begins with."""

GROUP_STATUSES = {status: pb.GroupStatus.Value(f"GROUP_STATUS_{status}") for status in GroupStatus}
MEMBERSHIP_STATUSES = {
    status: pb.MembershipStatus.Value(f"MEMBERSHIP_STATUS_{status}") for status in MembershipStatus
}
_DATUMS = {pb.Datum.Value(f"DATUM_{datum}"): datum for datum in Datum}
_FAULTS = {
    Fault.NOT_A_NUMBER: "is not a number of degrees",
    Fault.ZERO: "is (0, 0), which devices say that do not know",
    Fault.SWAPPED: "has latitude and longitude exchanged",
    Fault.OUT_OF_RANGE: "is beyond 90 degrees of latitude, or 180 of longitude",
}


# --- requests as commands -----------------------------------------------------------------------------


def asked(method: str, request: Any) -> dict[str, Any]:
    """What every command has, by the request."""
    return by_call(SERVICE + method, request)


def assignment(request: pb.AssignMemberRequest) -> AssignMember:
    """Raises LocationInvalid.

    Of a location the payload's hash has the cell: a repeat's is another, and a hash can be guessed.
    """
    location, method, hashed = place(request), "AssignMember", pb.AssignMemberRequest()
    hashed.CopyFrom(request)
    if location is not None:
        hashed.ClearField("location")
        method = f"AssignMember {coordinates.coarse_cell(location)}"
    return AssignMember(
        **asked(method, hashed),
        scheme_id=request.scheme_id,
        chosen_group_id=request.chosen_group_id,
        location=location,
        city=request.city,
        home_site_id=request.home_site_id,
        inviter_id=request.inviter_id,
        entry_source=request.entry_source,
    )


def tagging(request: pb.TagMemberRequest, now: datetime) -> TagMember:
    """Tags that are set at an instant."""
    tags = (
        Tag(
            key=tag.key,
            value=tag.value,
            source=request.source,
            expire_time=instant_of(tag, "expire_time"),
            set_time=now,
        )
        for tag in request.tags
    )
    return TagMember(**asked("TagMember", request), tags=tuple(tags))


def untagging(request: pb.UntagMemberRequest) -> UntagMember:
    """Tags that are removed."""
    return UntagMember(**asked("UntagMember", request), keys=tuple(request.keys))


def corrections(
    request: pb.ReconcileGroupRequest, found: pb.ReconcileGroupResponse
) -> Iterator[JoinGroup | LeaveGroup]:
    """What makes our list like the platform's, each named after the request, so that it is done once."""
    occur_time, caller = instant(request.list_time), CALLER.get().subject

    def about(member_id: str) -> dict[str, Any]:
        named = own_request_id("reconciled", caller, request.request_id, member_id)
        common = {"member_id": member_id, "request_id": named, "payload_hash": b"", **by_caller()}
        return {**common, "group_id": request.group_id, "occur_time": occur_time}

    for member_id in found.missing:
        yield LeaveGroup(**about(member_id), ending=Ending.RECONCILED)
    for member_id in (*found.unknown, *found.arrived):
        yield JoinGroup(**about(member_id))


def place(request: pb.AssignMemberRequest | pb.ListNearbyGroupsRequest) -> Point | None:
    """The place of a request by WGS84. Raises LocationInvalid."""
    if not request.HasField("location"):
        return None
    fault = _fault(request.location)
    if fault is not None:
        raise LocationInvalid(violations=[Violation("location", _FAULTS[fault])])
    return _point(request.location)


def sites(messages: Sequence[pb.Site], path: str) -> list[Site]:
    """Sites as they are put. Raises LocationInvalid with every fault; `path` is a location's, by number."""
    faults = {number: _fault(message.location) for number, message in enumerate(messages)}
    violations = [
        Violation(path.format(number), _FAULTS[fault])
        for number, fault in faults.items()
        if fault is not None
    ]
    if violations:
        raise LocationInvalid(violations=violations)
    return [
        Site(
            site_id=message.site_id,
            name=message.name,
            city=message.city,
            point=_point(message.location),
            priority=message.priority,
            open=not message.closed,
        )
        for message in messages
    ]


def _fault(location: pb.Location) -> Fault | None:
    return coordinates.fault(location.latitude, location.longitude)


def _point(location: pb.Location) -> Point:
    shown = Point(location.latitude, location.longitude)
    return coordinates.to_wgs84(shown, _DATUMS[location.datum])


# --- what is kept, as messages ------------------------------------------------------------------------


def group(one: Group, kind: SchemeKind, at: datetime) -> pb.Group:
    """A group as of an instant: one whose time is over is no more, though nobody dissolved it yet."""
    over = one.close_time is not None and one.close_time <= at
    return pb.Group(
        group_id=one.group_id,
        scheme_id=one.scheme_id,
        scheme_version=one.scheme_version,
        site_id=one.site_id,
        segment_id=events.segment_id(kind, one.anchor),
        inviter_id=events.inviter_id(kind, one.anchor),
        seq=one.seq,
        name=one.name,
        capacity=one.capacity,
        seats=one.room,
        seats_taken=one.seats_taken,
        overbooked=one.overbooked,
        status=pb.GROUP_STATUS_DISSOLVED if over else GROUP_STATUSES[one.status],
        chat_id=one.chat_id,
        entry_link=one.entry_link,
        open_time=timestamp(one.open_time),
        close_time=timestamp_of(one.close_time),
        sale_time=timestamp_of(one.sale_time),
        previous_group_id=one.previous_group_id,
        next_occasion_time=None if over else timestamp_of(one.next_occasion_time),
        version=one.version,
    )


def membership(member_id: str, one: Membership, kind: SchemeKind, at: datetime) -> pb.Membership:
    """A membership as of an instant: a seat whose time is over has lapsed, though nobody gave it up yet."""
    expire = one.seat_expire_time if one.status is MembershipStatus.ASSIGNED else None
    lapsed = expire is not None and expire <= at
    return pb.Membership(
        membership_id=one.membership_id,
        member_id=member_id,
        scheme_id=one.scheme_id,
        group_id=one.group_id,
        site_id=one.site_id,
        segment_id=events.segment_id(kind, one.anchor),
        number=one.number,
        status=pb.MEMBERSHIP_STATUS_LAPSED if lapsed else MEMBERSHIP_STATUSES[one.status],
        basis=events.BASES[one.basis],
        entry_source=one.entry_source,
        assign_time=timestamp(one.assign_time),
        seat_expire_time=None if lapsed else timestamp_of(expire),
        join_time=timestamp_of(one.join_time),
        end_time=timestamp_of(expire if lapsed else one.end_time),
        lost_condition=one.lost_condition,
    )


def kept_membership(row: Row, kinds: Mapping[str, SchemeKind], now: datetime) -> pb.Membership:
    """A membership as of an instant; `kinds` are those of the schemes."""
    return membership(row["member_id"], store.to_membership(row), kinds[row["scheme_id"]], now)


def site(one: Site, update_time: datetime | None) -> pb.Site:
    """A site, by WGS84."""
    return pb.Site(
        site_id=one.site_id,
        name=one.name,
        city=one.city,
        location=pb.Location(
            latitude=one.point.latitude, longitude=one.point.longitude, datum=pb.DATUM_WGS84
        ),
        priority=one.priority,
        closed=not one.open,
        update_time=timestamp_of(update_time),
    )


def kept_site(row: Row) -> pb.Site:
    """A site, with when it was put."""
    return site(store.to_site(row), row["update_time"])


def scheme(row: Row) -> pb.Scheme:
    """A version of a scheme, as it was put."""
    return pb.Scheme.FromString(row["body"])


def tag(one: Tag) -> pb.Tag:
    """Something known of a member."""
    return pb.Tag(
        key=one.key,
        value=one.value,
        source=one.source,
        expire_time=timestamp_of(one.expire_time),
        set_time=timestamp(one.set_time),
    )


def known(
    profile: Profile, compiled: CompiledProgramme, now: datetime, zone: ZoneInfo
) -> tuple[list[pb.Tag], pb.Facts]:
    """Tags by key, and facts, as of an instant: where time has changed them, as they are by that."""
    tags = {key: tag for key, tag in profile.tags.items() if tag.holds(now)}
    if profile.evaluate_time is not None and profile.evaluate_time <= now:
        evaluated = rules.known(profile, compiled.programme, now, zone)
        tags = compiled.tags_of(profile, evaluated, now)
    facts = rules.facts_of(profile, compiled.programme, now, zone)
    return [tag(one) for _, one in sorted(tags.items())], rules.facts_message(facts)


def order(row: Row) -> pb.ExportedOrder:
    """An order that was told."""
    kept = store.to_order(row)
    return pb.ExportedOrder(
        order_id=kept.order_id,
        store_id=kept.store_id,
        paid_time=timestamp_of(kept.paid_time),
        amount_minor=kept.amount_minor,
        refunded_minor=0 if kept.purchase is None else kept.purchase.refunded_minor,
    )


def tag_result(answer: pb.TagChanges | BaseException) -> pb.BatchTagResult:
    """What became of one of many. Raises what is a defect."""
    if isinstance(answer, pb.TagChanges):
        return pb.BatchTagResult(changes=answer)
    return pb.BatchTagResult(error=pb.BatchTagError(**refused(answer)))
