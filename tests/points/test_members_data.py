"""A member's data: handed out whole, and erased everywhere, while the ledger's amounts and proofs stay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import nats
import pytest
from grpc import StatusCode
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.activities.v1.activities_service_pb2 import ReportActivityRequest
from loyalty.orders.v1.orders_pb2 import Order, OrderPaid
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest
from loyalty.points.v1 import points_service_pb2 as pb
from nats.js.errors import NotFoundError

from services.cli.house import House
from services.points.domain.ledger import transaction_hash
from services.points.store import to_transaction
from tests.support import PROGRAMME, TIMEOUT, Points, apply_programme, fresh, order, refused

# A rule whose condition fails on a text that is no fact's name, and would quote it.
SEATS = {
    "rule_id": "seats",
    "scope": "RULE_SCOPE_ACTIVITY",
    "unit": "UNIT_POINTS",
    "when": "member.facts[activity.attributes['seats']] == 'yes'",
    "fixed": 1,
    "stack": "RULE_STACK_ADD",
}


@pytest.fixture(scope="module")
def curious(points: Points) -> Points:
    """The house with a programme that looks into attributes."""
    apply_programme(points.house, {**PROGRAMME, "earn_rules": [*PROGRAMME["earn_rules"], SEATS]})
    return points


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 3 * TIMEOUT
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def marked_order(marker: str, points: Points) -> Order:
    made = order(500, points.now)
    made.store_id = made.city = made.channel = made.lines[0].sku = made.lines[0].category = marker
    return made


def marked_activity(marker: str, points: Points) -> Activity:
    made = Activity(activity_id=fresh("activity"), kind="app_task_done")
    made.attributes.update({"seats": marker, f"key-{marker}": "1"})
    made.occur_time.FromDatetime(points.now)
    return made


def plant(points: Points, member: str, marker: str) -> int:
    """Writes the marker wherever text of a member can go, by call and by event. Returns how many entries."""
    earns: list[dict[str, Any]] = [
        {"order": marked_order(marker, points)},
        {"activity": marked_activity(marker, points)},
        {"fixed": pb.FixedEarn(unit=pb.UNIT_POINTS, amount=3, reason=f"for {marker}")},
    ]
    for source in earns:
        request = pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"))
        for name, value in source.items():
            getattr(request, name).CopyFrom(value)
        points.call(points.points.EarnPoints, request)
    adjust = pb.AdjustPointsRequest(
        member_id=member, request_id=fresh("adjust"), unit=pb.UNIT_POINTS, amount=2, reason=marker
    )
    points.call(points.points.AdjustPoints, adjust)
    paid = ReportOrderPaidRequest(
        member_id=member, request_id=fresh("report"), order=marked_order(marker, points)
    )
    points.call(points.orders.ReportOrderPaid, paid)
    done = ReportActivityRequest(
        member_id=member, request_id=fresh("report"), activity=marked_activity(marker, points)
    )
    points.call(points.activities.ReportActivity, done)
    points.redeem(member, 1)
    until(lambda: points.balance(member).version == 7)
    return 7


def export(points: Points, member: str, page_size: int = 0) -> list[pb.ExportedTransaction]:
    """Everything kept, page by page."""
    found: list[pb.ExportedTransaction] = []
    token = ""
    while True:
        request = pb.ExportMemberRequest(member_id=member, page_size=page_size, page_token=token)
        page = points.call(points.points.ExportMember, request)
        assert page.balance == points.balance(member)
        found.extend(page.transactions)
        token = page.next_page_token
        if not token:
            return found


def erase(points: Points, member: str, request_id: str = "") -> pb.EraseMemberResponse:
    request = pb.EraseMemberRequest(member_id=member, request_id=request_id or fresh("erase"))
    return points.call(points.points.EraseMember, request)


# --- where a text can be ------------------------------------------------------------------------------


def in_tables(house: House, marker: str) -> list[str]:
    """Tables with a row that holds the marker, as text or within bytes."""

    async def look() -> list[str]:
        connection = await asyncpg.connect(house.postgres.url("points"))
        try:
            names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            held = "t::text LIKE '%' || $1 || '%' OR t::text LIKE '%' || $2 || '%'"
            found = []
            for (name,) in names:
                query = f"SELECT EXISTS (SELECT FROM {name} t WHERE {held})"  # noqa: S608
                if await connection.fetchval(query, marker, marker.encode().hex()):
                    found.append(name)
            return found
        finally:
            await connection.close()

    return asyncio.run(look())


def in_streams(house: House, marker: str) -> list[str]:
    """Streams with a message that holds the marker."""

    async def look() -> list[str]:
        client = await nats.connect(house.nats.url)
        try:
            jetstream = client.jetstream()
            found = []
            for name in ("POINTS", "ORDERS"):
                state = (await jetstream.stream_info(name)).state
                for sequence in range(state.first_seq, state.last_seq + 1):
                    try:
                        message = await jetstream.get_msg(name, sequence)
                    except NotFoundError:
                        continue
                    text = (message.data or b"") + str(message.headers).encode()
                    if marker.encode() in text:
                        found.append(name)
            return found
        finally:
            await client.close()

    return asyncio.run(look())


def in_log(house: House, marker: str) -> bool:
    return marker in (house.data / "points.log").read_text(errors="replace")


def check_chain(house: House, member: str) -> None:
    """Each transaction's hash follows from the one before and its own content."""

    async def rows() -> list[Any]:
        connection = await asyncpg.connect(house.postgres.url("points"))
        try:
            query = "SELECT * FROM transactions WHERE member_id = $1 ORDER BY seq"
            return list(await connection.fetch(query, member))
        finally:
            await connection.close()

    previous = b""
    for row in asyncio.run(rows()):
        transaction = to_transaction(row)
        previous = transaction_hash(previous, transaction)
        assert previous == transaction.hash


# --- tests --------------------------------------------------------------------------------------------


def test_an_export_has_everything_in_pages_of_any_size(curious: Points) -> None:
    member, marker = fresh("member"), fresh("marker")
    count = plant(curious, member, marker)
    whole = export(curious, member)
    assert [e.transaction.seq for e in whole] == list(range(count, 0, -1))
    assert sorted(e.reason for e in whole if e.reason) == sorted([marker, f"for {marker}"])
    baskets = [e.order for e in whole if e.HasField("order")]
    done = [e.activity for e in whole if e.HasField("activity")]
    assert [b.lines[0].sku for b in baskets] == [marker, marker]
    assert [a.attributes["seats"] for a in done] == [marker, marker]
    assert sorted(e.actor for e in whole) == ["loopback"] * 5 + ["points"] * 2
    for size in (1, 3, 1000):
        assert export(curious, member, size) == whole
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        export(curious, fresh("nobody"))
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        request = pb.ExportMemberRequest(member_id=member, page_token="AAAA")  # noqa: S106
        curious.call(curious.points.ExportMember, request)


def test_what_is_erased_is_found_nowhere_and_the_books_stay(curious: Points) -> None:
    member, other = fresh("member"), fresh("member")
    marker, kept = fresh("marker"), fresh("marker")
    house = curious.house
    plant(curious, member, marker)
    plant(curious, other, kept)
    until(lambda: set(in_streams(house, marker)) >= {"ORDERS"})
    before, ledger = curious.balance(member), [e.transaction for e in export(curious, member)]
    request_id = fresh("erase")
    answer = erase(curious, member, request_id)
    assert (answer.notes, answer.sources, answer.events) == (2, 4, 9)
    assert erase(curious, member, request_id) == answer
    assert in_tables(house, marker) == []
    until(lambda: in_streams(house, marker) == [] and in_streams(house, member) == [])
    assert not in_log(house, marker)
    left = export(curious, member)
    assert [e.transaction for e in left] == ledger
    assert not any(e.reason or e.HasField("order") or e.HasField("activity") for e in left)
    assert curious.balance(member) == before
    check_chain(house, member)
    assert "transactions" in in_tables(house, kept)
    assert in_streams(house, kept)
    again = erase(curious, member)
    assert (again.notes, again.sources, again.events) == (0, 0, 0)


def test_an_erased_member_goes_on_and_repeats_get_their_first_answer(curious: Points) -> None:
    member, basket, request_id = fresh("member"), order(500, curious.now), fresh("earn")
    first = curious.earn(member, basket, request_id)
    erase(curious, member)
    assert curious.earn(member, basket, request_id) == first
    assert curious.earn(member, basket) == first
    with refused(StatusCode.ALREADY_EXISTS, "ORDER_ALREADY_EARNED"):
        curious.earn(member, order(600, curious.now, order_id=basket.order_id))
    assert curious.redeem(member, 5).balance.available == 0
    check_chain(curious.house, member)


def test_an_unknown_member_cannot_be_erased(points: Points) -> None:
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        erase(points, fresh("nobody"))


def test_an_erasure_is_its_members_request(points: Points) -> None:
    member, other, request_id = fresh("member"), fresh("member"), fresh("request")
    for who in (member, other):
        points.adjust(who, 1)
    assert erase(points, member, request_id).notes == 1
    assert erase(points, other, request_id).notes == 1


def test_erasing_reaches_a_brands_event_that_was_refused(curious: Points) -> None:
    member, marker, house = fresh("member"), fresh("marker"), curious.house
    curious.earn(member, order(500, curious.now))
    wrong = marked_order(marker, curious)
    wrong.total_minor += 1
    asyncio.run(publish(house, OrderPaid(member_id=member, order=wrong)))
    until(lambda: in_tables(house, marker) == ["dead_letters"])
    erase(curious, member)
    assert in_tables(house, marker) == []
    until(lambda: in_streams(house, marker) == [])


def test_a_stale_sequence_deletes_nobody_elses_message(curious: Points) -> None:
    """A stream that was lost and made anew counts from 1 again."""
    member, marker, house = fresh("member"), fresh("marker"), curious.house
    asyncio.run(publish(house, OrderPaid(member_id=member, order=marked_order(marker, curious))))
    until(lambda: "inbox" in in_tables(house, member))
    asyncio.run(execute(house, "INSERT INTO stream_erasures SELECT stream, stream_seq, 'another' FROM inbox"))
    until(lambda: in_tables(house, "another") == [])
    assert in_streams(house, marker) == ["ORDERS"]


async def publish(house: House, paid: OrderPaid) -> None:
    """As a brand does that knows nothing of us but the contract."""
    client = await nats.connect(house.nats.url)
    try:
        await client.jetstream().publish(OrderPaid.DESCRIPTOR.full_name, paid.SerializeToString())
    finally:
        await client.close()


async def execute(house: House, sql: str) -> None:
    connection = await asyncpg.connect(house.postgres.url("points"))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
