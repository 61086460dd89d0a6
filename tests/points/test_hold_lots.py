"""Holds and their lots: what is set aside neither is spent nor expires, and comes back to where it was."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.points.v1 import points_events_pb2 as epb

from services.points.commands import CloseHold, PlaceHold
from services.points.domain.ledger import Account, HoldState, TransactionKind, Unit
from services.points.errors import (
    CaptureExceedsHold,
    HoldClosed,
    HoldExpired,
    HoldTimeInvalid,
    HoldUnknown,
    InsufficientPoints,
)
from tests.points.desk import Desk, sequences

patiently = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

MONTH_END = timedelta(days=30, hours=12)  # from NOON until points that end after a month are gone
TICK = timedelta(microseconds=1)


def kinds(desk: Desk) -> list[TransactionKind]:
    return [tx.kind for tx in desk.transactions]


# --- what a hold does to lots -------------------------------------------------------------------------


def test_a_hold_sets_aside_what_expires_first() -> None:
    desk = Desk()
    lasting, short = desk.earn(10), desk.earn(10, months=1)
    hold = desk.place(12)
    assert desk.balances == (8, 0, 12, 0)
    assert hold.pins == {(short.seq, 0): 10, (lasting.seq, 0): 2}


def test_what_is_set_aside_cannot_be_spent_nor_set_aside_again() -> None:
    desk = Desk()
    desk.earn(10)
    desk.place(7)
    for attempt in (lambda: desk.redeem(4), lambda: desk.place(4), lambda: desk.adjust(-4)):
        with pytest.raises(InsufficientPoints) as refusal:
            attempt()
        assert refusal.value.metadata == {"available": "3", "requested": "4"}
    desk.redeem(3)
    assert desk.balances == (0, 0, 7, 0)


def test_of_a_lot_that_ends_the_pinned_part_stays_and_can_be_captured() -> None:
    desk = Desk()
    earned = desk.earn(10, months=1)
    desk.wait(days=30)
    hold = desk.place(4, days=1)
    desk.at += timedelta(hours=12)
    desk.settle()
    assert desk.balances == (0, 0, 4, 0)
    assert desk.lots() == {(earned.seq, 0): 4}
    desk.capture(hold)
    assert desk.balances == (0, 0, 0, 0)
    assert desk.net(Unit.POINTS, Account.ISSUER_EXPIRED) == -6
    assert desk.net(Unit.POINTS, Account.ISSUER_REDEEMED) == -4
    assert desk.member.next_due_time is None


@pytest.mark.parametrize("captured", [1, 4, 5, 9, 10])
def test_a_partial_capture_spends_what_expires_first_and_returns_the_rest_to_its_lots(captured: int) -> None:
    desk = Desk()
    lasting, short = desk.earn(10), desk.earn(4, months=1)
    hold = desk.place(10)
    capture = desk.capture(hold, captured)
    assert capture.kind is TransactionKind.CAPTURE
    assert desk.balances == (14 - captured, 0, 0, 0)
    left = {(short.seq, 0): max(0, 4 - captured), (lasting.seq, 0): 10 - max(0, captured - 4)}
    assert desk.lots() == {name: amount for name, amount in left.items() if amount}
    closed = desk.holds[hold.seq]
    assert (closed.state, closed.captured) == (HoldState.CAPTURED, captured)
    released = kinds(desk).count(TransactionKind.RELEASE)
    assert released == (captured < 10)


def test_no_amount_captures_the_whole_hold() -> None:
    desk = Desk()
    desk.earn(10)
    hold = desk.place(7)
    desk.capture(hold)
    assert desk.balances == (3, 0, 0, 0)
    assert kinds(desk)[-1] is TransactionKind.CAPTURE


def test_the_rest_of_a_partial_capture_expires_at_once_if_its_lot_has_ended() -> None:
    desk = Desk()
    desk.earn(4, months=1)
    lasting = desk.earn(10)
    desk.wait(days=30)
    hold = desk.place(6, days=1)
    desk.wait(hours=12)  # the lot of four has ended, and is pinned
    desk.capture(hold, 3)
    assert desk.balances == (10, 0, 0, 0)
    assert desk.lots() == {(lasting.seq, 0): 10}
    release = desk.transactions[-1]
    assert {(m.debit, m.credit): m.amount for m in release.transfers} == {
        (Account.HELD, Account.ISSUER_EXPIRED): 1,
        (Account.HELD, Account.AVAILABLE): 2,
    }


def test_a_release_after_the_end_of_its_lot_gives_nothing_back() -> None:
    desk = Desk()
    desk.earn(5, months=1)
    desk.wait(days=30)
    hold = desk.place(5, days=1)
    desk.wait(hours=12)
    assert desk.balances == (0, 0, 5, 0)
    desk.release(hold)
    assert desk.balances == (0, 0, 0, 0)
    assert desk.net(Unit.POINTS, Account.ISSUER_EXPIRED) == -5


def test_released_points_can_be_spent_at_once_and_end_when_they_would_have_ended() -> None:
    desk = Desk()
    earned = desk.earn(5, months=1)
    hold = desk.place(5)
    desk.release(hold)
    assert desk.lots() == {(earned.seq, 0): 5}
    desk.redeem(2)
    desk.at += MONTH_END - TICK
    desk.settle()
    assert desk.balances == (3, 0, 0, 0)
    desk.wait(microseconds=1)
    assert desk.balances == (0, 0, 0, 0)


# --- the deadline -------------------------------------------------------------------------------------


def test_a_hold_lapses_with_its_deadline_and_its_points_come_back() -> None:
    desk = Desk()
    desk.earn(10)
    hold = desk.place(10, minutes=15)
    desk.at += timedelta(minutes=15) - TICK
    desk.settle()
    assert desk.balances == (0, 0, 10, 0)
    desk.wait(microseconds=1)
    assert desk.balances == (10, 0, 0, 0)
    assert desk.holds[hold.seq].state is HoldState.EXPIRED
    assert [e.hold.hold_id for e in desk.announced(epb.HoldReleased)] == [hold.hold_id]


def test_in_the_last_moment_before_the_deadline_a_hold_can_be_captured() -> None:
    desk = Desk()
    desk.earn(10)
    hold = desk.place(10, minutes=15)
    desk.at += timedelta(minutes=15) - TICK
    desk.capture(hold)
    assert desk.balances == (0, 0, 0, 0)


@pytest.mark.parametrize("close", [Desk.capture, Desk.release])
def test_after_the_deadline_a_hold_is_neither_captured_nor_released(close: Any) -> None:
    desk = Desk()
    desk.earn(10)
    hold = desk.place(10, minutes=15)
    desk.at = hold.expire_time
    with pytest.raises(HoldExpired):
        close(desk, hold)
    desk.settle()
    with pytest.raises(HoldExpired):
        close(desk, hold)
    assert desk.balances == (10, 0, 0, 0)


@pytest.mark.parametrize("first", [Desk.capture, Desk.release])
@pytest.mark.parametrize("second", [Desk.capture, Desk.release])
def test_a_hold_is_closed_once(first: Any, second: Any) -> None:
    desk = Desk()
    desk.earn(10)
    hold = desk.place(10)
    first(desk, hold)
    before = desk.balances
    with pytest.raises(HoldClosed):
        second(desk, hold)
    assert desk.balances == before


def test_who_releases_by_event_what_was_captured_gets_it_back_to_its_lots_once() -> None:
    desk = Desk()
    lasting, short = desk.earn(10), desk.earn(10, months=1)
    captured = desk.capture(desk.place(12))
    placed_by = desk.transactions[-2].request_id
    release = {"placed_by": placed_by, "captured_by": captured.request_id, "capture": None}
    for _ in range(2):
        desk.tell(CloseHold, event=True, request_id="release", **release)
        assert (desk.balances, kinds(desk)[-2:]) == ((20, 0, 0, 0), ["CAPTURE", "REVERSE"])
        assert desk.lots() == {(lasting.seq, 0): 10, (short.seq, 0): 10}
    assert desk.announced(epb.HoldReleased) == []


@pytest.mark.parametrize(
    "deadline", [timedelta(0), -TICK, timedelta(days=-1), timedelta(days=30) + TICK, timedelta(days=365)]
)
def test_a_deadline_lies_ahead_and_at_most_thirty_days(deadline: timedelta) -> None:
    desk = Desk()
    desk.earn(10)
    with pytest.raises(HoldTimeInvalid):
        desk.do(PlaceHold, amount=1, reference_id="", expire_time=desk.at + deadline)
    desk.place(1, microseconds=1)
    desk.place(1, days=30)
    assert desk.balances == (8, 0, 2, 0)


def test_more_than_is_held_cannot_be_captured() -> None:
    desk = Desk()
    desk.earn(10)
    hold = desk.place(5)
    with pytest.raises(CaptureExceedsHold) as refusal:
        desk.capture(hold, 6)
    assert refusal.value.metadata == {"held": "5", "requested": "6"}
    desk.capture(hold, 5)


def test_a_hold_goes_by_its_whole_id() -> None:
    desk = Desk()
    desk.earn(10)
    hold = desk.place(5)
    other = replace(hold, hold_id="hold_" + "0" * 24 + hold.hold_id[-8:])  # the number is right
    with pytest.raises(HoldUnknown):
        desk.capture(other)
    with pytest.raises(HoldUnknown):
        desk.release(other)
    desk.capture(hold)


def test_what_falls_due_at_one_moment_expires_before_it_is_released() -> None:
    """A deadline at the very end of the pinned lot: nothing comes to life again."""
    desk = Desk()
    desk.earn(6, months=1)
    desk.at += MONTH_END - timedelta(minutes=15)
    desk.place(4, minutes=15)
    desk.wait(minutes=15)
    assert desk.balances == (0, 0, 0, 0)
    assert kinds(desk)[-2:] == [TransactionKind.EXPIRE, TransactionKind.RELEASE]


# --- what is owed -------------------------------------------------------------------------------------


def owing(held: int, owed: int) -> Desk:
    """A member with points held who has spent what was taken back."""
    desk = Desk()
    spent = desk.earn(owed)
    desk.redeem(owed)
    desk.earn(held)
    desk.place(held)
    desk.reverse(spent)
    assert desk.balances == (0, 0, held, owed)
    return desk


@pytest.mark.parametrize(("held", "owed"), [(10, 4), (4, 10), (5, 5)])
def test_released_points_pay_what_is_owed_first(held: int, owed: int) -> None:
    for lapse in (False, True):
        desk = owing(held, owed)
        (hold,) = desk.member.holds
        if lapse:
            desk.wait(minutes=15)
        else:
            desk.release(hold)
        assert desk.balances == (max(0, held - owed), 0, 0, max(0, owed - held))


def test_who_owes_may_have_holds_captured_but_places_none() -> None:
    desk = owing(10, 4)
    with pytest.raises(InsufficientPoints):
        desk.place(1)
    (hold,) = desk.member.holds
    desk.capture(hold, 7)
    assert desk.balances == (0, 0, 0, 1)


def test_what_is_owed_is_paid_from_what_expires_first() -> None:
    desk = Desk()
    spent = desk.earn(4)
    desk.redeem(4)
    lasting, short = desk.earn(5), desk.earn(5, months=1)
    hold = desk.place(10)
    desk.reverse(spent)
    desk.release(hold)
    assert desk.lots() == {(short.seq, 0): 1, (lasting.seq, 0): 5}


# --- any sequence -------------------------------------------------------------------------------------

steps = st.one_of(
    st.tuples(st.just("earn"), st.integers(1, 50), st.integers(0, 3)),
    st.tuples(st.just("place"), st.integers(1, 60), st.integers(1, 30 * 24)),
    st.tuples(st.just("capture"), st.integers(0, 5), st.integers(0, 60)),
    st.tuples(st.just("release"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("redeem"), st.integers(1, 30), st.just(0)),
    st.tuples(st.just("undo"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 40 * 24), st.just(0)),
)


@patiently
@given(sequences(steps, 30), st.sampled_from([0, 0, 10]))
def test_whatever_happens_a_hold_in_time_can_be_captured_and_everything_adds_up(
    story: list[tuple[str, int, int]], pending_days: int
) -> None:
    """The desk adds everything up after each step."""
    desk = Desk(pending_days=pending_days)
    earned = []
    for what, first, second in story:
        in_time = [h for h in desk.holds.values() if h.state is HoldState.PLACED and desk.at < h.expire_time]
        try:
            match what:
                case "earn":
                    earned.append(desk.earn(first, months=second))
                case "place":
                    desk.place(first, hours=second)
                case "capture" if in_time:
                    hold = in_time[first % len(in_time)]
                    amount = min(second, hold.amount)
                    desk.capture(hold, amount)
                    assert desk.holds[hold.seq].captured == (amount or hold.amount)
                case "release" if in_time:
                    desk.release(in_time[first % len(in_time)])
                case "redeem":
                    desk.redeem(first)
                case "undo" if earned:
                    desk.reverse(earned.pop(first % len(earned)))
                case "wait":
                    desk.wait(hours=first)
        except InsufficientPoints:
            continue
    desk.wait(days=31)
    assert all(hold.state is not HoldState.PLACED for hold in desk.holds.values())
    assert desk.member.balances[Account.HELD] == 0
    for hold in desk.holds.values():
        parts = [
            m.amount
            for tx in desk.transactions
            if tx.reference_id == hold.hold_id
            for m in tx.transfers
            if m.debit is Account.HELD
        ]
        assert sum(parts) == hold.amount
