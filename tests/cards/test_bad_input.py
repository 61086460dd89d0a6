"""Bad input gets a precise error and changes nothing: every field of every method, and broken bytes."""

from __future__ import annotations

import grpc
import pytest
from grpc import StatusCode
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.api import METHODS
from tests.cards.calls import a_product, an_order, buy, put, quote, sell
from tests.cards.requests import GOOD, fingerprint
from tests.cards.till import benefit
from tests.contract import refuses_bad_fields, refuses_broken_bytes
from tests.support import Cards, fresh, read_refusal

EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])


def test_every_method_has_a_good_request_here() -> None:
    assert set(GOOD) == set(METHODS)


@EACH_METHOD
def test_a_bad_field_is_refused_precisely_and_changes_nothing(cards: Cards, method: str) -> None:
    refuses_bad_fields(cards, method, lambda: GOOD[method](cards), lambda: fingerprint(cards))


@EACH_METHOD
def test_broken_bytes_are_refused_and_change_nothing(cards: Cards, method: str) -> None:
    refuses_broken_bytes(cards, method, GOOD[method](cards), lambda: fingerprint(cards))


def test_sums_at_the_limit_are_exact(cards: Cards) -> None:
    most = 10**12
    member, whole = fresh("member"), benefit("all", "FREE_ITEM", scope="")
    buy(cards, member, sell(cards, whole, benefit("delivery", "FREE_DELIVERY")))
    what = an_order(most)
    for number in range(500):
        what.lines.add(line_id=str(number), quantity=1, amount_minor=most)
    what.total_minor = 501 * most
    assert quote(cards, member, what).saved_minor == 501 * most


@pytest.mark.parametrize(
    "scope",
    [
        "(" * 990 + "true" + ")" * 990,
        "!" * 1999 + "a",
        "'" + "x" * 1999,
        "order.lines.all(a, order.lines.all(b, order.lines.all(c, order.lines.all(d, true))))",
        "line",
        "nobody.knows == 1",
        "line.category.matches('(a+)+$')",
        "",
    ],
    ids=lambda scope: scope[:12],
)
def test_a_wild_condition_is_compiled_or_refused_with_its_place(cards: Cards, scope: str) -> None:
    made: pb.Product = a_product(benefit("coffee"))
    made.benefits[0].scope = scope
    try:
        put(cards, made, validate_only=True)
    except grpc.RpcError as error:
        refusal = read_refusal(error)
        assert (refusal.code, refusal.reason) == (StatusCode.INVALID_ARGUMENT, "PRODUCT_INVALID")
        assert refusal.fields == {"product.benefits[0].scope"}
