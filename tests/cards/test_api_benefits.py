"""Benefits over a real channel: what may be used, what an order costs, uses and savings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
from grpc import StatusCode
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.batches import SMALL
from tests.cards.calls import (
    CUP,
    an_order,
    buy,
    confirm,
    entitled,
    freeze,
    instant,
    move,
    quote,
    read_card,
    redeem,
    reverse,
    sell,
    stamp,
    wait,
)
from tests.cards.till import FEE, benefit
from tests.support import Cards, fresh, read_refusal, refused

SHANGHAI = ZoneInfo("Asia/Shanghai")
HALF = benefit("breakfast", "PERCENT_OFF", value=50)  # 5折
DELIVERY = benefit("delivery", "FREE_DELIVERY")
RESERVED, CONFIRMED, REVERSED = (
    pb.REDEMPTION_STATUS_RESERVED,
    pb.REDEMPTION_STATUS_CONFIRMED,
    pb.REDEMPTION_STATUS_REVERSED,
)
CALLERS = 32


@pytest.fixture
def member(cards: Cards) -> str:
    """A member with a cup a day, breakfast at half the price, and free delivery."""
    name = fresh("member")
    buy(cards, name, sell(cards, CUP, HALF, DELIVERY))
    return name


def next_midnight(at: datetime) -> datetime:
    local = at.astimezone(SHANGHAI)
    return local.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def savings(cards: Cards, card: pb.Card) -> pb.Savings:
    request = pb.GetSavingsRequest(member_id=card.member_id, card_id=card.card_id)
    return cards.call(cards.cards.GetSavings, request)


def card_of(cards: Cards, member: str) -> pb.Card:
    [card] = cards.call(cards.cards.ListMemberCards, pb.ListMemberCardsRequest(member_id=member)).cards
    return card


# --- what may be used ---------------------------------------------------------------------------------


def test_entitlements_say_what_is_left_and_until_when(cards: Cards, member: str) -> None:
    found = entitled(cards, member)
    assert set(found) == {"coffee", "breakfast", "delivery"}
    card = card_of(cards, member)
    cup = found["coffee"]
    assert cup == pb.Entitlement(
        card_id=card.card_id,
        benefit_code="coffee",
        kind=pb.BENEFIT_KIND_FIXED_PRICE,
        value=800,
        limited=True,
        remaining=1,
        reset_time=stamp(next_midnight(cards.now)),
        valid_until_time=card.end_time,
    )
    assert (found["breakfast"].limited, found["breakfast"].HasField("reset_time")) == (False, False)
    redeem(cards, member, an_order(coffee=1))
    assert entitled(cards, member)["coffee"].remaining == 0
    assert entitled(cards, member, at_time=stamp(next_midnight(cards.now)))["coffee"].remaining == 1


def test_entitlements_are_those_of_a_place_and_a_time(cards: Cards) -> None:
    member = fresh("member")
    early = benefit("early", dayparts=[{"start": "05:00", "end": "10:30"}])
    airport = benefit("airport", scope="order.store_id == 'airport' && line.category == 'coffee'")
    buy(cards, member, sell(cards, early, airport))
    assert set(entitled(cards, member)) == {"airport"}  # at noon
    assert not entitled(cards, member, store_id="street")
    assert set(entitled(cards, member, store_id="airport")) == {"airport"}
    breakfast = stamp(next_midnight(cards.now) + timedelta(hours=10))
    assert set(entitled(cards, member, at_time=breakfast)) == {"early", "airport"}
    assert not entitled(cards, member, at_time=stamp(cards.now - timedelta(days=1)))


def test_who_has_no_card_may_use_nothing(cards: Cards) -> None:
    assert not entitled(cards, fresh("nobody"))


def test_many_who_ask_at_once_get_each_their_own(cards: Cards) -> None:
    members = [fresh("member") for _ in range(CALLERS)]
    sold = [sell(cards, benefit(f"b{number}")) for number in range(4)]
    for number, name in enumerate(members):
        buy(cards, name, sold[number % 4])
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(lambda name: set(entitled(cards, name)), members))
    assert found == [{f"b{number % 4}"} for number in range(CALLERS)]


def test_a_card_that_rests_gives_nothing(cards: Cards) -> None:
    member = fresh("member")
    policy = {"shortest_days": 1, "longest_days": 30, "count": 1}
    card = buy(cards, member, sell(cards, CUP, freeze_policy=policy))
    freeze(cards, card)
    assert not entitled(cards, member)
    assert quote(cards, member, an_order(coffee=1)).saved_minor == 0


# --- what an order costs ------------------------------------------------------------------------------


def test_a_quote_explains_the_best_price_and_writes_nothing(cards: Cards, member: str) -> None:
    what = an_order(FEE, coffee=2, breakfast=1, burger=1)
    found = quote(cards, member, what)
    assert {line.line_id: line.pay_minor for line in found.lines} == {
        "coffee": 2800,
        "breakfast": 1000,
        "burger": 2000,
    }
    assert (found.delivery_pay_minor, found.saved_minor, found.currency_code) == (0, 2700, "CNY")
    assert (found.exact, found.saved_bound_minor) == (True, 2700)
    assert {one.benefit_code: (one.uses, one.saved_minor) for one in found.taken} == {
        "coffee": (1, 1200),
        "breakfast": (1, 1000),
        "delivery": (1, FEE),
    }
    applied = {step.line_id for step in found.explanation if step.note == pb.QUOTE_NOTE_APPLIED}
    assert applied == {"coffee", "breakfast", ""}
    assert quote(cards, member, what) == found
    assert entitled(cards, member)["coffee"].remaining == 1
    assert quote(cards, fresh("nobody"), what).saved_minor == 0


def test_a_quote_is_as_of_the_instant_that_is_asked_about(cards: Cards, member: str) -> None:
    over = card_of(cards, member).end_time
    assert quote(cards, member, an_order(coffee=1), at_time=over).saved_minor == 0


def test_a_large_order_is_quoted_and_redeemed_alike(cards: Cards, member: str) -> None:
    what = an_order(coffee=SMALL, breakfast=SMALL)
    found = quote(cards, member, what)
    assert (found.saved_minor, found.exact) == (1200 + SMALL * 1000, True)
    request_id = fresh("redeem")
    answer = redeem(cards, member, what, found.saved_minor, request_id)
    assert answer.quote == found
    assert redeem(cards, member, what, found.saved_minor, request_id) == answer
    with refused(StatusCode.FAILED_PRECONDITION, "QUOTE_CHANGED"):
        redeem(cards, member, an_order(coffee=2 * SMALL), 1)


def test_an_order_that_does_not_add_up_is_neither_quoted_nor_redeemed(cards: Cards, member: str) -> None:
    wrong = an_order(coffee=1)
    wrong.total_minor += 1
    twice = an_order(coffee=1)
    twice.lines.append(twice.lines[0])
    for what, reason in ((wrong, "TOTAL_MISMATCH"), (twice, "MALFORMED_REQUEST")):
        with refused(StatusCode.INVALID_ARGUMENT, reason):
            quote(cards, member, what)
        with refused(StatusCode.INVALID_ARGUMENT, reason):
            redeem(cards, member, what)


# --- using --------------------------------------------------------------------------------------------


def test_what_was_quoted_is_reserved_confirmed_and_saved(cards: Cards, member: str) -> None:
    what, card = an_order(FEE, coffee=1, breakfast=2), card_of(cards, member)
    found = quote(cards, member, what)
    answer = redeem(cards, member, what, found.saved_minor)
    assert answer.quote == found
    assert {one.benefit_code: (one.uses, one.saved_minor) for one in answer.redemptions} == {
        "coffee": (1, 1200),
        "breakfast": (2, 2000),
        "delivery": (1, FEE),
    }
    for one in answer.redemptions:
        assert (one.order_id, one.card_id, one.status) == (what.order_id, card.card_id, RESERVED)
        assert one.segment_id == card.segments[0].segment_id
        assert instant(one.lapse_time) == cards.now + timedelta(minutes=30)
    final = confirm(cards, member, what.order_id)
    assert {one.status for one in final} == {CONFIRMED}
    assert [one.redemption_id for one in final] == [one.redemption_id for one in answer.redemptions]
    assert confirm(cards, member, what.order_id) == final
    told = savings(cards, card)
    assert (told.saved_minor, told.currency_code) == (found.saved_minor, "CNY")
    [period] = told.segments
    assert (period.paid_minor, period.saved_minor) == (1900, found.saved_minor)
    assert {one.benefit_code: one.saved_minor for one in period.benefits} == {
        "coffee": 1200,
        "breakfast": 2000,
        "delivery": FEE,
    }
    assert read_card(cards, card).saved_minor == found.saved_minor


def test_a_basket_that_saves_less_than_was_shown_is_refused(cards: Cards, member: str) -> None:
    with refused(StatusCode.FAILED_PRECONDITION, "QUOTE_CHANGED") as refusal:
        redeem(cards, member, an_order(coffee=1), 1201)
    assert refusal.metadata == {"expected_saved_minor": "1201", "saved_minor": "1200"}
    assert entitled(cards, member)["coffee"].remaining == 1


def test_an_order_is_redeemed_once(cards: Cards, member: str) -> None:
    what = an_order(coffee=1)
    redeem(cards, member, what)
    with refused(StatusCode.ALREADY_EXISTS, "ORDER_ALREADY_REDEEMED") as refusal:
        redeem(cards, member, what)
    assert refusal.metadata == {"order_id": what.order_id}


def test_what_saves_nothing_is_redeemed_without_a_use(cards: Cards, member: str) -> None:
    what = an_order(burger=1)
    answer = redeem(cards, member, what)
    assert (list(answer.redemptions), answer.quote.saved_minor) == ([], 0)
    assert confirm(cards, member, what.order_id) == reverse(cards, member, what.order_id) == []


def test_a_use_that_is_given_back_can_be_used_again_the_same_day(cards: Cards, member: str) -> None:
    first, second = an_order(coffee=1), an_order(coffee=1)
    redeem(cards, member, first, 1200)
    confirm(cards, member, first.order_id)
    with refused(StatusCode.FAILED_PRECONDITION, "QUOTE_CHANGED"):
        redeem(cards, member, second, 1200)
    [back] = reverse(cards, member, first.order_id)
    assert back.status == REVERSED
    assert reverse(cards, member, first.order_id) == [back]
    with refused(StatusCode.FAILED_PRECONDITION, "REDEMPTION_REVERSED"):
        confirm(cards, member, first.order_id)
    redeem(cards, member, second, 1200)
    assert savings(cards, card_of(cards, member)).saved_minor == 1200
    redeem(cards, member, first)  # and its order may be redeemed anew


def test_uses_of_an_order_that_nobody_redeemed_are_not_known(cards: Cards, member: str) -> None:
    what = an_order(coffee=1)
    redeem(cards, member, what)
    for who, order_id in ((member, fresh("order")), (fresh("nobody"), what.order_id)):
        for attempt in (confirm, reverse):
            with refused(StatusCode.NOT_FOUND, "REDEMPTION_UNKNOWN"):
                attempt(cards, who, order_id)


def test_a_reservation_lapses_at_its_instant(later: Cards) -> None:
    member = fresh("member")
    buy(later, member, sell(later, CUP))
    what = an_order(coffee=1)
    [use] = redeem(later, member, what, 1200).redemptions
    move(later, instant(use.lapse_time) - timedelta(microseconds=1))
    assert entitled(later, member)["coffee"].remaining == 0
    move(later, instant(use.lapse_time))
    assert entitled(later, member)["coffee"].remaining == 1
    assert savings(later, card_of(later, member)).saved_minor == 0
    with refused(StatusCode.FAILED_PRECONDITION, "REDEMPTION_LAPSED"):
        confirm(later, member, what.order_id)
    redeem(later, member, an_order(coffee=1), 1200)


def test_a_day_is_over_at_local_midnight_and_not_a_moment_before(later: Cards) -> None:
    member = fresh("member")
    buy(later, member, sell(later, CUP))
    midnight = next_midnight(later.now)
    move(later, midnight - timedelta(microseconds=1))
    redeem(later, member, an_order(coffee=1), 1200)
    with refused(StatusCode.FAILED_PRECONDITION, "QUOTE_CHANGED"):
        redeem(later, member, an_order(coffee=1), 1200)
    move(later, midnight)
    redeem(later, member, an_order(coffee=1), 1200)


def test_what_was_used_today_stays_used_when_the_next_period_begins(later: Cards) -> None:
    member = fresh("member")
    first = buy(later, member, sold := sell(later, CUP, period="P1D"))
    buy(later, member, sold)
    wait(later, hours=1)
    redeem(later, member, what := an_order(coffee=1), 1200)
    confirm(later, member, what.order_id)
    move(later, instant(first.segments[0].end_time))
    redeem(later, member, an_order(coffee=1), 1200)  # another day
    assert [one.saved_minor for one in read_card(later, first).segments] == [1200, 1200]


def test_of_many_who_want_the_last_cup_one_gets_it(cards: Cards, member: str) -> None:
    def attempt(_: int) -> Any:
        try:
            return redeem(cards, member, an_order(coffee=1), 1200)
        except grpc.RpcError as error:
            return read_refusal(error).reason

    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(attempt, range(CALLERS)))
    assert sorted(answer for answer in answers if isinstance(answer, str)) == ["QUOTE_CHANGED"] * (
        CALLERS - 1
    )
    assert entitled(cards, member)["coffee"].remaining == 0
