"""Tables, and the constraints that guard the rules even against our own code.

Every key of a member table begins with `bucket` (crc32 of the member, modulo 1,024) and `member_id`: the
unit of placement when the ledger outgrows one machine.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from services.chassis import columns, tables

metadata = columns.schema()

INSTANT = columns.INSTANT


def _amount(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


# The one row that a write locks: balances as the last transaction left them.
members = sa.Table(
    "members",
    metadata,
    *columns.member_key(),
    *(_amount(name) for name in ("available", "pending", "held", "owed", "growth", "lifetime_earned")),
    _amount("seq"),
    sa.Column("head_hash", sa.LargeBinary, nullable=False, server_default=""),
    _amount("version"),
    sa.Column("tier", sa.Text, nullable=False, server_default=""),
    sa.Column("tier_until", INSTANT),
    # What other services told: {about what: [name, value, from, until, latest, first, unless]}, of the events
    # that told its latest state and its beginning the epoch and version, and what suspends it.
    sa.Column("facts", JSONB, nullable=False, server_default="{}"),
    _amount("waiting"),  # refunds that came before their orders
    sa.Column("last_time", INSTANT, nullable=False, server_default="1970-01-01T00:00:00Z"),
    sa.Column("next_due_time", INSTANT),
    *(
        sa.CheckConstraint(f"{name} >= 0", name=f"members_{name}_not_negative")
        for name in ("available", "pending", "held", "owed", "growth", "lifetime_earned")
    ),
    sa.CheckConstraint("owed = 0 OR available = 0", name="members_owed_or_available"),
    postgresql_with={"fillfactor": "70"},
)
sa.Index("members_due", members.c.next_due_time, postgresql_where=members.c.next_due_time.is_not(None))

# Facts: never updated, never deleted. Only `source` may be blanked, when its member is erased.
transactions = sa.Table(
    "transactions",
    metadata,
    *columns.member_key(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("transaction_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("payload_hash", sa.LargeBinary, nullable=False),
    sa.Column("order_id", sa.Text),
    sa.Column("activity_id", sa.Text),
    sa.Column("reference_id", sa.Text),
    sa.Column("reverses_transaction_id", sa.Text),
    sa.Column("occur_time", INSTANT, nullable=False),
    sa.Column("create_time", INSTANT, nullable=False),
    sa.Column("programme_version", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("transfers", JSONB, nullable=False),  # [[unit, debit, credit, amount], …]
    sa.Column("contributions", JSONB, nullable=False),  # [[rule_id, unit, amount, error], …]
    *(_amount(name) for name in ("available", "pending", "held", "owed", "growth", "lifetime_earned")),
    sa.Column("hash_version", sa.SmallInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("source_hash", sa.LargeBinary),  # SHA-256 of `source`, which outlives it
    sa.Column("source", sa.LargeBinary),  # the order or activity earned on, as it came
    # What the rules saw, for a later refund: [tier, facts, what daily caps had given, the order's total].
    sa.Column("sold", JSONB),
    sa.UniqueConstraint("bucket", "member_id", "request_id", name="transactions_request_once"),
    sa.CheckConstraint("seq > 0", name="transactions_seq_positive"),
)
sa.Index(
    "transactions_order_earned_once",
    transactions.c.bucket,
    transactions.c.member_id,
    transactions.c.order_id,
    unique=True,
    postgresql_where=sa.and_(transactions.c.kind == "EARN", transactions.c.order_id.is_not(None)),
)
sa.Index(
    "transactions_activity_earned_once",
    transactions.c.bucket,
    transactions.c.member_id,
    transactions.c.activity_id,
    unique=True,
    postgresql_where=transactions.c.activity_id.is_not(None),
)

sa.Index(
    "transactions_reversals",
    transactions.c.bucket,
    transactions.c.member_id,
    transactions.c.reverses_transaction_id,
    postgresql_where=transactions.c.reverses_transaction_id.is_not(None),
)

# What is left of each credit, named by the crediting transaction's seq and a part.
lots = sa.Table(
    "lots",
    metadata,
    *columns.member_key(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("part", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("available_at", INSTANT, nullable=False),
    sa.Column("expires_at", INSTANT),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("remaining", sa.BigInteger, nullable=False),
    _amount("held"),  # of what remains: pinned by holds
    _amount("expired"),  # of what is gone: expired unspent
    sa.CheckConstraint("remaining >= 0 AND amount > 0", name="lots_remaining"),
    sa.CheckConstraint("held >= 0 AND held <= remaining", name="lots_held"),
    sa.CheckConstraint("expired >= 0 AND remaining + expired <= amount", name="lots_expired"),
    postgresql_with={"fillfactor": "85"},
)

# Which transaction took how much from which lot, negative where it gave back: what makes an exact reversal
# possible.
lot_uses = sa.Table(
    "lot_uses",
    metadata,
    *columns.member_key(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("lot_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("lot_part", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.CheckConstraint("amount <> 0", name="lot_uses_of_something"),
)

# Points set aside, named by the placing transaction's seq.
holds = sa.Table(
    "holds",
    metadata,
    *columns.member_key(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hold_id", sa.Text, nullable=False),
    sa.Column("reference_id", sa.Text, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("expire_time", INSTANT, nullable=False),
    sa.Column("pins", JSONB, nullable=False),  # [[lot_seq, lot_part, amount], …]
    sa.Column("state", sa.Text, nullable=False),
    _amount("captured"),
    sa.CheckConstraint("amount > 0 AND captured >= 0 AND captured <= amount", name="holds_captured"),
    sa.CheckConstraint("state IN ('PLACED', 'CAPTURED', 'RELEASED', 'EXPIRED')", name="holds_state"),
    sa.CheckConstraint("(state = 'CAPTURED') = (captured > 0)", name="holds_captured_something"),
)
sa.Index("holds_open", holds.c.bucket, holds.c.member_id, postgresql_where=holds.c.state == "PLACED")

# What was refunded of which order. Without `seq` it came before its order, and is kept as it came.
refunds = sa.Table(
    "refunds",
    metadata,
    *columns.member_key(),
    sa.Column("order_id", sa.Text, primary_key=True),
    sa.Column("refund_id", sa.Text, primary_key=True),
    sa.Column("body_hash", sa.LargeBinary, nullable=False),
    _amount("amount"),
    sa.Column("lines", JSONB, nullable=False),  # {line_id: minor units}
    sa.Column("everything", sa.Boolean, nullable=False),
    sa.Column("refund_time", INSTANT, nullable=False),
    sa.Column("seq", sa.BigInteger),  # of the transaction
    sa.Column("consumer", sa.Text),
    sa.Column("source", sa.Text),
    sa.Column("event_id", sa.Text),
    sa.Column("stream", sa.Text),
    sa.Column("stream_seq", sa.BigInteger),
    sa.Column("body", sa.LargeBinary),
    sa.CheckConstraint("amount >= 0", name="refunds_amount"),
    sa.CheckConstraint("(seq IS NULL) = (body IS NOT NULL)", name="refunds_applied_or_waiting"),
)

cap_uses = sa.Table(
    "cap_uses",
    metadata,
    *columns.member_key(),
    sa.Column("rule_id", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.CheckConstraint("used >= 0", name="cap_uses_not_negative"),
)

growth_days = sa.Table(
    "growth_days",
    metadata,
    *columns.member_key(),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

# Free text, apart from the ledger so that it can be erased.
notes = sa.Table(
    "notes",
    metadata,
    *columns.member_key(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
)

programmes = sa.Table(
    "programmes",
    metadata,
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("effective_time", INSTANT, nullable=False),
    sa.Column("create_time", INSTANT, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

meta, requests, outbox, stream_erasures, inbox, dead_letters, jobs = tables.common(metadata)


def grants(role: str) -> list[str]:
    """What the service's role may do: everything on its tables, but no change of a ledger fact."""
    return tables.grants(role, {"transactions": ("source",)})
