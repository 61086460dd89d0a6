"""Occasions: on which local days, and when on them, something is announced in a group.

A month that has no 29th, 30th or 31st has its last day instead, so that a monthly benefit comes each month.
Clocks that change decide as for periods of cards: a time of day that they skip lies as much later as they
skip, one that comes twice is the first.
"""

from __future__ import annotations

import hashlib
from calendar import monthrange
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from itertools import takewhile
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
LAST_DAY = date(9999, 1, 1)  # timestamps end there


def local_midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local day, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


class Recurrence(StrEnum):
    """On which local days an occasion recurs."""

    DAILY = "DAILY"
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    DATE = "DATE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """An entry of a calendar. Of the three sets of days, it has the one that its recurrence needs."""

    entry_id: str
    recurrence: Recurrence
    weekdays: frozenset[int] = frozenset()
    """By ISO: 1 is Monday."""
    days_of_month: frozenset[int] = frozenset()
    dates: frozenset[date] = frozenset()
    local_time: time
    claim_for: timedelta
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    """It holds before this instant."""
    benefit_code: str
    text: str = ""

    def __post_init__(self) -> None:
        needed = {
            Recurrence.DAILY: True,
            Recurrence.WEEKLY: bool(self.weekdays),
            Recurrence.MONTHLY: bool(self.days_of_month),
            Recurrence.DATE: bool(self.dates),
        }
        if not needed[self.recurrence]:
            raise ValueError(f"{self.entry_id} is {self.recurrence}, and on no day")

    def days(self, first: date) -> Iterator[date]:
        """Its local days from one on, in order, without end if it has none."""
        if self.recurrence is Recurrence.DATE:
            yield from sorted(day for day in self.dates if day >= first)
            return
        day = first
        while day < LAST_DAY:
            if self._falls_on(day):
                yield day
            day += DAY

    def _falls_on(self, day: date) -> bool:
        if self.recurrence is Recurrence.WEEKLY:
            return day.isoweekday() in self.weekdays
        if self.recurrence is Recurrence.MONTHLY:
            _, last = monthrange(day.year, day.month)
            return day.day in self.days_of_month or (day.day == last and max(self.days_of_month) > last)
        return True

    def instants(self, start: datetime, zone: ZoneInfo) -> Iterator[datetime]:
        """When it comes, from an instant on, in order, each once."""
        start = max(start, self.valid_from or start)
        # A zone may skip a whole day, whose occasion then lies on the next.
        for day in self.days(start.astimezone(zone).date() - DAY):
            at = datetime.combine(day, self.local_time, zone).astimezone(UTC)
            if self.valid_until is not None and at >= self.valid_until:
                return
            if at >= start:
                yield at
                start = at + TICK


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An occasion that comes at an instant."""

    at: datetime
    occasion: Occasion

    @property
    def claim_until(self) -> datetime:
        """Until when it can be claimed, and announced."""
        return self.at + self.occasion.claim_for

    def occasion_id(self, scheme_id: str) -> str:
        """The same for every replica and every version of the scheme, as long as the entry keeps its name."""
        named = "\0".join((scheme_id, self.occasion.entry_id, self.at.isoformat()))
        return f"occ_{hashlib.sha256(named.encode()).hexdigest()[:32]}"

    @property
    def rank(self) -> tuple[datetime, str]:
        """What they are ordered by: time, then the entry's name."""
        return self.at, self.occasion.entry_id


def occurrences(
    entries: Iterable[Occasion], start: datetime, end: datetime, zone: ZoneInfo
) -> list[Occurrence]:
    """What comes from `start` on and before `end`, in order."""
    found = [
        Occurrence(at, entry)
        for entry in entries
        for at in takewhile(lambda at: at < end, entry.instants(start, zone))
    ]
    return sorted(found, key=lambda occurrence: occurrence.rank)


def due(entries: Iterable[Occasion], since: datetime, now: datetime, zone: ZoneInfo) -> list[Occurrence]:
    """What is to be announced now: came at `since` or later, and can still be claimed."""
    return sorted(
        (
            occurrence
            for entry in entries
            for occurrence in occurrences((entry,), max(since, now - entry.claim_for), now + TICK, zone)
            if now < occurrence.claim_until
        ),
        key=lambda occurrence: occurrence.rank,
    )


def upcoming(entries: Iterable[Occasion], now: datetime, zone: ZoneInfo) -> list[Occurrence]:
    """What each entry announces next, after now, soonest first; nothing of one that is over."""
    found = [
        Occurrence(at, entry)
        for entry in entries
        if (at := next(entry.instants(now + TICK, zone), None)) is not None
    ]
    return sorted(found, key=lambda occurrence: occurrence.rank)
