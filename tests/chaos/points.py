"""Members who earn and spend points, and a journal of it that audits the books of points."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
from loyalty.orders.v1 import orders_service_pb2 as orders_pb
from loyalty.orders.v1.orders_pb2 import Refund
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted

from services.chassis.ids import bucket
from services.cli.house import House
from services.points import store
from services.points.domain.ledger import transaction_hash
from tests.chaos.journal import (
    MAX_POLL,
    POLL,
    REFUSED,
    RETRIED,
    SETTLE_TIMEOUT,
    Client,
    Entry,
    Journal,
    Outcome,
    owner,
    rows_of,
    snapshot,
    until,
)
from tests.chaos.parts import Part
from tests.points.requests import GOOD
from tests.support import PROGRAMME, Points, apply_programme, fresh, order

EVERY = 0.4  # seconds from one batch to the next: more would only make the books too long to audit in a fault
UNDOABLE = {"EarnPoints", "RedeemPoints", "CaptureHold", "AdjustPoints"}
BALANCES = ("available", "pending", "held", "owed", "growth")
BONUS = 100  # points for each period of a card
# Where the events of orders are.
REPORTED = """
SELECT given, event_id, sent_at FROM unnest($1::text[]) given
LEFT JOIN outbox ON position(convert_to(given, 'UTF8') IN body) > 0 AND subject LIKE 'loyalty.orders.%'
"""
RULES: dict[str, Any] = PROGRAMME | {
    "earn_rules": [
        *PROGRAMME["earn_rules"],
        {
            "rule_id": "activation",
            "scope": "RULE_SCOPE_ACTIVITY",
            "unit": "UNIT_POINTS",
            "when": "activity.kind == 'card_activated'",
            "fixed": BONUS,
            "stack": "RULE_STACK_ADD",
        },
    ]
}


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


class PointsJournal(Journal):
    """Members who earn, spend, set aside, undo and give back."""

    def __init__(self, house: House, **how: Any) -> None:
        super().__init__(house, **how)
        self.books = {member: Book() for member in self.members}

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

    def _note(self, entry: Entry) -> None:
        request, answer = entry.request, entry.answer
        book = self.books[request.member_id]
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

    # --- the audit ------------------------------------------------------------------------------------

    async def verify(self, patience: float = SETTLE_TIMEOUT) -> list[Any]:
        """Orders that were reported must be earned in `patience` seconds. Returns the ledger's rows."""
        connection = await owner(self.house)
        try:
            reported = {
                e.request.order.order_id
                for e in self._of(Outcome.ACKNOWLEDGED)
                if e.method == "ReportOrderPaid"
            }
            await self._await_reported(connection, reported, patience)
            async with snapshot(connection):
                ledger, holds = [
                    await rows_of(connection, table, self.members, order="seq")
                    for table in ("transactions", "holds")
                ]
                members = await rows_of(connection, "members", self.members)
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

    async def _await_reported(self, connection: Any, reported: set[str], patience: float) -> None:
        missing = reported

        async def earned() -> bool:
            nonlocal missing
            rows = await rows_of(connection, "transactions", self.members, "order_id")
            missing = reported - {row["order_id"] for row in rows}
            return not missing

        try:
            await until(earned, patience)
        except TimeoutError:
            sent = await connection.fetch(REPORTED, sorted(missing))
            log = self.house.process("points").tail()
            raise AssertionError(f"not earned: {missing}; told: {list(map(tuple, sent))}; {log}") from None

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


class Batches(PointsJournal):
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


def entity(event: Any) -> tuple[str, ...]:
    """What an event counts in its version: the member's events."""
    return (event.member_id,)


def link(event: Any, _body: bytes) -> bytes | None:
    """The hash of a transaction that was announced."""
    return event.transaction.hash if isinstance(event, PointsPosted) else None


PART = Part(
    service="points",
    prepare=partial(apply_programme, programme=RULES),
    lanes=[
        *[partial(PointsJournal, members=4)] * 2,
        partial(PointsJournal, members=4, cancelling=True),
        *[partial(Batches, members=100)] * 2,
    ],
    caller=Points,
    good=GOOD,
    entity=entity,
    link=link,
)
