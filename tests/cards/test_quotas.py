"""Quotas in local time, and the times of day at which benefits hold."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cards.domain.products import Benefit, BenefitKind, Daypart, SalesWindow
from services.cards.domain.quotas import Quota, Use, UseStatus, Window, available, used

SHANGHAI = ZoneInfo("Asia/Shanghai")
TICK = timedelta(microseconds=1)
MIDNIGHT = datetime(2027, 3, 1, tzinfo=SHANGHAI).astimezone(UTC)  # a Monday begins
ZONES = ["Asia/Shanghai", "America/New_York", "America/Havana", "Australia/Lord_Howe", "UTC"]


def test_the_last_microsecond_of_a_day_in_shanghai_belongs_to_that_day() -> None:
    last = datetime(2027, 2, 28, 23, 59, 59, 999999, tzinfo=SHANGHAI).astimezone(UTC)
    assert last + TICK == MIDNIGHT
    assert Window.DAY.key(last, "s", SHANGHAI) == "2027-02-28"
    assert Window.DAY.key(MIDNIGHT, "s", SHANGHAI) == "2027-03-01"
    assert Window.DAY.resets(last, SHANGHAI) == MIDNIGHT
    assert Window.DAY.resets(MIDNIGHT, SHANGHAI) == MIDNIGHT + timedelta(days=1)
    assert Window.WEEK.key(last, "s", SHANGHAI) == "2027-W08"
    assert Window.WEEK.key(MIDNIGHT, "s", SHANGHAI) == "2027-W09"
    assert Window.WEEK.resets(last, SHANGHAI) == MIDNIGHT
    assert Window.WEEK.resets(MIDNIGHT, SHANGHAI) == MIDNIGHT + timedelta(days=7)


def test_a_week_belongs_to_the_year_that_iso_says() -> None:
    for day, key in (((2027, 1, 3), "2026-W53"), ((2027, 1, 4), "2027-W01"), ((2029, 12, 31), "2030-W01")):
        at = datetime(*day, 12, tzinfo=SHANGHAI)
        assert Window.WEEK.key(at, "s", SHANGHAI) == key


def test_a_quota_of_a_period_is_named_by_it_and_does_not_fill_again() -> None:
    assert Window.PERIOD.key(MIDNIGHT, "seg_1", SHANGHAI) == "seg_1"
    assert Window.PERIOD.resets(MIDNIGHT, SHANGHAI) is None


def test_a_day_outlives_the_period_with_the_limit_of_the_one_that_runs() -> None:
    """Three cups were used under a limit of three; the next period of the day allows two, then five."""
    assert Window.DAY.key(MIDNIGHT, "seg_1", SHANGHAI) == Window.DAY.key(MIDNIGHT, "seg_2", SHANGHAI)
    assert Window.WEEK.key(MIDNIGHT, "seg_1", SHANGHAI) == Window.WEEK.key(MIDNIGHT, "seg_2", SHANGHAI)
    assert Quota(2, Window.DAY).remaining(3) == 0
    assert Quota(5, Window.DAY).remaining(3) == 2


@settings(deadline=None, max_examples=400)
@given(
    st.integers(0, 20 * 366 * 86_400).map(lambda s: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=s)),
    st.sampled_from(ZONES),
    st.sampled_from([Window.DAY, Window.WEEK]),
)
def test_a_window_lasts_exactly_until_it_resets(at: datetime, zone: str, window: Window) -> None:
    there = ZoneInfo(zone)
    reset = window.resets(at, there)
    assert reset is not None
    assert at < reset
    key = window.key(at, "s", there)
    assert window.key(reset - TICK, "s", there) == key
    assert window.key(reset, "s", there) > key


@pytest.mark.parametrize(
    ("quota", "taken", "per_order", "expected"),
    [
        (None, 0, 0, None),
        (None, 0, 2, 2),
        (Quota(1, Window.DAY), 0, 0, 1),
        (Quota(1, Window.DAY), 1, 0, 0),
        (Quota(5, Window.DAY), 1, 2, 2),
        (Quota(5, Window.DAY), 4, 2, 1),
    ],
)
def test_quota_and_order_limit_together(
    quota: Quota | None, taken: int, per_order: int, expected: int | None
) -> None:
    assert available(quota, taken, per_order) == expected


def use(status: UseStatus, uses: int = 1) -> Use:
    return Use("c", "s", "cup", "2027-03-01", uses, 700, status, MIDNIGHT)


def test_a_reservation_counts_until_the_instant_it_lapses() -> None:
    reserved = use(UseStatus.RESERVED, 2)
    assert reserved.live(MIDNIGHT - TICK)
    assert not reserved.live(MIDNIGHT)
    assert use(UseStatus.CONFIRMED).live(MIDNIGHT)
    assert not use(UseStatus.REVERSED).live(MIDNIGHT - TICK)
    uses = [reserved, use(UseStatus.CONFIRMED)]
    assert used(3, uses, MIDNIGHT - TICK) == 3
    assert used(3, uses, MIDNIGHT) == 1


BREAKFAST = Daypart(time(5), time(10, 30))
NIGHT = Daypart(time(22), time(2), frozenset({5}))


@pytest.mark.parametrize(
    ("daypart", "at", "holds"),
    [
        (BREAKFAST, (2027, 3, 1, 4, 59, 59, 999999), False),
        (BREAKFAST, (2027, 3, 1, 5), True),
        (BREAKFAST, (2027, 3, 1, 10, 29, 59, 999999), True),
        (BREAKFAST, (2027, 3, 1, 10, 30), False),
        (NIGHT, (2027, 3, 5, 21, 59), False),  # a Friday
        (NIGHT, (2027, 3, 5, 22), True),
        (NIGHT, (2027, 3, 6, 1, 59), True),
        (NIGHT, (2027, 3, 6, 2), False),
        (NIGHT, (2027, 3, 6, 22), False),
        (NIGHT, (2027, 3, 5, 1), False),
        (Daypart(time(0), time(0)), (2027, 3, 5, 1), True),
    ],
)
def test_a_daypart_holds_by_local_clocks_and_belongs_to_the_day_it_begins_on(
    daypart: Daypart, at: tuple[int, ...], holds: bool
) -> None:
    benefit = Benefit("b", BenefitKind.PERCENT_OFF, 40, dayparts=(daypart,))
    moment = datetime(*at, tzinfo=SHANGHAI).astimezone(UTC)  # type: ignore[arg-type,misc]
    assert benefit.holds(moment, SHANGHAI) is holds
    assert Benefit("b", BenefitKind.PERCENT_OFF, 40).holds(moment, SHANGHAI)


def test_a_sales_cap_counts_in_local_days_months_and_years() -> None:
    newyear = datetime(2026, 12, 31, 16, tzinfo=UTC)
    keys = [window.key(newyear, SHANGHAI) for window in SalesWindow]
    assert keys == ["2027-01-01", "2027-01", "2027", ""]
    assert SalesWindow.YEAR.key(newyear - TICK, SHANGHAI) == "2026"
