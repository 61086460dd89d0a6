"""The operator's desk by call: bonds to judge, rewards that are not handed over, blocks, budgets."""

from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from tests.conftest import NOON
from tests.referral.calls import (
    bind,
    bring,
    cash,
    invite,
    made,
    open_rewards,
    points,
    progress,
    put,
    qualify,
    refuse,
    reviews,
    rewards,
    stamp,
    until_granted,
)
from tests.support import Referral, eventually, fresh, refused

DEVICE = [{"signal": "SIGNAL_DEVICE", "limit": 1, "score": 50}]
COUPON = {"coupon": {"coupon_code": "fries", "quantity": 1}}


def paying(referral: Referral, reward: dict[str, Any], **said: Any) -> pb.Campaign:
    """A campaign that gives this for the first invitee."""
    return made(referral, ladder=[{"step_id": "one", "at": 1, "reward": reward}], **said)


def earned(referral: Referral, campaign: pb.Campaign, inviter: str = "") -> pb.Reward:
    """A granted reward of an inviter, by default a new one, who brought somebody."""
    inviter = inviter or fresh("inviter")
    qualify(referral, campaign, bring(referral, campaign, inviter))
    return until_granted(referral, inviter)


def statuses(referral: Referral, member: str) -> list[pb.RewardStatus.ValueType]:
    return [reward.status for reward in rewards(referral, member)]


def budget(referral: Referral, campaign: pb.Campaign) -> pb.Budget:
    request = pb.GetBudgetRequest(campaign_id=campaign.campaign_id)
    return referral.call(referral.referral.GetBudget, request)


# --- bonds to judge -----------------------------------------------------------------------------------


def resolve(
    referral: Referral, review: pb.Review, verdict: pb.ReviewStatus.ValueType, **said: Any
) -> pb.Review:
    whole = {"request_id": fresh("resolve"), "note": "asked them", **said}
    request = pb.ResolveReviewRequest(review_id=review.review_id, verdict=verdict, **whole)
    return referral.call(referral.referral.ResolveReview, request)


def suspicious(referral: Referral, campaign: pb.Campaign, inviter: str) -> str:
    """An invitee with the device of another one, who did what is asked for."""
    code, device, member = (
        invite(referral, campaign, inviter).code,
        pb.Signals(device=fresh("d")),
        fresh("twin"),
    )
    bind(referral, campaign, fresh("first"), code, signals=device)
    bond = bind(referral, campaign, member, code, signals=device)
    assert bond.status == pb.ATTRIBUTION_STATUS_BOUND  # whoever told it learns nothing
    assert qualify(referral, campaign, member).attribution.status != pb.ATTRIBUTION_STATUS_QUALIFIED
    return member


def test_nothing_is_paid_in_review_and_nothing_is_lost_when_it_is_passed(referral: Referral) -> None:
    campaign, inviter = made(referral, signal_limits=DEVICE, review_score=50), fresh("inviter")
    member = suspicious(referral, campaign, inviter)
    eventually(lambda: progress(referral, campaign, inviter).pending == 2)
    [review] = reviews(referral, campaign)
    assert (review.member_id, review.inviter_member_id, review.score) == (member, inviter, 50)
    assert (list(review.signals), review.status) == ([pb.SIGNAL_DEVICE], pb.REVIEW_STATUS_OPEN)
    assert not rewards(referral, inviter)
    passed = resolve(referral, review, pb.REVIEW_STATUS_PASSED)
    assert (passed.status, passed.note) == (pb.REVIEW_STATUS_PASSED, "asked them")
    assert until_granted(referral, inviter).status == pb.REWARD_STATUS_GRANTED
    assert not reviews(referral, campaign)
    assert reviews(referral, campaign, include_resolved=True) == [passed]


def test_a_bond_that_is_rejected_after_all_gives_back_what_it_gave(referral: Referral) -> None:
    campaign = made(
        referral, signal_limits=DEVICE, review_score=50, on_drop="ON_DROP_KEEP"
    )  # which fraud does not keep
    inviter = fresh("inviter")
    suspicious(referral, campaign, inviter)
    [review] = reviews(referral, campaign)
    resolve(referral, review, pb.REVIEW_STATUS_PASSED)
    until_granted(referral, inviter)
    resolve(referral, review, pb.REVIEW_STATUS_REJECTED)
    eventually(lambda: statuses(referral, inviter) == [pb.REWARD_STATUS_CLAWED_BACK])
    assert rewards(referral, inviter)[0].reason == "FRAUD"
    assert progress(referral, campaign, inviter).rejected == 1


def test_a_bond_beyond_the_limit_never_counts_and_the_caller_is_not_told(referral: Referral) -> None:
    campaign, inviter = made(referral, signal_limits=DEVICE, reject_score=50), fresh("inviter")
    suspicious(referral, campaign, inviter)
    eventually(lambda: progress(referral, campaign, inviter).rejected == 1)
    assert not reviews(referral, campaign)
    assert not rewards(referral, inviter)


def test_what_its_score_rejected_counts_once_an_operator_passes_it(referral: Referral) -> None:
    campaign, inviter = made(referral, signal_limits=DEVICE, reject_score=50), fresh("inviter")
    member = suspicious(referral, campaign, inviter)
    eventually(lambda: progress(referral, campaign, inviter).rejected == 1)
    [review] = reviews(referral, campaign, include_resolved=True)
    assert (review.member_id, review.status) == (member, pb.REVIEW_STATUS_REJECTED)
    assert (review.score, review.resolved_by) == (50, "~score")
    resolve(referral, review, pb.REVIEW_STATUS_PASSED)
    assert until_granted(referral, inviter).status == pb.REWARD_STATUS_GRANTED
    assert progress(referral, campaign, inviter).rejected == 0


def test_a_review_that_is_not_there_is_unknown(referral: Referral) -> None:
    with refused(StatusCode.NOT_FOUND, "REVIEW_UNKNOWN"):
        resolve(referral, pb.Review(review_id="rvw_0"), pb.REVIEW_STATUS_PASSED)


# --- rewards ------------------------------------------------------------------------------------------


def retry(referral: Referral, reward: pb.Reward) -> pb.Reward:
    request = pb.RetryRewardRequest(request_id=fresh("retry"), reward_id=reward.reward_id)
    return referral.call(referral.referral.RetryReward, request)


def write_off(referral: Referral, reward: pb.Reward, request_id: str = "") -> pb.Reward:
    request = pb.WriteOffRewardRequest(request_id=request_id or fresh("write"), reward_id=reward.reward_id)
    return referral.call(referral.referral.WriteOffReward, request)


def paid(referral: Referral, reward: pb.Reward, request_id: str = "", reference: str = "wire-1") -> pb.Reward:
    request = pb.RecordRewardPaidRequest(
        request_id=request_id or fresh("paid"), reward_id=reward.reward_id, reference_id=reference
    )
    return referral.call(referral.referral.RecordRewardPaid, request)


@pytest.mark.parametrize("reward", [cash(500), COUPON], ids=["cash", "coupon"])
def test_what_is_handed_over_outside_is_closed_by_who_paid_it(
    referral: Referral, reward: dict[str, Any]
) -> None:
    given = earned(referral, paying(referral, reward, currency_code="CNY"))
    request_id = fresh("paid")
    closed = paid(referral, given, request_id)
    assert (closed.status, closed.reference_id) == (pb.REWARD_STATUS_FULFILLED, "wire-1")
    assert paid(referral, given, request_id) == closed
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        paid(referral, given, request_id, "wire-2")
    with refused(StatusCode.FAILED_PRECONDITION, "REWARD_NOT_OPEN") as refusal:
        paid(referral, given)
    assert refusal.metadata == {"status": "FULFILLED"}


def test_what_another_service_hands_over_is_not_closed_by_hand(referral: Referral) -> None:
    given = earned(referral, paying(referral, points(10)))
    with refused(StatusCode.FAILED_PRECONDITION, "REWARD_NOT_PAID_OUTSIDE"):
        paid(referral, given)
    for act in (retry, write_off):  # it is on its way
        with refused(StatusCode.FAILED_PRECONDITION, "REWARD_NOT_OPEN"):
            act(referral, given)
    for act in (retry, write_off, paid):
        with refused(StatusCode.NOT_FOUND, "REWARD_UNKNOWN"):
            act(referral, pb.Reward(reward_id="rwd_0"))


def test_what_was_refused_is_tried_again_or_given_up_and_its_cost_returns(referral: Referral) -> None:
    campaign = paying(referral, points(10, 600), currency_code="CNY", budget_minor=1_000)
    given = earned(referral, campaign)
    refuse(referral, given)
    [failed] = open_rewards(referral, campaign, troubled=True)
    assert (failed.status, failed.reason) == (pb.REWARD_STATUS_FAILED, "PROGRAMME_UNKNOWN")
    again = retry(referral, given)
    assert (again.status, again.reason, again.reward_id) == (
        pb.REWARD_STATUS_GRANTED,
        "",
        given.reward_id,
    )
    assert not open_rewards(referral, campaign, troubled=True)
    refuse(referral, given)
    waiting = fresh("inviter")
    qualify(referral, campaign, bring(referral, campaign, waiting))
    eventually(lambda: budget(referral, campaign).exhausted)
    gone = write_off(referral, given)
    assert (gone.status, gone.reason) == (pb.REWARD_STATUS_CLAWED_BACK, "WRITTEN_OFF")
    assert until_granted(referral, waiting).cost_minor == 600  # for which there is room now
    assert budget(referral, campaign).granted_minor == 600


def test_a_kol_gets_a_share_of_each_order(referral: Referral) -> None:
    share = {"step_id": "share", "each_from": 1, "reward": {"cash": {"share_basis_points": 333}}}
    campaign = made(referral, ladder=[share], currency_code="CNY", budget_minor=1_000)
    kol = fresh("kol")
    for amount in (3_000, 1_001):
        qualify(referral, campaign, bring(referral, campaign, kol), amount_minor=amount)
    eventually(lambda: statuses(referral, kol) == [pb.REWARD_STATUS_GRANTED] * 2)
    given = rewards(referral, kol)
    # 3.33 % of 30.00 and of 10.01, in whole fen.
    assert sorted((one.cash.amount_minor, one.cost_minor) for one in given) == [(33, 33), (99, 99)]
    assert all(one.cash.order_id for one in given)
    assert budget(referral, campaign).granted_minor == 132


def test_rewards_that_wait_to_be_handed_over_are_listed_longest_first(referral: Referral) -> None:
    campaign = paying(referral, cash(1), currency_code="CNY")
    given = [earned(referral, campaign).reward_id for _ in range(3)]
    for size in (0, 1, 2):
        found = open_rewards(referral, campaign, page_size=size)
        # They may be granted within the same instant.
        assert sorted(found, key=lambda one: (one.grant_time.ToNanoseconds(), one.reward_id)) == found
        assert {one.reward_id for one in found} == set(given)
    assert not open_rewards(referral, campaign, troubled=True)
    paid(referral, found[0])
    assert len(open_rewards(referral, campaign)) == 2


# --- the budget ---------------------------------------------------------------------------------------


def test_what_does_not_fit_waits_until_the_budget_is_raised(referral: Referral) -> None:
    campaign = paying(referral, cash(600), currency_code="CNY", budget_minor=1_000)
    first = earned(referral, campaign)
    second = fresh("inviter")
    qualify(referral, campaign, bring(referral, campaign, second))
    eventually(lambda: budget(referral, campaign).exhausted)
    spent = budget(referral, campaign)
    assert (spent.budget_minor, spent.granted_minor, spent.waiting_count) == (1_000, 600, 1)
    assert statuses(referral, second) == [pb.REWARD_STATUS_PENDING]
    campaign.budget_minor = 599
    # One reward is more than that, and more is spent: either is a fault of the budget.
    with refused(StatusCode.INVALID_ARGUMENT, "CAMPAIGN_INVALID"):
        put(referral, campaign)
    campaign.ladder[0].reward.cash.amount_minor = 500
    with refused(StatusCode.FAILED_PRECONDITION, "BUDGET_SPENT") as refusal:
        put(referral, campaign)
    assert refusal.metadata == {"granted_minor": "600"}
    campaign.budget_minor = 1_200
    put(referral, campaign)
    assert until_granted(referral, second).cash.amount_minor == 600  # it keeps what it was reached under
    assert not budget(referral, campaign).exhausted
    assert first.status == pb.REWARD_STATUS_GRANTED
    campaign.currency_code = "USD"
    with refused(StatusCode.FAILED_PRECONDITION, "CURRENCY_FIXED"):
        put(referral, campaign)


def test_a_rung_that_is_put_later_is_reached_by_who_has_enough_already(referral: Referral) -> None:
    campaign = paying(referral, points(10), caps={"per_month": 10})
    given = earned(referral, campaign)
    later = campaign.ladder.add(step_id="later", at=1)
    later.reward.points.amount = 500
    del campaign.ladder[:-1]
    put(referral, campaign)
    asked = pb.GetProgressRequest(member_id=given.inviter_member_id, campaign_id=campaign.campaign_id)

    def reached() -> list[str]:
        steps = referral.call(referral.referral.GetProgress, asked).steps
        return sorted({step.step_id for step in steps})

    eventually(lambda: "later" in reached())
    assert given.step_id in reached()  # what was reached stays


def test_caps_only_rise(referral: Referral) -> None:
    campaign = made(referral, caps={"per_day": 2, "per_month": 10})
    campaign.caps.per_month = 9
    with refused(StatusCode.FAILED_PRECONDITION, "CAPS_LOWERED") as refusal:
        put(referral, campaign)
    assert refusal.metadata == {"caps": "per_month"}
    campaign.caps.per_month = 11
    put(referral, campaign)


# --- blocks -------------------------------------------------------------------------------------------


def block(referral: Referral, member: str, campaign_id: str = "") -> pb.Block:
    request = pb.BlockInviterRequest(
        request_id=fresh("block"), member_id=member, campaign_id=campaign_id, reason="sells-codes"
    )
    return referral.call(referral.referral.BlockInviter, request)


def unblock(referral: Referral, member: str, campaign_id: str = "") -> list[pb.Block]:
    request = pb.UnblockInviterRequest(request_id=fresh("unblock"), member_id=member, campaign_id=campaign_id)
    return list(referral.call(referral.referral.UnblockInviter, request).blocks)


@pytest.mark.parametrize("everywhere", [True, False], ids=["in all campaigns", "in one"])
def test_a_blocked_inviter_brings_nobody_and_its_rewards_wait(referral: Referral, everywhere: bool) -> None:
    campaign, inviter, other = made(referral), fresh("inviter"), fresh("other")
    code = invite(referral, campaign, inviter).code
    member = bring(referral, campaign, inviter)
    where = "" if everywhere else campaign.campaign_id
    set_ = block(referral, inviter, where)
    assert (set_.member_id, set_.campaign_id, set_.reason) == (inviter, where, "sells-codes")
    with refused(StatusCode.FAILED_PRECONDITION, "INVITER_BLOCKED"):
        bind(referral, campaign, fresh("member"), code)
    qualify(referral, campaign, member, occur_time=stamp(NOON))
    eventually(lambda: statuses(referral, inviter) == [pb.REWARD_STATUS_PENDING])
    qualify(referral, campaign, bring(referral, campaign, other))
    assert until_granted(referral, other)  # others do not wait for it
    assert statuses(referral, inviter) == [pb.REWARD_STATUS_PENDING]
    assert unblock(referral, inviter, where) == []
    assert until_granted(referral, inviter).role == epb.REWARD_ROLE_INVITER
    assert unblock(referral, inviter, where) == []


def test_blocks_in_one_campaign_and_in_all_are_two(referral: Referral) -> None:
    campaign, inviter = made(referral), fresh("inviter")
    everywhere, here = block(referral, inviter), block(referral, inviter, campaign.campaign_id)
    assert unblock(referral, inviter, campaign.campaign_id) == [everywhere]
    assert block(referral, inviter, campaign.campaign_id) == here
    with refused(StatusCode.FAILED_PRECONDITION, "INVITER_BLOCKED"):
        invite(referral, campaign, inviter)
    with refused(StatusCode.NOT_FOUND, "CAMPAIGN_UNKNOWN"):
        block(referral, inviter, fresh("campaign"))
