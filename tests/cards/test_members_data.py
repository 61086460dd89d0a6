"""A member's data: handed out whole, and erased everywhere, while amounts and what they pay for stay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import nats
import pytest
from grpc import StatusCode
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.points.v1.points_events_pb2 import TierChanged
from nats.js.errors import NotFoundError

from services.cli.house import House
from tests.cards.calls import (
    CUP,
    LENIENT,
    a_payment,
    an_order,
    buy,
    confirm,
    give_back,
    instant,
    move,
    pay,
    place,
    read_card,
    redeem,
    reverse,
    sell,
    sign,
    stamp,
    tell,
)
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.support import Cards, defects, eventually, fresh, refused


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house of its own: its clock moves. One front is enough: what is kept lies behind it."""
    with open_house(data, ("cards",), test_clock=NOON) as house:
        yield house
        assert not defects(house)


def promoted(cards: Cards, member: str) -> TierChanged:
    """The points service tells of a tier."""
    return TierChanged(
        member_id=member, occur_time=stamp(cards.now), epoch=1, version=1, from_tier="", to_tier="gold"
    )


def marked(marker: str) -> Order:
    """An order with a marker wherever text can be."""
    made = an_order(coffee=1, breakfast=1)
    made.store_id = made.city = made.channel = marker
    for line in made.lines:
        line.sku = marker
    made.lines[1].category = marker
    return made


def export(cards: Cards, member: str, page_size: int = 0) -> list[pb.ExportMemberResponse]:
    """Everything kept, page by page."""
    pages: list[pb.ExportMemberResponse] = []
    token = ""
    while True:
        request = pb.ExportMemberRequest(member_id=member, page_size=page_size, page_token=token)
        pages.append(cards.call(cards.cards.ExportMember, request))
        token = pages[-1].next_page_token
        if not token:
            return pages


def erase(cards: Cards, member: str, request_id: str = "") -> pb.EraseMemberResponse:
    request = pb.EraseMemberRequest(member_id=member, request_id=request_id or fresh("erase"))
    return cards.call(cards.cards.EraseMember, request)


def live(cards: Cards, member: str) -> tuple[pb.Card, Order, list[pb.Redemption]]:
    """A member with some of everything: a signed card, orders, payments of all kinds, uses, and a tier."""
    sold, what = sell(cards, CUP, refund_policy=LENIENT), marked(fresh("marker"))
    card = buy(cards, member, sold)
    sign(cards, card)
    for amount in (5, 1900):  # a wrong one first
        order = place(cards, member, sold)
        pay(cards, order, amount_minor=amount)
    redeem(cards, member, what)
    uses = confirm(cards, member, what.order_id)
    tell(cards, promoted(cards, member))
    eventually(lambda: dict(export(cards, member)[0].facts) == {"tier": "gold"})
    return read_card(cards, card), what, uses


# --- where a text can be ------------------------------------------------------------------------------


def in_tables(house: House, marker: str) -> list[str]:
    """Tables with a row that holds the marker, as text or within bytes."""
    names = ask(house, "cards", "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    held = "t::text LIKE '%' || $1 || '%' OR t::text LIKE '%' || $2 || '%'"
    return [
        name
        for (name,) in names
        if ask(house, "cards", f"SELECT FROM {name} t WHERE {held}", marker, marker.encode().hex())
    ]


def in_stream(house: House, member: str) -> list[str]:
    """What the service's stream holds about a member, by subject."""

    async def look() -> list[str]:
        client = await nats.connect(house.nats.url)
        try:
            jetstream = client.jetstream()
            state = (await jetstream.stream_info("CARDS")).state
            found = []
            for sequence in range(max(1, state.first_seq), state.last_seq + 1):
                try:
                    message = await jetstream.get_msg("CARDS", sequence)
                except NotFoundError:
                    continue
                if member.encode() in (message.data or b""):
                    found.append(str(message.subject).rpartition(".")[2])
            return found
        finally:
            await client.close()

    return asyncio.run(look())


# --- tests --------------------------------------------------------------------------------------------


def test_an_export_has_everything_in_pages_of_any_size(cards: Cards) -> None:
    member = fresh("member")
    card, _, uses = live(cards, member)
    unknown = pb.CardOrder(member_id=member, order_id="nobodys", currency_code="CNY", amount_minor=7)
    pay(cards, unknown)
    [whole] = export(cards, member)
    assert list(whole.cards) == [card]
    assert [order.status for order in whole.orders] == [
        pb.CARD_ORDER_STATUS_PAID,
        pb.CARD_ORDER_STATUS_PENDING_PAYMENT,
        pb.CARD_ORDER_STATUS_PAID,
    ]
    amounts = {(one.amount_minor, one.outcome) for one in whole.payments}
    assert amounts == {
        (1900, pb.PAYMENT_OUTCOME_APPLIED),
        (5, pb.PAYMENT_OUTCOME_REFUND_DUE),
        (7, pb.PAYMENT_OUTCOME_REFUND_DUE),
    }
    assert len(whole.payments) == 4
    assert list(whole.redemptions) == uses
    assert [renewal.card_id for renewal in whole.renewals] == [card.card_id]
    for size in (1, 2):
        first, *others = export(cards, member, size)
        assert [order for page in (first, *others) for order in page.orders] == list(whole.orders)
        told = [payment.payment_id for page in (first, *others) for payment in page.payments]
        assert sorted(told) == sorted(payment.payment_id for payment in whole.payments)
        assert (first.cards, first.redemptions) == (whole.cards, whole.redemptions)
        assert not any(page.cards or page.redemptions or page.renewals for page in others)
        assert all(page.facts == whole.facts for page in others)
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        export(cards, fresh("nobody"))
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        forged = pb.ExportMemberRequest(member_id=member, page_token="AAAA")  # noqa: S106
        cards.call(cards.cards.ExportMember, forged)


def test_what_is_erased_is_found_nowhere_and_what_was_paid_for_stays(cards: Cards) -> None:
    member, house = fresh("member"), cards.house
    card, what, uses = live(cards, member)
    marker = what.store_id
    assert in_tables(house, marker) == ["baskets"]
    eventually(lambda: "BenefitUsed" in in_stream(house, member))
    answer = erase(cards, member, request_id := fresh("erase"))
    assert (answer.baskets, answer.facts, instant(answer.erase_time)) == (1, 1, cards.now)
    assert answer.events == 3  # twice CardActivated, and BenefitUsed
    assert erase(cards, member, request_id) == answer
    assert in_tables(house, marker) == []
    # Whoever has not heard yet that money is owed must not miss it; those age out.
    eventually(lambda: set(in_stream(house, member)) <= {"CardOrdered", "RefundDue"})
    assert read_card(cards, card) == card
    [left] = export(cards, member)
    assert (list(left.redemptions), dict(left.facts)) == (uses, {})
    again = erase(cards, member)
    assert (again.baskets, again.facts, again.events) == (0, 0, 0)
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        erase(cards, fresh("nobody"))


def test_an_erased_member_goes_on_and_repeats_are_known_though_their_answer_is_not(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards, CUP, refund_policy=LENIENT)
    order = place(cards, member, sold)
    payment = a_payment(cards, order)
    card = cards.call(cards.cards.ConfirmPayment, payment).card
    redeem(cards, member, what := an_order(coffee=1))
    card = read_card(cards, card)
    erase(cards, member)
    with refused(StatusCode.FAILED_PRECONDITION, "ANSWER_ERASED"):
        cards.call(cards.cards.ConfirmPayment, payment)
    assert read_card(cards, card) == card
    [back] = reverse(cards, member, what.order_id)
    assert back.status == pb.REDEMPTION_STATUS_REVERSED
    assert give_back(cards, card).quote.refund_minor == 1900


def test_a_member_of_whom_only_others_told_is_exported_and_erased(cards: Cards) -> None:
    member = fresh("member")
    tell(cards, promoted(cards, member))
    eventually(lambda: in_tables(cards.house, member) != [])
    [found] = export(cards, member)
    assert dict(found.facts) == {"tier": "gold"}
    assert erase(cards, member).facts == 1
    assert export(cards, member) == [pb.ExportMemberResponse()]


def test_a_tier_that_was_told_decides_what_a_member_may_buy(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards, eligible="member.tier == 'gold'")
    with refused(StatusCode.FAILED_PRECONDITION, "NOT_ELIGIBLE"):
        place(cards, member, sold)
    tell(cards, promoted(cards, member))
    eventually(lambda: in_tables(cards.house, member) != [])
    buy(cards, member, sold)


def test_a_renewal_that_is_over_is_exported_no_more(cards: Cards) -> None:
    card = buy(cards, member := fresh("member"), sell(cards))
    renewal = sign(cards, card)
    move(cards, instant(renewal.charge_until_time) - timedelta(microseconds=1))
    assert len(export(cards, member)[0].renewals) == 1
    move(cards, instant(renewal.charge_until_time))
    assert not export(cards, member)[0].renewals
