"""Where the members of the real orders stand on a day, computed from the orders alone, by columns.

It shares nothing with the groups service: the contract says what facts are, and the programme of Burger King,
said again here, what lifecycle and stratum follow from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Final

import polars as pl

from services.cli.baskets import TIME_ZONE
from services.cli.deeds import Refund

HORIZON: Final = 400  # local days up to which the programme counts
SHORT, LONG = 30, 90  # local days, the one that is asked about included
MATURE, CORE = 6, 4  # orders of the long and of the short window

FACTS: Final = (
    *("recency_days", "first_days", "orders_30d", "orders_90d", "orders_total"),
    *("spend_30d_minor", "spend_90d_minor", "home_site"),
)
TAGS: Final = ("lifecycle", "stratum")


def orders(frame: pl.DataFrame) -> pl.DataFrame:
    """One row for each order of the lines of services.cli.baskets, by paid_time, with its local `day`."""
    return (
        frame.group_by("order_id")
        .agg(
            pl.first("member_id", "store_id", "paid_time"),
            pl.first("paid_time").dt.convert_time_zone(TIME_ZONE).dt.date().alias("day"),
            pl.sum("amount_minor"),
        )
        .sort("paid_time", "order_id")
    )


def refunds(told: Iterable[tuple[date, str, Refund]]) -> pl.DataFrame:
    """One row for each refund, with the day on which it is told, and its member; no amount is all of it."""
    schema = {"order_id": pl.String, "member_id": pl.String, "told": pl.Date, "back": pl.Int64}
    rows = [
        (deed.order_id, member_id, day, None if deed.everything else sum(deed.lines.values()) or deed.amount)
        for day, member_id, deed in told
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


def standing(paid: pl.DataFrame, back: pl.DataFrame, kols: pl.DataFrame, day: date) -> pl.DataFrame:
    """What is known in the evening of a local day of each member of whom something was told by then.

    `paid` is of `orders`, `back` of `refunds`, and `kols` names who was told to be one; each has a column
    `told`, the local day from which it is known. Columns: member_id, FACTS, and TAGS, empty where there is
    none.
    """
    seen, given, named = (told.filter(pl.col("told") <= day) for told in (paid, back, kols))
    kept = _kept(seen, given, day)
    members = pl.concat([told.select("member_id") for told in (seen, given, named)]).unique()
    facts = members.join(_counts(kept), "member_id", how="left").join(_homes(kept), "member_id", how="left")
    days, counts = pl.col("recency_days", "first_days"), pl.col("^(orders|spend)_.*$")
    return (
        facts.with_columns(
            days.fill_null(HORIZON).clip(upper_bound=HORIZON),
            counts.fill_null(0),
            pl.col("home_site").fill_null(""),
        )
        .with_columns(_lifecycle(), _stratum(named["member_id"].to_list()))
        .select("member_id", *FACTS, *TAGS)
        .sort("member_id")
    )


def _kept(seen: pl.DataFrame, back: pl.DataFrame, day: date) -> pl.DataFrame:
    """The orders that count, with their age in local days, and what was not given back of them."""
    given = back.group_by("order_id").agg(pl.sum("back"), whole=pl.col("back").is_null().any())
    return (
        seen.join(given, "order_id", how="left")
        .filter(pl.col("whole").is_null() | (~pl.col("whole") & (pl.col("back") < pl.col("amount_minor"))))
        .with_columns(
            age=(pl.lit(day) - pl.col("day")).dt.total_days(),
            spent=pl.col("amount_minor") - pl.col("back").fill_null(0),
        )
    )


def _counts(kept: pl.DataFrame) -> pl.DataFrame:
    age, spent = pl.col("age"), pl.col("spent")
    return kept.group_by("member_id").agg(
        recency_days=age.min(),
        first_days=age.max(),
        orders_30d=(age < SHORT).sum().cast(pl.Int64),
        orders_90d=(age < LONG).sum().cast(pl.Int64),
        orders_total=pl.len().cast(pl.Int64),
        spend_30d_minor=spent.filter(age < SHORT).sum(),
        spend_90d_minor=spent.filter(age < LONG).sum(),
    )


def _homes(kept: pl.DataFrame) -> pl.DataFrame:
    """The store of most orders, of equals the one of the latest."""
    return (
        kept.group_by("member_id", "store_id")
        .agg(pl.len().alias("many"), pl.max("paid_time").alias("latest"))
        .sort("many", "latest", "store_id", descending=[True, True, False])
        .unique("member_id", keep="first", maintain_order=True)
        .select("member_id", home_site="store_id")
    )


def _lifecycle() -> pl.Expr:
    recency = pl.col("recency_days")
    return (
        pl.when(pl.col("orders_total") == 0)
        .then(pl.lit(""))
        .when(recency > LONG)
        .then(pl.lit("lost"))
        .when(recency > SHORT)
        .then(pl.lit("silent"))
        .when(pl.col("first_days") <= SHORT)
        .then(pl.lit("new"))
        .when(pl.col("orders_90d") >= MATURE)
        .then(pl.lit("mature"))
        .otherwise(pl.lit("growing"))
        .alias("lifecycle")
    )


def _stratum(kols: list[str]) -> pl.Expr:
    return (
        pl.when(pl.col("member_id").is_in(kols))
        .then(pl.lit("kol"))
        .when(pl.col("orders_30d") >= CORE)
        .then(pl.lit("core"))
        .when(pl.col("orders_90d") > 0)
        .then(pl.lit("regular"))
        .otherwise(pl.lit("word_of_mouth"))
        .alias("stratum")
    )
