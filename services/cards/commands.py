"""What can be asked of a member's cards, by call, by event, or by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.cards.domain.basket import Offer, Quote
from services.cards.domain.payments import Payment
from services.cards.domain.wallet import PaymentName
from services.cards.rules import Bill
from services.chassis.asked import Asked

TIER = "tier"  # the fact that is the member's tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Asked):
    """Something asked of one member."""


@dataclass(frozen=True, slots=True)
class Solved:
    """The best price of an order under offers."""

    offers: Sequence[Offer]
    quote: Quote


# --- buying -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOrder(Command):
    """Order a period."""

    product_code: str
    by_points: bool = False
    upgrade_now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GiftOrder(Command):
    """Order a period for somebody else."""

    product_code: str
    by_points: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmPayment(Command):
    """Tell of a payment. The order that it names may be unknown."""

    order_id: str
    channel: str
    payment_id: str
    payment: Payment

    @property
    def payment_name(self) -> PaymentName:
        """What the payment is called."""
        return (self.channel, self.payment_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRefundPaid(Command):
    """Tell that what was due of a payment was paid back."""

    channel: str
    payment_id: str
    refund_id: str
    amount_minor: int
    currency_code: str
    refund_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOrder(Command):
    """Cancel an order that is not paid."""

    order_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivateGift(Command):
    """Claim a gift, by the hash of its code."""

    code_hash: bytes


# --- a card -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundCard(Command):
    """Give a card back for no less than was shown, in minor units and in points."""

    card_id: str
    expected_minor: int
    expected_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeCard(Command):
    """Rest a card for so many local days; 0 means as long as it may."""

    card_id: str
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeCard(Command):
    """End a rest."""

    card_id: str


# --- using --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeem(Command):
    """Use benefits for an order that saves no less than was shown, in minor units.

    `solved` is its best price as of a moment ago: it still is, while the offers are the same.
    """

    bill: Bill
    expected_saved_minor: int
    solved: Solved | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmUses(Command):
    """Make an order's uses final."""

    order_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseUses(Command):
    """Give an order's uses back."""

    order_id: str


# --- renewing -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAutoRenew(Command):
    """Sign the renewal of a card; without a product, of what runs."""

    card_id: str
    product_code: str
    contract_id: str
    sign_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordNotice(Command):
    """Tell that the member was told of a coming renewal."""

    renewal_id: str
    notice_time: datetime
    amount_minor: int
    medium: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAutoRenew(Command):
    """End a signed renewal."""

    card_id: str


# --- by event -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldPlaced(Command):
    """Points are set aside for an order."""

    order_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldEnded(Command):
    """Points were refused for an order, or came back: why."""

    order_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldCaptured(Command):
    """Points were spent for an order."""

    order_id: str
    capture_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantReward(Command):
    """Give a period as a reward."""

    reward_id: str
    product_code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClawBack(Command):
    """Take a reward back, given or not."""

    reward_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRefunded(Command):
    """An order was refunded: amounts of lines, or an amount of the whole, or all that is left."""

    order_id: str
    refund_id: str
    lines: Mapping[str, int] = field(default_factory=dict)
    amount_minor: int = 0
    all_left: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnFact(Command):
    """Note what another service told of a member, if it is newer than what is known; empty means no more.

    `version` are epoch and version of the event.
    """

    name: str
    value: str
    version: tuple[int, int]


# --- by the clock -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """Post what has fallen due, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnGift(Command):
    """Give back what a gift cost that nobody claimed in time."""

    order_id: str
