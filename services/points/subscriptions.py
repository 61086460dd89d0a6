"""Others' events, through the same use cases: the inbox row in place of the caller's request_id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.activities.v1.activities_pb2 import Activity, ActivityReported
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as groups
from loyalty.orders.v1.orders_pb2 import OrderPaid, OrderRefunded
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.chassis import subscriptions
from services.chassis.asked import by_event
from services.chassis.consumer import Delivery, Outcome
from services.chassis.ids import own_request_id
from services.chassis.subscriptions import Readers, name_of
from services.chassis.timestamps import instant, instant_of
from services.points import events
from services.points.batches import Batches
from services.points.commands import (
    CloseHold,
    Command,
    Earn,
    EarnFixed,
    Learn,
    PlaceHold,
    Receive,
    RefundOrder,
    Returned,
    Reverse,
    TakeBack,
)
from services.points.domain.ledger import Fact, Unit
from services.points.rules import Source, read_activity, read_order, read_refund


class Subscriptions:
    """Turns deliveries into commands; they join the calls' batches."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Applies each event once; answers None, or the error that says what to do with the message."""
        return await subscriptions.apply(deliveries, read, self._batches.posts.submit)


def read(delivery: Delivery) -> Command | None:
    """The command that an event asks for; None if it asks for nothing here.

    Raises MalformedRequest, TotalMismatch.
    """
    return subscriptions.read(delivery, _READERS)


def _common(
    delivery: Delivery, member_id: str, business_id: str, payload_hash: bytes = b""
) -> dict[str, Any]:
    """What every command by event has. Its own request_id stands for what happened, not for the message."""
    own = own_request_id(delivery.subject, business_id)
    asked = by_event("points", delivery, member_id, own, payload_hash)
    return {**asked, "may_backdate": True}  # a late event is a fact all the same


# --- the brand ----------------------------------------------------------------------------------------


def _order_paid(delivery: Delivery, paid: OrderPaid) -> Command:
    source = read_order(paid.order)
    return Earn(**_common(delivery, paid.member_id, source.id, source.body_hash), source=source)


def _order_refunded(delivery: Delivery, refunded: OrderRefunded) -> Command:
    refunded.DiscardUnknownFields()  # it may have to wait, and nobody erases what nobody knows
    fields = read_refund(refunded.refund)
    # The parts apart, so that no two refunds have the same name.
    names = f"{fields['order_id']}\x00{fields['refund_id']}"
    common = _common(delivery, refunded.member_id, names, fields["body_hash"])
    return RefundOrder(**common, **fields, body=refunded.SerializeToString())


def _activity_reported(delivery: Delivery, reported: ActivityReported) -> Command:
    source = read_activity(reported.activity)
    return Earn(**_common(delivery, reported.member_id, source.id, source.body_hash), source=source)


# --- points -------------------------------------------------------------------------------------------


def _transfer_sent(delivery: Delivery, sent: points.TransferSent) -> Command:
    return Receive(
        **_common(delivery, sent.to_member_id, sent.transfer_id),
        transfer_id=sent.transfer_id,
        from_member_id=sent.member_id,
        parts=tuple((instant_of(part, "expire_time"), part.amount) for part in sent.points),
    )


def _transfer_refused(delivery: Delivery, refused: points.TransferRefused) -> Command:
    return TakeBack(
        **_common(delivery, refused.from_member_id, refused.transfer_id),
        transfer_id=refused.transfer_id,
        to_member_id=refused.member_id,
    )


# --- cards --------------------------------------------------------------------------------------------


def _card_ordered(delivery: Delivery, ordered: cards.CardOrdered) -> Command | None:
    if not ordered.points_amount:
        return None
    return PlaceHold(
        **_common(delivery, ordered.member_id, ordered.card_order_id),
        amount=ordered.points_amount,
        reference_id=ordered.card_order_id,
        expire_time=instant(ordered.hold_expire_time),
    )


def _card_order_settled(delivery: Delivery, settled: cards.CardOrderSettled) -> Command:
    """What is captured may yet be released: of a gift that nobody claimed. So each has a name of its own."""
    order_id = settled.card_order_id
    placed_by = own_request_id(name_of(cards.CardOrdered), order_id)
    if settled.outcome == cards.CARD_ORDER_OUTCOME_CAPTURE:
        return CloseHold(**_common(delivery, settled.member_id, order_id), placed_by=placed_by, capture=0)
    return CloseHold(
        **_common(delivery, settled.member_id, f"{order_id}\x00released"),
        placed_by=placed_by,
        captured_by=own_request_id(name_of(cards.CardOrderSettled), order_id),
        capture=None,
    )


def _card_activated(delivery: Delivery, activated: cards.CardActivated) -> Command:
    """The card is a fact for the rules from its start to its end; that it was activated, one to earn on."""
    version = (activated.epoch, activated.version)
    occur = instant(activated.occur_time)
    value = activated.points_multiplier or "1"
    start, end = instant(activated.start_time), instant(activated.end_time)
    facts = {_segment(activated.segment_id): _on_card(activated, activated.plan_id, value, start, end)}
    for replaced in activated.replaced_segment_ids:
        facts[_segment(replaced)] = _ended(occur, version)
    happened = {"plan_id": activated.plan_id, "renewal": str(activated.renewal).lower()}
    source = _happened("card_activated", activated.segment_id, activated.occur_time, happened)
    return _learn(delivery, activated, facts, replace(source, reference_id=activated.card_order_id))


def _card_expired(delivery: Delivery, expired: cards.CardExpired) -> Command:
    ended = _ended(instant(expired.end_time), (expired.epoch, expired.version))
    return _learn(delivery, expired, {_segment(expired.segment_id): ended})


def _card_refunded(delivery: Delivery, refunded: cards.CardRefunded) -> Command:
    """The card is good for nothing more, and what it cost in points comes back, once for its periods."""
    segments = (refunded.segment_id, *refunded.later_segment_ids)
    ended = _ended(instant(refunded.occur_time), (refunded.epoch, refunded.version))
    facts = {_segment(segment): ended for segment in segments}
    amount = refunded.refund_points
    if not amount:
        return _learn(delivery, refunded, facts)
    bonuses = tuple(_happening("card_activated", segment) for segment in segments)
    common = _common(delivery, refunded.member_id, refunded.segment_id, str(amount).encode())
    return Learn(**common, facts=facts, returned=Returned(amount, refunded.card_id, bonuses))


def _card_frozen(delivery: Delivery, frozen: cards.CardFrozen) -> Command:
    """All that was told of the card rests, also what begins later; what still holds is told anew then."""
    occur, version = instant(frozen.occur_time), (frozen.epoch, frozen.version)
    return _learn(delivery, frozen, {_rest(frozen.card_id): _begun("", "frozen", occur, None, version)})


def _card_resumed(delivery: Delivery, resumed: cards.CardResumed) -> Command:
    occur = instant(resumed.occur_time)
    value, end = resumed.points_multiplier or "1", instant(resumed.end_time)
    facts = {_segment(resumed.segment_id): _on_card(resumed, resumed.plan_id, value, occur, end)}
    for later in resumed.later_segments:
        start, end = instant(later.start_time), instant(later.end_time)
        value = later.points_multiplier or "1"
        facts[_segment(later.segment_id)] = _on_card(resumed, later.plan_id, value, start, end)
    return _learn(delivery, resumed, facts)


def _on_card(told: Any, plan_id: str, value: str, start: datetime, end: datetime) -> Fact:
    """What a period of a card is good for, unless the card was frozen since."""
    fact = _begun(f"card.{plan_id}", value, start, end, (told.epoch, told.version))
    return replace(fact, unless=_rest(told.card_id))


def _segment(segment_id: str) -> str:
    return f"segment/{segment_id}"


def _rest(card_id: str) -> str:
    return f"rest/{card_id}"


# --- groups -------------------------------------------------------------------------------------------


def _member_joined(delivery: Delivery, joined: groups.MemberJoined) -> Command:
    """The group is a fact for the rules; that the member joined, one to earn on, once per membership."""
    happened = {
        "scheme_id": joined.scheme_id,
        "group_id": joined.group_id,
        "entry_source": joined.entry_source,
    }
    source = _happened("group_joined", joined.membership_id, joined.occur_time, happened)
    return _learn(delivery, joined, _in_group(joined), source)


def _member_moved(delivery: Delivery, moved: groups.MemberMoved) -> Command:
    return _learn(delivery, moved, _in_group(moved))


def _in_group(told: groups.MemberJoined | groups.MemberMoved) -> dict[str, Fact]:
    since, version = instant(told.occur_time), (told.epoch, told.version)
    fact = _begun(f"group.{told.scheme_id}", told.group_id, since, None, version)
    return {f"scheme/{told.scheme_id}": fact}


def _member_left(delivery: Delivery, left: groups.MemberLeft) -> Command:
    ended = _ended(instant(left.occur_time), (left.epoch, left.version))
    return _learn(delivery, left, {f"scheme/{left.scheme_id}": ended})


# --- referral -----------------------------------------------------------------------------------------


def _reward_granted(delivery: Delivery, granted: referral.RewardGranted) -> Command | None:
    if not granted.HasField("points"):
        return None
    amount = granted.points.amount
    return EarnFixed(
        **_common(delivery, granted.member_id, granted.reward_id, str(amount).encode()),
        unit=Unit.POINTS,
        amount=amount,
        reason="",
        reward_id=granted.reward_id,
    )


def _reward_clawed_back(delivery: Delivery, clawed_back: referral.RewardClawedBack) -> Command | None:
    if not clawed_back.HasField("points"):
        return None
    granted = own_request_id(name_of(referral.RewardGranted), clawed_back.reward_id)
    return Reverse(**_common(delivery, clawed_back.member_id, clawed_back.reward_id), made_by=granted)


# --- what they share ----------------------------------------------------------------------------------


def _learn(delivery: Delivery, told: Any, facts: Mapping[str, Fact], source: Source | None = None) -> Learn:
    return Learn(**_common(delivery, told.member_id, delivery.event_id), facts=facts, source=source)


def _begun(name: str, value: str, since: datetime, until: datetime | None, version: tuple[int, int]) -> Fact:
    return Fact(name, value, since, until, *version, begun=version)


def _ended(at: datetime, version: tuple[int, int]) -> Fact:
    return Fact("", "", at, at, *version)


def _happened(kind: str, business_id: str, occur: Timestamp, attributes: Mapping[str, str]) -> Source:
    """What happened in another service, as an activity."""
    name = _happening(kind, business_id)
    return read_activity(Activity(activity_id=name, kind=kind, attributes=attributes, occur_time=occur))


def _happening(kind: str, business_id: str) -> str:
    """The id of such an activity; `~` keeps it apart from the brand's."""
    return f"~{kind}:{business_id}"


_READERS: Readers[Command] = {
    name_of(message): (message, reader)
    for message, reader in (
        (OrderPaid, _order_paid),
        (OrderRefunded, _order_refunded),
        (ActivityReported, _activity_reported),
        (points.TransferSent, _transfer_sent),
        (points.TransferRefused, _transfer_refused),
        (cards.CardOrdered, _card_ordered),
        (cards.CardOrderSettled, _card_order_settled),
        (cards.CardActivated, _card_activated),
        (cards.CardExpired, _card_expired),
        (cards.CardFrozen, _card_frozen),
        (cards.CardRefunded, _card_refunded),
        (cards.CardResumed, _card_resumed),
        (groups.MemberJoined, _member_joined),
        (groups.MemberMoved, _member_moved),
        (groups.MemberLeft, _member_left),
        (referral.RewardGranted, _reward_granted),
        (referral.RewardClawedBack, _reward_clawed_back),
    )
}

# Whose events are consumed: their stream, its subjects, and those that are read here.
STREAMS = subscriptions.streams(
    _READERS,
    {
        events.BRAND_STREAM: events.BRAND_SUBJECTS,
        events.STREAM: events.SUBJECTS,
        "CARDS": ("loyalty.cards.v1.>",),
        "GROUPS": ("loyalty.groups.v1.>",),
        "REFERRAL": ("loyalty.referral.v1.>",),
    },
)
