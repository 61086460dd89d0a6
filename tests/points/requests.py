"""A good request of each method, and the database as one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.activities.v1 import activities_service_pb2 as activities_pb
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.orders.v1 import orders_service_pb2 as orders_pb
from loyalty.points.v1 import points_service_pb2 as pb

from tests import database
from tests.points.calls import a_capture, a_hold, a_refund, a_release, a_reversal
from tests.support import PROGRAMME, Points, fresh, order

# --- the database, as one number ----------------------------------------------------------------------

# Events that are not sent, and those that we consume ourselves and have not consumed.
BUSY = (
    "sent_at IS NULL OR (stream = 'ORDERS' OR subject LIKE '%.TransferSent'"
    " OR subject LIKE '%.TransferRefused') AND NOT EXISTS (SELECT FROM inbox i WHERE i.event_id = o.event_id"
    " UNION ALL SELECT FROM dead_letters d WHERE d.event_id = o.event_id)"
)


def fingerprint(points: Points) -> dict[str, str]:
    """A hash over all rows of each table, once the house is quiet."""
    return database.fingerprint(points.house, "points", BUSY)


# --- a good request of each kind ----------------------------------------------------------------------


def an_activity(points: Points) -> Activity:
    made = Activity(activity_id=fresh("activity"), kind="app_task_done", amount_minor=5)
    made.attributes["seats"] = "2"
    made.occur_time.FromDatetime(points.now)
    return made


def earn(points: Points, **source: Any) -> pb.EarnPointsRequest:
    request = pb.EarnPointsRequest(member_id=fresh("member"), request_id=fresh("earn"), **source)
    request.occur_time.FromDatetime(points.now)
    return request


def adjust(points: Points) -> pb.AdjustPointsRequest:
    request = pb.AdjustPointsRequest(
        member_id=fresh("member"), request_id=fresh("adjust"), unit=pb.UNIT_POINTS, amount=1, reason="why"
    )
    request.occur_time.FromDatetime(points.now)
    return request


def redeem(points: Points) -> pb.RedeemPointsRequest:
    request = pb.RedeemPointsRequest(
        member_id=fresh("member"), request_id=fresh("redeem"), amount=1, reference_id="gift"
    )
    request.occur_time.FromDatetime(points.now)
    return request


def hold(points: Points) -> pb.HoldPointsRequest:
    return a_hold(points, fresh("member"), 1)


def a_refund_of(points: Points, **what: Any) -> pb.RefundOrderRequest:
    refund = a_refund(fresh("order"), points.now, **what)
    return pb.RefundOrderRequest(member_id=fresh("member"), request_id=fresh("refund-order"), refund=refund)


def refunded(points: Points, **what: Any) -> orders_pb.ReportOrderRefundedRequest:
    refund = a_refund(fresh("order"), points.now, **what)
    return orders_pb.ReportOrderRefundedRequest(
        member_id=fresh("member"), request_id=fresh("report"), refund=refund
    )


def quote(points: Points) -> pb.QuoteEarnRequest:
    request = pb.QuoteEarnRequest(member_id=fresh("member"), order=order(100, points.now))
    request.occur_time.FromDatetime(points.now)
    return request


def transactions(points: Points) -> pb.ListTransactionsRequest:
    request = pb.ListTransactionsRequest(
        member_id=fresh("member"),
        kinds=[pb.TRANSACTION_KIND_EARN],
        unit=pb.UNIT_POINTS,
        order_id="order",
        page_size=5,
    )
    request.occur_from_time.FromDatetime(points.now)
    request.occur_until_time.FromDatetime(points.now)
    return request


def programme(points: Points) -> pb.PutProgrammeRequest:
    """Only checked, not put: a version that holds from the year 9998 on would be the last."""
    request = pb.PutProgrammeRequest(
        request_id=fresh("put"), programme=ParseDict(PROGRAMME, pb.Programme()), validate_only=True
    )
    rule = request.programme.earn_rules[0]
    rule.when = "order.city == '杭州'"
    rule.expiry.rolling_months = 1
    for stamp in (rule.valid_from_time, request.programme.effective_time):
        stamp.FromDatetime(points.now)
    rule.valid_until_time.FromSeconds(rule.valid_from_time.seconds + 60)
    request.programme.clawback = pb.CLAWBACK_CLAMP
    request.programme.grace_days = request.programme.transfers_per_day = 1
    ladder = request.programme.tier_ladder
    ladder.grace_days, ladder.rolling_days = 1, 30
    ladder.tiers.add(tier_id="铁粉", growth=100)
    return request


def yearly_programme(points: Points) -> pb.PutProgrammeRequest:
    request = programme(points)
    request.programme.tier_ladder.calendar_year = True
    return request


def fixed() -> pb.FixedEarn:
    return pb.FixedEarn(unit=pb.UNIT_POINTS, amount=1, reason="why")


POINTS = "/loyalty.points.v1.PointsService/"
A_HOLD, A_TRANSACTION = "hold_" + "f" * 32, "txn_" + "f" * 32
# Each method with good requests; every set field is then made bad in turn.
GOOD: list[tuple[str, Callable[[Points], Message]]] = [
    (POINTS + "EarnPoints", lambda p: earn(p, order=order(100, p.now))),
    (POINTS + "EarnPoints", lambda p: earn(p, activity=an_activity(p))),
    (POINTS + "EarnPoints", lambda p: earn(p, fixed=fixed())),
    (POINTS + "QuoteEarn", quote),
    (POINTS + "RedeemPoints", redeem),
    (POINTS + "HoldPoints", hold),
    (POINTS + "CaptureHold", lambda _: a_capture(fresh("member"), A_HOLD, 1)),
    (POINTS + "ReleaseHold", lambda _: a_release(fresh("member"), A_HOLD)),
    (POINTS + "GetHold", lambda _: pb.GetHoldRequest(member_id=fresh("member"), hold_id=A_HOLD)),
    (POINTS + "RefundOrder", lambda p: a_refund_of(p, amount=1)),
    (POINTS + "RefundOrder", lambda p: a_refund_of(p, lines={"1": 1})),
    (POINTS + "RefundOrder", a_refund_of),
    (
        POINTS + "ReverseTransaction",
        lambda _: a_reversal(fresh("member"), A_TRANSACTION, points=1, growth=1),
    ),
    (
        POINTS + "TransferPoints",
        lambda _: pb.TransferPointsRequest(
            member_id=fresh("member"), request_id=fresh("transfer"), to_member_id=fresh("member"), amount=1
        ),
    ),
    (POINTS + "AdjustPoints", adjust),
    (
        POINTS + "BatchPost",
        lambda p: pb.BatchPostRequest(items=[pb.BatchPostItem(earn=earn(p, order=order(100, p.now)))]),
    ),
    (POINTS + "BatchPost", lambda p: pb.BatchPostRequest(items=[pb.BatchPostItem(adjust=adjust(p))])),
    (POINTS + "GetBalance", lambda _: pb.GetBalanceRequest(member_id=fresh("member"))),
    (POINTS + "BatchGetBalances", lambda _: pb.BatchGetBalancesRequest(member_ids=[fresh("member")])),
    (
        POINTS + "GetTransaction",
        lambda _: pb.GetTransactionRequest(member_id=fresh("member"), transaction_id=A_TRANSACTION),
    ),
    (POINTS + "ListTransactions", transactions),
    (POINTS + "PutProgramme", programme),
    (POINTS + "PutProgramme", yearly_programme),
    (POINTS + "GetProgramme", lambda _: pb.GetProgrammeRequest(version=1)),
    (POINTS + "ListProgrammes", lambda _: pb.ListProgrammesRequest(page_size=5)),
    (POINTS + "ExportMember", lambda _: pb.ExportMemberRequest(member_id=fresh("member"), page_size=5)),
    (
        POINTS + "EraseMember",
        lambda _: pb.EraseMemberRequest(member_id=fresh("member"), request_id=fresh("erase")),
    ),
    (
        "/loyalty.orders.v1.OrdersService/ReportOrderPaid",
        lambda p: orders_pb.ReportOrderPaidRequest(
            member_id=fresh("member"), request_id=fresh("report"), order=order(100, p.now)
        ),
    ),
    ("/loyalty.orders.v1.OrdersService/ReportOrderRefunded", lambda p: refunded(p, amount=1)),
    ("/loyalty.orders.v1.OrdersService/ReportOrderRefunded", lambda p: refunded(p, lines={"1": 1})),
    (
        "/loyalty.activities.v1.ActivitiesService/ReportActivity",
        lambda p: activities_pb.ReportActivityRequest(
            member_id=fresh("member"), request_id=fresh("report"), activity=an_activity(p)
        ),
    ),
]
