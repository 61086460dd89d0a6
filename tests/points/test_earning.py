"""The rules' arithmetic against a plain model: fractions, one rule after the other, floors of exact sums."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.points.domain.earning import Basis, Match, Rule, RuleBook, Scope, gains
from services.points.domain.ledger import Gain, Terms, Unit

TERMS = Terms(1, ZoneInfo("Asia/Shanghai"), "CNY", None, 0)
Used = dict[str, int]
Case = tuple[list[Rule], list[Match], Basis, Used]

patiently = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


# --- the model ----------------------------------------------------------------------------------------


def best_only(given: dict[Rule, Fraction]) -> dict[Rule, Fraction]:
    """Drops every BEST rule but the first of those that give most, per unit."""
    kept = dict(given)
    for unit in Unit:
        rivals = [rule for rule in given if rule.best and rule.unit is unit]
        most = max((given[rule] for rule in rivals), default=Fraction(0))
        winner = next((rule for rule in rivals if given[rule] == most), None)
        for rule in rivals:
            if rule is not winner:
                del kept[rule]
    return kept


def lines_of(match: Match, basis: Basis) -> frozenset[int]:
    """The lines that a match is about: all of the order, unless the rule looks at lines."""
    return match.lines if match.rule.scope is Scope.LINE else frozenset(range(len(basis.lines)))


def amount(lines: frozenset[int], *, whole: bool, basis: Basis) -> Fraction:
    return Fraction(basis.total if whole else sum(basis.lines[line] for line in lines))


def exact(matches: Sequence[Match], basis: Basis, used: Used) -> dict[Rule, Fraction]:
    """What each rule that counts gives, with fractions, after its caps."""
    base: dict[Rule, Fraction] = {}
    factors: dict[Rule, Fraction] = {}
    by_rule = {match.rule: match for match in matches if not match.error}
    for rule, match in by_rule.items():
        whole = rule.scope is not Scope.LINE
        if rule.fixed is not None:
            base[rule] = Fraction(rule.fixed)
        elif rule.per is not None:
            base[rule] = rule.per * amount(lines_of(match, basis), whole=whole, basis=basis)
    base = best_only(base)
    for rule, match in by_rule.items():
        if rule.multiplier is not None:
            factors[rule] = Fraction(0)
            for other in (o for o in base if o.per is not None and o.unit is rule.unit):
                assert other.per is not None
                shared = lines_of(match, basis) & lines_of(by_rule[other], basis)
                whole = Scope.LINE not in (rule.scope, other.scope)
                multiplied = other.per * amount(shared, whole=whole, basis=basis)
                factors[rule] += (rule.multiplier - 1) * multiplied
    counted = base | best_only(factors)
    for rule in counted:
        if rule.cap_per_order:
            counted[rule] = min(counted[rule], Fraction(rule.cap_per_order))
        if rule.cap_per_day:
            left = max(0, rule.cap_per_day - used.get(rule.rule_id, 0))
            counted[rule] = min(counted[rule], Fraction(left))
    return counted


def expected(matches: Sequence[Match], basis: Basis, used: Used) -> list[tuple[str, int, str]]:
    """Rule, amount and error of each contribution, so that prefixes sum up to floors of exact prefixes."""
    given = exact(matches, basis, used)
    sums = dict.fromkeys(Unit, Fraction(0))
    result: list[tuple[str, int, str]] = []
    for match in matches:
        rule = match.rule
        if match.error:
            result.append((rule.rule_id, 0, match.error))
        elif rule in given:
            before = floor(sums[rule.unit])
            sums[rule.unit] += given[rule]
            result.append((rule.rule_id, floor(sums[rule.unit]) - before, ""))
    return result


# --- random programmes, baskets and matches -----------------------------------------------------------

amounts = st.integers(0, 30_000) | st.sampled_from([0, 1, 10**12])
fractions = st.builds(Fraction, st.integers(1, 50), st.integers(1, 1000))
multipliers = st.decimals(1, 20, places=3, allow_nan=False, allow_infinity=False).map(Fraction)
caps = st.just(0) | st.integers(1, 300)


@st.composite
def rule(draw: st.DrawFn, number: int, scopes: Sequence[Scope]) -> Rule:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "per": fractions,
        "multiplier": multipliers,
        "fixed": st.integers(1, 500),
    }
    kind = draw(st.sampled_from(sorted(kinds)))
    return Rule(
        rule_id=f"rule-{number}",
        scope=draw(st.sampled_from(scopes)),
        unit=draw(st.sampled_from(Unit)),
        best=draw(st.booleans()),
        cap_per_order=draw(caps),
        cap_per_day=draw(caps),
        **{kind: draw(kinds[kind])},
    )


def _refunded(lines: tuple[int, ...], total: int, share: Fraction) -> Basis:
    """What refunds leave of an order: whole minor units in all, and a share of each line."""
    return Basis(tuple(amount * share for amount in lines), int(total * share))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    activity = draw(st.integers(0, 4)) == 0
    lines = () if activity else tuple(draw(st.lists(amounts, max_size=6)))
    total = sum(lines) + draw(amounts)  # the rest is delivery, or the activity's amount
    share = Fraction(draw(st.integers(0, total)), total or 1) if draw(st.booleans()) else None
    basis = Basis(lines, total) if share is None else _refunded(lines, total, share)
    scopes = [Scope.ACTIVITY] if activity else [Scope.ORDER, *([Scope.LINE] if lines else [])]
    rules = [draw(rule(number, scopes)) for number in range(draw(st.integers(0, 8)))]
    matches = []
    for each in rules:
        if draw(st.integers(0, 7)) == 0:
            matches.append(Match(each, error="has no value"))
        elif each.scope is Scope.LINE:
            chosen = draw(st.frozensets(st.integers(0, len(lines) - 1)))
            if chosen:
                matches.append(Match(each, chosen))
        elif draw(st.integers(0, 3)):
            matches.append(Match(each))
    used = {each.rule_id: draw(st.integers(0, 400)) for each in rules if each.cap_per_day}
    return rules, matches, basis, used


def give(case: Case) -> list[Gain]:
    rules, matches, basis, used = case
    return gains(RuleBook.of(TERMS, rules), matches, basis, used)


# --- properties ---------------------------------------------------------------------------------------


@patiently
@given(cases())
@example(([], [], Basis((), 0), {}))
def test_contributions_are_those_of_a_plain_model_with_fractions(case: Case) -> None:
    _, matches, basis, used = case
    found = [(gain.rule_id, gain.amount, gain.error) for gain in give(case)]
    assert found == expected(matches, basis, used)


@patiently
@given(cases())
def test_contributions_of_a_unit_sum_up_to_the_floor_of_the_exact_sum(case: Case) -> None:
    _, matches, basis, used = case
    given = exact(matches, basis, used)
    for unit in Unit:
        total = sum(gain.amount for gain in give(case) if gain.unit is unit)
        assert total == floor(sum(value for rule, value in given.items() if rule.unit is unit))


@patiently
@given(cases())
def test_no_contribution_is_negative_or_passes_its_caps(case: Case) -> None:
    rules, _, _, used = case
    by_id = {rule.rule_id: rule for rule in rules}
    for gain in give(case):
        rule = by_id[gain.rule_id]
        assert gain.amount >= 0
        assert not rule.cap_per_order or gain.amount <= rule.cap_per_order
        assert not rule.cap_per_day or gain.amount <= max(0, rule.cap_per_day - used[rule.rule_id])
        assert gain.counts_against_day == (rule.cap_per_day > 0 and not gain.error)


@patiently
@given(cases())
def test_of_the_rules_that_say_best_one_of_each_kind_and_unit_counts(case: Case) -> None:
    rules, _, _, _ = case
    by_id = {rule.rule_id: rule for rule in rules}
    counted = [by_id[gain.rule_id] for gain in give(case) if not gain.error]
    kinds = [(rule.unit, rule.multiplier is None) for rule in counted if rule.best]
    assert len(kinds) == len(set(kinds))


# --- what the contract says, in numbers ---------------------------------------------------------------


def points(rule_id: str, scope: Scope = Scope.ORDER, *, best: bool = False, **more: Any) -> Rule:
    return Rule(rule_id, scope, Unit.POINTS, best, **more)


def amounts_of(matches: Sequence[Match], basis: Basis, used: Used | None = None) -> Used:
    book = RuleBook.of(TERMS, [match.rule for match in matches])
    return {gain.rule_id: gain.amount for gain in gains(book, matches, basis, used or {})}


YUAN = Fraction(1, 100)


def test_rounding_happens_once_so_that_two_halves_make_a_whole() -> None:
    halves = [Match(points(name, per=Fraction(1, 200))) for name in ("first", "second")]
    assert amounts_of(halves, Basis((100,), 100)) == {"first": 0, "second": 1}


def test_among_equals_that_say_best_the_first_counts() -> None:
    rivals = [Match(points(name, best=True, fixed=7)) for name in ("first", "second")]
    assert amounts_of(rivals, Basis((), 0)) == {"first": 7}


def test_best_is_decided_before_caps() -> None:
    capped = Match(points("capped", best=True, fixed=9, cap_per_order=1))
    assert amounts_of([capped, Match(points("other", best=True, fixed=8))], Basis((), 0)) == {"capped": 1}


def test_a_multiplier_works_on_what_per_rules_give_before_their_caps() -> None:
    base = Match(points("base", per=YUAN, cap_per_order=5))
    double = Match(points("double", multiplier=Fraction(2)))
    assert amounts_of([base, double], Basis((2000,), 2000)) == {"base": 5, "double": 20}


def test_a_multiplier_on_lines_leaves_the_other_lines_and_the_delivery_alone() -> None:
    base = Match(points("base", per=YUAN))
    coffee = Match(points("coffee", Scope.LINE, multiplier=Fraction(5)), frozenset({1}))
    assert amounts_of([base, coffee], Basis((1000, 300), 1800)) == {"base": 18, "coffee": 12}


def test_a_multiplier_ignores_fixed_amounts_and_per_rules_that_lost_to_a_better_one() -> None:
    fixed = Match(points("fixed", best=True, fixed=100))
    loser = Match(points("loser", best=True, per=YUAN))
    double = Match(points("double", multiplier=Fraction(2)))
    assert amounts_of([fixed, loser, double], Basis((500,), 500)) == {"fixed": 100, "double": 0}


def test_a_fixed_amount_comes_once_however_many_lines_match() -> None:
    bonus = Match(points("bonus", Scope.LINE, fixed=3), frozenset({0, 1, 2}))
    assert amounts_of([bonus], Basis((1, 1, 1), 3)) == {"bonus": 3}


def test_what_a_day_has_used_up_is_not_given_again() -> None:
    task = Match(points("task", fixed=20, cap_per_day=30))
    assert [amounts_of([task], Basis((), 0), {"task": n})["task"] for n in (0, 15, 30, 45)] == [20, 15, 0, 0]


def test_a_rule_holds_from_the_start_of_its_window_until_before_its_end() -> None:
    start = datetime(2026, 6, 1, tzinfo=UTC)
    tick, end = timedelta(microseconds=1), start + timedelta(days=1)
    windowed = points("window", fixed=1, valid_from=start, valid_until=end)
    moments = (start - tick, start, end - tick, end)
    assert [windowed.holds_at(at) for at in moments] == [False, True, True, False]
