"""What takes points: redemptions, holds, transfers."""

from __future__ import annotations

from services.chassis.ids import number_of
from services.points import events, undoing
from services.points.commands import CloseHold, PlaceHold, Redeem, Send
from services.points.domain import verbs
from services.points.domain.ledger import HoldState, Transaction
from services.points.errors import HoldUnknown, TransferLimit, TransfersNotAllowed, TransferToSelf
from services.points.steps import Step

SENT = "~sent"  # counts what a member sent on a day, beside the rules' daily caps

_LET_GO = (HoldState.RELEASED, HoldState.EXPIRED)


def redeem(step: Step, command: Redeem) -> Transaction:
    """Spends points, soonest-expiring lot first. Raises InsufficientPoints."""
    return step.post(verbs.redeem(step.member, command.amount), reference_id=command.reference_id)


def place_hold(step: Step, command: PlaceHold) -> Transaction:
    """Sets points aside. Raises HoldTimeInvalid, InsufficientPoints."""
    member, reference = step.member, command.reference_id
    posting = verbs.hold(member, command.amount, reference, command.expire_time, step.scene.at)
    return step.post(posting, reference_id=reference)


def close_hold(step: Step, command: CloseHold) -> Transaction | None:
    """Spends a hold or gives it back.

    Raises HoldUnknown, and what `verbs.capture`, `verbs.release` and `undoing.give_back_capture` raise.
    """
    seq = number_of(command.hold_id) if command.hold_id else 0
    if command.placed_by:
        placed = step.seen.requests.get((command.member_id, command.placed_by))
        seq = placed.seq if placed is not None else 0
    held = next((hold for hold in step.member.holds if hold.seq == seq), None)
    if command.placed_by and command.capture is None and (held is None or held.state in _LET_GO):
        return None  # who releases by event cannot know that it was refused, or that it lapsed
    if held is None or command.hold_id not in ("", held.hold_id):
        raise HoldUnknown(hold_id=command.hold_id)
    if command.captured_by and held.state is HoldState.CAPTURED:
        return undoing.give_back_capture(step, command.captured_by)
    if command.capture is None:
        return step.post(verbs.release(step.member, held, step.scene.at), reference_id=held.hold_id)
    postings = verbs.capture(step.member, held, command.capture, step.scene.at)
    captured = step.post(next(postings), reference_id=held.hold_id)
    for rest in postings:
        step.post_own(rest, step.occur)
    return captured


def send(step: Step, command: Send) -> Transaction:
    """Sends points away. Raises TransferToSelf, TransfersNotAllowed, TransferLimit, InsufficientPoints."""
    terms = step.scene.terms
    if command.to_member_id == command.member_id:
        raise TransferToSelf
    if not terms.transfers_per_day:
        raise TransfersNotAllowed
    day = terms.local_day(step.scene.at)
    sent = step.seen.caps.get((command.member_id, day), {}).get(SENT, 0)
    if sent + command.amount > terms.transfers_per_day:
        raise TransferLimit(left=max(0, terms.transfers_per_day - sent), requested=command.amount)
    posting = verbs.send(step.member, command.amount)
    posting.programme_version = terms.version
    parts = [(amount, step.member.lot(name).expires_at) for name, amount in posting.uses.items()]
    transaction = step.post(posting, reference_id=command.to_member_id)
    step.caps[SENT, day] = command.amount
    departure = (transaction.transaction_id, command.to_member_id, parts)
    step.announce(events.transfer_sent, departure, step.occur)
    return transaction
