"""A real database with the tables of the service, as its own role sees it; houses that run the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from services.chassis.database import Database
from services.cli.house import House
from services.cli.servers import Postgres
from services.groups.__main__ import SCHEMA
from services.groups.audit import audit
from tests.conftest import OpenHouse
from tests.groups.calls import Maker
from tests.houses import by_front, proved
from tests.schema import serving
from tests.support import Groups

# A house whose books must close in the end.
sound = partial(proved, "groups", audit)


@pytest.fixture(scope="session")
def groups_server() -> Iterator[Postgres]:
    """A server with a migrated database `groups`, owned by `groups_owner` and served as `groups`."""
    with serving("groups", SCHEMA) as server:
        yield server


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


@pytest.fixture(scope="module")
def front() -> str:
    """One is enough: both are the chassis's, and points proves both."""
    return "native"


@pytest.fixture(scope="session")
def houses(open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """The houses that modules share, by front."""
    with by_front("groups", audit, open_house) as houses:
        yield houses


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
