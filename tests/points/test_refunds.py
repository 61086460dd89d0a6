"""Refunds: what is taken back is what the rest of the order would not have earned, however refunds are split.

REFUND_EXAMPLES raises how often the properties are tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.orders.v1.orders_pb2 import Order

from services.points.commands import RefundOrder
from services.points.domain.earning import Basis, Match, Rule, Scope
from services.points.domain.ledger import Account, Transaction, TransactionKind, Unit
from services.points.domain.refunds import Refund, Refunded
from services.points.domain.reversal import Past
from services.points.errors import (
    ClawbackBlocked,
    InsufficientGrowth,
    InsufficientPoints,
    LineUnknown,
    OrderUnknown,
    RefundAlreadyApplied,
    RefundExceedsOrder,
)
from services.points.rules import read_order, what_remains
from tests.points.desk import MEMBER, Desk, sequences
from tests.points.test_earning import exact
from tests.support import order

EXAMPLES = int(os.environ.get("REFUND_EXAMPLES", "100"))
patiently = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])


# --- orders and refunds -------------------------------------------------------------------------------


def basket(desk: Desk, *lines: tuple[str, int], delivery: int = 0, order_id: str = "order") -> Order:
    """An order paid now, its lines named by their place."""
    made = order(delivery, desk.at, order_id=order_id)
    made.ClearField("lines")
    for number, (category, amount) in enumerate(lines):
        made.lines.add(line_id=str(number), category=category, amount_minor=amount)
    made.delivery_fee_minor = delivery
    made.total_minor = delivery + sum(amount for _, amount in lines)
    return made


def refund(desk: Desk, what: Refund, *, order_id: str = "order", event: bool = False) -> Transaction | None:
    number = len(desk.events) + len(desk.seen.refunds.get((MEMBER, order_id), ()))
    return desk.tell(
        RefundOrder,
        event=event,
        order_id=order_id,
        refund_id=f"refund-{number}",
        refund=what,
        body_hash=repr(what).encode(),
        body=b"kept",
    )


def of_lines(**amounts: int) -> Refund:
    """A refund of lines, named `_0`, `_1` and so on."""
    return Refund(lines={name.removeprefix("_"): amount for name, amount in amounts.items()})


ALL = Refund(everything=True)


def on_orders(rule_id: str, **more: Any) -> dict[str, Any]:
    """A rule that gives a point for each 1.00 of an order, but for what is said otherwise."""
    give = {} if more.keys() & {"fixed", "multiplier"} else {"per": {"amount_minor": 100, "points": 1}}
    common = {"scope": "RULE_SCOPE_ORDER", "unit": "UNIT_POINTS", "stack": "RULE_STACK_ADD"}
    return {"rule_id": rule_id, **common, **give, **more}


def taken(desk: Desk, order_id: str = "order") -> dict[Unit, int]:
    """What refunds took back of an order in all."""
    past = the_earn(desk, order_id)
    return {unit: past.taken_back(unit) for unit in Unit}


def the_earn(desk: Desk, order_id: str = "order") -> Past:
    earn, _ = desk.seen.orders[MEMBER, order_id]
    return desk.seen.pasts[MEMBER, earn.seq]


# --- what is left of an order -------------------------------------------------------------------------


@st.composite
def baskets(draw: st.DrawFn) -> tuple[list[int], int]:
    """Amounts of lines, and the delivery fee."""
    amounts = st.sampled_from([0, 1, 99, 100, 1000]) | st.integers(0, 3000)
    return draw(st.lists(amounts, max_size=5)), draw(st.just(0) | amounts)


@st.composite
def refundings(draw: st.DrawFn, lines: Sequence[int], fee: int) -> tuple[int, dict[str, int]]:
    """What can be refunded of a basket: by amount, and of each line."""
    by_line = {
        str(number): n
        for number, amount in enumerate(lines)
        if (n := draw(st.sampled_from([0, 0, amount]) | st.integers(0, amount)))
    }
    most = sum(lines) + fee - sum(by_line.values())
    return draw(st.sampled_from([0, most]) | st.integers(0, most)), by_line


@st.composite
def pieces(draw: st.DrawFn, amount: int, by_line: Mapping[str, int]) -> list[Refund]:
    """The same, cut into refunds in any order."""

    def cut(whole: int, parts: int) -> list[int]:
        marks = sorted(draw(st.integers(0, whole)) for _ in range(parts - 1))
        return [end - start for start, end in pairwise([0, *marks, whole])]

    made = [Refund(part) for part in cut(amount, draw(st.integers(1, 4))) if part]
    rounds = draw(st.integers(1, 3))
    of_line = {line: cut(n, rounds) for line, n in by_line.items()}
    for number in range(rounds):
        parts = {line: amounts[number] for line, amounts in of_line.items() if amounts[number]}
        made += [Refund(lines=parts)] if parts else []
    return draw(st.permutations(made))


@patiently
@given(baskets(), st.data())
def test_refunds_add_up_in_any_order_and_the_rest_is_shared_in_proportion(
    sold: tuple[list[int], int], data: st.DataObject
) -> None:
    amounts, fee = sold
    total = sum(amounts) + fee
    lines = {str(number): amount for number, amount in enumerate(amounts)}
    amount, by_line = data.draw(refundings(amounts, fee))
    state = Refunded()
    for piece in data.draw(pieces(amount, by_line)):
        state = state.plus(piece, lines, total)
    assert (state.amount, dict(state.lines), state.everything) == (amount, by_line, False)
    assert state.nothing_left(total) == (total > 0 and state.total == total)
    rest = {line: state.remaining(n, by_line.get(line, 0), total) for line, n in lines.items()}
    delivery = state.remaining(fee, 0, total)
    assert sum(rest.values()) + delivery == total - state.total
    assert all(0 <= left <= lines[line] - by_line.get(line, 0) for line, left in rest.items())
    if amount and state.total < total:
        shares = {left / (lines[line] - by_line.get(line, 0)) for line, left in rest.items() if left}
        assert len(shares | ({delivery / fee} if fee else set())) == 1


@pytest.mark.parametrize(
    ("refunds", "more", "error", "metadata"),
    [
        ([], Refund(2501), RefundExceedsOrder, {"refundable": "2500", "requested": "2501"}),
        ([Refund(2000)], Refund(501), RefundExceedsOrder, {"refundable": "500", "requested": "501"}),
        ([], of_lines(_0=1001), RefundExceedsOrder, {"refundable": "1000", "requested": "1001"}),
        ([of_lines(_0=600)], of_lines(_0=401), RefundExceedsOrder, {"refundable": "400", "requested": "401"}),
        ([Refund(2000)], of_lines(_0=501), RefundExceedsOrder, {"refundable": "500", "requested": "501"}),
        ([], of_lines(_0=1, _7=1), LineUnknown, {"line_id": "7"}),
        ([ALL], Refund(1), RefundExceedsOrder, {"refundable": "0", "requested": "1"}),
        ([Refund(2500)], of_lines(_0=1), RefundExceedsOrder, {"refundable": "0", "requested": "1"}),
    ],
)
def test_more_than_was_paid_is_not_refunded(
    refunds: list[Refund],
    more: Refund,
    error: type[RefundExceedsOrder | LineUnknown],
    metadata: dict[str, str],
) -> None:
    desk = Desk(earn_rules=[on_orders("base")])
    desk.buy(basket(desk, ("coffee", 1000), ("tea", 1000), delivery=500))
    for each in refunds:
        refund(desk, each)
    before = desk.balances
    with pytest.raises(error) as refusal:
        refund(desk, more)
    assert refusal.value.metadata == metadata
    assert desk.balances == before
    refund(desk, ALL)
    assert desk.balances == (0, 0, 0, 0)


def test_conditions_see_minor_units_and_no_lines_that_are_gone() -> None:
    desk = Desk()
    sold = basket(desk, ("coffee", 1000), ("gift", 0), ("tea", 1), ("cake", 500), delivery=100)
    state = Refunded(amount=551, lines={"3": 500})
    rest = what_remains(read_order(sold), state)
    assert rest is not None
    left = rest.message
    assert isinstance(left, Order)
    assert [(line.line_id, line.amount_minor) for line in left.lines] == [("0", 499), ("1", 0)]
    assert (left.delivery_fee_minor, left.total_minor) == (49, 550)
    assert rest.basis == Basis((Fraction(1000 * 550, 1101), Fraction(0)), 550)


def test_of_what_was_refunded_wholly_nothing_is_left() -> None:
    desk = Desk()
    sold = read_order(basket(desk, ("coffee", 1000), delivery=100))
    for state in (Refunded(1100), Refunded(100, {"0": 1000}), Refunded(0, {}, everything=True)):
        assert what_remains(sold, state) is None
    assert what_remains(sold, Refunded(1099)) is not None
    free = read_order(basket(desk, ("gift", 0)))
    assert what_remains(free, Refunded()) is not None
    assert what_remains(free, Refunded(everything=True)) is None


# --- what the contract says, in numbers ---------------------------------------------------------------

TENTH = {"amount_minor": 1000, "points": 1}


def test_small_refunds_take_back_what_one_refund_of_their_sum_would() -> None:
    """Each of the three, rounded by itself, would take back nothing."""
    desk = Desk(earn_rules=[on_orders("base", per=TENTH)])
    desk.buy(basket(desk, ("coffee", 2190)))
    assert desk.balances == (2, 0, 0, 0)
    steps = []
    for amount in (900, 900, 390):
        refund(desk, Refund(amount))
        steps.append(taken(desk)[Unit.POINTS])
    assert steps == [1, 2, 2]
    assert desk.balances == (0, 0, 0, 0)


def test_a_refund_that_takes_nothing_back_is_a_transaction_all_the_same() -> None:
    desk = Desk(earn_rules=[on_orders("base", per=TENTH)])
    earned = desk.buy(basket(desk, ("coffee", 2190)))
    posted = refund(desk, Refund(190))
    assert posted is not None
    assert (posted.kind, posted.transfers) == (TransactionKind.REFUND, ())
    assert posted.reverses_transaction_id == earned.transaction_id


def test_a_bonus_goes_when_its_condition_does_not_hold_any_more() -> None:
    bonus = on_orders("bonus", fixed=50, when="order.total_minor >= 10000")
    desk = Desk(earn_rules=[on_orders("base"), bonus])
    desk.buy(basket(desk, ("coffee", 10_000)))
    refund(desk, Refund(1))
    assert taken(desk)[Unit.POINTS] == 51


def test_what_a_refund_took_too_much_comes_back_with_the_next_one() -> None:
    """A rule for small orders holds again once more was refunded."""
    small = on_orders("small", fixed=20, when="order.total_minor <= 1000")
    desk = Desk(earn_rules=[on_orders("base"), small])
    desk.buy(basket(desk, ("coffee", 2000)))
    steps = []
    for amount in (900, 100, 1000):
        refund(desk, Refund(amount))
        steps.append(taken(desk)[Unit.POINTS])
    assert steps == [9, 0, 20]


def test_what_a_cap_kept_back_is_not_handed_out_by_a_refund() -> None:
    desk = Desk(earn_rules=[on_orders("base", cap_per_order=10, cap_per_day=15)])
    first = basket(desk, ("coffee", 2000), order_id="first")
    second = basket(desk, ("coffee", 2000), order_id="second")
    for each in (first, second):
        desk.buy(each)
    assert desk.balances == (15, 0, 0, 0)
    refund(desk, Refund(1000), order_id="first")
    assert taken(desk, "first")[Unit.POINTS] == 0
    refund(desk, ALL, order_id="first")
    assert taken(desk, "first")[Unit.POINTS] == 10
    refund(desk, Refund(1400), order_id="second")
    assert taken(desk, "second")[Unit.POINTS] == 0
    refund(desk, Refund(200), order_id="second")
    assert taken(desk, "second")[Unit.POINTS] == 1
    desk.buy(basket(desk, ("coffee", 2000), order_id="third"))
    assert desk.balances == (4, 0, 0, 0)


def test_what_a_daily_cap_kept_back_does_not_make_up_for_another_rule() -> None:
    desk = Desk(earn_rules=[on_orders("capped", cap_per_day=15), on_orders("other")])
    desk.buy(basket(desk, ("coffee", 1000), order_id="first"))
    desk.buy(basket(desk, ("coffee", 2000)))  # of the capped rule there are 5 left
    refund(desk, Refund(1000))
    assert taken(desk)[Unit.POINTS] == 10


def test_refunds_go_by_the_programme_the_tier_and_the_day_of_the_earn() -> None:
    tiers = [{"tier_id": "铁粉", "growth": 10}]
    year: dict[str, Any] = {"tier_ladder": {"calendar_year": True, "tiers": tiers}}
    double = on_orders("fans", multiplier="2", when="member.tier == '铁粉'")
    monday = on_orders("monday", fixed=7, when="now.getDayOfWeek('Asia/Shanghai') == 1")
    desk = Desk(earn_rules=[on_orders("base"), double, monday], **year)
    desk.buy(basket(desk, ("coffee", 1000)))
    assert desk.balances == (17, 0, 0, 0)
    desk.earn(10, "growth")
    assert desk.member.tier == "铁粉"
    desk.wait(days=1)
    desk.put([on_orders("base", per=TENTH)], **year)
    refund(desk, Refund(500))
    assert taken(desk)[Unit.POINTS] == 5


def test_line_rules_lose_what_was_refunded_of_their_lines() -> None:
    coffee = on_orders("coffee", scope="RULE_SCOPE_LINE", when="line.category == 'coffee'")
    desk = Desk(earn_rules=[coffee])
    desk.buy(basket(desk, ("coffee", 1000), ("tea", 1000), ("coffee", 500), delivery=500))
    steps = []
    for each in (of_lines(_1=1000), of_lines(_0=400), Refund(400), of_lines(_0=600), ALL):
        refund(desk, each)
        steps.append(taken(desk)[Unit.POINTS])
    # Of coffee there is left 1500; 1100; three quarters of it, 825; three fifths of 500; nothing.
    assert steps == [0, 4, 7, 12, 15]


def test_each_unit_is_taken_back_by_itself() -> None:
    desk = Desk(earn_rules=[on_orders("points"), on_orders("growth", unit="UNIT_GROWTH", fixed=9)])
    desk.buy(basket(desk, ("coffee", 1000)))
    refund(desk, Refund(900))
    assert taken(desk) == {Unit.POINTS: 9, Unit.GROWTH: 0}
    refund(desk, ALL)
    assert taken(desk) == {Unit.POINTS: 10, Unit.GROWTH: 9}


def test_what_was_reversed_besides_is_not_taken_back_again() -> None:
    desk = Desk(earn_rules=[on_orders("base")])
    earned = desk.buy(basket(desk, ("coffee", 1000)))
    desk.reverse(earned, points=4)
    refund(desk, Refund(500))
    assert desk.balances == (1, 0, 0, 0)
    refund(desk, ALL)
    assert desk.balances == (0, 0, 0, 0)


def test_an_erased_order_is_refunded_in_proportion() -> None:
    desk = Desk(earn_rules=[on_orders("base"), on_orders("bonus", fixed=7, when="order.total_minor > 900")])
    earned = desk.buy(basket(desk, ("coffee", 1000)))
    refund(desk, of_lines(_0=100))
    key = (MEMBER, earned.seq)
    desk.seen.sold[key] = replace(desk.seen.sold[key], body=None)
    with pytest.raises(LineUnknown):
        refund(desk, of_lines(_0=100))
    refund(desk, Refund(400))
    assert desk.balances == (8, 0, 0, 0)  # half of 17, rounded down
    refund(desk, ALL)
    assert desk.balances == (0, 0, 0, 0)


def test_where_the_programme_blocks_a_refund_of_spent_points_does_nothing() -> None:
    desk = Desk(earn_rules=[on_orders("base")], clawback="CLAWBACK_BLOCK")
    desk.buy(basket(desk, ("coffee", 1000)))
    desk.redeem(6)
    with pytest.raises(ClawbackBlocked):
        refund(desk, Refund(500))
    refund(desk, Refund(400))
    assert desk.balances == (0, 0, 0, 0)
    with pytest.raises(ClawbackBlocked):
        refund(desk, ALL)


def test_a_refund_is_applied_once_whatever_request_it_comes_with() -> None:
    desk = Desk(earn_rules=[on_orders("base")])
    desk.buy(basket(desk, ("coffee", 1000)))
    same: dict[str, Any] = {"order_id": "order", "refund_id": "one", "body_hash": b"body"}
    first = desk.do(RefundOrder, refund=Refund(300), **same)
    assert desk.do(RefundOrder, refund=Refund(300), **same) is first
    assert desk.balances == (7, 0, 0, 0)
    with pytest.raises(RefundAlreadyApplied):
        desk.do(RefundOrder, refund=Refund(301), **(same | {"body_hash": b"other"}))


def test_by_call_an_order_must_be_there_by_event_it_may_come_later() -> None:
    desk = Desk(earn_rules=[on_orders("base")])
    sold = basket(desk, ("coffee", 1000))
    with pytest.raises(OrderUnknown):
        refund(desk, Refund(300))
    assert refund(desk, Refund(300), event=True) is None
    assert desk.transactions == []
    desk.buy(sold)
    assert [tx.kind for tx in desk.transactions] == [TransactionKind.EARN, TransactionKind.REFUND]
    assert desk.balances == (7, 0, 0, 0)
    assert desk.member.waiting == 0


def test_a_refund_that_waited_and_that_the_order_cannot_bear_leaves_the_earn_alone() -> None:
    desk = Desk(earn_rules=[on_orders("base")])
    sold = basket(desk, ("coffee", 1000))
    for amount in (800, 300, 200):  # the second is too much
        refund(desk, Refund(amount), event=True)
    desk.buy(sold)
    assert taken(desk)[Unit.POINTS] == 10
    assert desk.member.waiting == 0
    with pytest.raises(RefundExceedsOrder):
        refund(desk, Refund(1))


# --- up and down --------------------------------------------------------------------------------------

# Rules under which what is left of an order may earn anything: a fixed amount for each bit of 37 times its
# total. An order of RESTLESS earns all of the 63; each refund may be worth more or less than the one before.
BITS, FACTOR, RESTLESS = 6, 37, 19 + 64 * 20
MOST = 2**BITS - 1


def restless_rules(**more: Any) -> list[dict[str, Any]]:
    when = f"(order.total_minor * {FACTOR} / {{}}) % 2 == 1"
    return [on_orders(f"bit-{b}", fixed=2**b, when=when.format(2**b), **more) for b in range(BITS)]


def amount_to(left: int, target: int) -> int:
    """How much to refund of what is left of a restless order so that in all `target` is taken back."""
    inverse = pow(FACTOR, -1, MOST + 1)
    distance: int = (left - (MOST - target) * inverse) % (MOST + 1)
    return distance or MOST + 1


def amounts_to(targets: Sequence[int]) -> list[int]:
    amounts: list[int] = []
    for target in targets:
        amounts.append(amount_to(RESTLESS - sum(amounts), target))
    return amounts


def restless(*targets: int, **terms: Any) -> Iterator[Desk]:
    """A restless order, and its refunds one after the other."""
    desk = Desk(earn_rules=restless_rules(**terms))
    desk.buy(basket(desk, ("coffee", RESTLESS)))
    yield desk
    for amount, target in zip(amounts_to(targets), targets, strict=True):
        refund(desk, Refund(amount))
        assert taken(desk)[Unit.POINTS] == target
        yield desk


def test_what_comes_back_lowers_the_debt_before_it_returns_to_its_lot() -> None:
    refunding = restless(63, 13, 1, expiry={"rolling_months": 1})
    desk = next(refunding)
    (lot,) = desk.lots()
    desk.redeem(60)
    desk.wait(days=30)
    assert next(refunding).balances == (0, 0, 0, 60)
    assert next(refunding).balances == (0, 0, 0, 10)
    assert next(refunding).balances == (2, 0, 0, 0)
    assert desk.lots() == {lot: 2}


def test_what_was_taken_last_comes_back_first() -> None:
    refunding = restless(25, 15, 7, 2)
    desk = next(refunding)
    desk.redeem(58)
    desk.earn(10)
    desk.put(pending_days=10)
    desk.earn(10)
    assert desk.balances == (15, 10, 0, 0)
    assert next(refunding).balances == (0, 0, 0, 0)  # 5 of its own, then 10 pending, then 10 of another lot
    assert next(refunding).balances == (10, 0, 0, 0)
    assert next(refunding).balances == (10, 8, 0, 0)
    assert next(refunding).balances == (13, 10, 0, 0)


def test_what_comes_back_returns_to_its_lots_with_their_ends() -> None:
    refunding = restless(63, 0, expiry={"rolling_months": 1})
    desk = next(refunding)
    before = desk.lots()
    next(refunding)
    assert desk.lots() == {}
    next(refunding)
    assert desk.lots() == before
    desk.wait(days=31)
    assert desk.balances == (0, 0, 0, 0)


def test_what_had_expired_when_it_was_taken_back_does_not_come_to_life_again() -> None:
    refunding = restless(50, 20, expiry={"rolling_months": 1})
    desk = next(refunding)
    desk.wait(days=31)
    for gone in (13, 43):
        assert next(refunding).balances == (0, 0, 0, 0)
        assert desk.net(Unit.POINTS, Account.ISSUER_EXPIRED) == -gone
    assert desk.member.lifetime_earned == 43


def test_refunds_that_waited_for_an_order_of_long_ago_bring_nothing_to_life() -> None:
    desk = Desk(earn_rules=restless_rules(expiry={"rolling_months": 1}))
    sold = basket(desk, ("coffee", RESTLESS))
    for amount in amounts_to([50, 20]):
        refund(desk, Refund(amount), event=True)
    desk.wait(days=100)
    desk.buy(sold)
    assert taken(desk)[Unit.POINTS] == 20
    assert desk.balances == (0, 0, 0, 0)


def test_what_comes_back_of_a_lot_that_has_ended_since_lives_for_the_grace() -> None:
    refunding = restless(50, 20, expiry={"rolling_months": 1})
    desk = next(refunding)
    next(refunding)
    desk.wait(days=31)
    assert desk.balances == (0, 0, 0, 0)
    assert next(refunding).balances == (30, 0, 0, 0)
    desk.wait(days=7)
    assert desk.balances == (30, 0, 0, 0)
    desk.wait(days=1)
    assert desk.balances == (0, 0, 0, 0)


def test_a_debt_that_was_paid_since_comes_back_as_points() -> None:
    refunding = restless(63, 0)
    desk = next(refunding)
    desk.redeem(63)
    next(refunding)
    desk.earn(63)
    assert desk.balances == (0, 0, 0, 0)
    assert next(refunding).balances == (63, 0, 0, 0)


# --- random programmes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """An order as conditions see it."""

    total: int
    fee: int
    lines: tuple[tuple[str, int], ...]
    monday: bool


ON_ORDER: dict[str, Callable[[Left], bool]] = {
    "": lambda _: True,
    "order.total_minor >= 1500": lambda o: o.total >= 1500,
    "order.total_minor <= 1000": lambda o: o.total <= 1000,
    "order.total_minor % 400 < 200": lambda o: o.total % 400 < 200,
    "order.delivery_fee_minor > 100": lambda o: o.fee > 100,
    "size(order.lines) >= 2": lambda o: len(o.lines) >= 2,
    "order.lines.exists(l, l.category == 'coffee')": lambda o: any(c == "coffee" for c, _ in o.lines),
    "order.lines.all(l, l.amount_minor < 1200)": lambda o: all(n < 1200 for _, n in o.lines),
    "size(order.lines) > 1 && order.lines[1].category == 'tea'": lambda o: (
        len(o.lines) > 1 and o.lines[1][0] == "tea"
    ),
    "now.getDayOfWeek('Asia/Shanghai') == 1": lambda o: o.monday,
    "member.tier != ''": lambda _: False,
}
ON_LINE: dict[str, Callable[[Left, str, int], bool]] = {
    "": lambda *_: True,
    "line.category == 'coffee'": lambda _, category, __: category == "coffee",
    "line.category != 'tea'": lambda _, category, __: category != "tea",
    "line.amount_minor >= 700": lambda _, __, amount: amount >= 700,
    "line.amount_minor % 300 < 150": lambda _, __, amount: amount % 300 < 150,
    "line.amount_minor * 2 > order.total_minor": lambda o, _, amount: amount * 2 > o.total,
}


@st.composite
def earn_rules(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rules of every kind, over orders and over lines."""
    made = []
    per = st.builds(
        lambda amount, points: {"amount_minor": amount, "points": points},
        st.sampled_from([1, 7, 30, 100, 1000]),
        st.integers(1, 3),
    )
    gives: dict[str, st.SearchStrategy[Any]] = {
        "per": per,
        "multiplier": st.sampled_from(["1", "1.2", "2", "3.333", "5"]),
        "fixed": st.integers(1, 60),
    }
    for number in range(draw(st.integers(1, 6))):
        give = draw(st.sampled_from(["per", "per", "multiplier", "fixed"]))
        by_line = draw(st.booleans())
        unit = draw(st.sampled_from(["UNIT_POINTS", "UNIT_POINTS", "UNIT_GROWTH"]))
        rule = {
            "rule_id": f"rule-{number}",
            "scope": "RULE_SCOPE_LINE" if by_line else "RULE_SCOPE_ORDER",
            "unit": unit,
            "stack": draw(st.sampled_from(["RULE_STACK_ADD", "RULE_STACK_ADD", "RULE_STACK_BEST"])),
            "when": draw(st.sampled_from(list(ON_LINE) if by_line else list(ON_ORDER))),
            "cap_per_order": draw(st.sampled_from([0, 0, 1, 20, 300])),
            "cap_per_day": draw(st.sampled_from([0, 0, 1, 20, 300])),
            give: draw(gives[give]),
        }
        months = draw(st.sampled_from([0, 0, 1, 2]))
        if months and unit == "UNIT_POINTS":
            rule["expiry"] = {"rolling_months": months}
        made.append(rule)
    return made


@dataclass
class Case:
    """A member with a past, an order, what happened since, and what is refunded in the end."""

    rules: list[dict[str, Any]]
    terms: dict[str, Any]
    lines: list[tuple[str, int]]
    fee: int
    late: int  # days for which the order was on its way
    before: list[tuple[str, int, int]]
    after: list[tuple[str, int, int]]
    refunds: list[Refund]
    at_once: list[Refund]
    monday: bool = False
    used: Mapping[str, int] = field(default_factory=dict)

    def sold(self) -> Desk:
        """The member once the order was paid, and what happened since has happened."""
        desk = self.desk()
        self.buy(desk)
        return self.live(desk, self.after)

    def desk(self) -> Desk:
        return self.live(Desk(earn_rules=self.rules, **self.terms), self.before)

    def buy(self, desk: Desk) -> None:
        paid = basket(desk, *self.lines, delivery=self.fee)
        paid.paid_time.FromDatetime(desk.at - timedelta(days=self.late))
        day = (desk.at - timedelta(days=self.late)).date()  # at noon, everywhere
        self.monday = day.isoweekday() == 1
        self.used = dict(desk.seen.caps.get((MEMBER, day), {}))
        desk.buy(paid)

    def live(self, desk: Desk, story: list[tuple[str, int, int]]) -> Desk:
        for what, amount, more in story:
            try:
                match what:
                    case "earn":
                        desk.earn(amount, ["points", "parts", "both"][more % 3])
                    case "ending":
                        desk.earn(amount, months=more % 3 + 1)
                    case "pending":
                        desk.put(self.rules, **(self.terms | {"pending_days": 10}))
                        desk.earn(amount)
                        desk.put(self.rules, **self.terms)
                    case "order":
                        number = f"order-{len(desk.transactions)}"
                        desk.buy(basket(desk, ("coffee", 7 * amount), order_id=number))
                    case "redeem":
                        desk.redeem(amount)
                    case "hold":
                        desk.place(amount, days=more + 1)
                    case "adjust":
                        desk.adjust(-amount, [Unit.POINTS, Unit.GROWTH][more % 2])
                    case "undo":
                        earns = [tx for tx in desk.transactions if tx.kind is TransactionKind.EARN]
                        earns = [tx for tx in earns if tx.transfers and tx.order_id != "order"]
                        if earns:
                            desk.reverse(earns[amount % len(earns)])
                    case "wait":
                        desk.wait(days=more)
            except (InsufficientPoints, InsufficientGrowth):
                continue
        return desk


events_of_life = st.one_of(
    st.tuples(
        st.sampled_from(["earn", "ending", "pending", "order", "redeem", "hold", "adjust", "undo"]),
        st.integers(1, 200),
        st.integers(0, 9),
    ),
    st.tuples(st.just("wait"), st.just(0), st.sampled_from([1, 5, 40])),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    amounts, fee = draw(baskets())
    categories = st.sampled_from(["coffee", "tea", "cake"])
    amount, by_line = draw(refundings(amounts, fee))
    refunds = draw(pieces(amount, by_line))
    at_once = [*([Refund(lines=by_line)] if by_line else []), *([Refund(amount)] if amount else [])]
    if draw(st.integers(0, 4)) == 0:
        refunds, at_once = [*refunds, ALL], [ALL]
    return Case(
        rules=draw(earn_rules()),
        terms={
            "clawback": draw(st.sampled_from(["CLAWBACK_DEBT", "CLAWBACK_CLAMP"])),
            "pending_days": draw(st.sampled_from([0, 0, 10])),
        },
        lines=[(draw(categories), n) for n in amounts],
        fee=fee,
        late=draw(st.sampled_from([0, 0, 5, 100])),
        before=draw(sequences(events_of_life, 5)),
        after=draw(sequences(events_of_life, 5)),
        refunds=refunds,
        at_once=at_once,
    )


@st.composite
def restless_cases(draw: st.DrawFn) -> Case:
    """Refunds that take back and give back, of points and of growth, from wherever they are."""
    case = draw(cases())
    case.rules = restless_rules(**draw(st.sampled_from([{}, {"expiry": {"rolling_months": 1}}])))
    case.rules += [
        {**rule, "rule_id": f"growth-{rule['rule_id']}", "unit": "UNIT_GROWTH", "expiry": None}
        for rule in case.rules
    ]
    case.lines, case.fee = [("coffee", RESTLESS)], 0
    amounts = amounts_to(draw(st.lists(st.integers(0, MOST), min_size=2, max_size=6)))
    case.refunds, case.at_once = [Refund(amount) for amount in amounts], [Refund(sum(amounts))]
    return case


def outcome(desk: Desk) -> tuple[Any, ...]:
    """What a member has, and what was taken back of the order."""
    lots = desk.member.lots
    growth = {day: n for day, n in (desk.member.growth_days or {}).items() if n}
    return (
        taken(desk),
        desk.member.snapshot(),
        desk.lots(),
        {lot.name: lot.held for lot in lots if lot.held},
        sum(lot.expired for lot in lots),
        growth,
        {(unit, account): desk.net(unit, account) for unit in Unit for account in Account},
    )


# --- the model: what the rest of an order earns, worked out by fractions ------------------------------


def rest_of(case: Case, state: Sequence[Refund]) -> tuple[Left, Basis] | None:
    """What is left of the order, for conditions and for the arithmetic."""
    amounts = {str(number): amount for number, (_, amount) in enumerate(case.lines)}
    total = sum(amounts.values()) + case.fee
    by_line = {line: sum(each.lines.get(line, 0) for each in state) for line in amounts}
    by_amount = sum(each.amount for each in state)
    gone = by_amount + sum(by_line.values())
    if any(each.everything for each in state) or (total and gone == total):
        return None
    base = total - sum(by_line.values())
    share = 1 - Fraction(by_amount, base) if base else Fraction(0)
    left = [
        (category, (amount - by_line[str(number)]) * share, amount)
        for number, (category, amount) in enumerate(case.lines)
    ]
    left = [each for each in left if each[1] >= 1 or each[2] == 0]
    lines = tuple((category, floor(n)) for category, n, _ in left)
    seen = Left(total - gone, floor(case.fee * share), lines, case.monday)
    return seen, Basis(tuple(n for _, n, _ in left), total - gone)


def earns(case: Case, rules: Sequence[Rule], rest: tuple[Left, Basis] | None) -> dict[Unit, int]:
    if rest is None:
        return dict.fromkeys(Unit, 0)
    seen, basis = rest
    matches = []
    for rule, put in zip(rules, case.rules, strict=True):
        if rule.scope is Scope.ORDER and ON_ORDER[put["when"]](seen):
            matches.append(Match(rule))
        elif rule.scope is Scope.LINE:
            holds = ON_LINE[put["when"]]
            lines = frozenset(i for i, line in enumerate(seen.lines) if holds(seen, *line))
            if lines:
                matches.append(Match(rule, lines))
    given = exact(matches, basis, dict(case.used))
    return {unit: floor(sum(n for rule, n in given.items() if rule.unit is unit)) for unit in Unit}


# --- properties ---------------------------------------------------------------------------------------


@patiently
@given(cases())
def test_refunds_made_at_one_instant_end_as_one_refund_however_they_are_split(case: Case) -> None:
    split, whole = case.sold(), case.sold()
    for each in case.refunds:
        refund(split, each)
    for each in case.at_once:
        refund(whole, each)
    assert outcome(split) == outcome(whole)


@patiently
@given(restless_cases())
def test_giving_back_is_the_way_of_taking_back_backwards(case: Case) -> None:
    split, whole = case.sold(), case.sold()
    for each in case.refunds:
        refund(split, each)
    for each in case.at_once:
        refund(whole, each)
    assert outcome(split) == outcome(whole)


@patiently
@given(cases())
def test_what_is_taken_back_is_what_the_rest_of_the_order_would_not_earn(case: Case) -> None:
    desk = case.sold()
    rules = [rule for rule in desk.programmes[1].book.rules if rule.scope is not Scope.ACTIVITY]
    earned = earns(case, rules, rest_of(case, []))
    assert {unit: the_earn(desk).credited(unit) for unit in Unit} == earned
    for number, each in enumerate(case.refunds, 1):
        refund(desk, each)
        kept = earns(case, rules, rest_of(case, case.refunds[:number]))
        assert taken(desk) == {unit: earned[unit] - min(earned[unit], kept[unit]) for unit in Unit}


@patiently
@given(cases(), st.data())
def test_refunds_that_come_before_their_order_end_as_those_that_come_after_it(
    case: Case, data: st.DataObject
) -> None:
    early, late = case.desk(), case.desk()
    number = data.draw(st.integers(0, len(case.refunds)))
    for each in case.refunds[:number]:
        assert refund(early, each, event=True) is None
    case.buy(early)
    for each in case.refunds[number:]:
        refund(early, each)
    case.buy(late)
    for each in case.at_once:
        refund(late, each, event=True)
    for desk in (early, late):
        desk.settle()
    assert outcome(early) == outcome(late)
    assert early.member.waiting == 0
