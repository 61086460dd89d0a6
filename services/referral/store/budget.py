"""Budgets, and the rewards that wait for them, in the order in which they are granted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.chassis.database import Connection, Row, Statement
from services.chassis.statements import By, Lockable, Lookup, Upsert, one_of, replaced
from services.referral import tables as t
from services.referral.domain.profile import RewardStatus
from services.referral.store.rows import budget_rows, to_budget
from services.referral.store.wanted import Budget

_MOST = sa.bindparam("most", type_=sa.BigInteger)
_AT = sa.bindparam("at", type_=t.INSTANT)
_NONE: sa.ColumnElement[str] = sa.literal_column("''")
_ONE: sa.ColumnElement[int] = sa.literal_column("1")
_UNLIMITED: sa.ColumnElement[int] = sa.literal_column("0")


class Waiting(NamedTuple):
    """A reward that waits for the budget, or for its cost to be returned to it."""

    member_id: str
    """The inviter, for whom it is kept."""
    reward_id: str
    cost_minor: int


# --- the rows -----------------------------------------------------------------------------------------

_BUDGETS = Lockable(t.budgets)
_FIND = Lookup(t.budgets, named=By(("campaign_id",)))
_SAVE = Upsert(t.budgets, t.CHANGING["budgets"])


async def budget(connection: Connection, campaign_id: str) -> Budget:
    """What a campaign may spend, and what it has, unlocked."""
    rows = await _FIND.fetch(connection, named=[(campaign_id,)])
    return to_budget(rows[0]) if rows else Budget(campaign_id=campaign_id)


async def lock_budgets(connection: Connection, campaign_ids: Iterable[str]) -> dict[str, Budget]:
    """Budgets by campaign, in whose order they are locked; they are made if they are not there."""
    rows, _ = await _BUDGETS.lock(connection, [(campaign_id,) for campaign_id in sorted(campaign_ids)])
    return {row["campaign_id"]: to_budget(row) for row in rows}


async def save_budgets(
    connection: Connection, before: Mapping[str, Budget], after: Mapping[str, Budget]
) -> None:
    """Writes what became of locked budgets."""
    rows = _SAVE.changed(
        (budget_rows(old or new), budget_rows(new)) for _, old, new in replaced(before, after)
    )
    await _SAVE.write(connection, rows)


# --- what waits ---------------------------------------------------------------------------------------


def _ripe(campaign_id: Any) -> tuple[sa.ColumnElement[bool], ...]:
    """Rewards of a campaign whose time has come.

    The last bound is for the index, which is in the order of granting: none was held for less than the
    shortest time that a version of the campaign said.
    """
    r, c = t.rewards.c, t.campaigns.c
    shortest = sa.select(sa.func.min(c.hold_period)).where(c.campaign_id == campaign_id).scalar_subquery()
    return (
        r.campaign_id == campaign_id,
        one_of(r.status, RewardStatus.PENDING),
        r.grant_after <= _AT,
        r.reach_time <= _AT - shortest,
    )


def _free() -> sa.ColumnElement[bool]:
    """That the inviter for whom a reward is kept is not blocked."""
    r, b = t.rewards.c, t.blocks.c
    blocks = sa.select(_ONE).where(b.bucket == r.bucket, b.member_id == r.member_id)
    return ~blocks.where(sa.or_(b.campaign_id == r.campaign_id, b.campaign_id == _NONE)).exists()


def _to_return(campaign_id: Any) -> tuple[sa.ColumnElement[bool], ...]:
    """Rewards of a campaign that were taken back, and whose cost the budget still has to get."""
    r = t.rewards.c
    return (
        r.campaign_id == campaign_id,
        one_of(r.status, RewardStatus.CLAWED_BACK),
        sa.not_(r.returned),
    )


def _waiting(*which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    r = t.rewards.c
    return sa.select(r.member_id, r.reward_id, r.cost_minor).where(*which)


def _granting() -> Statement:
    """Nothing is to be done where the first that waits does not fit, and that was told."""
    b, r = t.budgets.c, t.rewards.c
    first = (
        _waiting(*_ripe(b.campaign_id), _free())
        .order_by(r.reach_time, r.reward_id)
        .limit(_ONE)
        .lateral("first_due")
    )
    fits = sa.or_(
        b.budget_minor == _UNLIMITED,
        sa.not_(b.exhausted),
        b.granted_minor + first.c.cost_minor <= b.budget_minor,
    )
    return Statement(
        sa.select(b.campaign_id)
        .join_from(t.budgets, first, sa.true(), isouter=True)
        .where(
            sa.or_(
                sa.and_(first.c.reward_id.is_not(None), fits),
                sa.select(_ONE).where(*_to_return(b.campaign_id)).exists(),
            )
        )
        .order_by(b.campaign_id)
    )


_CAMPAIGN = sa.bindparam("campaign", type_=sa.Text)
_GRANTING = _granting()
_TO_GRANT = Statement(
    _waiting(*_ripe(_CAMPAIGN), _free()).order_by(t.rewards.c.reach_time, t.rewards.c.reward_id).limit(_MOST)
)
_TO_RETURN = Statement(_waiting(*_to_return(_CAMPAIGN)).limit(_MOST))
_WAITING_COUNT = Statement(sa.select(sa.func.count()).where(*_ripe(_CAMPAIGN)))


async def granting(connection: Connection, at: datetime) -> list[str]:
    """Campaigns in which something can be granted, told or returned."""
    return [row["campaign_id"] for row in await _GRANTING.fetch(connection, at=at)]


async def to_grant(connection: Connection, campaign_id: str, at: datetime, most: int) -> list[Waiting]:
    """Rewards whose time has come, in the order of granting, but for those of blocked inviters."""
    return _to_waiting(await _TO_GRANT.fetch(connection, campaign=campaign_id, at=at, most=most))


async def to_return(connection: Connection, campaign_id: str, most: int) -> list[Waiting]:
    """Rewards that were taken back and not returned to the budget yet."""
    return _to_waiting(await _TO_RETURN.fetch(connection, campaign=campaign_id, most=most))


def _to_waiting(rows: Iterable[Row]) -> list[Waiting]:
    return [Waiting(*row) for row in rows]


async def waiting_count(connection: Connection, campaign_id: str, at: datetime) -> int:
    """How many rewards wait whose time has come, those of blocked members too."""
    count: int = await _WAITING_COUNT.fetch_value(connection, campaign=campaign_id, at=at)
    return count
