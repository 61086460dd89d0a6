"""What a campaign's fields have to be together, and what follows from its times."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from services.referral.domain.campaigns import (
    Campaign,
    Caps,
    FactKind,
    Gift,
    GiftKind,
    Qualify,
    Signal,
    SignalLimit,
    Step,
    faults,
)
from tests.referral.plain import DAY, NOON, campaign, points, share

TICK = timedelta(microseconds=1)
FAST_ENOUGH = SignalLimit(signal=Signal.FAST, limit=86_400, score=1)
CASH = Gift(kind=GiftKind.CASH, quantity=1000, cost_minor=1000)


def at(step_id: str, number: int, depth: int = 1) -> Step:
    return Step(step_id=step_id, at=number, depth=depth, reward=points(1))


def each(gift: Gift) -> Step:
    return Step(step_id="kol", each_from=1, reward=gift)


def found(of: Campaign) -> dict[str, str]:
    """What is wrong with a campaign, by field."""
    return {fault.field: fault.description for fault in faults(of)}


def test_the_demo_ladder_is_sound() -> None:
    ladder = [at(f"at-{number}", number) for number in (1, 3, 5, 10)]
    then = Step(step_id="then", every=5, every_from=15, reward=points(8000))
    assert found(campaign(*ladder, then)) == {}
    assert found(campaign(*ladder, each(share(500)), budget_minor=10**6)) == {}


@pytest.mark.parametrize(
    ("of", "field", "complaint"),
    [
        (campaign(hold_period=15 * DAY), "hold_period_hours", "must not be above clawback_window_hours"),
        (campaign(review_score=9, reject_score=8), "review_score", "must not be above reject_score"),
        (campaign(budget_minor=1, currency_code=""), "currency_code", "must be set: there is a budget"),
        (
            campaign(signal_limits=(FAST_ENOUGH, SignalLimit(signal=Signal.DEVICE, limit=1001, score=1))),
            "signal_limits[1].limit",
            "must not be above 1000: no more are counted",
        ),
        (campaign(at("a", 3), at("b", 3)), "ladder[1].at", "must be above that of the step before it"),
        (campaign(at("a", 3), at("b", 2)), "ladder[1].at", "must be above that of the step before it"),
        (campaign(at("a", 1, depth=2)), "ladder[0].depth", "must not be above max_depth, which is 1"),
        (
            campaign(at("a", 6), caps=Caps(lifetime=5)),
            "ladder[0]",
            "is never reached: 5 invitees count at most",
        ),
        (campaign(each(points(1, 9)), budget_minor=8), "ladder[0].reward", "costs 9, more than the budget"),
        (campaign(each(CASH), budget_minor=999), "ladder[0].reward", "costs 1000, more than the budget"),
        (
            campaign(at("a", 1), each(CASH), currency_code=""),
            "currency_code",
            "must be set: campaign.ladder[1].reward costs money",
        ),
        (
            campaign(each(points(1, 5)), currency_code=""),
            "currency_code",
            "must be set: campaign.ladder[0].reward costs money",
        ),
        (
            campaign(replace(at("a", 1), reward=share(5))),
            "ladder[0].reward.cash",
            "a share is for each invitee from one on, in a campaign of orders",
        ),
        (
            campaign(each(share(5)), qualify=Qualify(kind=FactKind.CARD)),
            "ladder[0].reward.cash",
            "a share is for each invitee from one on, in a campaign of orders",
        ),
        (
            campaign(replace(at("a", 1), invitee_reward=share(5))),
            "ladder[0].invitee_reward.cash",
            "a share is for each invitee from one on, in a campaign of orders",
        ),
    ],
)
def test_what_does_not_fit_together_is_named_with_its_place(of: Campaign, field: str, complaint: str) -> None:
    assert found(of) == {f"campaign.{field}": complaint}


def test_every_fault_is_named_at_once() -> None:
    of = campaign(at("a", 3), at("b", 2, depth=2), at("c", 1), hold_period=20 * DAY, budget_minor=5)
    assert list(found(of)) == [
        "campaign.hold_period_hours",
        "campaign.ladder[1].depth",
        "campaign.ladder[2].at",
    ]


def test_steps_of_another_depth_and_those_that_recur_do_not_have_to_ascend() -> None:
    recurs = Step(step_id="more", every=1, every_from=1, reward=points(1))
    assert found(campaign(at("a", 3), at("b", 1, depth=2), recurs, at("c", 4), max_depth=2)) == {}


def test_a_campaign_is_open_from_its_first_instant_to_before_its_last() -> None:
    of = campaign()
    assert [of.open(of.open_time + by) for by in (-TICK, 0 * DAY)] == [False, True]
    assert [of.open(of.close_time + by) for by in (-TICK, 0 * DAY)] == [True, False]


def test_a_round_needs_as_many_as_the_one_before_and_the_step_more() -> None:
    every = Step(step_id="then", every=5, every_from=15, reward=points(8000))
    assert [every.position(number) for number in (1, 2, 3)] == [15, 20, 25]
    assert at("a", 3).position(1) == 3
    assert each(points(1)).position(1) == 1


def test_a_group_can_be_left_as_long_as_rewards_wait_and_an_order_refunded_for_the_window() -> None:
    assert campaign().undone_until(NOON) == NOON + 14 * DAY
    assert campaign(qualify=Qualify(kind=FactKind.GROUP)).undone_until(NOON) == NOON + 7 * DAY
