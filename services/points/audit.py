"""The books' proof: everything is added up again, over the whole store, while the service takes writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted

from services.chassis.audit import Findings, Progress, Report, Rows, by_member, published, snapshot
from services.chassis.database import Connection, Row
from services.chassis.errors import ServiceError
from services.chassis.ids import made_at
from services.chassis.statements import word
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
from services.points.spending import SENT

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


async def audit(url: str, progress: Progress | None = None, *, stream_url: str | None = None) -> Report:
    """Audits a points database, and with `stream_url` the stream against it.

    `progress` hears the number of members done. Raises DatabaseUnavailable.
    """
    hashes = await _stream_hashes(stream_url) if stream_url else None
    async with snapshot(url) as connection:
        audit = _Audit(await _programmes(connection), hashes)
        members = by_member(connection, Rows(t.members), _ROWS, stray=audit.stray, progress=progress)
        async for member, rows in members:
            audit.check(_Ledger(member, **rows))
    return audit.report()


async def _programmes(connection: Connection) -> dict[int, Programme]:
    rows = await connection.fetch(f"SELECT version, body FROM {t.programmes.name}")  # noqa: S608 - our table
    return {row["version"]: compile_programme(pb.Programme.FromString(row["body"])) for row in rows}


# How a member's rows are read, by what `_Ledger` calls them.
_ROWS = {
    "transactions": Rows(
        t.transactions,
        [c for c in t.transactions.c if c.name not in ("bucket", "member_id", "source")],
        [t.transactions.c.seq],
    ),
    "lots": Rows(t.lots),
    "uses": Rows(t.lot_uses),
    "holds": Rows(t.holds),
    "refunds": Rows(t.refunds, order=[t.refunds.c.seq]),  # as they were applied
    "growth": Rows(t.growth_days),
    "caps": Rows(t.cap_uses),
    "outbox": Rows(
        t.outbox,
        [t.outbox.c.erased, t.outbox.c.subject, t.outbox.c.body],
        [t.outbox.c.position],
        t.outbox.c.stream == word(events.STREAM),
        member="entity_key",
    ),
}


class _Audit:
    def __init__(
        self, programmes: Mapping[int, Programme], hashes: dict[tuple[str, int], set[bytes]] | None
    ) -> None:
        self._programmes = programmes
        self._hashes = hashes
        self._found = Findings(CHECKS if hashes is None else CHECKS | {"stream": STREAM_CHECK})
        self._totals = dict.fromkeys(
            ("members", "transactions", "earned", "redeemed", "expired", "liability"), 0
        )

    def report(self) -> Report:
        if self._hashes is not None:
            self._found.seen["stream"] = len(self._hashes)
        return self._found.report(self._totals)

    def check(self, ledger: _Ledger) -> None:
        """Checks everything about one member."""
        try:
            self._check(ledger)
        except (KeyError, TypeError, ValueError) as error:  # forged rows need not even have their form
            self._found.expect(
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
        self._found.expect("balances", False, member_id, f"is in {table}, and not among the members")

    def _chain(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._found.seen["chain"] += len(transactions)
        member = ledger.member
        previous = b""
        time = None
        for number, tx in enumerate(transactions, 1):
            who = f"{tx.member_id} transaction {tx.seq}"
            self._found.expect("chain", tx.seq == number, who, f"is number {number} in the ledger")
            whole = tx.hash == transaction_hash(previous, tx)
            self._found.expect("chain", whole, who, "does not hash to what it says after its predecessor")
            self._found.expect(
                "chain", time is None or tx.create_time >= time, who, "was posted before its predecessor"
            )
            previous, time = tx.hash, tx.create_time
        ends = member["head_hash"] == previous and member["seq"] == len(transactions)
        self._found.expect("chain", ends, member["member_id"], f"the chain does not end at {member['seq']}")

    def _transfers(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        running = new_member(ledger.member["member_id"])
        for tx in transactions:
            self._found.seen["transfers"] += len(tx.transfers)
            for m in tx.transfers:
                self._move(running, m)
            who = f"{tx.member_id} transaction {tx.seq}"
            self._found.expect(
                "transfers", running.snapshot() == tx.balance, who, "its balances after do not add up"
            )
        self._found.seen["balances"] += 1
        stored = Balances(*(ledger.member[name] for name in store.BALANCES))
        same = stored == running.snapshot()
        self._found.expect(
            "balances", same, ledger.member["member_id"], f"{stored} is not {running.snapshot()}"
        )

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
        self._found.seen["lots"] += len(ledger.lots)
        member = ledger.member
        pending = sum(lot["remaining"] for lot in ledger.lots if lot["pending"])
        usable = sum(lot["remaining"] for lot in ledger.lots if not lot["pending"])
        who = member["member_id"]
        self._found.expect(
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
            self._found.expect(
                "lots", left == lot["remaining"], who, f"lot {key} has {lot['remaining']}, not {left}"
            )
        self._found.expect("lots", not used, who, f"lots {sorted(used)} were used and are not there")
        expired = sum(lot["expired"] for lot in ledger.lots)
        gone = sum(
            m.amount if m.credit is Account.ISSUER_EXPIRED else -m.amount
            for tx in transactions
            for m in tx.transfers
            if Account.ISSUER_EXPIRED in (m.debit, m.credit)
            and m.debit is not Account.ISSUER_IN_TRANSIT  # what ended on the way never was in a lot
        )
        self._found.expect("lots", expired == gone, who, f"lots say {expired} expired, transfers say {gone}")

    def _holds(self, ledger: _Ledger) -> None:
        self._found.seen["holds"] += len(ledger.holds)
        who = ledger.member["member_id"]
        pinned: dict[tuple[int, int], int] = {}
        held = 0
        for row in ledger.holds:
            pins = {(seq, part): amount for seq, part, amount in json.loads(row["pins"])}
            whole = sum(pins.values()) == row["amount"]
            self._found.expect("holds", whole, who, f"{row['hold_id']} pins {sum(pins.values())}")
            if row["state"] == HoldState.PLACED:
                held += row["amount"]
                for name, amount in pins.items():
                    pinned[name] = pinned.get(name, 0) + amount
        self._found.expect("holds", held == ledger.member["held"], who, f"its open holds add up to {held}")
        by_lot = {(lot["seq"], lot["part"]): lot["held"] for lot in ledger.lots if lot["held"]}
        self._found.expect("holds", by_lot == pinned, who, f"lots say {by_lot}, holds say {pinned}")

    def _reversals(self, transactions: list[Transaction]) -> None:
        pasts = {tx.transaction_id: Past(tx) for tx in transactions}
        for tx in transactions:
            if tx.reverses_transaction_id:
                self._found.seen["reversals"] += 1
                who = f"{tx.member_id} transaction {tx.seq}"
                undone = pasts.get(tx.reverses_transaction_id)
                self._found.expect("reversals", undone is not None, who, "undoes what is not there")
                if undone is not None:
                    undone.reversals.append(pasts[tx.transaction_id])
        for past in pasts.values():
            who = f"{past.transaction.member_id} transaction {past.transaction.seq}"
            try:
                amounts = [(past.credited(u), past.taken_back(u), u) for u in Unit if past.reversals]
            except ServiceError as refusal:
                self._found.expect("reversals", False, who, refusal.message)
                continue
            for there, back, unit in amounts:
                bounded = min(there, 0) <= back <= max(there, 0)
                self._found.expect("reversals", bounded, who, f"{back} of {there} {unit} were undone")

    def _refunds(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._found.seen["refunds"] += len(ledger.refunds)
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
            self._found.expect("refunds", same, who, f"{name} has no transaction {row['seq']}")
        self._found.expect(
            "refunds", not posted, who, f"transactions {sorted(posted)} refund what is not there"
        )
        self._found.expect("refunds", waiting == ledger.member["waiting"], who, f"{waiting} refunds wait")
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
                self._found.expect(
                    "refunds", False, who, f"order {row['order_id']} was refunded beyond {total}"
                )

    def _growth(self, ledger: _Ledger) -> None:
        self._found.seen["growth"] += len(ledger.growth)
        total = sum(row["amount"] for row in ledger.growth)
        who = ledger.member["member_id"]
        self._found.expect("growth", total == ledger.member["growth"], who, f"its days add up to {total}")

    def _caps(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._found.seen["caps"] += len(ledger.caps)
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
        self._found.expect("caps", counted == given, who, "what was counted is not what was given")
        for (rule, day), amount in given.items():
            self._found.expect("caps", amount <= most[rule], who, f"{rule} gave {amount} on {day}")

    def _outbox(self, ledger: _Ledger, transactions: list[Transaction]) -> None:
        self._found.seen["outbox"] += len(ledger.outbox)
        if any(row["erased"] for row in ledger.outbox):
            return  # whose events were erased cannot be told apart any more
        announced = {
            PointsPosted.FromString(row["body"]).transaction.seq
            for row in ledger.outbox
            if row["subject"] == events.POINTS_POSTED
        }
        for tx in transactions:
            if tx.seq not in announced:
                made = made_at(tx.transaction_id)
                who = f"{tx.member_id} transaction {tx.seq}"
                self._found.expect("outbox", made < self._found.kept_since, who, "has no event")

    def _stream(self, transactions: list[Transaction]) -> None:
        assert self._hashes is not None  # noqa: S101 - narrows the type
        for tx in transactions:
            carried = self._hashes.get((tx.member_id, tx.seq), set())
            who = f"{tx.member_id} transaction {tx.seq}"
            self._found.expect("stream", not carried - {tx.hash}, who, "the event carries another hash")


async def _stream_hashes(url: str) -> dict[tuple[str, int], set[bytes]]:
    """What the stream says of each transaction, by member and number."""
    hashes: dict[tuple[str, int], set[bytes]] = {}
    async for message in published(url, events.STREAM, events.POINTS_POSTED):
        posted = PointsPosted.FromString(message.data).transaction
        hashes.setdefault((posted.member_id, posted.seq), set()).add(posted.hash)
    return hashes
