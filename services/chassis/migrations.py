"""Schema changes: Alembic, one line of revisions per service, one migrator at a time."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine

LOCK = 0x6C6F79616C  # the advisory lock that migrators of one database queue for
LOCK_TIMEOUT = "5s"  # a change that cannot get its lock fails instead of stopping the traffic behind it


def _config(folder: Path, **attributes: Any) -> Config:
    config = Config(output_buffer=attributes.pop("buffer", None))
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes.update(attributes)
    return config


def _engine_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


def upgrade(url: str, folder: Path, metadata: sa.MetaData, grants: Sequence[str]) -> None:
    """Brings a database to the newest revision, then runs the grants."""

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        connection.execute(sa.text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.commit()
        command.upgrade(_config(folder, connection=connection, metadata=metadata), "head")
        for grant in grants:
            connection.execute(sa.text(grant))

    asyncio.run(_run(url, work))


def drift(url: str, metadata: sa.MetaData) -> list[Any]:
    """Differences between the database and the tables in code; none is right."""
    found: list[Any] = []

    def work(connection: sa.Connection) -> None:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        found.extend(compare_metadata(context, metadata))

    asyncio.run(_run(url, work))
    return found


def sql(folder: Path, metadata: sa.MetaData) -> str:
    """All revisions as one SQL script, for review and for linters."""
    buffer = io.StringIO()
    command.upgrade(_config(folder, metadata=metadata, buffer=buffer), "head", sql=True)
    return buffer.getvalue()


def head(folder: Path) -> str | None:
    """The newest revision."""
    return ScriptDirectory.from_config(_config(folder)).get_current_head()


async def _run(url: str, work: Any) -> None:
    engine = create_async_engine(_engine_url(url))
    try:
        async with engine.connect() as connection:
            await connection.run_sync(work)
            await connection.commit()
    finally:
        await engine.dispose()


def configure(context: Any) -> None:
    """The whole of a service's `migrations/env.py`."""
    attributes = context.config.attributes
    if context.is_offline_mode():
        context.configure(
            dialect_name="postgresql", target_metadata=attributes["metadata"], literal_binds=True
        )
    else:
        context.configure(
            connection=attributes["connection"],
            target_metadata=attributes["metadata"],
            transaction_per_migration=True,
        )
    with context.begin_transaction():
        context.run_migrations()
