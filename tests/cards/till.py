"""A member at the till: the service's fold over one wallet made by hand, in a time of its own.

Commands go the way they go in the service, from due work to the events; only the locking, the loading and the
saving are left out, so the wallet keeps all there ever was. After each command the books must close.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order

from services.cards import rules
from services.cards.commands import Command, ConfirmUses, OrderRefunded, Redeem, ReverseUses, Settle
from services.cards.domain import books, cards
from services.cards.domain.books import KeptWindow
from services.cards.domain.cards import Card, Purchase
from services.cards.domain.wallet import KeptCard, KeptUse, Wallet
from services.cards.folding import Fold
from services.cards.rules import Bill, Compiled
from services.cards.steps import Scene, Terms
from services.cards.store import Seen
from services.chassis.errors import ServiceError
from services.chassis.inbox import InboxKey
from services.chassis.interceptors import validate

Announced = TypeVar("Announced", bound=Message)

ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2027, 3, 1, 4, tzinfo=UTC)  # 12:00 of a Monday in Shanghai
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
MEMBER = "member"
CARD = f"card_{0:032x}"
FEE = 500  # what a delivery costs, in minor units


def benefit(
    code: str, kind: str = "FIXED_PRICE", limit: int = 0, window: str = "DAY", **more: Any
) -> dict[str, Any]:
    """A benefit on the lines of the category that it is named after; of a price it is 8.00."""
    value = {"value": 800} if kind in ("FIXED_PRICE", "AMOUNT_OFF", "BUNDLE_PRICE") else {}
    scope = {} if kind == "FREE_DELIVERY" else {"scope": f"line.category == '{code}'"}
    quota = {"quota": {"limit": limit, "window": f"QUOTA_WINDOW_{window}"}} if limit else {}
    return {"benefit_code": code, "kind": f"BENEFIT_KIND_{kind}", **scope, **value, **quota, **more}


def product(*benefits: dict[str, Any], code: str = "coffee", **more: Any) -> pb.Product:
    """A product for 19.00 a week."""
    said = {"code": code, "version": 1, "family": "food", "currency_code": "CNY", "period": "P7D"}
    made = ParseDict({**said, "price_minor": 1900, "benefits": benefits, **more}, pb.Product())
    validate(made)
    return made


@lru_cache(maxsize=256)
def _compiled(body: bytes) -> Compiled:
    return rules.compile_product(pb.Product.FromString(body))


def basket(order_id: str, *, delivery: int = 0, price: int = 2000, **pieces: int) -> Bill:
    """An order of so many pieces by category, each category on a line of its name."""
    made = Order(order_id=order_id, currency_code="CNY", delivery_fee_minor=delivery)
    for category, quantity in pieces.items():
        made.lines.add(line_id=category, category=category, quantity=quantity, amount_minor=quantity * price)
    made.total_minor = delivery + sum(line.amount_minor for line in made.lines)
    made.paid_time.FromDatetime(NOON)
    return rules.read_order(made)


class Till:
    """One member. Time stands at `at` until it is moved."""

    def __init__(self, *products: pb.Product, at: datetime = NOON) -> None:
        self.at = at
        self.seen = Seen({MEMBER: Wallet(MEMBER)})
        self.products: dict[tuple[str, int], Compiled] = {}
        self.events: list[Message] = []
        self._numbers = itertools.count(1)
        for each in products:
            self.put(each)

    def put(self, made: pb.Product) -> None:
        """Puts a version of a product."""
        self.products[made.code, made.version] = _compiled(made.SerializeToString(deterministic=True))

    @property
    def wallet(self) -> Wallet:
        """What the member has."""
        return self.seen.wallets[MEMBER]

    @property
    def card(self) -> KeptCard:
        """The member's first card."""
        return self.wallet.cards[CARD]

    @property
    def latest(self) -> Mapping[str, int]:
        """The latest version of each product."""
        return dict(sorted(self.products))

    def window(self, benefit_code: str, key: str) -> KeptWindow:
        """What is kept of a window of the first card."""
        return self.wallet.windows.get((CARD, benefit_code, key), KeptWindow(0, 0))

    def uses(self, order_id: str) -> list[KeptUse]:
        """An order's uses, given back ones too."""
        return [kept for kept in self.wallet.uses.values() if kept.order_id == order_id]

    def buy(self, code: str = "coffee", version: int = 1) -> str:
        """Puts a period of a product on the card of its family, and says what it is called."""
        bought = self.products[code, version].product
        found = (kept for kept in self.wallet.cards.values() if kept.family == bought.family)
        kept = next(found, None) or KeptCard(
            card=Card(f"card_{len(self.wallet.cards):032x}"),
            family=bought.family,
            currency_code=bought.currency_code,
        )
        segment_id = f"seg_{sum(len(each.card.segments) for each in self.wallet.cards.values())}"
        purchase = Purchase(segment_id, code, version, bought.period, bought.grace_days, self.at, 1900)
        card = cards.extend(kept.card, purchase, self.at, ZONE)
        self.wallet.cards[kept.card_id] = replace(kept, card=card)
        return segment_id

    # --- commands -------------------------------------------------------------------------------------

    def tell(self, kind: type[Command], *, event: bool = False, **fields: Any) -> bytes:
        """Does a command, by event if so said. Raises its refusal, which leaves everything as it was."""
        request_id = fields.pop("request_id", None) or f"request-{next(self._numbers)}"
        key = InboxKey(MEMBER, "cards", "source", request_id, "STREAM", 1) if event else None
        command = kind(
            member_id=MEMBER,
            request_id=request_id,
            payload_hash=hashlib.sha256(repr((kind, sorted(fields.items()))).encode()).digest(),
            actor="test",
            event=key,
            **fields,
        )
        before = self.wallet
        fold = Fold(Scene(self.seen, self.products, self.latest, Terms(ZONE, 1, b"key"), self.at))
        answer = fold.answer(command)
        if isinstance(answer, ServiceError):
            assert self.wallet is before
            assert not fold.announcements
            raise answer
        self._hear(fold)
        self.check()
        return answer or b""

    def redeem(self, bill: Bill, expected: int = 0, **fields: Any) -> pb.RedeemBenefitsResponse:
        """Reserves what lowers an order."""
        body = self.tell(Redeem, bill=bill, expected_saved_minor=expected, **fields)
        return pb.RedeemBenefitsResponse.FromString(body)

    def confirm(self, order_id: str, **fields: Any) -> pb.ConfirmRedemptionsResponse:
        """Makes an order's uses final."""
        return pb.ConfirmRedemptionsResponse.FromString(self.tell(ConfirmUses, order_id=order_id, **fields))

    def reverse(self, order_id: str, **fields: Any) -> pb.ReverseRedemptionsResponse:
        """Gives an order's uses back."""
        return pb.ReverseRedemptionsResponse.FromString(self.tell(ReverseUses, order_id=order_id, **fields))

    def refund(self, order_id: str, refund_id: str = "refund-1", **fields: Any) -> None:
        """Tells that an order was refunded."""
        self.tell(OrderRefunded, event=True, order_id=order_id, refund_id=refund_id, **fields)

    def settle(self) -> None:
        """Has what has fallen due posted."""
        self.tell(Settle)

    def wait(self, **duration: float) -> None:
        """Lets time pass; nothing is posted."""
        self.at += timedelta(**duration)

    # --- what came of it ------------------------------------------------------------------------------

    def heard(self, kind: type[Announced]) -> list[Announced]:
        """The events of a kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def _hear(self, fold: Fold) -> None:
        for event in fold.announcements:
            name = event.subject.rpartition(".")[2]
            message: Message = getattr(epb, name).FromString(event.body)
            validate(message)
            self.events.append(message)

    def check(self) -> None:
        """Nothing is due, and the books close: windows and savings are what the uses sum up to."""
        due = self.wallet.next_due_time
        assert due is None or due > self.at
        uses = [kept.use for kept in self.wallet.uses.values()]
        assert books.windows(self.wallet.windows, uses) == []
        for kept in self.wallet.cards.values():
            mine = [use for use in uses if use.card_id == kept.card_id]
            assert books.savings(kept.card_id, kept.saved, mine) == []
