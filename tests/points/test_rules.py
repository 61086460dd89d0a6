"""Programmes as they are put: what is refused and where, and what conditions see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.json_format import ParseDict
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.orders.v1.orders_pb2 import Refund as RefundMessage
from loyalty.points.v1 import points_service_pb2 as pb

from services.points import rules
from services.points.domain.earning import Scope
from services.points.domain.ledger import Clawback
from services.points.domain.refunds import Refund
from services.points.domain.tiers import Ladder
from services.points.errors import ProgrammeInvalid, TotalMismatch
from tests.support import order

# Wednesday, 17 June, 10:29 in Shanghai; still Tuesday evening in New York.
BEFORE_HALF_PAST_TEN = datetime(2026, 6, 17, 2, 29, tzinfo=UTC)
ON_WEDNESDAYS = "now.getDayOfWeek('Asia/Shanghai') == 3"
COFFEE_TIME = (
    "now.getHours('Asia/Shanghai') < 10 || "
    "(now.getHours('Asia/Shanghai') == 10 && now.getMinutes('Asia/Shanghai') < 30)"
)


def rule(**more: Any) -> dict[str, Any]:
    """A rule that gives one point for each order, but for what is said otherwise."""
    give = {} if more.keys() & {"per", "multiplier"} else {"fixed": 1}
    common = {"scope": "RULE_SCOPE_ORDER", "unit": "UNIT_POINTS", "stack": "RULE_STACK_ADD"}
    return {"rule_id": "rule", **common, **give, **more}


def compiled(
    *earn_rules: dict[str, Any], time_zone: str = "Asia/Shanghai", **programme: Any
) -> rules.Programme:
    message = {"time_zone": time_zone, "currency_code": "CNY", "earn_rules": earn_rules, **programme}
    return rules.compile_programme(ParseDict(message, pb.Programme()))


def faults(*earn_rules: dict[str, Any], **programme: Any) -> dict[str, str]:
    """What a programme is refused for, by field."""
    with pytest.raises(ProgrammeInvalid) as refusal:
        compiled(*earn_rules, **programme)
    return {violation.field: violation.description for violation in refusal.value.violations}


def given(
    programme: rules.Programme,
    what: Order | Activity,
    *,
    occur: datetime = BEFORE_HALF_PAST_TEN,
    tier: str = "",
    facts: dict[str, str] | None = None,
) -> dict[str, tuple[int, str]]:
    """Amount and error of each contribution."""
    source = rules.read_order(what) if isinstance(what, Order) else rules.read_activity(what)
    return {g.rule_id: (g.amount, g.error) for g in programme.gains(source, occur, tier, facts or {}, {})}


def basket(*lines: tuple[str, int], delivery: int = 0) -> Order:
    made = order(delivery, BEFORE_HALF_PAST_TEN)
    made.ClearField("lines")
    for number, (category, amount) in enumerate(lines):
        made.lines.add(line_id=str(number), category=category, amount_minor=amount)
    made.delivery_fee_minor = delivery
    made.total_minor = delivery + sum(amount for _, amount in lines)
    return made


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "place", "complaint"),
    [
        ("1 +", "1:4", "Syntax error"),
        ("true\n&& fal se", "2:8", "Syntax error"),
        ("order.total_minor", "1:1", "must be a bool, is INT"),
        ("order.total_minor == 'a'", "1:19", "no matching overload"),
        ("basket.total_minor > 0", "1:7", "undeclared reference to 'basket"),
        ("order.price > 0", "1:6", "undefined field 'price'"),
        ("line.category == 'coffee'", "1:5", "undeclared reference to 'line"),
        ("activity.kind == 'task'", "1:9", "undeclared reference to 'activity"),
        ("true || shout('a')", "1:14", "undeclared reference to 'shout'"),
    ],
)
def test_a_condition_that_does_not_compile_is_refused_with_its_place(
    when: str, place: str, complaint: str
) -> None:
    found = faults(rule(rule_id="sound"), rule(when=when))
    assert list(found) == ["programme.earn_rules[1].when"]
    (description,) = found.values()
    assert description.startswith(f"{place}: ")
    assert complaint in description


def test_a_condition_that_is_nested_too_deeply_to_be_asked_of_each_line_is_refused() -> None:
    deep = "!(" * 30 + "line.sku == ''" + ")" * 30
    deeper = "!(" * 29 + "line.sku == ''" + ")" * 29
    for when in (deep, deeper):
        found = faults(rule(when=when, scope="RULE_SCOPE_LINE"))
        assert list(found) == ["programme.earn_rules[0].when"]


def test_each_scope_sees_its_own_names() -> None:
    assert compiled(
        rule(when="order.city != '' && member.tier != ''", scope="RULE_SCOPE_ORDER"),
        rule(rule_id="line", when="line.sku != '' && order.channel == 'app'", scope="RULE_SCOPE_LINE"),
        rule(rule_id="activity", when="activity.amount_minor > 0", scope="RULE_SCOPE_ACTIVITY"),
    )
    assert faults(rule(when="order.city != ''", scope="RULE_SCOPE_ACTIVITY"))


@pytest.mark.parametrize("factor", ["0", "0.999999"])
def test_a_multiplier_below_one_is_refused(factor: str) -> None:
    assert faults(rule(multiplier=factor)) == {"programme.earn_rules[0].multiplier": "must be at least 1"}


@pytest.mark.parametrize("end", ["2026-06-01T00:00:00Z", "2026-05-31T23:59:59Z"])
def test_a_window_that_ends_before_it_begins_is_refused(end: str) -> None:
    window = {"valid_from_time": "2026-06-01T00:00:00Z", "valid_until_time": end}
    assert faults(rule(**window)) == {
        "programme.earn_rules[0].valid_until_time": "must be after valid_from_time"
    }


@pytest.mark.parametrize("zone", ["Nowhere/City", "Asia", "UTC+8", "/etc/localtime"])
def test_a_zone_that_does_not_exist_is_refused(zone: str) -> None:
    assert faults(time_zone=zone) == {"programme.time_zone": f"{zone} is not an IANA time zone"}


def test_growth_that_expires_is_refused() -> None:
    lasting = rule(unit="UNIT_GROWTH", expiry={"rolling_months": 1})
    assert faults(lasting) == {"programme.earn_rules[0].expiry": "growth does not expire"}


def ladder(*tiers: tuple[str, int]) -> dict[str, Any]:
    rungs = [{"tier_id": tier, "growth": growth} for tier, growth in tiers]
    return {"calendar_year": True, "tiers": rungs}


@pytest.mark.parametrize("growth", [10, 9])
def test_a_tier_that_takes_no_more_than_the_one_below_it_is_refused(growth: int) -> None:
    assert faults(tier_ladder=ladder(("low", 5), ("middle", 10), ("high", growth))) == {
        "programme.tier_ladder.tiers[2].growth": "must be more than the tier before takes"
    }


def test_two_tiers_of_one_name_are_refused() -> None:
    assert faults(tier_ladder=ladder(("fan", 5), ("fan", 10))) == {
        "programme.tier_ladder.tiers": "tier_id must be unique within the ladder"
    }


def test_every_fault_is_told_at_once() -> None:
    found = faults(
        rule(when="1 +", multiplier="0.5"),
        rule(when="2"),
        time_zone="Nowhere/City",
        tier_ladder=ladder(("fan", 5), ("fan", 5)),
    )
    assert found.keys() == {
        "programme.earn_rules[0].when",
        "programme.earn_rules[0].multiplier",
        "programme.earn_rules[1].when",
        "programme.time_zone",
        "programme.tier_ladder.tiers[1].growth",
        "programme.tier_ladder.tiers",
    }


def test_a_programme_that_says_nothing_else_makes_debts_gives_a_week_of_grace_and_has_no_tiers() -> None:
    terms = compiled().terms
    assert (terms.clawback, terms.grace_days, terms.ladder) == (Clawback.DEBT, 7, None)
    assert terms.transfers_per_day == 0
    said = compiled(
        clawback="CLAWBACK_BLOCK",
        grace_days=3,
        transfers_per_day=50,
        tier_ladder={"rolling_days": 90, "grace_days": 5, "tiers": [{"tier_id": "fan", "growth": 5}]},
    ).terms
    assert (said.clawback, said.grace_days, said.transfers_per_day) == (Clawback.BLOCK, 3, 50)
    assert said.ladder == Ladder((("fan", 5),), 90, 5, ZoneInfo("Asia/Shanghai"))


def test_an_order_whose_total_is_not_its_parts_is_refused() -> None:
    wrong = basket(("tea", 300), delivery=100)
    wrong.total_minor += 1
    with pytest.raises(TotalMismatch) as refusal:
        rules.read_order(wrong)
    assert [violation.field for violation in refusal.value.violations] == ["order.total_minor"]


@pytest.mark.parametrize(
    ("what", "refund"),
    [
        ({"amount_minor": 900}, Refund(900)),
        (
            {"lines": {"lines": [{"line_id": "1", "amount_minor": 5}, {"line_id": "2", "amount_minor": 6}]}},
            Refund(lines={"1": 5, "2": 6}),
        ),
        ({"all": True}, Refund(everything=True)),
    ],
)
def test_a_refund_is_of_an_amount_or_of_lines_or_of_all_that_is_left(
    what: dict[str, Any], refund: Refund
) -> None:
    told = {"order_id": "order", "refund_id": "one", "refund_time": "2026-06-17T02:29:00Z", **what}
    read = rules.read_refund(ParseDict(told, RefundMessage()))
    other = rules.read_refund(ParseDict(told | {"refund_id": "two"}, RefundMessage()))
    assert (read["order_id"], read["refund_id"]) == ("order", "one")
    assert (read["refund"], read["occur_time"]) == (refund, BEFORE_HALF_PAST_TEN)
    assert read["body_hash"] != other["body_hash"]


# --- what conditions give -----------------------------------------------------------------------------


def test_a_condition_that_has_no_value_gives_nothing_and_names_the_error() -> None:
    programme = compiled(
        rule(rule_id="card", when="member.facts['card'] == 'gold'", fixed=9),
        rule(rule_id="sound", fixed=2),
    )
    assert given(programme, basket(), facts={"card": "gold"}) == {"card": (9, ""), "sound": (2, "")}
    found = given(programme, basket())
    assert found["sound"] == (2, "")
    assert found["card"] == (0, "NOT_FOUND: Key not found in map")


def test_one_line_without_a_value_makes_the_whole_rule_give_nothing() -> None:
    quotient = rule(when="100 / line.amount_minor >= 1", scope="RULE_SCOPE_LINE")
    amount, error = given(compiled(quotient), basket(("tea", 100), ("gift", 0)))["rule"]
    assert amount == 0
    assert "divide by zero" in error


def test_an_error_keeps_nothing_of_the_text_that_it_met() -> None:
    lookup = compiled(rule(when="member.facts[order.city] == ''"))
    secret = basket()
    secret.city = "a planted marker"
    amount, error = given(lookup, secret)["rule"]
    assert amount == 0
    assert error
    assert "marker" not in error


def test_a_line_rule_looks_at_the_lines_that_match() -> None:
    coffee = {"when": "line.category == 'coffee'", "scope": "RULE_SCOPE_LINE"}
    programme = compiled(rule(**coffee, per={"amount_minor": 100, "points": 1}))
    assert given(programme, basket(("coffee", 300), ("tea", 500), ("coffee", 250))) == {"rule": (5, "")}
    assert given(programme, basket(("tea", 500))) == {}


def test_a_line_rule_without_a_condition_leaves_out_the_delivery() -> None:
    per_line = rule(scope="RULE_SCOPE_LINE", per={"amount_minor": 100, "points": 1})
    assert given(compiled(per_line), basket(("tea", 500), delivery=400)) == {"rule": (5, "")}
    assert given(compiled(per_line), basket(delivery=400)) == {}


def test_orders_and_activities_meet_their_own_rules_only() -> None:
    programme = compiled(
        rule(rule_id="order"),
        rule(rule_id="line", scope="RULE_SCOPE_LINE"),
        rule(rule_id="activity", scope="RULE_SCOPE_ACTIVITY", when="activity.attributes['app'] == 'ios'"),
    )
    task = Activity(activity_id="1", kind="task", attributes={"app": "ios"})
    assert rules.read_activity(task).scope is Scope.ACTIVITY
    assert given(programme, task).keys() == {"activity"}
    assert given(programme, basket(("tea", 1))).keys() == {"order", "line"}


def test_the_tier_is_known_to_conditions() -> None:
    fans = compiled(rule(when="member.tier == '铁粉'"))
    assert given(fans, basket(), tier="铁粉") == {"rule": (1, "")}
    assert given(fans, basket(), tier="新粉") == {}


@pytest.mark.parametrize(
    ("when", "later", "holds"),
    [
        (COFFEE_TIME, timedelta(0), True),
        (COFFEE_TIME, timedelta(minutes=1), False),
        (ON_WEDNESDAYS, timedelta(0), True),
        (ON_WEDNESDAYS, timedelta(hours=13, minutes=30), True),
        (ON_WEDNESDAYS, timedelta(hours=13, minutes=31), False),
        (ON_WEDNESDAYS, timedelta(hours=-11), False),
        ("now.getDayOfWeek('America/New_York') == 2", timedelta(0), True),
        ("now.getDate('Asia/Shanghai') == 17 && now.getMonth('Asia/Shanghai') == 5", timedelta(0), True),
        ("now < timestamp('2026-06-17T02:30:00Z')", timedelta(0), True),
        ("now < timestamp('2026-06-17T02:30:00Z')", timedelta(minutes=1), False),
    ],
)
def test_conditions_know_local_time(when: str, later: timedelta, holds: bool) -> None:
    found = given(compiled(rule(when=when)), basket(), occur=BEFORE_HALF_PAST_TEN + later)
    assert found == ({"rule": (1, "")} if holds else {})


def test_a_rule_outside_its_window_is_not_even_asked() -> None:
    ended = rule(when="member.facts['none'] == ''", valid_until_time="2026-06-17T02:29:00Z")
    assert given(compiled(ended), basket()) == {}


def test_compiled_versions_are_kept_within_bounds() -> None:
    programmes = rules.Programmes()
    for version in range(1, rules.COMPILED + 2):
        programmes.keep(pb.Programme(version=version, time_zone="UTC").SerializeToString())
    assert programmes.get(1) is None
    newest = programmes.get(rules.COMPILED + 1)
    assert newest is not None
    assert newest.version == rules.COMPILED + 1
