"""Invitees, inviters with what they reach, claims, budgets, campaigns, and the tables of the chassis."""

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
        "attributions",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("attribution_id", sa.Text(), nullable=False),
        sa.Column("campaign_version", sa.BigInteger(), nullable=False),
        sa.Column("inviter_id", sa.Text(), nullable=False),
        sa.Column("grand_inviter_id", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("bind_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("lapse_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("score", sa.BigInteger(), nullable=False),
        sa.Column("signals", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("resolved", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("reference_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("qualify_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "CASE status WHEN 'QUALIFIED' THEN kind IS NOT NULL AND verdict = 'PASS' WHEN 'REVOKED' "
            "THEN kind IS NOT NULL WHEN 'REJECTED' THEN verdict = 'REJECT' ELSE true END",
            name="attributions_stand",
        ),
        sa.CheckConstraint(
            "inviter_id <> '' AND inviter_id <> member_id AND grand_inviter_id <> member_id AND "
            "grand_inviter_id <> inviter_id",
            name="attributions_of_others",
        ),
        sa.CheckConstraint("kind IN ('ORDER', 'CARD', 'GROUP', 'REGISTRATION')", name="attributions_kind"),
        sa.CheckConstraint(
            "status IN ('BOUND', 'QUALIFIED', 'REVOKED', 'LAPSED', 'REJECTED')", name="attributions_status"
        ),
        sa.CheckConstraint("verdict IN ('PASS', 'REVIEW', 'REJECT')", name="attributions_verdict"),
        sa.CheckConstraint("(kind IS NULL) = (qualify_time IS NULL)", name="attributions_by_a_fact"),
        sa.CheckConstraint("bind_time < lapse_time", name="attributions_lapse"),
        sa.CheckConstraint(
            "score >= 0 AND version >= 0 AND amount_minor >= 0", name="attributions_not_negative"
        ),
        sa.PrimaryKeyConstraint("bucket", "member_id", "campaign_id", name=op.f("attributions_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "attributions_of_inviter", "attributions", ["campaign_id", "inviter_id", "bind_time"], unique=False
    )
    op.create_table(
        "blocks",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "member_id", "campaign_id", name=op.f("blocks_key")),
    )
    op.create_table(
        "budgets",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("budget_minor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("granted_minor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("exhausted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("budget_minor = 0 OR granted_minor <= budget_minor", name="budgets_not_overspent"),
        sa.CheckConstraint(
            "budget_minor >= 0 AND granted_minor >= 0 AND version >= 0", name="budgets_not_negative"
        ),
        sa.PrimaryKeyConstraint("campaign_id", name=op.f("budgets_key")),
    )
    op.create_table(
        "campaigns",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ladder_version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("open_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("close_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("last_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("hold_period", sa.Interval(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("kind IN ('ORDER', 'CARD', 'GROUP', 'REGISTRATION')", name="campaigns_kind"),
        sa.CheckConstraint("open_time < close_time AND close_time <= last_time", name="campaigns_times"),
        sa.CheckConstraint("ladder_version BETWEEN 1 AND version", name="campaigns_version"),
        sa.PrimaryKeyConstraint("campaign_id", "version", name=op.f("campaigns_key")),
    )
    op.create_table(
        "codes",
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("code", name=op.f("codes_key")),
        sa.UniqueConstraint("campaign_id", "member_id", name="codes_member_once"),
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
        "facts",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reference_id", sa.Text(), nullable=False),
        sa.Column("occur_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("attributes", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("refunds", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("revoke_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("revoke_reason", sa.Text(), nullable=True),
        sa.Column("receive_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.CheckConstraint("kind IN ('ORDER', 'CARD', 'GROUP', 'REGISTRATION')", name="facts_kind"),
        sa.CheckConstraint(
            "revoke_reason IN ('REFUNDED', 'LEFT_GROUP', 'FRAUD', 'REQUESTED', 'WRITTEN_OFF')",
            name="facts_revoke_reason",
        ),
        sa.CheckConstraint("(revoke_time IS NULL) = (revoke_reason IS NULL)", name="facts_revoked"),
        sa.CheckConstraint("amount_minor >= 0", name="facts_not_negative"),
        sa.CheckConstraint("occur_time IS NOT NULL OR amount_minor = 0", name="facts_told"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "kind", "reference_id", name=op.f("facts_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "facts_early", "facts", ["receive_time"], unique=False, postgresql_where=sa.text("NOT kept")
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
        "invitees",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("attribution_id", sa.Text(), nullable=False),
        sa.Column("depth", sa.BigInteger(), nullable=False),
        sa.Column("invitee_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("told_epoch", sa.BigInteger(), nullable=False),
        sa.Column("told_version", sa.BigInteger(), nullable=False),
        sa.Column("bind_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("reference_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("qualify_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("revoke_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('ORDER', 'CARD', 'GROUP', 'REGISTRATION')", name="invitees_kind"),
        sa.CheckConstraint(
            "revoke_reason IN ('REFUNDED', 'LEFT_GROUP', 'FRAUD', 'REQUESTED', 'WRITTEN_OFF')",
            name="invitees_revoke_reason",
        ),
        sa.CheckConstraint(
            "state <> 'QUALIFIED' OR (kind IS NOT NULL AND qualify_time IS NOT NULL)",
            name="invitees_qualified",
        ),
        sa.CheckConstraint("state IN ('BOUND', 'QUALIFIED', 'REVOKED', 'DROPPED')", name="invitees_state"),
        sa.CheckConstraint("depth BETWEEN 1 AND 2", name="invitees_depth"),
        sa.CheckConstraint("invitee_id <> member_id", name="invitees_of_others"),
        sa.CheckConstraint(
            "told_epoch >= 0 AND told_version >= 0 AND amount_minor >= 0", name="invitees_not_negative"
        ),
        sa.PrimaryKeyConstraint(
            "bucket", "member_id", "campaign_id", "attribution_id", name=op.f("invitees_key")
        ),
        sa.UniqueConstraint("bucket", "member_id", "campaign_id", "invitee_id", name="invitees_member_once"),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_table(
        "invites",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("campaign_version", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("masked_name", sa.Text(), nullable=False),
        sa.Column("ladder_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "member_id", "campaign_id", name=op.f("invites_key")),
    )
    op.create_index(
        "invites_by_ladder",
        "invites",
        ["campaign_id", "ladder_version"],
        unique=False,
        postgresql_where=sa.text("ladder_version > 0"),
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
        sa.Column("version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("told", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("next_due_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("version >= 0", name="members_version"),
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
        "pairs",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("lesser_id", sa.Text(), nullable=False),
        sa.Column("greater_id", sa.Text(), nullable=False),
        sa.CheckConstraint('lesser_id < greater_id COLLATE "C"', name="pairs_ordered"),
        sa.PrimaryKeyConstraint("campaign_id", "lesser_id", "greater_id", name=op.f("pairs_key")),
    )
    op.create_table(
        "ranks",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("reach_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("count >= 0", name="ranks_not_negative"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "campaign_id", name=op.f("ranks_key")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "ranks_leaderboard",
        "ranks",
        ["campaign_id", sa.literal_column("(-count)"), "reach_time", "member_id"],
        unique=False,
        postgresql_include=["count"],
        postgresql_where=sa.text("count > 0"),
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
        "reviews",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("review_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("attribution_id", sa.Text(), nullable=False),
        sa.Column("inviter_id", sa.Text(), nullable=False),
        sa.Column("score", sa.BigInteger(), nullable=False),
        sa.Column("signals", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("resolve_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("resolved_by", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint("(resolve_time IS NULL) = (verdict = '')", name="reviews_resolved"),
        sa.CheckConstraint("verdict IN ('', 'PASS', 'REJECT')", name="reviews_verdict"),
        sa.CheckConstraint("score >= 0", name="reviews_not_negative"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "review_id", name=op.f("reviews_key")),
    )
    op.create_index("reviews_once", "reviews", ["review_id"], unique=True)
    op.create_index(
        "reviews_one_open",
        "reviews",
        ["bucket", "member_id", "attribution_id"],
        unique=True,
        postgresql_where=sa.text("verdict = ''"),
    )
    op.create_index(
        "reviews_open", "reviews", ["review_id"], unique=False, postgresql_where=sa.text("verdict = ''")
    )
    op.create_table(
        "rewards",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("reward_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("campaign_version", sa.BigInteger(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("receiver_id", sa.Text(), nullable=False),
        sa.Column("attribution_id", sa.Text(), nullable=False),
        sa.Column("gift_kind", sa.Text(), nullable=False),
        sa.Column("gift_code", sa.Text(), nullable=False),
        sa.Column("gift_group_id", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("share_basis_points", sa.BigInteger(), nullable=False),
        sa.Column("cost_minor", sa.BigInteger(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("qualified_count", sa.BigInteger(), nullable=False),
        sa.Column("reach_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("grant_after", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("grant_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("fulfil_by", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("overdue", sa.Boolean(), nullable=False),
        sa.Column("end_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("reference_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("returned", sa.Boolean(), nullable=False),
        sa.CheckConstraint("(end_time IS NULL) = (status IN ('PENDING', 'GRANTED'))", name="rewards_ended"),
        sa.CheckConstraint("(fulfil_by IS NULL) = (status <> 'GRANTED')", name="rewards_fulfil_by"),
        sa.CheckConstraint("(role = 'INVITER') = (receiver_id = member_id)", name="rewards_receiver"),
        sa.CheckConstraint(
            "CASE WHEN gift_kind IN ('POINTS', 'COUPON', 'CASH') THEN quantity > 0 ELSE quantity = 0 END",
            name="rewards_quantity",
        ),
        sa.CheckConstraint(
            "CASE WHEN share_basis_points > 0 THEN gift_kind = 'CASH' AND order_id <> '' ELSE order_id "
            "= '' END",
            name="rewards_share",
        ),
        sa.CheckConstraint(
            "CASE WHEN status IN ('PENDING', 'WITHDRAWN') THEN grant_time IS NULL AND version = 0 ELSE "
            "grant_time >= grant_after AND version > 0 END",
            name="rewards_granted",
        ),
        sa.CheckConstraint("NOT returned OR status = 'CLAWED_BACK'", name="rewards_returned"),
        sa.CheckConstraint(
            "gift_kind IN ('POINTS', 'CARD', 'COUPON', 'GROUP_ENTRY', 'CASH')", name="rewards_gift_kind"
        ),
        sa.CheckConstraint("reason <> '' OR status NOT IN ('FAILED', 'CLAWED_BACK')", name="rewards_reason"),
        sa.CheckConstraint(
            "reference_id = '' OR status IN ('FULFILLED', 'CLAWED_BACK')", name="rewards_handed_over"
        ),
        sa.CheckConstraint("role IN ('INVITER', 'INVITEE')", name="rewards_role"),
        sa.CheckConstraint(
            "status IN ('PENDING', 'GRANTED', 'FULFILLED', 'FAILED', 'CLAWED_BACK', 'WITHDRAWN')",
            name="rewards_status",
        ),
        sa.CheckConstraint("reach_time <= grant_after", name="rewards_hold"),
        sa.CheckConstraint("round > 0 AND attempt > 0 AND campaign_version > 0", name="rewards_counted"),
        sa.CheckConstraint(
            "share_basis_points >= 0 AND cost_minor >= 0 AND qualified_count >= 0 AND version >= 0",
            name="rewards_not_negative",
        ),
        sa.PrimaryKeyConstraint("bucket", "member_id", "reward_id", name=op.f("rewards_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "rewards_attempt_once",
        "rewards",
        ["bucket", "member_id", "campaign_id", "step_id", "round", "role", "attempt"],
        unique=True,
    )
    op.create_index(
        "rewards_granted_of_member",
        "rewards",
        ["bucket", "member_id"],
        unique=False,
        postgresql_where=sa.text("status = 'GRANTED'"),
    )
    op.create_index("rewards_of_receiver", "rewards", ["receiver_id", "reward_id"], unique=False)
    op.create_index("rewards_once", "rewards", ["reward_id"], unique=True)
    op.create_index(
        "rewards_one_stands",
        "rewards",
        ["bucket", "member_id", "campaign_id", "step_id", "round", "role"],
        unique=True,
        postgresql_where=sa.text("status IN ('PENDING', 'GRANTED', 'FULFILLED', 'FAILED')"),
    )
    op.create_index(
        "rewards_open",
        "rewards",
        ["grant_time", "reward_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('GRANTED', 'FAILED')"),
    )
    op.create_index(
        "rewards_to_return",
        "rewards",
        ["campaign_id"],
        unique=False,
        postgresql_where=sa.text("status = 'CLAWED_BACK' AND NOT returned"),
    )
    op.create_index(
        "rewards_troubled",
        "rewards",
        ["grant_time", "reward_id"],
        unique=False,
        postgresql_where=sa.text("status = 'FAILED' OR status = 'GRANTED' AND overdue"),
    )
    op.create_index(
        "rewards_waiting",
        "rewards",
        ["campaign_id", "reach_time", "reward_id"],
        unique=False,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_table(
        "signals",
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("signal", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "signal IN ('DEVICE', 'IP_PREFIX', 'PAYMENT_ACCOUNT', 'ADDRESS')", name="signals_signal"
        ),
        sa.CheckConstraint("length(value) BETWEEN 1 AND 64", name="signals_value"),
        sa.PrimaryKeyConstraint("campaign_id", "signal", "value", "member_id", name=op.f("signals_key")),
    )
    op.create_index("signals_of_member", "signals", ["member_id"], unique=False)
    op.create_table(
        "steps",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("campaign_version", sa.BigInteger(), nullable=False),
        sa.Column("depth", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("each", sa.Boolean(), nullable=False),
        sa.Column("attribution_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("reach_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.CheckConstraint("position > 0 AND attribution_id <> ''", name="steps_by_an_invitee"),
        sa.CheckConstraint("depth BETWEEN 1 AND 2", name="steps_depth"),
        sa.CheckConstraint("round > 0 AND attempt > 0 AND campaign_version > 0", name="steps_counted"),
        sa.PrimaryKeyConstraint(
            "bucket", "member_id", "campaign_id", "step_id", "round", name=op.f("steps_key")
        ),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "steps_invitee_once",
        "steps",
        ["bucket", "member_id", "campaign_id", "step_id", "attribution_id"],
        unique=True,
        postgresql_where=sa.text("each"),
    )
    op.create_table(
        "stream_erasures",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "stream_seq", "event_id", name=op.f("stream_erasures_key")),
    )
    op.create_table(
        "tries",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("minute", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("count > 0", name="tries_count"),
        sa.PrimaryKeyConstraint("subject", "minute", name=op.f("tries_key")),
    )
    op.create_index("tries_over", "tries", ["minute"], unique=False)
    op.execute("INSERT INTO meta DEFAULT VALUES")
