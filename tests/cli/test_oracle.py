import ast
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import protovalidate
import pytest
import yaml
from google.protobuf import json_format
from loyalty.points.v1.points_service_pb2 import Programme, RuleScope

from services.cli import baskets, oracle

BURGER_KING = yaml.safe_load(
    (Path(__file__).parents[2] / "deploy/programmes/burger-king.yaml").read_text(encoding="utf-8")
)["points"]
ONE_PER_YUAN = {"amount_minor": 100, "points": 1}
COFFEE = 'line.category == "COFFEE"'
DRINKS = 'line.category == "SOFT DRINKS"'
COLUMNS = ["orders", "available", "lifetime_earned", "growth", "redeemed"]


@pytest.fixture(autouse=True)
def _coffee_at_any_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(oracle.CONDITIONS, COFFEE, pl.col("category") == "COFFEE")


def rule(scope: str = "ORDER", *, unit: str = "POINTS", stack: str = "ADD", **given: Any) -> dict[str, Any]:
    """A rule as the YAML has it; `given` says what it gives, when, and its caps."""
    words = {"scope": f"RULE_SCOPE_{scope}", "unit": f"UNIT_{unit}", "stack": f"RULE_STACK_{stack}"}
    return {"rule_id": "r", **words, **given}


def basket(
    number: int, *lines: tuple[str, int], paid: str = "2017-03-01T04:00", city: str = ""
) -> pl.DataFrame:
    """An order of member m: its lines as (category, cents), paid at a UTC time."""
    return pl.DataFrame(
        lines, schema={"category": pl.String, "amount_minor": pl.Int64}, orient="row"
    ).with_columns(
        member_id=pl.lit("m"),
        basket_id=pl.lit(number, pl.Int64),
        paid_time=pl.lit(datetime.fromisoformat(paid).replace(tzinfo=UTC)),
        city=pl.lit(city),
    )


def balances(*orders: pl.DataFrame, rules: list[dict[str, Any]], **more: Any) -> dict[str, int]:
    """What the oracle expects of member m."""
    programme = {"time_zone": "Asia/Shanghai", "currency_code": "CNY", "earn_rules": rules, **more}
    expected = oracle.expected(pl.concat(orders), programme)
    assert expected.columns == ["member_id", *COLUMNS, "tier"]
    [row] = expected.rows(named=True)
    return {name: row[name] for name in COLUMNS}


def earned(*orders: pl.DataFrame, rules: list[dict[str, Any]]) -> int:
    return balances(*orders, rules=rules)["lifetime_earned"]


def test_the_sum_is_rounded_down_once_per_order_and_unit() -> None:
    half = {"amount_minor": 200, "points": 1}
    thirds = rule(per={"amount_minor": 300, "points": 1}, unit="GROWTH")
    got = balances(basket(1, ("", 150), ("", 149)), rules=[rule(per=half), rule(per=half), thirds])
    assert got == {"orders": 1, "available": 2, "lifetime_earned": 2, "growth": 0, "redeemed": 0}


def test_each_order_is_rounded_by_itself() -> None:
    assert earned(basket(1, ("", 199)), basket(2, ("", 199)), rules=[rule(per=ONE_PER_YUAN)]) == 2


def test_a_line_rule_counts_its_lines_only() -> None:
    order = basket(1, ("COFFEE", 350), ("BEEF", 900), ("COFFEE", 250))
    assert earned(order, rules=[rule("LINE", when=COFFEE, per=ONE_PER_YUAN)]) == 6


def test_a_fixed_amount_is_given_once_however_many_lines_match() -> None:
    rules = [rule("LINE", when=COFFEE, fixed=7)]
    assert earned(basket(1, ("COFFEE", 0), ("COFFEE", 9)), rules=rules) == 7
    assert earned(basket(1, ("BEEF", 9)), rules=rules) == 0


def test_a_multiplier_on_lines_multiplies_their_share_of_the_order() -> None:
    rules = [rule(per=ONE_PER_YUAN), rule("LINE", when=COFFEE, multiplier="5")]
    # 12.30 in all gives 12.30; 3.10 of it is coffee and gives 4 x 3.10 more: 24.70.
    assert earned(basket(1, ("COFFEE", 310), ("BEEF", 920)), rules=rules) == 24


def test_a_multiplier_on_lines_sees_only_common_lines_of_a_line_rule() -> None:
    rules = [rule("LINE", when=COFFEE, per=ONE_PER_YUAN), rule("LINE", when=DRINKS, multiplier="3")]
    assert earned(basket(1, ("COFFEE", 500), ("SOFT DRINKS", 500)), rules=rules) == 5


def test_a_multiplier_on_the_order_takes_in_line_rules_and_no_fixed_amount() -> None:
    rules = [
        rule(multiplier="1.2"),
        rule(per=ONE_PER_YUAN),
        rule("LINE", when=COFFEE, per=ONE_PER_YUAN),
        rule(fixed=10),
    ]
    # (10.00 + 4.00) x 1.2 + 10
    assert earned(basket(1, ("COFFEE", 400), ("BEEF", 600)), rules=rules) == 26


def test_multipliers_add_up_and_do_not_multiply_one_another() -> None:
    rules = [rule(per=ONE_PER_YUAN), rule(multiplier="2"), rule(multiplier="3")]
    assert earned(basket(1, ("", 1000)), rules=rules) == 40


def test_a_multiplier_leaves_the_other_unit_alone() -> None:
    rules = [rule(per=ONE_PER_YUAN), rule(per=ONE_PER_YUAN, unit="GROWTH"), rule(multiplier="2")]
    got = balances(basket(1, ("", 1000)), rules=rules)
    assert (got["lifetime_earned"], got["growth"]) == (20, 10)


def test_multipliers_below_one_take_away_but_never_below_nothing() -> None:
    assert earned(basket(1, ("", 1000)), rules=[rule(per=ONE_PER_YUAN), rule(multiplier="0.25")]) == 2
    rules = [rule(multiplier="0"), rule(multiplier="0"), rule(per=ONE_PER_YUAN)]
    assert earned(basket(1, ("", 1000)), rules=rules) == 0


def test_a_multiplier_builds_on_what_was_given_before_caps() -> None:
    rules = [rule(per=ONE_PER_YUAN, cap_per_order=3), rule(multiplier="2")]
    assert earned(basket(1, ("", 1000)), rules=rules) == 13


def test_of_the_best_base_rules_one_counts_and_feeds_the_multiplier() -> None:
    rules = [
        rule(fixed=8, stack="BEST"),
        rule(per=ONE_PER_YUAN, stack="BEST"),
        rule(multiplier="2"),
        rule(fixed=1),
    ]
    assert earned(basket(1, ("", 900)), rules=rules) == 9 + 9 + 1
    # The fixed 8 wins, so no `per` rule is applied and nothing is doubled; equal ones go to the first.
    assert earned(basket(1, ("", 799)), rules=rules) == 8 + 1
    assert earned(basket(1, ("", 800)), rules=rules) == 8 + 1


def test_best_is_chosen_per_kind_and_before_caps() -> None:
    rules = [
        rule(per=ONE_PER_YUAN, stack="BEST", cap_per_order=2),
        rule(fixed=5, stack="BEST"),
        rule(multiplier="2", stack="BEST"),
        rule("LINE", when=COFFEE, multiplier="5", stack="BEST"),
    ]
    # 10.00 beats 5, though capped to 2; doubling (10) beats fivefold coffee (4 x 2.00), but not 4 x 3.00.
    assert earned(basket(1, ("COFFEE", 200), ("", 800)), rules=rules) == 2 + 10
    assert earned(basket(1, ("COFFEE", 300), ("", 700)), rules=rules) == 2 + 12


def test_best_looks_only_at_rules_that_match() -> None:
    rules = [rule("LINE", when=COFFEE, fixed=5, stack="BEST"), rule(fixed=2, stack="BEST")]
    assert earned(basket(1, ("BEEF", 100)), rules=rules) == 2


def test_a_cap_gives_the_part_that_fits() -> None:
    assert earned(basket(1, ("", 1000)), rules=[rule(per=ONE_PER_YUAN, cap_per_order=4)]) == 4
    both = rule(fixed=10, cap_per_order=7, cap_per_day=12)
    assert earned(*(basket(n, ("", 1)) for n in (1, 2, 3)), rules=[both]) == 7 + 5 + 0


def test_a_day_s_cap_is_used_up_by_whole_points() -> None:
    rules = [rule(per={"amount_minor": 200, "points": 1}, cap_per_day=2)]
    # 1.5 each: 1 of 2 is used, then the 1 that is left.
    assert earned(*(basket(n, ("", 300)) for n in (1, 2, 3)), rules=rules) == 1 + 1 + 0


def test_a_fraction_before_it_decides_what_a_capped_rule_uses() -> None:
    half = {"amount_minor": 200, "points": 1}
    rules = [rule(per=half), rule(per=half, cap_per_day=1)]
    # 0.5 + 0.5: the second rule completes the point, which uses up its day.
    assert earned(basket(1, ("", 100)), basket(2, ("", 100)), rules=rules) == 1 + 0


def test_a_cap_s_day_begins_at_1600_utc_in_shanghai() -> None:
    times = ("2017-03-01T15:59:59", "2017-03-01T16:00", "2017-03-02T15:00")
    orders = [basket(n, ("", 1), paid=paid) for n, paid in enumerate(times)]
    assert earned(*orders, rules=[rule(fixed=10, cap_per_day=10)]) == 20


def test_caps_and_redemptions_follow_paid_time_and_then_the_basket() -> None:
    small, big = basket(2, ("", 300)), basket(1, ("", 900))
    rules = [rule(per=ONE_PER_YUAN, cap_per_order=5), rule(when="order.total_minor >= 5000", fixed=1)]
    assert earned(small, big, rules=rules) == 3 + 5
    spent = [basket(5, ("", 2000), paid="2017-03-01T04:00:01"), *(basket(n, ("", 0)) for n in (9, 8, 7))]
    assert balances(*spent, rules=[rule(per=ONE_PER_YUAN)])["redeemed"] == 20


def test_a_window_has_its_first_instant_and_not_its_last() -> None:
    window = rule(
        fixed=1, valid_from_time="2017-03-01T12:00:00+08:00", valid_until_time="2017-03-01T05:00:00Z"
    )
    times = ("03:59:59", "04:00:00", "04:59:59", "05:00:00")
    orders = [basket(n, ("", 1), paid=f"2017-03-01T{time}") for n, time in enumerate(times)]
    assert earned(*orders, rules=[window]) == 2


def test_a_redemption_is_done_with_20_points_and_refused_with_19() -> None:
    for cents, available, redeemed in ((500, 0, 20), (400, 16, 0), (475, 16, 0), (550, 0, 20)):
        orders = [basket(n, ("", cents)) for n in range(4)]
        got = balances(*orders, rules=[rule(per=ONE_PER_YUAN)])
        assert (got["available"], got["redeemed"]) == (available, redeemed)
    nineteen = [basket(1, ("", 1900)), *(basket(n, ("", 0)) for n in (2, 3, 4))]
    got = balances(*nineteen, rules=[rule(per=ONE_PER_YUAN)])
    assert got == {"orders": 4, "available": 19, "lifetime_earned": 19, "growth": 0, "redeemed": 0}


def test_a_basket_of_nothing_is_an_order_that_may_still_earn_a_fixed_amount() -> None:
    got = balances(basket(1, ("", 0)), rules=[rule(per=ONE_PER_YUAN), rule(fixed=3, unit="GROWTH")])
    assert got == {"orders": 1, "available": 0, "lifetime_earned": 0, "growth": 3, "redeemed": 0}


def test_activity_rules_play_no_part() -> None:
    assert earned(basket(1, ("", 900)), rules=[rule("ACTIVITY", when="activity.kind == 'x'", fixed=3)]) == 0


def test_an_unknown_condition_is_named_with_its_rule() -> None:
    with pytest.raises(ValueError, match=r"the oracle does not know the condition of rule r: order\.x == 1"):
        earned(basket(1, ("", 1)), rules=[rule(when="order.x == 1", fixed=1)])


def test_an_unknown_key_is_named_with_its_rule() -> None:
    with pytest.raises(ValueError, match=r"does not know the keys \['capPerDay'\] of rule r"):
        earned(basket(1, ("", 1)), rules=[rule(fixed=1, capPerDay=1)])


def test_points_that_would_mature_or_expire_within_the_orders_are_refused() -> None:
    first, last = basket(1, ("", 1), paid="2017-01-31T12:00"), basket(2, ("", 1), paid="2017-02-28T16:00")
    rules = [rule(fixed=1)]
    balances(first, rules=rules, expiry={"rolling_months": 1})
    with pytest.raises(ValueError, match="points end on 2017-02-28, orders on 2017-03-01"):
        balances(first, last, rules=rules, expiry={"rolling_months": 1})
    with pytest.raises(ValueError, match="points end on 2017-12-31"):
        balances(
            first, basket(3, ("", 1), paid="2018-01-01T00:00"), rules=rules, expiry={"calendar_years": 0}
        )
    with pytest.raises(ValueError, match="points end on 2017-02-28"):
        balances(first, last, rules=[rule(fixed=1, expiry={"rolling_months": 1})])
    with pytest.raises(ValueError, match="pending days"):
        balances(first, rules=rules, pending_days=1)


def test_the_burger_king_programme_is_valid_and_the_oracle_knows_it() -> None:
    programme = json_format.ParseDict(BURGER_KING, Programme())
    protovalidate.validate(programme)
    conditions = [rule.when for rule in programme.earn_rules if rule.scope != RuleScope.RULE_SCOPE_ACTIVITY]
    assert len(programme.earn_rules) == 10
    assert set(conditions) <= {*oracle.CONDITIONS, 'member.tier == "挚爱粉"'}


@pytest.mark.parametrize(
    ("paid", "points"),
    [
        ("2017-03-01T00:00", 10 + 10 + 40),  # Wednesday 08:00: all doubled, coffee fivefold on top
        ("2017-03-01T02:30", 10 + 10),  # Wednesday 10:30: too late for coffee
        ("2017-02-28T15:59:59", 10),  # Tuesday 23:59:59
        ("2017-02-28T16:00", 10 + 10 + 40),  # Wednesday 00:00
    ],
)
def test_burger_king_coffee_on_a_wednesday_in_hangzhou(paid: str, points: int) -> None:
    got = oracle.expected(basket(1, ("COFFEE", 1000), paid=paid, city="杭州"), BURGER_KING)
    assert got.select(COLUMNS).row(0) == (1, points, points, 10, 0)


def test_burger_king_breakfast_drinks_and_big_baskets() -> None:
    lines = [("FRZN BREAKFAST FOODS", 1000), ("SOFT DRINKS", 4010)]
    orders = [basket(n, *lines, paid="2017-07-04T22:00", city="上海") for n in (1, 2)]
    # 50.10 + 1.5 x 40.10 + breakfast 5 capped to 3 + big basket: 123.25, then 118.25 as the day's 15 run out.
    got = oracle.expected(pl.concat(orders), BURGER_KING)
    assert got.select(COLUMNS).row(0) == (2, 123 + 118, 123 + 118, 100, 0)


def test_january_and_the_year_end_as_recorded() -> None:
    january = oracle.expected(baskets.load(date(2017, 1, 1), date(2017, 1, 31)), BURGER_KING)
    assert january.select(COLUMNS).sum().row(0) == (12_481, 348_295, 394_195, 357_144, 45_900)
    year = oracle.expected(baskets.load(None, None), BURGER_KING)
    assert year.height == 2_469
    assert year.select(COLUMNS).sum().row(0) == (155_848, 4_844_260, 5_599_120, 4_519_934, 754_860)
    assert (year["available"] + year["redeemed"] == year["lifetime_earned"]).all()


def test_the_oracle_shares_nothing_with_what_it_judges() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in froms | plain if name and name.startswith(("services", "loyalty", "cel"))} == {
        "services.cli.baskets"
    }


LADDER = {
    "rolling_days": 365,
    "grace_days": 30,
    "tiers": [{"tier_id": "iron", "growth": 10}, {"tier_id": "gold", "growth": 30}],
}


def test_a_tier_is_held_from_the_order_after_the_one_that_reached_it() -> None:
    rules = [
        rule(unit="GROWTH", per=ONE_PER_YUAN),
        rule(per=ONE_PER_YUAN),
        rule(when='member.tier == "iron"', multiplier="2"),
    ]
    orders = [basket(number, ("", 1000)) for number in (1, 2, 3)]
    programme = {"time_zone": "Asia/Shanghai", "currency_code": "CNY", "earn_rules": rules}
    [row] = oracle.expected(pl.concat(orders), {**programme, "tier_ladder": LADDER}).rows(named=True)
    assert (row["tier"], row["lifetime_earned"]) == ("gold", 10 + 20 + 20)


def test_tiers_that_end_within_the_orders_are_refused() -> None:
    rules = [rule(unit="GROWTH", per=ONE_PER_YUAN)]
    orders = [basket(1, ("", 100)), basket(2, ("", 100), paid="2018-03-01T04:00")]
    with pytest.raises(ValueError, match="tiers that end"):
        balances(*orders, rules=rules, tier_ladder=LADDER)
