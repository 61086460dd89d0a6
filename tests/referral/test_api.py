"""Inviting by call: codes, bonds, what members do, and what the inviter gets for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from grpc import StatusCode
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from tests.conftest import NOON
from tests.referral.calls import (
    a_campaign,
    bind,
    bring,
    close,
    instant,
    invite,
    invitees,
    leaderboard,
    made,
    points,
    progress,
    put,
    qualify,
    revoke,
    rewards,
    stamp,
    until_granted,
)
from tests.support import Referral, eventually, fresh, outcome, refused

LADDER = [
    {"step_id": "one", "at": 1, "reward": points(1_000), "invitee_reward": points(100)},
    {"step_id": "three", "at": 3, "reward": points(5_000)},
    {"step_id": "more", "every": {"count": 2, "first": 4}, "reward": points(8_000)},
]


# --- inviting -----------------------------------------------------------------------------------------


def test_a_member_has_one_code_in_a_campaign_whenever_it_asks(referral: Referral) -> None:
    poster = {"headline": "{name}请客", "code": "{code}"}
    campaign = made(referral, share_title="一起来", poster_fields=poster)
    member = fresh("member")
    with refused(StatusCode.NOT_FOUND, "INVITE_UNKNOWN"):
        referral.call(
            referral.referral.GetInvite,
            pb.GetInviteRequest(member_id=member, campaign_id=campaign.campaign_id),
        )
    first = invite(referral, campaign, member, display_name="张三丰")
    assert (first.member_id, first.campaign_id, first.share_title) == (member, campaign.campaign_id, "一起来")
    assert first.poster_fields == {"headline": "张**请客", "code": first.code}
    assert 0 < len(first.scene) <= 32
    assert len(first.code) == 12
    assert invite(referral, campaign, member) == first
    request = pb.GetInviteRequest(member_id=member, campaign_id=campaign.campaign_id)
    assert referral.call(referral.referral.GetInvite, request) == first
    others = {invite(referral, campaign, fresh("member")).code for _ in range(5)}
    assert len(others | {first.code, invite(referral, made(referral), member).code}) == 7


def test_who_may_not_invite_is_told_why(referral: Referral) -> None:
    with refused(StatusCode.NOT_FOUND, "CAMPAIGN_UNKNOWN"):
        invite(referral, a_campaign(), fresh("member"))
    gold = made(referral, inviter_eligible=[{"name": "gold", "expression": "tier == 'gold'"}])
    with refused(StatusCode.FAILED_PRECONDITION, "NOT_ELIGIBLE") as refusal:
        invite(referral, gold, fresh("member"))
    assert refusal.metadata == {"condition": "gold"}
    over, ahead = (
        made(
            referral,
            open_time=(NOON + at).isoformat(),
            close_time=(NOON + at + timedelta(days=1)).isoformat(),
        )
        for at in (timedelta(days=-2), timedelta(days=300))
    )
    for campaign in (over, ahead):
        with refused(StatusCode.FAILED_PRECONDITION, "CAMPAIGN_CLOSED") as refusal:
            invite(referral, campaign, fresh("member"))
        assert refusal.metadata.keys() == {"open_time", "close_time"}


# --- bonds --------------------------------------------------------------------------------------------


def test_the_first_who_brings_counts(referral: Referral) -> None:
    campaign, inviter, member = made(referral), fresh("inviter"), fresh("member")
    code = invite(referral, campaign, inviter).code
    bond = bind(referral, campaign, member, code.lower())
    assert (bond.member_id, bond.inviter_member_id, bond.code) == (member, inviter, code)
    assert (bond.status, bond.campaign_version) == (pb.ATTRIBUTION_STATUS_BOUND, 1)
    assert instant(bond.lapse_time) - instant(bond.bind_time) == timedelta(hours=720)
    another = invite(referral, campaign, fresh("inviter")).code
    for again in (code, another):
        with refused(StatusCode.ALREADY_EXISTS, "ALREADY_BOUND"):
            bind(referral, campaign, member, again)


def test_each_bond_that_cannot_be_has_its_own_reason(referral: Referral) -> None:
    new = [{"name": "new", "expression": "member_days < 30"}]
    campaign, inviter = made(referral, invitee_eligible=new), fresh("inviter")
    other, member = made(referral), fresh("member")
    code = invite(referral, campaign, inviter).code
    with refused(StatusCode.NOT_FOUND, "CAMPAIGN_UNKNOWN"):
        bind(referral, a_campaign(), member, code)
    with refused(StatusCode.NOT_FOUND, "CODE_UNKNOWN"):
        bind(referral, other, member, code)
    with refused(StatusCode.FAILED_PRECONDITION, "SELF_REFERRAL"):
        bind(referral, campaign, inviter, code)
    since = stamp(referral.now - timedelta(days=30))
    with refused(StatusCode.FAILED_PRECONDITION, "ALREADY_MEMBER") as refusal:
        bind(referral, campaign, member, code, member_since=since)
    assert refusal.metadata == {"condition": "new"}
    bind(referral, campaign, member, code)
    back = invite(referral, campaign, member).code
    with refused(StatusCode.FAILED_PRECONDITION, "CYCLE"):
        bind(referral, campaign, inviter, back)
    close(referral, campaign)
    with refused(StatusCode.FAILED_PRECONDITION, "CAMPAIGN_CLOSED"):
        bind(referral, campaign, fresh("member"), code)


def test_a_member_is_brought_once_however_many_try_at_once(referral: Referral) -> None:
    campaign, member = made(referral), fresh("member")
    codes = [invite(referral, campaign, fresh("inviter")).code for _ in range(8)]
    with ThreadPoolExecutor(len(codes)) as pool:
        ends = list(pool.map(lambda code: outcome(lambda: bind(referral, campaign, member, code)), codes))
    assert sorted(end.name for end in ends) == ["ALREADY_EXISTS"] * 7 + ["OK"]


def test_of_two_who_bring_each_other_at_once_at_most_one_is_brought(referral: Referral) -> None:
    campaign = made(referral)
    pairs = [(fresh("one"), fresh("other")) for _ in range(8)]
    codes = {member: invite(referral, campaign, member).code for pair in pairs for member in pair}

    def attempt(who: tuple[str, str]) -> StatusCode:
        return outcome(lambda: bind(referral, campaign, who[0], codes[who[1]]))

    both = [way for one, other in pairs for way in ((one, other), (other, one))]
    with ThreadPoolExecutor(len(both)) as pool:
        ends = list(pool.map(attempt, both))
    for first, second in zip(ends[::2], ends[1::2], strict=True):
        assert {first, second} == {StatusCode.OK, StatusCode.FAILED_PRECONDITION}


def test_whoever_guesses_codes_has_to_wait_and_others_have_not(referral: Referral) -> None:
    campaign, member = made(referral), fresh("member")
    code = invite(referral, campaign, fresh("inviter")).code

    def guess(who: str) -> None:
        bind(referral, campaign, who, "AAAAAAAAAAAA")

    for _ in range(10):
        assert outcome(lambda: guess(member)) in (StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED)
    # A minute may have ended among these; then as many again are too many in the next one.
    tried = 0
    while outcome(lambda: guess(member)) is StatusCode.NOT_FOUND:
        tried += 1
        assert tried <= 10
    with refused(StatusCode.NOT_FOUND, "CODE_UNKNOWN"):
        guess(fresh("member"))
    assert bind(referral, campaign, fresh("member"), code)


# --- what members do ----------------------------------------------------------------------------------


def test_each_step_is_reached_once_and_pays_both_sides(referral: Referral) -> None:
    campaign, inviter = made(referral, ladder=LADDER), fresh("inviter")
    brought = [bring(referral, campaign, inviter) for _ in range(4)]
    for number, member in enumerate(brought):
        answer = qualify(referral, campaign, member, reference_id=f"{inviter}-{number}")
        assert answer.attribution.status == pb.ATTRIBUTION_STATUS_QUALIFIED
        assert answer.attribution.reference_id == f"{inviter}-{number}"
    qualify(referral, campaign, brought[0])  # more of the same counts no more
    eventually(lambda: progress(referral, campaign, inviter).qualified == 4)
    now = progress(referral, campaign, inviter)
    assert (now.pending, now.rejected) == (0, 0)
    steps = [(step.step_id, step.round, step.position, step.attempt) for step in now.steps]
    assert steps == [("more", 1, 4, 1), ("one", 1, 1, 1), ("three", 1, 3, 1)]
    assert (now.next.step_id, now.next.missing) == ("more", 2)
    assert {reward.points.amount for reward in now.rewards} == {1_000, 5_000, 8_000}
    given = until_granted(referral, brought[0])
    assert (given.role, given.points.amount, given.inviter_member_id) == (
        epb.REWARD_ROLE_INVITEE,
        100,
        inviter,
    )
    mine = rewards(referral, inviter, page_size=1)
    assert {reward.step_id for reward in mine} == {"one", "three", "more"}
    assert len(rewards(referral, inviter, side=pb.REWARD_SIDE_REACHED, page_size=3)) == 4


def test_what_is_told_before_the_bond_counts_once_it_is_there(referral: Referral) -> None:
    campaign, inviter, member = made(referral), fresh("inviter"), fresh("member")
    assert not qualify(referral, campaign, member).HasField("attribution")
    bring(referral, campaign, inviter, member)
    eventually(lambda: progress(referral, campaign, inviter).qualified == 1)
    assert until_granted(referral, inviter).points.amount == 1_000


def test_what_is_undone_in_time_takes_the_step_and_its_reward_away(referral: Referral) -> None:
    campaign, inviter = made(referral), fresh("inviter")
    member = bring(referral, campaign, inviter)
    qualify(referral, campaign, member, reference_id=(order := fresh("order")))
    assert until_granted(referral, inviter).status == pb.REWARD_STATUS_GRANTED
    undone = revoke(referral, campaign, member, order)
    assert undone.attribution.status == pb.ATTRIBUTION_STATUS_REVOKED
    eventually(lambda: progress(referral, campaign, inviter).rejected == 1)
    [taken] = rewards(referral, inviter)
    assert (taken.status, taken.reason) == (pb.REWARD_STATUS_CLAWED_BACK, "REFUNDED")
    # Somebody else stands there: the rung is regained, by a reward of its own.
    qualify(referral, campaign, bring(referral, campaign, inviter))
    eventually(lambda: len(rewards(referral, inviter)) == 2)
    [step] = progress(referral, campaign, inviter).steps
    assert (step.attempt, step.lost) == (2, False)


def test_what_was_undone_before_it_was_told_never_counts(referral: Referral) -> None:
    campaign, inviter = made(referral), fresh("inviter")
    member, order = bring(referral, campaign, inviter), fresh("order")
    before = revoke(referral, campaign, member, order, reason=epb.REVOKE_REASON_REQUESTED)
    assert before.attribution.status == pb.ATTRIBUTION_STATUS_BOUND
    told = qualify(referral, campaign, member, reference_id=order)
    assert told.attribution.status == pb.ATTRIBUTION_STATUS_REVOKED  # as in the other order
    eventually(lambda: progress(referral, campaign, inviter).rejected == 1)
    assert not rewards(referral, inviter)


def test_a_campaign_asks_for_one_kind_and_one_worth(referral: Referral) -> None:
    asked = {"kind": "QUALIFICATION_KIND_ORDER", "when": "amount_minor >= 3000 && city == '杭州'"}
    campaign, inviter = made(referral, qualify=asked), fresh("inviter")
    member = bring(referral, campaign, inviter)
    with refused(StatusCode.FAILED_PRECONDITION, "WRONG_KIND") as refusal:
        qualify(referral, campaign, member, kind=epb.QUALIFICATION_KIND_GROUP)
    assert refusal.metadata == {"kind": "ORDER"}
    with refused(StatusCode.NOT_FOUND, "CAMPAIGN_UNKNOWN"):
        qualify(referral, a_campaign(), member)
    here, there = pb.FactDetails(city="杭州"), pb.FactDetails(city="上海")
    ends: list[tuple[dict[str, Any], int]] = [
        ({"amount_minor": 2_999, "details": here}, pb.ATTRIBUTION_STATUS_BOUND),
        ({"amount_minor": 3_000, "details": there}, pb.ATTRIBUTION_STATUS_BOUND),
        ({"amount_minor": 3_000, "details": here}, pb.ATTRIBUTION_STATUS_QUALIFIED),
    ]
    for said, end in ends:
        assert qualify(referral, campaign, member, **said).attribution.status == end


# --- lists --------------------------------------------------------------------------------------------


def test_those_whom_a_member_brought_are_listed_in_pages(referral: Referral) -> None:
    campaign, inviter = made(referral), fresh("inviter")
    brought = [bring(referral, campaign, inviter) for _ in range(5)]
    qualify(referral, campaign, brought[0])
    eventually(lambda: progress(referral, campaign, inviter).qualified == 1)
    eventually(lambda: progress(referral, campaign, inviter).pending == 4)
    for size in (0, 1, 2):
        found = invitees(referral, campaign, inviter, page_size=size)
        assert [one.member_id for one in found] == brought[::-1]
    assert [one.state for one in found] == [*[pb.INVITEE_STATE_BOUND] * 4, pb.INVITEE_STATE_QUALIFIED]
    assert not invitees(referral, campaign, inviter, depth=2)
    nobody = progress(referral, campaign, fresh("nobody"))
    assert (nobody.qualified, nobody.next.missing) == (0, 1)


def test_two_levels_count_each_for_itself(referral: Referral) -> None:
    ladder = [
        {"step_id": "friend", "at": 1, "reward": points(1_000)},
        {"step_id": "their-friend", "depth": 2, "at": 1, "reward": points(10)},
    ]
    campaign = made(referral, ladder=ladder, max_depth=2)
    top, middle, last = (fresh(name) for name in ("top", "middle", "last"))
    bring(referral, campaign, top, middle)
    bring(referral, campaign, middle, last)
    qualify(referral, campaign, last)
    eventually(lambda: progress(referral, campaign, top).qualified_second == 1)
    assert progress(referral, campaign, top).qualified == 0
    assert until_granted(referral, top).step_id == "their-friend"
    assert until_granted(referral, middle).step_id == "friend"
    [below] = invitees(referral, campaign, top, depth=2)
    assert (below.member_id, below.depth) == (last, 2)


def test_the_leaderboard_has_who_brought_most_and_then_who_was_first(referral: Referral) -> None:
    campaign = made(referral)
    inviters = [fresh(f"inviter-{number}") for number in range(3)]
    invite(referral, campaign, inviters[0], display_name="王五")
    for inviter, count, minutes in zip(inviters, (1, 2, 2), (0, 30, 10), strict=True):
        for _ in range(count):
            member = bring(referral, campaign, inviter)
            at = stamp(referral.now - timedelta(minutes=minutes))
            qualify(referral, campaign, member, occur_time=at)
    eventually(lambda: sum(one.qualified for one in leaderboard(referral, campaign).entries) == 5)
    board = leaderboard(referral, campaign, member_id=inviters[0])
    # 30 minutes ago is before 10 minutes ago.
    assert [(one.rank, one.member_id) for one in board.entries] == [
        (1, inviters[1]),
        (2, inviters[2]),
        (3, inviters[0]),
    ]
    assert board.own == board.entries[2]
    assert (board.own.masked_name, board.own.qualified, board.final) == ("王**", 1, False)
    assert leaderboard(referral, campaign, member_id="nobody", size=1).own == pb.LeaderboardEntry(
        member_id="nobody"
    )
    close(referral, campaign)
    assert leaderboard(referral, campaign).final


# --- campaigns ----------------------------------------------------------------------------------------


def test_a_campaign_is_put_in_versions_and_a_bond_keeps_its_own(referral: Referral) -> None:
    campaign, inviter = made(referral), fresh("inviter")
    member = bring(referral, campaign, inviter)
    campaign.attribution_window_hours = 1
    second = put(referral, campaign)
    assert (second.version, instant(second.create_time)) == (2, referral.now)
    kept = qualify(referral, campaign, member).attribution
    assert kept.campaign_version == 1
    request = pb.GetCampaignRequest(campaign_id=campaign.campaign_id, version=1)
    assert referral.call(referral.referral.GetCampaign, request).attribution_window_hours == 720
    request.version = 3
    with refused(StatusCode.NOT_FOUND, "CAMPAIGN_UNKNOWN"):
        referral.call(referral.referral.GetCampaign, request)
    checked = put(referral, campaign, validate_only=True)
    request.version = 0
    assert referral.call(referral.referral.GetCampaign, request).version == checked.version - 1 == 2


def test_campaigns_are_listed_by_id_and_closed_ones_on_demand(referral: Referral) -> None:
    running, over = made(referral), made(referral)
    closed = close(referral, over)
    assert (closed.version, instant(closed.close_time)) == (2, referral.now)
    assert close(referral, over) == closed

    def listed(**asked: Any) -> list[str]:
        found, token = [], ""
        while True:
            request = pb.ListCampaignsRequest(page_size=7, page_token=token, **asked)
            page = referral.call(referral.referral.ListCampaigns, request)
            found += [campaign.campaign_id for campaign in page.campaigns]
            token = page.next_page_token
            if not token:
                return found

    open_now, all_of_them = listed(), listed(include_closed=True)
    assert all_of_them == sorted(all_of_them)
    assert {running.campaign_id, over.campaign_id} <= set(all_of_them)
    assert running.campaign_id in open_now
    assert over.campaign_id not in open_now
    with refused(StatusCode.NOT_FOUND, "CAMPAIGN_UNKNOWN"):
        close(referral, a_campaign())
    ahead = made(referral, open_time=(NOON + timedelta(days=9)).isoformat())
    with refused(StatusCode.FAILED_PRECONDITION, "CAMPAIGN_NOT_OPEN"):
        close(referral, ahead)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"hold_period_hours": 200, "clawback_window_hours": 100}, "campaign.hold_period_hours"),
        (
            {"ladder": [{"step_id": f"at-{n}", "at": n, "reward": points(1)} for n in (4, 3)]},
            "campaign.ladder[1].at",
        ),
        (
            {
                "budget_minor": 10,
                "currency_code": "CNY",
                "ladder": [{"step_id": "one", "at": 1, "reward": points(1, 11)}],
            },
            "campaign.ladder[0].reward",
        ),
    ],
    ids=["hold", "descending", "budget"],
)
def test_a_campaign_that_cannot_be_meant_is_refused_with_each_place(
    referral: Referral, said: dict[str, Any], field: str
) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "CAMPAIGN_INVALID") as refusal:
        put(referral, a_campaign(**said))
    assert refusal.fields == {field}
