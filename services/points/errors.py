"""What the points service refuses: the class name is the reason, the docstring the message."""

from __future__ import annotations

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)


class MemberUnknown(NotFound):
    """Nothing was ever posted for this member."""


class TransactionUnknown(NotFound):
    """The member has no such transaction."""


class ProgrammeUnknown(NotFound):
    """There is no such version of the programme, or none in force yet."""


class InsufficientPoints(FailedPrecondition):
    """The member has fewer available points than the request takes."""


class InsufficientGrowth(FailedPrecondition):
    """The member has less growth than the request takes."""


class BalanceLimit(FailedPrecondition):
    """The balance would pass the largest one that is kept."""


class NoProgramme(FailedPrecondition):
    """No programme is in force, so nothing can be earned."""


class CurrencyMismatch(FailedPrecondition):
    """The order is in another currency than the programme."""


class OccurTimeAhead(FailedPrecondition):
    """The fact lies further ahead of the clock than is tolerated."""


class BackdatingNeedsAdmin(PermissionDenied):
    """The fact lies further back than 30 days, which needs the scope points.admin."""


class OrderAlreadyEarned(AlreadyExists):
    """The order was earned before, with another body."""


class ActivityAlreadyEarned(AlreadyExists):
    """The activity was earned before, with another body."""


class TotalMismatch(InvalidArgument):
    """The order's total is not the sum of its lines and its delivery fee."""


class ProgrammeInvalid(InvalidArgument):
    """The programme is not valid."""


class EffectiveTimePast(FailedPrecondition):
    """A programme cannot take effect before now, nor before the version it follows."""


class TimeZoneFixed(FailedPrecondition):
    """The time zone cannot change after the first transaction."""


class CurrencyFixed(FailedPrecondition):
    """The currency cannot change after the first transaction."""


class HoldUnknown(NotFound):
    """The member has no such hold."""


class HoldTimeInvalid(FailedPrecondition):
    """A hold must end after now and within 30 days."""


class HoldExpired(FailedPrecondition):
    """The hold's deadline has passed; its points were given back."""


class HoldClosed(FailedPrecondition):
    """The hold was captured or released before."""


class CaptureExceedsHold(FailedPrecondition):
    """The hold has fewer points than the request captures."""


class NotReversible(FailedPrecondition):
    """A transaction of this kind cannot be reversed."""


class ReversalExceedsTransaction(FailedPrecondition):
    """Less of the transaction is left than the request reverses."""


class ClawbackBlocked(FailedPrecondition):
    """The member has spent what would be taken back, and the programme forbids a debt."""


class OrderUnknown(NotFound):
    """The member has earned on no such order."""


class LineUnknown(InvalidArgument):
    """The order has no such line, or its lines were erased with its member's data."""


class RefundExceedsOrder(FailedPrecondition):
    """The order was paid with less than would be refunded."""


class RefundAlreadyApplied(AlreadyExists):
    """The refund was applied before, with another body."""


class RewardTakenBack(FailedPrecondition):
    """The reward was taken back before it was given."""


class TransfersNotAllowed(FailedPrecondition):
    """The programme lets no points be given away."""


class TransferLimit(FailedPrecondition):
    """The member would give away more than the programme allows on a day."""


class TransferToSelf(InvalidArgument):
    """Points cannot be sent to their own member."""
