"""Deliveries as commands: each is read, joins the calls' batches, and is answered with what to do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from services.chassis import telemetry
from services.chassis.consumer import Delivery, Outcome
from services.chassis.errors import Internal, MalformedRequest, ServiceError, Violation
from services.chassis.interceptors import validate

Command = TypeVar("Command")

# By the message's name: its type, and what makes of it the command that it asks for, None for nothing here.
Readers = Mapping[str, tuple[type[Message], Callable[[Delivery, Any], Command | None]]]


def name_of(message: type[Message]) -> str:
    """The full name of a message, under which it is published."""
    return message.DESCRIPTOR.full_name


def read(delivery: Delivery, readers: Readers[Command]) -> Command | None:
    """The command that an event asks for; None if it asks for nothing here.

    Raises MalformedRequest, and what its reader raises.
    """
    kind = readers.get(delivery.subject)
    if kind is None:
        raise MalformedRequest(violations=[Violation("subject", f"{delivery.subject} is not consumed here")])
    message_type, reader = kind
    try:
        message = message_type.FromString(delivery.body)
    except DecodeError:
        raise MalformedRequest(violations=[Violation("", "the bytes are not a valid message")]) from None
    validate(message)
    return reader(delivery, message)


async def apply(
    deliveries: Sequence[Delivery],
    read: Callable[[Delivery], Command | None],
    submit: Callable[[Command], Awaitable[object]],
) -> Sequence[Outcome]:
    """Applies each event; answers None, or the error that says what to do with the message."""

    async def apply_one(delivery: Delivery) -> Outcome:
        try:
            with telemetry.span(delivery.subject, delivery.traceparent):
                command = read(delivery)
                if command is not None:
                    await submit(command)
        except ServiceError as error:
            return error
        except Exception as error:
            defect = Internal()
            defect.__cause__ = error
            return defect
        return None

    return await asyncio.gather(*(apply_one(delivery) for delivery in deliveries))


def streams(
    readers: Readers[Command], owners: Mapping[str, Sequence[str]]
) -> Mapping[str, tuple[Sequence[str], Sequence[str]]]:
    """Whose events are consumed, of streams and their subjects: those subjects, and the names read here."""
    return {
        stream: (subjects, [name for name in readers if any(name.startswith(s[:-1]) for s in subjects)])
        for stream, subjects in owners.items()
    }
