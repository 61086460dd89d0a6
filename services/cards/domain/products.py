"""What is on sale: a period, its price, the benefits of a running card, and the policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from services.cards.domain.periods import Period
from services.cards.domain.quotas import Quota


class BenefitKind(StrEnum):
    """How a benefit lowers a price."""

    FIXED_PRICE = "FIXED_PRICE"
    PERCENT_OFF = "PERCENT_OFF"
    AMOUNT_OFF = "AMOUNT_OFF"
    BUNDLE_PRICE = "BUNDLE_PRICE"
    FREE_DELIVERY = "FREE_DELIVERY"
    FREE_ITEM = "FREE_ITEM"
    POINTS_MULTIPLIER = "POINTS_MULTIPLIER"


@dataclass(frozen=True, slots=True)
class Daypart:
    """A stretch of local days. One that ends after midnight belongs to the day on which it begins."""

    start: time
    end: time
    """Not included; not later than the start means on the next day."""
    weekdays: frozenset[int] = frozenset()
    """ISO weekdays on which it begins, 1 being Monday; none means every day."""

    def holds(self, at: datetime, zone: ZoneInfo) -> bool:
        """Whether it contains an instant, by what local clocks show."""
        local = at.astimezone(zone)
        today, now = local.date(), local.time()
        if self.start < self.end:
            return self.start <= now < self.end and self._begins(today)
        yesterday = today - timedelta(days=1)
        return (now >= self.start and self._begins(today)) or (now < self.end and self._begins(yesterday))

    def _begins(self, day: date) -> bool:
        return not self.weekdays or day.isoweekday() in self.weekdays


@dataclass(frozen=True, slots=True)
class BundlePart:
    """So many pieces of which a condition holds."""

    scope: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Benefit:
    """What a running card gives. The unit of `value` depends on the kind, as the contract says."""

    code: str
    kind: BenefitKind
    value: int = 0
    scope: str = ""
    dayparts: tuple[Daypart, ...] = ()
    quota: Quota | None = None
    max_per_order: int = 0
    """0: no limit."""
    after_other: bool = False
    parts: tuple[BundlePart, ...] = ()

    def holds(self, at: datetime, zone: ZoneInfo) -> bool:
        """Whether it is the time of day for it."""
        return not self.dayparts or any(part.holds(at, zone) for part in self.dayparts)


@dataclass(frozen=True, slots=True)
class RefundPolicy:
    """What the buyer of a card gets back."""

    cooling_off_days: int = 0
    """Local days after the payment in which an unused period is given back whole."""
    pro_rata: bool = False
    """Whether, otherwise, the unused days' part is given back; else nothing."""


@dataclass(frozen=True, slots=True)
class FreezePolicy:
    """How a card may rest: local days, and how often in a period."""

    shortest_days: int
    longest_days: int
    count: int


class SalesWindow(StrEnum):
    """What a sales cap counts in."""

    DAY = "DAY"
    MONTH = "MONTH"
    YEAR = "YEAR"
    EVER = "EVER"

    def key(self, at: datetime, zone: ZoneInfo) -> str:
        """Names the window that contains an instant: 2027-03-01, 2027-03, 2027, or nothing."""
        day = at.astimezone(zone).date().isoformat()
        return day[: {"DAY": 10, "MONTH": 7, "YEAR": 4, "EVER": 0}[self.value]]


@dataclass(frozen=True, slots=True)
class Product:
    """A version of what is on sale. Amounts in minor units; a price of 0 means not for that."""

    code: str
    version: int
    family: str
    names: Mapping[str, str]
    price_minor: int
    currency_code: str
    points_price: int
    period: Period
    benefits: tuple[Benefit, ...]
    upgrade_now: bool = False
    refund: RefundPolicy = RefundPolicy()
    freeze: FreezePolicy | None = None
    grace_days: int = 0
    purchase_limit: int = 0
    sales_cap: tuple[int, SalesWindow] | None = None
    eligible: str = ""
    gift_claim_days: int = 0
    withdrawn: bool = False
