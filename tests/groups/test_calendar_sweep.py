"""What a calendar says is announced once in each group, whoever looks, and after nobody did for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.database import Database
from services.cli.servers import Postgres
from services.groups import sweeps
from services.groups.domain.seats import Group
from tests.conftest import NOON
from tests.groups.clockwork import Clockwork, empty
from tests.groups.town import make_database, scheme, shop

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LUNCH = {
    "entry_id": "lunch",
    "recurrence": "RECURRENCE_DAILY",
    "local_time": "12:30",
    "claim_minutes": 120,
    "benefit_code": "LUNCH",
    "text": "午餐券",
}
BY_WEEK = {**LUNCH, "entry_id": "week", "claim_minutes": 3 * 24 * 60, "benefit_code": "WEEK"}


@pytest.fixture(scope="module")
def town_url(groups_server: Postgres) -> str:
    """A database of the module's own."""
    return make_database(groups_server)


@pytest.fixture
async def town(groups_server: Postgres, town_url: str) -> AsyncIterator[Clockwork]:
    """Two shops without groups; it is NOON, half an hour before lunch."""
    await empty(groups_server, town_url)
    database = await Database.open(town_url, size=6, name="test")
    town = Clockwork(database)
    await town.put_sites(shop("gate", 0), shop("mill", 1000))
    yield town
    await database.close()


def fans(*entries: dict[str, Any], **more: Any) -> pb.Scheme:
    return scheme("fans", calendar=list(entries or [LUNCH]), **more)


async def announced(town: Clockwork, group: Group) -> list[str]:
    """What was announced in a group: the benefit, and how many minutes after noon it became due."""
    told = await town.heard(group.group_id, epb.BenefitDue)
    assert len({one.occasion_id for one in told}) == len(told)
    return [
        f"{one.benefit_code} {(one.claim_until_time.ToDatetime(NOON.tzinfo) - NOON) // MINUTE}"
        for one in told
    ]


async def test_an_occasion_is_announced_when_it_comes_with_all_that_its_listener_needs(
    town: Clockwork,
) -> None:
    await town.put(fans())
    group = await town.open("fans", site_id="gate")
    await town.attach(group.group_id, chat_id="chat-1")
    town.clock.at += 30 * MINUTE - timedelta(microseconds=1)
    assert not await town.sweep()
    assert await town.told(group.group_id) == ["GroupOpened"]
    town.wait(microseconds=1)
    for _ in range(2):
        assert not await town.sweep()
    (told,) = await town.heard(group.group_id, epb.BenefitDue)
    assert (told.scheme_id, told.chat_id, told.benefit_code, told.text) == (
        "fans",
        "chat-1",
        "LUNCH",
        "午餐券",
    )
    assert told.claim_until_time.ToDatetime(NOON.tzinfo) == NOON + 30 * MINUTE + 2 * HOUR
    assert (await town.group(group.group_id)).next_occasion_time == NOON + DAY + 30 * MINUTE


async def test_with_several_replicas_each_occasion_comes_once_in_each_group(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "GROUPS_BATCH", 2)
    await town.put(fans(), scheme("other", calendar=[LUNCH]))
    groups = [await town.open(name, site_id=at) for name in ("fans", "other") for at in ("gate", "mill")]
    groups.append(await town.open("fans", site_id="gate"))
    replicas = [Clockwork(town.database, town.clock) for _ in range(3)]
    for day in range(2):
        town.clock.at = NOON + day * DAY + 45 * MINUTE
        await asyncio.gather(*(replica.work() for replica in replicas))
        for group in groups:
            assert len(await announced(town, group)) == day + 1
    occasions = {
        one.occasion_id for group in groups for one in await town.heard(group.group_id, epb.BenefitDue)
    }
    assert len(occasions) == 4  # of two schemes on two days: those who run them know which is which


async def test_what_came_while_nobody_looked_is_announced_as_long_as_it_can_be_claimed(
    town: Clockwork,
) -> None:
    await town.put(fans(LUNCH, BY_WEEK))
    group = await town.open("fans", site_id="gate")
    town.clock.at = NOON + 3 * DAY + 31 * MINUTE
    assert not await town.sweep()
    # Lunch of today only; of those that hold three days the first is over by a minute.
    day = 24 * 60
    assert await announced(town, group) == [
        *(f"WEEK {day * number + 30 + 3 * day}" for number in (1, 2)),
        f"LUNCH {3 * day + 150}",
        f"WEEK {3 * day + 30 + 3 * day}",
    ]
    assert not await town.sweep()
    assert len(await announced(town, group)) == 4


async def test_in_a_group_that_is_no_more_nothing_is_announced(town: Clockwork) -> None:
    await town.put(fans(lifetime_minutes=20))
    over, ended = [await town.open("fans", site_id=at) for at in ("gate", "mill")]
    await town.dissolve(ended.group_id)
    town.clock.at = NOON + 40 * MINUTE
    assert not await town.sweep()
    for group in (over, ended):
        assert await announced(town, group) == []
        assert (await town.group(group.group_id)).next_occasion_time is None


async def test_a_site_that_is_opened_again_has_its_benefits_again(town: Clockwork) -> None:
    await town.put_programme(moves_per_group=1)
    await town.put(fans())
    seat = await town.seat("ann", "fans", home_site_id="gate")
    await town.join("ann", seat.group.group_id)
    await town.put_sites(shop("mill", 1000, open=False))  # so that there is nowhere to go at first
    group = await town.group(seat.group.group_id)
    for _ in range(2):
        await town.close("gate")
        await town.put_sites(shop("gate", 0))
        town.wait(minutes=1)
    await town.close("gate")
    town.clock.at = NOON + 40 * MINUTE
    assert not await town.sweep()  # it may not be moved out, and is told nothing
    assert await announced(town, group) == []
    await town.put_sites(shop("gate", 0))
    town.clock.at = NOON + DAY + 40 * MINUTE
    assert not await town.sweep()
    assert await announced(town, group) == [f"LUNCH {24 * 60 + 150}"]


async def test_a_new_calendar_holds_from_when_it_is_put_and_forgets_nothing_that_is_due(
    town: Clockwork,
) -> None:
    await town.put_for_all(fans())
    group = await town.open("fans", site_id="gate")
    dinner = {**LUNCH, "entry_id": "dinner", "local_time": "18:00", "benefit_code": "DINNER"}
    town.clock.at = NOON + 31 * MINUTE  # lunch is due, and nobody announced it yet
    await town.put_for_all(fans(LUNCH, dinner))
    assert not await town.sweep()
    assert await announced(town, group) == ["LUNCH 150"]
    town.clock.at = NOON + 6 * HOUR
    assert not await town.sweep()
    assert await announced(town, group) == ["LUNCH 150", "DINNER 480"]
    await town.put_for_all(fans(dinner))
    town.clock.at = NOON + DAY + 31 * MINUTE
    assert not await town.sweep()
    assert len(await announced(town, group)) == 2
    assert (await town.group(group.group_id)).next_occasion_time == NOON + DAY + 6 * HOUR
