"""Bad input gets a precise error and changes nothing: every field of every method, and broken bytes.

The bad values are made from the descriptors, so a new field or method is tried the day it is added.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import asyncpg
import grpc
import protovalidate
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from loyalty.activities.v1 import activities_service_pb2 as activities_pb
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.orders.v1 import orders_service_pb2 as orders_pb
from loyalty.points.v1 import points_service_pb2 as pb

from services.points.api import METHODS
from tests.support import PROGRAMME, TIMEOUT, Points, fresh, order, read_refusal

LONG = "x" * 65_000
MANY = 10_000
MOST = {FieldDescriptor.CPPTYPE_INT32: 2**31 - 1, FieldDescriptor.CPPTYPE_INT64: 2**63 - 1}
DEFECTS = {StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}

Mutation = Callable[[Message], None]
Inside = Callable[[Any], Any]


# --- the database, as one number ----------------------------------------------------------------------


async def _fingerprint(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        deadline = time.monotonic() + 3 * TIMEOUT
        # What was accepted before must have had its effect: events sent, and the brand's consumed.
        while await connection.fetchval(
            "SELECT count(*) FILTER (WHERE sent_at IS NULL) > 0 OR"
            " count(*) FILTER (WHERE stream = 'ORDERS') > (SELECT count(*) FROM inbox) +"
            " (SELECT count(*) FROM dead_letters) FROM outbox"
        ):
            assert time.monotonic() < deadline, "the outbox did not drain"
            await asyncio.sleep(0.05)
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'jobs' ORDER BY 1"
        )  # leases are renewed all the time
        rows = " UNION ALL ".join(
            f"SELECT '{t['tablename']}' || md5(t::text) AS row FROM {t['tablename']} t"  # noqa: S608
            for t in tables
        )
        return str(await connection.fetchval(f"SELECT md5(string_agg(row, ',' ORDER BY row)) FROM ({rows})"))  # noqa: S608
    finally:
        await connection.close()


def fingerprint(points: Points) -> str:
    """A hash over all rows of all tables, once the house is quiet."""
    return asyncio.run(_fingerprint(points.house.postgres.url("points")))


# --- a good request of each kind ----------------------------------------------------------------------


def an_activity(points: Points) -> Activity:
    made = Activity(activity_id=fresh("activity"), kind="app_task_done", amount_minor=5)
    made.attributes["seats"] = "2"
    made.occur_time.FromDatetime(points.now)
    return made


def earn(points: Points, **source: Any) -> pb.EarnPointsRequest:
    request = pb.EarnPointsRequest(member_id=fresh("member"), request_id=fresh("earn"), **source)
    request.occur_time.FromDatetime(points.now)
    return request


def adjust(points: Points) -> pb.AdjustPointsRequest:
    request = pb.AdjustPointsRequest(
        member_id=fresh("member"), request_id=fresh("adjust"), unit=pb.UNIT_POINTS, amount=1, reason="why"
    )
    request.occur_time.FromDatetime(points.now)
    return request


def redeem(points: Points) -> pb.RedeemPointsRequest:
    request = pb.RedeemPointsRequest(
        member_id=fresh("member"), request_id=fresh("redeem"), amount=1, reference_id="gift"
    )
    request.occur_time.FromDatetime(points.now)
    return request


def quote(points: Points) -> pb.QuoteEarnRequest:
    request = pb.QuoteEarnRequest(member_id=fresh("member"), order=order(100, points.now))
    request.occur_time.FromDatetime(points.now)
    return request


def transactions(points: Points) -> pb.ListTransactionsRequest:
    request = pb.ListTransactionsRequest(
        member_id=fresh("member"),
        kinds=[pb.TRANSACTION_KIND_EARN],
        unit=pb.UNIT_POINTS,
        order_id="order",
        page_size=5,
    )
    request.occur_from_time.FromDatetime(points.now)
    request.occur_until_time.FromDatetime(points.now)
    return request


def programme(points: Points) -> pb.PutProgrammeRequest:
    """Only checked, not put: a version that holds from the year 9998 on would be the last."""
    request = pb.PutProgrammeRequest(
        request_id=fresh("put"), programme=ParseDict(PROGRAMME, pb.Programme()), validate_only=True
    )
    rule = request.programme.earn_rules[0]
    rule.when = "order.city == '杭州'"
    rule.expiry.rolling_months = 1
    for stamp in (rule.valid_from_time, request.programme.effective_time):
        stamp.FromDatetime(points.now)
    rule.valid_until_time.FromSeconds(rule.valid_from_time.seconds + 60)
    return request


def fixed() -> pb.FixedEarn:
    return pb.FixedEarn(unit=pb.UNIT_POINTS, amount=1, reason="why")


POINTS = "/loyalty.points.v1.PointsService/"
# Each method with good requests; every set field is then made bad in turn.
GOOD: list[tuple[str, Callable[[Points], Message]]] = [
    (POINTS + "EarnPoints", lambda p: earn(p, order=order(100, p.now))),
    (POINTS + "EarnPoints", lambda p: earn(p, activity=an_activity(p))),
    (POINTS + "EarnPoints", lambda p: earn(p, fixed=fixed())),
    (POINTS + "QuoteEarn", quote),
    (POINTS + "RedeemPoints", redeem),
    (POINTS + "AdjustPoints", adjust),
    (
        POINTS + "BatchPost",
        lambda p: pb.BatchPostRequest(items=[pb.BatchPostItem(earn=earn(p, order=order(100, p.now)))]),
    ),
    (POINTS + "BatchPost", lambda p: pb.BatchPostRequest(items=[pb.BatchPostItem(adjust=adjust(p))])),
    (POINTS + "GetBalance", lambda _: pb.GetBalanceRequest(member_id=fresh("member"))),
    (POINTS + "BatchGetBalances", lambda _: pb.BatchGetBalancesRequest(member_ids=[fresh("member")])),
    (
        POINTS + "GetTransaction",
        lambda _: pb.GetTransactionRequest(member_id=fresh("member"), transaction_id="txn_" + "f" * 32),
    ),
    (POINTS + "ListTransactions", transactions),
    (POINTS + "PutProgramme", programme),
    (POINTS + "GetProgramme", lambda _: pb.GetProgrammeRequest(version=1)),
    (POINTS + "ListProgrammes", lambda _: pb.ListProgrammesRequest(page_size=5)),
    (POINTS + "ExportMember", lambda _: pb.ExportMemberRequest(member_id=fresh("member"), page_size=5)),
    (
        POINTS + "EraseMember",
        lambda _: pb.EraseMemberRequest(member_id=fresh("member"), request_id=fresh("erase")),
    ),
    (
        "/loyalty.orders.v1.OrdersService/ReportOrderPaid",
        lambda p: orders_pb.ReportOrderPaidRequest(
            member_id=fresh("member"), request_id=fresh("report"), order=order(100, p.now)
        ),
    ),
    (
        "/loyalty.activities.v1.ActivitiesService/ReportActivity",
        lambda p: activities_pb.ReportActivityRequest(
            member_id=fresh("member"), request_id=fresh("report"), activity=an_activity(p)
        ),
    ),
]


# --- bad values by descriptor -------------------------------------------------------------------------


def mutations(message: Message, inside: Inside = lambda m: m, at: str = "") -> Iterator[tuple[str, Mutation]]:
    """(description, change) for every way in which a field of a message, or of one within, goes wrong."""
    for field in message.DESCRIPTOR.fields:
        place, name, kind = f"{at}{field.name}", field.name, field.message_type
        value = getattr(message, name)
        for what, change in _of_field(field, value):
            yield f"{place}: {what}", _within(inside, change)
        if kind is None or kind.GetOptions().map_entry or kind is Timestamp.DESCRIPTOR:
            continue
        if field.is_repeated and value:
            yield from mutations(value[0], _first_of(inside, name), f"{place}[0].")
        elif not field.is_repeated and message.HasField(name):
            yield from mutations(value, _part_of(inside, name), f"{place}.")
    for oneof in message.DESCRIPTOR.oneofs:
        yield f"{at}{oneof.name}: unset", _within(inside, partial(_unset, oneof.name))


def _within(inside: Inside, change: Mutation) -> Mutation:
    return lambda message: change(inside(message))


def _first_of(inside: Inside, name: str) -> Inside:
    return lambda message: getattr(inside(message), name)[0]


def _part_of(inside: Inside, name: str) -> Inside:
    return lambda message: getattr(inside(message), name)


def _unset(oneof: str, message: Message) -> None:
    chosen = message.WhichOneof(oneof)
    if chosen is not None:
        message.ClearField(chosen)


def _of_field(field: Any, value: Any) -> Iterator[tuple[str, Mutation]]:
    name = field.name
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield "many", _update(name, {f"k{n}": "" for n in range(MANY)})
        for key, text in (("", ""), ("a", LONG), ("a", "\0"), ("\0", "a"), (LONG, "")):
            yield f"{key[:3]!r} to {text[:3]!r}", _update(name, {key: text})
    elif field.is_repeated:
        yield "none", partial(_clear, name)
        if value:
            yield "many", partial(_multiply, name)
        if field.message_type is None:
            for bad in _scalars(field):
                yield f"[0] is {bad!r:.9}", partial(_set_first, name, bad)
    elif field.message_type is None:
        for bad in _scalars(field):
            yield f"is {bad!r:.9}", partial(_set, name, bad)
    else:
        yield "unset", partial(_clear, name)
        if field.message_type is Timestamp.DESCRIPTOR:
            for stamp in STAMPS:
                yield f"is {stamp}", partial(_copy, name, Timestamp(**stamp))


def _clear(name: str, message: Message) -> None:
    message.ClearField(name)


def _set(name: str, value: Any, message: Message) -> None:
    setattr(message, name, value)


def _set_first(name: str, value: Any, message: Message) -> None:
    getattr(message, name)[0] = value


def _multiply(name: str, message: Message) -> None:
    values = getattr(message, name)
    values.extend([values[0]] * MANY)


def _copy(name: str, value: Message, message: Message) -> None:
    getattr(message, name).CopyFrom(value)


def _update(name: str, pairs: dict[str, str]) -> Mutation:
    return lambda message: getattr(message, name).update(pairs)


STAMPS: Sequence[dict[str, int]] = (
    {"seconds": 253402300800},  # the year 10000
    {"seconds": 253402300799, "nanos": 999_999_999},
    {"seconds": -62135596801},  # the year 0
    {"seconds": -1},
    {"seconds": 2**63 - 1},
    {"seconds": -(2**63)},
    {"seconds": 1_750_000_000, "nanos": -1},
    {"seconds": 1_750_000_000, "nanos": 10**9},
    {"seconds": 0, "nanos": -(2**31)},
)


def _scalars(field: Any) -> Sequence[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return ("a\0b", LONG, "", "分" * 600, "\u202e\n")
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return (0, 4711, -1)
    if field.cpp_type in MOST:
        most = MOST[field.cpp_type]
        return (0, -1, most, -most - 1)
    return ()


# --- trying them --------------------------------------------------------------------------------------


def described(method: str) -> MethodDescriptor:
    """A method in the contract."""
    service, name = method.lstrip("/").split("/")
    return pb.DESCRIPTOR.pool.FindServiceByName(service).methods_by_name[name]


def send(points: Points, method: str, requests: Sequence[Message]) -> list[StatusCode]:
    """Calls all at once and returns the codes."""
    answer = message_factory.GetMessageClass(described(method).output_type)
    call: Any = points.channel.unary_unary(
        method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    futures = [call.future(request, timeout=3 * TIMEOUT) for request in requests]
    return [future.code() for future in futures]


def test_every_method_has_good_requests_here() -> None:
    assert {method for method, _ in GOOD} == set(METHODS)


@pytest.mark.parametrize(
    ("method", "make"), GOOD, ids=[f"{m.rsplit('/')[-1]}-{n}" for n, (m, _) in enumerate(GOOD)]
)
def test_a_bad_field_is_refused_precisely_and_changes_nothing(
    points: Points, method: str, make: Callable[[Points], Message]
) -> None:
    changes = list(mutations(make(points)))
    assert len(changes) >= 4

    def made(change: Mutation) -> Message:
        request = make(points)
        change(request)
        return request

    requests = [made(change) for _, change in changes]
    codes = send(points, method, requests)
    refused = []
    for (what, change), request, code in zip(changes, requests, codes, strict=True):
        assert code not in DEFECTS, what
        if _breaks_the_contract(request):
            assert code is StatusCode.INVALID_ARGUMENT, (what, code)
        if code is not StatusCode.OK:
            refused.append((what, change))
    before = fingerprint(points)  # again, as of other members, now that nothing is on its way
    codes = send(points, method, [made(change) for _, change in refused])
    assert StatusCode.OK not in codes
    assert fingerprint(points) == before


def _breaks_the_contract(request: Message) -> bool:
    try:
        return bool(protovalidate.collect_violations(request))
    except Exception:  # a timestamp that the library itself cannot read
        return True


def raw(points: Points, method: str, body: bytes, **options: Any) -> Any:
    """Sends bytes as they are and returns how it ended."""
    call: Any = points.channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    return call.future(body, timeout=TIMEOUT, **options)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])
def test_broken_bytes_are_refused_and_change_nothing(points: Points, method: str) -> None:
    make = next(make for name, make in GOOD if name == method)
    before = fingerprint(points)
    whole = make(points).SerializeToString()
    texts = [f for f in described(method).input_type.fields if f.type == FieldDescriptor.TYPE_STRING]
    bodies = [
        b"\xff" * 40,
        b"\x0a\xff\xff\xff\xff\x0f",
        whole[:-1],
        whole + b"\x0b",  # a group that does not end
        *(bytes([f.number << 3 | 2]) + b"\x04\xc3\x28\xa0\xa1" for f in texts),  # no UTF-8
    ]
    for body, call in [(body, raw(points, method, body)) for body in bodies]:
        refusal = read_refusal(call.exception())
        assert (refusal.code, refusal.reason) == (StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), body
    assert fingerprint(points) == before


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
