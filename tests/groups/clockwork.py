"""A town whose time is worked through: what others tell and what the clock asks for, as a process does it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.consumer import Delivery, Outcome
from services.chassis.database import Database
from services.chassis.errors import INFRASTRUCTURE
from services.chassis.jobs import Job, Lease
from services.cli.servers import Postgres
from services.groups import putting, tables
from services.groups.rules import compile_programme, compile_scheme
from services.groups.subscriptions import Subscriptions
from services.groups.sweeps import Sweeps
from tests.groups.town import PATIENCE, StandingClock, Town
from tests.support import fresh

KEPT = ("geography", "meta")


async def empty(server: Postgres, url: str) -> None:
    """Takes everything out of a database: what is there is the next test's own."""
    connection = await asyncpg.connect(server.url(urlsplit(url).path.removeprefix("/")))
    try:
        await connection.execute(f"TRUNCATE {', '.join(set(tables.metadata.tables) - set(KEPT))}")
    finally:
        await connection.close()


class Clockwork(Town):
    """A process of the service, with its consumer and its jobs."""

    def __init__(self, database: Database, clock: StandingClock | None = None) -> None:
        super().__init__(database, clock)
        self._subscriptions = Subscriptions(self.batches, "CNY")
        self.sweeps = Sweeps(database, self.clock, self.lore, self.batches)
        self._deliveries = 0

    # --- what others tell -----------------------------------------------------------------------------

    def head(self, member: str, version: int = 1, epoch: int = 1) -> dict[str, Any]:
        """What every event of another service begins with."""
        return {"member_id": member, "occur_time": self.stamp, "epoch": epoch, "version": version}

    @property
    def stamp(self) -> Timestamp:
        """Business time, as messages have it."""
        made = Timestamp()
        made.FromDatetime(self.at)
        return made

    def delivery(self, message: Message, subject: str = "") -> Delivery:
        """An event as a consumer gets it."""
        self._deliveries += 1
        name, body = subject or message.DESCRIPTOR.full_name, message.SerializeToString()
        return Delivery(name, body, "elsewhere", fresh("event"), "", "ELSEWHERE", self._deliveries)

    async def tell(self, *messages: Message) -> Sequence[Outcome]:
        """Delivers events at once, each under an id of its own."""
        return await self.deliver(*map(self.delivery, messages))

    async def deliver(self, *deliveries: Delivery) -> Sequence[Outcome]:
        """Delivers at once, and again, as a consumer does, what met a fault of the infrastructure."""
        async with asyncio.timeout(PATIENCE):
            outcomes = list(await self._subscriptions.handle(deliveries))
            for number, delivery in enumerate(deliveries):
                while isinstance(outcomes[number], INFRASTRUCTURE):
                    (outcomes[number],) = await self._subscriptions.handle([delivery])
        return outcomes

    # --- what the clock asks for ----------------------------------------------------------------------

    async def sweep(self, name: str = "settle") -> bool:
        """One step of a job, as whoever holds its lease does it, also after a fault; whether more waits."""
        job = self._job(name)
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(*INFRASTRUCTURE):
                    return await job.run(Lease(name, 1))

    async def work(self, name: str = "settle") -> int:
        """A job until nothing waits; says how many steps it took."""
        steps = 1
        while await self.sweep(name):
            steps += 1
        return steps

    def _job(self, name: str) -> Job:
        return next(job for job in self.sweeps.jobs() if job.name == name)

    # --- how groups are formed, and who is looked at for it -------------------------------------------

    async def put_for_all(self, *schemes: pb.Scheme) -> None:
        """Puts schemes as the service does: those who are concerned are looked at anew."""
        async with self.database.begin() as connection:
            for made in schemes:
                compiled = compile_scheme(made)
                await putting.put_scheme(
                    connection, self.lore, self.at, compiled, message=made, author="test"
                )

    async def programme_for_all(self, **said: Any) -> None:
        """Puts a programme as the service does."""
        made = ParseDict(said, pb.Programme())
        compile_programme(made)
        async with self.database.begin() as connection:
            await putting.put_programme(connection, self.at, made, "test")
