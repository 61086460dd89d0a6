"""What giving a card back gives: never above what was paid, explained to the last minor unit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cards.domain import cards
from services.cards.domain.cards import Card, Ending, Purchase
from services.cards.domain.periods import Period
from services.cards.domain.products import FreezePolicy, RefundPolicy
from services.cards.domain.refunds import RefundQuote, StepKind, Terms, quote

ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2027, 3, 1, 4, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
PRO_RATA = RefundPolicy(cooling_off_days=7, pro_rata=True)
NONE = RefundPolicy(cooling_off_days=7)


def card(*prices: int, points: bool = False) -> Card:
    """A month for each price, bought at NOON."""
    made = Card("c")
    for number, price in enumerate(prices):
        paid = (0, price) if points else (price, 0)
        bought = Purchase(f"s{number}", "king", 1, Period(months=1), 0, NOON, *paid)
        made = cards.extend(made, bought, NOON, ZONE)
    return made


def terms(policy: RefundPolicy, uses: int = 0, saved: int = 0, points_price: int = 0) -> Terms:
    return Terms(policy, 3100, points_price, uses, saved)


def quoted(made: Card, at: datetime, *each: Terms) -> RefundQuote:
    return quote(made, {f"s{number}": one for number, one in enumerate(each)}, at, ZONE)


def kinds(answer: RefundQuote) -> list[tuple[StepKind, int]]:
    return [(step.kind, step.amount) for step in answer.steps]


@pytest.mark.parametrize(
    ("policy", "uses", "saved", "after", "refund"),
    [
        (PRO_RATA, 0, 0, timedelta(), 3100),
        (PRO_RATA, 0, 0, 7 * DAY - TICK, 3100),  # unused within cooling-off
        (PRO_RATA, 0, 0, 7 * DAY, 2400),  # 24 of 31 days have not begun
        (PRO_RATA, 0, 0, 7 * DAY + TICK, 2300),
        (PRO_RATA, 1, 700, timedelta(days=1), 3000 - 700),  # used: by days, less what it saved
        (PRO_RATA, 9, 5000, timedelta(days=1), 0),
        (PRO_RATA, 0, 0, 31 * DAY - TICK, 0),
        (NONE, 0, 0, timedelta(days=1), 3100),
        (NONE, 1, 0, timedelta(days=1), 0),
        (NONE, 0, 0, 7 * DAY, 0),
    ],
)
def test_each_policy_gives_back_what_it_says(
    policy: RefundPolicy, uses: int, saved: int, after: timedelta, refund: int
) -> None:
    answer = quoted(card(3100), NOON + after, terms(policy, uses, saved))
    assert (answer.minor, answer.points) == (refund, 0)
    assert sum(step.amount for step in answer.steps) == refund


def test_a_refund_is_explained_by_signed_lines() -> None:
    answer = quoted(card(3100, 3100), NOON + 10 * DAY, terms(PRO_RATA, 2, 900), terms(PRO_RATA))
    assert kinds(answer) == [
        (StepKind.PAID, 3100),
        (StepKind.USED_DAYS, -1000),
        (StepKind.USED_BENEFITS, -900),
        (StepKind.PAID, 3100),
        (StepKind.USED_DAYS, 0),
    ]
    used_days = answer.steps[1]
    assert (used_days.segment_id, used_days.count, used_days.of_count) == ("s0", 10, 31)
    assert answer.minor == 1200 + 3100


def test_days_that_rested_are_not_used() -> None:
    made = cards.freeze(card(3100), FreezePolicy(1, 30, 1), 20, NOON + 10 * DAY, ZONE)
    assert quoted(made, NOON + 25 * DAY, terms(PRO_RATA)).minor == 2100
    assert quoted(made, NOON + 30 * DAY, terms(PRO_RATA)).minor == 2100
    assert quoted(made, NOON + 31 * DAY, terms(PRO_RATA)).minor == 2000


def test_points_come_back_as_points_less_the_benefits_at_the_products_two_prices() -> None:
    made = card(620, points=True)
    answer = quoted(made, NOON + 1 * DAY, terms(PRO_RATA, 1, 703, points_price=620))
    assert (answer.minor, answer.points) == (0, 600 - 141)  # 703 × 620 / 3100 = 140.6, rounded up


def test_where_the_product_has_no_price_in_money_what_was_used_is_used_up() -> None:
    free_of_money = Terms(PRO_RATA, 0, 620, 1, 703)
    assert quote(card(620, points=True), {"s0": free_of_money}, NOON + DAY, ZONE).points == 0


def test_what_is_over_gives_nothing() -> None:
    made = cards.end_live(card(3100), Ending.REFUNDED, NOON + DAY, ZONE)
    assert quoted(made, NOON + DAY, terms(PRO_RATA)) == RefundQuote(0, 0, ())


policies = st.builds(RefundPolicy, st.integers(0, 40), st.booleans())


@settings(deadline=None, max_examples=500)
@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=4),
    st.booleans(),
    st.builds(Terms, policies, st.just(3100), st.just(700), st.integers(0, 3), st.integers(0, 10**13)),
    st.integers(0, 150 * 86_400).map(lambda seconds: timedelta(seconds=seconds)),
    st.one_of(st.none(), st.tuples(st.integers(0, 30), st.integers(1, 30))),
)
def test_a_refund_is_never_above_what_was_paid_nor_below_nothing_and_its_lines_sum_up_to_it(
    prices: list[int],
    points: bool,
    each: Terms,
    after: timedelta,
    rest: tuple[int, int] | None,
) -> None:
    made = card(*prices, points=points)
    if rest:
        made = cards.freeze(made, FreezePolicy(1, 30, 1), rest[1], NOON + rest[0] * DAY, ZONE)
    answer = quoted(made, NOON + after, *(each for _ in prices))
    by_segment: dict[str, int] = {}
    for step in answer.steps:
        by_segment[step.segment_id] = by_segment.get(step.segment_id, 0) + step.amount
    for number, price in enumerate(prices):
        assert 0 <= by_segment.get(f"s{number}", 0) <= price
    assert sum(by_segment.values()) == answer.minor + answer.points
    assert 0 <= answer.minor + answer.points <= sum(prices)
    assert not (answer.points and answer.minor)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 40 * 86_400), min_size=2, max_size=2))
def test_waiting_never_gives_more(price: int, seconds: list[int]) -> None:
    early, late = sorted(NOON + timedelta(seconds=count) for count in seconds)
    made = card(price)
    assert quoted(made, early, terms(PRO_RATA)).minor >= quoted(made, late, terms(PRO_RATA)).minor
