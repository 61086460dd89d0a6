"""Products as they are put: what is refused and where, what is read, and what conditions see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order

from services.cards import rules
from services.cards.domain.basket import Line, Offer
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.periods import Period
from services.cards.domain.products import (
    BenefitKind,
    BundlePart,
    Daypart,
    FreezePolicy,
    RefundPolicy,
    SalesWindow,
)
from services.cards.domain.quotas import Quota, Window
from services.cards.errors import ProductInvalid, TotalMismatch
from services.chassis.errors import MalformedRequest
from tests.support import order

AT = datetime(2026, 6, 17, 2, 29, tzinfo=UTC)
END = datetime(2026, 7, 17, 2, 29, tzinfo=UTC)
COFFEE = "line.category == 'coffee'"
patiently = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def benefit(code: str = "cup", kind: str = "FIXED_PRICE", **more: Any) -> dict[str, Any]:
    """A benefit; one of a price gives a piece for 8.00."""
    value = {"value": 800} if kind in ("FIXED_PRICE", "AMOUNT_OFF", "BUNDLE_PRICE") else {}
    return {"benefit_code": code, "kind": f"BENEFIT_KIND_{kind}", **value, **more}


def product(*benefits: dict[str, Any], **more: Any) -> pb.Product:
    said = {"code": "king", "family": "king", "currency_code": "CNY", "period": "P1M", "benefits": benefits}
    return ParseDict({**said, **more}, pb.Product())


def compiled(*benefits: dict[str, Any], **more: Any) -> rules.Compiled:
    return rules.compile_product(product(*benefits, **more))


def faults(*benefits: dict[str, Any], **more: Any) -> dict[str, str]:
    """What a product is refused for, by field."""
    with pytest.raises(ProductInvalid) as refusal:
        compiled(*benefits, **more)
    return {violation.field: violation.description for violation in refusal.value.violations}


def entitled(*products: rules.Compiled) -> list[Entitlement]:
    """All that the products give."""
    return [
        Entitlement("card", "segment", one.name, given, "", 0, None, None, END)
        for one in products
        for given in one.product.benefits
    ]


def basket(*lines: tuple[str, int], delivery: int = 0, **more: Any) -> Order:
    """An order of lines `0`, `1`, … of one piece each."""
    total = delivery + sum(amount for _, amount in lines)
    made = order(total, AT)
    made.ClearField("lines")
    for number, (category, amount) in enumerate(lines):
        made.lines.add(line_id=str(number), category=category, quantity=1, amount_minor=amount)
    made.MergeFrom(Order(delivery_fee_minor=delivery, **more))
    return made


def offered(one: rules.Compiled, what: Order) -> dict[str, Offer]:
    """What its benefits are for."""
    found = rules.offers(entitled(one), rules.read_order(what), {one.name: one})
    return {offer.code: offer for offer in found}


def lines(one: rules.Compiled, what: Order) -> dict[str, str]:
    """The lines that each benefit is for, as one text."""
    return {code: "".join(sorted(offer.lines)) for code, offer in offered(one, what).items()}


def usable(one: rules.Compiled, store_id: str = "", channel: str = "") -> set[str]:
    return {e.benefit.code for e in rules.usable_at(store_id, channel, entitled(one), {one.name: one})}


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "place", "complaint"),
    [
        ("1 +", "1:4", "Syntax error"),
        ("true\n&& fal se", "2:8", "Syntax error"),
        ("line.quantity", "1:1", "must be a bool, is INT"),
        ("order.total_minor == 'a'", "1:19", "no matching overload"),
        ("line.price > 0", "1:5", "undefined field 'price'"),
        ("member.tier == 'gold'", "1:7", "undeclared reference to 'member"),
        ("now > order.paid_time", "1:1", "undeclared reference to 'now'"),
        ("line.category.shouts()", "1:21", "undeclared reference to 'shouts'"),
    ],
)
def test_a_scope_that_does_not_compile_is_refused_with_its_place(
    scope: str, place: str, complaint: str
) -> None:
    meal = benefit("meal", "BUNDLE_PRICE", parts=[{"scope": COFFEE, "quantity": 1}])
    meal["parts"].append({"scope": scope, "quantity": 2})
    found = faults(benefit("sound", scope=COFFEE), benefit("unsound", scope=scope), meal)
    assert list(found) == ["product.benefits[1].scope", "product.benefits[2].parts[1].scope"]
    for description in found.values():
        assert description.startswith(f"{place}: ")
        assert complaint in description


def test_the_scope_of_a_delivery_sees_no_line() -> None:
    found = faults(benefit("delivery", "FREE_DELIVERY", scope=COFFEE))
    assert "undeclared reference to 'line" in found["product.benefits[0].scope"]
    assert compiled(benefit("delivery", "FREE_DELIVERY", scope="order.lines.exists(l, l.sku == 'a')"))


@pytest.mark.parametrize(
    ("eligible", "complaint"),
    [
        ("member.tier", "must be a bool, is STRING"),
        ("member.age > 17", "undefined field 'age'"),
        ("order.city == ''", "undeclared reference to 'order"),
        ("line.sku == ''", "undeclared reference to 'line"),
    ],
)
def test_who_may_buy_is_decided_by_the_member_alone(eligible: str, complaint: str) -> None:
    found = faults(eligible=eligible)
    assert list(found) == ["product.eligible"]
    assert complaint in found["product.eligible"]


@pytest.mark.parametrize("period", ["P121M", "P11Y", "P523W", ""])
def test_a_period_that_is_none_or_too_long_is_refused(period: str) -> None:
    assert list(faults(period=period)) == ["product.period"]


def double(**more: Any) -> dict[str, Any]:
    return benefit("double", "POINTS_MULTIPLIER", **{"value": 2_000_000, **more})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scope", COFFEE),
        ("dayparts", [{"start": "05:00", "end": "10:30"}]),
        ("quota", {"limit": 1, "window": "QUOTA_WINDOW_DAY"}),
        ("max_per_order", 1),
    ],
)
def test_a_multiplier_of_points_holds_for_all_that_is_earned(field: str, value: Any) -> None:
    assert faults(benefit(), double(**{field: value})) == {
        f"product.benefits[1].{field}": "a POINTS_MULTIPLIER holds for all that is earned"
    }


def test_a_product_has_one_multiplier_that_an_event_can_carry() -> None:
    assert compiled(benefit(), double(value=10**12 - 1))
    assert faults(double(), double(value=10**12)) == {
        "product.benefits[1].kind": "a product has one POINTS_MULTIPLIER at most",
        "product.benefits[1].value": "must be below a million times, in millionths",
    }


def test_scopes_that_are_sound_but_together_too_long_are_refused() -> None:
    long = " || ".join(f"line.sku == '{number:04}'" for number in range(90))
    many = [benefit(str(number), scope=f"{long} || line.quantity == {number}") for number in range(50)]
    found = faults(*many)
    assert list(found) == ["product.benefits"]
    assert found["product.benefits"].startswith("together: ")


def test_a_scope_that_is_nested_too_deeply_is_refused_with_its_place() -> None:
    refused = []
    for depth in range(20, 34):
        nested = benefit("deep", scope="!(" * depth + COFFEE + ")" * depth)
        try:
            compiled(benefit(), nested)
        except ProductInvalid as refusal:
            refused.append([violation.field for violation in refusal.violations])
    assert refused
    assert all(fields == ["product.benefits[1].scope"] for fields in refused)


def test_every_fault_is_told_at_once() -> None:
    parts = [{"scope": "1", "quantity": 1}]
    found = faults(
        benefit("one", scope="1 +"),
        benefit("two", "BUNDLE_PRICE", scope="2", parts=parts),
        double(scope="3"),
        period="P999W",
        eligible="4",
    )
    assert found.keys() == {
        "product.benefits[0].scope",
        "product.benefits[1].scope",
        "product.benefits[1].parts[0].scope",
        "product.benefits[2].scope",
        "product.period",
        "product.eligible",
    }


# --- what is read -------------------------------------------------------------------------------------

MEAL: dict[str, Any] = {
    "benefit_code": "meal",
    "kind": "BENEFIT_KIND_BUNDLE_PRICE",
    "value": 2900,
    "scope": "order.channel == 'app'",
    "dayparts": [{"start": "22:00", "end": "02:00", "weekdays": [5, 6]}, {"start": "11:00", "end": "14:00"}],
    "quota": {"limit": 3, "window": "QUOTA_WINDOW_WEEK"},
    "max_per_order": 2,
    "parts": [{"scope": COFFEE, "quantity": 1}, {"scope": "line.sku == 'fries'", "quantity": 2}],
}
WHOLE: dict[str, Any] = {
    "code": "king-quarter",
    "version": 7,
    "family": "king",
    "names": {"zh-CN": "国王卡", "en": "King card"},
    "price_minor": 3900,
    "currency_code": "CNY",
    "points_price": 390,
    "period": "P3M",
    "benefits": [MEAL],
    "upgrade_policy": "UPGRADE_POLICY_NOW",
    "refund_policy": {"cooling_off_days": 7, "otherwise": "REFUND_RULE_PRO_RATA"},
    "purchase_limit": 4,
    "sales_cap": {"limit": 500, "window": "SALES_WINDOW_YEAR"},
    "eligible": "member.tier != ''",
    "freeze_policy": {"shortest_days": 3, "longest_days": 30, "count": 2},
    "grace_days": 5,
    "gift_claim_days": 90,
    "withdrawn": True,
}


def test_a_product_is_read_whole() -> None:
    read = compiled(**WHOLE).product
    (meal,) = read.benefits
    assert (read.code, read.version, read.family) == ("king-quarter", 7, "king")
    assert (read.price_minor, read.points_price, read.period) == (3900, 390, Period(months=3))
    assert read.refund == RefundPolicy(7, pro_rata=True)
    assert read.freeze == FreezePolicy(3, 30, 2)
    assert read.sales_cap == (500, SalesWindow.YEAR)
    assert (meal.kind, meal.value) == (BenefitKind.BUNDLE_PRICE, 2900)
    assert meal.quota == Quota(3, Window.WEEK)
    assert meal.dayparts == (
        Daypart(time(22), time(2), frozenset({5, 6})),
        Daypart(time(11), time(14)),
    )
    assert meal.parts == (BundlePart(COFFEE, 1), BundlePart("line.sku == 'fries'", 2))


def test_a_product_that_says_nothing_else_queues_gives_nothing_back_and_never_rests() -> None:
    read = compiled().product
    assert (read.upgrade_now, read.refund, read.freeze, read.sales_cap) == (False, RefundPolicy(), None, None)


def places_of(fields: Descriptor, at: str = "") -> Iterator[str]:
    """Everything that the contract lets a product say."""
    for field in fields.fields:
        kind = field.message_type
        if kind is None or kind.GetOptions().map_entry:
            yield f"{at}{field.name}"
        elif kind is not Timestamp.DESCRIPTOR:
            yield from places_of(kind, f"{at}{field.name}.")


CHANGED: dict[str, Any] = {
    "period": "P4M",
    "eligible": "member.tier == 'fan'",
    "upgrade_policy": pb.UPGRADE_POLICY_QUEUE,
    "refund_policy.otherwise": pb.REFUND_RULE_NONE,
    "sales_cap.window": pb.SALES_WINDOW_DAY,
    "benefits.kind": pb.BENEFIT_KIND_FIXED_PRICE,
    "benefits.scope": "order.channel == 'store'",
    "benefits.quota.window": pb.QUOTA_WINDOW_DAY,
    "benefits.dayparts.start": "21:30",
    "benefits.dayparts.end": "01:30",
    "benefits.parts.scope": "line.category == 'tea'",
}


@pytest.mark.parametrize("place", [*places_of(pb.Product.DESCRIPTOR)])
def test_nothing_that_a_product_says_is_lost(place: str) -> None:
    message = ParseDict(WHOLE, pb.Product())
    before = rules.compile_product(message).product
    *path, name = place.split(".")
    inner: Any = message
    for step in path:
        repeated = inner.DESCRIPTOR.fields_by_name[step].is_repeated
        inner = getattr(inner, step)[0] if repeated else getattr(inner, step)
    value = getattr(inner, name)
    match value:
        case _ if place in CHANGED:
            setattr(inner, name, CHANGED[place])
        case bool():
            setattr(inner, name, not value)
        case int():
            setattr(inner, name, value + 1)
        case str():
            setattr(inner, name, f"{value}-2")
        case _:
            value.clear()
    assert rules.compile_product(message).product != before


# --- orders -------------------------------------------------------------------------------------------


def test_an_order_is_read_as_lines_before_any_benefit() -> None:
    what = basket(("coffee", 1200), ("fries", 900), delivery=600)
    bill = rules.read_order(what)
    assert bill.lines == (Line("0", 1, 1200), Line("1", 1, 900))
    assert (bill.order_id, bill.delivery_fee, bill.currency_code) == (what.order_id, 600, "CNY")
    assert Order.FromString(bill.body) == what
    what.lines[0].sku = "other"
    assert rules.read_order(what).body_hash != bill.body_hash


def test_an_order_whose_total_is_not_its_parts_is_refused() -> None:
    wrong = basket(("coffee", 1200), delivery=600)
    wrong.total_minor -= 600
    with pytest.raises(TotalMismatch) as refusal:
        rules.read_order(wrong)
    assert [violation.field for violation in refusal.value.violations] == ["order.total_minor"]


def test_an_order_with_two_lines_of_one_id_or_an_impossible_time_is_refused() -> None:
    twice = basket(("coffee", 1200), ("fries", 900))
    twice.lines[1].line_id = "0"
    timeless = basket(("coffee", 1200))
    timeless.paid_time.nanos = -1
    for what in (twice, timeless):
        with pytest.raises(MalformedRequest):
            rules.read_order(what)


# --- what a benefit is for ----------------------------------------------------------------------------


def test_a_benefit_is_for_the_lines_of_which_its_scope_is_true() -> None:
    one = compiled(
        benefit("coffee", scope=COFFEE),
        benefit("app", scope=f"{COFFEE} && order.channel == 'store' // not in the app"),
        benefit("cheap", "PERCENT_OFF", value=50, scope="line.amount_minor < 1000"),
        benefit("anything", "FREE_ITEM"),
    )
    assert lines(one, basket(("coffee", 1200), ("fries", 900), ("coffee", 800))) == {
        "coffee": "02",
        "app": "",
        "cheap": "12",
        "anything": "012",
    }
    assert set(lines(one, basket()).values()) == {""}


def test_a_scope_that_has_no_value_for_one_line_gives_nothing_and_says_so() -> None:
    parts = [{"scope": COFFEE, "quantity": 1}, {"scope": "1000 / line.amount_minor > 0", "quantity": 1}]
    one = compiled(
        benefit("sound", scope=COFFEE),
        benefit("unsound", scope="1000 / line.amount_minor > 0"),
        benefit("meal", "BUNDLE_PRICE", parts=parts),
        benefit("delivery", "FREE_DELIVERY", scope="order.lines[2].sku == ''"),
    )
    found = offered(one, basket(("coffee", 0), ("coffee", 100)))
    assert {code for code, offer in found.items() if offer.failed} == {"unsound", "meal", "delivery"}
    assert found["sound"].lines == {"0", "1"}
    assert not any(offer.lines for offer in found.values() if offer.failed)
    assert [len(part.lines) for part in found["meal"].parts] == [0, 0]
    assert not any(offer.failed for offer in offered(one, basket(*[("coffee", 100)] * 3)).values())


def test_a_piece_of_a_bundle_satisfies_the_bundle_and_its_part() -> None:
    parts = [{"scope": COFFEE, "quantity": 1}, {"scope": "line.category == 'fries'", "quantity": 2}]
    one = compiled(benefit("meal", "BUNDLE_PRICE", scope="line.amount_minor < 1000", parts=parts))
    meal = offered(one, basket(("coffee", 1200), ("fries", 900), ("coffee", 800)))["meal"]
    assert [(part.quantity, *part.lines) for part in meal.parts] == [(1, "2"), (2, "1")]


def test_a_delivery_is_for_the_order_whatever_is_in_it() -> None:
    one = compiled(
        benefit("always", "FREE_DELIVERY"),
        benefit("app", "FREE_DELIVERY", scope="order.channel == 'app'"),
        benefit("store", "FREE_DELIVERY", scope="order.channel == 'store'"),
    )
    for what in (basket(delivery=600), basket(("coffee", 1200), delivery=600)):
        found = offered(one, what)
        assert {code for code, offer in found.items() if offer.lines} == {"always", "app"}


def test_a_benefit_is_for_nothing_in_another_currency() -> None:
    parts = [{"scope": COFFEE, "quantity": 1}]
    one = compiled(
        benefit("coffee", scope=COFFEE),
        benefit("meal", "BUNDLE_PRICE", parts=parts),
        benefit("delivery", "FREE_DELIVERY"),
        currency_code="EUR",
    )
    found = offered(one, basket(("coffee", 1200), delivery=600))
    assert not any(offer.lines or offer.failed for offer in found.values())
    assert not found["meal"].parts[0].lines
    assert offered(one, basket(("coffee", 1200), currency_code="EUR"))["coffee"].lines == {"0"}


def test_offers_come_one_for_each_benefit_whatever_product_gives_it() -> None:
    king = compiled(benefit("coffee", scope=COFFEE), benefit("fries", scope="line.category == 'fries'"))
    cup = compiled(benefit("coffee", scope=f"{COFFEE} && line.amount_minor > 1000"), code="cup", version=2)
    mixed = [entitled(king)[0], *entitled(cup), entitled(king)[1]]
    bill = rules.read_order(basket(("coffee", 1200), ("fries", 900), ("coffee", 800)))
    found = rules.offers(mixed, bill, {king.name: king, cup.name: cup})
    assert [(offer.code, "".join(sorted(offer.lines))) for offer in found] == [
        ("coffee", "02"),
        ("coffee", "0"),
        ("fries", "1"),
    ]


# Conditions, with what they say of a line's category and amount; None where that is nothing.
KNOWN: dict[str, Callable[[str, int], bool | None]] = {
    "": lambda *_: True,
    COFFEE: lambda category, _: category == "coffee",
    "line.category in ['fries', 'tea']": lambda category, _: category in ("fries", "tea"),
    "line.amount_minor < 500": lambda _, amount: amount < 500,
    "100 / line.amount_minor >= 0": lambda _, amount: True if amount else None,
    f"{COFFEE} || 100 / line.amount_minor >= 0": lambda category, amount: (
        True if amount or category == "coffee" else None
    ),
}


@patiently
@given(
    st.lists(st.sampled_from(sorted(KNOWN)), max_size=6),
    st.lists(st.tuples(st.sampled_from(["coffee", "fries", "tea"]), st.integers(0, 1000)), max_size=5),
)
def test_all_scopes_at_once_say_what_each_says_of_each_line(
    scopes: list[str], what: list[tuple[str, int]]
) -> None:
    one = compiled(*(benefit(str(number), scope=scope) for number, scope in enumerate(scopes)))
    found = offered(one, basket(*what))
    for number, scope in enumerate(scopes):
        said = [KNOWN[scope](category, amount) for category, amount in what]
        offer = found[str(number)]
        assert offer.failed is (None in said)
        expected = set() if None in said else {str(line) for line, holds in enumerate(said) if holds}
        assert offer.lines == expected


# --- before there is an order -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "here"),
    [
        ("", True),
        ("order.store_id == 'here'", True),
        ("order.store_id == 'there'", False),
        (f"{COFFEE} && order.store_id == 'there'", False),
        (f"order.store_id in ['there', 'nowhere'] && {COFFEE}", False),
        (f"{COFFEE} || order.store_id == 'there'", True),
        (f"!({COFFEE}) && order.store_id == 'there'", False),
        ("order.city == '杭州'", True),
        ("order.total_minor > 0 && order.store_id.startsWith('th')", False),
        ("order.lines.exists(l, l.sku == 'a')", True),
        ("order.channel == 'app' && order.store_id == 'here'", True),
        ("has(order.store_id) != has(order.channel)", True),
        ("1 / (size(order.store_id) - 4) == 0", True),
        ("false", True),
    ],
)
def test_what_store_and_channel_rule_out_is_left_out(scope: str, here: bool) -> None:
    one = compiled(benefit("one", scope=scope))
    assert usable(one, "here", "app") == ({"one"} if here else set())


def test_what_was_not_said_rules_nothing_out() -> None:
    one = compiled(
        benefit("store", scope="order.store_id == 'there'"),
        benefit("channel", scope="order.channel == 'app'"),
        benefit("delivery", "FREE_DELIVERY", scope="order.channel == 'delivery' && order.total_minor > 0"),
    )
    assert usable(one) == {"store", "channel", "delivery"}
    assert usable(one, channel="app") == {"store", "channel"}
    assert usable(one, store_id="there", channel="delivery") == {"store", "delivery"}


def test_a_bundle_is_left_out_where_one_of_its_parts_is() -> None:
    parts = [{"scope": COFFEE, "quantity": 1}, {"scope": "order.store_id == 'here'", "quantity": 1}]
    one = compiled(benefit("meal", "BUNDLE_PRICE", parts=parts))
    assert usable(one, "here") == {"meal"}
    assert usable(one, "there") == set()


atoms = st.sampled_from(
    [
        "order.store_id == 'here'",
        "order.channel == 'app'",
        "order.city == '杭州'",
        "has(order.store_id)",
        "order.lines.all(l, l.amount_minor > 100)",
        "100 / line.amount_minor > 1",
        COFFEE,
        "true",
    ]
)
conditions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||", "=="]), inner).map(
            lambda c: f"({c[0]}) {c[1]} ({c[2]})"
        ),
        inner.map(lambda c: f"!({c})"),
        st.tuples(inner, inner, inner).map(lambda c: f"({c[0]}) ? ({c[1]}) : ({c[2]})"),
    ),
    max_leaves=6,
)
places = st.sampled_from(["", "here", "there"])
channels = st.sampled_from(["", "app", "store"])


@patiently
@given(conditions, places, channels, st.data())
def test_what_is_left_out_is_for_no_line_of_any_order_there(
    scope: str, store_id: str, channel: str, data: st.DataObject
) -> None:
    one = compiled(benefit("one", scope=scope))
    if usable(one, store_id, channel):
        return
    what = data.draw(st.lists(st.tuples(st.sampled_from(["coffee", "tea"]), st.integers(0, 200)), max_size=3))
    bought = basket(*what)
    bought.store_id = store_id or data.draw(places)
    bought.channel = channel or data.draw(channels)
    bought.city = data.draw(st.sampled_from(["杭州", "上海"]))
    assert lines(one, bought) == {"one": ""}


# --- who may buy --------------------------------------------------------------------------------------


def test_a_product_is_sold_to_those_of_whom_its_condition_is_true() -> None:
    assert compiled().sold_to("", {})
    fans = compiled(eligible="member.tier == '挚爱粉' || member.facts['bank'] == 'cmb'")
    assert fans.sold_to("挚爱粉", {})
    assert fans.sold_to("新粉", {"bank": "cmb"})
    assert not fans.sold_to("新粉", {"bank": "icbc"})


def test_a_product_is_not_sold_to_those_of_whom_its_condition_says_nothing() -> None:
    assert not compiled(eligible="member.facts['bank'] != 'icbc'").sold_to("挚爱粉", {})


# --- what is kept -------------------------------------------------------------------------------------


def test_compiled_versions_are_kept_within_bounds() -> None:
    products = rules.Products()
    for version in range(1, rules.COMPILED + 2):
        products.keep(product(version=version).SerializeToString())
    assert products.get("king", 1) is None
    newest = products.get("king", rules.COMPILED + 1)
    assert newest is not None
    assert newest.name == ("king", rules.COMPILED + 1)
