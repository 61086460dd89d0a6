"""Selling periods: orders and gifts, what becomes of payments and of points, and money that goes back.

The credit of an upgrade is fixed in its order. While the order waits for its payment, any change of the card
cancels it; once points are being spent on it the card can neither be given back nor be upgraded again, and
should something of worth have joined the card meanwhile, the period queues instead.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime

from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import chains, codes, events, messages, orders, renewing
from services.cards.commands import (
    ActivateGift,
    CancelOrder,
    ConfirmPayment,
    GiftOrder,
    HoldCaptured,
    HoldEnded,
    HoldPlaced,
    PlaceOrder,
    RecordRefundPaid,
    ReturnGift,
)
from services.cards.domain import cards, payments
from services.cards.domain.cards import Credit, Ending, Gift
from services.cards.domain.payments import Circumstances, OrderStatus, RefundReason, Settlement
from services.cards.domain.periods import days_after
from services.cards.domain.wallet import GiftClaim, KeptOrder, KeptPayment, PaymentClaim
from services.cards.errors import (
    ChainTooLong,
    GiftCodeUnknown,
    NotAGift,
    OrderSettling,
    RefundAmountMismatch,
    RefundClosed,
    RefundUnknown,
    UpgradeNotAllowed,
)
from services.cards.steps import Step
from services.chassis.ids import own_request_id
from services.chassis.timestamps import timestamp

# --- ordering -----------------------------------------------------------------------------------------


def place_order(step: Step, command: PlaceOrder) -> pb.CardOrder:
    """Orders a period.

    Raises ProductUnknown, what `price_of` raises, ChainTooLong, UpgradeNotAllowed, UpgradeUnitMismatch,
    CreditExceedsPrice, OrderSettling.
    """
    compiled = step.compiled(command.product_code)
    product = compiled.product
    price = orders.price_of(step, compiled, by_points=command.by_points)
    kept = step.card_of(product.family)
    # Where nothing runs there is nothing to end: an upgrade is an order like any other.
    upgrade = command.upgrade_now and kept is not None and bool(_live(step, product.family))
    credit = 0
    if upgrade:
        if not product.upgrade_now:
            raise UpgradeNotAllowed
        if orders.upgrade_settles(step, product.family):
            raise OrderSettling
        price, credit = cards.upgrade_price(price, _credit(step, product.family), by_points=command.by_points)
    else:
        orders.check_room(step, product.family)
    order = orders.open_order(
        step, product, price, by_points=command.by_points, credit=credit, upgrade_now=upgrade
    )
    if not price:  # the credit pays it
        order = _pay(step, order, step.at)
    return messages.card_order(command.member_id, order, step.at)


def gift_order(step: Step, command: GiftOrder) -> pb.GiftCardResponse:
    """Orders a period for somebody else; its code is made on the way out, and only its hash is kept.

    Raises ProductUnknown, NotAGift, what `price_of` raises.
    """
    compiled = step.compiled(command.product_code)
    product = compiled.product
    if not product.gift_claim_days:
        raise NotAGift
    price = orders.price_of(step, compiled, by_points=command.by_points)
    order = orders.open_order(step, product, price, by_points=command.by_points, gift=True)
    claim = GiftClaim(
        code_hash=codes.hash_of(codes.make(step.scene.terms.gift_code_key, order.order_id)),
        giver_id=command.member_id,
        order_id=order.order_id,
        product_code=product.code,
        product_version=product.version,
        claim_until=days_after(step.at, product.gift_claim_days, step.zone),
    )
    step.gifts[claim.code_hash] = claim
    return pb.GiftCardResponse(
        order=messages.card_order(command.member_id, order, step.at),
        claim_until_time=timestamp(claim.claim_until),
    )


def cancel_order(step: Step, command: CancelOrder) -> pb.CardOrder:
    """Cancels an order that is not paid, and with that of a renewal what was signed.

    Raises CardOrderUnknown, OrderSettling, OrderPaid.
    """
    kept = step.order(command.order_id)
    cancelled = payments.cancel(kept.order, step.at)
    if cancelled is not kept.order:
        kept = orders.end(step, kept, cancelled)
        if kept.renewal_id:  # it could only be charged by this order
            renewing.end(step, kept.card_id)
    return messages.card_order(command.member_id, kept, step.at)


def _live(step: Step, family: str) -> list[cards.Segment]:
    kept = step.card_of(family)
    return kept.card.as_of(step.at, step.zone).live(step.at) if kept else []


def _credit(step: Step, family: str) -> Credit:
    kept = step.card_of(family)
    return cards.unused_credit(kept.card, step.at, step.zone) if kept else Credit(0, 0)


# --- paid by money ------------------------------------------------------------------------------------


def body_hash(command: ConfirmPayment) -> bytes:
    """What was told of a payment, its member included: the same payment told otherwise is refused."""
    told = command.payment
    parts = (
        *(command.member_id, command.order_id, command.channel, command.payment_id),
        *(str(told.amount_minor), told.currency_code, told.paid.isoformat()),
    )
    return hashlib.sha256("\0".join(parts).encode()).digest()


def own_name(command: ConfirmPayment) -> str:
    """The request_id under which the first answer to a payment is kept, besides that of its teller."""
    return own_request_id("payment", command.channel, command.payment_id)


def confirm_payment(step: Step, command: ConfirmPayment) -> pb.ConfirmPaymentResponse:
    """Applies a payment that nobody told of before, or has it paid back. Refuses none."""
    told = command.payment
    kept = step.wallet.orders.get(command.order_id)
    reason = _why_not(step, kept, command)
    payment = KeptPayment(
        channel=command.channel,
        payment_id=command.payment_id,
        order_id=command.order_id,
        payment=told,
        applied=reason is None,
        due=told.amount_minor if reason else 0,
        create_time=step.at,
    )
    step.payment_claims[payment.name] = PaymentClaim(
        channel=payment.channel,
        payment_id=payment.payment_id,
        member_id=command.member_id,
        payload_hash=body_hash(command),
    )
    answer = pb.ConfirmPaymentResponse()
    if reason is not None:
        chains.make_due(step, payment, reason)
        answer.outcome, answer.reason = pb.PAYMENT_OUTCOME_REFUND_DUE, events.DUE_REASONS[reason]
    elif kept is not None:
        step.keep(payment)
        kept = _pay(step, kept, told.paid)
        answer.outcome = pb.PAYMENT_OUTCOME_APPLIED
        if kept.card_id and not kept.gift:
            answer.card.CopyFrom(chains.shown(step, kept.card_id))
    if kept is not None:
        answer.order.CopyFrom(messages.card_order(command.member_id, kept, step.at))
    return answer


def _why_not(step: Step, kept: KeptOrder | None, command: ConfirmPayment) -> RefundReason | None:
    """Why a payment has to be paid back; None where it pays its order."""
    told = command.payment
    if kept is None:
        return payments.refund_reason(None, told, Circumstances())
    around = Circumstances(
        slot_left=orders.slot_left(step, kept), chargeable=renewing.chargeable(step, kept, told)
    )
    reason = payments.refund_reason(kept.order, told, around)
    if reason is None and not _fits(step, kept):
        return RefundReason.ORDER_EXPIRED  # paid in time, told too late: the card has changed or is full
    return reason


def _fits(step: Step, kept: KeptOrder) -> bool:
    """Whether there is still what an order was made for, which is told of after its deadline."""
    if kept.gift or kept.order.status is OrderStatus.PENDING_PAYMENT:
        return True
    if kept.upgrade_now:
        return _upgrade_stands(step, kept)
    try:
        orders.check_room(step, kept.family)
    except ChainTooLong:
        return False
    return True


def _upgrade_stands(step: Step, kept: KeptOrder) -> bool:
    """Whether the credit of an upgrade covers what it ends, and nothing that it was for has ended."""
    card, credit = step.card_of(kept.family), _credit(step, kept.family)
    own, other = (credit.points, credit.minor) if kept.order.by_points else (credit.minor, credit.points)
    covers = own <= kept.credit and not other
    if kept.order.status is OrderStatus.SETTLING:
        return covers  # meanwhile nothing is given back, and nothing upgraded
    ended = (
        one.ending in (Ending.REFUNDED, Ending.REPLACED)
        and one.ended_at is not None
        and one.ended_at >= kept.create_time
        for one in (card.card.segments if card else ())
    )
    return covers and not any(ended)


def _pay(step: Step, kept: KeptOrder, paid: datetime) -> KeptOrder:
    """An order is paid: its period is the member's, or a gift can be claimed."""
    late = kept.order.status is not OrderStatus.PENDING_PAYMENT
    if kept.upgrade_now and late and not _upgrade_stands(step, kept):
        kept = replace(kept, upgrade_now=False, credit=0)  # its points are spent: it queues instead
    if kept.capped:
        orders.take_slot(step, kept, firm=True)
    kept = replace(kept, order=payments.paid(kept.order))
    step.keep(kept)
    if kept.gift:
        claim = _gift_of(step, kept.order_id)
        step.gifts[claim.code_hash] = replace(claim, paid=True)
        return kept
    renewing.charged(step, kept)
    cost = kept.credit + (kept.order.amount_minor or kept.order.amount_points)
    card, _ = chains.add_period(
        step,
        step.product(kept.product_code, kept.product_version),
        paid,
        minor=0 if kept.order.by_points else cost,
        points=cost if kept.order.by_points else 0,
        order_id=kept.order_id,
        upgrade_now=kept.upgrade_now,
    )
    kept = replace(kept, card_id=card.card_id)
    step.keep(kept)
    return kept


# --- paid by points -----------------------------------------------------------------------------------


def hold_placed(step: Step, command: HoldPlaced) -> None:
    """Points are set aside: they are spent, or released where the order no longer waits for them."""
    kept = step.wallet.orders.get(command.order_id)
    if kept is None or not kept.order.by_points:
        return  # set aside for something else
    order, settlement = payments.hold_placed(kept.order, step.at, slot_left=orders.slot_left(step, kept))
    if settlement is Settlement.CAPTURE:
        kept = replace(kept, order=order)
        step.keep(kept)
        orders.take_slot(step, kept, firm=True)
        if kept.upgrade_now:
            orders.cancel_upgrades(step, kept.family, but=kept.order_id)
    elif order is not kept.order:
        kept = orders.end(step, kept, order)
    if settlement is not None:
        step.announce(kept, events.card_order_settled, (kept.order_id, settlement))


def hold_ended(step: Step, command: HoldEnded) -> None:
    """Points were refused or came back: the order ends."""
    kept = step.wallet.orders.get(command.order_id)
    if kept is None or not kept.order.by_points:
        return
    order = payments.hold_ended(kept.order, command.reason)
    if order is not kept.order:
        orders.end(step, kept, order)


def hold_captured(step: Step, command: HoldCaptured) -> None:
    """Points were spent: the period is the member's, whatever the time."""
    kept = step.wallet.orders.get(command.order_id)
    if kept is not None and kept.order.by_points and payments.hold_captured(kept.order)[1]:
        _pay(step, kept, command.capture_time)


# --- gifts --------------------------------------------------------------------------------------------


def activate_gift(step: Step, command: ActivateGift) -> pb.Card:
    """Claims a gift. Raises GiftCodeUnknown, what `check_claim` raises, ChainTooLong."""
    claim = step.gift(command.code_hash)
    if claim is None:
        raise GiftCodeUnknown
    Gift(claim.paid, claim.claim_until, bool(claim.claimed_by), claim.refunded).check_claim(step.at)
    product = step.product(claim.product_code, claim.product_version)
    orders.check_room(step, product.family)
    kept, _ = chains.add_period(step, product, step.at, order_id=claim.order_id, gift=True)
    step.gifts[claim.code_hash] = replace(claim, claimed_by=command.member_id, claim_time=step.at)
    return chains.shown(step, kept.card_id)


def return_gift(step: Step, command: ReturnGift) -> None:
    """Gives back what a gift cost that nobody claimed in time: money, or points."""
    claim = _gift_of(step, command.order_id)
    if not claim.paid or claim.claimed_by or claim.refunded or step.at < claim.claim_until:
        return
    step.gifts[claim.code_hash] = replace(claim, refunded=True)
    for payment in list(step.wallet.payments.values()):
        if payment.order_id == command.order_id and payment.applied:
            chains.make_due(step, replace(payment, due=payment.payment.amount_minor))
    kept = step.order(command.order_id)
    if kept.order.by_points:
        step.announce(kept, events.card_order_settled, (kept.order_id, Settlement.RELEASE))


def _gift_of(step: Step, order_id: str) -> GiftClaim:
    return next(
        claim for claim in (step.scene.seen.gifts | step.gifts).values() if claim.order_id == order_id
    )


# --- money that goes back -----------------------------------------------------------------------------


def record_refund_paid(step: Step, command: RecordRefundPaid) -> pb.RecordRefundPaidResponse:
    """Closes what was due of a payment. Raises RefundUnknown, RefundClosed, RefundAmountMismatch."""
    payment = step.wallet.payments.get((command.channel, command.payment_id))
    if payment is None or not payment.due:
        raise RefundUnknown
    if payment.refund_id:
        raise RefundClosed
    if (command.amount_minor, command.currency_code) != (payment.due, payment.payment.currency_code):
        raise RefundAmountMismatch(due=payment.due)
    step.keep(replace(payment, refund_id=command.refund_id, closed=step.at))
    return pb.RecordRefundPaidResponse(close_time=timestamp(step.at))
