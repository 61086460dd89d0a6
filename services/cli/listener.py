"""A subscriber of another team: it has the protos and a NATS client, and nothing of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import nats
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from loyalty.cards.v1 import cards_events_pb2 as _cards_events_pb2  # noqa: F401 - known to the pool
from loyalty.groups.v1 import groups_events_pb2 as _groups_events_pb2  # noqa: F401 - known to the pool
from loyalty.points.v1 import points_events_pb2 as _points_events_pb2  # noqa: F401 - known to the pool
from loyalty.referral.v1 import referral_events_pb2 as _referral_events_pb2  # noqa: F401 - known to the pool
from nats.aio.msg import Msg
from nats.js import JetStreamContext

ARRIVAL = 60.0  # seconds that the last event gets to arrive

Enough = Callable[[Collection[Any], int], bool]
"""Whether these events will do, after which so many more are in the stream already."""


class Listener:
    """Hears each event of a service once, by its name of CloudEvents."""

    def __init__(self, url: str, service: str) -> None:
        self._url = url
        self._service = service

    def heard(self, expected: int) -> list[Any]:
        """Reads the stream from its start until as many events as expected came, or the time is up."""
        return asyncio.run(self._read(">", lambda seen, _: len(seen) >= expected))

    def heard_of(self, kind: str, wanted: Callable[[Any], bool]) -> list[Any]:
        """All wanted events of a kind, as soon as there is one, or when the time is up."""
        seen = asyncio.run(self._read(kind, lambda seen, more: not more and any(map(wanted, seen))))
        return list(filter(wanted, seen))

    async def _read(self, kind: str, enough: Enough) -> list[Any]:
        seen: dict[tuple[str, str], Any] = {}
        more = 0
        client = await nats.connect(self._url)
        try:
            subscription = await client.jetstream().subscribe(
                f"loyalty.{self._service}.v1.{kind}", stream=self._service.upper(), ordered_consumer=True
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(ARRIVAL):
                    while not enough(seen.values(), more):
                        message = await _next(subscription)
                        headers, more = message.headers or {}, message.metadata.num_pending
                        seen[headers["ce-source"], headers["ce-id"]] = _event(message)
            await subscription.unsubscribe()
        finally:
            await client.close()
        return list(seen.values())


async def _next(subscription: JetStreamContext.PushSubscription) -> Msg:
    return await subscription.next_msg(timeout=ARRIVAL)


def _event(message: Msg) -> Any:
    """Of the message that the subject names."""
    kind = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(message.subject))
    return kind.FromString(message.data)
