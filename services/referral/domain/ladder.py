"""What follows from an inviter's invitees: who counts, and which rungs of the ladder that reaches.

It is found from all invitees each time, so it does not matter in which order they were told. Only which round
somebody's own rung is, and how often a rung was regained, keep what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from zoneinfo import ZoneInfo

from services.referral.domain.campaigns import DEEPEST, Campaign, Caps, Step
from services.referral.domain.profile import Invitee, InviteeState, Rank, Rung, RungName


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an invitee among those of its depth who count, from 1."""

    number: int
    invitee: Invitee
    qualify_time: datetime


Line = Mapping[str, Place]
"""Who counts at a depth, in order, by attribution."""


def line(invitees: Iterable[Invitee], depth: int, caps: Caps, zone: ZoneInfo) -> Line:
    """Who counts of an inviter's invitees in a campaign: the first of a local day, of a month, and in all."""
    days: Counter[int] = Counter()
    months: Counter[int] = Counter()
    counted: dict[str, Place] = {}
    for qualify_time, attribution_id, one in sorted(_qualified(invitees, depth), key=lambda found: found[:2]):
        if len(counted) == caps.lifetime:
            break
        local = qualify_time.astimezone(zone)
        day, month = local.toordinal(), local.year * 12 + local.month
        if days[day] < caps.per_day and months[month] < caps.per_month:
            days[day] += 1
            months[month] += 1
            counted[attribution_id] = Place(len(counted) + 1, one, qualify_time)
    return counted


def _qualified(invitees: Iterable[Invitee], depth: int) -> Iterator[tuple[datetime, str, Invitee]]:
    for one in invitees:
        if one.depth == depth and one.state is InviteeState.QUALIFIED and one.qualify_time is not None:
            yield one.qualify_time, one.attribution_id, one


def lines(invitees: Collection[Invitee], campaign: Campaign, zone: ZoneInfo) -> dict[int, Line]:
    """Who counts, by depth; the caps are the campaign's, of each depth for itself."""
    return {depth: line(invitees, depth, campaign.caps, zone) for depth in range(1, DEEPEST + 1)}


def climb(campaign: Campaign, counted: Mapping[int, Line], rungs: Iterable[Rung]) -> dict[RungName, Rung]:
    """An inviter's rungs in a campaign once these invitees count; one that is as it was is the same object.

    `campaign` is the latest version, which says what is new; a rung that was reached keeps what it needs. It
    is lost while fewer count, and somebody's own while that one does not count, or comes before those to whom
    the step is open. Regained, it is one attempt more.
    """
    standing = {depth: list(places.values()) for depth, places in counted.items()}
    now = {rung.name: _followed(rung, counted, standing) for rung in rungs}
    for step in campaign.ladder:
        places = standing.get(step.depth, [])
        mine = [rung for rung in now.values() if rung.step_id == step.step_id]
        for number, place in _reached(step, places, mine):
            rung = _rung(campaign, step, number, place)
            now[rung.name] = rung
    return now


def _followed(rung: Rung, counted: Mapping[int, Line], standing: Mapping[int, Sequence[Place]]) -> Rung:
    places = standing.get(rung.depth, [])
    if rung.each:
        place = counted.get(rung.depth, {}).get(rung.attribution_id)
        place = place if place and place.number >= rung.position else None
    else:
        place = places[rung.position - 1] if rung.position <= len(places) else None
    if place is None:
        return rung if rung.lost else replace(rung, lost=True)
    stands_there = (place.invitee.attribution_id, place.qualify_time)
    if stands_there == (rung.attribution_id, rung.reach_time) and not rung.lost:
        return rung
    return replace(
        rung,
        attribution_id=place.invitee.attribution_id,
        attempt=rung.attempt + rung.lost,
        reach_time=place.qualify_time,
        lost=False,
    )


def _reached(step: Step, places: Sequence[Place], rungs: Collection[Rung]) -> Iterator[tuple[int, Place]]:
    """The rounds of a step that are reached and have no rung yet, and who stands there."""
    rounds = {rung.round for rung in rungs}
    if step.each_from:
        own = {rung.attribution_id for rung in rungs if rung.each}
        new = (place for place in places[step.each_from - 1 :] if place.invitee.attribution_id not in own)
        yield from zip(count(max(rounds, default=0) + 1), new)
        return
    for number in count(1) if step.every else (1,):
        position = step.position(number)
        if position > len(places):
            break
        if number not in rounds:
            yield number, places[position - 1]


def _rung(campaign: Campaign, step: Step, number: int, place: Place) -> Rung:
    return Rung(
        campaign_id=campaign.campaign_id,
        campaign_version=campaign.version,
        step_id=step.step_id,
        round=number,
        depth=step.depth,
        position=step.position(number),
        each=step.each_from > 0,
        attribution_id=place.invitee.attribution_id,
        reach_time=place.qualify_time,
    )


# --- what is ahead ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ahead:
    """What comes next on a ladder."""

    step_id: str
    missing: int
    """How many invitees are missing for it."""


def ahead(campaign: Campaign, depth: int, qualified: int, rungs: Mapping[RungName, Rung]) -> Ahead | None:
    """What comes next for an inviter of whom so many invitees of a depth count; None at the top.

    Of equals it is the first of the ladder.
    """
    steps = [step for step in campaign.ladder if step.depth == depth and step.reward is not None]
    nexts = [(_next_position(campaign.campaign_id, step, qualified, rungs), step.step_id) for step in steps]
    possible = [found for found in nexts if qualified < found[0] <= campaign.caps.lifetime]
    position, step_id = min(possible, key=lambda found: found[0], default=(qualified, ""))
    return Ahead(step_id, position - qualified) if step_id else None


def _next_position(campaign_id: str, step: Step, qualified: int, rungs: Mapping[RungName, Rung]) -> int:
    """Where the first round is that nobody stands on; 0 where there is no other."""
    if step.each_from:
        return max(step.each_from, qualified + 1)
    for number in count(1) if step.every else (1,):
        rung = rungs.get((campaign_id, step.step_id, number))
        if rung is None:
            return step.position(number)
        if rung.lost:
            return rung.position
    return 0


# --- the leaderboard ----------------------------------------------------------------------------------


def rank(campaign: Campaign, counted: Line, was: Rank | None) -> Rank | None:
    """An inviter's place among others, as it is kept; the same object where it is as it was.

    None for one who never had an invitee who counted. On the leaderboard the one with more stands first, then
    the one who had them earlier, then the lesser id.
    """
    last = max((place.qualify_time for place in counted.values()), default=was.reach_time if was else None)
    if last is None:
        return None
    now = Rank(campaign_id=campaign.campaign_id, count=len(counted), reach_time=last)
    return was if now == was else now
