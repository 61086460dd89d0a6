"""Groups and their seats: who gets one, who comes without, and what a group is after that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

SeriesName = tuple[str, str]
"""Scheme and anchor: the groups of a scheme at a site, for a segment, of a KOL. Locked as one."""


class GroupStatus(StrEnum):
    """Where a group stands."""

    OPEN = "OPEN"
    FULL = "FULL"
    """It has no seat to give."""
    CLOSED = "CLOSED"
    """It takes nobody any more; those who are in it are being moved."""
    DISSOLVED = "DISSOLVED"
    """It is no more."""


class OpenReason(StrEnum):
    """Why a group was opened."""

    FIRST = "FIRST"
    OVERFLOW = "OVERFLOW"
    SUCCESSOR = "SUCCESSOR"
    FLASH = "FLASH"
    OPERATOR = "OPERATOR"


class DissolveReason(StrEnum):
    """Why a group was dissolved."""

    LIFETIME = "LIFETIME"
    SITE_CLOSED = "SITE_CLOSED"
    OPERATOR = "OPERATOR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A chat group. `seats_taken` and `overbooked` together are its active memberships."""

    group_id: str
    scheme_id: str
    scheme_version: int
    anchor: str
    """What its series stands at: a site, a segment, a KOL; empty where the scheme has but one series."""
    seq: int
    """Its number in the series, from 1."""
    name: str
    capacity: int
    """Members that the platform takes."""
    room: int
    """Seats that we give."""
    seats_taken: int = 0
    overbooked: int = 0
    """Members who came when no seat was left."""
    status: GroupStatus = GroupStatus.OPEN
    site_id: str = ""
    chat_id: str = ""
    entry_link: str = ""
    open_time: datetime
    close_time: datetime | None = None
    """When it is dissolved by itself."""
    sale_time: datetime | None = None
    """When the sale begins that a flash group is for."""
    previous_group_id: str = ""
    next_occasion_time: datetime | None = None
    """When its calendar has to be looked at next."""
    version: int = 0
    """Events about it."""

    @property
    def series(self) -> SeriesName:
        """The series it belongs to."""
        return (self.scheme_id, self.anchor)

    @property
    def living(self) -> bool:
        """Whether it is not dissolved and not closed."""
        return self.status in (GroupStatus.OPEN, GroupStatus.FULL)

    def over(self, at: datetime) -> bool:
        """Whether its time is over, though nobody dissolved it yet."""
        return self.close_time is not None and self.close_time <= at

    @property
    def has_seat(self) -> bool:
        """Whether a seat can be given: never while somebody is in it who has none."""
        return self.living and self.overbooked == 0 and self.seats_taken < self.room

    @property
    def members(self) -> int:
        """Active memberships."""
        return self.seats_taken + self.overbooked

    @property
    def crowded(self) -> bool:
        """Whether those who came without a seat left no room for those who have one and have yet to come."""
        return self.overbooked > 0 and self.members >= self.capacity

    def enter(self) -> Group:
        """With one more member: on a seat if there is one to give, else overbooked."""
        if self.has_seat:
            return replace(self, seats_taken=self.seats_taken + 1)._measured()
        return replace(self, overbooked=self.overbooked + 1)._measured()

    def exit(self) -> Group:
        """With one member less; whoever is overbooked gets the seat."""
        if self.overbooked:
            return replace(self, overbooked=self.overbooked - 1)._measured()
        return replace(self, seats_taken=self.seats_taken - 1)._measured()

    def reopened(self) -> Group:
        """Of a site that is opened again."""
        return replace(self, status=GroupStatus.OPEN)._measured()

    def _measured(self) -> Group:
        if not self.living:
            return self
        full = self.overbooked > 0 or self.seats_taken >= self.room
        return replace(self, status=GroupStatus.FULL if full else GroupStatus.OPEN)
