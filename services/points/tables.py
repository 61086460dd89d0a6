"""Tables, and the constraints that guard the rules even against our own code.

Every key of a member table begins with `bucket` (crc32 of the member, modulo 1,024) and `member_id`: the
unit of placement when the ledger outgrows one machine.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from services.chassis.consumer import dead_letters_table
from services.chassis.inbox import inbox_table
from services.chassis.jobs import jobs_table
from services.chassis.outbox import outbox_tables
from services.chassis.requests import requests_table

metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "pk": "%(table_name)s_key",
        "uq": "%(table_name)s_%(column_0_N_name)s_once",
    }
)

INSTANT = TIMESTAMP(timezone=True)


def _member_key() -> tuple[sa.Column[int], sa.Column[str]]:
    return (
        sa.Column("bucket", sa.SmallInteger, primary_key=True),
        sa.Column("member_id", sa.Text, primary_key=True),
    )


def _amount(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


# The one row that a write locks: balances as the last transaction left them.
members = sa.Table(
    "members",
    metadata,
    *_member_key(),
    *(_amount(name) for name in ("available", "pending", "held", "owed", "growth", "lifetime_earned")),
    _amount("seq"),
    sa.Column("head_hash", sa.LargeBinary, nullable=False, server_default=""),
    _amount("version"),
    sa.Column("tier", sa.Text, nullable=False, server_default=""),
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
    *_member_key(),
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
    sa.Column("facts", JSONB),  # what the rules saw of the member, for a later refund
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

# What is left of each earn, named by the earning transaction's seq and a part.
lots = sa.Table(
    "lots",
    metadata,
    *_member_key(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("part", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("available_at", INSTANT, nullable=False),
    sa.Column("expires_at", INSTANT),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("remaining", sa.BigInteger, nullable=False),
    sa.CheckConstraint("remaining >= 0 AND remaining <= amount AND amount > 0", name="lots_remaining"),
    postgresql_with={"fillfactor": "85"},
)

# Which transaction took how much from which lot: what makes an exact reversal possible.
lot_uses = sa.Table(
    "lot_uses",
    metadata,
    *_member_key(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("lot_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("lot_part", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.CheckConstraint("amount > 0", name="lot_uses_positive"),
)

cap_uses = sa.Table(
    "cap_uses",
    metadata,
    *_member_key(),
    sa.Column("rule_id", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.CheckConstraint("used >= 0", name="cap_uses_not_negative"),
)

growth_days = sa.Table(
    "growth_days",
    metadata,
    *_member_key(),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

# Free text, apart from the ledger so that it can be erased.
notes = sa.Table(
    "notes",
    metadata,
    *_member_key(),
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

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("only_row", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
    sa.CheckConstraint("only_row", name="meta_one_row"),
)

requests = requests_table(metadata)
outbox, stream_erasures = outbox_tables(metadata)
inbox = inbox_table(metadata)
dead_letters = dead_letters_table(metadata)
jobs = jobs_table(metadata)


def grants(role: str) -> list[str]:
    """What the service's role may do: everything on its tables, but no change of a ledger fact."""
    return [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
        f"REVOKE UPDATE, DELETE, TRUNCATE ON transactions FROM {role}",
        f"GRANT UPDATE (source) ON transactions TO {role}",
        f"REVOKE INSERT, UPDATE, DELETE ON meta, alembic_version FROM {role}",
    ]
