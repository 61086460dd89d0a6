"""Tables, and the constraints that guard the rules even against our own code.

Every key of a member table begins with `bucket` (crc32 of the member, modulo 1,024) and `member_id`: the
unit of placement when the members outgrow one machine. What inviters reach is kept with them, also rewards
that others get. Members meet in claims, in signals and in the budgets alone. The columns of a key come first.
Texts that are not there are empty, everything else is null then.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from services.chassis import columns, tables
from services.chassis.answers import answers_table

metadata = columns.schema()

INSTANT = columns.INSTANT
KINDS = ("ORDER", "CARD", "GROUP", "REGISTRATION")
REASONS = ("REFUNDED", "LEFT_GROUP", "FRAUD", "REQUESTED", "WRITTEN_OFF")

# The one row that a write locks.
members = sa.Table(
    "members",
    metadata,
    *columns.member_key(),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    # What other services told: {name: [value, [epoch, version]]}, of the event that told it last; null for a
    # value that holds no longer.
    sa.Column("told", JSONB, nullable=False, server_default="{}"),
    columns.instant("next_due_time", nullable=True),
    sa.CheckConstraint("version >= 0", name="members_version"),
    postgresql_with={"fillfactor": "70"},
)
sa.Index("members_due", members.c.next_due_time, postgresql_where=members.c.next_due_time.is_not(None))

answers = answers_table(metadata)

# --- a member as invitee ------------------------------------------------------------------------------

# Who brought a member: in each campaign the first, for ever.
attributions = sa.Table(
    "attributions",
    metadata,
    *columns.member_key(),
    columns.key("campaign_id"),
    columns.text("attribution_id"),
    columns.number("campaign_version"),
    columns.text("inviter_id"),
    columns.text("grand_inviter_id"),
    columns.text("code"),
    columns.instant("bind_time"),
    columns.instant("lapse_time"),
    columns.text("status"),
    columns.text("verdict"),
    columns.number("score"),
    sa.Column("signals", JSONB, nullable=False),  # [signal], those beyond their limits
    columns.flag("resolved"),
    columns.number("version"),
    sa.Column("kind", sa.Text),
    columns.text("reference_id"),
    columns.number("amount_minor"),
    columns.text("currency_code"),
    columns.instant("qualify_time", nullable=True),
    columns.one_of("attributions", "status", "BOUND", "QUALIFIED", "REVOKED", "LAPSED", "REJECTED"),
    columns.one_of("attributions", "verdict", "PASS", "REVIEW", "REJECT"),
    columns.one_of("attributions", "kind", *KINDS),
    columns.not_negative("attributions", "score", "version", "amount_minor"),
    # Two levels at most, of three members.
    sa.CheckConstraint(
        "inviter_id <> '' AND inviter_id <> member_id"
        " AND grand_inviter_id <> member_id AND grand_inviter_id <> inviter_id",
        name="attributions_of_others",
    ),
    sa.CheckConstraint("bind_time < lapse_time", name="attributions_lapse"),
    sa.CheckConstraint("(kind IS NULL) = (qualify_time IS NULL)", name="attributions_by_a_fact"),
    sa.CheckConstraint(
        "CASE status WHEN 'QUALIFIED' THEN kind IS NOT NULL AND verdict = 'PASS'"
        " WHEN 'REVOKED' THEN kind IS NOT NULL WHEN 'REJECTED' THEN verdict = 'REJECT' ELSE true END",
        name="attributions_stand",
    ),
    postgresql_with={"fillfactor": "85"},
)
sa.Index(
    "attributions_of_inviter",
    attributions.c.campaign_id,
    attributions.c.inviter_id,
    attributions.c.bind_time,
)

# What members did, and what was told of it later, whichever came first. `kept` are old ones that were looked
# at and stay, since their member was brought by somebody.
facts = sa.Table(
    "facts",
    metadata,
    *columns.member_key(),
    columns.key("kind"),
    columns.key("reference_id"),
    columns.instant("occur_time", nullable=True),
    columns.number("amount_minor"),
    columns.text("currency_code"),
    sa.Column("attributes", JSONB),  # {name: value}; none once its member was erased
    sa.Column("refunds", JSONB, nullable=False),  # {refund_id: [minor units or -1, when in ISO format]}
    columns.instant("revoke_time", nullable=True),
    sa.Column("revoke_reason", sa.Text),
    columns.instant("receive_time"),  # wall time, of what was told last
    columns.flag("kept"),
    columns.one_of("facts", "kind", *KINDS),
    columns.one_of("facts", "revoke_reason", *REASONS),
    columns.not_negative("facts", "amount_minor"),
    sa.CheckConstraint("occur_time IS NOT NULL OR amount_minor = 0", name="facts_told"),
    sa.CheckConstraint("(revoke_time IS NULL) = (revoke_reason IS NULL)", name="facts_revoked"),
    postgresql_with={"fillfactor": "85"},
)
sa.Index("facts_early", facts.c.receive_time, postgresql_where=sa.not_(facts.c.kept))

# --- a member as inviter ------------------------------------------------------------------------------

invites = sa.Table(
    "invites",
    metadata,
    *columns.member_key(),
    columns.key("campaign_id"),
    columns.number("campaign_version"),
    columns.text("code"),
    columns.instant("create_time"),
    columns.text("group_id"),
    columns.text("masked_name"),  # erasable
    columns.number("ladder_version"),  # by which the rungs were found last; 0 while nobody ever counted
)
sa.Index(
    "invites_by_ladder",
    invites.c.campaign_id,
    invites.c.ladder_version,
    postgresql_where=invites.c.ladder_version > 0,
)

# Attributions as the events about them told, each once, by way of one level or of two.
invitees = sa.Table(
    "invitees",
    metadata,
    *columns.member_key(),
    columns.key("campaign_id"),
    columns.key("attribution_id"),
    columns.number("depth"),
    columns.text("invitee_id"),
    columns.text("state"),
    columns.number("told_epoch"),
    columns.number("told_version"),
    columns.instant("bind_time", nullable=True),
    sa.Column("kind", sa.Text),
    columns.text("reference_id"),
    columns.number("amount_minor"),
    columns.text("currency_code"),
    columns.instant("qualify_time", nullable=True),
    sa.Column("revoke_reason", sa.Text),
    sa.UniqueConstraint("bucket", "member_id", "campaign_id", "invitee_id", name="invitees_member_once"),
    columns.one_of("invitees", "state", "BOUND", "QUALIFIED", "REVOKED", "DROPPED"),
    columns.one_of("invitees", "kind", *KINDS),
    columns.one_of("invitees", "revoke_reason", *REASONS),
    columns.not_negative("invitees", "told_epoch", "told_version", "amount_minor"),
    sa.CheckConstraint("depth BETWEEN 1 AND 2", name="invitees_depth"),
    sa.CheckConstraint("invitee_id <> member_id", name="invitees_of_others"),
    sa.CheckConstraint(
        "state <> 'QUALIFIED' OR (kind IS NOT NULL AND qualify_time IS NOT NULL)", name="invitees_qualified"
    ),
    postgresql_with={"fillfactor": "85"},
)

# Rungs that were reached: each round of a step once, and by an invitee of its own where it is one's own.
steps = sa.Table(
    "steps",
    metadata,
    *columns.member_key(),
    columns.key("campaign_id"),
    columns.key("step_id"),
    columns.numbered("round"),
    columns.number("campaign_version"),
    columns.number("depth"),
    columns.number("position"),
    columns.flag("each"),
    columns.text("attribution_id"),
    columns.number("attempt"),
    columns.instant("reach_time"),
    columns.flag("lost"),
    sa.CheckConstraint("depth BETWEEN 1 AND 2", name="steps_depth"),
    # Nobody is paid for nothing.
    sa.CheckConstraint("position > 0 AND attribution_id <> ''", name="steps_by_an_invitee"),
    sa.CheckConstraint("round > 0 AND attempt > 0 AND campaign_version > 0", name="steps_counted"),
    postgresql_with={"fillfactor": "85"},
)
sa.Index(
    "steps_invitee_once",
    *(steps.c[name] for name in ("bucket", "member_id", "campaign_id", "step_id", "attribution_id")),
    unique=True,
    postgresql_where=steps.c.each,
)

# What rungs give, kept with the inviter, whoever gets it.
rewards = sa.Table(
    "rewards",
    metadata,
    *columns.member_key(),
    columns.key("reward_id"),
    columns.text("campaign_id"),
    columns.number("campaign_version"),
    columns.text("step_id"),
    columns.number("round"),
    columns.number("attempt"),
    columns.text("role"),
    columns.text("receiver_id"),
    columns.text("attribution_id"),
    columns.text("gift_kind"),
    columns.text("gift_code"),
    columns.text("gift_group_id"),
    columns.number("quantity"),
    columns.text("currency_code"),
    columns.number("share_basis_points"),
    columns.number("cost_minor"),
    columns.text("order_id"),
    columns.number("qualified_count"),
    columns.instant("reach_time"),
    columns.instant("grant_after"),
    columns.text("status"),
    columns.number("version"),
    columns.instant("grant_time", nullable=True),
    columns.instant("fulfil_by", nullable=True),
    columns.flag("overdue"),
    columns.instant("end_time", nullable=True),
    columns.text("reference_id"),
    columns.text("reason"),
    columns.flag("returned"),
    columns.one_of("rewards", "role", "INVITER", "INVITEE"),
    columns.one_of("rewards", "gift_kind", "POINTS", "CARD", "COUPON", "GROUP_ENTRY", "CASH"),
    columns.one_of(
        *("rewards", "status", "PENDING", "GRANTED", "FULFILLED", "FAILED", "CLAWED_BACK", "WITHDRAWN")
    ),
    columns.not_negative("rewards", "share_basis_points", "cost_minor", "qualified_count", "version"),
    sa.CheckConstraint("round > 0 AND attempt > 0 AND campaign_version > 0", name="rewards_counted"),
    sa.CheckConstraint("(role = 'INVITER') = (receiver_id = member_id)", name="rewards_receiver"),
    sa.CheckConstraint(
        "CASE WHEN gift_kind IN ('POINTS', 'COUPON', 'CASH') THEN quantity > 0 ELSE quantity = 0 END",
        name="rewards_quantity",
    ),
    sa.CheckConstraint(
        "CASE WHEN share_basis_points > 0 THEN gift_kind = 'CASH' AND order_id <> '' ELSE order_id = '' END",
        name="rewards_share",
    ),
    sa.CheckConstraint("reach_time <= grant_after", name="rewards_hold"),
    sa.CheckConstraint(
        "CASE WHEN status IN ('PENDING', 'WITHDRAWN') THEN grant_time IS NULL AND version = 0"
        " ELSE grant_time >= grant_after AND version > 0 END",
        name="rewards_granted",
    ),
    sa.CheckConstraint("(fulfil_by IS NULL) = (status <> 'GRANTED')", name="rewards_fulfil_by"),
    sa.CheckConstraint("(end_time IS NULL) = (status IN ('PENDING', 'GRANTED'))", name="rewards_ended"),
    sa.CheckConstraint(
        "reference_id = '' OR status IN ('FULFILLED', 'CLAWED_BACK')", name="rewards_handed_over"
    ),
    sa.CheckConstraint("reason <> '' OR status NOT IN ('FAILED', 'CLAWED_BACK')", name="rewards_reason"),
    sa.CheckConstraint("NOT returned OR status = 'CLAWED_BACK'", name="rewards_returned"),
    postgresql_with={"fillfactor": "85"},
)
_RUNG = [rewards.c[name] for name in ("bucket", "member_id", "campaign_id", "step_id", "round", "role")]
sa.Index("rewards_attempt_once", *_RUNG, rewards.c.attempt, unique=True)
# A rung that was lost and regained is paid again only once what it had brought is taken back.
sa.Index(
    "rewards_one_stands",
    *_RUNG,
    unique=True,
    postgresql_where=rewards.c.status.in_(["PENDING", "GRANTED", "FULFILLED", "FAILED"]),
)
sa.Index("rewards_once", rewards.c.reward_id, unique=True)  # who hands it over knows its receiver alone
sa.Index("rewards_of_receiver", rewards.c.receiver_id, rewards.c.reward_id)
sa.Index(
    "rewards_granted_of_member",
    rewards.c.bucket,
    rewards.c.member_id,
    postgresql_where=rewards.c.status == "GRANTED",
)
sa.Index(
    "rewards_waiting",
    rewards.c.campaign_id,
    rewards.c.reach_time,
    rewards.c.reward_id,
    postgresql_where=rewards.c.status == "PENDING",
)
sa.Index(
    "rewards_to_return",
    rewards.c.campaign_id,
    postgresql_where=sa.and_(rewards.c.status == "CLAWED_BACK", sa.not_(rewards.c.returned)),
)
sa.Index(
    "rewards_open",
    rewards.c.grant_time,
    rewards.c.reward_id,
    postgresql_where=rewards.c.status.in_(["GRANTED", "FAILED"]),
)
sa.Index(
    "rewards_troubled",
    rewards.c.grant_time,
    rewards.c.reward_id,
    postgresql_where=sa.or_(
        rewards.c.status == "FAILED", sa.and_(rewards.c.status == "GRANTED", rewards.c.overdue)
    ),
)

# Where inviters stand on the leaderboards.
ranks = sa.Table(
    "ranks",
    metadata,
    *columns.member_key(),
    columns.key("campaign_id"),
    columns.number("count"),
    columns.instant("reach_time"),
    columns.not_negative("ranks", "count"),
    postgresql_with={"fillfactor": "70"},
)
# All of it rises, so that who stands before somebody is one range; with the count itself, no more is read.
sa.Index(
    "ranks_leaderboard",
    ranks.c.campaign_id,
    sa.text("(-count)"),
    ranks.c.reach_time,
    ranks.c.member_id,
    postgresql_include=["count"],
    postgresql_where=ranks.c["count"] > 0,
)

# --- what operators decide ----------------------------------------------------------------------------

reviews = sa.Table(
    "reviews",
    metadata,
    *columns.member_key(),
    columns.key("review_id"),
    columns.text("campaign_id"),
    columns.text("attribution_id"),
    columns.text("inviter_id"),
    columns.number("score"),
    sa.Column("signals", JSONB, nullable=False),  # [signal]
    columns.instant("create_time"),
    columns.text("verdict"),
    columns.instant("resolve_time", nullable=True),
    columns.text("resolved_by"),
    columns.text("note"),  # erasable
    columns.one_of("reviews", "verdict", "", "PASS", "REJECT"),
    columns.not_negative("reviews", "score"),
    sa.CheckConstraint("(resolve_time IS NULL) = (verdict = '')", name="reviews_resolved"),
)
sa.Index("reviews_once", reviews.c.review_id, unique=True)
sa.Index(
    "reviews_one_open",
    *(reviews.c[name] for name in ("bucket", "member_id", "attribution_id")),
    unique=True,
    postgresql_where=reviews.c.verdict == "",
)
sa.Index("reviews_open", reviews.c.review_id, postgresql_where=reviews.c.verdict == "")

# Members whom nobody is bound to, and whose rewards wait.
blocks = sa.Table(
    "blocks",
    metadata,
    *columns.member_key(),
    columns.key("campaign_id"),  # empty for all
    columns.text("reason"),  # erasable
    columns.text("author"),
    columns.instant("create_time"),
)

# --- where members meet -------------------------------------------------------------------------------

# Codes of invites. Whoever is first has it.
codes = sa.Table(
    "codes",
    metadata,
    columns.key("code"),
    columns.text("campaign_id"),
    columns.text("member_id"),
    sa.UniqueConstraint("campaign_id", "member_id", name="codes_member_once"),
)

# Two members of whom one brought the other, so that it is never both ways.
pairs = sa.Table(
    "pairs",
    metadata,
    columns.key("campaign_id"),
    columns.key("lesser_id"),
    columns.key("greater_id"),
    sa.CheckConstraint('lesser_id < greater_id COLLATE "C"', name="pairs_ordered"),
)

# With which hashed values of signals members came; they go with who is erased.
signals = sa.Table(
    "signals",
    metadata,
    columns.key("campaign_id"),
    columns.key("signal"),
    columns.key("value"),
    columns.key("member_id"),
    columns.one_of("signals", "signal", "DEVICE", "IP_PREFIX", "PAYMENT_ACCOUNT", "ADDRESS"),
    sa.CheckConstraint("length(value) BETWEEN 1 AND 64", name="signals_value"),
)
sa.Index("signals_of_member", signals.c.member_id)

# What campaigns may spend, and what they have: locked last, by whoever grants or puts.
budgets = sa.Table(
    "budgets",
    metadata,
    columns.key("campaign_id"),
    sa.Column("budget_minor", sa.BigInteger, nullable=False, server_default="0"),  # 0 is no limit
    sa.Column("granted_minor", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("exhausted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    columns.not_negative("budgets", "budget_minor", "granted_minor", "version"),
    sa.CheckConstraint("budget_minor = 0 OR granted_minor <= budget_minor", name="budgets_not_overspent"),
)

# Codes that nobody has, by who tried them, in a minute of wall time.
tries = sa.Table(
    "tries",
    metadata,
    columns.key("subject"),
    columns.numbered("minute"),  # since 1970
    columns.number("count"),
    sa.CheckConstraint("count > 0", name="tries_count"),
)
sa.Index("tries_over", tries.c.minute)

# What was put, version by version: facts. `body` is the message; the rest stands in it too.
campaigns = sa.Table(
    "campaigns",
    metadata,
    columns.key("campaign_id"),
    columns.numbered("version"),
    columns.number("ladder_version"),
    columns.text("kind"),
    columns.instant("open_time"),
    columns.instant("close_time"),
    columns.instant("last_time"),  # from which on nothing that happens matters any more
    sa.Column("hold_period", sa.Interval, nullable=False),
    columns.text("author"),
    columns.instant("create_time"),
    sa.Column("body", sa.LargeBinary, nullable=False),
    columns.one_of("campaigns", "kind", *KINDS),
    sa.CheckConstraint("ladder_version BETWEEN 1 AND version", name="campaigns_version"),
    sa.CheckConstraint("open_time < close_time AND close_time <= last_time", name="campaigns_times"),
)

meta, requests, outbox, stream_erasures, inbox, dead_letters, jobs = tables.common(metadata)

# What may change of a row once it is written; the rest is fact.
CHANGING: Mapping[str, tuple[str, ...]] = {
    "members": ("version", "told", "next_due_time"),
    "answers": ("body",),
    "attributions": (
        *("status", "verdict", "signals", "resolved", "version", "kind", "reference_id", "amount_minor"),
        *("currency_code", "qualify_time"),
    ),
    "facts": (
        *("occur_time", "amount_minor", "currency_code", "attributes", "refunds", "revoke_time"),
        *("revoke_reason", "receive_time", "kept"),
    ),
    "invites": ("masked_name", "ladder_version"),
    "invitees": (
        *("state", "told_epoch", "told_version", "bind_time", "kind", "reference_id", "amount_minor"),
        *("currency_code", "qualify_time", "revoke_reason"),
    ),
    "steps": ("attribution_id", "attempt", "reach_time", "lost"),
    "rewards": (
        *("status", "version", "grant_time", "fulfil_by", "overdue", "end_time", "reference_id", "reason"),
        "returned",
        # While it waits to be granted, it follows its rung.
        *("receiver_id", "attribution_id", "quantity", "cost_minor", "order_id", "qualified_count"),
        *("reach_time", "grant_after"),
    ),
    "ranks": ("count", "reach_time"),
    "reviews": ("verdict", "resolve_time", "resolved_by", "note"),
    "blocks": ("reason", "author", "create_time"),
    "codes": (),
    "pairs": (),
    "signals": (),
    "budgets": ("budget_minor", "granted_minor", "exhausted", "version"),
    "tries": ("count",),
    "campaigns": (),
}
# Members to whom nothing came are dropped again, facts of members whom nobody brought are kept for some time,
# signals go with who is erased, a block is lifted, and what was tried is soon forgotten. Nothing else goes.
GOING = ("members", "facts", "signals", "blocks", "tries")


def grants(role: str) -> list[str]:
    """What the service's role may do: everything on the chassis's tables, and no change of a fact."""
    return tables.grants(role, CHANGING, GOING)
