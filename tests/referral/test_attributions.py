"""What follows from an invitee's facts: the same in whatever order, how often and how early they are told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.referral.domain import attributions
from services.referral.domain.attributions import News, Standing, added, lapses, stand
from services.referral.domain.campaigns import Campaign, FactKind, Qualify, Signal, SignalLimit
from services.referral.domain.profile import (
    EVERYTHING,
    Attribution,
    AttributionStatus,
    Fact,
    RevokeReason,
    Verdict,
)
from tests.referral.plain import DAY, HOUR, NOON, Bound, Done, Plain, campaign

TICK = timedelta(microseconds=1)
SHORT = campaign(attribution_window=5 * DAY, clawback_window=3 * DAY, hold_period=2 * DAY)


def bond(of: Campaign = SHORT, **more: object) -> Attribution:
    """One bound at NOON."""
    made = Attribution(
        attribution_id="atr_1",
        campaign_id=of.campaign_id,
        campaign_version=of.version,
        inviter_id="ann",
        code="c",
        bind_time=NOON,
        lapse_time=of.lapse_time(NOON),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def order(reference_id: str = "o1", at: datetime = NOON, amount_minor: int = 5000, **more: object) -> Fact:
    """A paid order."""
    made = Fact(
        kind=FactKind.ORDER,
        reference_id=reference_id,
        occur_time=at,
        amount_minor=amount_minor,
        currency_code="CNY",
    )
    return replace(made, **more)  # type: ignore[arg-type]


def refund(minor: int, at: datetime, refund_id: str = "r1", reference_id: str = "o1") -> Fact:
    """What is told of an order by its refund."""
    return Fact(kind=FactKind.ORDER, reference_id=reference_id, refunds={refund_id: (minor, at)})


def above(least: int) -> Callable[[Fact, int], bool]:
    """Worth so much at least."""
    return lambda _fact, worth: worth >= least


def known(*told: Fact) -> list[Fact]:
    """What is known once all of this was told."""
    facts: dict[object, Fact] = {}
    for one in told:
        facts[one.name] = added(facts.get(one.name), one)
    return list(facts.values())


def standing(
    *told: Fact,
    of: Campaign = SHORT,
    least: int = 0,
    at: datetime = NOON + DAY,
    was: Attribution | None = None,
) -> Standing:
    return stand(was or bond(of), of, known(*told), above(least), at)


def status(*told: Fact, of: Campaign = SHORT, least: int = 0, at: datetime = NOON + DAY) -> str:
    return standing(*told, of=of, least=least, at=at).attribution.status


# --- when it counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "counts"),
    [
        (SHORT.open_time - TICK, False),
        (SHORT.open_time, True),  # told early, or done on the way in
        (NOON, True),
        (NOON + 5 * DAY - TICK, True),
        (NOON + 5 * DAY, False),
    ],
)
def test_what_is_done_counts_from_the_opening_until_the_bond_lapses(at: datetime, counts: bool) -> None:
    assert (status(order(at=at), at=NOON + 9 * DAY) == AttributionStatus.QUALIFIED) is counts


def test_the_shortest_window_decides_when_a_bond_lapses() -> None:
    assert campaign(attribution_window=5 * DAY).lapse_time(NOON) == NOON + 5 * DAY
    within = Qualify(kind=FactKind.ORDER, within=2 * DAY)
    assert campaign(attribution_window=5 * DAY, qualify=within).lapse_time(NOON) == NOON + 2 * DAY
    longer = Qualify(kind=FactKind.ORDER, within=9 * DAY)
    assert campaign(attribution_window=5 * DAY, qualify=longer).lapse_time(NOON) == NOON + 5 * DAY
    settled = campaign(attribution_window=5 * DAY, settle_time=NOON + DAY, close_time=NOON + DAY)
    assert settled.lapse_time(NOON) == NOON + DAY


def test_a_bond_lapses_at_its_instant_and_what_was_done_before_counts_however_late_it_is_told() -> None:
    assert status(at=NOON + 5 * DAY - TICK) == AttributionStatus.BOUND
    lapsed = standing(at=NOON + 5 * DAY)
    assert lapsed.attribution.status == AttributionStatus.LAPSED
    assert lapsed.news(bond()) is News.DROPPED
    late = standing(order(at=NOON + 4 * DAY), was=lapsed.attribution, at=NOON + 9 * DAY)
    assert late.news(lapsed.attribution) is News.QUALIFIED


def test_only_who_waits_to_qualify_lapses_by_the_clock() -> None:
    assert lapses(bond()) == NOON + 5 * DAY
    for fact in (order(), order(revoke_time=NOON, revoke_reason=RevokeReason.REQUESTED)):
        assert lapses(standing(fact).attribution) is None
    suspicious = campaign(
        attribution_window=5 * DAY,
        signal_limits=(SignalLimit(signal=Signal.DEVICE, limit=1, score=5),),
        review_score=5,
    )
    waiting = standing(order(), of=suspicious, was=bond(suspicious, signals=("DEVICE",))).attribution
    assert waiting.status is AttributionStatus.BOUND
    assert lapses(waiting) is None


def test_the_earliest_that_counts_qualifies_and_of_equals_the_lesser_id() -> None:
    late, early = order("b", NOON + HOUR), order("c", NOON)
    first = standing(late).attribution
    assert (first.reference_id, first.qualify_time) == ("b", NOON + HOUR)
    both = standing(late, early, was=first)
    assert both.attribution.reference_id == "c"
    assert both.news(first) is News.QUALIFIED
    assert standing(late, early, order("a", NOON)).attribution.reference_id == "a"
    assert standing(late, early, was=both.attribution).news(both.attribution) is None


# --- how it is undone ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minor", "after", "least", "expected"),
    [
        (EVERYTHING, 3 * DAY - TICK, 0, "REVOKED"),
        (EVERYTHING, 3 * DAY, 0, "QUALIFIED"),
        (5000, DAY, 0, "REVOKED"),
        (4999, DAY, 0, "QUALIFIED"),
        (2000, DAY, 3000, "QUALIFIED"),
        (2001, DAY, 3000, "REVOKED"),
        (2001, 3 * DAY, 3000, "QUALIFIED"),
    ],
)
def test_a_refund_in_the_clawback_window_undoes_what_is_then_too_little(
    minor: int, after: timedelta, least: int, expected: str
) -> None:
    now = standing(refund(minor, NOON + after), order(), least=least)
    assert now.attribution.status == expected
    if expected == "REVOKED":
        assert now.news(bond()) is News.REVOKED
        assert now.reason is RevokeReason.REFUNDED


def test_a_refund_in_part_is_told_by_what_is_left() -> None:
    first = standing(order())
    now = standing(order(), refund(2000, NOON + HOUR), was=first.attribution)
    assert now.attribution.amount_minor == 3000
    assert now.news(first.attribution) is News.QUALIFIED
    again = standing(order(), refund(2000, NOON + HOUR), refund(2000, NOON + HOUR), was=now.attribution)
    assert again.attribution is now.attribution


def test_an_order_that_cost_nothing_counts_until_it_is_refunded() -> None:
    assert status(order(amount_minor=0)) == AttributionStatus.QUALIFIED
    assert status(order(amount_minor=0), refund(EVERYTHING, NOON + HOUR)) == AttributionStatus.REVOKED


def test_who_leaves_the_group_in_the_hold_period_does_not_count() -> None:
    """Join-and-leave farms nothing; whoever stays until the rewards are due has counted."""
    groups = campaign(qualify=Qualify(kind=FactKind.GROUP), clawback_window=9 * DAY, hold_period=2 * DAY)
    joined = Fact(kind=FactKind.GROUP, reference_id="m1", occur_time=NOON)
    left = Fact(
        kind=FactKind.GROUP,
        reference_id="m1",
        revoke_time=NOON + 2 * DAY - TICK,
        revoke_reason=RevokeReason.LEFT_GROUP,
    )
    now = standing(left, joined, of=groups)
    assert (now.attribution.status, now.reason) == (AttributionStatus.REVOKED, RevokeReason.LEFT_GROUP)
    later = replace(left, revoke_time=NOON + 2 * DAY)
    assert status(later, joined, of=groups) == AttributionStatus.QUALIFIED


def test_after_one_that_was_undone_the_next_one_qualifies() -> None:
    first, second = order("a"), order("b", NOON + HOUR)
    undone = refund(EVERYTHING, NOON + HOUR, reference_id="a")
    was = standing(first, second).attribution
    now = standing(first, second, undone, was=was)
    assert now.attribution.reference_id == "b"
    assert now.news(was) is News.QUALIFIED


def test_of_one_reference_the_first_word_holds_and_of_revocations_the_earliest() -> None:
    first = added(refund(100, NOON), order())
    assert (first.amount_minor, first.refunds) == (5000, {"r1": (100, NOON)})
    assert added(first, order(amount_minor=9000, at=NOON - DAY)) is first
    assert added(first, refund(300, NOON + HOUR)) is first
    both = replace(refund(300, NOON), refunds={"r1": (300, NOON), "r2": (7, NOON)})
    assert added(first, both).refunds == {"r1": (100, NOON), "r2": (7, NOON)}
    late = order(revoke_time=NOON + HOUR, revoke_reason=RevokeReason.REQUESTED)
    early = order(revoke_time=NOON, revoke_reason=RevokeReason.LEFT_GROUP)
    for one, other in ((late, early), (early, late)):
        revoked = added(added(first, one), other)
        assert (revoked.revoke_time, revoked.revoke_reason) == (NOON, RevokeReason.LEFT_GROUP)


def test_what_was_done_by_who_was_erased_is_as_it_was_judged() -> None:
    was = standing(order("a"), order("b"), least=5000).attribution
    erased = [replace(order("a"), attributes=None), replace(order("b"), attributes=None)]
    assert stand(was, SHORT, erased, above(9999), NOON + DAY).attribution is was
    back = replace(erased[0], refunds={"r": (EVERYTHING, NOON + HOUR)})
    assert stand(was, SHORT, [back], above(0), NOON + DAY).attribution.status is AttributionStatus.REVOKED
    assert (
        stand(bond(), SHORT, erased, above(0), NOON + 6 * DAY).attribution.status is AttributionStatus.LAPSED
    )


# --- what is thought of it ----------------------------------------------------------------------------

WATCHED = campaign(
    attribution_window=5 * DAY,
    signal_limits=(
        SignalLimit(signal=Signal.DEVICE, limit=1, score=40),
        SignalLimit(signal=Signal.FAST, limit=60, score=60),
    ),
    review_score=50,
    reject_score=100,
)


def test_nobody_qualifies_in_review_and_nothing_is_lost_when_it_passes() -> None:
    fast = order(at=NOON + timedelta(seconds=59))
    waiting = standing(fast, of=WATCHED)
    assert (waiting.attribution.status, waiting.attribution.verdict) == ("BOUND", Verdict.REVIEW)
    assert waiting.attribution.signals == ("FAST",)
    assert waiting.news(bond(WATCHED)) is None
    assert standing(fast, of=WATCHED, was=waiting.attribution).attribution is waiting.attribution
    passed = replace(waiting.attribution, verdict=Verdict.PASS, resolved=True)
    counted = standing(fast, of=WATCHED, was=passed)
    assert counted.news(passed) is News.QUALIFIED
    assert counted.attribution.qualify_time == fast.occur_time
    slow = standing(order(at=NOON + timedelta(seconds=60)), of=WATCHED)
    assert slow.attribution.status is AttributionStatus.QUALIFIED


def test_a_bond_that_is_rejected_never_counts() -> None:
    suspicious = bond(WATCHED, signals=("DEVICE",))
    rejected = standing(order(), of=WATCHED, was=suspicious)
    assert rejected.attribution.status is AttributionStatus.REJECTED
    assert rejected.news(suspicious) is News.DROPPED
    by_hand = replace(standing(order(at=NOON + HOUR), of=WATCHED).attribution, verdict=Verdict.REJECT)
    gone = standing(order(at=NOON + HOUR), of=WATCHED, was=replace(by_hand, resolved=True))
    assert gone.news(by_hand) is News.REVOKED
    assert gone.reason is RevokeReason.FRAUD


def test_one_that_was_dropped_and_waits_for_an_operator_is_bound_again() -> None:
    lapsed = standing(of=WATCHED, at=NOON + 6 * DAY).attribution
    waiting = standing(order(), of=WATCHED, was=lapsed, at=NOON + 6 * DAY)
    assert waiting.attribution.status is AttributionStatus.BOUND
    assert waiting.news(lapsed) is News.BOUND


# --- in any order -------------------------------------------------------------------------------------

HALF_DAYS = st.integers(-8, 16).map(lambda halves: NOON + halves * 12 * HOUR)
AFTER = st.integers(0, 8).map(lambda halves: halves * 12 * HOUR)
KINDS = [FactKind.ORDER, FactKind.GROUP]


@st.composite
def deeds(draw: st.DrawFn) -> Done:
    """Something done, and undone."""
    when = draw(HALF_DAYS)
    return Done(
        member="ben",
        kind=draw(st.sampled_from([*KINDS, FactKind.CARD])),
        reference_id="",
        occur_time=when,
        amount_minor=draw(st.sampled_from([0, 999, 1000, 5000])),
        refunds=[
            (draw(st.sampled_from([EVERYTHING, 1, 4000])), when + draw(AFTER))
            for _ in range(draw(st.integers(0, 2)))
        ],
        revoke_times=[when + draw(AFTER) for _ in range(draw(st.integers(0, 1)))],
    )


def pieces(done: Done) -> list[Fact]:
    """What is told of it, piece by piece."""
    nothing = Fact(kind=done.kind, reference_id=done.reference_id)
    told = replace(
        nothing, occur_time=done.occur_time, amount_minor=done.amount_minor, currency_code=done.currency_code
    )
    back = [replace(nothing, refunds={f"r{number}": one}) for number, one in enumerate(done.refunds)]
    requested = RevokeReason.REQUESTED
    undone = [replace(nothing, revoke_time=when, revoke_reason=requested) for when in done.revoke_times]
    return [told, *back, *undone]


@dataclass(frozen=True)
class Case:
    """A bond, and when it is looked at."""

    kind: FactKind
    least: int
    signals: tuple[str, ...]
    operator: str
    at: datetime


cases = st.builds(
    Case,
    st.sampled_from(KINDS),
    st.sampled_from([0, 1000]),
    st.sampled_from([(), ("DEVICE",)]),
    st.sampled_from(["", "PASS", "REJECT"]),
    HALF_DAYS,
)


@settings(deadline=None, max_examples=120)
@given(st.lists(deeds(), max_size=4), cases, st.randoms(use_true_random=False))
def test_facts_end_the_same_in_any_order_and_however_often_they_are_told(
    done: list[Done], case: Case, shuffled: random.Random
) -> None:
    put = replace(
        WATCHED,
        qualify=Qualify(kind=case.kind),
        clawback_window=3 * DAY,
        hold_period=2 * DAY,
        open_time=NOON - 2 * DAY,
    )
    when = above(case.least)
    plain = Plain(put, lambda _done, worth: worth >= case.least)
    plain.bonds.append(Bound("atr_1", "ben", "ann", NOON, case.signals, case.operator))
    plain.done = [replace(one, reference_id=f"x{number}") for number, one in enumerate(done)]
    told = [piece for one in plain.done for piece in pieces(one)] * 2
    shuffled.shuffle(told)

    facts: dict[object, Fact] = {}
    now = stand(bond(put, signals=case.signals), put, [], when, case.at).attribution
    counts = False
    for piece in told:
        facts[piece.name] = added(facts.get(piece.name), piece)
        found = stand(now, put, facts.values(), when, case.at)
        counts, now = _heard(counts, found.news(now)), found.attribution
        assert counts is (now.status is AttributionStatus.QUALIFIED)
    if case.operator:
        judged = replace(now, verdict=Verdict(case.operator), resolved=True)
        found = stand(judged, put, facts.values(), when, case.at)
        counts, now = _heard(counts, found.news(judged)), found.attribution
        assert counts is (now.status is AttributionStatus.QUALIFIED)

    expected = plain.bound(plain.bonds[0], case.at)
    assert now.status == expected.status
    if expected.status == "QUALIFIED":
        assert (now.reference_id, now.qualify_time) == (expected.by, expected.qualify_time)
        assert (now.kind, now.amount_minor) == (case.kind, expected.worth)


def _heard(counts: bool, news: News | None) -> bool:
    """Whether an invitee counts for an inviter who heard this."""
    return counts if news is None else news is News.QUALIFIED


def test_a_fact_of_another_kind_says_nothing() -> None:
    assert status(replace(order(), kind=FactKind.CARD)) == AttributionStatus.BOUND
    assert attributions.lapses(bond()) is not None
