"""Taking back and giving back: from where points come, where they go, and that nothing is made or lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.orders.v1.orders_pb2 import Order

from services.points.commands import RefundOrder, Reverse
from services.points.domain.ledger import Account, Transaction, TransactionKind, Unit
from services.points.domain.refunds import Refund
from services.points.errors import (
    BalanceLimit,
    ClawbackBlocked,
    HoldClosed,
    HoldExpired,
    InsufficientGrowth,
    InsufficientPoints,
    NotReversible,
    RefundExceedsOrder,
    ReversalExceedsTransaction,
    TransactionUnknown,
)
from tests.points.desk import MEMBER, Desk, sequences
from tests.support import order

patiently = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])

TICK = timedelta(microseconds=1)
CLAMP, BLOCK = {"clawback": "CLAWBACK_CLAMP"}, {"clawback": "CLAWBACK_BLOCK"}
EARNED, EXPIRED = Account.ISSUER_EARNED, Account.ISSUER_EXPIRED
AVAILABLE, PENDING, OWED = Account.AVAILABLE, Account.PENDING, Account.OWED


def moves(tx: Transaction, unit: Unit = Unit.POINTS) -> dict[tuple[Account, Account], int]:
    """Amounts by debit and credit."""
    return {(m.debit, m.credit): m.amount for m in tx.transfers if m.unit is unit}


# --- taking back an earn ------------------------------------------------------------------------------


def with_points_everywhere(**terms: Any) -> tuple[Desk, Transaction]:
    """A member whose earn of 20 has 7 expired, 6 left and 7 spent, with 5 pending and 8 of another earn, of
    which 2 are held.
    """
    desk = Desk(**terms)
    earned = desk.earn(10, "parts")
    desk.redeem(3)
    desk.wait(days=40)  # 7 of the 10 that ended after a month were there still
    desk.redeem(4)
    desk.put(pending_days=10, **terms)
    desk.earn(5)
    desk.put(**terms)
    desk.earn(8, months=1)
    desk.place(2)
    assert desk.balances == (12, 5, 2, 0)
    return desk, earned


STEPS = [
    (7, {(EXPIRED, EARNED): 7}),
    (6, {(AVAILABLE, EARNED): 6}),
    (5, {(PENDING, EARNED): 5}),
    (2, {(AVAILABLE, EARNED): 2}),
]


def test_what_expired_is_taken_back_first_then_its_own_lots_then_what_is_pending_then_other_lots() -> None:
    desk, earned = with_points_everywhere()
    own = {name for name in desk.lots() if name[0] == earned.seq}
    for amount, expected in STEPS:
        reversal = desk.reverse(earned, points=amount)
        assert moves(reversal) == expected
        if amount == 6:
            assert not own & desk.lots().keys()
    assert desk.balances == (4, 0, 2, 0)
    assert desk.member.lifetime_earned == 13


def test_at_once_the_same_is_taken_back_from_the_same_places() -> None:
    desk, earned = with_points_everywhere()
    reversal = desk.reverse(earned)
    assert moves(reversal) == {(EXPIRED, EARNED): 7, (AVAILABLE, EARNED): 8, (PENDING, EARNED): 5}
    assert desk.balances == (4, 0, 2, 0)


def test_other_lots_are_taken_in_spend_order() -> None:
    desk = Desk()
    earned = desk.earn(6)
    desk.redeem(6)
    lasting, long, short = desk.earn(2), desk.earn(2, months=2), desk.earn(2, months=1)
    desk.reverse(earned, points=3)
    assert desk.lots() == {(long.seq, 0): 1, (lasting.seq, 0): 2}
    assert (short.seq, 0) not in desk.lots()


def test_held_points_are_not_clawed_back() -> None:
    desk = Desk()
    earned = desk.earn(10)
    hold = desk.place(10)
    desk.reverse(earned)
    assert desk.balances == (0, 0, 10, 10)
    desk.release(hold)
    assert desk.balances == (0, 0, 0, 0)


def overspent(**terms: Any) -> tuple[Desk, Transaction]:
    """A member who earned 10 and has 4 left of it."""
    desk = Desk(**terms)
    earned = desk.earn(10, "both")
    desk.redeem(6)
    return desk, earned


def test_what_is_missing_is_owed() -> None:
    desk, earned = overspent()
    assert moves(desk.reverse(earned, points=10)) == {(AVAILABLE, EARNED): 4, (OWED, EARNED): 6}
    assert desk.balances == (0, 0, 0, 6)
    for refused in (desk.redeem, desk.place):
        with pytest.raises(InsufficientPoints):
            refused(1)


def test_what_is_missing_is_written_off_where_the_programme_says_so() -> None:
    desk, earned = overspent(**CLAMP)
    written_off = (Account.ISSUER_WRITTEN_OFF, EARNED)
    assert moves(desk.reverse(earned, points=10)) == {(AVAILABLE, EARNED): 4, written_off: 6}
    assert desk.balances == (0, 0, 0, 0)


def test_what_is_missing_blocks_where_the_programme_says_so() -> None:
    desk, earned = overspent(**BLOCK)
    with pytest.raises(ClawbackBlocked) as refusal:
        desk.reverse(earned, points=10)
    assert refusal.value.metadata == {"unit": "POINTS", "missing": "6"}
    assert desk.balances == (4, 0, 0, 0)
    desk.reverse(earned, points=4)
    assert desk.balances == (0, 0, 0, 0)


@pytest.mark.parametrize("terms", [{}, CLAMP])
def test_growth_is_taken_back_as_far_as_it_is_there_and_never_owed(terms: dict[str, str]) -> None:
    desk, earned = overspent(**terms)
    desk.adjust(-7, Unit.GROWTH)
    reversal = desk.reverse(earned, growth=10)
    assert desk.growth == 0
    assert moves(reversal, Unit.GROWTH) == {
        (Account.GROWTH, EARNED): 3,
        (Account.ISSUER_WRITTEN_OFF, EARNED): 7,
    }
    desk.earn(5, "growth")
    assert desk.growth == 5


def test_growth_that_is_missing_blocks_too() -> None:
    desk, earned = overspent(**BLOCK)
    desk.adjust(-7, Unit.GROWTH)
    with pytest.raises(ClawbackBlocked):
        desk.reverse(earned, growth=10)
    desk.reverse(earned, growth=3)
    assert desk.growth == 0


def test_taken_back_growth_lowers_the_day_on_which_it_was_earned() -> None:
    desk = Desk()
    day = (desk.at - timedelta(days=9)).date()
    earned = desk.earn(10, "growth", occur=desk.at - timedelta(days=9))
    desk.earn(1, "growth")
    desk.reverse(earned, growth=4)
    assert desk.member.growth_days == {day: 6, desk.at.date(): 1}


@pytest.mark.parametrize("pending_days", [0, 3])
def test_every_later_credit_pays_what_is_owed_first_a_pending_one_when_it_matures(pending_days: int) -> None:
    desk, earned = overspent()
    desk.reverse(earned, points=10)
    desk.put(pending_days=pending_days)
    desk.earn(5)
    assert desk.balances == ((0, 5, 0, 6) if pending_days else (0, 0, 0, 1))
    desk.wait(days=3)
    assert desk.balances == (0, 0, 0, 1)
    desk.adjust(4)
    assert desk.balances == (3, 0, 0, 0)


def test_an_earn_that_paid_a_debt_can_be_taken_back_and_the_debt_is_there_again() -> None:
    desk, first = overspent()
    desk.reverse(first, points=10)
    second = desk.earn(8)
    assert desk.balances == (2, 0, 0, 0)
    desk.reverse(second)
    assert desk.balances == (0, 0, 0, 6)


# --- giving back what was taken -----------------------------------------------------------------------


def test_a_reversed_redemption_returns_to_the_very_lots_the_latest_first() -> None:
    desk = Desk()
    lasting, long, short = desk.earn(5), desk.earn(5, months=2), desk.earn(5, months=1)
    spent = desk.redeem(12)
    for amount, left in (
        (1, {lasting.seq: 4}),
        (3, {lasting.seq: 5, long.seq: 2}),
        (4, {lasting.seq: 5, long.seq: 5, short.seq: 1}),
        (4, {lasting.seq: 5, long.seq: 5, short.seq: 5}),
    ):
        desk.reverse(spent, points=amount)
        assert desk.lots() == {(seq, 0): remaining for seq, remaining in left.items()}


def test_what_comes_back_of_a_lot_that_has_ended_is_a_lot_of_grace() -> None:
    """Seven local days, by default, after the day of the return."""
    desk = Desk()
    lasting = desk.earn(3)
    desk.earn(5, months=1)
    spent = desk.redeem(7)
    desk.wait(days=31)
    desk.reverse(spent)
    assert desk.balances == (8, 0, 0, 0)
    grace = next(lot for lot in desk.member.lots if lot.remaining and lot.name != (lasting.seq, 0))
    assert grace.remaining == 5
    desk.at += timedelta(days=7, hours=12) - TICK  # NOON is 12:00 in Shanghai
    desk.settle()
    assert desk.balances == (8, 0, 0, 0)
    desk.wait(microseconds=1)
    assert desk.balances == (3, 0, 0, 0)


def test_the_programme_says_how_long_the_grace_is() -> None:
    desk = Desk(grace_days=1)
    desk.earn(5, months=1)
    spent = desk.redeem(5)
    desk.wait(days=31)
    desk.reverse(spent)
    desk.wait(days=1)
    assert desk.balances == (5, 0, 0, 0)
    desk.wait(hours=12)
    assert desk.balances == (0, 0, 0, 0)


def test_returned_points_pay_what_is_owed_first() -> None:
    desk = Desk()
    earned = desk.earn(10)
    spent = desk.redeem(10)
    desk.reverse(earned)
    assert desk.balances == (0, 0, 0, 10)
    desk.reverse(spent, points=4)
    assert desk.balances == (0, 0, 0, 6)
    desk.reverse(spent)
    assert desk.balances == (0, 0, 0, 0)
    assert desk.lots() == {}


def test_a_capture_is_reversed_like_a_redemption() -> None:
    desk = Desk()
    earned = desk.earn(10)
    captured = desk.capture(desk.place(10), 7)
    assert moves(desk.reverse(captured, points=5)) == {(Account.ISSUER_REDEEMED, AVAILABLE): 5}
    assert desk.balances == (8, 0, 0, 0)
    assert desk.lots() == {(earned.seq, 0): 8}


@pytest.mark.parametrize("unit", Unit)
def test_an_adjustment_is_reversed_in_either_direction(unit: Unit) -> None:
    desk = Desk()
    up = desk.adjust(10, unit)
    down = desk.adjust(-4, unit)
    desk.reverse(down)
    desk.reverse(up)
    assert desk.balances == (0, 0, 0, 0)
    assert desk.growth == 0
    assert desk.net(unit, Account.ISSUER_ADJUSTED) == 0


# --- what can be reversed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda desk: desk.earn(10),
        lambda desk: desk.redeem(10),
        lambda desk: desk.adjust(10),
        lambda desk: desk.adjust(-10),
        lambda desk: desk.capture(desk.place(10)),
    ],
)
def test_the_sum_of_reversals_never_passes_the_original(make: Callable[[Desk], Transaction]) -> None:
    desk = Desk()
    desk.earn(10)
    before = desk.balances
    past = make(desk)
    desk.reverse(past, points=3)
    desk.reverse(past, points=4)
    with pytest.raises(ReversalExceedsTransaction) as refusal:
        desk.reverse(past, points=4)
    assert refusal.value.metadata == {"unit": "POINTS", "left": "3", "requested": "4"}
    assert [m.amount for m in desk.reverse(past).transfers] == [3]
    with pytest.raises(ReversalExceedsTransaction):
        desk.reverse(past, points=1)
    assert desk.balances == before


def test_each_unit_has_a_limit_of_its_own() -> None:
    desk = Desk()
    past = desk.earn(10, "both")
    desk.reverse(past, points=10)
    with pytest.raises(ReversalExceedsTransaction):
        desk.reverse(past, points=1, growth=1)
    desk.reverse(past, growth=10)
    assert (desk.balances, desk.growth) == ((0, 0, 0, 0), 0)


def test_what_nobody_asked_for_and_reversals_themselves_cannot_be_reversed() -> None:
    desk = Desk(pending_days=1)
    earned = desk.earn(10, months=1)
    desk.wait(days=1)
    desk.put()
    desk.release(desk.place(1))
    desk.reverse(earned, points=1)
    desk.wait(days=40)
    refusable = {
        TransactionKind.MATURE,
        TransactionKind.HOLD,
        TransactionKind.RELEASE,
        TransactionKind.REVERSE,
        TransactionKind.EXPIRE,
    }
    found = {tx.kind: tx for tx in desk.transactions}
    assert found.keys() == refusable | {TransactionKind.EARN}
    for kind in refusable:
        with pytest.raises(NotReversible) as refusal:
            desk.reverse(found[kind])
        assert refusal.value.metadata["kind"] == kind


def test_a_transaction_goes_by_its_whole_id() -> None:
    desk = Desk()
    earned = desk.earn(10)
    other = "txn_" + "0" * 24 + earned.transaction_id[-8:]  # the number is right
    with pytest.raises(TransactionUnknown):
        desk.do(Reverse, transaction_id=other)


# --- any sequence -------------------------------------------------------------------------------------


def order_rule(rule_id: str, unit: Unit, **more: Any) -> dict[str, Any]:
    common = {"scope": "RULE_SCOPE_ORDER", "unit": f"UNIT_{unit}", "stack": "RULE_STACK_ADD"}
    return {"rule_id": rule_id, **common, **more}


TENTH = {"amount_minor": 10, "points": 1}
# What the rest of an order of 1,000 would earn goes up and down: refunds take back, and give back.
SAW = [
    order_rule("base", Unit.POINTS, per=TENTH, expiry={"rolling_months": 1}),
    order_rule("base-growth", Unit.GROWTH, per=TENTH),
    order_rule("bonus", Unit.POINTS, fixed=40, when="order.total_minor % 400 < 200"),
    order_rule("bonus-growth", Unit.GROWTH, fixed=40, when="order.total_minor % 300 > 150"),
]
REFUSALS = (
    BalanceLimit,
    ClawbackBlocked,
    HoldClosed,
    HoldExpired,
    InsufficientGrowth,
    InsufficientPoints,
    NotReversible,
    RefundExceedsOrder,
    ReversalExceedsTransaction,
)
POLICIES = ["CLAWBACK_DEBT", "CLAWBACK_DEBT", "CLAWBACK_CLAMP", "CLAWBACK_BLOCK"]

Op = tuple[str, int, int, int]
small = st.integers(0, 9)


def op(name: str, first: st.SearchStrategy[int], second: st.SearchStrategy[int] = small) -> Any:
    return st.tuples(st.just(name), first, second, small)


ops = st.one_of(
    op("earn", st.integers(1, 120), st.integers(0, 5)),
    op("buy", small),
    op("refund", small, st.integers(0, 700)),
    op("refund", small, st.integers(0, 700)),
    op("reverse", small, st.integers(0, 120)),
    op("reverse", small, st.integers(0, 120)),
    op("redeem", st.integers(1, 150)),
    op("adjust", st.integers(-60, 60).filter(bool)),
    op("place", st.integers(1, 80), st.integers(1, 30)),
    op("close", small, st.integers(0, 80)),
    op("wait", st.integers(1, 40)),
    op("put", st.integers(0, 3)),
)


class Story:
    """Does whatever is told to a desk, as far as it is not refused."""

    def __init__(self, policy: str) -> None:
        self.desk = Desk(earn_rules=SAW, clawback=policy)
        self.orders: list[Order] = []

    def earn(self, amount: int, months: int, kind: int) -> None:
        name = ["points", "points", "parts", "both", "growth"][kind % 5]
        self.desk.earn(amount, name, months=months % 4 if name == "points" else 0)

    def buy(self, number: int, _second: int, _third: int) -> None:
        """An order that was refunded before it came, or a new one."""
        waiting = self.orders[number % len(self.orders)] if self.orders else self.new_order()
        if (MEMBER, waiting.order_id) in self.desk.seen.orders:
            waiting = self.new_order()
        self.desk.buy(waiting)

    def new_order(self) -> Order:
        self.orders.append(order(1000, self.desk.at, order_id=f"order-{len(self.orders)}"))
        return self.orders[-1]

    def refund(self, number: int, amount: int, new: int) -> None:
        """By event, so that it may come before its order."""
        if not self.orders or new == 0:
            self.new_order()
        what = self.orders[number % len(self.orders)]
        number = len(self.desk.events)
        refund = Refund(amount) if amount else Refund(everything=True)
        self.desk.tell(
            RefundOrder,
            event=True,
            order_id=what.order_id,
            refund_id=f"refund-{number}",
            refund=refund,
            body_hash=str(number).encode(),
            body=b"kept",
        )

    def reverse(self, number: int, points: int, share: int) -> None:
        """One of the latest transactions, in part or whole."""
        if self.desk.transactions:
            past = self.desk.transactions[-1 - number % len(self.desk.transactions)]
            self.desk.reverse(past, points, share * points // 9)

    def redeem(self, amount: int, _second: int, _third: int) -> None:
        self.desk.redeem(amount)

    def adjust(self, amount: int, _second: int, unit: int) -> None:
        self.desk.adjust(amount, [Unit.POINTS, Unit.GROWTH][unit % 2])

    def place(self, amount: int, days: int, _third: int) -> None:
        self.desk.place(amount, days=days)

    def close(self, number: int, amount: int, how: int) -> None:
        holds = list(self.desk.holds.values())
        if not holds:
            return
        hold = holds[number % len(holds)]
        if how < 3:
            self.desk.release(hold)
        else:
            self.desk.capture(hold, min(amount, hold.amount))

    def wait(self, days: int, _second: int, _third: int) -> None:
        self.desk.wait(days=days)

    def put(self, policy: int, _second: int, pending: int) -> None:
        self.desk.put(SAW, clawback=POLICIES[policy], pending_days=10 if pending < 3 else 0)


@patiently
@given(st.sampled_from(POLICIES), sequences(ops, 40))
def test_whatever_is_taken_back_and_given_back_everything_adds_up(policy: str, story: list[Op]) -> None:
    """The desk adds everything up after each step: accounts, lots, and what was reversed of what."""
    told = Story(policy)
    for what, *arguments in story:
        try:
            getattr(told, what)(*arguments)
        except REFUSALS:
            continue


@patiently
@given(
    st.lists(st.tuples(st.sampled_from(["earn", "redeem", "up", "down"]), st.integers(1, 50)), max_size=12),
    st.data(),
)
def test_where_everything_is_reversed_in_any_order_and_any_parts_nothing_is_left(
    story: list[tuple[str, int]], data: st.DataObject
) -> None:
    desk = Desk()
    done = []
    for what, amount in story:
        try:
            match what:
                case "earn":
                    done.append(desk.earn(amount, months=amount % 3))
                case "redeem":
                    done.append(desk.redeem(amount))
                case "up":
                    done.append(desk.adjust(amount))
                case "down":
                    done.append(desk.adjust(-amount))
        except InsufficientPoints:
            continue
    for past in data.draw(st.permutations(done)):
        first = data.draw(st.integers(0, past.transfers[0].amount))
        if first:
            desk.reverse(past, points=first)
        desk.reverse(past)
    assert desk.balances == (0, 0, 0, 0)
    assert desk.lots() == {}
    assert desk.member.lifetime_earned == 0
    assert not any(desk.net(Unit.POINTS, account) for account in Account)
