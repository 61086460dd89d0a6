"""What can be asked of a member's groups, by call, by event, or by the clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.chassis.asked import Asked
from services.groups.domain.coordinates import Point
from services.groups.domain.profile import Ending, Tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Asked):
    """Something asked of one member."""


# --- groups -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignMember(Command):
    """Reserve a seat: in the chosen group, or in the best of a scheme, or of every scheme for the member.

    Of what it may go by, from `chosen_group_id` to `inviter_id`, one is set at most.
    """

    scheme_id: str = ""
    chosen_group_id: str = ""
    location: Point | None = None
    city: str = ""
    home_site_id: str = ""
    inviter_id: str = ""
    entry_source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinGroup(Command):
    """Tell that the member is in a group."""

    group_id: str
    occur_time: datetime
    entry_source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveGroup(Command):
    """Tell that the member is no longer in a group: it left, was removed, or the platform's list lacks it."""

    group_id: str
    occur_time: datetime
    ending: Ending = Ending.LEFT


# --- what is known ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TagMember(Command):
    """Set tags."""

    tags: tuple[Tag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UntagMember(Command):
    """Remove tags."""

    keys: tuple[str, ...]


# --- by event -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderTold(Command):
    """An order was paid."""

    order_id: str
    store_id: str
    city: str
    paid_time: datetime
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundTold(Command):
    """An order was refunded, told of or not yet: by minor units, or by all that is left (`EVERYTHING`)."""

    order_id: str
    refund_id: str
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnFact(Command):
    """Note what another service told of a member, if it is newer than what is known; empty means no more.

    `name` is TIER, CARD and a family, or the key of a tag (`domain.profile`); `version` are epoch and version
    of the event.
    """

    name: str
    value: str
    version: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantReward(Command):
    """Give a seat as a reward: in a group, or in the best one of a scheme."""

    reward_id: str
    scheme_id: str
    group_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClawBack(Command):
    """Take a reward back, given or not."""

    reward_id: str


# --- by the clock -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """Post what has fallen due, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reevaluate(Command):
    """Look at the member anew, by the schemes and the programme as they are now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LapseSeat(Command):
    """Give up the seat that is kept for the member in a group, if the platform takes nobody more there."""

    group_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOut(Command):
    """Take the member out of a group that is closed or dissolved."""

    group_id: str
