"""What the audits of all services share: the report, the pass over the members, and what a stream carries.

One snapshot, one pass per table: each is read in the order of the members, and a member's rows of all
tables are checked together, so memory does not grow with the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import nats
import sqlalchemy as sa
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError

from services.chassis.clock import wall
from services.chassis.database import Connection, Database, Row, Statement
from services.chassis.ids import BUCKETS
from services.chassis.retention import OUTBOX_KEPT

SHOWN = 5  # offending rows that a check names
PREFETCH = 2_000  # rows a round trip
READ_TIMEOUT = 600.0  # seconds that PostgreSQL may sort before the first rows come
STEP = 1_000  # members between two reports of progress
QUIET = 2.0  # seconds without a message after which a stream counts as read
MARGIN = timedelta(days=1)  # by which an event may outlive the kept range before its absence counts
STREAM_CHECK = "every event that was sent is in the stream as it was written"
_AFTER_ALL = (BUCKETS, "")
_UNREADABLE = (KeyError, StopIteration, TypeError, ValueError, DecodeError)

Progress = Callable[[str, int], None]
"""Hears what is gone through, and how many of it are done."""


@dataclass
class Report:
    """What an audit found: per check what it means, how many rows it saw, and the first offenders."""

    lines: list[tuple[str, int, list[str]]] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether the books close."""
        return not any(offenders for _, _, offenders in self.lines)


class Findings:
    """What an audit has seen so far, by check."""

    def __init__(self, checks: Mapping[str, str], bodies: Mapping[str, bytes] | None = None) -> None:
        """`checks` say what each means; `bodies` is what the stream carries, if that is looked at."""
        self._checks = dict(checks) if bodies is None else {**checks, "stream": STREAM_CHECK}
        self._bodies = bodies
        self.now = wall()
        self.kept_since = self.now - OUTBOX_KEPT + MARGIN
        """Events of this instant and later are all there."""
        self.seen = dict.fromkeys(self._checks, 0)
        """Rows that were looked at."""
        self._offenders: dict[str, list[str]] = {name: [] for name in self._checks}

    def expect(self, check: str, holds: bool, who: str, what: str) -> None:
        """Notes an offender unless something holds."""
        if not holds and len(self._offenders[check]) < SHOWN:
            self._offenders[check].append(f"{who}: {what}")

    @contextmanager
    def reading(self, who: str) -> Iterator[None]:
        """Checks what is of somebody: forged rows need not have their form, and are noted then."""
        try:
            yield
        except _UNREADABLE as error:
            self.expect("members", False, who, f"has a row that cannot be read: {error!r}")

    def sent(self, who: str, row: Row) -> None:
        """Looks an event up in the stream, if it was sent."""
        if self._bodies is None or row["sent_at"] is None:
            return
        self.seen["stream"] += 1
        there = self._bodies.get(row["event_id"]) == _digest(row["subject"], row["body"])
        self.expect("stream", there, who, f"{row['subject']} {row['event_id']} is not there so")

    def unbroken(self, versions: Sequence[int], last: int, made: datetime | None) -> bool:
        """Whether the events about something that are still kept are numbered without a gap, up to the last.

        They begin with the first if `made`, when the thing was made, says that all of them are kept.
        """
        first = versions[0] if versions else last + 1
        since = 1 if made is not None and made >= self.kept_since else first
        return list(versions) == list(range(since, last + 1))

    def report(self, totals: Mapping[str, int]) -> Report:
        """What there is to say."""
        lines = [(meaning, self.seen[name], self._offenders[name]) for name, meaning in self._checks.items()]
        return Report(lines, dict(totals))


@asynccontextmanager
async def snapshot(url: str) -> AsyncIterator[Connection]:
    """One instant of the whole of a service's database. Raises DatabaseUnavailable."""
    database = await Database.open(url, size=2, name="audit", command_timeout=READ_TIMEOUT)
    try:
        async with database.snapshot() as connection:
            yield connection
    finally:
        await database.close()


async def every_row(
    connection: Connection, checks: Iterable[tuple[Statement, Callable[[Row], None]]]
) -> None:
    """Checks each row of statements that take no arguments."""
    for query, check in checks:
        async for row in connection.cursor(query.text, prefetch=PREFETCH):
            check(row)


@dataclass(frozen=True, slots=True)
class Rows:
    """How a table's rows are read: which columns, all by default, and in which order of a member's."""

    table: sa.Table
    columns: Sequence[sa.ColumnElement[Any]] = ()
    order: Sequence[sa.ColumnElement[Any]] = ()
    where: sa.ColumnElement[bool] | None = None
    member: str = "member_id"
    """The column that says whose they are."""
    bucketed: bool = True
    """Whether they are in the order of buckets; what is not a member's is all as in the first."""

    @property
    def query(self) -> str:
        """By bucket and member."""
        key = self.table.c[self.member].label("member_id")
        chosen = self.columns or [c for c in self.table.c if c.name not in ("bucket", self.member)]
        bucket = self.table.c.bucket if self.bucketed else sa.literal_column("0").label("bucket")
        query = sa.select(bucket, key, *chosen)
        if self.where is not None:
            query = query.where(self.where)
        first = [self.table.c.bucket] if self.bucketed else []
        return Statement(query.order_by(*first, sa.collate(key, "C"), *self.order)).text


async def by_member(
    connection: Connection,
    members: Rows,
    others: Mapping[str, Rows],
    *,
    stray: Callable[[str, str], None],
    progress: Progress | None,
    name: str = "members",
) -> AsyncIterator[tuple[Row, dict[str, list[Row]]]]:
    """Each member with its rows of the others, in the order of bucket and member.

    `stray` hears of rows of nobody: of which table, and for whom. `name` is what `progress` calls members.
    """
    streams = {
        table: _ByMember(connection, rows.query, partial(stray, rows.table.name))
        for table, rows in others.items()
    }
    done = 0
    async for member in connection.cursor(members.query, prefetch=PREFETCH):
        key = (member["bucket"], member["member_id"])
        yield member, {table: await rows.of(key) for table, rows in streams.items()}
        done += 1
        if progress and done % STEP == 0:
            progress(name, done)
    for rows in streams.values():
        await rows.of(_AFTER_ALL)


class _ByMember:
    """Hands out the rows of one member after the other from a table read in order.

    `stray` hears of members who have rows here, and are not asked for.
    """

    def __init__(self, connection: Connection, query: str, stray: Callable[[str], None]) -> None:
        self._stray = stray
        self._rows = aiter(connection.cursor(query, prefetch=PREFETCH))
        self._next: Row | None = None
        self._started = False

    async def of(self, key: tuple[int, str]) -> list[Row]:
        """The rows of a member; members must be asked for in order."""
        if not self._started:
            self._started = True
            await self._advance()
        found: list[Row] = []
        while self._next is not None and (self._next["bucket"], self._next["member_id"]) <= key:
            if (self._next["bucket"], self._next["member_id"]) == key:
                found.append(self._next)
            else:
                self._stray(self._next["member_id"])
            await self._advance()
        return found

    async def _advance(self) -> None:
        self._next = await anext(self._rows, None)


async def published(url: str, stream: str, subject: str) -> AsyncIterator[Msg]:
    """What a stream carries of a subject, from its beginning until nothing more comes."""
    client = await nats.connect(url)
    try:
        subscription = await client.jetstream().subscribe(subject, stream=stream, ordered_consumer=True)
        while True:
            try:
                message = await subscription.next_msg(timeout=QUIET)
            except NatsTimeoutError:
                await subscription.unsubscribe()  # else its watch over gaps outlives the connection
                return
            if message.data:
                yield message
    finally:
        await client.close()


async def carried(url: str, stream: str, subject: str) -> dict[str, bytes]:
    """A hash of what a stream carries of a subject, by the event's id."""
    return {
        (message.headers or {}).get("ce-id", ""): _digest(message.subject, message.data)
        async for message in published(url, stream, subject)
    }


def _digest(subject: str, body: bytes) -> bytes:
    return hashlib.blake2b(subject.encode() + b"\0" + body, digest_size=16).digest()
