"""What the groups service refuses: the class name is the reason, the docstring the message."""

from __future__ import annotations

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)


class MemberUnknown(NotFound):
    """Nothing is kept about this member."""


class LocationInvalid(InvalidArgument):
    """The location is no place that somebody can be at."""


class SiteUnknown(NotFound):
    """There is no such site."""


class SiteClosed(FailedPrecondition):
    """The site is closed."""


class SiteHasGroups(FailedPrecondition):
    """The site has groups; close it by CloseSite, which moves their members."""


class SchemeUnknown(NotFound):
    """There is no such scheme, or no such version of it."""


class SchemeInvalid(InvalidArgument):
    """The scheme is not valid."""


class KindFixed(FailedPrecondition):
    """The kind of a scheme cannot change after its first version."""


class TooManySchemes(FailedPrecondition):
    """As many schemes as there may be take members; withdraw one."""


class SchemeWithdrawn(FailedPrecondition):
    """The scheme takes no more members."""


class WrongKind(FailedPrecondition):
    """This is not for schemes of this kind."""


class SegmentUnknown(NotFound):
    """The scheme has no such segment."""


class ProgrammeUnknown(NotFound):
    """No programme was put yet, or there is no such version of it."""


class ProgrammeInvalid(InvalidArgument):
    """The programme is not valid."""


class GroupUnknown(NotFound):
    """There is no such group, or not in this scheme."""


class GroupFull(FailedPrecondition):
    """The group has no seat to give."""


class GroupDissolved(FailedPrecondition):
    """The group is no more."""


class ThresholdNotMet(FailedPrecondition):
    """The member does not meet a condition of the scheme."""


class Cooldown(FailedPrecondition):
    """The member left a group of the scheme not long ago."""


class NoSite(FailedPrecondition):
    """No place of the member is known to go by, and the scheme has no default; or no site is open."""


class NotInSegment(FailedPrecondition):
    """The member is in no segment of the scheme, or not in that of the chosen group."""


class InviterNeeded(FailedPrecondition):
    """Groups of this scheme are an inviter's; name the inviter or the group."""


class FlashTimeInvalid(FailedPrecondition):
    """A sale begins within three hours, and its group outlives that and is gone within four."""


class ChatAttached(AlreadyExists):
    """The chat is another group's."""


class CallbackRefused(PermissionDenied):
    """The callback is not the messaging platform's, or not for us."""


class PlatformUnavailable(Unavailable):
    """The messaging platform is away, or wants to be left alone for a while."""


class PlatformRefused(FailedPrecondition):
    """The messaging platform refuses what was asked of it."""


class TagDerived(FailedPrecondition):
    """The tag follows from a rule of the programme."""


class TooManyTags(FailedPrecondition):
    """The member would have more tags than it may."""


class TagTimePast(FailedPrecondition):
    """The tag would have ended already."""


class RewardTakenBack(FailedPrecondition):
    """The reward was taken back before it was given."""
