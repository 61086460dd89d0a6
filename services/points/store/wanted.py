"""What a batch needs to see, what it saw, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

from services.chassis.errors import ServiceError
from services.chassis.inbox import InboxKey
from services.points.domain.ledger import Hold, Lot, Member, Transaction
from services.points.domain.refunds import Refund
from services.points.domain.reversal import Past


@dataclass(slots=True)
class Wanted:
    """What a batch needs to see under the lock."""

    credits: set[str] = field(default_factory=set)  # members to whom something may come
    debits: set[str] = field(default_factory=set)
    requests: set[tuple[str, str]] = field(default_factory=set)
    orders: set[tuple[str, str]] = field(default_factory=set)
    activities: set[tuple[str, str]] = field(default_factory=set)
    refunded: set[tuple[str, str]] = field(default_factory=set)  # those of the orders that are refunded
    pasts: set[tuple[str, int]] = field(default_factory=set)  # transactions to be undone, by number
    pasts_by_request: set[tuple[str, str]] = field(default_factory=set)  # the same by the request
    holds: set[tuple[str, int]] = field(default_factory=set)  # by the number of their transaction
    captures: set[str] = field(default_factory=set)  # members, whose captures by event may be undone
    events: list[InboxKey] = field(default_factory=list)


@dataclass(slots=True)
class RefundRow:
    """A refund of an order. Without `seq` it came before its order, by `event`, as `body`."""

    member_id: str
    order_id: str
    refund_id: str
    body_hash: bytes
    refund: Refund
    refund_time: datetime
    seq: int | None = None
    event: InboxKey | None = None
    body: bytes | None = None
    stored: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is called."""
        return (self.member_id, self.order_id, self.refund_id)


@dataclass(frozen=True, slots=True)
class Sold:
    """What an order's earn keeps for its refunds: the order, and what the rules saw of the member."""

    body: bytes | None
    """The order; None once its member was erased."""
    tier: str
    facts: Mapping[str, str]
    used: Mapping[str, int]
    """What rules with a daily cap had given on the day before."""
    total: int


@dataclass(slots=True)
class Seen:
    """What the database says, locked until commit."""

    members: dict[str, Member]
    head: int | None
    """The version of the programme in force."""
    requests: dict[tuple[str, str], Transaction] = field(default_factory=dict)
    orders: dict[tuple[str, str], tuple[Transaction, bytes]] = field(default_factory=dict)
    activities: dict[tuple[str, str], tuple[Transaction, bytes]] = field(default_factory=dict)
    pasts: dict[tuple[str, int], Past] = field(default_factory=dict)
    sold: dict[tuple[str, int], Sold] = field(default_factory=dict)
    refunds: dict[tuple[str, str], list[RefundRow]] = field(default_factory=dict)
    events: set[tuple[str, ...]] = field(default_factory=set)
    caps: dict[tuple[str, date], dict[str, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """A new transaction with what is kept beside it."""

    transaction: Transaction
    source: bytes | None = None
    source_hash: bytes | None = None
    sold: Sold | None = None
    note: str = ""
    uses: Mapping[tuple[int, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class Changes:
    """What a batch did."""

    members: list[Member] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    lots: list[tuple[str, Lot]] = field(default_factory=list)  # touched, by member
    caps: dict[tuple[str, str, date], int] = field(default_factory=dict)  # added, by member and rule
    growth: dict[tuple[str, date], int] = field(default_factory=dict)  # added, by member
    unborn: list[str] = field(default_factory=list)  # members made for the lock to whom nothing came
    holds: list[tuple[str, Hold]] = field(default_factory=list)  # touched, by member
    refunds: list[RefundRow] = field(default_factory=list)  # touched
    refused: list[tuple[RefundRow, ServiceError]] = field(default_factory=list)  # waited, and cannot be
    facts: set[str] = field(default_factory=set)  # members of whom something was told
    events: list[InboxKey] = field(default_factory=list)
