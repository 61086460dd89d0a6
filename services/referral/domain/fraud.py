"""How suspicious a bond is: which of its signals are beyond their limits, and what that adds up to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from services.referral.domain.campaigns import Campaign, Signal
from services.referral.domain.profile import Verdict


def beyond(campaign: Campaign, counts: Mapping[Signal, int]) -> tuple[Signal, ...]:
    """The signals of a bind that are beyond their limits, in the campaign's order.

    `counts` is how many members came with the same value, and how many were bound to the inviter within the
    hour, the one who is bound now included each time.
    """
    return tuple(one.signal for one in campaign.signal_limits if counts.get(one.signal, 0) > one.limit)


def too_fast(campaign: Campaign, bind_time: datetime, occur_time: datetime) -> bool:
    """Whether an invitee qualified sooner after the bind than the limit; before it is sooner."""
    limits = [one.limit for one in campaign.signal_limits if one.signal is Signal.FAST]
    return any(occur_time - bind_time < timedelta(seconds=limit) for limit in limits)


def score(campaign: Campaign, signals: Collection[str]) -> int:
    """What signals beyond their limits add up to."""
    return sum(one.score for one in campaign.signal_limits if one.signal in signals)


def verdict(campaign: Campaign, total: int) -> Verdict:
    """What a score means."""
    if campaign.reject_score and total >= campaign.reject_score:
        return Verdict.REJECT
    if campaign.review_score and total >= campaign.review_score:
        return Verdict.REVIEW
    return Verdict.PASS
