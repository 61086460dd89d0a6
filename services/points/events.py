"""Domain facts as messages: what the ledger announces, and how a transaction reads in the contract."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from loyalty.activities.v1.activities_pb2 import ActivityReported
from loyalty.orders.v1.orders_pb2 import OrderPaid, OrderRefunded
from loyalty.points.v1 import points_events_pb2 as epb
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted

from services.chassis.outbox import About, Event, Make, announcement, event
from services.chassis.timestamps import timestamp, timestamp_of
from services.points.domain.ledger import (
    Account,
    Balances,
    Hold,
    HoldState,
    Transaction,
    TransactionKind,
    Unit,
)
from services.points.domain.tiers import TierChange, TierReason
from services.points.domain.verbs import Notice

STREAM = "POINTS"
SUBJECTS = ("loyalty.points.v1.>",)
BRAND_STREAM = "ORDERS"
BRAND_SUBJECTS = ("loyalty.orders.v1.>", "loyalty.activities.v1.>")

POINTS_POSTED = PointsPosted.DESCRIPTOR.full_name
ORDER_PAID = OrderPaid.DESCRIPTOR.full_name
ORDER_REFUNDED = OrderRefunded.DESCRIPTOR.full_name
ACTIVITY_REPORTED = ActivityReported.DESCRIPTOR.full_name

UNITS = {unit: pb.Unit.Value(f"UNIT_{unit}") for unit in Unit}
KINDS = {kind: pb.TransactionKind.Value(f"TRANSACTION_KIND_{kind}") for kind in TransactionKind}
ACCOUNTS = {
    account: pb.Account.Value("ACCOUNT_" + account.value.replace("/", "_").upper()) for account in Account
}
HOLD_STATES = {state: pb.HoldState.Value(f"HOLD_STATE_{state}") for state in HoldState}
TIER_REASONS = {reason: epb.TierChangeReason.Value(f"TIER_CHANGE_REASON_{reason}") for reason in TierReason}


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
        hold_id=_hold_id(tx),
    )


def hold_id_of(transaction_id: str) -> str:
    """The hold that a HOLD transaction placed."""
    return "hold_" + transaction_id.removeprefix("txn_")


def _hold_id(tx: Transaction) -> str:
    if tx.kind is TransactionKind.HOLD:
        return hold_id_of(tx.transaction_id)
    return tx.reference_id if tx.kind in (TransactionKind.CAPTURE, TransactionKind.RELEASE) else ""


def hold(member_id: str, held: Hold) -> pb.Hold:
    """A hold as the contract shows it."""
    return pb.Hold(
        hold_id=held.hold_id,
        member_id=member_id,
        state=HOLD_STATES[held.state],
        amount=held.amount,
        captured=held.captured,
        reference_id=held.reference_id,
        expire_time=timestamp(held.expire_time),
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


# --- what is announced besides transactions -----------------------------------------------------------


_event = partial(announcement, STREAM)


def points_expiring(about: About, notice: Notice) -> Event:
    """Points will expire."""
    ends = timestamp(notice.expire_time)
    return _event(about, epb.PointsExpiring, amount=notice.amount, expire_time=ends)


def tier_changed(about: About, change: TierChange) -> Event:
    """A tier, or how long it is held, changed."""
    return _event(
        about,
        epb.TierChanged,
        from_tier=change.before,
        to_tier=change.after,
        reason=TIER_REASONS[change.reason],
        valid_until_time=timestamp_of(change.until),
        growth=change.growth,
    )


def _hold_placed(about: About, placed: tuple[Hold, Transaction]) -> Event:
    return _event(about, epb.HoldPlaced, hold=hold(about.entity_key, placed[0]))


def _hold_captured(about: About, captured: tuple[Hold, Transaction]) -> Event:
    held, tx = captured
    return _event(
        about, epb.HoldCaptured, hold=hold(about.entity_key, held), transaction_id=tx.transaction_id
    )


def _hold_released(about: About, released: tuple[Hold, Transaction]) -> Event:
    held, tx = released
    return _event(
        about, epb.HoldReleased, hold=hold(about.entity_key, held), transaction_id=tx.transaction_id
    )


HOLD_EVENTS: dict[TransactionKind, Make] = {
    TransactionKind.HOLD: _hold_placed,
    TransactionKind.CAPTURE: _hold_captured,
    TransactionKind.RELEASE: _hold_released,
}


def hold_refused(about: About, refused: tuple[str, int, str]) -> Event:
    """Points could not be set aside: for what, how many, why."""
    reference_id, amount, reason = refused
    return _event(about, epb.HoldRefused, reference_id=reference_id, amount=amount, reason=reason)


def transfer_sent(about: About, sent: tuple[str, str, list[tuple[int, datetime | None]]]) -> Event:
    """Points left: the transfer, who gets them, and how much with which end."""
    transfer_id, to_member_id, parts = sent
    points = [epb.SentPoints(amount=amount, expire_time=timestamp_of(end)) for amount, end in parts]
    return _event(about, epb.TransferSent, transfer_id=transfer_id, to_member_id=to_member_id, points=points)


def transfer_refused(about: About, refused: tuple[str, str, str]) -> Event:
    """Points could not arrive: the transfer, its sender, why."""
    transfer_id, from_member_id, reason = refused
    return _event(
        about, epb.TransferRefused, transfer_id=transfer_id, from_member_id=from_member_id, reason=reason
    )


def transfer_returned(about: About, returned: tuple[str, str, str]) -> Event:
    """Points came back: the transfer, who did not get them, the transaction."""
    transfer_id, to_member_id, transaction_id = returned
    return _event(
        about,
        epb.TransferReturned,
        transfer_id=transfer_id,
        to_member_id=to_member_id,
        transaction_id=transaction_id,
    )


def reward_fulfilled(about: About, done: tuple[str, str]) -> Event:
    """A reward's points were credited, by a transaction."""
    return _event(about, epb.RewardFulfilled, reward_id=done[0], transaction_id=done[1])


def fulfilment_refused(about: About, refused: tuple[str, str]) -> Event:
    """A reward's points cannot be credited: why."""
    return _event(about, epb.FulfilmentRefused, reward_id=refused[0], reason=refused[1])


# --- what the brand hands in by call ------------------------------------------------------------------


def order_refunded(message: OrderRefunded, traceparent: str) -> Event:
    """A brand's refund, handed in by call."""
    return event(BRAND_STREAM, ORDER_REFUNDED, message.member_id, message.SerializeToString(), traceparent)


def order_paid(message: OrderPaid, traceparent: str) -> Event:
    """A brand's order, handed in by call."""
    return event(BRAND_STREAM, ORDER_PAID, message.member_id, message.SerializeToString(), traceparent)


def activity_reported(message: ActivityReported, traceparent: str) -> Event:
    """A brand's activity, handed in by call."""
    return event(BRAND_STREAM, ACTIVITY_REPORTED, message.member_id, message.SerializeToString(), traceparent)
