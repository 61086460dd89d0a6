"""Use cases inside the caller's transaction; none commits.

A batch of commands is *lock, fold, save*: the members are locked, and what the batch may depend on is read at
once; each command folds over that state in the order of arrival, and what changed is written with a
statement per table. A command that is refused leaves nothing behind. No command changes two members: what one
does to another goes by our own events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from services.chassis import outbox, telemetry
from services.chassis.asked import by_clock
from services.chassis.clock import wall
from services.chassis.database import Connection
from services.chassis.outbox import About
from services.referral import binding, codes, events, store
from services.referral.commands import (
    BindInvitee,
    Command,
    CreateInvite,
    GrantReward,
    InviteeTold,
    RecordQualification,
    Recount,
    ResolveReview,
    ReturnReward,
    RevokeQualification,
    RewardCommand,
    Tell,
)
from services.referral.domain import rewards
from services.referral.domain.campaigns import Campaign
from services.referral.domain.profile import Invitee, Profile, Reward, RewardStatus
from services.referral.errors import MemberUnknown
from services.referral.folding import Answer, Fold
from services.referral.rules import Campaigns, CompiledCampaign
from services.referral.steps import Scene, Terms
from services.referral.store import Changes, Erased, Seen, SignalSeen, Wanted

GRANTED_AT_ONCE = 256  # rewards
LATELY = timedelta(hours=1)  # in which binds to an inviter are counted


class Lore:
    """What a process keeps of campaigns. The database says each time which are in force."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.campaigns = Campaigns()

    async def scene(self, connection: Connection, at: datetime) -> Scene:
        """The latest versions of all campaigns at an instant, with nobody in it yet."""
        latest = await store.campaign_heads(connection)
        compiled = await self.compiled(connection, latest.items())
        return Scene(Seen(), compiled, latest, {}, self.terms, at)

    async def compiled(
        self, connection: Connection, names: Iterable[tuple[str, int]]
    ) -> dict[tuple[str, int], CompiledCampaign]:
        """Versions of campaigns, each compiled at most once while it is remembered."""
        found = {name: self.campaigns.get(*name) for name in names}
        missing = [name for name, compiled in found.items() if compiled is None]
        for row in await store.campaigns(connection, missing) if missing else ():
            found[row["campaign_id"], row["version"]] = self.campaigns.keep(
                row["body"], row["ladder_version"]
            )
        return {name: compiled for name, compiled in found.items() if compiled is not None}


async def post(
    connection: Connection, commands: Sequence[Command], lore: Lore, at: datetime
) -> tuple[list[Answer], int]:
    """Applies commands of any members in order of arrival, at business time `at`.

    Answers each with its serialized answer, its error, or None (an event, or the clock, waits for none), and
    says how many events went to the outbox.
    """
    scene = await lore.scene(connection, at)
    scene.minute = int(wall().timestamp()) // 60
    scene.owners = await _owners(connection, commands)
    await _lock(connection, _wanted(commands, scene), scene, lore)
    fold = Fold(scene)
    answers = [fold.answer(command) for command in commands]
    fold.finish()
    await _save(connection, fold)
    return answers, len(fold.announcements)


async def _owners(connection: Connection, commands: Sequence[Command]) -> Mapping[str, tuple[str, str]]:
    """Whose the codes are that commands name, if they are somebody's."""
    named = {codes.read(command.code) for command in commands if isinstance(command, BindInvitee)}
    return await store.owners(connection, named) if named else {}


async def _lock(connection: Connection, wanted: Wanted, scene: Scene, lore: Lore) -> None:
    """Locks what a batch wants, and shows it, with the versions of campaigns that it keeps."""
    scene.seen = await store.lock(connection, wanted)
    names = {name for profile in scene.seen.profiles.values() for name in _names(profile)}
    scene.compiled = {**scene.compiled, **await lore.compiled(connection, names - scene.compiled.keys())}


def _names(profile: Profile) -> set[tuple[str, int]]:
    """The versions that what is kept of a member goes by."""
    bonds = {(one.campaign_id, one.campaign_version) for one in profile.attributions.values()}
    rungs = {(one.campaign_id, one.campaign_version) for one in profile.rungs.values()}
    return bonds | rungs | {(one.campaign_id, one.campaign_version) for one in profile.rewards.values()}


async def _save(connection: Connection, fold: Fold) -> None:
    received = wall()
    await store.save(connection, fold.changes, received)
    await store.OUTBOX.add(connection, fold.announcements, received)


# --- what a batch needs to see ------------------------------------------------------------------------


def _wanted(commands: Sequence[Command], scene: Scene) -> Wanted:
    wanted = Wanted(scene.at)
    for command in commands:
        wanted.members.add(command.member_id)
        if command.event is None:
            wanted.requests.add((command.member_id, command.request_id))
        else:
            wanted.events.append(command.event)
        _want(wanted, command, command.member_id, scene)
    return wanted


def _want(wanted: Wanted, command: Command, member: str, scene: Scene) -> None:
    """What one command needs of its member besides its own request."""
    match command:
        case CreateInvite(campaign_id=campaign):
            wanted.blocked.add((member, campaign))
        case BindInvitee():
            _want_bind(wanted, command, scene)
        case RecordQualification() | RevokeQualification():
            wanted.facts_of.add(member)
        case Tell(facts=facts, joined=joined):
            if facts:
                wanted.facts_of.add(member)
            if joined is not None:
                wanted.blocked |= {(member, campaign) for campaign in scene.latest}
        case ResolveReview(review_id=review):
            wanted.reviews.add(review)
            wanted.facts_of.add(member)
        case InviteeTold(invitee=Invitee(campaign_id=campaign)) | Recount(campaign_id=campaign):
            wanted.inviters.add((member, campaign))
        case RewardCommand(reward_id=reward):
            wanted.rewards.add((member, reward))


def _want_bind(wanted: Wanted, command: BindInvitee, scene: Scene) -> None:
    """A code that nobody has is looked after with the same statements, as that of nobody."""
    campaign, member = command.campaign_id, command.member_id
    _, inviter = scene.owners.get(codes.read(command.code), ("", ""))
    wanted.facts_of.add(member)
    wanted.pairs.add(binding.pair(campaign, member, inviter))
    wanted.blocked.add((inviter, campaign))
    wanted.attributions.add((inviter, campaign))
    wanted.binds_since[inviter, campaign] = scene.at - LATELY
    wanted.signals |= {
        SignalSeen(campaign, signal, value, member) for signal, value in command.signals.items()
    }
    wanted.tries.add((command.caller, scene.minute))


# --- the budget ---------------------------------------------------------------------------------------


async def grant(
    connection: Connection, lore: Lore, campaign_id: str, at: datetime, most: int = GRANTED_AT_ONCE
) -> tuple[int, bool]:
    """Grants rewards of a campaign that waited long enough, in order, as far as its budget goes.

    First the budget gets what rewards cost that were taken back. The first reward that does not fit is waited
    for, and that is announced once for each budget that is set. Says how many events went to the outbox, and
    whether there is more to do. It is for one caller at a time, who holds a lease.
    """
    back = await store.to_return(connection, campaign_id, most)
    waiting = await store.to_grant(connection, campaign_id, at, most)
    scene = await lore.scene(connection, at)
    wanted = Wanted(at, budgets={campaign_id})
    wanted.rewards = {(one.member_id, one.reward_id) for one in (*back, *waiting)}
    wanted.members = {member_id for member_id, _ in wanted.rewards}
    await _lock(connection, wanted, scene, lore)
    fold = Fold(scene)
    for one in back:
        fold.answer(ReturnReward(**by_clock(one.member_id), reward_id=one.reward_id))
    due = [reward for reward in (_waiting(scene, one) for one in waiting) if reward is not None]
    budget = scene.seen.budgets[campaign_id]
    left = budget.budget_minor - budget.granted_minor
    chosen = rewards.fitting(due, left) if budget.budget_minor else due
    fitting = {reward.reward_id for reward in chosen}
    for one in waiting:
        if one.reward_id in fitting:
            fold.answer(GrantReward(**by_clock(one.member_id), reward_id=one.reward_id))
    if len(fitting) < len(due) and not scene.seen.budgets[campaign_id].exhausted:
        # The version that set the budget may have been put after the scene was, before the budget was locked.
        now = await lore.scene(connection, at)
        campaign = now.compiled[campaign_id, now.latest[campaign_id]].campaign
        fold.announcements.append(await _exhausted(connection, scene, campaign, len(fitting)))
    await _save(connection, fold)
    more = most in (len(back), len(waiting)) and len(fitting) == len(due)
    return len(fold.announcements), more


def _waiting(scene: Scene, one: store.Waiting) -> Reward | None:
    """A reward that still waits now that it is locked."""
    reward = scene.seen.profiles[one.member_id].rewards.get(one.reward_id)
    due = reward is not None and reward.status is RewardStatus.PENDING and reward.grant_after <= scene.at
    return reward if due else None


async def _exhausted(connection: Connection, scene: Scene, campaign: Campaign, granted: int) -> outbox.Event:
    """Notes that the next reward does not fit, and returns how that is announced."""
    name = campaign.campaign_id
    budget = scene.seen.budgets[name]
    left = await store.waiting_count(connection, name, scene.at) - granted
    told = replace(budget, exhausted=True, version=budget.version + 1)
    scene.seen.budgets[name] = told
    about = About(name, scene.at, scene.terms.epoch, told.version, telemetry.TRACEPARENT.get())
    return events.budget_exhausted(about, (campaign, budget.granted_minor, left))


# --- erasing ------------------------------------------------------------------------------------------


async def erase(connection: Connection, member_id: str, at: datetime) -> Erased:
    """Removes a member's signals, name, what is known of it, details of facts, first answers and events.

    Raises MemberUnknown.
    """
    seen = await store.lock(connection, Wanted(at, {member_id}))
    erased = await store.erase(connection, member_id)
    if member_id in seen.made:
        if not (erased.events or erased.refused):
            raise MemberUnknown(member_id=member_id)
        await store.save(connection, Changes(seen, seen), wall())
    return erased
