"""Where members stand, by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from services.cli.deeds import Refund
from services.cli.standing import FACTS, TAGS, refunds, standing

DAY = date(2017, 6, 30)
NOBODY = pl.DataFrame(schema={"member_id": pl.String, "told": pl.Date})
NOTHING = refunds([])

Bought = tuple[int, str, int]
"""How many days before DAY, in which store, for how much."""


def paid(*bought: Bought, told: int = 0) -> pl.DataFrame:
    """Orders o0, o1, … of a member, each told some days after it was paid."""
    return pl.DataFrame(
        {
            "order_id": [f"o{number}" for number in range(len(bought))],
            "member_id": ["ann"] * len(bought),
            "store_id": [store for _, store, _ in bought],
            "paid_time": [datetime(2017, 6, 30, 4, tzinfo=UTC) - timedelta(days=ago) for ago, _, _ in bought],
            "day": [DAY - timedelta(days=ago) for ago, _, _ in bought],
            "told": [DAY - timedelta(days=ago - told) for ago, _, _ in bought],
            "amount_minor": [amount for _, _, amount in bought],
        }
    )


def test_windows_hold_today_and_homes_go_by_the_latest_of_equals() -> None:
    bought = paid((120, "a", 1), (90, "b", 10), (89, "b", 100), (30, "a", 1_000), (29, "c", 10_000))
    row = standing(bought, NOTHING, NOBODY, DAY).row(0, named=True)
    assert [row[name] for name in FACTS] == [29, 120, 1, 3, 5, 10_000, 11_100, "a"]
    assert [row[name] for name in TAGS] == ["growing", "regular"]


@pytest.mark.parametrize(
    ("ago", "lifecycle", "stratum"),
    [
        ((0,), "new", "regular"),
        ((30, 30, 30, 30), "new", "regular"),
        ((31,), "silent", "regular"),
        ((0, 31, 31, 31, 31), "growing", "regular"),
        ((0, 31, 31, 31, 31, 31), "mature", "regular"),
        ((29, 29, 29, 29), "new", "core"),
        ((89,), "silent", "regular"),
        ((90,), "silent", "word_of_mouth"),
        ((91,), "lost", "word_of_mouth"),
    ],
)
def test_a_day_or_an_order_more_is_what_tells_them_apart(
    ago: tuple[int, ...], lifecycle: str, stratum: str
) -> None:
    row = standing(paid(*((days, "a", 100) for days in ago)), NOTHING, NOBODY, DAY).row(0, named=True)
    assert (row["lifecycle"], row["stratum"]) == (lifecycle, stratum)


def test_what_was_given_back_counts_no_more_and_what_is_not_told_not_yet() -> None:
    bought = paid((3, "a", 100), (2, "a", 100), (1, "a", 100))
    back = refunds(
        [
            (DAY, "ann", Refund("r0", "o0", everything=True)),
            (DAY, "ann", Refund("r1", "o1", amount=30)),
            (DAY, "ann", Refund("r2", "o1", lines={"1": 20, "2": 5})),
            (DAY + timedelta(days=1), "ann", Refund("r3", "o2", amount=100)),
        ]
    )
    row = standing(bought, back, NOBODY, DAY).row(0, named=True)
    assert (row["orders_total"], row["spend_30d_minor"], row["first_days"]) == (2, 145, 2)
    later = standing(paid((3, "a", 100), told=4), back.head(1), NOBODY, DAY).row(0, named=True)
    assert [later[name] for name in FACTS] == [400, 400, 0, 0, 0, 0, 0, ""]
    assert [later[name] for name in TAGS] == ["", "word_of_mouth"]


def test_a_kol_is_one_from_the_day_on_which_it_is_told() -> None:
    bought = paid((5, "a", 100))
    kols = pl.DataFrame({"member_id": ["ann"], "told": [DAY]})
    before, then = (standing(bought, NOTHING, kols, day)["stratum"][0] for day in (DAY - timedelta(1), DAY))
    assert (before, then) == ("regular", "kol")
