"""First answers, for writes whose answer nothing else remembers (docs: the contract's Idempotency)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message

from services.chassis.auth import CALLER
from services.chassis.clock import Clock, wall
from services.chassis.database import Connection, Database, Statement, shielded
from services.chassis.errors import RequestIdReused
from services.chassis.ids import bucket

Answer = TypeVar("Answer", bound=Message)


def payload_hash(method: str, request: Message) -> bytes:
    """SHA-256 of the method and the request's known fields, so that a repeat is known for one."""
    request.DiscardUnknownFields()
    return hashlib.sha256(method.encode() + b"\0" + request.SerializeToString(deterministic=True)).digest()


def requests_table(metadata: sa.MetaData) -> sa.Table:
    """`scope` is the member, or the caller's subject for admin verbs."""
    return sa.Table(
        "requests",
        metadata,
        sa.Column("bucket", sa.SmallInteger, primary_key=True),
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("payload_hash", sa.LargeBinary, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    )


class Requests:
    """The stored answers of one service."""

    def __init__(self, table: sa.Table) -> None:
        key = [table.c[name] == sa.bindparam(name) for name in ("bucket", "scope", "request_id")]
        self._find = Statement(sa.select(table.c.payload_hash, table.c.answer).where(*key))
        self._keep = Statement(sa.insert(table).values({c.name: sa.bindparam(c.name) for c in table.c}))
        self._lock = Statement(
            sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(sa.bindparam("key"), 0)))
        )

    async def find(self, connection: Connection, scope: str, request_id: str, payload: bytes) -> bytes | None:
        """The first answer, or None; until commit nobody else can be answering the same request.

        Raises RequestIdReused if the request_id was used for another payload.
        """
        await self._lock.fetch(connection, key=f"{scope}\x1f{request_id}")
        row = await self._find.fetch_one(connection, bucket=bucket(scope), scope=scope, request_id=request_id)
        if row is None:
            return None
        if row["payload_hash"] != payload:
            raise RequestIdReused(request_id=request_id)
        answer: bytes = row["answer"]
        return answer

    async def keep(
        self,
        connection: Connection,
        scope: str,
        request_id: str,
        payload: bytes,
        *,
        answer: bytes,
        at: datetime,
    ) -> None:
        """Remembers the first answer."""
        await self._keep.execute(
            connection,
            bucket=bucket(scope),
            scope=scope,
            request_id=request_id,
            payload_hash=payload,
            answer=answer,
            create_time=at,
        )


class _Checked(Exception):
    """What was only to be checked is done, and taken back; carries what it would have been answered with."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


class Operators:
    """What operators ask of one service: each in a transaction of its own, which keeps its first answer."""

    def __init__(
        self, database: Database, clock: Clock, requests: Requests, service: str, wake: Callable[[], None]
    ) -> None:
        """`service` is the path of the methods, up to their names; `wake` tells the relay of new events."""
        self._database = database
        self._clock = clock
        self._requests = requests
        self._service = service
        self._wake = wake

    async def answer(
        self,
        method: str,
        request: Any,
        kind: type[Answer],
        work: Callable[[Connection, datetime], Awaitable[Answer]],
        *,
        scope: str = "",
        check: bool = False,
    ) -> Answer:
        """The first answer to a request of the caller, or of what `scope` names; `check` takes all back.

        Raises RequestIdReused, and what `work` raises.
        """
        payload, scope = payload_hash(self._service + method, request), scope or CALLER.get().subject

        async def once() -> Answer:
            async with self._database.begin() as connection:
                first = await self._requests.find(connection, scope, request.request_id, payload)
                if first is not None:
                    return kind.FromString(first)
                answer = await work(connection, self._clock.now())
                if check:
                    raise _Checked(answer)
                body = answer.SerializeToString(deterministic=True)
                await self._requests.keep(
                    connection, scope, request.request_id, payload, answer=body, at=wall()
                )
            self._wake()
            return answer

        try:
            return await shielded(once)
        except _Checked as checked:
            answer: Answer = checked.answer
            return answer
