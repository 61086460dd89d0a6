"""Real orders through a whole house: right to the point, also when everything dies on the way."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import stamina.instrumentation
import yaml

from services.cli import baskets, proof
from services.cli.delivery import Delivery, ReplayError
from services.cli.house import House
from services.cli.listener import Listener
from services.cli.replay import PROGRAMME, Outcome, replay
from services.points.audit import audit
from tests.conftest import OpenHouse
from tests.support import apply_programme, defects, fresh

RULES = yaml.safe_load(PROGRAMME.read_text())["points"]
EVE = datetime(2016, 12, 31, 4, 0, tzinfo=UTC)


@pytest.fixture
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house of the end of 2016 under the Burger King programme."""
    with open_house(data / fresh("replay"), test_clock=EVE) as house:
        apply_programme(house, RULES)
        yield house


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """The orders of the first days of 2017."""
    return baskets.load(date(2017, 1, 1), date(2017, 1, 4))


@pytest.fixture(scope="module")
def turn_of_the_year() -> pl.DataFrame:
    """The orders of half of the households in the last days of 2017 and the first hours of 2018."""
    return baskets.load(date(2017, 12, 30), None).filter(pl.col("member_id").str.contains("[02468]$"))


@pytest.fixture
def ending(data: Path, open_house: OpenHouse) -> Iterator[tuple[House, dict[str, Any]]]:
    """A house under a programme whose points end with the year, and whose tiers last for a day."""
    ladder = {**RULES["tier_ladder"], "rolling_days": 1, "grace_days": 0}
    rules = {**RULES, "expiry": {"calendar_years": 0}, "tier_ladder": ladder}
    with open_house(data / fresh("replay"), test_clock=EVE) as house:
        apply_programme(house, rules)
        yield house, rules


@pytest.mark.parametrize("delivery", list(Delivery))
def test_however_it_is_delivered_the_books_are_the_oracle_s_and_nothing_happens_twice(
    ending: tuple[House, dict[str, Any]], turn_of_the_year: pl.DataFrame, delivery: Delivery
) -> None:
    (house, rules), frame = ending, turn_of_the_year
    first = replay(house.describe(), frame, rules, delivery=delivery)
    assert first.differences == []
    assert [end.day for end in first.months] == ["2017-12-31", "2018-01-01"]
    eve, new_year = first.months
    assert eve.expired == 0 < new_year.expired
    assert new_year.tiers[""] > eve.tiers.get("", 0)
    assert first.orders == frame["order_id"].n_unique()
    assert min(first.redemptions, first.holds, first.captures, first.releases, first.refunds) > 0
    assert first.events_first == 0 or delivery is Delivery.BOTH, "whichever is quicker comes first"
    second = replay(house.describe(), frame, delivery=delivery)
    assert second.new_transactions == 0
    assert (second.orders, second.refunds, second.holds) == (first.orders, first.refunds, first.holds)
    audited = proof.audited(house)
    assert audited.findings == []
    assert audited.totals["expired"] == first.months[-1].expired
    assert not defects(house)


def test_a_replay_ends_at_the_first_month_with_a_difference_and_names_it(
    ending: tuple[House, dict[str, Any]], turn_of_the_year: pl.DataFrame
) -> None:
    house, rules = ending
    frame = turn_of_the_year.filter(pl.col("member_id").str.contains("[0]$"))
    wrong = json.loads(json.dumps(rules).replace('"points": 1}', '"points": 2}', 1))
    outcome = replay(house.describe(), frame, wrong)
    assert [end.day for end in outcome.months] == ["2017-12-31"]
    assert outcome.differences
    assert len(outcome.differences) == outcome.months[0].differences
    assert re.fullmatch(r"2017-12-31 hh-\d+: available is \d+, the oracle says \d+", outcome.differences[0])
    outcome = replay(house.describe(), frame, rules)
    assert (outcome.differences, outcome.new_transactions > 0) == ([], True), "the rest of it"
    with pytest.raises(ReplayError, match="after the last order: nothing to compare with"):
        replay(house.describe(), frame.filter(pl.col("paid_time") < EVE.replace(year=2017)), rules)


def test_kills_of_everything_during_a_replay_lose_and_double_nothing(
    house: House, frame: pl.DataFrame
) -> None:
    orders = frame["order_id"].n_unique()
    kills = {
        orders // 5: lambda: _kill_points(house),
        2 * orders // 5: lambda: _kill_postgres(house),
        3 * orders // 5: lambda: _kill_nats(house),
    }
    outcome = _replay_with(house, frame, kills)
    assert outcome.orders == orders
    assert outcome.retries > 0, "the kills were felt"
    assert outcome.differences == []
    again = replay(house.describe(), frame)
    assert again.new_transactions == 0
    report = asyncio.run(audit(house.database_url("points"), stream_url=house.nats.url))
    assert report.clean, report.lines
    assert report.totals["transactions"] == outcome.new_transactions
    assert _distinct_events(house, outcome.new_transactions) == outcome.new_transactions
    assert not defects(house)


def test_the_audit_is_clean_while_a_replay_runs(house: House, frame: pl.DataFrame) -> None:
    findings: list[object] = []

    def look() -> None:
        findings.append(asyncio.run(audit(house.database_url("points"))).lines)

    orders = frame["order_id"].n_unique()
    outcome = _replay_with(house, frame, {orders // 4: look, orders // 2: look})
    assert outcome.differences == []
    assert len(findings) == 2
    assert not [line for lines in findings for line in lines if line[2]]  # type: ignore[attr-defined]


def _replay_with(house: House, frame: pl.DataFrame, at: dict[int, Callable[[], None]]) -> Outcome:
    """Replays, and does things in a thread of their own once that many orders went through."""
    stamina.instrumentation.set_on_retry_hooks([])
    done = 0
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def guarded(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as failure:
            failures.append(failure)

    def tick(orders: int) -> None:
        nonlocal done
        done += orders
        action = at.get(done)
        if action is not None:
            threads.append(threading.Thread(target=guarded, args=(action,)))
            threads[-1].start()

    outcome = replay(house.describe(), frame, RULES, tick)
    for thread in threads:
        thread.join()
    assert not failures
    assert len(threads) == len(at)
    return outcome


def _kill_points(house: House) -> None:
    house.process("points").kill()
    house.start_service("points")


def _kill_postgres(house: House) -> None:
    house.postgres.kill()
    house.start_postgres()


def _kill_nats(house: House) -> None:
    house.nats.kill()
    house.start_nats()


def _distinct_events(house: House, expected: int) -> int:
    return len(Listener(house.nats.url, "points").heard(expected))


def test_the_house_says_where_it_is(house: House) -> None:
    described = json.loads((house.data / "house.json").read_text())
    assert described == house.describe()
    assert set(described["points"]) >= {"grpc", "health", "metrics"}
