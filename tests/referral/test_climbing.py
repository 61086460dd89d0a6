"""What invitees bring their inviter: rungs, what these give, and what becomes of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from loyalty.referral.v1 import referral_events_pb2 as epb

from services.chassis.asked import by_clock
from services.referral.commands import (
    InviteeTold,
    Joined,
    RecordRewardPaid,
    RetryReward,
    RewardHandedOver,
    RewardRefused,
    WriteOffReward,
)
from services.referral.domain.campaigns import FactKind
from services.referral.domain.profile import (
    EVERYTHING,
    Fact,
    InviteeState,
    RevokeReason,
    Reward,
    RewardStatus,
    Role,
)
from services.referral.errors import RewardNotOpen, RewardNotPaidOutside, RewardUnknown
from tests.referral.circle import ANN, Circle, campaign, order, points, standing, step
from tests.referral.plain import DAY, HOUR, NOON

SHARE = {"cash": {"share_basis_points": 1000}}
COUPON = {"coupon": {"coupon_code": "tea", "quantity": 2}}


def brought(circle: Circle, *names: str, at: datetime | None = None, worth: int = 1000) -> None:
    """Members whom Ann brings, and who order at once, one after the other."""
    for name in names:
        circle.bind(name)
        circle.tell(name, order(f"order-{name}", at or circle.at, worth))
    circle.deliver()


def refunded(circle: Circle, name: str, amount: int = EVERYTHING) -> None:
    """The order of one of them is refunded now."""
    back = {f"refund-{name}": (amount, circle.at)}
    circle.tell(name, Fact(kind=FactKind.ORDER, reference_id=f"order-{name}", refunds=back))
    circle.deliver()


def given(circle: Circle) -> dict[tuple[str, int, str, int], RewardStatus]:
    """What became of each reward, by step, round, receiver and attempt."""
    return {(r.step_id, r.round, r.receiver_id, r.attempt): r.status for r in circle.rewards()}


def only(circle: Circle) -> Reward:
    """The one reward that there is."""
    [reward] = circle.rewards()
    return reward


def a_granted(**said: Any) -> tuple[Circle, Reward]:
    """A reward that was granted at once."""
    circle = Circle(
        campaign(step("one", said.pop("gives", points(500, 100)), at=1), hold_period_hours=0, **said)
    )
    brought(circle, "b1")
    circle.grant()
    return circle, only(circle)


# --- rungs --------------------------------------------------------------------------------------------


def test_each_rung_is_told_with_how_many_count_and_what_comes_next() -> None:
    circle = Circle(
        campaign(step("one", at=1), step("three", at=3), step("more", every={"count": 2, "first": 4}))
    )
    for number in range(6):
        brought(circle, f"b{number}")
    told = [
        (one.step_id, one.round, one.qualified_count, one.next_step_id, one.missing_count)
        for one in circle.heard(epb.StepReached)
    ]
    assert told == [
        ("one", 1, 1, "three", 2),
        ("three", 1, 3, "more", 1),
        ("more", 1, 4, "more", 2),
        ("more", 2, 6, "more", 2),
    ]


def test_an_older_word_about_an_invitee_changes_nothing_but_when_it_was_bound() -> None:
    circle = Circle()
    circle.bind("b1")
    circle.at += HOUR
    circle.tell("b1", order("order-b1", circle.at))
    bound, qualified = circle.mail
    circle.deliver(qualified, bound, qualified)
    [invitee] = circle.profile().invitees.values()
    assert (invitee.state, invitee.bind_time) == (InviteeState.QUALIFIED, NOON)
    assert len(circle.heard(epb.StepReached)) == 1


def test_a_share_follows_the_order_while_it_waits_and_stays_once_it_is_granted() -> None:
    circle = Circle(campaign(step("each", SHARE, each_from=2)))
    brought(circle, "b1", "b2", worth=1005)
    assert (only(circle).gift.quantity, only(circle).order_id) == (100, "order-b2")
    refunded(circle, "b2", 500)
    assert (only(circle).gift.quantity, only(circle).gift.cost_minor, only(circle).attempt) == (50, 50, 1)
    circle.wait(days=7)
    circle.grant()
    refunded(circle, "b1", 1)
    assert circle.seen.budgets["king"].granted_minor == 50
    [granted] = circle.heard(epb.RewardGranted)
    assert (granted.cash.amount_minor, granted.cash.order_id) == (50, "order-b2")


def test_what_an_invitee_gets_goes_to_another_only_once_it_counts_no_more() -> None:
    circle = Circle(
        campaign(
            step("two", at=2, invitee_reward=points(7)), hold_period_hours=0, on_drop="ON_DROP_CLAW_BACK"
        )
    )
    brought(circle, "b1", "b2")
    circle.grant()
    brought(circle, "early", at=NOON - HOUR)  # who was first moves b2 to the third place
    assert {one.receiver_id for one in standing(circle.rewards())} == {ANN, "b2"}
    refunded(circle, "b2")
    assert {one.receiver_id for one in standing(circle.rewards())} == {ANN, "b1"}
    assert [one.member_id for one in circle.heard(epb.RewardClawedBack)] == ["b2"]
    mine = [one for one in circle.rewards() if one.role is Role.INVITER]
    assert [(one.status, one.attempt) for one in mine] == [(RewardStatus.GRANTED, 1)]


@pytest.mark.parametrize(
    ("on_drop", "handed_over", "then"),
    [
        ("ON_DROP_KEEP", False, {1: "GRANTED"}),
        ("ON_DROP_REVOKE_UNCLAIMED", False, {1: "CLAWED_BACK", 2: "PENDING"}),
        ("ON_DROP_REVOKE_UNCLAIMED", True, {1: "FULFILLED"}),
        ("ON_DROP_CLAW_BACK", True, {1: "CLAWED_BACK", 2: "PENDING"}),
    ],
)
def test_of_a_rung_that_is_lost_and_regained_one_reward_stands(
    on_drop: str, handed_over: bool, then: Mapping[int, str]
) -> None:
    circle, reward = a_granted(on_drop=on_drop)
    if handed_over:
        circle.do(RewardHandedOver, reward_id=reward.reward_id, reference_id="txn", occur_time=NOON)
    refunded(circle, "b1")
    assert circle.profile().rungs["king", "one", 1].lost
    brought(circle, "b2")
    assert {one.attempt: str(one.status) for one in circle.rewards()} == then
    assert [one.attempt for one in circle.heard(epb.StepReached)] == [1, 2]


@pytest.mark.parametrize(("order_of", "taken"), [((0, 1), "five"), ((1, 0), "four")])
def test_what_fraud_brought_is_taken_back_and_nothing_else_for_its_sake(
    order_of: tuple[int, int], taken: str
) -> None:
    circle = Circle(campaign(step("four", at=4), step("five", at=5), hold_period_hours=0))
    brought(circle, *(f"b{number}" for number in range(5)))
    circle.grant()
    first, second, *_ = circle.profile().invitees.values()
    told: dict[str, Any] = {"state": InviteeState.REVOKED, "told": (1, 9)}
    mail = [
        replace(first, **told, revoke_reason=RevokeReason.FRAUD),
        replace(second, **told, revoke_reason=RevokeReason.REFUNDED),
    ]
    circle.together(*(InviteeTold(**by_clock(ANN), invitee=mail[index]) for index in order_of))
    assert [one.step_id for one in circle.rewards() if one.status == "CLAWED_BACK"] == [taken]


def test_a_reward_of_a_rung_that_is_lost_before_it_is_granted_never_was() -> None:
    circle = Circle()
    brought(circle, "b1")
    refunded(circle, "b1")
    brought(circle, "b2")
    assert given(circle) == {("one", 1, ANN, 1): "WITHDRAWN", ("one", 1, ANN, 2): "PENDING"}
    assert not {"RewardGranted", "RewardClawedBack"} & set(circle.kinds())


def test_a_rung_keeps_its_version_and_what_is_new_is_of_the_latest() -> None:
    circle = Circle(campaign(step("one", points(10), at=1), hold_period_hours=24))
    brought(circle, "b1")
    ladder = (step("one", points(99), at=1), step("two", points(20), at=2))
    circle.put(campaign(*ladder, version=2, hold_period_hours=0))
    brought(circle, "b2")
    rewards = {one.step_id: one for one in circle.rewards()}
    assert (rewards["one"].gift.quantity, rewards["one"].campaign_version) == (10, 1)
    assert (rewards["two"].gift.quantity, rewards["two"].campaign_version) == (20, 2)
    assert (rewards["one"].grant_after, rewards["two"].grant_after) == (NOON + DAY, NOON)


def test_the_leaderboard_stands_once_the_campaign_is_closed() -> None:
    circle = Circle(campaign(close_time=(NOON + DAY).isoformat()))
    for name in ("b1", "b2"):
        circle.bind(name)
    circle.tell("b1", order("o1", NOON))
    circle.deliver()
    circle.at += DAY
    circle.tell("b2", order("o2", circle.at))
    circle.deliver()
    assert (circle.profile().ranks["king"].count, circle.profile().ranks["king"].reach_time) == (1, NOON)
    assert len([one for one in circle.profile().invitees.values() if one.qualify_time]) == 2


# --- rewards ------------------------------------------------------------------------------------------


def test_a_granted_reward_says_where_to_announce_it_and_whose_it_is() -> None:
    ladder = step("one", at=1, invitee_reward=points(7))
    circle = Circle(campaign(ladder, hold_period_hours=0, auto_invite_scheme_id="task"))
    circle.tell(ANN, joined=Joined("task", "group-1"))
    circle.invite(ANN, display_name="张三")
    brought(circle, "b1")
    circle.grant()
    told = {
        one.member_id: (one.announce_group_id, one.masked_name) for one in circle.heard(epb.RewardGranted)
    }
    assert told == {ANN: ("group-1", "张**"), "b1": ("", "")}


def test_a_reward_is_handed_over_once_and_what_is_told_after_it_was_taken_back_changes_nothing() -> None:
    circle, reward = a_granted(on_drop="ON_DROP_CLAW_BACK")
    done = {"reward_id": reward.reward_id, "reference_id": "txn", "occur_time": NOON}
    circle.do(RewardHandedOver, **done)
    circle.do(RewardHandedOver, **{**done, "reference_id": "other"})
    circle.do(RewardRefused, reward_id=reward.reward_id, reason="LATE")
    assert [one.reference_id for one in circle.heard(epb.RewardFulfilled)] == ["txn"]
    refunded(circle, "b1")
    circle.do(RewardHandedOver, **done)
    assert only(circle).status is RewardStatus.CLAWED_BACK
    assert circle.kinds()[-2:] == ["InviteeRevoked", "RewardClawedBack"]
    assert [one.version for one in circle.told if isinstance(one, epb.RewardClawedBack)] == [3]


def test_what_is_not_handed_over_in_time_is_told_again_under_its_id_once_however_late() -> None:
    circle, reward = a_granted(fulfil_within_hours=10)
    assert circle.profile().next_due_time == NOON + 10 * HOUR
    circle.wait(hours=10)
    circle.wait(hours=95)
    first, second, third = circle.heard(epb.RewardGranted)
    assert {one.reward_id for one in (first, second, third)} == {reward.reward_id}
    assert [one.version for one in (first, second, third)] == [1, 2, 3]
    assert only(circle).overdue
    assert circle.profile().next_due_time == NOON + 115 * HOUR
    circle.do(RetryReward, reward_id=reward.reward_id)
    assert not only(circle).overdue
    with pytest.raises(RewardNotOpen):
        circle.do(WriteOffReward, reward_id=reward.reward_id)


def test_a_refused_reward_is_tried_again_or_written_off_which_the_budget_gets_back() -> None:
    circle, reward = a_granted(budget_minor=100)
    about = {"reward_id": reward.reward_id}
    with pytest.raises(RewardNotOpen) as refused:
        circle.do(RetryReward, **about)
    assert refused.value.metadata == {"status": "GRANTED"}
    circle.do(RewardRefused, **about, reason="CARD_UNKNOWN")
    assert (only(circle).status, circle.profile().next_due_time) == (RewardStatus.FAILED, None)
    assert [one.reason for one in circle.heard(epb.RewardFailed)] == ["CARD_UNKNOWN"]
    circle.do(RetryReward, **about)
    assert only(circle).status is RewardStatus.GRANTED
    circle.do(RewardRefused, **about, reason="CARD_UNKNOWN")
    circle.do(WriteOffReward, **about)
    brought(circle, "b2")  # the rung stands, and is not paid again
    assert only(circle).status is RewardStatus.CLAWED_BACK
    assert circle.seen.budgets["king"].granted_minor == 100
    circle.grant()
    circle.grant()
    assert circle.seen.budgets["king"].granted_minor == 0
    with pytest.raises(RewardUnknown):
        circle.do(RetryReward, reward_id="rwd_none")


def test_only_what_is_paid_outside_is_closed_by_an_operator() -> None:
    circle, reward = a_granted()
    with pytest.raises(RewardNotPaidOutside):
        circle.do(RecordRewardPaid, reward_id=reward.reward_id, reference_id="bank-1")
    circle, reward = a_granted(gives=COUPON)
    circle.do(RecordRewardPaid, reward_id=reward.reward_id, reference_id="coupon-1")
    assert only(circle).reference_id == "coupon-1"
    with pytest.raises(RewardNotOpen):
        circle.do(RecordRewardPaid, reward_id=reward.reward_id, reference_id="coupon-2")
