"""Places on a leaderboard of many, as the database finds them."""

from __future__ import annotations

import asyncpg

from services.cli.servers import Postgres
from tests.bench.leaderboard import COUNTED, explain, fill

INVITERS = COUNTED + 2_000


async def test_no_more_ranks_are_read_than_are_shown_or_counted(referral_server: Postgres) -> None:
    connection = await asyncpg.connect(referral_server.url("referral"))
    transaction = connection.transaction()
    await transaction.start()
    try:
        await fill(connection, INVITERS)
        assert await explain(connection)
    finally:
        await transaction.rollback()
        await connection.close()
