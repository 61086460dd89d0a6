"""What operators do to a service's own tables: look at dead letters, replay them, rebuild a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import sqlalchemy as sa
from nats.aio.client import Client

from services.chassis import streams
from services.chassis.clock import to_micros, wall
from services.chassis.consumer import dead_letters_table
from services.chassis.database import CONNECT_TIMEOUT, Connection, Row, Statement
from services.chassis.jobs import jobs_table
from services.chassis.outbox import outbox_tables
from services.chassis.relay import NAME as RELAY

_metadata = sa.MetaData()
_letters = dead_letters_table(_metadata)
_jobs = jobs_table(_metadata)
_outbox, _ = outbox_tables(_metadata)

_in_order = (_letters.c.create_time, _letters.c.dead_letter_id)
_LIST = Statement(sa.select(_letters).order_by(*_in_order))
_WAITING = Statement(
    sa.select(_letters.c.dead_letter_id).where(_letters.c.replay_time.is_(None)).order_by(*_in_order)
)
_LOCK_LETTER = Statement(
    sa.select(_letters).where(_letters.c.dead_letter_id == sa.bindparam("letter")).with_for_update()
)
_REPLAYED = Statement(
    sa.update(_letters)
    .where(_letters.c.dead_letter_id == sa.bindparam("letter"))
    .values(replay_time=sa.bindparam("at", type_=sa.DateTime(timezone=True)))
)
_LOCK_RELAY = Statement(sa.select(_jobs.c.token).where(_jobs.c.name == RELAY).with_for_update())
_FREE_RELAY = Statement(
    sa.update(_jobs)
    .where(_jobs.c.name == RELAY)
    .values(token=_jobs.c.token + 1, lease_until=sa.func.now(), holder="")
)
_sent = _outbox.c.sent_at.is_not(None)
_FORGET_ALL = Statement(sa.update(_outbox).where(_sent).values(sent_at=None, stream_seq=None))
_FORGET = Statement(
    sa.update(_outbox)
    .where(_sent, _outbox.c.stream == sa.bindparam("lost"))
    .values(sent_at=None, stream_seq=None)
)


class DeadLetterUnknown(LookupError):
    """There is no dead letter of this id."""


async def dead_letters(url: str) -> list[Row]:
    """All dead letters of a service, oldest first."""
    async with _connection(url) as connection:
        return await _LIST.fetch(connection)


async def waiting(url: str) -> list[str]:
    """The ids of the dead letters that nobody has replayed, oldest first."""
    async with _connection(url) as connection:
        return [row["dead_letter_id"] for row in await _WAITING.fetch(connection)]


async def replay(url: str, client: Client, ids: Sequence[str]) -> None:
    """Publishes dead letters again, each in a transaction of its own. Raises DeadLetterUnknown.

    A consumer that knows the event applies it no second time: the message keeps its id and source.
    """
    async with _connection(url) as connection:
        for letter in ids:
            async with connection.transaction():
                row = await _LOCK_LETTER.fetch_one(connection, letter=letter)
                if row is None:
                    raise DeadLetterUnknown(letter)
                await streams.publish(client, _message(row))
                await _REPLAYED.execute(connection, letter=letter, at=wall())


def _message(row: Row) -> streams.Message:
    # Nats' own headers spoke to the server about the first publishing, for instance its batch.
    kept = {
        name: value
        for name, value in json.loads(row["headers"]).items()
        if not name.lower().startswith("nats-")
    }
    # The number must differ from earlier replays of the event, and be the same when a PubAck was lost.
    number = to_micros(row["replay_time"] or row["create_time"])
    own = {
        "ce-id": row["event_id"],
        "ce-source": row["source"],
        "Nats-Msg-Id": f"{row['event_id']}:replay:{number}",
    }
    return streams.Message(row["subject"], row["body"], {**kept, **own})


async def rebuild(url: str, stream: str | None = None) -> int:
    """Has every kept event of a stream (of every stream, by default) sent again. Returns how many."""
    async with _connection(url) as connection, connection.transaction():
        # The relay checks its token before it marks: with a new one it drops what it has in hand.
        await _LOCK_RELAY.fetch(connection)
        await _FREE_RELAY.execute(connection)
        if stream is None:
            return await _FORGET_ALL.execute(connection)
        return await _FORGET.execute(connection, lost=stream)


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[Connection]:
    """A connection without the service's timeouts: 30 days of events take longer than a call may."""
    connection = await asyncpg.connect(
        url, timeout=CONNECT_TIMEOUT, server_settings={"application_name": "loyalty"}
    )
    try:
        yield connection
    finally:
        await connection.close()
