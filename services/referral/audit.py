"""The books' proof: everything is found again from what was told, over the whole store, while it is at work.

What an inviter knows of its invitees comes by our own events, so it may be behind; only what should have come
long ago is missing.
"""

from __future__ import annotations

import asyncio
import os
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as groups
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as epb

from services.chassis.audit import (
    Findings,
    Progress,
    Report,
    Rows,
    by_member,
    carried,
    every_row,
    published,
    snapshot,
)
from services.chassis.database import Connection, Row, Statement
from services.chassis.ids import made_at
from services.chassis.statements import word
from services.referral import events
from services.referral import tables as t
from services.referral.between import LATE, Between
from services.referral.domain import attributions, ladder, rewards
from services.referral.domain.campaigns import Campaign, Gift, GiftKind, Step
from services.referral.domain.ladder import Line
from services.referral.domain.profile import (
    Attribution,
    AttributionStatus,
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
FULFILLED_CHECK = "rewards are fulfilled just as points, cards and groups report by event"

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
    progress: Progress | None = None,
    *,
    stream_url: str | None = None,
    time_zone: str | None = None,
) -> Report:
    """Audits a referral database, and with `stream_url` the streams against it.

    `progress` hears the number of members done. `time_zone` is the one in which the service counts days, by
    default as its settings say. Raises DatabaseUnavailable.
    """
    async with snapshot(url) as connection:
        campaigns = await _campaigns(connection)
        # What this snapshot says was sent must be in the stream by now.
        streams = await _streams(stream_url) if stream_url else None
        audit = _Audit(campaigns, ZoneInfo(time_zone or _time_zone()), streams)
        for name, first, others, check in (
            ("members", _MEMBERS, _OF_MEMBERS, audit.member),
            ("receivers", _RECEIVERS, _OF_RECEIVERS, audit.receiver),
            ("campaigns", _BUDGETS, _OF_BUDGETS, audit.campaign),
        ):
            async for row, found in by_member(
                connection, first, others, stray=audit.stray, progress=progress, name=name
            ):
                check(row, found)
        await every_row(connection, audit.between())
    return audit.report()


def _time_zone() -> str:
    default: str = ReferralSettings.model_fields["time_zone"].default
    return os.environ.get("REFERRAL_TIME_ZONE", default)


async def _campaigns(connection: Connection) -> dict[str, list[CompiledCampaign]]:
    """All versions of each campaign, in order."""
    query = f"SELECT body, ladder_version FROM {t.campaigns.name} ORDER BY campaign_id, version"  # noqa: S608 - ours
    campaigns = Campaigns()
    found: defaultdict[str, list[CompiledCampaign]] = defaultdict(list)
    for row in await connection.fetch(query):
        compiled = campaigns.keep(row["body"], row["ladder_version"])
        found[compiled.campaign.campaign_id].append(compiled)
    return found


async def _streams(url: str) -> _Streams:
    reading = (_reported(url, stream, kind) for stream, kind in _GIVERS.values())
    bodies = carried(url, events.STREAM, events.SUBJECTS[0])
    sent, reports = await asyncio.gather(bodies, asyncio.gather(*reading))
    return _Streams(sent, ChainMap(*reports))


async def _reported(url: str, stream: str, kind: Any) -> dict[str, datetime]:
    """Rewards that a service handed over, and when it said so."""
    return {
        kind.FromString(message.data).reward_id: message.metadata.timestamp
        async for message in published(url, stream, kind.DESCRIPTOR.full_name)
    }


# --- what is read -------------------------------------------------------------------------------------

_o, _r = t.outbox.c, t.rewards.c
_ABOUT_REWARDS = (epb.RewardGranted, epb.RewardFulfilled, epb.RewardFailed, epb.RewardClawedBack)
_ABOUT_CAMPAIGNS = (epb.BudgetExhausted,)


def _outbox(*kinds: Any, others: bool = False) -> Rows:
    """The events of these kinds, or all others, which alone are about members in the order of buckets."""
    told = _o.subject.in_([word(kind.DESCRIPTOR.full_name) for kind in kinds])
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


# --- what must be so ----------------------------------------------------------------------------------


class _Audit:
    def __init__(
        self, campaigns: Mapping[str, Sequence[CompiledCampaign]], zone: ZoneInfo, streams: _Streams | None
    ) -> None:
        self._campaigns = campaigns
        self._zone = zone
        self._streams = streams
        self._found = (
            Findings(CHECKS)
            if streams is None
            else Findings(CHECKS | {"fulfilled": FULFILLED_CHECK}, streams.bodies)
        )
        self._totals = dict.fromkeys(("members", "attributions", "invitees", "rungs", "rewards"), 0)

    def report(self) -> Report:
        return self._found.report(self._totals)

    def between(self) -> Iterable[tuple[Statement, Callable[[Row], None]]]:
        budgets = {name: versions[-1].campaign.budget_minor for name, versions in self._campaigns.items()}
        return Between(self._found, budgets).checks()

    def stray(self, table: str, who: str) -> None:
        """Notes a row whose member, or campaign, is not there."""
        self._found.expect("members", False, who, f"is in {table}, and nowhere else")

    # --- a member -------------------------------------------------------------------------------------

    def member(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        """Checks everything that is kept under one member."""
        self._found.seen["members"] += 1
        with self._found.reading(row["member_id"]):
            self._member(_Member(row, found))

    def _member(self, member: _Member) -> None:
        self._bonds(member)
        self._due(member)
        climbed = {rung.campaign_id for rung in member.rungs} | set(member.ranks)
        for campaign_id in sorted(climbed | member.counted_by.keys()):
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
        campaign = self._campaigns[campaign_id][-1].campaign
        counted_by = member.counted_by.get(campaign_id, 0)
        self._found.expect("ladder", counted_by > 0, member.who, f"was never counted in {campaign_id}")
        if counted_by != campaign.ladder_version:
            return  # it waits to be counted again
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
            wrong = rewards.follow(basis, rung, given[name], RevokeReason.REFUNDED, self._found.now)
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
        if campaign.close_time <= self._found.now:
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
        with self._found.reading(row["member_id"]):
            self._receiver(row["member_id"], found)

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
        elif reported <= self._found.now - LATE:
            waits = status in (RewardStatus.GRANTED, RewardStatus.FAILED)
            self._found.expect("fulfilled", not waits, who, f"{name} was handed over, and is {status}")

    def campaign(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        """Checks what was announced of a campaign."""
        who = row["member_id"]
        versions = {("campaign", who): (row["version"], None)}
        with self._found.reading(who):
            self._events(who, self._told(who, found["outbox"]), versions)

    # --- events ---------------------------------------------------------------------------------------

    def _told(self, who: str, outbox: Sequence[Row]) -> _Told:
        """What was announced and is kept; what was sent of it must be in the stream."""
        self._found.seen["events"] += len(outbox)
        kept = [row for row in outbox if row["create_time"] >= self._found.kept_since]
        told = _Told(erased=any(row["erased"] for row in kept))
        for row in kept:
            if not row["erased"]:
                message = getattr(epb, row["subject"].rpartition(".")[2]).FromString(row["body"])
                told.versions[_entity(message)].append(message.version)
                if isinstance(message, epb.RewardFulfilled):
                    told.fulfilled.add(message.reward_id)
                self._found.sent(who, row)
        return told

    def _events(self, who: str, told: _Told, versions: Mapping[Entity, tuple[int, datetime | None]]) -> None:
        """Of each thing: how many events there were, and when it was made, where its id says so."""
        for entity, (version, made) in versions.items():
            if told.erased and entity[0] != "attribution":  # of which nothing is erased
                continue
            numbers = told.versions.get(entity, [])
            whole = self._found.unbroken(numbers, version, made)
            what = f"{' '.join(entity)} is at version {version}, events say {numbers}"
            self._found.expect("events", whole, who, what)
        for entity in told.versions.keys() - versions.keys():
            self._found.expect("events", False, who, f"an event is about no {' '.join(entity)}")


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
        self.counted_by = {
            one["campaign_id"]: one["ladder_version"] for one in self.invites if one["ladder_version"]
        }

    def versions(self) -> dict[Entity, tuple[int, datetime | None]]:
        """How many events there were about each thing, and when it was made, where its id says so."""
        bonds = {
            ("attribution", one.attribution_id): (one.version, made_at(one.attribution_id))
            for one in self.attributions
        }
        return {("member", self.who): (self.version, None), **bonds}


def _gift(step: Step, role: Role) -> Gift | None:
    return step.reward if role is Role.INVITER else step.invitee_reward


def _stands(bond: Attribution) -> str:
    by = f" by {bond.kind} {bond.reference_id}" if bond.kind else ""
    return f"{bond.status} {bond.verdict}{by}"


def _reached(rung: Rung | None) -> str:
    if rung is None:
        return "not reached"
    return f"{'lost' if rung.lost else 'reached'} by {rung.attribution_id} at attempt {rung.attempt}"


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
