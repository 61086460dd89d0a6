"""What invitees bring their inviter: who counts, which rungs that reaches or loses, and what these give.

It is found from all invitees each time, so it does not matter in which order they are told of, nor how often;
and once for all that a batch tells of an inviter, since many may be told of at once who has many.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from services.referral import events, rewarding
from services.referral.commands import InviteeTold
from services.referral.domain import ladder, rewards
from services.referral.domain.campaigns import Campaign
from services.referral.domain.ladder import Line
from services.referral.domain.profile import (
    Invitee,
    InviteeState,
    RevokeReason,
    Reward,
    Role,
    Rung,
    RungName,
)
from services.referral.domain.rewards import Basis
from services.referral.steps import Step

Lines = Mapping[int, Line]


def told(step: Step, command: InviteeTold) -> None:
    """Notes what was told of an invitee, unless something newer is known; what follows is `climb`."""
    now = command.invitee
    known = step.profile.invitees.get((now.attribution_id, now.depth))
    if known is not None:
        if now.told <= known.told:
            if known.bind_time is None and now.bind_time is not None:
                step.keep(replace(known, bind_time=now.bind_time))
            return
        now = replace(
            now,
            bind_time=known.bind_time or now.bind_time,
            kind=now.kind or known.kind,
            qualify_time=now.qualify_time or known.qualify_time,
        )
    step.keep(now)
    counts = InviteeState.QUALIFIED in (now.state, known and known.state)
    if counts or now.revoke_reason is RevokeReason.FRAUD:
        step.moved.append(now)


def climb(step: Step, campaign_id: str, moved: Sequence[Invitee]) -> None:
    """Brings the rungs of a campaign, what they give and the member's rank up to date.

    `moved` are the invitees who came to count, or do so no more, or otherwise. Where the rungs were found by
    a newer version than this batch knows, that is only noted, so that they are found by it again.
    """
    profile, campaign = step.profile, step.campaign(campaign_id)
    invite = profile.invites[campaign_id]
    if invite.ladder_version != campaign.ladder_version:
        step.keep(replace(invite, ladder_version=campaign.ladder_version))
    if invite.ladder_version > campaign.ladder_version:
        return
    mine = [one for one in profile.invitees.values() if one.campaign_id == campaign_id]
    was = {name: rung for name, rung in profile.rungs.items() if name[0] == campaign_id}
    counted = ladder.lines(mine, campaign, step.zone)
    now = ladder.climb(campaign, counted, was.values())
    changed = sorted(name for name, rung in now.items() if rung is not was.get(name))
    for name in changed:
        step.keep(now[name])
    for name in changed:
        known = was.get(name)
        if known is None or now[name].attempt > known.attempt:
            _announce(step, campaign, now[name], counted)
    given = _by_rung(profile.rewards.values())
    for name in sorted({*changed, *_concerned(now, given, moved, counted)}):
        _follow(step, now[name], given.get(name, ()), counted, _reason(now[name], moved))
    _rank(step, campaign, counted)


def _by_rung(given: Iterable[Reward]) -> dict[RungName, list[Reward]]:
    found: dict[RungName, list[Reward]] = {}
    for reward in given:
        found.setdefault(reward.rung, []).append(reward)
    return found


def _reason(rung: Rung, moved: Iterable[Invitee]) -> RevokeReason:
    """Why somebody does not count any more who did on a rung, as far as that can be said of one."""
    reasons = {one.attribution_id: one.revoke_reason for one in moved if one.revoke_reason is not None}
    other = next(iter(reasons.values()), RevokeReason.REFUNDED)
    return reasons.get(rung.attribution_id, other)


def _announce(step: Step, campaign: Campaign, rung: Rung, counted: Lines) -> None:
    qualified = len(counted[rung.depth])
    ahead = ladder.ahead(campaign, rung.depth, qualified, step.profile.rungs)
    following = (ahead.step_id, ahead.missing) if ahead else ("", 0)
    step.announce(events.step_reached, (rung, qualified, *following))


def _concerned(
    rungs: Mapping[RungName, Rung],
    given: Mapping[RungName, Iterable[Reward]],
    moved: Iterable[Invitee],
    counted: Lines,
) -> Iterator[RungName]:
    """The rungs whose rewards may have to change though they are as they were.

    On some an invitee stands whose order may be worth less by now; or somebody else was given something there
    who does not count any more.
    """
    names = {one.attribution_id for one in moved}
    for name, rung in rungs.items():
        if rung.attribution_id in names or any(_gone(reward, counted) for reward in given.get(name, ())):
            yield name


def _gone(reward: Reward, counted: Lines) -> bool:
    if reward.role is not Role.INVITEE or not rewards.stands(reward):
        return False
    return not any(reward.attribution_id in line for line in counted.values())


def _follow(step: Step, rung: Rung, given: Collection[Reward], counted: Lines, reason: RevokeReason) -> None:
    """Has a rung give what it should."""
    campaign = step.campaign(rung.campaign_id, rung.campaign_version)
    basis = Basis(campaign, step.profile.member_id, counted[rung.depth])
    for reward in rewards.follow(basis, rung, given, reason, step.at):
        rewarding.keep(step, reward)


def _rank(step: Step, campaign: Campaign, counted: Lines) -> None:
    """Notes where the member stands on the leaderboard, until the campaign is closed."""
    if step.at >= campaign.close_time:
        return
    rank = ladder.rank(campaign, counted[1], step.profile.ranks.get(campaign.campaign_id))
    if rank is not None:
        step.keep(rank)
