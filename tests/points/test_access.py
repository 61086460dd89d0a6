"""Who may do what, with tokens checked against a key file: by method, by scope, by member."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import message_factory
from google.protobuf.message import Message
from grpc import StatusCode
from jwt.algorithms import OKPAlgorithm
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.auth import MemberAccess
from services.cli.house import House
from services.points.api import ADMIN, METHODS, READ, WRITE
from tests.points.calls import a_refund, place, read_hold, refund
from tests.points.requests import GOOD, described, fingerprint
from tests.support import TIMEOUT, Points, fresh, order, refused

EVERYTHING = f"{READ} {WRITE} {ADMIN}"
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])
POINTS = "/loyalty.points.v1.PointsService/"
SELF_SERVICE = {
    POINTS + name for name in ("QuoteEarn", "GetBalance", "GetHold", "GetTransaction", "ListTransactions")
}


@dataclass
class Issuer:
    """Who signs tokens; a process of the house's service checks them against the keys in the file."""

    house: House
    service: str
    key: Ed25519PrivateKey
    file: Path

    def token(self, scope: str = EVERYTHING, *, seconds: float = 600, **claims: Any) -> str:
        claims = {"sub": "till-7", "exp": time.time() + seconds, "scope": scope, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.key, algorithm="EdDSA", headers={"kid": "one"})

    def points(self, scope: str = EVERYTHING, **claims: Any) -> Points:
        return Points(self.house, self.token(scope, **claims), service=self.service)


@pytest.fixture(scope="module")
def issuer(house: House, data: Path, front: str) -> Iterator[Issuer]:
    """The house, with a further process of its service that has a key file and no open door."""
    key = Ed25519PrivateKey.generate()
    public = {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "one", "alg": "EdDSA"}
    file = data / f"keys-{front}.json"
    file.write_text(json.dumps({"keys": [public]}))
    guarded = house.start_replica("points", jwks_file=str(file), open_on_loopback="false")
    house.wait_ready(guarded)
    yield Issuer(house, guarded, key, file)
    house.process(guarded).stop()


@pytest.fixture(scope="module")
def till(issuer: Issuer) -> Iterator[Points]:
    """A caller with every scope."""
    with issuer.points() as points:
        yield points


def good(points: Points, method: str, member: str | None = None) -> Message:
    """A good request of a method, about a member."""
    request = next(make for name, make in GOOD if name == method)(points)
    if member is not None and "member_id" in request.DESCRIPTOR.fields_by_name:
        request.member_id = member  # type: ignore[attr-defined]
    return request


def call(points: Points, method: str, request: Message) -> Any:
    """Calls a method by its name, with the channel's own token."""
    answer = message_factory.GetMessageClass(described(method).output_type)
    stub: Any = points.channel.unary_unary(
        method, request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString
    )
    return points.call(stub, request)


@EACH_METHOD
def test_no_method_opens_without_a_good_token(issuer: Issuer, till: Points, method: str) -> None:
    stranger = replace(issuer, key=Ed25519PrivateKey.generate())
    claims = {"sub": "till-7", "exp": time.time() + 600, "scope": EVERYTHING}
    tokens: dict[str, list[str | None]] = {
        "TOKEN_MISSING": [None],
        "TOKEN_INVALID": [
            "garbage",
            issuer.token()[:-8],
            issuer.token(seconds=-60),
            stranger.token(),
            issuer.token(sub=None),
            issuer.token(exp=None),
            issuer.token(member_id=7),
            jwt.encode(claims, issuer.key, algorithm="EdDSA"),  # names no key
            jwt.encode(claims, issuer.key, algorithm="EdDSA", headers={"kid": "two"}),
            jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": "one"}),
            jwt.encode(claims, "", algorithm="none", headers={"kid": "one"}),
        ],
    }
    for reason, bad in tokens.items():
        for token in bad:
            till.metadata, kept = [("authorization", f"Bearer {token}")] if token else None, till.metadata
            try:
                with refused(StatusCode.UNAUTHENTICATED, reason):
                    call(till, method, good(till, method))
            finally:
                till.metadata = kept


@EACH_METHOD
def test_every_method_needs_its_scope_and_says_so_before_anything_else(
    issuer: Issuer, till: Points, method: str
) -> None:
    needed = METHODS[method].scope
    others = " ".join({READ, WRITE, ADMIN, "cards.admin", "points"} - {needed})
    before = fingerprint(till)
    with issuer.points(others) as points:
        member = fresh("nobody")  # denied before existence, and before shape
        for request in (good(points, method, member), message_of(method)):
            with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
                call(points, method, request)
            assert refusal.metadata == {"scope": needed}
    assert fingerprint(till) == before
    with issuer.points(needed) as points:
        # Nobody knows the member, so some methods fail; but the caller was let in.
        let_in = {StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION}
        assert outcome(lambda: call(points, method, good(points, method, member))) in let_in


def message_of(method: str) -> Message:
    """An empty request, which breaks most contracts."""
    return message_factory.GetMessageClass(described(method).input_type)()


def test_a_member_reads_its_own(issuer: Issuer, till: Points) -> None:
    member = fresh("member")
    made = till.earn(member, order(500, till.now))
    held = place(till, member, 2)
    with issuer.points(READ, member_id=member) as own:
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
    before = fingerprint(till)
    with issuer.points(EVERYTHING, member_id=member) as points:
        reason = "MEMBER_MISMATCH" if method in SELF_SERVICE else "MEMBER_TOKEN_REFUSED"
        with refused(StatusCode.PERMISSION_DENIED, reason):
            call(points, method, good(points, method, other))
        if method not in SELF_SERVICE:
            with refused(StatusCode.PERMISSION_DENIED, reason):
                call(points, method, good(points, method, member))
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

    with issuer.points(f"{READ} {WRITE}") as clerk, issuer.points(EVERYTHING) as chief:
        earned, denied = batch(clerk).results
        assert earned.transaction.balance.available == 5
        assert denied.error.code == StatusCode.PERMISSION_DENIED.value[0]
        assert denied.error.reason == "SCOPE_MISSING"
        assert clerk.balance(earned.transaction.member_id).available == 5
        assert [r.transaction.balance.available for r in batch(chief).results] == [5, 6]


def test_facts_older_than_thirty_days_need_an_operator(issuer: Issuer) -> None:
    with issuer.points(f"{READ} {WRITE}") as clerk, issuer.points(EVERYTHING) as chief:
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
    with issuer.points(sub="li.na") as one, issuer.points(sub="wang.wei") as two:
        one.adjust(member, 5)
        two.redeem(member, 1)
        export = one.call(one.points.ExportMember, pb.ExportMemberRequest(member_id=member))
        assert [t.actor for t in export.transactions] == ["wang.wei", "li.na"]


def test_a_key_that_is_withdrawn_opens_nothing_any_more(issuer: Issuer) -> None:
    file, member = issuer.file, fresh("member")
    kept = file.read_text()
    with issuer.points() as points:
        points.adjust(member, 1)
        file.write_text(json.dumps({"keys": []}))
        try:
            until(lambda: not answers(points, member))
            file.write_text(kept[:50])  # half written: nothing new is known, and nothing breaks
            assert not answers(points, member)
        finally:
            file.write_text(kept)
        until(lambda: answers(points, member))  # and a key that comes is taken up as well


def answers(points: Points, member: str) -> bool:
    code = outcome(lambda: points.balance(member))
    assert code in {StatusCode.OK, StatusCode.UNAUTHENTICATED}
    return code is StatusCode.OK


def outcome(attempt: Callable[[], Any]) -> StatusCode:
    try:
        attempt()
    except grpc.RpcError as error:
        return error.code()
    return StatusCode.OK


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 3 * TIMEOUT
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.2)
