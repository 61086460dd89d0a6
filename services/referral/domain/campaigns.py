"""Campaigns as they were put: who may invite and be invited, what counts, and what it brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from services.chassis.errors import Violation

MOST_INVITEES = 10_000  # that count for an inviter in a campaign
WHOLE = 10_000  # basis points
MOST_COUNTED = 1_000  # invitees with one value of a signal, or bound of late: more are not looked for
DEEPEST = 2  # levels that may be paid: more is unlawful in China (禁止传销条例, 2005)


class FactKind(StrEnum):
    """What an invitee qualifies by."""

    ORDER = "ORDER"
    CARD = "CARD"
    GROUP = "GROUP"
    REGISTRATION = "REGISTRATION"


class OnDrop(StrEnum):
    """What becomes of a reward that was granted for a rung which is lost."""

    KEEP = "KEEP"
    REVOKE_UNCLAIMED = "REVOKE_UNCLAIMED"
    """It is taken back unless it was handed over."""
    CLAW_BACK = "CLAW_BACK"


class Signal(StrEnum):
    """What makes a bond suspicious."""

    DEVICE = "DEVICE"
    IP_PREFIX = "IP_PREFIX"
    PAYMENT_ACCOUNT = "PAYMENT_ACCOUNT"
    ADDRESS = "ADDRESS"
    FAST = "FAST"
    """The invitee qualified sooner than `limit` seconds after the bind."""
    VELOCITY = "VELOCITY"
    """More than `limit` invitees were bound to the inviter within an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A named CEL expression that holds or not."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualify:
    """What an invitee has to do."""

    kind: FactKind
    when: str = ""
    """A CEL expression over the fact; empty holds for each."""
    within: timedelta | None = None
    """After the bind; None is as long as the attribution lasts."""


class GiftKind(StrEnum):
    """What a reward is made of."""

    POINTS = "POINTS"
    CARD = "CARD"
    COUPON = "COUPON"
    GROUP_ENTRY = "GROUP_ENTRY"
    CASH = "CASH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gift:
    """What a reward gives, as the campaign says it."""

    kind: GiftKind
    code: str = ""
    """The plan of a card, the kind of a coupon, the scheme of a group."""
    group_id: str = ""
    """Of a group entry; empty is the best group of the scheme."""
    quantity: int = 0
    """Points, coupons, or minor units of cash."""
    currency_code: str = ""
    """Of cash."""
    share_basis_points: int = 0
    """Of cash that is a share of what the invitee's order was worth, in place of `quantity`."""
    cost_minor: int = 0
    """What it takes from the campaign's budget, in minor units; of a share that is its amount."""

    def share_of(self, amount_minor: int) -> int:
        """What a share of an order comes to, in minor units, rounded down."""
        return amount_minor * self.share_basis_points // WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the ladder: one of `at`, `every` and `each_from` is set."""

    step_id: str
    depth: int = 1
    """Which invitees count: 1 those whom the inviter brought, 2 those whom these brought."""
    at: int = 0
    """Reached once, by so many invitees."""
    every: int = 0
    """Reached again with so many more, from `every_from` on."""
    every_from: int = 0
    each_from: int = 0
    """Reached by each further invitee from this one on."""
    reward: Gift | None = None
    """For the inviter."""
    invitee_reward: Gift | None = None
    """For the invitee who stands there."""

    def position(self, number: int) -> int:
        """How many invitees its nth round needs, from 1; of `each_from`, where its invitees begin."""
        if self.every:
            return self.every_from + (number - 1) * self.every
        return self.at or self.each_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many invitees count at most: by the local day and month in which they qualified, and in all."""

    per_day: int = MOST_INVITEES
    per_month: int = MOST_INVITEES
    lifetime: int = MOST_INVITEES

    def below(self, other: Caps) -> list[str]:
        """Which of them are lower than others'."""
        mine, others = asdict(self), asdict(other)
        return [name for name, cap in mine.items() if cap < others[name]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalLimit:
    """How much a signal adds to the score once it is beyond its limit."""

    signal: Signal
    limit: int
    score: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A version of a campaign."""

    campaign_id: str
    version: int
    ladder_version: int = 0
    """The version since which who counts, and what that reaches, is as it is in this one."""
    name: str
    open_time: datetime
    close_time: datetime
    """From here on nobody is bound, and the leaderboard stands."""
    settle_time: datetime
    """What happens from here on no longer counts."""
    inviter_eligible: tuple[Condition, ...] = ()
    invitee_eligible: tuple[Condition, ...] = ()
    qualify: Qualify
    ladder: tuple[Step, ...]
    max_depth: int = 1
    attribution_window: timedelta
    """After the bind, how long an invitee can qualify."""
    hold_period: timedelta
    """After qualification, how long a reward waits."""
    clawback_window: timedelta
    """After qualification, how long a refund undoes it."""
    caps: Caps = Caps()
    budget_minor: int = 0
    """In minor units; 0 is no limit."""
    currency_code: str = ""
    """Of the budget and the costs."""
    signal_limits: tuple[SignalLimit, ...] = ()
    review_score: int = 0
    """From this score on a bond waits for an operator; 0 is never."""
    reject_score: int = 0
    """From this score on it never counts; 0 is never."""
    on_drop: OnDrop = OnDrop.KEEP
    auto_invite_scheme_id: str = ""
    """Who joins a group of this scheme gets an invite; empty is nobody."""
    share_title: str = ""
    poster_fields: Mapping[str, str] = field(default_factory=dict)
    fulfil_within: timedelta = timedelta(hours=24)
    """After a reward was granted, how long it may take to be handed over before it is told again."""

    def open(self, at: datetime) -> bool:
        """Whether members can be bound."""
        return self.open_time <= at < self.close_time

    def counts_as(self, other: Campaign) -> bool:
        """Whether the same invitees count as in another version, and reach the same."""
        return (self.ladder, self.caps, self.max_depth) == (other.ladder, other.caps, other.max_depth)

    def step(self, step_id: str) -> Step:
        """A step of its ladder."""
        return next(step for step in self.ladder if step.step_id == step_id)

    def lapse_time(self, bind_time: datetime) -> datetime:
        """Before when somebody who is bound at an instant has to qualify."""
        within = self.qualify.within or self.attribution_window
        return min(self.settle_time, bind_time + min(self.attribution_window, within))

    def undone_until(self, occur_time: datetime) -> datetime:
        """Before when what was done at an instant can be revoked: for a group, while rewards wait."""
        in_group = self.qualify.kind is FactKind.GROUP
        return occur_time + (self.hold_period if in_group else self.clawback_window)


# --- what is wrong with one ---------------------------------------------------------------------------


def faults(campaign: Campaign) -> Iterator[Violation]:
    """What a campaign breaks of the rules that its fields have together, by field.

    What a field must be by itself is the contract's: that every step needs an invitee, so that nobody is paid
    for sharing (诱导分享) or pays to take part, and that only what an invitee does qualifies.
    """
    if campaign.hold_period > campaign.clawback_window:
        yield Violation("campaign.hold_period_hours", "must not be above clawback_window_hours")
    if campaign.reject_score and campaign.review_score > campaign.reject_score:
        yield Violation("campaign.review_score", "must not be above reject_score")
    if campaign.budget_minor and not campaign.currency_code:
        yield Violation("campaign.currency_code", "must be set: there is a budget")
    for index, limit in enumerate(campaign.signal_limits):
        if limit.signal is not Signal.FAST and limit.limit > MOST_COUNTED:
            place = f"campaign.signal_limits[{index}].limit"
            yield Violation(place, f"must not be above {MOST_COUNTED}: no more are counted")
    highest: dict[int, int] = {}
    for index, step in enumerate(campaign.ladder):
        place = f"campaign.ladder[{index}]"
        if step.depth > campaign.max_depth:
            yield Violation(f"{place}.depth", f"must not be above max_depth, which is {campaign.max_depth}")
        if step.at:
            if step.at <= highest.get(step.depth, 0):
                yield Violation(f"{place}.at", "must be above that of the step before it")
            highest[step.depth] = step.at
        if step.position(1) > campaign.caps.lifetime:
            yield Violation(place, f"is never reached: {campaign.caps.lifetime} invitees count at most")
        for name, gift in (("reward", step.reward), ("invitee_reward", step.invitee_reward)):
            if gift is not None:
                yield from _gift_faults(campaign, step, gift, f"{place}.{name}")


def _gift_faults(campaign: Campaign, step: Step, gift: Gift, place: str) -> Iterator[Violation]:
    if gift.share_basis_points and not (step.each_from and campaign.qualify.kind is FactKind.ORDER):
        yield Violation(f"{place}.cash", "a share is for each invitee from one on, in a campaign of orders")
    if campaign.budget_minor and gift.cost_minor > campaign.budget_minor:
        yield Violation(place, f"costs {gift.cost_minor}, more than the budget")
    if not campaign.currency_code and (gift.cost_minor or gift.kind is GiftKind.CASH):
        yield Violation("campaign.currency_code", f"must be set: {place} costs money")
