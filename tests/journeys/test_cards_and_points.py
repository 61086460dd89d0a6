"""Cards and points together: cards paid by points, what a card earns, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.orders.v1.orders_pb2 import Refund
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest, ReportOrderRefundedRequest
from loyalty.points.v1 import points_service_pb2 as points_pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub

from services.cards import audit as of_cards
from services.cli.house import House
from services.points import audit as of_points
from tests.cards.calls import (
    an_order,
    buy,
    confirm,
    entitled,
    freeze,
    give,
    give_back,
    place,
    put,
    quote_refund,
    read_order,
    redeem,
    resume,
    wait,
)
from tests.cards.till import benefit, product
from tests.chaos.deaths import FAILPOINTS
from tests.chaos.journal import CHANNEL, RETRIED, SETTLE_TIMEOUT
from tests.chaos.levers import broker, patiently
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.journeys.test_other_services import rule
from tests.points.calls import kinds
from tests.support import PROGRAMME, Cards, Points, apply_programme, defects, eventually, fresh, order

T = TypeVar("T")
DAY = timedelta(days=1)
SERVICES = ("points", "cards")
PRICE, BONUS = 300, 50  # points
RULES: dict[str, Any] = PROGRAMME | {
    "earn_rules": [
        *PROGRAMME["earn_rules"],
        rule(
            "plus",
            "'card.plus' in member.facts && member.facts['card.plus'] == '1.5'",
            multiplier="1.5",
        ),
        rule("activation", "activity.kind == 'card_activated'", fixed=BONUS),
    ]
}
PLUS = product(
    benefit("tea", limit=1),
    {"benefit_code": "more", "kind": "BENEFIT_KIND_POINTS_MULTIPLIER", "value": 1_500_000},
    code="plus", period="P30D", price_minor=3000, points_price=PRICE, upgrade_policy="UPGRADE_POLICY_NOW",
    refund_policy={"cooling_off_days": 7, "otherwise": "REFUND_RULE_PRO_RATA"},
    freeze_policy={"shortest_days": 1, "longest_days": 9, "count": 1}, gift_claim_days=10,
)  # fmt: skip
GRAND = product(
    code="grand", period="P90D", points_price=2 * PRICE, price_minor=0, upgrade_policy="UPGRADE_POLICY_NOW",
    refund_policy={"cooling_off_days": 7},
)  # fmt: skip


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """Both services. In the end the books of both close, and neither has refused what the other told."""
    with open_house(data, SERVICES, test_clock=NOON) as house:
        apply_programme(house, RULES)
        with Cards(house) as cards:
            for made in (PLUS, GRAND):
                made.ClearField("version")
                put(cards, made)
        yield house
        for service, books in (("points", of_points), ("cards", of_cards)):
            report = asyncio.run(books.audit(house.database_url(service), stream_url=house.nats.url))
            assert report.clean, report.lines
            assert [row["reason"] for row in ask(house, service, "SELECT reason FROM dead_letters")] == []
        assert not defects(house)


@pytest.fixture(scope="module")
def cards(house: House) -> Iterator[Cards]:
    """A real channel into the house."""
    with Cards(house) as cards:
        yield cards


def told(cards: Cards, member: str, kind: type[T]) -> list[T]:
    """What the cards service announced of a kind about a member."""
    query = "SELECT body FROM outbox WHERE entity_key = $1 AND subject = $2 ORDER BY position"
    rows = ask(cards.house, "cards", query, member, kind.DESCRIPTOR.full_name)  # type: ignore[attr-defined]
    return [kind.FromString(row["body"]) for row in rows]  # type: ignore[attr-defined]


def ended(cards: Cards, what: pb.CardOrder) -> pb.CardOrder:
    """An order, once it is paid or over."""
    over = (pb.CARD_ORDER_STATUS_PAID, pb.CARD_ORDER_STATUS_CANCELLED, pb.CARD_ORDER_STATUS_EXPIRED)
    eventually(lambda: read_order(cards, what).status in over)
    return read_order(cards, what)


def by_points(cards: Cards, points: Points, member: str, code: str = "plus", **how: Any) -> pb.CardOrder:
    """Buys a period for points that the member has; returns once the points service knows of it."""
    before = kinds(points, member).split()
    paid = ended(cards, place(cards, member, code, pay_with=pb.PAY_WITH_POINTS, **how))
    assert paid.status == pb.CARD_ORDER_STATUS_PAID
    eventually(lambda: kinds(points, member).split() == [*before, "HOLD", "CAPTURE", "EARN"])
    return paid


def worth(points: Points, member: str, at: datetime) -> int:
    """The points that an order of ten yuan earns."""
    request = points_pb.QuoteEarnRequest(member_id=member, order=order(1000, at))
    return points.call(points.points.QuoteEarn, request).points


# --- a card paid by points ----------------------------------------------------------------------------


def test_points_pay_a_card_and_the_card_brings_its_bonus_once(cards: Cards, points: Points) -> None:
    member = fresh("member")
    points.adjust(member, PRICE)
    paid = by_points(cards, points, member)
    (activated,) = told(cards, member, epb.CardActivated)
    assert (activated.paid_points, activated.card_order_id) == (PRICE, paid.order_id)
    balance = points.balance(member)
    assert (balance.available, balance.held, balance.lifetime_earned) == (BONUS, 0, BONUS)
    assert entitled(cards, member)["tea"].remaining == 1


def test_too_few_points_buy_nothing_and_stay(cards: Cards, points: Points) -> None:
    member = fresh("member")
    points.adjust(member, PRICE - 1)
    what = ended(cards, place(cards, member, "plus", pay_with=pb.PAY_WITH_POINTS))
    assert (what.status, what.end_reason) == (pb.CARD_ORDER_STATUS_CANCELLED, "INSUFFICIENT_POINTS")
    assert kinds(points, member) == "ADJUST"
    assert told(cards, member, epb.CardActivated) == []


def test_a_member_without_points_at_all_is_told_so(cards: Cards) -> None:
    what = ended(cards, place(cards, fresh("member"), "plus", pay_with=pb.PAY_WITH_POINTS))
    assert (what.status, what.end_reason) == (pb.CARD_ORDER_STATUS_CANCELLED, "INSUFFICIENT_POINTS")


@pytest.mark.parametrize(
    ("late", "history"),
    [(timedelta(minutes=15), "ADJUST HOLD RELEASE"), (2 * DAY, "ADJUST")],
    ids=["after the deadline", "after the time to hold them"],
)
def test_points_that_are_asked_for_too_late_stay_with_the_member(
    cards: Cards, points: Points, late: timedelta, history: str
) -> None:
    member, house = fresh("member"), cards.house
    points.adjust(member, PRICE)
    house.process("points").stop()
    what = place(cards, member, "plus", pay_with=pb.PAY_WITH_POINTS)
    wait(cards, seconds=late.total_seconds())
    house.start_service("points")
    house.wait_ready("points")
    eventually(lambda: _through(house, what.order_id))
    with Points(house) as anew:
        eventually(lambda: kinds(anew, member) == history)
        assert anew.balance(member).available == PRICE
    assert read_order(cards, what).status == pb.CARD_ORDER_STATUS_EXPIRED
    assert told(cards, member, epb.CardActivated) == []


def _through(house: House, order_id: str) -> bool:
    """Whether the points service has answered an order of a card, however."""
    query = """SELECT FROM outbox WHERE subject ~ '[.]Hold(Placed|Refused)$'
        AND position(convert_to($1, 'UTF8') IN body) > 0"""
    return bool(ask(house, "points", query, order_id))


# --- what a card is good for --------------------------------------------------------------------------


def test_a_period_brings_its_bonus_once_and_so_does_the_next(cards: Cards, points: Points) -> None:
    member = fresh("member")
    for number in (1, 2):
        buy(cards, member, "plus")
        eventually(lambda number=number: _available(points, member) == number * BONUS)  # type: ignore[misc]
    assert kinds(points, member) == "EARN EARN"


def _available(points: Points, member: str) -> int:
    request = points_pb.BatchGetBalancesRequest(member_ids=[member])
    balances = points.call(points.points.BatchGetBalances, request).balances
    return balances[0].available if balances else 0


def test_a_cards_multiplier_reaches_the_rules_while_the_card_holds(cards: Cards, points: Points) -> None:
    member = fresh("member")
    assert worth(points, member, cards.now) == 10
    card = buy(cards, member, "plus")
    eventually(lambda: worth(points, member, cards.now) == 15)
    freeze(cards, card)
    eventually(lambda: worth(points, member, cards.now) == 10)
    wait(cards, days=1)
    resume(cards, card)
    eventually(lambda: worth(points, member, cards.now) == 15)
    give_back(cards, card)
    eventually(lambda: worth(points, member, cards.now) == 10)


def test_a_card_that_ended_by_itself_multiplies_nothing(cards: Cards, points: Points) -> None:
    member = fresh("member")
    buy(cards, member, "plus")
    eventually(lambda: worth(points, member, cards.now) == 15)
    wait(cards, days=30)
    assert worth(points, member, cards.now) == 10


# --- what comes back ----------------------------------------------------------------------------------


def test_a_card_given_back_returns_its_points_once(cards: Cards, points: Points) -> None:
    member = fresh("member")
    points.adjust(member, PRICE)
    paid = by_points(cards, points, member)
    card = pb.Card(member_id=member, card_id=paid.card_id)
    assert quote_refund(cards, card).refund_points == PRICE
    request_id = fresh("refund")
    for _ in range(2):
        give_back(cards, card, request_id, expected_refund_points=PRICE)
    eventually(lambda: kinds(points, member) == "ADJUST HOLD CAPTURE EARN REVERSE")
    balance = points.balance(member)
    assert (balance.available, balance.lifetime_earned) == (PRICE + BONUS, BONUS)
    # It was the points of that order, so buying it again is as it was before.
    by_points(cards, points, member)
    assert points.balance(member).available == 2 * BONUS


def test_a_gift_that_nobody_claims_gives_its_points_back(cards: Cards, points: Points) -> None:
    member = fresh("member")
    points.adjust(member, PRICE + 20)
    given = give(cards, member, PLUS, pay_with=pb.PAY_WITH_POINTS)
    assert ended(cards, given.order).status == pb.CARD_ORDER_STATUS_PAID
    assert points.balance(member).available == 20
    wait(cards, days=10)
    eventually(lambda: points.balance(member).available == PRICE + 20)


def test_what_is_left_of_a_used_card_is_what_comes_back(cards: Cards, points: Points) -> None:
    member = fresh("member")
    points.adjust(member, PRICE)
    paid = by_points(cards, points, member)
    wait(cards, days=15)
    card = pb.Card(member_id=member, card_id=paid.card_id)
    give_back(cards, card)
    eventually(lambda: kinds(points, member).endswith("REVERSE"))
    assert points.balance(member).available == PRICE // 2 + BONUS


def test_an_upgrade_given_back_returns_the_points_of_both(cards: Cards, points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 2 * PRICE)
    by_points(cards, points, member)
    paid = by_points(cards, points, member, "grand", upgrade=pb.UPGRADE_NOW)
    assert (paid.credit, paid.amount_points) == (PRICE, PRICE)
    give_back(cards, pb.Card(member_id=member, card_id=paid.card_id))
    eventually(lambda: kinds(points, member).endswith("REVERSE REVERSE"))
    assert points.balance(member).available == 2 * PRICE + 2 * BONUS


def test_a_refund_that_the_brand_reports_undoes_the_earn_and_the_uses(cards: Cards, points: Points) -> None:
    member, what = fresh("member"), an_order(tea=1, cake=1)
    buy(cards, member, "plus")
    what.paid_time.FromDatetime(cards.now)
    redeem(cards, member, what, 1200)
    confirm(cards, member, what.order_id)
    request = ReportOrderPaidRequest(member_id=member, request_id=fresh("paid"), order=what)
    points.call(points.orders.ReportOrderPaid, request)
    eventually(lambda: _available(points, member) == BONUS + 60)  # 40 yuan at half as much again
    assert entitled(cards, member)["tea"].remaining == 0
    refund = Refund(order_id=what.order_id, refund_id=fresh("refund"))
    refund.refund_time.FromDatetime(cards.now)
    refund.lines.lines.add(line_id="tea", amount_minor=800)
    report = ReportOrderRefundedRequest(member_id=member, request_id=fresh("refunded"), refund=refund)
    for _ in range(2):
        points.call(points.orders.ReportOrderRefunded, report)
    eventually(lambda: entitled(cards, member)["tea"].remaining == 1)
    eventually(lambda: _available(points, member) == BONUS + 48)
    (reversed_,) = told(cards, member, epb.BenefitReversed)
    assert reversed_.reason == epb.BENEFIT_REVERSE_REASON_ORDER_REFUNDED


# --- whoever dies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", FAILPOINTS)
async def test_a_card_is_paid_whole_or_not_at_all_whatever_point_both_services_are_killed_at(
    house: House, point: str
) -> None:
    for service in SERVICES:
        await asyncio.to_thread(house.process(service).stop)
    await _lapse(house)
    for service in SERVICES:  # not waited for: each may well die of the first thing it does
        await asyncio.to_thread(house.start_service, service, failpoint=point)
    rich, poor = ([fresh(kind) for _ in range(6)] for kind in ("rich", "poor"))
    buying = asyncio.create_task(_all_buy(house, rich, poor))
    await asyncio.gather(*(_dies_once(house, service) for service in SERVICES))
    await patiently(lambda: _redeliver(house))
    await buying
    await _until(lambda: _open(house, [*rich, *poor]) == 0)
    await _until(lambda: _ledgers(house, rich) == {"ADJUST HOLD CAPTURE EARN"})
    assert await asyncio.to_thread(_ledgers, house, poor) == {"ADJUST"}
    bought = await asyncio.to_thread(_cards, house, [*rich, *poor])
    assert bought == [(member, PRICE) for member in sorted(rich)]


async def _dies_once(house: House, service: str) -> None:
    """Waits until a service dies of its failpoint, and starts it again without one."""
    assert await asyncio.to_thread(house.process(service).wait, SETTLE_TIMEOUT) == 128 + 9
    await asyncio.to_thread(house.process(service).stop)  # it is dead, but still held
    await asyncio.to_thread(house.start_service, service)
    await asyncio.to_thread(house.wait_ready, service)
    await _lapse(house)


async def _all_buy(house: House, rich: Sequence[str], poor: Sequence[str]) -> None:
    """Each member gets points, then orders a card for points; whoever is not answered asks again."""
    addresses = house.describe()
    async with (
        grpc.aio.insecure_channel(addresses["points"]["grpc"], options=CHANNEL) as to_points,
        grpc.aio.insecure_channel(addresses["cards"]["grpc"], options=CHANNEL) as to_cards,
    ):
        adjust, place = PointsServiceStub(to_points).AdjustPoints, CardsServiceStub(to_cards).PlaceOrder

        async def buys(member: str, amount: int) -> None:
            given = points_pb.AdjustPointsRequest(
                member_id=member,
                request_id="gift",
                unit=points_pb.UNIT_POINTS,
                amount=amount,
                reason="a test",
            )
            await _insist(adjust, given)
            asked = pb.PlaceOrderRequest(
                member_id=member, request_id="buy", product_code="plus", pay_with=pb.PAY_WITH_POINTS
            )
            await _insist(place, asked)

        members = [*((member, PRICE) for member in rich), *((member, PRICE - 1) for member in poor)]
        await asyncio.gather(*(buys(member, amount) for member, amount in members))


async def _insist(method: Any, request: Any) -> None:
    """Asks until there is an answer."""
    async with asyncio.timeout(SETTLE_TIMEOUT):
        while True:
            try:
                await method(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED:
                    raise
                await asyncio.sleep(0.05)
            else:
                return


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_TIMEOUT):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - it lies in other processes
            await asyncio.sleep(0.1)


async def _lapse(house: House) -> None:
    """Lets the leases end, as six seconds of silence would."""
    for service in SERVICES:
        await asyncio.to_thread(
            ask, house, service, "UPDATE jobs SET lease_until = now() - interval '1 second'"
        )


async def _redeliver(house: House) -> None:
    """Has JetStream deliver again at once what was left unacknowledged."""
    async with broker(house) as client:
        stream = client.jetstream()
        for name, consumer in (("CARDS", "points"), ("POINTS", "points"), ("POINTS", "cards")):
            config = (await stream.consumer_info(name, consumer)).config
            config.ack_wait = 1.0
            await stream.add_consumer(name, config)


def _open(house: House, members: Sequence[str]) -> int:
    query = (
        "SELECT count(*) FROM orders WHERE member_id = ANY($1) AND status IN ('PENDING_PAYMENT', 'SETTLING')"
    )
    ((count,),) = ask(house, "cards", query, list(members))
    return int(count)


def _ledgers(house: House, members: Sequence[str]) -> set[str]:
    """What is in the members' ledgers, oldest first."""
    query = """SELECT string_agg(kind, ' ' ORDER BY seq) AS kinds FROM transactions
        WHERE member_id = ANY($1) GROUP BY member_id"""
    return {row["kinds"] for row in ask(house, "points", query, list(members))}


def _cards(house: House, members: Sequence[str]) -> list[tuple[str, int]]:
    """The members' periods, and what they cost in points."""
    query = "SELECT member_id, paid_points FROM segments WHERE member_id = ANY($1) ORDER BY member_id"
    return [tuple(row) for row in ask(house, "cards", query, list(members))]
