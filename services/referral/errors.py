"""What the referral service refuses: the class name is the reason, the docstring the message."""

from __future__ import annotations

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)


class MemberUnknown(NotFound):
    """Nothing is kept about this member."""


class CampaignUnknown(NotFound):
    """There is no such campaign, or no such version of it."""


class CampaignInvalid(InvalidArgument):
    """The campaign is not valid."""


class MultiLevel(InvalidArgument):
    """Two levels are rewarded at most: more would be pyramid selling."""


class BudgetSpent(FailedPrecondition):
    """More than the budget was granted already."""


class CurrencyFixed(FailedPrecondition):
    """The currency of a campaign cannot change."""


class CapsLowered(FailedPrecondition):
    """Who counts goes on counting: caps only rise."""


class CampaignNotOpen(FailedPrecondition):
    """The campaign is not open yet; put it anew with other times."""


class CampaignClosed(FailedPrecondition):
    """The campaign is not open yet, or is closed."""


class InviteUnknown(NotFound):
    """The member has no invite in this campaign."""


class NotEligible(FailedPrecondition):
    """The member may not invite: a condition of the campaign does not hold."""


class CodeUnknown(NotFound):
    """There is no such code in this campaign."""


class TooManyTries(ResourceExhausted):
    """Too many codes that nobody has were tried of late."""

    retry_after = 60.0


class SelfReferral(FailedPrecondition):
    """The code is the member's own."""


class AlreadyBound(AlreadyExists):
    """The member was brought by somebody before."""


class InviterBlocked(FailedPrecondition):
    """The member may not invite at present."""


class AlreadyMember(FailedPrecondition):
    """The member is not one whom the campaign wants: a condition does not hold."""


class Cycle(FailedPrecondition):
    """The inviter was brought by this member."""


class WrongKind(FailedPrecondition):
    """The campaign asks for something else."""


class RewardUnknown(NotFound):
    """There is no such reward."""


class RewardNotOpen(FailedPrecondition):
    """Where the reward stands there is nothing to do."""


class RewardNotPaidOutside(FailedPrecondition):
    """Another service hands the reward over, and tells it."""


class ReviewUnknown(NotFound):
    """There is no such review."""
