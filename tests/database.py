"""What tests ask of a service's database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from services.chassis.database import Connection, Database
from services.cli.house import House
from tests.support import TIMEOUT

POLL = 0.05  # seconds


def ask(house: House, service: str, query: str, *arguments: object) -> list[Any]:
    """Rows from a service's database."""

    async def rows() -> list[Any]:
        async with _connection(house, service) as connection:
            return list(await connection.fetch(query, *arguments))

    return asyncio.run(rows())


def stop_job(house: House, service: str, job: str) -> None:
    """From now on nobody does a job: takes its lease, as a replica that hangs would."""

    async def stop() -> None:
        taken = "'another', lease_until = now() + interval '1 day', token = token + 1"
        query = f"UPDATE jobs SET holder = {taken} WHERE name = $1"  # noqa: S608
        async with _connection(house, service) as connection:
            while True:
                if await connection.execute(query, job) == "UPDATE 1":
                    return
                await asyncio.sleep(POLL)

    asyncio.run(stop())


def fingerprint(house: House, service: str, busy: str) -> dict[str, str]:
    """A hash over all rows of each table, once what was accepted has had its effect.

    `busy` is the condition under which a row `o` of the outbox still waits for something.
    """

    async def hashed() -> dict[str, str]:
        async with _connection(house, service) as connection:
            deadline = time.monotonic() + 3 * TIMEOUT
            waits = f"EXISTS (SELECT FROM outbox o WHERE {busy}) OR EXISTS (SELECT FROM stream_erasures)"  # noqa: S608
            while await connection.fetchval(f"SELECT {waits}"):
                assert time.monotonic() < deadline, "the outbox did not drain"
                await asyncio.sleep(POLL)
            names = await connection.fetch(
                "SELECT tablename FROM pg_tables"
                " WHERE schemaname = 'public' AND tablename <> 'jobs' ORDER BY 1"  # renewed all the time
            )
            hashes = ", ".join(
                f"(SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {name} t) AS {name}"  # noqa: S608
                for (name,) in names
            )
            return dict(await connection.fetchrow(f"SELECT {hashes}"))

    return asyncio.run(hashed())


@asynccontextmanager
async def _connection(house: House, service: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(house.postgres.url(service))
    try:
        yield connection
    finally:
        await connection.close()


# --- who waits for whom -------------------------------------------------------------------------------


async def blocked(database: Database, work: asyncio.Task[Any]) -> None:
    """Returns once a transaction that waits `patiently` waits for a lock that another has, or is done."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'waits'"
    )
    async with asyncio.timeout(TIMEOUT):
        while not work.done():
            async with database.read() as connection:
                if await connection.fetchval(query):
                    return
            await asyncio.sleep(0.01)


async def patiently(connection: Connection) -> None:
    """Waits for others in a transaction for as long as a slow machine takes."""
    await connection.execute("SET LOCAL lock_timeout = '20s'")
    await connection.execute("SET LOCAL statement_timeout = '20s'")
    await connection.execute("SET LOCAL application_name = 'waits'")
