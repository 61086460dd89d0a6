"""What is announced and answered: every message keeps to its contract, and says what the domain says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.interceptors import validate
from services.chassis.outbox import About, Event
from services.chassis.timestamps import instant
from services.groups import events, messages
from services.groups.domain.calendar import Occasion, Occurrence, Recurrence
from services.groups.domain.coordinates import Point
from services.groups.domain.profile import (
    Basis,
    Ending,
    LapseReason,
    Membership,
    MembershipStatus,
    MoveReason,
    Tag,
)
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.domain.seats import DissolveReason, Group, GroupStatus, OpenReason
from services.groups.domain.sites import Site
from services.groups.events import Retagged

NOON = datetime(2027, 1, 31, 4, 0, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MEMBER, GROUP, NEXT, STAY = "member", f"grp_{1:032x}", f"grp_{2:032x}", "mbs_1"
ABOUT = About(MEMBER, NOON, 3, 7, "")
OF_GROUP = About(GROUP, NOON, 3, 7, "")


def group(**more: Any) -> Group:
    said = {"group_id": GROUP, "anchor": "sh-001", "site_id": "sh-001", "seq": 2, "name": "福利群2"}
    numbers = {"scheme_version": 4, "capacity": 500, "room": 480, "seats_taken": 9, "version": 7}
    return Group(**{"scheme_id": "king", "open_time": NOON - DAY, **said, **numbers, **more})


def stay(status: MembershipStatus = MembershipStatus.ASSIGNED, **more: Any) -> Membership:
    said = {"membership_id": STAY, "scheme_id": "king", "group_id": GROUP, "number": 2, "basis": Basis.EXACT}
    place = {"anchor": "sh-001", "site_id": "sh-001", "cell": "31.2,121.4", "entry_source": "poster"}
    seat = {"assign_time": NOON - DAY, "seat_expire_time": NOON + DAY}
    return Membership(**{"status": status, **said, **place, **seat, **more})


def there(**more: Any) -> Membership:
    came = {"seat_expire_time": None, "join_time": NOON - HOUR, "arrive_time": NOON - HOUR}
    return stay(MembershipStatus.JOINED, **{**came, **more})


def scheme(kind: SchemeKind = SchemeKind.BY_LOCATION) -> Scheme:
    return Scheme(scheme_id="king", version=4, kind=kind, name_pattern="群", capacity=500, headroom=20)


def tag(key: str = "vip", value: str = "yes", **more: Any) -> Tag:
    return Tag(key=key, value=value, source="crm", set_time=NOON, **more)


LUNCH = Occurrence(
    NOON + DAY,
    Occasion(
        entry_id="lunch",
        recurrence=Recurrence.DAILY,
        local_time=time(12),
        claim_for=2 * HOUR,
        benefit_code="cup",
        text="A cup for you",
    ),
)
BY_TAG: dict[str, Any] = {"anchor": "gold", "site_id": ""}
OFFERED = [group(), group(group_id=NEXT, entry_link="https://example.com/g")]

# --- what is announced --------------------------------------------------------------------------------

OF_MEMBERS: dict[str, tuple[Callable[..., Event], Any]] = {
    "a seat": (events.member_assigned, (stay(), group(), SchemeKind.BY_LOCATION, "Hi" * 4000)),
    "a seat of a segment": (
        events.member_assigned,
        (stay(**BY_TAG), group(**BY_TAG), SchemeKind.BY_TAG, ""),
    ),
    "an arrival": (
        events.member_joined,
        events.Joined(
            membership=there(),
            group=group(chat_id="chat"),
            kind=SchemeKind.BY_LOCATION,
            overbooked=True,
            welcome="Hi",
            benefits=[LUNCH],
        ),
    ),
    "a move": (
        events.member_moved,
        (stay(), NEXT, group(entry_link="https://x"), SchemeKind.BY_LOCATION, MoveReason.NEARER),
    ),
    "a move of one who is there": (
        events.member_moved,
        (there(**BY_TAG), NEXT, group(**BY_TAG), SchemeKind.BY_TAG, MoveReason.JOINED_ELSEWHERE),
    ),
    "an end": (events.member_left, (there(ending=Ending.LEFT), group(group_id=NEXT, name="群3"))),
    "an end for good": (events.member_left, (stay(ending=Ending.SEAT_LAPSED), None)),
    "a seat given up": (events.seat_lapsed, (stay(), LapseReason.TIMEOUT)),
    "a threshold lost": (events.threshold_lost, there(lost_condition="segment")),
    "tags": (
        events.tags_changed,
        [
            Retagged(None, tag("a", "1", expire_time=NOON + DAY)),
            Retagged(tag("b", "1"), tag("b", "2")),
            Retagged(tag("c", "3"), None),
        ],
    ),
    "an offer": (
        events.entry_offered,
        events.Offer(order_id="o", store_id="sh-001", groups=OFFERED, scene="offer-1"),
    ),
    "a reward": (events.reward_fulfilled, ("rwd", stay())),
    "a reward refused": (events.fulfilment_refused, ("rwd", "THRESHOLD_NOT_MET")),
}
OF_GROUPS: dict[str, tuple[Callable[..., Event], Any]] = {
    "a group of a site": (
        events.group_opened,
        (group(previous_group_id=NEXT), (scheme(), OpenReason.OVERFLOW, "Be nice" * 1000)),
    ),
    "a group of an inviter": (
        events.group_opened,
        (group(anchor="kol", site_id=""), (scheme(SchemeKind.INVITE), OpenReason.FIRST, "")),
    ),
    "a group of a sale": (
        events.group_opened,
        (
            group(anchor="", site_id="", sale_time=NOON + HOUR, close_time=NOON + 3 * HOUR),
            (scheme(SchemeKind.FLASH), OpenReason.FLASH, ""),
        ),
    ),
    "a full group": (events.group_full, (group(seats_taken=480, overbooked=1), NEXT)),
    "a group that is no more": (
        events.group_dissolved,
        (group(chat_id="chat", overbooked=1), (DissolveReason.LIFETIME, NEXT)),
    ),
    "an occasion": (events.benefit_due, (group(chat_id="chat"), LUNCH)),
}
ANNOUNCED = {
    **{name: (make, ABOUT, what) for name, (make, what) in OF_MEMBERS.items()},
    **{name: (make, OF_GROUP, what) for name, (make, what) in OF_GROUPS.items()},
}


def message(event: Event) -> Any:
    """The message of an event, held against its contract."""
    kind = epb.DESCRIPTOR.message_types_by_name[event.subject.rpartition(".")[2]]
    parsed = getattr(epb, kind.name).FromString(event.body)
    validate(parsed)
    return parsed


def announced(name: str) -> Any:
    make, about, what = ANNOUNCED[name]
    return message(make(about, what))


@pytest.mark.parametrize("name", ANNOUNCED)
def test_every_event_keeps_to_its_contract_and_says_what_it_is_about(name: str) -> None:
    make, about, what = ANNOUNCED[name]
    event = make(about, what)
    assert event.stream == events.STREAM
    assert any(event.subject.startswith(subject[:-1]) for subject in events.SUBJECTS)
    assert event.entity_key == about.entity_key
    told = message(event)
    assert about.entity_key == (told.member_id if name in OF_MEMBERS else told.group_id)
    assert (told.epoch, told.version) == (3, 7)
    assert instant(told.occur_time) == NOON


def test_every_event_of_the_contract_is_announced_here() -> None:
    made = {make(about, what).subject.rpartition(".")[2] for make, about, what in ANNOUNCED.values()}
    parts = {"UpcomingBenefit", "TagChange", "OfferedGroup"}
    assert made == {kind.name for kind in epb.DESCRIPTOR.message_types_by_name.values()} - parts


def test_a_seat_tells_where_to_go_and_until_when() -> None:
    told, by_tag = announced("a seat"), announced("a seat of a segment")
    assert (told.group_name, told.site_id, told.segment_id) == ("福利群2", "sh-001", "")
    assert (told.entry_source, instant(told.seat_expire_time)) == ("poster", NOON + DAY)
    assert len(told.welcome) == events.LONGEST_TEXT
    assert (by_tag.site_id, by_tag.segment_id) == ("", "gold")


def test_an_arrival_tells_what_is_next_in_the_group() -> None:
    told = announced("an arrival")
    assert (told.membership_number, told.overbooked, told.chat_id, told.welcome) == (2, True, "chat", "Hi")
    (benefit,) = told.benefits
    assert (benefit.benefit_code, benefit.text) == ("cup", "A cup for you")
    assert (instant(benefit.due_time), instant(benefit.claim_until_time)) == (
        NOON + DAY,
        NOON + DAY + 2 * HOUR,
    )


def test_a_move_keeps_the_membership_and_says_from_where() -> None:
    told, settled = announced("a move"), announced("a move of one who is there")
    assert (told.membership_id, told.from_group_id, told.group_id) == (STAY, NEXT, GROUP)
    assert (told.reason, told.entry_link) == (epb.MEMBER_MOVE_REASON_NEARER, "https://x")
    assert instant(told.seat_expire_time) == NOON + DAY
    assert not settled.HasField("seat_expire_time")


def test_an_end_tells_when_the_member_had_come_and_where_it_may_go() -> None:
    told, for_good = announced("an end"), announced("an end for good")
    assert (told.next_group_id, told.next_group_name) == (NEXT, "群3")
    assert instant(told.join_time) == NOON - HOUR
    assert (for_good.next_group_id, for_good.HasField("join_time")) == ("", False)


def test_changes_of_tags_tell_before_and_after() -> None:
    new, other, gone = announced("tags").changes
    assert (new.key, new.value, new.previous_value, new.removed) == ("a", "1", "", False)
    assert instant(new.expire_time) == NOON + DAY
    assert (other.value, other.previous_value, other.removed) == ("2", "1", False)
    assert (gone.value, gone.previous_value, gone.source, gone.removed) == ("", "3", "crm", True)


def test_a_group_tells_whom_it_is_for() -> None:
    site, inviter = announced("a group of a site"), announced("a group of an inviter")
    assert (site.site_id, site.segment_id, site.inviter_id) == ("sh-001", "", "")
    assert (site.seq, site.capacity, site.previous_group_id) == (2, 500, NEXT)
    assert (inviter.site_id, inviter.inviter_id) == ("", "kol")
    assert instant(announced("a group of a sale").sale_time) == NOON + HOUR
    assert announced("a group that is no more").member_count == 10


def test_an_occasion_has_one_id_per_group_and_time_in_every_replica() -> None:
    told = announced("an occasion")
    assert told.occasion_id == LUNCH.occasion_id("king")
    assert instant(told.claim_until_time) == LUNCH.claim_until


# --- answers ------------------------------------------------------------------------------------------


def test_a_group_is_no_more_once_its_time_is_over_though_nobody_dissolved_it() -> None:
    lasting = group(close_time=NOON, next_occasion_time=NOON, status=GroupStatus.FULL)
    before = messages.group(lasting, SchemeKind.BY_LOCATION, NOON - HOUR)
    after = messages.group(lasting, SchemeKind.BY_LOCATION, NOON)
    assert (before.status, before.HasField("next_occasion_time")) == (pb.GROUP_STATUS_FULL, True)
    assert (after.status, after.HasField("next_occasion_time")) == (pb.GROUP_STATUS_DISSOLVED, False)
    assert (before.seats, before.seats_taken, before.site_id, before.version) == (480, 9, "sh-001", 7)


def test_a_seat_has_lapsed_once_its_time_is_over_though_nobody_gave_it_up() -> None:
    before = messages.membership(MEMBER, stay(), SchemeKind.BY_LOCATION, NOON)
    after = messages.membership(MEMBER, stay(), SchemeKind.BY_LOCATION, NOON + DAY)
    assert (before.status, instant(before.seat_expire_time)) == (
        pb.MEMBERSHIP_STATUS_ASSIGNED,
        NOON + DAY,
    )
    assert (after.status, after.HasField("seat_expire_time")) == (pb.MEMBERSHIP_STATUS_LAPSED, False)
    assert instant(after.end_time) == NOON + DAY
    joined = messages.membership(MEMBER, there(**BY_TAG), SchemeKind.BY_TAG, NOON + DAY)
    assert (joined.status, joined.segment_id) == (pb.MEMBERSHIP_STATUS_JOINED, "gold")


def test_no_place_where_a_member_was_is_answered() -> None:
    shown = messages.membership(MEMBER, stay(), SchemeKind.BY_LOCATION, NOON)
    assert b"31.2" not in shown.SerializeToString()


def answers() -> list[Message]:
    """One answer of each kind, with everything in it."""
    site = Site(site_id="sh-001", name="国贸店", city="上海", point=Point(31.2, 121.4), priority=2)
    ended = replace(there(), status=MembershipStatus.LEFT, ending=Ending.LEFT, end_time=NOON)
    return [
        messages.group(group(sale_time=NOON, close_time=NOON + DAY), SchemeKind.FLASH, NOON),
        messages.membership(MEMBER, ended, SchemeKind.INVITE, NOON),
        messages.site(site, NOON),
        messages.tag(tag(expire_time=NOON + DAY)),
    ]


@pytest.mark.parametrize("answer", answers(), ids=lambda answer: answer.DESCRIPTOR.name)
def test_every_answer_keeps_to_its_contract(answer: Message) -> None:
    validate(answer)


def test_a_site_is_shown_by_wgs84() -> None:
    _, _, site, _ = answers()
    assert isinstance(site, pb.Site)
    assert (site.location.datum, site.location.latitude, site.closed) == (pb.DATUM_WGS84, 31.2, False)
