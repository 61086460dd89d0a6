"""How suspicious a bond is: signals beyond their limits, what they add up to, and what that means."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.referral.domain import fraud
from services.referral.domain.campaigns import Signal, SignalLimit
from services.referral.domain.profile import Verdict
from tests.referral.plain import HOUR, NOON, campaign

WATCHED = campaign(
    signal_limits=(
        SignalLimit(signal=Signal.DEVICE, limit=2, score=40),
        SignalLimit(signal=Signal.ADDRESS, limit=0, score=5),
        SignalLimit(signal=Signal.VELOCITY, limit=10, score=30),
        SignalLimit(signal=Signal.FAST, limit=60, score=60),
    ),
    review_score=50,
    reject_score=100,
)


@pytest.mark.parametrize(
    ("counts", "beyond"),
    [
        ({}, ()),
        ({Signal.DEVICE: 2, Signal.VELOCITY: 10}, ()),
        ({Signal.DEVICE: 3, Signal.VELOCITY: 10}, (Signal.DEVICE,)),
        ({Signal.VELOCITY: 11, Signal.DEVICE: 3}, (Signal.DEVICE, Signal.VELOCITY)),
        ({Signal.ADDRESS: 1}, (Signal.ADDRESS,)),
        ({Signal.IP_PREFIX: 9999}, ()),  # the campaign does not ask for it
    ],
)
def test_a_signal_counts_that_more_came_with_than_its_limit(
    counts: dict[Signal, int], beyond: tuple[Signal, ...]
) -> None:
    assert fraud.beyond(WATCHED, counts) == beyond


@pytest.mark.parametrize(
    ("after", "fast"),
    [(timedelta(seconds=60), False), (timedelta(seconds=59, microseconds=999_999), True), (-HOUR, True)],
)
def test_who_qualifies_sooner_than_the_limit_is_too_fast(after: timedelta, fast: bool) -> None:
    assert fraud.too_fast(WATCHED, NOON, NOON + after) is fast
    assert not fraud.too_fast(campaign(), NOON, NOON + after)


@pytest.mark.parametrize(
    ("signals", "score", "verdict"),
    [
        ((), 0, Verdict.PASS),
        (("DEVICE",), 40, Verdict.PASS),
        (("DEVICE", "ADDRESS"), 45, Verdict.PASS),
        (("FAST",), 60, Verdict.REVIEW),
        (("FAST", "DEVICE"), 100, Verdict.REJECT),
        (("IP_PREFIX",), 0, Verdict.PASS),
    ],
)
def test_scores_add_up_to_a_verdict(signals: tuple[str, ...], score: int, verdict: Verdict) -> None:
    assert fraud.score(WATCHED, signals) == score
    assert fraud.verdict(WATCHED, score) is verdict


@given(st.integers(0, 200), st.integers(0, 100), st.integers(0, 100))
def test_a_score_of_0_means_never_and_reject_comes_before_review(
    total: int, review: int, reject: int
) -> None:
    verdict = fraud.verdict(campaign(review_score=review, reject_score=reject), total)
    assert (verdict is Verdict.REJECT) is (0 < reject <= total)
    assert (verdict is Verdict.PASS) is not (0 < review <= total or 0 < reject <= total)
