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
from services.referral import binding, climbing, commands, inviting, qualifying, reviewing, rewarding
from services.referral.commands import BindInvitee, Command, InviteeTold
from services.referral.domain.profile import Invitee, RevokeReason
from services.referral.errors import CodeUnknown
from services.referral.steps import Scene, Step
from services.referral.store import Changes

Answer = bytes | ServiceError | None
"""What a call is answered with, serialized; None where nobody waits for more than that it is done."""

HANDLERS: Mapping[type[Command], Callable[[Step, Any], Message | None]] = {
    commands.CreateInvite: inviting.create,
    commands.BindInvitee: binding.bind,
    commands.RecordQualification: qualifying.record,
    commands.RevokeQualification: qualifying.revoke,
    commands.Tell: qualifying.tell,
    commands.InviteeTold: climbing.told,
    commands.Recount: lambda step, command: climbing.climb(step, command.campaign_id, ()),
    commands.RewardHandedOver: rewarding.handed_over,
    commands.RewardRefused: rewarding.refused,
    commands.RecordRewardPaid: rewarding.record_paid,
    commands.RetryReward: rewarding.retry,
    commands.WriteOffReward: rewarding.write_off,
    commands.GrantReward: rewarding.grant,
    commands.ReturnReward: rewarding.give_back,
    commands.ResolveReview: reviewing.resolve,
    commands.Settle: lambda _step, _command: None,  # what is due is posted for any command
}


def settle(step: Step, since: datetime | None = None) -> None:
    """Posts what has fallen due, and notes when something will be next; `since` as in the chassis."""
    step.profile.next_due_time = due.settle(partial(_upcoming, step), step.at, since)


def _upcoming(step: Step) -> Iterator[Due]:
    """What the clock will ask for; of what is due at one moment, first what comes first here."""
    for module in (qualifying, rewarding):
        yield from module.upcoming(step)


class Fold:
    """What a batch of commands does to a scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seen = scene.seen
        self._moved: dict[tuple[str, str], list[Invitee]] = {}  # by inviter and campaign
        self._told_by: dict[tuple[str, str], Command] = {}  # the last that moved some there
        self.announcements: list[outbox.Event] = []
        self.changes = Changes(scene.seen.copy(), scene.seen)

    def answer(self, command: Command) -> Answer:
        """Folds one command over the state."""
        alone = isinstance(command, InviteeTold) and command.invitee.revoke_reason is RevokeReason.FRAUD
        if alone:  # what fraud brought is taken back in any case, and nothing else is for its sake
            self.finish()
        answer = self._seen.done.answer(command, self._apply)
        if alone:
            self.finish()
        if isinstance(command, BindInvitee) and isinstance(answer, CodeUnknown):
            tries, name = self._seen.tries, (command.caller, self._scene.minute)
            tries[name] = tries.get(name, 0) + 1
        return answer

    def _apply(self, command: Command) -> bytes | None:
        step = Step(self._scene, command)
        next_due = step.profile.next_due_time
        if next_due is not None and next_due <= step.at:
            # It happened before this command; if the command is refused it waits for the next one.
            settle(step)
        message = HANDLERS[type(command)](step, command)
        settle(step, step.at)
        self._keep(step)
        return None if message is None else message.SerializeToString(deterministic=True)

    def finish(self) -> None:
        """Does, after the last command, what follows for inviters from all that they were told."""
        for name, moved in self._moved.items():
            step = Step(self._scene, self._told_by[name])
            climbing.climb(step, name[1], moved)
            settle(step, step.at)
            self._keep(step)
        self._moved = {}

    def _keep(self, step: Step) -> None:
        """Makes what a command did part of the state."""
        seen = self._seen
        for invitee in step.moved:
            name = (step.profile.member_id, invitee.campaign_id)
            self._moved.setdefault(name, []).append(invitee)
            self._told_by[name] = step.command
        seen.profiles[step.profile.member_id] = step.profile
        seen.pairs |= step.pairs
        seen.reviews |= step.reviews
        seen.budgets |= step.budgets
        if step.inviter is not None:
            self._scene.came[step.inviter] += 1
        self._scene.came.update((one.campaign_id, one.signal, one.value) for one in step.signals)
        self.changes.signals |= step.signals
        self.announcements += step.events
