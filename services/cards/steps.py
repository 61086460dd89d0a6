"""One command, done to a working copy of its member's wallet: what it changes, takes and announces.

What can be done is functions over a `Step`, by command (`folding.HANDLERS`): `selling` for orders, gifts and
payments, on `orders`; `chains` for cards, `using` for benefits, `renewing` for renewals. What the clock will
ask for, `orders`, `using`, `chains` and `renewing` say in `upcoming`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from services.cards.commands import Command
from services.cards.domain.cards import Segment
from services.cards.domain.places import Places
from services.cards.domain.products import Product
from services.cards.domain.wallet import (
    Basket,
    GiftClaim,
    KeptCard,
    KeptOrder,
    KeptPayment,
    KeptRenewal,
    KeptUse,
    PaymentClaim,
    PaymentName,
    Reward,
    Slot,
)
from services.cards.errors import CardOrderUnknown, CardUnknown, ProductUnknown
from services.cards.rules import Compiled
from services.cards.store import Seen
from services.chassis import outbox

Kept = KeptCard | KeptOrder | KeptPayment | KeptUse | KeptRenewal | Basket | Reward
Counted = TypeVar("Counted", KeptCard, KeptOrder, KeptPayment, Reward)
WindowName = tuple[str, str]
"""Product, and the key of its sales cap's window."""
SlotName = tuple[str, str, int]
"""The same, and the number of a place."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a deployment goes by."""

    zone: ZoneInfo
    epoch: int
    gift_code_key: bytes


@dataclass(slots=True)
class Scene:
    """What the commands of a batch see: the locked state, the products that it may need, and the time."""

    seen: Seen
    compiled: Mapping[tuple[str, int], Compiled]
    """By code and version."""
    latest: Mapping[str, int]
    """The latest version of products that may be bought, by code."""
    terms: Terms
    at: datetime
    places: dict[WindowName, Places] = field(default_factory=dict)
    """Of the sales caps that were looked at, as the slots that are seen say."""


class Step:
    """What one command does; all of it is dropped if the command is refused."""

    def __init__(self, scene: Scene, command: Command) -> None:
        self.scene = scene
        self.command = command
        self.at = scene.at
        self.zone = scene.terms.zone
        self.wallet = scene.seen.wallets[command.member_id].copy()
        # What it changes of what members share; a slot that is given back is None.
        self.payment_claims: dict[PaymentName, PaymentClaim] = {}
        self.gifts: dict[bytes, GiftClaim] = {}
        self.slots: dict[SlotName, Slot | None] = {}
        self.places: dict[WindowName, Places] = {}
        self.events: list[outbox.Event] = []

    # --- what there is --------------------------------------------------------------------------------

    def card(self, card_id: str) -> KeptCard:
        """A card of the member. Raises CardUnknown."""
        kept = self.wallet.cards.get(card_id)
        if kept is None:
            raise CardUnknown(card_id=card_id)
        return kept

    def card_of(self, family: str) -> KeptCard | None:
        """The member's card of a family."""
        return next((kept for kept in self.wallet.cards.values() if kept.family == family), None)

    def order(self, order_id: str) -> KeptOrder:
        """An order of the member. Raises CardOrderUnknown."""
        kept = self.wallet.orders.get(order_id)
        if kept is None:
            raise CardOrderUnknown(order_id=order_id)
        return kept

    def compiled(self, code: str, version: int = 0) -> Compiled:
        """A version of a product; without one the latest. Raises ProductUnknown."""
        found = self.scene.compiled.get((code, version or self.scene.latest.get(code, 0)))
        if found is None:
            raise ProductUnknown(code=code)
        return found

    def product(self, code: str, version: int = 0) -> Product:
        """A version of a product; without one the latest. Raises ProductUnknown."""
        return self.compiled(code, version).product

    def product_of(self, segment: Segment) -> Product:
        """What a period was bought as."""
        return self.product(segment.product_code, segment.product_version)

    def gift(self, code_hash: bytes) -> GiftClaim | None:
        """A gift, by the hash of its code."""
        return self.gifts.get(code_hash) or self.scene.seen.gifts.get(code_hash)

    # --- what is done ---------------------------------------------------------------------------------

    def keep(self, record: Kept) -> None:
        """Puts a record in the place of the one before it."""
        wallet = self.wallet
        match record:
            case KeptCard():
                wallet.cards[record.card_id] = record
            case KeptOrder():
                wallet.orders[record.order_id] = record
            case KeptPayment():
                wallet.payments[record.name] = record
            case KeptUse():
                wallet.uses[record.redemption_id] = record
            case KeptRenewal():
                wallet.renewals[record.renewal_id] = record
            case Basket():
                wallet.baskets[record.order_id] = record
            case Reward():
                wallet.rewards[record.reward_id] = record

    def announce(
        self, record: Counted, make: outbox.Make, what: Any, occur: datetime | None = None
    ) -> Counted:
        """Announces something about a record, which counts its events, and keeps and returns it counted.

        `occur` is when it happened, where that was before now.
        """
        counted = replace(record, version=record.version + 1)
        about = outbox.About(
            self.wallet.member_id,
            occur or self.at,
            self.scene.terms.epoch,
            counted.version,
            self.command.traceparent,
        )
        self.events.append(make(about, what))
        self.keep(counted)
        return counted
