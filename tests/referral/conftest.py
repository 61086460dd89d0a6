"""A real database with the tables of the service, as its own role sees it; houses that run the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from services.chassis.database import Database
from services.cli.house import House
from services.cli.servers import Postgres
from services.referral.__main__ import SCHEMA
from services.referral.audit import audit
from tests.conftest import OpenHouse
from tests.houses import by_front, proved
from tests.schema import serving
from tests.support import Referral

# A house whose books must close in the end.
sound = partial(proved, "referral", audit)


@pytest.fixture(scope="session")
def referral_server() -> Iterator[Postgres]:
    """A server with a migrated database `referral`, owned by `referral_owner` and served as `referral`."""
    with serving("referral", SCHEMA) as server:
        yield server


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
    """One is enough: both are the chassis's, and points proves both."""
    return "native"


@pytest.fixture(scope="session")
def houses(open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """The houses that modules share, by front."""
    with by_front("referral", audit, open_house) as houses:
        yield houses


@pytest.fixture(scope="module")
def referral(house: House) -> Iterator[Referral]:
    """A real channel into the house."""
    with Referral(house) as referral:
        yield referral
