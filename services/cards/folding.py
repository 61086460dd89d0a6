"""Commands fold over what was locked: each sees what those before it did; one that is refused did nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf.message import Message

from services.cards import chains, commands, orders, renewing, selling, using
from services.cards.commands import Command, ConfirmPayment
from services.cards.errors import PaymentAlreadyTold
from services.cards.steps import Scene, Step
from services.cards.store import Changes
from services.chassis import due, outbox
from services.chassis.due import Due
from services.chassis.errors import ServiceError

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
    """Posts what has fallen due, and notes when something will be next; `since` as in the chassis."""
    step.wallet.next_due_time = due.settle(partial(_upcoming, step), step.at, since)


def _upcoming(step: Step) -> Iterator[Due]:
    """What the clock will ask for; of what is due at one moment, first what comes first here."""
    for module in (orders, using, chains, renewing):
        yield from module.upcoming(step)


class Fold:
    """What a batch of commands does to a scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seen = scene.seen
        self.announcements: list[outbox.Event] = []
        self.changes = Changes(scene.seen.copy(), scene.seen)

    def answer(self, command: Command) -> Answer:
        """Folds one command over the state."""
        if isinstance(command, ConfirmPayment):
            return self._seen.done.answer(command, self._confirm_payment)
        return self._seen.done.answer(command, self._apply)

    def _confirm_payment(self, command: ConfirmPayment) -> bytes | None:
        """The first answer to a payment, under whatever request_id it was told.

        It is kept under the payment's own name too. Whose it is belongs to what was told of it.
        """
        claim, done = self._seen.payment_claims.get(command.payment_name), self._seen.done
        member_id, own, body_hash = command.member_id, selling.own_name(command), selling.body_hash(command)
        if claim is not None:
            if claim.payload_hash != body_hash:
                raise PaymentAlreadyTold(channel=command.channel, payment_id=command.payment_id)
            return done.first(member_id, own, body_hash)
        answer = self._apply(command)
        assert answer is not None  # noqa: S101 - a payment is answered
        done.remember(member_id, own, body_hash, answer)
        return answer

    def _apply(self, command: Command) -> bytes | None:
        step = Step(self._scene, command)
        next_due = step.wallet.next_due_time
        if next_due is not None and next_due <= step.at:
            # It happened before this command; if the command is refused it waits for the next one.
            settle(step)
        message = HANDLERS[type(command)](step, command)
        settle(step, step.at)
        self._keep(step)
        return None if message is None else message.SerializeToString(deterministic=True)

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
