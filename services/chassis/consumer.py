"""Consuming events: durable, in batches, acknowledged after commit; what is refused goes to the dead letters.

A fault of the infrastructure pauses and counts for nothing. A refusal is final at once. Any other error is
the message's own, and final after MAX_TRIES, counted here: the broker's count would include outages.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.chassis import failpoints, streams, telemetry
from services.chassis.clock import wall
from services.chassis.database import Connection, Database, Row, Statement
from services.chassis.errors import INFRASTRUCTURE, Internal, ServiceError
from services.chassis.ids import new_id
from services.chassis.streams import STREAM_FAULTS

FETCH = 256  # messages
FETCH_TIMEOUT = 2.0  # seconds to wait for the first message
ACK_WAIT = 30  # seconds until JetStream delivers an unacknowledged message again
MAX_ACK_PENDING = 2 * FETCH
MAX_TRIES = 10
PAUSE = 1.0  # seconds after a fault

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event as it arrived. `source` and `event_id` identify it however often it comes."""

    subject: str
    body: bytes
    source: str
    event_id: str
    traceparent: str
    stream: str
    stream_seq: int


Outcome = ServiceError | None
Handler = Callable[[Sequence[Delivery]], Awaitable[Sequence[Outcome]]]


def dead_letters_table(metadata: sa.MetaData) -> sa.Table:
    """Messages that were refused, whole, with the reason, until somebody replays or drops them."""
    return sa.Table(
        "dead_letters",
        metadata,
        sa.Column("dead_letter_id", sa.Text, primary_key=True),
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("stream_seq", sa.BigInteger, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("headers", sa.dialects.postgresql.JSONB, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replay_time", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("consumer", "source", "event_id", name="dead_letters_once"),
    )


class DeadLetters:
    """The dead letters of one service."""

    def __init__(self, table: sa.Table) -> None:
        self._bury = _bury(table)
        prefix = sa.bindparam("prefix", type_=sa.LargeBinary)
        self._erase = Statement(
            sa.delete(table)
            .where(sa.func.substr(table.c.body, 1, sa.func.length(prefix)) == prefix)
            .returning(table.c.stream, table.c.stream_seq, table.c.event_id)
        )

    async def bury(
        self,
        connection: Connection,
        consumer: str,
        letter: Delivery,
        refusal: ServiceError,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keeps a refused message, with the headers it came with, or those that say which one it was."""
        known = headers if headers is not None else {"ce-id": letter.event_id, "ce-source": letter.source}
        await self._bury.execute(
            connection,
            dead_letter_id=new_id("dead"),
            consumer=consumer,
            source=letter.source,
            event_id=letter.event_id,
            stream=letter.stream,
            stream_seq=letter.stream_seq,
            subject=letter.subject,
            headers=json.dumps({streams.text(k): streams.text(v) for k, v in known.items()}),
            body=letter.body,
            reason=refusal.reason,
            message=streams.text(refusal.message),
            create_time=wall(),
        )

    async def erase(self, connection: Connection, member_id: str) -> list[Row]:
        """Drops a member's dead letters; returns stream, sequence and id of each.

        They had no effect to find them by; but each begins with its member, field 1.
        """
        name = member_id.encode()
        return await self._erase.fetch(connection, prefix=b"\x0a" + bytes([len(name)]) + name)


class Consumer:
    """One service's durable on one stream."""

    def __init__(
        self,
        *,
        name: str,
        stream: str,
        stream_subjects: Sequence[str],
        subjects: Sequence[str],
        handle: Handler,
        database: Database,
        client: Client,
        dead_letters: sa.Table,
        replicas: int,
    ) -> None:
        self._name = name
        self.stream = stream
        self._stream_subjects = stream_subjects
        self._subjects = subjects
        self._handle = handle
        self._database = database
        self._client = client
        self._jetstream = client.jetstream()
        self._replicas = replicas
        self._tries: Counter[int] = Counter()
        self._dead_letters = DeadLetters(dead_letters)

    async def run(self) -> None:
        """Consumes for ever."""
        while True:
            try:
                streams.require(self._client)
                subscription = await self._subscribe()
                try:
                    while True:
                        await self._step(subscription)
                finally:  # else its inbox would go on receiving what nobody fetches
                    await subscription.unsubscribe()
            except (*INFRASTRUCTURE, *STREAM_FAULTS) as error:
                log.info("consumer_paused", stream=self.stream, error=repr(error))
            await asyncio.sleep(PAUSE)

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        await streams.ensure_stream(self._jetstream, self.stream, self._stream_subjects, self._replicas)
        config = ConsumerConfig(
            durable_name=self._name,
            filter_subjects=list(self._subjects),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT,
            max_deliver=-1,
            max_ack_pending=MAX_ACK_PENDING,
        )
        await self._jetstream.add_consumer(self.stream, config)
        return await self._jetstream.pull_subscribe_bind(self._name, self.stream)

    async def _step(self, subscription: JetStreamContext.PullSubscription) -> None:
        try:
            messages = await subscription.fetch(FETCH, timeout=FETCH_TIMEOUT)
        except TimeoutError:  # nats' own is one
            messages = []
        if not messages:
            # If the durable is gone with its store, this says so; the fetch does not.
            await subscription.consumer_info()
        while messages:
            messages = await self._settle(messages)

    async def _settle(self, messages: Sequence[Msg]) -> list[Msg]:
        """Handles and acknowledges; returns what met a fault of the infrastructure, after a pause."""
        outcomes = await self._handle([delivery(message, self.stream) for message in messages])
        failpoints.reach("consumer_before_ack")
        again: list[Msg] = []
        for message, outcome in zip(messages, outcomes, strict=True):
            if (
                isinstance(outcome, INFRASTRUCTURE)
                or (isinstance(outcome, Internal) and not self._exhausted(message))
                or (outcome is not None and not await self._dead_letter(message, outcome))
            ):
                again.append(message)
            else:
                await message.ack()
                self._tries.pop(message.metadata.sequence.stream, None)
                telemetry.CONSUMED.labels(self.stream, "dead" if outcome else "done").inc()
        failpoints.reach("consumer_after_ack")
        telemetry.CONSUMER_LAG.labels(self.stream).set(messages[-1].metadata.num_pending)
        for message in again:
            await message.in_progress()
        if again:
            await asyncio.sleep(PAUSE)
        return again

    def _exhausted(self, message: Msg) -> bool:
        sequence = message.metadata.sequence.stream
        self._tries[sequence] += 1
        return self._tries[sequence] >= MAX_TRIES

    async def _dead_letter(self, message: Msg, outcome: ServiceError) -> bool:
        """Keeps a refused message; False when the database is away and it has to be tried again."""
        arrived = delivery(message, self.stream)
        log.warning("dead_letter", consumer=self._name, event_id=arrived.event_id, reason=outcome.reason)
        try:
            async with self._database.begin() as connection:
                await self._dead_letters.bury(
                    connection, self._name, arrived, outcome, headers=message.headers or {}
                )
        except INFRASTRUCTURE:
            return False
        return True


def _bury(dead_letters: sa.Table) -> Statement:
    """Keeps a dead letter; refused again, after a replay, it waits again with its latest reason."""
    insert = sa.dialects.postgresql.insert(dead_letters).values(
        {
            c.name: sa.cast(sa.bindparam(c.name, type_=sa.Text), c.type)
            if c.name == "headers"
            else sa.bindparam(c.name, type_=c.type)
            for c in dead_letters.c
            if c.name != "replay_time"
        }
    )
    latest = ("stream", "stream_seq", "headers", "body", "reason", "message", "create_time")
    return Statement(
        insert.on_conflict_do_update(
            constraint="dead_letters_once",
            set_={"replay_time": None, **{name: insert.excluded[name] for name in latest}},
        )
    )


def delivery(message: Msg, stream: str) -> Delivery:
    """Reads the CloudEvents headers; a brand that sends none is identified by what it does send."""
    headers = message.headers or {}
    return Delivery(
        subject=message.subject,
        body=message.data,
        source=streams.key(headers.get("ce-source") or stream),
        event_id=streams.event_id(headers, message.data),
        traceparent=streams.text(headers.get("traceparent", ""))[:55],
        stream=stream,
        stream_seq=message.metadata.sequence.stream,
    )
