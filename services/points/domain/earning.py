"""What the programme's rules give for an order or an activity. Exact integers throughout, no float.

Amounts are held as numerators over the programme's common denominator and rounded down once per
transaction and unit. Order of the arithmetic: base rules (`per`, `fixed`), BEST among them; multipliers on
what the applied `per` rules give before caps, BEST among those; then each rule's caps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fractions import Fraction
from math import lcm

from services.points.domain.ledger import Expiry, Gain, Terms, Unit

Number = int | Fraction


class Scope(StrEnum):
    """What a rule looks at."""

    ORDER = "ORDER"
    LINE = "LINE"
    ACTIVITY = "ACTIVITY"


@dataclass(frozen=True, slots=True)
class Rule:
    """An earn rule without its condition. Exactly one of `per`, `multiplier` and `fixed` is set."""

    rule_id: str
    scope: Scope
    unit: Unit
    best: bool
    per: Fraction | None = None  # of the unit, for each minor currency unit
    multiplier: Fraction | None = None  # at least 1
    fixed: int | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    cap_per_order: int = 0  # 0: no cap
    cap_per_day: int = 0
    expiry: Expiry | None = None

    def holds_at(self, occur: datetime) -> bool:
        """Whether the rule's window contains an instant."""
        after_start = self.valid_from is None or occur >= self.valid_from
        return after_start and (self.valid_until is None or occur < self.valid_until)


@dataclass(frozen=True, slots=True)
class Basis:
    """What is earned on, in minor units: an order's lines and total, or an activity's amount as total.

    What refunds leave of a line is a fraction.
    """

    lines: tuple[Number, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Match:
    """A rule whose condition held, with a LINE rule's matching lines; or, with `error`, did not evaluate."""

    rule: Rule
    lines: frozenset[int] = frozenset()
    error: str = ""


@dataclass(frozen=True, slots=True)
class RuleBook:
    """A version of the programme, without its conditions."""

    terms: Terms
    rules: tuple[Rule, ...]
    denominator: int
    rates: Mapping[str, int]
    """What each `per` rule gives for a minor unit, over the denominator."""

    @classmethod
    def of(cls, terms: Terms, rules: Sequence[Rule]) -> RuleBook:
        """Finds the denominator over which every amount that the rules can give is whole."""
        per = lcm(*(rule.per.denominator for rule in rules if rule.per is not None))
        factors = lcm(*(rule.multiplier.denominator for rule in rules if rule.multiplier is not None))
        whole = per * factors
        rates = {rule.rule_id: int(rule.per * whole) for rule in rules if rule.per is not None}
        return cls(terms, tuple(rules), whole, rates)


def gains(
    book: RuleBook, matches: Sequence[Match], basis: Basis, used_today: Mapping[str, int]
) -> list[Gain]:
    """What the matching rules give, in the programme's order.

    `used_today` is what each rule with a daily cap gave the member on the fact's local day already.
    """
    whole = book.denominator
    amounts: dict[str, Number] = {}
    sound = [match for match in matches if not match.error]
    base = [match for match in sound if match.rule.multiplier is None]
    for match in base:
        amounts[match.rule.rule_id] = _base_amount(book, match, basis)
    applied = _resolve_best(base, amounts)
    multipliers = [match for match in sound if match.rule.multiplier is not None]
    for match in multipliers:
        amounts[match.rule.rule_id] = _extra(book, match, applied, basis)
    counted = {match.rule.rule_id for match in (*applied, *_resolve_best(multipliers, amounts))}

    running: dict[Unit, Number] = dict.fromkeys(Unit, 0)
    result: list[Gain] = []
    for match in matches:
        rule = match.rule
        if match.error:
            result.append(Gain(rule.rule_id, rule.unit, 0, error=match.error))
        elif rule.rule_id in counted:
            amount = _capped(rule, amounts[rule.rule_id], used_today.get(rule.rule_id, 0), whole)
            before = running[rule.unit] // whole
            running[rule.unit] += amount
            given = running[rule.unit] // whole - before
            result.append(
                Gain(rule.rule_id, rule.unit, given, rule.expiry, counts_against_day=rule.cap_per_day > 0)
            )
    return result


def _base_amount(book: RuleBook, match: Match, basis: Basis) -> Number:
    if match.rule.fixed is not None:
        return match.rule.fixed * book.denominator
    return book.rates[match.rule.rule_id] * _amount(match, basis)


def _amount(match: Match, basis: Basis) -> Number:
    if match.rule.scope is Scope.LINE:
        return sum(basis.lines[index] for index in match.lines)
    return basis.total


def _extra(book: RuleBook, match: Match, applied: Sequence[Match], basis: Basis) -> Number:
    """(factor - 1) times what the applied `per` rules of the unit give on the part that matches."""
    multiplier = match.rule.multiplier or Fraction(1)
    given: Number = 0
    for other in applied:
        if other.rule.per is None or other.rule.unit is not match.rule.unit:
            continue
        rate = book.rates[other.rule.rule_id]
        if match.rule.scope is not Scope.LINE:
            given += rate * _amount(other, basis)
        else:
            lines = match.lines & other.lines if other.rule.scope is Scope.LINE else match.lines
            given += rate * sum(basis.lines[index] for index in lines)
    # Of whole amounts whole by construction: the denominator has the multipliers' as a factor, as each rate.
    extra = given * (multiplier.numerator - multiplier.denominator)
    whole, rest = divmod(extra, multiplier.denominator)
    return Fraction(extra, multiplier.denominator) if rest else whole


def _resolve_best(matches: Sequence[Match], amounts: Mapping[str, Number]) -> list[Match]:
    """All that add, and of those that say BEST, per unit, the one that gives most (the first of equals)."""
    chosen: dict[Unit, Match] = {}
    for match in matches:
        if match.rule.best:
            held = chosen.get(match.rule.unit)
            if held is None or amounts[match.rule.rule_id] > amounts[held.rule.rule_id]:
                chosen[match.rule.unit] = match
    return [m for m in matches if not m.rule.best or chosen[m.rule.unit] is m]


def _capped(rule: Rule, amount: Number, used_today: int, whole: int) -> Number:
    if rule.cap_per_order:
        amount = min(amount, rule.cap_per_order * whole)
    if rule.cap_per_day:
        amount = min(amount, max(0, rule.cap_per_day - used_today) * whole)
    return amount
