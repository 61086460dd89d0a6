"""A club: the service on a real database, in a time of its own; only gRPC and the streams are left out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.asked import by_clock
from services.chassis.consumer import Delivery
from services.chassis.database import Connection, Database
from services.chassis.errors import INFRASTRUCTURE
from services.chassis.ids import bucket
from services.chassis.inbox import InboxKey
from services.referral import putting, service, store
from services.referral.batches import Batches
from services.referral.commands import BindInvitee, Command, CreateInvite, Recount, Tell
from services.referral.domain.profile import Fact, Profile
from services.referral.errors import TooManyTries
from services.referral.rules import compile_campaign
from services.referral.service import Lore
from services.referral.store import Changes, Wanted
from services.referral.subscriptions import read
from tests.referral.circle import OWN, TERMS, campaign
from tests.referral.plain import NOON
from tests.support import TIMEOUT, fresh

Announced = TypeVar("Announced", bound=Message)

PATIENCE = 5 * TIMEOUT  # many wait for one another


class StandingClock:
    """Business time that stands still until the test moves it; what was settled last is remembered."""

    def __init__(self, at: datetime = NOON) -> None:
        self.at = at
        self.settled_at: datetime | None = None

    def now(self) -> datetime:
        """The instant it stands at."""
        return self.at

    def settled(self, at: datetime) -> None:
        """Remembers it."""
        self.settled_at = at


class Club:
    """Members and campaigns of the test's own in a database that others use too."""

    def __init__(self, database: Database, clock: StandingClock | None = None) -> None:
        self.database = database
        self.clock = clock or StandingClock()
        self.lore = Lore(TERMS)
        self.batches = Batches(database, self.clock, self.lore, lambda: None)

    @property
    def at(self) -> datetime:
        """Business time."""
        return self.clock.at

    def wait(self, **duration: float) -> None:
        """Lets time pass; nothing is posted."""
        self.clock.at += timedelta(**duration)

    async def put(self, *ladder: dict[str, Any], **said: Any) -> str:
        """Puts a campaign, of a name of its own unless one is said; returns its id."""
        made = campaign(*ladder, **{"campaign_id": fresh("campaign"), **said})
        await self.put_message(made)
        return made.campaign_id

    async def put_message(self, made: pb.Campaign) -> None:
        """Puts a campaign."""
        async with self.database.begin() as connection:
            await putting.put_campaign(
                connection, self.at, compile_campaign(made), message=made, author="test"
            )

    # --- calls ----------------------------------------------------------------------------------------

    async def do(self, kind: type[Command], member: str, /, **fields: Any) -> bytes:
        """Does a command, and tries again, as a client does, where that helps. Raises its refusal."""
        said = sorted((name, value) for name, value in fields.items() if name != "event")
        request_id = fields.pop("request_id", "") or fresh("request")
        payload = hashlib.sha256(repr((kind, said)).encode()).digest()
        return await self.post(
            kind(member_id=member, request_id=request_id, payload_hash=payload, actor="test", **fields)
        )

    async def post(self, command: Command) -> bytes:
        """Posts a command, until it went through. Raises its refusal."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self.batches.post(command) or b""
                except TooManyTries:
                    raise
                except INFRASTRUCTURE:
                    continue

    async def invite(self, member: str, campaign_id: str, **fields: Any) -> pb.Invite:
        """A member's invite."""
        return pb.Invite.FromString(await self.do(CreateInvite, member, campaign_id=campaign_id, **fields))

    async def bind(self, member: str, invite: pb.Invite, **fields: Any) -> pb.Attribution:
        """Binds a member to whose invite it is."""
        said = {"campaign_id": invite.campaign_id, "code": invite.code, "caller": f"brand {member}", **fields}
        body = await self.do(BindInvitee, member, **said)
        return pb.BindInviteeResponse.FromString(body).attribution

    async def tell(self, member: str, *facts: Fact, **told: Any) -> None:
        """Another service tells something of a member."""
        key = InboxKey(member, "referral", "elsewhere", fresh("event"), "ELSEWHERE", 1)
        await self.do(Tell, member, facts=facts, event=key, **told)

    async def recount(self, campaign_id: str) -> None:
        """Counts again for whom an older version was counted by, as the job does."""
        async with self.database.read() as connection:
            outdated = await store.outdated(connection, 1_000)
        for member, of in outdated:
            if of == campaign_id:
                await self.post(Recount(**by_clock(member), campaign_id=of))

    async def grant(self, campaign_id: str) -> int:
        """Grants all that can be, as the job does; returns how many events that made."""
        announced, more = 0, True
        while more:
            async with self.database.begin() as connection:
                made, more = await service.grant(connection, self.lore, campaign_id, self.at)
            announced += made
        return announced

    # --- our own events -------------------------------------------------------------------------------

    async def mail(self, campaign_id: str, after: int = 0) -> tuple[list[Command], int]:
        """What was announced to inviters since a position, as commands; and the last position."""
        query = """SELECT position, event_id, subject, body FROM outbox
            WHERE position > $1 AND subject = ANY($2) ORDER BY position"""
        async with self.database.read() as connection:
            rows = await connection.fetch(query, after, [one.DESCRIPTOR.full_name for one in OWN])
        found = []
        for row in rows:
            after = row["position"]
            message = getattr(epb, row["subject"].rpartition(".")[2]).FromString(row["body"])
            told = read(
                Delivery(row["subject"], row["body"], "referral", row["event_id"], "", "REFERRAL", after)
            )
            if message.campaign_id == campaign_id and told is not None:
                found.append(told)
        return found, after

    # --- what came of it ------------------------------------------------------------------------------

    async def profile(self, member: str, campaign_id: str) -> Profile:
        """What is kept of a member, as inviter in a campaign and as invitee."""

        async def seen(connection: Connection) -> Profile:
            wanted = Wanted(self.at, {member}, inviters={(member, campaign_id)}, facts_of={member})
            found = await store.lock(connection, wanted)
            await store.save(connection, Changes(found, found), NOON)
            return found.profiles[member]

        async with self.database.begin() as connection:
            return await seen(connection)

    async def heard(self, entity: str, kind: type[Announced]) -> list[Announced]:
        """What was announced of a kind about a member or a campaign, in order."""
        query = """SELECT body FROM outbox WHERE bucket = $1 AND entity_key = $2 AND subject = $3
            ORDER BY position"""
        async with self.database.read() as connection:
            rows = await connection.fetch(query, bucket(entity), entity, kind.DESCRIPTOR.full_name)
        return [kind.FromString(row["body"]) for row in rows]

    async def fetch(self, query: str, *arguments: Any) -> Sequence[Any]:
        """What the database says."""
        async with self.database.read() as connection:
            rows: Sequence[Any] = await connection.fetch(query, *arguments)
            return rows
