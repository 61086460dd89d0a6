"""Places on a leaderboard of many, as the database finds them."""

from __future__ import annotations

import asyncio

import asyncpg

from services.cli.servers import Postgres
from services.referral.__main__ import SCHEMA
from tests.bench.leaderboard import COUNTED, explain, fill
from tests.schema import make_database

INVITERS = COUNTED + 2_000


def test_no_more_ranks_are_read_than_are_shown_or_counted(referral_server: Postgres) -> None:
    async def filled_and_explained() -> list[str]:
        connection = await asyncpg.connect(referral_server.url("leaderboard"))  # who may ANALYZE
        try:
            await fill(connection, INVITERS)
            return await explain(connection)
        finally:
            await connection.close()

    make_database(referral_server, "referral", SCHEMA, "leaderboard")
    assert asyncio.run(filled_and_explained())
