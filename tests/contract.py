"""Methods by their names, as the contract describes them, and requests that break it in every way.

The bad values are made from the descriptors, so a new field or method is tried the day it is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import protovalidate
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from tests.support import TIMEOUT, Caller, read_refusal

LONG = "x" * 65_000
MANY = 10_000
MOST = {FieldDescriptor.CPPTYPE_INT32: 2**31 - 1, FieldDescriptor.CPPTYPE_INT64: 2**63 - 1}
DEFECTS = {StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}

Mutation = Callable[[Message], None]
Inside = Callable[[Any], Any]


# --- methods by name ----------------------------------------------------------------------------------


def described(method: str) -> MethodDescriptor:
    """A method in the contract."""
    service, name = method.lstrip("/").split("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


def empty(method: str) -> Message:
    """An empty request, which breaks most contracts."""
    return message_factory.GetMessageClass(described(method).input_type)()


def call(caller: Caller, method: str, request: Message) -> Any:
    """Calls a method by its name, with the channel's own token."""
    return caller.call(_stub(caller, method), request)


def send(caller: Caller, method: str, requests: Sequence[Message]) -> list[StatusCode]:
    """Calls all at once and returns the codes."""
    futures = [_stub(caller, method).future(request, timeout=3 * TIMEOUT) for request in requests]
    return [future.code() for future in futures]


def raw(caller: Caller, method: str, body: bytes, **options: Any) -> Any:
    """Sends bytes as they are and returns how it ended."""
    stub: Any = caller.channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    return stub.future(body, timeout=TIMEOUT, **options)


def _stub(caller: Caller, method: str) -> Any:
    answer = message_factory.GetMessageClass(described(method).output_type)
    return caller.channel.unary_unary(
        method, request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString
    )


# --- trying what is bad -------------------------------------------------------------------------------


def refuses_bad_fields(
    caller: Caller, method: str, make: Callable[[], Message], fingerprint: Callable[[], object]
) -> None:
    """Asserts that every field that goes wrong is refused precisely, and that nothing refused was written.

    `make` makes good requests, each about another member; `fingerprint` tells all that is kept.
    """
    changes = list(mutations(make()))
    assert len(changes) >= 4

    def made(change: Mutation) -> Message:
        request = make()
        change(request)
        return request

    requests = [made(change) for _, change in changes]
    codes = send(caller, method, requests)
    refused = []
    for (what, change), request, code in zip(changes, requests, codes, strict=True):
        assert code not in DEFECTS, what
        if breaks_the_contract(request):
            assert code is StatusCode.INVALID_ARGUMENT, (what, code)
        if code is not StatusCode.OK:
            refused.append((what, change))
    before = fingerprint()  # again, as of other members, now that nothing is on its way
    codes = send(caller, method, [made(change) for _, change in refused])
    assert StatusCode.OK not in codes
    assert fingerprint() == before


def breaks_the_contract(request: Message) -> bool:
    try:
        return bool(protovalidate.collect_violations(request))
    except Exception:  # a timestamp that the library itself cannot read
        return True


def refuses_broken_bytes(
    caller: Caller, method: str, good: Message, fingerprint: Callable[[], object]
) -> None:
    """Asserts that bytes that are no request are refused as such, and that nothing is written."""
    before, whole = fingerprint(), good.SerializeToString()
    texts = [f for f in described(method).input_type.fields if f.type == FieldDescriptor.TYPE_STRING]
    bodies = [
        b"\xff" * 40,
        b"\x0a\xff\xff\xff\xff\x0f",
        whole[:-1],
        whole + b"\x0b",  # a group that does not end
        *(bytes([f.number << 3 | 2]) + b"\x04\xc3\x28\xa0\xa1" for f in texts),  # no UTF-8
    ]
    for body, sent in [(body, raw(caller, method, body)) for body in bodies]:
        refusal = read_refusal(sent.exception())
        assert (refusal.code, refusal.reason) == (StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), body
    assert fingerprint() == before


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
        if value and field.message_type is None:
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
    if field.type == FieldDescriptor.TYPE_BYTES:
        return (b"", b"\xff\0", b"x" * 70_000)
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
