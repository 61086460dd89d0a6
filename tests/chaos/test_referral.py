"""Referral and points under one fault, and whether the journal would notice what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.house import House
from tests.chaos import points, referral
from tests.chaos.follower import Follower
from tests.chaos.levers import kill, sql, start
from tests.chaos.listener import TIMEOUT
from tests.chaos.referral import ReferralJournal
from tests.conftest import NOON, OpenHouse
from tests.referral.conftest import sound

LOAD = 240  # commands
BEFORE = 80  # acknowledged commands after which the fault strikes
FORGERIES = [  # table, what is forged, how that is undone, and where
    ("attributions", "inviter_id = 'x' || inviter_id", "inviter_id = substr(inviter_id, 2)", "true"),
    ("facts", "amount_minor = amount_minor + 1", "amount_minor = amount_minor - 1", "amount_minor > 0"),
    ("steps", "lost = NOT lost", "lost = NOT lost", "true"),
    ("rewards", "cost_minor = cost_minor + 1", "cost_minor = cost_minor - 1", "status = 'FULFILLED'"),
    ("outbox", "bucket = bucket + 1", "bucket = bucket - 1", "subject LIKE '%RewardGranted'"),
]


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house with referral, and with points, which rewards are made of."""
    with sound(open_house(data, ("points", "referral"), test_clock=NOON)) as house:
        points.PART.prepare(house)
        yield house


async def test_a_killed_referral_service_loses_and_doubles_no_bond_and_no_reward(house: House) -> None:
    journal, follower = ReferralJournal(house, seed=61, members=8), Follower(house.nats.url, referral.PART)
    following, struck = asyncio.create_task(follower.follow()), asyncio.Event()
    load = asyncio.create_task(journal.run(LOAD, struck=struck))
    try:
        await journal.acknowledged(BEFORE)
        await kill(house, "referral")
        await start(house, "referral")
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


async def test_the_journal_of_referral_notices_what_is_not_as_it_was_told(house: House) -> None:
    journal = ReferralJournal(house, seed=62, members=6)
    await journal.run(LOAD)
    await journal.verify()
    for table, forged, undone, where in FORGERIES:
        name = "entity_key" if table == "outbox" else "member_id"
        mine = f"WHERE {name} = ANY($1) AND {where}"
        await sql(house, f"UPDATE {table} SET {forged} {mine}", journal.members, service="referral")  # noqa: S608 - ours
        with pytest.raises(AssertionError):
            await journal.verify()
        await sql(house, f"UPDATE {table} SET {undone} {mine}", journal.members, service="referral")  # noqa: S608
    await journal.verify()
