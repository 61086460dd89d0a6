"""Rows to domain and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.chassis.database import Row
from services.chassis.ids import bucket
from services.points import tables as t
from services.points.domain.ledger import (
    Account,
    Balances,
    Contribution,
    Fact,
    Hold,
    HoldState,
    Lot,
    Member,
    Transaction,
    TransactionKind,
    Transfer,
    Unit,
)

BALANCES = ("available", "pending", "held", "owed", "growth", "lifetime_earned")
MEMBER_ACCOUNTS = (Account.AVAILABLE, Account.PENDING, Account.HELD, Account.OWED, Account.GROWTH)
LOT = ("seq", "part", "pending", "available_at", "expires_at", "amount", "remaining", "held", "expired")
HOLD = ("seq", "hold_id", "reference_id", "amount", "expire_time", "pins", "state", "captured")
OF_MEMBER = (
    t.transactions.c.bucket == sa.bindparam("b"),
    t.transactions.c.member_id == sa.bindparam("member"),
)


def to_lot(values: Sequence[Any]) -> Lot:
    """A lot from the columns LOT."""
    lot = Lot(*values)
    lot.stored = True
    return lot


def to_hold(row: Row | Mapping[str, Any]) -> Hold:
    """A hold from its row."""
    return Hold(
        row["seq"],
        row["hold_id"],
        row["reference_id"],
        row["amount"],
        row["expire_time"],
        {(seq, part): amount for seq, part, amount in json.loads(row["pins"])},
        HoldState(row["state"]),
        row["captured"],
        stored=True,
    )


def to_facts(text: str) -> dict[str, Fact]:
    """What other services told, as `facts_json` wrote it."""
    if text == "{}":
        return {}
    return {
        about: Fact(
            name,
            value,
            datetime.fromisoformat(since),
            datetime.fromisoformat(until) if until else None,
            latest[0],
            latest[1],
            (begun[0], begun[1]),
            unless,
        )
        for about, (name, value, since, until, latest, begun, unless) in json.loads(text).items()
    }


def facts_json(facts: Mapping[str, Fact]) -> str:
    """What other services told, as it is stored."""
    return json.dumps(
        {
            about: (
                *(fact.name, fact.value, fact.holds_from.isoformat()),
                fact.holds_until.isoformat() if fact.holds_until else None,
                *((fact.epoch, fact.version), fact.begun, fact.unless),
            )
            for about, fact in facts.items()
        }
    )


def to_member(row: Row) -> Member:
    """A member without lots."""
    return Member(
        row["member_id"],
        {account: row[account.value] for account in MEMBER_ACCOUNTS},
        row["lifetime_earned"],
        row["seq"],
        row["head_hash"],
        row["version"],
        row["tier"],
        row["tier_until"],
        row["last_time"],
        row["last_time"],
        row["next_due_time"],
        to_facts(row["facts"]),
        row["waiting"],
        unloaded_due_time=row["next_due_time"],
    )


def to_transaction(row: Row) -> Transaction:
    """A ledger row as the fact it is."""
    return Transaction(
        transaction_id=row["transaction_id"],
        member_id=row["member_id"],
        kind=TransactionKind(row["kind"]),
        request_id=row["request_id"],
        payload_hash=row["payload_hash"],
        order_id=row["order_id"] or "",
        activity_id=row["activity_id"] or "",
        reference_id=row["reference_id"] or "",
        reverses_transaction_id=row["reverses_transaction_id"] or "",
        occur_time=row["occur_time"],
        create_time=row["create_time"],
        programme_version=row["programme_version"],
        seq=row["seq"],
        transfers=tuple(
            Transfer(Unit(unit), Account(debit), Account(credit), amount)
            for unit, debit, credit, amount in json.loads(row["transfers"])
        ),
        contributions=tuple(
            Contribution(rule_id, Unit(unit), amount, error)
            for rule_id, unit, amount, error in json.loads(row["contributions"])
        ),
        balance=Balances(*(row[name] for name in BALANCES)),
        hash=row["hash"],
        actor=row["actor"],
    )


def member_row(m: Member) -> tuple[Any, ...]:
    """A member as its row is updated."""
    balances = (m.balances[account] for account in MEMBER_ACCOUNTS)
    return (
        bucket(m.member_id),
        m.member_id,
        *balances,
        m.lifetime_earned,
        m.seq,
        m.head_hash,
        m.version,
        m.tier,
        m.tier_until,
        m.waiting,
        max(m.last_time, m.told_until),
        m.next_due_time,
    )
