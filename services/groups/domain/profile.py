"""What is known of a member: everything that a write may depend on, as it is kept.

The records never change; a change replaces one. So what a batch did is what is no longer the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.groups.domain.facts import NO_PAST, Past, Purchase
from services.groups.domain.seats import SeriesName


class MembershipStatus(StrEnum):
    """Where a membership stands."""

    ASSIGNED = "ASSIGNED"
    """A seat is kept until `seat_expire_time`."""
    JOINED = "JOINED"
    LEFT = "LEFT"
    REMOVED = "REMOVED"
    LAPSED = "LAPSED"
    """The seat was given up before the member came."""

    @property
    def active(self) -> bool:
        """Whether it counts in its group."""
        return self in (MembershipStatus.ASSIGNED, MembershipStatus.JOINED)


class Basis(StrEnum):
    """What a group was chosen by."""

    CHOSEN = "CHOSEN"
    EXACT = "EXACT"
    """A location."""
    CITY = "CITY"
    HOME_SITE = "HOME_SITE"
    DEFAULT = "DEFAULT"
    SEGMENT = "SEGMENT"
    """A tag."""
    INVITER = "INVITER"
    JOINED = "JOINED"
    """Nothing: the member came by itself."""


class Ending(StrEnum):
    """Why a membership ended that was told to have begun."""

    LEFT = "LEFT"
    """By oneself, which is what the cooldown counts from."""
    REMOVED = "REMOVED"
    THRESHOLD_LOST = "THRESHOLD_LOST"
    GROUP_DISSOLVED = "GROUP_DISSOLVED"
    SITE_CLOSED = "SITE_CLOSED"
    """There was no other group."""
    SEAT_LAPSED = "SEAT_LAPSED"
    """The member was moved and did not arrive in time."""
    RECONCILED = "RECONCILED"
    """The messaging side's list no longer has the member."""


class MoveReason(StrEnum):
    """Why a membership changed its group."""

    JOINED_ELSEWHERE = "JOINED_ELSEWHERE"
    SITE_CLOSED = "SITE_CLOSED"
    GROUP_DISSOLVED = "GROUP_DISSOLVED"
    TAGS_CHANGED = "TAGS_CHANGED"
    NEARER = "NEARER"
    CHOSEN = "CHOSEN"


class LapseReason(StrEnum):
    """Why a seat was given up before its member came."""

    TIMEOUT = "TIMEOUT"
    GROUP_FULL = "GROUP_FULL"
    GROUP_CLOSED = "GROUP_CLOSED"
    THRESHOLD_LOST = "THRESHOLD_LOST"
    REWARD_TAKEN_BACK = "REWARD_TAKEN_BACK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A member's stay in a scheme. A move changes its group; leaving ends it."""

    membership_id: str
    scheme_id: str
    group_id: str
    anchor: str
    """What the series of its group stands at: with the scheme it names what is locked."""
    site_id: str
    """Of the group; empty where there is none."""
    number: int
    """Among the member's in the scheme, from 1."""
    status: MembershipStatus
    basis: Basis
    entry_source: str = ""
    cell: str = ""
    """The coarse cell of the location that it was chosen by."""
    distance_m: int = 0
    """From that location to the site, as it was then."""
    assign_time: datetime
    seat_expire_time: datetime | None = None
    """Until when the seat is kept; None once the member came."""
    join_time: datetime | None = None
    """When the member first came under this membership."""
    arrive_time: datetime | None = None
    """When the member came to the group it is in, as it was told; a fact from before changes nothing."""
    end_time: datetime | None = None
    ending: Ending | None = None
    """Why it ended; None for a seat that nobody ever came to."""
    lost_condition: str = ""
    """The first condition of the threshold that no longer holds; empty while all do."""
    reward_id: str = ""
    """The reward that it fulfils."""

    @property
    def active(self) -> bool:
        """Whether it counts in its group."""
        return self.status.active

    @property
    def series(self) -> SeriesName:
        """The series that its group belongs to."""
        return (self.scheme_id, self.anchor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """Something known of a member, as somebody said it or as a rule says."""

    key: str
    value: str
    source: str
    expire_time: datetime | None = None
    set_time: datetime

    def holds(self, at: datetime) -> bool:
        """Whether it still counts."""
        return self.expire_time is None or at < self.expire_time


RULE = "rule"  # the source of a tag that follows from the programme


# What other services tell, by name: the tier, and of each card that runs its family; what they tell under any
# other name reads as a tag of that name, unless a caller or a rule sets it.
TIER = "tier"
CARD = "card:"

EVERYTHING = -1  # the amount of a refund of all that is left


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOrder:
    """What is kept of an order, and of its refunds, whichever was told first."""

    order_id: str
    store_id: str = ""
    city: str = ""
    paid_time: datetime | None = None
    """None while only refunds were told."""
    amount_minor: int = 0
    refunds: Mapping[str, int] = field(default_factory=dict)
    """Minor units by refund; EVERYTHING for what names no amount."""

    @property
    def purchase(self) -> Purchase | None:
        """The order as facts are computed from it; None while it was not told."""
        if self.paid_time is None:
            return None
        whole = EVERYTHING in self.refunds.values()
        refunded = self.amount_minor if whole else min(self.amount_minor, sum(self.refunds.values()))
        return Purchase(
            order_id=self.order_id,
            store_id=self.store_id,
            city=self.city,
            paid_time=self.paid_time,
            amount_minor=self.amount_minor,
            refunded_minor=refunded,
        )


@dataclass(slots=True)
class Profile:
    """A member's state. Of what ends up many, what was asked for is loaded."""

    member_id: str
    version: int = 0
    """Events about the member."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What other services told, by name: TIER, CARD and the family, and what reads as a tag."""
    fact_versions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Epoch and version of the event that told each fact last."""
    left: Mapping[str, datetime] = field(default_factory=dict)
    """When the member was told to have left groups that it was not in, of late: its joining them may be told
    after that."""
    past: Past = NO_PAST
    """Purchases from before every window, added up."""
    offer_time: datetime | None = None
    """When an entry was offered last."""
    evaluate_time: datetime | None = None
    """When time alone changes what is known: the next local midnight, or the end of a tag."""
    next_due_time: datetime | None = None
    """The earlier of that and the first seat deadline."""
    memberships: dict[str, Membership] = field(default_factory=dict)
    """Those that are active, and of each scheme the latest."""
    known: bool = False
    """Whether all tags are loaded, and all orders since `past`: of members whose facts a command needs or
    changes."""
    whole: bool = False
    """Whether the orders of the past are loaded too: where a command names one of them."""
    tags: dict[str, Tag] = field(default_factory=dict)
    orders: dict[str, KeptOrder] = field(default_factory=dict)

    def copy(self) -> Profile:
        """A copy to work on."""
        collections: dict[str, Any] = {name: dict(getattr(self, name)) for name in _COLLECTIONS}
        return replace(self, **collections)

    def purchases(self) -> list[Purchase]:
        """The orders that were told, of those that are loaded."""
        told = (order.purchase for order in self.orders.values())
        return [purchase for purchase in told if purchase is not None]

    def recent(self) -> list[Purchase]:
        """Of them those that `past` does not hold: facts are computed from both."""
        return [purchase for purchase in self.purchases() if not self.past.holds(purchase)]

    def latest(self, scheme_id: str) -> Membership | None:
        """The latest membership in a scheme, active or not."""
        mine = (m for m in self.memberships.values() if m.scheme_id == scheme_id)
        return max(mine, key=lambda membership: membership.number, default=None)

    def active(self, scheme_id: str) -> Membership | None:
        """The active membership in a scheme."""
        latest = self.latest(scheme_id)
        return latest if latest is not None and latest.active else None


_COLLECTIONS: tuple[str, ...] = ("memberships", "tags", "orders")
