"""Events leave only if their data commits: rows written with the change, sent by a relay afterwards.

The relay takes what is unsent in the order of `position`; there is no watermark to skip or stall at.
A position is drawn after the rows that order it are locked, so a member's events appear in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from services.chassis.clock import wall
from services.chassis.database import Connection, Insert, Row, Statement, rows_of
from services.chassis.errors import FailedPrecondition
from services.chassis.ids import bucket, new_id
from services.chassis.timestamps import timestamp

MAX_BODY = 512 * 1024  # bytes; NATS takes 1 MiB, and nothing may block the relay


class EventTooLarge(FailedPrecondition):
    """The event would be larger than the stream takes."""


@dataclass(frozen=True, slots=True)
class Event:
    """A fact to announce: `stream`, message name, the entity whose order matters, and the message's bytes."""

    stream: str
    subject: str
    entity_key: str
    body: bytes
    event_id: str
    traceparent: str


def event(stream: str, subject: str, entity_key: str, body: bytes, traceparent: str) -> Event:
    """An event with a fresh id, part of the trace that caused it. Raises EventTooLarge."""
    if len(body) > MAX_BODY:
        raise EventTooLarge(bytes=len(body), limit=MAX_BODY)
    return Event(stream, subject, entity_key, body, new_id("evt"), traceparent)


@dataclass(frozen=True, slots=True)
class About:
    """What every event begins with. `version` counts the events of what it is about, `entity_key`."""

    entity_key: str
    occur_time: datetime
    epoch: int
    version: int
    traceparent: str


Make = Callable[[About, Any], Event]
"""Makes an event of a fact."""


def announcement(
    stream: str, about: About, kind: type[Message], /, *, names: str = "member_id", **fields: Any
) -> Event:
    """An event about a member, or what else the field of these `names` says; `fields` are the others.

    Raises EventTooLarge.
    """
    message = kind(
        **{names: about.entity_key},
        occur_time=timestamp(about.occur_time),
        epoch=about.epoch,
        version=about.version,
        **fields,
    )
    name = kind.DESCRIPTOR.full_name
    return event(stream, name, about.entity_key, message.SerializeToString(), about.traceparent)


POSITION = "outbox_position"


def outbox_tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table]:
    """The outbox, and the stream messages that are still to be erased for a member who left."""
    position = sa.Sequence(POSITION, metadata=metadata, cache=1)
    outbox = sa.Table(
        "outbox",
        metadata,
        sa.Column(
            "position", sa.BigInteger, position, server_default=position.next_value(), primary_key=True
        ),
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("entity_key", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("traceparent", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("erased", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("stream_seq", sa.BigInteger),
        sa.CheckConstraint(f"octet_length(body) <= {MAX_BODY}", name="outbox_body_size"),
    )
    sa.Index("outbox_unsent", outbox.c.position, postgresql_where=outbox.c.sent_at.is_(None))
    sa.Index("outbox_entity", outbox.c.bucket, outbox.c.entity_key)
    erasures = sa.Table(
        "stream_erasures",
        metadata,
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("stream_seq", sa.BigInteger, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
    )
    return outbox, erasures


class Outbox:
    """The outbox of one service, as its transactions see it.

    `carrying` are the events on which something travels that is nowhere else meanwhile: erasing a member
    leaves them, and they age out.
    """

    def __init__(self, outbox: sa.Table, erasures: sa.Table, carrying: Sequence[str] = ()) -> None:
        self._add = Insert(
            outbox,
            *("bucket", "entity_key", "stream", "subject", "event_id", "body", "traceparent", "create_time"),
        )
        mine = (outbox.c.bucket == sa.bindparam("b"), outbox.c.entity_key == sa.bindparam("entity"))
        self._erase = Statement(
            sa.update(outbox)
            .where(*mine, sa.not_(outbox.c.erased))
            .where(*(outbox.c.subject != sa.literal_column(f"'{name}'") for name in carrying))
            .values(erased=True, body=b"")
            .returning(outbox.c.stream, outbox.c.stream_seq, outbox.c.event_id)
        )
        given = rows_of(stream=sa.Text, stream_seq=sa.BigInteger, event_id=sa.Text)
        self._erase_later = Statement(
            sa.dialects.postgresql.insert(erasures)
            .from_select(
                ["stream", "stream_seq", "event_id"],
                sa.select(given.c.stream, given.c.stream_seq, given.c.event_id),
            )
            .on_conflict_do_nothing()
        )

    async def add(self, connection: Connection, events: Sequence[Event], at: datetime | None = None) -> None:
        """Writes events in the order given; `at` (wall time) is when they were made."""
        made = at or wall()
        await self._add.rows(
            connection,
            [
                (
                    bucket(e.entity_key),
                    e.entity_key,
                    e.stream,
                    e.subject,
                    e.event_id,
                    e.body,
                    e.traceparent,
                    made,
                )
                for e in events
            ],
        )

    async def erase(self, connection: Connection, entity_key: str) -> int:
        """Blanks an entity's events and has their copies in the streams deleted. Returns how many."""
        rows = await self._erase.fetch(connection, b=bucket(entity_key), entity=entity_key)
        await self.erase_later(connection, rows)
        return len(rows)

    async def erase_later(self, connection: Connection, messages: Sequence[Row]) -> None:
        """Has stream messages deleted, by `stream`, `stream_seq` (none: it is not there yet), `event_id`."""
        there = [
            (m["stream"], m["stream_seq"], m["event_id"]) for m in messages if m["stream_seq"] is not None
        ]
        await self._erase_later.execute_rows(connection, there)
