"""What a member has of cards: everything that a write may depend on, as it is kept.

The records never change; a change replaces one. So what a batch did is what is no longer the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.cards.domain.books import KeptWindow, WindowName
from services.cards.domain.cards import Card
from services.cards.domain.payments import Order, Payment, RefundReason
from services.cards.domain.quotas import Use
from services.cards.domain.renewals import Renewal


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a member signed: that a card is renewed, period by period, until that is cancelled."""

    contract_id: str
    """The pay channel's id of it."""
    product_code: str
    """What is bought each time."""
    sign_time: datetime
    until: datetime | None = None
    """It ends at this instant, unless the renewal that is open was charged; None while the card rests."""

    def holds(self, at: datetime) -> bool:
        """Whether the card will be renewed, as far as is known."""
        return self.until is None or at < self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCard:
    """A member's card of a family, with what is kept beside its periods."""

    card: Card
    family: str
    currency_code: str
    version: int = 0
    """Events about it."""
    saved: Mapping[str, int] = field(default_factory=dict)
    """What each period saved, in minor units."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What each period comes from: the order, or the reward, by its id."""
    expiring_told: datetime | None = None
    """The end that CardExpiring was told of."""
    expired_told: datetime | None = None
    """The end that CardExpired was told of."""
    contract: Contract | None = None
    """Under which it is renewed; None where no renewal is signed."""

    @property
    def card_id(self) -> str:
        """Its id."""
        return self.card.card_id

    def renews(self, at: datetime) -> bool:
        """Whether a renewal is signed at an instant."""
        return self.contract is not None and self.contract.holds(at)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOrder:
    """An order, with what is kept beside where it stands."""

    order_id: str
    order: Order
    product_code: str
    product_version: int
    family: str
    create_time: datetime
    upgrade_now: bool = False
    credit: int = 0
    """The value of the unused days that an upgrade ends, as the order is paid: minor units or points."""
    card_id: str = ""
    renewal_id: str = ""
    gift: bool = False
    window_key: str = ""
    """The window of the sales cap that it has a place in; empty without a cap."""
    capped: bool = False
    version: int = 0
    """Events about it."""


PaymentName = tuple[str, str]
"""Channel, and the channel's id of the payment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPayment:
    """A payment that was told. `due` is what of it has to be paid back, in minor units."""

    channel: str
    payment_id: str
    order_id: str
    payment: Payment
    applied: bool
    reason: RefundReason | None = None
    due: int = 0
    due_time: datetime | None = None
    """Since when it is due."""
    refund_id: str = ""
    """The channel's id of the refund; empty while what is due was not paid back."""
    closed: datetime | None = None
    version: int = 0
    """Events about it."""
    create_time: datetime

    @property
    def name(self) -> PaymentName:
        """What it is called."""
        return (self.channel, self.payment_id)


class UseEnding(StrEnum):
    """Why a use was reversed."""

    LAPSED = "LAPSED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptUse:
    """A redemption."""

    redemption_id: str
    order_id: str
    use: Use
    lines: Mapping[str, int]
    """Pieces by line that it is on; empty for a delivery."""
    currency_code: str
    create_time: datetime
    ending: UseEnding | None = None
    """Why it was reversed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basket:
    """An order that benefits were asked for. `body` is erased with its member."""

    order_id: str
    body_hash: bytes
    body: bytes
    pays: Mapping[str, int]
    """What is to be paid by line, in minor units; for the delivery under an empty id."""
    redemption_ids: tuple[str, ...] = ()
    """Of the uses made for it; when the order is redeemed anew, there are others."""
    refunds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What was refunded, by refund and line, in minor units; of the order as a whole under an empty id."""
    create_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRenewal:
    """A renewal of a card, with what is kept beside where it stands."""

    renewal_id: str
    renewal: Renewal
    card_id: str
    segment_id: str
    product_code: str
    currency_code: str
    order_id: str = ""
    """The order that charges it, once the member was told."""
    medium: str = ""
    told: bool = False
    """Whether RenewalDue was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A period that a reward gave, or refused; `segment_id` is empty where there is none."""

    reward_id: str
    card_id: str = ""
    segment_id: str = ""
    clawed_back: bool = False
    version: int = 0
    """Events about it."""


@dataclass(slots=True)
class Wallet:
    """A member's state. Of what ends up many (orders, payments, uses), what was asked for is loaded."""

    member_id: str
    tier: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    fact_versions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Epoch and version of the event that told each fact last."""
    next_due_time: datetime | None = None
    cards: dict[str, KeptCard] = field(default_factory=dict)
    orders: dict[str, KeptOrder] = field(default_factory=dict)
    payments: dict[PaymentName, KeptPayment] = field(default_factory=dict)
    uses: dict[str, KeptUse] = field(default_factory=dict)
    baskets: dict[str, Basket] = field(default_factory=dict)
    windows: dict[WindowName, KeptWindow] = field(default_factory=dict)
    renewals: dict[str, KeptRenewal] = field(default_factory=dict)
    rewards: dict[str, Reward] = field(default_factory=dict)
    purchases: dict[str, int] = field(default_factory=dict)
    """Orders of a product that are paid, besides those in `orders`; by code, where a command asks."""
    confirmed: dict[str, int] = field(default_factory=dict)
    """Confirmed uses in a period, besides those in `uses`; by its id, of cards that a command asks about."""

    def copy(self) -> Wallet:
        """A copy to work on."""
        own = (self.member_id, self.tier, self.facts, self.fact_versions, self.next_due_time)
        collections: dict[str, Any] = {name: dict(getattr(self, name)) for name in _COLLECTIONS}
        return Wallet(*own, **collections)


_COLLECTIONS: tuple[str, ...] = (
    "cards",
    "orders",
    "payments",
    "uses",
    "baskets",
    "windows",
    "renewals",
    "rewards",
    "purchases",
    "confirmed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentClaim:
    """Whose a payment is: the first who was told of it has it."""

    channel: str
    payment_id: str
    member_id: str
    payload_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GiftClaim:
    """A gift, by the hash of its code. Two members meet in it: who gives, and who claims."""

    code_hash: bytes
    giver_id: str
    order_id: str
    product_code: str
    product_version: int
    claim_until: datetime
    paid: bool = False
    refunded: bool = False
    claimed_by: str = ""
    claim_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place under a sales cap: number 1 to the limit of a product's window, and the order that has it."""

    product_code: str
    window_key: str
    number: int
    order_id: str
    pay_deadline: datetime
    firm: bool = False
    """Paid or settling: it does not lapse with the deadline."""

    def held(self, at: datetime) -> bool:
        """Whether the order still has it."""
        return self.firm or at < self.pay_deadline
