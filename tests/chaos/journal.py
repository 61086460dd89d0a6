"""A client that journals each command with its request_id and what came of it, and audits the books by it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import asyncpg
import grpc
from google.protobuf.message import Message
from loyalty.orders.v1 import orders_service_pb2 as orders_pb
from loyalty.orders.v1.orders_pb2 import Refund
from loyalty.orders.v1.orders_service_pb2_grpc import OrdersServiceStub
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub

from services.chassis.ids import bucket
from services.cli.house import House
from services.points import store
from services.points.domain.ledger import transaction_hash
from tests.support import fresh, order

SETTLE_TIMEOUT = 90.0  # seconds for a command to be acknowledged or refused, whatever happens meanwhile
POLL, MAX_POLL = 0.05, 0.5  # seconds between looks, at first and at last
EVERY = 0.4  # seconds from one batch to the next: more would only make the books too long to audit in a fault
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
REFUSED = {grpc.StatusCode.FAILED_PRECONDITION}
# A killed server is looked for again at once, not after gRPC's own backoff of up to two minutes.
# A connection that is dead without a word is noticed by pings: the server allows one every ten seconds.
CHANNEL = [
    *((f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # without this one, a minute
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]
UNDOABLE = {"EarnPoints", "RedeemPoints", "CaptureHold", "AdjustPoints"}
BALANCES = ("available", "pending", "held", "owed", "growth")


class Outcome(Enum):
    """What the client knows of a command."""

    UNKNOWN = "unknown"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


@dataclass(eq=False)
class Entry:
    """One command."""

    method: str
    request: Any
    outcome: Outcome = Outcome.UNKNOWN
    answer: Message | None = None
    attempts: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    """Seconds, as `time.monotonic` has them."""


@dataclass
class Book:
    """What the client knows of a member that later commands may name: nobody else touches it."""

    orders: dict[str, int] = field(default_factory=dict)
    """What each order was paid with."""
    open_holds: dict[str, int] = field(default_factory=dict)
    deadlines: dict[str, datetime] = field(default_factory=dict)
    """When each hold lapses."""
    closed_holds: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """State, amount and what was captured of it."""
    undoable: list[str] = field(default_factory=list)


class Client:
    """Stubs on channels to one or several processes of the service."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=CHANNEL) for address in addresses]
        self._stubs = [(PointsServiceStub(c), OrdersServiceStub(c)) for c in self._channels]

    def method(self, name: str, turn: int) -> Callable[..., Any]:
        """A method, on the channel whose turn it is."""
        points, orders = self._stubs[turn % len(self._stubs)]
        found: Callable[..., Any] = getattr(orders if name == "ReportOrderPaid" else points, name)
        return found

    def raw(self, path: str, turn: int) -> Any:
        """A method by its path, of bytes."""
        return self._channels[turn % len(self._channels)].unary_unary(path)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


class Journal:
    """A seeded load on members of its own, one command per member at a time, and its record.

    `cancelling` cancels the first attempt of each command at a random instant.
    """

    def __init__(
        self, house: House, *, seed: int, members: int = 12, timeout: float = 3.0, cancelling: bool = False
    ) -> None:
        self.house = house
        self.entries: list[Entry] = []
        self.members = [fresh(f"m{seed}") for _ in range(members)]
        self.books = {member: Book() for member in self.members}
        self.waiting: set[Entry] = set()
        self._random = random.Random(seed)
        self._began = self._now
        self._turns: Counter[str] = Counter()
        self._timeout = timeout
        self.cancelling = cancelling

    async def run(self, commands: int, *addresses: str, struck: asyncio.Event | None = None) -> None:
        """Sends that many commands, and goes on until the event; returns when each got its answer."""
        client = Client(addresses or [self.house.describe()["points"]["grpc"]])
        each = -(-commands // len(self.members))
        struck = struck or _already()
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self._workers(client, each, struck):
                    group.create_task(worker)
        finally:
            await client.close()

    def count(self, outcome: Outcome) -> int:
        """How many commands came to this."""
        return sum(entry.outcome is outcome for entry in self.entries)

    async def acknowledged(self, many: int) -> None:
        """Waits until that many are acknowledged."""

        async def reached() -> bool:
            return self.count(Outcome.ACKNOWLEDGED) >= many

        await until(reached)

    def _workers(
        self, client: Client, each: int, struck: asyncio.Event
    ) -> Iterable[Coroutine[Any, Any, None]]:
        for turn, member in enumerate(self.members):
            self._turns[member] = turn
            yield self._member(client, member, each, struck)

    async def _member(self, client: Client, member: str, commands: int, struck: asyncio.Event) -> None:
        sent = 0
        while sent < commands or not struck.is_set():
            sent += 1
            entry = self._command(member)
            self._begin(entry)
            if self.cancelling:
                await self._cancelled(client, entry, self._turns[member])
            async with asyncio.timeout(SETTLE_TIMEOUT):
                while entry.outcome is Outcome.UNKNOWN:
                    await self._attempt(client, entry)
            self._end(entry)

    def _begin(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.waiting.add(entry)

    def _end(self, entry: Entry) -> None:
        entry.ended = time.monotonic()
        self.waiting.remove(entry)
        if entry.outcome is Outcome.ACKNOWLEDGED:
            self._note(self.books[entry.request.member_id], entry)

    def _command(self, member: str) -> Entry:
        book, dice = self.books[member], self._random.random()
        common: dict[str, Any] = {"member_id": member, "request_id": fresh("r")}
        amount = self._random.randint(1, 60)
        if dice < 0.1:
            unit = self._random.choice([pb.UNIT_POINTS, pb.UNIT_GROWTH])
            signed = self._random.choice([amount, -amount])
            return Entry(
                "AdjustPoints", pb.AdjustPointsRequest(**common, unit=unit, amount=signed, reason="chaos")
            )
        if dice < 0.3:
            return Entry("RedeemPoints", pb.RedeemPointsRequest(**common, amount=amount))
        if dice < 0.4:
            request = pb.HoldPointsRequest(**common, amount=amount)
            request.expire_time.FromDatetime(self._now + timedelta(days=1))
            return Entry("HoldPoints", request)
        if dice < 0.5 and book.open_holds:
            return self._closing(common, book)
        if dice < 0.6 and book.orders:
            return self._refund(common, book)
        if dice < 0.65 and book.undoable:
            undone = book.undoable.pop(self._random.randrange(len(book.undoable)))
            return Entry("ReverseTransaction", pb.ReverseTransactionRequest(**common, transaction_id=undone))
        what = order(self._random.randint(0, 5000), self._now)
        if dice < 0.75:
            return Entry("ReportOrderPaid", orders_pb.ReportOrderPaidRequest(**common, order=what))
        return Entry("EarnPoints", pb.EarnPointsRequest(**common, order=what))

    def _closing(self, common: dict[str, Any], book: Book) -> Entry:
        hold_id, amount = self._random.choice(sorted(book.open_holds.items()))
        if self._random.random() < 0.3:
            return Entry("ReleaseHold", pb.ReleaseHoldRequest(**common, hold_id=hold_id))
        part = self._random.randint(0, amount + 1)  # 0 is all, and one too many is refused
        return Entry("CaptureHold", pb.CaptureHoldRequest(**common, hold_id=hold_id, amount=part))

    def _refund(self, common: dict[str, Any], book: Book) -> Entry:
        order_id, total = self._random.choice(sorted(book.orders.items()))
        refund = Refund(order_id=order_id, refund_id=common["request_id"])
        refund.refund_time.FromDatetime(self._now)
        if self._random.random() < 0.2:
            refund.all = True
        else:  # also more than is left of it
            refund.amount_minor = self._random.randint(1, total + 1)
        return Entry("RefundOrder", pb.RefundOrderRequest(**common, refund=refund))

    def _note(self, book: Book, entry: Entry) -> None:
        """Keeps what later commands may name."""
        request, answer = entry.request, entry.answer
        if not isinstance(answer, pb.Transaction):
            return
        match entry.method:
            case "EarnPoints":
                book.orders[request.order.order_id] = request.order.total_minor
            case "HoldPoints":
                book.open_holds[answer.hold_id] = request.amount
                book.deadlines[answer.hold_id] = request.expire_time.ToDatetime(UTC)
            case "CaptureHold":
                held = book.open_holds.pop(request.hold_id)
                book.closed_holds[request.hold_id] = ("CAPTURED", held, request.amount or held)
            case "ReleaseHold":
                book.closed_holds[request.hold_id] = ("RELEASED", book.open_holds.pop(request.hold_id), 0)
        if entry.method in UNDOABLE:
            book.undoable.append(answer.transaction_id)

    @property
    def _now(self) -> datetime:
        assert self.house.clock is not None
        return self.house.clock.now()

    async def _cancelled(self, client: Client, entry: Entry, turn: int) -> None:
        call = client.method(entry.method, turn)(entry.request, timeout=self._timeout)
        with suppress(grpc.aio.AioRpcError, TimeoutError):
            await asyncio.wait_for(call.wait_for_connection(), self._timeout)
        await asyncio.wait([asyncio.ensure_future(call.code())], timeout=self._random.uniform(0, 0.03))
        call.cancel()

    async def _attempt(self, client: Client, entry: Entry) -> None:
        member = entry.request.member_id
        call = client.method(entry.method, self._turns[member])
        entry.attempts += 1
        try:
            entry.answer = await call(entry.request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSED:
                entry.outcome = Outcome.REFUSED
            elif error.code() in RETRIED:
                self._turns[member] += 1  # who fails once is not asked again at once
                await asyncio.sleep(min(POLL * entry.attempts, MAX_POLL))
            else:
                raise
        else:
            entry.outcome = Outcome.ACKNOWLEDGED

    # --- the audit ------------------------------------------------------------------------------------

    async def verify(self, patience: float = SETTLE_TIMEOUT) -> list[Any]:
        """Holds the ledger against the journal. Returns the ledger's rows, in order per member.

        Orders that were reported may take `patience` seconds to be earned.
        """
        connection = await owner(self.house)
        try:
            reported = {
                e.request.order.order_id
                for e in self._of(Outcome.ACKNOWLEDGED)
                if e.method == "ReportOrderPaid"
            }
            await self._await_reported(connection, reported, patience)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                ledger, members, holds = [
                    await rows_of(connection, table, self.members)
                    for table in ("transactions", "members", "holds")
                ]
                events = await announced(connection, self.members)
        finally:
            connection.terminate()  # which cannot fail, whatever happened to it
        self._check_effects(ledger, reported, self._check_holds(members, holds))
        by_member: dict[str, list[Any]] = {member: [] for member in self.members}
        for row in ledger:
            by_member[row["member_id"]].append(row)
        for member in members:
            check_member(member, by_member[member["member_id"]], events[member["member_id"]])
            await asyncio.sleep(0)  # others want to go on meanwhile
        assert {row["member_id"] for row in ledger} <= {row["member_id"] for row in members}
        return list(ledger)

    def _of(self, outcome: Outcome) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome is outcome]

    async def _await_reported(self, connection: Any, reported: set[str], patience: float) -> None:
        async def earned() -> bool:
            rows = await rows_of(connection, "transactions", self.members, "order_id")
            return reported <= {row["order_id"] for row in rows}

        await until(earned, patience)

    def _check_effects(self, ledger: Sequence[Any], reported: set[str], lapsed: set[str]) -> None:
        """Each acknowledged command is one row, each refused one none, and nothing else is there."""
        assert not self._of(Outcome.UNKNOWN)
        posted = [e for e in self._of(Outcome.ACKNOWLEDGED) if isinstance(e.answer, pb.Transaction)]
        expected = Counter((e.request.member_id, e.request.request_id) for e in posted)
        assert set(expected.values()) <= {1}
        found = Counter((r["member_id"], r["request_id"]) for r in ledger if r["request_id"][0] != "~")
        assert found == expected  # none lost, none doubled, none of the refused
        own = [row for row in ledger if row["request_id"][0] == "~"]
        by_event = Counter(row["order_id"] for row in own if row["kind"] == "EARN")
        assert by_event == Counter(reported)
        released = Counter(row["reference_id"] for row in own if row["kind"] == "RELEASE")
        closed = [each for book in self.books.values() for each in book.closed_holds.items()]
        rests = Counter(hold_id for hold_id, (_, amount, captured) in closed if 0 < captured < amount)
        assert released == rests + Counter(lapsed)
        expired = sum(row["kind"] == "EXPIRE" for row in own)
        assert not expired or self._now > self._began
        assert len(own) == by_event.total() + released.total() + expired
        rows = {(row["member_id"], row["request_id"]): row for row in ledger}
        for entry in posted:
            assert isinstance(entry.answer, pb.Transaction)
            row = rows[entry.request.member_id, entry.request.request_id]
            assert (row["transaction_id"], row["seq"], row["hash"]) == (
                entry.answer.transaction_id,
                entry.answer.seq,
                entry.answer.hash,
            )

    def _check_holds(self, members: Sequence[Any], holds: Sequence[Any]) -> set[str]:
        """Holds are as the client left them, but for those whose time is over. Returns which lapsed."""
        found = {row["hold_id"]: (row["state"], row["amount"], row["captured"]) for row in holds}
        expected: dict[str, tuple[str, int, int]] = {}
        lapsed: set[str] = set()
        for member, book in self.books.items():
            for hold_id, amount in book.open_holds.items():
                over = book.deadlines[hold_id] <= self._now and found[hold_id][0] == "EXPIRED"
                expected[hold_id] = ("EXPIRED" if over else "PLACED", amount, 0)
                lapsed |= {hold_id} if over else set()
            expected |= book.closed_holds
            held = sum(amount for hold_id, amount in book.open_holds.items() if hold_id not in lapsed)
            assert [row["held"] for row in members if row["member_id"] == member] in ([held], [])
        assert found == expected
        return lapsed


class Batches(Journal):
    """Sends one command of each member at once in a BatchPost: the most that a client can do."""

    def _workers(
        self, client: Client, each: int, struck: asyncio.Event
    ) -> Iterable[Coroutine[Any, Any, None]]:
        yield self._together(client, each, struck)

    async def _together(self, client: Client, commands: int, struck: asyncio.Event) -> None:
        sent = 0
        while sent < commands or not struck.is_set():
            sent += 1
            pause = asyncio.create_task(asyncio.sleep(EVERY))
            entries = [self._command(member) for member in self.members]
            for entry in entries:
                self._begin(entry)
            async with asyncio.timeout(SETTLE_TIMEOUT):
                while left := [entry for entry in entries if entry.outcome is Outcome.UNKNOWN]:
                    await self._attempt_all(client, left)
            for entry in entries:
                self._end(entry)
            await pause

    def _command(self, member: str) -> Entry:
        common: dict[str, Any] = {"member_id": member, "request_id": fresh("r")}
        if self._random.random() < 0.7:
            what = order(self._random.randint(0, 5000), self._now)
            return Entry("EarnPoints", pb.EarnPointsRequest(**common, order=what))
        signed = self._random.choice([-1, 1]) * self._random.randint(1, 60)
        unit = self._random.choice([pb.UNIT_POINTS, pb.UNIT_GROWTH])
        return Entry(
            "AdjustPoints", pb.AdjustPointsRequest(**common, unit=unit, amount=signed, reason="chaos")
        )

    async def _attempt_all(self, client: Client, entries: Sequence[Entry]) -> None:
        request = pb.BatchPostRequest()
        for entry in entries:
            entry.attempts += 1
            earn = entry.method == "EarnPoints"
            (request.items.add().earn if earn else request.items.add().adjust).CopyFrom(entry.request)
        try:
            answer = await client.method("BatchPost", self._turns[""])(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRIED:
                raise
            self._turns[""] += 1
            await asyncio.sleep(min(POLL * entries[0].attempts, MAX_POLL))
            return
        for entry, result in zip(entries, answer.results, strict=True):
            if result.WhichOneof("result") == "transaction":
                entry.outcome, entry.answer = Outcome.ACKNOWLEDGED, result.transaction
            elif result.error.code in {code.value[0] for code in REFUSED}:
                entry.outcome = Outcome.REFUSED
            else:
                assert result.error.code in {code.value[0] for code in RETRIED}, result.error
        if any(entry.outcome is Outcome.UNKNOWN for entry in entries):
            await asyncio.sleep(POLL)


async def rows_of(connection: Any, table: str, members: Sequence[str], columns: str = "*") -> list[Any]:
    """What a table has about some members, in order per member."""
    order = "member_id" if table == "members" else "member_id, seq"
    keyed = "(bucket, member_id) IN (SELECT * FROM unnest($1::smallint[], $2::text[]))"
    query = f"SELECT {columns} FROM {table} WHERE {keyed} ORDER BY {order}"  # noqa: S608 - names of ours
    return list(await connection.fetch(query, [bucket(member) for member in members], members))


async def announced(connection: Any, members: Sequence[str]) -> Counter[str]:
    """How many events there are about each member."""
    query = (
        "SELECT entity_key, count(*) FROM outbox WHERE stream = 'POINTS'"
        " AND (bucket, entity_key) IN (SELECT * FROM unnest($1::smallint[], $2::text[])) GROUP BY 1"
    )
    return Counter(dict(await connection.fetch(query, [bucket(member) for member in members], members)))


def check_member(member: Any, ledger: Sequence[Any], events: int) -> None:
    """A member's rows: no gap, chain whole, never negative, transfers add up to what is stored."""
    assert [row["seq"] for row in ledger] == list(range(1, len(ledger) + 1))
    assert (member["seq"], member["version"]) == (len(ledger), events)
    head, sums = b"", Counter(dict.fromkeys(BALANCES, 0))
    lifetime = 0
    for row in ledger:
        head = transaction_hash(head, store.to_transaction(row))
        assert row["hash"] == head
        for unit, *accounts, amount in json.loads(row["transfers"]):
            assert amount > 0
            for account, signed in zip(accounts, (-amount, amount), strict=True):
                sums[account] += -signed if account == "owed" else signed  # what is owed rises when debited
                if (unit, account) == ("POINTS", "issuer/earned"):
                    lifetime -= signed
        assert all(row[name] == sums[name] >= 0 for name in BALANCES)
        assert row["lifetime_earned"] == lifetime
    assert member["head_hash"] == head
    assert all(member[name] == sums[name] for name in BALANCES)


def _already() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def owner(house: House) -> Any:
    """A connection as the owner of the service's tables."""
    return await asyncpg.connect(house.database_url("points", owner=True))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = SETTLE_TIMEOUT) -> None:
    """Waits for a condition. Raises TimeoutError."""
    pause = POLL
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(pause)
            pause = min(1.2 * pause, MAX_POLL)
