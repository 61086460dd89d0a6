"""The service on a real database: what is asked by many at once, from several processes, and asked again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from loyalty.referral.v1 import referral_events_pb2 as epb

from services.chassis.database import Database
from services.chassis.errors import AnswerErased, ServiceError
from services.referral import putting, reviewing, service, store
from services.referral.commands import BindInvitee, CreateInvite, Learned, RewardHandedOver
from services.referral.domain.campaigns import FactKind, Signal
from services.referral.domain.profile import EVERYTHING, TIER, Fact
from services.referral.errors import (
    AlreadyBound,
    BudgetSpent,
    CampaignClosed,
    CampaignNotOpen,
    CampaignUnknown,
    CodeUnknown,
    CurrencyFixed,
    Cycle,
    InviterBlocked,
    MemberUnknown,
    TooManyTries,
)
from services.referral.rules import compile_campaign
from tests.database import blocked, patiently
from tests.referral.circle import TERMS, order, points, standing, step
from tests.referral.circle import campaign as a_campaign
from tests.referral.club import Club, StandingClock
from tests.referral.plain import DAY
from tests.support import fresh

Clubs = tuple[Club, Club, Club]


@pytest.fixture
async def clubs(referral_url: str) -> AsyncIterator[Clubs]:
    """Three processes of the service on one database, in one time."""
    clock = StandingClock()
    databases = [await Database.open(referral_url, size=2, name=f"club {number}") for number in range(3)]
    first, second, third = (Club(database, clock) for database in databases)
    yield first, second, third
    for database in databases:
        await database.close()


@pytest.fixture
def club(clubs: Clubs) -> Club:
    """The first of them."""
    return clubs[0]


def outcomes(answers: Sequence[Any]) -> Counter[str]:
    """How often what came of it; a defect is raised."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, ServiceError):
            raise answer
    return Counter(each.reason if isinstance(each, ServiceError) else "DONE" for each in answers)


# --- many at once -------------------------------------------------------------------------------------


async def test_a_thousand_who_qualify_at_once_reach_every_rung_once(clubs: Clubs) -> None:
    club, ann = clubs[0], fresh("ann")
    campaign = await club.put(
        step("first", at=1),
        step("ten", at=10),
        step("more", every={"count": 5, "first": 15}),
        caps={"lifetime": 1000},
    )
    invite = await club.invite(ann, campaign)
    friends = [fresh("friend") for _ in range(1000)]

    async def come(number: int, friend: str) -> None:
        mine = clubs[number % 3]
        deeds = [mine.bind(friend, invite), mine.tell(friend, order(fresh("order"), mine.at))]
        for deed in (
            deeds if number % 2 else reversed(deeds)
        ):  # half of them do it before it is known who came
            await deed

    await asyncio.gather(*(come(number, friend) for number, friend in enumerate(friends)))
    mail, _ = await club.mail(campaign)
    assert len(mail) == 2000
    mail += random.Random(1).sample(mail, 500)  # some of it comes twice
    random.Random(2).shuffle(mail)
    await asyncio.gather(*(clubs[number % 3].post(told) for number, told in enumerate(mail)))
    reached = await club.heard(ann, epb.StepReached)
    rounds = {("first", 1), ("ten", 1), *(("more", number) for number in range(1, 199))}
    assert Counter((one.step_id, one.round) for one in reached) == Counter(rounds)
    profile = await club.profile(ann, campaign)
    given = profile.rewards.values()
    assert {one.rung[1:] for one in given} == rounds
    assert len(given) == len(rounds)
    line = sorted((one.qualify_time, one.attribution_id) for one in profile.invitees.values())
    for rung in profile.rungs.values():
        assert (rung.reach_time, rung.attribution_id) == line[rung.position - 1]
    assert profile.ranks[campaign].count == 1000


async def test_a_thousand_who_are_bound_by_many_callers_are_bound_once(clubs: Clubs) -> None:
    club, ann, ben, cem = clubs[0], fresh("ann"), fresh("ben"), fresh("cem")
    campaign = await club.put()
    invites = [await club.invite(member, campaign) for member in (ann, ben)]
    answers = await asyncio.gather(
        *(clubs[number % 3].bind(cem, invites[number % 2]) for number in range(60)), return_exceptions=True
    )
    assert outcomes(answers) == {"DONE": 1, AlreadyBound().reason: 59}
    told = await club.heard(cem, epb.InviteeBound)
    assert [one.version for one in told] == [1]


async def test_of_two_who_bring_each_other_at_once_one_does_at_most(clubs: Clubs) -> None:
    club = clubs[0]
    campaign = await club.put()
    for _ in range(10):
        ann, ben = fresh("ann"), fresh("ben")
        hers, his = await asyncio.gather(club.invite(ann, campaign), club.invite(ben, campaign))
        answers = await asyncio.gather(
            clubs[1].bind(ann, his), clubs[2].bind(ben, hers), return_exceptions=True
        )
        assert outcomes(answers) == {"DONE": 1, Cycle().reason: 1}
    pairs = await club.fetch("SELECT count(*) AS n FROM pairs WHERE campaign_id = $1", campaign)
    bonds = await club.fetch("SELECT count(*) AS n FROM attributions WHERE campaign_id = $1", campaign)
    assert (pairs[0]["n"], bonds[0]["n"]) == (10, 10)


async def test_a_thousand_rewards_take_a_budget_for_a_hundred_in_their_order(clubs: Clubs) -> None:
    club = clubs[0]
    limited = {"budget_minor": 10_000, "hold_period_hours": 0}
    ladder = step("first", points(500, cost_minor=100), at=1)
    campaign = await club.put(ladder, **limited)
    inviters = [fresh("inviter") for _ in range(1000)]
    invites = await asyncio.gather(
        *(clubs[number % 3].invite(one, campaign) for number, one in enumerate(inviters))
    )

    async def bring(number: int) -> None:
        mine, friend = clubs[number % 3], fresh("friend")
        await mine.bind(friend, invites[number])
        await mine.tell(friend, order(fresh("order"), mine.at))

    await asyncio.gather(*(bring(number) for number in range(1000)))
    mail, _ = await club.mail(campaign)
    await asyncio.gather(*(clubs[number % 3].post(told) for number, told in enumerate(mail)))
    await club.grant(campaign)
    await clubs[1].grant(campaign)
    assert await _granted(club, campaign) == [(True, 100), (False, 900)]
    [exhausted] = await club.heard(campaign, epb.BudgetExhausted)
    assert (exhausted.granted_minor, exhausted.waiting_count) == (10_000, 900)
    await club.put(ladder, **{**limited, "budget_minor": 10_050}, campaign_id=campaign)
    await club.grant(campaign)
    assert await _granted(club, campaign) == [(True, 100), (False, 900)]
    assert len(await club.heard(campaign, epb.BudgetExhausted)) == 2
    await club.put(ladder, **{**limited, "budget_minor": 80_000}, campaign_id=campaign)
    await club.grant(campaign)
    assert await _granted(club, campaign) == [(True, 800), (False, 200)]
    assert len(await club.heard(campaign, epb.BudgetExhausted)) == 3


async def test_a_budget_that_is_set_while_rewards_are_granted_is_the_one_that_is_told_of(
    clubs: Clubs,
) -> None:
    club, ladder = clubs[0], step("first", points(500, cost_minor=100), at=1)
    campaign = await club.put(ladder, budget_minor=100, hold_period_hours=0)
    for _ in range(4):
        invite, friend = await club.invite(fresh("inviter"), campaign), fresh("friend")
        await club.bind(friend, invite)
        await club.tell(friend, order(fresh("order"), club.at))
    await _deliver(club, campaign, 0)

    async def grant() -> None:
        async with clubs[1].database.begin() as connection:
            await patiently(connection)
            await service.grant(connection, clubs[1].lore, campaign, club.at)

    raised = a_campaign(ladder, campaign_id=campaign, budget_minor=350, hold_period_hours=0)
    async with club.database.begin() as connection:
        compiled = compile_campaign(raised)
        await putting.put_campaign(connection, club.at, compiled, message=raised, author="test")
        granting = asyncio.create_task(grant())
        await blocked(clubs[2].database, granting)
    await granting
    [exhausted] = await club.heard(campaign, epb.BudgetExhausted)
    assert (exhausted.granted_minor, exhausted.budget_minor, exhausted.campaign_version) == (300, 350, 2)


async def _granted(club: Club, campaign: str) -> list[tuple[bool, int]]:
    """How many rewards were granted, and how many wait; none who waits comes before one who got it."""
    rows = await club.fetch(
        "SELECT status <> 'PENDING' AS granted FROM rewards WHERE campaign_id = $1"
        " ORDER BY reach_time, reward_id",
        campaign,
    )
    order = [row["granted"] for row in rows]
    assert order == sorted(order, reverse=True)
    return [(True, sum(order)), (False, len(order) - sum(order))]


# --- refunds, and what was given ----------------------------------------------------------------------


async def test_a_refund_in_time_takes_the_rung_and_its_reward_and_a_new_invitee_brings_it_again(
    club: Club,
) -> None:
    ann = fresh("ann")
    campaign = await club.put(
        step("two", points(500, cost_minor=100), at=2),
        on_drop="ON_DROP_CLAW_BACK",
        hold_period_hours=0,
        budget_minor=100,
    )
    invite = await club.invite(ann, campaign)
    friends = [fresh("friend") for _ in range(3)]
    for friend in friends:
        await club.bind(friend, invite)
    for friend in friends[:2]:
        await club.tell(friend, order(f"order-{friend}", club.at))
    after = await _deliver(club, campaign, 0)
    assert await club.grant(campaign) == 1
    [granted] = await club.heard(ann, epb.RewardGranted)
    await club.do(RewardHandedOver, ann, reward_id=granted.reward_id, reference_id="txn", occur_time=club.at)
    club.wait(days=13)
    await club.tell(friends[0], _refunded(club, f"order-{friends[0]}"))
    after = await _deliver(club, campaign, after)
    assert [one.reason for one in await club.heard(ann, epb.RewardClawedBack)] == [epb.REVOKE_REASON_REFUNDED]
    await club.tell(friends[2], order(f"order-{friends[2]}", club.at))
    await _deliver(club, campaign, after)
    assert await club.grant(campaign) == 1  # for what the budget got back
    first, second = await club.heard(ann, epb.RewardGranted)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.reward_id != second.reward_id
    profile = await club.profile(ann, campaign)
    assert [one.attempt for one in standing(list(profile.rewards.values()))] == [2]
    assert [one.attempt for one in await club.heard(ann, epb.StepReached)] == [1, 2]
    club.wait(days=15)
    await club.tell(friends[2], _refunded(club, f"order-{friends[2]}"))
    assert await club.heard(friends[2], epb.InviteeRevoked) == []  # it comes too late


def _refunded(club: Club, order_id: str) -> Fact:
    """That an order was refunded now, all that was left of it."""
    return Fact(kind=FactKind.ORDER, reference_id=order_id, refunds={fresh("refund"): (EVERYTHING, club.at)})


async def _deliver(club: Club, campaign: str, after: int) -> int:
    mail, after = await club.mail(campaign, after)
    for told in mail:
        await club.post(told)
    return after


# --- what is asked again, and by many -----------------------------------------------------------------


async def test_the_same_request_from_three_processes_is_done_once(clubs: Clubs) -> None:
    campaign, ann = await clubs[0].put(), fresh("ann")
    asked = {"campaign_id": campaign, "request_id": "r"}
    answers = await asyncio.gather(*(clubs[n % 3].do(CreateInvite, ann, **asked) for n in range(12)))
    assert len(set(answers)) == 1
    assert len(await clubs[0].heard(ann, epb.InviteCreated)) == 1


async def test_of_a_batch_each_command_has_its_own_answer_and_refused_members_are_not_kept(
    club: Club,
) -> None:
    invite = await club.invite(fresh("ann"), await club.put())
    there, gone = ([fresh(name) for _ in range(5)] for name in ("there", "gone"))
    other = {"campaign_id": "nowhere"}
    answers = await asyncio.gather(
        *(club.bind(member, invite) for member in there),
        *(club.bind(member, invite, **other) for member in gone),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 5, CampaignUnknown().reason: 5}
    kept = await club.fetch("SELECT member_id FROM members WHERE member_id = ANY($1)", [*there, *gone])
    assert sorted(row["member_id"] for row in kept) == sorted(there)


async def test_codes_that_nobody_has_are_counted_over_all_processes(clubs: Clubs) -> None:
    club = clubs[0]
    invite, ben, caller = await club.invite(fresh("ann"), await club.put()), fresh("ben"), fresh("caller")
    limit = TERMS.code_tries_per_minute
    tried = {"caller": caller, "code": "nonsense"}
    answers = await asyncio.gather(
        *(clubs[n % 3].bind(ben, invite, **tried) for n in range(3 * limit)), return_exceptions=True
    )
    # A minute of wall time may end meanwhile, and another begin.
    assert outcomes(answers)[CodeUnknown().reason] in range(limit, 2 * limit + 1)
    assert set(outcomes(answers)) == {CodeUnknown().reason, TooManyTries().reason}
    rows = await club.fetch("SELECT sum(count)::int AS n FROM tries WHERE subject = $1", caller)
    assert rows[0]["n"] == outcomes(answers)[CodeUnknown().reason]
    kept = await club.fetch("SELECT 1 FROM members WHERE member_id = $1", ben)
    assert not kept


async def test_who_comes_with_a_device_that_others_came_with_waits_whichever_process_saw_them(
    clubs: Clubs,
) -> None:
    device = {"signal": "SIGNAL_DEVICE", "limit": 2, "score": 1}
    velocity = {"signal": "SIGNAL_VELOCITY", "limit": 4, "score": 2}
    campaign = await clubs[0].put(signal_limits=[device, velocity], review_score=1, reject_score=2)
    invite = await clubs[0].invite(fresh("ann"), campaign)
    for number in range(3):  # one after the other
        await clubs[number].bind(fresh("one"), invite, signals={Signal.DEVICE: "ab"})
    await asyncio.gather(*(clubs[0].bind(fresh("many"), invite) for _ in range(3)))  # in one batch
    rows = await clubs[0].fetch(
        "SELECT verdict, count(*)::int AS n FROM attributions WHERE campaign_id = $1 GROUP BY verdict",
        campaign,
    )
    assert {row["verdict"]: row["n"] for row in rows} == {"PASS": 3, "REVIEW": 1, "REJECT": 2}
    reviews = await clubs[0].fetch("SELECT verdict, signals FROM reviews WHERE campaign_id = $1", campaign)
    shown = Counter((row["verdict"], row["signals"]) for row in reviews)
    assert shown == {("", '["DEVICE"]'): 1, ("REJECT", '["VELOCITY"]'): 2}


# --- the operators ------------------------------------------------------------------------------------


async def test_the_rewards_of_a_blocked_member_wait_and_those_of_others_do_not(clubs: Clubs) -> None:
    club, ann, ben = clubs[0], fresh("ann"), fresh("ben")
    campaign = await club.put(
        step("one", points(5, cost_minor=10), at=1), budget_minor=10, hold_period_hours=0
    )
    for inviter in (ann, ben):
        invite, friend = await club.invite(inviter, campaign), fresh("friend")
        await club.bind(friend, invite)
        await club.tell(friend, order(fresh("order"), club.at))
        club.wait(minutes=1)
    await _deliver(club, campaign, 0)
    blocked = {"member_id": ann, "campaign_id": "", "reason": "bought codes", "author": "test"}
    async with club.database.begin() as connection:
        await reviewing.block(connection, club.at, **blocked)
    await asyncio.gather(*(each.grant(campaign) for each in clubs))  # though one lease holds it to one
    assert len(await club.heard(ben, epb.RewardGranted)) == 1
    assert not await club.heard(ann, epb.RewardGranted)
    with pytest.raises(InviterBlocked):
        await club.bind(fresh("friend"), await club.invite(ann, campaign))
    with pytest.raises(CampaignUnknown):
        async with club.database.begin() as connection:
            await reviewing.block(connection, club.at, **{**blocked, "campaign_id": "nowhere"})
    async with club.database.begin() as connection:
        await store.unblock(connection, ann, "")
    await club.put(
        step("one", points(5, cost_minor=10), at=1),
        campaign_id=campaign,
        budget_minor=20,
        hold_period_hours=0,
    )
    await club.grant(campaign)
    assert len(await club.heard(ann, epb.RewardGranted)) == 1


async def test_a_campaign_is_put_in_versions_and_closed_once(club: Club) -> None:
    named: dict[str, Any] = {"campaign_id": fresh("campaign"), "hold_period_hours": 0}
    ladder = step("one", points(5, cost_minor=100), at=1)
    await club.put(ladder, **named, budget_minor=200)
    invite, friend = await club.invite(fresh("ann"), named["campaign_id"]), fresh("friend")
    await club.bind(friend, invite)
    await club.tell(friend, order(fresh("order"), club.at))
    await _deliver(club, invite.campaign_id, 0)
    await club.grant(invite.campaign_id)
    with pytest.raises(BudgetSpent) as spent:
        await club.put(step("one", points(5, cost_minor=10), at=1), **named, budget_minor=99)
    assert spent.value.metadata == {"granted_minor": "100"}
    with pytest.raises(CurrencyFixed):
        await club.put(ladder, **named, currency_code="EUR")
    await club.put(ladder, **named, budget_minor=100)
    club.wait(days=1)
    async with club.database.begin() as connection:
        close = {"campaign_id": invite.campaign_id, "author": "test"}
        closed = await putting.close_campaign(connection, club.at, **close)
        again = await putting.close_campaign(connection, club.at + DAY, **close)
        with pytest.raises(CampaignUnknown):
            await putting.close_campaign(connection, club.at, campaign_id="nowhere", author="test")
    assert (closed.version, closed) == (3, again)
    with pytest.raises(CampaignClosed):
        await club.bind(fresh("friend"), invite)
    ahead = await club.put(open_time=(club.at + DAY).isoformat())
    with pytest.raises(CampaignNotOpen):
        async with club.database.begin() as connection:
            await putting.close_campaign(connection, club.at, campaign_id=ahead, author="test")


async def test_who_is_erased_is_still_counted_and_its_answers_are_gone(club: Club) -> None:
    campaign, ann, ben = await club.put(), fresh("ann"), fresh("ben")
    invite = await club.invite(ann, campaign, display_name="张三")
    asked = {"campaign_id": campaign, "code": invite.code, "caller": "brand", "request_id": "bind"}
    await club.do(BindInvitee, ben, **asked, signals={Signal.DEVICE: "ab12"})
    await club.tell(ben, order(fresh("order"), club.at), learned=Learned(TIER, "gold", (1, 1)))
    for member in (ann, ben):
        async with club.database.begin() as connection:
            await service.erase(connection, member, club.at)
    with pytest.raises(AnswerErased):
        await club.do(BindInvitee, ben, **asked, signals={Signal.DEVICE: "ab12"})
    await _deliver(club, campaign, 0)
    assert (await club.profile(ann, campaign)).ranks[campaign].count == 1
    assert (await club.profile(ann, campaign)).invites[campaign].masked_name == ""
    erased = await club.profile(ben, campaign)
    assert (erased.told, [fact.attributes for fact in erased.facts.values()]) == ({}, [None])
    with pytest.raises(MemberUnknown):
        async with club.database.begin() as connection:
            await service.erase(connection, fresh("nobody"), club.at)
