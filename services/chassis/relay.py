"""The relay: publishes the outbox in order, one relay at a time, at least once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby

import sqlalchemy as sa
import structlog
from nats.aio.client import Client

from services.chassis import failpoints, streams, telemetry
from services.chassis.database import Database, Row, Statement, rows_of
from services.chassis.errors import INFRASTRUCTURE
from services.chassis.jobs import LEASE, Jobs, Lease
from services.chassis.outbox import Outbox
from services.chassis.streams import STREAM_FAULTS, DuplicateInBatch, Message

BATCH = streams.MAX_ATOMIC
REBUILD_STEP = 5_000  # positions, so that a step stays far below the statement timeout
BATCH_BYTES = 8 * 1024 * 1024  # of bodies that one pass takes
POLL = 0.2  # seconds between looks when nobody wakes us
PAUSE = 1.0  # seconds after a fault
NAME = "relay"

log = structlog.get_logger()


class Relay:
    """Publishes one service's outbox; `owned` names the streams it makes and their subjects."""

    def __init__(
        self,
        *,
        source: str,
        database: Database,
        jobs: Jobs,
        client: Client,
        tables: tuple[sa.Table, sa.Table],
        outbox: Outbox,
        owned: Mapping[str, Sequence[str]],
        replicas: int,
    ) -> None:
        self._source = source
        self._database = database
        self._jobs = jobs
        self._client = client
        self._jetstream = client.jetstream()
        self._outbox = outbox
        self._owned = owned
        self._replicas = replicas
        self._woken = asyncio.Event()
        table, erasures = tables
        columns = [c for c in table.c if c.name not in ("sent_at", "stream_seq", "bucket")]
        unsent = table.c.sent_at.is_(None)
        self._unsent = Statement(
            sa.select(*columns).where(unsent).order_by(table.c.position).limit(sa.bindparam("most"))
        )
        given = rows_of(position=sa.BigInteger, stream_seq=sa.BigInteger)
        self._mark = Statement(
            sa.update(table)
            .where(table.c.position == given.c.position)
            .values(sent_at=sa.func.now(), stream_seq=given.c.stream_seq)
            .returning(table.c.stream, table.c.stream_seq, table.c.event_id, table.c.erased)
        )
        self._forget = Statement(
            sa.update(table)
            .where(
                table.c.stream == sa.bindparam("lost"),
                table.c.position.between(sa.bindparam("first"), sa.bindparam("last")),
                table.c.sent_at.is_not(None),
            )
            .values(sent_at=None, stream_seq=None)
        )
        self._range = Statement(sa.select(sa.func.min(table.c.position), sa.func.max(table.c.position)))
        self._depth = Statement(
            sa.select(
                sa.func.count(), sa.func.extract("epoch", sa.func.now() - sa.func.min(table.c.create_time))
            ).where(unsent)
        )
        self._to_erase = Statement(sa.select(erasures).limit(sa.bindparam("most")))
        self._erased = Statement(
            sa.delete(erasures).where(
                erasures.c.stream == sa.bindparam("name"),
                erasures.c.stream_seq == sa.bindparam("seq"),
                erasures.c.event_id == sa.bindparam("event"),
            )
        )

    def wake(self) -> None:
        """Says that something was committed to the outbox."""
        self._woken.set()

    async def run(self) -> None:
        """Relays for ever, whenever this process holds the lease."""
        while True:
            try:
                streams.require(self._client)
                lease = await self._jobs.claim(self._database, NAME)
                if lease is not None:
                    async with self._jobs.held(self._database, lease, 0.0):
                        await self._ensure_streams(lease)
                        await self._relay(lease)
            except (*INFRASTRUCTURE, *STREAM_FAULTS) as error:
                log.info("relay_paused", error=repr(error))
            await asyncio.sleep(PAUSE)

    async def _ensure_streams(self, lease: Lease) -> None:
        for name, subjects in self._owned.items():
            stream = await streams.ensure_stream(self._jetstream, name, subjects, self._replicas)
            if not streams.is_whole(stream):
                # Whoever made it, it has nothing of what we sent before: JetStream lost its store.
                await self.rebuild(lease, name)
                await streams.mark_whole(self._jetstream, stream)

    async def rebuild(self, lease: Lease, stream: str) -> int:
        """Has every kept event of the stream sent again, a bounded step at a time. Returns how many."""
        async with self._database.read() as connection:
            row = await self._range.fetch_one(connection)
        if row is None or row[0] is None:
            return 0
        forgotten = 0
        for first in range(row[0], row[1] + 1, REBUILD_STEP):
            await self._jobs.renew(self._database, lease)
            async with self._database.begin() as connection:
                await self._jobs.check(connection, lease)
                forgotten += await self._forget.execute(
                    connection, lost=stream, first=first, last=first + REBUILD_STEP - 1
                )
        return forgotten

    async def _relay(self, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            self._woken.clear()
            sent = await self._pass(lease)
            if loop.time() - renewed > LEASE / 3:
                await self._jobs.renew(self._database, lease)
                streams.require(self._client)
                await self._ensure_streams(lease)  # with nothing to send we would not see that one is gone
                await self._housekeeping()
                renewed = loop.time()
            if sent < BATCH:
                try:
                    await asyncio.wait_for(self._woken.wait(), POLL)
                except TimeoutError:
                    continue

    async def _housekeeping(self) -> None:
        async with self._database.read() as connection:
            row = await self._depth.fetch_one(connection)
            erasures = await self._to_erase.fetch(connection, most=BATCH)
        if row:
            telemetry.OUTBOX_UNSENT.set(row[0])
            telemetry.OUTBOX_AGE.set(float(row[1] or 0))
        for erasure in erasures:
            name, sequence, event = erasure["stream"], erasure["stream_seq"], erasure["event_id"]
            await streams.delete_message(self._jetstream, name, sequence, event)
            async with self._database.read() as connection:
                await self._erased.execute(connection, name=name, seq=sequence, event=event)

    async def _pass(self, lease: Lease) -> int:
        async with self._database.read() as connection:
            rows = await self._unsent.fetch(connection, most=BATCH)
        if not rows:
            return 0
        rows.sort(key=_stream_of)  # stable: within a stream the positions stay in order
        for stream, of_stream in groupby(rows, key=_stream_of):
            for batch in _bounded(list(of_stream)):
                await self._send(lease, stream, batch)
        return len(rows)

    async def _send(self, lease: Lease, stream: str, rows: Sequence[Row]) -> None:
        live = [row for row in rows if not row["erased"]]
        failpoints.reach("relay_before_publish")
        sequences = await self._publish(live) if live else []
        failpoints.reach("relay_after_publish")
        marks = [
            *((row["position"], sequence) for row, sequence in zip(live, sequences, strict=True)),
            *((row["position"], None) for row in rows if row["erased"]),
        ]
        async with self._database.begin() as connection:
            await self._jobs.check(connection, lease)
            marked = await self._mark.fetch_rows(connection, marks)
            # Somebody was erased while the message was on its way.
            await self._outbox.erase_later(connection, [row for row in marked if row["erased"]])
        telemetry.OUTBOX_SENT.labels(stream).inc(len(live))

    async def _publish(self, rows: Sequence[Row]) -> list[int]:
        messages = [self._message(row) for row in rows]
        if len(messages) == 1:
            return [await streams.publish(self._client, messages[0])]
        try:
            return await streams.publish_batch(self._client, messages)
        except DuplicateInBatch:
            return await self._publish_singly(rows, messages)

    async def _publish_singly(self, rows: Sequence[Row], messages: Sequence[Message]) -> list[int]:
        """After a lost PubAck: duplicates are acknowledged, an entity's messages go one after another."""
        lanes: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            lanes.setdefault(row["entity_key"], []).append(index)
        sequences = [0] * len(rows)

        async def send(lane: list[int]) -> None:
            for index in lane:
                sequences[index] = await streams.publish(self._client, messages[index])

        outcomes = await asyncio.gather(*map(send, lanes.values()), return_exceptions=True)
        for outcome in outcomes:  # only now: nothing may still be in flight when the batch is tried again
            if outcome is not None:
                raise outcome
        return sequences

    def _message(self, row: Row) -> Message:
        headers = {
            "Nats-Msg-Id": row["event_id"],
            "ce-id": row["event_id"],
            "ce-source": self._source,
            "ce-type": row["subject"],
            "ce-subject": row["entity_key"],
            "ce-time": row["create_time"].isoformat(),
            "content-type": "application/protobuf",
        }
        if row["traceparent"]:
            headers["traceparent"] = row["traceparent"]
        return Message(row["subject"], row["body"], headers)


def _stream_of(row: Row) -> str:
    stream: str = row["stream"]
    return stream


def _bounded(rows: list[Row]) -> list[list[Row]]:
    """Splits rows into batches of at most BATCH_BYTES of bodies."""
    batches: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        if batches[-1] and size + len(row["body"]) > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += len(row["body"])
    return batches
