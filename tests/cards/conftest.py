"""A real database with the tables of the service, as its own role sees it; houses that run the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path

import asyncpg
import pytest

from services.cards import tables
from services.cards.audit import audit
from services.chassis import migrations
from services.chassis.database import Database
from services.cli.house import House
from services.cli.servers import Postgres
from tests.conftest import NOON, OpenHouse, a_folder
from tests.database import stop_job
from tests.support import Cards, defects

MIGRATIONS = Path(tables.__file__).parent / "migrations"


@pytest.fixture(scope="session")
def cards_server() -> Iterator[Postgres]:
    """A server with a migrated database `cards`, which belongs to `cards_owner` and is served as `cards`."""
    with a_folder() as data, Postgres.start(data / "postgres", settings={"fsync": "off"}) as server:
        asyncio.run(_make(server.url()))
        migrations.upgrade(owner_url(server), MIGRATIONS, tables.metadata, tables.grants("cards"))
        yield server


async def _make(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for role in ("cards_owner", "cards"):
            await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
        await connection.execute("CREATE DATABASE cards OWNER cards_owner")
    finally:
        await connection.close()


def owner_url(server: Postgres) -> str:
    """The database as the owner of its tables, who is no superuser."""
    return server.url("cards", "cards_owner", "cards_owner")


@pytest.fixture(scope="session")
def cards_url(cards_server: Postgres) -> str:
    """The database as the service's role; modules share it: a test knows its rows by names of its own."""
    return cards_server.url("cards", "cards", "cards")


@pytest.fixture
async def database(cards_url: str) -> AsyncIterator[Database]:
    """A small pool on it."""
    database = await Database.open(cards_url, size=4, name="test")
    yield database
    await database.close()


@pytest.fixture(scope="session")
def houses(open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """The houses that modules share, by front; each is opened once somebody wants it."""
    with a_folder() as folder, ExitStack() as stack:

        @cache
        def on(front: str) -> House:
            house = open_house(folder / front, ("cards",), test_clock=NOON, front=front)
            return stack.enter_context(sound(house))

        yield on


@contextmanager
def sound(opened: AbstractContextManager[House]) -> Iterator[House]:
    """A house for as long as the block runs, whose books must close after all that was done in it."""
    with opened as house:
        yield house
        assert not defects(house)
        report = asyncio.run(audit(house.database_url("cards"), stream_url=house.nats.url))
        assert report.clean, report.lines


@pytest.fixture(scope="module")
def cards(house: House) -> Iterator[Cards]:
    """A real channel into the house."""
    with Cards(house) as cards:
        yield cards


@pytest.fixture(scope="session")
def later(open_house: OpenHouse) -> Iterator[Cards]:
    """A channel into a house whose clock the tests move on, and where only calls post what is due.

    Modules share it: a test starts from the time that it finds, with members and products of its own.
    """
    with (
        a_folder() as folder,
        sound(open_house(folder, ("cards",), test_clock=NOON)) as house,
        Cards(house) as cards,
    ):
        stop_job(house, "cards", "settle")
        yield cards
