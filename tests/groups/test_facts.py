"""Facts, against a count that goes day by day."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.groups.domain.facts import (
    NO_PAST,
    SPARE,
    Facts,
    Purchase,
    aged,
    city_of,
    facts_of,
    next_change,
)

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
SHANGHAI = ZoneInfo("Asia/Shanghai")
ZONES = ["Asia/Shanghai", "America/New_York", "America/Havana"]  # clocks jump over midnight in Havana
NOW = datetime(2027, 3, 20, 4, tzinfo=UTC)  # noon in Shanghai


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=SHANGHAI).astimezone(UTC)  # type: ignore[arg-type,misc]


def bought(paid: datetime, store: str = "s1", amount: int = 1000, refunded: int = 0) -> Purchase:
    return Purchase(
        order_id=f"o-{paid.timestamp()}",
        store_id=store,
        paid_time=paid,
        amount_minor=amount,
        refunded_minor=refunded,
    )


def facts(*purchases: Purchase, at: datetime = NOW, horizon: int = 400) -> Facts:
    return facts_of(purchases, at, SHANGHAI, horizon)


# --- the model ----------------------------------------------------------------------------------------


def model(purchases: list[Purchase], at: datetime, zone: ZoneInfo, horizon: int) -> Facts:
    """A book of days, read from today backward."""
    today = at.astimezone(zone).date()
    book: dict[date, list[int]] = {}
    visits: Counter[str] = Counter()
    latest: dict[str, datetime] = {}
    for purchase in purchases:
        day = purchase.paid_time.astimezone(zone).date()
        left = purchase.amount_minor - purchase.refunded_minor
        if day > today or (purchase.refunded_minor and left <= 0):
            continue
        book.setdefault(day, []).append(left)
        if purchase.store_id:
            visits[purchase.store_id] += 1
            latest[purchase.store_id] = max(
                latest.get(purchase.store_id, purchase.paid_time), purchase.paid_time
            )
    back = [book.get(today - number * DAY, []) for number in range(90)]
    month, quarter = list(chain(*back[:30])), list(chain(*back))
    ranked = sorted(visits, key=lambda store: (-visits[store], -latest[store].timestamp(), store))
    return Facts(
        recency_days=min(horizon, min(((today - day).days for day in book), default=horizon)),
        first_days=min(horizon, max(((today - day).days for day in book), default=horizon)),
        orders_30d=len(month),
        orders_90d=len(quarter),
        orders_total=sum(map(len, book.values())),
        spend_30d_minor=sum(month),
        spend_90d_minor=sum(quarter),
        home_site=ranked[0] if ranked else "",
    )


moments = st.integers(-130 * 86_400, 3 * 86_400).map(lambda seconds: NOW + timedelta(seconds=seconds))
edges = st.builds(  # about local midnights, where days begin
    lambda days, ticks: utc(2027, 3, 20) - days * DAY + ticks * TICK, st.integers(-1, 130), st.integers(-1, 1)
)


@st.composite
def purchase_lists(draw: st.DrawFn) -> list[Purchase]:
    purchases = []
    for number in range(draw(st.integers(0, 12))):
        amount = draw(st.integers(0, 500))
        purchases.append(
            Purchase(
                order_id=f"o{number}",
                store_id=draw(st.sampled_from(["", "s1", "s2", "s3"])),
                city=draw(st.sampled_from(["", "", "c1", "c2"])),
                paid_time=draw(st.one_of(moments, edges)),
                amount_minor=amount,
                refunded_minor=draw(st.sampled_from([0, 0, amount, amount // 2])),
            )
        )
    return purchases


@given(purchase_lists(), st.one_of(moments, edges), st.sampled_from(ZONES), st.sampled_from([90, 91, 400]))
@settings(max_examples=150, deadline=None)
def test_facts_are_those_of_a_book_of_days(
    purchases: list[Purchase], at: datetime, zone: str, horizon: int
) -> None:
    there = ZoneInfo(zone)
    assert facts_of(purchases, at, there, horizon) == model(purchases, at, there, horizon)


@given(purchase_lists(), moments, st.sampled_from(ZONES), st.sampled_from([90, 110]), st.integers(0, 200))
@settings(max_examples=150, deadline=None)
def test_time_changes_facts_when_it_is_said_to_and_not_before(
    purchases: list[Purchase], at: datetime, zone: str, horizon: int, days: int
) -> None:
    there = ZoneInfo(zone)
    now = facts_of(purchases, at, there, horizon)
    change = next_change(purchases, at, there, horizon)
    if change is None:
        assert facts_of(purchases, at + days * DAY, there, horizon) == now
        return
    assert at < change <= at + timedelta(hours=25)
    assert facts_of(purchases, change - TICK, there, horizon) == now
    if max(p.paid_time for p in purchases if p.counts) <= at:
        assert facts_of(purchases, change, there, horizon) != now


@given(
    purchase_lists(),
    st.lists(st.integers(0, 40 * 24), min_size=1, max_size=6),
    st.sampled_from(ZONES),
    st.sampled_from([90, 400]),
)
@settings(max_examples=150, deadline=None)
def test_what_is_added_up_and_no_more_looked_at_makes_no_difference(
    purchases: list[Purchase], hours: list[int], zone: str, horizon: int
) -> None:
    there, at, past = ZoneInfo(zone), NOW - 130 * DAY, NO_PAST
    for passed in hours:
        at += timedelta(hours=passed)
        told = [one for one in purchases if one.paid_time <= at]
        past = aged(past, [one for one in told if not past.holds(one)], at, there)
        recent = [one for one in told if not past.holds(one)]
        assert past == past.anew(told)
        for moment in (at - SPARE, at, at + 5 * DAY):
            assert facts_of(recent, moment, there, horizon, past) == facts_of(told, moment, there, horizon)
            assert next_change(recent, moment, there, horizon, past) == next_change(
                told, moment, there, horizon
            )
        assert city_of(recent, past) == city_of(told)
        assert all(one.paid_time >= at - 100 * DAY for one in recent)


@given(purchase_lists(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_facts_do_not_depend_on_the_order_of_rows(purchases: list[Purchase], source: object) -> None:
    shuffled = list(purchases)
    source.shuffle(shuffled)  # type: ignore[attr-defined]
    assert facts(*shuffled) == facts(*purchases)


# --- one by one ---------------------------------------------------------------------------------------


def test_of_somebody_who_bought_nothing_everything_is_as_long_ago_as_can_be() -> None:
    assert facts() == Facts(recency_days=400, first_days=400)
    assert next_change([], NOW, SHANGHAI, 400) is None


@pytest.mark.parametrize(
    ("days", "count"), [(0, (1, 1)), (29, (1, 1)), (30, (0, 1)), (89, (0, 1)), (90, (0, 0))]
)
def test_a_window_is_today_and_the_days_before_it(days: int, count: tuple[int, int]) -> None:
    for time_of_day in (timedelta(), DAY - TICK):
        found = facts(bought(utc(2027, 3, 20) - days * DAY + time_of_day))
        assert (found.orders_30d, found.orders_90d) == count
        assert (found.recency_days, found.first_days, found.orders_total) == (days, days, 1)


def test_days_are_those_of_the_programme_and_not_of_utc() -> None:
    evening = datetime(2027, 3, 19, 16, 30, tzinfo=UTC)  # half past midnight in Shanghai
    assert facts(bought(evening)).recency_days == 0
    assert facts(bought(evening - timedelta(hours=1))).recency_days == 1


def test_nothing_counts_that_was_refunded_whole_and_the_rest_of_what_was_refunded_in_part() -> None:
    kept = bought(NOW - 40 * DAY, "s1", 3000, 1000)
    found = facts(kept, bought(NOW - DAY, "s2", 5000, 5000), bought(NOW - 2 * DAY, "s2", 700, 700))
    assert found == facts(kept)
    assert (found.spend_30d_minor, found.spend_90d_minor, found.recency_days) == (0, 2000, 40)


def test_what_cost_nothing_counts_as_an_order() -> None:
    found = facts(bought(NOW, amount=0))
    assert (found.orders_30d, found.spend_30d_minor, found.home_site) == (1, 0, "s1")


def test_nobody_has_bought_on_a_day_to_come() -> None:
    tomorrow = bought(utc(2027, 3, 21))
    assert facts(tomorrow) == facts()
    assert next_change([tomorrow], NOW, SHANGHAI, 400) == utc(2027, 3, 21)
    assert facts(tomorrow, at=utc(2027, 3, 21)).orders_30d == 1
    assert facts(bought(utc(2027, 3, 20, 23))).orders_30d == 1  # later today


def test_home_is_where_most_was_bought_and_of_equals_where_it_was_last() -> None:
    purchases = [bought(NOW - days * DAY, store) for days, store in ((9, "s1"), (8, "s2"), (1, ""), (0, ""))]
    assert facts(*purchases).home_site == "s2"
    assert facts(*purchases, bought(NOW - 100 * DAY, "s1")).home_site == "s1"
    assert facts(*purchases, bought(NOW - DAY, "s1", 100, 100)).home_site == "s2"


def test_days_are_counted_up_to_the_horizon_and_then_time_changes_nothing() -> None:
    purchase = bought(utc(2027, 3, 20))
    before = utc(2027, 3, 20) + 400 * DAY - TICK
    assert facts(purchase, at=before).recency_days == 399
    assert next_change([purchase], before, SHANGHAI, 400) == before + TICK
    assert facts(purchase, at=before + TICK).recency_days == 400
    assert next_change([purchase], before + TICK, SHANGHAI, 400) is None
    assert facts(purchase, at=before + 900 * DAY) == facts(purchase, at=before + TICK)
