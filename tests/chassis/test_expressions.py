"""Conditions are typed when they are compiled and exact about what they cannot know."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from loyalty.orders.v1.orders_pb2 import Order

from services.chassis.expressions import (
    STRING,
    STRINGS,
    TEXTS_BY_KEY,
    TIMESTAMP,
    EvaluationFailed,
    ExpressionInvalid,
    Vocabulary,
)

ORDERS = Vocabulary({"order": "loyalty.orders.v1.Order", "now": TIMESTAMP})
SUMMER = datetime(2026, 7, 1, 12, tzinfo=UTC)


def holds(text: str, order: Order | None = None, now: datetime = SUMMER) -> bool:
    facts = ORDERS.facts({"order": order or Order(city="杭州", total_minor=2190), "now": now})
    return ORDERS.compile(text).holds(facts)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("order.city == '杭州' && order.total_minor >= 2000", True),
        ("order.city in ['上海', '北京']", False),
        ("order.lines.exists(l, l.sku == 'x')", False),
        ("order.channel.startsWith('app') || size(order.lines) == 0", True),
    ],
)
def test_a_condition_holds_or_not(text: str, value: bool) -> None:
    assert holds(text) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("now.getHours('Asia/Shanghai') == 20", True),
        ("now.getHours('America/New_York') == 8", True),
        ("now.getHours('Europe/Berlin') == 14", True),
        ("now.getHours() == 12", True),
        ("now.getHours('+08:00') == 20", True),
    ],
)
def test_local_hours_are_those_of_the_named_zone(text: str, value: bool) -> None:
    assert holds(text) is value


def test_local_hours_follow_summer_time() -> None:
    winter = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert holds("now.getHours('Europe/Berlin') == 13", now=winter)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "1:1: "),
        ("order.total_minor >", "1:20: "),
        ("true &&\n  nobody", "2:3: "),
        ("order.total_minor", "1:1: must be a bool, is INT"),
        ("now", "1:1: must be a bool, is "),
        ("order.city + 1 == ''", "1:12: "),
    ],
)
def test_what_does_not_compile_to_a_condition_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(ExpressionInvalid) as refusal:
        ORDERS.compile(text)
    assert str(refusal.value).startswith(place)


@pytest.mark.parametrize(
    "text",
    ["1 / (order.total_minor - 2190) == 1", "order.lines[3].sku == 'x'", "now.getHours('No/Zone') == 1"],
)
def test_a_condition_without_a_value_is_an_error_and_never_false(text: str) -> None:
    with pytest.raises(EvaluationFailed) as failure:
        holds(text)
    assert str(failure.value)


def test_what_decides_anyway_hides_an_error_beside_it() -> None:
    assert holds("order.lines[3].sku == 'x' || true")


def test_facts_serve_any_number_of_conditions() -> None:
    facts = ORDERS.facts({"order": Order(city="杭州"), "now": SUMMER})
    conditions = [ORDERS.compile(f"order.city == '{city}'") for city in ("杭州", "上海", "杭州")]
    assert [condition.holds(facts) for condition in conditions] == [True, False, True]


def of_lines(*texts: str) -> list[frozenset[int] | str]:
    """The lines of three that each condition selects, or why it has no value."""
    order = Order(city="杭州")
    for quantity in (2, 0, 1):
        order.lines.add(quantity=quantity)
    found = ORDERS.compile_all(texts, "line", "order.lines").matching(ORDERS.facts({"order": order}))
    return [str(one) if isinstance(one, EvaluationFailed) else one for one in found]


def test_conditions_over_a_list_are_evaluated_together() -> None:
    commented = "line.quantity == 1 // a comment hides nothing that follows"
    found = of_lines("line.quantity > 0", commented, "order.city == '杭州'", "false")
    assert [sorted(lines) for lines in found] == [[0, 2], [2], [0, 1, 2], []]
    assert of_lines() == []


def test_of_conditions_over_a_list_one_that_fails_leaves_the_others_alone() -> None:
    found = of_lines("line.quantity > 0", "2 / line.quantity > 1", "order.lines[3].sku == ''")
    assert found == [frozenset({0, 2}), "INVALID_ARGUMENT: divide by zero", "UNKNOWN: Index error"]


def nested(depth: int) -> str:
    return "!(" * depth + "line.quantity == 1" + ")" * depth


@pytest.mark.parametrize(
    "texts", [[nested(31)], [" || ".join(["line.sku == 'x'"] * 100)] * 60], ids=["too deep", "too long"]
)
def test_what_cannot_be_evaluated_over_a_list_is_refused(texts: list[str]) -> None:
    with pytest.raises(ExpressionInvalid):
        ORDERS.compile_all(texts, "line", "order.lines")


def test_a_condition_is_refused_that_is_nested_too_deeply_to_be_evaluated_over_a_list() -> None:
    lines = Vocabulary({"order": "loyalty.orders.v1.Order", "line": "loyalty.orders.v1.OrderLine"})
    deepest = next(depth for depth in range(31, 0, -1) if compiles(lines, nested(depth)))
    with pytest.raises(ExpressionInvalid):
        ORDERS.compile_each(nested(deepest), "line", "order.lines")


def compiles(vocabulary: Vocabulary, text: str) -> bool:
    try:
        vocabulary.compile(text)
    except ExpressionInvalid:
        return False
    return True


def test_a_text_follows_from_facts_or_has_no_value() -> None:
    names = {"tags": TEXTS_BY_KEY, "cards": STRINGS, "tier": STRING}
    vocabulary = Vocabulary(names)
    facts = vocabulary.facts({"tags": {"city": "杭州"}, "cards": ["king", "tea"], "tier": ""})
    assert vocabulary.compile_text("tags.city + ' ' + cards[1] + tier").value(facts) == "杭州 tea"
    with pytest.raises(EvaluationFailed, match=r"^NOT_FOUND: Key not found in map$"):
        vocabulary.compile_text("tags.none").value(facts)
    for text, complaint in (("size(cards)", "must be a string, is INT"), ("cards[0] +", "Syntax error")):
        with pytest.raises(ExpressionInvalid, match=complaint):
            vocabulary.compile_text(text)
