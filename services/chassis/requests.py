"""First answers, for writes whose answer nothing else remembers (docs: the contract's Idempotency)."""

from __future__ import annotations

import hashlib
from datetime import datetime

import sqlalchemy as sa
from google.protobuf.message import Message

from services.chassis.database import Connection, Statement
from services.chassis.errors import RequestIdReused
from services.chassis.ids import bucket


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
