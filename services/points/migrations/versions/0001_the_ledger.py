"""The ledger, its lots, and the tables of the chassis."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes every table."""
    op.execute("CREATE SEQUENCE outbox_position CACHE 1")
    op.create_table(
        "cap_uses",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("rule_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("used >= 0", name="cap_uses_not_negative"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "rule_id", "day", name=op.f("cap_uses_key")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("dead_letter_id", sa.Text(), nullable=False),
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replay_time", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("dead_letter_id", name=op.f("dead_letters_key")),
        sa.UniqueConstraint("consumer", "source", "event_id", name="dead_letters_once"),
    )
    op.create_table(
        "growth_days",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "member_id", "day", name=op.f("growth_days_key")),
    )
    op.create_table(
        "holds",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hold_id", sa.Text(), nullable=False),
        sa.Column("reference_id", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("pins", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("captured", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("(state = 'CAPTURED') = (captured > 0)", name="holds_captured_something"),
        sa.CheckConstraint("amount > 0 AND captured >= 0 AND captured <= amount", name="holds_captured"),
        sa.CheckConstraint("state IN ('PLACED', 'CAPTURED', 'RELEASED', 'EXPIRED')", name="holds_state"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "seq", name=op.f("holds_key")),
    )
    op.create_index(
        "holds_open",
        "holds",
        ["bucket", "member_id"],
        unique=False,
        postgresql_where=sa.text("state = 'PLACED'"),
    )
    op.create_table(
        "inbox",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("receive_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "bucket", "member_id", "consumer", "source", "event_id", name=op.f("inbox_key")
        ),
    )
    op.create_table(
        "jobs",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_run_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("jobs_key")),
    )
    op.create_table(
        "lot_uses",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("lot_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("lot_part", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount <> 0", name="lot_uses_of_something"),
        sa.PrimaryKeyConstraint(
            "bucket", "member_id", "seq", "lot_seq", "lot_part", name=op.f("lot_uses_key")
        ),
    )
    op.create_table(
        "lots",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("part", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("available_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expired", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("expired >= 0 AND remaining + expired <= amount", name="lots_expired"),
        sa.CheckConstraint("held >= 0 AND held <= remaining", name="lots_held"),
        sa.CheckConstraint("remaining >= 0 AND amount > 0", name="lots_remaining"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "seq", "part", name=op.f("lots_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_table(
        "members",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("available", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("pending", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("growth", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lifetime_earned", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("head_hash", sa.LargeBinary(), server_default="", nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tier", sa.Text(), server_default="", nullable=False),
        sa.Column("tier_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("waiting", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "last_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default="1970-01-01T00:00:00Z",
            nullable=False,
        ),
        sa.Column("next_due_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("available >= 0", name="members_available_not_negative"),
        sa.CheckConstraint("growth >= 0", name="members_growth_not_negative"),
        sa.CheckConstraint("held >= 0", name="members_held_not_negative"),
        sa.CheckConstraint("lifetime_earned >= 0", name="members_lifetime_earned_not_negative"),
        sa.CheckConstraint("owed = 0 OR available = 0", name="members_owed_or_available"),
        sa.CheckConstraint("owed >= 0", name="members_owed_not_negative"),
        sa.CheckConstraint("pending >= 0", name="members_pending_not_negative"),
        sa.PrimaryKeyConstraint("bucket", "member_id", name=op.f("members_key")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "members_due",
        "members",
        ["next_due_time"],
        unique=False,
        postgresql_where=sa.text("next_due_time IS NOT NULL"),
    )
    op.create_table(
        "meta",
        sa.Column("only_row", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="1", nullable=False),
        sa.CheckConstraint("only_row", name="meta_one_row"),
        sa.PrimaryKeyConstraint("only_row", name=op.f("meta_key")),
    )
    op.create_table(
        "notes",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "member_id", "seq", name=op.f("notes_key")),
    )
    op.create_table(
        "outbox",
        sa.Column(
            "position", sa.BigInteger(), server_default=sa.text("nextval('outbox_position')"), nullable=False
        ),
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("entity_key", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("erased", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stream_seq", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("octet_length(body) <= 524288", name="outbox_body_size"),
        sa.PrimaryKeyConstraint("position", name=op.f("outbox_key")),
    )
    op.create_index("outbox_entity", "outbox", ["bucket", "entity_key"], unique=False)
    op.create_index(
        "outbox_unsent", "outbox", ["position"], unique=False, postgresql_where=sa.text("sent_at IS NULL")
    )
    op.create_table(
        "programmes",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("effective_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("programmes_key")),
    )
    op.create_table(
        "refunds",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("refund_id", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("amount", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lines", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("everything", sa.Boolean(), nullable=False),
        sa.Column("refund_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("consumer", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("stream", sa.Text(), nullable=True),
        sa.Column("stream_seq", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(seq IS NULL) = (body IS NOT NULL)", name="refunds_applied_or_waiting"),
        sa.CheckConstraint("amount >= 0", name="refunds_amount"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "order_id", "refund_id", name=op.f("refunds_key")),
    )
    op.create_table(
        "requests",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "scope", "request_id", name=op.f("requests_key")),
    )
    op.create_table(
        "stream_erasures",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "stream_seq", "event_id", name=op.f("stream_erasures_key")),
    )
    op.create_table(
        "transactions",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.LargeBinary(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=True),
        sa.Column("activity_id", sa.Text(), nullable=True),
        sa.Column("reference_id", sa.Text(), nullable=True),
        sa.Column("reverses_transaction_id", sa.Text(), nullable=True),
        sa.Column("occur_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("programme_version", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("transfers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("contributions", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("available", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("pending", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("growth", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lifetime_earned", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("hash_version", sa.SmallInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("source_hash", sa.LargeBinary(), nullable=True),
        sa.Column("source", sa.LargeBinary(), nullable=True),
        sa.Column("sold", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint("seq > 0", name="transactions_seq_positive"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "seq", name=op.f("transactions_key")),
        sa.UniqueConstraint("bucket", "member_id", "request_id", name="transactions_request_once"),
    )
    op.create_index(
        "transactions_reversals",
        "transactions",
        ["bucket", "member_id", "reverses_transaction_id"],
        unique=False,
        postgresql_where=sa.text("reverses_transaction_id IS NOT NULL"),
    )
    op.create_index(
        "transactions_activity_earned_once",
        "transactions",
        ["bucket", "member_id", "activity_id"],
        unique=True,
        postgresql_where=sa.text("activity_id IS NOT NULL"),
    )
    op.create_index(
        "transactions_order_earned_once",
        "transactions",
        ["bucket", "member_id", "order_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'EARN' AND order_id IS NOT NULL"),
    )
    op.execute("INSERT INTO meta DEFAULT VALUES")
