"""The test clock: shared by all who map it, standing still, moving only forward."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis import clock
from services.chassis.clock import SystemClock, TestClock

NOON = datetime(2026, 6, 15, 4, tzinfo=UTC)
TICK = timedelta(microseconds=1)


@settings(deadline=None)
@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_micros_lose_nothing(at: datetime) -> None:
    assert clock.from_micros(clock.to_micros(at)) == at


def test_a_test_clock_stands_still_and_all_who_map_it_see_it_move(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    mover = TestClock.create(path, NOON)
    reader = clock.open_clock(path, "points")
    assert reader.now() == reader.now() == NOON
    mover.set(NOON + TICK)
    assert reader.now() == NOON + TICK


def test_a_test_clock_never_moves_back(tmp_path: Path) -> None:
    standing = TestClock.create(tmp_path / "clock", NOON)
    standing.set(NOON)
    with pytest.raises(ValueError, match="only forward: it stands at 2026-06-15T04:00:00"):
        standing.set(NOON - TICK)
    assert standing.now() == NOON


def test_a_clock_made_again_goes_on_where_it_stood_or_moves_forward(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    TestClock.create(path, NOON)
    assert TestClock.create(path, NOON - TICK).now() == NOON
    assert TestClock.create(path, NOON + TICK).now() == NOON + TICK


def test_the_clock_is_settled_once_everybody_has_caught_up_with_it(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    mover = TestClock.create(path, NOON)
    points, cards = TestClock(path, "points"), TestClock(path, "cards")
    names = ["points", "cards"]
    assert not mover.all_settled(names)
    points.settled(NOON)
    assert mover.all_settled(["points"])
    assert not mover.all_settled(names)
    cards.settled(NOON + TICK)
    assert mover.all_settled(names)
    mover.set(NOON + TICK)
    assert not mover.all_settled(names)
    points.settled(NOON + TICK)
    assert mover.all_settled(names)


def test_without_a_test_clock_business_time_is_the_machine_s(tmp_path: Path) -> None:
    system = clock.open_clock(None, "points")
    assert isinstance(system, SystemClock)
    before = clock.wall()
    now = system.now()
    assert before <= now <= clock.wall()
    assert now.utcoffset() == timedelta(0)
    system.settled(now)
    assert list(tmp_path.iterdir()) == []
