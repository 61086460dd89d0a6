"""The cards service: benefits used for orders, and asked for, by members whose card runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_service_pb2 import PAY_WITH_MONEY

from tests.bench.goals import Gain, Goal, Memory, Rate
from tests.bench.messages import CHANCE, fresh, names, order
from tests.bench.paths import ECHO, TPCB, Figures, Plan, WrongRows, call, memory, path
from tests.bench.site import PATIENCE, Site

REDEEM = "RedeemBenefits, 256 in flight"
ENTITLEMENTS = "CheckEntitlements, 256 in flight"
MEMORY = "memory of cards"
PATHS = (REDEEM, ENTITLEMENTS, MEMORY)
GOALS: Sequence[Goal] = (
    Rate(REDEEM, 0.5, TPCB),
    Rate(ENTITLEMENTS, 0.5, ECHO, ["grpcio"]),
    Gain(ENTITLEMENTS, 2),
    Memory(MEMORY),
)

# What members hold in turn: the first lowers prices as often as wanted, the second once a day.
PRODUCTS = ("king-month", "coffee-month")
# With the first card a set meal, the coffee and the delivery, with the second the coffee.
CATEGORIES = ("SANDWICHES", "FRZN POTATOES", "SOFT DRINKS", "COFFEE", "SALADS")
CHEAPEST = 1_000  # minor units of a piece: more than the cards' prices
DELIVERY = 600  # minor units
ORDERS = 200  # different ones

UNPAID = "SELECT array_agg((member_id, order_id, amount_minor)) FROM orders WHERE status = 'PENDING_PAYMENT'"
HELD = "SELECT count(*) FROM segments"
# Orders for which something was reserved, each with every use that it was told of.
REDEEMED = """
    SELECT count(*) FROM baskets b
    WHERE redemption_ids <> '[]' AND jsonb_array_length(redemption_ids) = (
        SELECT count(*) FROM redemptions r
        WHERE (r.bucket, r.member_id, r.order_id) = (b.bucket, b.member_id, b.order_id))"""
# As if the orders had been paid, and it were the next day: what is used once a day may be used again.
NEXT_DAY = """
    WITH paid AS (UPDATE redemptions SET status = 'CONFIRMED' WHERE status = 'RESERVED')
    DELETE FROM quota_windows"""


# --- what it is called with ---------------------------------------------------------------------------


def holders(plan: Plan) -> list[str]:
    """Who has a card."""
    return names("h", plan.holders)


def redemptions(plan: Plan) -> Iterator[bytes]:
    """An order of each holder."""
    orders = [
        order(CATEGORIES, cheapest=CHEAPEST, channel="delivery", delivery_fee=DELIVERY) for _ in range(ORDERS)
    ]
    requests = itertools.cycle([pb.RedeemBenefitsRequest(order=made) for made in orders])
    for holder, request in zip(holders(plan), requests, strict=False):
        request.member_id = holder
        request.request_id = request.order.order_id = fresh("r")
        yield request.SerializeToString()


def questions(plan: Plan) -> Iterator[bytes]:
    """What any holder may use in a store."""
    asked = [
        pb.CheckEntitlementsRequest(member_id=holder, store_id="store-1", channel="app").SerializeToString()
        for holder in holders(plan)
    ]
    CHANCE.shuffle(asked)
    return itertools.cycle(asked)


def _purchases(plan: Plan) -> Iterator[bytes]:
    for holder, product in zip(holders(plan), itertools.cycle(PRODUCTS), strict=False):
        request = pb.PlaceOrderRequest(
            member_id=holder,
            request_id=fresh("b"),
            product_code=product,
            pay_with=PAY_WITH_MONEY,
        )
        yield request.SerializeToString()


def _payments(unpaid: Sequence[tuple[str, str, int]]) -> Iterator[bytes]:
    for holder, order_id, amount in unpaid:
        request = pb.ConfirmPaymentRequest(
            member_id=holder,
            request_id=fresh("p"),
            order_id=order_id,
            channel="wechat",
            payment_id=fresh("w"),
            amount_minor=amount,
            currency_code="CNY",
        )
        request.paid_time.FromSeconds(int(time.time()))
        yield request.SerializeToString()


# --- what is measured ---------------------------------------------------------------------------------


def prepare(site: Site, plan: Plan) -> None:
    """Sells every holder a card."""
    with site.serving("cards", "native") as served:
        call(served, "PlaceOrder", _purchases(plan), PATIENCE)
        call(served, "ConfirmPayment", _payments(served.sql(UNPAID)), PATIENCE)
        served.quiet()
        if (found := served.sql(HELD)) != plan.holders:
            raise WrongRows(f"{plan.holders} payments were acknowledged, {found} periods are there")
    site.sql("cards", "VACUUM ANALYZE")


def measure(site: Site, front: str, plan: Plan) -> Figures:
    """Measures every path on one front."""
    found: Figures = {}
    with site.serving("cards", front) as served:
        site.sql("cards", NEXT_DAY)
        call(served, "RedeemBenefits", redemptions(plan), 1.0)  # warms everything up
        site.sql("cards", NEXT_DAY)
        made = list(redemptions(plan))
        found[REDEEM] = path(served, "RedeemBenefits", made, plan.seconds, gather="posts", committed=REDEEMED)
        found[ENTITLEMENTS] = path(
            served, "CheckEntitlements", questions(plan), plan.seconds / 2, gather="entitlements"
        )
        found[MEMORY] = memory(served)
    return found
