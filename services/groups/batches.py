"""The transaction around a batch. Calls, events and sweeps all post through the same gather."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.chassis import failpoints
from services.chassis.clock import Clock
from services.chassis.database import Database, TransactionConflict
from services.chassis.gather import Gather
from services.groups import service
from services.groups.commands import Command
from services.groups.folding import Answer
from services.groups.service import Lore
from services.groups.steps import Again
from services.groups.wanting import Asked

TRIES = 12  # batches that a command goes into; each knows more of what it needs


class Batches:
    """Writes commands, many in a transaction. `wake` tells the relay of new events."""

    def __init__(self, database: Database, clock: Clock, lore: Lore, wake: Callable[[], None]) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self.wake = wake
        self._posts: Gather[Asked, Answer] = Gather("posts", self._post)

    async def post(self, command: Command, lacks: Again | None = None) -> bytes | None:
        """Writes a command, with others; what it lacks in a batch the next one has. Raises its refusal.

        `lacks` is what is known to be lacking before the first.
        """
        asked = Asked(command)
        if lacks is not None:
            asked = asked.again(lacks)
        for _ in range(TRIES):
            answer = await self._posts.submit(asked)
            if not isinstance(answer, Again):
                assert not isinstance(answer, Exception)  # noqa: S101 - refusals are raised
                return answer
            asked = asked.again(answer)
        raise TransactionConflict

    async def _post(self, asked: Sequence[Asked]) -> list[Answer]:
        async with self._database.begin() as connection:
            answers, announced = await service.post(connection, asked, self._lore, self._clock.now())
            failpoints.reach("before_commit")
        failpoints.reach("after_commit")
        if announced:
            self.wake()
        return answers
