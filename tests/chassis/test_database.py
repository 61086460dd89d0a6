"""What becomes of a connection whose server dies, and that a defect of ours is not taken for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from services.chassis.database import Database, DatabaseUnavailable
from services.cli.servers import Postgres
from tests.chaos.proxy import Mode, Proxies

ROWS, MIDDLE = 20_000, 5_000
POOL = 8  # connections


async def test_a_server_killed_in_the_middle_of_a_copy_is_unavailable_until_it_is_back(data: Path) -> None:
    server = Postgres.start(data / "doomed")
    database = await Database.open(server.url(), size=2, name="test")
    try:
        with pytest.raises(DatabaseUnavailable):
            await copy(database, server.kill)
        assert not await database.ready()
        with Postgres.start(data / "doomed", server.port):
            assert await database.ready()
            async with database.read() as connection:
                assert await connection.fetchval("SELECT to_regclass('doomed')") is None
    finally:
        await database.close()


async def copy(database: Database, strike: Callable[[], object]) -> None:
    """Fills a table; something happens in the middle of it."""

    async def rows() -> AsyncIterator[tuple[int, str]]:
        for number in range(ROWS):
            if number == MIDDLE:
                strike()
            yield number, "x" * 100

    async with database.begin() as connection:
        await connection.execute("CREATE TABLE doomed (number int, text text)")
        await connection.copy_records_to_table("doomed", records=rows())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            asyncpg.InternalClientError("got result for unknown protocol state 3"),
            asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        ),
        (
            asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
            asyncpg.InterfaceError(
                "cannot call Transaction.__aexit__(): the underlying connection is closed"
            ),
        ),
        (OSError("broken pipe"), asyncpg.InterfaceError("the underlying connection is closed")),
    ],
    ids=["the driver is confused", "the connection is closed", "the wire broke"],
)
async def test_a_connection_that_cannot_even_be_rolled_back_is_gone(
    database: Database, first: Exception, second: Exception
) -> None:
    """As the driver was seen to fail in a copy whose server was killed: first it, then its rolling back."""

    async def fail() -> None:
        async with database.begin():
            try:
                raise first
            except type(first):
                raise second  # noqa: B904 - the driver's has the first one for its context, and no cause

    with pytest.raises(DatabaseUnavailable) as refused:
        await fail()
    assert refused.value.__cause__ is second
    assert await database.ready()


async def test_the_first_connection_that_is_found_dead_speaks_for_all_the_others(
    url: str,
) -> None:
    wrong: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    here = urlsplit(url)
    with Proxies({"postgres": here.netloc.rsplit("@", 1)[-1]}) as network:
        beyond = url.replace(f":{here.port}/", f":{network.ports['postgres']}/")
        database = await Database.open(beyond, size=POOL, name="test", command_timeout=1)
        try:
            await together(database)
            network.set("postgres", Mode.HALF_OPEN)
            network.set("postgres", Mode.CLEAR)
            assert not await database.ready()
            await together(database)
        finally:
            await database.close()
    assert not wrong


async def together(database: Database) -> None:
    """Uses every connection of the pool at once."""
    all_there = asyncio.Barrier(POOL)

    async def use() -> None:
        async with database.read() as connection:
            await connection.execute("SELECT 1")
            await all_there.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(POOL):
            group.create_task(use())


BACKEND = "SELECT pg_backend_pid()"


async def test_a_misused_connection_is_a_defect_and_is_not_used_again(database: Database) -> None:
    backends = []

    async def misuse() -> None:
        async with database.read() as connection:
            backends.append(await connection.fetchval(BACKEND))
            await asyncio.gather(connection.execute("SELECT pg_sleep(60)"), connection.execute("SELECT 1"))

    with pytest.raises(asyncpg.InterfaceError, match="another operation is in progress"):
        await misuse()
    async with database.read() as connection:
        assert await connection.fetchval(BACKEND) not in backends


async def test_what_the_database_refuses_is_a_defect_and_leaves_the_connection_alone(
    database: Database,
) -> None:
    backends = set()

    async def ask_wrongly() -> None:
        async with database.begin() as connection:
            backends.add(await connection.fetchval(BACKEND))
            await connection.execute("SELECT FROM nowhere")

    for _ in range(2):
        with pytest.raises(asyncpg.UndefinedTableError):
            await ask_wrongly()
    assert len(backends) == 1
