"""Tiers: a ladder over the growth of a window of local days.

Who reaches a higher rung is promoted at once. A tier is held for a period and a grace after it; then it is
held on or falls to what the growth of the period's window and of the grace is good for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from services.points.domain.calendar import local_midnight


class TierReason(StrEnum):
    """Why a tier, or how long it is held, changed."""

    PROMOTED = "PROMOTED"
    RENEWED = "RENEWED"
    DEMOTED = "DEMOTED"


@dataclass(frozen=True, slots=True)
class TierChange:
    """What became of a member's tier; empty names mean none."""

    before: str
    after: str
    reason: TierReason
    until: datetime | None
    growth: int
    """The growth that decided."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The tiers of a programme with the growth that each takes, ascending."""

    tiers: tuple[tuple[str, int], ...]
    rolling_days: int | None
    """Length of window and period; None for calendar years: a tier lasts to the end of the year after."""
    grace_days: int
    zone: ZoneInfo

    def window(self, day: date) -> date:
        """The first day of the window that ends with a day."""
        if self.rolling_days is None:
            return date(day.year, 1, 1)
        return day - timedelta(days=self.rolling_days - 1)

    def rank(self, tier: str) -> int:
        """Place on the ladder from 1; 0 for no tier, or one that the ladder does not know."""
        return next((place for place, (name, _) in enumerate(self.tiers, 1) if name == tier), 0)

    def next_growth(self, tier: str) -> int | None:
        """The growth that the next higher tier takes."""
        place = self.rank(tier)
        return self.tiers[place][1] if place < len(self.tiers) else None

    def promotion(self, tier: str, growth: int, days: Mapping[date, int], today: date) -> TierChange | None:
        """The tier that a member has reached today, if it is higher than the one held."""
        counted = _within(days, self.window(today), growth)
        reached = self._reached(counted)
        if self.rank(reached) <= self.rank(tier):
            return None
        last = date(today.year + 1, 12, 31)
        if self.rolling_days is not None:
            last = today + timedelta(days=self.rolling_days - 1)
        return TierChange(tier, reached, TierReason.PROMOTED, self._until(last), counted)

    def judged_since(self, moment: datetime) -> date:
        """The first day that counts when a tier ends at a moment."""
        return self.window(self._last_day(moment))

    def end(self, tier: str, growth: int, days: Mapping[date, int], moment: datetime) -> TierChange:
        """What becomes of a tier whose time, grace included, ends at a moment."""
        last = self._last_day(moment)
        counted = _within(days, self.window(last), growth)
        after = self._reached(counted)
        kept = bool(after) and self.rank(after) >= self.rank(tier)
        following = date(last.year + 1, 12, 31)
        if self.rolling_days is not None:
            following = last + timedelta(days=self.rolling_days)
        until = self._until(following) if after else None
        return TierChange(tier, after, TierReason.RENEWED if kept else TierReason.DEMOTED, until, counted)

    def _reached(self, growth: int) -> str:
        return next((name for name, takes in reversed(self.tiers) if growth >= takes), "")

    def _until(self, last_day: date) -> datetime:
        return local_midnight(last_day + timedelta(days=1 + self.grace_days), self.zone)

    def _last_day(self, moment: datetime) -> date:
        return moment.astimezone(self.zone).date() - timedelta(days=1 + self.grace_days)


def _within(days: Mapping[date, int], first: date, growth: int) -> int:
    """Growth since a day; what a member no longer has does not count."""
    return min(growth, sum(amount for day, amount in days.items() if day >= first))
