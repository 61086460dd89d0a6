"""Holds over a real channel, on both fronts: set aside, captured, released, lapsed; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from grpc import StatusCode
from loyalty.points.v1 import points_service_pb2 as pb

from tests.points.calls import (
    a_refund,
    capture,
    kinds,
    listed,
    move,
    moved,
    place,
    read_hold,
    refund,
    release,
)
from tests.support import Points, fresh, order, refused

NO_HOLD = "hold_" + "0" * 32
SECOND = timedelta(seconds=1)


@pytest.fixture
def member(points: Points) -> str:
    """A member with 20 points from one order."""
    name = fresh("member")
    points.earn(name, order(2000, points.now))
    return name


def purse(points: Points, member: str) -> tuple[int, int, int]:
    """What is available, held and owed."""
    balance = points.balance(member)
    return balance.available, balance.held, balance.owed


# --- placing ------------------------------------------------------------------------------------------


def test_a_hold_sets_points_aside_and_says_its_name(points: Points, member: str) -> None:
    until = points.now + timedelta(minutes=10)
    placed = place(points, member, 7, until=until)
    assert (placed.kind, placed.reference_id) == (pb.TRANSACTION_KIND_HOLD, "checkout-1")
    assert moved(placed) == [("available", "held", 7)]
    assert placed.balance == pb.BalanceAfter(available=13, held=7, growth=20, lifetime_earned=20)
    held = read_hold(points, member, placed.hold_id)
    expected = pb.Hold(
        hold_id=placed.hold_id,
        member_id=member,
        state=pb.HOLD_STATE_PLACED,
        amount=7,
        reference_id="checkout-1",
    )
    expected.expire_time.FromDatetime(until)
    assert held == expected
    assert purse(points, member) == (13, 7, 0)
    (expiring,) = points.balance(member).expiring
    assert expiring.amount == 13  # what is held does not expire


def test_what_is_held_cannot_be_spent_or_held_again(points: Points, member: str) -> None:
    place(points, member, 15)
    attempts: list[Callable[[], object]] = [
        lambda: place(points, member, 6),
        lambda: points.redeem(member, 6),
        lambda: points.adjust(member, -6),
    ]
    for attempt in attempts:
        with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
            attempt()
        assert refusal.metadata == {"available": "5", "requested": "6"}
    place(points, member, 5)
    assert purse(points, member) == (0, 20, 0)


def test_an_unknown_member_has_nothing_to_hold_and_is_not_made(points: Points) -> None:
    nobody = fresh("nobody")
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
        place(points, nobody, 3)
    assert refusal.metadata == {"available": "0", "requested": "3"}
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        points.balance(nobody)


def test_a_hold_ends_after_now_and_within_thirty_days(points: Points, member: str) -> None:
    month = timedelta(days=30)
    for who in (member, fresh("nobody")):
        for wrong in (-SECOND, timedelta(0), month + SECOND):
            with refused(StatusCode.FAILED_PRECONDITION, "HOLD_TIME_INVALID") as refusal:
                place(points, who, 1, until=points.now + wrong)
            assert refusal.metadata["now"] == points.now.isoformat()
    for right in (timedelta(microseconds=1), month):
        place(points, member, 1, until=points.now + right)


def test_an_event_has_a_version_of_its_own_and_a_transaction_a_number(points: Points, member: str) -> None:
    place(points, member, 1)
    balance = points.balance(member)
    assert balance.seq == 2
    assert balance.version == 3  # the earn, the hold, and that the hold was placed


# --- capturing and releasing --------------------------------------------------------------------------


def test_a_capture_spends_the_whole_hold(points: Points, member: str) -> None:
    placed = place(points, member, 7)
    captured = capture(points, member, placed.hold_id)
    assert (captured.kind, captured.hold_id) == (pb.TRANSACTION_KIND_CAPTURE, placed.hold_id)
    assert captured.reference_id == placed.hold_id
    assert moved(captured) == [("held", "issuer_redeemed", 7)]
    held = read_hold(points, member, placed.hold_id)
    assert (held.state, held.amount, held.captured) == (pb.HOLD_STATE_CAPTURED, 7, 7)
    assert purse(points, member) == (13, 0, 0)
    assert kinds(points, member) == "EARN HOLD CAPTURE"


def test_what_a_capture_leaves_is_released(points: Points, member: str) -> None:
    placed = place(points, member, 7)
    captured = capture(points, member, placed.hold_id, 3)
    assert moved(captured) == [("held", "issuer_redeemed", 3)]
    assert captured.balance.held == 4  # not yet back, which is the next transaction
    rest = listed(points, member)[0]
    assert (rest.kind, rest.hold_id) == (pb.TRANSACTION_KIND_RELEASE, placed.hold_id)
    assert rest.request_id.startswith("~")
    assert moved(rest) == [("held", "available", 4)]
    held = read_hold(points, member, placed.hold_id)
    assert (held.state, held.amount, held.captured) == (pb.HOLD_STATE_CAPTURED, 7, 3)
    assert purse(points, member) == (17, 0, 0)


def test_a_release_gives_everything_back(points: Points, member: str) -> None:
    placed = place(points, member, 7)
    released = release(points, member, placed.hold_id)
    assert (released.kind, released.hold_id) == (pb.TRANSACTION_KIND_RELEASE, placed.hold_id)
    assert moved(released) == [("held", "available", 7)]
    held = read_hold(points, member, placed.hold_id)
    assert (held.state, held.captured) == (pb.HOLD_STATE_RELEASED, 0)
    assert purse(points, member) == (20, 0, 0)


def test_more_than_is_held_is_not_captured(points: Points, member: str) -> None:
    placed = place(points, member, 7)
    with refused(StatusCode.FAILED_PRECONDITION, "CAPTURE_EXCEEDS_HOLD") as refusal:
        capture(points, member, placed.hold_id, 8)
    assert refusal.metadata == {"held": "7", "requested": "8"}
    assert purse(points, member) == (13, 7, 0)
    assert read_hold(points, member, placed.hold_id).state == pb.HOLD_STATE_PLACED


@pytest.mark.parametrize("end", [capture, release], ids=["captured", "released"])
def test_a_hold_is_closed_once(
    points: Points, member: str, end: Callable[[Points, str, str], pb.Transaction]
) -> None:
    placed = place(points, member, 7)
    end(points, member, placed.hold_id)
    before = points.balance(member)
    for again in (capture, release):
        with refused(StatusCode.FAILED_PRECONDITION, "HOLD_CLOSED") as refusal:
            again(points, member, placed.hold_id)
        assert refusal.metadata["hold_id"] == placed.hold_id
    assert points.balance(member) == before


def test_a_hold_is_known_by_its_whole_id_and_only_as_its_members(points: Points, member: str) -> None:
    other = fresh("member")
    points.adjust(other, 9)
    place(points, other, 1)
    placed = place(points, member, 7)
    earned = listed(points, member)[-1]
    forged = placed.hold_id[:-20] + "0" * 12 + placed.hold_id[-8:]  # the right row, another id
    no_hold = "hold_" + earned.transaction_id.removeprefix("txn_")  # a transaction that placed none
    strangers = [(member, NO_HOLD), (member, forged), (member, no_hold), (other, placed.hold_id)]
    for who, what in [*strangers, (fresh("nobody"), placed.hold_id)]:
        for ask in (read_hold, capture, release):
            with refused(StatusCode.NOT_FOUND, "HOLD_UNKNOWN") as refusal:
                ask(points, who, what)
            assert refusal.metadata == {"hold_id": what}
    assert purse(points, member) == (13, 7, 0)
    assert purse(points, other) == (8, 1, 0)


def test_what_is_held_is_not_clawed_back_and_what_is_owed_is_paid_from_it_first(
    points: Points, member: str
) -> None:
    placed = place(points, member, 15)
    bought = listed(points, member)[-1].order_id
    refund(points, member, a_refund(bought, points.now))
    assert purse(points, member) == (0, 15, 15)
    with refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS"):
        place(points, member, 1)
    capture(points, member, placed.hold_id, 4)  # the promise was made
    assert purse(points, member) == (0, 0, 4)
    points.adjust(member, 6)
    assert purse(points, member) == (2, 0, 0)


# --- the same request again ---------------------------------------------------------------------------


def test_each_request_about_a_hold_gets_its_first_answer_for_ever(points: Points, member: str) -> None:
    ids = {name: fresh(name) for name in ("hold", "capture", "release")}
    until = points.now + timedelta(hours=1)
    placed = place(points, member, 5, until=until, request_id=ids["hold"])
    captured = capture(points, member, placed.hold_id, 2, ids["capture"])
    second = place(points, member, 5).hold_id
    released = release(points, member, second, ids["release"])
    points.redeem(member, 18)
    again = [
        place(points, member, 5, until=until, request_id=ids["hold"]),
        capture(points, member, placed.hold_id, 2, ids["capture"]),
        release(points, member, second, ids["release"]),
    ]
    first = [placed, captured, released]
    assert [t.SerializeToString() for t in again] == [t.SerializeToString() for t in first]
    others: list[Callable[[str], object]] = [
        lambda request_id: place(points, member, 6, until=until, request_id=request_id),
        lambda request_id: capture(points, member, placed.hold_id, 3, request_id),
        lambda request_id: release(points, member, placed.hold_id, request_id),
    ]
    for request_id in ids.values():
        for other in others:
            with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
                other(request_id)
    assert purse(points, member) == (0, 0, 0)


def test_a_hold_and_its_transaction_are_read_back_as_they_were_answered(points: Points, member: str) -> None:
    placed = place(points, member, 5)
    captured = capture(points, member, placed.hold_id, 2)
    for made in (placed, captured):
        asked = pb.GetTransactionRequest(member_id=member, transaction_id=made.transaction_id)
        assert points.call(points.points.GetTransaction, asked) == made
    assert listed(points, member, kinds=[pb.TRANSACTION_KIND_HOLD]) == [placed]
    assert listed(points, member, kinds=[pb.TRANSACTION_KIND_CAPTURE]) == [captured]
    (released,) = listed(points, member, kinds=[pb.TRANSACTION_KIND_RELEASE])
    assert released.hold_id == placed.hold_id


# --- time passes, and only calls post what is due -------------------------------------------------------


def a_member(points: Points) -> tuple[str, datetime]:
    """A member with 20 points, and when they expire."""
    name = fresh("member")
    points.earn(name, order(2000, points.now))
    return name, points.balance(name).expiring[0].expire_time.ToDatetime(tzinfo=UTC)


def test_a_hold_lapses_at_its_deadline_and_not_before(later: Points) -> None:
    (one, _), (other, _) = a_member(later), a_member(later)
    until = later.now + timedelta(hours=1)
    first, second = (place(later, who, 7, until=until).hold_id for who in (one, other))
    move(later, until - timedelta(microseconds=1))
    assert purse(later, one) == (13, 7, 0)
    capture(later, one, first)
    move(later, until)
    assert purse(later, other) == (20, 0, 0)
    assert read_hold(later, other, second).state == pb.HOLD_STATE_EXPIRED
    for late in (capture, release):
        with refused(StatusCode.FAILED_PRECONDITION, "HOLD_EXPIRED") as refusal:
            late(later, other, second)
        assert refusal.metadata == {"hold_id": second, "expire_time": until.isoformat()}
    export = later.call(later.points.ExportMember, pb.ExportMemberRequest(member_id=other))
    assert not export.holds
    assert kinds(later, other) == "EARN HOLD"  # neither the reads nor the refusals posted anything
    move(later, until + SECOND)
    assert later.redeem(other, 20).balance.available == 0
    assert kinds(later, other) == "EARN HOLD RELEASE REDEEM"
    lapsed = listed(later, other)[1]
    assert lapsed.request_id.startswith("~")
    assert lapsed.occur_time.ToDatetime(tzinfo=UTC) == until
    assert lapsed.hold_id == second
    with refused(StatusCode.FAILED_PRECONDITION, "HOLD_EXPIRED"):
        capture(later, other, second)
    assert read_hold(later, other, second).state == pb.HOLD_STATE_EXPIRED
    assert kinds(later, one) == "EARN HOLD CAPTURE"


def test_held_points_outlive_their_end_to_be_captured_and_the_rest_is_gone(later: Points) -> None:
    member, end = a_member(later)
    move(later, end - timedelta(days=1))
    placed = place(later, member, 12, until=end + timedelta(days=1))
    move(later, end)
    assert purse(later, member) == (0, 12, 0)
    captured = capture(later, member, placed.hold_id, 5)
    assert moved(captured) == [("held", "issuer_redeemed", 5)]
    assert moved(listed(later, member)[0]) == [("held", "issuer_expired", 7)]
    assert kinds(later, member) == "EARN HOLD EXPIRE CAPTURE RELEASE"
    assert purse(later, member) == (0, 0, 0)


def test_a_hold_that_is_released_after_its_points_have_ended_gives_nothing_back(later: Points) -> None:
    (one, _), (other, end) = a_member(later), a_member(later)
    move(later, end - timedelta(days=1))
    until = end + timedelta(days=1)
    first = place(later, one, 20, until=until).hold_id
    second = place(later, other, 20, until=until).hold_id
    move(later, end + timedelta(hours=1))
    assert moved(release(later, one, first)) == [("held", "issuer_expired", 20)]
    move(later, until)
    assert purse(later, other) == (0, 0, 0)
    assert read_hold(later, other, second).state == pb.HOLD_STATE_EXPIRED
    later.adjust(other, 1)
    assert kinds(later, other) == "EARN HOLD RELEASE ADJUST"
    assert moved(listed(later, other)[1]) == [("held", "issuer_expired", 20)]
