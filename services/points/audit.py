"""The books' proof: everything is added up again, over the whole store, while the service takes writes.

One snapshot, one pass per table: each is read in the order of the members, and a member's rows of all
tables are checked together, so memory does not grow with the ledger.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import nats
import sqlalchemy as sa
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted
from nats.errors import TimeoutError as NatsTimeoutError

from services.chassis.clock import from_micros, wall
from services.chassis.database import Connection, Database, Row, Statement
from services.chassis.errors import ServiceError
from services.chassis.ids import BUCKETS
from services.points import events, store
from services.points import tables as t
from services.points.domain.ledger import (
    Account,
    Balances,
    HoldState,
    Member,
    Transaction,
    TransactionKind,
    Transfer,
    Unit,
    new_member,
    transaction_hash,
)
from services.points.domain.refunds import Refund, Refunded
from services.points.domain.reversal import Past
from services.points.rules import Programme, compile_programme
from services.points.steps import SENT
from services.points.store import OUTBOX_KEPT

SHOWN = 5  # offending rows that a check names
PREFETCH = 2_000  # rows a round trip
READ_TIMEOUT = 600.0  # seconds that PostgreSQL may sort before the first rows come
STEP = 1_000  # members between two reports of progress
MARGIN = timedelta(days=1)  # by which an event may outlive the kept range before its absence counts
_AFTER_ALL = (BUCKETS, "")
QUIET = 2.0  # seconds without a message after which a stream counts as read

CHECKS = {
    "chain": "sequence and hash chain whole, times in order",
    "transfers": "transfers add up to every balance after",
    "balances": "stored balances are those after the last transaction",
    "lots": "lots add up to available, held, pending and expired, uses to what left them",
    "holds": "open holds add up to held, and pin what their lots say",
    "reversals": "nothing is taken back or given back beyond what there was",
    "refunds": "refunds never pass their order, and each has its transaction or waits",
    "growth": "growth per day adds up to growth",
    "caps": "daily limits kept, and counted as given",
    "outbox": "every transaction of the kept range has its event",
}
_TOTALS = {
    Account.ISSUER_EARNED: "earned",
    Account.ISSUER_REDEEMED: "redeemed",
    Account.ISSUER_EXPIRED: "expired",
}
STREAM_CHECK = "events on the stream carry the ledger's hashes"


@dataclass
class Report:
    """What an audit found: per check what it means, how many rows it saw, and the first offenders."""

    lines: list[tuple[str, int, list[str]]] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether the books close."""
        return not any(offenders for _, _, offenders in self.lines)


@dataclass
class _Ledger:
    """One member's rows."""

    member: Row
    transactions: list[Row]
    lots: list[Row]
    uses: list[Row]
    holds: list[Row]
    refunds: list[Row]
    growth: list[Row]
    caps: list[Row]
    outbox: list[Row]


async def audit(
    url: str, progress: Callable[[str, int], None] | None = None, *, stream_url: str | None = None
) -> Report:
    """Audits a points database, and with `stream_url` the stream against it.

    `progress` hears the number of members done. Raises DatabaseUnavailable.
    """
    hashes = await _stream_hashes(stream_url) if stream_url else None
    database = await Database.open(url, size=2, name="audit", command_timeout=READ_TIMEOUT)
    try:
        async with database.snapshot() as connection:
            audit = _Audit(await _programmes(connection), hashes)
            done = 0
            async for ledger in _ledgers(connection, audit.stray):
                audit.check(ledger)
                done += 1
                if progress and done % STEP == 0:
                    progress("members", done)
    finally:
        await database.close()
    return audit.report()


async def _programmes(connection: Connection) -> dict[int, Programme]:
    rows = await connection.fetch(f"SELECT version, body FROM {t.programmes.name}")  # noqa: S608 - our table
    return {row["version"]: compile_programme(pb.Programme.FromString(row["body"])) for row in rows}


async def _ledgers(connection: Connection, stray: Callable[[str, str], None]) -> AsyncIterator[_Ledger]:
    """Members with all their rows, in the order of bucket and member; `stray` hears of rows of nobody."""
    columns = {
        "outbox": [t.outbox.c.erased, t.outbox.c.subject, t.outbox.c.body],
        "transactions": [c for c in t.transactions.c if c.name not in ("bucket", "member_id", "source")],
    }
    others = {
        "transactions": (t.transactions, [t.transactions.c.seq]),
        "lots": (t.lots, []),
        "uses": (t.lot_uses, []),
        "holds": (t.holds, []),
        "refunds": (t.refunds, [t.refunds.c.seq]),  # as they were applied
        "growth": (t.growth_days, []),
        "caps": (t.cap_uses, []),
        "outbox": (t.outbox, [t.outbox.c.position]),
    }
    streams = {
        name: _ByMember(connection, _ordered(table, order, columns.get(name)), partial(stray, table.name))
        for name, (table, order) in others.items()
    }
    async for member in connection.cursor(_ordered(t.members, []), prefetch=PREFETCH):
        key = (member["bucket"], member["member_id"])
        yield _Ledger(member, **{name: await rows.of(key) for name, rows in streams.items()})
    for rows in streams.values():
        await rows.of(_AFTER_ALL)


def _ordered(table: sa.Table, order: list[Any], columns: list[Any] | None = None) -> str:
    key = table.c["entity_key" if table is t.outbox else "member_id"].label("member_id")
    chosen = columns or [c for c in table.c if c.name not in ("bucket", "member_id")]
    query = sa.select(table.c.bucket, key, *chosen)
    if table is t.outbox:
        query = query.where(t.outbox.c.stream == sa.literal_column(f"'{events.STREAM}'"))
    return Statement(query.order_by(table.c.bucket, sa.collate(key, "C"), *order)).text


class _ByMember:
    """Hands out the rows of one member after the other from a table read in order.

    `stray` hears of members who have rows here, and are not asked for.
    """

    def __init__(self, connection: Connection, query: str, stray: Callable[[str], None]) -> None:
        self._stray = stray
        self._rows = aiter(connection.cursor(query, prefetch=PREFETCH))
        self._next: Row | None = None
        self._started = False

    async def of(self, key: tuple[int, str]) -> list[Row]:
        """The rows of a member; members must be asked for in order."""
        if not self._started:
            self._started = True
            await self._advance()
        found: list[Row] = []
        while self._next is not None and (self._next["bucket"], self._next["member_id"]) <= key:
            if (self._next["bucket"], self._next["member_id"]) == key:
                found.append(self._next)
            else:
                self._stray(self._next["member_id"])
            await self._advance()
        return found

    async def _advance(self) -> None:
        self._next = await anext(self._rows, None)


class _Audit:
    def __init__(
        self, programmes: Mapping[int, Programme], hashes: dict[tuple[str, int], set[bytes]] | None
    ) -> None:
        self._programmes = programmes
        self._hashes = hashes
        self._kept_since = wall() - OUTBOX_KEPT + MARGIN
        self._seen = dict.fromkeys(CHECKS, 0)
        self._offenders: dict[str, list[str]] = {name: [] for name in CHECKS}
        self._stream_offenders: list[str] = []
        self._totals = dict.fromkeys(
            ("members", "transactions", "earned", "redeemed", "expired", "liability"), 0
        )

    def report(self) -> Report:
        lines = [(CHECKS[name], self._seen[name], self._offenders[name]) for name in CHECKS]
        if self._hashes is not None:
            lines.append((STREAM_CHECK, len(self._hashes), self._stream_offenders))
        return Report(lines, self._totals)

    def check(self, ledger: _Ledger) -> None:
        """Checks everything about one member."""
        try:
            self._check(ledger)
        except (KeyError, TypeError, ValueError) as error:  # forged rows need not even have their form
            self._expect(
                "chain", False, ledger.member["member_id"], f"has a row that cannot be read: {error}"
            )

    def _check(self, ledger: _Ledger) -> None:
        transactions = [store.to_transaction(row) for row in ledger.transactions]
        self._chain(ledger, transactions)
        self._transfers(ledger, transactions)
        self._lots(ledger, transactions)
        self._holds(ledger)
        self._reversals(transactions)
        self._refunds(ledger, transactions)
        self._growth(ledger)
        self._caps(ledger, transactions)
        self._outbox(ledger, transactions)
        if self._hashes is not None:
            self._stream(transactions)
        self._totals["members"] += 1
        self._totals["transactions"] += len(transactions)
        self._totals["liability"] += sum(ledger.member[name] for name in ("available", "pending", "held"))

    def stray(self, table: str, member_id: str) -> None:
        """Notes a row whose member is not there."""
        self._expect("balances", False, member_id, f"is in {table}, and not among the members")

    def _expect(self, check: str, holds: bool, who: str, what: str) -> None:
        if not holds and len(self._offenders[check]) < SHOWN:
            self._offenders[check].append(f"{who}: {what}")

    def _chain(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._seen["chain"] += len(transactions)
        member = ledger.member
        previous = b""
        time = None
        for number, tx in enumerate(transactions, 1):
            who = f"{tx.member_id} transaction {tx.seq}"
            self._expect("chain", tx.seq == number, who, f"is number {number} in the ledger")
            whole = tx.hash == transaction_hash(previous, tx)
            self._expect("chain", whole, who, "does not hash to what it says after its predecessor")
            self._expect(
                "chain", time is None or tx.create_time >= time, who, "was posted before its predecessor"
            )
            previous, time = tx.hash, tx.create_time
        ends = member["head_hash"] == previous and member["seq"] == len(transactions)
        self._expect("chain", ends, member["member_id"], f"the chain does not end at {member['seq']}")

    def _transfers(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        running = new_member(ledger.member["member_id"])
        for tx in transactions:
            self._seen["transfers"] += len(tx.transfers)
            for m in tx.transfers:
                self._move(running, m)
            who = f"{tx.member_id} transaction {tx.seq}"
            self._expect(
                "transfers", running.snapshot() == tx.balance, who, "its balances after do not add up"
            )
        self._seen["balances"] += 1
        stored = Balances(*(ledger.member[name] for name in store.BALANCES))
        same = stored == running.snapshot()
        self._expect("balances", same, ledger.member["member_id"], f"{stored} is not {running.snapshot()}")

    def _move(self, running: Member, m: Transfer) -> None:
        for account, signed in ((m.debit, -m.amount), (m.credit, m.amount)):
            if account is Account.OWED:  # rises when debited
                running.balances[account] -= signed
            elif account in running.balances:
                running.balances[account] += signed
            elif m.unit is Unit.POINTS and account in _TOTALS:
                self._totals[_TOTALS[account]] += -signed if account is Account.ISSUER_EARNED else signed
                if account is Account.ISSUER_EARNED:
                    running.lifetime_earned -= signed

    def _lots(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._seen["lots"] += len(ledger.lots)
        member = ledger.member
        pending = sum(lot["remaining"] for lot in ledger.lots if lot["pending"])
        usable = sum(lot["remaining"] for lot in ledger.lots if not lot["pending"])
        who = member["member_id"]
        self._expect(
            "lots",
            (usable, pending) == (member["available"] + member["held"], member["pending"]),
            who,
            f"lots hold {usable} and {pending} pending",
        )
        used: dict[tuple[int, int], int] = {}
        for use in ledger.uses:
            lot = (use["lot_seq"], use["lot_part"])
            used[lot] = used.get(lot, 0) + use["amount"]
        for lot in ledger.lots:
            key = (lot["seq"], lot["part"])
            left = lot["amount"] - used.pop(key, 0)
            self._expect(
                "lots", left == lot["remaining"], who, f"lot {key} has {lot['remaining']}, not {left}"
            )
        self._expect("lots", not used, who, f"lots {sorted(used)} were used and are not there")
        expired = sum(lot["expired"] for lot in ledger.lots)
        gone = sum(
            m.amount if m.credit is Account.ISSUER_EXPIRED else -m.amount
            for tx in transactions
            for m in tx.transfers
            if Account.ISSUER_EXPIRED in (m.debit, m.credit)
            and m.debit is not Account.ISSUER_IN_TRANSIT  # what ended on the way never was in a lot
        )
        self._expect("lots", expired == gone, who, f"lots say {expired} expired, transfers say {gone}")

    def _holds(self, ledger: _Ledger) -> None:
        self._seen["holds"] += len(ledger.holds)
        who = ledger.member["member_id"]
        pinned: dict[tuple[int, int], int] = {}
        held = 0
        for row in ledger.holds:
            pins = {(seq, part): amount for seq, part, amount in json.loads(row["pins"])}
            whole = sum(pins.values()) == row["amount"]
            self._expect("holds", whole, who, f"{row['hold_id']} pins {sum(pins.values())}")
            if row["state"] == HoldState.PLACED:
                held += row["amount"]
                for name, amount in pins.items():
                    pinned[name] = pinned.get(name, 0) + amount
        self._expect("holds", held == ledger.member["held"], who, f"its open holds add up to {held}")
        by_lot = {(lot["seq"], lot["part"]): lot["held"] for lot in ledger.lots if lot["held"]}
        self._expect("holds", by_lot == pinned, who, f"lots say {by_lot}, holds say {pinned}")

    def _reversals(self, transactions: list[Transaction]) -> None:
        pasts = {tx.transaction_id: Past(tx) for tx in transactions}
        for tx in transactions:
            if tx.reverses_transaction_id:
                self._seen["reversals"] += 1
                who = f"{tx.member_id} transaction {tx.seq}"
                undone = pasts.get(tx.reverses_transaction_id)
                self._expect("reversals", undone is not None, who, "undoes what is not there")
                if undone is not None:
                    undone.reversals.append(pasts[tx.transaction_id])
        for past in pasts.values():
            who = f"{past.transaction.member_id} transaction {past.transaction.seq}"
            try:
                amounts = [(past.credited(u), past.taken_back(u), u) for u in Unit if past.reversals]
            except ServiceError as refusal:
                self._expect("reversals", False, who, refusal.message)
                continue
            for there, back, unit in amounts:
                bounded = min(there, 0) <= back <= max(there, 0)
                self._expect("reversals", bounded, who, f"{back} of {there} {unit} were undone")

    def _refunds(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._seen["refunds"] += len(ledger.refunds)
        who = ledger.member["member_id"]
        posted = {tx.seq: tx for tx in transactions if tx.kind is TransactionKind.REFUND}
        waiting = 0
        for row in ledger.refunds:
            name = f"refund {row['refund_id']} of order {row['order_id']}"
            if row["seq"] is None:
                waiting += 1
                continue
            tx = posted.pop(row["seq"], None)
            same = tx is not None and (tx.order_id, tx.reference_id) == (row["order_id"], row["refund_id"])
            self._expect("refunds", same, who, f"{name} has no transaction {row['seq']}")
        self._expect("refunds", not posted, who, f"transactions {sorted(posted)} refund what is not there")
        self._expect("refunds", waiting == ledger.member["waiting"], who, f"{waiting} refunds wait")
        self._refunded(ledger, who)

    def _refunded(self, ledger: _Ledger, who: str) -> None:
        paid = {row["order_id"]: json.loads(row["sold"])[-1] for row in ledger.transactions if row["sold"]}
        refunded: dict[str, Refunded] = {}
        for row in ledger.refunds:
            if row["seq"] is None:
                continue
            refund = Refund(row["amount"], json.loads(row["lines"]), row["everything"])
            total = paid.get(row["order_id"], 0)
            try:
                state = refunded.get(row["order_id"], Refunded())
                refunded[row["order_id"]] = state.plus(refund, dict.fromkeys(refund.lines, total), total)
            except ServiceError:
                self._expect("refunds", False, who, f"order {row['order_id']} was refunded beyond {total}")

    def _growth(self, ledger: _Ledger) -> None:
        self._seen["growth"] += len(ledger.growth)
        total = sum(row["amount"] for row in ledger.growth)
        who = ledger.member["member_id"]
        self._expect("growth", total == ledger.member["growth"], who, f"its days add up to {total}")

    def _caps(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._seen["caps"] += len(ledger.caps)
        given: dict[tuple[str, Any], int] = {}
        most: dict[str, int] = {}
        for tx in transactions:
            programme = self._programmes.get(tx.programme_version)
            if programme is None:
                continue
            if tx.kind is TransactionKind.SEND:
                key = (SENT, programme.terms.local_day(tx.occur_time))
                given[key] = given.get(key, 0) + tx.transfers[0].amount
                most[SENT] = max(most.get(SENT, 0), programme.terms.transfers_per_day)
            if tx.kind is not TransactionKind.EARN:
                continue
            caps = {rule.rule_id: rule.cap_per_day for rule in programme.book.rules if rule.cap_per_day}
            for contribution in tx.contributions:
                rule = contribution.rule_id
                if rule in caps and contribution.amount:
                    key = (rule, programme.terms.local_day(tx.occur_time))
                    given[key] = given.get(key, 0) + contribution.amount
                    most[rule] = max(most.get(rule, 0), caps[rule])
        who = ledger.member["member_id"]
        counted = {(row["rule_id"], row["day"]): row["used"] for row in ledger.caps}
        self._expect("caps", counted == given, who, "what was counted is not what was given")
        for (rule, day), amount in given.items():
            self._expect("caps", amount <= most[rule], who, f"{rule} gave {amount} on {day}")

    def _outbox(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._seen["outbox"] += len(ledger.outbox)
        if any(row["erased"] for row in ledger.outbox):
            return  # whose events were erased cannot be told apart any more
        announced = {
            PointsPosted.FromString(row["body"]).transaction.seq
            for row in ledger.outbox
            if row["subject"] == events.POINTS_POSTED
        }
        for tx in transactions:
            if tx.seq not in announced:
                made = from_micros((uuid.UUID(tx.transaction_id.removeprefix("txn_")).int >> 80) * 1000)
                who = f"{tx.member_id} transaction {tx.seq}"
                self._expect("outbox", made < self._kept_since, who, "has no event")

    def _stream(self, transactions: list[Transaction]) -> None:
        assert self._hashes is not None  # noqa: S101 - narrows the type
        for tx in transactions:
            carried = self._hashes.get((tx.member_id, tx.seq), set())
            if carried - {tx.hash} and len(self._stream_offenders) < SHOWN:
                self._stream_offenders.append(
                    f"{tx.member_id} transaction {tx.seq}: the event carries another hash"
                )


async def _stream_hashes(url: str) -> dict[tuple[str, int], set[bytes]]:
    """What the stream says of each transaction, by member and number."""
    hashes: dict[tuple[str, int], set[bytes]] = {}
    client = await nats.connect(url)
    try:
        subscription = await client.jetstream().subscribe(
            events.POINTS_POSTED, stream=events.STREAM, ordered_consumer=True
        )
        while True:
            try:
                message = await subscription.next_msg(timeout=QUIET)
            except NatsTimeoutError:
                await subscription.unsubscribe()  # else its watch over gaps outlives the connection
                return hashes
            if message.data:
                posted = PointsPosted.FromString(message.data).transaction
                hashes.setdefault((posted.member_id, posted.seq), set()).add(posted.hash)
    finally:
        await client.close()
