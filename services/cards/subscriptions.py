"""Others' events, through the same use cases: the inbox row in place of the caller's request_id."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from loyalty.orders.v1.orders_pb2 import OrderRefunded as BrandRefunded
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.points.v1.points_service_pb2 import HoldState
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.cards.batches import Batches
from services.cards.commands import (
    TIER,
    ClawBack,
    Command,
    GrantReward,
    HoldCaptured,
    HoldEnded,
    HoldPlaced,
    LearnFact,
    OrderRefunded,
)
from services.chassis import subscriptions
from services.chassis.asked import by_event
from services.chassis.consumer import Delivery, Outcome
from services.chassis.subscriptions import Readers, name_of
from services.chassis.timestamps import instant

_OUR_ORDERS = "ord_"  # points are held for much else
_common = partial(by_event, "cards")


class Subscriptions:
    """Turns deliveries into commands; they join the calls' batches."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Applies each event once; answers None, or the error that says what to do with the message."""
        return await subscriptions.apply(deliveries, read, self._batches.posts.submit)


def read(delivery: Delivery) -> Command | None:
    """The command that an event asks for; None if it asks for nothing here. Raises MalformedRequest."""
    return subscriptions.read(delivery, _READERS)


# --- points -------------------------------------------------------------------------------------------


def _hold_placed(delivery: Delivery, placed: points.HoldPlaced) -> Command | None:
    order_id = placed.hold.reference_id
    if not order_id.startswith(_OUR_ORDERS):
        return None
    return HoldPlaced(**_common(delivery, placed.member_id), order_id=order_id)


def _hold_refused(delivery: Delivery, refused: points.HoldRefused) -> Command | None:
    order_id = refused.reference_id
    if not order_id.startswith(_OUR_ORDERS):
        return None
    return HoldEnded(**_common(delivery, refused.member_id), order_id=order_id, reason=refused.reason)


def _hold_captured(delivery: Delivery, captured: points.HoldCaptured) -> Command | None:
    order_id = captured.hold.reference_id
    if not order_id.startswith(_OUR_ORDERS):
        return None
    common = _common(delivery, captured.member_id)
    return HoldCaptured(**common, order_id=order_id, capture_time=instant(captured.occur_time))


def _hold_released(delivery: Delivery, released: points.HoldReleased) -> Command | None:
    order_id, state = released.hold.reference_id, HoldState.Name(released.hold.state)
    if not order_id.startswith(_OUR_ORDERS) or state == "HOLD_STATE_CAPTURED":
        return None  # what was left of a hold that was captured
    common = _common(delivery, released.member_id)
    return HoldEnded(**common, order_id=order_id, reason=state.replace("STATE_", ""))


def _tier_changed(delivery: Delivery, changed: points.TierChanged) -> Command:
    version = (changed.epoch, changed.version)
    common = _common(delivery, changed.member_id)
    return LearnFact(**common, name=TIER, value=changed.to_tier, version=version)


# --- referral -----------------------------------------------------------------------------------------


def _reward_granted(delivery: Delivery, granted: referral.RewardGranted) -> Command | None:
    if not granted.HasField("card"):
        return None
    return GrantReward(
        **_common(delivery, granted.member_id),
        reward_id=granted.reward_id,
        product_code=granted.card.plan_id,
    )


def _reward_clawed_back(delivery: Delivery, clawed_back: referral.RewardClawedBack) -> Command | None:
    if not clawed_back.HasField("card"):
        return None
    return ClawBack(**_common(delivery, clawed_back.member_id), reward_id=clawed_back.reward_id)


# --- the brand ----------------------------------------------------------------------------------------


def _order_refunded(delivery: Delivery, refunded: BrandRefunded) -> Command:
    refund = refunded.refund
    instant(refund.refund_time)  # nothing goes by it, but what is none is refused
    return OrderRefunded(
        **_common(delivery, refunded.member_id),
        order_id=refund.order_id,
        refund_id=refund.refund_id,
        lines={line.line_id: line.amount_minor for line in refund.lines.lines},
        amount_minor=refund.amount_minor,
        all_left=refund.all,
    )


_READERS: Readers[Command] = {
    name_of(message): (message, reader)
    for message, reader in (
        (points.HoldPlaced, _hold_placed),
        (points.HoldRefused, _hold_refused),
        (points.HoldCaptured, _hold_captured),
        (points.HoldReleased, _hold_released),
        (points.TierChanged, _tier_changed),
        (referral.RewardGranted, _reward_granted),
        (referral.RewardClawedBack, _reward_clawed_back),
        (BrandRefunded, _order_refunded),
    )
}

# Whose events are consumed: their stream, its subjects, and those that are read here.
STREAMS = subscriptions.streams(
    _READERS,
    {
        "POINTS": ("loyalty.points.v1.>",),
        "REFERRAL": ("loyalty.referral.v1.>",),
        "ORDERS": ("loyalty.orders.v1.>", "loyalty.activities.v1.>"),
    },
)
