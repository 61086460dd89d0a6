"""Facts of a member: what follows from purchases, as of a local day of the programme.

A purchase that was refunded whole does not count, one refunded in part counts with what is left. Nobody has
bought on a day that is yet to come. Days are counted up to the programme's horizon, and no further: so facts
change at local midnights only, and not at all once the last purchase lies that far back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from services.groups.domain.calendar import local_midnight

DAY = timedelta(days=1)
SHORT, LONG = 30, 90  # local days of the windows, today included; no horizon is nearer than the longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """A paid order, and what of it was refunded since; amounts in minor units."""

    order_id: str
    store_id: str
    """Empty where it was bought in no store."""
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


def facts_of(purchases: Iterable[Purchase], at: datetime, zone: ZoneInfo, horizon_days: int) -> Facts:
    """A member's facts on the local day that contains `at`. The horizon is 90 days or more."""
    today = at.astimezone(zone).date()
    tomorrow = local_midnight(today + DAY, zone)
    counted = [purchase for purchase in purchases if purchase.counts and purchase.paid_time < tomorrow]
    if not counted:
        return Facts(recency_days=horizon_days, first_days=horizon_days)
    first, last = (
        (today - end.astimezone(zone).date()).days
        for end in (min(p.paid_time for p in counted), max(p.paid_time for p in counted))
    )
    late = [p for p in counted if p.paid_time >= local_midnight(today - (LONG - 1) * DAY, zone)]
    since = local_midnight(today - (SHORT - 1) * DAY, zone)
    latest = [p for p in late if p.paid_time >= since]
    return Facts(
        recency_days=min(last, horizon_days),
        first_days=min(first, horizon_days),
        orders_30d=len(latest),
        orders_90d=len(late),
        orders_total=len(counted),
        spend_30d_minor=sum(p.spent_minor for p in latest),
        spend_90d_minor=sum(p.spent_minor for p in late),
        home_site=_home_site(counted),
    )


def next_change(
    purchases: Iterable[Purchase], at: datetime, zone: ZoneInfo, horizon_days: int
) -> datetime | None:
    """When time alone changes the facts that hold at `at`: the next local midnight, or never."""
    today = at.astimezone(zone).date()
    last = max((purchase.paid_time for purchase in purchases if purchase.counts), default=None)
    if last is None or (today - last.astimezone(zone).date()).days >= horizon_days:
        return None
    return local_midnight(today + DAY, zone)


def _home_site(purchases: Iterable[Purchase]) -> str:
    stores: dict[str, list[datetime]] = {}
    for purchase in purchases:
        if purchase.store_id:
            stores.setdefault(purchase.store_id, []).append(purchase.paid_time)
    # Of stores that are equal in both, the first by name: what decides must not be the order of rows.
    return max(sorted(stores), key=lambda store: (len(stores[store]), max(stores[store])), default="")
