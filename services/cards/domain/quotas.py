"""How often a benefit can be used: windows in local time, and the uses that count in them.

A window is kept per card, benefit and key. The keys of days and weeks do not name a period, so what was used
today stays used when the next period begins; the limit is that of the period that runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from services.cards.domain.periods import local_midnight

RESERVED_FOR = timedelta(minutes=30)


class Window(StrEnum):
    """How long a quota lasts before it fills again."""

    DAY = "DAY"
    WEEK = "WEEK"
    """From Monday, 00:00 local, on."""
    PERIOD = "PERIOD"

    def key(self, at: datetime, segment_id: str, zone: ZoneInfo) -> str:
        """Names the window that contains an instant: 2027-03-01, 2027-W09, or the period's id."""
        if self is Window.PERIOD:
            return segment_id
        day = at.astimezone(zone).date()
        year, week, _ = day.isocalendar()
        return day.isoformat() if self is Window.DAY else f"{year:04}-W{week:02}"

    def resets(self, at: datetime, zone: ZoneInfo) -> datetime | None:
        """When the window that contains an instant is over; None for that of a period."""
        if self is Window.PERIOD:
            return None
        day = at.astimezone(zone).date()
        days = 1 if self is Window.DAY else 8 - day.isoweekday()
        return local_midnight(day + timedelta(days=days), zone)


@dataclass(frozen=True, slots=True)
class Quota:
    """Uses per window."""

    limit: int
    window: Window

    def remaining(self, used: int) -> int:
        """What is left of it; nothing where a quota that was larger before is used beyond it."""
        return max(0, self.limit - used)


def available(quota: Quota | None, used: int, max_per_order: int) -> int | None:
    """Uses open to one order; None means as many as wanted. `max_per_order` 0 means no limit."""
    limits = [quota.remaining(used)] if quota else []
    if max_per_order:
        limits.append(max_per_order)
    return min(limits, default=None)


class UseStatus(StrEnum):
    """Where the use of a benefit stands."""

    RESERVED = "RESERVED"
    CONFIRMED = "CONFIRMED"
    REVERSED = "REVERSED"


@dataclass(frozen=True, slots=True)
class Use:
    """The use of a benefit for an order. It counts in the window it was made in, wherever time has gone."""

    card_id: str
    segment_id: str
    benefit_code: str
    window_key: str
    """Empty where the benefit has no quota."""
    uses: int
    saved_minor: int
    status: UseStatus
    lapse_time: datetime
    """From this instant on a reservation is gone."""

    def live(self, at: datetime) -> bool:
        """Whether it counts."""
        if self.status is UseStatus.RESERVED:
            return at < self.lapse_time
        return self.status is UseStatus.CONFIRMED


def used(kept: int, uses: Iterable[Use], at: datetime) -> int:
    """What of a window is used, when this is kept of it and these reservations may have lapsed since."""
    return kept - sum(use.uses for use in uses if use.status is UseStatus.RESERVED and not use.live(at))
