"""What a batch needs to see, what it saw, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from services.chassis.answers import Done, Named
from services.chassis.inbox import InboxKey
from services.chassis.statements import copied
from services.referral.domain.profile import Attribution, Profile


class Pair(NamedTuple):
    """Two members in a campaign, the lesser id first: one of them may have brought the other, once."""

    campaign_id: str
    lesser_id: str
    greater_id: str


class SignalSeen(NamedTuple):
    """A value of a signal that a member came with, hashed by the caller."""

    campaign_id: str
    signal: str
    value: str
    member_id: str


@dataclass(slots=True)
class Wanted:
    """What a batch needs to see of members, under their locks: what `store.lock` takes.

    Of every member named it sees the attributions, invites and ranks, and the rewards that were granted and
    wait to be handed over.
    """

    at: datetime
    members: set[str] = field(default_factory=set)  # all of whom something is wanted; made if not there
    requests: set[Named] = field(default_factory=set)
    events: list[InboxKey] = field(default_factory=list)
    facts_of: set[str] = field(default_factory=set)  # members all of whose facts are wanted
    inviters: set[Named] = field(default_factory=set)
    """With the campaign: all invitees, rungs and rewards of it."""
    rewards: set[Named] = field(default_factory=set)
    pairs: set[Pair] = field(default_factory=set)
    """Locked, after the members: nobody else claims them until commit."""
    blocked: set[Named] = field(default_factory=set)
    """With the campaign: whether the member is blocked in it. Not locked: an operator's word holds from the
    next batch on."""
    attributions: set[Named] = field(default_factory=set)
    """With the campaign: of members who are not locked; who brought them never changes."""
    signals: set[SignalSeen] = field(default_factory=set)
    """How many members came with the same value; this one does not, before it is bound."""
    budgets: set[str] = field(default_factory=set)
    """By campaign: locked last, and made if not there."""
    binds_since: dict[Named, datetime] = field(default_factory=dict)
    """Of an inviter in a campaign: how many were bound to it since."""
    reviews: set[str] = field(default_factory=set)
    tries: set[tuple[str, int]] = field(default_factory=set)
    """Of a caller in a minute of wall time: how many codes it tried that nobody has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A suspicious bond that an operator has to judge, or that was judged, by one or by its score."""

    review_id: str
    member_id: str
    """The invitee."""
    campaign_id: str
    attribution_id: str
    inviter_id: str
    score: int
    signals: tuple[str, ...]
    create_time: datetime
    verdict: str = ""
    """Empty while it is open."""
    resolve_time: datetime | None = None
    resolved_by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a campaign may spend, and what it has. Every campaign has one, with or without a limit."""

    campaign_id: str
    budget_minor: int = 0
    """In minor units; 0 is no limit."""
    granted_minor: int = 0
    """What was granted, less what was taken back and returned."""
    exhausted: bool = False
    """Whether it was told that the next reward does not fit."""
    version: int = 0
    """Events about the campaign."""


@dataclass(slots=True)
class Seen:
    """What the database says; of members, locked until commit."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    """Members who were not there; those to whom nothing comes are dropped again."""
    done: Done = field(default_factory=Done)
    pairs: set[Pair] = field(default_factory=set)
    """Claimed ones: those that the batch adds are claimed by `save`."""
    blocked: set[Named] = field(default_factory=set)
    attributions: dict[Named, Attribution] = field(default_factory=dict)
    signals: dict[SignalSeen, int] = field(default_factory=dict)
    binds: dict[Named, int] = field(default_factory=dict)
    reviews: dict[str, Review] = field(default_factory=dict)
    tries: dict[tuple[str, int], int] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    """By campaign."""

    def copy(self) -> Seen:
        """What it says now. Records are never changed: the collections keep them."""
        return copied(self, "profiles", "pairs", "reviews", "tries", "budgets")


@dataclass(slots=True)
class Changes:
    """What a batch did: the state before and after, of which what is not the same object is written."""

    before: Seen
    after: Seen
    signals: set[SignalSeen] = field(default_factory=set)
