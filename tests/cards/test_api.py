"""The cards API over a real channel: the catalogue, what is bought, what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from grpc import StatusCode
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.codes import GUESSES
from tests.cards.calls import (
    CUP,
    LENIENT,
    NO_CARD,
    NO_ORDER,
    RESTS,
    a_product,
    buy,
    cancel,
    claim,
    freeze,
    give,
    give_back,
    instant,
    move,
    pay,
    place,
    put,
    quote_refund,
    read_card,
    read_order,
    resume,
    sell,
    wait,
)
from tests.cards.till import benefit
from tests.support import Cards, fresh, refused

LENGTH = 100  # periods that a card can hold


# --- the catalogue ------------------------------------------------------------------------------------


def read_product(cards: Cards, code: str, version: int = 0) -> pb.Product:
    return cards.call(cards.cards.GetProduct, pb.GetProductRequest(code=code, version=version))


def listed(cards: Cards, **asked: Any) -> list[pb.Product]:
    """Every page of the catalogue."""
    found: list[pb.Product] = []
    token = ""
    while True:
        request = pb.ListProductsRequest(page_token=token, **asked)
        page = cards.call(cards.cards.ListProducts, request)
        found += page.products
        token = page.next_page_token
        if not token:
            return found


def test_a_product_is_kept_in_versions(cards: Cards) -> None:
    asked = a_product(CUP, names={"en": "Coffee", "zh-CN": "咖啡卡"})
    first = put(cards, asked)
    assert (first.version, instant(first.create_time)) == (1, cards.now)
    dearer = put(cards, a_product(CUP, code=asked.code, price_minor=2100))
    assert dearer.version == 2
    assert read_product(cards, asked.code) == dearer
    assert read_product(cards, asked.code, 1) == first
    first.ClearField("version")
    first.ClearField("create_time")
    assert first == asked
    for code, version in ((asked.code, 3), (fresh("nothing"), 0)):
        with refused(StatusCode.NOT_FOUND, "PRODUCT_UNKNOWN"):
            read_product(cards, code, version)


def test_a_family_is_that_of_the_first_version(cards: Cards) -> None:
    sold = sell(cards)
    with refused(StatusCode.FAILED_PRECONDITION, "FAMILY_FIXED") as refusal:
        put(cards, a_product(code=sold.code, family="another"))
    assert refusal.metadata == {"family": sold.family}


def test_what_is_of_one_family_is_priced_in_one_currency(cards: Cards) -> None:
    sold = sell(cards)
    for code in (sold.code, fresh("another")):
        with refused(StatusCode.INVALID_ARGUMENT, "PRODUCT_INVALID") as refusal:
            put(cards, a_product(code=code, family=sold.family, currency_code="USD"))
        assert refusal.fields == {"product.currency_code"}
        assert "priced in CNY" in refusal.message
    put(cards, a_product(code=fresh("another"), family=fresh("abroad"), currency_code="USD"))


def test_only_checking_a_product_puts_nothing(cards: Cards) -> None:
    asked = a_product(CUP)
    assert put(cards, asked, validate_only=True).version == 1
    with refused(StatusCode.NOT_FOUND, "PRODUCT_UNKNOWN"):
        read_product(cards, asked.code)


def test_every_fault_of_a_product_is_named_with_its_place(cards: Cards) -> None:
    faulty = a_product(CUP, benefit("tea"), period="P999Y", eligible="member.nothing")
    faulty.benefits[1].scope = "line.nothing == 1"
    with refused(StatusCode.INVALID_ARGUMENT, "PRODUCT_INVALID") as refusal:
        put(cards, faulty)
    assert refusal.fields == {"product.period", "product.eligible", "product.benefits[1].scope"}


def test_pages_of_the_catalogue_join_under_each_filter(cards: Cards) -> None:
    family = fresh("family")
    made = [put(cards, a_product(family=family, withdrawn=number == 3)) for number in range(5)]
    made[1] = put(cards, a_product(code=made[1].code, family=family, price_minor=5))
    on_sale = sorted((one for one in made if not one.withdrawn), key=lambda one: one.code)
    everything = sorted(made, key=lambda one: one.code)
    for size in (1, 2, 1000):
        assert listed(cards, family=family, page_size=size) == on_sale
        assert listed(cards, family=family, page_size=size, include_withdrawn=True) == everything
    assert all(one in listed(cards, page_size=1000) for one in on_sale)


def test_a_page_token_is_good_for_its_own_question_only(cards: Cards) -> None:
    family = fresh("family")
    for _ in range(2):
        put(cards, a_product(family=family))
    asked = pb.ListProductsRequest(page_size=1, family=family)
    token = cards.call(cards.cards.ListProducts, asked).next_page_token
    for question in (
        pb.ListProductsRequest(page_token=token),
        pb.ListProductsRequest(page_token=token, family=family, include_withdrawn=True),
        *(pb.ListProductsRequest(page_token=bad, family=family) for bad in ("x", token[:-1], token + "A")),
    ):
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            cards.call(cards.cards.ListProducts, question)


# --- ordering -----------------------------------------------------------------------------------------


def test_an_order_says_what_to_pay_and_until_when(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards, CUP)
    order = place(cards, member, sold)
    assert order == pb.CardOrder(
        order_id=order.order_id,
        member_id=member,
        product_code=sold.code,
        product_version=1,
        pay_with=pb.PAY_WITH_MONEY,
        upgrade=pb.UPGRADE_QUEUE,
        amount_minor=1900,
        currency_code="CNY",
        status=pb.CARD_ORDER_STATUS_PENDING_PAYMENT,
        pay_deadline_time=order.pay_deadline_time,
        create_time=order.create_time,
    )
    assert instant(order.create_time) == cards.now
    assert instant(order.pay_deadline_time) == cards.now + timedelta(minutes=15)
    assert read_order(cards, order) == order


def test_an_order_keeps_the_version_that_was_on_sale(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards, CUP)
    order = place(cards, member, sold)
    put(cards, a_product(code=sold.code, price_minor=9900))
    card = pay(cards, order).card
    assert [(one.product_version, one.paid_minor) for one in card.segments] == [(1, 1900)]
    assert place(cards, member, sold).amount_minor == 9900


def test_points_are_asked_for_what_points_buy(cards: Cards) -> None:
    sold = sell(cards, points_price=300)
    order = place(cards, fresh("member"), sold, pay_with=pb.PAY_WITH_POINTS)
    assert (order.amount_points, order.amount_minor, order.currency_code) == (300, 0, "")
    assert order.pay_with == pb.PAY_WITH_POINTS


def refusing(**said: Any) -> Callable[[Cards], pb.Product]:
    return lambda cards: sell(cards, **said)


@pytest.mark.parametrize(
    ("made", "how", "reason"),
    [
        (refusing(withdrawn=True), {}, "PRODUCT_WITHDRAWN"),
        (refusing(eligible="member.tier == 'gold'"), {}, "NOT_ELIGIBLE"),
        (refusing(), {"pay_with": pb.PAY_WITH_POINTS}, "NOT_FOR_POINTS"),
        (refusing(price_minor=0, points_price=5), {}, "NOT_FOR_MONEY"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_sold_to_a_member_is_refused(
    cards: Cards, made: Callable[[Cards], pb.Product], how: dict[str, Any], reason: str
) -> None:
    member, sold = fresh("member"), made(cards)
    with refused(StatusCode.FAILED_PRECONDITION, reason):
        place(cards, member, sold, **how)
    if reason == "NOT_ELIGIBLE":
        with refused(StatusCode.FAILED_PRECONDITION, reason):
            give(cards, member, put(cards, a_product(code=sold.code, eligible="false", gift_claim_days=1)))
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):  # it left nothing
        cards.call(cards.cards.ExportMember, pb.ExportMemberRequest(member_id=member))


def test_a_product_that_nobody_put_cannot_be_ordered(cards: Cards) -> None:
    with refused(StatusCode.NOT_FOUND, "PRODUCT_UNKNOWN"):
        place(cards, fresh("member"), fresh("nothing"))


def test_a_member_buys_as_often_as_it_may(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards, purchase_limit=2)
    buy(cards, member, sold)
    place(cards, member, sold)
    with refused(StatusCode.FAILED_PRECONDITION, "PURCHASE_LIMIT") as refusal:
        place(cards, member, sold)
    assert refusal.metadata == {"limit": "2"}
    buy(cards, fresh("another"), sold)


def test_no_more_are_sold_than_the_cap_allows(cards: Cards) -> None:
    sold = sell(cards, sales_cap={"limit": 2, "window": "SALES_WINDOW_YEAR"})
    first = place(cards, fresh("member"), sold)
    buy(cards, fresh("member"), sold)
    with refused(StatusCode.FAILED_PRECONDITION, "SOLD_OUT") as refusal:
        place(cards, fresh("member"), sold)
    assert refusal.metadata == {"limit": "2"}
    cancel(cards, first)
    buy(cards, fresh("member"), sold)


def test_a_card_holds_a_hundred_periods_that_are_paid_or_can_still_be(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards, gift_claim_days=1)
    gift = give(cards, fresh("giver"), sold)
    pay(cards, gift.order)
    buy(cards, member, sold)
    for _ in range(LENGTH - 1):
        place(cards, member, sold)
    with refused(StatusCode.FAILED_PRECONDITION, "CHAIN_TOO_LONG") as refusal:
        place(cards, member, sold)
    assert refusal.metadata == {"limit": str(LENGTH)}
    with refused(StatusCode.FAILED_PRECONDITION, "CHAIN_TOO_LONG"):
        claim(cards, member, gift.claim_code)


def test_an_order_is_its_members(cards: Cards) -> None:
    order = place(cards, fresh("member"), sell(cards))
    order.member_id = fresh("another")
    unknown = pb.CardOrder(member_id=order.member_id, order_id=NO_ORDER)
    for who in (order, unknown):
        with refused(StatusCode.NOT_FOUND, "CARD_ORDER_UNKNOWN"):
            read_order(cards, who)
        with refused(StatusCode.NOT_FOUND, "CARD_ORDER_UNKNOWN"):
            cancel(cards, who)


def test_an_order_is_cancelled_once_and_not_when_it_is_paid(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards)
    cancelled = cancel(cards, place(cards, member, sold))
    assert (cancelled.status, cancelled.end_reason) == (pb.CARD_ORDER_STATUS_CANCELLED, "CANCELLED")
    assert cancel(cards, cancelled) == cancelled == read_order(cards, cancelled)
    paid = place(cards, member, sold)
    pay(cards, paid)
    with refused(StatusCode.FAILED_PRECONDITION, "ORDER_PAID"):
        cancel(cards, paid)


def test_an_order_expires_at_its_deadline(later: Cards) -> None:
    order = place(later, fresh("member"), sell(later))
    move(later, instant(order.pay_deadline_time) - timedelta(microseconds=1))
    assert read_order(later, order).status == pb.CARD_ORDER_STATUS_PENDING_PAYMENT
    move(later, instant(order.pay_deadline_time))
    assert read_order(later, order).status == pb.CARD_ORDER_STATUS_EXPIRED
    assert cancel(later, order).status == pb.CARD_ORDER_STATUS_EXPIRED


# --- periods ------------------------------------------------------------------------------------------


def test_a_paid_order_is_a_card(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards, CUP)
    order = place(cards, member, sold)
    paid = pay(cards, order)
    assert paid.outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert paid.order == read_order(cards, order)
    card = paid.card
    assert (paid.order.status, paid.order.card_id) == (pb.CARD_ORDER_STATUS_PAID, card.card_id)
    [period] = card.segments
    end = instant(period.end_time)
    assert (end - cards.now).days == 30  # of June
    assert card == pb.Card(
        card_id=card.card_id,
        member_id=member,
        family=sold.family,
        status=pb.CARD_STATUS_ACTIVE,
        start_time=period.start_time,
        end_time=period.end_time,
        segments=[
            pb.Segment(
                segment_id=period.segment_id,
                product_code=sold.code,
                product_version=1,
                start_time=order.create_time,
                end_time=period.end_time,
                paid_minor=1900,
            )
        ],
        currency_code="CNY",
        streak=1,
        version=1,
    )
    assert read_card(cards, card) == card


def test_what_is_bought_early_queues_behind_what_runs(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards)
    first = buy(cards, member, sold)
    both = buy(cards, member, sold)
    assert both.card_id == first.card_id
    assert both.segments[0] == first.segments[0]
    assert both.segments[1].start_time == first.end_time
    assert both.streak == 2
    assert read_card(cards, both) == both


def test_an_upgrade_starts_now_for_its_price_less_the_unused_days(cards: Cards) -> None:
    family, member = fresh("family"), fresh("member")
    month = sell(cards, family=family, price_minor=3000)
    quarter = sell(cards, family=family, price_minor=9000, period="P3M", upgrade_policy="UPGRADE_POLICY_NOW")
    cheap = sell(cards, family=family, price_minor=2999, upgrade_policy="UPGRADE_POLICY_NOW")
    points = sell(cards, family=family, points_price=5, upgrade_policy="UPGRADE_POLICY_NOW")
    now: dict[str, Any] = {"upgrade": pb.UPGRADE_NOW}
    buy(cards, member, month)
    with refused(StatusCode.FAILED_PRECONDITION, "UPGRADE_NOT_ALLOWED"):
        place(cards, member, month, **now)
    with refused(StatusCode.FAILED_PRECONDITION, "CREDIT_EXCEEDS_PRICE") as refusal:
        place(cards, member, cheap, **now)
    assert refusal.metadata == {"credit": "3000", "price": "2999"}
    with refused(StatusCode.FAILED_PRECONDITION, "UPGRADE_UNIT_MISMATCH"):
        place(cards, member, points, pay_with=pb.PAY_WITH_POINTS, **now)
    order = place(cards, member, quarter, **now)
    assert (order.amount_minor, order.credit, order.upgrade) == (6000, 3000, pb.UPGRADE_NOW)
    card = pay(cards, order).card
    assert [one.ended for one in card.segments] == [pb.SEGMENT_END_REPLACED, pb.SEGMENT_END_UNSPECIFIED]
    assert [one.paid_minor for one in card.segments] == [3000, 9000]
    assert instant(card.start_time) == cards.now


def test_a_card_is_over_at_the_end_of_its_last_period(later: Cards) -> None:
    card = buy(later, fresh("member"), sell(later))
    move(later, instant(card.end_time) - timedelta(microseconds=1))
    assert read_card(later, card).status == pb.CARD_STATUS_ACTIVE
    move(later, instant(card.end_time))
    assert read_card(later, card).status == pb.CARD_STATUS_EXPIRED
    with refused(StatusCode.FAILED_PRECONDITION, "CARD_NOT_ACTIVE"):
        freeze(later, card)
    with refused(StatusCode.FAILED_PRECONDITION, "NOTHING_TO_REFUND"):
        give_back(later, card)


def test_cards_are_listed_by_family_and_are_their_members(cards: Cards) -> None:
    member = fresh("member")
    bought = [buy(cards, member, sell(cards)) for _ in range(3)]
    expected = sorted(bought, key=lambda card: card.family)
    for size in (1, 2, 1000):
        found: list[pb.Card] = []
        request = pb.ListMemberCardsRequest(member_id=member, page_size=size)
        while not found or request.page_token:
            page = cards.call(cards.cards.ListMemberCards, request)
            found += page.cards
            request.page_token = page.next_page_token
        assert found == expected
    forged = pb.ListMemberCardsRequest(member_id=member, page_token="x")  # noqa: S106 - no password
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        cards.call(cards.cards.ListMemberCards, forged)
    nobody = pb.ListMemberCardsRequest(member_id=fresh("nobody"))
    assert not cards.call(cards.cards.ListMemberCards, nobody).cards


@pytest.mark.parametrize(
    "attempt",
    [
        read_card,
        quote_refund,
        give_back,
        freeze,
        resume,
        lambda cards, card: cards.call(
            cards.cards.GetSavings, pb.GetSavingsRequest(member_id=card.member_id, card_id=card.card_id)
        ),
    ],
    ids=["GetCard", "QuoteRefund", "RefundCard", "FreezeCard", "ResumeCard", "GetSavings"],
)
def test_a_card_of_another_is_not_known(cards: Cards, attempt: Callable[[Cards, pb.Card], Any]) -> None:
    member, other = fresh("member"), fresh("member")
    card = buy(cards, other, sell(cards, freeze_policy=RESTS))
    buy(cards, member, sell(cards))
    for who, what in ((member, card.card_id), (fresh("nobody"), card.card_id), (member, NO_CARD)):
        with refused(StatusCode.NOT_FOUND, "CARD_UNKNOWN"):
            attempt(cards, pb.Card(member_id=who, card_id=what))
    assert read_card(cards, card) == card


# --- rests --------------------------------------------------------------------------------------------


def test_a_card_rests_within_the_policy_of_what_runs(cards: Cards) -> None:
    card = buy(cards, fresh("member"), sell(cards, freeze_policy=RESTS))
    for days in (1, 31):
        with refused(StatusCode.FAILED_PRECONDITION, "FREEZE_LENGTH") as refusal:
            freeze(cards, card, days)
        assert refusal.metadata == {"shortest_days": "2", "longest_days": "30"}
    with refused(StatusCode.FAILED_PRECONDITION, "CARD_NOT_FROZEN"):
        resume(cards, card)
    resting = freeze(cards, card, 10)
    assert resting.status == pb.CARD_STATUS_FROZEN
    assert instant(resting.resume_time) == cards.now + timedelta(days=10)
    with refused(StatusCode.FAILED_PRECONDITION, "CARD_FROZEN"):
        freeze(cards, card, 10)
    with refused(StatusCode.FAILED_PRECONDITION, "FREEZE_TOO_SHORT") as refusal:
        resume(cards, card)
    assert refusal.metadata == {"shortest_days": "2"}
    without = buy(cards, fresh("member"), sell(cards))
    with refused(StatusCode.FAILED_PRECONDITION, "FREEZE_NOT_ALLOWED"):
        freeze(cards, without)


def test_a_rest_moves_the_end_by_the_time_it_lasted(later: Cards) -> None:
    card = buy(later, fresh("member"), sell(later, freeze_policy=RESTS))
    resting = freeze(later, card)
    assert instant(resting.resume_time) == later.now + timedelta(days=30)
    wait(later, days=3)
    running = resume(later, card)
    assert running.status == pb.CARD_STATUS_ACTIVE
    assert instant(running.end_time) == instant(card.end_time) + timedelta(days=3)
    assert read_card(later, card) == running
    with refused(StatusCode.FAILED_PRECONDITION, "FREEZE_COUNT") as refusal:
        freeze(later, card)
    assert refusal.metadata == {"limit": "1"}


def test_a_rest_ends_by_itself(later: Cards) -> None:
    card = buy(later, fresh("member"), sell(later, freeze_policy=RESTS))
    resting = freeze(later, card, 5)
    move(later, instant(resting.resume_time))
    awake = read_card(later, card)
    assert (awake.status, awake.HasField("resume_time")) == (pb.CARD_STATUS_ACTIVE, False)
    assert instant(awake.end_time) == instant(card.end_time) + timedelta(days=5)
    with refused(StatusCode.FAILED_PRECONDITION, "CARD_NOT_FROZEN"):
        resume(later, card)


# --- giving back --------------------------------------------------------------------------------------


def test_a_card_is_given_back_for_what_was_quoted(cards: Cards) -> None:
    card = buy(cards, fresh("member"), sell(cards, refund_policy=LENIENT))
    quoted = quote_refund(cards, card)
    assert (quoted.refund_minor, quoted.currency_code, quoted.refund_points) == (1900, "CNY", 0)
    assert [(step.kind, step.amount) for step in quoted.explanation] == [(pb.REFUND_STEP_KIND_PAID, 1900)]
    with refused(StatusCode.FAILED_PRECONDITION, "QUOTE_CHANGED") as refusal:
        give_back(cards, card, expected_refund_minor=1901)
    assert refusal.metadata == {"refund_minor": "1900", "refund_points": "0"}
    with refused(StatusCode.FAILED_PRECONDITION, "QUOTE_CHANGED"):
        give_back(cards, card, expected_refund_points=1)
    answer = give_back(cards, card, expected_refund_minor=1900)
    assert answer.quote == quoted
    assert answer.card.status == pb.CARD_STATUS_REFUNDED
    assert read_card(cards, card) == answer.card
    with refused(StatusCode.FAILED_PRECONDITION, "NOTHING_TO_REFUND"):
        give_back(cards, card)
    assert quote_refund(cards, card).refund_minor == 0


def test_after_the_cooling_off_the_unused_days_are_given_back(later: Cards) -> None:
    card = buy(later, fresh("member"), sell(later, refund_policy=LENIENT, period="P30D", price_minor=3000))
    wait(later, days=10)
    quoted = quote_refund(later, card)
    assert [(one.kind, one.amount, one.count, one.of_count) for one in quoted.explanation] == [
        (pb.REFUND_STEP_KIND_PAID, 3000, 0, 0),
        (pb.REFUND_STEP_KIND_USED_DAYS, -1000, 10, 30),
    ]
    assert give_back(later, card).quote == quoted


def test_what_gives_nothing_back_says_so(cards: Cards) -> None:
    card = buy(cards, fresh("member"), sell(cards))
    quoted = quote_refund(cards, card)
    assert quoted.refund_minor == 0
    assert quoted.explanation[-1].kind == pb.REFUND_STEP_KIND_NOT_REFUNDABLE


# --- gifts --------------------------------------------------------------------------------------------


def test_a_gift_is_whose_who_shows_its_code(cards: Cards) -> None:
    giver, taker, sold = fresh("giver"), fresh("taker"), sell(cards, CUP, gift_claim_days=10)
    gift = give(cards, giver, sold)
    assert gift.order.gift
    assert len(gift.claim_code) == 20
    assert instant(gift.claim_until_time) == cards.now + timedelta(days=10)
    with refused(StatusCode.FAILED_PRECONDITION, "GIFT_NOT_PAID"):
        claim(cards, taker, gift.claim_code)
    paid = pay(cards, gift.order)
    assert paid.outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert not paid.HasField("card")
    typed = "-".join(gift.claim_code[at : at + 5] for at in range(0, 20, 5)).lower()
    card = claim(cards, taker, typed)
    assert (card.member_id, card.family, card.segments[0].paid_minor) == (taker, sold.family, 0)
    with refused(StatusCode.FAILED_PRECONDITION, "GIFT_CLAIMED"):
        claim(cards, fresh("another"), gift.claim_code)


def test_only_what_may_be_given_is_given(cards: Cards) -> None:
    with refused(StatusCode.FAILED_PRECONDITION, "NOT_A_GIFT"):
        give(cards, fresh("giver"), sell(cards))


def test_a_gift_is_claimed_in_time(later: Cards) -> None:
    sold = sell(later, gift_claim_days=2)
    gift, other = (give(later, fresh("giver"), sold) for _ in range(2))
    for each in (gift, other):
        pay(later, each.order)
    move(later, instant(gift.claim_until_time) - timedelta(microseconds=1))
    claim(later, fresh("taker"), gift.claim_code)
    move(later, instant(gift.claim_until_time))
    with refused(StatusCode.FAILED_PRECONDITION, "GIFT_EXPIRED"):
        claim(later, fresh("taker"), other.claim_code)


def test_codes_are_not_for_guessing(cards: Cards) -> None:
    member, guessed = fresh("member"), "0" * 20
    for _ in range(GUESSES):
        with refused(StatusCode.NOT_FOUND, "GIFT_CODE_UNKNOWN"):
            claim(cards, member, guessed)
    gift = give(cards, fresh("giver"), sell(cards, gift_claim_days=1))
    pay(cards, gift.order)
    for code in (guessed, gift.claim_code):
        with refused(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CODES") as refusal:
            claim(cards, member, code)
        assert refusal.retry
    claim(cards, fresh("another"), gift.claim_code)
