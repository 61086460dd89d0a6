"""Real orders through the groups service: everybody stands where the data say, at each month's end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl
import pytest
import yaml

from services.cli import baskets, proof
from services.cli.house import House
from services.cli.lifecycle import prove
from services.cli.replay import PROGRAMME
from tests.conftest import OpenHouse
from tests.support import defects, fresh

RULES = yaml.safe_load(PROGRAMME.read_text())["groups"]["programme"]


@pytest.fixture
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house of the groups service at the end of 2016."""
    with open_house(data / fresh("lifecycle"), ("groups",), test_clock=proof.EVE) as house:
        yield house


def test_facts_lifecycle_and_strata_are_those_that_a_data_frame_gives(house: House) -> None:
    # A tenth of the households; those who buy in the first days only are silent in the end.
    frame = baskets.load(date(2017, 1, 1), date(2017, 2, 7)).filter(pl.col("member_id").str.ends_with("7"))
    outcome = prove(house, frame, RULES)
    assert outcome.differences == []
    assert [month.day for month in outcome.months] == ["2017-01-31", "2017-02-07"]
    assert outcome.months[-1].members == frame["member_id"].n_unique()
    assert set(outcome.months[-1].lifecycle) >= {"new", "growing", "mature", "silent"}
    assert set(outcome.months[-1].stratum) >= {"kol", "core", "regular"}
    assert min(outcome.refunds_first, outcome.late_orders, outcome.told_again) > 0
    assert proof.audited(house, "groups").findings == []
    assert not defects(house)


def test_a_threshold_that_is_off_by_one_shows_as_a_difference(house: House) -> None:
    frame = baskets.load(date(2017, 1, 1), date(2017, 1, 4)).filter(pl.col("member_id").str.ends_with("7"))
    off = [{**rule, "expression": rule["expression"].replace(">= 4", ">= 3")} for rule in RULES["tag_rules"]]
    outcome = prove(house, frame, {**RULES, "tag_rules": off})
    assert len(outcome.differences) == outcome.months[-1].differences > 0
    assert {line.rpartition(" ")[2] for line in outcome.differences} == {"regular"}
