"""The books' proof: everything is found again from what was told, over the whole store, while it is at work.

What an inviter knows of its invitees comes by our own events, so it may be behind; only what should have come
long ago is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections import ChainMap, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as groups
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as epb

from services.chassis.audit import (
    PREFETCH,
    READ_TIMEOUT,
    STEP,
    Findings,
    Report,
    Rows,
    by_member,
    published,
)
from services.chassis.clock import from_micros, wall
from services.chassis.database import Connection, Database, Row, Statement
from services.chassis.retention import OUTBOX_KEPT
from services.referral import events
from services.referral import tables as t
from services.referral.domain import attributions, ladder, rewards
from services.referral.domain.campaigns import Campaign, Gift, GiftKind, Step
from services.referral.domain.ladder import Line
from services.referral.domain.profile import (
    Attribution,
    AttributionStatus,
    InviteeState,
    RevokeReason,
    Reward,
    RewardStatus,
    Role,
    Rung,
    RungName,
)
from services.referral.domain.rewards import Basis
from services.referral.rules import Campaigns, CompiledCampaign
from services.referral.settings import ReferralSettings
from services.referral.store import rows

MARGIN = timedelta(days=1)  # by which an event may outlive the kept range before its absence counts
LATE = timedelta(hours=1)  # of wall time, after which what was told must have arrived

CHECKS = {
    "members": "every row has its member, and can be read",
    "bonds": "every attribution stands where the facts of its invitee put it",
    "invitees": "an inviter counts just the distinct invitees whose attributions are qualified",
    "ladder": "the rungs of an inviter are those that so many invitees reach, each once",
    "rewards": "each rung gives each side what its campaign says, net once",
    "ranks": "the leaderboard says what counts",
    "budgets": "what was granted of each budget is what its rewards cost, and is within it",
    "claims": "every code and every pair of members is claimed by whom it is about",
    "reviews": "every bond that waits for an operator is shown to one",
    "due": "what is due of a member next is what its bonds and rewards say",
    "events": "events about each thing are numbered without a gap",
}
STREAM_CHECK = "every event that was sent is in the stream as it was written"
FULFILLED_CHECK = "rewards are fulfilled just as points, cards and groups report by event"

_COUNTING = ("kind", "reference_id", "amount_minor", "currency_code", "qualify_time")

Entity = tuple[str, str]
"""What an event counts in its version: the kind of thing, and its name."""

# Who reports that rewards of a kind were handed over: the stream, and the event.
_GIVERS = {
    GiftKind.POINTS: ("POINTS", points.RewardFulfilled),
    GiftKind.CARD: ("CARDS", cards.RewardFulfilled),
    GiftKind.GROUP_ENTRY: ("GROUPS", groups.RewardFulfilled),
}


@dataclass(frozen=True, slots=True)
class _Streams:
    """What streams carry."""

    bodies: Mapping[str, bytes]
    """A hash of each event of ours, by its id."""
    fulfilled: Mapping[str, datetime]
    """Rewards that others reported, and when."""


async def audit(
    url: str,
    progress: Callable[[str, int], None] | None = None,
    *,
    stream_url: str | None = None,
    time_zone: str | None = None,
) -> Report:
    """Audits a referral database, and with `stream_url` the streams against it.

    `progress` hears the number of members done. `time_zone` is the one in which the service counts days, by
    default as its settings say. Raises DatabaseUnavailable.
    """
    database = await Database.open(url, size=2, name="audit", command_timeout=READ_TIMEOUT)
    try:
        async with database.snapshot() as connection:
            campaigns = await _campaigns(connection)
            # What this snapshot says was sent must be in the stream by now.
            streams = await _streams(stream_url) if stream_url else None
            audit = _Audit(campaigns, ZoneInfo(time_zone or _time_zone()), streams)
            for name, first, others, check in (
                ("members", _MEMBERS, _OF_MEMBERS, audit.member),
                ("receivers", _RECEIVERS, _OF_RECEIVERS, audit.receiver),
                ("campaigns", _BUDGETS, _OF_BUDGETS, audit.campaign),
            ):
                done = 0
                async for row, found in by_member(connection, first, others, audit.stray):
                    check(row, found)
                    done += 1
                    if progress and done % STEP == 0:
                        progress(name, done)
            for query, note in (
                *((_BONDS, audit.bond), (_SPENT, audit.spent), (_CODES, audit.code)),
                *((_PAIRS, audit.pair), (_REVIEWS, audit.review)),
            ):
                async for row in connection.cursor(query.text, prefetch=PREFETCH):
                    note(row)
    finally:
        await database.close()
    return audit.report()


def _time_zone() -> str:
    default: str = ReferralSettings.model_fields["time_zone"].default
    return os.environ.get("REFERRAL_TIME_ZONE", default)


async def _campaigns(connection: Connection) -> dict[str, list[CompiledCampaign]]:
    """All versions of each campaign, in order."""
    query = f"SELECT body FROM {t.campaigns.name} ORDER BY campaign_id, version"  # noqa: S608 - ours
    campaigns = Campaigns()
    found: defaultdict[str, list[CompiledCampaign]] = defaultdict(list)
    for row in await connection.fetch(query):
        compiled = campaigns.keep(row["body"])
        found[compiled.campaign.campaign_id].append(compiled)
    return found


async def _streams(url: str) -> _Streams:
    reading = (_reported(url, stream, kind) for stream, kind in _GIVERS.values())
    bodies, reports = await asyncio.gather(_bodies(url), asyncio.gather(*reading))
    return _Streams(bodies, ChainMap(*reports))


async def _bodies(url: str) -> dict[str, bytes]:
    """A hash of what the stream carries, by the event's id."""
    return {
        (message.headers or {}).get("ce-id", ""): _digest(message.subject, message.data)
        async for message in published(url, events.STREAM, events.SUBJECTS[0])
    }


async def _reported(url: str, stream: str, kind: Any) -> dict[str, datetime]:
    """Rewards that a service handed over, and when it said so."""
    return {
        kind.FromString(message.data).reward_id: message.metadata.timestamp
        async for message in published(url, stream, kind.DESCRIPTOR.full_name)
    }


def _digest(subject: str, body: bytes) -> bytes:
    return hashlib.blake2b(subject.encode() + b"\0" + body, digest_size=16).digest()


# --- what is read -------------------------------------------------------------------------------------

_o, _r = t.outbox.c, t.rewards.c
_ABOUT_REWARDS = (epb.RewardGranted, epb.RewardFulfilled, epb.RewardFailed, epb.RewardClawedBack)
_ABOUT_CAMPAIGNS = (epb.BudgetExhausted,)


def _word(word: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{word}'")


def _number(number: int) -> sa.ColumnElement[int]:
    return sa.literal_column(str(number))


def _outbox(*kinds: Any, others: bool = False) -> Rows:
    """The events of these kinds, or all others, which alone are about members in the order of buckets."""
    told = _o.subject.in_([_word(kind.DESCRIPTOR.full_name) for kind in kinds])
    return Rows(
        t.outbox,
        [_o.erased, _o.subject, _o.event_id, _o.body, _o.create_time, _o.sent_at],
        [_o.position],
        where=sa.not_(told) if others else told,
        member="entity_key",
        bucketed=others,
    )


# How the rows of members are read; rewards again by who gets them, since that is whom their events name.
_MEMBERS = Rows(t.members)
_OF_MEMBERS = {
    "attributions": Rows(t.attributions),
    "facts": Rows(t.facts),
    "invites": Rows(t.invites),
    "invitees": Rows(t.invitees),
    "rungs": Rows(t.steps),
    "rewards": Rows(t.rewards),
    "ranks": Rows(t.ranks),
    "outbox": _outbox(*_ABOUT_REWARDS, *_ABOUT_CAMPAIGNS, others=True),
}
_RECEIVERS = Rows(t.members, [t.members.c.version], bucketed=False)
_OF_RECEIVERS = {
    "rewards": Rows(
        t.rewards,
        [_r.reward_id, _r.version, _r.status, _r.gift_kind],
        member="receiver_id",
        bucketed=False,
    ),
    "outbox": _outbox(*_ABOUT_REWARDS),
}
_BUDGETS = Rows(t.budgets, member="campaign_id", bucketed=False)
_OF_BUDGETS = {"outbox": _outbox(*_ABOUT_CAMPAIGNS)}


def _bonds() -> Statement:
    """Attributions of which an inviter was told, with what that inviter knows of them.

    Of two levels, the one who brought the inviter is told last. What is behind comes with the time of the
    last event that there was.
    """
    a, i = t.attributions.c, t.invitees.c
    columns = [a[name] for name in ("bucket", "member_id", "campaign_id", "attribution_id", "status", "kind")]
    columns += [a[name] for name in ("reference_id", "amount_minor", "currency_code", "qualify_time")]
    two = sa.case((a.grand_inviter_id == _word(""), _number(0)), else_=_number(1))
    near = sa.select(
        *columns, a.inviter_id.label("of"), _number(1).label("depth"), (a.version - two).label("told")
    )
    far = sa.select(*columns, a.grand_inviter_id, _number(2), a.version)
    some = a.version > _number(0)
    bonds = sa.union_all(near.where(some), far.where(some, a.grand_inviter_id != _word(""))).subquery("bonds")
    b = bonds.c
    same = sa.and_(
        *(b[name] == i[name] for name in ("campaign_id", "attribution_id", "depth")),
        *(b.of == i.member_id, b.member_id == i.invitee_id),
    )
    last = (
        sa.select(sa.func.max(_o.create_time))
        .where(_o.bucket == b.bucket, _o.entity_key == b.member_id, _o.subject.like(_word("%.Invitee%")))
        .scalar_subquery()
    )
    behind = sa.and_(b.told.is_not(None), sa.or_(i.told_version.is_(None), i.told_version < b.told))
    known = [
        i[name].label(f"known_{name}")
        for name in ("kind", "reference_id", "amount_minor", "currency_code", "qualify_time")
    ]
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
    b, granted = t.budgets.c, (RewardStatus.GRANTED, RewardStatus.FULFILLED, RewardStatus.FAILED)
    costs = sa.or_(
        _r.status.in_([_word(status) for status in granted]),
        sa.and_(_r.status == _word(RewardStatus.CLAWED_BACK), sa.not_(_r.returned)),
    )
    spent = (
        sa.select(_r.campaign_id, sa.func.sum(_r.cost_minor).label("minor"))
        .where(costs)
        .group_by(_r.campaign_id)
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
    open_ = sa.select(r.attribution_id, r.member_id).where(r.verdict == _word("")).subquery("open")
    same = sa.and_(a.attribution_id == open_.c.attribution_id, a.member_id == open_.c.member_id)
    return Statement(
        sa.select(a.member_id, a.attribution_id, open_.c.attribution_id.is_not(None).label("shown"))
        .select_from(sa.join(t.attributions, open_, same, isouter=True))
        .where(a.verdict == _word("REVIEW"))
    )


_BONDS, _SPENT, _CODES, _PAIRS, _REVIEWS = _bonds(), _spent(), _codes(), _pairs(), _reviews()


# --- what must be so ----------------------------------------------------------------------------------


class _Audit:
    def __init__(
        self, campaigns: Mapping[str, Sequence[CompiledCampaign]], zone: ZoneInfo, streams: _Streams | None
    ) -> None:
        self._campaigns = campaigns
        self._zone = zone
        self._streams = streams
        self._now = wall()
        self._kept_since = self._now - OUTBOX_KEPT + MARGIN
        of_streams = {"stream": STREAM_CHECK, "fulfilled": FULFILLED_CHECK} if streams else {}
        self._found = Findings(CHECKS | of_streams)
        self._totals = dict.fromkeys(("members", "attributions", "invitees", "rungs", "rewards"), 0)
        # Whose ladder was the same in all versions: of others, who was where when it changed is not known.
        self._steady = {
            name: versions[-1]
            for name, versions in campaigns.items()
            if len(set(map(_ladder, versions))) == 1
        }

    def report(self) -> Report:
        return self._found.report(self._totals)

    def stray(self, table: str, who: str) -> None:
        """Notes a row whose member, or campaign, is not there."""
        self._found.expect("members", False, who, f"is in {table}, and nowhere else")

    def _readable(self, check: Callable[[], None], who: str) -> None:
        """Checks; forged rows need not have their form."""
        try:
            check()
        except (KeyError, StopIteration, TypeError, ValueError, DecodeError) as error:
            self._found.expect("members", False, who, f"has a row that cannot be read: {error!r}")

    # --- a member -------------------------------------------------------------------------------------

    def member(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        """Checks everything that is kept under one member."""
        self._found.seen["members"] += 1
        self._readable(lambda: self._member(_Member(row, found)), row["member_id"])

    def _member(self, member: _Member) -> None:
        self._bonds(member)
        self._due(member)
        for campaign_id in sorted({rung.campaign_id for rung in member.rungs} | set(member.ranks)):
            self._ladder(member, campaign_id)
        self._stray_rewards(member)
        self._found.seen["claims"] += len(member.invites) + len(member.attributions)
        self._events(member.who, self._told(member.who, member.outbox), member.versions())
        self._totals["members"] += 1
        for name in ("attributions", "invitees", "rungs", "rewards"):
            self._totals[name] += len(getattr(member, name))

    def _bonds(self, member: _Member) -> None:
        self._found.seen["bonds"] += len(member.attributions)
        for bond in member.attributions:
            compiled = self._campaigns[bond.campaign_id][bond.campaign_version - 1]
            # One that waits may have lapsed already, and nobody looked since.
            lapsed = bond.status is AttributionStatus.LAPSED
            at = bond.lapse_time if lapsed else bond.bind_time
            standing = attributions.stand(bond, compiled.campaign, member.facts, compiled.when, at)
            now = standing.attribution
            what = f"{bond.attribution_id} is {_stands(bond)}, its facts say {_stands(now)}"
            self._found.expect("bonds", now == bond, member.who, what)
            window = bond.lapse_time == compiled.campaign.lapse_time(bond.bind_time)
            self._found.expect("bonds", window, member.who, f"{bond.attribution_id} lapses at another time")

    def _due(self, member: _Member) -> None:
        self._found.seen["due"] += 1
        moments = [attributions.lapses(bond) for bond in member.attributions]
        moments += [reward.fulfil_by for reward in member.rewards]
        due = min((at for at in moments if at is not None), default=None)
        what = f"is due at {member.due}, and something of it at {due}"
        self._found.expect("due", due == member.due, member.who, what)

    def _ladder(self, member: _Member, campaign_id: str) -> None:
        compiled = self._steady.get(campaign_id)
        if compiled is None:
            return
        campaign = compiled.campaign
        invitees = [one for one in member.invitees if one.campaign_id == campaign_id]
        rungs = {rung.name: rung for rung in member.rungs if rung.campaign_id == campaign_id}
        self._found.seen["ladder"] += len(rungs)
        counted = ladder.lines(invitees, campaign, self._zone)
        reached = ladder.climb(campaign, counted, rungs.values())
        for name in sorted(rungs.keys() | reached.keys()):
            what = f"{name} is {_reached(rungs.get(name))}, and should be {_reached(reached.get(name))}"
            self._found.expect("ladder", rungs.get(name) == reached.get(name), member.who, what)
        self._rewards(member, campaign_id, counted, rungs)
        self._rank(member, campaign, counted)

    def _rewards(
        self, member: _Member, campaign_id: str, counted: Mapping[int, Line], rungs: Mapping[RungName, Rung]
    ) -> None:
        given: defaultdict[RungName, list[Reward]] = defaultdict(list)
        for reward in member.rewards:
            if reward.campaign_id == campaign_id:
                given[reward.rung].append(reward)
        for name, rung in rungs.items():
            self._found.seen["rewards"] += len(given[name])
            campaign = self._campaigns[campaign_id][rung.campaign_version - 1].campaign
            basis = Basis(campaign, member.who, counted.get(rung.depth, {}))
            wrong = rewards.follow(basis, rung, given[name], RevokeReason.REFUNDED, self._now)
            what = ", ".join(f"{one.reward_id} should be {one.status}" for one in wrong)
            self._found.expect("rewards", not wrong, member.who, f"{name}: {what}")
            for reward in given[name]:
                made = rewards.reward_id(member.who, rung, reward.role, reward.attempt)
                same = made == reward.reward_id
                self._found.expect("rewards", same, member.who, f"{reward.reward_id} is not {made}")
                gift = _gift(campaign.step(rung.step_id), reward.role)
                same = reward.gift == gift or bool(
                    reward.order_id
                )  # a share is what the order was worth then
                self._found.expect("rewards", same, member.who, f"{reward.reward_id} gives something else")

    def _rank(self, member: _Member, campaign: Campaign, counted: Mapping[int, Line]) -> None:
        """Once a campaign is closed, what its leaderboard was made from may have changed."""
        if campaign.close_time <= self._now:
            return
        self._found.seen["ranks"] += 1
        kept = member.ranks.get(campaign.campaign_id)
        rank = ladder.rank(campaign, counted[1], kept)
        what = f"stands at {kept and kept.count} in {campaign.campaign_id}, and has {rank and rank.count}"
        self._found.expect("ranks", rank == kept, member.who, what)

    def _stray_rewards(self, member: _Member) -> None:
        names = {rung.name for rung in member.rungs}
        for reward in member.rewards:
            known = reward.rung in names
            self._found.expect("rewards", known, member.who, f"{reward.reward_id} is of no rung")

    # --- rewards by who gets them, and campaigns ------------------------------------------------------

    def receiver(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        """Checks the rewards that a member gets."""
        self._readable(lambda: self._receiver(row["member_id"], found), row["member_id"])

    def _receiver(self, who: str, found: Mapping[str, list[Row]]) -> None:
        versions = {("reward", row["reward_id"]): (row["version"], None) for row in found["rewards"]}
        told = self._told(who, found["outbox"])
        self._events(who, told, versions)
        for row in found["rewards"]:
            if self._streams is not None and row["gift_kind"] in _GIVERS:
                self._fulfilled(who, row, told, self._streams.fulfilled.get(row["reward_id"]))

    def _fulfilled(self, who: str, row: Row, told: _Told, reported: datetime | None) -> None:
        """`reported` is when others said that they had handed it over, as far as that is still kept."""
        name, status = row["reward_id"], row["status"]
        self._found.seen["fulfilled"] += 1
        if reported is None:
            known = name not in told.fulfilled
            self._found.expect("fulfilled", known, who, f"{name} is fulfilled, and nobody says so")
        elif reported <= self._now - LATE:
            waits = status in (RewardStatus.GRANTED, RewardStatus.FAILED)
            self._found.expect("fulfilled", not waits, who, f"{name} was handed over, and is {status}")

    def campaign(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        """Checks what was announced of a campaign."""
        who = row["member_id"]
        versions = {("campaign", who): (row["version"], None)}
        self._readable(lambda: self._events(who, self._told(who, found["outbox"]), versions), who)

    # --- events ---------------------------------------------------------------------------------------

    def _told(self, who: str, outbox: Sequence[Row]) -> _Told:
        """What was announced and is kept; what was sent of it must be in the stream."""
        self._found.seen["events"] += len(outbox)
        kept = [row for row in outbox if row["create_time"] >= self._kept_since]
        told = _Told(erased=any(row["erased"] for row in kept))
        for row in kept:
            if not row["erased"]:
                message = getattr(epb, row["subject"].rpartition(".")[2]).FromString(row["body"])
                told.versions[_entity(message)].append(message.version)
                if isinstance(message, epb.RewardFulfilled):
                    told.fulfilled.add(message.reward_id)
                self._sent(who, row)
        return told

    def _sent(self, who: str, row: Row) -> None:
        if self._streams is None or row["sent_at"] is None:
            return
        self._found.seen["stream"] += 1
        there = self._streams.bodies.get(row["event_id"]) == _digest(row["subject"], row["body"])
        self._found.expect("stream", there, who, f"{row['subject']} {row['event_id']} is not there so")

    def _events(self, who: str, told: _Told, versions: Mapping[Entity, tuple[int, datetime | None]]) -> None:
        """Of each thing: how many events there were, and when it was made, where its id says so."""
        for entity, (version, made) in versions.items():
            if told.erased and entity[0] != "attribution":  # of which nothing is erased
                continue
            numbers = told.versions.get(entity, [])
            first = numbers[0] if numbers else version + 1
            since = 1 if made is not None and made >= self._kept_since else first
            whole = numbers == list(range(since, version + 1))
            what = f"{' '.join(entity)} is at version {version}, events say {numbers}"
            self._found.expect("events", whole, who, what)
        for entity in told.versions.keys() - versions.keys():
            self._found.expect("events", False, who, f"an event is about no {' '.join(entity)}")

    # --- between members ------------------------------------------------------------------------------

    def bond(self, row: Row) -> None:
        """An attribution, and what its inviter knows of it."""
        self._found.seen["invitees"] += 1
        who, name = row["of"], row["attribution_id"]
        told, known = row["told"], row["told_version"]
        if told is None or (known is not None and known > told):
            self._found.expect("invitees", False, who, f"knows of {name} what it was never told")
        elif known is None or known < told:
            late = row["last_time"] is None or row["last_time"] <= self._now - LATE
            self._found.expect("invitees", not late, who, f"knows of {name} {known or 0} of {told} events")
        else:
            counts = row["status"] == AttributionStatus.QUALIFIED
            same = counts == (row["state"] == InviteeState.QUALIFIED)
            what = f"has {name} as {row['state']}, and it is {row['status']}"
            self._found.expect("invitees", same, who, what)
            facts = all(row[field] == row[f"known_{field}"] for field in _COUNTING)
            self._found.expect("invitees", facts or not counts, who, f"has {name} by another fact")

    def spent(self, row: Row) -> None:
        """A budget, and what was granted of it."""
        self._found.seen["budgets"] += 1
        campaign_id, granted, cost = row["campaign_id"], row["granted_minor"] or 0, row["minor"] or 0
        self._found.expect("budgets", granted == cost, campaign_id, f"granted {granted}, rewards cost {cost}")
        budget = (
            self._campaigns[campaign_id][-1].campaign.budget_minor if campaign_id in self._campaigns else None
        )
        what = f"may grant {row['budget_minor']}, its last version says {budget}"
        self._found.expect("budgets", row["budget_minor"] == budget, campaign_id, what)
        within = not budget or cost <= budget
        self._found.expect("budgets", within, campaign_id, f"granted {cost} of {budget}")

    def code(self, row: Row) -> None:
        """A code that is not whose it should be."""
        self._found.expect("claims", False, row["of"], f"{row['code']} is not claimed by its inviter")

    def pair(self, row: Row) -> None:
        """Two members in a campaign of whom just one of claim and attribution is there."""
        what = (
            "brought one the other unclaimed"
            if row["unclaimed"]
            else "are claimed, and none brought the other"
        )
        who = f"{row['campaign_id']} {row['lesser_id']} {row['greater_id']}"
        self._found.expect("claims", False, who, what)

    def review(self, row: Row) -> None:
        """A bond that waits for an operator."""
        self._found.seen["reviews"] += 1
        what = f"{row['attribution_id']} is in no open review"
        self._found.expect("reviews", row["shown"], row["member_id"], what)


@dataclass(slots=True)
class _Told:
    """The events about somebody that are still kept."""

    erased: bool
    versions: defaultdict[Entity, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Of those that were not erased, by what they are about."""
    fulfilled: set[str] = field(default_factory=set)
    """The rewards of which that was told."""


class _Member:
    """One member's records."""

    def __init__(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        self.who: str = row["member_id"]
        self.version: int = row["version"]
        self.due: datetime | None = row["next_due_time"]
        self.outbox = found["outbox"]
        self.invites = found["invites"]
        self.attributions = [rows.to_attribution(one) for one in found["attributions"]]
        self.facts = [rows.to_fact(one) for one in found["facts"]]
        self.invitees = [rows.to_invitee(one) for one in found["invitees"]]
        self.rungs = [rows.to_rung(one) for one in found["rungs"]]
        self.rewards = [rows.to_reward(one) for one in found["rewards"]]
        self.ranks = {one["campaign_id"]: rows.to_rank(one) for one in found["ranks"]}

    def versions(self) -> dict[Entity, tuple[int, datetime | None]]:
        """How many events there were about each thing, and when it was made, where its id says so."""
        bonds = {
            ("attribution", one.attribution_id): (one.version, _made(one.attribution_id))
            for one in self.attributions
        }
        return {("member", self.who): (self.version, None), **bonds}


def _ladder(compiled: CompiledCampaign) -> tuple[Any, ...]:
    """What says who counts, and what that reaches."""
    campaign = compiled.campaign
    return (campaign.ladder, campaign.caps, campaign.max_depth)


def _gift(step: Step, role: Role) -> Gift | None:
    return step.reward if role is Role.INVITER else step.invitee_reward


def _stands(bond: Attribution) -> str:
    by = f" by {bond.kind} {bond.reference_id}" if bond.kind else ""
    return f"{bond.status} {bond.verdict}{by}"


def _reached(rung: Rung | None) -> str:
    if rung is None:
        return "not reached"
    return f"{'lost' if rung.lost else 'reached'} by {rung.attribution_id} at attempt {rung.attempt}"


def _made(numbered: str) -> datetime:
    """When an id of ours was made."""
    return from_micros((uuid.UUID(numbered.rpartition("_")[2]).int >> 80) * 1000)


def _entity(message: Any) -> Entity:
    """What an event is about."""
    match message:
        case epb.InviteCreated() | epb.StepReached():
            return ("member", message.member_id)
        case epb.BudgetExhausted():
            return ("campaign", message.campaign_id)
        case epb.RewardGranted() | epb.RewardFulfilled() | epb.RewardFailed() | epb.RewardClawedBack():
            return ("reward", message.reward_id)
    return ("attribution", message.attribution_id)
