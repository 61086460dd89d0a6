"""A member's cards: periods that join them, rests, giving them back, and what time does to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from zoneinfo import ZoneInfo

from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import events, messages, orders, renewing
from services.cards.commands import ClawBack, FreezeCard, GrantReward, RefundCard, ResumeCard
from services.cards.domain import cards, refunds
from services.cards.domain.cards import Card, Ending, Purchase, Segment
from services.cards.domain.payments import RefundReason
from services.cards.domain.periods import days_after
from services.cards.domain.products import Product
from services.cards.domain.quotas import UseStatus
from services.cards.domain.wallet import KeptCard, KeptPayment, Reward, Wallet
from services.cards.errors import (
    NothingToRefund,
    OrderSettling,
    QuoteChanged,
    RewardTakenBack,
)
from services.cards.rules import Compiled
from services.cards.steps import Step
from services.chassis.due import Due
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.ids import new_id

TELL_EXPIRY_DAYS = 3  # before a card ends


# --- periods that join --------------------------------------------------------------------------------


def add_period(
    step: Step,
    product: Product,
    paid: datetime,
    *,
    minor: int = 0,
    points: int = 0,
    order_id: str = "",
    reward_id: str = "",
    gift: bool = False,
    upgrade_now: bool = False,
) -> tuple[KeptCard, Segment]:
    """Queues a period behind what there is, or, where that is to be replaced, starts it now.

    What it cost includes a credit. Raises ChainTooLong.
    """
    kept = step.card_of(product.family) or KeptCard(
        card=Card(new_id("card")), family=product.family, currency_code=product.currency_code
    )
    purchase = Purchase(
        new_id("seg"),
        product.code,
        product.version,
        product.period,
        product.grace_days,
        min(paid, step.at),
        minor,
        points,
    )
    live = kept.card.as_of(step.at, step.zone).live(step.at)
    join = cards.upgrade if upgrade_now else cards.extend
    card = join(kept.card, purchase, step.at, step.zone)
    kept = replace(
        kept,
        card=card,
        currency_code=kept.currency_code if live else product.currency_code,
        sources={**kept.sources, purchase.segment_id: order_id or reward_id},
    )
    activated = events.Activated(
        card=replace(kept, card=_at_the_latest(step, card)),
        multiplier=events.points_multiplier(product),
        replaced=[one.segment_id for one in live] if upgrade_now else (),
        order_id=order_id,
        reward_id=reward_id,
        gift=gift,
    )
    kept = step.announce(kept, events.card_activated, activated)
    _changed(step, kept, but=order_id)
    return step.card(kept.card_id), card.segments[-1]


def _at_the_latest(step: Step, card: Card) -> Card:
    """As a card stands once it no longer rests. Nobody must take a queued period for begun before."""
    return card.as_of(card.rest.until, step.zone) if card.rest else card


def _changed(step: Step, kept: KeptCard, *, but: str = "") -> None:
    """Ends and moves what was made for the card as it was."""
    orders.cancel_upgrades(step, kept.family, but=but)
    renewing.follow(step, kept.card_id)


# --- rewards ------------------------------------------------------------------------------------------


def grant(step: Step, command: GrantReward) -> None:
    """Gives a period as a reward, once, or announces why not. What is no longer sold is still given."""
    reward = step.wallet.rewards.get(command.reward_id) or Reward(reward_id=command.reward_id)
    if reward.segment_id:
        return
    try:
        if reward.clawed_back:
            raise RewardTakenBack
        product = step.product(command.product_code)
        orders.check_room(step, product.family)
    except (FailedPrecondition, NotFound) as refusal:
        step.announce(reward, events.fulfilment_refused, (reward.reward_id, refusal.reason))
        return
    kept, segment = add_period(step, product, step.at, reward_id=reward.reward_id)
    reward = replace(reward, card_id=kept.card_id, segment_id=segment.segment_id)
    step.announce(reward, events.reward_fulfilled, (reward, product.code))


def claw_back(step: Step, command: ClawBack) -> None:
    """Takes a reward back: what is left of its period, or, told before the reward, the reward to come."""
    reward = step.wallet.rewards.get(command.reward_id) or Reward(reward_id=command.reward_id)
    step.keep(replace(reward, clawed_back=True))
    if not reward.segment_id:
        return
    kept = step.card(reward.card_id)
    present = kept.card.as_of(step.at, step.zone)
    taken = next((one for one in present.live(step.at) if one.segment_id == reward.segment_id), None)
    if taken is None:
        return
    card = cards.claw_back(kept.card, taken.segment_id, step.at, step.zone)
    if present.rest is not None and card.rest is None:
        kept = _tell_resumed(step, replace(kept, card=replace(present, rest=None)), step.at)
    kept = replace(kept, card=card)
    kept = step.announce(kept, events.card_refunded, (kept, [taken], 0, 0))
    _changed(step, kept)


# --- rests --------------------------------------------------------------------------------------------


def freeze(step: Step, command: FreezeCard) -> pb.Card:
    """Rests a card. Raises CardUnknown, and what `cards.freeze` raises."""
    kept = step.card(command.card_id)
    running = kept.card.running(step.at, step.zone)
    policy = step.product_of(running).freeze if running else None
    card = cards.freeze(kept.card, policy, command.days, step.at, step.zone)
    assert running is not None and card.rest is not None  # noqa: S101, PT018 - or it is refused
    kept = replace(kept, card=card)
    step.announce(kept, events.card_frozen, (kept, running, card.rest.until))
    renewing.follow(step, kept.card_id)
    return shown(step, kept.card_id)


def resume(step: Step, command: ResumeCard) -> pb.Card:
    """Ends a rest. Raises CardUnknown, and what `cards.resume` raises."""
    kept = step.card(command.card_id)
    resting = next(iter(kept.card.as_of(step.at, step.zone).live(step.at)), None)
    policy = step.product_of(resting).freeze if resting else None
    card = cards.resume(kept.card, policy, step.at, step.zone)
    _tell_resumed(step, replace(kept, card=card), step.at)
    renewing.follow(step, kept.card_id)
    return shown(step, kept.card_id)


def _tell_resumed(step: Step, kept: KeptCard, moment: datetime) -> KeptCard:
    periods = [(one, events.points_multiplier(step.product_of(one))) for one in kept.card.live(moment)]
    return step.announce(kept, events.card_resumed, (kept, periods), moment)


# --- giving back --------------------------------------------------------------------------------------


def quote_refund(
    kept: KeptCard,
    uses: Mapping[str, int],
    compiled: Mapping[tuple[str, int], Compiled],
    at: datetime,
    zone: ZoneInfo,
) -> refunds.RefundQuote:
    """What giving a card back gives at an instant; `uses` are those that count, by period."""
    terms = {}
    for one in kept.card.as_of(at, zone).live(at):
        product = compiled[one.product_code, one.product_version].product
        terms[one.segment_id] = refunds.Terms(
            product.refund,
            product.price_minor,
            product.points_price,
            uses.get(one.segment_id, 0),
            kept.saved.get(one.segment_id, 0),
        )
    return refunds.quote(kept.card, terms, at, zone)


def uses_of(wallet: Wallet) -> Mapping[str, int]:
    """A settled wallet's uses that count, by period."""
    counted = Counter(wallet.confirmed)
    for kept in wallet.uses.values():
        if kept.use.status is not UseStatus.REVERSED:
            counted[kept.use.segment_id] += kept.use.uses
    return counted


def refund(step: Step, command: RefundCard) -> pb.RefundCardResponse:
    """Gives a card back. Raises CardUnknown, NothingToRefund, OrderSettling, QuoteChanged."""
    kept = step.card(command.card_id)
    live = kept.card.as_of(step.at, step.zone).live(step.at)
    if not live:
        raise NothingToRefund
    if orders.upgrade_settles(step, kept.family):
        raise OrderSettling
    quote = quote_refund(kept, uses_of(step.wallet), step.scene.compiled, step.at, step.zone)
    if quote.minor < command.expected_minor or quote.points < command.expected_points:
        raise QuoteChanged(refund_minor=quote.minor, refund_points=quote.points)
    kept = replace(kept, card=cards.end_live(kept.card, Ending.REFUNDED, step.at, step.zone))
    kept = step.announce(kept, events.card_refunded, (kept, live, quote.minor, quote.points))
    _pay_back(step, kept, quote.minor)
    _changed(step, kept)
    return pb.RefundCardResponse(
        quote=messages.refund_quote(quote, kept.currency_code), card=shown(step, kept.card_id)
    )


def _pay_back(step: Step, kept: KeptCard, minor: int) -> None:
    """Makes an amount due of what was paid for a card: of the newest payments, of each at most what it was.

    What an upgrade's credit was worth came from the payments before it. What was kept of a payment when the
    card was given back before is used up: each is paid back once.
    """
    wallet, left = step.wallet, minor
    applied = (each for each in wallet.payments.values() if each.applied and not each.due)
    paid = [each for each in applied if _of_card(step, each, kept)]
    newest = sorted(paid, key=lambda each: (each.payment.paid, each.create_time, each.name), reverse=True)
    for payment in newest:
        part = min(left, payment.payment.amount_minor)
        if part:
            make_due(step, replace(payment, due=part))
            left -= part
    assert not left  # noqa: S101 - nothing is given back that was not paid


def _of_card(step: Step, payment: KeptPayment, kept: KeptCard) -> bool:
    order = step.wallet.orders.get(payment.order_id)
    return order is not None and order.card_id == kept.card_id and not order.gift


def make_due(
    step: Step, payment: KeptPayment, reason: RefundReason = RefundReason.CARD_REFUNDED
) -> KeptPayment:
    """Has what is `due` of a payment paid back."""
    payment = replace(payment, reason=reason, due_time=step.at)
    return step.announce(payment, events.refund_due, payment)


def shown(step: Step, card_id: str) -> pb.Card:
    """A card as the contract shows it."""
    return messages.card(step.wallet.member_id, step.card(card_id), step.at, step.zone)


# --- by the clock -------------------------------------------------------------------------------------


def upcoming(step: Step) -> Iterator[Due]:
    """Rests that end by themselves, and cards that end, or will within days: what is over is not ahead."""
    for kept in step.wallet.cards.values():
        card = kept.card
        if card.rest is not None:
            yield Due(card.rest.until, partial(_resume_by_itself, step, kept))
            continue
        last = _last(card)
        if last is None:
            continue
        if kept.expired_told != last.over:
            if kept.expiring_told != last.over and step.at < last.over:
                yield Due(
                    days_after(last.over, -TELL_EXPIRY_DAYS, step.zone), partial(_expiring, step, kept, last)
                )
            yield Due(last.over, partial(_expired, step, kept, last))


def _last(card: Card) -> Segment | None:
    """The period whose end is that of its card; None where it was given back."""
    held = [one for one in card.segments if one.start < one.over]
    return held[-1] if held and held[-1].ending is None else None


def _resume_by_itself(step: Step, kept: KeptCard, moment: datetime) -> None:
    _tell_resumed(step, replace(kept, card=kept.card.as_of(moment, step.zone)), moment)
    renewing.follow(step, kept.card_id)


def _expiring(step: Step, kept: KeptCard, last: Segment, moment: datetime) -> None:
    kept = replace(kept, expiring_told=last.over)
    step.announce(kept, events.card_expiring, (kept, last), moment)


def _expired(step: Step, kept: KeptCard, last: Segment, moment: datetime) -> None:
    kept = replace(kept, expired_told=last.over)
    step.announce(kept, events.card_expired, (kept, last), moment)
