"""Points on their way from one member to another: what arrives, what comes back, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import (
    PointsPosted,
    TransferRefused,
    TransferReturned,
    TransferSent,
)

from services.cli.house import House
from services.points.audit import audit
from services.points.domain.ledger import MAX_BALANCE
from tests.chaos.listener import Listener
from tests.conftest import NOON, OpenHouse
from tests.filling import gift, post
from tests.journeys.publisher import until
from tests.points.calls import a_refund, refund, transfer
from tests.support import PROGRAMME, Points, apply_programme, defects, fresh, order, read_refusal, refused

LIMIT = 100  # points a day


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """One front is enough: points do not travel through it."""
    with open_house(data, test_clock=NOON) as house:
        apply_programme(house, PROGRAMME | {"transfers_per_day": LIMIT})
        yield house
        report = asyncio.run(audit(house.database_url("points"), stream_url=house.nats.url))
        assert report.clean, report.lines
        assert not defects(house)


def two_orders(points: Points, member: str) -> None:
    """Ten points that end a month sooner than ten others."""
    for back in (timedelta(days=29), timedelta()):
        points.earn(member, order(1000, points.now - back))


def lots(points: Points, member: str) -> list[tuple[int, Any]]:
    """What ends when."""
    return [(each.amount, each.expire_time.ToDatetime()) for each in points.balance(member).expiring]


def known(points: Points, member: str) -> bool:
    request = pb.BatchGetBalancesRequest(member_ids=[member])
    return bool(points.call(points.points.BatchGetBalances, request).balances)


async def heard(house: House, *members: str, kind: Any, many: int = 1) -> list[Any]:
    """Events of a kind about members."""
    listener = Listener(house.nats.url)

    def found() -> list[Any]:
        return [event for member in members for event in listener.about(member, kind)]

    await listener.hear(lambda: len(found()) >= many)
    return found()


async def test_points_arrive_with_the_ends_they_had(house: House, points: Points) -> None:
    giver, taker = fresh("giver"), fresh("taker")
    two_orders(points, giver)
    (_, soon), (_, later) = lots(points, giver)
    answer = transfer(points, giver, taker, 15)
    assert answer.state == pb.TRANSFER_STATE_IN_TRANSIT
    assert lots(points, giver) == [(5, later)]  # they leave at once
    await until(lambda: known(points, taker))
    assert lots(points, taker) == [(10, soon), (5, later)]
    (sent,) = await heard(house, giver, kind=TransferSent)
    assert (sent.transfer_id, sent.to_member_id) == (answer.transaction.transaction_id, taker)
    assert [(part.amount, part.expire_time.ToDatetime()) for part in sent.points] == lots(points, taker)
    (received,) = await heard(house, taker, kind=PointsPosted)
    assert received.transaction.kind == pb.TRANSACTION_KIND_RECEIVE
    assert received.transaction.reference_id == sent.transfer_id
    assert points.balance(taker).lifetime_earned == 0  # they were earned by the giver


async def test_a_transfer_asked_for_twice_leaves_once(house: House, points: Points) -> None:
    giver, taker, request_id = fresh("giver"), fresh("taker"), fresh("transfer")
    two_orders(points, giver)
    first = transfer(points, giver, taker, 15, request_id)
    await until(lambda: known(points, taker))
    assert transfer(points, giver, taker, 15, request_id) == first
    transfer(points, giver, taker, 1)  # what came before has arrived when this has
    await until(lambda: points.balance(taker).seq == 2)
    assert points.balance(taker).available == 16
    assert len(await heard(house, giver, kind=TransferSent, many=2)) == 2


async def test_points_that_their_receiver_cannot_take_come_back_to_their_lots(
    house: House, points: Points
) -> None:
    giver, full = fresh("giver"), fresh("full")
    two_orders(points, giver)
    await post(house, [gift(full, MAX_BALANCE)])
    before = lots(points, giver)
    answer = transfer(points, giver, full, 15)
    (returned,) = await heard(house, giver, kind=TransferReturned)
    assert lots(points, giver) == before
    assert (points.balance(giver).available, points.balance(giver).seq) == (20, 4)
    assert points.balance(full).seq == 1
    (refusal,) = await heard(house, full, kind=TransferRefused)
    assert (refusal.transfer_id, refusal.from_member_id) == (answer.transaction.transaction_id, giver)
    assert refusal.reason == "BALANCE_LIMIT"
    assert (returned.transfer_id, returned.to_member_id) == (refusal.transfer_id, full)
    *_, last = await heard(house, giver, kind=PointsPosted, many=4)
    assert last.transaction.transaction_id == returned.transaction_id
    assert last.transaction.reverses_transaction_id == answer.transaction.transaction_id


async def test_transfers_at_once_never_pass_the_days_limit(house: House, points: Points) -> None:
    giver = fresh("giver")
    points.adjust(giver, 1_000)

    def attempt(_: int) -> str:
        try:
            transfer(points, giver, fresh("taker"), 30)
        except grpc.RpcError as error:
            return read_refusal(error).reason
        return "sent"

    outcomes = await asyncio.gather(*(asyncio.to_thread(attempt, n) for n in range(12)))
    assert sorted(outcomes) == ["TRANSFER_LIMIT"] * 9 + ["sent"] * 3
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "TRANSFER_LIMIT") as refusal:
        transfer(points, giver, fresh("taker"), 11)
    assert refusal.metadata["left"] == "10"
    transfer(points, giver, fresh("taker"), 10)
    assert len(await heard(house, giver, kind=TransferSent, many=4)) == 4


async def test_members_who_send_each_other_points_at_once_all_get_theirs(points: Points) -> None:
    ring = [fresh("ring") for _ in range(6)]
    for member in ring:
        points.adjust(member, 50)
    pairs = [(a, b) for a in ring for b in ring if a != b]
    await asyncio.gather(*(asyncio.to_thread(transfer, points, a, b, 7) for a, b in pairs))
    await until(lambda: sum(points.balance(member).available for member in ring) == 6 * 50)
    assert {points.balance(member).available for member in ring} == {50}


async def test_points_that_arrive_pay_what_is_owed_first(points: Points) -> None:
    giver, debtor = fresh("giver"), fresh("debtor")
    two_orders(points, giver)
    what = order(1000, NOON)
    points.earn(debtor, what)
    points.redeem(debtor, 10)
    refund(points, debtor, a_refund(what.order_id, NOON))
    assert points.balance(debtor).owed == 10
    transfer(points, giver, debtor, 15)
    await until(lambda: points.balance(debtor).available == 5)
    assert points.balance(debtor).owed == 0
