"""Who may do what, with tokens checked against a key file: by method, by scope, by member."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.auth import MemberAccess
from services.cli.house import House
from services.referral.api import ADMIN, METHODS, READ, WRITE
from tests.contract import call
from tests.database import ask
from tests.issuer import Issuer, guarded, refuses_bad_tokens, refuses_other_members, refuses_other_scopes
from tests.referral.calls import (
    bring,
    close,
    invite,
    invitees,
    leaderboard,
    made,
    points,
    progress,
    qualify,
    rewards,
    until_granted,
)
from tests.referral.requests import GOOD, fingerprint
from tests.support import Referral, eventually, fresh, outcome

EVERYTHING = f"{READ} {WRITE} {ADMIN}"
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])
SERVICE = "/loyalty.referral.v1.ReferralService/"
OWN_READS = {"GetInvite", "GetProgress", "ListInvitees", "ListRewards", "GetLeaderboard"}
OWN_ACTS = {"CreateInvite"}
OPERATORS = {
    *("ListReviews", "ResolveReview", "ListOpenRewards", "RetryReward", "WriteOffReward", "PutCampaign"),
    *("CloseCampaign", "GetBudget", "BlockInviter", "UnblockInviter", "ExportMember", "EraseMember"),
}


@pytest.fixture(scope="module")
def issuer(house: House, data: Path) -> Iterator[Issuer]:
    """The house, with a further process of its service that has a key file and no open door."""
    with guarded(house, "referral", data, EVERYTHING) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def desk(issuer: Issuer) -> Iterator[Referral]:
    """A caller with every scope."""
    with issuer.open(Referral) as referral:
        yield referral


def good(referral: Referral, method: str, member: str) -> Message:
    """A good request of a method, about a member."""
    request = GOOD[method](referral)
    if "member_id" in request.DESCRIPTOR.fields_by_name:
        request.member_id = member  # type: ignore[attr-defined]
    return request


@EACH_METHOD
def test_no_method_opens_without_a_good_token(issuer: Issuer, desk: Referral, method: str) -> None:
    refuses_bad_tokens(issuer, desk, method, GOOD[method](desk))


@EACH_METHOD
def test_every_method_needs_its_scope_and_says_so_before_anything_else(
    issuer: Issuer, desk: Referral, method: str
) -> None:
    needed = METHODS[method].scope
    others = " ".join({READ, WRITE, ADMIN, "points.admin", "referral"} - {needed})
    request = good(desk, method, fresh("nobody"))
    with issuer.open(Referral, others) as referral:
        refuses_other_scopes(referral, method, needed, request, lambda: fingerprint(desk))
    with issuer.open(Referral, needed) as referral:
        let_in = {StatusCode.OK, StatusCode.NOT_FOUND}
        assert outcome(lambda: call(referral, method, request)) in let_in


def test_the_table_opens_to_members_what_is_their_own_to_decide() -> None:
    opened = {method: row for method, row in METHODS.items() if row.member is not MemberAccess.NONE}
    reads = {method.rsplit("/")[-1] for method, row in opened.items() if row.member is MemberAccess.READ}
    acts = {method.rsplit("/")[-1] for method, row in opened.items() if row.member is MemberAccess.ACT}
    assert (reads, acts) == (OWN_READS, OWN_ACTS)
    assert all(METHODS[SERVICE + name].scope == READ for name in OWN_READS)
    assert all(METHODS[SERVICE + name].scope == WRITE for name in OWN_ACTS)
    assert {method.rsplit("/")[-1] for method, row in METHODS.items() if row.scope == ADMIN} == OPERATORS


def test_a_member_sees_what_it_brought_and_no_other_members_names(issuer: Issuer, desk: Referral) -> None:
    step = {"step_id": "first", "at": 1, "reward": points(10), "invitee_reward": points(5)}
    campaign, member = made(desk, ladder=[step]), fresh("member")
    other = bring(desk, campaign, member)
    qualify(desk, campaign, other)
    until_granted(desk, member)
    until_granted(desk, other)
    eventually(lambda: bool(leaderboard(desk, campaign).entries))
    with issuer.open(Referral, f"{READ} {WRITE}", member_id=member) as own:
        assert invite(own, campaign, member).code == invite(desk, campaign, member).code
        assert progress(own, campaign, member).qualified == 1
        [brought] = invitees(own, campaign, member)
        assert (brought.member_id, brought.state) == ("", pb.INVITEE_STATE_QUALIFIED)
        given = rewards(own, member, side=pb.REWARD_SIDE_REACHED)
        assert {one.receiver_member_id for one in given} == {member, ""}
        assert [entry.member_id for entry in leaderboard(own, campaign, member_id=member).entries] == [member]
    with issuer.open(Referral, f"{READ} {WRITE}", member_id=other) as own:
        [given_to_other] = rewards(own, other)
        assert (given_to_other.receiver_member_id, given_to_other.inviter_member_id) == (other, "")
        board = leaderboard(own, campaign, member_id=other)
        assert [(entry.member_id, entry.qualified) for entry in board.entries] == [("", 1)]
        assert board.own == pb.LeaderboardEntry(member_id=other)
    assert [entry.member_id for entry in leaderboard(desk, campaign).entries] == [member]


@EACH_METHOD
def test_a_member_sees_no_other_member_and_calls_nothing_else(
    issuer: Issuer, desk: Referral, method: str
) -> None:
    member, other = fresh("member"), fresh("member")
    campaign = made(desk)
    for who in (member, other):
        invite(desk, campaign, who)
    before, opened = fingerprint(desk), method.removeprefix(SERVICE) in OWN_READS | OWN_ACTS
    with issuer.open(Referral, member_id=member) as referral:
        mine, another = (good(desk, method, who) for who in (member, other))
        refuses_other_members(referral, method, mine, another, opened=opened)
    assert fingerprint(desk) == before


def test_who_put_and_who_closed_a_campaign_is_on_record(issuer: Issuer) -> None:
    with issuer.open(Referral, sub="li.na") as referral:
        campaign = made(referral)
    with issuer.open(Referral, sub="wang.wei") as referral:
        close(referral, campaign)
    query = "SELECT author FROM campaigns WHERE campaign_id = $1 ORDER BY version"
    rows = ask(issuer.house, "referral", query, campaign.campaign_id)
    assert [row["author"] for row in rows] == ["li.na", "wang.wei"]
