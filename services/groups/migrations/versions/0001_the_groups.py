"""Members with what is known of them, groups, places and terms, and the tables of the chassis."""

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
        "evaluations",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("after_bucket", sa.SmallInteger(), nullable=False),
        sa.Column("after_member", sa.Text(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("start_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("end_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('SCHEME', 'PROGRAMME')", name="evaluations_kind"),
        sa.CheckConstraint("done >= 0", name="evaluations_not_negative"),
        sa.CheckConstraint("version > 0", name="evaluations_version"),
        sa.PrimaryKeyConstraint("kind", "subject_id", name=op.f("evaluations_key")),
    )
    op.create_index(
        "evaluations_open",
        "evaluations",
        ["start_time"],
        unique=False,
        postgresql_where=sa.text("end_time IS NULL"),
    )
    op.create_table(
        "geography",
        sa.Column("only_row", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default="1", nullable=False),
        sa.CheckConstraint("only_row", name="geography_one_row"),
        sa.PrimaryKeyConstraint("only_row", name=op.f("geography_key")),
    )
    op.create_table(
        "groups",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("scheme_id", sa.Text(), nullable=False),
        sa.Column("scheme_version", sa.BigInteger(), nullable=False),
        sa.Column("anchor", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("capacity", sa.BigInteger(), nullable=False),
        sa.Column("room", sa.BigInteger(), nullable=False),
        sa.Column("seats_taken", sa.BigInteger(), nullable=False),
        sa.Column("overbooked", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("chat_id", sa.Text(), nullable=False),
        sa.Column("entry_link", sa.Text(), nullable=False),
        sa.Column("open_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("close_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("sale_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("previous_group_id", sa.Text(), nullable=False),
        sa.Column("next_occasion_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column(
            "leaving",
            sa.Boolean(),
            sa.Computed(
                "(status = 'CLOSED'::text OR status = 'DISSOLVED'::text) AND seats_taken + overbooked > 0",
                persisted=True,
            ),
            nullable=True,
        ),
        sa.Column(
            "crowded",
            sa.Boolean(),
            sa.Computed(
                "overbooked > 0 AND status = 'FULL'::text AND seats_taken + overbooked >= capacity",
                persisted=True,
            ),
            nullable=True,
        ),
        sa.CheckConstraint(
            "CASE status WHEN 'OPEN' THEN overbooked = 0 AND seats_taken < room "
            "WHEN 'FULL' THEN overbooked > 0 OR seats_taken = room ELSE true END",
            name="groups_full_without_a_seat",
        ),
        sa.CheckConstraint("status IN ('OPEN', 'FULL', 'CLOSED', 'DISSOLVED')", name="groups_status"),
        sa.CheckConstraint("overbooked >= 0", name="groups_overbooked"),
        sa.CheckConstraint("room > 0 AND room <= capacity", name="groups_room"),
        sa.CheckConstraint("seats_taken >= 0 AND seats_taken <= room", name="groups_seats"),
        sa.CheckConstraint("seq > 0 AND scheme_version > 0", name="groups_counted"),
        sa.CheckConstraint("version >= 0", name="groups_version"),
        sa.PrimaryKeyConstraint("group_id", name=op.f("groups_key")),
        sa.UniqueConstraint("scheme_id", "anchor", "seq", name="groups_seq_once"),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "groups_announcing",
        "groups",
        ["next_occasion_time"],
        unique=False,
        postgresql_where=sa.text("next_occasion_time IS NOT NULL"),
    )
    op.create_index(
        "groups_chat_once", "groups", ["chat_id"], unique=True, postgresql_where=sa.text("chat_id != ''")
    )
    op.create_index(
        "groups_closing",
        "groups",
        ["close_time"],
        unique=False,
        postgresql_where=sa.text("close_time IS NOT NULL AND status != 'DISSOLVED'"),
    )
    op.create_index("groups_crowded", "groups", ["group_id"], unique=False, postgresql_where="crowded")
    op.create_index("groups_leaving", "groups", ["group_id"], unique=False, postgresql_where="leaving")
    op.create_index("groups_of_scheme", "groups", ["scheme_id", "group_id"], unique=False)
    op.create_index(
        "groups_of_site",
        "groups",
        ["site_id", "group_id"],
        unique=False,
        postgresql_where=sa.text("site_id != ''"),
    )
    op.create_index(
        "groups_without_chat", "groups", ["name"], unique=False, postgresql_where=sa.text("chat_id = ''")
    )
    op.create_index(
        "groups_without_link",
        "groups",
        ["group_id"],
        unique=False,
        postgresql_where=sa.text("chat_id != '' AND entry_link = ''"),
    )
    op.create_index(
        "groups_open",
        "groups",
        ["scheme_id", "anchor", "seq"],
        unique=False,
        postgresql_where=sa.text("status = 'OPEN'"),
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
        sa.Column("version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column(
            "left_groups", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("past", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("past_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("offer_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("evaluate_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("next_due_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "evaluate_time IS NULL OR (next_due_time IS NOT NULL AND next_due_time <= evaluate_time)",
            name="members_due_when_evaluated",
        ),
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
        "memberships",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("scheme_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("membership_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("anchor", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("entry_source", sa.Text(), nullable=False),
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("distance_m", sa.BigInteger(), nullable=False),
        sa.Column("assign_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("seat_expire_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("join_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("arrive_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("end_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.Column("lost_condition", sa.Text(), nullable=False),
        sa.Column("reward_id", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(end_time IS NULL) = (status IN ('ASSIGNED', 'JOINED'))", name="memberships_active_until_the_end"
        ),
        sa.CheckConstraint(
            "CASE WHEN end_time IS NULL THEN ending IS NULL ELSE ending IS NOT NULL OR status = 'LAPSED' END",
            name="memberships_ended",
        ),
        sa.CheckConstraint(
            "CASE status WHEN 'ASSIGNED' THEN seat_expire_time IS NOT NULL "
            "WHEN 'JOINED' THEN seat_expire_time IS NULL ELSE true END",
            name="memberships_seat_kept_until_joined",
        ),
        sa.CheckConstraint(
            "basis IN ('CHOSEN', 'EXACT', 'CITY', 'HOME_SITE', 'DEFAULT', 'SEGMENT', 'INVITER', 'JOINED')",
            name="memberships_basis",
        ),
        sa.CheckConstraint(
            "ending IN ('LEFT', 'REMOVED', 'THRESHOLD_LOST', 'GROUP_DISSOLVED', 'SITE_CLOSED', "
            "'SEAT_LAPSED', 'RECONCILED')",
            name="memberships_ending",
        ),
        sa.CheckConstraint("status <> 'JOINED' OR arrive_time IS NOT NULL", name="memberships_joined"),
        sa.CheckConstraint(
            "status IN ('ASSIGNED', 'JOINED', 'LEFT', 'REMOVED', 'LAPSED')", name="memberships_status"
        ),
        sa.CheckConstraint("arrive_time IS NULL OR join_time IS NOT NULL", name="memberships_arrived"),
        sa.CheckConstraint("distance_m >= 0", name="memberships_distance"),
        sa.CheckConstraint("number > 0", name="memberships_number"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "scheme_id", "number", name=op.f("memberships_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "memberships_of_group",
        "memberships",
        ["group_id", "bucket", "member_id"],
        unique=False,
        postgresql_where=sa.text("end_time IS NULL"),
    )
    op.create_index(
        "memberships_one_active",
        "memberships",
        ["bucket", "member_id", "scheme_id"],
        unique=True,
        postgresql_where=sa.text("end_time IS NULL"),
    )
    op.create_table(
        "meta",
        sa.Column("only_row", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="1", nullable=False),
        sa.CheckConstraint("only_row", name="meta_one_row"),
        sa.PrimaryKeyConstraint("only_row", name=op.f("meta_key")),
    )
    op.create_table(
        "move_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("moves", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("moves >= 0", name="move_days_not_negative"),
        sa.PrimaryKeyConstraint("day", name=op.f("move_days_key")),
    )
    op.create_table(
        "occasions",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("occasion_id", sa.Text(), nullable=False),
        sa.Column("due_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "occasion_id", name=op.f("occasions_key")),
    )
    op.create_table(
        "orders",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("store_id", sa.Text(), nullable=False),
        sa.Column("city", sa.Text(), nullable=False),
        sa.Column("paid_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("refunds", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.CheckConstraint(
            "paid_time IS NOT NULL OR (amount_minor = 0 AND store_id = '' AND city = '')", name="orders_told"
        ),
        sa.CheckConstraint("amount_minor >= 0", name="orders_amount"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "order_id", name=op.f("orders_key")),
    )
    op.create_index("orders_by_time", "orders", ["bucket", "member_id", "paid_time"], unique=False)
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
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("version > 0", name="programmes_version"),
        sa.PrimaryKeyConstraint("version", name=op.f("programmes_key")),
    )
    op.create_table(
        "relocations",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("move_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "move_time", name=op.f("relocations_key")),
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
        "schemes",
        sa.Column("scheme_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("kind IN ('BY_LOCATION', 'BY_TAG', 'INVITE', 'FLASH')", name="schemes_kind"),
        sa.CheckConstraint("version > 0", name="schemes_version"),
        sa.PrimaryKeyConstraint("scheme_id", "version", name=op.f("schemes_key")),
    )
    op.create_table(
        "series",
        sa.Column("scheme_id", sa.Text(), nullable=False),
        sa.Column("anchor", sa.Text(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("last_seq >= 0", name="series_not_negative"),
        sa.PrimaryKeyConstraint("scheme_id", "anchor", name=op.f("series_key")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_table(
        "sites",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("city", sa.Text(), nullable=False),
        sa.Column("latitude", sa.Double(), nullable=False),
        sa.Column("longitude", sa.Double(), nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("update_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "latitude BETWEEN -90 AND 90 AND longitude BETWEEN -180 AND 180", name="sites_on_the_globe"
        ),
        sa.PrimaryKeyConstraint("site_id", name=op.f("sites_key")),
    )
    op.create_table(
        "stream_erasures",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "stream_seq", "event_id", name=op.f("stream_erasures_key")),
    )
    op.create_table(
        "tags",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("expire_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("set_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("value <> ''", name="tags_value"),
        sa.PrimaryKeyConstraint("bucket", "member_id", "key", name=op.f("tags_key")),
        postgresql_with={"fillfactor": "85"},
    )
    op.execute("INSERT INTO meta DEFAULT VALUES")
    op.execute("INSERT INTO geography DEFAULT VALUES")
