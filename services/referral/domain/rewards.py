"""What rungs give, and where a reward stands, from the day that its rung is reached."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from services.referral.domain.campaigns import Campaign, Gift, GiftKind, OnDrop
from services.referral.domain.ladder import Line
from services.referral.domain.profile import RevokeReason, Reward, RewardStatus, Role, Rung
from services.referral.errors import RewardNotOpen, RewardNotPaidOutside

_GONE = (RewardStatus.CLAWED_BACK, RewardStatus.WITHDRAWN)
_PAID_OUTSIDE = (GiftKind.CASH, GiftKind.COUPON)


def stands(reward: Reward) -> bool:
    """Whether its receiver has it, or may get it."""
    return reward.status not in _GONE


# --- what a rung gives --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Basis:
    """What the rewards of a rung follow from, beside the rung."""

    campaign: Campaign
    """The version that the rung keeps."""
    inviter_id: str
    counted: Line
    """Who counts at its depth."""


def follow(
    basis: Basis, rung: Rung, rewards: Collection[Reward], reason: RevokeReason, at: datetime
) -> list[Reward]:
    """What has to change so that a rung gives what it should: rewards that end, and new ones.

    `rewards` are all of the rung's so far; `reason` is why invitees do not count any more, if some do not. On
    each side one stands at most: another comes only once the one before it is gone. So what a campaign lets
    members keep is not given again, nor is what an operator wrote off. What waits to be granted follows its
    rung and stays the same reward: one who is told of late moves everybody behind.
    """
    step = basis.campaign.step(rung.step_id)
    changed: list[Reward] = []
    for role, gift in ((Role.INVITER, step.reward), (Role.INVITEE, step.invitee_reward)):
        mine = [reward for reward in rewards if reward.role is role]
        last = max(mine, key=lambda reward: reward.attempt, default=None)
        wanted = _wanted(basis, rung, role, gift, last.attempt + 1 if last else 1)
        if wanted is not None and last is not None and last.status is RewardStatus.PENDING:
            waiting = replace(wanted, reward_id=last.reward_id, attempt=last.attempt)
            if _essence(waiting) != _essence(last):
                changed.append(waiting)
            continue
        if last is not None and not _holds(last, wanted, basis.counted):
            ended = dropped(last, basis.campaign.on_drop, reason, at)
            if ended is not last:
                changed.append(ended)
            last = ended
        if wanted is not None and _may_follow(last):
            changed.append(wanted)
    return changed


def _wanted(basis: Basis, rung: Rung, role: Role, gift: Gift | None, attempt: int) -> Reward | None:
    """What a rung should give on one side; None where that is nothing."""
    if rung.lost or gift is None:
        return None
    invitee = basis.counted[rung.attribution_id].invitee
    if gift.share_basis_points:
        share = gift.share_of(invitee.amount_minor)
        if not share or invitee.currency_code != basis.campaign.currency_code:
            return None
        gift = replace(gift, quantity=share, cost_minor=share)
    return Reward(
        reward_id=reward_id(basis.inviter_id, rung, role, attempt),
        campaign_id=rung.campaign_id,
        campaign_version=rung.campaign_version,
        step_id=rung.step_id,
        round=rung.round,
        attempt=attempt,
        role=role,
        receiver_id=basis.inviter_id if role is Role.INVITER else invitee.member_id,
        attribution_id=rung.attribution_id,
        gift=gift,
        order_id=invitee.reference_id if gift.share_basis_points else "",
        qualified_count=len(basis.counted),
        reach_time=rung.reach_time,
        grant_after=rung.reach_time + basis.campaign.hold_period,
    )


def reward_id(inviter_id: str, rung: Rung, role: Role, attempt: int) -> str:
    """What a reward is known by to all services: it is made from what it is for, so no race makes two."""
    names = (rung.campaign_id, inviter_id, rung.step_id, str(rung.round), role, str(attempt))
    return "rwd_" + hashlib.sha256("\x00".join(names).encode()).hexdigest()[:32]


def _holds(last: Reward, wanted: Reward | None, counted: Line) -> bool:
    """Whether the reward before is still right.

    Once it is granted, an inviter has it as long as the rung stands, and an invitee as long as it counts,
    whoever stands there by then.
    """
    return wanted is not None and (last.role is Role.INVITER or last.attribution_id in counted)


def _essence(reward: Reward) -> tuple[object, ...]:
    return (reward.receiver_id, reward.gift, reward.order_id, reward.reach_time)


def _may_follow(last: Reward | None) -> bool:
    return last is None or (not stands(last) and last.reason != RevokeReason.WRITTEN_OFF)


# --- where a reward stands ----------------------------------------------------------------------------


def dropped(reward: Reward, on_drop: OnDrop, reason: RevokeReason, at: datetime) -> Reward:
    """Of a rung that is lost: withdrawn if it was not granted, else taken back, as the campaign says.

    What was given for fraud is taken back in any case.
    """
    if reward.status is RewardStatus.PENDING:
        return replace(reward, status=RewardStatus.WITHDRAWN, end_time=at)
    claimed = reward.status is RewardStatus.FULFILLED
    spared = on_drop is OnDrop.KEEP or (on_drop is OnDrop.REVOKE_UNCLAIMED and claimed)
    if not stands(reward) or (spared and reason is not RevokeReason.FRAUD):
        return reward
    return _taken_back(reward, reason, at)


def _taken_back(reward: Reward, reason: RevokeReason, at: datetime) -> Reward:
    return replace(reward, status=RewardStatus.CLAWED_BACK, fulfil_by=None, end_time=at, reason=reason)


def granted(reward: Reward, campaign: Campaign, at: datetime) -> Reward:
    """One that waited, to be handed over from now on."""
    return replace(reward, status=RewardStatus.GRANTED, grant_time=at, fulfil_by=at + campaign.fulfil_within)


def handed_over(reward: Reward, reference_id: str, at: datetime) -> Reward:
    """Its receiver has it. One that was taken back before that was told stays so."""
    if reward.status not in (RewardStatus.GRANTED, RewardStatus.FAILED):
        return reward
    return replace(
        reward,
        status=RewardStatus.FULFILLED,
        fulfil_by=None,
        end_time=at,
        reference_id=reference_id,
        reason="",
    )


def refused(reward: Reward, reason: str, at: datetime) -> Reward:
    """Whoever gives it will not, until an operator has it tried again."""
    if reward.status is not RewardStatus.GRANTED:
        return reward
    return replace(reward, status=RewardStatus.FAILED, fulfil_by=None, end_time=at, reason=reason)


def reminded(reward: Reward, campaign: Campaign, at: datetime) -> Reward:
    """Told again, as it was not handed over in time; the same object where its time is not over."""
    if reward.fulfil_by is None or at < reward.fulfil_by:
        return reward
    return replace(reward, overdue=True, fulfil_by=at + campaign.fulfil_within)


def paid(reward: Reward, reference_id: str, at: datetime) -> Reward:
    """Handed over outside, as an operator tells. Raises RewardNotPaidOutside, RewardNotOpen."""
    if reward.gift.kind not in _PAID_OUTSIDE:
        raise RewardNotPaidOutside(kind=reward.gift.kind)
    if reward.status not in (RewardStatus.GRANTED, RewardStatus.FAILED):
        raise RewardNotOpen(status=reward.status)
    return handed_over(reward, reference_id, at)


def retried(reward: Reward, campaign: Campaign, at: datetime) -> Reward:
    """To be handed over once more. Raises RewardNotOpen."""
    _check_troubled(reward)
    fulfil_by = at + campaign.fulfil_within
    return replace(
        reward, status=RewardStatus.GRANTED, fulfil_by=fulfil_by, overdue=False, end_time=None, reason=""
    )


def written_off(reward: Reward, at: datetime) -> Reward:
    """Given up by an operator. Raises RewardNotOpen."""
    _check_troubled(reward)
    return _taken_back(reward, RevokeReason.WRITTEN_OFF, at)


def _check_troubled(reward: Reward) -> None:
    overdue = reward.status is RewardStatus.GRANTED and reward.overdue
    if reward.status is not RewardStatus.FAILED and not overdue:
        raise RewardNotOpen(status=reward.status)


# --- the budget ---------------------------------------------------------------------------------------


def turn(reward: Reward) -> tuple[datetime, str]:
    """Rewards take from the budget in this order."""
    return (reward.reach_time, reward.reward_id)


def fitting(waiting: Iterable[Reward], left_minor: int) -> Iterator[Reward]:
    """Of rewards that wait those that what is left of a budget, in minor units, is enough for.

    The first that does not fit ends it, so that none waits for ever behind smaller ones.
    """
    for reward in sorted(waiting, key=turn):
        left_minor -= reward.gift.cost_minor
        if left_minor < 0:
            return
        yield reward
