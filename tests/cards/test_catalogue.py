"""The catalogue that is delivered: valid as it stands, and worth what the posters promise."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import protovalidate
import pytest
from google.protobuf.json_format import ParseDict
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order

from services.cards import rules
from services.cards.domain import cards, search
from services.cards.domain.basket import Quote
from services.cards.domain.cards import Card, Purchase
from services.cards.domain.entitlements import Giver
from services.cards.domain.products import BenefitKind
from tests.support import delivered, order

ZONE = ZoneInfo("Asia/Shanghai")
BOUGHT = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)  # Monday, 12:00
NOON = BOUGHT + timedelta(days=1)
BREAKFAST_TIME = NOON - timedelta(hours=3)
FRIDAY = BOUGHT + timedelta(days=4)
MUFFIN, BURGER, FRIES = "BREAKFAST SAUSAGE/SANDWICHES", "SANDWICHES", "FRZN POTATOES"
DRINK, COFFEE = "SOFT DRINKS", "COFFEE"


def read() -> list[pb.Product]:
    said = delivered("burger-king")["cards"]["products"]
    return [ParseDict(product, pb.Product()) for product in said]


PRODUCTS = {message.code: message for message in read()}


@cache
def compiled(code: str) -> rules.Compiled:
    return rules.compile_product(PRODUCTS[code])


def basket(*lines: tuple[str, int], delivery: int = 0, channel: str = "app") -> Order:
    """Pieces by category and price; a category in small letters is a SKU."""
    made = order(delivery + sum(price for _, price in lines), NOON)
    made.ClearField("lines")
    made.delivery_fee_minor, made.channel = delivery, channel
    for number, (name, price) in enumerate(lines):
        what = {"sku": name} if name.islower() else {"category": name}
        made.lines.add(line_id=str(number), quantity=1, amount_minor=price, **what)
    return made


def quoted(
    codes: str,
    what: Order,
    at: datetime = NOON,
    used: Mapping[tuple[str, str], int] = {},
) -> Quote:
    """The best price of an order with these cards, bought the day before."""
    held = {compiled(code).name: compiled(code) for code in codes.split()}
    benefits = {name: one.product.benefits for name, one in held.items()}
    given = []
    for name, one in held.items():
        bought = Purchase(f"seg-{name[0]}", *name, one.product.period, 0, BOUGHT)
        card = cards.extend(Card(f"card-{name[0]}"), bought, BOUGHT, ZONE)
        given += Giver(card, benefits, used, ZONE).entitlements(at)
    bill = rules.read_order(what)
    return search.quote(bill.lines, bill.delivery_fee, rules.offers(given, bill, held))


def pays(quote: Quote) -> list[int]:
    return [line.pay for line in quote.lines]


@pytest.mark.parametrize("code", PRODUCTS)
def test_every_product_is_one_that_the_service_takes(code: str) -> None:
    product = PRODUCTS[code]
    protovalidate.validate(product)
    assert compiled(code).product.code == code
    assert {"zh-CN", "en"} <= product.names.keys()
    assert product.currency_code == "CNY"


def test_the_catalogue_uses_every_kind_of_benefit_and_every_policy() -> None:
    products = [compiled(code).product for code in PRODUCTS]
    assert {benefit.kind for one in products for benefit in one.benefits} == set(BenefitKind)
    assert all(
        any(getattr(one, policy) for one in products)
        for policy in ("upgrade_now", "freeze", "purchase_limit", "sales_cap", "eligible", "gift_claim_days")
    )
    assert any(one.refund.pro_rata for one in products)
    assert any(one.points_price for one in products)


def test_the_prices_are_those_that_were_published() -> None:
    prices = {code: PRODUCTS[code].price_minor for code in PRODUCTS}
    assert (prices["king-month"], prices["king-quarter"]) == (1900, 3900)
    assert (prices["coffee-month"], prices["breakfast-month"]) == (990, 1900)


def test_the_coffee_card_gives_one_cup_a_day_at_eight_yuan() -> None:
    two = basket((COFFEE, 1500), (COFFEE, 1200))
    assert pays(quoted("coffee-month", two)) == [800, 1200]
    used = {("coffee", "2026-06-16"): 1}
    assert pays(quoted("coffee-month", two, NOON, used)) == [1500, 1200]
    assert pays(quoted("coffee-month", two, NOON + timedelta(days=1), used)) == [800, 1200]


def test_the_king_card_gives_every_cup_at_eight_yuan() -> None:
    quote = quoted("king-month coffee-month", basket((COFFEE, 1500), (COFFEE, 1200), (COFFEE, 700)))
    assert pays(quote) == [800, 800, 700]
    assert quote.exact
    assert {taken.offer.card_id for taken in quote.taken} == {"card-king-month"}  # nothing of the daily cup


def test_breakfast_is_cheaper_in_breakfast_hours() -> None:
    morning = basket((MUFFIN, 1001), ("breakfast-set-07", 1990))
    assert pays(quoted("king-month breakfast-month", morning, BREAKFAST_TIME)) == [601, 995]
    for hours, minutes, cheaper in ((5, 0, True), (4, 59, False), (10, 29, True), (10, 30, False)):
        at = NOON.astimezone(ZONE).replace(hour=hours, minute=minutes)
        assert (pays(quoted("breakfast-month", morning, at)) == [1001, 995]) is cheaper


def test_a_set_meal_costs_less_than_its_parts() -> None:
    quote = quoted("king-quarter", basket((BURGER, 1800), (FRIES, 900), (DRINK, 700), (BURGER, 1500)))
    assert quote.exact
    assert sum(pays(quote)) == 1990 + 1500
    assert pays(quoted("king-quarter", basket((BURGER, 1800), (FRIES, 900)))) == [1800, 900]


def test_a_delivery_is_free_where_it_is_delivered() -> None:
    brought = basket((DRINK, 700), delivery=600, channel="delivery")
    assert quoted("king-month", brought).delivery_pay == 0
    assert quoted("king-trial", brought).delivery_pay == 600
    assert quoted("king-month", basket((DRINK, 700), delivery=600)).delivery_pay == 600


def test_founders_have_fries_on_fridays_and_a_yuan_off_a_cheap_coffee() -> None:
    what = basket((FRIES, 900), (FRIES, 900), (COFFEE, 1500))
    assert sorted(pays(quoted("king-founder", what, FRIDAY))) == [0, 700, 900]
    assert sorted(pays(quoted("king-founder", what))) == [700, 900, 900]


def test_only_the_highest_fan_level_may_be_founders() -> None:
    assert compiled("king-founder").sold_to("挚爱粉", {})
    assert not compiled("king-founder").sold_to("铁粉", {})
    assert compiled("king-month").sold_to("", {})
