"""Campaigns as they are put, compiled; members and what they do as facts; conditions evaluated.

The only place that knows both CEL and how members are brought: it hands plain facts to `domain`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis import telemetry
from services.chassis.errors import Violation
from services.chassis.expressions import (
    BOOLEAN,
    INTEGER,
    STRING,
    STRINGS,
    EvaluationFailed,
    Expression,
    Facts,
    Vocabulary,
)
from services.chassis.timestamps import instant
from services.referral.domain import campaigns
from services.referral.domain.campaigns import (
    DEEPEST,
    Campaign,
    Caps,
    Condition,
    FactKind,
    Gift,
    GiftKind,
    OnDrop,
    Qualify,
    Signal,
    SignalLimit,
    Step,
)
from services.referral.domain.profile import CARD, GROUP, TIER, Fact, Profile
from services.referral.errors import CampaignInvalid, MultiLevel

COMPILED = 512  # versions of campaigns kept compiled

_MEMBERS = Vocabulary({"tier": STRING, "cards": STRINGS, "groups": STRINGS, "member_days": INTEGER})
_DETAILS = ("store_id", "city", "channel", "product", "scheme_id", "group_id")
_FLAGS = ("renewal", "gift")
_DEEDS = Vocabulary(
    {
        "amount_minor": INTEGER,
        "currency_code": STRING,
        **dict.fromkeys(_DETAILS, STRING),
        **dict.fromkeys(_FLAGS, BOOLEAN),
    }
)
_ALWAYS = "true"  # an empty condition

_KINDS = {epb.QualificationKind.Value(f"QUALIFICATION_KIND_{kind}"): kind for kind in FactKind}
_SIGNALS = {pb.Signal.Value(f"SIGNAL_{signal}"): signal for signal in Signal}
_DROPS = {pb.OnDrop.Value(f"ON_DROP_{on_drop}"): on_drop for on_drop in OnDrop}


@dataclass(frozen=True, slots=True)
class CompiledCampaign:
    """A version of a campaign, ready to be asked."""

    campaign: Campaign
    inviters: Sequence[tuple[str, Expression]]
    invitees: Sequence[tuple[str, Expression]]
    asked: Expression

    @property
    def name(self) -> tuple[str, int]:
        """What tells it from others."""
        return (self.campaign.campaign_id, self.campaign.version)

    def inviter_failing(self, profile: Profile, at: datetime) -> str | None:
        """The first condition that keeps a member from inviting; None if there is none."""
        return self._failing(self.inviters, _member(profile, None, at))

    def invitee_failing(self, profile: Profile, member_since: datetime | None, at: datetime) -> str | None:
        """The first condition that keeps a member from being invited; None if there is none."""
        return self._failing(self.invitees, _member(profile, member_since, at))

    def when(self, fact: Fact, worth: int) -> bool:
        """Whether a fact is what the campaign asks for, at what is left of its amount, in minor units."""
        details = fact.attributes or {}
        known = {"amount_minor": worth, "currency_code": fact.currency_code}
        texts = {name: details.get(name, "") for name in _DETAILS}
        flags = {name: details.get(name) == "true" for name in _FLAGS}
        return self._holds(self.asked, _DEEDS.facts({**known, **texts, **flags}), "when")

    def _failing(self, conditions: Iterable[tuple[str, Expression]], facts: Facts) -> str | None:
        failing = (name for name, condition in conditions if not self._holds(condition, facts, name))
        return next(failing, None)

    def _holds(self, condition: Expression, facts: Facts, name: str) -> bool:
        try:
            return condition.holds(facts)
        except EvaluationFailed:
            telemetry.RULE_ERRORS.labels(f"{self.campaign.campaign_id} {name}").inc()
            return False


def _member(profile: Profile, member_since: datetime | None, at: datetime) -> Facts:
    """What conditions read of a member."""
    told = profile.told
    return _MEMBERS.facts(
        {
            "tier": told.get(TIER, ""),
            "cards": sorted(name.removeprefix(CARD) for name in told if name.startswith(CARD)),
            "groups": sorted({scheme for name, scheme in told.items() if name.startswith(GROUP)}),
            "member_days": max(0, (at - member_since).days) if member_since else 0,
        }
    )


# --- campaigns ----------------------------------------------------------------------------------------


def compile_campaign(message: pb.Campaign) -> CompiledCampaign:
    """Compiles a campaign. Raises CampaignInvalid with every fault and its place, and MultiLevel."""
    if max(message.max_depth, *(step.depth for step in message.ladder)) > DEEPEST:
        raise MultiLevel(limit=DEEPEST)
    faults = [*_expression_faults(message), *campaigns.faults(_campaign(message))]
    if faults:
        raise CampaignInvalid(violations=faults)
    return _compiled(message)


def stored(body: bytes, ladder_version: int) -> CompiledCampaign:
    """A stored version, which was checked when it was put."""
    compiled = _compiled(pb.Campaign.FromString(body))
    return replace(compiled, campaign=replace(compiled.campaign, ladder_version=ladder_version))


def _compiled(message: pb.Campaign) -> CompiledCampaign:
    campaign = _campaign(message)
    return CompiledCampaign(
        campaign,
        [(one.name, _MEMBERS.compile(one.expression)) for one in campaign.inviter_eligible],
        [(one.name, _MEMBERS.compile(one.expression)) for one in campaign.invitee_eligible],
        _DEEDS.compile(campaign.qualify.when or _ALWAYS),
    )


def _expression_faults(message: pb.Campaign) -> Iterator[Violation]:
    for place, attempt in _attempts(message):
        try:
            attempt()
        except ValueError as error:
            yield Violation(place, str(error))


def _attempts(message: pb.Campaign) -> Iterator[tuple[str, Callable[[], object]]]:
    """What must succeed, by its place in the request."""
    lists = {"inviter_eligible": message.inviter_eligible, "invitee_eligible": message.invitee_eligible}
    for name, conditions in lists.items():
        for index, one in enumerate(conditions):
            yield f"campaign.{name}[{index}].expression", partial(_MEMBERS.compile, one.expression)
    yield "campaign.qualify.when", partial(_DEEDS.compile, message.qualify.when or _ALWAYS)


def _campaign(message: pb.Campaign) -> Campaign:
    """A campaign; what may be left out is what its field says."""
    return Campaign(
        campaign_id=message.campaign_id,
        version=message.version,
        name=message.name,
        open_time=instant(message.open_time),
        close_time=instant(message.close_time),
        settle_time=instant(message.settle_time),
        inviter_eligible=_conditions(message.inviter_eligible),
        invitee_eligible=_conditions(message.invitee_eligible),
        qualify=Qualify(
            kind=_KINDS[message.qualify.kind],
            when=message.qualify.when,
            within=_hours(message.qualify.within_hours) or None,
        ),
        ladder=tuple(_step(step, message.currency_code) for step in message.ladder),
        max_depth=message.max_depth or 1,
        attribution_window=_hours(message.attribution_window_hours),
        hold_period=_hours(message.hold_period_hours),
        clawback_window=_hours(message.clawback_window_hours),
        caps=_caps(message.caps),
        budget_minor=message.budget_minor,
        currency_code=message.currency_code,
        signal_limits=tuple(
            SignalLimit(signal=_SIGNALS[one.signal], limit=one.limit, score=one.score)
            for one in message.signal_limits
        ),
        review_score=message.review_score,
        reject_score=message.reject_score,
        on_drop=_DROPS.get(message.on_drop, OnDrop.KEEP),
        auto_invite_scheme_id=message.auto_invite_scheme_id,
        share_title=message.share_title,
        poster_fields=dict(message.poster_fields),
        fulfil_within=_hours(message.fulfil_within_hours) or timedelta(hours=24),
    )


def _hours(count: int) -> timedelta:
    return timedelta(hours=count)


def _conditions(messages: Iterable[pb.Condition]) -> tuple[Condition, ...]:
    return tuple(Condition(name=one.name, expression=one.expression) for one in messages)


def _caps(message: pb.Caps) -> Caps:
    none = Caps()
    return Caps(
        per_day=message.per_day or none.per_day,
        per_month=message.per_month or none.per_month,
        lifetime=message.lifetime or none.lifetime,
    )


def _step(message: pb.Step, currency_code: str) -> Step:
    return Step(
        step_id=message.step_id,
        depth=message.depth or 1,
        at=message.at,
        every=message.every.count,
        every_from=message.every.first,
        each_from=message.each_from,
        reward=_gift(message.reward, currency_code) if message.HasField("reward") else None,
        invitee_reward=_gift(message.invitee_reward, currency_code)
        if message.HasField("invitee_reward")
        else None,
    )


def _gift(message: pb.Gift, currency_code: str) -> Gift:
    made = partial(Gift, cost_minor=message.cost_minor)
    match message.WhichOneof("reward"):
        case "points":
            return made(kind=GiftKind.POINTS, quantity=message.points.amount)
        case "card":
            return made(kind=GiftKind.CARD, code=message.card.plan_id)
        case "coupon":
            coupon = message.coupon
            return made(kind=GiftKind.COUPON, code=coupon.coupon_code, quantity=coupon.quantity)
        case "group_entry":
            entry = message.group_entry
            return made(kind=GiftKind.GROUP_ENTRY, code=entry.scheme_id, group_id=entry.group_id)
    cash = message.cash  # costs what it is
    return Gift(
        kind=GiftKind.CASH,
        quantity=cash.amount_minor,
        currency_code=currency_code,
        share_basis_points=cash.share_basis_points,
        cost_minor=cash.amount_minor,
    )


class Campaigns:
    """Compiled versions. A version never changes, so a compiled one is as good as the row."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[tuple[str, int], CompiledCampaign] = OrderedDict()

    def get(self, campaign_id: str, version: int) -> CompiledCampaign | None:
        """A version compiled before."""
        return self._compiled.get((campaign_id, version))

    def keep(self, body: bytes, ladder_version: int) -> CompiledCampaign:
        """Compiles a stored version."""
        compiled = stored(body, ladder_version)
        self._compiled[compiled.name] = compiled
        while len(self._compiled) > COMPILED:
            self._compiled.popitem(last=False)
        return compiled
