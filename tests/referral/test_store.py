"""What is saved is what is found again, under the locks and without them, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chassis.answers import Answered, Done
from services.chassis.consumer import Delivery
from services.chassis.database import Connection, Database
from services.chassis.ids import bucket
from services.chassis.inbox import InboxKey
from services.cli.servers import Postgres
from services.referral import store
from services.referral.__main__ import SCHEMA
from services.referral.domain.campaigns import Campaign, FactKind, Gift, GiftKind, Qualify
from services.referral.domain.profile import (
    Attribution,
    Fact,
    Invite,
    Invitee,
    InviteeState,
    Profile,
    Rank,
    Reward,
    RewardStatus,
    Role,
    Rung,
)
from services.referral.errors import MemberUnknown
from services.referral.store import Budget, Changes, Pair, Review, Seen, SignalSeen, Wanted
from tests.conftest import NOON
from tests.database import blocked, patiently
from tests.referral.profiles import profiles, successors
from tests.schema import make_database
from tests.support import fresh
from tests.wire import Wire

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


# --- helpers ------------------------------------------------------------------------------------------


def everything(profile: Profile) -> Wanted:
    """All that a profile holds, by name."""
    member = profile.member_id
    campaigns = {one.campaign_id for one in profile.invitees.values()}
    campaigns |= {one.campaign_id for one in profile.rungs.values()}
    return Wanted(
        NOON,
        members={member},
        facts_of={member},
        inviters={(member, campaign) for campaign in campaigns},
        rewards={(member, name) for name in profile.rewards},
    )


async def write(connection: Connection, seen: Seen, *later: Profile, **more: Any) -> None:
    """Saves what members have become."""
    now = seen.profiles | {profile.member_id: profile for profile in later}
    signals = more.pop("signals", set())
    await store.save(connection, Changes(seen, replace(seen, profiles=now, **more), signals), NOON)


async def keep(database: Database, *later: Profile, **more: Any) -> None:
    """Makes members that have all this, in a transaction of its own."""
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={p.member_id for p in later}))
        await write(connection, seen, *later, **more)


async def see(database: Database, wanted: Wanted) -> Seen:
    """What a batch would see."""
    async with database.begin() as connection:
        return await store.lock(connection, wanted)


async def kept_about(database: Database, member: str) -> bool:
    """Whether there is such a member."""
    async with database.read() as connection:
        return await store.member(connection, member) is not None


def a_bond(campaign: str, inviter: str, **more: Any) -> Attribution:
    made = Attribution(
        attribution_id=fresh("atr"),
        campaign_id=campaign,
        campaign_version=1,
        inviter_id=inviter,
        code="CODE",
        bind_time=NOON,
        lapse_time=NOON + DAY,
    )
    return replace(made, **more)


def an_invite(campaign: str, code: str, **more: Any) -> Invite:
    made = Invite(campaign_id=campaign, campaign_version=1, code=code, create_time=NOON)
    return replace(made, **more)


def an_invitee(campaign: str, attribution_id: str, depth: int = 1) -> Invitee:
    return Invitee(
        attribution_id=attribution_id,
        campaign_id=campaign,
        depth=depth,
        member_id=f"invitee of {attribution_id}",
        state=InviteeState.BOUND,
        told=(1, 1),
        bind_time=NOON,
    )


def a_rung(campaign: str, step_id: str) -> Rung:
    return Rung(
        campaign_id=campaign,
        campaign_version=1,
        step_id=step_id,
        round=1,
        depth=1,
        position=1,
        attribution_id="atr",
        reach_time=NOON,
    )


def a_reward(member: str, campaign: str, **more: Any) -> Reward:
    """A reward of ten points that costs one yuan, reached at noon and held for an hour."""
    reward_id = more.pop("reward_id", fresh("rwd"))
    made = Reward(
        reward_id=reward_id,
        campaign_id=campaign,
        campaign_version=1,
        step_id=f"of {reward_id}",
        round=1,
        attempt=1,
        role=Role.INVITER,
        receiver_id=member,
        attribution_id="atr",
        gift=Gift(kind=GiftKind.POINTS, quantity=10, cost_minor=100),
        qualified_count=1,
        reach_time=NOON,
        grant_after=NOON + HOUR,
    )
    return replace(made, **more)


def granted(reward: Reward, **more: Any) -> Reward:
    at = reward.grant_after
    state: dict[str, Any] = {
        "status": RewardStatus.GRANTED,
        "version": 1,
        "grant_time": at,
        "fulfil_by": at + DAY,
    }
    return replace(reward, **state | more)


def ended(reward: Reward, status: RewardStatus, **more: Any) -> Reward:
    why = {"reason": "WHY"} if status in (RewardStatus.FAILED, RewardStatus.CLAWED_BACK) else {}
    return granted(reward, status=status, fulfil_by=None, end_time=NOON + DAY, **why | more)


def with_rewards(member: str, *rewards: Reward) -> Profile:
    return Profile(member, rewards={reward.reward_id: reward for reward in rewards})


def a_campaign(campaign: str, version: int = 1, **more: Any) -> Campaign:
    made = Campaign(
        campaign_id=campaign,
        version=version,
        ladder_version=version,
        name="Bring them",
        open_time=NOON,
        close_time=NOON + 10 * DAY,
        settle_time=NOON + 20 * DAY,
        qualify=Qualify(kind=FactKind.ORDER),
        ladder=(),
        attribution_window=DAY,
        hold_period=HOUR,
        clawback_window=DAY,
    )
    return replace(made, **more)


async def put(database: Database, campaign: Campaign) -> None:
    async with database.begin() as connection:
        last = await store.lock_last_campaign(connection, campaign.campaign_id)
        assert (last["version"] if last else 0) == campaign.version - 1
        body = f"{campaign.campaign_id} {campaign.version}".encode()
        await store.add_campaign(connection, campaign, author="a test", create_time=NOON, body=body)


async def pages(page: Callable[[Any], Any], key: Callable[[Any], Any], first: Any = None) -> list[Any]:
    """All pages of two, each begun where the one before it ended."""
    found: list[Any] = []
    last = first
    while rows := await page(last):
        assert len(rows) <= 2
        found += rows
        last = key(rows[-1])
    return found


@pytest.fixture(scope="module")
def referral_url(referral_server: Postgres) -> str:
    """A database of these tests' own: campaigns in it are none that a service could compile."""
    return make_database(referral_server, "referral", SCHEMA)


# --- saved and found ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """A loop for the tests that Hypothesis calls, which are no coroutines."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def steady(runner: asyncio.Runner, referral_url: str) -> Iterator[Database]:
    """A pool in that loop."""
    database = runner.run(Database.open(referral_url, size=2, name="steady"))
    yield database
    runner.run(database.close())


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_was_saved_is_found_again_and_so_is_what_became_of_it(
    runner: asyncio.Runner, steady: Database, data: st.DataObject
) -> None:
    profile = data.draw(profiles(fresh("member")))
    later = data.draw(successors(profile))
    runner.run(keep(steady, profile))
    found = runner.run(see(steady, everything(profile)))
    assert found.profiles == {profile.member_id: profile}
    runner.run(_rewrite(steady, profile, later))
    found = runner.run(see(steady, everything(later)))
    assert found.profiles == {profile.member_id: later}
    assert runner.run(_unlocked(steady, later)) == later


async def _rewrite(database: Database, before: Profile, later: Profile) -> None:
    async with database.begin() as connection:
        seen = await store.lock(connection, everything(before))
        await write(connection, seen, later)


async def _unlocked(database: Database, profile: Profile) -> Profile:
    """A profile put together from what is read without locks."""
    member, found = profile.member_id, Profile(profile.member_id)
    async with database.read() as connection:
        campaigns = {reward.campaign_id for reward in profile.rewards.values()}
        campaigns |= {campaign for _, campaign in everything(profile).inviters}
        for campaign in sorted(campaigns):
            part = await store.inviter(connection, member, campaign)
            assert part is not None
            found.invitees |= part.invitees
            found.rungs |= part.rungs
            found.rewards |= part.rewards
        told = await store.member(connection, member)
        assert told is not None
        facts = [store.to_fact(row) for row in await store.fact_page(connection, member, ("", ""), 100)]
        places = {name: await store.place(connection, name, member) for name in profile.ranks}
        return replace(
            found,
            version=told.version,
            told=told.told,
            told_versions=told.told_versions,
            next_due_time=told.next_due_time,
            attributions={a.campaign_id: a for a in await store.attributions(connection, member)},
            facts={fact.name: fact for fact in facts},
            invites={invite.campaign_id: invite for invite in await store.invites(connection, member)},
            ranks={
                name: place.rank if place else profile.ranks[name]  # who has nobody stands nowhere
                for name, place in places.items()
                if place or not profile.ranks[name].count
            },
        )


async def test_what_did_not_change_is_not_written(database: Database) -> None:
    member, campaign = fresh("member"), fresh("campaign")
    rewards = [a_reward(member, campaign, reward_id=fresh(name)) for name in ("a", "b")]
    await keep(database, with_rewards(member, *rewards))
    query = "SELECT reward_id, xmin::text FROM rewards WHERE member_id = $1"
    async with database.begin() as connection:
        before = dict(await connection.fetch(query, member))
        wanted = Wanted(NOON, members={member}, rewards={(member, one.reward_id) for one in rewards})
        seen = await store.lock(connection, wanted)
        later = seen.profiles[member].copy()
        later.rewards[rewards[1].reward_id] = granted(rewards[1])
        await write(connection, seen, later)
        after = dict(await connection.fetch(query, member))
    assert [after[one.reward_id] == before[one.reward_id] for one in rewards] == [True, False]


async def test_a_fact_that_was_to_change_is_a_defect(database: Database) -> None:
    member, campaign = fresh("member"), fresh("campaign")
    reward = a_reward(member, campaign)
    await keep(database, with_rewards(member, reward))
    async with database.begin() as connection:
        wanted = Wanted(NOON, members={member}, rewards={(member, reward.reward_id)})
        seen = await store.lock(connection, wanted)
        with pytest.raises(RuntimeError, match="a fact in rewards"):
            await write(connection, seen, with_rewards(member, replace(reward, campaign_version=2)))


async def test_a_reward_gives_way_to_the_next_attempt_in_one_batch(database: Database) -> None:
    member, campaign = fresh("member"), fresh("campaign")
    # The next one comes first by its name, and is saved after the one that it follows all the same.
    first = granted(a_reward(member, campaign, reward_id=fresh("rwd_2"), step_id="one"))
    following = a_reward(member, campaign, reward_id=fresh("rwd_1"), step_id="one", attempt=2)
    await keep(database, with_rewards(member, first))
    taken = ended(first, RewardStatus.CLAWED_BACK)
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={member}, inviters={(member, campaign)}))
        await write(connection, seen, with_rewards(member, following, taken))
    seen = await see(database, Wanted(NOON, members={member}, inviters={(member, campaign)}))
    assert seen.profiles[member].rewards == {one.reward_id: one for one in (following, taken)}


# --- members and locks --------------------------------------------------------------------------------


async def test_a_member_to_whom_nothing_came_is_dropped_again(database: Database) -> None:
    idle, asked, told, bound = (fresh("member") for _ in range(4))
    bond = a_bond(fresh("campaign"), fresh("inviter"))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={idle, asked, told, bound}))
        assert seen.made == {idle, asked, told, bound}
        await write(
            connection,
            seen,
            Profile(bound, attributions={bond.campaign_id: bond}),
            done=Done(
                new_answers={(asked, "request"): Answered(b"hash", b"answer")},
                new_events=[InboxKey(told, "referral", "orders", "event", "ORDERS", 1)],
            ),
        )
    assert [await kept_about(database, member) for member in (idle, asked, told, bound)] == [
        *(False, True, True, True)
    ]


async def test_a_member_that_is_known_stays_when_nothing_comes(database: Database) -> None:
    member = fresh("member")
    await keep(database, Profile(member, version=1))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={member}))
        assert seen.made == set()
        await write(connection, seen)
    assert await kept_about(database, member)


async def waiting_see(database: Database, wanted: Wanted) -> Seen:
    """What a batch sees that may have to wait for another."""
    async with database.begin() as connection:
        await patiently(connection)
        return await store.lock(connection, wanted)


async def test_a_member_that_another_transaction_makes_meanwhile_is_seen_as_it_is(database: Database) -> None:
    member, bond = fresh("member"), a_bond(fresh("campaign"), fresh("inviter"))
    profile = Profile(member, attributions={bond.campaign_id: bond})
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={member}))
        later = asyncio.create_task(waiting_see(database, Wanted(NOON, members={member})))
        await blocked(database, later)
        await write(connection, seen, profile)
    found = await later
    assert (found.made, found.profiles) == (set(), {member: profile})


async def test_batches_that_want_the_same_members_pairs_and_budgets_never_wait_in_a_circle(
    database: Database,
) -> None:
    members = [fresh("member") for _ in range(6)]
    campaigns = [fresh("campaign") for _ in range(6)]
    await keep(database, *(Profile(member, version=1) for member in members))

    async def replica(shift: int) -> None:
        own = {*members[shift:], *members[:shift][:2]}
        pairs = {Pair(campaign, "a", "b") for campaign in campaigns[shift:]}
        wanted = Wanted(NOON, own, pairs=pairs, budgets={*campaigns[: shift + 3]})
        for _ in range(5):
            assert set((await waiting_see(database, wanted)).profiles) == own

    await asyncio.gather(*(replica(number) for number in range(4)))


# --- what a batch sees --------------------------------------------------------------------------------


async def test_first_answers_and_events_are_known_again(database: Database) -> None:
    member, other = fresh("member"), fresh("member")
    event = InboxKey(member, "referral", "orders", fresh("event"), "ORDERS", 7)
    answered = Answered(b"hash", b"answer")
    done = Done(new_answers={(member, "request"): answered}, new_events=[event])
    await keep(database, Profile(member), done=done)
    asked = {(member, "request"), (member, "another"), (other, "request")}
    seen = await see(database, Wanted(NOON, {member, other}, requests=asked, events=[event]))
    assert seen.done == Done({(member, "request"): answered}, {tuple(event[:4])})


async def test_of_rewards_those_granted_are_seen_and_those_that_are_asked_for(database: Database) -> None:
    member, campaign, other = fresh("member"), fresh("campaign"), fresh("campaign")
    handed_over = ended(a_reward(member, campaign), RewardStatus.FULFILLED)
    waits, gone = a_reward(member, campaign), ended(a_reward(member, other), RewardStatus.CLAWED_BACK)
    open_ = granted(a_reward(member, campaign))
    await keep(database, with_rewards(member, handed_over, waits, gone, open_))

    async def rewards(**more: Any) -> set[str]:
        found = await see(database, Wanted(NOON, {member}, **more))
        return set(found.profiles[member].rewards)

    assert await rewards() == {open_.reward_id}
    named = {(member, gone.reward_id), (member, fresh("rwd"))}
    assert await rewards(rewards=named) == {open_.reward_id, gone.reward_id}
    of_campaign = {open_.reward_id, handed_over.reward_id, waits.reward_id}
    assert await rewards(inviters={(member, campaign)}) == of_campaign


async def test_invitees_and_rungs_are_those_of_the_campaign_that_is_asked_for(database: Database) -> None:
    member, campaign, other = fresh("member"), fresh("campaign"), fresh("campaign")
    profile = Profile(member)
    for name in (campaign, other):
        invitee, rung = an_invitee(name, fresh("atr"), depth=2), a_rung(name, "one")
        profile.invitees[invitee.attribution_id, 2] = invitee
        profile.rungs[rung.name] = rung
    await keep(database, profile)
    seen = (await see(database, Wanted(NOON, {member}, inviters={(member, campaign)}))).profiles[member]
    assert [one.campaign_id for one in seen.invitees.values()] == [campaign]
    assert list(seen.rungs) == [(campaign, "one", 1)]


async def test_who_brought_somebody_is_seen_without_a_lock(database: Database) -> None:
    member, inviter, campaign = fresh("member"), fresh("inviter"), fresh("campaign")
    bond, own = a_bond(campaign, inviter), a_bond(campaign, fresh("inviter"))
    await keep(database, Profile(inviter, attributions={campaign: own}))
    await keep(database, Profile(member, attributions={campaign: bond}))
    async with database.begin() as connection:
        await store.lock(connection, Wanted(NOON, {inviter}))
        names = {(inviter, campaign), (inviter, fresh("campaign")), (member, campaign)}
        seen = await see(database, Wanted(NOON, {member}, attributions=names))
    assert seen.attributions == {(inviter, campaign): own, (member, campaign): bond}
    assert seen.profiles == {member: Profile(member, attributions={campaign: bond})}


async def test_who_is_blocked_in_one_campaign_or_in_all_is_seen(database: Database) -> None:
    here, everywhere, free = (fresh("member") for _ in range(3))
    campaign, other = fresh("campaign"), fresh("campaign")

    def a_block(member: str, name: str, reason: str = "sold codes") -> store.Block:
        return store.Block(
            member_id=member, campaign_id=name, reason=reason, author="an operator", create_time=NOON
        )

    names = {(member, name) for member in (here, everywhere, free) for name in (campaign, other)}
    async with database.begin() as connection:
        for block in (a_block(here, campaign), a_block(everywhere, ""), a_block(here, campaign, "again")):
            await store.block(connection, block)
        assert await store.blocks_of(connection, here) == [a_block(here, campaign, "again")]
    seen = await see(database, Wanted(NOON, blocked=names))
    assert seen.blocked == {(here, campaign), (everywhere, campaign), (everywhere, other)}
    async with database.begin() as connection:
        assert not await store.unblock(connection, everywhere, campaign)
        assert await store.unblock(connection, everywhere, "")
        assert await store.blocks_of(connection, everywhere) == []
    assert (await see(database, Wanted(NOON, blocked=names))).blocked == {(here, campaign)}


async def test_others_who_came_with_the_same_signal_are_counted(database: Database) -> None:
    member, campaign, value = fresh("member"), fresh("campaign"), fresh("hash")

    def device(who: str, where: str = campaign, what: str = value) -> SignalSeen:
        return SignalSeen(where, "DEVICE", what, who)

    others = {device(fresh("member")) for _ in range(3)}
    elsewhere = {device(fresh("member"), where=fresh("campaign")), device(fresh("member"), what="another")}
    await keep(database, Profile(member), signals={device(member), *others, *elsewhere})
    next_, new = device(fresh("member")), device(fresh("member"), what=fresh("hash"))
    seen = await see(database, Wanted(NOON, signals={next_, new}))
    assert seen.signals == {next_: 4, new: 0}
    async with database.read() as connection:
        assert await store.signals_of(connection, member) == [device(member)]


async def test_those_who_were_bound_to_an_inviter_of_late_are_counted(database: Database) -> None:
    inviter, campaign = fresh("inviter"), fresh("campaign")
    times = [NOON - 2 * HOUR, NOON - HOUR, NOON]
    bonds = [a_bond(campaign, inviter, bind_time=time) for time in times]
    bonds += [a_bond(fresh("campaign"), inviter), a_bond(campaign, fresh("inviter"))]
    await keep(database, *(Profile(fresh("member"), attributions={b.campaign_id: b}) for b in bonds))
    wanted = {(inviter, campaign): NOON - HOUR, (fresh("inviter"), campaign): NOON - HOUR}
    seen = await see(database, Wanted(NOON, binds_since=wanted))
    assert list(seen.binds.values()) == [2, 0]
    assert seen.binds[inviter, campaign] == 2


async def test_codes_that_nobody_has_are_counted_up_by_all_who_see_them_tried(database: Database) -> None:
    caller, minute = fresh("caller"), 29_000_000
    name = (caller, minute)

    async def replica() -> None:
        async with database.begin() as connection:
            await patiently(connection)
            seen = await store.lock(connection, Wanted(NOON, tries={name, (caller, minute - 1)}))
            tried = seen.tries | {name: seen.tries.get(name, 0) + 2}
            await store.save(connection, Changes(seen, replace(seen, tries=tried)), NOON)

    await asyncio.gather(*(replica() for _ in range(4)))
    assert (await see(database, Wanted(NOON, tries={name}))).tries == {name: 8}
    async with database.begin() as connection:
        assert await store.drop_tries(connection, minute) == 0
        assert await store.drop_tries(connection, minute + 1) >= 1
    assert (await see(database, Wanted(NOON, tries={name}))).tries == {}


def a_review(member: str, campaign: str, **more: Any) -> Review:
    made = Review(
        review_id=fresh("rvw"),
        member_id=member,
        campaign_id=campaign,
        attribution_id=fresh("atr"),
        inviter_id="inviter",
        score=60,
        signals=("DEVICE", "VELOCITY"),
        create_time=NOON,
    )
    return replace(made, **more)


async def test_a_review_is_found_by_its_name_and_judged_anew(database: Database) -> None:
    member, campaign = fresh("member"), fresh("campaign")
    review = a_review(member, campaign)
    await keep(database, Profile(member, version=1), reviews={review.review_id: review})
    wanted = Wanted(NOON, {member}, reviews={review.review_id, fresh("rvw")})
    for verdict in ("PASS", "REJECT"):
        judged = replace(review, verdict=verdict, resolve_time=NOON, resolved_by="operator", note="seen")
        async with database.begin() as connection:
            seen = await store.lock(connection, wanted)
            after = replace(seen, reviews={review.review_id: judged})
            await store.save(connection, Changes(seen, after), NOON)
        assert (await see(database, wanted)).reviews == {review.review_id: judged}
    async with database.read() as connection:
        assert await store.review(connection, review.review_id) == judged
        assert await store.review(connection, fresh("rvw")) is None


# --- where members meet -------------------------------------------------------------------------------


async def test_a_code_is_found_with_whom_it_is_of(database: Database) -> None:
    member, campaign, code = fresh("member"), fresh("campaign"), fresh("CODE")
    invite = an_invite(campaign, code, group_id="group", masked_name="张**")
    await keep(database, Profile(member, invites={campaign: invite}))
    async with database.read() as connection:
        assert await store.owners(connection, [code, fresh("CODE")]) == {code: (campaign, member)}
        assert await store.invite(connection, member, campaign) == invite
        assert await store.invite(connection, member, fresh("campaign")) is None


async def test_of_many_who_draw_the_same_code_one_has_it(database: Database) -> None:
    campaign, code = fresh("campaign"), fresh("CODE")
    members = [fresh("member") for _ in range(8)]

    async def draw(member: str) -> bool:
        try:
            async with database.begin() as connection:
                await patiently(connection)
                seen = await store.lock(connection, Wanted(NOON, {member}))
                invite = an_invite(campaign, code)
                await write(connection, seen, Profile(member, invites={campaign: invite}))
        except asyncpg.UniqueViolationError:
            return False
        return True

    won = await asyncio.gather(*map(draw, members))
    assert won.count(True) == 1
    async with database.read() as connection:
        found = await store.owners(connection, [code])
        assert found == {code: (campaign, members[won.index(True)])}
        assert [await store.invite(connection, m, campaign) is not None for m in members] == won


async def test_of_two_who_bring_each_other_at_once_the_second_sees_the_first(database: Database) -> None:
    campaign = fresh("campaign")
    first, second = fresh("member"), fresh("member")
    pair = Pair(campaign, min(first, second), max(first, second))
    bond = a_bond(campaign, second)
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {first}, pairs={pair}))
        assert seen.pairs == set()
        later = asyncio.create_task(waiting_see(database, Wanted(NOON, {second}, pairs={pair})))
        await blocked(database, later)
        await write(connection, seen, Profile(first, attributions={campaign: bond}), pairs={pair})
    assert (await later).pairs == {pair}


async def test_many_who_bring_each_other_in_circles_of_two_are_bound_one_way_each(database: Database) -> None:
    campaign = fresh("campaign")
    members = [fresh("member") for _ in range(6)]
    every = [(one, other) for one in members for other in members if one != other]

    async def bind(invitee: str, inviter: str) -> bool:
        """Binds it unless somebody brought it, or it brought the inviter."""
        pair = Pair(campaign, min(invitee, inviter), max(invitee, inviter))
        async with database.begin() as connection:
            await patiently(connection)
            seen = await store.lock(connection, Wanted(NOON, {invitee}, pairs={pair}))
            profile = seen.profiles[invitee].copy()
            if pair in seen.pairs or campaign in profile.attributions:
                return False
            profile.attributions[campaign] = a_bond(campaign, inviter)
            await write(connection, seen, profile, pairs=seen.pairs | {pair})
            return True

    won = await asyncio.gather(*(bind(*both) for both in every))
    bound = [both for both, there in zip(every, won, strict=True) if there]
    assert len({invitee for invitee, _ in bound}) == len(bound)
    assert not {(inviter, invitee) for invitee, inviter in bound} & set(bound)
    # Nobody was refused for nothing: who is not bound has brought all the others.
    for invitee in set(members) - {invitee for invitee, _ in bound}:
        assert {(other, invitee) for other in members if other != invitee} <= set(bound)


# --- statements ---------------------------------------------------------------------------------------


async def test_a_batch_of_many_members_is_a_few_statements_on_the_wire(
    database: Database, referral_url: str
) -> None:
    members, campaign = [fresh("member") for _ in range(20)], fresh("campaign")
    inviters = [fresh("inviter") for _ in range(20)]
    await keep(database, *(Profile(member, version=1) for member in members))
    for inviter in inviters:
        invites = {campaign: an_invite(campaign, fresh("CODE"))}
        await keep(database, replace(with_rewards(inviter, a_reward(inviter, campaign)), invites=invites))
    binds = Wanted(
        NOON,
        set(members),
        requests={(member, "request") for member in members},
        facts_of=set(members),
        pairs={Pair(campaign, *sorted(both)) for both in zip(members, inviters, strict=True)},
        blocked={(inviter, campaign) for inviter in inviters},
        attributions={(inviter, campaign) for inviter in inviters},
        signals={SignalSeen(campaign, "DEVICE", "hash", member) for member in members},
        binds_since={(inviter, campaign): NOON for inviter in inviters},
        tries={("caller", 1)},
    )
    climbs = Wanted(
        NOON,
        set(inviters),
        events=[InboxKey(member, "referral", "referral", "e", "REFERRAL", 1) for member in inviters],
        inviters={(inviter, campaign) for inviter in inviters},
    )
    told = Wanted(NOON, set(members), facts_of=set(members))
    wire = Wire(referral_url)

    async def statements(wanted: Wanted) -> int:
        async with far.begin() as connection:
            before = wire.statements
            await store.lock(connection, wanted)
            return wire.statements - before

    async with wire.open() as far:
        for wanted in (binds, climbs, told):
            await statements(wanted)  # what is asked once per connection is asked
        # Members, attributions, invites, ranks and rewards; what each kind of command wants besides.
        assert await statements(told) == 5 + 1
        assert await statements(climbs) == 5 + 3
        assert await statements(binds) == 5 + 8


async def test_a_batch_of_many_members_is_saved_with_a_statement_per_table(
    database: Database, referral_url: str
) -> None:
    members, campaign = [fresh("member") for _ in range(20)], fresh("campaign")
    await keep(database, *(Profile(member, version=1) for member in members))
    wire = Wire(referral_url)
    async with wire.open() as far, far.begin() as connection:
        pairs = {Pair(campaign, *sorted((member, "inviter"))) for member in members}
        seen = await store.lock(connection, Wanted(NOON, set(members), pairs=pairs))
        bonds = {member: a_bond(campaign, "inviter") for member in members}
        later = [Profile(member, version=2, attributions={campaign: bonds[member]}) for member in members]
        before = wire.statements
        await write(connection, seen, *later, pairs=pairs)
        # Members are updated; attributions and pairs are copied in, which is two messages with its columns.
        assert wire.statements - before <= 1 + 2 * 2


# --- what is read without locks -----------------------------------------------------------------------


async def test_invitees_are_read_page_by_page_newest_first(database: Database) -> None:
    member, campaign = fresh("member"), fresh("campaign")
    names = [f"atr_{number}" for number in range(5)]
    invitees = [an_invitee(campaign, name) for name in names]
    others = [an_invitee(campaign, "atr_7", depth=2), an_invitee(fresh("campaign"), "atr_6")]
    kept = {(one.attribution_id, one.depth): one for one in (*invitees, *others)}
    await keep(database, Profile(member, invitees=kept))
    async with database.read() as connection:

        async def page(before: str | None) -> list[Any]:
            return await store.invitee_page(
                connection, member, campaign_id=campaign, depth=1, before=before, most=2
            )

        found = await pages(page, lambda row: row["attribution_id"])
        assert [store.to_invitee(row) for row in found] == invitees[::-1]
        assert await store.invitees_of(connection, member, 2) == others
        whole = await store.inviter(connection, member, campaign)
        assert whole is not None
        assert len(whole.invitees) == 6
        assert await store.inviter(connection, fresh("member"), campaign) is None


async def test_rewards_are_read_page_by_page_by_who_gets_them_and_by_who_reached_them(
    database: Database,
) -> None:
    inviter, invitee, campaign = fresh("inviter"), fresh("invitee"), fresh("campaign")
    own = [a_reward(inviter, campaign, reward_id=fresh(f"rwd_{number}")) for number in range(3)]
    given = [
        granted(
            a_reward(
                inviter,
                name,
                reward_id=fresh(f"rwd_{number}"),
                role=Role.INVITEE,
                receiver_id=invitee,
            )
        )
        for number, name in ((3, campaign), (4, fresh("campaign")), (5, campaign))
    ]
    await keep(database, with_rewards(inviter, *own, *given))
    async with database.read() as connection:

        async def of(read: Any, member: str, **filters: Any) -> list[Reward]:
            async def page(after: str | None) -> list[Any]:
                rows: list[Any] = await read(connection, member, after=after, most=2, **filters)
                return rows

            found = await pages(page, lambda row: row["reward_id"])
            assert {row["member_id"] for row in found} <= {inviter}
            return [store.to_reward(row) for row in found]

        assert await of(store.reached_page, inviter) == [*own, *given]
        assert await of(store.received_page, inviter) == own
        assert await of(store.received_page, invitee) == given
        assert await of(store.received_page, invitee, campaign_id=campaign) == given[::2]
        assert await of(store.reached_page, inviter, status="GRANTED") == given
        assert await of(store.reached_page, invitee) == []
        one = given[0]
        assert await store.reward(connection, one.reward_id) == (inviter, one)
        assert await store.reward(connection, fresh("rwd")) is None
        assert await store.inviters_of(connection, [one.reward_id, fresh("rwd")]) == {one.reward_id: inviter}


async def test_rewards_that_wait_to_be_handed_over_are_read_by_when_they_were_granted(
    database: Database,
) -> None:
    campaign, member = fresh("campaign"), fresh("member")

    def at(hours: int, **more: Any) -> Reward:
        return a_reward(member, campaign, grant_after=NOON + hours * HOUR, **more)

    late, failed, open_ = (
        granted(at(2), overdue=True),
        ended(at(3), RewardStatus.FAILED),
        granted(at(1)),
    )
    twin = granted(at(2, reward_id=f"{late.reward_id}-"))
    others = [at(1), ended(at(1), RewardStatus.FULFILLED, overdue=True)]
    await keep(database, with_rewards(member, late, failed, open_, twin, *others))
    async with database.read() as connection:

        async def all_of(*, troubled: bool) -> list[str]:
            async def page(after: tuple[datetime, str]) -> list[Any]:
                return await store.open_page(connection, campaign, after, 2, troubled=troubled)

            rows = await pages(page, lambda row: (row["grant_time"], row["reward_id"]), store.FIRST)
            return [row["reward_id"] for row in rows]

        in_order = [one.reward_id for one in (open_, late, twin, failed)]
        assert await all_of(troubled=False) == in_order
        assert await all_of(troubled=True) == [late.reward_id, failed.reward_id]
        count, first = await store.troubled(connection, 1000)
        assert count >= 2
        assert {late.reward_id, failed.reward_id} <= set(first)


async def test_reviews_are_read_page_by_page_oldest_first(database: Database) -> None:
    member, campaign = fresh("member"), fresh("campaign")
    reviews = [a_review(member, campaign, review_id=fresh(f"rvw_{number}")) for number in range(4)]
    reviews[1] = replace(reviews[1], verdict="PASS", resolve_time=NOON)
    await keep(database, Profile(member, version=1), reviews={one.review_id: one for one in reviews})
    async with database.read() as connection:

        async def all_of(*, resolved: bool) -> list[Review]:
            async def page(after: str) -> list[Any]:
                return await store.review_page(connection, campaign, after, 2, resolved=resolved)

            return [store.to_review(row) for row in await pages(page, lambda row: row["review_id"], "")]

        assert await all_of(resolved=True) == reviews
        assert await all_of(resolved=False) == [reviews[0], *reviews[2:]]


async def test_facts_are_read_page_by_page(database: Database) -> None:
    member = fresh("member")
    named = [(FactKind.CARD, "b"), (FactKind.CARD, "c"), (FactKind.ORDER, "a"), (FactKind.ORDER, "d")]
    facts = {name: Fact(kind=name[0], reference_id=name[1], occur_time=NOON) for name in named}
    await keep(database, Profile(member, facts=facts))
    async with database.read() as connection:

        async def page(after: tuple[str, str]) -> list[Any]:
            return await store.fact_page(connection, member, after, 2)

        found = await pages(page, lambda row: (row["kind"], row["reference_id"]), ("", ""))
    assert [store.to_fact(row) for row in found] == list(facts.values())


# --- leaderboards -------------------------------------------------------------------------------------


async def fill_ranks(
    connection: Connection, campaign: str, ranks: Iterable[tuple[str, int, datetime]]
) -> None:
    """Writes many ranks at once: member, count and when that was reached."""
    rows = [(bucket(member), member, campaign, count, time) for member, count, time in ranks]
    await connection.copy_records_to_table("ranks", records=rows)


async def test_on_a_leaderboard_more_come_first_then_who_was_first_then_the_lesser_name(
    database: Database,
) -> None:
    campaign = fresh("campaign")
    a, b, c, d, e = (fresh(name) for name in "abcde")
    named = {
        member: Rank(campaign_id=campaign, count=count, reach_time=NOON + hours * HOUR)
        for member, count, hours in ((a, 2, 3), (b, 3, 5), (c, 2, 1), (d, 0, 0), (e, 2, 3))
    }
    invite = an_invite(campaign, fresh("CODE"), masked_name="张**")
    await keep(
        database,
        *(
            Profile(member, ranks={campaign: rank}, invites={campaign: invite} if member == c else {})
            for member, rank in named.items()
        ),
    )
    async with database.read() as connection:
        top = await store.leaderboard(connection, campaign, 100)
        expected = [
            store.Place(number, member, named[member], "张**" if member == c else "")
            for number, member in enumerate((b, c, a, e), 1)
        ]
        assert top == expected
        assert await store.leaderboard(connection, campaign, 2) == top[:2]
        for place in top:
            assert await store.place(connection, campaign, place.member_id) == place
        assert await store.place(connection, campaign, d) is None
        assert await store.place(connection, fresh("campaign"), a) is None


async def read_of(connection: Connection, index: str) -> tuple[int, int]:
    """How often an index was scanned, and how many of its entries were read, by all who are done."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    row = await connection.fetchrow(
        "SELECT idx_scan, idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = $1", index
    )
    return row["idx_scan"], row["idx_tup_read"]


async def test_a_place_is_counted_to_ten_thousand_and_read_with_one_scan_of_the_index(
    database: Database,
) -> None:
    campaign, index = fresh("campaign"), "ranks_leaderboard"
    members = [fresh("member") for _ in range(store.EXACT + 50)]
    many = [(member, 9 - number // 3000, NOON + number * HOUR) for number, member in enumerate(members)]
    async with database.read() as connection:
        await fill_ranks(connection, campaign, many)
        for number, place, most in ((1, 1, 0), (700, 700, 699), (store.EXACT, store.EXACT, store.EXACT - 1)):
            before = await read_of(connection, index)
            found = await store.place(connection, campaign, members[number - 1])
            scans, entries = await read_of(connection, index)
            assert found is not None
            assert found.number == place
            assert (scans - before[0], entries - before[1]) == (1, most)
        for number in (store.EXACT + 1, store.EXACT + 50):
            found = await store.place(connection, campaign, members[number - 1])
            assert found is not None
            assert found.number == store.EXACT + 1
        before = await read_of(connection, index)
        top = await store.leaderboard(connection, campaign, 100)
        scans, entries = await read_of(connection, index)
        assert [place.member_id for place in top] == members[:100]
        assert (scans - before[0], entries - before[1]) == (1, 100)


# --- the budget ---------------------------------------------------------------------------------------


async def spend(database: Database, **more: Any) -> None:
    """Sets what a campaign may spend, and what it has."""
    campaign = more.pop("campaign_id")
    async with database.begin() as connection:
        before = await store.lock_budgets(connection, [campaign])
        await store.save_budgets(connection, before, {campaign: replace(before[campaign], **more)})


async def test_every_campaign_has_a_budget(database: Database) -> None:
    first, second = fresh("campaign"), fresh("campaign")
    budget = Budget(campaign_id=first, budget_minor=500, granted_minor=100, exhausted=True, version=3)
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, budgets={first, second}))
        assert seen.budgets == {name: Budget(campaign_id=name) for name in (first, second)}
        after = replace(seen, budgets=seen.budgets | {first: budget})
        await store.save(connection, Changes(seen, after), NOON)
    async with database.read() as connection:
        assert await store.budget(connection, first) == budget
        unknown = fresh("campaign")
        assert await store.budget(connection, unknown) == Budget(campaign_id=unknown)


async def test_rewards_are_granted_in_the_order_in_which_they_were_reached(database: Database) -> None:
    campaign, slow = fresh("campaign"), fresh("campaign")
    members = [fresh("member") for _ in range(3)]
    await put(database, a_campaign(campaign))
    await put(database, a_campaign(slow, hold_period=10 * HOUR))
    await put(database, a_campaign(slow, version=2, hold_period=HOUR))

    def at(member: str, minutes: int, **more: Any) -> Reward:
        time = NOON + timedelta(minutes=minutes)
        return a_reward(member, campaign, **{"reach_time": time, "grant_after": time + HOUR} | more)

    a, b, c = members
    first, second, third = at(b, 1), at(a, 2, reward_id=fresh("x")), at(c, 2, reward_id=fresh("y"))
    coming = at(a, 3)
    held = at(a, 0, campaign_id=slow, grant_after=NOON + 10 * HOUR)
    short = at(a, 1, campaign_id=slow, campaign_version=2)
    done = [granted(at(a, 0)), replace(at(a, 0), status=RewardStatus.WITHDRAWN, end_time=NOON)]
    await keep(
        database,
        with_rewards(a, second, coming, held, short, *done),
        with_rewards(b, first),
        with_rewards(c, third),
    )
    now = NOON + HOUR + timedelta(minutes=2)
    async with database.read() as connection:
        waiting = await store.to_grant(connection, campaign, now, 100)
        expected = [(b, first), (a, second), (c, third)]
        assert waiting == [store.Waiting(member, reward.reward_id, 100) for member, reward in expected]
        assert await store.to_grant(connection, campaign, now, 2) == waiting[:2]
        assert await store.to_grant(connection, campaign, NOON, 2) == []
        assert await store.waiting_count(connection, campaign, now) == 3
        assert [one.reward_id for one in await store.to_grant(connection, slow, now, 9)] == [short.reward_id]
    await _block(database, a, "")
    await _block(database, b, slow)
    async with database.read() as connection:
        waiting = await store.to_grant(connection, campaign, now, 100)
        assert [one.reward_id for one in waiting] == [first.reward_id, third.reward_id]
        assert await store.waiting_count(connection, campaign, now) == 3


async def _block(database: Database, member: str, campaign: str) -> None:
    async with database.begin() as connection:
        block = store.Block(member_id=member, campaign_id=campaign, reason="", author="", create_time=NOON)
        await store.block(connection, block)


async def test_a_campaign_is_looked_at_while_something_can_be_granted_told_or_returned(
    database: Database,
) -> None:
    campaign, member = fresh("campaign"), fresh("member")
    await put(database, a_campaign(campaign))
    now = NOON + HOUR

    async def looked_at(at: datetime = now) -> bool:
        async with database.read() as connection:
            return campaign in await store.granting(connection, at)

    await spend(database, campaign_id=campaign)
    assert not await looked_at()
    waits, reward = a_reward(member, campaign), a_reward(member, campaign)
    await keep(database, with_rewards(member, waits))
    assert not await looked_at(NOON)
    assert await looked_at()
    await spend(database, campaign_id=campaign, budget_minor=150, granted_minor=100)
    assert await looked_at()  # that it does not fit has to be told
    await spend(database, campaign_id=campaign, exhausted=True)
    assert not await looked_at()
    await spend(database, campaign_id=campaign, budget_minor=200)
    assert await looked_at()
    await spend(database, campaign_id=campaign, budget_minor=150)
    taken = ended(reward, RewardStatus.CLAWED_BACK)
    await keep(database, with_rewards(member, taken))
    assert await looked_at()
    async with database.read() as connection:
        assert await store.to_return(connection, campaign, 9) == [store.Waiting(member, taken.reward_id, 100)]
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {member}, rewards={(member, taken.reward_id)}))
        await write(connection, seen, with_rewards(member, replace(taken, returned=True)))
    assert not await looked_at()


# --- what the clock asks for --------------------------------------------------------------------------

LONG_AGO = datetime(1980, 1, 1, tzinfo=UTC)  # before what other tests have fall due


async def test_members_for_whom_something_fell_due_are_found_longest_ago_first(database: Database) -> None:
    late, later, due, coming, idle = (fresh("member") for _ in range(5))
    times = {late: -9 * DAY, later: -5 * DAY, due: 0 * DAY, coming: DAY}
    made = [Profile(member, next_due_time=LONG_AGO + time) for member, time in times.items()]
    await keep(database, *made, Profile(idle, version=1))
    async with database.read() as connection:
        assert await store.due_members(connection, LONG_AGO, 100) == [late, later, due]
        assert await store.due_members(connection, LONG_AGO, 2) == [late, later]


async def test_early_facts_of_members_whom_nobody_brought_are_dropped(database: Database) -> None:
    alone, brought, bond = fresh("member"), fresh("member"), a_bond(fresh("campaign"), fresh("inviter"))
    facts = [Fact(kind=FactKind.ORDER, reference_id=name, occur_time=NOON) for name in ("old", "new")]
    named = {fact.name: fact for fact in facts}
    bonds = {bond.campaign_id: bond}
    await keep(database, Profile(alone, facts=named), Profile(brought, facts=named, attributions=bonds))
    age = "UPDATE facts SET receive_time = $1 WHERE reference_id = 'old' AND member_id = ANY($2)"
    async with database.begin() as connection:
        await connection.execute(age, LONG_AGO, [alone, brought])
    for looked in (2, 0):
        async with database.begin() as connection:
            assert await store.drop_early_facts(connection, LONG_AGO + DAY, 100) == looked
    seen = await see(database, Wanted(NOON, {alone, brought}, facts_of={alone, brought}))
    assert seen.profiles[brought].facts == named
    assert list(seen.profiles[alone].facts.values()) == facts[1:]


async def test_a_database_begins_with_its_first_epoch(database: Database) -> None:
    async with database.read() as connection:
        assert await store.epoch(connection) == 1


# --- campaigns ----------------------------------------------------------------------------------------


async def test_campaigns_are_read_in_their_latest_version_or_the_one_that_is_named(
    database: Database,
) -> None:
    prefix = fresh("campaign")
    spring, summer = f"{prefix}-a", f"{prefix}-b"
    closed: dict[str, Any] = {"close_time": NOON + HOUR}
    for campaign in (
        a_campaign(spring, **closed),
        a_campaign(spring, version=2),
        a_campaign(summer),
        a_campaign(summer, version=2, **closed),
    ):
        await put(database, campaign)

    def named(rows: Iterable[Any]) -> list[tuple[str, int]]:
        return [(row["campaign_id"], row["version"]) for row in rows]

    async with database.read() as connection:
        assert named(await store.campaign_page(connection, None, prefix, 2)) == [(spring, 2), (summer, 2)]
        assert named(await store.campaign_page(connection, None, spring, 1)) == [(summer, 2)]
        still_open = await store.campaign_page(connection, NOON + HOUR, prefix, 1)
        assert named(still_open) == [(spring, 2)]
        heads = await store.campaign_heads(connection)
        assert (heads[spring], heads[summer]) == (2, 2)
        latest, first = await store.campaign(connection, spring), await store.campaign(connection, spring, 1)
        assert latest is not None
        assert first is not None
        assert (latest["body"], first["body"]) == (f"{spring} 2".encode(), f"{spring} 1".encode())
        assert await store.campaign(connection, spring, 3) is None
        assert await store.campaign(connection, fresh("none")) is None
        asked = [(spring, 1), (summer, 2), (summer, 3)]
        assert set(named(await store.campaigns(connection, asked))) == set(asked[:2])


async def test_what_campaigns_ask_for_is_heeded_as_long_as_it_can_be_told(database: Database) -> None:
    long_after = NOON + 50_000 * DAY
    campaign = a_campaign(
        fresh("campaign"),
        open_time=long_after,
        close_time=long_after + DAY,
        settle_time=long_after + 2 * DAY,
        clawback_window=3 * DAY,
        qualify=Qualify(kind=FactKind.REGISTRATION),
    )
    await put(database, campaign)
    last = long_after + 5 * DAY + timedelta(days=30)  # as long as the streams keep what was told
    second = timedelta(seconds=1)
    async with database.read() as connection:

        async def heeded(at: datetime) -> bool:
            return FactKind.REGISTRATION in await store.running_kinds(connection, at)

        moments = (long_after - second, long_after, last - second, last)
        assert [await heeded(at) for at in moments] == [False, True, True, False]


# --- erasure ------------------------------------------------------------------------------------------


async def test_of_an_erased_member_what_it_reached_stays_and_what_it_is_goes(database: Database) -> None:
    member, other, campaign = fresh("member"), fresh("member"), fresh("campaign")

    def profile(name: str) -> Profile:
        bond, invite = a_bond(campaign, "inviter"), an_invite(campaign, f"CODE {name}", masked_name="张**")
        fact = Fact(kind=FactKind.ORDER, reference_id="ord", occur_time=NOON, attributes={"city": "杭州"})
        reward = granted(a_reward(name, campaign))
        return Profile(
            name,
            told={"tier": "gold"},
            told_versions={"tier": (1, 7), "card:plus": (1, 8)},
            attributions={campaign: bond},
            facts={fact.name: fact},
            invites={campaign: invite},
            rewards={reward.reward_id: reward},
        )

    made = {name: profile(name) for name in (member, other)}
    event = InboxKey(member, "referral", "orders", fresh("event"), "ORDERS", 11)
    answered = Answered(b"hash", b"an answer")
    review = a_review(member, campaign, verdict="PASS", resolve_time=NOON, note="knows the member")
    for name, kept in made.items():
        await keep(
            database,
            kept,
            done=Done(
                new_answers={(name, "request"): answered}, new_events=[event] if name == member else []
            ),
            signals={SignalSeen(campaign, "DEVICE", "hash", name)},
            reviews={review.review_id: review} if name == member else {},
        )
    await _block(database, member, campaign)
    async with database.begin() as connection:
        await store.lock(connection, Wanted(NOON, {member}))
        await bury(connection, member)
        assert await store.erase(connection, member) == store.Erased(1, 1, 1, 0, 1)
    names = {member, other}
    wanted = Wanted(
        NOON,
        names,
        requests={(name, "request") for name in names},
        facts_of=names,
        signals={SignalSeen(campaign, "DEVICE", "hash", "a third")},
        reviews={review.review_id},
    )
    seen = await see(database, wanted)
    assert seen.profiles[other] == made[other]
    before = made[member]
    facts = {name: replace(fact, attributes=None) for name, fact in before.facts.items()}
    invites = {campaign: replace(before.invites[campaign], masked_name="")}
    gone = replace(before, told={}, told_versions={}, facts=facts, invites=invites)
    assert seen.profiles[member] == gone
    assert seen.done.answers == {
        (member, "request"): Answered(b"hash", None),
        (other, "request"): answered,
    }
    assert list(seen.signals.values()) == [1]
    assert seen.reviews[review.review_id].note == ""
    async with database.begin() as connection:
        erased = await connection.fetch(
            "SELECT stream_seq FROM stream_erasures WHERE event_id = ANY($1)",
            [event.event_id, f"of {member}"],
        )
        assert {row["stream_seq"] for row in erased} == {11, 12}
        assert await store.erase(connection, member) == store.Erased(0, 0, 0, 0, 0)


async def bury(connection: Connection, member: str) -> None:
    """A dead letter about a member, which is the first field of its body."""
    body = b"\x0a" + bytes([len(member)]) + member.encode() + b"and more"
    letter = Delivery("orders.v1.OrderPaid", body, "orders", f"of {member}", "", "ORDERS", 12)
    await store.DEAD_LETTERS.bury(connection, "referral", letter, MemberUnknown(member_id=member))
