"""A shop of cards: the service's fold over the wallets of some members, in a time of its own.

Commands go the way they go in the service, from due work to the events; only the locking, the loading and the
saving are left out. After each command the books must close.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.message import Message
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import codes, messages
from services.cards.commands import (
    ActivateGift,
    Command,
    ConfirmPayment,
    FreezeCard,
    GiftOrder,
    HoldCaptured,
    HoldPlaced,
    PlaceOrder,
    RefundCard,
    ResumeCard,
    ReturnGift,
    Settle,
)
from services.cards.domain import books
from services.cards.domain.payments import OrderStatus, Payment, RefundReason
from services.cards.domain.wallet import KeptCard, KeptOrder, Wallet
from services.cards.folding import Answer, Fold
from services.cards.rules import Compiled, compile_product
from services.cards.steps import Scene, Terms
from services.cards.store import Seen
from services.chassis.answers import Done
from services.chassis.errors import ServiceError
from services.chassis.inbox import InboxKey
from services.chassis.interceptors import validate
from tests.cards.till import NOON, ZONE, benefit, product

Announced = TypeVar("Announced", bound=Message)

ANN, BEN, CEM = "ann", "ben", "cem"
TERMS = Terms(ZONE, 1, b"a key of the tests")
LENIENT = {"cooling_off_days": 7, "otherwise": "REFUND_RULE_PRO_RATA"}
RESTS = {"shortest_days": 1, "longest_days": 30, "count": 2}

COFFEE = product(
    benefit("tea", limit=2),
    code="coffee", period="P30D", price_minor=3000, points_price=300, upgrade_policy="UPGRADE_POLICY_NOW",
    refund_policy=LENIENT, freeze_policy=RESTS, gift_claim_days=10,
)  # fmt: skip
FEAST = product(
    code="feast", period="P30D", price_minor=9000, points_price=900, upgrade_policy="UPGRADE_POLICY_NOW",
    refund_policy=LENIENT, freeze_policy=RESTS,
)  # fmt: skip
TASTE = product(code="taste", period="P1D", price_minor=100)
SCARCE = product(
    code="scarce", family="rare", period="P1M", price_minor=5000, points_price=500, gift_claim_days=10,
    sales_cap={"limit": 2, "window": "SALES_WINDOW_YEAR"},
)  # fmt: skip
SHELF = (COFFEE, FEAST, TASTE, SCARCE)


@lru_cache(maxsize=256)
def _compiled(body: bytes) -> Compiled:
    return compile_product(pb.Product.FromString(body))


class Shop:
    """Members, and everything that happened to them. Time stands at `at` until it is moved."""

    def __init__(self, *products: pb.Product, members: tuple[str, ...] = (ANN, BEN, CEM)) -> None:
        self.at = NOON
        self.seen = Seen({member: Wallet(member) for member in members})
        self.products: dict[tuple[str, int], Compiled] = {}
        self.events: dict[str, list[Message]] = {member: [] for member in members}
        self._versions: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        for made in products or SHELF:
            self.put(made)

    def put(self, made: pb.Product) -> None:
        """Puts a version of a product."""
        self.products[made.code, made.version] = _compiled(made.SerializeToString(deterministic=True))

    def copy(self) -> Shop:
        """The same shop, in which something else may happen from now on."""
        other = Shop.__new__(Shop)
        other.at, other.products = self.at, self.products
        other.seen = replace(
            self.seen,
            wallets={member: wallet.copy() for member, wallet in self.seen.wallets.items()},
            done=Done(dict(self.seen.done.answers), set(self.seen.done.events)),
            payment_claims=dict(self.seen.payment_claims),
            gifts=dict(self.seen.gifts),
            slots=dict(self.seen.slots),
        )
        other.events = {member: list(told) for member, told in self.events.items()}
        other._versions, other._numbers = Counter(self._versions), itertools.count(10**9)
        return other

    # --- commands -------------------------------------------------------------------------------------

    def answer(self, kind: type[Command], member: str = ANN, **fields: Any) -> Answer:
        """Does a command, by event if so said, and gives what the fold gives."""
        number = next(self._numbers)
        request_id = fields.pop("request_id", None) or f"request-{number}"
        by_event = fields.pop("by_event", False)
        command = kind(
            member_id=member,
            request_id=request_id,
            payload_hash=hashlib.sha256(repr((kind, sorted(fields.items()))).encode()).digest(),
            actor="test",
            event=InboxKey(member, "cards", "source", f"event-{number}", "S", number) if by_event else None,
            **fields,
        )
        answer, told = self.apply(command)
        for message in told:
            self._hear(member, message)
        self.check()
        return answer

    def apply(self, command: Command) -> tuple[Answer, list[Message]]:
        """Folds a command over what there is; answers it, and says what was announced."""
        fold = Fold(Scene(self.seen, self.products, dict(sorted(self.products)), TERMS, self.at))
        before, answered = dict(self.seen.wallets), dict(self.seen.done.answers)
        answer = fold.answer(command)
        if isinstance(answer, ServiceError):
            assert self.seen.wallets == before
            assert not fold.announcements
            assert self.seen.done.answers == answered
        return answer, [read_event(event.subject, event.body) for event in fold.announcements]

    def do(self, kind: type[Command], member: str = ANN, **fields: Any) -> bytes:
        """Does a command; raises its refusal."""
        answer = self.answer(kind, member, **fields)
        if isinstance(answer, ServiceError):
            raise answer
        return answer or b""

    def order(self, code: str = "coffee", member: str = ANN, **fields: Any) -> pb.CardOrder:
        """Orders a period."""
        return pb.CardOrder.FromString(self.do(PlaceOrder, member, product_code=code, **fields))

    def gift(self, code: str = "coffee", member: str = ANN, **fields: Any) -> pb.GiftCardResponse:
        """Orders a period for somebody else."""
        return pb.GiftCardResponse.FromString(self.do(GiftOrder, member, product_code=code, **fields))

    def pay(
        self,
        order: pb.CardOrder,
        *,
        payment_id: str = "",
        amount: int | None = None,
        paid: datetime | None = None,
        **fields: Any,
    ) -> pb.ConfirmPaymentResponse:
        """Tells of a payment: by default of what the order costs, now, by who ordered."""
        payment = Payment(
            order.amount_minor if amount is None else amount, order.currency_code or "CNY", paid or self.at
        )
        told = {"order_id": order.order_id, "channel": "wechat", "payment": payment, **fields}
        told["payment_id"] = payment_id or f"payment-{next(self._numbers)}"
        member = told.pop("member", order.member_id)
        return pb.ConfirmPaymentResponse.FromString(self.do(ConfirmPayment, member, **told))

    def buy(self, code: str = "coffee", member: str = ANN, **fields: Any) -> pb.Card:
        """Orders and pays a period."""
        answer = self.pay(self.order(code, member, **fields))
        assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED
        return answer.card

    def hold(self, order: pb.CardOrder) -> None:
        """Has the points of an order set aside."""
        self.do(HoldPlaced, order.member_id, order_id=order.order_id, by_event=True)

    def capture(self, order: pb.CardOrder) -> None:
        """Has the points of an order spent."""
        self.do(HoldCaptured, order.member_id, order_id=order.order_id, capture_time=self.at, by_event=True)

    def claim(self, gift: pb.GiftCardResponse, member: str) -> pb.Card:
        """Claims a gift by its code."""
        code = codes.make(TERMS.gift_code_key, gift.order.order_id)
        return pb.Card.FromString(self.do(ActivateGift, member, code_hash=codes.hash_of(code)))

    def give_back(
        self, card: pb.Card, minor: int = 0, points: int = 0, **fields: Any
    ) -> pb.RefundCardResponse:
        """Gives a card back, for what was shown or more."""
        body = self.do(
            RefundCard,
            card.member_id,
            card_id=card.card_id,
            expected_minor=minor,
            expected_points=points,
            **fields,
        )
        return pb.RefundCardResponse.FromString(body)

    def freeze(self, card: pb.Card, days: int) -> pb.Card:
        """Rests a card."""
        return pb.Card.FromString(self.do(FreezeCard, card.member_id, card_id=card.card_id, days=days))

    def resume(self, card: pb.Card) -> pb.Card:
        """Ends a rest."""
        return pb.Card.FromString(self.do(ResumeCard, card.member_id, card_id=card.card_id))

    def settle(self) -> None:
        """Has what has fallen due posted, as the sweeps do."""
        for member in self.seen.wallets:
            self.do(Settle, member)
        for gift in list(self.seen.gifts.values()):
            if gift.paid and not gift.claimed_by and not gift.refunded and gift.claim_until <= self.at:
                self.do(ReturnGift, gift.giver_id, order_id=gift.order_id)

    def wait(self, **duration: float) -> None:
        """Lets time pass, and what falls due be posted."""
        self.at += timedelta(**duration)
        self.settle()

    # --- what came of it ------------------------------------------------------------------------------

    def wallet(self, member: str = ANN) -> Wallet:
        """What a member has."""
        return self.seen.wallets[member]

    def kept(self, family: str = "food", member: str = ANN) -> KeptCard:
        """The member's card of a family."""
        return next(kept for kept in self.wallet(member).cards.values() if kept.family == family)

    def card(self, family: str = "food", member: str = ANN) -> pb.Card:
        """The member's card of a family, as the contract shows it."""
        return messages.card(member, self.kept(family, member), self.at, ZONE)

    def kept_order(self, order: pb.CardOrder) -> KeptOrder:
        """An order as it is kept."""
        return self.wallet(order.member_id).orders[order.order_id]

    def status(self, order: pb.CardOrder) -> OrderStatus:
        """Where an order stands."""
        return self.kept_order(order).order.status_at(self.at)

    def heard(self, kind: type[Announced], member: str = ANN) -> list[Announced]:
        """The events of a kind about a member, in order."""
        return [event for event in self.events[member] if isinstance(event, kind)]

    def _hear(self, member: str, message: Any) -> None:
        """Events are well-formed, and those about one thing are numbered without a gap."""
        validate(message)
        self.events[member].append(message)
        about = _about(message)
        self._versions[about] += 1
        assert message.version == self._versions[about], message
        assert message.occur_time.ToMicroseconds() <= self.at.timestamp() * 1_000_000

    # --- what is always true --------------------------------------------------------------------------

    def check(self) -> None:
        """Periods do not overlap, uses and money add up, and no cap is passed."""
        for wallet in self.seen.wallets.values():
            uses = [kept.use for kept in wallet.uses.values()]
            assert books.windows(wallet.windows, uses) == []
            for kept in wallet.cards.values():
                assert books.overlapping(kept.card_id, kept.card.segments) == []
                mine = [use for use in uses if use.card_id == kept.card_id]
                assert books.savings(kept.card_id, kept.saved, mine) == []
            self._check_money(wallet)
            self._check_points(wallet)
        for slot in self.seen.slots.values():
            cap = self.products[slot.product_code, 1].product.sales_cap
            assert cap is not None
            assert 1 <= slot.number <= cap[0]

    def _check_money(self, wallet: Wallet) -> None:
        payments = wallet.payments.values()
        paid = {o.order_id: o for o in wallet.orders.values() if o.order.status is OrderStatus.PAID}
        given_back = sum(p.due for p in payments if p.reason is RefundReason.CARD_REFUNDED)
        gifts = sum(o.order.amount_minor for o in paid.values() if o.gift)
        periods = sum(s.paid_minor for kept in wallet.cards.values() for s in kept.card.segments)
        assert (
            books.money(
                wallet.member_id,
                books.Money(
                    received=sum(p.payment.amount_minor for p in payments),
                    segments=periods + gifts - given_back,
                    credits=-sum(o.credit for o in paid.values() if not o.order.by_points),
                    refunds=given_back,
                    refund_due=sum(p.due for p in payments if not p.applied),
                ),
            )
            == []
        )
        for payment in payments:
            assert 0 <= payment.due <= payment.payment.amount_minor
            assert (payment.due == payment.payment.amount_minor) or payment.applied
            if payment.applied:
                assert payment.order_id in paid
        told = sum(event.amount_minor for event in self.heard(epb.RefundDue, wallet.member_id))
        assert told == sum(p.due for p in payments)

    @staticmethod
    def _check_points(wallet: Wallet) -> None:
        paid = [
            o for o in wallet.orders.values()
            if o.order.status is OrderStatus.PAID and o.order.by_points and not o.gift
        ]  # fmt: skip
        periods = sum(s.paid_points for kept in wallet.cards.values() for s in kept.card.segments)
        assert periods == sum(o.order.amount_points + o.credit for o in paid)


def read_event(subject: str, body: bytes) -> Message:
    """An event as it was announced."""
    kind = getattr(epb, subject.rpartition(".")[2])
    message: Message = kind.FromString(body)
    return message


def _about(message: Any) -> str:
    """What an event counts in its version."""
    if isinstance(message, epb.CardOrdered | epb.CardOrderSettled):
        return str(message.card_order_id)
    if isinstance(message, epb.RefundDue):
        return f"{message.channel} {message.payment_id}"
    if isinstance(message, epb.RewardFulfilled | epb.FulfilmentRefused):
        return f"reward {message.reward_id}"
    return str(message.card_id)
