"""Time's work is done for members whom nobody touches, once, in steps; budgets are spent in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.chassis.clock import wall
from services.chassis.database import Connection, Database
from services.chassis.ids import bucket
from services.chassis.jobs import Lease, LeaseLost
from services.cli.servers import Postgres
from services.referral import putting, reviewing, service, store, sweeps
from services.referral.commands import RetryReward, WriteOffReward
from services.referral.domain.profile import AttributionStatus, RewardStatus
from services.referral.errors import CapsLowered
from tests.referral.calls import points as some_points
from tests.referral.clockwork import Clockwork, make_database
from tests.support import fresh

DAY, HOUR, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)


@pytest_asyncio.fixture
async def club(referral_server: Postgres) -> AsyncIterator[Clockwork]:
    """A club in a database of its own: whatever is due there is its own."""
    url = await asyncio.to_thread(make_database, referral_server)
    database = await Database.open(url, size=4, name="test")
    yield Clockwork(database)
    await database.close()


def costing(cost_minor: int, **said: Any) -> dict[str, Any]:
    """A campaign whose every invitee brings a reward of that cost, from a budget in the same currency."""
    ladder = [{"step_id": "each", "each_from": 1, "reward": some_points(10, cost_minor)}]
    return {"ladder": ladder, "currency_code": "CNY", **said}


async def qualified(club: Clockwork, campaign: pb.Campaign, inviter: str, count: int) -> list[str]:
    """Members whom an inviter brought, and who paid one after the other."""
    members = [fresh("invitee") for _ in range(count)]
    await club.bring(campaign, inviter, *members)
    for member in members:
        await club.tell(club.paid(member))
        club.wait(seconds=1)
    await club.hear()
    return members


# --- what falls due -----------------------------------------------------------------------------------


async def test_who_does_not_qualify_in_time_lapses_once_though_nobody_touches_the_member(
    club: Clockwork,
) -> None:
    campaign, member = await club.put(), fresh("ben")
    await club.bring(campaign, fresh("ann"), member)
    club.clock.at += 30 * DAY - SECOND
    assert not await club.sweep()
    assert await club.announced(member) == ["InviteeBound"]
    club.clock.at += SECOND
    for _ in range(2):
        assert not await club.sweep()
    assert await club.announced(member) == ["InviteeBound", "InviteeDropped"]
    assert club.clock.settled_at == club.clock.at
    status = (await club.profile(member)).attributions[campaign.campaign_id].status
    assert status is AttributionStatus.LAPSED


async def test_work_is_done_in_steps_until_nothing_waits(
    club: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "SETTLE_BATCH", 5)
    campaign, members = await club.put(), [fresh("member") for _ in range(12)]
    await club.bring(campaign, fresh("ann"), *members)
    club.wait(days=31)
    steps: list[bool] = []
    while not steps or steps[-1]:
        assert club.clock.settled_at is None
        steps.append(await club.sweep())
    assert len(steps) == 3
    assert club.clock.settled_at == club.clock.at
    for member in members:
        assert await club.announced(member) == ["InviteeBound", "InviteeDropped"]


# --- counting again -----------------------------------------------------------------------------------

AT_ONE = {"step_id": "first", "at": 1, "reward": some_points(10)}
AT_TWO = {"step_id": "second", "at": 2, "reward": some_points(20)}


async def outdated(club: Clockwork) -> list[tuple[str, str]]:
    """Who is to be counted again, with the campaign."""
    async with club.database.read() as connection:
        return await store.outdated(connection, 100)


async def test_a_new_rung_is_reached_by_whoever_has_enough_invitees_already(club: Clockwork) -> None:
    campaign, inviter, other = await club.put(ladder=[AT_ONE]), fresh("ann"), fresh("ben")
    await qualified(club, campaign, inviter, 2)
    await qualified(club, campaign, other, 1)
    await club.put(campaign_id=campaign.campaign_id, ladder=[AT_ONE, AT_TWO])
    await club.work("recount")
    await club.work("grant")
    assert [reward.step_id for reward in await club.granted(inviter)] == ["first", "second"]
    assert [reward.step_id for reward in await club.granted(other)] == ["first"]
    assert len(await club.heard(inviter, epb.StepReached)) == 2
    assert await outdated(club) == []


async def test_who_was_beyond_a_cap_counts_once_it_is_raised(club: Clockwork) -> None:
    campaign, inviter = await club.put(ladder=[AT_ONE, AT_TWO], caps={"per_day": 1}), fresh("ann")
    await qualified(club, campaign, inviter, 2)
    await club.put(campaign_id=campaign.campaign_id, ladder=[AT_ONE, AT_TWO], caps={"per_day": 2})
    await club.work("recount")
    assert [reached.step_id for reached in await club.heard(inviter, epb.StepReached)] == ["first", "second"]
    ranks = (await club.profile(inviter, campaign)).ranks
    assert ranks[campaign.campaign_id].count == 2


async def test_caps_are_not_lowered(club: Clockwork) -> None:
    campaign = await club.put(caps={"per_day": 3, "per_month": 9})
    with pytest.raises(CapsLowered) as refusal:
        await club.put(campaign_id=campaign.campaign_id, caps={"per_day": 4, "per_month": 8, "lifetime": 10})
    assert refusal.value.metadata == {"caps": "per_month,lifetime"}


async def test_nobody_is_counted_again_for_what_changes_nothing(club: Clockwork) -> None:
    campaign, inviter, stranger = await club.put(ladder=[AT_ONE]), fresh("ann"), fresh("ben")
    await qualified(club, campaign, inviter, 1)
    await club.bring(campaign, stranger, fresh("invitee"))  # of whom nobody counts
    await club.put(campaign_id=campaign.campaign_id, ladder=[AT_ONE], name="Bring more", budget_minor=0)
    assert await outdated(club) == []
    await club.put(campaign_id=campaign.campaign_id, ladder=[AT_ONE, AT_TWO])
    assert await outdated(club) == [(inviter, campaign.campaign_id)]
    async with club.database.begin() as connection:
        await putting.close_campaign(
            connection, club.clock.at, campaign_id=campaign.campaign_id, author="test"
        )
    await club.work("recount")
    assert await outdated(club) == []


async def test_inviters_are_counted_again_in_steps(club: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "RECOUNT_BATCH", 5)
    campaign, inviters = await club.put(ladder=[AT_ONE]), [fresh("inviter") for _ in range(12)]
    for inviter in inviters:
        await qualified(club, campaign, inviter, 1)
    each = {"step_id": "each", "each_from": 1, "reward": some_points(1)}
    await club.put(campaign_id=campaign.campaign_id, ladder=[AT_ONE, each])
    assert await club.work("recount") == 3
    for inviter in inviters:
        assert [reached.step_id for reached in await club.heard(inviter, epb.StepReached)] == [
            "first",
            "each",
        ]


async def test_a_batch_that_knew_an_older_version_takes_nothing_back_and_is_made_good(
    club: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, inviter = await club.put(ladder=[AT_ONE, AT_TWO], caps={"per_day": 1}), fresh("ann")
    await qualified(club, campaign, inviter, 2)
    each = {"step_id": "each", "each_from": 3, "reward": some_points(1)}
    grown = {"ladder": [AT_ONE, AT_TWO, each], "caps": {"per_day": 3}}
    await club.put(campaign_id=campaign.campaign_id, **grown)
    await club.work("recount")

    async def before_it_was_put(_connection: Connection) -> dict[str, int]:
        return {campaign.campaign_id: 1}

    with monkeypatch.context() as earlier:
        earlier.setattr(store, "campaign_heads", before_it_was_put)
        await qualified(club, campaign, inviter, 1)
    assert await outdated(club) == [(inviter, campaign.campaign_id)]
    await club.work("recount")
    rungs = (await club.profile(inviter, campaign)).rungs.values()
    assert sorted(rung.step_id for rung in rungs) == ["each", "first", "second"]
    assert {(rung.attempt, rung.lost) for rung in rungs} == {(1, False)}


# --- granting -----------------------------------------------------------------------------------------


async def test_a_reward_is_granted_once_its_hold_is_over_by_whoever_has_the_lease(club: Clockwork) -> None:
    campaign, inviter = await club.put(hold_period_hours=24), fresh("ann")
    await qualified(club, campaign, inviter, 1)
    club.clock.at += DAY - 2 * SECOND
    assert not await club.sweep("grant")
    assert await club.granted(inviter) == []
    club.clock.at += 2 * SECOND
    other = Clockwork(club.database, club.clock)
    await asyncio.gather(*(one.sweep("grant") for one in (club, other, club, other)))
    assert len(await club.granted(inviter)) == 1


async def test_whoever_lost_its_lease_grants_nothing(club: Clockwork) -> None:
    campaign, inviter = await club.put(), fresh("ann")
    await qualified(club, campaign, inviter, 1)
    stale = Lease("grant", 0)
    await club.sweep("overdue")  # there are leases, of others
    (job,) = [job for job in club.jobs() if job.name == "grant"]
    with pytest.raises(LeaseLost):
        await job.run(stale)
    assert await club.granted(inviter) == []


async def test_a_budget_is_spent_in_the_order_in_which_rungs_were_reached_and_not_beyond(
    club: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "GRANTED_AT_ONCE", 4)
    campaign = await club.put(**costing(100, budget_minor=1_000))
    inviters = [fresh("ann"), fresh("ben"), fresh("cem")]
    for inviter in inviters * 5:
        await qualified(club, campaign, inviter, 1)
    await club.work("grant")
    given = [len(await club.granted(inviter)) for inviter in inviters]
    assert given == [4, 3, 3]
    (exhausted,) = await club.heard(campaign.campaign_id, epb.BudgetExhausted)
    assert (exhausted.budget_minor, exhausted.granted_minor, exhausted.waiting_count) == (1_000, 1_000, 5)
    assert not await club.sweep("grant")
    await club.put(**costing(100, budget_minor=1_250), campaign_id=campaign.campaign_id)
    await club.work("grant")
    assert [len(await club.granted(inviter)) for inviter in inviters] == [4, 4, 4]
    assert len(await club.heard(campaign.campaign_id, epb.BudgetExhausted)) == 2


async def test_what_is_taken_back_returns_to_the_budget_and_the_next_who_waits_gets_it(
    club: Clockwork,
) -> None:
    campaign, inviter = await club.put(**costing(100, budget_minor=100)), fresh("ann")
    first, second = fresh("first"), fresh("second")
    await club.bring(campaign, inviter, first, second)
    await club.tell(club.paid(first, "order-1"))
    club.wait(seconds=1)
    await club.tell(club.paid(second, "order-2"))
    await club.hear()
    await club.work("grant")
    (granted,) = await club.granted(inviter)
    await club.tell(club.refunded(first, "order-1"))
    await club.hear()
    await club.work("grant")
    (back,) = await club.heard(inviter, epb.RewardClawedBack)
    assert back.reward_id == granted.reward_id
    assert len(await club.granted(inviter)) == 2
    assert len(await club.heard(campaign.campaign_id, epb.BudgetExhausted)) == 1


async def test_rewards_of_who_is_blocked_wait_and_hold_nobody_back(club: Clockwork) -> None:
    campaign, blocked, free = await club.put(**costing(100, budget_minor=200)), fresh("ann"), fresh("ben")
    for inviter in (blocked, free):
        await qualified(club, campaign, inviter, 1)
    block = {"member_id": blocked, "campaign_id": "", "reason": "looks odd"}
    async with club.database.begin() as connection:
        await reviewing.block(connection, club.clock.at, **block, author="test")
    await club.work("grant")
    assert [len(await club.granted(member)) for member in (blocked, free)] == [0, 1]
    async with club.database.begin() as connection:
        await store.unblock(connection, blocked, "")
    await club.work("grant")
    assert [len(await club.granted(member)) for member in (blocked, free)] == [1, 1]


# --- what others leave undone -------------------------------------------------------------------------


async def rewarded(club: Clockwork, **said: Any) -> tuple[pb.Campaign, str, str]:
    """A campaign, an inviter whose reward is granted, and the reward."""
    campaign, inviter = await club.put(**said), fresh("ann")
    await qualified(club, campaign, inviter, 1)
    await club.work("grant")
    (granted,) = await club.granted(inviter)
    return campaign, inviter, granted.reward_id


async def test_a_reward_that_nobody_hands_over_is_told_again_once_in_each_period(club: Clockwork) -> None:
    campaign, inviter, reward_id = await rewarded(club)
    for told in (2, 3):
        club.clock.at += DAY - SECOND
        await club.sweep()
        assert len(await club.granted(inviter)) == told - 1
        club.clock.at += SECOND
        for _ in range(2):
            await club.sweep()
        assert len(await club.granted(inviter)) == told
    club.wait(days=5)  # while everything stood still
    await club.sweep()
    granted = await club.granted(inviter)
    assert {one.reward_id for one in granted} == {reward_id}
    assert [one.version for one in granted] == [1, 2, 3, 4]
    reward = (await club.profile(inviter, campaign)).rewards[reward_id]
    assert (reward.status, reward.overdue) == (RewardStatus.GRANTED, True)


async def looked(club: Clockwork) -> tuple[float | None, list[Any]]:
    """What the metrics say of what is overdue, and what was logged, after a look."""
    with capture_logs() as logs:
        assert not await club.sweep("overdue")
    return REGISTRY.get_sample_value("overdue", {"what": "rewards"}), [line["first"] for line in logs]


async def test_rewards_that_failed_or_are_overdue_are_reported_until_an_operator_ended_them(
    club: Clockwork,
) -> None:
    _, late, overdue = await rewarded(club)
    assert await looked(club) == (0, [])
    club.wait(days=1)
    await club.sweep()
    _, refused, failed = await rewarded(club)
    refusal = points.FulfilmentRefused(**club.head(refused), reward_id=failed, reason="BALANCE_LIMIT")
    await club.tell(refusal)
    assert await looked(club) == (2, [[overdue, failed]])
    await club.do(RetryReward, refused, reward_id=failed)
    await club.do(WriteOffReward, late, reward_id=overdue)
    assert await looked(club) == (0, [])
    assert (await club.announced(late))[-1] == "RewardClawedBack"
    assert (await club.announced(refused))[-2:] == ["RewardFailed", "RewardGranted"]


# --- what is kept no longer ---------------------------------------------------------------------------


async def test_what_members_did_whom_nobody_brought_goes_after_ninety_days(
    club: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "FORGET_BATCH", 2)
    campaign = await club.put()
    brought, alone, late = fresh("brought"), fresh("alone"), fresh("late")
    await club.bring(campaign, fresh("ann"), brought)
    for days, members in ((91, (brought, alone, alone)), (89, (late,))):
        at = wall() - days * DAY
        monkeypatch.setattr("services.referral.store.rows.wall", lambda at=at: at)
        for member in members:
            await club.tell(club.paid(member))
    steps = await club.work("forget")
    kept = [len((await club.profile(member)).facts) for member in (brought, alone, late)]
    assert (steps, kept) == (2, [1, 0, 1])
    assert await club.work("forget") == 1


async def test_sent_events_go_after_thirty_days_and_receipts_after_ninety(club: Clockwork) -> None:
    member, now = fresh("ann"), wall()
    event = """INSERT INTO outbox
        (bucket, entity_key, stream, subject, event_id, body, traceparent, create_time, sent_at)
        VALUES ($1, $2, 'REFERRAL', 'subject', $3, '', '', $4, $5)"""
    receipt = "INSERT INTO inbox VALUES ($1, $2, 'referral', 'elsewhere', $3, 'POINTS', 1, $4)"
    async with club.database.begin() as connection:
        for days, sent in ((29, True), (31, True), (31, False)):
            at = now - days * DAY
            name = f"{days} {sent}"
            await connection.execute(event, bucket(member), member, name, at, at if sent else None)
        for days in (89, 91):
            await connection.execute(receipt, bucket(member), member, str(days), now - days * DAY)
    for _ in range(2):
        assert not await club.sweep("retention")
    events = await club.club.fetch("SELECT event_id FROM outbox ORDER BY position")
    receipts = await club.club.fetch("SELECT event_id FROM inbox")
    assert [row["event_id"] for row in events] == ["29 True", "31 False"]
    assert [row["event_id"] for row in receipts] == ["89"]
