"""One member buys cards, uses them at the till, renews, upgrades, gives back; points hear of it by event."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_events_pb2 import RefundDueReason
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.points.v1 import points_service_pb2 as points_pb

from services.cli.place import refusal
from services.cli.stories import ZONE, Patience, Scene, Stage

MEMBER = "ben"
COLUMNS = ("to pay", "points", "besides", "saved")


def play(stage: Stage) -> Iterator[Scene]:
    """Seven weeks after the month: three cards, of which one is renewed, upgraded and given back."""
    ben = _Cardholder(stage)
    yield from _one_cup_a_day(ben)
    yield from _breakfast_and_delivery(ben)
    yield from _renewed_and_upgraded(ben)
    yield from _given_back(ben)


def _one_cup_a_day(ben: _Cardholder) -> Iterator[Scene]:
    """Early coffee earns five points a yuan, of the 8.00 that are paid."""
    ben.wait_until("2017-02-01 08:00")
    buys = ben.buys("coffee-month")
    yield ben.scene("the coffee card", buys, ("9.90", "20", "02-01 to 03-01"))
    cup = ben.orders(cup=("COFFEE", 1500))
    yield ben.scene("a cup of 15.00", cup, ("8.00", "60", "coffee 7.00"))
    another = ben.insists(700, cup=("COFFEE", 1500))
    yield ben.scene("a second cup that day", another, ("15.00", "60", "QUOTE_CHANGED\nQUOTA_USED"))
    ben.wait_until("2017-02-02 08:00")
    cup = ben.orders(cup=("COFFEE", 1500))
    yield ben.scene("a cup the next day", cup, ("8.00", "100", "coffee 7.00"))


def _breakfast_and_delivery(ben: _Cardholder) -> Iterator[Scene]:
    buys = ben.buys("breakfast-month")
    yield ben.scene("the breakfast card", buys, ("19.00", "120", "02-02 to 03-02"))
    breakfast = ben.orders(set=("breakfast-set-01", 1300))
    yield ben.scene("breakfast of 13.00 at 5折", breakfast, ("6.50", "126", "breakfast-set 6.50"))
    ben.wait_until("2017-02-02 12:00")
    buys = ben.buys("king-month")
    yield ben.scene("the king card, a month", buys, ("19.00", "146", "02-02 to 03-02"))
    delivered = ben.orders(fee=600, burger=("SANDWICHES", 2500))
    yield ben.scene("25.00, delivered free", delivered, ("25.00", "171", "delivery 6.00"))


def _renewed_and_upgraded(ben: _Cardholder) -> Iterator[Scene]:
    """Renewing early loses no day. 26 of 31 days of the second month lower the price of the quarter."""
    ben.wait_until("2017-02-27 12:00")
    renews = ben.buys("king-month")
    yield ben.scene("renewed early", renews, ("19.00", "191", "03-02 to 04-02"))
    ben.wait_until("2017-03-07 12:00")
    upgrades = ben.buys("king-quarter", pb.UPGRADE_NOW)
    yield ben.scene("upgraded to a quarter", upgrades, ("23.07", "211", "03-07 to 06-07\nless 15.93"))
    lunch = ben.orders(burger=("SANDWICHES", 3200), cup=("COFFEE", 1500))
    more = "coffee 7.00\ncard-multiplier 8"
    yield ben.scene("lunch, more points", lunch, ("40.00", "259", more))


def _given_back(ben: _Cardholder) -> Iterator[Scene]:
    ben.wait_until("2017-03-17 12:00")
    back = ben.gives_back("king")
    account = "paid: 39.00\nused days 10/92: -4.24\nused benefits 1: -7.00"
    yield ben.scene("the king card given back", back, ("-27.76", "259", account))
    again = ben.would_earn(40, burger=("SANDWICHES", 4000))
    yield ben.scene("no more than others earn", again, ("40.00", "259", "would earn 40"))


class _Cardholder:
    """A member, as the brand's back end and its till act for one; each act tells what is to pay, and more."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._call, self.wait_until = stage, stage.call, stage.wait_until
        self._of_cards, self._of_points = stage.cards, stage.points
        self._numbers = itertools.count(1)
        self._redeemed = 0  # in minor units
        self._patience = Patience()

    def scene(self, what: str, said: tuple[str, str], expected: tuple[str, str, str]) -> Scene:
        """What an act told, the points once they are as expected, and what the cards say that they saved.

        The last must be the sum of what was redeemed; the rest is expected as it is written.
        """
        to_pay, besides = said
        points = self._patience.once(lambda: str(self._stage.available(MEMBER)), expected[1])
        saved = _yuan(self._saved())
        return Scene(what, (to_pay, points, besides, saved), (*expected, _yuan(self._redeemed)))

    def buys(self, product: str, upgrade: pb.Upgrade.ValueType = pb.UPGRADE_QUEUE) -> tuple[str, str]:
        """Orders a period and pays it by WeChat Pay, of which the brand tells."""
        named = self._named()
        asked = pb.PlaceOrderRequest(**named, product_code=product, upgrade=upgrade)
        order = self._call(self._of_cards.PlaceOrder, asked)
        payment = pb.ConfirmPaymentRequest(
            **self._named(),
            order_id=order.order_id,
            channel="wechat",
            payment_id=f"paid-{named['request_id']}",
            amount_minor=order.amount_minor,
            currency_code=order.currency_code,
            paid_time=self._stage.now_stamp,
        )
        answer = self._call(self._of_cards.ConfirmPayment, payment)
        if answer.outcome != pb.PAYMENT_OUTCOME_APPLIED:
            return _yuan(order.amount_minor), RefundDueReason.Name(answer.reason)
        period = answer.card.segments[-1]
        lies = f"{_day(period.start_time)} to {_day(period.end_time)}"
        return _yuan(order.amount_minor), lies + (f"\nless {_yuan(order.credit)}" if order.credit else "")

    def orders(self, fee: int = 0, **pieces: tuple[str, int]) -> tuple[str, str]:
        """Orders, pays what the cards leave of it, and earns on that. A piece is of a kind, at a price."""
        order = self._order(pieces, fee)
        quote = self._call(self._of_cards.QuoteOrder, pb.QuoteOrderRequest(member_id=MEMBER, order=order))
        redeem = pb.RedeemBenefitsRequest(
            **self._named(), order=order, expected_saved_minor=quote.saved_minor
        )
        self._call(self._of_cards.RedeemBenefits, redeem)
        confirm = pb.ConfirmRedemptionsRequest(**self._named(), order_id=order.order_id)
        final = self._call(self._of_cards.ConfirmRedemptions, confirm).redemptions
        self._redeemed += sum(one.saved_minor for one in final)
        _charge(order, quote)
        earn = points_pb.EarnPointsRequest(**self._named(), order=order)
        earned = self._call(self._of_points.EarnPoints, earn)
        uses = [f"{one.benefit_code} {_yuan(one.saved_minor)}" for one in final]
        more = [f"{c.rule_id} {c.amount}" for c in earned.contributions if c.rule_id == "card-multiplier"]
        return _yuan(order.total_minor), "\n".join([*uses, *more])

    def insists(self, shown: int, **pieces: tuple[str, int]) -> tuple[str, str]:
        """Wants an order to save what it no longer does, in minor units, and is told why not."""
        order = self._order(pieces)
        quote = self._call(self._of_cards.QuoteOrder, pb.QuoteOrderRequest(member_id=MEMBER, order=order))
        notes = [pb.QuoteNote.Name(step.note).removeprefix("QUOTE_NOTE_") for step in quote.explanation]
        redeem = pb.RedeemBenefitsRequest(**self._named(), order=order, expected_saved_minor=shown)
        try:
            self._call(self._of_cards.RedeemBenefits, redeem)
            reason = "granted"
        except grpc.RpcError as error:
            reason = refusal(error)[0].partition(":")[0]
        return _yuan(order.total_minor - quote.saved_minor), "\n".join([reason, *notes])

    def gives_back(self, family: str) -> tuple[str, str]:
        """Gives a card back for what was quoted, line by line."""
        card_id = next(card.card_id for card in self._cards() if card.family == family)
        asked = pb.QuoteRefundRequest(member_id=MEMBER, card_id=card_id)
        quote = self._call(self._of_cards.QuoteRefund, asked)
        request = pb.RefundCardRequest(
            **self._named(), card_id=card_id, expected_refund_minor=quote.refund_minor
        )
        answer = self._call(self._of_cards.RefundCard, request)
        return _yuan(-answer.quote.refund_minor), "\n".join(map(_line, quote.explanation))

    def would_earn(self, expected: int, **pieces: tuple[str, int]) -> tuple[str, str]:
        """Asks what an order would earn, once points know of the cards what gives as much as expected."""
        order = self._order(pieces)
        asked = points_pb.QuoteEarnRequest(member_id=MEMBER, order=order)
        answer = self._patience.once(
            lambda: str(self._call(self._of_points.QuoteEarn, asked).points), str(expected)
        )
        return _yuan(order.total_minor), f"would earn {answer}"

    # --- what it asks with --------------------------------------------------------------------------------

    def _named(self) -> dict[str, Any]:
        return {"member_id": MEMBER, "request_id": f"story-{next(self._numbers)}"}

    def _order(self, pieces: Mapping[str, tuple[str, int]], fee: int = 0) -> Order:
        order = Order(
            order_id=f"story-order-{next(self._numbers)}",
            channel="delivery" if fee else "store",
            currency_code="CNY",
            delivery_fee_minor=fee,
            total_minor=fee + sum(price for _, price in pieces.values()),
            paid_time=self._stage.now_stamp,
        )
        for line_id, (kind, price) in pieces.items():
            order.lines.add(line_id=line_id, sku=kind, category=kind, quantity=1, amount_minor=price)
        return order

    # --- what it has --------------------------------------------------------------------------------------

    def _cards(self) -> Sequence[pb.Card]:
        asked = pb.ListMemberCardsRequest(member_id=MEMBER)
        return self._call(self._of_cards.ListMemberCards, asked).cards

    def _saved(self) -> int:
        """What all cards say that they saved, in minor units."""
        asked = [pb.GetSavingsRequest(member_id=MEMBER, card_id=card.card_id) for card in self._cards()]
        return sum(self._call(self._of_cards.GetSavings, one).saved_minor for one in asked)


def _charge(order: Order, quote: pb.Quote) -> None:
    """Makes of an order what is paid of it."""
    for line, quoted in zip(order.lines, quote.lines, strict=True):
        line.amount_minor = quoted.pay_minor
    order.delivery_fee_minor = quote.delivery_pay_minor
    order.total_minor -= quote.saved_minor


def _line(step: pb.RefundStep) -> str:
    """A line of a refund's account."""
    name = pb.RefundStepKind.Name(step.kind).removeprefix("REFUND_STEP_KIND_").replace("_", " ").lower()
    count = f" {step.count}" if step.count else ""
    of_count = f"/{step.of_count}" if step.of_count else ""
    return f"{name}{count}{of_count}: {_yuan(step.amount)}"


def _yuan(minor: int) -> str:
    whole, rest = divmod(abs(minor), 100)
    return f"{'-' if minor < 0 else ''}{whole}.{rest:02}"


def _day(at: Timestamp) -> str:
    return at.ToDatetime(tzinfo=UTC).astimezone(ZONE).strftime("%m-%d")
