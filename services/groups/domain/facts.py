"""Facts of a member: what follows from purchases, as of a local day of the programme.

A purchase that was refunded whole does not count, one refunded in part counts with what is left. Nobody has
bought on a day that is yet to come. Days are counted up to the programme's horizon, and no further: so facts
change at local midnights only, and not at all once the last purchase lies that far back.

Purchases that lie before every window are added up once (`Past`) and not looked at again: facts cost no more
as a member's history grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from services.groups.domain.calendar import local_midnight

DAY = timedelta(days=1)
SHORT, LONG = 30, 90  # local days of the windows, today included; no horizon is nearer than the longer
SPARE = 7 * DAY  # by which a clock may be put back, or the time zone changed, and the windows are still whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """A paid order, and what of it was refunded since; amounts in minor units."""

    order_id: str
    store_id: str
    """Empty where it was bought in no store."""
    city: str = ""
    paid_time: datetime
    amount_minor: int
    refunded_minor: int = 0

    @property
    def counts(self) -> bool:
        """Whether anything of it was not refunded; what cost nothing was not."""
        return self.refunded_minor == 0 or self.refunded_minor < self.amount_minor

    @property
    def spent_minor(self) -> int:
        """What was paid and kept."""
        return self.amount_minor - self.refunded_minor


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What conditions and tag rules read, field by field as the contract's message of this name."""

    recency_days: int
    """Local days since the last purchase, 0 on its day; the horizon at most, and where there is none."""
    first_days: int
    """Local days since the first, likewise."""
    orders_30d: int = 0
    orders_90d: int = 0
    orders_total: int = 0
    spend_30d_minor: int = 0
    spend_90d_minor: int = 0
    home_site: str = ""
    """The store of most purchases, of equals the one of the latest; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Visits:
    """Purchases in one store that count, added up."""

    orders: int
    first_time: datetime
    last_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Purchases that are in no window any more, added up."""

    until: datetime | None = None
    """They were paid before that, and all others since; None while there are none."""
    stores: Mapping[str, Visits] = field(default_factory=dict)
    """By store; "" where they were bought in none."""
    city: tuple[datetime, str, str] | None = None
    """Of the latest that names one, whether it counts or not: when it was paid, its order, and the city."""

    def holds(self, purchase: Purchase) -> bool:
        """Whether a purchase is to be in it."""
        return self.until is not None and purchase.paid_time < self.until

    def add(self, purchases: Iterable[Purchase]) -> Past:
        """With further purchases."""
        stores, city = dict(self.stores), self.city
        for one in purchases:
            named = (one.paid_time, one.order_id, one.city)
            if one.city and (city is None or named > city):
                city = named
            if one.counts:
                was = stores.get(one.store_id, Visits(0, one.paid_time, one.paid_time))
                first, last = min(was.first_time, one.paid_time), max(was.last_time, one.paid_time)
                stores[one.store_id] = Visits(was.orders + 1, first, last)
        return replace(self, stores=stores, city=city)

    def anew(self, purchases: Iterable[Purchase]) -> Past:
        """The same time, added up from all purchases."""
        return Past(until=self.until).add(one for one in purchases if self.holds(one))


NO_PAST = Past()


def aged(past: Past, purchases: Iterable[Purchase], at: datetime, zone: ZoneInfo) -> Past:
    """With those of the purchases, which are all that it lacks, that are in no window from `at` on."""
    until = _window(at, zone, LONG) - SPARE
    if past.until is not None and until <= past.until:
        return past
    old = [one for one in purchases if one.paid_time < until and not past.holds(one)]
    return replace(past.add(old), until=until) if old else past


def facts_of(
    purchases: Iterable[Purchase], at: datetime, zone: ZoneInfo, horizon_days: int, past: Past = NO_PAST
) -> Facts:
    """A member's facts on the local day that contains `at`, from its past and the purchases since.

    The horizon is 90 days or more.
    """
    today = at.astimezone(zone).date()
    tomorrow = local_midnight(today + DAY, zone)
    counted = [purchase for purchase in purchases if purchase.counts and purchase.paid_time < tomorrow]
    stores = past.add(counted).stores
    if not stores:
        return Facts(recency_days=horizon_days, first_days=horizon_days)
    first, last = (
        (today - end.astimezone(zone).date()).days
        for end in (
            min(visits.first_time for visits in stores.values()),
            max(visits.last_time for visits in stores.values()),
        )
    )
    long, short = (_window(at, zone, days) for days in (LONG, SHORT))
    late = [p for p in counted if p.paid_time >= long]
    latest = [p for p in late if p.paid_time >= short]
    return Facts(
        recency_days=min(last, horizon_days),
        first_days=min(first, horizon_days),
        orders_30d=len(latest),
        orders_90d=len(late),
        orders_total=sum(visits.orders for visits in stores.values()),
        spend_30d_minor=sum(p.spent_minor for p in latest),
        spend_90d_minor=sum(p.spent_minor for p in late),
        home_site=_home_site(stores),
    )


def city_of(purchases: Iterable[Purchase], past: Past = NO_PAST) -> str:
    """The city of the latest purchase that names one, refunded or not."""
    city = past.add(purchases).city
    return "" if city is None else city[2]


def next_change(
    purchases: Iterable[Purchase], at: datetime, zone: ZoneInfo, horizon_days: int, past: Past = NO_PAST
) -> datetime | None:
    """When time alone changes the facts that hold at `at`: the next local midnight, or never."""
    today = at.astimezone(zone).date()
    stores = past.add(purchases).stores
    last = max((visits.last_time for visits in stores.values()), default=None)
    if last is None or (today - last.astimezone(zone).date()).days >= horizon_days:
        return None
    return local_midnight(today + DAY, zone)


def _window(at: datetime, zone: ZoneInfo, days: int) -> datetime:
    """When a window of so many local days began that ends today."""
    return local_midnight(at.astimezone(zone).date() - (days - 1) * DAY, zone)


def _home_site(stores: Mapping[str, Visits]) -> str:
    # Of stores that are equal in both, the first by name: what decides must not be the order of rows.
    named = sorted(store for store in stores if store)
    return max(named, key=lambda store: (stores[store].orders, stores[store].last_time), default="")
