"""Cards and points under one fault, and whether the journal of cards would notice what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.house import House
from tests.chaos import cards, points
from tests.chaos.cards import CardsJournal
from tests.chaos.follower import Follower
from tests.chaos.levers import kill, redeliver, sql, start
from tests.chaos.listener import TIMEOUT
from tests.conftest import NOON, OpenHouse
from tests.support import defects

PARTS = (points.PART, cards.PART)
LOAD = 240  # commands
BEFORE = 100  # acknowledged commands after which the fault strikes: some cards are paid by points by then
FORGERIES = [  # table, what is forged by how much, and where it can be
    ("orders", "amount_minor = amount_minor + $1", "amount_minor > 0"),
    ("segments", "paid_minor = paid_minor + $1", "paid_minor > 0"),
    ("payments", "due_minor = due_minor - $1", "due_minor > 1"),
    ("redemptions", "saved_minor = saved_minor + $1", "true"),
    ("quota_windows", "used = used + $1, quota = quota + $1", "true"),
]


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house with points and cards, and with what the loads need."""
    with open_house(data, [part.service for part in PARTS], test_clock=NOON) as house:
        for part in PARTS:
            part.prepare(house)
        yield house
        assert not defects(house)


async def test_a_killed_cards_service_loses_and_doubles_nothing_and_no_point_goes_astray(
    house: House,
) -> None:
    journal, follower = CardsJournal(house, seed=36), Follower(house.nats.url, cards.PART)
    following, struck = asyncio.create_task(follower.follow()), asyncio.Event()
    load = asyncio.create_task(journal.run(LOAD, struck=struck))
    try:
        await journal.acknowledged(BEFORE)
        await kill(house, "cards")
        await start(house, "cards")
        await redeliver(house, service="cards")
        struck.set()
        await load
        chains: dict[str, list[bytes]] = {}
        for row in await journal.verify():
            chains.setdefault(row["member_id"], []).append(row["hash"])
        await follower.heard_all(chains, TIMEOUT)
    finally:
        load.cancel()
        follower.over = True
        await following


async def test_the_journal_notices_any_amount_that_is_not_as_it_was_told(house: House) -> None:
    journal = CardsJournal(house, seed=37, members=4)
    await journal.run(LOAD)
    await journal.verify()
    for table, change, where in FORGERIES:
        forgery = f"UPDATE {table} SET {change} WHERE member_id = ANY($2) AND {where}"  # noqa: S608 - ours
        await sql(house, forgery, 1, journal.members, service="cards")
        with pytest.raises(AssertionError):
            await journal.verify()
        await sql(house, forgery, -1, journal.members, service="cards")
    await journal.verify()
