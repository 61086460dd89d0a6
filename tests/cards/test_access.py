"""Who may do what, with tokens checked against a key file: by method, by scope, by member."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from services.cards.api import ADMIN, METHODS, READ, WRITE
from services.chassis.auth import MemberAccess
from services.cli.house import House
from tests.cards.calls import (
    CUP,
    an_order,
    buy,
    cancel,
    entitled,
    freeze,
    place,
    quote,
    read_card,
    read_order,
    sell,
)
from tests.cards.requests import GOOD, fingerprint
from tests.contract import call
from tests.database import ask
from tests.issuer import Issuer, guarded, refuses_bad_tokens, refuses_other_members, refuses_other_scopes
from tests.support import Cards, fresh, outcome, refused

EVERYTHING = f"{READ} {WRITE} {ADMIN}"
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])
SERVICE = "/loyalty.cards.v1.CardsService/"
OWN_READS = {
    *("GetOrder", "QuoteRefund", "ListMemberCards", "GetCard", "CheckEntitlements", "QuoteOrder"),
    "GetSavings",
}
OWN_ACTS = {
    *("PlaceOrder", "CancelOrder", "RefundCard", "FreezeCard", "ResumeCard", "GiftCard", "ActivateGift"),
    "CancelAutoRenew",
}


@pytest.fixture(scope="module")
def issuer(house: House, data: Path) -> Iterator[Issuer]:
    """The house, with a further process of its service that has a key file and no open door."""
    with guarded(house, "cards", data, EVERYTHING) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def till(issuer: Issuer) -> Iterator[Cards]:
    """A caller with every scope."""
    with issuer.open(Cards) as cards:
        yield cards


def good(cards: Cards, method: str, member: str) -> Message:
    """A good request of a method, about a member."""
    request = GOOD[method](cards)
    if "member_id" in request.DESCRIPTOR.fields_by_name:
        request.member_id = member  # type: ignore[attr-defined]
    return request


@EACH_METHOD
def test_no_method_opens_without_a_good_token(issuer: Issuer, till: Cards, method: str) -> None:
    refuses_bad_tokens(issuer, till, method, GOOD[method](till))


@EACH_METHOD
def test_every_method_needs_its_scope_and_says_so_before_anything_else(
    issuer: Issuer, till: Cards, method: str
) -> None:
    needed = METHODS[method].scope
    others = " ".join({READ, WRITE, ADMIN, "points.admin", "cards"} - {needed})
    request = good(till, method, fresh("nobody"))
    with issuer.open(Cards, others) as cards:
        refuses_other_scopes(cards, method, needed, request, lambda: fingerprint(till))
    with issuer.open(Cards, needed) as cards:
        # Nobody knows the member, and no pay channel is set up, so some fail; but the caller was let in.
        let_in = {StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION}
        if method == SERVICE + "VerifyWechatPayNotification":
            with refused(StatusCode.PERMISSION_DENIED, "NOTIFICATION_REFUSED"):
                call(cards, method, GOOD[method](cards))
        else:
            assert outcome(lambda: call(cards, method, request)) in let_in


def test_the_table_opens_to_members_what_is_their_own_to_decide() -> None:
    opened = {method: row for method, row in METHODS.items() if row.member is not MemberAccess.NONE}
    reads = {method.rsplit("/")[-1] for method, row in opened.items() if row.member is MemberAccess.READ}
    acts = {method.rsplit("/")[-1] for method, row in opened.items() if row.member is MemberAccess.ACT}
    assert (reads, acts) == (OWN_READS, OWN_ACTS)
    assert all(METHODS[SERVICE + name].scope == READ for name in OWN_READS)
    assert all(METHODS[SERVICE + name].scope == WRITE for name in OWN_ACTS)


def test_a_member_decides_about_its_own_cards(issuer: Issuer, till: Cards) -> None:
    member = fresh("member")
    sold = sell(till, CUP, freeze_policy={"shortest_days": 1, "longest_days": 9, "count": 1})
    with issuer.open(Cards, f"{READ} {WRITE}", member_id=member) as own:
        order = cancel(own, place(own, member, sold))
        assert read_order(own, order) == order
        card = buy(till, member, sold)  # that it was paid, the brand tells
        assert read_card(own, card) == card
        assert set(entitled(own, member)) == {"coffee"}
        assert quote(own, member, an_order(coffee=1)).saved_minor == 1200
        assert freeze(own, card).HasField("resume_time")


@EACH_METHOD
def test_a_member_sees_no_other_member_and_calls_nothing_else(
    issuer: Issuer, till: Cards, method: str
) -> None:
    member, other, sold = fresh("member"), fresh("member"), sell(till)
    for who in (member, other):
        buy(till, who, sold)
    before, opened = fingerprint(till), method.removeprefix(SERVICE) in OWN_READS | OWN_ACTS
    with issuer.open(Cards, member_id=member) as cards:
        mine, another = (good(till, method, who) for who in (member, other))
        refuses_other_members(cards, method, mine, another, opened=opened)
    assert fingerprint(till) == before


def test_who_put_a_product_is_on_record(issuer: Issuer) -> None:
    with issuer.open(Cards, sub="li.na") as cards:
        sold = sell(cards)
        [row] = ask(issuer.house, "cards", "SELECT author FROM products WHERE code = $1", sold.code)
        assert row["author"] == "li.na"
