"""Signed renewals: each period's end is renewed once, by an order that is made when the member was told.

A renewal is for the end of a card's last period. When that moves, because a period was added or taken, or
the card rests, it is closed, with its order, and another is signed for the new end: what the member was told
of the old one is void. While the card rests there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial

from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import events, messages, orders
from services.cards.commands import CancelAutoRenew, RecordNotice, SetAutoRenew
from services.cards.domain import payments, renewals
from services.cards.domain.cards import CardStatus, Segment
from services.cards.domain.payments import Payment
from services.cards.domain.renewals import Renewal, RenewalStatus
from services.cards.domain.wallet import Contract, KeptCard, KeptOrder, KeptRenewal, Wallet
from services.cards.errors import (
    AutoRenewSigned,
    CardNotActive,
    NotForMoney,
    ProductUnknown,
    ProductWithdrawn,
    RenewalUnknown,
)
from services.cards.steps import Step
from services.chassis.due import Due
from services.chassis.ids import new_id


def products(wallet: Wallet) -> set[str]:
    """What a member's renewals buy, in the latest version."""
    return {kept.contract.product_code for kept in wallet.cards.values() if kept.contract is not None}


# --- by call ------------------------------------------------------------------------------------------


def set_auto_renew(step: Step, command: SetAutoRenew) -> pb.Renewal:
    """Signs the renewal of a card.

    Raises CardUnknown, CardNotActive, AutoRenewSigned, ProductUnknown, ProductWithdrawn, NotForMoney.
    """
    card = step.card(command.card_id)
    running = card.card.running(step.at, step.zone)
    if running is None:
        raise CardNotActive(card_id=card.card_id)
    if card.contract is not None:
        raise AutoRenewSigned(card_id=card.card_id)
    code = command.product_code or running.product_code
    product = step.product(code)
    if product.family != card.family:
        raise ProductUnknown(code=code)
    if product.withdrawn:
        raise ProductWithdrawn(code=code)
    if not product.price_minor:
        raise NotForMoney(code=code)
    contract = Contract(contract_id=command.contract_id, product_code=code, sign_time=command.sign_time)
    step.keep(replace(card, contract=contract))
    follow(step, card.card_id)
    signed = _open(step, card.card_id)
    assert signed is not None  # noqa: S101 - a card that runs has an end to renew
    return messages.renewal(signed, step.at, step.zone)


def record_notice(step: Step, command: RecordNotice) -> pb.Renewal:
    """Keeps that the member was told, and orders what may then be charged.

    Raises RenewalUnknown, RenewalClosed, NoticeNotDue, NoticeRecorded, NoticeTimeAhead.
    """
    kept = step.wallet.renewals.get(command.renewal_id)
    if kept is None:
        raise RenewalUnknown(renewal_id=command.renewal_id)
    noticed = renewals.record_notice(
        kept.renewal, command.notice_time, command.amount_minor, step.at, step.zone
    )
    order = orders.open_order(
        step,
        step.product(kept.product_code),
        noticed.amount_minor,
        renewal_id=kept.renewal_id,
        pay_deadline=noticed.charge_until,
    )
    kept = replace(kept, renewal=noticed, order_id=order.order_id, medium=command.medium)
    step.keep(kept)
    return messages.renewal(kept, step.at, step.zone)


def cancel_auto_renew(step: Step, command: CancelAutoRenew) -> pb.CancelAutoRenewResponse:
    """Ends a signed renewal. Raises CardUnknown."""
    ended = end(step, command.card_id)
    card = step.card(command.card_id)
    return pb.CancelAutoRenewResponse(
        card=messages.card(step.wallet.member_id, card, step.at, step.zone),
        renewal=None if ended is None else messages.renewal(ended, step.at, step.zone),
    )


# --- by payment ---------------------------------------------------------------------------------------


def chargeable(step: Step, order: KeptOrder, payment: Payment) -> bool:
    """Whether a renewal, if it is for one, lets a payment be kept: by when it was paid, also if told late."""
    if not order.renewal_id:
        return True
    kept = step.wallet.renewals.get(order.renewal_id)
    if kept is None:
        return False
    coming = kept.renewal
    if coming.outcome is RenewalStatus.FAILED:  # it was, unless this was paid in time
        coming = replace(coming, outcome=None)
    return coming.allows(payment.amount_minor, payment.paid, step.zone)


def charged(step: Step, order: KeptOrder) -> None:
    """Closes the renewal, if any, that an order paid. The next one follows from the card's new end."""
    kept = step.wallet.renewals.get(order.renewal_id)
    if kept is not None:
        step.keep(replace(kept, renewal=renewals.charged(kept.renewal)))


# --- what follows from the card -----------------------------------------------------------------------


def follow(step: Step, card_id: str) -> None:
    """Has the open renewal be that of the card's end as it is now: closes that of another end, and signs."""
    card, kept = step.card(card_id), _open(step, card_id)
    last = _last(step, card)
    if card.contract is None or (kept and last and kept.segment_id == last.segment_id):
        return
    if kept is not None:
        _close(step, kept)
    if last is not None:
        _sign(step, card, card.contract, last)
        return
    rests = card.card.status(step.at, step.zone) is CardStatus.FROZEN
    step.keep(replace(card, contract=replace(card.contract, until=None) if rests else None))


def end(step: Step, card_id: str) -> KeptRenewal | None:
    """Ends a signed renewal; what was open of it, closed. Raises CardUnknown."""
    card, kept = step.card(card_id), _open(step, card_id)
    if card.contract is not None:
        step.keep(replace(card, contract=None))
    return None if kept is None else _close(step, kept)


def _sign(step: Step, card: KeptCard, contract: Contract, last: Segment) -> None:
    """Signs the renewal of a card's end; what money no longer buys ends the contract."""
    product = step.product(contract.product_code)
    if not product.price_minor:
        step.keep(replace(card, contract=None))
        return
    coming = Renewal.of(last.over, last.grace_days, product.price_minor, step.zone)
    kept = KeptRenewal(
        renewal_id=new_id("rnw"),
        renewal=coming,
        card_id=card.card_id,
        segment_id=last.segment_id,
        product_code=product.code,
        currency_code=product.currency_code,
    )
    step.keep(kept)
    step.keep(replace(card, contract=replace(contract, until=coming.charge_until)))


def _close(step: Step, kept: KeptRenewal) -> KeptRenewal:
    """It will not be charged, and its order cannot be paid."""
    closed = replace(kept, renewal=replace(kept.renewal, outcome=RenewalStatus.CANCELLED))
    step.keep(closed)
    order = step.wallet.orders.get(kept.order_id)
    if order is not None:
        orders.end(step, order, payments.cancel(order.order, step.at))
    return closed


def _open(step: Step, card_id: str) -> KeptRenewal | None:
    """The renewal of a card that is not over."""
    found = (kept for kept in step.wallet.renewals.values() if kept.card_id == card_id)
    return next((kept for kept in found if kept.renewal.outcome is None), None)


def _last(step: Step, card: KeptCard) -> Segment | None:
    """The period whose end is to be renewed: none while the card rests, or where it was given back."""
    if card.card.status(step.at, step.zone) in (CardStatus.FROZEN, CardStatus.REFUNDED):
        return None
    present = card.card.as_of(step.at, step.zone)
    return next(one for one in reversed(present.segments) if one.start < one.over)


# --- by the clock -------------------------------------------------------------------------------------


def upcoming(step: Step) -> Iterator[Due]:
    """Renewals that the member is to be told of, unless it is too late for that, and those that fail."""
    for kept in step.wallet.renewals.values():
        coming = kept.renewal
        if coming.outcome is not None:
            continue
        if not kept.told and coming.noticed is None and step.at < coming.charge_until:
            yield Due(coming.notice_due, partial(_tell, step, kept))
        yield Due(coming.charge_until, partial(_fail, step, kept))


def _tell(step: Step, kept: KeptRenewal, moment: datetime) -> None:
    step.announce(step.card(kept.card_id), events.renewal_due, kept, moment)
    step.keep(replace(kept, told=True))


def _fail(step: Step, kept: KeptRenewal, _: datetime) -> None:
    """It was not charged in time, and with that the contract ends."""
    step.keep(replace(kept, renewal=replace(kept.renewal, outcome=RenewalStatus.FAILED)))
    step.keep(replace(step.card(kept.card_id), contract=None))
