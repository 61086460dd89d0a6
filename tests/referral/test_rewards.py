"""What rungs give: once, to whom it is due, and taken back as the campaign says; where rewards stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.referral.domain import ladder, rewards
from services.referral.domain.campaigns import Campaign, FactKind, Gift, GiftKind, OnDrop, Step
from services.referral.domain.profile import (
    Invitee,
    InviteeState,
    RevokeReason,
    Reward,
    RewardStatus,
    Role,
    Rung,
    RungName,
)
from services.referral.domain.rewards import Basis
from services.referral.errors import RewardNotOpen, RewardNotPaidOutside
from tests.referral.plain import DAY, HOUR, NOON, ZONE, Bound, Done, Plain, campaign, points, share
from tests.referral.test_ladder import invitee, some

CARD = Gift(kind=GiftKind.CARD, code="king-month", cost_minor=3100)
AT_TWO = Step(step_id="two", at=2, reward=points(5000, 500), invitee_reward=CARD)
EACH = Step(step_id="each", each_from=1, reward=share(500))
EVERY = Step(step_id="more", every=2, every_from=2, reward=points(800))


@dataclass
class Ann:
    """An inviter, and what her rungs gave so far."""

    of: Campaign
    rungs: dict[RungName, Rung] = field(default_factory=dict)
    rewards: dict[str, Reward] = field(default_factory=dict)

    def told(
        self,
        invitees: Iterable[Invitee],
        reason: RevokeReason = RevokeReason.REFUNDED,
        at: datetime = NOON + DAY,
    ) -> list[Reward]:
        """Brings her ladder up to date; returns what became of rewards by that."""
        counted = ladder.lines(list(invitees), self.of, ZONE)
        self.rungs = ladder.climb(self.of, counted, self.rungs.values())
        changed: list[Reward] = []
        for name, rung in self.rungs.items():
            mine = [reward for reward in self.rewards.values() if reward.rung == name]
            changed += rewards.follow(Basis(self.of, "ann", counted[rung.depth]), rung, mine, reason, at)
        self.rewards |= {reward.reward_id: reward for reward in changed}
        return changed

    def grant(self, reward: Reward, at: datetime = NOON + 8 * DAY) -> Reward:
        """Grants one of her rewards."""
        granted = rewards.granted(reward, self.of, at)
        self.rewards[reward.reward_id] = granted
        return granted

    def hand_over(self, reward: Reward) -> Reward:
        """Tells that one of her rewards was handed over."""
        fulfilled = rewards.handed_over(reward, "txn_1", NOON + 9 * DAY)
        self.rewards[reward.reward_id] = fulfilled
        return fulfilled

    def one(self, role: Role = Role.INVITER) -> Reward:
        """Her only reward on a side that stands."""
        (found,) = (one for one in self.rewards.values() if one.role is role and rewards.stands(one))
        return found

    def attempts(self, role: Role = Role.INVITER) -> list[tuple[int, str]]:
        """Her rewards on a side, by attempt."""
        return sorted((one.attempt, one.status) for one in self.rewards.values() if one.role is role)


def an_inviter(*ladder_: Step, **more: object) -> Ann:
    return Ann(campaign(*ladder_, **more))


# --- what a rung gives --------------------------------------------------------------------------------


def test_a_rung_gives_to_the_inviter_and_to_who_stands_there() -> None:
    ann = an_inviter(AT_TWO)
    inviters, invitees = ann.told(some("ab"))
    assert (inviters.receiver_id, inviters.gift, inviters.role) == ("ann", AT_TWO.reward, Role.INVITER)
    assert (invitees.receiver_id, invitees.gift, invitees.role) == ("m-b", CARD, Role.INVITEE)
    for one in (inviters, invitees):
        assert (one.status, one.attempt, one.qualified_count) == (RewardStatus.PENDING, 1, 2)
        assert (one.reach_time, one.grant_after) == (NOON + HOUR, NOON + HOUR + 7 * DAY)
        assert one.attribution_id == "b"
    assert ann.told(some("ba")) == []


def test_the_id_of_a_reward_follows_from_what_it_is_for() -> None:
    ann = an_inviter(AT_TWO)
    ann.told(some("ab"))
    rung = ann.rungs["king", "two", 1]
    made = rewards.reward_id("ann", rung, Role.INVITER, 1)
    assert made == "rwd_9fc5699972c381041030f8e22619bac6" == ann.one().reward_id
    others = {
        rewards.reward_id("bob", rung, Role.INVITER, 1),
        rewards.reward_id("ann", rung, Role.INVITEE, 1),
        rewards.reward_id("ann", rung, Role.INVITER, 2),
        rewards.reward_id("ann", replace(rung, round=2), Role.INVITER, 1),
        rewards.reward_id("ann", replace(rung, step_id="twо"), Role.INVITER, 1),
        rewards.reward_id("ann", replace(rung, campaign_id="queen"), Role.INVITER, 1),
    }
    assert len(others | {made}) == 7


@pytest.mark.parametrize(
    ("amount_minor", "currency_code", "amount"),
    [(10_000, "CNY", 500), (10_019, "CNY", 500), (39, "CNY", 1), (19, "CNY", 0), (10_000, "USD", 0)],
)
def test_a_share_is_of_the_order_rounded_down_and_nothing_where_it_comes_to_nothing(
    amount_minor: int, currency_code: str, amount: int
) -> None:
    given = an_inviter(EACH).told([invitee("a", amount_minor=amount_minor, currency_code=currency_code)])
    assert [(one.gift.quantity, one.gift.cost_minor) for one in given] == [(amount, amount)] * bool(amount)
    assert all((one.order_id, one.gift.currency_code) == ("o-a", "CNY") for one in given)


def test_a_share_follows_its_order_until_it_is_granted() -> None:
    ann = an_inviter(EACH)
    ann.told([invitee("a")])
    was = ann.one()
    (now,) = ann.told([invitee("a", amount_minor=4000)])
    assert (now.reward_id, now.gift.quantity, now.gift.cost_minor) == (was.reward_id, 200, 200)
    (gone,) = ann.told([invitee("a", amount_minor=19)])
    assert gone.status is RewardStatus.WITHDRAWN
    ann.told([invitee("a")])
    assert ann.attempts() == [(1, "WITHDRAWN"), (2, "PENDING")]
    ann.grant(ann.one())
    assert ann.told([invitee("a", amount_minor=2000)]) == []


def test_what_waits_goes_to_who_stands_there_by_then() -> None:
    ann = an_inviter(AT_TWO)
    ann.told(some("ac"))
    ann.told(some("abc"))
    now = ann.one(Role.INVITEE)
    assert (now.receiver_id, now.reach_time) == ("m-b", NOON + HOUR)
    assert ann.one().reach_time == NOON + HOUR
    assert ann.one().grant_after == NOON + HOUR + 7 * DAY
    assert ann.attempts() == ann.attempts(Role.INVITEE) == [(1, "PENDING")]


def test_what_was_granted_stays_with_an_invitee_who_counts_and_goes_on_where_one_does_not() -> None:
    ann = an_inviter(AT_TWO, on_drop=OnDrop.CLAW_BACK)
    ann.told(some("ac"))
    ann.grant(ann.one(Role.INVITEE))
    ann.grant(ann.one())
    assert ann.told(some("abc")) == []
    was, now = ann.told(some("ab"))
    assert (was.receiver_id, was.status, was.reason) == ("m-c", RewardStatus.CLAWED_BACK, "REFUNDED")
    assert (now.receiver_id, now.status, now.attempt) == ("m-b", RewardStatus.PENDING, 2)
    assert ann.one().status is RewardStatus.GRANTED


# --- lost and regained --------------------------------------------------------------------------------


@pytest.mark.parametrize("on_drop", list(OnDrop))
@pytest.mark.parametrize("reason", [RevokeReason.REFUNDED, RevokeReason.FRAUD])
@pytest.mark.parametrize("stage", ["PENDING", "GRANTED", "FAILED", "FULFILLED"])
def test_of_a_lost_rung_what_was_granted_is_taken_back_as_the_campaign_says(
    on_drop: OnDrop, reason: RevokeReason, stage: str
) -> None:
    ann = an_inviter(EVERY, on_drop=on_drop)
    ann.told(some("ab"))
    if stage != "PENDING":
        granted = ann.grant(ann.one())
        if stage == "FULFILLED":
            ann.hand_over(granted)
        if stage == "FAILED":
            ann.rewards[granted.reward_id] = rewards.refused(granted, "NOT_IN_SEGMENT", NOON + 9 * DAY)
    kept = (
        stage != "PENDING"
        and reason is not RevokeReason.FRAUD
        and (on_drop is OnDrop.KEEP or (on_drop is OnDrop.REVOKE_UNCLAIMED and stage == "FULFILLED"))
    )
    changed = ann.told(some("a"), reason)
    if kept:
        assert changed == []
    else:
        (gone,) = changed
        assert gone.status == ("WITHDRAWN" if stage == "PENDING" else "CLAWED_BACK")
        assert gone.reason == ("" if stage == "PENDING" else reason)
        assert (gone.fulfil_by, gone.end_time) == (None, NOON + DAY)
    ann.told(some("ab"))
    assert [attempt for attempt, _ in ann.attempts()] == ([1] if kept else [1, 2])
    assert ann.one().status == (stage if kept else "PENDING")


def test_what_an_operator_wrote_off_is_not_given_again() -> None:
    ann = an_inviter(EVERY)
    ann.told(some("ab"))
    failed = rewards.refused(ann.grant(ann.one()), "PLAN_UNKNOWN", NOON + 9 * DAY)
    ann.rewards[failed.reward_id] = rewards.written_off(failed, NOON + 10 * DAY)
    for names in ("ab", "a", "ab"):
        assert ann.told(some(names)) == []


# --- where a reward stands ----------------------------------------------------------------------------


def a_reward(gift: Gift = CARD, status: RewardStatus = RewardStatus.PENDING) -> Reward:
    ann = an_inviter(Step(step_id="one", at=1, reward=gift))
    (reward,) = ann.told(some("a"))
    if status is RewardStatus.PENDING:
        return reward
    if status is RewardStatus.WITHDRAWN:
        return rewards.dropped(reward, OnDrop.KEEP, RevokeReason.REFUNDED, NOON)
    granted = rewards.granted(reward, ann.of, NOON)
    match status:
        case RewardStatus.FULFILLED:
            return rewards.handed_over(granted, "seg_1", NOON + HOUR)
        case RewardStatus.FAILED:
            return rewards.refused(granted, "PLAN_UNKNOWN", NOON + HOUR)
        case RewardStatus.CLAWED_BACK:
            return rewards.dropped(granted, OnDrop.CLAW_BACK, RevokeReason.REFUNDED, NOON + HOUR)
    return granted


def test_a_granted_reward_is_handed_over_refused_or_told_again() -> None:
    of = campaign()
    granted = a_reward(status=RewardStatus.GRANTED)
    assert (granted.grant_time, granted.fulfil_by, granted.overdue) == (NOON, NOON + DAY, False)
    assert rewards.reminded(granted, of, NOON + DAY - timedelta(seconds=1)) is granted
    overdue = rewards.reminded(granted, of, NOON + 3 * DAY)
    assert (overdue.status, overdue.overdue, overdue.fulfil_by) == ("GRANTED", True, NOON + 4 * DAY)
    done = rewards.handed_over(overdue, "seg_1", NOON + 3 * DAY)
    assert (done.status, done.reference_id, done.fulfil_by) == ("FULFILLED", "seg_1", None)
    failed = rewards.refused(overdue, "PLAN_UNKNOWN", NOON + 3 * DAY)
    assert (failed.status, failed.reason, failed.fulfil_by) == ("FAILED", "PLAN_UNKNOWN", None)
    assert rewards.handed_over(failed, "seg_1", NOON + 4 * DAY).status is RewardStatus.FULFILLED


def test_what_is_told_of_a_reward_that_is_closed_changes_nothing() -> None:
    for status in (RewardStatus.FULFILLED, RewardStatus.CLAWED_BACK):
        closed = a_reward(status=status)
        assert rewards.handed_over(closed, "seg_2", NOON + DAY) is closed
        assert rewards.refused(closed, "PLAN_UNKNOWN", NOON + DAY) is closed
        assert rewards.reminded(closed, campaign(), NOON + 9 * DAY) is closed
    failed = a_reward(status=RewardStatus.FAILED)
    assert rewards.refused(failed, "OTHER", NOON + DAY) is failed


@pytest.mark.parametrize("status", list(RewardStatus))
def test_an_operator_retries_or_writes_off_what_failed_or_is_overdue(status: RewardStatus) -> None:
    reward = a_reward(status=status)
    if status is not RewardStatus.FAILED:
        with pytest.raises(RewardNotOpen) as refusal:
            rewards.retried(reward, campaign(), NOON)
        assert refusal.value.metadata == {"status": status}
        with pytest.raises(RewardNotOpen):
            rewards.written_off(reward, NOON)
        if status is not RewardStatus.GRANTED:
            return
        reward = rewards.reminded(reward, campaign(), NOON + DAY)
    again = rewards.retried(reward, campaign(), NOON + 5 * DAY)
    assert (again.status, again.overdue, again.reason, again.end_time) == ("GRANTED", False, "", None)
    assert again.fulfil_by == NOON + 6 * DAY
    assert again.reward_id == reward.reward_id
    gone = rewards.written_off(reward, NOON + 5 * DAY)
    assert (gone.status, gone.reason, gone.fulfil_by) == ("CLAWED_BACK", "WRITTEN_OFF", None)


def test_only_cash_and_coupons_are_paid_outside() -> None:
    cash = Gift(kind=GiftKind.CASH, quantity=1000, currency_code="CNY", cost_minor=1000)
    coupon = Gift(kind=GiftKind.COUPON, code="tea", quantity=1)
    for gift in (cash, coupon):
        for status in (RewardStatus.GRANTED, RewardStatus.FAILED):
            paid = rewards.paid(a_reward(gift, status), "pay_1", NOON + DAY)
            assert (paid.status, paid.reference_id, paid.reason) == ("FULFILLED", "pay_1", "")
        for status in (RewardStatus.PENDING, RewardStatus.FULFILLED, RewardStatus.CLAWED_BACK):
            with pytest.raises(RewardNotOpen):
                rewards.paid(a_reward(gift, status), "pay_1", NOON + DAY)
    for gift in (CARD, points(5), Gift(kind=GiftKind.GROUP_ENTRY, code="king")):
        with pytest.raises(RewardNotPaidOutside):
            rewards.paid(a_reward(gift, RewardStatus.GRANTED), "pay_1", NOON + DAY)


# --- the budget ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=12),
    st.integers(0, 200),
    st.randoms(use_true_random=False),
)
def test_the_budget_goes_to_who_was_there_first_until_one_does_not_fit(
    costs: list[tuple[int, int]], left: int, shuffled: object
) -> None:
    waiting = [
        replace(a_reward(points(1, cost)), reward_id=f"rwd_{number:02}", reach_time=NOON + hour * HOUR)
        for number, (hour, cost) in enumerate(costs)
    ]
    queue = sorted(waiting, key=lambda one: (one.reach_time, one.reward_id))
    shuffled.shuffle(waiting)  # type: ignore[attr-defined]
    granted = list(rewards.fitting(waiting, left))
    assert granted == queue[: len(granted)]
    spent = sum(one.gift.cost_minor for one in granted)
    assert spent <= left
    if len(granted) < len(queue):
        assert spent + queue[len(granted)].gift.cost_minor > left


# --- in any order -------------------------------------------------------------------------------------

LADDER = (AT_TWO, EVERY, EACH, Step(step_id="tip", each_from=2, invitee_reward=points(10)))
TOLD = st.tuples(
    st.sampled_from("abcde"),
    st.sampled_from(["QUALIFIED", "QUALIFIED", "REVOKED"]),
    st.integers(0, 4).map(lambda hour: NOON + hour * HOUR),
    st.sampled_from([10, 5000, 10_000]),
    st.sampled_from(["", "GRANT", "FULFIL", "FAIL", "WRITE_OFF"]),
)
REASONS = st.sampled_from([RevokeReason.REFUNDED, RevokeReason.FRAUD])


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(TOLD, REASONS), max_size=15), st.sampled_from(OnDrop))
def test_of_each_rung_and_side_one_reward_stands_at_most_over_any_loss_and_regain(
    told: list[tuple[tuple[str, str, datetime, int, str], RevokeReason]], on_drop: OnDrop
) -> None:
    ann = an_inviter(*LADDER, on_drop=on_drop)
    invitees: dict[str, Invitee] = {}
    for (name, state, when, amount, act), reason in told:
        invitees[name] = invitee(name, when, state=InviteeState(state), amount_minor=amount)
        was = dict(ann.rewards)
        changed = ann.told(invitees.values(), reason)
        assert all(one.status is RewardStatus.PENDING for one in changed if one.reward_id not in was)
        _act(ann, act)
        _check(ann, on_drop)


@settings(deadline=None, max_examples=80)
@given(st.lists(TOLD, max_size=15))
def test_before_anything_is_granted_what_rungs_give_follows_from_who_counts_alone(
    told: list[tuple[str, str, datetime, int, str]],
) -> None:
    ann = an_inviter(*LADDER)
    invitees: dict[str, Invitee] = {}
    for name, state, when, amount, _ in told:
        invitees[name] = invitee(name, when, state=InviteeState(state), amount_minor=amount)
        ann.told(invitees.values())
    plain = Plain(ann.of)
    for one in invitees.values():
        if one.state is InviteeState.QUALIFIED and one.qualify_time:
            plain.bonds.append(Bound(one.attribution_id, one.member_id, "ann", NOON))
            done = Done(one.member_id, FactKind.ORDER, one.reference_id, one.qualify_time, one.amount_minor)
            plain.done.append(done)
    standing = [one for one in ann.rewards.values() if rewards.stands(one)]
    assert plain.owed("ann", NOON) == Counter(
        (one.step_id, str(one.role), one.receiver_id, one.gift.quantity, one.reach_time) for one in standing
    )


def _act(ann: Ann, act: str) -> None:
    """Something happens to the rewards that wait, all of them."""
    for reward in [one for one in ann.rewards.values() if one.status is RewardStatus.PENDING and act]:
        granted = ann.grant(reward)
        refused = rewards.refused(granted, "NO", NOON + 9 * DAY)
        match act:
            case "FULFIL":
                ann.hand_over(granted)
            case "FAIL":
                ann.rewards[reward.reward_id] = refused
            case "WRITE_OFF":
                ann.rewards[reward.reward_id] = rewards.written_off(refused, NOON + 9 * DAY)


def _check(ann: Ann, on_drop: OnDrop) -> None:
    def side(one: Reward) -> tuple[object, ...]:
        return (one.rung, one.role, one.attempt)

    for _, attempts in groupby(sorted(ann.rewards.values(), key=side), key=lambda one: side(one)[:2]):
        mine = list(attempts)
        assert [one.attempt for one in mine] == list(range(1, len(mine) + 1))
        assert not any(rewards.stands(one) for one in mine[:-1])
        assert all(one.reason != RevokeReason.WRITTEN_OFF for one in mine[:-1])
        last, rung = mine[-1], ann.rungs[mine[-1].rung]
        if rung.lost and on_drop is OnDrop.CLAW_BACK:
            assert not rewards.stands(last)
        if not rung.lost and last.step_id != "each":  # a share may have come to nothing
            assert rewards.stands(last) or last.reason == RevokeReason.WRITTEN_OFF
