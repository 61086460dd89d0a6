"""A real database with the tables of the service, as its own role sees it; houses that run the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path

import asyncpg
import pytest

from services.chassis import migrations
from services.chassis.database import Database
from services.cli.house import House
from services.cli.servers import Postgres
from services.groups import tables
from services.groups.audit import audit
from tests.conftest import NOON, OpenHouse, a_folder
from tests.groups.calls import Maker
from tests.support import Groups, defects

MIGRATIONS = Path(tables.__file__).parent / "migrations"


@pytest.fixture(scope="session")
def groups_server() -> Iterator[Postgres]:
    """A server with a migrated database `groups`, owned by `groups_owner` and served as `groups`."""
    with a_folder() as data, Postgres.start(data / "postgres", settings={"fsync": "off"}) as server:
        asyncio.run(_make(server.url()))
        migrations.upgrade(owner_url(server), MIGRATIONS, tables.metadata, tables.grants("groups"))
        yield server


async def _make(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for role in ("groups_owner", "groups"):
            await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
        await connection.execute("CREATE DATABASE groups OWNER groups_owner")
    finally:
        await connection.close()


def owner_url(server: Postgres) -> str:
    """The database as the owner of its tables, who is no superuser."""
    return server.url("groups", "groups_owner", "groups_owner")


@pytest.fixture(scope="session")
def groups_url(groups_server: Postgres) -> str:
    """The database as the service's role; modules share it: a test knows its rows by names of its own."""
    return groups_server.url("groups", "groups", "groups")


@pytest.fixture
async def database(groups_url: str) -> AsyncIterator[Database]:
    """A small pool on it."""
    database = await Database.open(groups_url, size=4, name="test")
    yield database
    await database.close()


@pytest.fixture(scope="session")
def houses(open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """The houses that modules share, by front; each is opened once somebody wants it."""
    with a_folder() as folder, ExitStack() as stack:

        @cache
        def on(front: str) -> House:
            house = open_house(folder / front, ("groups",), test_clock=NOON, front=front)
            return stack.enter_context(sound(house))

        yield on


@contextmanager
def sound(opened: AbstractContextManager[House]) -> Iterator[House]:
    """A house for as long as the block runs, whose books must close after all that was done in it."""
    with opened as house:
        yield house
        assert not defects(house)
        report = asyncio.run(audit(house.database_url("groups"), stream_url=house.nats.url))
        assert report.clean, report.lines


@pytest.fixture(scope="module")
def groups(house: House) -> Iterator[Groups]:
    """A real channel into the house."""
    with Groups(house) as groups:
        yield groups


@pytest.fixture
def make(groups: Groups) -> Iterator[Maker]:
    """Puts schemes for the time of a test: only so many may take members at once."""
    maker = Maker(groups)
    yield maker
    maker.withdraw()
