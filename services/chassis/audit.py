"""What the audits of all services share: the report, a pass over the members, and what a stream carries.

One snapshot, one pass per table: each is read in the order of the members, and a member's rows of all
tables are checked together, so memory does not grow with the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import nats
import sqlalchemy as sa
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError

from services.chassis.database import Connection, Row, Statement
from services.chassis.ids import BUCKETS

SHOWN = 5  # offending rows that a check names
PREFETCH = 2_000  # rows a round trip
READ_TIMEOUT = 600.0  # seconds that PostgreSQL may sort before the first rows come
STEP = 1_000  # members between two reports of progress
QUIET = 2.0  # seconds without a message after which a stream counts as read
_AFTER_ALL = (BUCKETS, "")


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
    """What an audit has seen so far, by check. `checks` say what each means."""

    def __init__(self, checks: Mapping[str, str]) -> None:
        self._checks = checks
        self.seen = dict.fromkeys(checks, 0)
        """Rows that were looked at."""
        self._offenders: dict[str, list[str]] = {name: [] for name in checks}

    def expect(self, check: str, holds: bool, who: str, what: str) -> None:
        """Notes an offender unless something holds."""
        if not holds and len(self._offenders[check]) < SHOWN:
            self._offenders[check].append(f"{who}: {what}")

    def report(self, totals: Mapping[str, int]) -> Report:
        """What there is to say."""
        lines = [(meaning, self.seen[name], self._offenders[name]) for name, meaning in self._checks.items()]
        return Report(lines, dict(totals))


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
    connection: Connection, members: Rows, others: Mapping[str, Rows], stray: Callable[[str, str], None]
) -> AsyncIterator[tuple[Row, dict[str, list[Row]]]]:
    """Each member with its rows of the others, in the order of bucket and member.

    `stray` hears of rows of nobody: of which table, and for whom.
    """
    streams = {
        name: _ByMember(connection, rows.query, partial(stray, rows.table.name))
        for name, rows in others.items()
    }
    async for member in connection.cursor(members.query, prefetch=PREFETCH):
        key = (member["bucket"], member["member_id"])
        yield member, {name: await rows.of(key) for name, rows in streams.items()}
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
