"""Where periods end, against python-dateutil: every start day of six years, in zones with and without DST."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise, product
from zoneinfo import ZoneInfo

import pytest
from dateutil import tz
from dateutil.relativedelta import relativedelta
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cards.domain.cards import Card, Purchase, Rest, Segment, extend
from services.cards.domain.periods import Anchor, Period, Tail, Timing, days_after, place

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
SINCE = datetime(2000, 1, 1, tzinfo=UTC)
SHANGHAI = ZoneInfo("Asia/Shanghai")
ZONES = ["Asia/Shanghai", "America/New_York"]
# Clocks jump over midnight in Havana and over half an hour in Lord Howe.
ODD_ZONES = [*ZONES, "America/Havana", "Australia/Lord_Howe", "Europe/Dublin", "UTC"]
MONTH, QUARTER = Period(months=1), Period(months=3)
GRACE = 7


def days(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += DAY


def utc(*parts: int, zone: str = "Asia/Shanghai") -> datetime:
    return datetime(*parts, tzinfo=ZoneInfo(zone)).astimezone(UTC)  # type: ignore[arg-type,misc]


# --- the model: what dateutil says --------------------------------------------------------------------


def after(instant: datetime, zone: str, **count: int) -> datetime:
    """So much local time later, by dateutil."""
    local = instant.astimezone(tz.gettz(zone)).replace(tzinfo=None, fold=0) + relativedelta(**count)
    there: datetime = tz.resolve_imaginary(local.replace(tzinfo=tz.gettz(zone)))
    return there.astimezone(UTC)


def months_after(instant: datetime, zone: str, months: int) -> datetime:
    return after(instant, zone, months=months)


def expected(
    start: datetime, period: int, when: str, frozen: timedelta, zone: str
) -> tuple[datetime, datetime, datetime, int]:
    """End of the first period; start, end and streak of the renewal."""
    end = months_after(start, zone, period) + frozen
    anchor, bought = (end, 0) if frozen else (start, period)
    if when in ("early", "at end"):
        return end, end, months_after(anchor, zone, bought + period), 2
    now = end + {"in grace": 3 * DAY, "late": 10 * DAY}[when]
    return end, now, months_after(now, zone, period), 2 if when == "in grace" else 1


# --- every start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("period", [1, 3])
def test_every_start_of_six_years_ends_and_is_renewed_as_dateutil_says(zone: str, period: int) -> None:
    """2,192 days × a month or a quarter × renewed early, at the end, in grace, late × frozen or not."""
    there = ZoneInfo(zone)
    moments = product(("early", "at end", "in grace", "late"), (timedelta(), 5 * DAY + timedelta(hours=7)))
    cases = list(moments)
    for day in days(date(2027, 1, 1), date(2032, 12, 31)):
        # Clocks in New York jump at 02:00, and this time of day falls into the jump.
        start = datetime(day.year, day.month, day.day, 2, 30, 15, 123456, tzinfo=there).astimezone(UTC)
        bought = extend(Card("c"), purchase("first", period, start), start, there)
        for when, frozen in cases:
            card = rested(bought, start, frozen, there)
            end = card.segments[0].end
            paid = {"early": end - 2 * DAY, "at end": end, "in grace": end + 3 * DAY, "late": end + 10 * DAY}
            card = extend(card, purchase("second", period, paid[when]), paid[when], there)
            first, second = card.segments
            found = (first.end, second.start, second.end, second.streak)
            assert found == expected(start, period, when, frozen, zone), (day, when, frozen)


def purchase(name: str, months: int, paid: datetime) -> Purchase:
    return Purchase(name, "king", 1, Period(months=months), GRACE, paid, paid_minor=1900)


def rested(card: Card, start: datetime, frozen: timedelta, zone: ZoneInfo) -> Card:
    """The card after a rest that began ten days after the start."""
    if not frozen:
        return card
    rest = Rest(start + 10 * DAY, start + 10 * DAY + frozen)
    return Card(card.card_id, card.segments, rest).as_of(rest.until, zone)


instants = st.integers(0, 60 * 366 * 86_400_000_000).map(lambda micros: SINCE + micros * TICK)


@settings(deadline=None, max_examples=500)
@given(
    instants,
    st.sampled_from(ODD_ZONES),
    st.lists(
        st.sampled_from([Period(months=1), Period(months=3), Period(months=12)]), min_size=1, max_size=30
    ),
)
def test_a_chain_of_months_ends_at_the_anchor_and_all_its_months(
    start: datetime, zone: str, periods: list[Period]
) -> None:
    tail = None
    for period in periods:
        where = place(period, start, start, tail, ZoneInfo(zone))
        tail = Tail(where.end, where.anchor, where.streak, 0)
    months = sum(period.months for period in periods)
    assert where.end == months_after(start, zone, months)
    assert where.streak == len(periods)


@settings(deadline=None, max_examples=500)
@given(
    instants,
    st.sampled_from(ODD_ZONES),
    st.lists(st.builds(Period, st.just(0), st.integers(1, 400)), min_size=1, max_size=10),
)
def test_a_chain_of_days_keeps_the_time_of_day(start: datetime, zone: str, periods: list[Period]) -> None:
    tail = None
    for period in periods:
        where = place(period, start, start, tail, ZoneInfo(zone))
        tail = Tail(where.end, where.anchor, where.streak, 0)
        assert where.days == period.days
    assert where.end == after(start, zone, days=sum(period.days for period in periods))


@settings(deadline=None, max_examples=300)
@given(instants, st.sampled_from(ODD_ZONES), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_periods_of_a_chain_follow_one_another_without_gap_or_overlap(
    start: datetime, zone: str, sizes: list[int]
) -> None:
    there = ZoneInfo(zone)
    card = Card("c")
    for size in sizes:
        period = Period(days=size) if size % 2 else Period(months=size)
        bought = Purchase(f"s{len(card.segments)}", "king", 1, period, 0, start)
        card = extend(card, bought, start, there)
    segments: tuple[Segment, ...] = card.segments
    assert segments[0].start == start
    for before, following in pairwise(segments):
        assert before.start < before.end == following.start < following.end


# --- one by one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "ends"),
    [
        ((2027, 1, 31), [(2027, 2, 28), (2027, 3, 31), (2027, 4, 30), (2027, 5, 31)]),
        ((2028, 1, 31), [(2028, 2, 29), (2028, 3, 31)]),
        ((2027, 1, 29), [(2027, 2, 28), (2027, 3, 29)]),
        ((2027, 12, 31), [(2028, 1, 31), (2028, 2, 29), (2028, 3, 31)]),
    ],
)
def test_months_are_counted_from_the_anchor_and_clamped(
    start: tuple[int, int, int], ends: list[tuple[int, int, int]]
) -> None:
    anchor = Anchor.at(utc(*start, 10, 15), SHANGHAI)
    for end in ends:
        anchor = anchor.plus(MONTH)
        assert anchor.instant(SHANGHAI) == utc(*end, 10, 15)


def test_a_quarter_behind_a_month_keeps_the_anchor() -> None:
    anchor = Anchor.at(utc(2027, 1, 31), SHANGHAI).plus(MONTH).plus(QUARTER)
    assert anchor.instant(SHANGHAI) == utc(2027, 5, 31)


def test_days_behind_a_month_are_an_anchor_of_their_own() -> None:
    anchor = Anchor.at(utc(2027, 1, 31), SHANGHAI).plus(MONTH).plus(Period(days=7))
    assert anchor.instant(SHANGHAI) == utc(2027, 3, 7)
    assert anchor.plus(MONTH).instant(SHANGHAI) == utc(2027, 4, 7)


def test_a_leap_day_is_kept_through_years_that_have_none() -> None:
    anchor = Anchor.at(utc(2028, 2, 29), SHANGHAI)
    ends = [anchor := anchor.plus(Period.parse("P1Y")) for _ in range(4)]
    days = [end.instant(SHANGHAI).astimezone(SHANGHAI).date() for end in ends]
    assert days == [date(2029, 2, 28), date(2030, 2, 28), date(2031, 2, 28), date(2032, 2, 29)]


def test_an_end_that_the_clocks_skip_lies_as_much_later_and_the_next_is_on_time_again() -> None:
    zone = ZoneInfo("America/New_York")
    anchor = Anchor.at(utc(2027, 2, 14, 2, 30, zone="America/New_York"), zone).plus(MONTH)
    assert anchor.instant(zone) == utc(2027, 3, 14, 3, 30, zone="America/New_York")
    assert anchor.plus(MONTH).instant(zone) == utc(2027, 4, 14, 2, 30, zone="America/New_York")


def test_an_end_that_comes_twice_is_the_first() -> None:
    zone = ZoneInfo("America/New_York")
    end = Anchor.at(utc(2027, 10, 7, 1, 30, zone="America/New_York"), zone).plus(MONTH).instant(zone)
    assert end == datetime(2027, 11, 7, 5, 30, tzinfo=UTC)  # 01:30 summer time


END = utc(2027, 2, 28, 10, 15)
TAIL = Tail(END, Anchor.at(utc(2027, 1, 31, 10, 15), SHANGHAI).plus(MONTH), 4, GRACE)


@pytest.mark.parametrize(
    ("paid", "timing", "streak"),
    [
        (END - 20 * DAY, Timing.EARLY, 5),
        (END - TICK, Timing.EARLY, 5),
        (END, Timing.EARLY, 5),
        (END + TICK, Timing.GRACE, 5),
        (END + GRACE * DAY - TICK, Timing.GRACE, 5),
        (END + GRACE * DAY, Timing.LATE, 1),
    ],
)
def test_when_it_is_renewed_decides_where_it_goes(paid: datetime, timing: Timing, streak: int) -> None:
    where = place(MONTH, paid, paid, TAIL, SHANGHAI)
    assert (where.timing, where.streak) == (timing, streak)
    if timing is Timing.EARLY:
        assert (where.start, where.end) == (END, utc(2027, 3, 31, 10, 15))
    else:
        assert (where.start, where.end) == (paid, months_after(paid, "Asia/Shanghai", 1))


def test_what_was_paid_in_time_continues_the_chain_though_it_is_told_later() -> None:
    where = place(MONTH, END - TICK, END + 3 * DAY, TAIL, SHANGHAI)
    assert (where.start, where.end) == (END, utc(2027, 3, 31, 10, 15))
    late = place(MONTH, END + TICK, END + 3 * DAY, TAIL, SHANGHAI)
    assert (late.start, late.timing) == (END + 3 * DAY, Timing.GRACE)


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("P1M", Period(months=1)),
        ("P3M", Period(months=3)),
        ("P1Y", Period(months=12)),
        ("P7D", Period(days=7)),
        ("P2W", Period(days=14)),
        ("P3660D", Period(days=3660)),
    ],
)
def test_periods_are_read(text: str, period: Period) -> None:
    assert Period.parse(text) == period


@pytest.mark.parametrize(
    "text",
    ["", "P", "P0M", "P01M", "1M", "P1", "PT1H", "P1M2D", "P-1M", "p1m", "P11Y", "P121M", "P3661D", "P٣M"],
)
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"period|longer"):
        Period.parse(text)


def test_no_days_later_is_the_same_instant_also_in_the_second_of_two_hours() -> None:
    zone = ZoneInfo("America/New_York")
    second = datetime(2027, 11, 7, 6, 30, tzinfo=UTC)
    assert days_after(second, 0, zone) == second
    assert days_after(second, 1, zone) == datetime(2027, 11, 8, 6, 30, tzinfo=UTC)
