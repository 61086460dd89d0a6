"""Others' events, and our own between two members, through the same use cases: the inbox row in place of the
caller's request_id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as groups
from loyalty.orders.v1.orders_pb2 import OrderPaid, OrderRefunded, Refund
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.chassis import subscriptions
from services.chassis.asked import by_event
from services.chassis.clock import Clock
from services.chassis.consumer import Delivery, Outcome
from services.chassis.database import Database
from services.chassis.gather import Gather
from services.chassis.subscriptions import Readers, name_of
from services.chassis.timestamps import instant
from services.referral import events, store
from services.referral.batches import Batches
from services.referral.commands import (
    Command,
    InviteeTold,
    Joined,
    Learned,
    RewardCommand,
    RewardHandedOver,
    RewardRefused,
    Tell,
)
from services.referral.domain.campaigns import FactKind
from services.referral.domain.profile import (
    CARD,
    EVERYTHING,
    GROUP,
    TIER,
    Fact,
    Invitee,
    InviteeState,
    RevokeReason,
)

Asked = TypeVar("Asked", InviteeTold, RewardCommand)

_common = partial(by_event, "referral")
_KINDS = {value: kind for kind, value in events.KINDS.items()}
_REASONS = {value: reason for reason, value in events.REVOKE_REASONS.items()}
# Of a group that is no more its members did not leave.
_GONE = (groups.MEMBER_LEAVE_REASON_GROUP_DISSOLVED, groups.MEMBER_LEAVE_REASON_SITE_CLOSED)


class Subscriptions:
    """Turns deliveries into commands; they join the calls' batches."""

    def __init__(self, database: Database, clock: Clock, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._batches = batches
        self._concerns: Gather[Command, Command | None] = Gather("concerns", self._look)

    async def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Applies each event once; answers None, or the error that says what to do with the message."""
        return await subscriptions.apply(deliveries, read, self._submit)

    async def _submit(self, command: Command) -> None:
        if isinstance(command, Tell | RewardCommand):
            concern = await self._concerns.submit(command)
            if concern is None:
                return
            command = concern
        await self._batches.posts.submit(command)

    async def _look(self, commands: Sequence[Command]) -> list[Command | None]:
        """What each asks for here, seen without a lock; None where that is nothing.

        Most of what is told of a brand's members is of no kind that a campaign asks for. Of a reward it is
        told who gets it: whose it is only we know.
        """
        rewards = {command.reward_id for command in commands if isinstance(command, RewardCommand)}
        tells = any(isinstance(command, Tell) and command.facts for command in commands)
        async with self._database.read() as connection:
            inviters = await store.inviters_of(connection, rewards) if rewards else {}
            kinds = await store.running_kinds(connection, self._clock.now()) if tells else set()
        found: list[Command | None] = []
        for command in commands:
            match command:
                case Tell():
                    found.append(_of_kinds(command, kinds))
                case RewardCommand(reward_id=reward_id):
                    inviter = inviters.get(reward_id)
                    found.append(None if inviter is None else _of(command, inviter))
        return found


def _of_kinds(told: Tell, kinds: set[FactKind]) -> Tell | None:
    """What was told, without facts that no campaign asks for; None where nothing is left."""
    facts = tuple(fact for fact in told.facts if fact.kind in kinds)
    if not (facts or told.learned or told.joined):
        return None
    return replace(told, facts=facts)


def _of(command: Asked, inviter_id: str) -> Asked:
    """The same, asked of the inviter; what is told of another member is not erased with this one."""
    assert command.event is not None  # noqa: S101 - an event asks
    event = command.event._replace(member_id=inviter_id)
    if inviter_id != command.member_id:
        event = event._replace(stream_seq=0)
    return replace(command, member_id=inviter_id, event=event)


def read(delivery: Delivery) -> Command | None:
    """The command that an event asks for; None if it asks for nothing here. Raises MalformedRequest.

    What is told of a reward is read as asked of whoever gets it.
    """
    return subscriptions.read(delivery, _READERS)


# --- the brand ----------------------------------------------------------------------------------------


def _order_paid(delivery: Delivery, paid: OrderPaid) -> Command:
    order = paid.order
    fact = Fact(
        kind=FactKind.ORDER,
        reference_id=order.order_id,
        occur_time=instant(order.paid_time),
        amount_minor=order.total_minor,
        currency_code=order.currency_code,
        attributes={"store_id": order.store_id, "city": order.city, "channel": order.channel},
    )
    return Tell(**_common(delivery, paid.member_id), facts=(fact,))


def _order_refunded(delivery: Delivery, refunded: OrderRefunded) -> Command:
    refund = refunded.refund
    back = {refund.refund_id: (_refunded_minor(refund), instant(refund.refund_time))}
    fact = Fact(kind=FactKind.ORDER, reference_id=refund.order_id, refunds=back)
    return Tell(**_common(delivery, refunded.member_id), facts=(fact,))


def _refunded_minor(refund: Refund) -> int:
    match refund.WhichOneof("what"):
        case "amount_minor":
            return refund.amount_minor
        case "lines":
            return sum(line.amount_minor for line in refund.lines.lines)
    return EVERYTHING


# --- points -------------------------------------------------------------------------------------------


def _tier_changed(delivery: Delivery, changed: points.TierChanged) -> Command:
    return _tell(delivery, changed, TIER, changed.to_tier)


def _points_given(delivery: Delivery, done: points.RewardFulfilled) -> Command:
    return _handed_over(delivery, done, done.transaction_id)


# --- cards --------------------------------------------------------------------------------------------


def _card_activated(delivery: Delivery, activated: cards.CardActivated) -> Command | None:
    """What was bought is a fact, what a reward gave is none. A period that is queued does not run yet."""
    bought = Fact(
        kind=FactKind.CARD,
        reference_id=activated.segment_id,
        occur_time=instant(activated.occur_time),
        amount_minor=activated.paid_minor,
        currency_code=activated.currency_code,
        attributes={
            "product": activated.plan_id,
            "renewal": str(activated.renewal).lower(),
            "gift": str(activated.gift).lower(),
        },
    )
    facts = () if activated.reward_id else (bought,)
    if instant(activated.start_time) > instant(activated.occur_time):
        return Tell(**_common(delivery, activated.member_id), facts=facts)
    return _tell(delivery, activated, f"{CARD}{activated.family}", activated.family, facts)


def _card_resumed(delivery: Delivery, resumed: cards.CardResumed) -> Command:
    return _tell(delivery, resumed, f"{CARD}{resumed.family}", resumed.family)


def _card_stops(delivery: Delivery, told: cards.CardExpired | cards.CardFrozen) -> Command:
    return _tell(delivery, told, f"{CARD}{told.family}", "")


def _card_refunded(delivery: Delivery, refunded: cards.CardRefunded) -> Command:
    back = (
        _revoked(FactKind.CARD, segment_id, refunded, RevokeReason.REFUNDED)
        for segment_id in (refunded.segment_id, *refunded.later_segment_ids)
    )
    return _tell(delivery, refunded, f"{CARD}{refunded.family}", "", tuple(back))


def _card_given(delivery: Delivery, done: cards.RewardFulfilled) -> Command:
    return _handed_over(delivery, done, done.segment_id)


# --- groups -------------------------------------------------------------------------------------------


def _member_joined(delivery: Delivery, joined: groups.MemberJoined) -> Command:
    """A membership keeps its scheme wherever it moves, so that it is in the scheme is what is learned."""
    fact = Fact(
        kind=FactKind.GROUP,
        reference_id=joined.membership_id,
        occur_time=instant(joined.occur_time),
        attributes={"scheme_id": joined.scheme_id, "group_id": joined.group_id},
    )
    told = _tell(delivery, joined, f"{GROUP}{joined.scheme_id}", joined.scheme_id, (fact,))
    return replace(told, joined=Joined(joined.scheme_id, joined.group_id))


def _member_left(delivery: Delivery, left: groups.MemberLeft) -> Command:
    ended = _revoked(FactKind.GROUP, left.membership_id, left, RevokeReason.LEFT_GROUP)
    facts = () if left.reason in _GONE else (ended,)
    return _tell(delivery, left, f"{GROUP}{left.scheme_id}", "", facts)


def _seat_given(delivery: Delivery, done: groups.RewardFulfilled) -> Command:
    return _handed_over(delivery, done, done.membership_id)


# --- ourselves ----------------------------------------------------------------------------------------


def _invitee_bound(delivery: Delivery, bound: referral.InviteeBound) -> Command:
    return _invitee(delivery, bound, InviteeState.BOUND, bind_time=instant(bound.occur_time))


def _invitee_qualified(delivery: Delivery, qualified: referral.InviteeQualified) -> Command:
    return _invitee(
        delivery,
        qualified,
        InviteeState.QUALIFIED,
        kind=_KINDS[qualified.kind],
        reference_id=qualified.reference_id,
        amount_minor=qualified.amount_minor,
        currency_code=qualified.currency_code,
        qualify_time=instant(qualified.occur_time),
    )


def _invitee_revoked(delivery: Delivery, revoked: referral.InviteeRevoked) -> Command:
    return _invitee(
        delivery,
        revoked,
        InviteeState.REVOKED,
        kind=_KINDS[revoked.kind],
        reference_id=revoked.reference_id,
        revoke_reason=_REASONS[revoked.reason],
    )


def _invitee_dropped(delivery: Delivery, dropped: referral.InviteeDropped) -> Command:
    return _invitee(delivery, dropped, InviteeState.DROPPED)


def _invitee(delivery: Delivery, told: Any, state: InviteeState, **known: Any) -> InviteeTold:
    invitee = Invitee(
        attribution_id=told.attribution_id,
        campaign_id=told.campaign_id,
        depth=told.depth or 1,
        member_id=told.member_id,
        state=state,
        told=(told.epoch, told.version),
        **known,
    )
    return _of(InviteeTold(**_common(delivery, told.member_id), invitee=invitee), told.inviter_member_id)


# --- what they share ----------------------------------------------------------------------------------


def _tell(delivery: Delivery, told: Any, name: str, value: str, facts: tuple[Fact, ...] = ()) -> Tell:
    learned = Learned(name, value, (told.epoch, told.version))
    return Tell(**_common(delivery, told.member_id), learned=learned, facts=facts)


def _revoked(kind: FactKind, reference_id: str, told: Any, reason: RevokeReason) -> Fact:
    at = instant(told.occur_time)
    return Fact(kind=kind, reference_id=reference_id, revoke_time=at, revoke_reason=reason)


def _handed_over(delivery: Delivery, done: Any, reference_id: str) -> Command:
    return RewardHandedOver(
        **_common(delivery, done.member_id),
        reward_id=done.reward_id,
        reference_id=reference_id,
        occur_time=instant(done.occur_time),
    )


def _refused(
    delivery: Delivery,
    refused: points.FulfilmentRefused | cards.FulfilmentRefused | groups.FulfilmentRefused,
) -> Command:
    common = _common(delivery, refused.member_id)
    return RewardRefused(**common, reward_id=refused.reward_id, reason=refused.reason)


_READERS: Readers[Command] = {
    name_of(message): (message, reader)
    for message, reader in (
        (OrderPaid, _order_paid),
        (OrderRefunded, _order_refunded),
        (points.TierChanged, _tier_changed),
        (points.RewardFulfilled, _points_given),
        (points.FulfilmentRefused, _refused),
        (cards.CardActivated, _card_activated),
        (cards.CardExpired, _card_stops),
        (cards.CardFrozen, _card_stops),
        (cards.CardRefunded, _card_refunded),
        (cards.CardResumed, _card_resumed),
        (cards.RewardFulfilled, _card_given),
        (cards.FulfilmentRefused, _refused),
        (groups.MemberJoined, _member_joined),
        (groups.MemberLeft, _member_left),
        (groups.RewardFulfilled, _seat_given),
        (groups.FulfilmentRefused, _refused),
        (referral.InviteeBound, _invitee_bound),
        (referral.InviteeQualified, _invitee_qualified),
        (referral.InviteeRevoked, _invitee_revoked),
        (referral.InviteeDropped, _invitee_dropped),
    )
}

# Whose events are consumed: their stream, its subjects, and those that are read here.
STREAMS = subscriptions.streams(
    _READERS,
    {
        "ORDERS": ("loyalty.orders.v1.>", "loyalty.activities.v1.>"),
        "POINTS": ("loyalty.points.v1.>",),
        "CARDS": ("loyalty.cards.v1.>",),
        "GROUPS": ("loyalty.groups.v1.>",),
        events.STREAM: events.SUBJECTS,
    },
)
