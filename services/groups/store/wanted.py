"""What a batch needs to see, what it saw, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime

from services.chassis.answers import Done, Named
from services.chassis.inbox import InboxKey
from services.chassis.statements import copied
from services.groups.domain.profile import Profile
from services.groups.domain.seats import Group, SeriesName


@dataclass(slots=True)
class Wanted:
    """What a batch needs to see of members, under their locks: what `store.lock` takes.

    Of every member named it sees the active memberships, and of each scheme the latest; of those who are in
    `facts_of`, or whose `evaluate_time` has come, also all tags, and the orders since their past; of `orders`
    those named, and where one of them is of the past, all of its member.
    """

    at: datetime
    members: set[str] = field(default_factory=set)  # all of whom something is wanted; made if not there
    requests: set[Named] = field(default_factory=set)
    events: list[InboxKey] = field(default_factory=list)
    facts_of: set[str] = field(default_factory=set)  # members whose tags and orders are wanted
    orders: set[Named] = field(default_factory=set)  # of such members


@dataclass(slots=True)
class WantedSeries:
    """What a batch needs to see of groups: what `store.lock_series` takes, once the members are locked.

    The series are locked in the order of their names, and made if they are not there. Of each it sees the
    last group, those named, and in order of number those with a seat to give, until they have as many as
    `seats` says. `groups` are of series in `seats`: a command that names a group says its series first
    (`store.groups`; neither ever changes).
    """

    seats: dict[SeriesName, int] = field(default_factory=dict)  # with how many may want a seat there; or 0
    groups: set[str] = field(default_factory=set)
    sites: set[str] = field(default_factory=set)  # of which all groups are seen
    moves_on: date | None = None
    """The local day whose moves are counted, and locked; None where nobody is moved out."""


@dataclass(slots=True)
class Seen:
    """What the database says, locked until commit."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    """Members who were not there; those to whom nothing comes are dropped again."""
    done: Done = field(default_factory=Done)
    series: dict[SeriesName, int] = field(default_factory=dict)
    """The last number given in each series; 0 where there is no group yet."""
    groups: dict[str, Group] = field(default_factory=dict)
    moves: dict[date, int] = field(default_factory=dict)
    """Members moved out on a local day."""

    def copy(self) -> Seen:
        """What it says now. Records are never changed: the collections keep them."""
        return copied(self, "profiles", "series", "groups", "moves")


@dataclass(slots=True)
class Changes:
    """What a batch did: the state before and after, of which what is not the same object is written."""

    before: Seen
    after: Seen
