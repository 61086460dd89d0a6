"""What the bench calls with: encoded requests, each write under a request_id of its own."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

from loyalty.orders.v1.orders_pb2 import Order
from loyalty.points.v1 import points_service_pb2 as pb

MEMBERS = 10_000
LOTS = 20  # of each member that redeems
LOT = 1_000  # points
GROWTH = 2_000  # that a member has at most to begin with; the highest rung takes half of it
REDEEMED = 130  # points a call: one in eight takes from two lots
BATCH = 100  # items of a BatchPost
ORDERS = 200  # different ones
LINES = 5
CATEGORIES = ("COFFEE", "SOFT DRINKS", "BREAKFAST SWEETS", "FRZN BREAKFAST FOODS", "BURGERS", "FRIES")

_numbers = itertools.count(1)
_random = random.Random(1)


def members() -> list[str]:
    """Who earns."""
    return [f"m-{number:06d}" for number in range(MEMBERS)]


def savers(number: int) -> list[str]:
    """Who redeems."""
    return [f"s-{saver:06d}" for saver in range(number)]


def earns() -> Iterator[bytes]:
    """Orders of five lines, for any of the members."""
    for earn in _earns():
        yield earn.SerializeToString()


def batches() -> Iterator[bytes]:
    """The same orders, a hundred a call."""
    made = _earns()
    while True:
        items = (pb.BatchPostItem(earn=next(made)) for _ in range(BATCH))
        yield pb.BatchPostRequest(items=items).SerializeToString()


def redeems(savers: list[str]) -> Iterator[bytes]:
    """A saver's points, spent bit by bit."""
    for saver in itertools.cycle(savers):
        request = pb.RedeemPointsRequest(member_id=saver, request_id=_fresh("r"), amount=REDEEMED)
        yield request.SerializeToString()


def balances() -> Iterator[bytes]:
    """Questions for any member's balance."""
    asked = [pb.GetBalanceRequest(member_id=member).SerializeToString() for member in members()]
    _random.shuffle(asked)
    return itertools.cycle(asked)


def openings(savers: list[str]) -> Iterator[bytes]:
    """Fixed earns that put every member somewhere on the ladder of tiers, and give each saver its lots."""
    earns = [_fixed(saver, pb.UNIT_POINTS, LOT) for saver in savers for _ in range(LOTS)]
    earns += [_fixed(member, pb.UNIT_GROWTH, _random.randint(1, GROWTH)) for member in members()]
    for at in range(0, len(earns), BATCH):
        items = (pb.BatchPostItem(earn=earn) for earn in earns[at : at + BATCH])
        yield pb.BatchPostRequest(items=items).SerializeToString()


def _fixed(member: str, unit: pb.Unit.ValueType, amount: int) -> pb.EarnPointsRequest:
    fixed = pb.FixedEarn(unit=unit, amount=amount)
    return pb.EarnPointsRequest(member_id=member, request_id=_fresh("o"), fixed=fixed)


def _earns() -> Iterator[pb.EarnPointsRequest]:
    everyone = members()
    requests = [pb.EarnPointsRequest(order=_order()) for _ in range(ORDERS)]
    for request in itertools.cycle(requests):
        request.member_id = _random.choice(everyone)
        request.request_id = request.order.order_id = _fresh("e")
        yield request


def _order() -> Order:
    made = Order(store_id="store-1", city="杭州", channel="app", currency_code="CNY")
    for number in range(LINES):
        price = _random.randrange(300, 3000)
        made.lines.add(
            line_id=str(number + 1),
            sku=f"sku-{_random.randrange(1000):04d}",
            category=_random.choice(CATEGORIES),
            quantity=1,
            unit_price_minor=price,
            amount_minor=price,
        )
    made.total_minor = sum(line.amount_minor for line in made.lines)
    made.paid_time.FromSeconds(int(time.time()) - 60)
    return made


def _fresh(prefix: str) -> str:
    return f"{prefix}-{next(_numbers):010d}"
