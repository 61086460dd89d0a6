"""Who may do what, with tokens checked against a key file: by method, by scope, by member."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.auth import MemberAccess
from services.cli.house import House
from services.points.api import ADMIN, METHODS, READ, WRITE
from tests.contract import call
from tests.issuer import Issuer, guarded, refuses_bad_tokens, refuses_other_members, refuses_other_scopes
from tests.points.calls import a_refund, place, read_hold, refund
from tests.points.requests import GOOD, fingerprint
from tests.support import Points, eventually, fresh, order, outcome, refused

EVERYTHING = f"{READ} {WRITE} {ADMIN}"
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])
POINTS = "/loyalty.points.v1.PointsService/"
SELF_SERVICE = {
    POINTS + name for name in ("QuoteEarn", "GetBalance", "GetHold", "GetTransaction", "ListTransactions")
}


@pytest.fixture(scope="module")
def issuer(house: House, data: Path) -> Iterator[Issuer]:
    """The house, with a further process of its service that has a key file and no open door."""
    with guarded(house, "points", data, EVERYTHING) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def till(issuer: Issuer) -> Iterator[Points]:
    """A caller with every scope."""
    with issuer.open(Points) as points:
        yield points


def good(points: Points, method: str, member: str | None = None) -> Message:
    """A good request of a method, about a member."""
    request = next(make for name, make in GOOD if name == method)(points)
    if member is not None and "member_id" in request.DESCRIPTOR.fields_by_name:
        request.member_id = member  # type: ignore[attr-defined]
    return request


@EACH_METHOD
def test_no_method_opens_without_a_good_token(issuer: Issuer, till: Points, method: str) -> None:
    refuses_bad_tokens(issuer, till, method, good(till, method))


@EACH_METHOD
def test_every_method_needs_its_scope_and_says_so_before_anything_else(
    issuer: Issuer, till: Points, method: str
) -> None:
    needed = METHODS[method].scope
    others = " ".join({READ, WRITE, ADMIN, "cards.admin", "points"} - {needed})
    request = good(till, method, fresh("nobody"))
    with issuer.open(Points, others) as points:
        refuses_other_scopes(points, method, needed, request, lambda: fingerprint(till))
    with issuer.open(Points, needed) as points:
        # Nobody knows the member, so some methods fail; but the caller was let in.
        let_in = {StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION}
        assert outcome(lambda: call(points, method, request)) in let_in


def test_a_member_reads_its_own(issuer: Issuer, till: Points) -> None:
    member = fresh("member")
    made = till.earn(member, order(500, till.now))
    held = place(till, member, 2)
    with issuer.open(Points, READ, member_id=member) as own:
        assert own.balance(member).available == 3
        assert read_hold(own, member, held.hold_id).amount == 2
        one = pb.GetTransactionRequest(member_id=member, transaction_id=made.transaction_id)
        assert own.call(own.points.GetTransaction, one) == made
        whole = own.call(own.points.ListTransactions, pb.ListTransactionsRequest(member_id=member))
        assert list(whole.transactions) == [held, made]
        quote = pb.QuoteEarnRequest(member_id=member, order=order(300, own.now))
        assert own.call(own.points.QuoteEarn, quote).points == 3


def test_the_table_opens_reads_alone_to_members() -> None:
    opened = {method: row for method, row in METHODS.items() if row.member is not MemberAccess.NONE}
    assert set(opened) == SELF_SERVICE
    assert {row.member for row in opened.values()} == {MemberAccess.READ}


@EACH_METHOD
def test_a_member_sees_no_other_member_and_calls_nothing_else(
    issuer: Issuer, till: Points, method: str
) -> None:
    member, other = fresh("member"), fresh("member")
    for who in (member, other):
        till.adjust(who, 5)
    before, opened = fingerprint(till), method in SELF_SERVICE
    with issuer.open(Points, member_id=member) as points:
        mine, another = (good(till, method, who) for who in (member, other))
        refuses_other_members(points, method, mine, another, opened=opened)
    assert fingerprint(till) == before


def test_a_batch_checks_each_item_as_its_own_method(issuer: Issuer) -> None:
    def batch(points: Points) -> pb.BatchPostResponse:
        earn = pb.EarnPointsRequest(
            member_id=fresh("member"), request_id=fresh("earn"), order=order(500, points.now)
        )
        adjust = pb.AdjustPointsRequest(
            member_id=earn.member_id, request_id=fresh("adjust"), unit=pb.UNIT_POINTS, amount=1, reason="why"
        )
        items = [pb.BatchPostItem(earn=earn), pb.BatchPostItem(adjust=adjust)]
        return points.call(points.points.BatchPost, pb.BatchPostRequest(items=items))

    with issuer.open(Points, f"{READ} {WRITE}") as clerk, issuer.open(Points, EVERYTHING) as chief:
        earned, denied = batch(clerk).results
        assert earned.transaction.balance.available == 5
        assert denied.error.code == StatusCode.PERMISSION_DENIED.value[0]
        assert denied.error.reason == "SCOPE_MISSING"
        assert clerk.balance(earned.transaction.member_id).available == 5
        assert [r.transaction.balance.available for r in batch(chief).results] == [5, 6]


def test_facts_older_than_thirty_days_need_an_operator(issuer: Issuer) -> None:
    with issuer.open(Points, f"{READ} {WRITE}") as clerk, issuer.open(Points, EVERYTHING) as chief:
        member, month = fresh("member"), timedelta(days=30)
        clerk.earn(member, order(500, clerk.now - month))
        old = order(300, clerk.now - month - timedelta(seconds=1))
        spend = pb.RedeemPointsRequest(member_id=member, request_id=fresh("redeem"), amount=1)
        spend.occur_time.CopyFrom(old.paid_time)
        undone = a_refund(old.order_id, clerk.now - month - timedelta(seconds=1), 100)
        attempts: list[Callable[[Points], Any]] = [
            lambda points: points.earn(member, old),
            lambda points: points.call(points.points.RedeemPoints, spend),
            lambda points: points.call(
                points.points.QuoteEarn, pb.QuoteEarnRequest(member_id=member, order=old)
            ),
            lambda points: refund(points, member, undone),
        ]
        for attempt in attempts:
            with refused(StatusCode.PERMISSION_DENIED, "BACKDATING_NEEDS_ADMIN"):
                attempt(clerk)
            attempt(chief)
        assert clerk.balance(member).available == 6


def test_the_tokens_subject_is_on_record(issuer: Issuer) -> None:
    member = fresh("member")
    with issuer.open(Points, sub="li.na") as one, issuer.open(Points, sub="wang.wei") as two:
        one.adjust(member, 5)
        two.redeem(member, 1)
        export = one.call(one.points.ExportMember, pb.ExportMemberRequest(member_id=member))
        assert [t.actor for t in export.transactions] == ["wang.wei", "li.na"]


def test_a_key_that_is_withdrawn_opens_nothing_any_more(issuer: Issuer) -> None:
    file, member = issuer.file, fresh("member")
    kept = file.read_text()
    with issuer.open(Points) as points:
        points.adjust(member, 1)
        file.write_text(json.dumps({"keys": []}))
        try:
            eventually(lambda: not answers(points, member))
            file.write_text(kept[:50])  # half written: nothing new is known, and nothing breaks
            assert not answers(points, member)
        finally:
            file.write_text(kept)
        eventually(lambda: answers(points, member))  # and a key that comes is taken up as well


def answers(points: Points, member: str) -> bool:
    code = outcome(lambda: points.balance(member))
    assert code in {StatusCode.OK, StatusCode.UNAUTHENTICATED}
    return code is StatusCode.OK
