"""Cards as a brand sells them, with points beside them: what its members do, from one day to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import nats
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order

from services.cards import audit as cards_audit
from services.cli import clockwork
from services.cli.events import read
from services.cli.house import House
from services.cli.place import Failure
from services.points import audit as points_audit
from tests.cards.calls import (
    a_payment,
    buy,
    confirm,
    entitled,
    give_back,
    instant,
    pay,
    place,
    put,
    quote,
    quote_refund,
    read_card,
    read_order,
    redeem,
    stamp,
)
from tests.conftest import NOON, OpenHouse
from tests.points.calls import kinds
from tests.support import (
    PROGRAMME,
    Cards,
    Points,
    apply_programme,
    defects,
    delivered,
    eventually,
    fresh,
    order,
    refused,
)

Event = TypeVar("Event", bound=Message)

SHANGHAI = ZoneInfo("Asia/Shanghai")
SETTLE = 120.0  # seconds
BONUS = 50
RULES = [
    {
        "rule_id": "bonus",
        "scope": "RULE_SCOPE_ACTIVITY",
        "unit": "UNIT_POINTS",
        "when": "activity.kind == 'card_activated'",
        "fixed": BONUS,
        "stack": "RULE_STACK_ADD",
    },
    {
        "rule_id": "quarter",
        "scope": "RULE_SCOPE_ORDER",
        "unit": "UNIT_POINTS",
        "when": "'card.king-quarter' in member.facts && member.facts['card.king-quarter'] == '1.2'",
        "multiplier": "1.2",
        "stack": "RULE_STACK_ADD",
    },
]


@dataclass
class Brand:
    """A house with both services, and a channel into each."""

    house: House
    points: Points
    cards: Cards

    def wait(self, **duration: float) -> None:
        """Lets time pass, and what falls due be done."""
        self.until(self.points.now + timedelta(**duration))

    def until(self, at: datetime) -> None:
        """Moves the clock, and has what falls due be done."""
        assert self.house.clock is not None
        clockwork.move(self.house.clock, at, SETTLE, self.house.services)

    def heard(self, member: str, kind: type[Event], many: int) -> list[Event]:
        """A member's events of a kind, as the stream has them, once there are as many."""
        found: list[Event] = []

        def enough() -> bool:
            found[:] = asyncio.run(self._in_stream(member, kind))
            return len(found) >= many

        eventually(enough)
        return found

    async def _in_stream(self, member: str, kind: type[Event]) -> list[Event]:
        client = await nats.connect(self.house.nats.url)
        try:
            subject = kind.DESCRIPTOR.full_name
            messages = [message async for message in read(client, subject, from_start=True, follow=False)]
        except Failure:  # there is no such stream yet
            return []
        finally:
            await client.close()
        events = [kind.FromString(message.data) for message in messages]
        return [event for event in events if event.member_id == member]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def brand(data: Path, open_house: OpenHouse) -> Iterator[Brand]:
    """A brand that sells what is delivered, and rewards who buys. Its clock goes on and on."""
    with (
        open_house(data, ("points", "cards"), test_clock=NOON) as house,
        Points(house) as points,
        Cards(house) as cards,
    ):
        apply_programme(house, PROGRAMME | {"earn_rules": [*PROGRAMME["earn_rules"], *RULES]})
        catalogue = delivered("burger-king")["cards"]["products"]
        for product in catalogue:
            put(cards, ParseDict(product, pb.Product()))
        yield Brand(house, points, cards)
        assert not defects(house)
        for service, audit in (("points", points_audit.audit), ("cards", cards_audit.audit)):
            report = asyncio.run(audit(house.database_url(service), stream_url=house.nats.url))
            assert report.clean, report.lines


def a_basket(at: datetime, channel: str = "store", fee: int = 0, **pieces: tuple[str, int]) -> Order:
    """An order; each line is a sku or a category and what its one piece costs."""
    made = Order(order_id=fresh("order"), channel=channel, currency_code="CNY", delivery_fee_minor=fee)
    for line_id, (what, price) in pieces.items():
        made.lines.add(line_id=line_id, sku=what, category=what, quantity=1, amount_minor=price)
    made.total_minor = fee + sum(price for _, price in pieces.values())
    made.paid_time.CopyFrom(stamp(at))
    return made


def tomorrow_at(now: datetime, hour: int) -> datetime:
    local = now.astimezone(SHANGHAI) + timedelta(days=1)
    return local.replace(hour=hour, minute=0, second=0, microsecond=0)


# --- at the till --------------------------------------------------------------------------------------


def test_a_member_has_a_coffee_a_day_for_eight_yuan(brand: Brand) -> None:
    cards, member = brand.cards, fresh("member")
    buy(cards, member, "coffee-month")
    for _ in range(2):
        first, second = (a_basket(cards.now, cup=("COFFEE", 1500)) for _ in range(2))
        shown = quote(cards, member, first)
        assert (shown.lines[0].pay_minor, shown.saved_minor) == (800, 700)
        redeem(cards, member, first, shown.saved_minor)
        confirm(cards, member, first.order_id)
        assert quote(cards, member, second).lines[0].pay_minor == 1500
        with refused(StatusCode.FAILED_PRECONDITION, "QUOTE_CHANGED") as refusal:
            redeem(cards, member, second, shown.saved_minor)
        assert refusal.metadata == {"expected_saved_minor": "700", "saved_minor": "0"}
        cup = entitled(cards, member)["coffee"]
        assert (cup.remaining, instant(cup.reset_time)) == (0, tomorrow_at(cards.now, 0))
        brand.until(tomorrow_at(cards.now, 0))
    used = brand.heard(member, epb.BenefitUsed, 2)
    assert [(one.benefit_code, one.saved_minor, one.remaining) for one in used] == [("coffee", 700, 0)] * 2


def test_breakfast_costs_half_in_the_morning_alone(brand: Brand) -> None:
    cards, member = brand.cards, fresh("member")
    buy(cards, member, "breakfast-month")
    brand.until(tomorrow_at(cards.now, 8))
    morning = a_basket(cards.now, set=("breakfast-set-01", 1300), juice=("juice", 900))
    shown = quote(cards, member, morning)
    assert [line.pay_minor for line in shown.lines] == [650, 900]
    redeem(cards, member, morning, shown.saved_minor)
    confirm(cards, member, morning.order_id)
    brand.until(tomorrow_at(cards.now - timedelta(days=1), 11))
    late = a_basket(cards.now, set=("breakfast-set-01", 1300))
    assert quote(cards, member, late).saved_minor == 0


def test_what_is_delivered_is_delivered_free(brand: Brand) -> None:
    cards, member = brand.cards, fresh("member")
    buy(cards, member, "king-month")
    delivered = a_basket(cards.now, "delivery", 600, burger=("SANDWICHES", 2500))
    shown = quote(cards, member, delivered)
    assert (shown.delivery_pay_minor, shown.saved_minor) == (0, 600)
    assert quote(cards, member, a_basket(cards.now, "store", 600)).delivery_pay_minor == 600
    meal = a_basket(
        cards.now,
        burger=("SANDWICHES", 2500),
        fries=("FRZN POTATOES", 900),
        cola=("SOFT DRINKS", 700),
    )
    assert quote(cards, member, meal).saved_minor == 4100 - 1990


# --- from period to period ----------------------------------------------------------------------------


def test_who_renews_early_loses_no_day_and_who_upgrades_no_fen(brand: Brand) -> None:
    cards, member = brand.cards, fresh("member")
    first = buy(cards, member, "king-month")
    brand.until(instant(first.end_time) - timedelta(days=5))
    assert brand.heard(member, epb.CardActivated, 1)[0].renewal is False
    renewed = buy(cards, member, "king-month")
    assert renewed.segments[1].start_time == first.end_time
    assert renewed.streak == 2
    brand.until(instant(first.end_time))
    assert read_card(cards, renewed).status == pb.CARD_STATUS_ACTIVE
    upgrade = place(cards, member, "king-quarter", upgrade=pb.UPGRADE_NOW)
    assert (upgrade.credit, upgrade.amount_minor) == (1900, 3900 - 1900)  # not a day of the month is used
    card = pay(cards, upgrade).card
    assert [one.ended for one in card.segments] == [0, pb.SEGMENT_END_REPLACED, 0]
    assert [one.paid_minor for one in card.segments] == [1900, 1900, 3900]
    activated = brand.heard(member, epb.CardActivated, 3)[2]
    assert (activated.plan_id, activated.points_multiplier) == ("king-quarter", "1.2")
    assert activated.replaced_segment_ids == [card.segments[1].segment_id]


def test_a_card_is_given_back_for_what_is_left_of_it(brand: Brand) -> None:
    cards, member = brand.cards, fresh("member")
    bought = place(cards, member, "king-quarter")
    payment = a_payment(cards, bought)
    card = cards.call(cards.cards.ConfirmPayment, payment).card
    coffee = a_basket(cards.now, cup=("COFFEE", 1500))
    redeem(cards, member, coffee, 700)
    confirm(cards, member, coffee.order_id)
    days = (instant(card.end_time) - instant(card.start_time)).days
    brand.wait(days=10)
    quoted = quote_refund(cards, card)
    unused = 3900 * (days - 10) // days
    assert [(step.kind, step.amount) for step in quoted.explanation] == [
        (pb.REFUND_STEP_KIND_PAID, 3900),
        (pb.REFUND_STEP_KIND_USED_DAYS, unused - 3900),
        (pb.REFUND_STEP_KIND_USED_BENEFITS, -700),
    ]
    answer = give_back(cards, card, expected_refund_minor=quoted.refund_minor)
    assert answer.quote == quoted
    assert not entitled(cards, member)
    [due] = brand.heard(member, epb.RefundDue, 1)
    assert (due.payment_id, due.amount_minor) == (payment.payment_id, unused - 700)
    closed = pb.RecordRefundPaidRequest(
        member_id=member,
        request_id=fresh("back"),
        channel=due.channel,
        payment_id=due.payment_id,
        refund_id=fresh("refund"),
        amount_minor=due.amount_minor,
        currency_code=due.currency_code,
        refund_time=stamp(cards.now),
    )
    cards.call(cards.cards.RecordRefundPaid, closed)


def test_a_card_that_nobody_renews_is_told_of_three_days_ahead_and_ends(brand: Brand) -> None:
    cards, member = brand.cards, fresh("member")
    card = buy(cards, member, "coffee-month")
    brand.until(instant(card.end_time) - timedelta(days=3, microseconds=1))
    brand.until(instant(card.end_time) - timedelta(days=3))
    [expiring] = brand.heard(member, epb.CardExpiring, 1)
    assert (expiring.end_time, expiring.auto_renew) == (card.end_time, False)
    assert instant(expiring.occur_time) == cards.now
    brand.until(instant(card.end_time))
    [expired] = brand.heard(member, epb.CardExpired, 1)
    assert expired.end_time == card.end_time


# --- with points --------------------------------------------------------------------------------------


def test_points_buy_a_card_and_what_is_not_there_buys_none(brand: Brand) -> None:
    cards, points, member = brand.cards, brand.points, fresh("member")
    by_points: dict[str, Any] = {"pay_with": pb.PAY_WITH_POINTS}
    points.adjust(member, 1000)
    bought = place(cards, member, "coffee-month", **by_points)
    assert bought.amount_points == 990
    eventually(lambda: read_order(cards, bought).status == pb.CARD_ORDER_STATUS_PAID)
    assert set(entitled(cards, member)) == {"coffee"}
    eventually(lambda: points.balance(member).available == 10 + BONUS)  # the card's activation earns
    assert points.balance(member).held == 0
    missed = place(cards, member, "coffee-month", **by_points)
    eventually(lambda: read_order(cards, missed).status == pb.CARD_ORDER_STATUS_CANCELLED)
    assert read_order(cards, missed).end_reason == "INSUFFICIENT_POINTS"
    assert kinds(points, member) == "ADJUST HOLD CAPTURE EARN"


def test_a_card_brings_its_bonus_once_and_multiplies_what_is_earned(brand: Brand) -> None:
    cards, points, member = brand.cards, brand.points, fresh("member")
    buy(cards, member, "king-quarter")
    eventually(lambda: kinds(points, member) == "EARN")
    assert points.balance(member).available == BONUS
    made = points.earn(member, order(1000, points.now))
    assert {c.rule_id: c.amount for c in made.contributions if c.amount} == {
        "base": 10,
        "growth": 10,
        "quarter": 2,
    }
