"""The campaigns' versions."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from services.chassis.database import Connection, Insert, Row, Statement
from services.chassis.statements import By, Lookup, unless_null
from services.chassis.streams import MAX_AGE
from services.referral import tables as t
from services.referral.domain.campaigns import Campaign, FactKind

LATE = timedelta(
    seconds=MAX_AGE
)  # how long ago something happened that is told now: the streams keep no more

_VERSIONS = Lookup(t.campaigns, named=By(("campaign_id", "version")))
_LATEST = Statement(
    sa.select(t.campaigns)
    .where(t.campaigns.c.campaign_id == sa.bindparam("campaign"))
    .order_by(t.campaigns.c.version.desc())
    .limit(sa.literal_column("1"))
)
_HEADS = Statement(
    sa.select(t.campaigns.c.campaign_id, sa.func.max(t.campaigns.c.version).label("version")).group_by(
        t.campaigns.c.campaign_id
    )
)
_LOCK_CAMPAIGNS = Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("campaigns"))))
_AT = sa.bindparam("at", type_=t.INSTANT)
_RUNNING_KINDS = Statement(
    sa.select(t.campaigns.c.kind)
    .distinct()
    .where(
        t.campaigns.c.open_time <= _AT,
        t.campaigns.c.last_time > _AT - sa.bindparam("late", type_=sa.Interval),
    )
)
_ADD_CAMPAIGN = Insert(t.campaigns)


def _page_statement() -> Statement:
    """The latest version of each; whether it is closed is asked of that one alone."""
    latest = (
        sa.select(t.campaigns)
        .ext(distinct_on(t.campaigns.c.campaign_id))
        .where(unless_null("after", sa.Text, lambda after: t.campaigns.c.campaign_id > after))
        .order_by(t.campaigns.c.campaign_id, t.campaigns.c.version.desc())
        .subquery()
    )
    return Statement(
        sa.select(latest)
        .where(unless_null("at", t.INSTANT, lambda at: latest.c.close_time > at))
        .order_by(latest.c.campaign_id)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    )


_PAGE = _page_statement()


async def campaign(connection: Connection, campaign_id: str, version: int | None = None) -> Row | None:
    """A version of a campaign; the latest where none is named."""
    if version is None:
        return await _LATEST.fetch_one(connection, campaign=campaign_id)
    return next(iter(await campaigns(connection, [(campaign_id, version)])), None)


async def campaigns(connection: Connection, names: Collection[tuple[str, int]]) -> list[Row]:
    """Versions of campaigns by id and number."""
    return await _VERSIONS.fetch(connection, named=names)


async def campaign_heads(connection: Connection) -> dict[str, int]:
    """The latest version of each campaign, by id."""
    return {row["campaign_id"]: row["version"] for row in await _HEADS.fetch(connection)}


async def campaign_page(
    connection: Connection, open_at: datetime | None, after: str | None, most: int
) -> list[Row]:
    """The latest version of each campaign, by id; with `open_at` only of those not closed by then."""
    return await _PAGE.fetch(connection, at=open_at, after=after, most=most)


async def lock_last_campaign(connection: Connection, campaign_id: str) -> Row | None:
    """The latest version of a campaign; nobody else puts any until commit."""
    await _LOCK_CAMPAIGNS.fetch(connection)
    return await campaign(connection, campaign_id)


async def running_kinds(connection: Connection, at: datetime) -> set[FactKind]:
    """What campaigns ask for, in any version that something told by now can matter to."""
    return {FactKind(row["kind"]) for row in await _RUNNING_KINDS.fetch(connection, at=at, late=LATE)}


async def add_campaign(
    connection: Connection, campaign: Campaign, *, author: str, create_time: datetime, body: bytes
) -> None:
    """Keeps a version of a campaign; `body` is its message."""
    c = campaign
    row = (
        *(c.campaign_id, c.version, c.ladder_version, c.qualify.kind, c.open_time, c.close_time),
        *(c.settle_time + c.clawback_window, c.hold_period, author, create_time, body),
    )
    await _ADD_CAMPAIGN.rows(connection, [row])
