"""What every member must own during a replay, computed a second time: from data and rule book alone.

It shares nothing with the points service: `rulebook` says what orders earn, `purse` what members own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from services.cli import rulebook
from services.cli.deeds import Close, Hold, Plan, Redeem, Refund, evening
from services.cli.purse import COLUMNS, FOREVER, Ladder, Purse
from services.cli.rulebook import Row

_POINTS = "UNIT_POINTS"  # what is not that is growth


@dataclass
class _Sale:
    """What an order earned, and what the rules saw of its member."""

    day: date
    tier: str
    used: dict[int, int]
    points: int
    growth: int
    points_back: int = 0
    growth_back: int = 0


class Oracle:
    """Follows every member through the days, as the replay sends them.

    `frame` has the lines of services.cli.baskets. `programme` is a loyalty.points.v1.Programme in its JSON
    mapping, snake_case; points_service.proto says what its rules mean. Everything of a local day is posted
    in its last second. Raises ValueError for what it cannot account for: a condition or key it does not
    know, pending days, a policy other than debt, a refund that gives something back.
    """

    def __init__(self, frame: pl.DataFrame, programme: Mapping[str, Any], plan: Plan) -> None:
        if programme.get("pending_days"):
            raise ValueError("the oracle does not know pending days: every point must be usable at once")
        if (clawback := programme.get("clawback", "CLAWBACK_DEBT")) != "CLAWBACK_DEBT":
            raise ValueError(f"the oracle does not know {clawback}")
        zone = programme["time_zone"]
        self._book = rulebook.read(programme)
        self._ladder = _ladder(programme)
        self._plan = plan
        self._orders = rulebook.facts(rulebook.whole(frame), self._book, zone)
        refunds = [
            deed
            for _, members in sorted(plan.later.items())
            for deeds in members.values()
            for deed in deeds
            if isinstance(deed, Refund)
        ]
        rests = rulebook.facts(rulebook.rests(frame, refunds), self._book, zone)
        self._rests = {row["name"]: row for row in rests.iter_rows(named=True)}
        self._purses: dict[str, Purse] = {}
        self._capped: dict[tuple[str, date], dict[int, int]] = {}
        self._sales: dict[str, _Sale] = {}
        self._done: date | None = None

    def until(self, last: date, posted: Callable[[str], int] = lambda _order_id: 0) -> pl.DataFrame:
        """Go on to the last second of a local day, and say what everybody owns then.

        `posted` says of an order the place of its transaction among its member's; orders of a day are taken
        in that order, equal ones by paid_time and basket_id. Columns: member_id and purse.COLUMNS.
        """
        days = self._orders.filter(pl.col("day") <= last)
        if self._done is not None:
            days = days.filter(pl.col("day") > self._done)
        by_day = {day: rows for (day,), rows in days.partition_by("day", as_dict=True).items()}
        for day in sorted(by_day.keys() | {d for d in self._plan.later if d <= last and self._open(d)}):
            if day in by_day:
                rows = by_day[day].iter_rows(named=True)
                for row in sorted(rows, key=lambda row: posted(row["order_id"])):
                    self._buy(row, day)
            for member_id, deeds in self._plan.later.get(day, {}).items():
                for deed in deeds:
                    self._do_later(self._purse(member_id, day), deed, day)
        self._done = last
        for member_id in self._purses:
            self._purse(member_id, last)
        return self._balances()

    def _open(self, day: date) -> bool:
        return self._done is None or day > self._done

    def _purse(self, member_id: str, day: date) -> Purse:
        """A member's purse in the evening of a day."""
        purse = self._purses.setdefault(member_id, Purse(self._ladder))
        purse.pass_until(evening(day))
        return purse

    def _buy(self, row: Row, day: date) -> None:
        """An order, and what its member does right after it."""
        purse = self._purse(row["member_id"], day)
        used = self._capped.setdefault((row["member_id"], day), {})
        given = rulebook.gives(self._book, row, purse.tier, used)
        points, growth = self._sums(given)
        self._sales[row["order_id"]] = _Sale(day, purse.tier, dict(used), points, growth)
        ends: dict[Any, int] = {}
        for i, amount in given.items():
            rule = self._book.rules[i]
            if rule.unit == _POINTS:
                end = row[f"ends {i}"] or FOREVER
                ends[end] = ends.get(end, 0) + amount
            if rule.cap_per_day:
                used[i] = used.get(i, 0) + amount
        purse.earn(row["order_id"], ends.items(), growth, day)
        purse.promote(day)
        for deed in self._plan.at_once.get(row["order_id"], []):
            match deed:
                case Redeem(amount=said):
                    amount = purse.available if said is None else said
                    if 0 < amount <= purse.available:
                        purse.redeem(amount)
                case Hold(name=name, amount=amount, until=until):
                    if amount <= purse.available:
                        purse.hold(name, amount, until)

    def _do_later(self, purse: Purse, deed: Close | Refund, day: date) -> None:
        if isinstance(deed, Refund):
            self._refund(purse, deed)
        elif deed.hold in purse.holds:
            purse.close(deed.hold, deed.capture, evening(day))

    def _refund(self, purse: Purse, refund: Refund) -> None:
        """Takes back what was earned less what the rest of the order would have earned, then and there."""
        sale = self._sales[refund.order_id]
        kept_points = kept_growth = 0
        if rest := self._rests.get(refund.name):
            kept_points, kept_growth = self._sums(rulebook.gives(self._book, rest, sale.tier, sale.used))
        points = max(0, sale.points - kept_points) - sale.points_back
        growth = max(0, sale.growth - kept_growth) - sale.growth_back
        if points < 0 or growth < 0:
            raise ValueError(f"the oracle does not know refunds that give back, as {refund.name} does")
        sale.points_back += points
        sale.growth_back += growth
        purse.take_back(refund.order_id, points, growth, sale.day)

    def _sums(self, given: Mapping[int, int]) -> tuple[int, int]:
        """Points and growth of what rules gave."""
        points = sum(amount for i, amount in given.items() if self._book.rules[i].unit == _POINTS)
        return points, sum(given.values()) - points

    def _balances(self) -> pl.DataFrame:
        rows = [
            (member_id, *(getattr(purse, name) for name in COLUMNS))
            for member_id, purse in self._purses.items()
        ]
        schema = {"member_id": pl.String} | dict.fromkeys(COLUMNS, pl.Int64) | {"tier": pl.String}
        return pl.DataFrame(rows, schema=schema, orient="row").sort("member_id")


def _ladder(programme: Mapping[str, Any]) -> Ladder | None:
    if not (spec := programme.get("tier_ladder")):
        return None
    return Ladder(
        zone=ZoneInfo(programme["time_zone"]),
        tiers=tuple((int(tier["growth"]), tier["tier_id"]) for tier in reversed(spec["tiers"])),
        days=int(spec["rolling_days"]) if "rolling_days" in spec else None,
        grace=int(spec.get("grace_days", 0)),
    )


def expected(frame: pl.DataFrame, programme: Mapping[str, Any], plan: Plan | None = None) -> pl.DataFrame:
    """Compute what each member owns in the evening of the last order's day, as Oracle does."""
    last = frame["paid_time"].dt.convert_time_zone(programme["time_zone"]).dt.date().max()
    return Oracle(frame, programme, plan or Plan()).until(last)  # type: ignore[arg-type]
