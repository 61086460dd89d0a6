"""A subscriber of another team: it has the protos and a NATS client, and nothing of ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import nats
from google.protobuf.message import Message
from loyalty.points.v1 import points_events_pb2
from loyalty.points.v1.points_events_pb2 import PointsPosted
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError

STREAM = "POINTS"
SUBJECTS = "loyalty.points.v1.>"
SUBJECT = "loyalty.points.v1.PointsPosted"
TIMEOUT = 90.0  # seconds
POLL = 0.25  # seconds

Key = tuple[str, int, int]  # member, epoch, version: what makes an event the same event
Kind = TypeVar("Kind", bound=Message)


async def ignore(_error: Exception) -> None:
    """The client tries again by itself."""


class Listener:
    """Hears all events, each once in effect, and checks that each member's first come in order.

    `heard` are those of the ledger, `events` all of them, by what makes them the same.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.heard: dict[Key, PointsPosted] = {}
        self.events: dict[Key, Any] = {}
        self.headers: dict[Key, dict[str, str]] = {}
        self.counts: Counter[str] = Counter()  # by the name of the event
        self._last: dict[tuple[str, int], int] = {}

    def about(self, member: str, kind: type[Kind]) -> list[Kind]:
        """What was heard of a kind about a member, in order."""
        return [e for e in self.events.values() if isinstance(e, kind) and e.member_id == member]  # type: ignore[attr-defined]

    async def hear(self, done: Callable[[], bool], timeout: float | None = TIMEOUT) -> None:  # noqa: ASYNC109
        """Reads the stream from its beginning until `done`. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            client = await nats.connect(self._url, max_reconnect_attempts=-1, error_cb=ignore)
            try:
                while not done():
                    await self._read(client, done)
            finally:
                await client.close()

    async def hear_all(self, ledger: Collection[Any]) -> None:
        """Waits for the event of every ledger row, and compares the hashes."""
        expected = {(row["member_id"], row["seq"]): row["hash"] for row in ledger}

        def found() -> dict[tuple[str, int], bytes]:
            return {
                (e.member_id, e.transaction.seq): e.transaction.hash
                for e in self.heard.values()
                if (e.member_id, e.transaction.seq) in expected
            }

        await self.hear(lambda: len(found()) == len(expected))
        assert found() == expected

    async def _read(self, client: Any, done: Callable[[], bool]) -> None:
        """Once through the stream; returns when nothing more comes, to begin again with what is new."""
        try:
            subscription = await client.jetstream().subscribe(SUBJECTS, stream=STREAM, ordered_consumer=True)
        except NatsError:  # the stream is not there yet
            await asyncio.sleep(POLL)
            return
        try:
            while not done():
                self._take(await subscription.next_msg(timeout=4 * POLL))
                while subscription.pending_msgs:  # `done` may look at all that was heard
                    self._take(await subscription.next_msg(timeout=4 * POLL))
        except NatsTimeoutError:
            return
        finally:
            await subscription.unsubscribe()

    def _take(self, message: Any) -> None:
        event = getattr(points_events_pb2, message.subject.rsplit(".", 1)[-1]).FromString(message.data)
        key = (event.member_id, event.epoch, event.version)
        if key in self.events:
            assert self.events[key] == event  # a duplicate, not another event under the same version
            return
        assert event.version == self._last.get(key[:2], 0) + 1, f"{key} after {self._last.get(key[:2])}"
        self._last[key[:2]] = event.version
        self.events[key] = event
        self.counts[type(event).__name__] += 1
        if isinstance(event, PointsPosted):
            self.heard[key] = event
        self.headers[key] = dict(message.headers or {})
