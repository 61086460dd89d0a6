"""From a brand's till to another team's screen: both ends have the protos, and nothing else of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import nats
import pytest
from loyalty.orders.v1.orders_pb2 import Order, OrderPaid
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted

from services.cli.house import House
from tests.chaos.listener import STREAM, SUBJECT, Listener
from tests.conftest import NOON, OpenHouse
from tests.support import apply_programme, fresh, order

ORDER_PAID = "loyalty.orders.v1.OrderPaid"
DAY = 86_400  # seconds


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """One front is enough: nothing here goes through it."""
    with open_house(data, test_clock=NOON) as house:
        apply_programme(house)
        yield house


async def tell(house: House, member: str, what: Order, times: int = 1, **headers: str) -> None:
    """Publishes an order as a brand's system does."""
    client = await nats.connect(house.nats.url)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = OrderPaid(member_id=member, order=what).SerializeToString()
    for _ in range(times):
        await client.jetstream().publish(ORDER_PAID, body, headers=named or None)
    await client.close()


async def hear(house: House, member: str, many: int) -> list[PointsPosted]:
    """The member's events, as another team's service hears them."""
    listener = Listener(house.nats.url)

    def found() -> list[PointsPosted]:
        return [event for event in listener.heard.values() if event.member_id == member]

    await listener.hear(lambda: len(found()) >= many)
    return found()


async def test_an_order_published_by_a_brand_is_announced_with_the_balances_it_left(house: House) -> None:
    member, coffee, burger = (
        fresh("member"),
        order(2190, NOON, category="coffee"),
        order(1000, NOON),
    )
    await tell(house, member, coffee, ce_id=fresh("event"), ce_source="brand/tills")
    await hear(house, member, 1)
    await tell(house, member, burger)  # a brand without CloudEvents
    first, second = await hear(house, member, 2)
    assert (first.epoch, first.version, second.version) == (first.transaction.seq, 1, 2)
    assert (first.transaction.order_id, second.transaction.order_id) == (coffee.order_id, burger.order_id)
    assert [event.transaction.balance.available for event in (first, second)] == [43, 53]
    assert [event.transaction.balance.growth for event in (first, second)] == [21, 31]
    assert first.occur_time.ToDatetime(NOON.tzinfo) == NOON


async def test_an_order_told_many_times_is_announced_once(house: House) -> None:
    member, what = fresh("member"), order(1000, NOON)
    await tell(house, member, what, ce_id=fresh("event"), ce_source="brand/tills")
    await tell(house, member, what, times=2)
    await tell(house, member, what, ce_id=fresh("event"), ce_source="brand/app")
    await tell(house, member, last := order(100, NOON))
    events = await hear(house, member, 2)
    assert [event.transaction.order_id for event in events] == [what.order_id, last.order_id]
    assert events[-1].transaction.balance.available == 11


async def test_an_event_carries_the_attributes_that_make_it_a_cloud_event(house: House) -> None:
    member, trace = fresh("member"), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await tell(house, member, order(1000, NOON), traceparent=trace)
    listener = Listener(house.nats.url)
    await listener.hear(lambda: any(key[0] == member for key in listener.heard))
    (headers,) = (found for key, found in listener.headers.items() if key[0] == member)
    assert headers["ce-id"] == headers["Nats-Msg-Id"]
    assert datetime.fromisoformat(headers["ce-time"]).tzinfo is not None
    assert headers | {"ce-id": "", "Nats-Msg-Id": "", "ce-time": ""} == {
        "ce-id": "",
        "Nats-Msg-Id": "",
        "ce-time": "",
        "ce-source": "points",
        "ce-type": SUBJECT,
        "ce-subject": member,
        "content-type": "application/protobuf",
        "traceparent": trace,
    }


async def test_a_subscriber_can_recompute_the_hash_chain_from_the_events_alone(house: House) -> None:
    member, orders = fresh("member"), [order(n, NOON) for n in (2190, 0, 99, 100_000)]
    for what in orders:
        await tell(house, member, what)
    events = await hear(house, member, len(orders))
    bodies = {what.order_id: what.SerializeToString(deterministic=True) for what in orders}
    head = b""
    for event in events:
        assert event.transaction.payload_hash == hashlib.sha256(bodies[event.transaction.order_id]).digest()
        head = chained(head, event.transaction)
        assert event.transaction.hash == head


def chained(previous: bytes, t: pb.Transaction) -> bytes:
    """Hash version 1: SHA-256 of the previous hash and the transaction's fields as netstrings."""
    b = t.balance
    fields = [
        *("1", t.member_id, str(t.seq), t.transaction_id),
        pb.TransactionKind.Name(t.kind).removeprefix("TRANSACTION_KIND_"),
        *(
            t.request_id,
            t.payload_hash.hex(),
            t.order_id,
            t.activity_id,
            t.reference_id,
            t.reverses_transaction_id,
        ),
        *(str(at.seconds * 1_000_000 + at.nanos // 1000) for at in (t.occur_time, t.create_time)),
        *(str(t.programme_version), str(len(t.transfers))),
        *(f"{unit(m.unit)} {account(m.debit)} {account(m.credit)} {m.amount}" for m in t.transfers),
        str(len(t.contributions)),
        *(f"{c.rule_id} {unit(c.unit)} {c.amount} {c.error}" for c in t.contributions),
        f"{b.available} {b.pending} {b.held} {b.owed} {b.growth} {b.lifetime_earned}",
    ]
    encoded = [text.encode() for text in fields]
    return hashlib.sha256(previous + b"".join(b"%d:%b," % (len(e), e) for e in encoded)).digest()


def unit(value: pb.Unit.ValueType) -> str:
    """A unit's word."""
    return pb.Unit.Name(value).removeprefix("UNIT_")


def account(value: pb.Account.ValueType) -> str:
    """An account's word; the issuer's have the issuer before a stroke."""
    return pb.Account.Name(value).removeprefix("ACCOUNT_").lower().replace("issuer_", "issuer/", 1)


@pytest.mark.parametrize("name", [STREAM, "ORDERS"])
async def test_the_streams_keep_messages_on_disk_for_thirty_days_and_know_duplicates(
    house: House, name: str
) -> None:
    client = await nats.connect(house.nats.url)
    config: Any = (await client.jetstream().stream_info(name)).config
    await client.close()
    assert (config.storage, config.max_age, config.duplicate_window) == ("file", 30 * DAY, 600)
    assert (
        config.subjects
        == {
            STREAM: ["loyalty.points.v1.>"],
            "ORDERS": ["loyalty.orders.v1.>", "loyalty.activities.v1.>"],
        }[name]
    )
