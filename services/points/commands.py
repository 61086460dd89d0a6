"""What can be asked of a member, by call, by event, or by the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.chassis.asked import Asked
from services.points.domain.ledger import Fact, Unit
from services.points.domain.refunds import Refund
from services.points.rules import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Asked):
    """Something asked of one member."""

    occur_time: datetime | None = None
    may_backdate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Earn(Command):
    """Credit what the rules give."""

    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class EarnFixed(Command):
    """Credit an amount that the caller decided; by event, that a reward grants."""

    unit: Unit
    amount: int
    reason: str
    reward_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeem(Command):
    """Spend points."""

    amount: int
    reference_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjust(Command):
    """Correct a balance."""

    unit: Unit
    amount: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceHold(Command):
    """Set points aside."""

    amount: int
    reference_id: str
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseHold(Command):
    """Capture a hold (0: whole) or, without an amount, release it.

    It is named by its id, or by the request that placed it. Where it is released after the request
    `captured_by` had captured it, what it spent comes back.
    """

    hold_id: str = ""
    placed_by: str = ""
    captured_by: str = ""
    capture: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundOrder(Command):
    """Take back what an order earned too much. `body` is the event, kept if the order is still to come."""

    order_id: str
    refund_id: str
    refund: Refund
    body_hash: bytes
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reverse(Command):
    """Undo a transaction, named by its id or by the request that made it."""

    transaction_id: str = ""
    made_by: str = ""
    amounts: Mapping[Unit, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Command):
    """Send points to another member."""

    to_member_id: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receive(Command):
    """Credit points that another member sent."""

    transfer_id: str
    from_member_id: str
    parts: tuple[tuple[datetime | None, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeBack(Command):
    """Bring points back to their sender that could not arrive."""

    transfer_id: str
    to_member_id: str


@dataclass(frozen=True, slots=True)
class Returned:
    """Points that come back for something, `for_id`, that events had them spent on.

    It was earned on as these activities, whose reference is what the points were held for.
    """

    amount: int
    for_id: str
    activities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learn(Command):
    """Note what another service told of a member, and do what follows: earn on it, give points back.

    `facts` go by what they are about; those that are older than what is known are left aside.
    """

    facts: Mapping[str, Fact]
    source: Source | None = None
    returned: Returned | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """Post what has fallen due, and nothing else."""
