"""Groups under one fault, and whether their journal would notice what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.house import House
from tests.chaos import groups
from tests.chaos.follower import Follower
from tests.chaos.groups import GroupsJournal
from tests.chaos.levers import kill, sql, start
from tests.chaos.listener import TIMEOUT
from tests.conftest import NOON, OpenHouse
from tests.contract import breaks_the_contract, mutations, send
from tests.groups.conftest import sound
from tests.support import Groups

LOAD = 240  # commands
BEFORE = 80  # acknowledged commands after which the fault strikes
FORGERIES = [  # table, what is forged, how that is undone, and where
    ("memberships", "group_id = 'x' || group_id", "group_id = substr(group_id, 2)", "end_time IS NULL"),
    ("members", "version = version + 1", "version = version - 1", "true"),
    ("tags", "value = 'x' || value", "value = substr(value, 2)", "key = 'drink'"),
    ("answers", "body = '\\x78'::bytea || body", "body = substr(body, 2)", "true"),
    ("outbox", "bucket = bucket + 1", "bucket = bucket - 1", "subject LIKE '%MemberJoined'"),
]


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house with groups, and with what the load needs."""
    with sound(open_house(data, ("groups",), test_clock=NOON)) as house:
        groups.prepare(house)
        yield house


async def test_a_killed_groups_service_loses_and_doubles_nobody_and_no_seat(house: House) -> None:
    journal, follower = GroupsJournal(house, seed=51), Follower(house.nats.url, groups.PART)
    following, struck = asyncio.create_task(follower.follow()), asyncio.Event()
    load = asyncio.create_task(journal.run(LOAD, struck=struck))
    try:
        await journal.acknowledged(BEFORE)
        await kill(house, "groups")
        await start(house, "groups")
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


async def test_the_journal_of_groups_notices_what_is_not_as_it_was_told(house: House) -> None:
    journal = GroupsJournal(house, seed=52, members=6)
    await journal.run(LOAD)
    await journal.verify()
    for table, forged, undone, where in FORGERIES:
        name = "entity_key" if table == "outbox" else "member_id"
        mine = f"WHERE {name} = ANY($1) AND {where}"
        await sql(house, f"UPDATE {table} SET {forged} {mine}", journal.members, service="groups")  # noqa: S608 - ours
        with pytest.raises(AssertionError):
            await journal.verify()
        await sql(house, f"UPDATE {table} SET {undone} {mine}", journal.members, service="groups")  # noqa: S608
    await journal.verify()


async def test_bad_inputs_bring_nobody_into_the_groups_of_a_journal(house: House) -> None:
    """What makes a request bad may leave it sound: without its scheme it is for a seat in any."""
    journal = GroupsJournal(house, seed=53, members=4)
    await journal.run(LOAD // 4)
    with Groups(house) as caller:
        for method, make in groups.PART.good:
            changed = []
            for _, change in mutations(make(caller)):
                change(request := make(caller))
                changed.append(request)
            allowed = [request for request in changed if not breaks_the_contract(request)]
            await asyncio.to_thread(send, caller, method, allowed)
    await journal.verify()
