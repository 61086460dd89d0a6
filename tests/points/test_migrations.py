"""The schema that migrations make is the one in code, and its SQL is safe to run under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from services.chassis import migrations
from services.cli.servers import Postgres
from services.points import tables
from services.points.__main__ import SCHEMA
from tests.schema import passes_the_linter


@pytest.fixture(scope="module")
def postgres(data: Path) -> Iterator[Postgres]:
    with Postgres.start(data / "postgres") as server:
        yield server


def test_the_migrated_database_is_what_the_code_declares(postgres: Postgres) -> None:
    migrations.upgrade(postgres.url(), SCHEMA.migrations, tables.metadata, [])
    assert migrations.drift(postgres.url(), tables.metadata) == []


def test_the_service_role_cannot_change_a_ledger_fact(postgres: Postgres) -> None:
    asyncio.run(_run(postgres.url(), "CREATE ROLE points LOGIN PASSWORD 'points'"))
    migrations.upgrade(postgres.url(), SCHEMA.migrations, tables.metadata, tables.grants("points"))
    service = postgres.url(user="points", password="points")  # noqa: S106 - of this test alone
    asyncio.run(_run(service, "UPDATE transactions SET source = NULL"))
    for forbidden in (
        "UPDATE transactions SET available = 1",
        "UPDATE transactions SET sold = NULL",
        "UPDATE transactions SET reverses_transaction_id = NULL",
        "DELETE FROM transactions",
        "TRUNCATE transactions",
        "UPDATE meta SET epoch = 2",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            asyncio.run(_run(service, forbidden))


async def _run(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def test_the_migrations_pass_the_linter(tmp_path: Path) -> None:
    passes_the_linter(SCHEMA, tmp_path)
