"""Cards with their periods, orders, payments and uses, the claims, and the tables of the chassis."""

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
    # Equality of plain columns in an exclusion constraint; any owner of a database may have it.
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    op.execute("CREATE SEQUENCE outbox_position CACHE 1")
    op.create_table(
        "answers",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "member_id", "request_id", name=op.f("answers_key")),
    )
    op.create_table(
        "baskets",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("pays", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("redemption_ids", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("refunds", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "member_id", "order_id", name=op.f("baskets_key")),
    )
    op.create_table(
        "cards",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("rest_start", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("rest_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("expiring_told", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("expired_told", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("contract_product", sa.Text(), nullable=False),
        sa.Column("sign_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("contract_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "sign_time IS NOT NULL OR (contract_id = '' AND contract_product = '' "
            "AND contract_until IS NULL)",
            name="cards_contract",
        ),
        sa.CheckConstraint(
            "(rest_start IS NULL) = (rest_until IS NULL) AND rest_start <= rest_until", name="cards_rest"
        ),
        sa.CheckConstraint("version >= 0", name="cards_version"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "card_id", name=op.f("cards_key")),
        sa.UniqueConstraint("bucket", "member_id", "family", name="cards_family_once"),
        postgresql_with={"fillfactor": "85"},
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
        "gifts",
        sa.Column("code_hash", sa.LargeBinary(), nullable=False),
        sa.Column("giver_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("product_code", sa.Text(), nullable=False),
        sa.Column("product_version", sa.BigInteger(), nullable=False),
        sa.Column("claim_until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("paid", sa.Boolean(), nullable=False),
        sa.Column("refunded", sa.Boolean(), nullable=False),
        sa.Column("claimed_by", sa.Text(), nullable=False),
        sa.Column("claim_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("(claim_time IS NULL) = (claimed_by = '')", name="gifts_claimed"),
        sa.CheckConstraint("claimed_by = '' OR paid", name="gifts_claimed_are_paid"),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("gifts_key")),
        sa.UniqueConstraint("order_id", name=op.f("gifts_order_id_once")),
    )
    op.create_index(
        "gifts_unclaimed",
        "gifts",
        ["claim_until"],
        unique=False,
        postgresql_where=sa.text("paid AND NOT refunded AND claimed_by = ''"),
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
        "members",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), server_default="", nullable=False),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("next_due_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
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
        "orders",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("product_code", sa.Text(), nullable=False),
        sa.Column("product_version", sa.BigInteger(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("pay_deadline", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("amount_points", sa.BigInteger(), nullable=False),
        sa.Column("credit", sa.BigInteger(), nullable=False),
        sa.Column("upgrade_now", sa.Boolean(), nullable=False),
        sa.Column("end_reason", sa.Text(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("renewal_id", sa.Text(), nullable=False),
        sa.Column("gift", sa.Boolean(), nullable=False),
        sa.Column("capped", sa.Boolean(), nullable=False),
        sa.Column("window_key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "CASE WHEN currency_code = '' THEN amount_minor = 0 ELSE amount_points = 0 END",
            name="orders_paid_in_one_unit",
        ),
        sa.CheckConstraint("status <> 'SETTLING' OR currency_code = ''", name="orders_settling_points"),
        sa.CheckConstraint(
            "status IN ('PENDING_PAYMENT', 'SETTLING', 'PAID', 'CANCELLED', 'EXPIRED')", name="orders_status"
        ),
        sa.CheckConstraint(
            "amount_minor >= 0 AND amount_points >= 0 AND credit >= 0 AND version >= 0",
            name="orders_not_negative",
        ),
        sa.PrimaryKeyConstraint("bucket", "member_id", "order_id", name=op.f("orders_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index("orders_by_id", "orders", ["order_id"], unique=False)
    op.create_index(
        "orders_open",
        "orders",
        ["bucket", "member_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('PENDING_PAYMENT', 'SETTLING')"),
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
        "payment_claims",
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("channel", "payment_id", name=op.f("payment_claims_key")),
    )
    op.create_table(
        "payments",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("paid_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("applied", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("due_minor", sa.BigInteger(), nullable=False),
        sa.Column("due_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("refund_id", sa.Text(), nullable=False),
        sa.Column("close_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("(close_time IS NULL) = (refund_id = '')", name="payments_closed"),
        sa.CheckConstraint(
            "reason IN ('WRONG_AMOUNT', 'WRONG_CURRENCY', 'ORDER_UNKNOWN', 'ORDER_EXPIRED', "
            "'ORDER_CANCELLED', 'ALREADY_PAID', 'SOLD_OUT', 'NO_NOTICE', 'CARD_REFUNDED')",
            name="payments_reason",
        ),
        sa.CheckConstraint("amount_minor > 0", name="payments_amount"),
        sa.CheckConstraint("due_minor >= 0 AND due_minor <= amount_minor", name="payments_due"),
        sa.CheckConstraint(
            "reason IS NOT NULL OR (applied AND due_minor = 0)", name="payments_due_for_a_reason"
        ),
        sa.CheckConstraint("version >= 0", name="payments_version"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "channel", "payment_id", name=op.f("payments_key")),
    )
    op.create_index("payments_of_order", "payments", ["bucket", "member_id", "order_id"], unique=False)
    op.create_index(
        "payments_unreturned",
        "payments",
        ["due_time"],
        unique=False,
        postgresql_where=sa.text("due_time IS NOT NULL AND close_time IS NULL"),
    )
    op.create_table(
        "products",
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("version > 0", name="products_version"),
        sa.PrimaryKeyConstraint("code", "version", name=op.f("products_key")),
    )
    op.create_table(
        "quota_windows",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("window_key", sa.Text(), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("benefit_code", sa.Text(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("quota", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("used >= 0 AND used <= quota", name="quota_windows_within_limit"),
        sa.PrimaryKeyConstraint(
            "bucket", "member_id", "window_key", "card_id", "benefit_code", name=op.f("quota_windows_key")
        ),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_table(
        "redemptions",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("redemption_id", sa.Text(), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("segment_id", sa.Text(), nullable=False),
        sa.Column("benefit_code", sa.Text(), nullable=False),
        sa.Column("window_key", sa.Text(), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("saved_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("lapse_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("lines", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.CheckConstraint("(status = 'REVERSED') = (ending IS NOT NULL)", name="redemptions_ended"),
        sa.CheckConstraint("ending IN ('LAPSED', 'CANCELLED', 'REFUNDED')", name="redemptions_ending"),
        sa.CheckConstraint("status IN ('RESERVED', 'CONFIRMED', 'REVERSED')", name="redemptions_status"),
        sa.CheckConstraint("saved_minor >= 0", name="redemptions_saved"),
        sa.CheckConstraint("uses > 0", name="redemptions_uses"),
        sa.PrimaryKeyConstraint(
            "bucket", "member_id", "order_id", "redemption_id", name=op.f("redemptions_key")
        ),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "redemptions_reserved",
        "redemptions",
        ["bucket", "member_id"],
        unique=False,
        postgresql_where=sa.text("status = 'RESERVED'"),
    )
    op.create_table(
        "renewals",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("renewal_id", sa.Text(), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("segment_id", sa.Text(), nullable=False),
        sa.Column("product_code", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("notice_due_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("notice_deadline", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("charge_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("charge_until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("notice_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("medium", sa.Text(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.CheckConstraint("outcome IN ('CHARGED', 'FAILED', 'CANCELLED')", name="renewals_outcome"),
        sa.CheckConstraint("amount_minor >= 0", name="renewals_amount"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "renewal_id", name=op.f("renewals_key")),
    )
    op.create_index(
        "renewals_one_open",
        "renewals",
        ["bucket", "member_id", "card_id"],
        unique=True,
        postgresql_where=sa.text("outcome IS NULL"),
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
        "rewards",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("reward_id", sa.Text(), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("segment_id", sa.Text(), nullable=False),
        sa.Column("clawed_back", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("segment_id = '' OR card_id <> ''", name="rewards_of_a_card"),
        sa.CheckConstraint("version >= 0", name="rewards_version"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "reward_id", name=op.f("rewards_key")),
    )
    op.create_table(
        "sales_slots",
        sa.Column("product_code", sa.Text(), nullable=False),
        sa.Column("window_key", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("pay_deadline", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("firm", sa.Boolean(), nullable=False),
        sa.CheckConstraint("number >= 1", name="sales_slots_number"),
        sa.PrimaryKeyConstraint("product_code", "window_key", "number", name=op.f("sales_slots_key")),
    )
    op.create_table(
        "segments",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("segment_id", sa.Text(), nullable=False),
        sa.Column("product_code", sa.Text(), nullable=False),
        sa.Column("product_version", sa.BigInteger(), nullable=False),
        sa.Column("start_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("end_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("anchor_local", postgresql.TIMESTAMP(), nullable=False),
        sa.Column("anchor_months", sa.BigInteger(), nullable=False),
        sa.Column("days", sa.BigInteger(), nullable=False),
        sa.Column("streak", sa.BigInteger(), nullable=False),
        sa.Column("grace_days", sa.BigInteger(), nullable=False),
        sa.Column("paid_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("paid_minor", sa.BigInteger(), nullable=False),
        sa.Column("paid_points", sa.BigInteger(), nullable=False),
        sa.Column("freezes", sa.BigInteger(), nullable=False),
        sa.Column("ended_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.Column("saved_minor", sa.BigInteger(), nullable=False),
        sa.Column("source_id", sa.Text(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.column("bucket"), "="),
            (sa.column("member_id"), "="),
            (sa.column("card_id"), "="),
            (sa.text("tstzrange(start_time, GREATEST(start_time, LEAST(end_time, ended_time)))"), "&&"),
            deferrable=True,
            initially="DEFERRED",
            using="gist",
            name="segments_never_overlap",
        ),
        sa.CheckConstraint("ending IN ('REFUNDED', 'REPLACED', 'CLAWED_BACK')", name="segments_ending"),
        sa.CheckConstraint("(ended_time IS NULL) = (ending IS NULL)", name="segments_ended"),
        sa.CheckConstraint(
            "anchor_months >= 0 AND grace_days >= 0 AND paid_minor >= 0 AND paid_points >= 0 "
            "AND freezes >= 0 AND saved_minor >= 0",
            name="segments_not_negative",
        ),
        sa.CheckConstraint("days > 0 AND streak > 0 AND number >= 0", name="segments_counted"),
        sa.CheckConstraint("paid_minor = 0 OR paid_points = 0", name="segments_paid_in_one_unit"),
        sa.CheckConstraint("start_time <= end_time", name="segments_period"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "card_id", "number", name=op.f("segments_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_table(
        "stream_erasures",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "stream_seq", "event_id", name=op.f("stream_erasures_key")),
    )
    op.execute("INSERT INTO meta DEFAULT VALUES")
