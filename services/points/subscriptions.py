"""Others' events, through the same use cases: the inbox row in place of the caller's request_id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from loyalty.activities.v1.activities_pb2 import ActivityReported
from loyalty.orders.v1.orders_pb2 import OrderPaid

from services.chassis import telemetry
from services.chassis.consumer import Delivery, Outcome
from services.chassis.errors import Internal, MalformedRequest, ServiceError, Violation
from services.chassis.ids import own_request_id
from services.chassis.inbox import InboxKey
from services.chassis.interceptors import validate
from services.points import events, rules
from services.points.batches import Batches
from services.points.rules import Source
from services.points.service import Command, Earn

Parsed = TypeVar("Parsed", bound=Message)

CONSUMER = "points"
SUBJECTS = (events.ORDER_PAID, events.ACTIVITY_REPORTED)


class Subscriptions:
    """Turns deliveries into commands; they join the calls' batches."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Applies each event once; answers None, or the error that says what to do with the message."""
        return await asyncio.gather(*(self._apply(delivery) for delivery in deliveries))

    async def _apply(self, delivery: Delivery) -> Outcome:
        try:
            with telemetry.span(delivery.subject, delivery.traceparent):
                await self._batches.posts.submit(read(delivery))
        except ServiceError as error:
            return error
        except Exception as error:
            defect = Internal()
            defect.__cause__ = error
            return defect
        return None


def read(delivery: Delivery) -> Command:
    """The command that an event asks for. Raises MalformedRequest, TotalMismatch."""
    if delivery.subject == events.ORDER_PAID:
        paid = _parse(OrderPaid.FromString, delivery)
        return _earn(delivery, paid.member_id, rules.read_order(paid.order))
    if delivery.subject == events.ACTIVITY_REPORTED:
        reported = _parse(ActivityReported.FromString, delivery)
        return _earn(delivery, reported.member_id, rules.read_activity(reported.activity))
    raise MalformedRequest(violations=[Violation("subject", f"{delivery.subject} is not consumed here")])


def _parse(parse: Callable[[bytes], Parsed], delivery: Delivery) -> Parsed:
    try:
        message = parse(delivery.body)
    except DecodeError:
        raise MalformedRequest(violations=[Violation("", "the bytes are not a valid message")]) from None
    validate(message)
    return message


def _earn(delivery: Delivery, member_id: str, source: Source) -> Earn:
    return Earn(
        member_id=member_id,
        request_id=own_request_id(delivery.subject, source.id),
        payload_hash=source.body_hash,
        actor=delivery.source[:200],
        may_backdate=True,  # a late event is a fact all the same
        traceparent=telemetry.TRACEPARENT.get(),
        event=InboxKey(
            member_id, CONSUMER, delivery.source, delivery.event_id, delivery.stream, delivery.stream_seq
        ),
        source=source,
    )
