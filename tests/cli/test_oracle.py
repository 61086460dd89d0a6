import ast
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import protovalidate
import pytest
from google.protobuf import json_format
from loyalty.points.v1.points_service_pb2 import Programme, RuleScope

from services.cli import baskets, deeds, oracle, proof, purse, rulebook
from services.cli.deeds import Close, Hold, Plan, Redeem, Refund, evening
from tests.support import delivered

BURGER_KING = delivered("burger-king")["points"]
ONE_PER_YUAN = {"amount_minor": 100, "points": 1}
COFFEE = 'line.category == "COFFEE"'
DRINKS = 'line.category == "SOFT DRINKS"'
COLUMNS = ["orders", "available", "lifetime_earned", "growth", "redeemed"]


@pytest.fixture(autouse=True)
def _coffee_at_any_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rulebook.CONDITIONS, COFFEE, pl.col("category") == "COFFEE")


def rule(scope: str = "ORDER", *, unit: str = "POINTS", stack: str = "ADD", **given: Any) -> dict[str, Any]:
    """A rule as the YAML has it; `given` says what it gives, when, and its caps."""
    words = {"scope": f"RULE_SCOPE_{scope}", "unit": f"UNIT_{unit}", "stack": f"RULE_STACK_{stack}"}
    return {"rule_id": "r", **words, **given}


def basket(
    number: int, *lines: tuple[str, int], paid: str = "2017-03-01T04:00", city: str = ""
) -> pl.DataFrame:
    """An order of member m "o<number>": its lines 1, 2 … as (category, cents), paid at a UTC time."""
    return pl.DataFrame(
        lines, schema={"category": pl.String, "amount_minor": pl.Int64}, orient="row"
    ).with_columns(
        member_id=pl.lit("m"),
        order_id=pl.lit(f"o{number}"),
        basket_id=pl.lit(number, pl.Int64),
        line_id=pl.int_range(1, pl.len() + 1).cast(pl.String),
        paid_time=pl.lit(datetime.fromisoformat(paid).replace(tzinfo=UTC)),
        city=pl.lit(city),
    )


def balances(
    *orders: pl.DataFrame, rules: list[dict[str, Any]], plan: Plan | None = None, **more: Any
) -> dict[str, int]:
    """What the oracle expects of member m."""
    expected = oracle.expected(pl.concat(orders), programme(rules, **more), plan)
    assert expected.columns == ["member_id", *purse.COLUMNS]
    [row] = expected.rows(named=True)
    return {name: row[name] for name in COLUMNS}


def programme(rules: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"time_zone": "Asia/Shanghai", "currency_code": "CNY", "earn_rules": rules, **more}


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


def test_multipliers_below_one_are_refused_as_the_service_does() -> None:
    with pytest.raises(ValueError, match="no multiplier below 1, as in rule r"):
        earned(basket(1, ("", 1000)), rules=[rule(per=ONE_PER_YUAN), rule(multiplier="0.25")])


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
    for order, redeemed in (("o5", 20), ("o9", 0)):
        plan = Plan({order: [Redeem("r", 20)]})
        assert balances(*spent, rules=[rule(per=ONE_PER_YUAN)], plan=plan)["redeemed"] == redeemed


def test_a_window_has_its_first_instant_and_not_its_last() -> None:
    window = rule(
        fixed=1, valid_from_time="2017-03-01T12:00:00+08:00", valid_until_time="2017-03-01T05:00:00Z"
    )
    times = ("03:59:59", "04:00:00", "04:59:59", "05:00:00")
    orders = [basket(n, ("", 1), paid=f"2017-03-01T{time}") for n, time in enumerate(times)]
    assert earned(*orders, rules=[window]) == 2


def test_a_redemption_is_done_with_20_points_and_refused_with_19() -> None:
    plan = Plan({"o3": [Redeem("r", 20)]})
    for cents, available, redeemed in ((500, 0, 20), (400, 16, 0), (475, 16, 0), (550, 0, 20)):
        orders = [basket(n, ("", cents)) for n in range(4)]
        got = balances(*orders, rules=[rule(per=ONE_PER_YUAN)], plan=plan)
        assert (got["available"], got["redeemed"]) == (available, redeemed)
    nineteen = [basket(0, ("", 1900)), *(basket(n, ("", 0)) for n in (1, 2, 3))]
    got = balances(*nineteen, rules=[rule(per=ONE_PER_YUAN)], plan=plan)
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


def test_what_the_oracle_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="pending days"):
        balances(basket(1, ("", 1)), rules=[], pending_days=1)
    with pytest.raises(ValueError, match="CLAWBACK_CLAMP"):
        balances(basket(1, ("", 1)), rules=[], clawback="CLAWBACK_CLAMP")


def test_the_burger_king_programme_is_valid_and_the_oracle_knows_it() -> None:
    programme = json_format.ParseDict(BURGER_KING, Programme())
    protovalidate.validate(programme)
    conditions = [rule.when for rule in programme.earn_rules if rule.scope != RuleScope.RULE_SCOPE_ACTIVITY]
    assert len(conditions) == 9
    assert set(conditions) <= {*rulebook.CONDITIONS, 'member.tier == "挚爱粉"'}


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


def test_january_as_recorded() -> None:
    january = baskets.load(date(2017, 1, 1), date(2017, 1, 31))
    redemptions: dict[str, list[Redeem | Hold]] = {
        order_id: [deed for deed in theirs if deed == Redeem(f"redeem-{order_id}", 20)]
        for order_id, theirs in deeds.plan(january).at_once.items()
    }
    # As an oracle had it that knew of nothing but earning and redeeming.
    got = oracle.expected(january, BURGER_KING, Plan(redemptions))
    assert got.select(COLUMNS).sum().row(0) == (12_481, 348_295, 394_195, 357_144, 45_900)


def test_the_oracle_shares_nothing_with_what_it_judges() -> None:
    for module in (oracle, rulebook, purse, deeds):
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        ours = {name for name in froms | plain if name and name.startswith(("services", "loyalty", "cel"))}
        assert ours <= {
            "services.cli",
            *(f"services.cli.{m}" for m in ("baskets", "deeds", "purse", "rulebook")),
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


# --- what happens after the earning ---------------------------------------------------------------------

BASE = [rule(per=ONE_PER_YUAN), rule(per=ONE_PER_YUAN, unit="GROWTH")]
NAMES = ("available", "held", "owed", "lifetime_earned", "redeemed", "expired", "growth")


class Story:
    """Member m under a programme: what was planned, and what it then owns in the evening of a day of 2017."""

    def __init__(self, *orders: pl.DataFrame, rules: list[dict[str, Any]] = BASE, **more: Any) -> None:
        self.plan = Plan()
        self._frame = pl.concat(orders)
        self._programme = programme(rules, **more)

    def right_after(self, order_id: str, *done: Redeem | Hold) -> None:
        self.plan.at_once[order_id] = list(done)

    def later(self, month: int, day: int, *done: Close | Refund) -> None:
        for deed in done:
            self.plan.add_later(date(2017, month, day), "m", deed)

    def row(self, month: int, day: int) -> dict[str, Any]:
        [row] = (
            oracle.Oracle(self._frame, self._programme, self.plan)
            .until(date(2017, month, day))
            .rows(named=True)
        )
        return row

    def on(self, month: int, day: int) -> tuple[int, ...]:
        row = self.row(month, day)
        return tuple(row[name] for name in NAMES)


def test_points_are_gone_the_day_after_their_last_and_those_that_end_first_are_spent_first() -> None:
    orders = (basket(1, ("", 1000), paid="2017-01-31T04:00"), basket(2, ("", 500), paid="2017-02-10T04:00"))
    story = Story(*orders, expiry={"rolling_months": 1})
    story.right_after("o2", Redeem("r", 4))
    assert story.on(2, 10) == (11, 0, 0, 15, 4, 0, 15)
    assert story.on(2, 28) == (11, 0, 0, 15, 4, 0, 15)
    assert story.on(3, 1) == (5, 0, 0, 15, 4, 6, 15)
    assert story.on(3, 11) == (0, 0, 0, 15, 4, 11, 15)


def test_a_rule_s_own_expiry_makes_a_lot_of_its_own() -> None:
    rules = [rule(per=ONE_PER_YUAN), rule(fixed=7, expiry={"calendar_years": 0})]
    story = Story(basket(1, ("", 1000), paid="2017-01-31T04:00"), rules=rules, expiry={"rolling_months": 1})
    assert story.on(3, 1) == (7, 0, 0, 17, 0, 10, 0)


def test_a_hold_keeps_its_points_from_expiring_and_what_is_let_go_expires_at_once() -> None:
    orders = (basket(1, ("", 1000), paid="2017-01-15T04:00"), basket(2, ("", 800), paid="2017-02-10T04:00"))
    story = Story(*orders, expiry={"rolling_months": 1})
    story.right_after("o2", Hold("h", 12, evening(date(2017, 2, 25))))
    assert story.on(2, 10) == (6, 12, 0, 18, 0, 0, 18)
    assert story.on(2, 16) == (6, 12, 0, 18, 0, 0, 18)
    # Ten of the first order, which end first, and two of the second: nine are captured, one of them is gone.
    story.later(2, 20, Close("c", "h", 9))
    assert story.on(2, 20) == (8, 0, 0, 18, 9, 1, 18)


def test_a_hold_lapses_by_itself_at_its_deadline_and_cannot_be_closed_any_more() -> None:
    story = Story(basket(1, ("", 1000)))
    story.right_after(
        "o1", Hold("h", 6, evening(date(2017, 3, 4))), Hold("too much", 5, evening(date(2017, 3, 4)))
    )
    story.later(3, 4, Close("late", "h", 0), Close("never", "too much", 0))
    assert story.on(3, 3) == (4, 6, 0, 10, 0, 0, 10)
    assert story.on(3, 4) == (10, 0, 0, 10, 0, 0, 10)


def test_a_hold_that_is_released_or_captured_whole() -> None:
    for capture, left in ((None, (10, 0, 0, 10, 0, 0, 10)), (0, (4, 0, 0, 10, 6, 0, 10))):
        story = Story(basket(1, ("", 1000)))
        story.right_after("o1", Hold("h", 6, evening(date(2017, 3, 4))))
        story.later(3, 2, Close("c", "h", capture))
        assert story.on(3, 2) == left


def test_a_refund_by_line_takes_back_by_the_rules_with_their_caps() -> None:
    rules = [
        rule(per=ONE_PER_YUAN),
        rule("LINE", when=COFFEE, multiplier="2"),
        rule(fixed=5, when="order.total_minor >= 5000", cap_per_day=8),
    ]
    # 40.00 + 30.00 x 2 + 5 = 105, of the second 100 + the 3 that are left of the day.
    orders = [basket(number, ("COFFEE", 3000), ("BEEF", 4000)) for number in (1, 2)]
    story = Story(*orders, rules=rules)
    assert story.on(3, 1)[:4] == (105 + 103, 0, 0, 208)
    # 20.00 of the coffee: 10.00 x 2 + 40.00 + the bonus, as 50.00 is just enough.
    story.later(3, 2, Refund("f1", "o2", lines={"1": 2000}))
    assert story.on(3, 2)[:4] == (105 + 63, 0, 0, 168)
    # A cent more, and the bonus is gone too: 10.00 x 2 + 39.99.
    story.later(3, 3, Refund("f2", "o2", lines={"2": 1}))
    assert story.on(3, 3)[:4] == (105 + 59, 0, 0, 164)


def test_a_refund_by_amount_is_of_all_lines_in_proportion_and_its_split_does_not_matter() -> None:
    rules = [rule("LINE", when=COFFEE, per=ONE_PER_YUAN), rule("LINE", when=DRINKS, per=ONE_PER_YUAN)]
    # 21.90 that earns 2: a tenth of it is coffee. After 9.00 two thirds of 2.00 stay or so; at the end, none.
    for parts, left in (((1095,), 1), ((365, 365, 365), 1), ((900, 900, 390), 0), ((2190,), 0), ((1,), 1)):
        story = Story(basket(1, ("COFFEE", 200), ("BEEF", 1990)), rules=rules)
        story.later(3, 1, *(Refund(f"f{n}", "o1", amount=part) for n, part in enumerate(parts)))
        assert story.on(3, 1)[3] == left, parts


def test_lines_below_a_cent_are_gone_while_the_order_counts_their_share() -> None:
    rules = [rule(per={"amount_minor": 1, "points": 1}), rule("LINE", when=COFFEE, fixed=50)]
    story = Story(basket(1, ("COFFEE", 1), ("BEEF", 99)), rules=rules)
    assert story.on(3, 1)[3] == 150
    story.later(3, 2, Refund("f", "o1", amount=50))  # half a cent of coffee stays: no line any more
    assert story.on(3, 2)[3] == 50


def test_all_that_is_left_is_refunded_after_a_part_also_of_a_fixed_amount() -> None:
    story = Story(basket(1, ("", 1000), ("", 500)), rules=[*BASE, rule(fixed=3)])
    story.later(3, 1, Refund("f1", "o1", lines={"1": 400}), Refund("f2", "o1", everything=True))
    assert story.on(3, 1) == (0, 0, 0, 0, 0, 0, 0)


def test_what_was_spent_of_a_refunded_order_is_owed_and_the_next_order_pays_it() -> None:
    orders = (basket(1, ("", 1000)), basket(2, ("", 300), paid="2017-03-03T04:00"))
    story = Story(*orders, basket(3, ("", 900), paid="2017-03-04T04:00"))
    story.right_after("o1", Redeem("all", None))
    story.later(3, 2, Refund("f", "o1", everything=True))
    assert story.on(3, 2) == (0, 0, 10, 0, 10, 0, 0)
    assert story.on(3, 3) == (0, 0, 7, 3, 10, 0, 3)
    assert story.on(3, 4) == (2, 0, 0, 12, 10, 0, 12)


def test_a_refund_takes_what_expired_of_the_order_then_its_rest_then_others_and_never_what_is_held() -> None:
    orders = (
        basket(1, ("", 1000), paid="2017-01-15T04:00"),
        basket(2, ("", 800), paid="2017-02-16T04:00"),
        basket(3, ("", 500), paid="2017-02-17T04:00"),
    )
    story = Story(*orders, expiry={"rolling_months": 1})
    story.right_after("o1", Redeem("r", 3))
    story.right_after("o3", Hold("h", 6, evening(date(2017, 3, 1))))
    assert story.on(2, 17) == (7, 6, 0, 23, 3, 7, 23)
    # Seven of ten had expired, and count as never earned; three are taken of the second order's two, and on.
    story.later(2, 18, Refund("f1", "o1", everything=True))
    assert story.on(2, 18) == (4, 6, 0, 13, 3, 0, 13)
    story.later(2, 19, Refund("f2", "o2", everything=True))
    assert story.on(2, 19) == (0, 6, 4, 5, 3, 0, 5)
    # Released points pay what is owed.
    story.later(2, 20, Close("c", "h", None))
    assert story.on(2, 20) == (2, 0, 0, 5, 3, 0, 5)


SHORT = {"rolling_days": 10, "grace_days": 5, "tiers": LADDER["tiers"]}


def test_a_tier_ends_after_its_period_and_grace_and_falls_or_is_held_on() -> None:
    orders = [basket(1, ("", 3500), paid="2017-03-01T04:00"), basket(2, ("", 1200), paid="2017-03-12T04:00")]
    story = Story(*orders, tier_ladder=SHORT)
    # Gold from the 1st for ten days and five of grace, to the end of the 15th. What counts then is the growth
    # since the 1st, so gold is held on for the ten days after the 10th, and five: to the end of the 25th.
    assert story.row(3, 15)["tier"] == story.row(3, 25)["tier"] == "gold"
    # Since the 11th there are 12: iron, to the end of 4 April; then nothing.
    assert story.row(3, 26)["tier"] == story.row(4, 4)["tier"] == "iron"
    assert story.row(4, 5)["tier"] == ""


def test_a_refund_lowers_the_growth_of_the_order_s_day_but_the_tier_only_at_its_end() -> None:
    orders = [basket(1, ("", 3500), paid="2017-03-01T04:00"), basket(2, ("", 1200), paid="2017-03-03T04:00")]
    story = Story(*orders, tier_ladder=SHORT)
    story.later(3, 3, Refund("f", "o1", everything=True))
    assert (story.row(3, 15)["tier"], story.row(3, 15)["growth"]) == ("gold", 12)
    assert story.row(3, 16)["tier"] == "iron"


def test_a_refunded_order_is_asked_again_with_the_tier_at_earning() -> None:
    rules = [*BASE, rule(when='member.tier == "gold"', multiplier="2")]
    orders = [basket(1, ("", 3500)), basket(2, ("", 1000), paid="2017-03-02T04:00")]
    story = Story(*orders, rules=rules, tier_ladder=SHORT)
    story.later(4, 20, Refund("f", "o2", amount=500))
    assert story.row(4, 19)["lifetime_earned"] == 35 + 20
    assert (story.row(4, 20)["tier"], story.row(4, 20)["lifetime_earned"]) == ("", 35 + 10)


def test_orders_of_a_day_are_taken_in_the_order_of_posting() -> None:
    orders = pl.concat([basket(1, ("", 900)), basket(2, ("", 400))])
    plan = Plan({"o1": [Redeem("r", 10)]})
    for posted, redeemed in (({"o1": 1, "o2": 2}, 0), ({"o1": 2, "o2": 1}, 10)):
        asked = oracle.Oracle(orders, programme(BASE), plan)
        [row] = asked.until(date(2017, 3, 1), posted.__getitem__).rows(named=True)
        assert row["redeemed"] == redeemed


def test_going_on_from_day_to_day_ends_as_at_once_and_the_sums_agree() -> None:
    frame = baskets.load(date(2017, 1, 1), date(2017, 1, 8))
    rules = proof.short_lived(BURGER_KING)
    plan = deeds.plan(frame)
    step_by_step = oracle.Oracle(frame, rules, plan)
    for day in (5, 6):
        step_by_step.until(date(2017, 1, day))
    got = step_by_step.until(date(2017, 1, 8))
    assert got.equals(oracle.expected(frame, rules, plan))
    there = got["available"] + got["held"] - got["owed"]
    assert (got["lifetime_earned"] == there + got["redeemed"] + got["expired"]).all()
