"""A client that journals each command with its request_id and what came of it, and audits the books by it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
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

from services.cli.house import House
from services.points import store
from services.points.domain.ledger import transaction_hash
from tests.support import fresh, order

SETTLE_TIMEOUT = 90.0  # seconds for a command to be acknowledged or refused, whatever happens meanwhile
POLL = 0.05  # seconds
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
REFUSED = {grpc.StatusCode.FAILED_PRECONDITION}
# A killed server is looked for again at once, not after gRPC's own backoff of up to two minutes.
CHANNEL = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]
UNDOABLE = {"EarnPoints", "RedeemPoints", "CaptureHold", "AdjustPoints"}
BALANCES = ("available", "pending", "held", "owed", "growth")


class Outcome(Enum):
    """What the client knows of a command."""

    UNKNOWN = "unknown"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


@dataclass
class Entry:
    """One command."""

    method: str
    request: Any
    outcome: Outcome = Outcome.UNKNOWN
    answer: Message | None = None
    attempts: int = 0


@dataclass
class Book:
    """What the client knows of a member that later commands may name: nobody else touches it."""

    orders: dict[str, int] = field(default_factory=dict)
    """What each order was paid with."""
    open_holds: dict[str, int] = field(default_factory=dict)
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
        self._random = random.Random(seed)
        self._timeout = timeout
        self._cancelling = cancelling

    async def run(self, commands: int, *addresses: str, struck: asyncio.Event | None = None) -> None:
        """Sends that many commands, and goes on until the event; returns when each got its answer."""
        client = Client(addresses or [self.house.describe()["points"]["grpc"]])
        each = -(-commands // len(self.members))
        struck = struck or _already()
        try:
            async with asyncio.TaskGroup() as group:
                for turn, member in enumerate(self.members):
                    group.create_task(self._member(client, member, each, turn, struck))
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

    async def _member(
        self, client: Client, member: str, commands: int, turn: int, struck: asyncio.Event
    ) -> None:
        sent = 0
        while sent < commands or not struck.is_set():
            sent += 1
            entry = self._command(member)
            self.entries.append(entry)
            if self._cancelling:
                await self._cancelled(client, entry, turn)
            async with asyncio.timeout(SETTLE_TIMEOUT):
                while entry.outcome is Outcome.UNKNOWN:
                    await self._attempt(client, entry, turn)
            if entry.outcome is Outcome.ACKNOWLEDGED:
                self._note(self.books[member], entry)

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
        await asyncio.wait([asyncio.ensure_future(call.wait_for_connection())], timeout=self._timeout)
        await asyncio.wait([asyncio.ensure_future(call.code())], timeout=self._random.uniform(0, 0.03))
        call.cancel()

    async def _attempt(self, client: Client, entry: Entry, turn: int) -> None:
        call = client.method(entry.method, turn + entry.attempts)
        entry.attempts += 1
        try:
            entry.answer = await call(entry.request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSED:
                entry.outcome = Outcome.REFUSED
            elif error.code() in RETRIED:
                await asyncio.sleep(POLL)
            else:
                raise
        else:
            entry.outcome = Outcome.ACKNOWLEDGED

    # --- the audit ------------------------------------------------------------------------------------

    async def verify(self) -> list[Any]:
        """Holds the ledger against the journal. Returns the ledger's rows, in order per member."""
        connection = await owner(self.house)
        try:
            reported = {
                e.request.order.order_id
                for e in self._of(Outcome.ACKNOWLEDGED)
                if e.method == "ReportOrderPaid"
            }
            await self._await_reported(connection, reported)
            ledger = await connection.fetch(
                "SELECT * FROM transactions WHERE member_id = ANY($1) ORDER BY member_id, seq", self.members
            )
            members = await connection.fetch("SELECT * FROM members WHERE member_id = ANY($1)", self.members)
            holds = await connection.fetch("SELECT * FROM holds WHERE member_id = ANY($1)", self.members)
            events = await announced(connection, self.members)
        finally:
            await connection.close()
        self._check_effects(ledger, reported)
        self._check_holds(members, holds)
        by_member = {m: [row for row in ledger if row["member_id"] == m] for m in self.members}
        for member in members:
            check_member(member, by_member[member["member_id"]], events[member["member_id"]])
        assert {row["member_id"] for row in ledger} <= {row["member_id"] for row in members}
        return list(ledger)

    def _of(self, outcome: Outcome) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome is outcome]

    async def _await_reported(self, connection: Any, reported: set[str]) -> None:
        async def earned() -> bool:
            query = "SELECT order_id FROM transactions WHERE member_id = ANY($1)"
            return reported <= {r["order_id"] for r in await connection.fetch(query, self.members)}

        await until(earned)

    def _check_effects(self, ledger: Sequence[Any], reported: set[str]) -> None:
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
        rests = Counter(row["reference_id"] for row in own if row["kind"] == "RELEASE")
        closed = [each for book in self.books.values() for each in book.closed_holds.items()]
        assert rests == Counter(hold_id for hold_id, (_, amount, captured) in closed if 0 < captured < amount)
        assert len(own) == by_event.total() + rests.total()
        rows = {(row["member_id"], row["request_id"]): row for row in ledger}
        for entry in posted:
            assert isinstance(entry.answer, pb.Transaction)
            row = rows[entry.request.member_id, entry.request.request_id]
            assert (row["transaction_id"], row["seq"], row["hash"]) == (
                entry.answer.transaction_id,
                entry.answer.seq,
                entry.answer.hash,
            )

    def _check_holds(self, members: Sequence[Any], holds: Sequence[Any]) -> None:
        """Holds are in the state in which the client left them."""
        found = {row["hold_id"]: (row["state"], row["amount"], row["captured"]) for row in holds}
        expected: dict[str, tuple[str, int, int]] = {}
        for book in self.books.values():
            expected |= {hold_id: ("PLACED", amount, 0) for hold_id, amount in book.open_holds.items()}
            expected |= book.closed_holds
        assert found == expected
        for member in members:
            assert member["held"] == sum(self.books[member["member_id"]].open_holds.values())


async def announced(connection: Any, members: Sequence[str]) -> Counter[str]:
    """How many events there are about each member."""
    query = (
        "SELECT entity_key, count(*) FROM outbox WHERE stream = 'POINTS' AND entity_key = ANY($1) GROUP BY 1"
    )
    return Counter(dict(await connection.fetch(query, members)))


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


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition. Raises TimeoutError."""
    async with asyncio.timeout(SETTLE_TIMEOUT):
        while not await condition():  # noqa: ASYNC110 - what is awaited lies in other processes
            await asyncio.sleep(POLL)
