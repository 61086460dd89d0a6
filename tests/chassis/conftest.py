"""A real database with the tables of the chassis, as the points service has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services import points
from services.chassis import migrations
from services.chassis.database import Database
from services.cli.servers import Postgres
from services.points import tables
from tests.conftest import a_folder


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where a migrated database is, which modules share: a test knows its rows by names of its own."""
    with a_folder() as data, Postgres.start(data / "postgres") as server:
        folder = Path(str(points.__file__)).parent / "migrations"
        migrations.upgrade(server.url(), folder, tables.metadata, grants=[])
        yield server.url()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """A small pool on it."""
    database = await Database.open(url, size=4, name="test")
    yield database
    await database.close()
