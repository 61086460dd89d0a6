"""Periods of local time, counted from an anchor so that their ends do not creep.

The end of a chain of months is its anchor and k months, clamped to the month's last day: bought on 31
January it ends on 28 February, renewed on 31 March. The anchor's local time of day is kept: a day is 23 or
25 hours long where clocks change; an end that the clocks skip lies as much later as they skip, one that
comes twice is the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

LONGEST_MONTHS = 120
LONGEST_DAYS = 3660
DAY = timedelta(days=1)


def add_months(day: date, months: int) -> date:
    """The same day of a later month, or that month's last (31 January + 1 month = 28 or 29 February)."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    following = date(year + month // 11, (month + 1) % 12 + 1, 1)
    return date(year, month + 1, min(day.day, (following - DAY).day))


def local_midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local day, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def wall_time(at: datetime, zone: ZoneInfo) -> datetime:
    """What local clocks show at an instant, without a zone."""
    return at.astimezone(zone).replace(tzinfo=None, fold=0)


@dataclass(frozen=True, slots=True)
class Period:
    """How long a product lasts: months or days, one of them 0."""

    months: int = 0
    days: int = 0

    @classmethod
    def parse(cls, text: str) -> Period:
        """Reads an ISO 8601 duration of one unit: P1M, P3M, P1Y, P2W, P7D. Raises ValueError."""
        found = re.fullmatch(r"P([1-9][0-9]{0,3})([DWMY])", text, re.ASCII)
        if found is None:
            raise ValueError(f"{text!r} is not a period like P1M, P1Y, P2W or P7D")
        count = int(found[1])
        period = {
            "D": cls(days=count),
            "W": cls(days=7 * count),
            "M": cls(months=count),
            "Y": cls(months=12 * count),
        }[found[2]]
        if period.months > LONGEST_MONTHS or period.days > LONGEST_DAYS:
            raise ValueError(f"{text!r} is longer than {LONGEST_MONTHS} months or {LONGEST_DAYS} days")
        return period


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where ends are counted from: a local time without a zone, and the months bought since."""

    local: datetime
    months: int = 0

    @classmethod
    def at(cls, instant: datetime, zone: ZoneInfo) -> Anchor:
        """A new anchor."""
        return cls(wall_time(instant, zone))

    def plus(self, period: Period) -> Anchor:
        """One period on. Days are counted from here, so they are an anchor of their own."""
        if period.days:
            return Anchor(self.wall + period.days * DAY)
        return Anchor(self.local, self.months + period.months)

    @property
    def wall(self) -> datetime:
        """The local time that it stands for."""
        return datetime.combine(add_months(self.local.date(), self.months), self.local.time())

    def instant(self, zone: ZoneInfo) -> datetime:
        """When that is, in UTC."""
        return self.wall.replace(tzinfo=zone).astimezone(UTC)


def days_after(at: datetime, days: int, zone: ZoneInfo) -> datetime:
    """The same local time so many days later."""
    return Anchor(wall_time(at, zone) + days * DAY).instant(zone) if days else at


class Timing(StrEnum):
    """When a period is bought, as seen from the one before it."""

    FIRST = "FIRST"
    """There is none."""
    EARLY = "EARLY"
    """Before its end, or just then."""
    GRACE = "GRACE"
    """After its end, and soon enough for the streak."""
    LATE = "LATE"


@dataclass(frozen=True, slots=True)
class Tail:
    """How a chain ends."""

    end: datetime
    anchor: Anchor
    """Stands for the end."""
    streak: int
    grace_days: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a bought period lies, half open."""

    start: datetime
    end: datetime
    anchor: Anchor
    """Stands for the end."""
    days: int
    """Local days that were bought."""
    streak: int
    """Periods in a row, this one included."""
    timing: Timing


def place(period: Period, paid: datetime, now: datetime, tail: Tail | None, zone: ZoneInfo) -> Placement:
    """Continues a chain, or starts one now.

    When it was paid decides, though told later: until the end of what was bought before, it continues there
    and keeps the anchor. After that it starts now with a new anchor, and within grace the streak goes on.
    """
    if tail is None:
        return _from_now(period, now, zone, 1, Timing.FIRST)
    if paid > tail.end:
        in_grace = paid < days_after(tail.end, tail.grace_days, zone)
        timing = Timing.GRACE if in_grace else Timing.LATE
        return _from_now(period, now, zone, tail.streak + 1 if in_grace else 1, timing)
    anchor = tail.anchor.plus(period)
    days = (anchor.wall - tail.anchor.wall).days
    return Placement(tail.end, anchor.instant(zone), anchor, days, tail.streak + 1, Timing.EARLY)


def start_now(period: Period, now: datetime, streak: int, zone: ZoneInfo) -> Placement:
    """A period that takes the place of what runs; it continues the streak."""
    return _from_now(period, now, zone, streak + 1, Timing.EARLY)


def _from_now(period: Period, now: datetime, zone: ZoneInfo, streak: int, timing: Timing) -> Placement:
    begin = Anchor.at(now, zone)
    anchor = begin.plus(period)
    days = (anchor.wall - begin.wall).days
    return Placement(now, anchor.instant(zone), anchor, days, streak, timing)
