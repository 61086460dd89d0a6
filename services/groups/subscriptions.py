"""Others' events, through the same use cases: the inbox row in place of the caller's request_id."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.orders.v1.orders_pb2 import OrderPaid, OrderRefunded, Refund
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.chassis import subscriptions
from services.chassis.asked import by_event
from services.chassis.consumer import Delivery, Outcome
from services.chassis.ids import own_request_id
from services.chassis.subscriptions import Readers, name_of
from services.chassis.timestamps import instant
from services.groups.assigning import claw_back_name
from services.groups.batches import Batches
from services.groups.commands import ClawBack, Command, GrantReward, LearnFact, OrderTold, RefundTold
from services.groups.domain.profile import CARD, EVERYTHING, TIER

STRATUM, KOL = "stratum", "kol"  # a tag, unless a caller or a rule of the programme says otherwise
_common = partial(by_event, "groups")


class Subscriptions:
    """Turns deliveries into commands; they join the calls' batches."""

    def __init__(self, batches: Batches, currency_code: str) -> None:
        self._batches = batches
        self._readers = _readers(currency_code)

    async def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Applies each event once; answers None, or the error that says what to do with the message."""
        read = partial(subscriptions.read, readers=self._readers)
        return await subscriptions.apply(deliveries, read, self._batches.post)


# --- the brand ----------------------------------------------------------------------------------------


def _order_paid(currency_code: str, delivery: Delivery, paid: OrderPaid) -> Command | None:
    """Amounts of two currencies do not add up: orders in another one are no facts."""
    order = paid.order
    paid_time = instant(order.paid_time)
    if order.currency_code != currency_code:
        return None
    return OrderTold(
        **_common(delivery, paid.member_id),
        order_id=order.order_id,
        store_id=order.store_id,
        city=order.city,
        paid_time=paid_time,
        amount_minor=order.total_minor,
    )


def _order_refunded(delivery: Delivery, refunded: OrderRefunded) -> Command:
    refund = refunded.refund
    instant(refund.refund_time)  # nothing goes by it, but what is none is refused
    return RefundTold(
        **_common(delivery, refunded.member_id),
        order_id=refund.order_id,
        refund_id=refund.refund_id,
        amount_minor=_refunded_minor(refund),
    )


def _refunded_minor(refund: Refund) -> int:
    match refund.WhichOneof("what"):
        case "amount_minor":
            return refund.amount_minor
        case "lines":
            return sum(line.amount_minor for line in refund.lines.lines)
    return EVERYTHING


# --- points -------------------------------------------------------------------------------------------


def _tier_changed(delivery: Delivery, changed: points.TierChanged) -> Command:
    return _learn(delivery, changed, TIER, changed.to_tier)


# --- cards --------------------------------------------------------------------------------------------


def _card_activated(delivery: Delivery, activated: cards.CardActivated) -> Command | None:
    """A period that is queued changes nothing: the card runs already, or rests."""
    if instant(activated.start_time) > instant(activated.occur_time):
        return None
    return _card_runs(delivery, activated)


def _card_runs(delivery: Delivery, told: cards.CardActivated | cards.CardResumed) -> Command:
    return _learn(delivery, told, f"{CARD}{told.family}", told.family)


def _card_stops(
    delivery: Delivery, told: cards.CardExpired | cards.CardFrozen | cards.CardRefunded
) -> Command:
    return _learn(delivery, told, f"{CARD}{told.family}", "")


# --- referral -----------------------------------------------------------------------------------------


def _reward_granted(delivery: Delivery, granted: referral.RewardGranted) -> Command | None:
    """A reward may be told again, and is given once. Whoever gets a share of others' orders is a KOL."""
    if granted.HasField("cash") and granted.cash.order_id:
        return _learn(delivery, granted, STRATUM, KOL)
    if not granted.HasField("group_entry"):
        return None
    return GrantReward(
        **_common(delivery, granted.member_id, own_request_id(delivery.subject, granted.reward_id)),
        reward_id=granted.reward_id,
        scheme_id=granted.group_entry.scheme_id,
        group_id=granted.group_entry.group_id,
    )


def _reward_clawed_back(delivery: Delivery, clawed_back: referral.RewardClawedBack) -> Command | None:
    if not clawed_back.HasField("group_entry"):
        return None
    reward_id = clawed_back.reward_id
    common = _common(delivery, clawed_back.member_id, claw_back_name(reward_id))
    return ClawBack(**common, reward_id=reward_id)


# --- what they share ----------------------------------------------------------------------------------


def _learn(delivery: Delivery, told: Any, name: str, value: str) -> LearnFact:
    version = (told.epoch, told.version)
    return LearnFact(**_common(delivery, told.member_id), name=name, value=value, version=version)


def _readers(currency_code: str) -> Readers[Command]:
    return {
        name_of(message): (message, reader)
        for message, reader in (
            (OrderPaid, partial(_order_paid, currency_code)),
            (OrderRefunded, _order_refunded),
            (points.TierChanged, _tier_changed),
            (cards.CardActivated, _card_activated),
            (cards.CardExpired, _card_stops),
            (cards.CardFrozen, _card_stops),
            (cards.CardRefunded, _card_stops),
            (cards.CardResumed, _card_runs),
            (referral.RewardGranted, _reward_granted),
            (referral.RewardClawedBack, _reward_clawed_back),
        )
    }


# Whose events are consumed: their stream, its subjects, and those that are read here.
STREAMS = subscriptions.streams(
    _readers(""),
    {
        "ORDERS": ("loyalty.orders.v1.>", "loyalty.activities.v1.>"),
        "POINTS": ("loyalty.points.v1.>",),
        "CARDS": ("loyalty.cards.v1.>",),
        "REFERRAL": ("loyalty.referral.v1.>",),
    },
)
