"""What every member must own after a replay, computed a second time: from the data and the rule book alone.

It shares nothing with the points service: conditions are polars expressions, not CEL; sums are columns.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from fractions import Fraction
from math import lcm
from typing import Any, Final

import polars as pl

from services.cli.baskets import REDEEM_EVERY, REDEEM_POINTS

_LOCAL: Final = pl.col("paid_time").dt.convert_time_zone("Asia/Shanghai")
_BEFORE_HALF_PAST_TEN: Final = _LOCAL.dt.time() < pl.time(10, 30)
_BREAKFAST: Final = ("BREAKFAST SAUSAGE/SANDWICHES", "FRZN BREAKFAST FOODS", "BREAKFAST SWEETS")
# What each `when` means on a line of the frame; total_minor is that of the line's order.
CONDITIONS: Final[dict[str, pl.Expr]] = {
    "": pl.lit(True),
    'order.city == "杭州" && now.getDayOfWeek("Asia/Shanghai") == 3': (
        (pl.col("city") == "杭州") & (_LOCAL.dt.weekday() == 3)
    ),
    'line.category == "SOFT DRINKS"': pl.col("category") == "SOFT DRINKS",
    'line.category == "COFFEE" && (now.getHours("Asia/Shanghai") < 10'
    ' || now.getHours("Asia/Shanghai") == 10 && now.getMinutes("Asia/Shanghai") < 30)': (
        (pl.col("category") == "COFFEE") & _BEFORE_HALF_PAST_TEN
    ),
    'line.category in ["BREAKFAST SAUSAGE/SANDWICHES", "FRZN BREAKFAST FOODS", "BREAKFAST SWEETS"]'
    ' && now.getHours("Asia/Shanghai") >= 5 && (now.getHours("Asia/Shanghai") < 10'
    ' || now.getHours("Asia/Shanghai") == 10 && now.getMinutes("Asia/Shanghai") < 30)': (
        pl.col("category").is_in(_BREAKFAST) & (_LOCAL.dt.hour() >= 5) & _BEFORE_HALF_PAST_TEN
    ),
    "order.total_minor >= 5000": pl.col("total_minor") >= 5000,
}
_OF_TIER: Final = re.compile(r'member\.tier == "([^"]+)"')  # the one condition that goes by the member
# Keys of an earn rule that the oracle reads; a misspelt one must not pass for an absent one.
_KEYS: Final = {
    "rule_id",
    "scope",
    "unit",
    "when",
    "per",
    "multiplier",
    "fixed",
    "stack",
    "valid_from_time",
    "valid_until_time",
    "cap_per_order",
    "cap_per_day",
    "expiry",
}


@dataclass(frozen=True)
class _Rule:
    """One earn rule; what it gives is counted in parts, `scale` of which are one point.

    Scope needs no field: every base is linear in the lines' amounts and there is no delivery fee, so an
    ORDER rule is a rule that matches all lines of its order or none.
    """

    unit: str
    best: bool
    matches: pl.Expr
    tier: str  # which the member must hold; empty: any or none
    per: int | None  # parts per minor unit
    multiplier: Fraction | None  # already less one
    fixed: int | None  # parts
    cap_per_order: int  # parts; 0 is none
    cap_per_day: int  # points; 0 is none


@dataclass
class _Member:
    """A member's running balances, in the columns' order, and what the day's caps have given."""

    orders: int = 0
    available: int = 0
    lifetime_earned: int = 0
    growth: int = 0
    redeemed: int = 0
    tier: str = ""
    capped: dict[tuple[int, date], int] = field(default_factory=dict)


def expected(frame: pl.DataFrame, programme: Mapping[str, Any]) -> pl.DataFrame:
    """Compute each member's balances at the last order of `frame`, the lines of services.cli.baskets.

    `programme` is a loyalty.points.v1.Programme in its JSON mapping, snake_case; points_service.proto says
    what its rules mean. Columns: member_id, orders, available, lifetime_earned, growth, redeemed, tier,
    sorted by member_id. Raises ValueError for what it cannot account for: a condition or key it does not
    know, pending days, points that expire or tiers that end within the frame.
    """
    zone = programme["time_zone"]
    _refuse_what_falls_due(frame, programme, zone)
    specs = [rule for rule in programme.get("earn_rules", []) if rule["scope"] != "RULE_SCOPE_ACTIVITY"]
    scale, rules = _read(specs)
    tiers = _tiers(frame, programme, zone)
    members: dict[str, _Member] = {}
    for row in _per_order(frame, rules, zone).iter_rows(named=True):
        member = members.setdefault(row["member_id"], _Member())
        earned = _posted(rules, scale, _gives(rules, row, member.tier), member.capped, row["day"])
        member.orders += 1
        member.available += earned["UNIT_POINTS"]
        member.lifetime_earned += earned["UNIT_POINTS"]
        member.growth += earned["UNIT_GROWTH"]
        member.tier = next((name for takes, name in tiers if member.growth >= takes), "")
        if member.orders % REDEEM_EVERY == 0 and member.available >= REDEEM_POINTS:
            member.available -= REDEEM_POINTS
            member.redeemed += REDEEM_POINTS
    columns = ("orders", "available", "lifetime_earned", "growth", "redeemed", "tier")
    rows = [
        (member_id, *(getattr(member, name) for name in columns)) for member_id, member in members.items()
    ]
    schema = {"member_id": pl.String} | dict.fromkeys(columns, pl.Int64) | {"tier": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("member_id")


def _refuse_what_falls_due(frame: pl.DataFrame, programme: Mapping[str, Any], zone: str) -> None:
    if programme.get("pending_days"):
        raise ValueError("the oracle does not know pending days: every point must be usable at once")
    local_day = pl.col("paid_time").dt.convert_time_zone(zone).dt.date()
    for owner in (programme, *programme.get("earn_rules", [])):
        if not (expiry := owner.get("expiry")):
            continue
        if "rolling_months" in expiry:
            end = local_day.min().dt.offset_by(f"{expiry['rolling_months']}mo")
        else:
            end = pl.date(local_day.min().dt.year() + expiry["calendar_years"], 12, 31)
        first_end, last = frame.select(end=end, last=local_day.max()).row(0)
        if last is not None and first_end < last:
            raise ValueError(f"the oracle does not know expiry: points end on {first_end}, orders on {last}")


def _tiers(frame: pl.DataFrame, programme: Mapping[str, Any], zone: str) -> list[tuple[int, str]]:
    """The ladder, highest first. Its window must hold the whole frame: then all growth counts, to the end."""
    ladder = programme.get("tier_ladder")
    if not ladder or frame.is_empty():
        return []
    local_day = pl.col("paid_time").dt.convert_time_zone(zone).dt.date()
    first, last = frame.select(first=local_day.min(), last=local_day.max()).row(0)
    whole = first.year == last.year
    if "rolling_days" in ladder:
        whole = (last - first).days < int(ladder["rolling_days"])
    if not whole:
        raise ValueError(f"the oracle does not know tiers that end: orders from {first} to {last}")
    return [(int(tier["growth"]), tier["tier_id"]) for tier in reversed(ladder["tiers"])]


def _read(specs: Sequence[Mapping[str, Any]]) -> tuple[int, list[_Rule]]:
    """Read rules into whole parts: `scale` of them make a point, so that nothing given leaves a fraction."""
    factors = [Fraction(spec["multiplier"]) - 1 if "multiplier" in spec else None for spec in specs]
    amounts = [int(spec["per"]["amount_minor"]) for spec in specs if "per" in spec]
    scale = lcm(*amounts) * lcm(*(factor.denominator for factor in factors if factor is not None))
    rules = []
    for spec, factor in zip(specs, factors, strict=True):
        if unknown := spec.keys() - _KEYS:
            raise ValueError(f"the oracle does not know the keys {sorted(unknown)} of rule {spec['rule_id']}")
        per = spec.get("per")
        rules.append(
            _Rule(
                unit=spec["unit"],
                best=spec["stack"] == "RULE_STACK_BEST",
                matches=_matches(spec),
                tier=_tier_of(spec),
                per=int(per["points"]) * scale // int(per["amount_minor"]) if per else None,
                multiplier=factor,
                fixed=int(spec["fixed"]) * scale if "fixed" in spec else None,
                cap_per_order=int(spec.get("cap_per_order", 0)) * scale,
                cap_per_day=int(spec.get("cap_per_day", 0)),
            )
        )
    return scale, rules


def _matches(spec: Mapping[str, Any]) -> pl.Expr:
    when = "" if _tier_of(spec) else spec.get("when", "")
    if when not in CONDITIONS:
        raise ValueError(f"the oracle does not know the condition of rule {spec['rule_id']}: {when}")
    matches = CONDITIONS[when]
    if start := spec.get("valid_from_time"):
        matches &= pl.col("paid_time") >= datetime.fromisoformat(start)
    if until := spec.get("valid_until_time"):
        matches &= pl.col("paid_time") < datetime.fromisoformat(until)
    return matches


def _tier_of(spec: Mapping[str, Any]) -> str:
    found = _OF_TIER.fullmatch(spec.get("when", ""))
    return found[1] if found else ""


def _per_order(frame: pl.DataFrame, rules: Sequence[_Rule], zone: str) -> pl.DataFrame:
    """Reduce lines to one row per order, in order of (paid_time, basket_id).

    Column `i` says whether rule i matches; `i&j` is the amount that rule i and the per rule j both match.
    """
    pairs = [
        (i, j)
        for j, base in enumerate(rules)
        for i, rule in enumerate(rules)
        if base.per and (i == j or (rule.multiplier is not None and rule.unit == base.unit))
    ]
    overlaps = [
        pl.col("amount_minor").filter(pl.col(f"{i}") & pl.col(f"{j}")).sum().alias(f"{i}&{j}")
        for i, j in pairs
    ]
    return (
        frame.with_columns(total_minor=pl.sum("amount_minor").over("basket_id"))
        .with_columns(rule.matches.alias(f"{i}") for i, rule in enumerate(rules))
        .group_by("member_id", "basket_id", "paid_time")
        .agg(*(pl.col(f"{i}").any() for i in range(len(rules))), *overlaps)
        .with_columns(day=pl.col("paid_time").dt.convert_time_zone(zone).dt.date())
        .sort("paid_time", "basket_id")
    )


def _gives(rules: Sequence[_Rule], row: Mapping[str, Any], tier: str) -> dict[int, int]:
    """Say how many parts each applied rule gives for the order, before caps, by its place."""
    matched = [(i, rule) for i, rule in enumerate(rules) if row[f"{i}"] and rule.tier in ("", tier)]
    base = {}
    for i, rule in matched:
        if rule.per is not None:
            base[i] = rule.per * row[f"{i}&{i}"]
        elif rule.fixed is not None:
            base[i] = rule.fixed
    base = _applied(rules, base)
    pers = [(j, per, rules[j].unit) for j in base if (per := rules[j].per) is not None]
    extra = {}
    for i, rule in matched:
        if (factor := rule.multiplier) is not None:
            grown = sum(per * row[f"{i}&{j}"] for j, per, unit in pers if unit == rule.unit)
            extra[i] = grown * factor.numerator // factor.denominator  # exact: see _read
    return base | _applied(rules, extra)


def _applied(rules: Sequence[_Rule], gives: Mapping[int, int]) -> dict[int, int]:
    """Keep what adds, and per unit the BEST rule that gives most, the first of equals."""
    best: dict[str, int] = {}
    for i, parts in gives.items():
        unit = rules[i].unit
        if rules[i].best and (unit not in best or parts > gives[best[unit]]):
            best[unit] = i
    return {i: parts for i, parts in gives.items() if not rules[i].best or best[rules[i].unit] == i}


def _posted(
    rules: Sequence[_Rule],
    scale: int,
    gives: Mapping[int, int],
    capped: dict[tuple[int, date], int],
    day: date,
) -> dict[str, int]:
    """Cap and round: whole points per unit. Books what the rules gave on the day into `capped`."""
    sums = {"UNIT_POINTS": 0, "UNIT_GROWTH": 0}
    for i in sorted(gives):
        rule, parts, before = rules[i], gives[i], sums[rules[i].unit]
        if rule.cap_per_order:
            parts = min(parts, rule.cap_per_order)
        if rule.cap_per_day:
            parts = min(parts, (rule.cap_per_day - capped.get((i, day), 0)) * scale)
            whole = (before + parts) // scale - before // scale
            capped[i, day] = capped.get((i, day), 0) + whole
        sums[rule.unit] = before + parts
    return {unit: max(parts // scale, 0) for unit, parts in sums.items()}
