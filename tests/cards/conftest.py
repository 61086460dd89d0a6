"""A real database with the tables of the service, as its own role sees it; houses that run the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from services.cards.__main__ import SCHEMA
from services.cards.audit import audit
from services.chassis.database import Database
from services.cli.house import House
from services.cli.servers import Postgres
from tests.conftest import NOON, OpenHouse, a_folder
from tests.database import stop_job
from tests.houses import by_front, proved
from tests.schema import serving
from tests.support import Cards

# A house whose books must close in the end.
sound = partial(proved, "cards", audit)


@pytest.fixture(scope="session")
def cards_server() -> Iterator[Postgres]:
    """A server with a migrated database `cards`, which belongs to `cards_owner` and is served as `cards`."""
    with serving("cards", SCHEMA) as server:
        yield server


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


@pytest.fixture(scope="module")
def front() -> str:
    """One is enough: both are the chassis's, and points proves both."""
    return "grpcio"


@pytest.fixture(scope="session")
def houses(open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """The houses that modules share, by front."""
    with by_front("cards", audit, open_house) as houses:
        yield houses


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
