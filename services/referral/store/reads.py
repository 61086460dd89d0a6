"""Reading without a lock: what members have as invitees and as inviters, leaderboards, operators' lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from services.chassis.database import Connection, Row, Statement
from services.chassis.ids import bucket
from services.chassis.statements import MEMBER, By, Gathered, Lookup, of_member, one_of, unless_null
from services.referral import tables as t
from services.referral.domain.profile import (
    Attribution,
    Invite,
    Invitee,
    Profile,
    Rank,
    Reward,
    RewardStatus,
)
from services.referral.store.rows import (
    to_attribution,
    to_invite,
    to_invitee,
    to_profile,
    to_rank,
    to_review,
    to_reward,
    to_rung,
)
from services.referral.store.wanted import Review, SignalSeen

EXACT = 10_000  # places of a leaderboard that are counted

_AT = sa.bindparam("at", type_=t.INSTANT)
_MOST = sa.bindparam("most", type_=sa.BigInteger)
_ONE: sa.ColumnElement[int] = sa.literal_column("1")
_NOTHING: sa.ColumnElement[int] = sa.literal_column("0")

# --- what members have --------------------------------------------------------------------------------

_INVITEES = Gathered(t.invitees)
_RUNGS = Gathered(t.steps)
_REWARDS = Gathered(t.rewards)


def _inviter_statement() -> Statement:
    """One statement, so that all of it is of one instant."""
    campaign = sa.bindparam("campaign", type_=sa.Text)

    def mine(table: sa.Table) -> list[sa.ColumnElement[bool]]:
        return [*(table.c[name] == t.members.c[name] for name in MEMBER), table.c.campaign_id == campaign]

    invitees, rungs = _INVITEES.where(*mine(t.invitees)), _RUNGS.where(*mine(t.steps))
    rewards = _REWARDS.where(*mine(t.rewards))
    return Statement(
        sa.select(t.members, invitees, rungs, rewards)
        .join_from(t.members, invitees, sa.true())
        .join(rungs, sa.true())
        .join(rewards, sa.true())
        .where(*of_member(t.members))
    )


_INVITER = _inviter_statement()


async def inviter(connection: Connection, member_id: str, campaign_id: str) -> Profile | None:
    """A member that is known, with all its invitees, rungs and rewards of a campaign. Never to be saved."""
    row = await _INVITER.fetch_one(connection, b=bucket(member_id), member=member_id, campaign=campaign_id)
    if row is None:
        return None
    profile = to_profile(row)
    for each in map(to_invitee, _INVITEES.rows(row)):
        profile.invitees[each.attribution_id, each.depth] = each
    profile.rungs = {rung.name: rung for rung in map(to_rung, _RUNGS.rows(row))}
    profile.rewards = {reward.reward_id: reward for reward in map(to_reward, _REWARDS.rows(row))}
    return profile


_MEMBER = Statement(sa.select(t.members).where(*of_member(t.members)))
_INVITES = Statement(
    sa.select(t.invites)
    .where(
        *of_member(t.invites), unless_null("campaign", sa.Text, lambda name: t.invites.c.campaign_id == name)
    )
    .order_by(t.invites.c.campaign_id)
)
_ATTRIBUTIONS = Statement(
    sa.select(t.attributions).where(*of_member(t.attributions)).order_by(t.attributions.c.campaign_id)
)
_FACT_PAGE = Statement(
    sa.select(t.facts)
    .where(
        *of_member(t.facts),
        sa.tuple_(t.facts.c.kind, t.facts.c.reference_id)
        > sa.tuple_(
            sa.bindparam("after_kind", type_=sa.Text), sa.bindparam("after_reference", type_=sa.Text)
        ),
    )
    .order_by(t.facts.c.kind, t.facts.c.reference_id)
    .limit(_MOST)
)
_SIGNALS_OF = Statement(
    sa.select(t.signals)
    .where(t.signals.c.member_id == sa.bindparam("member"))
    .order_by(t.signals.c.campaign_id, t.signals.c.signal, t.signals.c.value)
)


async def member(connection: Connection, member_id: str) -> Profile | None:
    """What other services told of a member; None where nothing is kept about it."""
    row = await _MEMBER.fetch_one(connection, b=bucket(member_id), member=member_id)
    return None if row is None else to_profile(row)


async def invite(connection: Connection, member_id: str, campaign_id: str) -> Invite | None:
    """A member's invite in a campaign."""
    rows = await _INVITES.fetch(connection, b=bucket(member_id), member=member_id, campaign=campaign_id)
    return to_invite(rows[0]) if rows else None


async def invites(connection: Connection, member_id: str) -> list[Invite]:
    """All of a member's invites, by campaign."""
    rows = await _INVITES.fetch(connection, b=bucket(member_id), member=member_id, campaign=None)
    return [to_invite(row) for row in rows]


async def attributions(connection: Connection, member_id: str) -> list[Attribution]:
    """By whom a member was brought, by campaign."""
    rows = await _ATTRIBUTIONS.fetch(connection, b=bucket(member_id), member=member_id)
    return [to_attribution(row) for row in rows]


async def fact_page(connection: Connection, member_id: str, after: tuple[str, str], most: int) -> list[Row]:
    """What a member did, as `to_fact` reads it, by kind and id; two empty texts begin."""
    return await _FACT_PAGE.fetch(
        connection,
        b=bucket(member_id),
        member=member_id,
        after_kind=after[0],
        after_reference=after[1],
        most=most,
    )


async def signals_of(connection: Connection, member_id: str) -> list[SignalSeen]:
    """The signals that a member came with."""
    return [SignalSeen(*row) for row in await _SIGNALS_OF.fetch(connection, member=member_id)]


# --- codes, and what belongs to whom ------------------------------------------------------------------

_CODES = Lookup(t.codes, named=By(("code",)))
_REWARD = Lookup(t.rewards, named=By(("reward_id",)))
_REVIEW = Lookup(t.reviews, named=By(("review_id",)))


async def owners(connection: Connection, codes: Collection[str]) -> dict[str, tuple[str, str]]:
    """The campaign and the member that codes are of, as far as somebody has them. That never changes."""
    rows = await _CODES.fetch(connection, named=[(code,) for code in codes])
    return {row["code"]: (row["campaign_id"], row["member_id"]) for row in rows}


async def inviters_of(connection: Connection, reward_ids: Collection[str]) -> dict[str, str]:
    """For whom rewards are kept, whoever gets them. That never changes."""
    rows = await _REWARD.fetch(connection, named=[(reward_id,) for reward_id in reward_ids])
    return {row["reward_id"]: row["member_id"] for row in rows}


async def reward(connection: Connection, reward_id: str) -> tuple[str, Reward] | None:
    """The inviter for whom a reward is kept, and the reward."""
    rows = await _REWARD.fetch(connection, named=[(reward_id,)])
    return (rows[0]["member_id"], to_reward(rows[0])) if rows else None


async def review(connection: Connection, review_id: str) -> Review | None:
    """A review."""
    rows = await _REVIEW.fetch(connection, named=[(review_id,)])
    return to_review(rows[0]) if rows else None


# --- lists --------------------------------------------------------------------------------------------

_INVITEE_PAGE = Statement(
    sa.select(t.invitees)
    .where(
        *of_member(t.invitees),
        t.invitees.c.campaign_id == sa.bindparam("campaign"),
        unless_null("depth", sa.BigInteger, lambda depth: t.invitees.c.depth == depth),
        unless_null("before", sa.Text, lambda before: t.invitees.c.attribution_id < before),
    )
    .order_by(t.invitees.c.attribution_id.desc())
    .limit(_MOST)
)
_INVITEES_OF = Statement(
    sa.select(t.invitees)
    .where(*of_member(t.invitees))
    .order_by(t.invitees.c.attribution_id.desc())
    .limit(_MOST)
)


def _reward_page(*of: sa.ColumnElement[bool]) -> Statement:
    r = t.rewards.c
    return Statement(
        sa.select(t.rewards)
        .where(
            *of,
            unless_null("campaign", sa.Text, lambda campaign: r.campaign_id == campaign),
            unless_null("status", sa.Text, lambda status: r.status == status),
            unless_null("after", sa.Text, lambda after: r.reward_id > after),
        )
        .order_by(r.reward_id)
        .limit(_MOST)
    )


_RECEIVED = _reward_page(t.rewards.c.receiver_id == sa.bindparam("member"))
_REACHED = _reward_page(*of_member(t.rewards))


FIRST: tuple[datetime, str] = (datetime(1, 1, 1, tzinfo=UTC), "")
"""Comes before every reward that was granted."""


_UNCLOSED = one_of(t.rewards.c.status, RewardStatus.GRANTED, RewardStatus.FAILED)
_TROUBLE = sa.or_(
    one_of(t.rewards.c.status, RewardStatus.FAILED),
    sa.and_(one_of(t.rewards.c.status, RewardStatus.GRANTED), t.rewards.c.overdue),
)


def _open_page(such: sa.ColumnElement[bool]) -> Statement:
    """Rewards of all members by the time they were granted."""
    r = t.rewards.c
    after = sa.tuple_(
        sa.bindparam("after_time", type_=t.INSTANT), sa.bindparam("after_reward", type_=sa.Text)
    )
    return Statement(
        sa.select(t.rewards)
        .where(such, sa.tuple_(r.grant_time, r.reward_id) > after)
        .where(unless_null("campaign", sa.Text, lambda campaign: r.campaign_id == campaign))
        .order_by(r.grant_time, r.reward_id)
        .limit(_MOST)
    )


_OPEN = _open_page(_UNCLOSED)
_TROUBLED = _open_page(_TROUBLE)


def _review_page(*such: sa.ColumnElement[bool]) -> Statement:
    return Statement(
        sa.select(t.reviews)
        .where(*such, t.reviews.c.review_id > sa.bindparam("after", type_=sa.Text))
        .where(unless_null("campaign", sa.Text, lambda campaign: t.reviews.c.campaign_id == campaign))
        .order_by(t.reviews.c.review_id)
        .limit(_MOST)
    )


_REVIEWS = _review_page()
_UNRESOLVED = _review_page(t.reviews.c.verdict == sa.literal_column("''"))


async def invitee_page(
    connection: Connection,
    member_id: str,
    *,
    campaign_id: str,
    depth: int,
    before: str | None,
    most: int,
) -> list[Row]:
    """Invitees as `to_invitee` reads them, newest first, by `attribution_id`."""
    return await _INVITEE_PAGE.fetch(
        connection,
        b=bucket(member_id),
        member=member_id,
        campaign=campaign_id,
        depth=depth,
        before=before,
        most=most,
    )


async def invitees_of(connection: Connection, member_id: str, most: int) -> list[Invitee]:
    """Whom a member brought, in any campaign and depth, newest first."""
    rows = await _INVITEES_OF.fetch(connection, b=bucket(member_id), member=member_id, most=most)
    return [to_invitee(row) for row in rows]


async def received_page(
    connection: Connection,
    member_id: str,
    *,
    campaign_id: str | None = None,
    status: str | None = None,
    after: str | None,
    most: int,
) -> list[Row]:
    """Rewards that a member gets, as `to_reward` reads them, by `reward_id`; `member_id` is the inviter."""
    return await _RECEIVED.fetch(
        connection, member=member_id, campaign=campaign_id, status=status, after=after, most=most
    )


async def reached_page(
    connection: Connection,
    member_id: str,
    *,
    campaign_id: str | None = None,
    status: str | None = None,
    after: str | None,
    most: int,
) -> list[Row]:
    """Rewards of a member's rungs, whoever gets them, as `to_reward` reads them, by `reward_id`."""
    return await _REACHED.fetch(
        connection,
        b=bucket(member_id),
        member=member_id,
        campaign=campaign_id,
        status=status,
        after=after,
        most=most,
    )


async def open_page(
    connection: Connection, campaign_id: str | None, after: tuple[datetime, str], most: int, *, troubled: bool
) -> list[Row]:
    """Rewards that were granted and wait to be handed over, as `to_reward` reads them; FIRST begins.

    `troubled` are those alone that failed or are overdue. By `grant_time` and `reward_id`.
    """
    statement = _TROUBLED if troubled else _OPEN
    return await statement.fetch(
        connection, campaign=campaign_id, after_time=after[0], after_reward=after[1], most=most
    )


async def review_page(
    connection: Connection, campaign_id: str | None, after: str, most: int, *, resolved: bool
) -> list[Row]:
    """Reviews as `to_review` reads them, by `review_id`; `resolved` means also those."""
    statement = _REVIEWS if resolved else _UNRESOLVED
    return await statement.fetch(connection, campaign=campaign_id, after=after, most=most)


# --- who is to be counted again -------------------------------------------------------------------------


def _outdated_statement() -> Statement:
    """Of each campaign's latest version, if its ladder ever changed, a range of an index."""
    c, i = t.campaigns.c, t.invites.c
    latest = (
        sa.select(c.campaign_id, c.ladder_version)
        .ext(distinct_on(c.campaign_id))
        .order_by(c.campaign_id, c.version.desc())
        .subquery("latest")
    )
    behind = (
        sa.select(i.member_id)
        .where(i.campaign_id == latest.c.campaign_id)
        .where(i.ladder_version > _NOTHING, i.ladder_version < latest.c.ladder_version)
        .limit(_MOST)
        .lateral("behind")
    )
    return Statement(
        sa.select(behind.c.member_id, latest.c.campaign_id)
        .join_from(latest, behind, sa.true())
        .where(latest.c.ladder_version > _ONE)
        .limit(_MOST)
    )


_OUTDATED = _outdated_statement()


async def outdated(connection: Connection, most: int) -> list[tuple[str, str]]:
    """Inviters, with the campaign, whose rungs were found by other rungs or caps than its latest ones."""
    rows = await _OUTDATED.fetch(connection, most=most)
    return [(row["member_id"], row["campaign_id"]) for row in rows]


# --- leaderboards -------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where an inviter stands."""

    number: int
    """From 1; EXACT + 1 for all that come after."""
    member_id: str
    rank: Rank
    masked_name: str


def _places(ranks: sa.FromClause, *others: Any) -> sa.Select[Any]:
    """Ranks with the names of their members."""
    same = (t.invites.c[name] == ranks.c[name] for name in (*MEMBER, "campaign_id"))
    name = sa.select(t.invites.c.masked_name).where(*same).scalar_subquery()
    return sa.select(ranks, name.label("masked_name"), *others)


def _top_statement() -> Statement:
    r = t.ranks.c
    top = (
        sa.select(t.ranks)
        .where(r.campaign_id == sa.bindparam("campaign"), r["count"] > _NOTHING)
        .order_by(-r["count"], r.reach_time, r.member_id)
        .limit(_MOST)
        .subquery("top")
    )
    return Statement(_places(top).order_by(-top.c["count"], top.c.reach_time, top.c.member_id))


def _place_statement() -> Statement:
    """Who stands before a member is a range of the index, of which no more is read than is counted.

    It is read in order, or of a leader's few the planner, who expects many, would look for any in the table.
    """
    own, before = t.ranks, t.ranks.alias("before")

    def standing(ranks: sa.FromClause) -> Sequence[Any]:
        return -ranks.c["count"], ranks.c.reach_time, ranks.c.member_id

    better = (
        sa.select(_ONE)
        .where(before.c.campaign_id == own.c.campaign_id, before.c["count"] > _NOTHING)
        .where(sa.tuple_(*standing(before)) < sa.tuple_(*standing(own)))
        .order_by(*standing(before))
        .limit(sa.literal_column(str(EXACT)))
        .correlate(own)
        .subquery("better")
    )
    counted = sa.select(sa.func.count()).select_from(better).scalar_subquery()
    return Statement(
        _places(own, counted.label("better")).where(
            *of_member(own), own.c.campaign_id == sa.bindparam("campaign"), own.c["count"] > _NOTHING
        )
    )


_TOP = _top_statement()
_PLACE = _place_statement()


async def leaderboard(connection: Connection, campaign_id: str, most: int) -> list[Place]:
    """Who brought most, and first."""
    rows = await _TOP.fetch(connection, campaign=campaign_id, most=most)
    return [_to_place(number, row) for number, row in enumerate(rows, 1)]


async def place(connection: Connection, campaign_id: str, member_id: str) -> Place | None:
    """Where a member stands; None where nobody counts for it."""
    row = await _PLACE.fetch_one(connection, b=bucket(member_id), member=member_id, campaign=campaign_id)
    return None if row is None else _to_place(row["better"] + 1, row)


def _to_place(number: int, row: Row) -> Place:
    return Place(number, row["member_id"], to_rank(row), row["masked_name"] or "")


# --- what the clock asks for --------------------------------------------------------------------------

_DUE_MEMBERS = Statement(
    sa.select(t.members.c.member_id)
    .where(t.members.c.next_due_time <= _AT)
    .order_by(t.members.c.next_due_time)
    .limit(_MOST)
)
_TROUBLE_COUNT = Statement(
    sa.select(t.rewards.c.reward_id, sa.func.count().over().label("count"))
    .where(_TROUBLE)
    .order_by(t.rewards.c.grant_time, t.rewards.c.reward_id)
    .limit(_MOST)
)


async def due_members(connection: Connection, at: datetime, most: int) -> list[str]:
    """Members for whom something fell due, longest ago first."""
    rows = await _DUE_MEMBERS.fetch(connection, at=at, most=most)
    return [row["member_id"] for row in rows]


async def troubled(connection: Connection, most: int) -> tuple[int, list[str]]:
    """How many rewards failed or are overdue, and the first of them."""
    rows = await _TROUBLE_COUNT.fetch(connection, most=most)
    return (rows[0]["count"] if rows else 0, [row["reward_id"] for row in rows])
