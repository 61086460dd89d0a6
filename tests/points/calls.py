"""Calls about holds, refunds, reversals and transfers, as tests write them; lists, time, and rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from loyalty.orders.v1.orders_pb2 import Refund
from loyalty.points.v1 import points_service_pb2 as pb

from tests.support import Points, fresh


def a_hold(
    points: Points, member: str, amount: int, *, until: datetime | None = None, request_id: str = ""
) -> pb.HoldPointsRequest:
    """A request to set points aside, by default for 15 minutes."""
    request = pb.HoldPointsRequest(
        member_id=member, request_id=request_id or fresh("hold"), amount=amount, reference_id="checkout-1"
    )
    request.expire_time.FromDatetime(until or points.now + timedelta(minutes=15))
    return request


def place(points: Points, member: str, amount: int, **more: Any) -> pb.Transaction:
    """Sets points aside."""
    return points.call(points.points.HoldPoints, a_hold(points, member, amount, **more))


def a_capture(member: str, hold_id: str, amount: int = 0, request_id: str = "") -> pb.CaptureHoldRequest:
    """A request to spend a hold, whole or in part."""
    return pb.CaptureHoldRequest(
        member_id=member, request_id=request_id or fresh("capture"), hold_id=hold_id, amount=amount
    )


def capture(
    points: Points, member: str, hold_id: str, amount: int = 0, request_id: str = ""
) -> pb.Transaction:
    """Spends a hold, whole or in part."""
    return points.call(points.points.CaptureHold, a_capture(member, hold_id, amount, request_id))


def a_release(member: str, hold_id: str, request_id: str = "") -> pb.ReleaseHoldRequest:
    """A request to give a hold back."""
    return pb.ReleaseHoldRequest(member_id=member, request_id=request_id or fresh("release"), hold_id=hold_id)


def release(points: Points, member: str, hold_id: str, request_id: str = "") -> pb.Transaction:
    """Gives a hold back."""
    return points.call(points.points.ReleaseHold, a_release(member, hold_id, request_id))


def read_hold(points: Points, member: str, hold_id: str) -> pb.Hold:
    """Reads a hold."""
    return points.call(points.points.GetHold, pb.GetHoldRequest(member_id=member, hold_id=hold_id))


def a_refund(
    order_id: str, at: datetime, amount: int = 0, *, lines: Mapping[str, int] | None = None
) -> Refund:
    """A refund by amount, by lines, or of all that is left."""
    made = Refund(order_id=order_id, refund_id=fresh("refund"))
    made.refund_time.FromDatetime(at)
    if amount:
        made.amount_minor = amount
    elif lines:
        for line_id, minor in lines.items():
            made.lines.lines.add(line_id=line_id, amount_minor=minor)
    else:
        made.all = True
    return made


def refund(points: Points, member: str, what: Refund, request_id: str = "") -> pb.Transaction:
    """Refunds an order."""
    request = pb.RefundOrderRequest(
        member_id=member, request_id=request_id or fresh("refund-order"), refund=what
    )
    return points.call(points.points.RefundOrder, request)


def a_reversal(
    member: str, transaction_id: str, request_id: str = "", /, **amounts: int
) -> pb.ReverseTransactionRequest:
    """A request to undo a transaction; `points` and `growth` say how much of it."""
    units = {"points": pb.UNIT_POINTS, "growth": pb.UNIT_GROWTH}
    return pb.ReverseTransactionRequest(
        member_id=member,
        request_id=request_id or fresh("reverse"),
        transaction_id=transaction_id,
        amounts=[pb.UnitAmount(unit=units[unit], amount=amount) for unit, amount in amounts.items()],
    )


def reverse(
    points: Points, member: str, transaction_id: str, request_id: str = "", /, **amounts: int
) -> pb.Transaction:
    """Undoes a transaction, whole or in part."""
    request = a_reversal(member, transaction_id, request_id, **amounts)
    return points.call(points.points.ReverseTransaction, request)


def transfer(
    points: Points, member: str, to: str, amount: int, request_id: str = ""
) -> pb.TransferPointsResponse:
    """Sends points to another member."""
    request = pb.TransferPointsRequest(
        member_id=member, request_id=request_id or fresh("transfer"), to_member_id=to, amount=amount
    )
    return points.call(points.points.TransferPoints, request)


def listed(points: Points, member: str, **asked: Any) -> list[pb.Transaction]:
    """Every page of a list."""
    found: list[pb.Transaction] = []
    token = ""
    while True:
        request = pb.ListTransactionsRequest(member_id=member, page_token=token, **asked)
        page = points.call(points.points.ListTransactions, request)
        found.extend(page.transactions)
        token = page.next_page_token
        if not token:
            return found


def kinds(points: Points, member: str) -> str:
    """What happened to a member, oldest first, in one line."""
    names = [
        pb.TransactionKind.Name(t.kind).removeprefix("TRANSACTION_KIND_") for t in listed(points, member)
    ]
    return " ".join(reversed(names))


def moved(transaction: pb.Transaction) -> list[tuple[str, str, int]]:
    """The transfers of a transaction: from where, to where, how much."""

    def name(account: pb.Account.ValueType) -> str:
        return pb.Account.Name(account).removeprefix("ACCOUNT_").lower()

    return [(name(t.debit), name(t.credit), t.amount) for t in transaction.transfers]


def move(points: Points, at: datetime) -> None:
    """Sets the house's clock."""
    assert points.house.clock is not None
    points.house.clock.set(at)
