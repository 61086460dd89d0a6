"""Commands fold over what was locked: each sees what those before it did; one that is refused did nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from services.chassis import outbox
from services.chassis.errors import FailedPrecondition, RequestIdReused, ServiceError
from services.points import commands, crediting, spending, undoing
from services.points.commands import Command, Earn, RefundOrder
from services.points.domain.earning import Scope
from services.points.domain.ledger import Hold, Member, Transaction, new_member
from services.points.errors import ActivityAlreadyEarned, OrderAlreadyEarned, RefundAlreadyApplied
from services.points.rules import Source
from services.points.steps import Scene, Step
from services.points.store import Changes, RefundRow

Answer = Transaction | ServiceError | None
Key = TypeVar("Key")

HANDLERS: Mapping[type[Command], Callable[[Step, Any], Transaction | None]] = {
    commands.Earn: lambda step, command: crediting.earn(step, command.source),
    commands.EarnFixed: crediting.earn_fixed,
    commands.Adjust: crediting.adjust,
    commands.Receive: crediting.receive,
    commands.Learn: crediting.learn,
    commands.Redeem: spending.redeem,
    commands.PlaceHold: spending.place_hold,
    commands.CloseHold: spending.close_hold,
    commands.Send: spending.send,
    commands.RefundOrder: undoing.refund,
    commands.Reverse: undoing.reverse,
    commands.TakeBack: undoing.take_back,
    # What is due is posted for any command.
    commands.Settle: lambda step, _command: step.entries[-1].transaction if step.entries else None,
}


class Fold:
    """What a batch of commands does to a scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seen = scene.seen
        self.announcements: list[outbox.Event] = []
        self._changes = Changes()
        self._changed: dict[str, Member] = {}
        self._touched: dict[tuple[str, tuple[int, int]], None] = {}
        self._holds: dict[tuple[str, int], Hold] = {}
        self._refunds: dict[tuple[str, str, str], RefundRow] = {}

    def changes(self) -> Changes:
        """What is to be saved."""
        made = self._changes
        made.members = list(self._changed.values())
        lots = {m: {lot.name: lot for lot in member.lots} for m, member in self._changed.items()}
        made.lots = [(member_id, lots[member_id][name]) for member_id, name in self._touched]
        made.refunds = list(self._refunds.values())
        made.holds = [(member_id, hold) for (member_id, _), hold in self._holds.items()]
        made.unborn = [
            m.member_id
            for m in self._seen.members.values()
            if not (m.seq or m.version or m.waiting or m.facts)
        ]
        return made

    def answer(self, command: Command) -> Answer:
        """Folds one command over the state."""
        event = command.event
        if event is not None and event[:4] in self._seen.events:
            return None
        try:
            answer = self._known(command) or self._apply(command)
        except ServiceError as refusal:
            if not self._announce_refusal(command, refusal):
                return refusal
            answer = None
        if event is not None:
            self._seen.events.add(event[:4])
            self._changes.events.append(event)
        return answer

    # --- first answers --------------------------------------------------------------------------------

    def _known(self, command: Command) -> Transaction | None:
        """The first answer to a repeated request, order, activity or refund; it comes before any rule."""
        first = self._seen.requests.get((command.member_id, command.request_id))
        if first is not None:
            if first.payload_hash != command.payload_hash:
                raise RequestIdReused(request_id=command.request_id)
            return first
        match command:
            case Earn(source=source):
                return self._earned(command, source)
            case RefundOrder():
                return self._refunded(command)
        return None

    def _earned(self, command: Command, source: Source) -> Transaction | None:
        activity = source.scope is Scope.ACTIVITY
        earned = (self._seen.activities if activity else self._seen.orders).get(
            (command.member_id, source.id)
        )
        if earned is None:
            return None
        if earned[1] != source.body_hash:
            if activity:
                raise ActivityAlreadyEarned(activity_id=source.id, transaction_id=earned[0].transaction_id)
            raise OrderAlreadyEarned(order_id=source.id, transaction_id=earned[0].transaction_id)
        return earned[0]

    def _refunded(self, command: RefundOrder) -> Transaction | None:
        key = (command.member_id, command.order_id)
        for row in self._seen.refunds.get(key, ()):
            if row.refund_id != command.refund_id:
                continue
            if row.body_hash != command.body_hash:
                raise RefundAlreadyApplied(order_id=row.order_id, refund_id=row.refund_id)
            if row.seq is not None:
                past = self._seen.pasts[command.member_id, self._seen.orders[key][0].seq]
                return next(r.transaction for r in past.reversals if r.transaction.seq == row.seq)
        return None

    # --- what is new ----------------------------------------------------------------------------------

    def _apply(self, command: Command) -> Transaction | None:
        occur = self._scene.occur_time(command)
        # Who is not there owns nothing, and is refused accordingly; what credits makes its member.
        member = self._seen.members.get(command.member_id) or new_member(command.member_id)
        # What is due happened before this command; if the command is refused it waits for the next one.
        step = Step(self._scene, member, command, occur)
        step.settle()
        answer = HANDLERS[type(command)](step, command)
        self._keep(step)
        return answer

    def _announce_refusal(self, command: Command, refusal: ServiceError) -> bool:
        """Tells whoever asked by event and waits for an answer; False where nobody does."""
        member = self._seen.members.get(command.member_id)
        if command.event is None or member is None or not isinstance(refusal, FailedPrecondition):
            return False
        step = Step(self._scene, member, command, self._scene.at)
        if not step.refuse(refusal.reason):
            return False
        self._keep(step)
        return True

    def _keep(self, step: Step) -> None:
        """Makes what a command did part of the state."""
        member, changes = step.member, self._changes
        key = member.member_id
        # What was due may turn out not to be: a tier that was held on, say. It must not stay due for ever.
        before = self._seen.members.get(key)
        looked = before is not None and member.next_due_time != before.next_due_time
        if not (step.events or step.told or step.rows or looked):
            return
        self._seen.members[key] = self._changed[key] = member
        self.announcements += step.events
        changes.entries += step.entries
        changes.refused += step.refused
        for row in step.rows:
            self._refunds[row.key] = row
        for row, _ in step.refused:  # it may have come in this very batch
            self._refunds.pop(row.key, None)
        if step.told:
            changes.facts.add(key)
        for name in step.touched:
            self._touched[key, name] = None
        for hold in step.holds:
            self._holds[key, hold.seq] = hold
        for (rule_id, day), amount in step.caps.items():
            _add(changes.caps, (key, rule_id, day), amount)
            _add(self._seen.caps.setdefault((key, day), {}), rule_id, amount)
        for day, amount in step.growth.items():
            _add(changes.growth, (key, day), amount)


def _add(counters: dict[Key, int], key: Key, amount: int) -> None:
    counters[key] = counters.get(key, 0) + amount
