"""Bad input gets a precise error and changes nothing: every field of every method, and broken bytes."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from services.points.api import METHODS
from tests.contract import raw, refuses_bad_fields, refuses_broken_bytes, send
from tests.points.requests import GOOD, POINTS, adjust, earn, fingerprint, fixed, programme
from tests.support import Points, fresh, order, read_refusal


def test_every_method_has_good_requests_here() -> None:
    assert {method for method, _ in GOOD} == set(METHODS)


@pytest.mark.parametrize(
    ("method", "make"), GOOD, ids=[f"{m.rsplit('/')[-1]}-{n}" for n, (m, _) in enumerate(GOOD)]
)
def test_a_bad_field_is_refused_precisely_and_changes_nothing(
    points: Points, method: str, make: Callable[[Points], Message]
) -> None:
    refuses_bad_fields(points, method, lambda: make(points), lambda: fingerprint(points))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])
def test_broken_bytes_are_refused_and_change_nothing(points: Points, method: str) -> None:
    make = next(make for name, make in GOOD if name == method)
    refuses_broken_bytes(points, method, make(points), lambda: fingerprint(points))


def test_unknown_fields_are_ignored_and_not_part_of_the_payload(points: Points) -> None:
    request = adjust(points)
    body = request.SerializeToString()
    first = raw(points, POINTS + "AdjustPoints", body).result()
    assert raw(points, POINTS + "AdjustPoints", body + b"\xfa\x3e\x01a").result() == first


def test_messages_and_metadata_beyond_the_limits_are_refused_as_such(points: Points) -> None:
    earning = POINTS + "EarnPoints"
    before = fingerprint(points)
    zeros = b"\x00" * (5 * 1024 * 1024)
    calls = [
        raw(points, earning, zeros),
        raw(points, earning, zeros * 4, compression=grpc.Compression.Gzip),
    ]
    assert len(gzip.compress(zeros * 4)) < 100_000  # small on the wire
    assert [call.code() for call in calls] == [StatusCode.RESOURCE_EXHAUSTED] * len(calls)
    good = earn(points, fixed=fixed()).SerializeToString()
    overloaded = raw(points, earning, good, metadata=[("x-padding", "p" * 30_000)])
    # The native front ends such a stream with HTTP 431, before there is a call that could have a status.
    assert overloaded.code() in {StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNKNOWN}, overloaded.details()
    assert fingerprint(points) == before
    points.adjust(fresh("member"), 1)  # and the channel lives


def test_sums_at_the_limit_are_exact_and_beyond_it_refused(points: Points) -> None:
    most = 10**12
    basket = order(most, points.now)
    for number in range(2, 501):
        basket.lines.add(line_id=str(number), amount_minor=most)
    basket.delivery_fee_minor = most
    basket.total_minor = 501 * most
    member = fresh("member")
    assert points.earn(member, basket).balance.available == 501 * most // 100
    basket.order_id = fresh("order")
    basket.total_minor = (501 * most + 2**63) % 2**63 - 1
    assert send(points, POINTS + "EarnPoints", [earn(points, order=basket)]) == [StatusCode.INVALID_ARGUMENT]
    assert points.balance(member).available == 501 * most // 100


@pytest.mark.parametrize(
    "when",
    [
        "(" * 990 + "true" + ")" * 990,
        "!" * 1999 + "a",
        "[" * 1000,
        "'" + "x" * 1999,
        "order." + "lines." * 300 + "x",
        "order.lines.all(a, order.lines.all(b, order.lines.all(c, order.lines.all(d, true))))",
        "order",
        "nobody.knows == 1",
        "order.city.matches('(a+)+$')",
        "",
    ],
    ids=lambda when: when[:12],
)
def test_a_wild_condition_is_compiled_or_refused_with_its_place(points: Points, when: str) -> None:
    request = programme(points)
    request.programme.earn_rules[0].when = when
    try:
        points.call(points.points.PutProgramme, request)
    except grpc.RpcError as error:
        refusal = read_refusal(error)
        assert (refusal.code, refusal.reason) == (StatusCode.INVALID_ARGUMENT, "PROGRAMME_INVALID")
        assert refusal.fields == {"programme.earn_rules[0].when"}
