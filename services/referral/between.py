"""The books' proof where several members meet: each check by a statement of its own, and not by member."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

import sqlalchemy as sa

from services.chassis.audit import Findings
from services.chassis.database import Row, Statement
from services.chassis.statements import word
from services.referral import tables as t
from services.referral.domain.profile import AttributionStatus, InviteeState, RewardStatus

LATE = timedelta(hours=1)  # of wall time, after which what was told must have arrived

_COUNTING = ("kind", "reference_id", "amount_minor", "currency_code", "qualify_time")


def _number(number: int) -> sa.ColumnElement[int]:
    return sa.literal_column(str(number))


def _bonds() -> Statement:
    """Attributions of which an inviter was told, with what that inviter knows of them.

    Of two levels, the one who brought the inviter is told last. What is behind comes with the time of the
    last event that there was.
    """
    a, i, o = t.attributions.c, t.invitees.c, t.outbox.c
    columns = [a[name] for name in ("bucket", "member_id", "campaign_id", "attribution_id", "status", "kind")]
    columns += [a[name] for name in ("reference_id", "amount_minor", "currency_code", "qualify_time")]
    two = sa.case((a.grand_inviter_id == word(""), _number(0)), else_=_number(1))
    near = sa.select(
        *columns, a.inviter_id.label("of"), _number(1).label("depth"), (a.version - two).label("told")
    )
    far = sa.select(*columns, a.grand_inviter_id, _number(2), a.version)
    some = a.version > _number(0)
    bonds = sa.union_all(near.where(some), far.where(some, a.grand_inviter_id != word(""))).subquery("bonds")
    b = bonds.c
    same = sa.and_(
        *(b[name] == i[name] for name in ("campaign_id", "attribution_id", "depth")),
        *(b.of == i.member_id, b.member_id == i.invitee_id),
    )
    last = (
        sa.select(sa.func.max(o.create_time))
        .where(o.bucket == b.bucket, o.entity_key == b.member_id, o.subject.like(word("%.Invitee%")))
        .scalar_subquery()
    )
    behind = sa.and_(b.told.is_not(None), sa.or_(i.told_version.is_(None), i.told_version < b.told))
    known = [i[name].label(f"known_{name}") for name in _COUNTING]
    return Statement(
        sa.select(
            sa.func.coalesce(b.of, i.member_id).label("of"),
            sa.func.coalesce(b.attribution_id, i.attribution_id).label("attribution_id"),
            *(b.told, b.status, b.kind, b.reference_id, b.amount_minor, b.currency_code, b.qualify_time),
            *(i.told_version, i.state, *known),
            sa.case((behind, last)).label("last_time"),
        ).select_from(sa.join(bonds, t.invitees, same, full=True))
    )


def _spent() -> Statement:
    """Budgets, with what rewards cost that were granted and not returned."""
    b, r = t.budgets.c, t.rewards.c
    granted = (RewardStatus.GRANTED, RewardStatus.FULFILLED, RewardStatus.FAILED)
    costs = sa.or_(
        r.status.in_([word(status) for status in granted]),
        sa.and_(r.status == word(RewardStatus.CLAWED_BACK), sa.not_(r.returned)),
    )
    spent = (
        sa.select(r.campaign_id, sa.func.sum(r.cost_minor).label("minor"))
        .where(costs)
        .group_by(r.campaign_id)
        .subquery("spent")
    )
    return Statement(
        sa.select(
            sa.func.coalesce(b.campaign_id, spent.c.campaign_id).label("campaign_id"),
            *(b.budget_minor, b.granted_minor, spent.c.minor),
        ).select_from(sa.join(t.budgets, spent, b.campaign_id == spent.c.campaign_id, full=True))
    )


def _codes() -> Statement:
    """Invites and attributions whose code is not their inviter's, and codes without an invite."""
    i, a, c = t.invites.c, t.attributions.c, t.codes.c
    mine = sa.and_(*(i[name] == c[name] for name in ("code", "campaign_id", "member_id")))
    invites = (
        sa.select(
            sa.func.coalesce(i.member_id, c.member_id).label("of"),
            sa.func.coalesce(i.code, c.code).label("code"),
        )
        .select_from(sa.join(t.invites, t.codes, mine, full=True))
        .where(sa.or_(i.code.is_(None), c.code.is_(None)))
    )
    theirs = sa.and_(a.code == c.code, a.campaign_id == c.campaign_id, a.inviter_id == c.member_id)
    bonds = (
        sa.select(a.member_id, a.code)
        .select_from(sa.join(t.attributions, t.codes, theirs, isouter=True))
        .where(c.code.is_(None))
    )
    return Statement(sa.union_all(invites, bonds))


def _pairs() -> Statement:
    """Attributions without their claim, and claims without an attribution."""
    a, p = t.attributions.c, t.pairs.c
    first = sa.collate(a.member_id, "C") < a.inviter_id
    lesser = sa.case((first, a.member_id), else_=a.inviter_id)
    greater = sa.case((first, a.inviter_id), else_=a.member_id)
    bonds = sa.select(a.campaign_id, lesser.label("lesser_id"), greater.label("greater_id")).subquery("bonds")
    names = ("campaign_id", "lesser_id", "greater_id")
    same = sa.and_(*(bonds.c[name] == p[name] for name in names))
    return Statement(
        sa.select(
            *(sa.func.coalesce(bonds.c[name], p[name]).label(name) for name in names),
            p.lesser_id.is_(None).label("unclaimed"),
        )
        .select_from(sa.join(bonds, t.pairs, same, full=True))
        .where(sa.or_(bonds.c.lesser_id.is_(None), p.lesser_id.is_(None)))
    )


def _reviews() -> Statement:
    """Bonds that wait for an operator, and open reviews."""
    a, r = t.attributions.c, t.reviews.c
    open_ = sa.select(r.attribution_id, r.member_id).where(r.verdict == word("")).subquery("open")
    same = sa.and_(a.attribution_id == open_.c.attribution_id, a.member_id == open_.c.member_id)
    return Statement(
        sa.select(a.member_id, a.attribution_id, open_.c.attribution_id.is_not(None).label("shown"))
        .select_from(sa.join(t.attributions, open_, same, isouter=True))
        .where(a.verdict == word("REVIEW"))
    )


class Between:
    """What must be so between members, and between members and campaigns."""

    def __init__(self, found: Findings, budgets: Mapping[str, int]) -> None:
        """`budgets` are what campaigns may spend by their last versions, in minor units."""
        self._found = found
        self._budgets = budgets

    def checks(self) -> Iterable[tuple[Statement, Callable[[Row], None]]]:
        """Statements, and what checks each of their rows."""
        return (
            *((_bonds(), self._bond), (_spent(), self._spending), (_codes(), self._code)),
            *((_pairs(), self._pair), (_reviews(), self._review)),
        )

    def _bond(self, row: Row) -> None:
        """An attribution, and what its inviter knows of it."""
        self._found.seen["invitees"] += 1
        who, name = row["of"], row["attribution_id"]
        told, known = row["told"], row["told_version"]
        if told is None or (known is not None and known > told):
            self._found.expect("invitees", False, who, f"knows of {name} what it was never told")
        elif known is None or known < told:
            late = row["last_time"] is None or row["last_time"] <= self._found.now - LATE
            self._found.expect("invitees", not late, who, f"knows of {name} {known or 0} of {told} events")
        else:
            counts = row["status"] == AttributionStatus.QUALIFIED
            same = counts == (row["state"] == InviteeState.QUALIFIED)
            what = f"has {name} as {row['state']}, and it is {row['status']}"
            self._found.expect("invitees", same, who, what)
            facts = all(row[field] == row[f"known_{field}"] for field in _COUNTING)
            self._found.expect("invitees", facts or not counts, who, f"has {name} by another fact")

    def _spending(self, row: Row) -> None:
        """A budget, and what was granted of it."""
        self._found.seen["budgets"] += 1
        campaign_id, granted, cost = row["campaign_id"], row["granted_minor"] or 0, row["minor"] or 0
        self._found.expect("budgets", granted == cost, campaign_id, f"granted {granted}, rewards cost {cost}")
        budget = self._budgets.get(campaign_id)
        what = f"may grant {row['budget_minor']}, its last version says {budget}"
        self._found.expect("budgets", row["budget_minor"] == budget, campaign_id, what)
        within = not budget or cost <= budget
        self._found.expect("budgets", within, campaign_id, f"granted {cost} of {budget}")

    def _code(self, row: Row) -> None:
        """A code that is not whose it should be."""
        self._found.expect("claims", False, row["of"], f"{row['code']} is not claimed by its inviter")

    def _pair(self, row: Row) -> None:
        """Two members in a campaign of whom just one of claim and attribution is there."""
        what = (
            "brought one the other unclaimed"
            if row["unclaimed"]
            else "are claimed, and none brought the other"
        )
        who = f"{row['campaign_id']} {row['lesser_id']} {row['greater_id']}"
        self._found.expect("claims", False, who, what)

    def _review(self, row: Row) -> None:
        """A bond that waits for an operator."""
        self._found.seen["reviews"] += 1
        what = f"{row['attribution_id']} is in no open review"
        self._found.expect("reviews", row["shown"], row["member_id"], what)
