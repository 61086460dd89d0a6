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
from services.referral import tables
from services.referral.audit import audit
from tests.conftest import NOON, OpenHouse, a_folder
from tests.support import Referral, defects

MIGRATIONS = Path(tables.__file__).parent / "migrations"


@pytest.fixture(scope="session")
def referral_server() -> Iterator[Postgres]:
    """A server with a migrated database `referral`, owned by `referral_owner` and served as `referral`."""
    with a_folder() as data, Postgres.start(data / "postgres", settings={"fsync": "off"}) as server:
        asyncio.run(_make(server.url()))
        migrations.upgrade(owner_url(server), MIGRATIONS, tables.metadata, tables.grants("referral"))
        yield server


async def _make(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for role in ("referral_owner", "referral"):
            await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
        await connection.execute("CREATE DATABASE referral OWNER referral_owner")
    finally:
        await connection.close()


def owner_url(server: Postgres) -> str:
    """The database as the owner of its tables, who is no superuser."""
    return server.url("referral", "referral_owner", "referral_owner")


@pytest.fixture(scope="session")
def referral_url(referral_server: Postgres) -> str:
    """The database as the service's role; modules share it: a test knows its rows by names of its own."""
    return referral_server.url("referral", "referral", "referral")


@pytest.fixture
async def database(referral_url: str) -> AsyncIterator[Database]:
    """A small pool on it."""
    database = await Database.open(referral_url, size=4, name="test")
    yield database
    await database.close()


@pytest.fixture(scope="module")
def front() -> str:
    """One is enough: both are the chassis's, and three services prove both."""
    return "native"


@pytest.fixture(scope="session")
def houses(open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """The houses that modules share, by front; each is opened once somebody wants it."""
    with a_folder() as folder, ExitStack() as stack:

        @cache
        def on(front: str) -> House:
            house = open_house(folder / front, ("referral",), test_clock=NOON, front=front)
            return stack.enter_context(sound(house))

        yield on


@contextmanager
def sound(opened: AbstractContextManager[House]) -> Iterator[House]:
    """A house for as long as the block runs, whose books must close after all that was done in it."""
    with opened as house:
        yield house
        assert not defects(house)
        report = asyncio.run(audit(house.database_url("referral"), stream_url=house.nats.url))
        assert report.clean, [line for line in report.lines if line[2]]


@pytest.fixture(scope="module")
def referral(house: House) -> Iterator[Referral]:
    """A real channel into the house."""
    with Referral(house) as referral:
        yield referral
