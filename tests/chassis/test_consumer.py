"""A consumer on a real stream: what is done with, what is tried again, what ends as a dead letter."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis import streams
from services.chassis.consumer import Consumer, DeadLetters, Delivery, Outcome
from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition, InvalidArgument, ServiceError, Unavailable
from services.cli.servers import Nats
from services.points import tables
from tests.support import TIMEOUT, fresh


class NotToday(FailedPrecondition):
    """Not today."""


class NotEver(InvalidArgument):
    """Not ever."""


@pytest.fixture(scope="module")
def broker(data: Path) -> Iterator[Nats]:
    with Nats.start(data / "nats") as server:
        yield server


class Site:
    """A stream with a consumer, and what it was handed."""

    def __init__(self, stream: str, client: Any, database: Database) -> None:
        self.stream = stream
        self.database = database
        self.seen: list[Delivery] = []
        self.plan: dict[bytes, list[Outcome]] = {}
        self._jetstream = client.jetstream()
        self.consumer = Consumer(
            name="test",
            stream=stream,
            stream_subjects=[f"{stream}.>"],
            subjects=[f"{stream}.wanted"],
            handle=self._handle,
            database=database,
            client=client,
            dead_letters=tables.dead_letters,
            replicas=1,
        )

    async def _handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        self.seen += deliveries
        return [self._outcome(delivery.body) for delivery in deliveries]

    def _outcome(self, body: bytes) -> Outcome:
        planned = self.plan.get(body)
        return planned.pop(0) if planned else None

    async def publish(self, *bodies: bytes, kind: str = "wanted", **headers: str) -> None:
        async with asyncio.timeout(3 * TIMEOUT):
            for body in bodies:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                await self._jetstream.publish(f"{self.stream}.{kind}", body, headers=named or None)

    async def settled(self, *, done: int, dead: int = 0) -> None:
        """Waits until so many messages were done with."""
        await until(lambda: (self.counted("done"), self.counted("dead")) == (done, dead))

    async def letters(self) -> list[Any]:
        async with self.database.read() as connection:
            rows: list[Any] = await connection.fetch(
                "SELECT * FROM dead_letters WHERE stream = $1 ORDER BY stream_seq", self.stream
            )
        return rows

    def counted(self, outcome: str) -> float:
        """Messages of this stream that were done with."""
        labels = {"stream": self.stream, "outcome": outcome}
        return REGISTRY.get_sample_value("consumer_messages_total", labels) or 0

    def pending(self) -> float | None:
        """Messages of this stream that wait, as far as was seen."""
        return REGISTRY.get_sample_value("consumer_pending", {"stream": self.stream})


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(3 * TIMEOUT):
        while not look():  # noqa: ASYNC110 - what is waited for lies with a server
            await asyncio.sleep(0.02)


@asynccontextmanager
async def consuming(broker: Nats, database: Database) -> AsyncIterator[Site]:
    """A site of its own, at work."""
    client = await streams.connect(broker.url, "test")
    site = Site(fresh("STREAM").replace("-", "_"), client, database)
    await streams.ensure_stream(client.jetstream(), site.stream, [f"{site.stream}.>"], 1)
    running = asyncio.create_task(site.consumer.run())
    try:
        yield site
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await client.close()


async def test_each_stream_is_consumed_and_counted_by_itself(broker: Nats, database: Database) -> None:
    async with consuming(broker, database) as one, consuming(broker, database) as other:
        await one.publish(b"1", b"2", b"3")
        await one.publish(b"not ours", kind="unwanted")
        await other.publish(b"4")
        await one.settled(done=3)
        await other.settled(done=1)
        assert [d.body for d in one.seen] == [b"1", b"2", b"3"]
        assert {(d.stream, d.subject) for d in one.seen} == {(one.stream, f"{one.stream}.wanted")}
        assert [d.stream_seq for d in one.seen] == [1, 2, 3]
        await until(lambda: one.pending() == other.pending() == 0)


async def test_what_is_refused_is_kept_whole_and_holds_nothing_up(broker: Nats, database: Database) -> None:
    async with consuming(broker, database) as site:
        site.plan[b"\xff bad"] = [NotToday(day="monday")]
        await site.publish(b"\xff bad", ce_id="event-1", ce_source="/till/7", x_more="分")
        await site.publish(b"good")
        await site.settled(done=1, dead=1)
        (letter,) = await site.letters()
        assert (letter["consumer"], letter["source"], letter["event_id"]) == ("test", "/till/7", "event-1")
        assert (letter["subject"], letter["stream_seq"]) == (f"{site.stream}.wanted", 1)
        assert (letter["body"], letter["reason"]) == (b"\xff bad", "NOT_TODAY")
        assert "monday" in letter["message"]
        headers = json.loads(letter["headers"])
        assert (headers["ce-id"], headers["ce-source"]) == ("event-1", "/till/7")
        assert letter["replay_time"] is None


async def test_a_fault_of_what_we_stand_on_is_waited_out_and_not_held_against_the_message(
    broker: Nats, database: Database
) -> None:
    async with consuming(broker, database) as site:
        site.plan[b"1"] = [Unavailable(), Unavailable()]
        await site.publish(b"1", b"2")
        await site.settled(done=2)
        assert Counter(d.body for d in site.seen) == {b"1": 3, b"2": 1}
        assert await site.letters() == []


async def test_a_letter_that_is_refused_again_waits_again_with_its_latest_reason(database: Database) -> None:
    letters, stream = DeadLetters(tables.dead_letters), fresh("STREAM")
    first = Delivery("a.subject", b"body", "/till/7", fresh("event"), "", stream, 1)
    again = Delivery("a.subject", b"body", "/till/7", first.event_id, "", stream, 9)

    async def bury(letter: Delivery, refusal: ServiceError) -> None:
        async with database.begin() as connection:
            await letters.bury(connection, "test", letter, refusal)
            await connection.execute("UPDATE dead_letters SET replay_time = now() WHERE stream_seq = 1")

    await bury(first, NotToday())
    await bury(again, NotEver())
    async with database.read() as connection:
        rows = await connection.fetch("SELECT * FROM dead_letters WHERE stream = $1", stream)
    (row,) = rows
    assert (row["reason"], row["stream_seq"], row["replay_time"]) == ("NOT_EVER", 9, None)
    assert json.loads(row["headers"]) == {"ce-id": first.event_id, "ce-source": "/till/7"}
