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
