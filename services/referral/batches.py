"""The transaction around a batch. Calls, events and sweeps all post through the same gather."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.chassis import failpoints
from services.chassis.clock import Clock
from services.chassis.database import Database
from services.chassis.gather import Gather
from services.referral import service
from services.referral.commands import Command
from services.referral.folding import Answer
from services.referral.service import Lore


class Batches:
    """Writes commands, many in a transaction. `wake` tells the relay of new events."""

    def __init__(self, database: Database, clock: Clock, lore: Lore, wake: Callable[[], None]) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self.wake = wake
        self.posts: Gather[Command, Answer] = Gather("posts", self._post)

    async def post(self, command: Command) -> bytes | None:
        """Writes a command, with others. Raises its refusal."""
        answer = await self.posts.submit(command)
        assert not isinstance(answer, Exception)  # noqa: S101 - refusals are raised
        return answer

    async def _post(self, commands: Sequence[Command]) -> list[Answer]:
        async with self._database.begin() as connection:
            answers, announced = await service.post(connection, commands, self._lore, self._clock.now())
            failpoints.reach("before_commit")
        failpoints.reach("after_commit")
        if announced:
            self.wake()
        return answers
