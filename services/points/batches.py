"""The transaction around a batch. Calls, events and sweeps all post through the same gather."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.chassis import failpoints
from services.chassis.clock import Clock
from services.chassis.database import Database
from services.chassis.errors import ServiceError
from services.chassis.gather import Gather
from services.points import service
from services.points.commands import Command
from services.points.domain.ledger import Member
from services.points.folding import Answer
from services.points.rules import Programmes


class Batches:
    """Writes commands and reads balances, many in a transaction. `wake` tells the relay of new events."""

    def __init__(
        self, database: Database, clock: Clock, programmes: Programmes, epoch: int, wake: Callable[[], None]
    ) -> None:
        self._database = database
        self._clock = clock
        self._programmes = programmes
        self._epoch = epoch
        self.wake = wake
        self.posts: Gather[Command, Answer] = Gather("posts", self._post)
        self.balances: Gather[str, Member | None] = Gather("balances", self._read)

    async def _post(self, commands: Sequence[Command]) -> Sequence[Answer | ServiceError]:
        async with self._database.begin() as connection:
            answers, announced = await service.post(
                connection, commands, self._programmes, self._epoch, self._clock.now()
            )
            failpoints.reach("before_commit")
        failpoints.reach("after_commit")
        if announced:
            self.wake()
        return answers

    async def _read(self, member_ids: Sequence[str]) -> Sequence[Member | ServiceError | None]:
        async with self._database.read() as connection:
            return await service.balances(connection, member_ids, self._programmes, self._clock.now())
