"""A member's data: handed out whole, and erased everywhere, while the ledger's amounts and proofs stay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import nats
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.activities.v1.activities_service_pb2 import ReportActivityRequest
from loyalty.groups.v1.groups_events_pb2 import MEMBER_MOVE_REASON_OPERATOR, MemberJoined, MemberMoved
from loyalty.orders.v1.orders_pb2 import Order, OrderPaid, OrderRefunded
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest
from loyalty.points.v1 import points_service_pb2 as pb
from nats.js.errors import NoStreamResponseError, NotFoundError

from services.cli.house import House
from services.points.domain.ledger import transaction_hash
from services.points.store import to_transaction
from tests.conftest import NOON, OpenHouse
from tests.points.calls import a_refund, capture, kinds, place, read_hold, refund, release
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
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house whose programme looks into attributes. One front is enough: what is kept lies behind it."""
    with open_house(data, test_clock=NOON) as house:
        apply_programme(house, {**PROGRAMME, "earn_rules": [*PROGRAMME["earn_rules"], SEATS]})
        yield house


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 3 * TIMEOUT
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def marked_order(marker: str, points: Points) -> Order:
    made = order(500, points.now)
    made.store_id = made.city = made.channel = made.lines[0].sku = made.lines[0].category = marker
    made.lines[0].line_id = marker
    return made


def marked_activity(marker: str, points: Points) -> Activity:
    made = Activity(activity_id=fresh("activity"), kind="app_task_done")
    made.attributes.update({"seats": marker, f"key-{marker}": "1"})
    made.occur_time.FromDatetime(points.now)
    return made


def marked_joining(marker: str, points: Points, member: str) -> MemberJoined:
    made = MemberJoined(member_id=member, epoch=1, version=1, membership_number=1)
    made.membership_id, made.group_id, made.scheme_id = fresh("membership"), "group-7", "scheme-1"
    made.entry_source = made.site_id = made.group_name = made.chat_id = made.welcome = marker
    made.occur_time.FromDatetime(points.now)
    return made


def plant(points: Points, member: str, marker: str) -> int:
    """Writes the marker wherever text of a member can go, by call and by event. Returns how many entries."""
    basket = marked_order(marker, points)
    earns: list[dict[str, Any]] = [
        {"order": basket},
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
    asyncio.run(publish(points.house, marked_joining(marker, points, member)))
    refund(points, member, a_refund(basket.order_id, points.now, lines={marker: 100}))
    points.redeem(member, 1)
    until(lambda: points.balance(member).seq == 9)
    return 9


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
            for name in ("POINTS", "ORDERS", "GROUPS"):
                state = (await jetstream.stream_info(name)).state
                for sequence in range(max(1, state.first_seq), state.last_seq + 1):
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


def test_an_export_has_everything_in_pages_of_any_size(points: Points) -> None:
    member, marker = fresh("member"), fresh("marker")
    count = plant(points, member, marker)
    whole = export(points, member)
    assert [e.transaction.seq for e in whole] == list(range(count, 0, -1))
    assert sorted(e.reason for e in whole if e.reason) == sorted([marker, f"for {marker}"])
    baskets = [e.order for e in whole if e.HasField("order")]
    done = [e.activity for e in whole if e.HasField("activity")]
    assert [b.lines[0].sku for b in baskets] == [marker, marker]
    assert sorted(marker in a.attributes.values() for a in done) == [True] * 3
    assert sorted(e.actor for e in whole) == ["GROUPS", *["loopback"] * 6, *["points"] * 2]
    for size in (1, 3, 1000):
        assert export(points, member, size) == whole
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        export(points, fresh("nobody"))
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        request = pb.ExportMemberRequest(member_id=member, page_token="AAAA")  # noqa: S106
        points.call(points.points.ExportMember, request)


def test_what_is_erased_is_found_nowhere_and_the_books_stay(points: Points) -> None:
    member, other = fresh("member"), fresh("member")
    marker, kept = fresh("marker"), fresh("marker")
    house = points.house
    plant(points, member, marker)
    plant(points, other, kept)
    until(lambda: set(in_streams(house, marker)) >= {"ORDERS", "GROUPS"})
    before, ledger = points.balance(member), [e.transaction for e in export(points, member)]
    request_id = fresh("erase")
    answer = erase(points, member, request_id)
    assert (answer.notes, answer.sources, answer.events) == (2, 5, 11)
    assert erase(points, member, request_id) == answer
    assert in_tables(house, marker) == []
    until(lambda: in_streams(house, marker) == [] and in_streams(house, member) == [])
    assert not in_log(house, marker)
    left = export(points, member)
    assert [e.transaction for e in left] == ledger
    assert not any(e.reason or e.HasField("order") or e.HasField("activity") for e in left)
    assert points.balance(member) == before
    check_chain(house, member)
    assert "transactions" in in_tables(house, kept)
    assert in_streams(house, kept)
    again = erase(points, member)
    assert (again.notes, again.sources, again.events) == (0, 0, 0)


def test_an_erased_member_goes_on_and_repeats_get_their_first_answer(points: Points) -> None:
    member, basket, request_id = fresh("member"), order(500, points.now), fresh("earn")
    first = points.earn(member, basket, request_id)
    erase(points, member)
    assert points.earn(member, basket, request_id) == first
    assert points.earn(member, basket) == first
    with refused(StatusCode.ALREADY_EXISTS, "ORDER_ALREADY_EARNED"):
        points.earn(member, order(600, points.now, order_id=basket.order_id))
    assert points.redeem(member, 5).balance.available == 0
    check_chain(points.house, member)


def exported(points: Points, member: str) -> pb.ExportMemberResponse:
    return points.call(points.points.ExportMember, pb.ExportMemberRequest(member_id=member, page_size=1))


def has_moved(points: Points, member: str) -> MemberMoved:
    """Another service's fact, on which nothing is earned."""
    made = MemberMoved(
        member_id=member,
        epoch=1,
        version=1,
        membership_id=fresh("membership"),
        scheme_id="scheme-1",
        from_group_id="group-6",
        group_id="group-7",
        reason=MEMBER_MOVE_REASON_OPERATOR,
    )
    made.occur_time.FromDatetime(points.now)
    return made


def test_an_export_has_the_open_holds_and_what_others_told(points: Points) -> None:
    member = fresh("member")
    points.adjust(member, 50)
    assert not exported(points, member).holds
    names = [place(points, member, amount).hold_id for amount in (1, 2, 3, 4)]
    capture(points, member, names[0])
    release(points, member, names[2])
    opened = [read_hold(points, member, name) for name in (names[3], names[1])]
    assert list(exported(points, member).holds) == opened
    assert dict(exported(points, member).facts) == {}
    asyncio.run(publish(points.house, has_moved(points, member)))
    until(lambda: dict(exported(points, member).facts) == {"group.scheme-1": "group-7"})
    assert list(exported(points, member).holds) == opened


def test_a_member_of_whom_only_others_told_is_exported_and_erased(points: Points) -> None:
    member, house = fresh("member"), points.house
    asyncio.run(publish(house, has_moved(points, member)))
    until(lambda: "members" in in_tables(house, member))
    found = exported(points, member)
    assert dict(found.facts) == {"group.scheme-1": "group-7"}
    assert (found.balance, list(found.transactions)) == (pb.Balance(member_id=member), [])
    erase(points, member)
    until(lambda: in_streams(house, member) == [])


def test_an_erased_order_is_refunded_by_amount_and_whole_but_not_by_line(points: Points) -> None:
    member, basket, now = fresh("member"), order(2000, points.now), points.now
    points.earn(member, basket)
    by_line = a_refund(basket.order_id, now, lines={"1": 500})
    first = refund(points, member, by_line)
    erase(points, member)
    with refused(StatusCode.INVALID_ARGUMENT, "LINE_UNKNOWN") as refusal:
        refund(points, member, a_refund(basket.order_id, now, lines={"1": 100}))
    assert refusal.metadata == {"line_id": "1"}
    assert refund(points, member, by_line) == first
    refund(points, member, a_refund(basket.order_id, now, 500))
    assert points.balance(member).available == 10
    with refused(StatusCode.FAILED_PRECONDITION, "REFUND_EXCEEDS_ORDER") as refusal:
        refund(points, member, a_refund(basket.order_id, now, 1001))
    assert refusal.metadata["refundable"] == "1000"
    refund(points, member, a_refund(basket.order_id, now))
    assert (points.balance(member).available, points.balance(member).growth) == (0, 0)
    check_chain(points.house, member)


def test_a_refund_that_waits_outlives_its_members_erasure(points: Points) -> None:
    member, marker, house = fresh("member"), fresh("marker"), points.house
    basket = order(2000, points.now)
    points.adjust(member, 1)
    early = OrderRefunded(member_id=member, refund=a_refund(basket.order_id, points.now, 500))
    unknown = b"\xfa\x3e" + bytes([len(marker)]) + marker.encode()  # a field that nobody knows
    asyncio.run(publish(house, early, unknown))
    until(lambda: "refunds" in in_tables(house, basket.order_id))
    assert in_streams(house, marker) == ["ORDERS"]
    erase(points, member)
    assert in_tables(house, marker) == []
    until(lambda: in_streams(house, member) == [])
    points.earn(member, basket)
    assert kinds(points, member) == "ADJUST EARN REFUND"
    assert points.balance(member).available == 16


def test_erasing_reaches_a_refund_that_waited_in_vain(points: Points) -> None:
    member, house, basket = fresh("member"), points.house, order(2000, points.now)
    early = OrderRefunded(member_id=member, refund=a_refund(basket.order_id, points.now, 2001))
    asyncio.run(publish(house, early))
    until(lambda: in_tables(house, early.refund.refund_id) == ["refunds"])
    points.earn(member, basket)
    assert in_tables(house, early.refund.refund_id) == ["dead_letters"]
    assert kinds(points, member) == "EARN"
    erase(points, member)
    assert in_tables(house, early.refund.refund_id) == []
    until(lambda: in_streams(house, early.refund.refund_id) == [])


def test_erasing_reaches_a_refused_event_of_a_member_otherwise_unknown(points: Points) -> None:
    member, marker, house = fresh("member"), fresh("marker"), points.house
    wrong = marked_order(marker, points)
    wrong.total_minor += 1
    asyncio.run(publish(house, OrderPaid(member_id=member, order=wrong)))
    until(lambda: in_tables(house, marker) == ["dead_letters"])
    erase(points, member)
    assert in_tables(house, marker) == []
    until(lambda: in_streams(house, marker) == [])
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        erase(points, member)


def test_an_unknown_member_cannot_be_erased(points: Points) -> None:
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        erase(points, fresh("nobody"))


def test_an_erasure_is_its_members_request(points: Points) -> None:
    member, other, request_id = fresh("member"), fresh("member"), fresh("request")
    for who in (member, other):
        points.adjust(who, 1)
    assert erase(points, member, request_id).notes == 1
    assert erase(points, other, request_id).notes == 1


def test_erasing_reaches_a_brands_event_that_was_refused(points: Points) -> None:
    member, marker, house = fresh("member"), fresh("marker"), points.house
    points.earn(member, order(500, points.now))
    wrong = marked_order(marker, points)
    wrong.total_minor += 1
    asyncio.run(publish(house, OrderPaid(member_id=member, order=wrong)))
    until(lambda: in_tables(house, marker) == ["dead_letters"])
    erase(points, member)
    assert in_tables(house, marker) == []
    until(lambda: in_streams(house, marker) == [])


def test_a_stale_sequence_deletes_nobody_elses_message(points: Points) -> None:
    """A stream that was lost and made anew counts from 1 again."""
    member, marker, house = fresh("member"), fresh("marker"), points.house
    asyncio.run(publish(house, OrderPaid(member_id=member, order=marked_order(marker, points))))
    until(lambda: "inbox" in in_tables(house, member))
    asyncio.run(execute(house, "INSERT INTO stream_erasures SELECT stream, stream_seq, 'another' FROM inbox"))
    until(lambda: in_tables(house, "another") == [])
    assert in_streams(house, marker) == ["ORDERS"]


async def publish(house: House, event: Message, more: bytes = b"") -> None:
    """As those do who know nothing of us but the contract."""
    client = await nats.connect(house.nats.url)
    try:
        body = event.SerializeToString() + more
        async with asyncio.timeout(3 * TIMEOUT):
            while True:
                try:
                    await client.jetstream().publish(event.DESCRIPTOR.full_name, body)
                except NoStreamResponseError:  # the house has just started, and the stream is still to come
                    await asyncio.sleep(0.1)
                else:
                    return
    finally:
        await client.close()


async def execute(house: House, sql: str) -> None:
    connection = await asyncpg.connect(house.postgres.url("points"))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
