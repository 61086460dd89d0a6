"""The programme's versions."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from services.chassis.database import Connection, Row, Statement
from services.points import tables as t
from services.points.store.reads import unless_null


def head_version_at(at: sa.ColumnElement[datetime]) -> sa.ScalarSelect[int]:
    """The version in force at an instant, as part of a statement."""
    return (
        sa.select(t.programmes.c.version)
        .where(t.programmes.c.effective_time <= at)
        .order_by(t.programmes.c.version.desc())
        .limit(sa.literal_column("1"))
        .scalar_subquery()
    )


_HEAD = Statement(sa.select(head_version_at(sa.bindparam("at", type_=t.INSTANT))))
_PROGRAMME = Statement(sa.select(t.programmes).where(t.programmes.c.version == sa.bindparam("v")))
_PROGRAMMES = Statement(
    sa.select(t.programmes)
    .where(unless_null("before", sa.BigInteger, lambda before: t.programmes.c.version < before))
    .order_by(t.programmes.c.version.desc())
    .limit(sa.bindparam("most", type_=sa.BigInteger))
)
_LAST_PROGRAMME = Statement(sa.select(t.programmes).order_by(t.programmes.c.version.desc()).limit(1))
_LOCK_PROGRAMMES = Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("programmes"))))
_ADD_PROGRAMME = Statement(
    sa.insert(t.programmes).values({c.name: sa.bindparam(c.name) for c in t.programmes.c})
)
_ANY_TRANSACTION = Statement(sa.select(sa.exists(sa.select(sa.literal(1)).select_from(t.transactions))))


async def head_version(connection: Connection, at: datetime) -> int | None:
    """The version of the programme in force at `at`."""
    version: int | None = await _HEAD.fetch_value(connection, at=at)
    return version


async def programme(connection: Connection, version: int) -> Row | None:
    """One version of the programme."""
    return await _PROGRAMME.fetch_one(connection, v=version)


async def programme_page(connection: Connection, before: int | None, most: int) -> list[Row]:
    """Versions of the programme, newest first."""
    return await _PROGRAMMES.fetch(connection, before=before, most=most)


async def lock_last_programme(connection: Connection) -> Row | None:
    """The newest version; nobody else puts one until commit."""
    await _LOCK_PROGRAMMES.fetch(connection)
    return await _LAST_PROGRAMME.fetch_one(connection)


async def add_programme(
    connection: Connection,
    *,
    version: int,
    effective_time: datetime,
    create_time: datetime,
    author: str,
    body: bytes,
) -> None:
    """Keeps a version of the programme."""
    await _ADD_PROGRAMME.execute(
        connection,
        version=version,
        effective_time=effective_time,
        create_time=create_time,
        author=author,
        body=body,
    )


async def any_transaction(connection: Connection) -> bool:
    """Whether anything was ever posted."""
    return bool(await _ANY_TRANSACTION.fetch_value(connection))
