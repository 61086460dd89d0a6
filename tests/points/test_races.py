"""Many callers at once on one member, calls that are given up, and more calls than can be taken."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import asyncpg
import grpc
from grpc import StatusCode
from loyalty.points.v1 import points_service_pb2 as pb

from services.cli.house import House
from tests.support import TIMEOUT, Points, fresh, order, read_refusal

CALLERS = 100
POOL = 8  # connections that the service holds at most
LONG = 3 * TIMEOUT

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


def ask(house: House, query: str) -> list[Any]:
    """Rows from the service's database."""

    async def rows() -> list[Any]:
        connection = await asyncpg.connect(house.postgres.url("points"))
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    return asyncio.run(rows())


def check_books(house: House) -> None:
    for query in (OPEN_BOOKS, SUMS):
        assert ask(house, query) == []


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
    (row,) = ask(house, "SELECT count(*) AS n FROM pg_stat_activity WHERE usename = 'points'")
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
            until(lambda: any(future.done() for future in futures))
        finally:
            points.house.postgres.thaw()
        outcomes = Counter[str]()
        for future in futures:
            error = future.exception()
            outcomes["OK" if error is None else judged(error)] += 1
    assert outcomes["RESOURCE_EXHAUSTED"] > 0
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
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.UNAVAILABLE,  # the database, to those who were waiting for it
        StatusCode.DEADLINE_EXCEEDED,
    }, refusal
    assert refusal.retry or refusal.code is StatusCode.DEADLINE_EXCEEDED, refusal
    return refusal.code.name
