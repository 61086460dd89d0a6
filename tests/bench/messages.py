"""What the bench calls with, whichever service it calls: names that nobody used before, members, orders."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable

from loyalty.orders.v1.orders_pb2 import Order

CHANCE = random.Random(1)
DEAREST = 3_000  # minor units of a piece

_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name of its own: each write needs another request_id."""
    return f"{prefix}-{next(_numbers):010d}"


def names(prefix: str, number: int) -> list[str]:
    """Members."""
    return [f"{prefix}-{member:06d}" for member in range(number)]


def order(categories: Iterable[str], *, cheapest: int, channel: str = "app", delivery_fee: int = 0) -> Order:
    """An order without an id: a piece of each category, for `cheapest` minor units or more."""
    made = Order(store_id="store-1", city="杭州", channel=channel, currency_code="CNY")
    for number, category in enumerate(categories, 1):
        price = CHANCE.randrange(cheapest, DEAREST)
        made.lines.add(
            line_id=str(number),
            sku=f"sku-{CHANCE.randrange(1000):04d}",
            category=category,
            quantity=1,
            unit_price_minor=price,
            amount_minor=price,
        )
    made.delivery_fee_minor = delivery_fee
    made.total_minor = sum(line.amount_minor for line in made.lines) + delivery_fee
    made.paid_time.FromSeconds(int(time.time()) - 60)
    return made
