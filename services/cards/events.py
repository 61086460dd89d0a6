"""Domain facts as messages: what is announced of cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from loyalty.cards.v1 import cards_events_pb2 as epb

from services.cards.domain.cards import Segment
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.payments import RefundReason, Settlement
from services.cards.domain.products import BenefitKind, Product
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

OUTCOMES = {outcome: epb.CardOrderOutcome.Value(f"CARD_ORDER_OUTCOME_{outcome}") for outcome in Settlement}
DUE_REASONS = {reason: epb.RefundDueReason.Value(f"REFUND_DUE_REASON_{reason}") for reason in RefundReason}
REVERSE_REASONS = {
    UseEnding.CANCELLED: epb.BENEFIT_REVERSE_REASON_ORDER_CANCELLED,
    UseEnding.REFUNDED: epb.BENEFIT_REVERSE_REASON_ORDER_REFUNDED,
}


def points_multiplier(product: Product) -> str:
    """The factor on points that a product gives, as a decimal; empty without one."""
    factor = next((one.value for one in product.benefits if one.kind is BenefitKind.POINTS_MULTIPLIER), 0)
    if not factor:
        return ""
    whole, millionths = divmod(factor, 1_000_000)
    return f"{whole}.{millionths:06}".rstrip("0").rstrip(".")


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
        auto_renew=kept.renews(about.occur_time),
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
