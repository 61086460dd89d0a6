"""A club whose time is worked through: what others tell and what the clock asks for, as a process does it.

What it announces about invitees it hears itself, as by its own consumer, once a test says `hear`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.orders.v1.orders_pb2 import OrderPaid, OrderRefunded, Refund
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.consumer import Delivery, Outcome
from services.chassis.database import Database
from services.chassis.errors import INFRASTRUCTURE
from services.chassis.ids import bucket
from services.chassis.jobs import Job, Jobs
from services.cli.servers import Postgres
from services.referral import putting, store, tables
from services.referral.__main__ import SCHEMA
from services.referral.commands import Command
from services.referral.domain.profile import Profile
from services.referral.rules import compile_campaign
from services.referral.subscriptions import STREAMS, Subscriptions
from services.referral.sweeps import Sweeps
from tests import schema
from tests.conftest import NOON
from tests.referral.calls import a_campaign
from tests.referral.club import PATIENCE, Club, StandingClock
from tests.support import fresh, order

Announced = TypeVar("Announced", bound=Message)


def make_database(server: Postgres) -> str:
    """Makes an empty database on the server, where all rows are the test's own; its URL."""
    return schema.make_database(server, "referral", SCHEMA)


class Clockwork:
    """A process of the service, with its consumer and its jobs. It is NOON until the test lets time pass."""

    def __init__(self, database: Database, clock: StandingClock | None = None) -> None:
        self.database = database
        self.clock = clock or StandingClock(NOON)
        self.club = Club(database, self.clock)
        self._jobs = Jobs(tables.jobs, fresh("process"))
        self._sweeps = Sweeps(database, self.clock, self._jobs, self.club.lore, self.club.batches)
        self._subscriptions = Subscriptions(database, self.clock, self.club.batches)
        self._deliveries = 0
        self._heard: set[str] = set()

    # --- calls ----------------------------------------------------------------------------------------

    async def put(self, **said: Any) -> pb.Campaign:
        """Puts a campaign: by default a first order counts, and is rewarded at once."""
        message = a_campaign(**said)
        async with self.database.begin() as connection:
            return await putting.put_campaign(
                connection, self.clock.at, compile_campaign(message), message=message, author="test"
            )

    async def do(self, kind: type[Command], member: str, **fields: Any) -> bytes:
        """Does a command. Raises its refusal."""
        return await self.club.do(kind, member, **fields)

    async def invite(self, campaign: pb.Campaign, member: str, **fields: Any) -> pb.Invite:
        """A member's invite."""
        return await self.club.invite(member, campaign.campaign_id, **fields)

    async def bring(self, campaign: pb.Campaign, inviter: str, *members: str, **fields: Any) -> None:
        """Binds members to an inviter."""
        invite = await self.invite(campaign, inviter)
        await asyncio.gather(*(self.club.bind(member, invite, **fields) for member in members))

    # --- what others tell -----------------------------------------------------------------------------

    def head(self, member: str, version: int = 1, epoch: int = 1) -> dict[str, Any]:
        """What every event of another service begins with."""
        return {"member_id": member, "occur_time": self.stamp, "epoch": epoch, "version": version}

    @property
    def stamp(self) -> Timestamp:
        """Business time, as messages have it."""
        made = Timestamp()
        made.FromDatetime(self.clock.at)
        return made

    def paid(self, member: str, order_id: str = "", minor: int = 3_000) -> OrderPaid:
        """An order that was paid now."""
        what = order(minor, self.clock.at, order_id=order_id or fresh("order"))
        return OrderPaid(member_id=member, order=what)

    def refunded(self, member: str, order_id: str, minor: int = 0) -> OrderRefunded:
        """A refund that was made now, of all that is left unless an amount is said."""
        refund = Refund(order_id=order_id, refund_id=fresh("refund"), refund_time=self.stamp)
        if minor:
            refund.amount_minor = minor
        else:
            refund.all = True
        return OrderRefunded(member_id=member, refund=refund)

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

    async def hear(self, *members: str) -> int:
        """Hears what was announced about invitees, by default all, until nothing more comes of it.

        Says how many events there were.
        """
        count, query = (
            0,
            """SELECT event_id, subject, body FROM outbox
            WHERE subject = ANY($1) AND (cardinality($2::text[]) = 0 OR entity_key = ANY($2))
            ORDER BY position""",
        )
        while True:
            async with self.database.read() as connection:
                rows = await connection.fetch(query, list(STREAMS["REFERRAL"][1]), list(members))
            told = [
                Delivery(row["subject"], row["body"], "referral", row["event_id"], "", "REFERRAL", number)
                for number, row in enumerate(rows, 1)
                if row["event_id"] not in self._heard
            ]
            if not told:
                return count
            assert await self.deliver(*told) == [None] * len(told)
            self._heard |= {one.event_id for one in told}
            count += len(told)

    # --- time -----------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """What it does periodically."""
        return self._sweeps.jobs()

    async def sweep(self, name: str = "settle") -> bool:
        """One step of a job, by whoever gets its lease, also after a fault; whether more waits."""
        (job,) = [job for job in self.jobs() if job.name == name]
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(*INFRASTRUCTURE):
                    lease = await self._jobs.claim(self.database, name)
                    if lease is not None:
                        async with self._jobs.held(self.database, lease, 0.0):
                            return await job.run(lease)
                await asyncio.sleep(0.01)

    async def work(self, name: str = "settle") -> int:
        """A job until nothing waits; says how many steps it took."""
        steps = 1
        while await self.sweep(name):
            steps += 1
        return steps

    async def reward(self, member: str) -> list[epb.RewardGranted]:
        """Grants what can be, until the member was told of a reward."""
        async with asyncio.timeout(PATIENCE):
            while not (granted := await self.granted(member)):
                await self.work("grant")
        return granted

    def wait(self, **duration: float) -> None:
        """Lets time pass; nothing is posted."""
        self.club.wait(**duration)

    # --- what came of it ------------------------------------------------------------------------------

    async def heard(self, entity: str, kind: type[Announced]) -> list[Announced]:
        """What was announced of a kind about a member or a campaign, in order."""
        return await self.club.heard(entity, kind)

    async def announced(self, entity: str) -> list[str]:
        """What was announced about a member or a campaign, by name, in order."""
        query = "SELECT subject FROM outbox WHERE bucket = $1 AND entity_key = $2 ORDER BY position"
        rows = await self.club.fetch(query, bucket(entity), entity)
        return [row["subject"].rpartition(".")[2] for row in rows]

    async def granted(self, member: str) -> list[epb.RewardGranted]:
        """The rewards that a member was told to get."""
        return await self.heard(member, epb.RewardGranted)

    async def profile(self, member: str, campaign: pb.Campaign | None = None) -> Profile:
        """What is kept of a member as invitee, and as inviter in a campaign."""
        return await self.club.profile(member, campaign.campaign_id if campaign else "")

    async def known(self, member: str) -> bool:
        """Whether anything is kept of a member."""
        async with self.database.read() as connection:
            return await store.member(connection, member) is not None
