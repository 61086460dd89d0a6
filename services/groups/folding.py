"""Commands fold over what was locked: each sees what those before it did; one that is refused did nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from services.chassis import outbox
from services.chassis.errors import RequestIdReused, ServiceError
from services.chassis.inbox import InboxKey
from services.groups import assigning, commands, joining, learning, relocating, tagging
from services.groups.commands import Command
from services.groups.errors import AnswerErased
from services.groups.steps import Again, Due, Scene, Step
from services.groups.store import Answered, Changes

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
    """Posts what has fallen due, in order of time, and notes what will be next.

    `since` is when what is due now can have become so at the earliest: after a command, now.
    """
    while (due := min(_upcoming(step), key=lambda due: due.moment, default=None)) is not None:
        if due.moment > step.at:
            break
        since = due.moment if since is None else max(since, due.moment)
        due.post(since)
    step.profile.next_due_time = due.moment if due else None


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
        event = command.event
        if event is not None and event[:4] in self._seen.events:
            return None
        try:
            answer = self._known(command)
            if answer is None:
                answer = self._apply(command)
        except ServiceError as refusal:
            return refusal
        except Again as again:
            self._waiting.add(command.member_id)
            return again
        if event is not None:
            self._had(event)
        if answer is not None:
            self._remember(command, answer)
        return answer if event is None else None

    # --- first answers --------------------------------------------------------------------------------

    def _known(self, command: Command) -> bytes | None:
        """The first answer to a repeated request; it comes before any rule."""
        first = self._seen.answers.get((command.member_id, command.request_id))
        if first is None:
            return None
        if first.payload_hash != command.payload_hash:
            raise RequestIdReused(request_id=command.request_id)
        if first.body is None:
            raise AnswerErased
        return first.body

    def _remember(self, command: Command, answer: bytes) -> None:
        key = (command.member_id, command.request_id)
        if key not in self._seen.answers:
            self._seen.answers[key] = self.changes.answers[key] = Answered(command.payload_hash, answer)

    def _had(self, event: InboxKey) -> None:
        self._seen.events.add(event[:4])
        self.changes.events.append(event)

    # --- what is new ----------------------------------------------------------------------------------

    def _apply(self, command: Command) -> bytes | None:
        if command.member_id in self._waiting:
            raise Again
        step = Step(self._scene, command)
        # What is due happened before this command; if the command is refused it waits for the next one.
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
