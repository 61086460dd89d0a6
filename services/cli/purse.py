"""What one member owns, kept a second time and plainly: for the oracle, apart from the points service.

A purse is told what happens and when, in order. What ends by itself ends first, at its instant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
# What a purse says of itself.
COLUMNS = (
    "orders",
    "available",
    "held",
    "owed",
    "lifetime_earned",
    "redeemed",
    "expired",
    "growth",
    "tier",
)


@dataclass(frozen=True)
class Ladder:
    """Tiers, the highest first, by the growth of a window of local days. The times are local midnights."""

    zone: ZoneInfo
    tiers: tuple[tuple[int, str], ...]
    days: int | None
    """Length of window and period; None for calendar years."""
    grace: int

    def reached(self, growth: int) -> str:
        """The tier that growth is good for."""
        return next((name for takes, name in self.tiers if growth >= takes), "")

    def rank(self, tier: str) -> int:
        """The higher, the better; 0 for none."""
        return next((n for n, (_, name) in enumerate(reversed(self.tiers), 1) if name == tier), 0)

    def window(self, last: date) -> date:
        """The first day of the window that ends with a day."""
        return date(last.year, 1, 1) if self.days is None else last - timedelta(days=self.days - 1)

    def period(self, day: date) -> date:
        """The last day of a period that begins with a day: for calendar years, with the next year's end."""
        return date(day.year + 1, 12, 31) if self.days is None else day + timedelta(days=self.days - 1)

    def until(self, last: date) -> datetime:
        """When a tier ends that is held until a day, and the grace after it."""
        return datetime.combine(last + timedelta(days=1 + self.grace), time(), self.zone).astimezone(UTC)

    def held_last(self, until: datetime) -> date:
        """The day before: the last of the period that ends with an instant."""
        return until.astimezone(self.zone).date() - timedelta(days=1 + self.grace)


@dataclass
class Lot:
    """What is left of the points of an order with one end."""

    ends: datetime
    left: int
    pinned: int = 0
    """Of what is left, what holds have set aside."""
    expired: int = 0
    """What expired, and was not taken back since."""

    @property
    def free(self) -> int:
        """What can be spent, and can expire."""
        return self.left - self.pinned


@dataclass
class Held:
    """A hold that is open."""

    until: datetime
    pins: list[tuple[Lot, int]]
    """In the order of spending."""


@dataclass
class Purse:
    """A member's points, growth and tier."""

    ladder: Ladder | None = None
    orders: int = 0
    owed: int = 0
    lifetime_earned: int = 0
    redeemed: int = 0
    expired: int = 0
    growth: int = 0
    tier: str = ""
    tier_until: datetime = FOREVER
    lots: list[Lot] = field(default_factory=list)
    """Those with something left, oldest first."""
    of_order: dict[str, list[Lot]] = field(default_factory=dict)
    holds: dict[str, Held] = field(default_factory=dict)
    growth_days: dict[date, int] = field(default_factory=dict)

    @property
    def available(self) -> int:
        """What can be spent."""
        return sum(lot.free for lot in self.lots)

    @property
    def held(self) -> int:
        """What is set aside."""
        return sum(lot.pinned for lot in self.lots)

    # --- what ends by itself --------------------------------------------------------------------------

    def pass_until(self, at: datetime) -> None:
        """Lets time go by: at one instant points expire first, then holds lapse, then tiers end."""
        while (moment := self._next_end()) <= at:
            lapsed = [name for name, held in self.holds.items() if held.until <= moment]
            if any(lot.free and lot.ends <= moment for lot in self.lots):
                self._expire(moment)
            elif lapsed:
                self._let_go(self.holds.pop(lapsed[0]).pins, moment)
            else:
                self._end_tier()

    def _next_end(self) -> datetime:
        ends = [lot.ends for lot in self.lots if lot.free]
        return min([*ends, *(held.until for held in self.holds.values()), self.tier_until], default=FOREVER)

    def _expire(self, moment: datetime) -> None:
        for lot in self.lots:
            if lot.ends <= moment:
                self._lose(lot, lot.free)
        self._sweep()

    def _lose(self, lot: Lot, amount: int) -> None:
        lot.left -= amount
        lot.expired += amount
        self.expired += amount

    def _sweep(self) -> None:
        self.lots = [lot for lot in self.lots if lot.left]

    # --- earning and spending -------------------------------------------------------------------------

    def earn(self, order_id: str, points: Iterable[tuple[datetime, int]], growth: int, day: date) -> None:
        """Credits an order: points by their end, and growth on its local day. What is owed is paid first."""
        lots = [Lot(ends, amount) for ends, amount in points if amount]
        self.orders += 1
        self.of_order[order_id] = lots
        self.lots += lots
        self.lifetime_earned += sum(lot.left for lot in lots)
        self._pay([(lot, lot.left) for lot in _soonest(lots)])
        self.growth += growth
        self.growth_days[day] = self.growth_days.get(day, 0) + growth
        self._sweep()

    def _pay(self, parts: Iterable[tuple[Lot, int]]) -> None:
        """What became free pays what is owed."""
        for lot, amount in parts:
            paid = min(self.owed, amount)
            lot.left -= paid
            self.owed -= paid

    def redeem(self, amount: int) -> None:
        """Spends points: what ends first goes first, the older of equals."""
        for lot, part in _take(self.lots, amount):
            lot.left -= part
        self.redeemed += amount
        self._sweep()

    def hold(self, name: str, amount: int, until: datetime) -> None:
        """Sets points aside; they do not expire meanwhile."""
        pins = _take(self.lots, amount)
        for lot, part in pins:
            lot.pinned += part
        self.holds[name] = Held(until, pins)

    def close(self, name: str, capture: int | None, at: datetime) -> None:
        """Spends part of a hold (0: all of it; None: nothing), and lets go of the rest."""
        pins = self.holds.pop(name).pins
        whole = sum(part for _, part in pins)
        spend = 0 if capture is None else capture or whole
        self.redeemed += spend
        rest = []
        for lot, part in pins:
            spent = min(spend, part)
            spend -= spent
            lot.left -= spent
            lot.pinned -= spent
            rest.append((lot, part - spent))
        self._let_go(rest, at)

    def _let_go(self, pins: Iterable[tuple[Lot, int]], at: datetime) -> None:
        back = []
        for lot, part in pins:
            lot.pinned -= part
            if lot.ends <= at:
                self._lose(lot, part)
            else:
                back.append((lot, part))
        self._pay(back)
        self._sweep()

    # --- refunds --------------------------------------------------------------------------------------

    def take_back(self, order_id: str, points: int, growth: int, day: date) -> None:
        """Takes back of an order's points and growth; `day` is the order's.

        Points in this order: what expired of its lots, what is left of them, other lots as they are spent;
        what is missing then is owed. What holds have set aside stays there.
        """
        own = self.of_order[order_id]
        self.lifetime_earned -= points
        for lot in own:
            gone = min(points, lot.expired)
            lot.expired -= gone
            self.expired -= gone
            points -= gone
        mine = {id(lot) for lot in own}
        others = [lot for lot in self.lots if id(lot) not in mine]
        for lots in (own, others):
            for lot, part in _take(lots, points):
                lot.left -= part
                points -= part
        self.owed += points
        self.growth -= growth
        self.growth_days[day] -= growth
        self._sweep()

    # --- tiers ----------------------------------------------------------------------------------------

    def promote(self, today: date) -> None:
        """Gives the tier that the window's growth has reached, if it is higher."""
        if self.ladder is None:
            return
        reached = self.ladder.reached(self._growth_since(self.ladder.window(today)))
        if self.ladder.rank(reached) > self.ladder.rank(self.tier):
            self.tier, self.tier_until = reached, self.ladder.until(self.ladder.period(today))

    def _end_tier(self) -> None:
        """Holds a tier on, or lets it fall, by the growth of its window and of the grace."""
        assert self.ladder is not None  # noqa: S101 - nothing else gives tiers
        last = self.ladder.held_last(self.tier_until)
        self.tier = self.ladder.reached(self._growth_since(self.ladder.window(last)))
        following = self.ladder.period(last if self.ladder.days is None else last + timedelta(days=1))
        self.tier_until = self.ladder.until(following) if self.tier else FOREVER

    def _growth_since(self, first: date) -> int:
        return sum(growth for day, growth in self.growth_days.items() if day >= first)


def _soonest(lots: Iterable[Lot]) -> list[Lot]:
    return sorted(lots, key=lambda lot: lot.ends)  # stable: of equals the older


def _take(lots: Iterable[Lot], amount: int) -> list[tuple[Lot, int]]:
    """So many points in the order of spending, or what there is."""
    taken = []
    for lot in _soonest(lots):
        part = min(amount, lot.free)
        amount -= part
        if part:
            taken.append((lot, part))
    return taken
