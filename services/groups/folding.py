"""Commands fold over what was locked: each sees what those before it did; one that is refused did nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf.message import Message

from services.chassis import due, outbox
from services.chassis.due import Due
from services.chassis.errors import ServiceError
from services.groups import assigning, commands, joining, learning, relocating, tagging
from services.groups.commands import Command
from services.groups.steps import Again, Scene, Step
from services.groups.store import Changes

Answer = bytes | ServiceError | Again | None
"""What a call is answered with, serialized; None where nobody waits for more than that it is done. Again: the
command has to go into another batch."""

HANDLERS: Mapping[type[Command], Callable[[Step, Any], Message | None]] = {
    commands.AssignMember: assigning.assign,
    commands.GrantReward: assigning.grant,
    commands.ClawBack: assigning.claw_back,
    commands.JoinGroup: joining.join,
    commands.LeaveGroup: joining.leave,
    commands.LapseSeat: joining.lapse_seat,
    commands.MoveOut: relocating.move_out,
    commands.TagMember: tagging.tag,
    commands.UntagMember: tagging.untag,
    commands.Reevaluate: tagging.reevaluate,
    commands.OrderTold: learning.order_told,
    commands.RefundTold: learning.refund_told,
    commands.LearnFact: learning.learn,
    commands.Settle: lambda _step, _command: None,  # what is due is posted for any command
}


def settle(step: Step, since: datetime | None = None) -> None:
    """Posts what has fallen due, and notes when something will be next; `since` as in the chassis."""
    step.profile.next_due_time = due.settle(partial(_upcoming, step), step.at, since)


def _upcoming(step: Step) -> Iterator[Due]:
    """What the clock will ask for; of what is due at one moment, first what comes first here."""
    for module in (joining, tagging):
        yield from module.upcoming(step)


class Fold:
    """What a batch of commands does to a scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seen = scene.seen
        self._waiting: set[str] = set()  # members of whom a command goes again: so do those after it
        self.announcements: list[outbox.Event] = []
        self.changes = Changes(scene.seen.copy(), scene.seen)

    def answer(self, command: Command) -> Answer:
        """Folds one command over the state."""
        try:
            return self._seen.done.answer(command, self._apply)
        except Again as again:
            self._waiting.add(command.member_id)
            return again

    def _apply(self, command: Command) -> bytes | None:
        if command.member_id in self._waiting:
            raise Again
        step = Step(self._scene, command)
        next_due = step.profile.next_due_time
        if next_due is not None and next_due <= step.at:
            # It happened before this command; if the command is refused it waits for the next one.
            settle(step)
        message = HANDLERS[type(command)](step, command)
        settle(step, step.at)
        self._keep(step)
        return None if message is None else message.SerializeToString(deterministic=True)

    def _keep(self, step: Step) -> None:
        """Makes what a command did part of the state."""
        self._seen.profiles[step.profile.member_id] = step.profile
        self._scene.keep(step)
        self.announcements += step.events
