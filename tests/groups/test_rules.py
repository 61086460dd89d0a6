"""Schemes and programmes as they are put: what is refused and where, and what conditions see of members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.interceptors import validate
from services.groups import rules
from services.groups.domain.calendar import Occasion, Recurrence
from services.groups.domain.facts import Facts
from services.groups.domain.profile import CARD, RULE, TIER, KeptOrder, Profile, Tag
from services.groups.domain.schemes import Overflow, Programme, SchemeKind, ThresholdLost
from services.groups.errors import ProgrammeInvalid, SchemeInvalid
from services.groups.rules import Known

ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2027, 1, 31, 4, 0, tzinfo=UTC)  # 12:00 in Shanghai
DAY = timedelta(days=1)


def condition(expression: str, name: str = "asked") -> dict[str, Any]:
    return {"name": name, "expression": expression}


def segment(segment_id: str, expression: str = "true") -> dict[str, Any]:
    return {"segment_id": segment_id, "name": f"the {segment_id}", "expression": expression}


def scheme(kind: str = "BY_LOCATION", **more: Any) -> pb.Scheme:
    said = {"scheme_id": "king", "kind": f"SCHEME_KIND_{kind}", "name_pattern": "群{seq}", "capacity": 500}
    if kind == "BY_TAG":
        said["segments"] = [segment("all")]
    made = ParseDict({**said, **more}, pb.Scheme())
    validate(made)
    return made


def programme(**rules_by_key: str) -> pb.Programme:
    tag_rules = [{"key": key, "expression": text} for key, text in rules_by_key.items()]
    return ParseDict({"tag_rules": tag_rules}, pb.Programme())


def faults(kind: str = "BY_LOCATION", **more: Any) -> dict[str, str]:
    """What a scheme is refused for, by field."""
    with pytest.raises(SchemeInvalid) as refusal:
        rules.compile_scheme(scheme(kind, **more))
    return {violation.field: violation.description for violation in refusal.value.violations}


def tag(key: str, value: str, source: str = "crm", expire_time: datetime | None = None) -> Tag:
    return Tag(key=key, value=value, source=source, expire_time=expire_time, set_time=NOON - DAY)


def member(*tags: Tag, orders: int = 0, told: Mapping[str, str] | None = None) -> Profile:
    """A member who bought for 20.00 on each of the last days, today first."""
    kept = [
        KeptOrder(
            order_id=f"o{number}", store_id="s", city="北京", paid_time=NOON - number * DAY, amount_minor=2000
        )
        for number in range(orders)
    ]
    return Profile(
        "ann",
        facts=told or {},
        known=True,
        tags={one.key: one for one in tags},
        orders={order.order_id: order for order in kept},
    )


def known(*tags: Tag, orders: int = 0, told: Mapping[str, str] | None = None) -> Known:
    return rules.known(member(*tags, orders=orders, told=told), Programme(), NOON, ZONE)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "place", "complaint"),
    [
        ("1 +", "1:4", "Syntax error"),
        ("true\n&& fal se", "2:8", "Syntax error"),
        ("tier", "1:1", "must be a bool, is STRING"),
        ("facts.orders_30d == 'a'", "1:18", "no matching overload"),
        ("facts.orders > 0", "1:6", "undefined field 'orders'"),
        ("tags.age > 17", "1:10", "no matching overload"),
        ("member.tier == ''", "1:7", "undeclared reference to 'member"),
        ("now > timestamp('2027-01-01T00:00:00Z')", "1:1", "undeclared reference to 'now'"),
    ],
)
def test_a_condition_that_does_not_compile_is_refused_with_its_place(
    expression: str, place: str, complaint: str
) -> None:
    found = faults(
        "BY_TAG",
        threshold=[condition("true"), condition(expression, "other")],
        audience=[condition(expression)],
        segments=[segment("all"), segment("none", expression)],
    )
    assert list(found) == [
        "scheme.threshold[1].expression",
        "scheme.audience[0].expression",
        "scheme.segments[1].expression",
    ]
    for description in found.values():
        assert description.startswith(f"{place}: ")
        assert complaint in description


@pytest.mark.parametrize(
    ("kind", "pattern", "complaint"),
    [
        ("BY_LOCATION", "{place}群{seq}", "{place} is not one of {seq}, {site}"),
        ("BY_LOCATION", "{segment}群", "{segment} is not one of {seq}, {site}"),
        ("BY_TAG", "{site}群", "{site} is not one of {segment}, {seq}"),
        ("FLASH", "{site}群", "{site} is not one of {seq}"),
        ("INVITE", "群{seq", "{ is not one of {seq}"),
        ("INVITE", "群seq}", "} is not one of {seq}"),
        ("INVITE", "群{}", "{} is not one of {seq}"),
    ],
)
def test_a_name_stands_for_what_its_groups_have(kind: str, pattern: str, complaint: str) -> None:
    assert faults(kind, name_pattern=pattern) == {"scheme.name_pattern": complaint}


def test_texts_may_name_the_group_and_its_place_and_have_braces_of_their_own() -> None:
    texts = {"welcome": "{group} in {site}: {segment}", "notice": "{seq}"}
    assert faults(**texts) == {
        "scheme.welcome": "{segment} is not one of {group}, {site}",
        "scheme.notice": "{seq} is not one of {group}, {site}",
    }
    assert rules.compile_scheme(scheme(welcome="{group} {site} {👋} {", notice="{{Hi}}"))


def test_a_date_that_no_calendar_has_is_refused() -> None:
    entry = {
        "entry_id": "e", "recurrence": "RECURRENCE_DATE", "local_time": "12:00", "claim_minutes": 60,
        "benefit_code": "b", "dates": ["2028-02-29", "2027-02-29"],
    }  # fmt: skip
    assert faults(calendar=[entry]) == {"scheme.calendar[0].dates[1]": "day is out of range for month"}


def test_every_fault_is_told_at_once() -> None:
    found = faults(
        threshold=[condition("1 +")],
        audience=[condition("2")],
        name_pattern="{x}",
        welcome="{y}",
        notice="{z}",
    )
    assert found.keys() == {
        "scheme.threshold[0].expression",
        "scheme.audience[0].expression",
        "scheme.name_pattern",
        "scheme.welcome",
        "scheme.notice",
    }


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("1 +", "Syntax error"),
        ("true", "must be a string, is BOOL"),
        ("facts.home", "undefined field 'home'"),
    ],
)
def test_a_tag_rule_that_gives_no_text_is_refused_with_its_place(rule: str, complaint: str) -> None:
    with pytest.raises(ProgrammeInvalid) as refusal:
        rules.compile_programme(programme(sound="tier", unsound=rule))
    (violation,) = refusal.value.violations
    assert violation.field == "programme.tag_rules[1].expression"
    assert complaint in violation.description


# --- what is read -------------------------------------------------------------------------------------

ENTRY: dict[str, Any] = {
    "entry_id": "thursday",
    "recurrence": "RECURRENCE_WEEKLY",
    "weekdays": [4],
    "local_time": "11:30",
    "claim_minutes": 90,
    "valid_from_time": "2027-01-01T00:00:00Z",
    "valid_until_time": "2028-01-01T00:00:00Z",
    "benefit_code": "crazy-thursday",
    "text": "V me 50",
}
WHOLE: dict[str, Any] = {
    "version": 7,
    "name_pattern": "汉堡王{segment}福利群{seq}",
    "headroom": 20,
    "threshold": [condition("tier != ''")],
    "audience": [condition("city == '北京'")],
    "segments": [segment("gold", "tier == 'gold'")],
    "priority": 3,
    "cooldown_hours": 24,
    "seat_hold_minutes": 30,
    "lifetime_minutes": 600,
    "successor_scheme_id": "queen",
    "on_threshold_lost": "THRESHOLD_LOST_POLICY_REMOVE",
    "welcome": "Welcome to {group}",
    "notice": "Be nice",
    "calendar": [ENTRY],
}
PLACED: dict[str, Any] = {"overflow": "OVERFLOW_NEXT_NEAREST", "margin_m": 500, "default_site_id": "sh-001"}


def test_a_scheme_is_read_whole() -> None:
    read = rules.compile_scheme(scheme("BY_TAG", **WHOLE)).scheme
    assert (read.scheme_id, read.version, read.kind) == ("king", 7, SchemeKind.BY_TAG)
    assert (read.capacity, read.headroom, read.room, read.priority) == (500, 20, 480, 3)
    assert [(one.name, one.expression) for one in read.threshold] == [("asked", "tier != ''")]
    assert [(one.segment_id, one.name) for one in read.segments] == [("gold", "the gold")]
    assert (read.cooldown, read.seat_hold) == (DAY, timedelta(minutes=30))
    assert (read.lifetime, read.successor_scheme_id) == (timedelta(hours=10), "queen")
    assert read.on_threshold_lost is ThresholdLost.REMOVE
    assert read.calendar == (
        Occasion(
            entry_id="thursday",
            recurrence=Recurrence.WEEKLY,
            weekdays=frozenset({4}),
            local_time=time(11, 30),
            claim_for=timedelta(minutes=90),
            valid_from=datetime(2027, 1, 1, tzinfo=UTC),
            valid_until=datetime(2028, 1, 1, tzinfo=UTC),
            benefit_code="crazy-thursday",
            text="V me 50",
        ),
    )
    placed = rules.compile_scheme(scheme(**PLACED)).scheme
    assert (placed.overflow, placed.margin_m) == (Overflow.NEXT_NEAREST, 500)
    assert placed.default_site_id == "sh-001"


def test_a_scheme_that_says_nothing_else_keeps_everybody_and_opens_the_next_of_the_site() -> None:
    read = rules.compile_scheme(scheme()).scheme
    assert (read.overflow, read.on_threshold_lost) == (Overflow.NEXT_OF_SITE, ThresholdLost.KEEP)
    assert (read.seat_hold, read.lifetime, read.cooldown) == (None, None, timedelta(0))
    assert rules.compile_scheme(scheme("FLASH")).scheme.lifetime == timedelta(hours=4)


def places_of(fields: Descriptor, at: str = "") -> Iterator[str]:
    """Everything that the contract lets somebody put."""
    for field in fields.fields:
        kind = field.message_type
        if kind is None or kind is Timestamp.DESCRIPTOR:
            yield f"{at}{field.name}"
        else:
            yield from places_of(kind, f"{at}{field.name}.")


CHANGED: dict[str, Any] = {
    "kind": pb.SCHEME_KIND_INVITE,
    "name_pattern": "群",
    "overflow": pb.OVERFLOW_NEXT_NEAREST,
    "on_threshold_lost": pb.THRESHOLD_LOST_POLICY_NOTIFY,
    "threshold.expression": "tier == 'fan'",
    "audience.expression": "tier == 'fan'",
    "segments.expression": "tier == 'fan'",
    "calendar.recurrence": pb.RECURRENCE_DAILY,
    "calendar.weekdays": [5],
    "calendar.days_of_month": [5],
    "calendar.dates": ["2027-05-05"],
    "calendar.local_time": "12:30",
}


@pytest.mark.parametrize("place", [p for p in places_of(pb.Scheme.DESCRIPTOR) if p != "create_time"])
def test_nothing_that_a_scheme_says_is_lost(place: str) -> None:
    message = scheme("BY_TAG", **WHOLE)
    message.name_pattern = "群{seq}"
    before = rules.compile_scheme(message).scheme
    *path, name = place.split(".")
    inner: Any = message
    for step in path:
        inner = getattr(inner, step)[0]
    value = getattr(inner, name)
    match value:
        case _ if isinstance(CHANGED.get(place), list):
            value[:] = CHANGED[place]
        case _ if place in CHANGED:
            setattr(inner, name, CHANGED[place])
        case bool():
            setattr(inner, name, not value)
        case int():
            setattr(inner, name, value + 1)
        case str():
            setattr(inner, name, f"{value}-2")
        case Timestamp():
            value.seconds += 1
    assert rules.compile_scheme(message).scheme != before


def test_a_programme_that_says_nothing_is_as_one_that_nobody_put() -> None:
    assert rules.NO_PROGRAMME.programme == Programme()
    said = pb.Programme(
        version=2, horizon_days=90, moves_per_day=1, moves_per_group=3, offer_cooldown_hours=2,
        opt_out_key="quiet", seat_hold_minutes=5,
    )  # fmt: skip
    assert rules.compile_programme(said).programme == Programme(
        version=2,
        horizon_days=90,
        moves_per_day=1,
        moves_per_group=3,
        offer_cooldown=timedelta(hours=2),
        opt_out_key="quiet",
        seat_hold=timedelta(minutes=5),
    )


def test_a_rulebook_compiles_a_version_once_and_forgets_the_oldest() -> None:
    book = rules.Rulebook()
    assert book.programme(0) is rules.NO_PROGRAMME
    kept = book.keep_scheme(scheme(version=1).SerializeToString())
    assert book.scheme("king", 1) is kept
    assert book.scheme("king", 2) is None
    first = book.keep_programme(pb.Programme(version=1).SerializeToString())
    assert book.programme(1) is first
    for version in range(2, rules.COMPILED + 2):
        book.keep_programme(pb.Programme(version=version).SerializeToString())
    assert book.programme(1) is None
    assert book.programme(2) is not None


def test_a_group_is_called_by_its_place_and_from_the_second_on_by_its_number() -> None:
    named = rules.compile_scheme(scheme(name_pattern="汉堡王{site}福利群{seq}")).scheme
    assert named.group_name("国贸店", 1) == "汉堡王国贸店福利群"
    assert named.group_name("国贸店", 2) == "汉堡王国贸店福利群2"
    assert len(named.group_name("店" * 200, 2)) == 200  # as long as an event may carry


# --- what conditions see ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("facts.recency_days == 0 && facts.first_days == 2", True),
        ("facts.orders_30d == 3 && facts.orders_90d == 3 && facts.orders_total == 3", True),
        ("facts.spend_30d_minor == 6000 && facts.spend_90d_minor >= 6000", True),
        ("facts.home_site == 's' && city == '北京'", True),
        ("tier == 'gold' && cards == ['king', 'tea'] && 'king' in cards", True),
        ("tags.vip == 'yes' && !('gone' in tags)", True),
        ("tags.gone == 'soon' || tier == 'gold'", True),
        ("tags.gone == 'soon'", False),  # no such key any more
        ("!(tags.gone == 'soon')", False),
        ("1 / (facts.orders_total - 3) > 0", False),
    ],
)
def test_conditions_read_facts_tags_and_what_others_told(expression: str, holds: bool) -> None:
    ann = known(
        tag("vip", "yes"),
        tag("gone", "soon", expire_time=NOON),
        orders=3,
        told={TIER: "gold", f"{CARD}tea": "tea", f"{CARD}king": "king"},
    )
    asked = rules.compile_scheme(scheme(threshold=[condition(expression)]))
    assert (asked.failing(ann) is None) is holds


def test_a_member_of_whom_nothing_is_known_never_bought_anything() -> None:
    nobody = known()
    assert nobody.facts == Facts(recency_days=400, first_days=400)
    assert (dict(nobody.tags), nobody.tier, [*nobody.cards], nobody.city) == ({}, "", [], "")


def test_facts_are_shown_field_by_field() -> None:
    found = Facts(
        recency_days=1, first_days=2, orders_30d=3, orders_90d=4, orders_total=5, spend_30d_minor=6,
        spend_90d_minor=7, home_site="s",
    )  # fmt: skip
    shown = rules.facts_message(found)
    assert {field.name: value for field, value in shown.ListFields()} == asdict(found)
    assert len(shown.DESCRIPTOR.fields) == len(shown.ListFields())


def test_the_city_is_that_of_the_latest_order_that_names_one() -> None:
    ann = member(orders=2)
    ann.orders["o0"] = KeptOrder(order_id="o0", city="", paid_time=NOON, amount_minor=1)
    ann.orders["o9"] = KeptOrder(order_id="o9", city="上海", paid_time=NOON - 9 * DAY, amount_minor=1)
    ann.orders["told-of-a-refund"] = KeptOrder(order_id="told-of-a-refund", refunds={"r": 1})
    assert rules.city_of(ann) == "北京"


def test_the_first_condition_that_does_not_hold_is_named_and_failures_are_counted() -> None:
    asked = rules.compile_scheme(
        scheme(
            threshold=[condition("true", "a"), condition("tags.x == ''", "b"), condition("false", "c")],
            audience=[condition("true"), condition("tags.y == ''", "other")],
        )
    )
    ann = known()
    assert asked.failing(ann) == "b"
    assert not asked.is_for(ann)
    assert ann.failed == 2
    assert asked.failing(known(tag("x", ""))) == "c"


def test_the_first_segment_that_holds_is_the_members() -> None:
    split = rules.compile_scheme(
        scheme(
            "BY_TAG",
            segments=[
                segment("unsound", "tags.x == 'y'"),
                segment("gold", "tier == 'gold'"),
                segment("any", "tier != ''"),
            ],
        )
    )
    found = [split.segment(known(told={TIER: tier})) for tier in ("gold", "silver", "")]
    assert [one and one.segment_id for one in found] == ["gold", "any", None]


# --- the tags that follow -----------------------------------------------------------------------------


def follow(ann: Profile, at: datetime = NOON, **rules_by_key: str) -> dict[str, Tag]:
    compiled = rules.compile_programme(programme(**rules_by_key))
    return compiled.tags_of(ann, rules.known(ann, compiled.programme, at, ZONE), at)


def values(tags: dict[str, Tag]) -> dict[str, str]:
    return {key: one.value for key, one in tags.items()}


def test_rules_give_tags_in_order_each_reading_what_those_before_it_gave() -> None:
    ann = member(tag("city", "北京"), orders=3)
    found = follow(
        ann,
        early="'late' in tags ? 'seen' : 'unseen'",
        lifecycle="facts.first_days < 30 ? 'new' : 'lost'",
        late="tags.lifecycle + ' in ' + tags.city",
        empty="''",
        unsound="tags.none",
        long="'" + "长" * 300 + "'",
        zero="'a\\000b'",
    )
    assert values(found) == {
        "city": "北京",
        "early": "unseen",
        "lifecycle": "new",
        "late": "new in 北京",
        "long": "长" * 256,
        "zero": "ab",
    }
    assert {key for key, one in found.items() if one.source == RULE} == found.keys() - {"city"}
    assert found["lifecycle"].set_time == NOON


def test_a_rules_tag_is_nobody_elses_and_goes_with_the_rule() -> None:
    ann = member(tag("lifecycle", "mine"), tag("old", "x", RULE), tag("vip", "yes"))
    assert values(follow(ann, lifecycle="'new'")) == {"lifecycle": "new", "vip": "yes"}
    assert values(follow(ann, lifecycle="''")) == {"vip": "yes"}
    assert values(follow(ann)) == {"lifecycle": "mine", "vip": "yes"}


def test_what_others_told_is_a_tag_unless_a_caller_or_a_rule_sets_it() -> None:
    ann = member(told={"stratum": "kol", TIER: "gold", f"{CARD}king": "king"})
    assert {key: (one.value, one.source) for key, one in follow(ann).items()} == {"stratum": ("kol", RULE)}
    ann.tags["stratum"] = tag("stratum", "core")
    assert values(follow(ann)) == {"stratum": "core"}
    assert values(follow(ann, stratum="'stratum' in tags ? tags.stratum + '!' : 'regular'")) == {
        "stratum": "kol!"
    }


def test_a_tag_that_says_what_it_said_stays_and_one_whose_time_is_over_goes() -> None:
    ann = member(tag("a", "1", expire_time=NOON + DAY), tag("b", "new", RULE))
    found = follow(ann, b="'new'")
    assert found["a"] is ann.tags["a"]
    assert found["b"] is ann.tags["b"]
    assert values(follow(ann, NOON + DAY, b="'newer'")) == {"b": "newer"}


def test_dates_of_a_calendar_are_local_days() -> None:
    entry = ENTRY | {"recurrence": "RECURRENCE_DATE", "weekdays": [], "dates": ["2027-02-28"]}
    read = rules.compile_scheme(scheme(calendar=[entry])).scheme
    assert read.calendar[0].dates == {date(2027, 2, 28)}
