"""Members who buy cards and use them; `cards_books` holds the books against what came of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cli.house import House
from tests.cards.calls import LENIENT, a_product, an_order, instant, put, stamp
from tests.cards.requests import GOOD
from tests.cards.till import benefit
from tests.chaos.cards_books import (
    CONFIRMED,
    DUE,
    PENDING,
    POINTS_PRICE,
    PRICE,
    QUOTA,
    RESERVED,
    REVERSED,
    TABLES,
    Books,
    Wallet,
    events_of,
    settled,
)
from tests.chaos.journal import (
    SETTLE_TIMEOUT,
    Entry,
    Journal,
    owner,
    rows_of,
    snapshot,
    until,
)
from tests.chaos.parts import Part
from tests.chaos.points import announced, check_member
from tests.chaos.site import Caller
from tests.support import Cards, fresh

CAP = 20  # how many of RARE are sold a day
PLUS = a_product(
    benefit("tea", limit=QUOTA),
    code="plus",
    period="P30D",
    price_minor=PRICE,
    points_price=POINTS_PRICE,
    refund_policy=LENIENT,
    freeze_policy={"shortest_days": 0, "longest_days": 30, "count": 100},
)
RARE = a_product(code="rare", price_minor=PRICE, sales_cap={"limit": CAP, "window": "SALES_WINDOW_DAY"})

Make = Callable[[dict[str, Any], Wallet], Entry]


class CardsJournal(Journal):
    """Members who order, pay, cancel, use, rest and give back."""

    service = "cards"
    reads = frozenset({"CheckEntitlements"})

    def __init__(self, house: House, **how: Any) -> None:
        super().__init__(house, **how)
        self.wallets = {member: Wallet() for member in self.members}

    # --- the load -------------------------------------------------------------------------------------

    def _command(self, member: str) -> Entry:
        wallet = self.wallets[member]
        wishes = [(weight, make) for weight, possible, make in self._wishes(wallet) if possible]
        (make,) = self._random.choices([make for _, make in wishes], [weight for weight, _ in wishes])
        return make({"member_id": member, "request_id": fresh("r")}, wallet)

    def _wishes(self, wallet: Wallet) -> Iterator[tuple[int, bool, Make]]:
        """What a member may want: how much, and whether there is what it is about."""
        has_card = bool(wallet.card_id)
        yield 14, True, self._order
        yield 20, bool(wallet.money_orders(PENDING)), self._pay
        yield 2, bool(wallet.money_orders()), self._pay_again
        yield 2, bool(wallet.payments), self._tell_again
        yield 3, bool(wallet.orders), self._cancel
        yield 6, bool(wallet.due()), self._pay_back
        yield 10, has_card, self._check
        yield 18, has_card, self._redeem
        yield 14, bool(wallet.reserved(self._now)), self._confirm
        yield 6, bool(wallet.baskets), self._reverse
        yield 2, has_card, self._give_back
        yield 2, has_card, self._freeze
        yield 20, wallet.rests_until is not None and self._now < wallet.rests_until, self._resume

    def _order(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        dice = self._random.random()
        code = RARE.code if dice < 0.15 else PLUS.code
        pay_with = pb.PAY_WITH_POINTS if wallet.card_id and dice > 0.5 else pb.PAY_WITH_MONEY
        return Entry("PlaceOrder", pb.PlaceOrderRequest(**common, product_code=code, pay_with=pay_with))

    def _pay(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        return self._payment(common, self._random.choice(wallet.money_orders(PENDING)))

    def _pay_again(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        return self._payment(common, self._random.choice(wallet.money_orders()))

    def _payment(self, common: dict[str, Any], order: pb.CardOrder) -> Entry:
        wrong = self._random.random() < 0.1
        told = {"payment_id": fresh("p"), "amount_minor": PRICE + wrong, "paid_time": stamp(self._now)}
        return Entry("ConfirmPayment", a_payment(order, **common, **told))

    def _tell_again(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        first, _ = self._random.choice(list(wallet.payments.values()))
        again = pb.ConfirmPaymentRequest()
        again.CopyFrom(first)
        again.request_id = common["request_id"]
        return Entry("ConfirmPayment", again)

    def _cancel(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        order_id = self._random.choice(list(wallet.orders))
        return Entry("CancelOrder", pb.CancelOrderRequest(**common, order_id=order_id))

    def _pay_back(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        paid = self._random.choice(wallet.due())
        told = {
            name: getattr(paid, name) for name in ("channel", "payment_id", "amount_minor", "currency_code")
        }
        request = pb.RecordRefundPaidRequest(
            **common, **told, refund_id=fresh("refund"), refund_time=stamp(self._now)
        )
        return Entry("RecordRefundPaid", request)

    def _check(self, common: dict[str, Any], _: Wallet) -> Entry:
        return Entry("CheckEntitlements", pb.CheckEntitlementsRequest(member_id=common["member_id"]))

    def _redeem(self, common: dict[str, Any], _: Wallet) -> Entry:
        return Entry("RedeemBenefits", a_redemption(**common, pieces=self._random.randint(1, 3)))

    def _confirm(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        order_id = self._random.choice(wallet.reserved(self._now))
        return Entry("ConfirmRedemptions", pb.ConfirmRedemptionsRequest(**common, order_id=order_id))

    def _reverse(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        order_id = self._random.choice(list(wallet.baskets))
        return Entry("ReverseRedemptions", pb.ReverseRedemptionsRequest(**common, order_id=order_id))

    def _give_back(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        return Entry("RefundCard", pb.RefundCardRequest(**common, card_id=wallet.card_id))

    def _freeze(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        return Entry("FreezeCard", pb.FreezeCardRequest(**common, card_id=wallet.card_id, days=1))

    def _resume(self, common: dict[str, Any], wallet: Wallet) -> Entry:
        return Entry("ResumeCard", pb.ResumeCardRequest(**common, card_id=wallet.card_id))

    # --- what was answered ----------------------------------------------------------------------------

    def _note(self, entry: Entry) -> None:
        request, answer = entry.request, entry.answer
        wallet = self.wallets[request.member_id]
        match answer:
            case pb.CardOrder():
                wallet.orders[answer.order_id] = answer
            case pb.ConfirmPaymentResponse():
                self._note_payment(wallet, entry, answer)
            case pb.RecordRefundPaidResponse():
                wallet.paid_back[request.payment_id] = request.refund_id
            case pb.CheckEntitlementsResponse():
                left = [one.remaining for one in answer.entitlements]
                assert not left or not entry.at or left == [wallet.left(entry.at)], (left, entry.request)
            case pb.RedeemBenefitsResponse():
                taken = sum(use.uses for use in answer.redemptions)
                if entry.at:  # where the card rests, or is over, there is nothing
                    assert taken in (0, min(request.order.lines[0].quantity, wallet.left(entry.at)))
                wallet.baskets[request.order.order_id] = [use.redemption_id for use in answer.redemptions]
                wallet.uses |= {use.redemption_id: use for use in answer.redemptions}
            case pb.ConfirmRedemptionsResponse() | pb.ReverseRedemptionsResponse():
                for use in answer.redemptions:
                    before, wallet.uses[use.redemption_id] = wallet.uses[use.redemption_id], use
                    if (before.status, use.status) == (RESERVED, CONFIRMED):
                        wallet.used.append(use.redemption_id)
                    if (before.status, use.status) == (CONFIRMED, REVERSED):
                        wallet.unused.append(use.redemption_id)
            case pb.RefundCardResponse():
                wallet.given_back.append(answer)
                wallet.rests_until = None
            case pb.Card():
                rests = answer.HasField("resume_time")
                wallet.rests_until = instant(answer.resume_time) if rests else None
                wallet.freezes += rests
                wallet.resumes += not rests

    def _note_payment(self, wallet: Wallet, entry: Entry, answer: pb.ConfirmPaymentResponse) -> None:
        """A payment pays its order if it fits and comes in time; told again it gets its first answer."""
        request = entry.request
        if request.payment_id in wallet.payments:
            assert answer == wallet.payments[request.payment_id][1]
            return
        wallet.payments[request.payment_id] = (request, answer)
        order = wallet.orders[request.order_id]
        in_time = instant(request.paid_time) < instant(order.pay_deadline_time)
        if order.status == PENDING and request.amount_minor == PRICE and in_time:
            late = entry.at is None and answer.reason == epb.REFUND_DUE_REASON_SOLD_OUT
            assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED or (late and order.product_code == RARE.code)
        else:
            assert answer.outcome == DUE
        if answer.outcome == DUE:
            return
        wallet.orders[order.order_id] = answer.order
        if answer.card.family == PLUS.family:
            wallet.card_id = answer.card.card_id

    # --- the audit ------------------------------------------------------------------------------------

    async def verify(self, patience: float = SETTLE_TIMEOUT) -> Sequence[Mapping[str, Any]]:
        """Whatever points pay must have ended in `patience` seconds. Returns the events of cards."""
        back = [
            answer.quote.refund_points for wallet in self.wallets.values() for answer in wallet.given_back
        ]
        cards, points = await owner(self.house, "cards"), await owner(self.house, "points")
        try:
            await until(lambda: settled(cards, points, self.members, sum(back)), patience)
            async with snapshot(cards):
                kept = {table: await rows_of(cards, table, self.members) for table in TABLES}
                answers = await rows_of(cards, "answers", self.members)
                events = await events_of(cards, self.members, epb)
                assert (await cards.fetchval(_MOST_SOLD, RARE.code) or 0) <= CAP
            async with snapshot(points):
                ledger = await rows_of(points, "transactions", self.members, order="seq")
                holds, members = [await rows_of(points, name, self.members) for name in ("holds", "members")]
                versions = await announced(points, self.members)
        finally:
            for connection in (cards, points):
                connection.terminate()  # which cannot fail, whatever happened to it
        self._check_answers(answers)
        for member, wallet in self.wallets.items():
            books = Books(
                at=self._now,
                moved=self._now > self._began,
                kept={table: _of(member, rows) for table, rows in kept.items()},
                events=[event for whose, event, _ in events if whose == member],
                ledger=_of(member, ledger),
                holds=_of(member, holds),
            )
            books.check(wallet)
            await asyncio.sleep(0)  # others want to go on meanwhile
        for row in members:
            check_member(row, _of(row["member_id"], ledger), versions[row["member_id"]])
        return [{"member_id": member, "hash": _digest(body)} for member, _, body in events]


def _of(member: str, rows: Sequence[Any]) -> list[Any]:
    return [row for row in rows if row["member_id"] == member]


_MOST_SOLD = """
SELECT count(*) FROM orders WHERE product_code = $1 AND status IN ('PAID', 'SETTLING')
GROUP BY window_key ORDER BY 1 DESC LIMIT 1
"""


# --- what a run, and its faults, ask for ----------------------------------------------------------------


def prepare(house: House) -> None:
    """Puts on sale what the members buy."""
    with Cards(house) as cards:
        for product in (PLUS, RARE):
            put(cards, product)


async def buy(caller: Caller, member: str, at: datetime) -> None:
    """Orders a card and pays it."""
    request = pb.PlaceOrderRequest(member_id=member, request_id=fresh("r"), product_code=PLUS.code)
    order = await caller.insist("PlaceOrder", request)
    paid = {"request_id": fresh("r"), "payment_id": fresh("p"), "amount_minor": PRICE, "paid_time": stamp(at)}
    answer = await caller.insist("ConfirmPayment", a_payment(order, member_id=member, **paid))
    assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED, answer


def a_payment(order: pb.CardOrder, **told: Any) -> pb.ConfirmPaymentRequest:
    """A payment of an order."""
    return pb.ConfirmPaymentRequest(order_id=order.order_id, channel="wechat", currency_code="CNY", **told)


def a_redemption(member_id: str, pieces: int, request_id: str = "") -> pb.RedeemBenefitsRequest:
    """A request to have so many teas as the card gives them."""
    order = an_order(tea=pieces)
    return pb.RedeemBenefitsRequest(member_id=member_id, request_id=request_id or fresh("r"), order=order)


def entity(event: Any) -> tuple[str, ...]:
    """What an event counts in its version."""
    match event:
        case epb.CardOrdered() | epb.CardOrderSettled():
            return ("order", event.card_order_id)
        case epb.RefundDue():
            return ("payment", event.channel, event.payment_id)
        case epb.RewardFulfilled() | epb.FulfilmentRefused():
            return ("reward", event.reward_id)
    return ("card", event.card_id)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8).digest()


PART = Part(
    service="cards",
    prepare=prepare,
    lanes=[partial(CardsJournal, members=10), partial(CardsJournal, members=4, cancelling=True)],
    caller=Cards,
    good=list(GOOD.items()),
    entity=entity,
    link=lambda _, body: _digest(body),
)
