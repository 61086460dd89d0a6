"""What others tell reaches members once, however often it comes; what is nobody's here is left aside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.message import Message
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as groups
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.consumer import Outcome
from services.chassis.database import Database
from services.chassis.ids import bucket
from services.cli.servers import Postgres
from services.referral.domain.campaigns import FactKind
from services.referral.domain.profile import AttributionStatus, Fact, InviteeState, Reward, RewardStatus
from services.referral.errors import AlreadyMember
from services.referral.subscriptions import STREAMS
from tests.referral import calls
from tests.referral.clockwork import Clockwork, make_database
from tests.support import fresh

DAY = timedelta(days=1)
OF_CARDS = {"qualify": {"kind": "QUALIFICATION_KIND_CARD"}}
OF_GROUPS = {"qualify": {"kind": "QUALIFICATION_KIND_GROUP"}, "hold_period_hours": 48}


@pytest.fixture
def club(database: Database) -> Clockwork:
    """A club in which it is NOON."""
    return Clockwork(database)


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Why events were refused."""
    return [outcome.reason if outcome else "" for outcome in outcomes]


async def one_brought(club: Clockwork, **said: Any) -> tuple[pb.Campaign, str, str]:
    """A campaign of the test's own, an inviter, and a member whom it brought."""
    campaign, inviter, member = await club.put(**said), fresh("ann"), fresh("ben")
    await club.bring(campaign, inviter, member)
    return campaign, inviter, member


async def status(club: Clockwork, campaign: pb.Campaign, member: str) -> AttributionStatus:
    """Where a member's attribution stands."""
    return (await club.profile(member)).attributions[campaign.campaign_id].status


# --- the brand's orders -------------------------------------------------------------------------------


async def test_an_order_counts_once_however_often_it_is_told(club: Clockwork) -> None:
    campaign, _inviter, member = await one_brought(club)
    once = club.delivery(club.paid(member, "order-1"))
    again = [replace(once, stream_seq=once.stream_seq + number) for number in range(20)]
    assert await club.deliver(*again) == [None] * 20
    assert await club.tell(club.paid(member, "order-1")) == [None]
    assert await club.announced(member) == ["InviteeBound", "InviteeQualified"]
    bond = (await club.profile(member)).attributions[campaign.campaign_id]
    assert (bond.kind, bond.reference_id, bond.amount_minor) == (FactKind.ORDER, "order-1", 3_000)
    query = "SELECT stream FROM inbox WHERE bucket = $1 AND member_id = $2 AND event_id = $3"
    async with club.database.read() as connection:
        rows = await connection.fetch(query, bucket(member), member, once.event_id)
    assert [row["stream"] for row in rows] == [once.stream]


async def test_what_an_order_is_about_is_what_the_campaign_may_ask_for(club: Clockwork) -> None:
    when = "amount_minor >= 2000 && store_id == 'store-1' && city == '杭州' && channel == 'app'"
    campaign, _, member = await one_brought(club, qualify={"kind": "QUALIFICATION_KIND_ORDER", "when": when})
    elsewhere = club.paid(member)
    elsewhere.order.city = "北京"
    assert await club.tell(club.paid(member, minor=1_999), elsewhere) == [None, None]
    assert await status(club, campaign, member) is AttributionStatus.BOUND
    assert await club.tell(club.paid(member, minor=2_000)) == [None]
    assert await status(club, campaign, member) is AttributionStatus.QUALIFIED


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "the refund first"])
async def test_an_order_that_is_refunded_counts_no_more(club: Clockwork, backwards: bool) -> None:
    campaign, inviter, member = await one_brought(club)
    told: list[Message] = [club.paid(member, "order-1"), club.refunded(member, "order-1")]
    for message in reversed(told) if backwards else told:
        assert await club.tell(message) == [None]
    assert await status(club, campaign, member) is AttributionStatus.REVOKED
    await club.hear(member)
    (invitee,) = (await club.profile(inviter, campaign)).invitees.values()
    assert invitee.state is InviteeState.REVOKED


async def test_refunds_of_lines_and_of_an_amount_lower_what_an_order_is_worth(club: Clockwork) -> None:
    when = {"kind": "QUALIFICATION_KIND_ORDER", "when": "amount_minor >= 2000"}
    campaign, _, member = await one_brought(club, qualify=when)
    await club.tell(club.paid(member, "order-1"))
    of_lines = club.refunded(member, "order-1")
    of_lines.refund.lines.lines.add(line_id="1", amount_minor=600)
    await club.tell(of_lines, of_lines)
    bond = (await club.profile(member)).attributions[campaign.campaign_id]
    assert (bond.status, bond.amount_minor) == (AttributionStatus.QUALIFIED, 2_400)
    await club.tell(club.refunded(member, "order-1", 401))
    assert await status(club, campaign, member) is AttributionStatus.REVOKED


async def test_an_order_that_comes_before_the_bond_counts_once_it_is_there(club: Clockwork) -> None:
    campaign, inviter, member = await club.put(), fresh("ann"), fresh("ben")
    assert await club.tell(club.paid(member, "order-1")) == [None]
    assert await club.announced(member) == []
    club.wait(hours=1)
    await club.bring(campaign, inviter, member)
    assert await club.announced(member) == ["InviteeBound", "InviteeQualified"]


# --- cards --------------------------------------------------------------------------------------------


def activated(club: Clockwork, member: str, **said: Any) -> cards.CardActivated:
    """A card that a member bought just now."""
    whole = {
        "card_id": "card_1",
        "plan_id": "king",
        "plan_version": 1,
        "family": "food",
        "segment_id": "seg_1",
        "start_time": club.stamp,
        "end_time": calls.stamp(club.clock.at + 30 * DAY),
        "card_order_id": "ord_1",
        "paid_minor": 1_900,
        "currency_code": "CNY",
        **said,
    }
    return cards.CardActivated(**club.head(member), **whole)


async def test_a_card_that_was_bought_counts_until_it_is_given_back(club: Clockwork) -> None:
    when = "product == 'king' && !renewal && !gift && amount_minor > 0"
    campaign, _, member = await one_brought(club, qualify={**OF_CARDS["qualify"], "when": when})
    others = (
        activated(club, member, segment_id="seg_2", gift=True),
        activated(club, member, segment_id="seg_3", renewal=True),
        activated(club, member, segment_id="seg_4", plan_id="queen"),
        activated(club, member, segment_id="seg_5", card_order_id="", reward_id="rwd_1"),
    )
    assert await club.tell(*others) == [None] * 4
    assert await status(club, campaign, member) is AttributionStatus.BOUND
    assert await club.tell(activated(club, member)) == [None]
    assert await status(club, campaign, member) is AttributionStatus.QUALIFIED
    back = cards.CardRefunded(
        **club.head(member, 2),
        card_id="card_1",
        plan_id="king",
        segment_id="seg_9",
        family="food",
        later_segment_ids=["seg_1"],
    )
    assert await club.tell(back) == [None]
    assert await status(club, campaign, member) is AttributionStatus.REVOKED


async def test_a_period_that_a_reward_gave_is_nothing_that_was_bought(club: Clockwork) -> None:
    campaign, _, member = await one_brought(club, **OF_CARDS)
    gift = activated(club, member, card_order_id="", reward_id="rwd_1", paid_minor=0, currency_code="")
    assert await club.tell(gift) == [None]
    assert await status(club, campaign, member) is AttributionStatus.BOUND


# --- groups -------------------------------------------------------------------------------------------


def joined(club: Clockwork, member: str, scheme_id: str, membership_id: str = "mbr_1") -> groups.MemberJoined:
    where: dict[str, Any] = {"membership_id": membership_id, "group_id": "grp_1", "scheme_id": scheme_id}
    return groups.MemberJoined(**club.head(member), **where, membership_number=1)


def left(club: Clockwork, member: str, scheme_id: str, reason: int, version: int = 2) -> groups.MemberLeft:
    where = {"membership_id": "mbr_1", "group_id": "grp_1", "scheme_id": scheme_id}
    return groups.MemberLeft(**club.head(member, version), **where, reason=reason)  # type: ignore[arg-type]


async def test_who_joins_and_leaves_while_rewards_wait_counts_no_more(club: Clockwork) -> None:
    campaign, _, member = await one_brought(club, **OF_GROUPS)
    assert await club.tell(joined(club, member, "fans")) == [None]
    assert await status(club, campaign, member) is AttributionStatus.QUALIFIED
    club.wait(hours=47)
    assert await club.tell(left(club, member, "fans", groups.MEMBER_LEAVE_REASON_LEFT)) == [None]
    assert await status(club, campaign, member) is AttributionStatus.REVOKED


@pytest.mark.parametrize(
    ("hours", "reason"),
    [(49, groups.MEMBER_LEAVE_REASON_LEFT), (1, groups.MEMBER_LEAVE_REASON_GROUP_DISSOLVED)],
    ids=["after the hold period", "with the group"],
)
async def test_who_leaves_later_or_loses_its_group_counts(club: Clockwork, hours: int, reason: int) -> None:
    campaign, _, member = await one_brought(club, **OF_GROUPS)
    await club.tell(joined(club, member, "fans"))
    club.wait(hours=hours)
    assert await club.tell(left(club, member, "fans", reason)) == [None]
    assert await status(club, campaign, member) is AttributionStatus.QUALIFIED


async def test_a_groups_newcomer_has_an_invite_once_and_its_rewards_are_told_there(
    club: Clockwork,
) -> None:
    scheme_id, member = fresh("fans"), fresh("ann")
    campaign = await club.put(auto_invite_scheme_id=scheme_id)
    assert await club.tell(joined(club, member, fresh("other"))) == [None]
    assert await club.announced(member) == []
    for _ in range(2):
        assert await club.tell(joined(club, member, scheme_id)) == [None]
    (invite,) = await club.heard(member, epb.InviteCreated)
    assert (invite.campaign_id, invite.group_id) == (campaign.campaign_id, "grp_1")
    assert (await club.invite(campaign, member)).code == invite.code
    friend = fresh("ben")
    await club.bring(campaign, member, friend)
    await club.tell(club.paid(friend))
    await club.hear(friend)
    assert [granted.announce_group_id for granted in await club.reward(member)] == ["grp_1"]


# --- what holds of members ----------------------------------------------------------------------------


async def test_tiers_cards_and_groups_decide_who_is_new(club: Clockwork) -> None:
    wants = [
        {"name": "new", "expression": "tier == '' && !('food' in cards) && !('fans' in groups)"},
    ]
    campaign, member = await club.put(invitee_eligible=wants), fresh("ben")
    invite = await club.invite(campaign, fresh("ann"))
    begins = (
        points.TierChanged(**club.head(member, 7), to_tier="gold"),
        activated(club, member),
        joined(club, member, "fans"),
    )
    ends = (
        points.TierChanged(**club.head(member, 8), from_tier="gold", to_tier=""),
        cards.CardExpired(
            **club.head(member, 2),
            card_id="card_1",
            plan_id="king",
            segment_id="seg_1",
            family="food",
            end_time=club.stamp,
        ),
        left(club, member, "fans", groups.MEMBER_LEAVE_REASON_LEFT),
    )
    for begin, end in zip(begins, ends, strict=True):
        assert await club.tell(begin) == [None]
        with pytest.raises(AlreadyMember):
            await club.club.bind(member, invite)
        # What is older than what is known says nothing.
        assert await club.tell(end) == await club.tell(begin) == [None]
    assert (await club.club.bind(member, invite)).member_id == member


async def test_a_period_that_is_queued_does_not_run_yet_and_one_that_rests_does_not_either(
    club: Clockwork,
) -> None:
    member, later = fresh("ben"), calls.stamp(club.clock.at + DAY)
    await club.tell(activated(club, member, start_time=later))
    assert (await club.profile(member)).told == {}
    about: dict[str, Any] = {"card_id": "card_1", "plan_id": "king", "segment_id": "seg_1", "family": "food"}
    frozen = cards.CardFrozen(**club.head(member, 3), **about, resume_time=later)
    resumed = cards.CardResumed(**club.head(member, 4), **about, end_time=later)
    known = []
    for told in (activated(club, member), frozen, resumed):
        assert await club.tell(told) == [None]
        known.append((await club.profile(member)).told)
    assert known == [{"card:food": "food"}, {}, {"card:food": "food"}]


# --- ourselves ----------------------------------------------------------------------------------------


async def test_news_of_an_invitee_in_any_order_end_in_the_same(club: Clockwork) -> None:
    campaign, inviter, member = await one_brought(club)
    await club.tell(club.paid(member, "order-1"))
    await club.tell(club.refunded(member, "order-1"))
    told: list[Any] = [
        *await club.heard(member, epb.InviteeBound),
        *await club.heard(member, epb.InviteeQualified),
        *await club.heard(member, epb.InviteeRevoked),
    ]
    assert [message.version for message in told] == [1, 2, 3]
    assert await club.tell(*reversed(told), *told) == [None] * 6
    (invitee,) = (await club.profile(inviter, campaign)).invitees.values()
    assert (invitee.state, invitee.told, invitee.member_id) == (InviteeState.REVOKED, (1, 3), member)
    assert invitee.bind_time == club.clock.at
    assert (await club.announced(inviter)).count("StepReached") == 0


async def test_an_invitee_who_counts_brings_its_inviter_a_rung_and_a_reward(club: Clockwork) -> None:
    campaign, inviter, member = await one_brought(club)
    await club.tell(club.paid(member))
    assert await club.hear(member) == 2
    assert await club.announced(inviter) == ["InviteCreated", "StepReached"]
    profile = await club.profile(inviter, campaign)
    (rung,) = profile.rungs.values()
    (reward,) = profile.rewards.values()
    assert (rung.step_id, reward.status) == ("first", RewardStatus.PENDING)


async def test_of_two_levels_both_hear_of_an_invitee(club: Clockwork) -> None:
    campaign = await club.put(max_depth=2)
    far, near, member = fresh("far"), fresh("near"), fresh("ben")
    await club.bring(campaign, far, near)
    await club.bring(campaign, near, member)
    await club.tell(club.paid(member))
    await club.hear(near, member)
    for inviter, depth in ((near, 1), (far, 2)):
        invitees = (await club.profile(inviter, campaign)).invitees.values()
        assert [one.state for one in invitees if (one.member_id, one.depth) == (member, depth)] == [
            InviteeState.QUALIFIED
        ]


# --- rewards ------------------------------------------------------------------------------------------


async def with_reward(club: Clockwork, side: str = "reward") -> tuple[str, str, Reward]:
    """An inviter, who got a reward granted, who gets it, and the reward: of that side of the invitation."""
    ladder = [{"step_id": "first", "at": 1, side: calls.points(88)}]
    _campaign, inviter, member = await one_brought(club, ladder=ladder)
    await club.tell(club.paid(member))
    await club.hear(member)
    receiver = inviter if side == "reward" else member
    await club.reward(receiver)
    return inviter, receiver, await only_reward(club, inviter)


async def only_reward(club: Clockwork, inviter: str) -> Reward:
    query = "SELECT campaign_id FROM invites WHERE bucket = $1 AND member_id = $2"
    async with club.database.read() as connection:
        campaign_id = await connection.fetchval(query, bucket(inviter), inviter)
    profile = await club.profile(inviter, pb.Campaign(campaign_id=campaign_id))
    (reward,) = profile.rewards.values()
    return reward


def done(club: Clockwork, member: str, reward_id: str) -> points.RewardFulfilled:
    return points.RewardFulfilled(**club.head(member, 9), reward_id=reward_id, transaction_id="txn_1")


def refused(club: Clockwork, member: str, reward_id: str) -> points.FulfilmentRefused:
    return points.FulfilmentRefused(**club.head(member, 8), reward_id=reward_id, reason="BALANCE_LIMIT")


@pytest.mark.parametrize("side", ["reward", "invitee_reward"])
async def test_a_reward_is_closed_by_whoever_handed_it_over_once(club: Clockwork, side: str) -> None:
    inviter, receiver, reward = await with_reward(club, side)
    told = done(club, receiver, reward.reward_id)
    assert await club.tell(told, told) == [None, None]
    closed = await only_reward(club, inviter)
    assert (closed.status, closed.reference_id) == (RewardStatus.FULFILLED, "txn_1")
    (fulfilled,) = await club.heard(receiver, epb.RewardFulfilled)
    assert (fulfilled.reward_id, fulfilled.version) == (reward.reward_id, 2)


async def test_a_reward_that_is_refused_has_failed_until_it_is_handed_over(club: Clockwork) -> None:
    inviter, receiver, reward = await with_reward(club)
    told = club.delivery(refused(club, receiver, reward.reward_id))
    assert await club.deliver(told, told) == [None, None]
    failed = await only_reward(club, inviter)
    assert (failed.status, failed.reason) == (RewardStatus.FAILED, "BALANCE_LIMIT")
    assert await club.tell(done(club, receiver, reward.reward_id)) == [None]
    assert (await only_reward(club, inviter)).status is RewardStatus.FULFILLED
    assert (await club.announced(receiver))[-3:] == ["RewardGranted", "RewardFailed", "RewardFulfilled"]


@pytest.mark.parametrize("kind", [cards, groups], ids=["cards", "groups"])
async def test_cards_and_groups_close_what_they_give(club: Clockwork, kind: Any) -> None:
    inviter, receiver, reward = await with_reward(club)
    of_cards = {"card_id": "card_1", "plan_id": "king", "segment_id": "seg_1"}
    of_groups = {"membership_id": "mbr_1", "group_id": "grp_1", "scheme_id": "fans"}
    given = of_cards if kind is cards else of_groups
    head = club.head(receiver)
    assert await club.tell(
        kind.FulfilmentRefused(**head, reward_id=reward.reward_id, reason="NO"),
        kind.RewardFulfilled(**head, reward_id=reward.reward_id, **given),
    ) == [None, None]
    closed = await only_reward(club, inviter)
    assert closed.status is RewardStatus.FULFILLED
    assert closed.reference_id in given.values()


# --- what asks for nothing here -----------------------------------------------------------------------


@pytest_asyncio.fixture
async def quiet(referral_server: Postgres) -> AsyncIterator[Clockwork]:
    """A club of its own, in which nobody else puts campaigns."""
    url = await asyncio.to_thread(make_database, referral_server)
    database = await Database.open(url, size=2, name="test")
    yield Clockwork(database)
    await database.close()


async def test_what_no_campaign_asks_for_takes_no_lock_and_leaves_no_trace(quiet: Clockwork) -> None:
    member = fresh("ann")
    told = (
        quiet.paid(member),
        quiet.refunded(member, "order-1"),
        done(quiet, member, "rwd_" + "0" * 32),
        refused(quiet, member, ""),
    )
    await quiet.put(**OF_CARDS)
    over = {"open_time": "2026-01-01T00:00:00Z", "close_time": "2026-02-01T00:00:00Z"}
    await quiet.put(**over, settle_time="2026-03-01T00:00:00Z")
    async with quiet.database.begin() as connection:
        await connection.execute("LOCK TABLE members IN ACCESS EXCLUSIVE MODE")  # whoever wants one waits
        assert await quiet.tell(*told) == [None] * 4
    assert not await quiet.known(member)
    async with quiet.database.read() as connection:
        assert await connection.fetch("SELECT FROM inbox") == []


async def test_of_a_campaign_that_asks_for_orders_they_are_kept_though_nobody_brought_the_member(
    quiet: Clockwork,
) -> None:
    member = fresh("ann")
    await quiet.put()
    order = quiet.paid(member, "order-1")
    assert await quiet.tell(order, activated(quiet, member)) == [None, None]
    facts = (await quiet.profile(member)).facts
    assert facts == {
        (FactKind.ORDER, "order-1"): Fact(
            kind=FactKind.ORDER,
            reference_id="order-1",
            occur_time=quiet.clock.at,
            amount_minor=3_000,
            currency_code="CNY",
            attributes={"store_id": "store-1", "city": "杭州", "channel": "app"},
        )
    }


async def test_poison_is_refused_and_its_neighbours_are_applied(club: Clockwork) -> None:
    member = fresh("ann")
    sound = points.TierChanged(**club.head(member), to_tier="gold")
    garbage = replace(club.delivery(sound), body=b"\xff\xff")
    nobody = club.delivery(points.TierChanged(**club.head("no such member!"), to_tier="gold"))
    never = club.refunded(member, fresh("order"))
    never.refund.refund_time.nanos = 2_000_000_000
    strange = club.delivery(sound, subject="loyalty.points.v1.PointsPosted")
    outcomes = await club.deliver(garbage, nobody, club.delivery(never), strange, club.delivery(sound))
    assert reasons(outcomes) == [*["MALFORMED_REQUEST"] * 4, ""]
    assert (await club.profile(member)).told == {"tier": "gold"}


def test_each_stream_is_asked_for_what_is_read_here() -> None:
    assert {stream: len(names) for stream, (_, names) in STREAMS.items()} == {
        "ORDERS": 2,
        "POINTS": 3,
        "CARDS": 7,
        "GROUPS": 4,
        "REFERRAL": 4,
    }
    assert all(
        any(name.startswith(subject[:-1]) for subject in subjects)
        for subjects, names in STREAMS.values()
        for name in names
    )
