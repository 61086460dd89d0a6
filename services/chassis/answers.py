"""First answers, kept whole in the transaction of the change: a repeat gets the same, whatever holds by then.

For what is asked of a member, by call or by event; what operators ask has `requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeVar

import sqlalchemy as sa

from services.chassis import columns
from services.chassis.asked import Asked
from services.chassis.database import Connection, Insert, Statement
from services.chassis.errors import AnswerErased, RequestIdReused, ServiceError
from services.chassis.ids import bucket
from services.chassis.inbox import Inbox, InboxKey
from services.chassis.statements import MEMBER, By, Lookup, keyed, of_member

Named = tuple[str, str]
"""A member, and the id of something of it: here, of a request."""


Command = TypeVar("Command", bound=Asked)


class Answered(NamedTuple):
    """The first answer to a request."""

    payload_hash: bytes
    body: bytes | None
    """None once its member was erased."""


@dataclass(slots=True)
class Done:
    """What was done before, as far as a batch asks, and what the batch adds to that."""

    answers: dict[Named, Answered] = field(default_factory=dict)
    events: set[tuple[str, ...]] = field(default_factory=set)
    new_answers: dict[Named, Answered] = field(default_factory=dict)
    new_events: list[InboxKey] = field(default_factory=list)

    def has(self, command: Asked) -> bool:
        """Whether a command was done."""
        return self._had(command.event) or (command.member_id, command.request_id) in self.answers

    def answer(self, command: Command, do: Callable[[Command], bytes | None]) -> bytes | ServiceError | None:
        """The first answer to a command; one that was not done is done now. A refusal is no first answer.

        It is None where nobody waits for more than that it is done: `do` says so, or an event asks.
        """
        if self._had(command.event):
            return None
        try:
            answer = self.first(command.member_id, command.request_id, command.payload_hash)
            if answer is None:
                answer = do(command)
        except ServiceError as refusal:
            return refusal
        if answer is not None:
            self.remember(command.member_id, command.request_id, command.payload_hash, answer)
        if command.event is None:
            return answer
        self.events.add(command.event[:4])
        self.new_events.append(command.event)
        return None

    def first(self, member_id: str, request_id: str, payload_hash: bytes) -> bytes | None:
        """The first answer to a request, if it has one. Raises RequestIdReused, AnswerErased."""
        first = self.answers.get((member_id, request_id))
        if first is None:
            return None
        if first.payload_hash != payload_hash:
            raise RequestIdReused(request_id=request_id)
        if first.body is None:
            raise AnswerErased
        return first.body

    def remember(self, member_id: str, request_id: str, payload_hash: bytes, answer: bytes) -> None:
        """Keeps an answer to a request, unless it has one."""
        key = (member_id, request_id)
        if key not in self.answers:
            self.answers[key] = self.new_answers[key] = Answered(payload_hash, answer)

    def _had(self, event: InboxKey | None) -> bool:
        return event is not None and event[:4] in self.events


def answers_table(metadata: sa.MetaData) -> sa.Table:
    """The first answer to each write, serialized."""
    return sa.Table(
        "answers",
        metadata,
        *columns.member_key(),
        columns.key("request_id"),
        sa.Column("payload_hash", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary),  # none once its member was erased
        columns.instant("create_time"),
    )


class Answers:
    """The first answers of one service, and its inbox. All is done under the locks of the members."""

    def __init__(self, table: sa.Table, inbox: Inbox) -> None:
        self._inbox = inbox
        self._find = Lookup(table, named=By((*MEMBER, "request_id")))
        self._add = Insert(table)
        self._erase = Statement(
            sa.update(table).where(*of_member(table), table.c.body.is_not(None)).values(body=None)
        )

    async def read(
        self, connection: Connection, requests: Collection[Named], events: Collection[InboxKey]
    ) -> Done:
        """Which of these requests and events were done."""
        rows = await self._find.fetch(connection, named=keyed(requests))
        answers = {
            (row["member_id"], row["request_id"]): Answered(row["payload_hash"], row["body"]) for row in rows
        }
        return Done(answers, await self._inbox.known(connection, events))

    async def write(self, connection: Connection, done: Done, at: datetime) -> set[str]:
        """Keeps what a batch added, `at` being wall time; returns the members that it is about."""
        added = done.new_answers.items()
        await self._add.rows(
            connection, [(bucket(key[0]), *key, first.payload_hash, first.body, at) for key, first in added]
        )
        await self._inbox.add(connection, done.new_events, at)
        return {member_id for member_id, _ in done.new_answers} | {key.member_id for key in done.new_events}

    async def erase(self, connection: Connection, member_id: str) -> None:
        """Blanks a member's answers. What was asked is still known by its request_id."""
        await self._erase.execute(connection, b=bucket(member_id), member=member_id)
