"""A service's tables in a real database, as its own role sees them, and what holds for every service's."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from services.chassis import migrations
from services.chassis.database import Connection
from services.chassis.ids import bucket
from services.chassis.process import Schema
from services.cli.servers import Postgres
from tests.conftest import NOON, a_folder
from tests.support import fresh

SQUAWK = Path(sys.executable).parent / "squawk"
# The first revision makes every table: nothing can be locked or rewritten that is not there yet.
# Buckets and versions of a hash are small by nature; the migrator sets a lock timeout; the one varchar is
# in the table that Alembic makes for itself.
EXCLUDED = (
    "prefer-robust-stmts,require-timeout-settings,require-concurrent-index-creation,"
    "prefer-bigint-over-smallint,prefer-text-field"
)
NOTHING: Mapping[type[Any], Any] = {
    sa.Text: "",
    sa.SmallInteger: 0,
    sa.BigInteger: 0,
    sa.Double: 0.0,
    sa.Boolean: False,
    sa.Date: date(2026, 6, 15),
    sa.LargeBinary: b"",
    sa.dialects.postgresql.JSONB: "{}",
    sa.dialects.postgresql.TIMESTAMP: NOON,
}


# --- databases ----------------------------------------------------------------------------------------


@contextmanager
def serving(service: str, schema: Schema) -> Iterator[Postgres]:
    """A server with a migrated database of a service, which its `_owner` owns and its own role is served."""
    with a_folder() as data, Postgres.start(data / "postgres", settings={"fsync": "off"}) as server:
        for role in (f"{service}_owner", service):
            asyncio.run(_execute(server.url(), f"CREATE ROLE {role} LOGIN PASSWORD '{role}'"))
        make_database(server, service, schema, service)
        yield server


def make_database(server: Postgres, service: str, schema: Schema, name: str = "") -> str:
    """Makes a migrated database on such a server, by default one of the test's own; its URL."""
    name = name or fresh("own").replace("-", "_")
    asyncio.run(_execute(server.url(), f"CREATE DATABASE {name} OWNER {service}_owner"))
    owner = owner_url(server, service, name)
    migrations.upgrade(owner, schema.migrations, schema.metadata, schema.grants(service))
    return server.url(name, service, service)


def owner_url(server: Postgres, service: str, name: str = "") -> str:
    """A database as the owner of its tables, who is no superuser; by default the service's first."""
    return server.url(name or service, f"{service}_owner", f"{service}_owner")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


# --- what holds for every service ---------------------------------------------------------------------


def passes_the_linter(schema: Schema, folder: Path, excluded: str = EXCLUDED) -> None:
    """Asserts that the migrations are safe to run under load; `folder` is the test's own."""
    script = folder / "migrations.sql"
    script.write_text(migrations.sql(schema.migrations, schema.metadata))
    command = [str(SQUAWK), "--pg-version", "18.0", "--exclude", excluded, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def begins_with_its_bucket(table: sa.Table) -> None:
    """Asserts that the key of a table about members begins with the member's; an event's is its place."""
    key = [column.name for column in table.primary_key.columns]
    assert table.name == "outbox" or (key[0] == "bucket" and key[1] in ("member_id", "scope"))


def begins_with_its_key(table: sa.Table, changing: Collection[str]) -> None:
    """Asserts that the columns of a key come first, and that none of them may change."""
    key = [column.name for column in table.primary_key.columns]
    assert [column.name for column in table.columns][: len(key)] == key
    assert not set(changing) & set(key)


def says_one_of(column: sa.Column[str], words: set[StrEnum]) -> None:
    """Asserts that a column takes these words, and no others."""
    table = column.table
    assert isinstance(table, sa.Table)
    checks = [c for c in table.constraints if isinstance(c, sa.CheckConstraint)]
    check = next(c for c in checks if c.name == f"{table.name}_{column.name}")
    assert set(re.findall(r"'(\w+)'", str(check.sqltext))) == words


async def changes_nothing_but(connection: Connection, table: sa.Table, changing: Collection[str]) -> None:
    """Asserts that the service's role may change these columns of a table alone."""
    for column in table.columns:
        value = column.name if column.computed is None else "DEFAULT"
        statement = f"UPDATE {table.name} SET {column.name} = {value} WHERE false"  # noqa: S608 - our own
        await _may(connection, statement, allowed=column.name in changing)


async def drops_nothing_but(connection: Connection, table: sa.Table, going: Collection[str]) -> None:
    """Asserts that the service's role may delete rows of a table if it is one of these, and never all."""
    await _may(connection, f"TRUNCATE {table.name}", allowed=False)
    delete = f"DELETE FROM {table.name} WHERE false"  # noqa: S608 - our own
    await _may(connection, delete, allowed=table.name in going)


async def cannot_turn_the_epoch(connection: Connection) -> None:
    """Asserts that the service's role may not say that the database was restored."""
    await _may(connection, "UPDATE meta SET epoch = 2", allowed=False)


async def _may(connection: Connection, statement: str, *, allowed: bool) -> None:
    if allowed:
        await connection.execute(statement)
    else:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)


# --- rows that may not be -----------------------------------------------------------------------------


async def put(connection: Connection, table: sa.Table, **given: Any) -> None:
    """Adds a row, with what is not given as nothing."""
    row = {
        column.name: None if column.nullable else NOTHING.get(type(column.type))
        for column in table.columns
        if column.name != "bucket" and column.computed is None
    }
    row |= given
    if "bucket" in table.c:
        row["bucket"] = bucket(row["member_id"])
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    statement = f"INSERT INTO {table.name} ({', '.join(row)}) VALUES ({places})"  # noqa: S608 - our own
    await connection.execute(statement, *row.values())


@contextmanager
def violated(kind: type[asyncpg.IntegrityConstraintViolationError], name: str) -> Iterator[None]:
    """The block breaks this constraint."""
    with pytest.raises(kind) as broken:
        yield
    assert broken.value.constraint_name == name
