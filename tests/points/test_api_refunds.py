"""Refunds, reversals and transfers over a real channel: what is undone, what is refused, and why."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from grpc import StatusCode
from loyalty.orders.v1.orders_pb2 import Order, Refund
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest, ReportOrderRefundedRequest
from loyalty.points.v1 import points_service_pb2 as pb

from tests.points.calls import (
    a_refund,
    capture,
    kinds,
    listed,
    move,
    moved,
    place,
    refund,
    release,
    reverse,
    transfer,
)
from tests.support import Points, eventually, fresh, order, refused

NOBODY = "txn_" + "0" * 32


def two_lines(at: datetime) -> Order:
    """Coffee for 12 yuan (24 points) and a burger for 8 (8 points), with growth of 20."""
    made = order(1200, at, category="coffee")
    made.lines.add(line_id="2", sku="sku-2", category="burger", quantity=1, amount_minor=800)
    made.total_minor = 2000
    return made


def purse(points: Points, member: str) -> tuple[int, int, int]:
    """What is available, what is owed, and growth."""
    balance = points.balance(member)
    return balance.available, balance.owed, balance.growth


# --- refunds ------------------------------------------------------------------------------------------


def test_a_refund_takes_back_what_the_order_earned_too_much(points: Points) -> None:
    member, basket = fresh("member"), two_lines(points.now)
    earned = points.earn(member, basket)
    what = a_refund(basket.order_id, points.now, lines={"1": 1200})
    refunded = refund(points, member, what)
    assert (refunded.kind, refunded.order_id) == (pb.TRANSACTION_KIND_REFUND, basket.order_id)
    assert (refunded.reference_id, refunded.reverses_transaction_id) == (
        what.refund_id,
        earned.transaction_id,
    )
    assert refunded.occur_time == what.refund_time
    assert moved(refunded) == [("available", "issuer_earned", 24), ("growth", "issuer_earned", 12)]
    assert refunded.balance == pb.BalanceAfter(available=8, growth=8, lifetime_earned=8)
    assert listed(points, member, order_id=basket.order_id) == [refunded, earned]


def test_refunds_add_up_however_they_are_split(points: Points) -> None:
    whole, split, now = fresh("member"), fresh("member"), points.now
    baskets = {member: order(2190, now) for member in (whole, split)}
    for member, basket in baskets.items():
        points.earn(member, basket)
    refund(points, whole, a_refund(baskets[whole].order_id, now, 2180))
    taken = []
    for minor in (900, 900, 380):
        done = refund(points, split, a_refund(baskets[split].order_id, now, minor))
        taken.append(sum(t.amount for t in done.transfers if t.unit == pb.UNIT_POINTS))
    assert sum(taken) == 21
    assert purse(points, whole) == purse(points, split) == (0, 0, 0)


def test_a_refund_that_takes_nothing_is_a_transaction_all_the_same(points: Points) -> None:
    member, basket = fresh("member"), order(2190, points.now)
    points.earn(member, basket)
    assert not refund(points, member, a_refund(basket.order_id, points.now, 90)).transfers
    assert kinds(points, member) == "EARN REFUND"
    assert purse(points, member) == (21, 0, 21)


def test_refunded_points_that_were_spent_are_owed_and_paid_by_what_comes_next(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    points.earn(member, basket)
    points.redeem(member, 15)
    refund(points, member, a_refund(basket.order_id, points.now))
    assert purse(points, member) == (0, 15, 0)
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS"):
        points.redeem(member, 1)
    assert points.earn(member, order(1000, points.now)).balance.owed == 5
    assert points.earn(member, order(1000, points.now)).balance.available == 5


def test_no_more_is_refunded_than_was_paid(points: Points) -> None:
    member, basket, now = fresh("member"), two_lines(points.now), points.now
    points.earn(member, basket)
    name = basket.order_id
    refund(points, member, a_refund(name, now, lines={"1": 500}))
    refund(points, member, a_refund(name, now, 300))
    attempts: list[tuple[dict[str, Any], str]] = [
        ({"amount": 1201}, "1200"),
        ({"lines": {"1": 701}}, "700"),
        ({"lines": {"2": 801}}, "800"),
        ({"lines": {"1": 700, "2": 501}}, "1200"),
    ]
    before = points.balance(member)
    for what, left in attempts:
        with refused(StatusCode.FAILED_PRECONDITION, "REFUND_EXCEEDS_ORDER") as refusal:
            refund(points, member, a_refund(name, now, **what))
        assert refusal.metadata["refundable"] == left
    assert points.balance(member) == before
    refund(points, member, a_refund(name, now, 1200))
    with refused(StatusCode.FAILED_PRECONDITION, "REFUND_EXCEEDS_ORDER"):
        refund(points, member, a_refund(name, now, 1))
    assert purse(points, member) == (0, 0, 0)


def test_a_line_that_the_order_has_not_cannot_be_refunded(points: Points) -> None:
    member, basket = fresh("member"), two_lines(points.now)
    points.earn(member, basket)
    with refused(StatusCode.INVALID_ARGUMENT, "LINE_UNKNOWN") as refusal:
        refund(points, member, a_refund(basket.order_id, points.now, lines={"1": 1, "3": 1}))
    assert refusal.metadata == {"line_id": "3"}
    assert kinds(points, member) == "EARN"


def test_an_order_is_refunded_only_as_its_members_and_once_it_has_earned(points: Points) -> None:
    member, other, basket = fresh("member"), fresh("member"), order(500, points.now)
    points.earn(member, basket)
    points.adjust(other, 5)
    for who, what in ((other, basket.order_id), (fresh("nobody"), basket.order_id), (member, fresh("order"))):
        with refused(StatusCode.NOT_FOUND, "ORDER_UNKNOWN") as refusal:
            refund(points, who, a_refund(what, points.now))
        assert refusal.metadata == {"order_id": what}
    assert kinds(points, other) == "ADJUST"


def test_a_refund_ahead_of_the_clock_is_refused(points: Points) -> None:
    member, basket = fresh("member"), order(500, points.now)
    points.earn(member, basket)
    soon = timedelta(minutes=5)
    with refused(StatusCode.FAILED_PRECONDITION, "OCCUR_TIME_AHEAD"):
        refund(points, member, a_refund(basket.order_id, points.now + soon + timedelta(seconds=1)))
    refund(points, member, a_refund(basket.order_id, points.now + soon))


def test_a_refund_is_applied_once_under_whatever_request_id(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    points.earn(member, basket)
    what = a_refund(basket.order_id, points.now, 500)
    first = refund(points, member, what)
    refund(points, member, a_refund(basket.order_id, points.now, 500))
    assert refund(points, member, what).SerializeToString() == first.SerializeToString()
    changed = Refund()
    changed.CopyFrom(what)
    changed.amount_minor = 501
    with refused(StatusCode.ALREADY_EXISTS, "REFUND_ALREADY_APPLIED") as refusal:
        refund(points, member, changed)
    assert refusal.metadata == {"order_id": basket.order_id, "refund_id": what.refund_id}
    assert purse(points, member) == (10, 0, 10)


def test_refunds_of_two_orders_may_have_one_id(points: Points) -> None:
    member = fresh("member")
    for basket in (order(500, points.now), order(700, points.now)):
        points.earn(member, basket)
        what = a_refund(basket.order_id, points.now)
        what.refund_id = "refund-1"
        refund(points, member, what)
    assert purse(points, member) == (0, 0, 0)


# --- refunds that the brand hands in ------------------------------------------------------------------


def report(points: Points, member: str, what: Order | Refund, request_id: str = "") -> str:
    """Hands in an order or its refund, to be published."""
    request_id = request_id or fresh("report")
    if isinstance(what, Order):
        paid = ReportOrderPaidRequest(member_id=member, request_id=request_id, order=what)
        return points.call(points.orders.ReportOrderPaid, paid).event_id
    refunded = ReportOrderRefundedRequest(member_id=member, request_id=request_id, refund=what)
    return points.call(points.orders.ReportOrderRefunded, refunded).event_id


def test_a_reported_refund_is_applied_once_however_it_comes(points: Points) -> None:
    member, basket, request_id = fresh("member"), order(2000, points.now), fresh("report")
    points.earn(member, basket)
    what = a_refund(basket.order_id, points.now, 500)
    assert report(points, member, what, request_id) == report(points, member, what, request_id)
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        report(points, member, a_refund(basket.order_id, points.now, 500), request_id)
    eventually(lambda: kinds(points, member) == "EARN REFUND")
    refunded = listed(points, member)[0]
    assert refunded.request_id.startswith("~")
    assert refund(points, member, what).SerializeToString() == refunded.SerializeToString()
    report(points, member, what)
    report(points, member, last := order(100, points.now))
    eventually(lambda: listed(points, member)[0].order_id == last.order_id)
    assert kinds(points, member) == "EARN REFUND EARN"
    assert purse(points, member) == (16, 0, 16)


def test_a_refund_reported_before_its_order_waits_for_it(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    what, later = (a_refund(basket.order_id, points.now, minor) for minor in (500, 600))
    report(points, member, later)
    report(points, member, what)
    after = points.now + timedelta(minutes=1)
    report(points, member, a_refund(basket.order_id, after, 901))  # more than will be left by then
    report(points, member, basket)
    eventually(lambda: kinds(points, member) == "EARN REFUND REFUND")
    refunds = {t.reference_id: t for t in listed(points, member)[:2]}
    assert set(refunds) == {what.refund_id, later.refund_id}
    assert refund(points, member, what).SerializeToString() == refunds[what.refund_id].SerializeToString()
    assert purse(points, member) == (9, 0, 9)


def test_a_refund_that_is_reported_and_called_at_the_same_time_counts_once(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    points.earn(member, basket)
    what = a_refund(basket.order_id, points.now, 500)
    calls: list[Callable[[], object]] = [
        lambda: refund(points, member, what),
        lambda: report(points, member, what),
    ] * 5
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()
    report(points, member, last := order(100, points.now))
    eventually(lambda: listed(points, member)[0].order_id == last.order_id)
    assert kinds(points, member) == "EARN REFUND EARN"
    assert purse(points, member) == (16, 0, 16)


def test_a_refund_by_call_does_not_wait(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    early = a_refund(basket.order_id, points.now, 500)
    report(points, member, early)
    for what in (early, a_refund(basket.order_id, points.now, 100)):
        with refused(StatusCode.NOT_FOUND, "ORDER_UNKNOWN"):
            refund(points, member, what)
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        points.balance(member)
    report(points, member, basket)
    eventually(lambda: kinds(points, member) == "EARN REFUND")
    assert purse(points, member) == (15, 0, 15)


# --- reversals ----------------------------------------------------------------------------------------


def test_an_earn_is_taken_back_in_parts_and_never_beyond(points: Points) -> None:
    member = fresh("member")
    earned = points.earn(member, order(2000, points.now))
    undone = reverse(points, member, earned.transaction_id, points=5)
    assert (undone.kind, undone.reverses_transaction_id) == (
        pb.TRANSACTION_KIND_REVERSE,
        earned.transaction_id,
    )
    assert moved(undone) == [("available", "issuer_earned", 5)]
    for amounts, left in (({"points": 16}, "15"), ({"points": 1, "growth": 21}, "20")):
        with refused(StatusCode.FAILED_PRECONDITION, "REVERSAL_EXCEEDS_TRANSACTION") as refusal:
            reverse(points, member, earned.transaction_id, **amounts)
        assert refusal.metadata["left"] == left
    reverse(points, member, earned.transaction_id, growth=3)
    rest = reverse(points, member, earned.transaction_id)
    assert moved(rest) == [("available", "issuer_earned", 15), ("growth", "issuer_earned", 17)]
    with refused(StatusCode.FAILED_PRECONDITION, "REVERSAL_EXCEEDS_TRANSACTION") as refusal:
        reverse(points, member, earned.transaction_id, points=1)
    assert refusal.metadata["left"] == "0"
    assert purse(points, member) == (0, 0, 0)
    assert points.balance(member).lifetime_earned == 0


def test_spent_points_return_to_the_lots_they_came_from(points: Points) -> None:
    member = fresh("member")
    points.earn(member, order(500, points.now - timedelta(days=1)))
    points.earn(member, order(700, points.now))
    before = points.balance(member).expiring
    spent = points.redeem(member, 9)
    returned = reverse(points, member, spent.transaction_id, points=3)
    assert moved(returned) == [("issuer_redeemed", "available", 3)]
    assert [e.amount for e in points.balance(member).expiring] == [6]  # what ends last comes back first
    reverse(points, member, spent.transaction_id)
    assert points.balance(member).expiring == before


def test_a_capture_and_an_adjustment_are_undone_like_what_they_are(points: Points) -> None:
    member = fresh("member")
    up = points.adjust(member, 10)
    grown = points.adjust(member, 8, pb.UNIT_GROWTH)
    captured = capture(points, member, place(points, member, 6).hold_id, 4)
    down = points.adjust(member, -2)
    assert moved(reverse(points, member, captured.transaction_id)) == [("issuer_redeemed", "available", 4)]
    assert moved(reverse(points, member, down.transaction_id)) == [("issuer_adjusted", "available", 2)]
    assert moved(reverse(points, member, up.transaction_id)) == [("available", "issuer_adjusted", 10)]
    assert moved(reverse(points, member, grown.transaction_id)) == [("growth", "issuer_adjusted", 8)]
    assert purse(points, member) == (0, 0, 0)


def test_what_cannot_be_undone_says_so(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    earned = points.earn(member, basket)
    placed = place(points, member, 3)
    made = [
        placed,
        release(points, member, placed.hold_id),
        refund(points, member, a_refund(basket.order_id, points.now, 100)),
        reverse(points, member, earned.transaction_id, points=1),
    ]
    before = points.balance(member)
    for transaction in made:
        with refused(StatusCode.FAILED_PRECONDITION, "NOT_REVERSIBLE") as refusal:
            reverse(points, member, transaction.transaction_id)
        assert refusal.metadata["transaction_id"] == transaction.transaction_id
    assert points.balance(member) == before


def test_a_transaction_is_undone_by_its_whole_id_and_only_as_its_members(points: Points) -> None:
    member, other = fresh("member"), fresh("member")
    made = points.adjust(member, 5)
    points.adjust(other, 5)
    forged = made.transaction_id[:-20] + "0" * 12 + made.transaction_id[-8:]  # the right row, another id
    strangers = [(other, made.transaction_id), (fresh("nobody"), made.transaction_id)]
    for who, what in [*strangers, (member, NOBODY), (member, forged)]:
        with refused(StatusCode.NOT_FOUND, "TRANSACTION_UNKNOWN") as refusal:
            reverse(points, who, what)
        assert refusal.metadata == {"transaction_id": what}
    assert (purse(points, member), purse(points, other)) == ((5, 0, 0), (5, 0, 0))


def test_a_unit_is_named_once(points: Points) -> None:
    member = fresh("member")
    made = points.adjust(member, 5)
    request = pb.ReverseTransactionRequest(
        member_id=member,
        request_id=fresh("reverse"),
        transaction_id=made.transaction_id,
        amounts=[pb.UnitAmount(unit=pb.UNIT_POINTS, amount=n) for n in (1, 2)],
    )
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        points.call(points.points.ReverseTransaction, request)
    assert refusal.fields == {"amounts"}


def test_a_refund_and_a_reversal_together_take_no_more_than_was_earned(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    earned = points.earn(member, basket)
    reverse(points, member, earned.transaction_id, points=15)
    refunded = refund(points, member, a_refund(basket.order_id, points.now))
    assert moved(refunded) == [("available", "issuer_earned", 5), ("growth", "issuer_earned", 20)]
    with refused(StatusCode.FAILED_PRECONDITION, "REVERSAL_EXCEEDS_TRANSACTION") as refusal:
        reverse(points, member, earned.transaction_id, points=1)
    assert refusal.metadata["left"] == "0"


# --- the same request again ---------------------------------------------------------------------------


def test_refunds_and_reversals_get_their_first_answer_for_ever(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    earned = points.earn(member, basket)
    what = a_refund(basket.order_id, points.now, 500)
    refunding, reversing = fresh("refund-order"), fresh("reverse")
    first = [
        refund(points, member, what, refunding),
        reverse(points, member, earned.transaction_id, reversing, points=2),
    ]
    reverse(points, member, earned.transaction_id)
    again = [
        refund(points, member, what, refunding),
        reverse(points, member, earned.transaction_id, reversing, points=2),
    ]
    assert [t.SerializeToString() for t in again] == [t.SerializeToString() for t in first]
    others: list[Callable[[str], object]] = [
        lambda request_id: refund(points, member, a_refund(basket.order_id, points.now, 500), request_id),
        lambda request_id: reverse(points, member, earned.transaction_id, request_id, points=3),
    ]
    for request_id in (refunding, reversing):
        for other in others:
            with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
                other(request_id)
    assert kinds(points, member) == "EARN REFUND REVERSE REVERSE"


def test_the_new_kinds_are_listed_by_kind_unit_and_order(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    earned = points.earn(member, basket)
    placed = place(points, member, 3)
    captured = capture(points, member, placed.hold_id)
    refunded = refund(points, member, a_refund(basket.order_id, points.now, 500))
    shrunk = reverse(points, member, earned.transaction_id, growth=5)
    everything = [shrunk, refunded, captured, placed, earned]
    assert listed(points, member) == everything
    for made in everything:
        assert listed(points, member, kinds=[made.kind]) == [made]
    assert listed(points, member, unit=pb.UNIT_POINTS) == [refunded, captured, placed, earned]
    assert listed(points, member, unit=pb.UNIT_GROWTH) == [shrunk, refunded, earned]
    assert listed(points, member, order_id=basket.order_id) == [refunded, earned]
    every = [value for name, value in pb.TransactionKind.items() if value]
    assert listed(points, member, kinds=every, page_size=2) == everything


# --- transfers, and what needs time: only calls post what is due ----------------------------------------


def test_a_programme_that_names_no_transfers_allows_none(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 5)
    with refused(StatusCode.FAILED_PRECONDITION, "TRANSFERS_NOT_ALLOWED"):
        transfer(points, member, fresh("friend"), 1)
    assert kinds(points, member) == "ADJUST"


def test_sent_points_leave_at_once_and_arrive_with_the_end_they_had(later: Points) -> None:
    member, friend, request_id = fresh("member"), fresh("friend"), fresh("transfer")
    later.earn(member, order(500, later.now - timedelta(days=1)))
    later.earn(member, order(700, later.now))
    first = transfer(later, member, friend, 8, request_id)
    sent = first.transaction
    assert first.state == pb.TRANSFER_STATE_IN_TRANSIT
    assert (sent.kind, sent.reference_id) == (pb.TRANSACTION_KIND_SEND, friend)
    assert moved(sent) == [("available", "issuer_in_transit", 8)]
    eventually(lambda: kinds(later, friend) == "RECEIVE")
    (received,) = listed(later, friend)
    assert received.reference_id == sent.transaction_id
    assert moved(received) == [("issuer_in_transit", "available", 8)]
    assert [e.amount for e in later.balance(friend).expiring] == [5, 3]
    assert later.balance(friend).expiring[1].expire_time == later.balance(member).expiring[0].expire_time
    assert later.balance(friend).lifetime_earned == 0
    assert transfer(later, member, friend, 8, request_id).SerializeToString() == first.SerializeToString()
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        transfer(later, member, friend, 7, request_id)
    for who, made in ((member, sent), (friend, received)):  # its receiver may have spent it
        with refused(StatusCode.FAILED_PRECONDITION, "NOT_REVERSIBLE"):
            reverse(later, who, made.transaction_id)
    assert later.balance(member).available == 4


def test_what_cannot_be_sent_says_why(later: Points) -> None:
    member, friend = fresh("member"), fresh("friend")
    later.adjust(member, 150)
    with refused(StatusCode.INVALID_ARGUMENT, "TRANSFER_TO_SELF"):
        transfer(later, member, member, 1)
    with refused(StatusCode.FAILED_PRECONDITION, "TRANSFER_LIMIT") as refusal:
        transfer(later, member, friend, 101)
    assert refusal.metadata["left"] == "100"
    transfer(later, member, friend, 60)
    with refused(StatusCode.FAILED_PRECONDITION, "TRANSFER_LIMIT") as refusal:
        transfer(later, member, fresh("another"), 41)
    assert refusal.metadata["left"] == "40"
    later.adjust(member, -60)
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
        transfer(later, member, friend, 31)
    assert refusal.metadata == {"available": "30", "requested": "31"}
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS"):
        transfer(later, fresh("nobody"), friend, 1)
    transfer(later, member, friend, 30)  # what was refused does not count
    eventually(lambda: kinds(later, friend) == "RECEIVE RECEIVE")
    assert later.balance(friend).available == 90


def test_the_days_limit_begins_anew_at_local_midnight(later: Points) -> None:
    member, friend = fresh("member"), fresh("friend")
    later.adjust(member, 200)
    transfer(later, member, friend, 100)
    today = later.now.date()
    midnight = datetime(today.year, today.month, today.day, 16, tzinfo=UTC)  # in Shanghai
    midnight += timedelta(days=later.now >= midnight)
    move(later, midnight - timedelta(microseconds=1))
    with refused(StatusCode.FAILED_PRECONDITION, "TRANSFER_LIMIT"):
        transfer(later, member, friend, 1)
    move(later, midnight)
    transfer(later, member, friend, 100)
    eventually(lambda: kinds(later, friend) == "RECEIVE RECEIVE")
    assert later.balance(friend).available == 200


def test_spent_points_whose_lot_has_ended_meanwhile_come_back_for_a_while(later: Points) -> None:
    member = fresh("member")
    later.earn(member, order(500, later.now))
    spent = later.redeem(member, 5)
    move(later, later.now + timedelta(days=400))
    returned = reverse(later, member, spent.transaction_id)
    assert moved(returned) == [("issuer_redeemed", "available", 5)]
    (expiring,) = later.balance(member).expiring
    end = expiring.expire_time.ToDatetime(tzinfo=UTC)
    assert timedelta(days=7) < end - later.now <= timedelta(days=8)
    assert (end.hour, end.minute) == (16, 0)  # midnight in Shanghai
    move(later, end)
    assert later.balance(member).available == 0


def test_what_expired_unspent_is_not_owed(later: Points) -> None:
    member, basket = fresh("member"), order(500, later.now)
    earned = later.earn(member, basket)
    later.redeem(member, 2)
    move(later, later.now + timedelta(days=400))
    refunded = refund(later, member, a_refund(basket.order_id, later.now))
    assert kinds(later, member) == "EARN REDEEM EXPIRE REFUND"
    assert moved(refunded)[:2] == [("issuer_expired", "issuer_earned", 3), ("owed", "issuer_earned", 2)]
    assert purse(later, member) == (0, 2, 0)
    with refused(StatusCode.FAILED_PRECONDITION, "REVERSAL_EXCEEDS_TRANSACTION"):
        reverse(later, member, earned.transaction_id, points=1)


def test_a_refund_long_after_gets_its_first_answer_before_any_rule(later: Points) -> None:
    member, basket = fresh("member"), order(500, later.now)
    later.earn(member, basket)
    what = a_refund(basket.order_id, later.now, 100)
    first = refund(later, member, what, request_id := fresh("refund-order"))
    move(later, later.now + timedelta(days=800))
    assert refund(later, member, what, request_id) == first
    assert refund(later, member, what) == first
