"""What is known of a member, as invitee and as inviter: everything that a write may depend on, as it is kept.

The records never change; a change replaces one. So what a batch did is what is no longer the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.referral.domain.campaigns import FactKind, Gift

EVERYTHING = -1  # the amount of a refund of all that is left

# What other services tell, by name: the tier, of each card that runs its family, of each group its scheme.
TIER = "tier"
CARD = "card:"
GROUP = "group:"

# --- the invitee --------------------------------------------------------------------------------------


class RevokeReason(StrEnum):
    """Why a qualification no longer counts, or a reward was taken back."""

    REFUNDED = "REFUNDED"
    LEFT_GROUP = "LEFT_GROUP"
    FRAUD = "FRAUD"
    REQUESTED = "REQUESTED"
    WRITTEN_OFF = "WRITTEN_OFF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that a member did, and what was told of it later, whichever came first."""

    kind: FactKind
    reference_id: str
    occur_time: datetime | None = None
    """None while only its refunds or its revocation were told."""
    amount_minor: int = 0
    currency_code: str = ""
    attributes: Mapping[str, str] | None = field(default_factory=dict)
    """What `when` reads beside the amount; None once its member was erased: then it is as it was judged."""
    refunds: Mapping[str, tuple[int, datetime]] = field(default_factory=dict)
    """By refund: minor units, or EVERYTHING, and when."""
    revoke_time: datetime | None = None
    revoke_reason: RevokeReason | None = None

    @property
    def name(self) -> tuple[FactKind, str]:
        """What it is kept under."""
        return (self.kind, self.reference_id)


class AttributionStatus(StrEnum):
    """Where an attribution stands."""

    BOUND = "BOUND"
    """Not qualified yet, or qualified and in review."""
    QUALIFIED = "QUALIFIED"
    REVOKED = "REVOKED"
    """It was qualified, and nothing that counts is left."""
    LAPSED = "LAPSED"
    """The invitee did not qualify in time."""
    REJECTED = "REJECTED"
    """It never counts."""


class Verdict(StrEnum):
    """What is thought of a bond."""

    PASS = "PASS"  # noqa: S105 - no password
    REVIEW = "REVIEW"
    """It waits for an operator."""
    REJECT = "REJECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """The bond of an invitee to its inviter in a campaign: the first one, for ever."""

    attribution_id: str
    campaign_id: str
    campaign_version: int
    inviter_id: str
    grand_inviter_id: str = ""
    """Who brought the inviter, where the campaign counts two levels; empty if nobody did."""
    code: str
    bind_time: datetime
    lapse_time: datetime
    """Before it the invitee has to qualify."""
    status: AttributionStatus = AttributionStatus.BOUND
    verdict: Verdict = Verdict.PASS
    score: int = 0
    """By the signals of the bind alone."""
    signals: tuple[str, ...] = ()
    """The signals that were beyond their limits."""
    resolved: bool = False
    """Whether an operator decided: then no score does."""
    version: int = 0
    """Events about it."""
    kind: FactKind | None = None
    """By what it is, or was, qualified; None if it never was."""
    reference_id: str = ""
    amount_minor: int = 0
    currency_code: str = ""
    qualify_time: datetime | None = None


# --- the inviter --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """A member's invite in a campaign."""

    campaign_id: str
    campaign_version: int
    code: str
    create_time: datetime
    group_id: str = ""
    """The group whose newcomer got it; empty where the member asked for it."""
    masked_name: str = ""
    ladder_version: int = 0
    """Of the campaign, by which the member's rungs were found last; 0 while nobody ever counted."""


class InviteeState(StrEnum):
    """What the inviter's side knows of an invitee."""

    BOUND = "BOUND"
    QUALIFIED = "QUALIFIED"
    REVOKED = "REVOKED"
    DROPPED = "DROPPED"
    """It lapsed, or was rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitee:
    """An attribution as its inviter sees it, as the last event about it told."""

    attribution_id: str
    campaign_id: str
    depth: int
    member_id: str
    state: InviteeState
    told: tuple[int, int]
    """Epoch and version of the event: an older one changes nothing."""
    bind_time: datetime | None = None
    """None while InviteeBound was not told."""
    kind: FactKind | None = None
    reference_id: str = ""
    amount_minor: int = 0
    currency_code: str = ""
    qualify_time: datetime | None = None
    revoke_reason: RevokeReason | None = None


RungName = tuple[str, str, int]
"""A campaign, a step of its ladder, and how often it was reached, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A step that an inviter reached. It keeps the version of the campaign that it was reached under."""

    campaign_id: str
    campaign_version: int
    step_id: str
    round: int
    depth: int
    position: int
    """The count that it needs."""
    each: bool = False
    """Whether it is one invitee's own (`Step.each_from`): then it stands while that one counts."""
    attribution_id: str
    """The invitee who stands there."""
    attempt: int = 1
    """One more for each time that it was lost and regained."""
    reach_time: datetime
    lost: bool = False

    @property
    def name(self) -> RungName:
        """What it is kept under."""
        return (self.campaign_id, self.step_id, self.round)


class Role(StrEnum):
    """On which side of the invitation a reward is given."""

    INVITER = "INVITER"
    INVITEE = "INVITEE"


class RewardStatus(StrEnum):
    """Where a reward stands."""

    PENDING = "PENDING"
    """It waits for its time, and for the budget."""
    GRANTED = "GRANTED"
    FULFILLED = "FULFILLED"
    FAILED = "FAILED"
    """Whoever gives it refused."""
    CLAWED_BACK = "CLAWED_BACK"
    WITHDRAWN = "WITHDRAWN"
    """Its rung was lost before it was granted: it never was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """What a rung gives to somebody. It is kept with the inviter, whoever gets it.

    While it is PENDING, who gets it, what and when follow its rung. After that only where it stands changes.
    """

    reward_id: str
    campaign_id: str
    campaign_version: int
    step_id: str
    round: int
    attempt: int
    """From 1; one more for each that was taken back or withdrawn before it, on this rung and side."""
    role: Role
    receiver_id: str
    attribution_id: str
    """The invitee who stood there."""
    gift: Gift
    """With its amount, also where it is a share."""
    order_id: str = ""
    """The order that it is a share of; empty for anything else."""
    qualified_count: int
    """Invitees who counted when the rung was reached."""
    reach_time: datetime
    grant_after: datetime
    status: RewardStatus = RewardStatus.PENDING
    version: int = 0
    """Events about it."""
    grant_time: datetime | None = None
    fulfil_by: datetime | None = None
    """When it is told again if it was not handed over by then; None unless it is granted."""
    overdue: bool = False
    """Whether that has happened."""
    end_time: datetime | None = None
    """When it was handed over, refused, taken back or withdrawn."""
    reference_id: str = ""
    """What proves that it was handed over."""
    reason: str = ""
    """Why it failed, or was taken back."""
    returned: bool = False
    """Whether the budget has what was taken back."""

    @property
    def rung(self) -> RungName:
        """What it is given for."""
        return (self.campaign_id, self.step_id, self.round)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Where an inviter stands on a campaign's leaderboard."""

    campaign_id: str
    count: int
    reach_time: datetime
    """When the last of those who count qualified."""


# --- the member ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Profile:
    """A member's state. Attributions and invites are all there; of the rest, what was asked for is loaded."""

    member_id: str
    version: int = 0
    """Events about the member."""
    told: Mapping[str, str] = field(default_factory=dict)
    """What other services told, by name: TIER, CARD and the family, GROUP and the group with its scheme."""
    told_versions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Epoch and version of the event that told each last."""
    next_due_time: datetime | None = None
    """When the clock next asks for something: a lapse, or a reward that was not handed over."""
    attributions: dict[str, Attribution] = field(default_factory=dict)
    """By campaign."""
    facts: dict[tuple[FactKind, str], Fact] = field(default_factory=dict)
    invites: dict[str, Invite] = field(default_factory=dict)
    """By campaign."""
    invitees: dict[tuple[str, int], Invitee] = field(default_factory=dict)
    """By attribution and depth."""
    rungs: dict[RungName, Rung] = field(default_factory=dict)
    rewards: dict[str, Reward] = field(default_factory=dict)
    ranks: dict[str, Rank] = field(default_factory=dict)
    """By campaign."""

    def copy(self) -> Profile:
        """A copy to work on."""
        collections: dict[str, Any] = {name: dict(getattr(self, name)) for name in COLLECTIONS}
        return replace(self, **collections)


COLLECTIONS: tuple[str, ...] = (
    *("attributions", "facts", "invites", "invitees", "rungs", "rewards", "ranks"),
)
