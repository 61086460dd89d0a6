"""Instants as protobuf writes them, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.clock import to_micros
from services.chassis.errors import MalformedRequest, Violation


def instant(timestamp: Timestamp) -> datetime:
    """A Timestamp in UTC, to the microsecond. Raises MalformedRequest for one that is none."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:  # the contract's rules see only the seconds
        raise MalformedRequest(violations=[Violation("", f"a timestamp is not valid: {error}")]) from None


def instant_of(message: Message, name: str) -> datetime | None:
    """The instant that a field of a message says, None where it says none. Raises MalformedRequest."""
    return instant(getattr(message, name)) if message.HasField(name) else None


@lru_cache(1024)  # a batch has few instants, and each is in several messages
def timestamp(at: datetime) -> Timestamp:
    """An instant as a Timestamp, to be put into a message, never changed."""
    seconds, micros = divmod(to_micros(at), 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def timestamp_of(at: datetime | None) -> Timestamp | None:
    """An instant as a Timestamp, if there is one."""
    return None if at is None else timestamp(at)
