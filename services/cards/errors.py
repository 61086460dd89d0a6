"""What the cards service refuses: the class name is the reason, the docstring the message."""

from __future__ import annotations

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)


class MemberUnknown(NotFound):
    """Nothing is kept about this member."""


class ProductUnknown(NotFound):
    """There is no such product, or no such version of it."""


class ProductInvalid(InvalidArgument):
    """The product is not valid."""


class FamilyFixed(FailedPrecondition):
    """The family of a product cannot change after its first version."""


class ProductWithdrawn(FailedPrecondition):
    """The product is no longer sold."""


class NotEligible(FailedPrecondition):
    """The product is not sold to this member."""


class NotForPoints(FailedPrecondition):
    """The product cannot be bought with points."""


class NotForMoney(FailedPrecondition):
    """The product cannot be bought with money."""


class PurchaseLimit(FailedPrecondition):
    """The member has bought the product as often as it may be."""


class SoldOut(FailedPrecondition):
    """As many as may be sold in the window are sold."""


class UpgradeNotAllowed(FailedPrecondition):
    """The product does not start at once while another runs."""


class CreditExceedsPrice(FailedPrecondition):
    """The unused days are worth more than the product costs; let it queue."""


class UpgradeUnitMismatch(FailedPrecondition):
    """What runs was paid by points and this by money, or the other way round; let it queue."""


class ChainTooLong(FailedPrecondition):
    """As many periods as a card can hold are queued."""


class CardOrderUnknown(NotFound):
    """The member has no such order of a card."""


class OrderSettling(FailedPrecondition):
    """The order's points are being spent."""


class OrderPaid(FailedPrecondition):
    """The order is paid; give the card back instead."""


class PaymentAlreadyTold(AlreadyExists):
    """The payment was told before, with another body."""


class RefundUnknown(NotFound):
    """Nothing of this payment is to be paid back."""


class RefundClosed(FailedPrecondition):
    """The refund was paid before."""


class RefundAmountMismatch(FailedPrecondition):
    """Another amount was paid back than is due."""


class CardUnknown(NotFound):
    """The member has no such card."""


class NothingToRefund(FailedPrecondition):
    """No period of the card runs or is queued."""


class QuoteChanged(FailedPrecondition):
    """It comes to less by now than was shown."""


class CardNotActive(FailedPrecondition):
    """No period of the card runs."""


class CardFrozen(FailedPrecondition):
    """The card rests."""


class CardNotFrozen(FailedPrecondition):
    """The card does not rest."""


class FreezeNotAllowed(FailedPrecondition):
    """Cards of this product do not rest."""


class FreezeCount(FailedPrecondition):
    """The period has rested as often as it may."""


class FreezeLength(FailedPrecondition):
    """The product does not let a card rest for so long, or so short."""


class FreezeTooShort(FailedPrecondition):
    """The card has not rested for as long as it must."""


class NotAGift(FailedPrecondition):
    """The product is not given away."""


class GiftCodeUnknown(NotFound):
    """There is no such claim code."""


class TooManyCodes(ResourceExhausted):
    """Too many claim codes that nobody has were tried of late."""

    retry_after = 60.0


class GiftNotPaid(FailedPrecondition):
    """The gift is not paid yet."""


class GiftClaimed(FailedPrecondition):
    """The claim code was used before."""


class GiftExpired(FailedPrecondition):
    """The claim code is no longer good."""


class GiftRefunded(FailedPrecondition):
    """The gift was given back by its buyer."""


class TotalMismatch(InvalidArgument):
    """The order's total is not the sum of its lines and its delivery fee."""


class OrderAlreadyRedeemed(AlreadyExists):
    """Benefits were used for the order before."""


class RedemptionUnknown(NotFound):
    """No benefit was used for such an order."""


class RedemptionLapsed(FailedPrecondition):
    """The reservation was not confirmed in time."""


class RedemptionReversed(FailedPrecondition):
    """The uses were given back."""


class RenewalUnknown(NotFound):
    """The member has no such renewal."""


class RenewalClosed(FailedPrecondition):
    """The renewal was charged or cancelled, or its time is over."""


class NoticeNotDue(FailedPrecondition):
    """It is too early to tell the member of this renewal."""


class NoticeRecorded(FailedPrecondition):
    """The member was told of this renewal before."""


class NoticeTimeAhead(FailedPrecondition):
    """The notice lies ahead of the clock."""


class AutoRenewSigned(FailedPrecondition):
    """A renewal of the card is signed already."""


class RewardTakenBack(FailedPrecondition):
    """The reward was taken back before it was given."""


class NotificationRefused(PermissionDenied):
    """The notification is not what the pay channel signed."""
