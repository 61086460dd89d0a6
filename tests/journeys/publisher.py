"""Another team's service: it has the protos and a NATS client, and nothing of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import nats
from google.protobuf.message import Message
from nats.js.errors import NoStreamResponseError, NotFoundError

from tests.support import fresh

TIMEOUT = 60.0  # seconds
POLL = 0.05  # seconds


class Publisher:
    """Publishes events as their owner would, each under an id of its own."""

    def __init__(self, url: str, source: str) -> None:
        self._url = url
        self.source = source
        self._client: Any = None
        self._last: dict[str, int] = {}  # what was published last, by stream

    async def __aenter__(self) -> Self:
        self._client = await nats.connect(self._url)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def tell(self, *messages: Message, event_id: str = "") -> None:
        """Publishes each message, in order, then waits until the points service is through with them."""
        await self.publish(*messages, event_id=event_id)
        await self.consumed()

    async def publish(self, *messages: Message, event_id: str = "") -> None:
        """Publishes each message, in order."""
        for message in messages:
            headers = {"ce-source": self.source, "ce-id": event_id or fresh("event")}
            await self._publish(message.DESCRIPTOR.full_name, message.SerializeToString(), headers)

    async def consumed(self) -> None:
        """Waits until the points service has acknowledged everything that was published here."""
        for stream, last in self._last.items():
            async with asyncio.timeout(TIMEOUT):
                while not await self._caught_up(stream, last):  # noqa: ASYNC110 - it lies in another process
                    await asyncio.sleep(POLL)

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    stored = await self._client.jetstream().publish(subject, body, headers=headers)
                except NoStreamResponseError:  # the house has just started, and the stream is still to come
                    await asyncio.sleep(POLL)
                else:
                    self._last[stored.stream] = max(stored.seq, self._last.get(stored.stream, 0))
                    return

    async def _caught_up(self, stream: str, last: int) -> bool:
        try:
            info = await self._client.jetstream().consumer_info(stream, "points")
        except NotFoundError:
            return False
        return bool(info.ack_floor.stream_seq >= last)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that happens in another process. Raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL)
