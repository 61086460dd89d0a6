"""Who may do what, with tokens checked against a key file: by method, by scope, by member."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.auth import MemberAccess
from services.cli.house import House
from services.groups.api import ADMIN, METHODS, READ, WRITE
from tests.contract import call
from tests.database import ask
from tests.groups.calls import Maker, at, groups_of, join, known, nearby, seat, settle, tag
from tests.groups.requests import GOOD, fingerprint
from tests.issuer import Issuer, guarded, refuses_bad_tokens, refuses_other_members, refuses_other_scopes
from tests.support import Groups, fresh, outcome, refused

EVERYTHING = f"{READ} {WRITE} {ADMIN}"
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])
SERVICE = "/loyalty.groups.v1.GroupsService/"
OWN_READS = {"ListNearbyGroups", "ListMemberGroups", "GetMemberTags"}
OWN_ACTS = {"AssignMember"}
OPERATORS = {
    *("OpenGroup", "OpenFlashGroup", "DissolveGroup", "PreviewScheme", "PutSite", "BatchPutSites"),
    *("CloseSite", "PutScheme", "PutProgramme", "ExportMember", "EraseMember"),
}


@pytest.fixture(scope="module")
def issuer(house: House, data: Path) -> Iterator[Issuer]:
    """The house, with a further process of its service that has a key file and no open door."""
    with guarded(house, "groups", data, EVERYTHING) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def desk(issuer: Issuer) -> Iterator[Groups]:
    """A caller with every scope."""
    with issuer.open(Groups) as groups:
        yield groups


def good(groups: Groups, method: str, member: str) -> Message:
    """A good request of a method, about a member."""
    request = GOOD[method](groups)
    if "member_id" in request.DESCRIPTOR.fields_by_name:
        request.member_id = member  # type: ignore[attr-defined]
    return request


@EACH_METHOD
def test_no_method_opens_without_a_good_token(issuer: Issuer, desk: Groups, method: str) -> None:
    refuses_bad_tokens(issuer, desk, method, GOOD[method](desk))


@EACH_METHOD
def test_every_method_needs_its_scope_and_says_so_before_anything_else(
    issuer: Issuer, desk: Groups, method: str
) -> None:
    needed = METHODS[method].scope
    others = " ".join({READ, WRITE, ADMIN, "points.admin", "groups"} - {needed})
    request = good(desk, method, fresh("nobody"))
    with issuer.open(Groups, others) as groups:
        refuses_other_scopes(groups, method, needed, request, lambda: fingerprint(desk))
    with issuer.open(Groups, needed) as groups:
        let_in = {StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION}
        if method == SERVICE + "VerifyWecomCallback":
            with refused(StatusCode.PERMISSION_DENIED, "CALLBACK_REFUSED"):
                call(groups, method, GOOD[method](groups))
        else:
            assert outcome(lambda: call(groups, method, request)) in let_in


def test_the_table_opens_to_members_what_is_their_own_to_decide() -> None:
    opened = {method: row for method, row in METHODS.items() if row.member is not MemberAccess.NONE}
    reads = {method.rsplit("/")[-1] for method, row in opened.items() if row.member is MemberAccess.READ}
    acts = {method.rsplit("/")[-1] for method, row in opened.items() if row.member is MemberAccess.ACT}
    assert (reads, acts) == (OWN_READS, OWN_ACTS)
    assert all(METHODS[SERVICE + name].scope == READ for name in OWN_READS)
    assert all(METHODS[SERVICE + name].scope == WRITE for name in OWN_ACTS)
    assert {method.rsplit("/")[-1] for method, row in METHODS.items() if row.scope == ADMIN} == OPERATORS


def test_a_member_looks_around_and_takes_a_seat(issuer: Issuer, desk: Groups) -> None:
    member, make = fresh("member"), Maker(desk)
    region, _ = settle(desk)
    scheme = make()
    tag(desk, member, wish="tea")
    with issuer.open(Groups, f"{READ} {WRITE}", member_id=member) as own:
        assert nearby(own, scheme, member, location=at(region), page_size=1).groups
        mine = seat(own, member, scheme, location=at(region))
        join(desk, member, mine.group)  # that it came, the brand tells
        [listed] = groups_of(own, member)
        assert listed.membership.status == pb.MEMBERSHIP_STATUS_JOINED
        assert [one.key for one in known(own, member).tags] == ["wish"]
    make.withdraw()


@EACH_METHOD
def test_a_member_sees_no_other_member_and_calls_nothing_else(
    issuer: Issuer, desk: Groups, method: str
) -> None:
    member, other = fresh("member"), fresh("member")
    for who in (member, other):
        tag(desk, who, wish="tea")
    before, opened = fingerprint(desk), method.removeprefix(SERVICE) in OWN_READS | OWN_ACTS
    with issuer.open(Groups, member_id=member) as groups:
        mine, another = (good(desk, method, who) for who in (member, other))
        refuses_other_members(groups, method, mine, another, opened=opened)
    assert fingerprint(desk) == before


def test_who_put_a_scheme_or_a_site_is_on_record(issuer: Issuer) -> None:
    with issuer.open(Groups, sub="li.na") as groups:
        make = Maker(groups)
        scheme, (_, [site]) = make(), settle(groups)
        make.withdraw()
    query = "SELECT DISTINCT author FROM schemes WHERE scheme_id = $1"
    assert [row["author"] for row in ask(issuer.house, "groups", query, scheme.scheme_id)] == ["li.na"]
    query = "SELECT author FROM sites WHERE site_id = $1"
    assert [row["author"] for row in ask(issuer.house, "groups", query, site.site_id)] == ["li.na"]
