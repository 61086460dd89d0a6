"""What can be asked of a member, as invitee or as inviter: by call, by event, or by the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from services.chassis.asked import Asked
from services.referral.domain.campaigns import FactKind, Signal
from services.referral.domain.profile import Fact, Invitee, RevokeReason, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Asked):
    """Something asked of one member."""


# --- inviting -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateInvite(Command):
    """Have an invite in a campaign. The name is kept masked."""

    campaign_id: str
    display_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindInvitee(Command):
    """Bind the member, who is the invitee, to whom a code belongs.

    `code` is as it was typed, `signals` are hashes that the caller made, and `member_since` is None if the
    caller does not know. `caller` is who tries codes for the member: so many a minute that nobody has.
    """

    campaign_id: str
    code: str
    caller: str
    signals: Mapping[Signal, str] = field(default_factory=dict)
    member_since: datetime | None = None


# --- what members do ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordQualification(Command):
    """Tell what the member did, for a campaign that asks for it."""

    campaign_id: str
    kind: FactKind
    reference_id: str
    occur_time: datetime
    amount_minor: int = 0
    currency_code: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeQualification(Command):
    """Tell that what the member did was undone, whether that was told or not yet."""

    campaign_id: str
    reference_id: str
    occur_time: datetime
    reason: RevokeReason = RevokeReason.REQUESTED


class Learned(NamedTuple):
    """What holds of a member now, by name (`domain.profile`); empty means no more.

    `version` are epoch and version of the event.
    """

    name: str
    value: str
    version: tuple[int, int]


class Joined(NamedTuple):
    """A group that the member came into."""

    scheme_id: str
    group_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell(Command):
    """Note what another service told of a member: what holds of it now, and what it did or what was undone.

    Of each fact that is what was told of it this time, to be added to what is known.
    """

    learned: Learned | None = None
    facts: tuple[Fact, ...] = ()
    joined: Joined | None = None


# --- what becomes of it for the inviter ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteeTold(Command):
    """Note for the member, who is the inviter, what one of our events told of an invitee."""

    invitee: Invitee


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardCommand(Command):
    """Something about a reward, asked of the inviter for whom it is kept, whoever gets it."""

    reward_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardHandedOver(RewardCommand):
    """Whoever gives it has given it."""

    reference_id: str
    occur_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRefused(RewardCommand):
    """Whoever gives it refused."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRewardPaid(RewardCommand):
    """Tell that a coupon was issued, or money paid, under a reference."""

    reference_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryReward(RewardCommand):
    """Have it handed over again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOffReward(RewardCommand):
    """Give it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recount(Command):
    """Bring the member's rungs up to date, whose campaign got other rungs or caps since they were found."""

    campaign_id: str


# --- the operator's desk ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveReview(Command):
    """Decide about the bond of the member, who is the invitee: it counts (PASS), or never will (REJECT)."""

    review_id: str
    verdict: Verdict
    note: str = ""


# --- by the clock -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """Post what has fallen due, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantReward(RewardCommand):
    """Grant a reward that waited long enough, if the budget has room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnReward(RewardCommand):
    """Give the budget back what was taken back."""
