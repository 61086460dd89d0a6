"""The points API over a real channel, on both fronts: what a caller gets, to the code and the reason."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from grpc import StatusCode
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.activities.v1.activities_service_pb2 import ReportActivityRequest
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest
from loyalty.points.v1 import points_service_pb2 as pb

from tests.points.calls import listed, move
from tests.support import TIMEOUT, Points, eventually, fresh, order, refused

NOBODY = "txn_" + "0" * 32


def task(at: datetime, *, kind: str = "app_task_done", amount: int = 0) -> Activity:
    """An activity that earns 20 points, at most once a day."""
    made = Activity(activity_id=fresh("activity"), kind=kind, amount_minor=amount)
    made.occur_time.FromDatetime(at)
    return made


def earn_activity(points: Points, member: str, what: Activity, request_id: str = "") -> pb.Transaction:
    request = pb.EarnPointsRequest(member_id=member, request_id=request_id or fresh("earn"), activity=what)
    return points.call(points.points.EarnPoints, request)


def earn_fixed(points: Points, member: str, unit: pb.Unit.ValueType, amount: int) -> pb.Transaction:
    fixed = pb.FixedEarn(unit=unit, amount=amount, reason="a gift")
    request = pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"), fixed=fixed)
    return points.call(points.points.EarnPoints, request)


# --- earning ------------------------------------------------------------------------------------------


def test_an_order_earns_by_the_rules_and_says_which(points: Points) -> None:
    member = fresh("member")
    transaction = points.earn(member, order(2190, points.now, category="coffee"))
    given = {c.rule_id: c.amount for c in transaction.contributions}
    assert given == {"base": 21, "growth": 21, "coffee": 22}  # 43.8 points, rounded down once
    assert points.balance(member).available == 43


def test_an_earn_answers_with_the_whole_transaction(points: Points) -> None:
    member, request_id, basket = fresh("member"), fresh("earn"), order(500, points.now)
    transaction = points.earn(member, basket, request_id)
    assert transaction.kind == pb.TRANSACTION_KIND_EARN
    assert (transaction.member_id, transaction.request_id) == (member, request_id)
    assert (transaction.order_id, transaction.seq) == (basket.order_id, 1)
    assert len(transaction.hash) == 32
    assert transaction.occur_time == basket.paid_time
    moved = [(t.unit, t.debit, t.credit, t.amount) for t in transaction.transfers]
    earned = pb.ACCOUNT_ISSUER_EARNED
    assert moved == [
        (pb.UNIT_POINTS, earned, pb.ACCOUNT_AVAILABLE, 5),
        (pb.UNIT_GROWTH, earned, pb.ACCOUNT_GROWTH, 5),
    ]
    assert transaction.balance == pb.BalanceAfter(available=5, growth=5, lifetime_earned=5)


def test_an_order_that_earns_nothing_is_a_transaction_all_the_same(points: Points) -> None:
    member = fresh("member")
    assert not points.earn(member, order(99, points.now)).transfers
    assert points.balance(member) == pb.Balance(member_id=member, version=1, seq=1)


def test_an_activity_earns_up_to_its_daily_cap(points: Points) -> None:
    member = fresh("member")
    assert earn_activity(points, member, task(points.now)).balance.available == 20
    second = earn_activity(points, member, task(points.now))
    assert second.balance.available == 20
    assert [(c.rule_id, c.amount) for c in second.contributions] == [("task", 0)]
    yesterday = task(points.now - timedelta(days=1))
    assert earn_activity(points, member, yesterday).balance.available == 40


def test_a_fixed_amount_of_either_unit_is_credited_as_asked(points: Points) -> None:
    member = fresh("member")
    earn_fixed(points, member, pb.UNIT_POINTS, 7)
    balance = earn_fixed(points, member, pb.UNIT_GROWTH, 9).balance
    assert (balance.available, balance.growth, balance.lifetime_earned) == (7, 9, 7)


def test_a_quote_says_what_would_be_earned_and_writes_nothing(points: Points) -> None:
    member, basket = fresh("member"), order(2190, points.now, category="coffee")
    quote = points.call(points.points.QuoteEarn, pb.QuoteEarnRequest(member_id=member, order=basket))
    assert (quote.points, quote.growth, quote.programme_version) == (43, 21, 1)
    assert {c.rule_id: c.amount for c in quote.contributions} == {"base": 21, "growth": 21, "coffee": 22}
    asked = pb.QuoteEarnRequest(member_id=member, activity=task(points.now))
    assert points.call(points.points.QuoteEarn, asked).points == 20
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        points.balance(member)


def wrong_total(now: datetime) -> Order:
    made = order(500, now)
    made.total_minor += 1
    return made


def dollars(now: datetime) -> Order:
    made = order(500, now)
    made.currency_code = "USD"
    return made


@pytest.mark.parametrize(
    ("make", "code", "reason"),
    [
        (wrong_total, StatusCode.INVALID_ARGUMENT, "TOTAL_MISMATCH"),
        (dollars, StatusCode.FAILED_PRECONDITION, "CURRENCY_MISMATCH"),
        (
            lambda now: order(500, now + timedelta(minutes=5, seconds=1)),
            StatusCode.FAILED_PRECONDITION,
            "OCCUR_TIME_AHEAD",
        ),
    ],
    ids=["a wrong total", "another currency", "the future"],
)
def test_an_order_that_cannot_earn_is_refused_by_earn_and_quote(
    points: Points, make: Callable[[datetime], Order], code: StatusCode, reason: str
) -> None:
    member, basket = fresh("member"), make(points.now)
    with refused(code, reason):
        points.earn(member, basket)
    with refused(code, reason):
        points.call(points.points.QuoteEarn, pb.QuoteEarnRequest(member_id=member, order=basket))
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        points.balance(member)


def test_a_fact_five_minutes_ahead_is_still_taken(points: Points) -> None:
    points.earn(fresh("member"), order(500, points.now + timedelta(minutes=5)))


def test_every_violated_field_is_named_at_once(points: Points) -> None:
    basket = order(500, points.now)
    basket.lines[0].quantity = -1
    basket.currency_code = "yuan"
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        points.earn("no spaces, please", basket, "~mine")
    assert refusal.fields == {"member_id", "request_id", "order.currency_code", "order.lines[0].quantity"}


# --- spending and correcting --------------------------------------------------------------------------


def test_more_than_there_is_cannot_be_redeemed(points: Points) -> None:
    member = fresh("member")
    points.earn(member, order(2190, points.now))
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
        points.redeem(member, 22)
    assert refusal.metadata == {"available": "21", "requested": "22"}
    assert points.redeem(member, 21).balance.available == 0


def test_a_redeem_keeps_the_callers_reference(points: Points) -> None:
    member = fresh("member")
    points.earn(member, order(500, points.now))
    request = pb.RedeemPointsRequest(
        member_id=member, request_id=fresh("redeem"), amount=2, reference_id="gift-1"
    )
    transaction = points.call(points.points.RedeemPoints, request)
    assert (transaction.kind, transaction.reference_id) == (pb.TRANSACTION_KIND_REDEEM, "gift-1")
    assert transaction.balance == pb.BalanceAfter(available=3, growth=5, lifetime_earned=5)
    request.occur_time.FromDatetime(points.now + timedelta(minutes=6))
    request.request_id = fresh("redeem")
    with refused(StatusCode.FAILED_PRECONDITION, "OCCUR_TIME_AHEAD"):
        points.call(points.points.RedeemPoints, request)


def test_an_unknown_member_has_nothing_to_take_and_is_not_made(points: Points) -> None:
    member = fresh("member")
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
        points.redeem(member, 5)
    assert refusal.metadata == {"available": "0", "requested": "5"}
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS"):
        points.adjust(member, -5)
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_GROWTH"):
        points.adjust(member, -5, pb.UNIT_GROWTH)
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        points.balance(member)


def test_an_adjustment_goes_up_and_down_and_not_below_nothing(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 10)
    points.adjust(member, 8, pb.UNIT_GROWTH)
    points.adjust(member, -3)
    balance = points.adjust(member, -2, pb.UNIT_GROWTH).balance
    assert (balance.available, balance.growth, balance.lifetime_earned) == (7, 6, 0)
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
        points.adjust(member, -8)
    assert refusal.metadata == {"available": "7", "requested": "8"}
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_GROWTH") as refusal:
        points.adjust(member, -7, pb.UNIT_GROWTH)
    assert refusal.metadata == {"growth": "6", "requested": "7"}


# --- the same request again ---------------------------------------------------------------------------


def test_the_same_request_gets_the_first_answer_after_the_balance_is_gone(points: Points) -> None:
    member, request_id, basket = fresh("member"), fresh("earn"), order(900, points.now)
    earned = points.earn(member, basket, request_id)
    spent = points.redeem(member, 9, request_id=(spending := fresh("redeem")))
    assert points.earn(member, basket, request_id).SerializeToString() == earned.SerializeToString()
    assert points.redeem(member, 9, spending).SerializeToString() == spent.SerializeToString()
    assert points.balance(member).available == 0


def test_another_payload_under_a_request_id_is_refused_whatever_the_method(points: Points) -> None:
    member, request_id = fresh("member"), fresh("request")
    points.earn(member, order(900, points.now), request_id)
    others: list[Callable[[], object]] = [
        lambda: points.earn(member, order(900, points.now), request_id),
        lambda: points.redeem(member, 1, request_id),
        lambda: points.redeem(member, 1_000_000, request_id),
        lambda: points.adjust(member, 1, request_id=request_id),
    ]
    for call in others:
        with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED") as refusal:
            call()
        assert refusal.metadata == {"request_id": request_id}
    assert points.balance(member).version == 1


def test_a_refusal_is_not_remembered(points: Points) -> None:
    member, request_id = fresh("member"), fresh("redeem")
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS"):
        points.redeem(member, 5, request_id)
    points.earn(member, order(500, points.now))
    assert points.redeem(member, 5, request_id).balance.available == 0


def test_an_order_is_earned_once_under_whatever_request_id(points: Points) -> None:
    member, basket = fresh("member"), order(900, points.now)
    first = points.earn(member, basket)
    assert points.earn(member, basket) == first
    other = order(800, points.now, order_id=basket.order_id)
    with refused(StatusCode.ALREADY_EXISTS, "ORDER_ALREADY_EARNED") as refusal:
        points.earn(member, other)
    assert refusal.metadata == {"order_id": basket.order_id, "transaction_id": first.transaction_id}
    assert points.balance(member).available == 9


def test_an_activity_is_earned_once_under_whatever_request_id(points: Points) -> None:
    member, done = fresh("member"), task(points.now)
    first = earn_activity(points, member, done)
    assert earn_activity(points, member, done) == first
    done.attributes["seats"] = "2"
    with refused(StatusCode.ALREADY_EXISTS, "ACTIVITY_ALREADY_EARNED") as refusal:
        earn_activity(points, member, done)
    assert refusal.metadata == {"activity_id": done.activity_id, "transaction_id": first.transaction_id}


def test_an_order_and_an_activity_of_one_id_are_two_facts(points: Points) -> None:
    member, done = fresh("member"), task(points.now)
    points.earn(member, order(900, points.now, order_id=done.activity_id))
    assert earn_activity(points, member, done).balance.available == 29


# --- batches ------------------------------------------------------------------------------------------


def item(request: pb.EarnPointsRequest | pb.AdjustPointsRequest) -> pb.BatchPostItem:
    if isinstance(request, pb.EarnPointsRequest):
        return pb.BatchPostItem(earn=request)
    return pb.BatchPostItem(adjust=request)


def an_earn(member: str, basket: Order) -> pb.EarnPointsRequest:
    return pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"), order=basket)


def an_adjust(member: str, amount: int) -> pb.AdjustPointsRequest:
    return pb.AdjustPointsRequest(
        member_id=member, request_id=fresh("adjust"), unit=pb.UNIT_POINTS, amount=amount, reason="a test"
    )


def test_a_batch_answers_each_item_alone_and_in_order(points: Points) -> None:
    one, two, now = fresh("member"), fresh("member"), points.now
    requests: list[pb.EarnPointsRequest | pb.AdjustPointsRequest] = [
        an_adjust(one, -1),  # nothing there yet
        an_earn(one, order(500, now)),
        an_adjust(two, 3),
        an_adjust(one, -5),
        an_adjust(one, -1),  # nothing there any more
        an_earn(two, wrong_total(now)),
        an_adjust(two, -2),
    ]
    batch = pb.BatchPostRequest(items=[item(request) for request in requests])
    results = points.call(points.points.BatchPost, batch).results
    assert [r.error.reason for r in results] == [
        *("INSUFFICIENT_POINTS", "", "", "", "INSUFFICIENT_POINTS", "TOTAL_MISMATCH", ""),
    ]
    assert [r.transaction.balance.available for r in results] == [0, 5, 3, 0, 0, 0, 1]
    error = results[4].error
    assert error.code == StatusCode.FAILED_PRECONDITION.value[0]
    assert dict(error.metadata) == {"available": "0", "requested": "1"}
    assert [r.transaction.seq for r in results] == [0, 1, 1, 2, 0, 0, 2]
    again = points.call(points.points.BatchPost, batch).results
    assert [r.transaction for r in again] == [r.transaction for r in results]


def test_an_item_of_a_batch_is_the_same_request_as_its_own_method(points: Points) -> None:
    member = fresh("member")
    earn, adjust = an_earn(fresh("member"), order(500, points.now)), an_adjust(member, 4)
    batch = pb.BatchPostRequest(items=[item(earn), item(adjust), item(adjust)])
    first, second, repeat = points.call(points.points.BatchPost, batch).results
    assert points.call(points.points.EarnPoints, earn) == first.transaction
    assert points.call(points.points.AdjustPoints, adjust) == second.transaction == repeat.transaction
    assert points.balance(member).available == 4


# --- reading ------------------------------------------------------------------------------------------


def test_balances_come_in_the_order_asked_without_the_unknown(points: Points) -> None:
    members = [fresh("member") for _ in range(3)]
    for number, member in enumerate(members, 1):
        points.adjust(member, number)
    asked = [members[2], fresh("nobody"), members[0], members[1]]
    answer = points.call(points.points.BatchGetBalances, pb.BatchGetBalancesRequest(member_ids=asked))
    assert [b.member_id for b in answer.balances] == [members[2], members[0], members[1]]
    assert list(answer.balances) == [points.balance(b.member_id) for b in answer.balances]


def test_a_balance_says_what_expires_next(points: Points) -> None:
    member = fresh("member")
    points.earn(member, order(500, points.now - timedelta(days=1)))
    points.earn(member, order(700, points.now))
    points.earn(member, order(900, points.now))
    expiring = points.balance(member).expiring
    assert [e.amount for e in expiring] == [5, 16]
    ends = [e.expire_time.ToDatetime(tzinfo=UTC) for e in expiring]
    assert all(end.hour == 16 and end.minute == 0 for end in ends)  # midnight in Shanghai
    assert ends[1] - ends[0] == timedelta(days=1)


def test_a_transaction_is_read_by_its_id_and_only_as_its_members(points: Points) -> None:
    member, other = fresh("member"), fresh("member")
    made = points.earn(member, order(500, points.now))
    points.earn(other, order(500, points.now))
    request = pb.GetTransactionRequest(member_id=member, transaction_id=made.transaction_id)
    assert points.call(points.points.GetTransaction, request) == made
    forged = made.transaction_id[:-20] + "0" * 12 + made.transaction_id[-8:]  # the right row, another id
    for who, what in ((other, made.transaction_id), (member, NOBODY), (member, forged)):
        with refused(StatusCode.NOT_FOUND, "TRANSACTION_UNKNOWN"):
            asked = pb.GetTransactionRequest(member_id=who, transaction_id=what)
            points.call(points.points.GetTransaction, asked)


def test_pages_of_a_list_join_without_overlap_or_gap_under_each_filter(points: Points) -> None:
    member, now = fresh("member"), points.now
    baskets = [order(200 + n * 100, now - timedelta(days=n)) for n in range(8)]
    for basket in baskets:
        points.earn(member, basket)
        points.redeem(member, 1)
        points.adjust(member, 1, pb.UNIT_GROWTH)
    whole = listed(points, member)
    assert [t.seq for t in whole] == list(range(24, 0, -1))
    since, until = now - timedelta(days=4), now
    stamps = {"occur_from_time": since, "occur_until_time": until}
    earns = (pb.TRANSACTION_KIND_EARN, pb.TRANSACTION_KIND_ADJUST)
    filters: list[tuple[dict[str, Any], Callable[[pb.Transaction], bool]]] = [
        ({}, lambda _: True),
        ({"kinds": earns}, lambda t: t.kind in earns),
        ({"unit": pb.UNIT_POINTS}, lambda t: any(m.unit == pb.UNIT_POINTS for m in t.transfers)),
        ({"unit": pb.UNIT_GROWTH}, lambda t: any(m.unit == pb.UNIT_GROWTH for m in t.transfers)),
        ({"order_id": baskets[3].order_id}, lambda t: t.order_id == baskets[3].order_id),
        (stamps, lambda t: since <= t.occur_time.ToDatetime(tzinfo=UTC) < until),
        (
            {**stamps, "kinds": earns, "unit": pb.UNIT_POINTS},
            lambda t: (
                t.kind in earns and bool(t.transfers) and since <= t.occur_time.ToDatetime(tzinfo=UTC) < until
            ),
        ),
    ]
    for asked, wanted in filters:
        expected = [t for t in whole if wanted(t)]
        assert expected
        for size in (1, 5, 1000):
            assert listed(points, member, page_size=size, **asked) == expected


def test_a_list_that_grows_between_pages_shows_no_row_twice(points: Points) -> None:
    member = fresh("member")
    for _ in range(4):
        points.adjust(member, 1)
    request = pb.ListTransactionsRequest(member_id=member, page_size=2)
    page = points.call(points.points.ListTransactions, request)
    points.adjust(member, 1)
    request.page_token = page.next_page_token
    rest = points.call(points.points.ListTransactions, request)
    assert [t.seq for t in (*page.transactions, *rest.transactions)] == [4, 3, 2, 1]
    assert not rest.next_page_token


def test_an_unknown_member_has_an_empty_list(points: Points) -> None:
    assert listed(points, fresh("nobody")) == []


def test_a_page_token_is_good_for_its_own_question_only(points: Points) -> None:
    member, other = fresh("member"), fresh("member")
    for who in (member, other, member, other):
        points.adjust(who, 1)
    asked = pb.ListTransactionsRequest(member_id=member, page_size=1)
    token = points.call(points.points.ListTransactions, asked).next_page_token
    changed = chr(ord(token[0]) ^ 1)
    questions = [
        pb.ListTransactionsRequest(member_id=other, page_token=token),
        pb.ListTransactionsRequest(member_id=member, page_token=token, unit=pb.UNIT_POINTS),
        *(
            pb.ListTransactionsRequest(member_id=member, page_token=forged)
            for forged in ("x", "分", "=", token + token, token[:-1], changed + token[1:])
        ),
    ]
    for question in questions:
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            points.call(points.points.ListTransactions, question)


# --- handing in facts ---------------------------------------------------------------------------------


def report_order(points: Points, member: str, basket: Order, request_id: str = "") -> str:
    request = ReportOrderPaidRequest(member_id=member, request_id=request_id or fresh("report"), order=basket)
    return points.call(points.orders.ReportOrderPaid, request).event_id


def report_activity(points: Points, member: str, done: Activity, request_id: str = "") -> str:
    request = ReportActivityRequest(member_id=member, request_id=request_id or fresh("report"), activity=done)
    return points.call(points.activities.ReportActivity, request).event_id


def test_reported_facts_end_as_one_transaction_each(points: Points) -> None:
    member, basket, done = fresh("member"), order(500, points.now), task(points.now)
    request_id = fresh("report")
    assert report_order(points, member, basket, request_id) == report_order(
        points, member, basket, request_id
    )
    report_activity(points, member, done, other := fresh("report"))
    assert report_activity(points, member, done, other)
    eventually(lambda: len(listed(points, member)) >= 2)
    found = listed(points, member)
    assert {t.order_id or t.activity_id for t in found} == {basket.order_id, done.activity_id}
    assert all(t.request_id.startswith("~") for t in found)
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        report_order(points, member, order(500, points.now), request_id)
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        report_activity(points, member, task(points.now), other)
    # A fact that comes as another event, and then by call, has had its effect.
    report_order(points, member, basket)
    report_activity(points, member, done)
    report_order(points, member, last := order(100, points.now))
    eventually(lambda: any(t.order_id == last.order_id for t in listed(points, member)))
    points.earn(member, basket)
    earn_activity(points, member, done)
    assert len(listed(points, member)) == 3
    assert points.balance(member).available == 26


def test_facts_reported_and_earned_by_call_at_the_same_time_count_once(points: Points) -> None:
    member, basket, done = fresh("member"), order(500, points.now), task(points.now)
    calls: list[Callable[[], object]] = [
        lambda: points.earn(member, basket),
        lambda: report_order(points, member, basket),
        lambda: earn_activity(points, member, done),
        lambda: report_activity(points, member, done),
    ] * 5
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()
    report_order(points, member, last := order(100, points.now))
    eventually(lambda: any(t.order_id == last.order_id for t in listed(points, member)))
    assert len(listed(points, member)) == 3
    assert points.balance(member).available == 26


def test_what_is_consumed_is_counted_by_its_stream(points: Points) -> None:
    def done() -> float:
        with urllib.request.urlopen(
            f"http://{points.house.describe()['points']['metrics']}/metrics", timeout=TIMEOUT
        ) as page:
            lines = page.read().decode().splitlines()
        counter = 'consumer_messages_total{outcome="done",stream="ORDERS"} '
        return sum(float(line.removeprefix(counter)) for line in lines if line.startswith(counter))

    before = done()
    report_order(points, fresh("member"), order(500, points.now))
    eventually(lambda: done() > before)


def test_a_wrong_total_is_refused_when_reported(points: Points) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "TOTAL_MISMATCH"):
        report_order(points, fresh("member"), wrong_total(points.now))


# --- time passes, and only calls post what is due -------------------------------------------------------


def test_points_are_gone_at_local_midnight_and_not_a_second_before(later: Points) -> None:
    member, other = fresh("member"), fresh("member")
    for who in (member, other):
        later.earn(who, order(500, later.now))
    end = later.balance(member).expiring[0].expire_time.ToDatetime(tzinfo=UTC)
    assert end - later.now > timedelta(days=365)
    move(later, end - timedelta(seconds=1))
    assert later.balance(member).available == 5
    assert later.redeem(member, 1).balance.available == 4
    move(later, end)
    assert later.balance(member).available == 0
    assert [t.kind for t in listed(later, member)] == [pb.TRANSACTION_KIND_REDEEM, pb.TRANSACTION_KIND_EARN]
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
        later.redeem(member, 1)
    assert refusal.metadata["available"] == "0"
    assert len(listed(later, member)) == 2  # neither the reads nor the refusal posted anything
    later.earn(other, order(300, later.now))
    kinds = [t.kind for t in listed(later, other)]
    assert kinds == [pb.TRANSACTION_KIND_EARN, pb.TRANSACTION_KIND_EXPIRE, pb.TRANSACTION_KIND_EARN]
    expired = listed(later, other)[1]
    assert expired.request_id.startswith("~")
    assert expired.occur_time.ToDatetime(tzinfo=UTC) == end
    assert expired.balance.available == 0


def test_a_stored_request_answers_far_later_before_any_rule(later: Points) -> None:
    member, request_id, basket = fresh("member"), fresh("earn"), order(500, later.now)
    earned = later.earn(member, basket, request_id)
    spent = later.redeem(member, 5, spending := fresh("redeem"))
    move(later, later.now + timedelta(days=800))
    assert later.earn(member, basket, request_id) == earned
    assert later.earn(member, basket) == earned
    assert later.redeem(member, 5, spending) == spent
    with refused(StatusCode.ALREADY_EXISTS, "ORDER_ALREADY_EARNED"):
        later.earn(member, order(600, later.now, order_id=basket.order_id))
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS"):
        later.redeem(member, 1)


def test_a_balance_has_a_limit(later: Points) -> None:
    member = fresh("member")
    too_much = task(later.now, kind="windfall", amount=10**12)
    with refused(StatusCode.FAILED_PRECONDITION, "BALANCE_LIMIT"):
        earn_activity(later, member, too_much)
    with refused(StatusCode.FAILED_PRECONDITION, "BALANCE_LIMIT"):
        later.call(later.points.QuoteEarn, pb.QuoteEarnRequest(member_id=member, activity=too_much))
    full = earn_activity(later, member, task(later.now, kind="windfall", amount=10**6))
    assert full.balance.available == 10**18
    with refused(StatusCode.FAILED_PRECONDITION, "BALANCE_LIMIT"):
        later.adjust(member, 1)
    with refused(StatusCode.FAILED_PRECONDITION, "BALANCE_LIMIT"):
        earn_fixed(later, member, pb.UNIT_POINTS, 1)
    assert later.redeem(member, 10**12).balance.available == 10**18 - 10**12
