"""Undoing: refunds of orders, reversals, points that come back, and what became known before its cause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loyalty.orders.v1.orders_pb2 import Order

from services.chassis.errors import ServiceError
from services.chassis.ids import number_of, own_request_id
from services.points import events
from services.points.commands import RefundOrder, Returned, Reverse, TakeBack
from services.points.domain import reversal
from services.points.domain.ledger import Fact, Posting, Transaction, TransactionKind, Unit
from services.points.domain.refunds import Refunded
from services.points.domain.reversal import Past
from services.points.errors import (
    NotReversible,
    OrderUnknown,
    ReversalExceedsTransaction,
    TransactionUnknown,
)
from services.points.rules import read_order, what_remains
from services.points.steps import Step
from services.points.store import RefundRow, Sold

# --- refunds -----------------------------------------------------------------------------------------


def refund(step: Step, command: RefundOrder) -> Transaction | None:
    """Takes back what an order earned too much, or, told before its order, waits for it.

    Raises OrderUnknown, ClawbackBlocked, and what `Refunded.plus` raises.
    """
    key = (command.member_id, command.order_id)
    row = RefundRow(
        command.member_id,
        command.order_id,
        command.refund_id,
        command.body_hash,
        command.refund,
        step.occur,
    )
    rows = step.seen.refunds.setdefault(key, [])
    if key in step.seen.orders:
        posting = _refund_posting(step, row)
        transaction = step.post(
            posting, order_id=command.order_id, reference_id=command.refund_id, undoes=_earn_of(step, row)
        )
        row.seq = transaction.seq
    elif command.event is None:
        raise OrderUnknown(order_id=command.order_id)
    elif any(known.refund_id == command.refund_id for known in rows):
        return None  # it waits already
    else:
        row.event, row.body, transaction = command.event, command.body, None
        step.member.waiting += 1
    rows.append(row)
    step.rows.append(row)
    return transaction


def apply_waiting(step: Step, order_id: str) -> None:
    """Applies the refunds that came before their order; one that it cannot bear becomes a dead letter."""
    rows = step.seen.refunds.get((step.member.member_id, order_id), [])
    for row in sorted(rows, key=lambda row: (row.refund_time, row.refund_id)):
        if row.seq is not None:
            continue
        step.member.waiting -= 1
        try:
            posting = _refund_posting(step, row)
        except ServiceError as refusal:
            rows.remove(row)
            step.refused.append((row, refusal))
            continue
        request_id = own_request_id(events.ORDER_REFUNDED, order_id, row.refund_id)
        transaction = step.post_own(
            posting,
            row.refund_time,
            request_id=request_id,
            payload_hash=row.body_hash,
            order_id=order_id,
            reference_id=row.refund_id,
            undoes=_earn_of(step, row),
        )
        step.seen.requests[row.member_id, request_id] = transaction
        row.seq, row.body = transaction.seq, None
        step.rows.append(row)


def _earn_of(step: Step, row: RefundRow) -> Past:
    return step.seen.pasts[row.member_id, step.seen.orders[row.member_id, row.order_id][0].seq]


def _refund_posting(step: Step, row: RefundRow) -> Posting:
    past = _earn_of(step, row)
    sold = step.seen.sold[row.member_id, past.transaction.seq]
    order = None if sold.body is None else Order.FromString(sold.body)
    state = Refunded()
    lines = None if order is None else {line.line_id: line.amount_minor for line in order.lines}
    known = step.seen.refunds.get((row.member_id, row.order_id), ())
    applied = [(each.seq, each.refund) for each in known if each.seq is not None]
    # In the order in which they came: one may have been of all that was left.
    for _, before in sorted(applied, key=lambda each: each[0]):
        state = state.plus(before, dict.fromkeys(before.lines, sold.total), sold.total)
    state = state.plus(row.refund, lines, sold.total)
    targets = _worth(step, past.transaction, sold, order, state)
    posting = reversal.refund(step.member, past, targets, step.scene.terms, step.scene.at)
    posting.programme_version = step.scene.terms.version
    return posting


def _worth(
    step: Step, earn: Transaction, sold: Sold, order: Order | None, refunded: Refunded
) -> dict[Unit, int]:
    """What all refunds together take back: what was earned less what the rest of the order would earn."""
    earned = dict.fromkeys(Unit, 0)
    for gain in earn.contributions:
        earned[gain.unit] += gain.amount
    kept = dict.fromkeys(Unit, 0)
    if order is None:  # erased: its lines are not known any more, so in proportion
        unpaid = 0 if refunded.nothing_left(sold.total) else sold.total - refunded.total
        kept = {unit: amount * unpaid // max(sold.total, 1) for unit, amount in earned.items()}
    else:
        rest = what_remains(read_order(order), refunded)
        if rest is not None:
            programme = step.scene.programmes[earn.programme_version]
            for left in programme.gains(rest, earn.occur_time, sold.tier, sold.facts, sold.used):
                kept[left.unit] += left.amount
    return {unit: amount - min(amount, kept[unit]) for unit, amount in earned.items()}


# --- reversals ---------------------------------------------------------------------------------------


def reverse(step: Step, command: Reverse) -> Transaction | None:
    """Undoes a transaction, or part of it. Raises TransactionUnknown, and what `reversal.reverse` raises."""
    if command.made_by and (command.member_id, command.made_by) not in step.seen.requests:
        # What an event takes back was not given yet: two replicas may hear of it the other way round.
        at = step.scene.at
        step.member.facts = step.member.remembered(at) | {
            never_given(command.made_by): Fact("", "", at, at, 0, 0)
        }
        step.told = True
        return None
    past = _past(step, command.transaction_id, command.made_by)
    if past.transaction.kind is TransactionKind.SEND:  # its receiver may have it already
        raise NotReversible(transaction_id=past.transaction.transaction_id, kind=past.transaction.kind.value)
    return _undo(step, past, command.amounts)


def give_back(step: Step, returned: Returned) -> Transaction:
    """Gives points back to the lots that what is returned had spent; the answer is its first part.

    What pays it is known by what was earned on it. It may have cost more: the worth of what it took the
    place of, which had spent its points before. So what is missing comes of the captures before, or of
    any other, newest first: all that comes back was spent by such. Raises ReversalExceedsTransaction.
    """
    left, parts = returned.amount, list[Transaction]()
    for past in _captures(step, returned):
        amount = min(left, past.left(Unit.POINTS))
        if not amount:
            continue
        # The first part has the command's own request_id, by which a repeat is known.
        own = own_request_id(step.command.request_id, past.transaction.transaction_id) if parts else ""
        amounts = {Unit.POINTS: amount}
        parts.append(_undo(step, past, amounts, request_id=own, reference_id=returned.for_id))
        left -= amount
    if left:
        there = returned.amount - left
        raise ReversalExceedsTransaction(unit=Unit.POINTS.value, left=there, requested=returned.amount)
    return parts[0]


def give_back_capture(step: Step, made_by: str) -> Transaction:
    """Gives back what a request captured. Raises TransactionUnknown, and what `reversal.reverse` raises."""
    return _undo(step, _past(step, "", made_by), {})


def _captures(step: Step, returned: Returned) -> list[Past]:
    """What events had spent: first for what is returned, then for all else, newest first each."""
    member_id = step.member.member_id
    earned = (step.seen.activities.get((member_id, activity)) for activity in returned.activities)
    bought = {bonus.reference_id for bonus, _ in filter(None, earned)} - {""}
    holds = {hold.hold_id for hold in step.member.holds if hold.reference_id in bought}
    captures = [
        past
        for (whose, _), past in step.seen.pasts.items()
        if whose == member_id and past.transaction.kind is TransactionKind.CAPTURE
    ]
    return sorted(
        (past for past in captures if past.transaction.request_id.startswith("~")),
        key=lambda past: (past.transaction.reference_id in holds, past.transaction.seq),
        reverse=True,
    )


def _past(step: Step, transaction_id: str, made_by: str = "") -> Past:
    key = (step.member.member_id, number_of(transaction_id) if transaction_id else 0)
    if made_by:
        made = step.seen.requests.get((step.member.member_id, made_by))
        key = (step.member.member_id, made.seq if made is not None else 0)
    past = step.seen.pasts.get(key)
    if past is None or transaction_id not in ("", past.transaction.transaction_id):
        raise TransactionUnknown(transaction_id=transaction_id)
    return past


def _undo(step: Step, past: Past, amounts: Mapping[Unit, int], **fields: Any) -> Transaction:
    posting = reversal.reverse(step.member, past, amounts, step.scene.terms, step.scene.at)
    posting.programme_version = step.scene.terms.version
    return step.post(posting, undoes=past, **fields)


def take_back(step: Step, command: TakeBack) -> Transaction:
    """Brings points back that could not arrive. Raises TransactionUnknown, ReversalExceedsTransaction."""
    transaction = _undo(step, _past(step, command.transfer_id), {})
    returned = (command.transfer_id, command.to_member_id, transaction.transaction_id)
    step.announce(events.transfer_returned, returned, step.occur)
    return transaction


def never_given(request_id: str) -> str:
    """Among a member's facts: what was asked for with this request is not to be given any more."""
    return f"never/{request_id}"
