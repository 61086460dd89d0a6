"""Orders, gifts, payments and points: what they come to, told in time, late, twice, or by somebody else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.commands import (
    TIER,
    ActivateGift,
    CancelOrder,
    Command,
    ConfirmPayment,
    HoldCaptured,
    HoldEnded,
    HoldPlaced,
    LearnFact,
    PlaceOrder,
    RecordRefundPaid,
    ReturnGift,
)
from services.cards.domain.payments import OrderStatus, Payment
from services.cards.errors import (
    CardOrderUnknown,
    ChainTooLong,
    CreditExceedsPrice,
    GiftClaimed,
    GiftCodeUnknown,
    GiftExpired,
    GiftNotPaid,
    GiftRefunded,
    NotAGift,
    NotEligible,
    OrderPaid,
    OrderSettling,
    PaymentAlreadyTold,
    ProductUnknown,
    PurchaseLimit,
    RefundAmountMismatch,
    RefundClosed,
    RefundUnknown,
    SoldOut,
    UpgradeNotAllowed,
    UpgradeUnitMismatch,
)
from services.cards.folding import HANDLERS
from services.chassis.errors import RequestIdReused, ServiceError
from tests.cards.shop import ANN, BEN, CEM, COFFEE, Shop
from tests.cards.till import TICK, product

LATE = {"minutes": 15}
SETTLED = {epb.CARD_ORDER_OUTCOME_CAPTURE: "CAPTURE", epb.CARD_ORDER_OUTCOME_RELEASE: "RELEASE"}


@pytest.fixture
def shop() -> Shop:
    return Shop()


def reason(answer: pb.ConfirmPaymentResponse) -> str:
    """What became of a payment."""
    if answer.outcome == pb.PAYMENT_OUTCOME_APPLIED:
        return "APPLIED"
    return epb.RefundDueReason.Name(answer.reason).removeprefix("REFUND_DUE_REASON_")


def settlements(shop: Shop, member: str = ANN) -> list[str]:
    """What was decided about points that were set aside."""
    return [SETTLED[event.outcome] for event in shop.heard(epb.CardOrderSettled, member)]


def test_every_command_can_be_done() -> None:
    kinds = {kind.__name__ for kind in Command.__subclasses__()}
    assert {kind.__name__ for kind in HANDLERS} == kinds


# --- money --------------------------------------------------------------------------------------------


def test_a_paid_order_makes_a_card_and_says_so(shop: Shop) -> None:
    order = shop.order()
    assert (order.amount_minor, order.currency_code, order.status) == (
        3000,
        "CNY",
        pb.CARD_ORDER_STATUS_PENDING_PAYMENT,
    )
    answer = shop.pay(order)
    assert reason(answer) == "APPLIED"
    assert answer.order.status == pb.CARD_ORDER_STATUS_PAID
    assert answer.order.card_id == answer.card.card_id
    assert answer.card.status == pb.CARD_STATUS_ACTIVE
    [ordered], [activated] = shop.heard(epb.CardOrdered), shop.heard(epb.CardActivated)
    assert (ordered.card_order_id, ordered.amount_minor, ordered.points_amount) == (order.order_id, 3000, 0)
    assert (activated.card_order_id, activated.paid_minor, activated.renewal) == (order.order_id, 3000, False)


def test_a_second_period_queues_behind_the_first(shop: Shop) -> None:
    first, second = shop.buy(), shop.buy("feast")
    assert second.card_id == first.card_id
    assert [one.product_code for one in second.segments] == ["coffee", "feast"]
    assert second.segments[1].start_time == first.end_time
    assert shop.heard(epb.CardActivated)[1].renewal


def test_the_same_payment_gets_the_first_answer_under_any_request_id(shop: Shop) -> None:
    order = shop.order()
    told: dict[str, Any] = {
        "order_id": order.order_id,
        "channel": "wechat",
        "payment_id": "p",
        "payment": Payment(3000, "CNY", shop.at),
    }
    first = shop.do(ConfirmPayment, **told, request_id="one")
    shop.wait(days=1)
    assert shop.do(ConfirmPayment, **told, request_id="two") == first
    assert shop.do(ConfirmPayment, **told, request_id="one") == first
    assert len(shop.wallet().payments) == 1
    with pytest.raises(RequestIdReused):
        shop.do(ConfirmPayment, **told | {"payment_id": "q"}, request_id="two")
    with pytest.raises(PaymentAlreadyTold):
        shop.do(ConfirmPayment, **told | {"order_id": "another"}, request_id="three")


def test_a_payment_belongs_to_the_member_under_whom_it_was_told_first(shop: Shop) -> None:
    order = shop.order()
    shop.pay(order, payment_id="p")
    with pytest.raises(PaymentAlreadyTold):
        shop.pay(order, payment_id="p", member=BEN)
    assert not shop.wallet(BEN).payments


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"amount": 2999}, "WRONG_AMOUNT"),
        ({"amount": 3001}, "WRONG_AMOUNT"),
        ({"member": BEN}, "ORDER_UNKNOWN"),
    ],
)
def test_a_payment_that_does_not_fit_is_due_to_be_paid_back(
    shop: Shop, change: dict[str, int], why: str
) -> None:
    order = shop.order()
    answer = shop.pay(order, **change)  # type: ignore[arg-type]
    assert reason(answer) == why
    assert shop.status(order) is OrderStatus.PENDING_PAYMENT
    assert not answer.HasField("card")
    payer = str(change.get("member", ANN))
    [due] = shop.heard(epb.RefundDue, payer)
    assert (due.card_order_id, due.amount_minor) == (order.order_id, change.get("amount", 3000))
    assert reason(shop.pay(order)) == "APPLIED"


def test_an_order_is_paid_once(shop: Shop) -> None:
    order = shop.order()
    shop.pay(order)
    assert reason(shop.pay(order)) == "ALREADY_PAID"
    assert len(shop.kept().card.segments) == 1


def test_an_order_expires_at_its_deadline_and_not_before(shop: Shop) -> None:
    order = shop.order()
    shop.at += timedelta(**LATE) - TICK
    assert shop.status(order) is OrderStatus.PENDING_PAYMENT
    shop.at += TICK
    assert shop.status(order) is OrderStatus.EXPIRED
    shop.settle()
    assert shop.kept_order(order).order.status is OrderStatus.EXPIRED
    assert reason(shop.pay(order)) == "ORDER_EXPIRED"


def test_what_was_paid_in_time_counts_though_told_late(shop: Shop) -> None:
    order, paid = shop.order(), shop.at
    shop.wait(days=3)
    answer = shop.pay(order, paid=paid)
    assert reason(answer) == "APPLIED"
    assert answer.card.status == pb.CARD_STATUS_ACTIVE
    assert answer.card.start_time.ToMicroseconds() == shop.at.timestamp() * 1e6


def test_a_cancelled_order_is_not_paid(shop: Shop) -> None:
    order = shop.order()
    cancelled = pb.CardOrder.FromString(shop.do(CancelOrder, order_id=order.order_id))
    assert (cancelled.status, cancelled.end_reason) == (pb.CARD_ORDER_STATUS_CANCELLED, "CANCELLED")
    again = pb.CardOrder.FromString(shop.do(CancelOrder, order_id=order.order_id))
    assert again == cancelled
    assert reason(shop.pay(order)) == "ORDER_CANCELLED"


def test_a_paid_order_is_not_cancelled_and_an_unknown_one_neither(shop: Shop) -> None:
    order = shop.order()
    shop.pay(order)
    with pytest.raises(OrderPaid):
        shop.do(CancelOrder, order_id=order.order_id)
    with pytest.raises(CardOrderUnknown):
        shop.do(CancelOrder, BEN, order_id=order.order_id)


def test_money_that_was_paid_back_closes_what_was_due_once(shop: Shop) -> None:
    order = shop.order()
    shop.pay(order, amount=1, payment_id="p")
    told: dict[str, Any] = {
        "channel": "wechat",
        "payment_id": "p",
        "refund_id": "r",
        "amount_minor": 1,
        "currency_code": "CNY",
        "refund_time": shop.at,
    }
    with pytest.raises(RefundUnknown):
        shop.do(RecordRefundPaid, BEN, **told)
    for change in ({"amount_minor": 2}, {"currency_code": "USD"}):
        with pytest.raises(RefundAmountMismatch) as refused:
            shop.do(RecordRefundPaid, **told | change)
        assert refused.value.metadata == {"due": "1"}
    shop.do(RecordRefundPaid, **told)
    with pytest.raises(RefundClosed):
        shop.do(RecordRefundPaid, **told)
    shop.pay(order, payment_id="q")
    with pytest.raises(RefundUnknown):
        shop.do(RecordRefundPaid, **told | {"payment_id": "q"})


def test_a_request_gets_its_first_answer_byte_for_byte(shop: Shop) -> None:
    first = shop.do(PlaceOrder, product_code="coffee", request_id="again")
    shop.wait(days=1)
    assert shop.do(PlaceOrder, product_code="coffee", request_id="again") == first
    assert len(shop.wallet().orders) == 1
    with pytest.raises(RequestIdReused):
        shop.do(PlaceOrder, product_code="feast", request_id="again")


def test_a_refused_order_may_be_tried_again_under_its_request_id(shop: Shop) -> None:
    with pytest.raises(ProductUnknown):
        shop.do(PlaceOrder, product_code="tea", request_id="tea")
    shop.put(product(code="tea"))
    shop.do(PlaceOrder, product_code="tea", request_id="tea")


# --- what may be sold ---------------------------------------------------------------------------------


def test_a_member_buys_no_more_than_the_product_allows() -> None:
    shop = Shop(product(code="once", purchase_limit=1))
    order = shop.order("once")
    with pytest.raises(PurchaseLimit):
        shop.order("once")
    shop.do(CancelOrder, order_id=order.order_id)
    shop.buy("once")
    with pytest.raises(PurchaseLimit):
        shop.order("once")
    shop.buy("once", BEN)


def test_a_product_is_sold_to_whom_its_condition_holds_for() -> None:
    shop = Shop(product(code="gold", eligible="member.tier == 'gold' && member.facts['city'] == 'SH'"))
    with pytest.raises(NotEligible):
        shop.order("gold")
    shop.do(LearnFact, name=TIER, value="gold", version=(1, 5), by_event=True)
    shop.do(LearnFact, name="city", value="SH", version=(1, 2), by_event=True)
    shop.order("gold")
    shop.do(LearnFact, name="city", value="BJ", version=(1, 1), by_event=True)  # older than what is known
    shop.order("gold")
    shop.do(LearnFact, name="city", value="", version=(1, 3), by_event=True)
    with pytest.raises(NotEligible):
        shop.order("gold")


def test_a_place_under_the_cap_is_held_until_the_deadline_and_then_free(shop: Shop) -> None:
    first, second = shop.order("scarce"), shop.order("scarce", BEN)
    with pytest.raises(SoldOut) as refused:
        shop.order("scarce", CEM)
    assert refused.value.metadata == {"limit": "2"}
    shop.pay(first)
    shop.at += timedelta(**LATE)
    third = shop.order("scarce", CEM)
    assert reason(shop.pay(third)) == "APPLIED"
    assert reason(shop.pay(second, paid=shop.at - timedelta(minutes=10))) == "SOLD_OUT"
    with pytest.raises(SoldOut):
        shop.order("scarce", CEM)


def test_a_late_payment_has_its_place_where_nobody_took_it_or_another_that_is_free(shop: Shop) -> None:
    paid = shop.at
    first, second = shop.order("scarce"), shop.order("scarce", BEN)
    shop.wait(hours=1)
    third = shop.order("scarce", CEM)  # takes the place that the first had
    assert reason(shop.pay(first, paid=paid)) == "APPLIED"  # has the one that the second had
    assert reason(shop.pay(second, paid=paid)) == "SOLD_OUT"
    shop.do(CancelOrder, CEM, order_id=third.order_id)
    assert reason(shop.pay(second, paid=paid)) == "APPLIED"
    assert sorted(slot.number for slot in shop.seen.slots.values() if slot.firm) == [1, 2]


def test_a_cap_counts_anew_in_the_next_window(shop: Shop) -> None:
    shop.buy("scarce")
    shop.buy("scarce", BEN)
    shop.wait(days=365)
    shop.buy("scarce", CEM)


def test_a_lowered_cap_sells_nothing_until_less_is_held(shop: Shop) -> None:
    shop.buy("scarce", BEN)
    order = shop.order("scarce", CEM)
    lowered = product(
        code="scarce", family="rare", version=2, period="P1M", price_minor=5000,
        sales_cap={"limit": 1, "window": "SALES_WINDOW_YEAR"},
    )  # fmt: skip
    shop.put(lowered)
    shop.do(CancelOrder, CEM, order_id=order.order_id)
    with pytest.raises(SoldOut):
        shop.order("scarce")


def test_what_can_still_be_paid_counts_against_the_length_of_a_chain() -> None:
    shop = Shop(product(code="day", period="P1D"))
    orders = [shop.order("day") for _ in range(100)]
    with pytest.raises(ChainTooLong):
        shop.order("day")
    for order in orders:
        assert reason(shop.pay(order)) == "APPLIED"
    with pytest.raises(ChainTooLong):
        shop.order("day")


def test_a_chain_that_filled_meanwhile_leaves_no_room_for_a_late_payment() -> None:
    shop = Shop(product(code="day", period="P1D"))
    late, paid = shop.order("day"), shop.at
    shop.at += timedelta(**LATE)
    for order in [shop.order("day") for _ in range(100)]:
        shop.pay(order)
    assert reason(shop.pay(late, paid=paid)) == "ORDER_EXPIRED"


# --- upgrades -----------------------------------------------------------------------------------------


def test_an_upgrade_starts_now_for_its_price_less_the_unused_days(shop: Shop) -> None:
    shop.buy()
    shop.wait(days=10)
    order = shop.order("feast", upgrade_now=True)
    assert (order.amount_minor, order.credit, order.upgrade) == (7000, 2000, pb.UPGRADE_NOW)
    card = shop.pay(order).card
    assert [one.product_code for one in card.segments] == ["coffee", "feast"]
    assert card.segments[0].ended == pb.SEGMENT_END_REPLACED
    assert card.segments[1].paid_minor == 9000
    activated = shop.heard(epb.CardActivated)[-1]
    assert list(activated.replaced_segment_ids) == [card.segments[0].segment_id]


def test_an_upgrade_where_nothing_runs_is_an_order_like_any_other(shop: Shop) -> None:
    order = shop.order("taste", upgrade_now=True)
    assert (order.upgrade, order.credit, order.amount_minor) == (pb.UPGRADE_QUEUE, 0, 100)


def test_an_upgrade_that_its_credit_pays_whole_is_paid_at_once(shop: Shop) -> None:
    shop.buy()
    order = shop.order("coffee", upgrade_now=True)
    assert (order.amount_minor, order.credit, order.status) == (0, 3000, pb.CARD_ORDER_STATUS_PAID)
    assert [one.ended for one in shop.card().segments] == [
        pb.SEGMENT_END_REPLACED,
        pb.SEGMENT_END_UNSPECIFIED,
    ]


def test_upgrades_are_refused_where_they_would_lose_somebody_something(shop: Shop) -> None:
    shop.buy("feast")
    with pytest.raises(CreditExceedsPrice):
        shop.order("coffee", upgrade_now=True)
    with pytest.raises(UpgradeUnitMismatch):
        shop.order("feast", upgrade_now=True, by_points=True)
    with pytest.raises(UpgradeNotAllowed):
        shop.order("taste", upgrade_now=True)


@pytest.mark.parametrize("how", ["bought", "refunded", "upgraded"])
def test_a_change_of_the_card_cancels_the_upgrades_that_wait_for_their_payment(shop: Shop, how: str) -> None:
    card = shop.buy()
    order = shop.order("feast", upgrade_now=True)
    other = shop.order("feast", upgrade_now=True)
    if how == "bought":
        shop.buy("taste")
    elif how == "refunded":
        shop.give_back(card)
    else:
        shop.pay(other)
    cancelled = shop.kept_order(order).order
    assert (cancelled.status, cancelled.end_reason) == (OrderStatus.CANCELLED, "CARD_CHANGED")
    assert reason(shop.pay(order)) == "ORDER_CANCELLED"


def test_a_rest_changes_nothing_for_an_upgrade_that_waits(shop: Shop) -> None:
    card = shop.buy()
    order = shop.order("feast", upgrade_now=True)
    shop.freeze(card, 5)
    upgraded = shop.pay(order).card
    assert (upgraded.status, upgraded.segments[-1].product_code) == (pb.CARD_STATUS_ACTIVE, "feast")


@pytest.mark.parametrize(
    ("meanwhile", "comes_to"), [("", "APPLIED"), ("more", "ORDER_EXPIRED"), ("less", "ORDER_EXPIRED")]
)
def test_an_upgrade_paid_in_time_and_told_late_stands_where_its_credit_is_still_right(
    shop: Shop, meanwhile: str, comes_to: str
) -> None:
    card = shop.buy()
    order, paid = shop.order("feast", upgrade_now=True), shop.at
    shop.wait(hours=1)
    if meanwhile == "more":
        shop.buy("feast")
    elif meanwhile == "less":
        shop.give_back(card)
    assert reason(shop.pay(order, paid=paid)) == comes_to


# --- points -------------------------------------------------------------------------------------------


def test_points_that_are_set_aside_are_spent_and_then_the_card_is_there(shop: Shop) -> None:
    order = shop.order(by_points=True)
    assert (order.amount_points, order.amount_minor, order.currency_code) == (300, 0, "")
    [ordered] = shop.heard(epb.CardOrdered)
    assert ordered.points_amount == 300
    assert ordered.hold_expire_time.ToDatetime() - ordered.pay_deadline_time.ToDatetime() == timedelta(days=1)
    shop.hold(order)
    assert shop.status(order) is OrderStatus.SETTLING
    assert settlements(shop) == ["CAPTURE"]
    assert not shop.wallet().cards
    shop.wait(days=3)  # settling never lapses by time
    shop.capture(order)
    assert shop.status(order) is OrderStatus.PAID
    [segment] = shop.kept().card.segments
    assert (segment.paid_points, segment.paid_minor) == (300, 0)


def test_points_set_aside_too_late_go_back(shop: Shop) -> None:
    order = shop.order(by_points=True)
    shop.at += timedelta(**LATE)
    shop.hold(order)
    assert settlements(shop) == ["RELEASE"]
    assert shop.status(order) is OrderStatus.EXPIRED


def test_points_that_are_refused_end_the_order_and_say_why(shop: Shop) -> None:
    order = shop.order("scarce", by_points=True)
    shop.do(HoldEnded, order_id=order.order_id, reason="INSUFFICIENT_POINTS", by_event=True)
    ended = shop.kept_order(order).order
    assert (ended.status, ended.end_reason) == (OrderStatus.CANCELLED, "INSUFFICIENT_POINTS")
    assert not shop.seen.slots


def test_points_that_come_back_after_they_were_to_be_spent_free_the_place(shop: Shop) -> None:
    order = shop.order("scarce", by_points=True)
    shop.hold(order)
    shop.wait(days=2)
    assert [slot.firm for slot in shop.seen.slots.values()] == [True]
    shop.do(HoldEnded, order_id=order.order_id, reason="HOLD_EXPIRED", by_event=True)
    assert not shop.seen.slots


def test_the_same_news_about_points_twice_says_nothing_new(shop: Shop) -> None:
    order = shop.order(by_points=True)
    shop.hold(order)
    shop.hold(order)
    shop.capture(order)
    shop.capture(order)
    shop.do(HoldEnded, order_id=order.order_id, reason="RELEASED", by_event=True)
    assert settlements(shop) == ["CAPTURE"]
    assert len(shop.kept().card.segments) == 1


def test_points_set_aside_for_something_else_are_nobodys_business_here(shop: Shop) -> None:
    shop.do(HoldPlaced, order_id="a-sofa", by_event=True)
    shop.do(HoldEnded, order_id="a-sofa", reason="RELEASED", by_event=True)
    shop.do(HoldCaptured, order_id="a-sofa", capture_time=shop.at, by_event=True)
    assert not shop.events[ANN]


def test_money_for_an_order_in_points_goes_back(shop: Shop) -> None:
    order = shop.order(by_points=True)
    assert reason(shop.pay(order, amount=300)) == "WRONG_CURRENCY"
    assert shop.status(order) is OrderStatus.PENDING_PAYMENT


def test_an_order_whose_points_are_being_spent_is_not_cancelled(shop: Shop) -> None:
    order = shop.order(by_points=True)
    shop.hold(order)
    with pytest.raises(OrderSettling):
        shop.do(CancelOrder, order_id=order.order_id)


def test_while_points_are_spent_on_an_upgrade_the_card_is_neither_given_back_nor_upgraded(shop: Shop) -> None:
    shop.capture(_held(shop, shop.order(by_points=True)))
    order = _held(shop, shop.order("feast", by_points=True, upgrade_now=True))
    assert (order.amount_points, order.credit) == (600, 300)
    with pytest.raises(OrderSettling):
        shop.order("feast", by_points=True, upgrade_now=True)
    with pytest.raises(OrderSettling):
        shop.give_back(shop.card())
    shop.capture(order)
    assert shop.kept().card.segments[-1].paid_points == 900


def test_an_upgrade_for_points_starts_now_also_right_after_a_card_was_given_back(shop: Shop) -> None:
    shop.capture(_held(shop, shop.order(by_points=True)))
    shop.give_back(shop.card())
    shop.capture(_held(shop, shop.order(by_points=True)))
    shop.capture(_held(shop, shop.order("feast", by_points=True, upgrade_now=True)))
    assert [one.ended for one in shop.card().segments] == [
        pb.SEGMENT_END_REFUNDED,
        pb.SEGMENT_END_REPLACED,
        pb.SEGMENT_END_UNSPECIFIED,
    ]


def test_of_two_upgrades_for_points_the_second_gets_its_points_back(shop: Shop) -> None:
    shop.capture(_held(shop, shop.order(by_points=True)))
    first = shop.order("feast", by_points=True, upgrade_now=True)
    second = shop.order("feast", by_points=True, upgrade_now=True)
    shop.hold(first)
    shop.hold(second)
    assert settlements(shop) == ["CAPTURE", "CAPTURE", "RELEASE"]
    assert shop.status(second) is OrderStatus.CANCELLED


def test_an_upgrade_queues_where_something_of_worth_came_while_its_points_were_spent(shop: Shop) -> None:
    shop.capture(_held(shop, shop.order(by_points=True)))
    other = shop.order("taste")
    order = _held(shop, shop.order("feast", by_points=True, upgrade_now=True))
    shop.pay(other)
    shop.capture(order)
    card = shop.card()
    assert [one.product_code for one in card.segments] == ["coffee", "taste", "feast"]
    assert not any(one.ended for one in card.segments)
    assert (shop.kept_order(order).credit, shop.kept_order(order).upgrade_now) == (0, False)


# --- gifts --------------------------------------------------------------------------------------------


def test_a_gift_is_claimed_once_by_whoever_shows_its_code(shop: Shop) -> None:
    gift = shop.gift()
    assert not gift.claim_code  # it is made on the way out, and kept nowhere
    with pytest.raises(GiftNotPaid):
        shop.claim(gift, BEN)
    answer = shop.pay(gift.order)
    assert not answer.HasField("card")
    assert not shop.wallet().cards
    card = shop.claim(gift, BEN)
    assert (card.member_id, card.status) == (BEN, pb.CARD_STATUS_ACTIVE)
    assert card.segments[0].paid_minor == 0
    [activated] = shop.heard(epb.CardActivated, BEN)
    assert (activated.gift, activated.card_order_id) == (True, gift.order.order_id)
    for member in (BEN, CEM):
        with pytest.raises(GiftClaimed):
            shop.claim(gift, member)


def test_a_wrong_code_claims_nothing(shop: Shop) -> None:
    shop.pay(shop.gift().order)
    with pytest.raises(GiftCodeUnknown):
        shop.do(ActivateGift, BEN, code_hash=b"another")


def test_a_gift_that_nobody_claims_in_time_is_paid_back_to_its_giver(shop: Shop) -> None:
    gift = shop.gift()
    shop.pay(gift.order)
    shop.at += timedelta(days=10)
    with pytest.raises(GiftExpired):
        shop.claim(gift, BEN)
    shop.settle()
    shop.settle()
    [due] = shop.heard(epb.RefundDue)
    assert (due.amount_minor, due.reason) == (3000, epb.REFUND_DUE_REASON_CARD_REFUNDED)
    with pytest.raises(GiftRefunded):
        shop.claim(gift, BEN)


def test_a_gift_is_not_paid_back_before_its_time_or_after_it_was_claimed(shop: Shop) -> None:
    gift = shop.gift()
    shop.pay(gift.order)
    shop.at += timedelta(days=10) - TICK
    shop.do(ReturnGift, order_id=gift.order.order_id)
    shop.claim(gift, BEN)
    shop.at += TICK
    shop.do(ReturnGift, order_id=gift.order.order_id)
    assert not shop.heard(epb.RefundDue)


def test_a_gift_paid_with_points_is_claimed_like_any(shop: Shop) -> None:
    gift = shop.gift(by_points=True)
    shop.hold(gift.order)
    shop.capture(gift.order)
    assert shop.claim(gift, BEN).status == pb.CARD_STATUS_ACTIVE
    shop.wait(days=10)
    assert settlements(shop) == ["CAPTURE"]


def test_the_points_of_a_gift_that_nobody_claims_are_given_back_once(shop: Shop) -> None:
    gift = shop.gift(by_points=True)
    shop.capture(_held(shop, gift.order))
    shop.wait(days=10, microseconds=-1)
    assert settlements(shop) == ["CAPTURE"]
    for _ in range(2):
        shop.wait(microseconds=1)
        shop.do(ReturnGift, order_id=gift.order.order_id)
        assert settlements(shop) == ["CAPTURE", "RELEASE"]
    with pytest.raises(GiftRefunded):
        shop.claim(gift, BEN)


def test_only_what_may_be_given_is_given(shop: Shop) -> None:
    with pytest.raises(NotAGift):
        shop.gift("feast")


def test_a_gift_finds_no_room_in_a_full_chain() -> None:
    shop = Shop(product(code="day", period="P1D", gift_claim_days=1))
    gift = shop.gift("day")
    shop.pay(gift.order)
    for _ in range(100):
        shop.order("day", BEN)
    with pytest.raises(ChainTooLong):
        shop.claim(gift, BEN)
    assert not shop.seen.gifts[next(iter(shop.seen.gifts))].claimed_by


def test_a_refused_command_leaves_what_members_share_as_it_was(shop: Shop) -> None:
    shop.order("scarce", BEN)
    slots = dict(shop.seen.slots)
    answer = shop.answer(PlaceOrder, CEM, product_code="scarce", upgrade_now=True)
    assert not isinstance(answer, ServiceError)
    refused = shop.answer(PlaceOrder, product_code="scarce")
    assert isinstance(refused, SoldOut)
    assert len(shop.seen.slots) == len(slots) + 1


def test_a_lapsed_version_of_a_product_still_can_be_paid(shop: Shop) -> None:
    order = shop.order()
    dearer = pb.Product()
    dearer.CopyFrom(COFFEE)
    dearer.version, dearer.price_minor, dearer.withdrawn = 2, 4000, True
    shop.put(dearer)
    assert shop.pay(order).card.segments[0].product_version == 1


def _held(shop: Shop, order: pb.CardOrder) -> pb.CardOrder:
    shop.hold(order)
    return order
