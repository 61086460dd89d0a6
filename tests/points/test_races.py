"""Many callers at once on one member, calls that are given up, and more calls than can be taken."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from loyalty.points.v1 import points_service_pb2 as pb

from services.cli.house import House
from services.points.audit import audit
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.points.calls import (
    a_capture,
    a_hold,
    a_refund,
    a_release,
    a_reversal,
    listed,
    move,
    moved,
    place,
    read_hold,
)
from tests.support import (
    PROGRAMME,
    TIMEOUT,
    Points,
    Refusal,
    apply_programme,
    fresh,
    order,
    read_refusal,
)

CALLERS = 100
POOL = 8  # connections that the service holds at most
LONG = 3 * TIMEOUT
SHED = StatusCode.RESOURCE_EXHAUSTED

# None if the books close: a member whose stored balances are not what its ledger and its lots say.
OPEN_BOOKS = """
SELECT m.member_id FROM members m
LEFT JOIN LATERAL (
  SELECT count(*) AS n, coalesce(max(seq), 0) AS last FROM transactions t
  WHERE (t.bucket, t.member_id) = (m.bucket, m.member_id)
) t ON true
LEFT JOIN LATERAL (
  SELECT coalesce(sum(remaining) FILTER (WHERE NOT pending), 0) AS usable,
         coalesce(sum(remaining) FILTER (WHERE pending), 0) AS pending
  FROM lots l WHERE (l.bucket, l.member_id) = (m.bucket, m.member_id)
) l ON true
LEFT JOIN transactions head ON (head.bucket, head.member_id, head.seq) = (m.bucket, m.member_id, m.seq)
WHERE (m.seq, m.seq) IS DISTINCT FROM (t.n, t.last)
   OR (m.available + m.held, m.pending) IS DISTINCT FROM (l.usable, l.pending)
   OR (m.available, m.pending, m.held, m.owed, m.growth, m.lifetime_earned, m.head_hash) IS DISTINCT FROM
      (head.available, head.pending, head.held, head.owed, head.growth, head.lifetime_earned, head.hash)
"""
# None either: a member whose stored balances are not the sums of its transfers.
SUMS = """
SELECT m.member_id FROM members m
JOIN transactions t USING (bucket, member_id)
LEFT JOIN LATERAL jsonb_array_elements(t.transfers) moved ON true
GROUP BY m.bucket, m.member_id, m.available, m.growth
HAVING m.available <> coalesce(sum((moved->>3)::bigint) FILTER (WHERE moved->>2 = 'available'), 0)
                    - coalesce(sum((moved->>3)::bigint) FILTER (WHERE moved->>1 = 'available'), 0)
    OR m.growth <> coalesce(sum((moved->>3)::bigint) FILTER (WHERE moved->>2 = 'growth'), 0)
                 - coalesce(sum((moved->>3)::bigint) FILTER (WHERE moved->>1 = 'growth'), 0)
"""

BRIEF = {
    "rule_id": "brief",
    "scope": "RULE_SCOPE_ACTIVITY",
    "unit": "UNIT_POINTS",
    "when": "activity.kind == 'brief'",
    "fixed": 30,
    "stack": "RULE_STACK_ADD",
    "expiry": {"rolling_months": 1},
}


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse, front: str) -> Iterator[House]:
    """A house where some points live for a month, whose database stands still, and whose clock moves."""
    with open_house(data / front, test_clock=NOON, front=front) as house:
        apply_programme(house, {**PROGRAMME, "earn_rules": [*PROGRAMME["earn_rules"], BRIEF]})
        yield house


def check_books(house: House) -> None:
    for query in (OPEN_BOOKS, SUMS):
        assert ask(house, "points", query) == []


def at_once(method: Any, requests: Sequence[Any], metadata: Any = None) -> list[Any]:
    """Starts all calls, and returns each one's answer or error."""
    futures = [method.future(request, timeout=LONG, metadata=metadata) for request in requests]
    return [future.exception() or future.result() for future in futures]


def redeem(member: str, amount: int, request_id: str = "") -> pb.RedeemPointsRequest:
    return pb.RedeemPointsRequest(member_id=member, request_id=request_id or fresh("redeem"), amount=amount)


def adjust(member: str, amount: int, request_id: str = "") -> pb.AdjustPointsRequest:
    return pb.AdjustPointsRequest(
        member_id=member,
        request_id=request_id or fresh("adjust"),
        unit=pb.UNIT_POINTS,
        amount=amount,
        reason="a test",
    )


def won(answers: Sequence[Any]) -> list[pb.Transaction]:
    return [answer for answer in answers if isinstance(answer, pb.Transaction)]


def test_of_many_who_want_the_last_points_exactly_as_many_win_as_there_are(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 100)
    answers = at_once(points.points.RedeemPoints, [redeem(member, 7) for _ in range(CALLERS)])
    assert len(won(answers)) == 100 // 7
    reasons = {read_refusal(a).reason for a in answers if isinstance(a, grpc.RpcError)}
    assert reasons == {"INSUFFICIENT_POINTS"}
    assert sorted(t.balance.available for t in won(answers)) == list(range(2, 100, 7))
    assert points.balance(member).available == 2
    check_books(points.house)


def test_credits_and_debits_at_once_never_make_a_balance_negative(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 5)
    requests: list[Any] = [adjust(member, 3 if n % 2 else -4) for n in range(CALLERS)]
    answers = at_once(points.points.AdjustPoints, requests)
    done = won(answers)
    ledger = sorted(done, key=lambda t: t.seq)
    balance = 5
    for transaction in ledger:  # the answers, in the ledger's order, are one history
        sign = 1 if transaction.transfers[0].credit == pb.ACCOUNT_AVAILABLE else -1
        balance += sign * transaction.transfers[0].amount
        assert transaction.balance.available == balance >= 0
    assert points.balance(member).available == balance
    check_books(points.house)


def test_one_request_sent_by_all_at_once_has_one_effect_and_one_answer(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, CALLERS)
    answers = at_once(points.points.RedeemPoints, [redeem(member, 1, fresh("one"))] * CALLERS)
    assert len(won(answers)) == CALLERS
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert points.balance(member).available == CALLERS - 1


def test_of_different_payloads_under_one_request_id_one_wins_and_the_rest_are_refused(points: Points) -> None:
    member, request_id = fresh("member"), fresh("one")
    requests = [adjust(member, amount, request_id) for amount in range(1, CALLERS + 1)]
    answers = at_once(points.points.AdjustPoints, requests)
    (only,) = won(answers)
    reasons = Counter(read_refusal(a).reason for a in answers if isinstance(a, grpc.RpcError))
    assert reasons == {"REQUEST_ID_REUSED": CALLERS - 1}
    assert points.balance(member).available == only.transfers[0].amount


def test_one_order_under_many_request_ids_at_once_is_one_transaction(points: Points) -> None:
    member, basket = fresh("member"), order(500, points.now)
    requests = [
        pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"), order=basket) for _ in range(50)
    ]
    answers = at_once(points.points.EarnPoints, requests)
    assert len(won(answers)) == 50
    assert len({answer.transaction_id for answer in answers}) == 1
    balance = points.balance(member)
    assert (balance.available, balance.version) == (5, 1)


def test_one_refund_under_many_request_ids_at_once_is_one_transaction(points: Points) -> None:
    member, basket = fresh("member"), order(2000, points.now)
    points.earn(member, basket)
    what = a_refund(basket.order_id, points.now, 500)
    requests = [
        pb.RefundOrderRequest(member_id=member, request_id=fresh("refund"), refund=what) for _ in range(50)
    ]
    answers = at_once(points.points.RefundOrder, requests)
    assert len(won(answers)) == 50
    assert len({answer.SerializeToString() for answer in answers}) == 1
    balance = points.balance(member)
    assert (balance.available, balance.seq) == (15, 2)


def test_refunds_at_once_take_no_more_than_the_order(points: Points) -> None:
    member, basket = fresh("member"), order(2190, points.now)
    points.earn(member, basket)
    requests = [
        pb.RefundOrderRequest(
            member_id=member,
            request_id=fresh("refund"),
            refund=a_refund(basket.order_id, points.now, 50),
        )
        for _ in range(CALLERS)
    ]
    answers = at_once(points.points.RefundOrder, requests)
    assert len(won(answers)) == 2190 // 50
    assert reasons(answers) == {"REFUND_EXCEEDS_ORDER": CALLERS - 2190 // 50}
    assert points.balance(member).available == 0  # of 40 fen nothing is earned
    check_books(points.house)


def test_one_request_id_of_many_members_is_many_requests(points: Points) -> None:
    request_id, members = fresh("one"), [fresh("member") for _ in range(CALLERS)]
    requests = [adjust(member, n, request_id) for n, member in enumerate(members, 1)]
    for _ in range(2):
        answers = at_once(points.points.AdjustPoints, requests)
        assert [(a.member_id, a.balance.available) for a in answers] == [
            (member, n) for n, member in enumerate(members, 1)
        ]


def test_a_days_cap_holds_against_all_at_once(points: Points) -> None:
    member, requests = fresh("member"), []
    for _ in range(CALLERS):
        request = pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"))
        request.activity.activity_id, request.activity.kind = fresh("activity"), "app_task_done"
        request.activity.occur_time.FromDatetime(points.now)
        requests.append(request)
    assert len(won(at_once(points.points.EarnPoints, requests))) == CALLERS
    assert points.balance(member).available == 20


def test_calls_given_up_at_any_instant_and_retried_have_one_effect_each(points: Points) -> None:
    members = [fresh("member") for _ in range(50)]
    requests = [adjust(members[n % len(members)], 1) for n in range(1000)]
    chance = random.Random(7)
    cancelled = 0
    for start in range(0, len(requests), 50):
        futures = [points.points.AdjustPoints.future(r, timeout=LONG) for r in requests[start : start + 50]]
        for future in chance.sample(futures, len(futures)):
            cancelled += future.cancel()
            time.sleep(chance.random() * 0.0005)  # so that each is given up at another stage
    assert cancelled
    insist(points.points.AdjustPoints, requests)
    assert [points.balance(member).available for member in members] == [20] * len(members)
    check_books(points.house)
    assert connections(points.house) <= POOL


def connections(house: House) -> int:
    """How many the service holds, idle ones too."""
    (row,) = ask(house, "points", "SELECT count(*) AS n FROM pg_stat_activity WHERE usename = 'points'")
    return int(row["n"])


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_too_much_is_shed_at_once_and_loses_nothing(points: Points) -> None:
    """The database stands still while more calls come than may wait; those beyond are told to come back."""
    members = [fresh("member") for _ in range(100)]
    requests = [adjust(members[n % len(members)], 1) for n in range(6000)]
    address = points.house.describe()["points"]["grpc"]
    with ExitStack() as stack:
        stubs = []
        for _ in range(8):  # a connection carries at most 1,024 calls
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = stack.enter_context(grpc.insecure_channel(address, options=options))
            stubs.append(_adjust_on(channel))
        points.adjust(members[0], 1)
        points.house.postgres.freeze()
        try:
            futures = [stubs[n % 8](request) for n, request in enumerate(requests)]
            until(lambda: any(future.done() and future.code() is SHED for future in futures))
        finally:
            points.house.postgres.thaw()
        outcomes = Counter[str]()
        for future in futures:
            error = future.exception()
            outcomes["OK" if error is None else judged(error)] += 1
    assert outcomes[SHED.name] > 0
    insist(points.points.AdjustPoints, requests)
    assert [points.balance(member).available for member in members] == [61, *[60] * 99]
    check_books(points.house)


def _adjust_on(channel: grpc.Channel) -> Callable[[pb.AdjustPointsRequest], Any]:
    method: Any = channel.unary_unary(
        "/loyalty.points.v1.PointsService/AdjustPoints",
        request_serializer=pb.AdjustPointsRequest.SerializeToString,
        response_deserializer=pb.Transaction.FromString,
    )
    return lambda request: method.future(request, timeout=LONG)


def insist(method: Any, requests: Sequence[Any]) -> None:
    """Calls until each request has its answer, as a client does when a slow machine is told to come back."""
    deadline = time.monotonic() + LONG
    missing = list(requests)
    while missing:
        assert time.monotonic() < deadline
        tried, missing = missing[:500], missing[500:]
        for request, answer in zip(tried, at_once(method, tried), strict=True):
            if isinstance(answer, grpc.RpcError):
                judged(answer)
                missing.append(request)


def judged(error: Any) -> str:
    """The status of an overloaded house, which says that a retry helps."""
    refusal = read_refusal(error)
    assert refusal.code in {
        SHED,
        StatusCode.UNAVAILABLE,  # the database, to those who were waiting for it
        StatusCode.DEADLINE_EXCEEDED,
    }, refusal
    # What has no reason was not said by the service: HTTP/2 refused to begin the call.
    told = refusal.reason and refusal.code is not StatusCode.DEADLINE_EXCEEDED
    assert refusal.retry or not told, refusal
    return refusal.code.name


# --- holds --------------------------------------------------------------------------------------------


def reasons(answers: Sequence[Any]) -> Counter[str]:
    """Why calls were refused."""
    return Counter(read_refusal(a).reason for a in answers if isinstance(a, grpc.RpcError))


def test_of_many_captures_of_one_hold_one_wins(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, CALLERS)
    hold = place(points, member, CALLERS).hold_id
    answers = at_once(points.points.CaptureHold, [a_capture(member, hold, n) for n in range(CALLERS)])
    (only,) = won(answers)
    assert reasons(answers) == {"HOLD_CLOSED": CALLERS - 1}
    spent = only.transfers[0].amount
    held = read_hold(points, member, hold)
    assert (held.state, held.captured) == (pb.HOLD_STATE_CAPTURED, spent)
    balance = points.balance(member)
    assert (balance.available, balance.held) == (CALLERS - spent, 0)
    check_books(points.house)


def test_a_hold_is_captured_or_released_by_one_of_many(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 7)
    hold = place(points, member, 7).hold_id
    calls: list[tuple[Any, Any]] = [
        (points.points.CaptureHold, a_capture(member, hold))
        if number % 2
        else (points.points.ReleaseHold, a_release(member, hold))
        for number in range(CALLERS)
    ]
    answers = mixed(calls)
    (only,) = won(answers)
    assert reasons(answers) == {"HOLD_CLOSED": CALLERS - 1}
    left = 0 if only.kind == pb.TRANSACTION_KIND_CAPTURE else 7
    assert points.balance(member).available == left
    check_books(points.house)


def test_no_more_is_held_than_there_is(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 100)
    answers = at_once(points.points.HoldPoints, [a_hold(points, member, 7) for _ in range(CALLERS)])
    assert len(won(answers)) == 100 // 7
    assert reasons(answers) == {"INSUFFICIENT_POINTS": CALLERS - 100 // 7}
    assert len({answer.hold_id for answer in won(answers)}) == 100 // 7
    balance = points.balance(member)
    assert (balance.available, balance.held) == (2, 98)
    check_books(points.house)


def mixed(calls: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Starts all calls of any methods, and returns each one's answer or error."""
    futures = [method.future(request, timeout=LONG) for method, request in calls]
    return [future.exception() or future.result() for future in futures]


# --- everything at once -------------------------------------------------------------------------------


class Books:
    """A member's ledger, played one transaction after the other by rules as plain as they can be."""

    def __init__(self) -> None:
        self.balances = Counter[str]()
        self.holds: dict[str, int] = {}  # what is still held of each
        self.ended: dict[str, str] = {}  # how each hold ended
        self.deadlines: dict[str, datetime] = {}
        self.undone: Counter[str] = Counter()  # of each transaction, what was reversed
        self.refunded: Counter[str] = Counter()  # of each order, in minor units
        self.seen: dict[str, set[int]] = {"available": {0}, "left": set(), "refundable": set()}

    def play(self, transaction: pb.Transaction, paid: Mapping[str, int], asked: Mapping[str, Any]) -> None:
        """Takes one transaction as the next; fails where it could not have been."""
        before = Counter(self.balances)
        for source, target, amount in moved(transaction):
            assert amount > 0
            self.balances[source] += amount if source == "owed" else -amount
            self.balances[target] += -amount if target == "owed" else amount
        after = transaction.balance
        for account in ("available", "pending", "held", "owed", "growth"):
            assert getattr(after, account) == self.balances[account] >= 0, transaction
        assert not (after.owed and after.available)
        assert after.lifetime_earned == -self.balances["issuer_earned"] - after.growth
        kind = pb.TransactionKind.Name(transaction.kind).removeprefix("TRANSACTION_KIND_")
        getattr(self, f"_{kind.lower()}", self._plain)(transaction, before, paid, asked)
        self.seen["available"].add(after.available)

    def _plain(self, transaction: pb.Transaction, *_: Any) -> None:
        assert transaction.kind in (
            *(pb.TRANSACTION_KIND_EARN, pb.TRANSACTION_KIND_ADJUST, pb.TRANSACTION_KIND_EXPIRE),
        )

    def _redeem(self, transaction: pb.Transaction, before: Counter[str], _: Any, asked: Any) -> None:
        assert before["available"] >= asked[transaction.request_id].amount == total(transaction)

    def _hold(self, transaction: pb.Transaction, before: Counter[str], _: Any, asked: Any) -> None:
        request = asked[transaction.request_id]
        assert before["available"] >= request.amount == total(transaction)
        self.holds[transaction.hold_id] = request.amount
        self.deadlines[transaction.hold_id] = request.expire_time.ToDatetime(tzinfo=UTC)
        assert self.deadlines[transaction.hold_id] > posted(transaction)

    def _capture(self, transaction: pb.Transaction, _: Any, __: Any, asked: Any) -> None:
        hold, request = transaction.hold_id, asked[transaction.request_id]
        assert hold == request.hold_id
        assert hold not in self.ended
        assert posted(transaction) < self.deadlines[hold]
        assert total(transaction) == (request.amount or self.holds[hold]) <= self.holds[hold]
        self.holds[hold] -= total(transaction)
        self.ended[hold] = "HOLD_CLOSED"

    def _release(self, transaction: pb.Transaction, _: Any, __: Any, asked: Any) -> None:
        hold = transaction.hold_id
        assert total(transaction) == self.holds[hold] > 0
        self.holds[hold] = 0
        if transaction.request_id in asked:
            assert posted(transaction) < self.deadlines[hold]
            assert self.ended.setdefault(hold, "HOLD_CLOSED") == "HOLD_CLOSED"
        elif hold not in self.ended:  # its time was up
            assert transaction.occur_time.ToDatetime(tzinfo=UTC) == self.deadlines[hold]
            self.ended[hold] = "HOLD_EXPIRED"

    def _refund(self, transaction: pb.Transaction, _: Any, paid: Mapping[str, int], asked: Any) -> None:
        order_id = transaction.order_id
        earned = (paid[order_id] - self.refunded[order_id]) // 100
        self.refunded[order_id] += asked[transaction.request_id].refund.amount_minor
        left = paid[order_id] - self.refunded[order_id]
        assert left >= 0
        self.seen["refundable"].add(left)
        for unit in (pb.UNIT_POINTS, pb.UNIT_GROWTH):
            assert total(transaction, unit) == earned - left // 100

    def _reverse(self, transaction: pb.Transaction, _: Any, __: Any, asked: Any) -> None:
        undone = transaction.reverses_transaction_id
        assert undone == asked[transaction.request_id].transaction_id
        self.undone[undone] += total(transaction)


def total(transaction: pb.Transaction, unit: int = pb.UNIT_POINTS) -> int:
    """What a transaction moved in all, from one side to the other."""
    return sum(t.amount for t in transaction.transfers if t.unit == unit)


def posted(transaction: pb.Transaction) -> datetime:
    return transaction.create_time.ToDatetime(tzinfo=UTC)


ROUNDS = 6


def test_a_race_of_everything_against_everything_and_time_is_one_history(points: Points) -> None:
    """Callers, deadlines and ends of lots on one member: the answers are those of one order of events."""
    member, chance = fresh("member"), random.Random(20260615)
    baskets = [order(chance.randrange(5_000, 15_000), points.now) for _ in range(6)]
    paid = {basket.order_id: basket.total_minor for basket in baskets}
    for basket in baskets[:3]:
        points.earn(member, basket)
    asked: dict[str, Any] = {}
    answered: list[tuple[Any, Any]] = []
    rounds: list[list[pb.Transaction]] = []
    for number in range(ROUNDS):
        if number % 2 and number // 2 + 3 < len(baskets):
            points.earn(member, baskets[number // 2 + 3])
        calls = [
            next_call(points, member, chance, paid, won([a for _, a in answered])) for _ in range(CALLERS)
        ]
        asked |= {request.request_id: request for _, request in calls}
        answers = mixed_while_time_passes(points, calls)
        answered += [(request, answer) for (_, request), answer in zip(calls, answers, strict=True)]
        rounds.append(won(answers))
    asked |= end_quietly(points, member)
    ledger = listed(points, member)[::-1]
    assert [t.seq for t in ledger] == list(range(1, len(ledger) + 1))
    assert [posted(t) for t in ledger] == sorted(posted(t) for t in ledger)
    originals = {t.transaction_id: t for t in ledger}
    books = Books()
    for transaction in ledger:
        books.play(transaction, paid, asked)
    for undone, amount in books.undone.items():
        assert amount <= total(originals[undone])
    # Each answer is the ledger's, and what was answered before something was asked comes before it there.
    by_request = {t.request_id: t for t in ledger}
    for request, answer in answered:
        if isinstance(answer, pb.Transaction):
            assert answer == by_request[request.request_id]
        else:
            judge(read_refusal(answer), request, books)
    for earlier, later in itertools.pairwise(rounds):
        assert max(t.seq for t in earlier) < min(t.seq for t in later)
    kinds = {pb.TransactionKind.Name(t.kind).removeprefix("TRANSACTION_KIND_") for t in ledger}
    assert kinds >= {"HOLD", "CAPTURE", "RELEASE", "REDEEM", "REFUND", "REVERSE", "EXPIRE", "EARN", "ADJUST"}
    assert {"HOLD_CLOSED", "HOLD_EXPIRED"} <= set(books.ended.values())
    check_books(points.house)
    report = asyncio.run(audit(points.house.database_url("points")))
    assert report.clean, report.lines


def end_quietly(points: Points, member: str) -> dict[str, Any]:
    """Whatever became of the race, a hold is captured, one lapses, and points expire. Returns requests."""
    points.adjust(member, 200)
    holds = [a_hold(points, member, 3, until=points.now + timedelta(days=1)) for _ in range(2)]
    first, _ = [points.call(points.points.HoldPoints, request) for request in holds]
    capture = a_capture(member, first.hold_id, 2)
    points.call(points.points.CaptureHold, capture)
    points.call(points.points.EarnPoints, a_brief_task(points, member))
    move(points, points.now + timedelta(days=40))
    points.adjust(member, 1)
    return {request.request_id: request for request in holds} | {capture.request_id: capture}


def a_brief_task(points: Points, member: str) -> pb.EarnPointsRequest:
    request = pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"))
    request.activity.activity_id, request.activity.kind = fresh("activity"), "brief"
    request.activity.occur_time.FromDatetime(points.now)
    return request


def next_call(
    points: Points, member: str, chance: random.Random, paid: Mapping[str, int], done: list[pb.Transaction]
) -> tuple[Any, Any]:
    """A method and a request, of what was answered before now and then the same for several callers."""
    stub, small = points.points, chance.randrange(1, 60)
    holds = [t.hold_id for t in done if t.kind == pb.TRANSACTION_KIND_HOLD][-12:]
    spent = [t for t in done if t.kind in (pb.TRANSACTION_KIND_REDEEM, pb.TRANSACTION_KIND_CAPTURE)][-12:]
    ways = ["hold"] * 4 + ["redeem"] * 2 + ["refund"] * 2 + ["adjust", "brief"]
    ways += ["capture"] * 3 * bool(holds) + ["release"] * bool(holds) + ["reverse"] * 3 * bool(spent)
    match chance.choice(ways):
        case "hold":
            until = points.now + timedelta(days=chance.choice((8, 14, 20, 30)))
            return stub.HoldPoints, a_hold(points, member, small, until=until)
        case "capture":
            return stub.CaptureHold, a_capture(
                member, chance.choice(holds), chance.choice((0, 0, small // 3))
            )
        case "release":
            return stub.ReleaseHold, a_release(member, chance.choice(holds))
        case "redeem":
            return stub.RedeemPoints, redeem(member, small)
        case "refund":
            what = a_refund(chance.choice(list(paid)), points.now, chance.randrange(1, 4_000))
            request = pb.RefundOrderRequest(member_id=member, request_id=fresh("refund"), refund=what)
            return stub.RefundOrder, request
        case "reverse":
            undone = chance.choice(spent)
            amounts = {"points": chance.randrange(1, total(undone) + 1)}
            return stub.ReverseTransaction, a_reversal(member, undone.transaction_id, **amounts)
        case "brief":
            return stub.EarnPoints, a_brief_task(points, member)
    return stub.AdjustPoints, adjust(member, chance.choice((30, 20, -30)))


def mixed_while_time_passes(points: Points, calls: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Starts all calls, and lets ten days pass in steps among them."""
    futures = []
    for number, (method, request) in enumerate(calls):
        futures.append(method.future(request, timeout=LONG))
        if number % 20 == 10:
            move(points, points.now + timedelta(days=2))
    return [future.exception() or future.result() for future in futures]


def judge(refusal: Refusal, request: Any, books: Books) -> None:
    """A refusal says what was true at some point of the history."""
    match refusal.reason:
        case "INSUFFICIENT_POINTS":
            assert int(refusal.metadata["available"]) in books.seen["available"], refusal
            assert int(refusal.metadata["available"]) < int(refusal.metadata["requested"])
        case "HOLD_CLOSED" | "HOLD_EXPIRED":
            assert books.ended[request.hold_id] == refusal.reason
        case "REFUND_EXCEEDS_ORDER":
            assert int(refusal.metadata["refundable"]) in books.seen["refundable"], refusal
        case "REVERSAL_EXCEEDS_TRANSACTION":
            assert int(refusal.metadata["left"]) < request.amounts[0].amount
        case "ORDER_UNKNOWN" | "HOLD_TIME_INVALID" | "CAPTURE_EXCEEDS_HOLD":
            pass  # the order was bought in a later round; time had passed; nothing to compare with
        case _:
            raise AssertionError(refusal)
