"""Points that will expire are announced 30 and 7 days ahead: once per date, and never when they are gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.points.v1 import points_events_pb2 as epb

from services.points.errors import InsufficientPoints
from tests.points.desk import Desk, sequences

patiently = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])

TICK = timedelta(microseconds=1)
AHEAD = (timedelta(days=30), timedelta(days=7))
Told = tuple[datetime, int, datetime]


def told(desk: Desk) -> list[Told]:
    """Since when, how many, and when they expire."""
    return [
        (
            notice.occur_time.ToDatetime(tzinfo=UTC),
            notice.amount,
            notice.expire_time.ToDatetime(tzinfo=UTC),
        )
        for notice in desk.announced(epb.PointsExpiring)
    ]


def amounts(desk: Desk) -> list[int]:
    return [amount for _, amount, _ in told(desk)]


def end_of(desk: Desk) -> datetime:
    """When the latest lot ends."""
    ends = desk.member.lots[-1].expires_at
    assert ends is not None
    return ends


def test_a_member_is_told_to_the_instant_thirty_and_seven_days_ahead() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    end = end_of(desk)
    expected: list[Told] = []
    for ahead in AHEAD:
        desk.at = end - ahead - TICK
        desk.settle()
        assert told(desk) == expected
        desk.wait(microseconds=1)
        expected.append((end - ahead, 5, end))
        assert told(desk) == expected
    desk.wait(days=30)
    assert told(desk) == expected


def test_points_that_end_together_are_one_notice_and_others_another() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    desk.earn(3, months=2)
    first = end_of(desk)
    desk.wait(days=1)
    desk.earn(2, months=2)
    second = end_of(desk)
    desk.at = second - AHEAD[0]
    desk.settle()
    assert told(desk) == [(first - AHEAD[0], 8, first), (second - AHEAD[0], 2, second)]


def test_after_a_long_silence_only_the_latest_notice_of_a_date_is_given() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    end = end_of(desk)
    desk.at = end - timedelta(days=1)
    desk.settle()
    assert told(desk) == [(end - AHEAD[1], 5, end)]


def test_what_is_gone_when_somebody_looks_is_not_announced() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    desk.earn(3, months=3)
    desk.wait(days=65)
    assert amounts(desk) == [3]
    assert desk.balances == (3, 0, 0, 0)


def test_what_was_spent_is_not_announced() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    desk.redeem(2)
    desk.wait(days=40)
    assert amounts(desk) == [3]
    desk.redeem(3)
    desk.wait(days=20)
    assert amounts(desk) == [3]


def test_points_that_end_sooner_than_they_could_be_announced_are_not() -> None:
    """A lot of 30 days hears of the seven only; one that is made later is counted with the next notice."""
    desk = Desk(expiry={"calendar_years": 0})
    end = datetime(2026, 12, 31, 16, tzinfo=UTC)
    desk.at = end - timedelta(days=29)
    desk.earn(5)
    desk.wait(days=10)
    desk.earn(4)
    assert told(desk) == []
    desk.at = end - timedelta(days=7)
    desk.settle()
    assert told(desk) == [(desk.at, 9, end)]
    desk.earn(2)
    desk.wait(days=7)
    assert amounts(desk) == [9]


def test_points_without_an_end_are_never_announced() -> None:
    desk = Desk()
    desk.earn(5)
    desk.wait(days=3650)
    assert told(desk) == []
    assert desk.member.next_due_time is None


def test_what_is_set_aside_is_not_announced_while_it_is() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    desk.at = end_of(desk) - AHEAD[0] - timedelta(days=1)
    desk.place(3, days=2)
    desk.wait(days=1)
    assert amounts(desk) == [2]
    desk.at = end_of(desk) - AHEAD[1]
    desk.settle()
    assert amounts(desk) == [2, 5]


def test_a_lot_that_was_set_aside_as_a_whole_is_announced_when_it_comes_back() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    end = end_of(desk)
    desk.at = end - AHEAD[0] - timedelta(days=1)
    desk.place(5, days=2)
    desk.wait(days=1)
    assert told(desk) == []
    desk.wait(days=1)
    assert [(amount, expires) for _, amount, expires in told(desk)] == [(5, end)]
    desk.wait(days=1)
    assert len(told(desk)) == 1


def test_a_look_at_the_very_instant_tells_once() -> None:
    desk = Desk()
    desk.earn(5, months=2)
    desk.at = end_of(desk) - AHEAD[0]
    desk.settle()
    desk.settle()
    desk.redeem(1)
    assert amounts(desk) == [5]


@pytest.mark.parametrize("pending_days", [0, 300])
def test_pending_points_are_announced_too(pending_days: int) -> None:
    desk = Desk(pending_days=pending_days)
    desk.earn(5, months=2)
    desk.wait(days=40)
    assert amounts(desk) == [5]


# --- any sequence of looks ----------------------------------------------------------------------------


def expected(desk: Desk, since: datetime) -> list[Told]:
    """What a look now is to tell: of each date to come, the latest notice since the last look."""
    ends = {lot.expires_at for lot in desk.member.lots if lot.remaining and lot.expires_at is not None}
    found = []
    for end in ends:
        due = [end - ahead for ahead in AHEAD if since < end - ahead <= desk.at]
        if due and end > desk.at:
            amount = sum(lot.remaining for lot in desk.member.lots if lot.expires_at == end)
            found.append((max(due), amount, end))
    return sorted(found, key=lambda told: (told[0], told[2]))


looks = st.one_of(
    st.tuples(st.just("earn"), st.integers(1, 50), st.integers(0, 3)),
    st.tuples(st.just("redeem"), st.integers(1, 40), st.just(0)),
    st.tuples(st.just("look"), st.integers(0, 40 * 24), st.just(0)),
    st.tuples(st.just("notice"), st.integers(0, 9), st.sampled_from([-1, 0, 1])),
)


@patiently
@given(sequences(looks, 25), st.sampled_from([0, 0, 40]))
def test_each_look_tells_what_is_new_and_nothing_twice(
    story: list[tuple[str, int, int]], pending_days: int
) -> None:
    desk = Desk(pending_days=pending_days)
    model: list[Told] = []
    looked = desk.at
    for what, first, second in story:
        if what == "look":
            desk.at += timedelta(hours=first)
        elif what == "notice":  # the very instant of a notice, or one just before or after it
            moments = [
                lot.expires_at - ahead for lot in desk.member.lots if lot.expires_at for ahead in AHEAD
            ]
            if moments:
                desk.at = max(desk.at, moments[first % len(moments)] + second * TICK)
        due = expected(desk, looked)
        try:
            match what:
                case "earn":
                    desk.earn(first, months=second)
                case "redeem":
                    desk.redeem(first)
                case _:
                    desk.settle()
        except InsufficientPoints:
            continue  # nothing was done, so nobody was told
        model += due
        looked = desk.at
        assert told(desk) == model
    dates = [(moment, end) for moment, _, end in model]
    assert len(dates) == len(set(dates))
