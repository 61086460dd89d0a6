"""The schema that migrations make is the one in code, and its SQL is safe to run under load."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from services.chassis import migrations
from services.cli.servers import Postgres
from services.points import tables

FOLDER = Path(tables.__file__).parent / "migrations"
SQUAWK = Path(sys.executable).parent / "squawk"
# The first revision makes every table: nothing can be locked or rewritten that is not there yet.
# Buckets and versions of a hash are small by nature; the migrator sets a lock timeout; the one varchar is
# in the table that Alembic makes for itself.
EXCLUDED = (
    "prefer-robust-stmts,require-timeout-settings,require-concurrent-index-creation,"
    "prefer-bigint-over-smallint,prefer-text-field"
)


@pytest.fixture(scope="module")
def postgres(data: Path) -> Iterator[Postgres]:
    with Postgres.start(data / "postgres") as server:
        yield server


def test_the_migrated_database_is_what_the_code_declares(postgres: Postgres) -> None:
    migrations.upgrade(postgres.url(), FOLDER, tables.metadata, [])
    assert migrations.drift(postgres.url(), tables.metadata) == []


def test_the_service_role_cannot_change_a_ledger_fact(postgres: Postgres) -> None:
    asyncio.run(_run(postgres.url(), "CREATE ROLE points LOGIN PASSWORD 'points'"))
    migrations.upgrade(postgres.url(), FOLDER, tables.metadata, tables.grants("points"))
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
    script = tmp_path / "points.sql"
    script.write_text(migrations.sql(FOLDER, tables.metadata))
    result = subprocess.run(
        [SQUAWK, "--pg-version", "18.0", "--exclude", EXCLUDED, script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
