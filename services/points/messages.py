"""Messages of the contract: requests as commands, and what is kept as calls are answered with it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.asked import by_call
from services.chassis.auth import CALLER
from services.chassis.database import Row
from services.chassis.errors import refused
from services.chassis.timestamps import instant_of, timestamp, timestamp_of
from services.points import events, rules, store
from services.points.commands import Adjust, Command, Earn, EarnFixed
from services.points.domain.ledger import NEVER, Account, Member, Transaction
from services.points.rules import Source

SERVICE = "/loyalty.points.v1.PointsService/"
"""What the path of a method begins with."""
ADMIN = "points.admin"
"""The scope of operators."""

EXPIRING_DATES = 24
UNITS = {number: unit for unit, number in events.UNITS.items()}


# --- requests as commands -----------------------------------------------------------------------------


def asked(method: str, request: Any) -> dict[str, Any]:
    """What every command has, by the request of a method."""
    named = "occur_time" in request.DESCRIPTOR.fields_by_name
    return {
        **by_call(SERVICE + method, request),
        "occur_time": instant_of(request, "occur_time") if named else None,
        "may_backdate": CALLER.get().has(ADMIN),
    }


def earning(request: pb.EarnPointsRequest) -> Command:
    """Points by the rules, or a fixed amount of them."""
    if request.HasField("fixed"):
        fixed = request.fixed
        return EarnFixed(
            **asked("EarnPoints", request), unit=UNITS[fixed.unit], amount=fixed.amount, reason=fixed.reason
        )
    earned_on = source(request)
    return Earn(**asked("EarnPoints", request), source=earned_on)


def source(request: pb.EarnPointsRequest | pb.QuoteEarnRequest) -> Source:
    """What is earned on."""
    if request.HasField("order"):
        return rules.read_order(request.order)
    return rules.read_activity(request.activity)


def adjustment(request: pb.AdjustPointsRequest) -> Command:
    """What an operator corrects."""
    common = asked("AdjustPoints", request)
    return Adjust(**common, unit=UNITS[request.unit], amount=request.amount, reason=request.reason)


# --- what is kept, as messages ------------------------------------------------------------------------


def balance(member: Member) -> pb.Balance:
    """A member's balances, and what of them expires when."""
    b = member.balances
    ends: dict[datetime, int] = {}
    for lot in sorted(member.lots, key=lambda lot: lot.expires_at or NEVER):
        if lot.expires_at is not None and lot.free:
            ends[lot.expires_at] = ends.get(lot.expires_at, 0) + lot.free
    return pb.Balance(
        member_id=member.member_id,
        available=b[Account.AVAILABLE],
        pending=b[Account.PENDING],
        held=b[Account.HELD],
        owed=b[Account.OWED],
        lifetime_earned=member.lifetime_earned,
        growth=b[Account.GROWTH],
        tier=member.tier,
        version=member.version,
        expiring=[
            pb.ExpiringPoints(amount=amount, expire_time=timestamp(end))
            for end, amount in list(ends.items())[:EXPIRING_DATES]
        ],
        seq=member.seq,
        tier_until_time=timestamp_of(member.tier_until),
    )


def programme(row: Row) -> pb.Programme:
    """A version of the programme, as it was put."""
    return pb.Programme.FromString(row["body"])


def transaction(row: Row) -> pb.Transaction:
    """A transaction."""
    return events.transaction(store.to_transaction(row))


def exported(row: Row) -> pb.ExportedTransaction:
    """A transaction, with what is kept beside it."""
    shown = pb.ExportedTransaction(transaction=transaction(row), reason=row["text"] or "", actor=row["actor"])
    if row["source"] is not None and row["order_id"]:
        shown.order.ParseFromString(row["source"])
    elif row["source"] is not None:
        shown.activity.ParseFromString(row["source"])
    return shown


def post_result(answer: Transaction | BaseException) -> pb.BatchPostResult:
    """What became of one of many. Raises what is a defect."""
    if isinstance(answer, Transaction):
        return pb.BatchPostResult(transaction=events.transaction(answer))
    return pb.BatchPostResult(error=pb.BatchPostError(**refused(answer)))
