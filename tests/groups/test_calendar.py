"""When occasions come, against python-dateutil, in zones with and without clocks that change."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from dateutil import rrule, tz
from hypothesis import given, settings
from hypothesis import strategies as st

from services.groups.domain.calendar import (
    Occasion,
    Occurrence,
    Recurrence,
    due,
    occurrences,
    upcoming,
)

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
SINCE = datetime(2005, 1, 1, tzinfo=UTC)
SHANGHAI = ZoneInfo("Asia/Shanghai")
# Clocks jump over midnight in Havana and over half an hour in Lord Howe; Apia skipped 30 December 2011.
ZONES = ["Asia/Shanghai", "America/New_York", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia"]


def occasion(recurrence: Recurrence = Recurrence.DAILY, at: time = time(10), **more: object) -> Occasion:
    said = {"entry_id": "e", "claim_for": timedelta(hours=6), "benefit_code": "b", **more}
    return Occasion(recurrence=recurrence, local_time=at, **said)  # type: ignore[arg-type]


def utc(*parts: int, zone: ZoneInfo = SHANGHAI) -> datetime:
    return datetime(*parts, tzinfo=zone).astimezone(UTC)  # type: ignore[arg-type,misc]


def local(found: list[Occurrence], zone: ZoneInfo = SHANGHAI) -> list[str]:
    return [f"{occurrence.at.astimezone(zone):%Y-%m-%d %H:%M}" for occurrence in found]


# --- against dateutil ---------------------------------------------------------------------------------


def as_rules(entry: Occasion, first: datetime) -> rrule.rruleset:
    """The days of an entry from a local day on, as rules of RFC 5545."""
    rules = rrule.rruleset()
    if entry.recurrence is Recurrence.DAILY:
        rules.rrule(rrule.rrule(rrule.DAILY, dtstart=first))
    elif entry.recurrence is Recurrence.WEEKLY:
        days = [day - 1 for day in entry.weekdays]
        rules.rrule(rrule.rrule(rrule.WEEKLY, dtstart=first, byweekday=days))
    elif entry.recurrence is Recurrence.MONTHLY:
        for day in entry.days_of_month:
            # The last of the days that the month has, up to the wanted one.
            days = [day] if day <= 28 else list(range(28, day + 1))
            rules.rrule(rrule.rrule(rrule.MONTHLY, dtstart=first, bymonthday=days, bysetpos=-1))
    else:
        for there in entry.dates:
            rules.rdate(datetime.combine(there, first.time()))
    return rules


def expected(entry: Occasion, start: datetime, end: datetime, zone: str) -> list[datetime]:
    there = tz.gettz(zone)
    first = datetime.combine(start.astimezone(there).date() - 2 * DAY, entry.local_time)
    last = end.astimezone(there).replace(tzinfo=None) + 2 * DAY
    instants = {
        tz.resolve_imaginary(wall.replace(tzinfo=there)).astimezone(UTC)
        for wall in as_rules(entry, first).between(first, last, inc=True)
    }
    opens, closes = entry.valid_from or start, entry.valid_until or end
    return sorted(at for at in instants if max(start, opens) <= at < min(end, closes))


instants = st.integers(0, 25 * 366 * 86_400).map(lambda seconds: SINCE + timedelta(seconds=seconds))
times = st.builds(time, st.integers(0, 23), st.integers(0, 59))
recurring = st.one_of(
    st.fixed_dictionaries({"recurrence": st.just(Recurrence.DAILY)}),
    st.fixed_dictionaries(
        {
            "recurrence": st.just(Recurrence.WEEKLY),
            "weekdays": st.frozensets(st.integers(1, 7), min_size=1),
        }
    ),
    st.fixed_dictionaries(
        {
            "recurrence": st.just(Recurrence.MONTHLY),
            "days_of_month": st.frozensets(st.integers(1, 31), min_size=1, max_size=4),
        }
    ),
    st.fixed_dictionaries(
        {
            "recurrence": st.just(Recurrence.DATE),
            "dates": st.frozensets(st.dates(date(2005, 1, 1), date(2029, 12, 31)), min_size=1, max_size=20),
        }
    ),
)
validities = st.one_of(
    st.just({}),
    st.builds(lambda a, b: {"valid_from": min(a, b), "valid_until": max(a, b)}, instants, instants),
)
occasions = st.builds(lambda days, at, valid: occasion(at=at, **days, **valid), recurring, times, validities)


@given(occasions, instants, st.integers(0, 90 * 86_400), st.sampled_from(ZONES))
@settings(max_examples=150, deadline=None)
def test_occasions_come_when_dateutil_says(entry: Occasion, start: datetime, length: int, zone: str) -> None:
    there = ZoneInfo(zone)
    end = start + timedelta(seconds=length)
    wanted = expected(entry, start, end, zone)
    assert [occurrence.at for occurrence in occurrences([entry], start, end, there)] == wanted
    later = [occurrence.at for occurrence in upcoming([entry], start, there)]
    if following := [at for at in wanted if at > start]:
        assert later == following[:1]
    else:
        assert not later or later[0] >= end


@given(occasions, st.sampled_from(["America/New_York", "America/Havana", "Australia/Lord_Howe"]))
@settings(max_examples=30, deadline=None)
def test_occasions_come_when_dateutil_says_in_a_year_of_changing_clocks(entry: Occasion, zone: str) -> None:
    start, end = datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    found = occurrences([entry], start, end, ZoneInfo(zone))
    assert [occurrence.at for occurrence in found] == expected(entry, start, end, zone)


@given(st.lists(occasions, max_size=4), st.lists(instants, min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_stretches_of_time_add_up(entries: list[Occasion], moments: list[datetime]) -> None:
    """So a sweep that ends where the next begins tells of each occasion once."""
    start, middle, end = sorted(moments)
    middle, end = min(middle, start + 60 * DAY), min(end, start + 120 * DAY)
    both = occurrences(entries, start, middle, SHANGHAI) + occurrences(entries, middle, end, SHANGHAI)
    assert both == occurrences(entries, start, end, SHANGHAI)


# --- one by one ---------------------------------------------------------------------------------------


def test_a_month_without_the_day_has_its_last_day_instead_and_once() -> None:
    entry = occasion(Recurrence.MONTHLY, days_of_month=frozenset({30, 31}))
    found = occurrences([entry], utc(2027, 1, 1), utc(2027, 5, 1), SHANGHAI)
    days = ["2027-01-30", "2027-01-31", "2027-02-28", "2027-03-30", "2027-03-31", "2027-04-30"]
    assert local(found) == [f"{day} 10:00" for day in days]


def test_the_29th_of_february_is_the_28th_where_there_is_none() -> None:
    entry = occasion(Recurrence.MONTHLY, days_of_month=frozenset({29}))
    for year, day in ((2027, 28), (2028, 29), (2100, 28), (2400, 29)):
        found = occurrences([entry], utc(year, 2, 1), utc(year, 3, 1), SHANGHAI)
        assert local(found) == [f"{year}-02-{day} 10:00"]


def test_a_week_begins_on_monday() -> None:
    entry = occasion(Recurrence.WEEKLY, weekdays=frozenset({1, 4}))
    found = occurrences([entry], utc(2027, 3, 1), utc(2027, 3, 8), SHANGHAI)
    assert local(found) == ["2027-03-01 10:00", "2027-03-04 10:00"]  # a Monday and a Thursday


def test_a_time_that_the_clocks_skip_lies_as_much_later_and_one_that_comes_twice_is_the_first() -> None:
    new_york = ZoneInfo("America/New_York")
    skipped = occurrences([occasion(at=time(2, 30))], utc(2027, 3, 14), utc(2027, 3, 16), new_york)
    assert local(skipped, new_york) == ["2027-03-14 03:30", "2027-03-15 02:30"]
    twice = occurrences([occasion(at=time(1, 30))], utc(2027, 11, 7), utc(2027, 11, 8), new_york)
    assert [occurrence.at for occurrence in twice] == [datetime(2027, 11, 7, 5, 30, tzinfo=UTC)]


def test_a_day_that_the_zone_skips_falls_together_with_the_next() -> None:
    apia = ZoneInfo("Pacific/Apia")
    start, end = utc(2011, 12, 29, zone=apia), utc(2012, 1, 1, zone=apia)
    found = occurrences([occasion()], start, end, apia)
    assert local(found, apia) == ["2011-12-29 10:00", "2011-12-31 10:00"]


def test_an_entry_holds_from_its_first_instant_on_and_before_its_last() -> None:
    entry = occasion(valid_from=utc(2027, 3, 2, 10), valid_until=utc(2027, 3, 4, 10))
    found = occurrences([entry], utc(2027, 1, 1), utc(2028, 1, 1), SHANGHAI)
    assert local(found) == ["2027-03-02 10:00", "2027-03-03 10:00"]
    assert local(upcoming([entry], utc(2027, 1, 1), SHANGHAI)) == ["2027-03-02 10:00"]
    assert upcoming([entry], utc(2027, 3, 3, 10), SHANGHAI) == []


def test_what_comes_next_is_told_once_per_entry_soonest_first() -> None:
    entries = [
        occasion(entry_id="monthly", recurrence=Recurrence.MONTHLY, days_of_month=frozenset({8})),
        occasion(entry_id="lunch", at=time(11, 30)),
        occasion(entry_id="breakfast", at=time(7)),
        occasion(entry_id="over", recurrence=Recurrence.DATE, dates=frozenset({date(2027, 2, 14)})),
        occasion(entry_id="now"),
        occasion(entry_id="also now"),
    ]
    found = upcoming(entries, utc(2027, 3, 1, 10), SHANGHAI)
    assert [(o.occasion.entry_id, at) for o, at in zip(found, local(found), strict=True)] == [
        ("lunch", "2027-03-01 11:30"),
        ("breakfast", "2027-03-02 07:00"),
        ("also now", "2027-03-02 10:00"),
        ("now", "2027-03-02 10:00"),
        ("monthly", "2027-03-08 10:00"),
    ]


def test_what_came_while_nobody_looked_is_due_as_long_as_it_can_be_claimed() -> None:
    lunch = occasion(entry_id="lunch", at=time(11), claim_for=timedelta(hours=3))
    week = occasion(Recurrence.WEEKLY, entry_id="week", weekdays=frozenset({1}), claim_for=timedelta(days=2))
    since = utc(2027, 2, 1)

    def told(*now: int) -> list[str]:
        found = due([lunch, week], since, utc(*now), SHANGHAI)
        return [f"{o.occasion.entry_id} {at}" for o, at in zip(found, local(found), strict=True)]

    monday, noon = "week 2027-03-01 10:00", "lunch 2027-03-02 11:00"
    assert told(2027, 3, 2, 10, 59) == [monday]
    assert told(2027, 3, 2, 11) == [monday, noon]  # from the very instant on
    assert told(2027, 3, 2, 13, 59) == [monday, noon]
    assert told(2027, 3, 2, 14) == [monday]  # until the very instant
    assert told(2027, 3, 3, 10) == []
    assert due([lunch, week], utc(2027, 3, 2, 11) + TICK, utc(2027, 3, 2, 12), SHANGHAI) == []
    assert [o.claim_until for o in due([week], since, utc(2027, 3, 1, 10), SHANGHAI)] == [utc(2027, 3, 3, 10)]


def test_an_occasion_keeps_its_name_whatever_else_changes() -> None:
    at = utc(2027, 3, 1, 10)
    name = Occurrence(at, occasion(text="周一")).occasion_id("welfare")
    assert name == Occurrence(at.astimezone(UTC), occasion(text="周一福利", benefit_code="c")).occasion_id(
        "welfare"
    )
    others = [
        Occurrence(at + DAY, occasion()).occasion_id("welfare"),
        Occurrence(at, occasion(entry_id="f")).occasion_id("welfare"),
        Occurrence(at, occasion()).occasion_id("welfare2"),
    ]
    assert len({name, *others}) == 4
    assert all(len(other) <= 64 and other.startswith("occ_") for other in (name, *others))


@pytest.mark.parametrize("recurrence", [Recurrence.WEEKLY, Recurrence.MONTHLY, Recurrence.DATE])
def test_an_entry_that_falls_on_no_day_is_refused(recurrence: Recurrence) -> None:
    with pytest.raises(ValueError, match="no day"):
        occasion(recurrence)


def test_a_calendar_ends_where_timestamps_end() -> None:
    start = datetime(9998, 12, 30, tzinfo=UTC)
    assert len(list(islice(occasion().instants(start, SHANGHAI), 10))) < 5
