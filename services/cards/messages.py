"""Messages of the contract: requests as commands, and what is kept as calls are answered with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_events_pb2 import REFUND_DUE_REASON_UNSPECIFIED

from services.cards import events, store
from services.cards.domain import basket, refunds
from services.cards.domain.cards import CardStatus, Ending, Segment
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.payments import OrderStatus
from services.cards.domain.products import BenefitKind
from services.cards.domain.quotas import UseStatus
from services.cards.domain.renewals import RenewalStatus
from services.cards.domain.wallet import KeptCard, KeptOrder, KeptPayment, KeptRenewal, KeptUse
from services.chassis.asked import by_call
from services.chassis.database import Row
from services.chassis.timestamps import timestamp, timestamp_of

SERVICE = "/loyalty.cards.v1.CardsService/"
"""What the path of a method begins with."""


SHOWN = 100  # periods of a card in an answer

KINDS = {kind: pb.BenefitKind.Value(f"BENEFIT_KIND_{kind}") for kind in BenefitKind}
STATUSES = {status: pb.CardStatus.Value(f"CARD_STATUS_{status}") for status in CardStatus}
ENDINGS = {ending: pb.SegmentEnd.Value(f"SEGMENT_END_{ending}") for ending in Ending}
ORDER_STATUSES = {status: pb.CardOrderStatus.Value(f"CARD_ORDER_STATUS_{status}") for status in OrderStatus}
STEP_KINDS = {kind: pb.RefundStepKind.Value(f"REFUND_STEP_KIND_{kind}") for kind in refunds.StepKind}
NOTES = {note: pb.QuoteNote.Value(f"QUOTE_NOTE_{note}") for note in basket.Note}
RENEWAL_STATUSES = {status: pb.RenewalStatus.Value(f"RENEWAL_STATUS_{status}") for status in RenewalStatus}
USE_STATUSES = {
    UseStatus.RESERVED: pb.REDEMPTION_STATUS_RESERVED,
    UseStatus.CONFIRMED: pb.REDEMPTION_STATUS_CONFIRMED,
    UseStatus.REVERSED: pb.REDEMPTION_STATUS_REVERSED,
}


# --- requests as commands -----------------------------------------------------------------------------


def asked(method: str, request: Any) -> dict[str, Any]:
    """What every command has, by the request."""
    return by_call(SERVICE + method, request)


# --- what is kept, as messages: products and cards ----------------------------------------------------


def product(row: Row) -> pb.Product:
    """A version of a product, as it was put."""
    return pb.Product.FromString(row["body"])


def card(member_id: str, kept: KeptCard, at: datetime, zone: ZoneInfo) -> pb.Card:
    """A card as of an instant."""
    present = kept.card.as_of(at, zone)
    held = [one for one in present.segments if one.start < one.over] or list(present.segments)
    last = held[-1]
    return pb.Card(
        card_id=kept.card_id,
        member_id=member_id,
        family=kept.family,
        status=STATUSES[kept.card.status(at, zone)],
        start_time=timestamp(_chain_start(held, at)),
        end_time=timestamp(_end(last)),
        segments=[segment(one, kept.saved) for one in present.segments[-SHOWN:]],
        auto_renew=kept.renews(at),
        saved_minor=sum(kept.saved.values()),
        currency_code=kept.currency_code,
        streak=last.streak,
        resume_time=None if present.rest is None else timestamp(present.rest.until),
        version=kept.version,
    )


def segment(one: Segment, saved: Mapping[str, int]) -> pb.Segment:
    """A period, of a card as of an instant; `saved` is in minor units, by period."""
    return pb.Segment(
        segment_id=one.segment_id,
        product_code=one.product_code,
        product_version=one.product_version,
        start_time=timestamp(one.start),
        end_time=timestamp(_end(one)),
        paid_minor=one.paid_minor,
        paid_points=one.paid_points,
        ended=ENDINGS[one.ending] if one.ending else pb.SEGMENT_END_UNSPECIFIED,
        saved_minor=saved.get(one.segment_id, 0),
    )


def _end(one: Segment) -> datetime:
    """When a period is over; one that never held is over at its start."""
    return max(one.over, one.start)


def _chain_start(held: Sequence[Segment], at: datetime) -> datetime:
    """When the chain without gaps began that runs, or is queued, or was the last."""
    current = next((index for index, one in enumerate(held) if at < one.over), len(held) - 1)
    start = held[current].start
    for before, after in reversed(list(pairwise(held[: current + 1]))):
        if before.over != after.start:
            break
        start = before.start
    return start


def savings(kept: KeptCard, found: Sequence[store.Saving]) -> pb.Savings:
    """What the uses of a card say that they saved, also of the whole: one may have come since it was read."""
    saved: Counter[str] = Counter()
    uses: dict[str, list[store.Saving]] = {}
    for one in found:
        saved[one.segment_id] += one.saved_minor
        uses.setdefault(one.segment_id, []).append(one)
    return pb.Savings(
        card_id=kept.card_id,
        saved_minor=saved.total(),
        currency_code=kept.currency_code,
        segments=[
            pb.SegmentSavings(
                segment_id=one.segment_id,
                paid_minor=one.paid_minor,
                saved_minor=saved[one.segment_id],
                benefits=[
                    pb.BenefitSavings(
                        benefit_code=use.benefit_code, uses=use.uses, saved_minor=use.saved_minor
                    )
                    for use in uses.get(one.segment_id, ())
                ],
            )
            for one in kept.card.segments[-SHOWN:]
        ],
    )


def refund_quote(found: refunds.RefundQuote, currency_code: str) -> pb.RefundQuote:
    """What giving a card back gives."""
    return pb.RefundQuote(
        refund_minor=found.minor,
        currency_code=currency_code,
        refund_points=found.points,
        explanation=[
            pb.RefundStep(
                segment_id=step.segment_id,
                kind=STEP_KINDS[step.kind],
                amount=step.amount,
                count=step.count,
                of_count=step.of_count,
            )
            for step in found.steps
        ],
    )


# --- orders and renewals ------------------------------------------------------------------------------


def card_order(member_id: str, kept: KeptOrder, at: datetime) -> pb.CardOrder:
    """An order as of an instant."""
    order = kept.order
    return pb.CardOrder(
        order_id=kept.order_id,
        member_id=member_id,
        product_code=kept.product_code,
        product_version=kept.product_version,
        pay_with=pb.PAY_WITH_POINTS if order.by_points else pb.PAY_WITH_MONEY,
        upgrade=pb.UPGRADE_NOW if kept.upgrade_now else pb.UPGRADE_QUEUE,
        amount_minor=order.amount_minor,
        currency_code=order.currency_code,
        amount_points=order.amount_points,
        credit=kept.credit,
        status=ORDER_STATUSES[order.status_at(at)],
        pay_deadline_time=timestamp(order.pay_deadline),
        create_time=timestamp(kept.create_time),
        end_reason=order.end_reason,
        card_id=kept.card_id if order.status is OrderStatus.PAID else "",
        renewal_id=kept.renewal_id,
        gift=kept.gift,
    )


def renewal(kept: KeptRenewal, at: datetime, zone: ZoneInfo) -> pb.Renewal:
    """A renewal as of an instant."""
    coming = kept.renewal
    return pb.Renewal(
        renewal_id=kept.renewal_id,
        card_id=kept.card_id,
        segment_id=kept.segment_id,
        product_code=kept.product_code,
        amount_minor=coming.amount_minor,
        currency_code=kept.currency_code,
        status=RENEWAL_STATUSES[coming.status(at, zone)],
        notice_due_time=timestamp(coming.notice_due),
        notice_deadline_time=timestamp(coming.notice_deadline),
        notice_time=timestamp_of(coming.noticed),
        charge_time=timestamp(coming.chargeable_from(zone) or coming.charge),
        charge_until_time=timestamp(coming.charge_until),
        order_id=kept.order_id,
    )


def payment(kept: KeptPayment) -> pb.ExportedPayment:
    """A payment that was told."""
    told = kept.payment
    return pb.ExportedPayment(
        channel=kept.channel,
        payment_id=kept.payment_id,
        order_id=kept.order_id,
        amount_minor=told.amount_minor,
        currency_code=told.currency_code,
        paid_time=timestamp(told.paid),
        outcome=pb.PAYMENT_OUTCOME_APPLIED if kept.applied else pb.PAYMENT_OUTCOME_REFUND_DUE,
        reason=events.DUE_REASONS[kept.reason] if kept.reason else REFUND_DUE_REASON_UNSPECIFIED,
    )


# --- benefits -----------------------------------------------------------------------------------------


def entitlements(found: Iterable[Entitlement]) -> pb.CheckEntitlementsResponse:
    """What a member may use, by card and benefit."""
    return pb.CheckEntitlementsResponse(
        entitlements=[
            pb.Entitlement(
                card_id=one.card_id,
                benefit_code=one.benefit.code,
                kind=KINDS[one.benefit.kind],
                value=one.benefit.value,
                limited=one.remaining is not None,
                remaining=one.remaining or 0,
                reset_time=timestamp_of(one.reset),
                valid_until_time=timestamp(one.valid_until),
            )
            for one in sorted(found, key=lambda one: (one.card_id, one.benefit.code))
        ]
    )


def quote(found: basket.Quote, currency_code: str) -> pb.Quote:
    """The best price of an order."""
    return pb.Quote(
        lines=[
            pb.QuotedLine(line_id=line.line_id, pay_minor=line.pay, uses=_line_uses(line.uses))
            for line in found.lines
        ],
        delivery_pay_minor=found.delivery_pay,
        delivery_uses=_line_uses(found.delivery_uses),
        saved_minor=found.saved,
        currency_code=currency_code,
        exact=found.exact,
        saved_bound_minor=found.bound,
        explanation=[
            pb.QuoteStep(
                note=NOTES[step.note],
                line_id=step.line_id,
                card_id=step.offer.card_id,
                benefit_code=step.offer.code,
                quantity=step.quantity,
                before_minor=step.before,
                after_minor=step.after,
            )
            for step in found.steps
        ],
        taken=[
            pb.TakenBenefit(
                card_id=one.offer.card_id, benefit_code=one.offer.code, uses=one.uses, saved_minor=one.saved
            )
            for one in found.taken
        ],
    )


def _line_uses(uses: Iterable[basket.LineUse]) -> list[pb.BenefitUse]:
    return [
        pb.BenefitUse(
            card_id=use.offer.card_id,
            benefit_code=use.offer.code,
            quantity=use.quantity,
            saved_minor=use.saved,
        )
        for use in uses
    ]


def redemption(kept: KeptUse, at: datetime) -> pb.Redemption:
    """A use as of an instant: a reservation that lapsed is given back."""
    use = kept.use
    return pb.Redemption(
        redemption_id=kept.redemption_id,
        order_id=kept.order_id,
        card_id=use.card_id,
        segment_id=use.segment_id,
        benefit_code=use.benefit_code,
        uses=use.uses,
        saved_minor=use.saved_minor,
        status=USE_STATUSES[use.status if use.live(at) else UseStatus.REVERSED],
        create_time=timestamp(kept.create_time),
        lapse_time=timestamp(use.lapse_time),
    )
