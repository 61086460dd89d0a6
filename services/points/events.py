"""Domain facts as messages: what the ledger announces, and how a transaction reads in the contract."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.activities.v1.activities_pb2 import ActivityReported
from loyalty.orders.v1.orders_pb2 import OrderPaid
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted

from services.chassis.clock import to_micros
from services.chassis.outbox import Event, event
from services.points.domain.ledger import Account, Balances, Transaction, TransactionKind, Unit

STREAM = "POINTS"
SUBJECTS = ("loyalty.points.v1.>",)
BRAND_STREAM = "ORDERS"
BRAND_SUBJECTS = ("loyalty.orders.v1.>", "loyalty.activities.v1.>")

POINTS_POSTED = PointsPosted.DESCRIPTOR.full_name
ORDER_PAID = OrderPaid.DESCRIPTOR.full_name
ACTIVITY_REPORTED = ActivityReported.DESCRIPTOR.full_name

UNITS = {unit: pb.Unit.Value(f"UNIT_{unit}") for unit in Unit}
KINDS = {kind: pb.TransactionKind.Value(f"TRANSACTION_KIND_{kind}") for kind in TransactionKind}
ACCOUNTS = {
    account: pb.Account.Value("ACCOUNT_" + account.value.replace("/", "_").upper()) for account in Account
}


def timestamp(at: datetime) -> Timestamp:
    """An instant as a Timestamp."""
    seconds, micros = divmod(to_micros(at), 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def balance_after(balance: Balances) -> pb.BalanceAfter:
    """The balances that a transaction left."""
    return pb.BalanceAfter(
        available=balance.available,
        pending=balance.pending,
        held=balance.held,
        owed=balance.owed,
        growth=balance.growth,
        lifetime_earned=balance.lifetime_earned,
    )


def transaction(tx: Transaction) -> pb.Transaction:
    """A transaction as the contract shows it; made once, for the event and for the answer."""
    if tx.message is None:
        tx.message = _transaction(tx)
    found: pb.Transaction = tx.message
    return found


def _transaction(tx: Transaction) -> pb.Transaction:
    return pb.Transaction(
        transaction_id=tx.transaction_id,
        member_id=tx.member_id,
        kind=KINDS[tx.kind],
        request_id=tx.request_id,
        order_id=tx.order_id,
        activity_id=tx.activity_id,
        reference_id=tx.reference_id,
        reverses_transaction_id=tx.reverses_transaction_id,
        occur_time=timestamp(tx.occur_time),
        create_time=timestamp(tx.create_time),
        seq=tx.seq,
        hash=tx.hash,
        transfers=[
            pb.Transfer(
                unit=UNITS[m.unit], debit=ACCOUNTS[m.debit], credit=ACCOUNTS[m.credit], amount=m.amount
            )
            for m in tx.transfers
        ],
        contributions=[
            pb.Contribution(rule_id=c.rule_id, unit=UNITS[c.unit], amount=c.amount, error=c.error)
            for c in tx.contributions
        ],
        balance=balance_after(tx.balance),
        programme_version=tx.programme_version,
        payload_hash=tx.payload_hash,
    )


def points_posted(tx: Transaction, epoch: int, version: int, traceparent: str) -> Event:
    """Announces a transaction; `version` is the member's count of events."""
    message = PointsPosted(
        member_id=tx.member_id,
        occur_time=timestamp(tx.occur_time),
        epoch=epoch,
        version=version,
        transaction=transaction(tx),
    )
    return event(STREAM, POINTS_POSTED, tx.member_id, message.SerializeToString(), traceparent)


def order_paid(message: OrderPaid, traceparent: str) -> Event:
    """A brand's order, handed in by call."""
    return event(BRAND_STREAM, ORDER_PAID, message.member_id, message.SerializeToString(), traceparent)


def activity_reported(message: ActivityReported, traceparent: str) -> Event:
    """A brand's activity, handed in by call."""
    return event(BRAND_STREAM, ACTIVITY_REPORTED, message.member_id, message.SerializeToString(), traceparent)
