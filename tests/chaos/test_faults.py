"""One kill of each kind, under a small load; a client's journal and a foreign subscriber are the oracle."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import pytest_asyncio
from loyalty.orders.v1.orders_pb2 import OrderPaid
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted, TransferReturned

from services.cli.house import House
from tests.chaos import deaths, storage, traffic
from tests.chaos.journal import RETRIED, Client, Journal, Outcome, owner, until
from tests.chaos.levers import (
    between,
    broker,
    consumed,
    eventually,
    kill,
    lapse,
    redeliver,
    relay_holder,
    sql,
    start,
    start_nats,
    start_postgres,
    stop,
)
from tests.chaos.listener import TIMEOUT, Listener
from tests.chaos.points import PointsJournal
from tests.chaos.proxy import Mode, Proxies
from tests.chaos.site import Site, Strike
from tests.chaos.storage import DEADLOCK_TIMEOUT, audited, small_disk
from tests.chaos.transfers import Transfers
from tests.conftest import NOON, OpenHouse
from tests.support import PROGRAMME, apply_programme, defects, fresh, order

LOAD = 240  # commands
AFTER = 40  # acknowledged commands after which a fault strikes
PROBES = {
    "RedeemPoints": pb.RedeemPointsRequest(member_id=fresh("m"), request_id=fresh("r"), amount=1),
    "GetBalance": pb.GetBalanceRequest(member_id=fresh("m")),
    "QuoteEarn": pb.QuoteEarnRequest(member_id=fresh("m"), order=order(100, NOON)),
}
ORDER_PAID = "loyalty.orders.v1.OrderPaid"


@pytest.fixture(scope="module", params=["grpcio"])
def front(request: pytest.FixtureRequest) -> str:
    """Faults lie behind the front: one is enough, but for one test."""
    return str(request.param)


@pytest.fixture(scope="module")
def house(data: Path, front: str, open_house: OpenHouse) -> Iterator[House]:
    """A house that the tests of this module may kill."""
    settings = {"deadlock_timeout": DEADLOCK_TIMEOUT}
    with open_house(data / front, test_clock=NOON, front=front, postgres_settings=settings) as house:
        apply_programme(house, PROGRAMME | {"transfers_per_day": 10**12})
        yield house
        assert not defects(house), "a fault of what we stand on is no defect of ours"


@pytest.fixture(scope="module")
def network(house: House) -> Iterator[Proxies]:
    """The networks of the house, which tests may spoil, from the next start of the service on."""
    with between(house) as proxies:
        yield proxies
        house.settings["points"].clear()


@pytest_asyncio.fixture(autouse=True)
async def whole(house: House) -> None:
    """Whatever a failed test left behind, the next one finds everything up."""
    if house.postgres.poll() is not None:
        await start_postgres(house)
    if house.nats.poll() is not None:
        await start_nats(house)
    if house.process("points").poll() is not None:
        await start(house)


async def survives(
    house: House, journal: Journal, strike: Callable[[], Awaitable[None]], *addresses: str
) -> Listener:
    """Runs the load, strikes in the middle of it, and holds ledger and events against the journal."""
    struck = asyncio.Event()
    load = asyncio.create_task(journal.run(LOAD, *addresses, struck=struck))
    try:
        await journal.acknowledged(AFTER)
        await strike()
        struck.set()
        await load
    finally:
        load.cancel()
    listener = Listener(house.nats.url)
    await listener.hear_all(await journal.verify())
    return listener


# --- F1, F10: the service dies ------------------------------------------------------------------------


@pytest.mark.parametrize("point", deaths.FAILPOINTS)
async def test_the_service_killed_at_a_failpoint_loses_and_doubles_nothing(house: House, point: str) -> None:
    await eventually(house, "SELECT count(*) = 0 FROM outbox WHERE sent_at IS NULL")
    await stop(house)
    await lapse(house)
    # Not waited for: it may well die of the first thing it does.
    await asyncio.to_thread(house.start_service, "points", failpoint=point)
    journal = PointsJournal(house, seed=deaths.FAILPOINTS.index(point))
    load = asyncio.create_task(journal.run(LOAD))
    assert await asyncio.to_thread(house.process("points").wait, TIMEOUT) == 128 + 9
    await start(house)
    await redeliver(house)
    await load
    await Listener(house.nats.url).hear_all(await journal.verify())


@pytest.mark.parametrize("point", deaths.FAILPOINTS)
async def test_transfers_end_received_or_returned_whatever_point_the_service_is_killed_at(
    house: House, point: str
) -> None:
    transfers = Transfers(house, seed=40 + deaths.FAILPOINTS.index(point))
    await transfers.prepare()
    await eventually(house, "SELECT count(*) = 0 FROM outbox WHERE sent_at IS NULL")
    await stop(house)
    await lapse(house)
    await asyncio.to_thread(house.start_service, "points", failpoint=point)
    load = asyncio.create_task(transfers.run(LOAD // 2))
    assert await asyncio.to_thread(house.process("points").wait, TIMEOUT) == 128 + 9
    await start(house)
    await redeliver(house)
    await load
    ledger = await transfers.verify()
    listener = Listener(house.nats.url)
    await listener.hear_all(ledger)
    returned = [row["transaction_id"] for row in ledger if row["kind"] == "REVERSE"]

    def told() -> list[str]:
        each = (event for member in transfers.members for event in listener.about(member, TransferReturned))
        return [event.transaction_id for event in each]

    await listener.hear(lambda: len(told()) >= len(returned))
    assert sorted(told()) == sorted(returned)


@pytest.mark.parametrize("front", ["native"], indirect=True)
async def test_the_service_killed_on_the_native_front_loses_and_doubles_nothing(house: House) -> None:
    async def strike() -> None:
        await kill(house)
        await start(house)
        await redeliver(house)

    await survives(house, PointsJournal(house, seed=20), strike)


async def test_a_request_gets_its_first_answer_byte_for_byte_from_the_next_process(house: House) -> None:
    journal = PointsJournal(house, seed=21)
    await journal.run(LOAD)
    await kill(house)
    await start(house)
    await redeliver(house)
    client = Client([house.describe()["points"]["grpc"]])
    acknowledged = [entry for entry in journal.entries if entry.outcome is Outcome.ACKNOWLEDGED]
    again = await asyncio.gather(
        *(client.method(e.method, 0)(e.request, timeout=TIMEOUT) for e in acknowledged)
    )
    await client.close()
    first = [entry.answer.SerializeToString() for entry in acknowledged if entry.answer]
    assert [answer.SerializeToString() for answer in again] == first
    await journal.verify()


# --- F2, F3: the database -----------------------------------------------------------------------------


async def test_postgresql_killed_under_load_is_found_again_and_nothing_is_lost(house: House) -> None:
    journal = PointsJournal(house, seed=22)

    async def strike() -> None:
        for _ in range(3):  # in whatever state each connection happens to be
            await asyncio.to_thread(house.postgres.kill)
            await start_postgres(house)
            await journal.acknowledged(journal.count(Outcome.ACKNOWLEDGED) + AFTER // 2)

    await survives(house, journal, strike)


@pytest.mark.parametrize("how", ["frozen", "beyond a black hole"])
async def test_a_postgresql_that_is_silent_is_answered_for_and_recovered_from(
    house: House, network: Proxies, how: str
) -> None:
    await start(house, call_timeout="60")
    client = Client([house.describe()["points"]["grpc"]])
    journal = PointsJournal(house, seed=23, timeout=1.0)
    codes: list[Any] = []

    async def strike() -> None:
        if how == "frozen":
            house.postgres.freeze()
        else:
            network.set("postgres", Mode.BLACK_HOLE)
        # Who sets no deadline is answered too, while the database is still silent.
        calls = [refusal(client, command, deadline) for command in PROBES for deadline in (1.0, None)]
        codes.extend(await asyncio.gather(*calls))
        house.postgres.thaw()
        network.set("postgres", Mode.CLEAR)

    try:
        await survives(house, journal, strike)
    finally:
        house.postgres.thaw()
        network.set("postgres", Mode.CLEAR)
        await client.close()
    assert set(codes) <= RETRIED - {grpc.StatusCode.CANCELLED}
    await until(lambda: nothing_leaked(house))


async def nothing_leaked(house: House) -> bool:
    """Whether the service has no more connections than its pool, none of them inside a transaction."""
    connection = await asyncpg.connect(house.postgres.url("points"))
    try:
        # Of this process alone: what an earlier one left half-open stays, and is not its own.
        query = "SELECT state FROM pg_stat_activity WHERE application_name LIKE 'points-%-' || $1"
        pid = house.process("points").pid
        states = [row["state"] for row in await connection.fetch(query, str(pid))]
    finally:
        await connection.close()
    return 0 < len(states) <= 8 and not any("in transaction" in state for state in states)


async def refusal(client: Client, command: str, deadline: float | None) -> grpc.StatusCode | None:
    """What a call fails with, None if it does not."""
    try:
        await client.method(command, 0)(PROBES[command], timeout=deadline)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


# --- F4, F5: the stream -------------------------------------------------------------------------------


async def test_nats_killed_and_its_store_wiped_gets_every_event_again(house: House) -> None:
    journal = PointsJournal(house, seed=24)
    before = PointsJournal(house, seed=25)
    await before.run(LOAD)
    listener = Listener(house.nats.url)
    await listener.hear_all(await before.verify())

    async def strike() -> None:
        await asyncio.to_thread(house.nats.kill)
        shutil.rmtree(house.data / "nats")
        await journal.acknowledged(journal.count(Outcome.ACKNOWLEDGED) + AFTER)  # writes go on
        await start_nats(house)

    late = await survives(house, journal, strike)
    await late.hear_all(await before.verify())  # what was sent before the wipe is there again, in order
    await listener.hear_all(await journal.verify())  # who heard it before hears nothing else


async def test_an_idle_relay_notices_that_the_store_was_wiped(house: House) -> None:
    journal = PointsJournal(house, seed=26)
    await journal.run(LOAD)
    ledger = await journal.verify()
    await Listener(house.nats.url).hear_all(ledger)
    await asyncio.to_thread(house.nats.kill)
    shutil.rmtree(house.data / "nats")
    await start_nats(house)
    await Listener(house.nats.url).hear_all(ledger)


async def test_the_service_starts_and_serves_while_nats_is_away(house: House) -> None:
    await stop(house)
    await asyncio.to_thread(house.nats.kill)
    await start(house)
    journal = PointsJournal(house, seed=27)
    await journal.run(LOAD)
    assert await asyncio.to_thread(house.process("points").stop) == 0  # and stops as it should
    await start(house)
    await start_nats(house)
    await Listener(house.nats.url).hear_all(await journal.verify())


@pytest.mark.parametrize("window", ["within", "beyond"])
async def test_lost_pub_acks_have_one_effect_within_the_dedup_window_and_beyond(
    house: House, window: str
) -> None:
    journal = PointsJournal(house, seed=28)
    await journal.run(LOAD)
    ledger = await journal.verify()
    listener = Listener(house.nats.url)
    await listener.hear_all(ledger)
    async with broker(house) as client:
        if window == "beyond":
            await repeat_all(client)
        await sql(
            house,
            "UPDATE outbox SET sent_at = NULL, stream_seq = NULL WHERE entity_key = ANY($1)",
            journal.members,
        )
        await eventually(house, "SELECT count(*) = 0 FROM outbox WHERE sent_at IS NULL")
        await consumed(client)
    await listener.hear_all(ledger)
    await Listener(house.nats.url).hear_all(ledger)
    assert [row["hash"] for row in await journal.verify()] == [row["hash"] for row in ledger]


async def repeat_all(client: Any) -> None:
    """Puts every event into its stream once more, as a publishing after the duplicate window would."""
    stream = client.jetstream()
    for name in ("POINTS", "ORDERS"):
        state = (await stream.stream_info(name)).state
        for sequence in range(state.first_seq, state.last_seq + 1):
            found = await stream.get_msg(name, sequence)
            kept = {k: v for k, v in (found.headers or {}).items() if not k.startswith("Nats-")}
            await stream.publish(found.subject, found.data or b"", headers=kept)


# --- F6, F7: the relay --------------------------------------------------------------------------------


async def test_a_relay_that_was_paused_beyond_its_lease_comes_back_and_reorders_nothing(house: House) -> None:
    replica = await asyncio.to_thread(house.start_replica, "points")
    try:
        await asyncio.to_thread(house.wait_ready, replica)
        addresses = [house.describe()[name]["grpc"] for name in ("points", replica)]

        async def strike() -> None:
            holder = await relay_holder(house, "points", replica)
            house.process(holder).freeze()
            await asyncio.sleep(0)
            await lapse(house)
            await relay_holder(house, "points", replica, other_than=holder)
            house.process(holder).thaw()

        await survives(house, PointsJournal(house, seed=29, timeout=1.0), strike, *addresses)
    finally:
        house.process(replica).thaw()
        house.process("points").thaw()
        await asyncio.to_thread(house.process(replica).stop)
        await lapse(house)


async def test_events_of_a_long_transaction_hold_nothing_back_and_are_not_skipped(house: House) -> None:
    member = fresh("slow")
    body = PointsPosted(member_id=member, epoch=1, version=1).SerializeToString()
    journal, listener = PointsJournal(house, seed=30), Listener(house.nats.url)
    connection = await owner(house)
    try:
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO outbox"
                " (bucket, entity_key, stream, subject, event_id, body, traceparent, create_time)"
                " VALUES (0, $1, 'POINTS', 'loyalty.points.v1.PointsPosted', $1, $2, '', now())",
                member,
                body,
            )
            await journal.run(AFTER)
            await listener.hear_all(await journal.verify())  # positions drawn later are sent meanwhile
            assert (member, 1, 1) not in listener.heard
    finally:
        await connection.close()
    await listener.hear(lambda: (member, 1, 1) in listener.heard)


# --- F8: messages -------------------------------------------------------------------------------------


async def publish(client: Any, body: bytes, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    await client.jetstream().publish(ORDER_PAID, body, headers=named or None)


def paid(member: str, what: Any) -> bytes:
    return OrderPaid(member_id=member, order=what).SerializeToString()


async def test_poison_goes_to_the_dead_letters_with_its_reason_while_others_flow(house: House) -> None:
    member, source = fresh("poisoned"), fresh("brand")
    wrong = order(1000, NOON)
    wrong.total_minor = 999
    poison = {
        "garbage": (b"\xff\xff\xff", "MALFORMED_REQUEST"),
        "empty": (b"", "MALFORMED_REQUEST"),
        "total": (paid(member, wrong), "TOTAL_MISMATCH"),
        "nul\0": (b"\xff", "MALFORMED_REQUEST"),
    }
    async with broker(house) as client:
        for name, (body, _reason) in poison.items():
            await publish(client, body, ce_id=name, ce_source=source)
            await publish(client, paid(member, order(100, NOON)), ce_id=fresh("e"), ce_source=source)
    await eventually(house, "SELECT count(*) = 4 FROM transactions WHERE member_id = $1", member)
    await eventually(house, "SELECT count(*) = 4 FROM dead_letters WHERE source = $1", source)
    letters = await sql(house, "SELECT event_id, reason, body FROM dead_letters WHERE source = $1", source)
    found = {row["event_id"].replace("\N{REPLACEMENT CHARACTER}", "\0"): tuple(row)[1:] for row in letters}
    assert found == {name: (reason, body) for name, (body, reason) in poison.items()}


async def test_duplicates_shuffles_and_bare_messages_converge_to_one_transaction_an_order(
    house: House,
) -> None:
    member = fresh("shuffled")
    orders = [order(100 * n, NOON) for n in range(1, 21)]
    copies = [(what, f"{what.order_id}/{n % 2}") for what in orders for n in range(4)]
    random.Random(31).shuffle(copies)
    async with broker(house) as client:
        for what, event_id in copies:
            await publish(client, paid(member, what), ce_id=event_id, ce_source="brand")
            await publish(client, paid(member, what))
        await eventually(
            house, "SELECT count(DISTINCT order_id) = 20 FROM transactions WHERE member_id = $1", member
        )
        await consumed(client)
    rows = await sql(house, "SELECT order_id FROM transactions WHERE member_id = $1", member)
    assert sorted(row["order_id"] for row in rows) == sorted(what.order_id for what in orders)
    letters = await sql(house, "SELECT 1 FROM dead_letters WHERE source IN ('brand', 'ORDERS')")
    assert not letters


async def test_an_outage_of_the_database_dead_letters_nothing_that_is_sound(house: House) -> None:
    member, source = fresh("waiting"), fresh("brand")
    await asyncio.to_thread(house.postgres.kill)
    async with broker(house) as client:
        for number in range(20):
            if number == 10:
                await publish(client, b"\xff\xff\xff", ce_id="poison", ce_source=source)
            await publish(client, paid(member, order(100, NOON)), ce_source=source, ce_id=fresh("e"))

        async def in_hand() -> bool:
            info = await client.jetstream().consumer_info("ORDERS", "points")
            return bool(info.num_ack_pending)

        await until(in_hand)
        client_of_ours = Client([house.describe()["points"]["grpc"]])
        assert await refusal(client_of_ours, "QuoteEarn", TIMEOUT) is grpc.StatusCode.UNAVAILABLE
        await client_of_ours.close()
        await start_postgres(house)
        await eventually(house, "SELECT count(*) = 20 FROM transactions WHERE member_id = $1", member)
        await consumed(client)
    letters = await sql(house, "SELECT event_id FROM dead_letters WHERE source = $1", source)
    assert [row["event_id"] for row in letters] == ["poison"]


# --- F9: callers leave --------------------------------------------------------------------------------


async def test_calls_cancelled_at_random_instants_happened_whole_or_not_at_all(house: House) -> None:
    journal = PointsJournal(house, seed=32, cancelling=True)
    await journal.run(LOAD)
    await Listener(house.nats.url).hear_all(await journal.verify())


# --- what `make chaos` does for long, once --------------------------------------------------------------

# The rest of its faults have tests above, or beside what they are about (docs/reliability.md says where).
ONCE: list[Strike] = [
    storage.deadlock,
    storage.lock_timeout,
    storage.serialisation_failures,
    traffic.slow_lorises,
    traffic.acks_lost,
    traffic.acks_stale,
    traffic.hot_member,
    *(partial(traffic.bad_network, m) for m in (Mode.LATENCY, Mode.RESET, Mode.BLACK_HOLE, Mode.TRICKLE)),
]


async def test_bad_networks_locks_and_messages_at_the_wrong_time_lose_and_double_nothing(
    house: House, network: Proxies
) -> None:
    await start(house)
    site = Site(house, network, random.Random(33), seconds=1.2)

    async def strike() -> None:
        for fault in site.random.sample(ONCE, len(ONCE)):
            await fault(site)
            await journal.acknowledged(journal.count(Outcome.ACKNOWLEDGED) + AFTER // 2)

    journal = PointsJournal(house, seed=33, timeout=2.0)
    await survives(house, journal, strike, *site.addresses())


@pytest.mark.parametrize("path", ["postgres", "nats"])
async def test_a_connection_whose_other_end_vanished_is_given_up(
    house: House, network: Proxies, path: str
) -> None:
    await start(house)
    journal, site = PointsJournal(house, seed=34, timeout=2.0), Site(house, network, random.Random(34))

    async def strike() -> None:
        network.set(path, Mode.HALF_OPEN)
        network.set(path, Mode.CLEAR)
        await journal.acknowledged(journal.count(Outcome.ACKNOWLEDGED) + AFTER)

    await survives(house, journal, strike, *site.addresses())


def test_a_full_disk_refuses_what_needs_room_and_loses_nothing(data: Path, open_house: OpenHouse) -> None:
    with open_house(data / "small", test_clock=NOON) as house:
        apply_programme(house)
        house.process("points").stop()
        with small_disk(house, data / "disk") as disk, between(house) as network:
            if disk is None:
                pytest.skip("a file system that can be filled takes root, and the right to mount it")
            house.start_service("points")
            house.wait_ready("points")
            site = Site(house, network, random.Random(35), small_disk=disk)
            journal = PointsJournal(house, seed=35)
            asyncio.run(survives(house, journal, partial(storage.disk_full, site)))
            assert not asyncio.run(audited(house))
            assert not defects(house)
