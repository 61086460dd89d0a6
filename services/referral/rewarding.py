"""Rewards, from the moment that they may be granted until they are handed over, refused or taken back.

They are granted against the campaign's budget by one job (`service.grant`), and by nothing else. Handing over
is left to others, who act once under a reward's id: so it is told again under that id as often as need be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial

from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.due import Due
from services.referral import events, messages
from services.referral.commands import (
    GrantReward,
    RecordRewardPaid,
    RetryReward,
    ReturnReward,
    RewardHandedOver,
    RewardRefused,
    WriteOffReward,
)
from services.referral.domain import rewards
from services.referral.domain.campaigns import Campaign
from services.referral.domain.profile import Reward, RewardStatus, Role
from services.referral.steps import Step

# --- the budget ---------------------------------------------------------------------------------------


def grant(step: Step, command: GrantReward) -> None:
    """Grants a reward that waited long enough, and that the budget has room for."""
    reward = step.reward(command.reward_id)
    budget = step.budget(reward.campaign_id)
    spent = budget.granted_minor + reward.gift.cost_minor
    step.budgets[reward.campaign_id] = replace(budget, granted_minor=spent)
    _tell(step, rewards.granted(reward, _campaign(step, reward), step.at))


def give_back(step: Step, command: ReturnReward) -> None:
    """Gives the budget back what a reward cost that was taken back, once."""
    reward = step.reward(command.reward_id)
    if reward.status is RewardStatus.CLAWED_BACK and not reward.returned:
        budget = step.budget(reward.campaign_id)
        left = budget.granted_minor - reward.gift.cost_minor
        step.budgets[reward.campaign_id] = replace(budget, granted_minor=left)
        step.keep(replace(reward, returned=True))


# --- handed over or not -------------------------------------------------------------------------------


def handed_over(step: Step, command: RewardHandedOver) -> None:
    """Notes that a reward was handed over; of one that was taken back meanwhile that changes nothing."""
    reward = step.reward(command.reward_id)
    keep(step, rewards.handed_over(reward, command.reference_id, step.at))


def refused(step: Step, command: RewardRefused) -> None:
    """Notes that whoever hands a reward over refuses to."""
    reward = step.reward(command.reward_id)
    keep(step, rewards.refused(reward, command.reason, step.at))


def record_paid(step: Step, command: RecordRewardPaid) -> pb.Reward:
    """Notes that coupons were issued, or cash paid.

    Raises RewardUnknown, RewardNotPaidOutside, RewardNotOpen.
    """
    paid = rewards.paid(step.reward(command.reward_id), command.reference_id, step.at)
    return _shown(step, keep(step, paid))


# --- the operator's desk ------------------------------------------------------------------------------


def retry(step: Step, command: RetryReward) -> pb.Reward:
    """Has a reward handed over again that failed or is overdue. Raises RewardUnknown, RewardNotOpen."""
    reward = step.reward(command.reward_id)
    return _shown(step, _tell(step, rewards.retried(reward, _campaign(step, reward), step.at)))


def write_off(step: Step, command: WriteOffReward) -> pb.Reward:
    """Gives a reward up that failed or is overdue. Raises RewardUnknown, RewardNotOpen."""
    return _shown(step, keep(step, rewards.written_off(step.reward(command.reward_id), step.at)))


# --- by the clock -------------------------------------------------------------------------------------


def upcoming(step: Step) -> Iterator[Due]:
    """Rewards that are not handed over in time."""
    for reward in step.profile.rewards.values():
        if reward.fulfil_by is not None:
            yield Due(reward.fulfil_by, partial(_remind, step, reward))


def _remind(step: Step, reward: Reward, _: datetime) -> None:
    """Tells a reward again: once, however many times it should have been by now."""
    _tell(step, rewards.reminded(reward, _campaign(step, reward), step.at))


# --- what they share ----------------------------------------------------------------------------------


def keep(step: Step, reward: Reward) -> Reward:
    """Keeps what has become of a reward, tells it where somebody has to know, and returns it as it is kept.

    One that was never granted was nothing to anybody.
    """
    known = step.profile.rewards.get(reward.reward_id)
    if known is not None and known.status is not reward.status:
        match reward.status:
            case RewardStatus.FULFILLED:
                return step.announce_reward(reward, events.reward_fulfilled)
            case RewardStatus.FAILED:
                return step.announce_reward(reward, events.reward_failed)
            case RewardStatus.CLAWED_BACK:
                return step.announce_reward(reward, events.reward_clawed_back)
    step.keep(reward)
    return reward


def _tell(step: Step, reward: Reward) -> Reward:
    """Has a granted reward handed over, for the first time or again."""
    invite = step.profile.invites.get(reward.campaign_id) if reward.role is Role.INVITER else None
    where = (invite.group_id, invite.masked_name) if invite else ("", "")
    return step.announce_reward(reward, events.reward_granted, *where)


def _campaign(step: Step, reward: Reward) -> Campaign:
    return step.campaign(reward.campaign_id, reward.campaign_version)


def _shown(step: Step, reward: Reward) -> pb.Reward:
    return messages.reward(step.profile.member_id, reward)
