"""Commands fold over what was locked: each sees what those before it did; one that is refused did nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from services.cards import chains, commands, orders, renewing, selling, using
from services.cards.commands import Command, ConfirmPayment
from services.cards.errors import AnswerErased, PaymentAlreadyTold
from services.cards.steps import Due, Scene, Step
from services.cards.store import Answered, Changes
from services.chassis import outbox
from services.chassis.errors import RequestIdReused, ServiceError
from services.chassis.inbox import InboxKey

Answer = bytes | ServiceError | None
"""What a call is answered with, serialized; None where nobody waits for more than that it is done."""


def learn(step: Step, command: commands.LearnFact) -> None:
    """Notes what another service told, unless something newer is known."""
    wallet = step.wallet
    if command.version <= wallet.fact_versions.get(command.name, (0, 0)):
        return
    wallet.fact_versions = {**wallet.fact_versions, command.name: command.version}
    if command.name == commands.TIER:
        wallet.tier = command.value
        return
    others = {name: value for name, value in wallet.facts.items() if name != command.name}
    wallet.facts = {**others, command.name: command.value} if command.value else others


HANDLERS: Mapping[type[Command], Callable[[Step, Any], Message | None]] = {
    commands.PlaceOrder: selling.place_order,
    commands.GiftOrder: selling.gift_order,
    commands.ConfirmPayment: selling.confirm_payment,
    commands.RecordRefundPaid: selling.record_refund_paid,
    commands.CancelOrder: selling.cancel_order,
    commands.ActivateGift: selling.activate_gift,
    commands.ReturnGift: selling.return_gift,
    commands.HoldPlaced: selling.hold_placed,
    commands.HoldEnded: selling.hold_ended,
    commands.HoldCaptured: selling.hold_captured,
    commands.RefundCard: chains.refund,
    commands.FreezeCard: chains.freeze,
    commands.ResumeCard: chains.resume,
    commands.GrantReward: chains.grant,
    commands.ClawBack: chains.claw_back,
    commands.Redeem: using.redeem,
    commands.ConfirmUses: using.confirm,
    commands.ReverseUses: using.reverse,
    commands.OrderRefunded: using.refunded,
    commands.SetAutoRenew: renewing.set_auto_renew,
    commands.RecordNotice: renewing.record_notice,
    commands.CancelAutoRenew: renewing.cancel_auto_renew,
    commands.LearnFact: learn,
    commands.Settle: lambda _step, _command: None,  # what is due is posted for any command
}


def settle(step: Step, since: datetime | None = None) -> None:
    """Posts what has fallen due, in order of time, and notes what will be next.

    `since` is when what is due now can have become so at the earliest: after a command, now.
    """
    while (due := min(_upcoming(step), key=lambda due: due.moment, default=None)) is not None:
        if due.moment > step.at:
            break
        since = due.moment if since is None else max(since, due.moment)
        due.post(since)
    step.wallet.next_due_time = due.moment if due else None


def _upcoming(step: Step) -> Iterator[Due]:
    """What the clock will ask for; of what is due at one moment, first what comes first here."""
    for module in (orders, using, chains, renewing):
        yield from module.upcoming(step)


class Fold:
    """What a batch of commands does to a scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seen = scene.seen
        # Records are never changed: what was there is kept by the dictionaries that held it.
        before = replace(
            scene.seen,
            wallets=dict(scene.seen.wallets),
            payment_claims=dict(scene.seen.payment_claims),
            gifts=dict(scene.seen.gifts),
            slots=dict(scene.seen.slots),
        )
        self.announcements: list[outbox.Event] = []
        self.changes = Changes(before, scene.seen)

    def answer(self, command: Command) -> Answer:
        """Folds one command over the state."""
        event = command.event
        if event is not None and event[:4] in self._seen.events:
            return None
        try:
            answer = self._known(command)
            if answer is None:
                answer = self._apply(command)
        except ServiceError as refusal:
            return refusal
        if event is not None:
            self._had(event)
        elif answer is not None:
            self._remember(command.member_id, command.request_id, command.payload_hash, answer)
        return answer

    # --- first answers --------------------------------------------------------------------------------

    def _known(self, command: Command) -> bytes | None:
        """The first answer to a repeated request or payment; it comes before any rule."""
        first = self._seen.answers.get((command.member_id, command.request_id))
        if first is not None:
            if first.payload_hash != command.payload_hash:
                raise RequestIdReused(request_id=command.request_id)
            return _body(first)
        return self._told(command) if isinstance(command, ConfirmPayment) else None

    def _told(self, command: ConfirmPayment) -> bytes | None:
        """The first answer to a payment, under whatever request_id it was told.

        It is kept under the payment's own name too. Whose it is belongs to what was told of it.
        """
        claim = self._seen.payment_claims.get(command.payment_name)
        if claim is None:
            return None
        if claim.payload_hash != selling.body_hash(command):
            raise PaymentAlreadyTold(channel=command.channel, payment_id=command.payment_id)
        return _body(self._seen.answers[command.member_id, selling.own_name(command)])

    def _remember(self, member_id: str, request_id: str, payload_hash: bytes, answer: bytes) -> None:
        key = (member_id, request_id)
        if key not in self._seen.answers:
            self._seen.answers[key] = self.changes.answers[key] = Answered(payload_hash, answer)

    def _had(self, event: InboxKey) -> None:
        self._seen.events.add(event[:4])
        self.changes.events.append(event)

    # --- what is new ----------------------------------------------------------------------------------

    def _apply(self, command: Command) -> bytes | None:
        step = Step(self._scene, command)
        due = step.wallet.next_due_time
        if due is not None and due <= step.at:
            # It happened before this command; if the command is refused it waits for the next one.
            settle(step)
        message = HANDLERS[type(command)](step, command)
        settle(step, step.at)
        self._keep(step)
        if message is None:
            return None
        answer = message.SerializeToString(deterministic=True)
        if isinstance(command, ConfirmPayment):
            own = selling.own_name(command)
            self._remember(command.member_id, own, selling.body_hash(command), answer)
        return answer

    def _keep(self, step: Step) -> None:
        """Makes what a command did part of the state."""
        self._seen.wallets[step.wallet.member_id] = step.wallet
        self._seen.payment_claims |= step.payment_claims
        self._seen.gifts |= step.gifts
        for name, slot in step.slots.items():
            if slot is None:
                self._seen.slots.pop(name, None)
            else:
                self._seen.slots[name] = slot
        self._scene.places |= step.places
        self.announcements += step.events


def _body(first: Answered) -> bytes:
    if first.body is None:
        raise AnswerErased
    return first.body
