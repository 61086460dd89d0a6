"""Domain facts as messages: what is announced of invitations, ladders and rewards."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from loyalty.referral.v1 import referral_events_pb2 as epb

from services.chassis.outbox import About, Event, announcement
from services.chassis.timestamps import timestamp
from services.referral.domain.campaigns import Campaign, FactKind, GiftKind
from services.referral.domain.profile import (
    Attribution,
    AttributionStatus,
    Invite,
    RevokeReason,
    Reward,
    Role,
    Rung,
)

STREAM = "REFERRAL"
SUBJECTS = ("loyalty.referral.v1.>",)

KINDS = {kind: epb.QualificationKind.Value(f"QUALIFICATION_KIND_{kind}") for kind in FactKind}
ROLES = {role: epb.RewardRole.Value(f"REWARD_ROLE_{role}") for role in Role}
REVOKE_REASONS = {reason: epb.RevokeReason.Value(f"REVOKE_REASON_{reason}") for reason in RevokeReason}
DROP_REASONS = {
    AttributionStatus.LAPSED: epb.DROP_REASON_LAPSED,
    AttributionStatus.REJECTED: epb.DROP_REASON_REJECTED,
}

_event = partial(announcement, STREAM)


# --- the invitee --------------------------------------------------------------------------------------


def invite_created(about: About, created: tuple[Invite, Campaign]) -> Event:
    """A member can invite: with which code, in which campaign."""
    one, campaign = created
    return _event(
        about,
        epb.InviteCreated,
        campaign_id=one.campaign_id,
        campaign_version=one.campaign_version,
        code=one.code,
        scene=one.code,
        share_title=campaign.share_title,
        poster_fields=poster(one, campaign),
        group_id=one.group_id,
    )


def poster(one: Invite, campaign: Campaign) -> dict[str, str]:
    """What a personal poster shows, with the code and the name filled in."""
    return {
        name: text.replace("{code}", one.code).replace("{name}", one.masked_name)
        for name, text in campaign.poster_fields.items()
    }


Bond = tuple[Attribution, int]
"""An attribution, and for whom it is told: 1 for the inviter, 2 for the one who brought the inviter."""


def _bond(bond: Bond) -> dict[str, Any]:
    one, depth = bond
    return {
        "attribution_id": one.attribution_id,
        "campaign_id": one.campaign_id,
        "campaign_version": one.campaign_version,
        "inviter_member_id": one.inviter_id if depth == 1 else one.grand_inviter_id,
        "depth": depth,
    }


def invitee_bound(about: About, bond: Bond) -> Event:
    """A member was brought by another."""
    return _event(about, epb.InviteeBound, **_bond(bond), lapse_time=timestamp(bond[0].lapse_time))


def invitee_qualified(about: About, bond: Bond) -> Event:
    """An invitee counts, since it did what the campaign asks for: that is when it happened."""
    one = bond[0]
    assert one.kind is not None  # noqa: S101 - it is qualified
    assert one.qualify_time is not None  # noqa: S101 - as above
    return _event(
        replace(about, occur_time=one.qualify_time),
        epb.InviteeQualified,
        **_bond(bond),
        kind=KINDS[one.kind],
        reference_id=one.reference_id,
        amount_minor=one.amount_minor,
        currency_code=one.currency_code,
    )


def invitee_revoked(about: About, revoked: tuple[Attribution, int, RevokeReason]) -> Event:
    """An invitee who counted does no more: why."""
    one, depth, reason = revoked
    assert one.kind is not None  # noqa: S101 - it was qualified
    return _event(
        about,
        epb.InviteeRevoked,
        **_bond((one, depth)),
        kind=KINDS[one.kind],
        reference_id=one.reference_id,
        reason=REVOKE_REASONS[reason],
    )


def invitee_dropped(about: About, bond: Bond) -> Event:
    """An invitee will not count, having lapsed or been rejected."""
    return _event(about, epb.InviteeDropped, **_bond(bond), reason=DROP_REASONS[bond[0].status])


# --- the inviter --------------------------------------------------------------------------------------


def step_reached(about: About, reached: tuple[Rung, int, str, int]) -> Event:
    """A rung was reached: with how many who count, what is the next one, and how many are missing for it."""
    one, count, next_step_id, missing = reached
    return _event(
        about,
        epb.StepReached,
        campaign_id=one.campaign_id,
        campaign_version=one.campaign_version,
        step_id=one.step_id,
        round=one.round,
        attempt=one.attempt,
        qualified_count=count,
        next_step_id=next_step_id,
        missing_count=missing,
    )


# --- rewards ------------------------------------------------------------------------------------------


def gift(one: Reward) -> dict[str, Any]:
    """What a reward gives, as the field of the contract that it is."""
    what = one.gift
    match what.kind:
        case GiftKind.POINTS:
            return {"points": epb.PointsReward(amount=what.quantity)}
        case GiftKind.CARD:
            return {"card": epb.CardReward(plan_id=what.code)}
        case GiftKind.COUPON:
            return {"coupon": epb.CouponReward(coupon_code=what.code, quantity=what.quantity)}
        case GiftKind.GROUP_ENTRY:
            return {"group_entry": epb.GroupEntryReward(scheme_id=what.code, group_id=what.group_id)}
        case GiftKind.CASH:
            cash = epb.CashReward(
                amount_minor=what.quantity, currency_code=what.currency_code, order_id=one.order_id
            )
            return {"cash": cash}


def _given(one: Reward) -> dict[str, Any]:
    return {
        "reward_id": one.reward_id,
        "campaign_id": one.campaign_id,
        "step_id": one.step_id,
        "role": ROLES[one.role],
        **gift(one),
    }


def reward_granted(about: About, granted: tuple[Reward, str, str]) -> Event:
    """A reward is to be handed over; in which group that is announced, and the name to show there."""
    one, group_id, masked_name = granted
    return _event(
        about,
        epb.RewardGranted,
        **_given(one),
        campaign_version=one.campaign_version,
        round=one.round,
        attempt=one.attempt,
        announce_group_id=group_id,
        masked_name=masked_name,
        qualified_count=one.qualified_count,
    )


def reward_fulfilled(about: About, one: Reward) -> Event:
    """A reward was handed over."""
    return _event(about, epb.RewardFulfilled, **_given(one), reference_id=one.reference_id)


def reward_failed(about: About, one: Reward) -> Event:
    """A reward could not be handed over: why."""
    return _event(
        about,
        epb.RewardFailed,
        reward_id=one.reward_id,
        campaign_id=one.campaign_id,
        step_id=one.step_id,
        reason=one.reason,
    )


def reward_clawed_back(about: About, one: Reward) -> Event:
    """A reward is taken back: why."""
    return _event(about, epb.RewardClawedBack, **_given(one), reason=REVOKE_REASONS[RevokeReason(one.reason)])


# --- campaigns ----------------------------------------------------------------------------------------


def budget_exhausted(about: About, exhausted: tuple[Campaign, int, int]) -> Event:
    """The next reward no longer fits: how many minor units were granted, and how many rewards wait."""
    campaign, granted_minor, waiting = exhausted
    return announcement(
        STREAM,
        about,
        epb.BudgetExhausted,
        names="campaign_id",
        campaign_version=campaign.version,
        budget_minor=campaign.budget_minor,
        granted_minor=granted_minor,
        currency_code=campaign.currency_code,
        waiting_count=waiting,
    )
