"""What is asked of a member, and by whom: what every command has, whatever it asks.

Who asks gives the fields, by name, that a command is made with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.chassis.auth import CALLER
from services.chassis.consumer import Delivery
from services.chassis.ids import new_id, own_request_id
from services.chassis.inbox import InboxKey
from services.chassis.requests import payload_hash
from services.chassis.telemetry import TRACEPARENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Something asked of one member. `event` is set where an event asks."""

    member_id: str
    request_id: str
    payload_hash: bytes
    actor: str
    event: InboxKey | None = None
    traceparent: str = ""


def by_call(method: str, request: Any) -> dict[str, Any]:
    """Asked by a caller; a repeat is of the same method, and says the same."""
    return {
        "member_id": request.member_id,
        "request_id": request.request_id,
        "payload_hash": payload_hash(method, request),
        **by_caller(),
    }


def by_caller() -> dict[str, Any]:
    """Who calls."""
    return {"actor": CALLER.get().subject, "traceparent": TRACEPARENT.get()}


def by_event(
    consumer: str, delivery: Delivery, member_id: str, request_id: str = "", payload_hash: bytes = b""
) -> dict[str, Any]:
    """Asked by an event. `request_id` stands for what happened, where it may be told by several messages."""
    own = own_request_id(delivery.subject, delivery.source, delivery.event_id)
    event = (member_id, consumer, delivery.source, delivery.event_id, delivery.stream, delivery.stream_seq)
    return {
        "member_id": member_id,
        "request_id": request_id or own,
        "payload_hash": payload_hash,
        "actor": delivery.source[:200],
        "traceparent": TRACEPARENT.get(),
        "event": InboxKey(*event),
    }


def by_clock(member_id: str) -> dict[str, Any]:
    """Asked by nobody: its time has come."""
    return {"member_id": member_id, "request_id": new_id("~due"), "payload_hash": b"", "actor": "due"}
