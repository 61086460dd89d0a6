"""What orders earn, and what is left of them after refunds, computed a second time for the oracle.

It shares nothing with the points service: conditions are polars expressions, not CEL; sums are columns.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from math import lcm
from typing import Any, Final

import polars as pl

from services.cli.deeds import Refund

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
    # Nobody who is replayed holds a card.
    'member.facts.exists(fact, fact.startsWith("card.") && member.facts[fact] == "1.2")': pl.lit(False),
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


Row = Mapping[str, Any]
"""An order, or what refunds left of one, as `facts` describes it."""


@dataclass(frozen=True)
class Rule:
    """One earn rule. It looks at the whole order, or at each line."""

    unit: str
    whole: bool
    best: bool
    matches: pl.Expr
    tier: str  # which the member must hold; empty: any or none
    per: int | None  # for each minor unit, `Book.scale` of which make a point
    multiplier: Fraction | None  # already less one
    fixed: int | None
    cap_per_order: int  # 0 is none
    cap_per_day: int  # 0 is none
    expiry: Mapping[str, int] | None


@dataclass(frozen=True)
class Book:
    """The rules for orders. What they give is counted in parts, `scale` of which make a point."""

    scale: int
    rules: Sequence[Rule]


def read(programme: Mapping[str, Any]) -> Book:
    """Read the rules for orders. Raises ValueError for what is not known here."""
    specs = [rule for rule in programme.get("earn_rules", []) if rule["scope"] != "RULE_SCOPE_ACTIVITY"]
    factors = [Fraction(spec["multiplier"]) for spec in specs if "multiplier" in spec]
    amounts = [int(spec["per"]["amount_minor"]) for spec in specs if "per" in spec]
    # So that nothing that a rule gives for a cent leaves a fraction, nor what a multiplier makes of it.
    scale = lcm(*amounts) * lcm(*(factor.denominator for factor in factors))
    return Book(scale, [_rule(spec, scale, programme.get("expiry")) for spec in specs])


def _rule(spec: Mapping[str, Any], scale: int, expiry: Mapping[str, int] | None) -> Rule:
    if unknown := spec.keys() - _KEYS:
        raise ValueError(f"the oracle does not know the keys {sorted(unknown)} of rule {spec['rule_id']}")
    factor = Fraction(spec["multiplier"]) - 1 if "multiplier" in spec else None
    if factor is not None and factor < 0:
        raise ValueError(f"the oracle knows no multiplier below 1, as in rule {spec['rule_id']}")
    per = spec.get("per")
    return Rule(
        unit=spec["unit"],
        whole=spec["scope"] == "RULE_SCOPE_ORDER",
        best=spec["stack"] == "RULE_STACK_BEST",
        matches=_matches(spec),
        tier=_tier_of(spec),
        per=int(per["points"]) * scale // int(per["amount_minor"]) if per else None,
        multiplier=factor,
        fixed=int(spec["fixed"]) if "fixed" in spec else None,
        cap_per_order=int(spec.get("cap_per_order", 0)),
        cap_per_day=int(spec.get("cap_per_day", 0)),
        expiry=spec.get("expiry", expiry),
    )


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


# --- orders as facts ------------------------------------------------------------------------------------

_ORDER: Final = ("name", "member_id", "order_id", "basket_id", "paid_time", "city", "total_minor")


def whole(frame: pl.DataFrame) -> pl.DataFrame:
    """Lines of orders as they were bought, each order under its own name."""
    return frame.with_columns(
        name=pl.col("order_id"),
        total_minor=pl.sum("amount_minor").over("order_id"),
        part=pl.col("amount_minor"),
        parts=pl.lit(1, pl.Int64),
        gone=False,
    )


def rests(frame: pl.DataFrame, refunds: Sequence[Refund]) -> pl.DataFrame:
    """Lines of what each refund leaves of its order, together with those before it, under the refund's name.

    Of a line stays (amount - refunded of it) * (1 - A / S): A is what was refunded by amount, S the order
    less what was refunded by line. It is `part` / `parts`, exactly; conditions see it rounded down. A line
    down to less than a cent is gone, though its order still counts its share. Where nothing is left there
    are no lines.
    """
    states, of_lines = _add_up(refunds)
    schema = {"name": pl.String, "order_id": pl.String, "by_amount": pl.Int64, "everything": pl.Boolean}
    line_schema = {"name": pl.String, "line_id": pl.String, "by_line": pl.Int64}
    left = pl.col("amount_minor") - pl.col("by_line").fill_null(0)
    total = pl.col("rest") - pl.col("by_amount")
    return (
        pl.DataFrame(states, schema=schema, orient="row")
        .join(frame, on="order_id", maintain_order="left_right")
        .join(
            pl.DataFrame(of_lines, schema=line_schema, orient="row"),
            on=["name", "line_id"],
            how="left",
            maintain_order="left",
        )
        .with_columns(rest=left.sum().over("name"))
        .with_columns(part=left * total, parts=pl.col("rest"), total_minor=total)
        .filter(~pl.col("everything") & (pl.col("total_minor") > 0))
        .with_columns(
            gone=(pl.col("part") < pl.col("parts")) & (pl.col("amount_minor") > 0),
            amount_minor=pl.col("part") // pl.col("parts"),
        )
    )


def _add_up(refunds: Sequence[Refund]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """After each refund, what of its order was refunded by amount or whole; and by line."""
    states: list[tuple[Any, ...]] = []
    of_lines: list[tuple[Any, ...]] = []
    before: dict[str, tuple[int, bool, dict[str, int]]] = {}
    for refund in refunds:
        amount, everything, lines = before.get(refund.order_id, (0, False, {}))
        lines = lines | {line: lines.get(line, 0) + part for line, part in refund.lines.items()}
        now = (amount + refund.amount, everything or refund.everything, lines)
        before[refund.order_id] = now
        states.append((refund.name, refund.order_id, *now[:2]))
        of_lines += [(refund.name, line_id, part) for line_id, part in lines.items()]
    return states, of_lines


def facts(lines: pl.DataFrame, book: Book, zone: str) -> pl.DataFrame:
    """Reduce lines to one row per name, in order of (paid_time, basket_id).

    Column `i` says whether rule i matches; `i&j` is the amount that rule i and the per rule j both match,
    times `parts`; `ends i` is when what rule i gives is gone. A rule for the whole order takes its total.
    """
    rules, kept = book.rules, ~pl.col("gone")
    lines = lines.with_columns(
        rule.matches.alias(f"{i}") if rule.whole else (rule.matches & kept).alias(f"{i}")
        for i, rule in enumerate(rules)
    )
    amounts = []
    for j, base in enumerate(rules):
        for i, rule in enumerate(rules):
            if base.per is None or (i != j and (rule.multiplier is None or rule.unit != base.unit)):
                continue
            both = pl.col(f"{i}") & pl.col(f"{j}")
            of_lines = pl.col("part").filter(both & kept).sum()
            of_all = pl.col("total_minor").first() * pl.col("parts").first() * both.first()
            amounts.append((of_all if rule.whole and base.whole else of_lines).alias(f"{i}&{j}"))
    day = pl.col("paid_time").dt.convert_time_zone(zone).dt.date()
    return (
        lines.group_by(_ORDER)
        .agg(pl.first("parts"), *(pl.col(f"{i}").any() for i in range(len(rules))), *amounts)
        .with_columns(day=day)
        .with_columns(_end(rule.expiry, zone).alias(f"ends {i}") for i, rule in enumerate(rules))
        .sort("paid_time", "basket_id")
    )


def _end(expiry: Mapping[str, int] | None, zone: str) -> pl.Expr:
    """The local midnight after the last day of points; null if they have none."""
    if not expiry:
        return pl.lit(None, pl.Datetime("us", "UTC"))
    last = pl.date(pl.col("day").dt.year() + expiry.get("calendar_years", 0), 12, 31)
    if "rolling_months" in expiry:
        last = pl.col("day").dt.offset_by(f"{expiry['rolling_months']}mo")
    following = last.dt.offset_by("1d").cast(pl.Datetime("us"))
    return following.dt.replace_time_zone(zone).dt.convert_time_zone("UTC")


# --- what they earn -------------------------------------------------------------------------------------


def gives(book: Book, row: Row, tier: str, used: Mapping[int, int]) -> dict[int, int]:
    """Say how many points each rule gives, by its place.

    `used` is what each capped rule gave on the order's local day already.
    """
    point = book.scale * row["parts"]  # in what amounts are counted: of them, so many make a point
    amounts = _amounts(book, row, tier, point)
    sums = dict.fromkeys((rule.unit for rule in book.rules), 0)
    given = {}
    for i in sorted(amounts):
        rule, amount = book.rules[i], amounts[i]
        before = sums[rule.unit]
        if rule.cap_per_order:
            amount = min(amount, rule.cap_per_order * point)
        if rule.cap_per_day:
            amount = min(amount, (rule.cap_per_day - used.get(i, 0)) * point)
        sums[rule.unit] = before + amount
        given[i] = (before + amount) // point - before // point  # rounded down once, at the sum
    return given


def _amounts(book: Book, row: Row, tier: str, point: int) -> dict[int, int]:
    """Say how much each applied rule gives before caps, by its place."""
    rules = book.rules
    matched = [(i, rule) for i, rule in enumerate(rules) if row[f"{i}"] and rule.tier in ("", tier)]
    base = {}
    for i, rule in matched:
        if rule.per is not None:
            base[i] = rule.per * row[f"{i}&{i}"]
        elif rule.fixed is not None:
            base[i] = rule.fixed * point
    base = _applied(rules, base)
    pers = [(j, per, rules[j].unit) for j in base if (per := rules[j].per) is not None]
    extra = {}
    for i, rule in matched:
        if (factor := rule.multiplier) is not None:
            grown = sum(per * row[f"{i}&{j}"] for j, per, unit in pers if unit == rule.unit)
            extra[i] = grown * factor.numerator // factor.denominator  # exact: see `read`
    return base | _applied(rules, extra)


def _applied(rules: Sequence[Rule], amounts: Mapping[int, int]) -> dict[int, int]:
    """Keep what adds, and per unit the BEST rule that gives most, the first of equals."""
    best: dict[str, int] = {}
    for i, amount in amounts.items():
        unit = rules[i].unit
        if rules[i].best and (unit not in best or amount > amounts[best[unit]]):
            best[unit] = i
    return {i: amount for i, amount in amounts.items() if not rules[i].best or best[rules[i].unit] == i}
