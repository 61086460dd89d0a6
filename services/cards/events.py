"""Domain facts as messages: what is announced of cards, and how they read in the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.domain import basket, refunds
from services.cards.domain.cards import CardStatus, Ending, Segment
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.payments import OrderStatus, RefundReason, Settlement
from services.cards.domain.products import BenefitKind, Product
from services.cards.domain.quotas import UseStatus
from services.cards.domain.renewals import RenewalStatus
from services.cards.domain.wallet import (
    KeptCard,
    KeptOrder,
    KeptPayment,
    KeptRenewal,
    KeptUse,
    Reward,
    UseEnding,
)
from services.chassis.outbox import About, Event, announcement
from services.chassis.timestamps import timestamp, timestamp_of

STREAM = "CARDS"
SUBJECTS = ("loyalty.cards.v1.>",)
SHOWN = 100  # periods of a card in an answer

KINDS = {kind: pb.BenefitKind.Value(f"BENEFIT_KIND_{kind}") for kind in BenefitKind}
STATUSES = {status: pb.CardStatus.Value(f"CARD_STATUS_{status}") for status in CardStatus}
ENDINGS = {ending: pb.SegmentEnd.Value(f"SEGMENT_END_{ending}") for ending in Ending}
ORDER_STATUSES = {status: pb.CardOrderStatus.Value(f"CARD_ORDER_STATUS_{status}") for status in OrderStatus}
STEP_KINDS = {kind: pb.RefundStepKind.Value(f"REFUND_STEP_KIND_{kind}") for kind in refunds.StepKind}
NOTES = {note: pb.QuoteNote.Value(f"QUOTE_NOTE_{note}") for note in basket.Note}
RENEWAL_STATUSES = {status: pb.RenewalStatus.Value(f"RENEWAL_STATUS_{status}") for status in RenewalStatus}
OUTCOMES = {outcome: epb.CardOrderOutcome.Value(f"CARD_ORDER_OUTCOME_{outcome}") for outcome in Settlement}
DUE_REASONS = {reason: epb.RefundDueReason.Value(f"REFUND_DUE_REASON_{reason}") for reason in RefundReason}
REVERSE_REASONS = {
    UseEnding.CANCELLED: epb.BENEFIT_REVERSE_REASON_ORDER_CANCELLED,
    UseEnding.REFUNDED: epb.BENEFIT_REVERSE_REASON_ORDER_REFUNDED,
}
USE_STATUSES = {
    UseStatus.RESERVED: pb.REDEMPTION_STATUS_RESERVED,
    UseStatus.CONFIRMED: pb.REDEMPTION_STATUS_CONFIRMED,
    UseStatus.REVERSED: pb.REDEMPTION_STATUS_REVERSED,
}


def points_multiplier(product: Product) -> str:
    """The factor on points that a product gives, as a decimal; empty without one."""
    factor = next((one.value for one in product.benefits if one.kind is BenefitKind.POINTS_MULTIPLIER), 0)
    if not factor:
        return ""
    whole, millionths = divmod(factor, 1_000_000)
    return f"{whole}.{millionths:06}".rstrip("0").rstrip(".")


# --- cards --------------------------------------------------------------------------------------------


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
        auto_renew=_renewed(kept, at),
        saved_minor=sum(kept.saved.values()),
        currency_code=kept.currency_code,
        streak=last.streak,
        resume_time=None if present.rest is None else timestamp(present.rest.until),
        version=kept.version,
    )


def _renewed(kept: KeptCard, at: datetime) -> bool:
    return kept.contract is not None and kept.contract.holds(at)


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


def savings(kept: KeptCard, uses: Mapping[str, Sequence[tuple[str, int, int]]]) -> pb.Savings:
    """What a card saved; `uses` by period: benefit, uses, and what they saved in minor units."""
    return pb.Savings(
        card_id=kept.card_id,
        saved_minor=sum(kept.saved.values()),
        currency_code=kept.currency_code,
        segments=[
            pb.SegmentSavings(
                segment_id=one.segment_id,
                paid_minor=one.paid_minor,
                saved_minor=kept.saved.get(one.segment_id, 0),
                benefits=[
                    pb.BenefitSavings(benefit_code=code, uses=times, saved_minor=saved)
                    for code, times, saved in uses.get(one.segment_id, ())
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


# --- what is announced --------------------------------------------------------------------------------


_event = partial(announcement, STREAM)


def card_ordered(about: About, ordered: KeptOrder) -> Event:
    """A period was ordered; an order for points asks for them to be set aside."""
    order = ordered.order
    return _event(
        about,
        epb.CardOrdered,
        card_order_id=ordered.order_id,
        card_id=ordered.card_id,
        plan_id=ordered.product_code,
        plan_version=ordered.product_version,
        family=ordered.family,
        points_amount=order.amount_points,
        amount_minor=order.amount_minor,
        currency_code=order.currency_code,
        pay_deadline_time=timestamp(order.pay_deadline),
        hold_expire_time=timestamp(order.hold_until) if order.by_points else None,
    )


def card_order_settled(about: About, settled: tuple[str, Settlement]) -> Event:
    """What becomes of an order's points was decided."""
    order_id, outcome = settled
    return _event(about, epb.CardOrderSettled, card_order_id=order_id, outcome=OUTCOMES[outcome])


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated:
    """A period that was paid for or given: the last of its card. It comes from an order or from a reward."""

    card: KeptCard
    multiplier: str
    replaced: Sequence[str] = ()
    """Periods that it took the place of."""
    order_id: str = ""
    reward_id: str = ""
    gift: bool = False


def card_activated(about: About, activated: Activated) -> Event:
    """A period is the member's."""
    kept, one = activated.card, activated.card.card.segments[-1]
    return _event(
        about,
        epb.CardActivated,
        card_id=kept.card_id,
        plan_id=one.product_code,
        plan_version=one.product_version,
        family=kept.family,
        segment_id=one.segment_id,
        start_time=timestamp(one.start),
        end_time=timestamp(one.end),
        points_multiplier=activated.multiplier,
        renewal=len(kept.card.segments) > 1,
        replaced_segment_ids=activated.replaced,
        card_order_id=activated.order_id,
        reward_id=activated.reward_id,
        gift=activated.gift,
        paid_minor=one.paid_minor,
        currency_code=kept.currency_code if one.paid_minor else "",
        paid_points=one.paid_points,
    )


CardAndSegment = tuple[KeptCard, Segment]
"""A card, and the period of it that something is told of, as of then."""


def card_expiring(about: About, ending: CardAndSegment) -> Event:
    """A card ends soon."""
    kept, last = ending
    saved = kept.saved.get(last.segment_id, 0)
    return _event(
        about,
        epb.CardExpiring,
        card_id=kept.card_id,
        plan_id=last.product_code,
        segment_id=last.segment_id,
        end_time=timestamp(last.over),
        auto_renew=_renewed(kept, about.occur_time),
        saved_minor=saved,
        currency_code=kept.currency_code if saved else "",
    )


def card_expired(about: About, ended: CardAndSegment) -> Event:
    """The last period of a card is over."""
    kept, last = ended
    return _event(
        about,
        epb.CardExpired,
        card_id=kept.card_id,
        plan_id=last.product_code,
        segment_id=last.segment_id,
        family=kept.family,
        end_time=timestamp(last.over),
    )


def card_frozen(about: About, frozen: tuple[KeptCard, Segment, datetime]) -> Event:
    """A card rests: the period that ran, and when it resumes by itself."""
    kept, running, resumes = frozen
    return _event(
        about,
        epb.CardFrozen,
        card_id=kept.card_id,
        plan_id=running.product_code,
        segment_id=running.segment_id,
        family=kept.family,
        resume_time=timestamp(resumes),
    )


def card_resumed(about: About, resumed: tuple[KeptCard, Sequence[tuple[Segment, str]]]) -> Event:
    """A card runs again: its periods with their multipliers, first the one that runs, then those queued."""
    kept, ((running, multiplier), *later) = resumed
    return _event(
        about,
        epb.CardResumed,
        card_id=kept.card_id,
        plan_id=running.product_code,
        segment_id=running.segment_id,
        family=kept.family,
        end_time=timestamp(running.over),
        later_segments=[
            epb.CardSegment(
                segment_id=one.segment_id,
                plan_id=one.product_code,
                start_time=timestamp(one.start),
                end_time=timestamp(one.over),
                points_multiplier=factor,
            )
            for one, factor in later
        ],
        points_multiplier=multiplier,
    )


def card_refunded(about: About, refunded: tuple[KeptCard, Sequence[Segment], int, int]) -> Event:
    """Periods were given back, the first that ran or was to run first: for minor units, for points."""
    kept, (first, *later), minor, points = refunded
    return _event(
        about,
        epb.CardRefunded,
        card_id=kept.card_id,
        plan_id=first.product_code,
        segment_id=first.segment_id,
        family=kept.family,
        later_segment_ids=[one.segment_id for one in later],
        refund_minor=minor,
        currency_code=kept.currency_code if minor else "",
        refund_points=points,
    )


def refund_due(about: About, due: KeptPayment) -> Event:
    """Money has to be paid back."""
    assert due.reason is not None  # noqa: S101 - nothing is due without one
    return _event(
        about,
        epb.RefundDue,
        channel=due.channel,
        payment_id=due.payment_id,
        card_order_id=due.order_id,
        amount_minor=due.due,
        currency_code=due.payment.currency_code,
        reason=DUE_REASONS[due.reason],
    )


def renewal_due(about: About, due: KeptRenewal) -> Event:
    """The member has to be told of a renewal."""
    coming = due.renewal
    return _event(
        about,
        epb.RenewalDue,
        card_id=due.card_id,
        plan_id=due.product_code,
        segment_id=due.segment_id,
        renewal_id=due.renewal_id,
        amount_minor=coming.amount_minor,
        currency_code=due.currency_code,
        notice_deadline_time=timestamp(coming.notice_deadline),
        charge_time=timestamp(coming.charge),
    )


def benefit_used(about: About, used: tuple[KeptUse, str, Entitlement | None]) -> Event:
    """A use was confirmed: in a period of which product, and what the card gives of the benefit now."""
    kept, product_code, left = used
    limited = bool(kept.use.window_key)
    return _event(
        about,
        epb.BenefitUsed,
        **_use(kept, product_code),
        limited=limited,
        remaining=(left.remaining or 0) if limited and left else 0,
        reset_time=timestamp_of(left.reset) if limited and left else None,
    )


def benefit_reversed(about: About, reversed_: tuple[KeptUse, str, UseEnding]) -> Event:
    """A confirmed use was given back: in a period of which product, and why."""
    kept, product_code, ending = reversed_
    return _event(about, epb.BenefitReversed, **_use(kept, product_code), reason=REVERSE_REASONS[ending])


def _use(kept: KeptUse, product_code: str) -> dict[str, Any]:
    use = kept.use
    return {
        "card_id": use.card_id,
        "plan_id": product_code,
        "segment_id": use.segment_id,
        "redemption_id": kept.redemption_id,
        "benefit_code": use.benefit_code,
        "order_id": kept.order_id,
        "quantity": use.uses,
        "saved_minor": use.saved_minor,
        "currency_code": kept.currency_code,
    }


def reward_fulfilled(about: About, done: tuple[Reward, str]) -> Event:
    """A reward's period was handed over: a period of which product."""
    reward, product_code = done
    return _event(
        about,
        epb.RewardFulfilled,
        reward_id=reward.reward_id,
        card_id=reward.card_id,
        plan_id=product_code,
        segment_id=reward.segment_id,
    )


def fulfilment_refused(about: About, refused: tuple[str, str]) -> Event:
    """A reward's period cannot be handed over: why."""
    return _event(about, epb.FulfilmentRefused, reward_id=refused[0], reason=refused[1])
