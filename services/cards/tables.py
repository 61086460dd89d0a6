"""Tables, and the constraints that guard the rules even against our own code.

Every key of a member table begins with `bucket` (crc32 of the member, modulo 1,024) and `member_id`: the
unit of placement when the cards outgrow one machine. Members meet in three tables of claims alone. The
columns of a key come first. Texts that are not there are empty, everything else is null then.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, ExcludeConstraint

from services.chassis import columns, tables
from services.chassis.answers import answers_table

metadata = columns.schema()

INSTANT = columns.INSTANT
LOCAL_TIME = TIMESTAMP(timezone=False)


# The one row that a write locks.
members = sa.Table(
    "members",
    metadata,
    *columns.member_key(),
    sa.Column("tier", sa.Text, nullable=False, server_default=""),
    # What other services told: {name: [value, [epoch, version]]}, of the event that told it last; null for a
    # value that holds no longer.
    sa.Column("facts", JSONB, nullable=False, server_default="{}"),
    columns.instant("next_due_time", nullable=True),
    postgresql_with={"fillfactor": "70"},
)
sa.Index("members_due", members.c.next_due_time, postgresql_where=members.c.next_due_time.is_not(None))

# A member's card of a family, beside its periods.
cards = sa.Table(
    "cards",
    metadata,
    *columns.member_key(),
    columns.key("card_id"),
    columns.text("family"),
    columns.text("currency_code"),
    columns.number("version"),
    columns.instant("rest_start", nullable=True),
    columns.instant("rest_until", nullable=True),
    columns.instant("expiring_told", nullable=True),
    columns.instant("expired_told", nullable=True),
    # The contract under which it is renewed; there is none without a sign_time.
    columns.text("contract_id"),
    columns.text("contract_product"),
    columns.instant("sign_time", nullable=True),
    columns.instant("contract_until", nullable=True),
    sa.UniqueConstraint("bucket", "member_id", "family", name="cards_family_once"),
    sa.CheckConstraint("version >= 0", name="cards_version"),
    sa.CheckConstraint(
        "(rest_start IS NULL) = (rest_until IS NULL) AND rest_start <= rest_until", name="cards_rest"
    ),
    sa.CheckConstraint(
        "sign_time IS NOT NULL OR (contract_id = '' AND contract_product = '' AND contract_until IS NULL)",
        name="cards_contract",
    ),
    postgresql_with={"fillfactor": "85"},
)

# Bought periods, in the order in which they joined their card. While a card rests they stand as they stood
# when the rest began. Two of them never hold at once; moving them all is checked at the end.
segments = sa.Table(
    "segments",
    metadata,
    *columns.member_key(),
    columns.key("card_id"),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    columns.text("segment_id"),
    columns.text("product_code"),
    columns.number("product_version"),
    columns.instant("start_time"),
    columns.instant("end_time"),
    sa.Column("anchor_local", LOCAL_TIME, nullable=False),  # in the programme's zone
    columns.number("anchor_months"),
    columns.number("days"),
    columns.number("streak"),
    columns.number("grace_days"),
    columns.instant("paid_time"),
    columns.number("paid_minor"),
    columns.number("paid_points"),
    columns.number("freezes"),
    columns.instant("ended_time", nullable=True),
    sa.Column("ending", sa.Text),
    columns.number("saved_minor"),
    columns.text("source_id"),  # the order, or the reward
    ExcludeConstraint(
        (sa.column("bucket"), "="),
        (sa.column("member_id"), "="),
        (sa.column("card_id"), "="),
        # Empty where it ended before it began.
        (sa.text("tstzrange(start_time, GREATEST(start_time, LEAST(end_time, ended_time)))"), "&&"),
        using="gist",
        name="segments_never_overlap",
        deferrable=True,
        initially="DEFERRED",
    ),
    sa.CheckConstraint("start_time <= end_time", name="segments_period"),
    sa.CheckConstraint("(ended_time IS NULL) = (ending IS NULL)", name="segments_ended"),
    sa.CheckConstraint("days > 0 AND streak > 0 AND number >= 0", name="segments_counted"),
    sa.CheckConstraint("paid_minor = 0 OR paid_points = 0", name="segments_paid_in_one_unit"),
    columns.one_of("segments", "ending", "REFUNDED", "REPLACED", "CLAWED_BACK"),
    columns.not_negative(
        "segments", "anchor_months", "grace_days", "paid_minor", "paid_points", "freezes", "saved_minor"
    ),
    postgresql_with={"fillfactor": "85"},
)

orders = sa.Table(
    "orders",
    metadata,
    *columns.member_key(),
    columns.key("order_id"),
    columns.text("product_code"),
    columns.number("product_version"),
    columns.text("family"),
    columns.text("status"),
    columns.instant("pay_deadline"),
    columns.number("amount_minor"),
    columns.text("currency_code"),  # empty where points pay it
    columns.number("amount_points"),
    columns.number("credit"),
    columns.flag("upgrade_now"),
    columns.text("end_reason"),
    columns.instant("create_time"),
    columns.text("card_id"),
    columns.text("renewal_id"),
    columns.flag("gift"),
    columns.flag("capped"),
    columns.text("window_key"),
    columns.number("version"),
    columns.one_of("orders", "status", "PENDING_PAYMENT", "SETTLING", "PAID", "CANCELLED", "EXPIRED"),
    columns.not_negative("orders", "amount_minor", "amount_points", "credit", "version"),
    sa.CheckConstraint(
        "CASE WHEN currency_code = '' THEN amount_minor = 0 ELSE amount_points = 0 END",
        name="orders_paid_in_one_unit",
    ),
    sa.CheckConstraint("status <> 'SETTLING' OR currency_code = ''", name="orders_settling_points"),
    postgresql_with={"fillfactor": "85"},
)
sa.Index(
    "orders_open",
    orders.c.bucket,
    orders.c.member_id,
    postgresql_where=orders.c.status.in_(["PENDING_PAYMENT", "SETTLING"]),
)
sa.Index("orders_by_id", orders.c.order_id)  # a pay channel knows the order, not the member

# Payments that were told: facts, but for what has to be paid back of them and whether it was.
payments = sa.Table(
    "payments",
    metadata,
    *columns.member_key(),
    columns.key("channel"),
    columns.key("payment_id"),
    columns.text("order_id"),
    columns.number("amount_minor"),
    columns.text("currency_code"),
    columns.instant("paid_time"),
    columns.flag("applied"),
    sa.Column("reason", sa.Text),
    columns.number("due_minor"),
    columns.instant("due_time", nullable=True),
    columns.text("refund_id"),
    columns.instant("close_time", nullable=True),
    columns.number("version"),
    columns.instant("create_time"),
    columns.one_of(
        *("payments", "reason", "WRONG_AMOUNT", "WRONG_CURRENCY", "ORDER_UNKNOWN", "ORDER_EXPIRED"),
        *("ORDER_CANCELLED", "ALREADY_PAID", "SOLD_OUT", "NO_NOTICE", "CARD_REFUNDED"),
    ),
    sa.CheckConstraint("amount_minor > 0", name="payments_amount"),
    sa.CheckConstraint("due_minor >= 0 AND due_minor <= amount_minor", name="payments_due"),
    sa.CheckConstraint("reason IS NOT NULL OR (applied AND due_minor = 0)", name="payments_due_for_a_reason"),
    sa.CheckConstraint("(close_time IS NULL) = (refund_id = '')", name="payments_closed"),
    sa.CheckConstraint("version >= 0", name="payments_version"),
)
sa.Index("payments_of_order", payments.c.bucket, payments.c.member_id, payments.c.order_id)
sa.Index(
    "payments_unreturned",
    payments.c.due_time,
    postgresql_where=sa.and_(payments.c.due_time.is_not(None), payments.c.close_time.is_(None)),
)

redemptions = sa.Table(
    "redemptions",
    metadata,
    *columns.member_key(),
    columns.key("order_id"),
    columns.key("redemption_id"),
    columns.text("card_id"),
    columns.text("segment_id"),
    columns.text("benefit_code"),
    columns.text("window_key"),
    columns.number("uses"),
    columns.number("saved_minor"),
    columns.text("currency_code"),
    columns.text("status"),
    columns.instant("lapse_time"),
    sa.Column("lines", JSONB, nullable=False),  # {line_id: pieces}
    columns.instant("create_time"),
    sa.Column("ending", sa.Text),
    columns.one_of("redemptions", "status", "RESERVED", "CONFIRMED", "REVERSED"),
    columns.one_of("redemptions", "ending", "LAPSED", "CANCELLED", "REFUNDED"),
    sa.CheckConstraint("(status = 'REVERSED') = (ending IS NOT NULL)", name="redemptions_ended"),
    sa.CheckConstraint("uses > 0", name="redemptions_uses"),
    sa.CheckConstraint("saved_minor >= 0", name="redemptions_saved"),
    postgresql_with={"fillfactor": "85"},
)
sa.Index(
    "redemptions_reserved",
    redemptions.c.bucket,
    redemptions.c.member_id,
    postgresql_where=redemptions.c.status == "RESERVED",
)

# Orders that benefits were asked for. `body` may be blanked, when its member is erased.
baskets = sa.Table(
    "baskets",
    metadata,
    *columns.member_key(),
    columns.key("order_id"),
    sa.Column("body_hash", sa.LargeBinary, nullable=False),  # SHA-256 of `body`, which outlives it
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("pays", JSONB, nullable=False),  # {line_id: minor units}
    sa.Column("redemption_ids", JSONB, nullable=False),  # [redemption_id]
    sa.Column("refunds", JSONB, nullable=False),  # {refund_id: {line_id: minor units}}
    columns.instant("create_time"),
)

# What is used of a quota, by the local day, the ISO week, or the period.
quota_windows = sa.Table(
    "quota_windows",
    metadata,
    *columns.member_key(),
    columns.key("window_key"),
    columns.key("card_id"),
    columns.key("benefit_code"),
    columns.number("used"),
    columns.number("quota"),  # the limit when it was last used
    sa.CheckConstraint("used >= 0 AND used <= quota", name="quota_windows_within_limit"),
    postgresql_with={"fillfactor": "70"},
)

renewals = sa.Table(
    "renewals",
    metadata,
    *columns.member_key(),
    columns.key("renewal_id"),
    columns.text("card_id"),
    columns.text("segment_id"),
    columns.text("product_code"),
    columns.number("amount_minor"),
    columns.text("currency_code"),
    columns.instant("notice_due_time"),
    columns.instant("notice_deadline"),
    columns.instant("charge_time"),
    columns.instant("charge_until"),
    columns.instant("notice_time", nullable=True),
    sa.Column("outcome", sa.Text),
    columns.text("order_id"),
    columns.text("medium"),
    columns.flag("told"),
    columns.one_of("renewals", "outcome", "CHARGED", "FAILED", "CANCELLED"),
    sa.CheckConstraint("amount_minor >= 0", name="renewals_amount"),
)
sa.Index(
    "renewals_one_open",
    renewals.c.bucket,
    renewals.c.member_id,
    renewals.c.card_id,
    unique=True,
    postgresql_where=renewals.c.outcome.is_(None),
)

rewards = sa.Table(
    "rewards",
    metadata,
    *columns.member_key(),
    columns.key("reward_id"),
    columns.text("card_id"),
    columns.text("segment_id"),
    columns.flag("clawed_back"),
    columns.number("version"),
    sa.CheckConstraint("version >= 0", name="rewards_version"),
    sa.CheckConstraint("segment_id = '' OR card_id <> ''", name="rewards_of_a_card"),
)

answers = answers_table(metadata)

# Claims: what members may dispute with one another. Whoever is first has it.
payment_claims = sa.Table(
    "payment_claims",
    metadata,
    columns.key("channel"),
    columns.key("payment_id"),
    columns.text("member_id"),
    sa.Column("payload_hash", sa.LargeBinary, nullable=False),
)

gifts = sa.Table(
    "gifts",
    metadata,
    sa.Column("code_hash", sa.LargeBinary, primary_key=True),  # SHA-256
    columns.text("giver_id"),
    columns.text("order_id"),
    columns.text("product_code"),
    columns.number("product_version"),
    columns.instant("claim_until"),
    columns.flag("paid"),
    columns.flag("refunded"),
    columns.text("claimed_by"),
    columns.instant("claim_time", nullable=True),
    sa.UniqueConstraint("order_id"),
    sa.CheckConstraint("(claim_time IS NULL) = (claimed_by = '')", name="gifts_claimed"),
    sa.CheckConstraint("claimed_by = '' OR paid", name="gifts_claimed_are_paid"),
)

sa.Index(
    "gifts_unclaimed",
    gifts.c.claim_until,
    postgresql_where=sa.and_(gifts.c.paid, sa.not_(gifts.c.refunded), gifts.c.claimed_by == ""),
)

sales_slots = sa.Table(
    "sales_slots",
    metadata,
    columns.key("product_code"),
    columns.key("window_key"),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    columns.text("order_id"),
    columns.instant("pay_deadline"),
    columns.flag("firm"),
    sa.CheckConstraint("number >= 1", name="sales_slots_number"),
)

# What is on sale, version by version: facts. `body` is the message; family and withdrawn stand in it too.
products = sa.Table(
    "products",
    metadata,
    columns.key("code"),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    columns.text("family"),
    columns.flag("withdrawn"),
    columns.text("author"),
    columns.instant("create_time"),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("version > 0", name="products_version"),
)

meta, requests, outbox, stream_erasures, inbox, dead_letters, jobs = tables.common(metadata)

# What may change of a row once it is written; the rest is fact.
CHANGING: Mapping[str, tuple[str, ...]] = {
    "members": ("tier", "facts", "next_due_time"),
    "cards": (
        *("currency_code", "version", "rest_start", "rest_until", "expiring_told", "expired_told"),
        *("contract_id", "contract_product", "sign_time", "contract_until"),
    ),
    "segments": (
        *("start_time", "end_time", "anchor_local", "anchor_months", "freezes", "ended_time", "ending"),
        "saved_minor",
    ),
    "orders": ("status", "end_reason", "card_id", "upgrade_now", "credit", "capped", "window_key", "version"),
    "payments": ("reason", "due_minor", "due_time", "refund_id", "close_time", "version"),
    "redemptions": ("status", "ending"),
    "baskets": ("body_hash", "body", "pays", "redemption_ids", "refunds", "create_time"),
    "quota_windows": ("used", "quota"),
    "renewals": (
        *("segment_id", "amount_minor", "notice_due_time", "notice_deadline", "charge_time", "charge_until"),
        *("notice_time", "outcome", "order_id", "medium", "told"),
    ),
    "rewards": ("card_id", "segment_id", "clawed_back", "version"),
    "answers": ("body",),
    "payment_claims": (),
    "gifts": ("paid", "refunded", "claimed_by", "claim_time"),
    "sales_slots": ("order_id", "pay_deadline", "firm"),
    "products": (),
}
# Members to whom nothing came are dropped again, and an order gives its slot back. Nothing else goes.
GOING = ("members", "sales_slots")


def grants(role: str) -> list[str]:
    """What the service's role may do: everything on the chassis's tables, and no change of a fact."""
    return tables.grants(role, CHANGING, GOING)
