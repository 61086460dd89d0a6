"""Bad input gets a precise error and changes nothing: every field of every method, and broken bytes.

The bad values are made from the descriptors, so a new field or method is tried the day it is added.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grpc
import protovalidate
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from services.points.api import METHODS
from tests.points.requests import GOOD, POINTS, adjust, described, earn, fingerprint, fixed, programme
from tests.support import TIMEOUT, Points, fresh, order, read_refusal

LONG = "x" * 65_000
MANY = 10_000
MOST = {FieldDescriptor.CPPTYPE_INT32: 2**31 - 1, FieldDescriptor.CPPTYPE_INT64: 2**63 - 1}
DEFECTS = {StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}

Mutation = Callable[[Message], None]
Inside = Callable[[Any], Any]


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
    if field.containing_oneof is not None:  # a bool there says which is meant, and is never false
        return (False,)
    return ()


# --- trying them --------------------------------------------------------------------------------------


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
        if breaks_the_contract(request):
            assert code is StatusCode.INVALID_ARGUMENT, (what, code)
        if code is not StatusCode.OK:
            refused.append((what, change))
    before = fingerprint(points)  # again, as of other members, now that nothing is on its way
    codes = send(points, method, [made(change) for _, change in refused])
    assert StatusCode.OK not in codes
    assert fingerprint(points) == before


def breaks_the_contract(request: Message) -> bool:
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
