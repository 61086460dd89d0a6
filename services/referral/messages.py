"""Messages of the contract: requests as commands, and what is kept as calls are answered with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from loyalty.referral.v1 import referral_service_pb2 as pb
from loyalty.referral.v1.referral_events_pb2 import QUALIFICATION_KIND_UNSPECIFIED

from services.chassis.asked import by_call
from services.chassis.auth import CALLER
from services.chassis.database import Row
from services.chassis.timestamps import instant_of, timestamp, timestamp_of
from services.referral import events, store
from services.referral.commands import BindInvitee
from services.referral.domain import ladder, profile
from services.referral.domain.campaigns import Campaign, Signal
from services.referral.domain.profile import (
    AttributionStatus,
    InviteeState,
    Profile,
    RewardStatus,
    Role,
    Rung,
    Verdict,
)

SERVICE = "/loyalty.referral.v1.ReferralService/"
"""What the path of a method begins with."""

SHOWN = 1_000  # rewards and rungs in a member's progress

STATUSES = {one: pb.AttributionStatus.Value(f"ATTRIBUTION_STATUS_{one}") for one in AttributionStatus}
STATES = {state: pb.InviteeState.Value(f"INVITEE_STATE_{state}") for state in InviteeState}
REWARD_STATUSES = {status: pb.RewardStatus.Value(f"REWARD_STATUS_{status}") for status in RewardStatus}
SIGNALS = {signal: pb.Signal.Value(f"SIGNAL_{signal}") for signal in Signal}
VERDICTS = {
    "": pb.REVIEW_STATUS_OPEN,
    Verdict.PASS: pb.REVIEW_STATUS_PASSED,
    Verdict.REJECT: pb.REVIEW_STATUS_REJECTED,
}
_TOLD = (Signal.DEVICE, Signal.IP_PREFIX, Signal.PAYMENT_ACCOUNT, Signal.ADDRESS)


# --- requests as commands -----------------------------------------------------------------------------


def asked(method: str, request: Any) -> dict[str, Any]:
    """What every command has, by the request."""
    return by_call(SERVICE + method, request)


def binding(request: pb.BindInviteeRequest) -> BindInvitee:
    """The payload's hash has no signals: a repeat's are others, and a hash can be guessed."""
    hashed = pb.BindInviteeRequest()
    hashed.CopyFrom(request)
    hashed.ClearField("signals")
    common = asked("BindInvitee", hashed)
    told = {signal: getattr(request.signals, signal.lower()) for signal in _TOLD}
    return BindInvitee(
        **common,
        campaign_id=request.campaign_id,
        code=request.code,
        signals={signal: value for signal, value in told.items() if value},
        member_since=instant_of(request, "member_since"),
        # A token of the brand speaks for all its members: what one of them tries must not lock others out.
        caller=f"{common['actor']} {request.member_id}",
    )


def fact_attributes(details: pb.FactDetails) -> Mapping[str, str]:
    """What `when` reads, as far as it is told."""
    return {field.name: "true" if value is True else str(value) for field, value in details.ListFields()}


# --- what is kept, as messages ------------------------------------------------------------------------


def seen(shown: Any) -> Any:
    """What the caller may see: who holds a member token, no other members' ids."""
    own = CALLER.get().member_id
    for name in ("member_id", "inviter_member_id", "receiver_member_id") if own is not None else ():
        if name in shown.DESCRIPTOR.fields_by_name and getattr(shown, name) != own:
            shown.ClearField(name)
    return shown


def campaign(row: Row) -> pb.Campaign:
    """A version of a campaign, as it was put."""
    return pb.Campaign.FromString(row["body"])


def invite(member_id: str, kept: profile.Invite, campaign: Campaign) -> pb.Invite:
    """A member's invite."""
    return pb.Invite(
        member_id=member_id,
        campaign_id=kept.campaign_id,
        code=kept.code,
        scene=kept.code,
        share_title=campaign.share_title,
        poster_fields=events.poster(kept, campaign),
        group_id=kept.group_id,
        create_time=timestamp(kept.create_time),
    )


def attribution(member_id: str, kept: profile.Attribution) -> pb.Attribution:
    """By whom a member, the invitee, was brought."""
    return pb.Attribution(
        attribution_id=kept.attribution_id,
        campaign_id=kept.campaign_id,
        campaign_version=kept.campaign_version,
        member_id=member_id,
        inviter_member_id=kept.inviter_id,
        code=kept.code,
        bind_time=timestamp(kept.bind_time),
        lapse_time=timestamp(kept.lapse_time),
        status=STATUSES[kept.status],
        kind=events.KINDS[kept.kind] if kept.kind else QUALIFICATION_KIND_UNSPECIFIED,
        reference_id=kept.reference_id,
        amount_minor=kept.amount_minor,
        currency_code=kept.currency_code,
        qualify_time=timestamp_of(kept.qualify_time),
        version=kept.version,
    )


def bound(member_id: str, kept: profile.Attribution) -> pb.BindInviteeResponse:
    """A bond just made. What is thought of it is nobody's business but the operators': it is BOUND."""
    answer = pb.BindInviteeResponse(attribution=attribution(member_id, kept))
    answer.attribution.status = pb.ATTRIBUTION_STATUS_BOUND
    return answer


def invitee(kept: profile.Invitee) -> pb.Invitee:
    """Somebody whom a member brought."""
    return pb.Invitee(
        attribution_id=kept.attribution_id,
        campaign_id=kept.campaign_id,
        member_id=kept.member_id,
        depth=kept.depth,
        state=STATES[kept.state],
        bind_time=timestamp_of(kept.bind_time),
        kind=events.KINDS[kept.kind] if kept.kind else QUALIFICATION_KIND_UNSPECIFIED,
        qualify_time=timestamp_of(kept.qualify_time),
    )


def reached(kept: Rung) -> pb.ReachedStep:
    """A rung that a member stands on, or stood on."""
    return pb.ReachedStep(
        step_id=kept.step_id,
        round=kept.round,
        position=kept.position,
        attempt=kept.attempt,
        reach_time=timestamp(kept.reach_time),
        lost=kept.lost,
    )


def reward(inviter_id: str, kept: profile.Reward) -> pb.Reward:
    """A reward, of a rung of the inviter's."""
    return pb.Reward(
        reward_id=kept.reward_id,
        campaign_id=kept.campaign_id,
        campaign_version=kept.campaign_version,
        step_id=kept.step_id,
        round=kept.round,
        attempt=kept.attempt,
        role=events.ROLES[kept.role],
        inviter_member_id=inviter_id,
        receiver_member_id=kept.receiver_id,
        **events.gift(kept),
        cost_minor=kept.gift.cost_minor,
        status=REWARD_STATUSES[kept.status],
        reach_time=timestamp(kept.reach_time),
        grant_after_time=timestamp(kept.grant_after),
        grant_time=timestamp_of(kept.grant_time),
        fulfil_by_time=timestamp_of(kept.fulfil_by),
        overdue=kept.overdue,
        end_time=timestamp_of(kept.end_time),
        reference_id=kept.reference_id,
        reason=kept.reason,
        version=kept.version,
    )


def progress(kept: Profile, campaign: Campaign, zone: ZoneInfo) -> pb.Progress:
    """Where a member stands on a ladder, as the caller may see it."""
    invitees = kept.invitees.values()
    counted = ladder.lines(invitees, campaign, zone)
    states = Counter(one.state for one in invitees if one.depth == 1)
    ahead = ladder.ahead(campaign, 1, len(counted[1]), kept.rungs)
    steps = sorted(kept.rungs.values(), key=lambda rung: (rung.step_id, rung.round))
    return pb.Progress(
        member_id=kept.member_id,
        campaign_id=campaign.campaign_id,
        qualified=len(counted[1]),
        pending=states[InviteeState.BOUND],
        rejected=states[InviteeState.REVOKED] + states[InviteeState.DROPPED],
        qualified_second=len(counted.get(2, ())),
        steps=map(reached, steps[-SHOWN:]),
        next=pb.NextStep(step_id=ahead.step_id, missing=ahead.missing) if ahead else None,
        rewards=[seen(reward(kept.member_id, one)) for one in _own_rewards(kept)],
    )


def _own_rewards(kept: Profile) -> list[profile.Reward]:
    """What a member gets for its own rungs, newest first."""
    own = (reward for reward in kept.rewards.values() if reward.role is Role.INVITER)
    return sorted(own, key=lambda reward: (reward.reach_time, reward.reward_id), reverse=True)[:SHOWN]


def review(kept: store.Review) -> pb.Review:
    """A bond that an operator has to judge, or has judged."""
    return pb.Review(
        review_id=kept.review_id,
        campaign_id=kept.campaign_id,
        attribution_id=kept.attribution_id,
        member_id=kept.member_id,
        inviter_member_id=kept.inviter_id,
        score=kept.score,
        signals=[SIGNALS[Signal(name)] for name in kept.signals],
        status=VERDICTS[kept.verdict],
        create_time=timestamp(kept.create_time),
        resolve_time=timestamp_of(kept.resolve_time),
        resolved_by=kept.resolved_by,
        note=kept.note,
    )


def place(found: store.Place) -> pb.LeaderboardEntry:
    """A place on the leaderboard; how far beyond the counted ones it is, is not known."""
    beyond = found.number > store.EXACT
    return pb.LeaderboardEntry(
        rank=0 if beyond else found.number,
        member_id=found.member_id,
        masked_name=found.masked_name,
        qualified=found.rank.count,
        reach_time=timestamp(found.rank.reach_time),
        beyond=beyond,
    )


def block(kept: store.Block) -> pb.Block:
    """What keeps a member from inviting."""
    return pb.Block(
        member_id=kept.member_id,
        campaign_id=kept.campaign_id,
        reason=kept.reason,
        block_time=timestamp(kept.create_time),
        blocked_by=kept.author,
    )


def fact(kept: profile.Fact) -> pb.ExportedFact:
    """Something that a member did."""
    return pb.ExportedFact(
        kind=events.KINDS[kept.kind],
        reference_id=kept.reference_id,
        occur_time=timestamp_of(kept.occur_time),
        amount_minor=kept.amount_minor,
        currency_code=kept.currency_code,
        attributes=kept.attributes,
        revoke_time=timestamp_of(kept.revoke_time),
    )


def signals(seen: Iterable[store.SignalSeen]) -> list[pb.ExportedSignal]:
    """What a member came with."""
    return [
        pb.ExportedSignal(campaign_id=one.campaign_id, signal=SIGNALS[Signal(one.signal)], value=one.value)
        for one in seen
    ]
