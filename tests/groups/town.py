"""A town: the service on a real database, in a time of its own; only gRPC and the streams are left out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.database import Database
from services.chassis.errors import INFRASTRUCTURE
from services.chassis.ids import bucket
from services.chassis.inbox import InboxKey
from services.cli.servers import Postgres
from services.groups import closing, opening, store
from services.groups.__main__ import SCHEMA
from services.groups.batches import Batches
from services.groups.commands import AssignMember, Command, JoinGroup, LeaveGroup, OrderTold, TagMember
from services.groups.domain.coordinates import Point
from services.groups.domain.profile import Membership, Profile, Tag
from services.groups.domain.seats import Group
from services.groups.domain.sites import Site
from services.groups.service import Lore
from services.groups.steps import Terms
from tests import schema
from tests.conftest import NOON
from tests.support import TIMEOUT, fresh

Announced = TypeVar("Announced", bound=Message)
Done = TypeVar("Done")

ZONE = ZoneInfo("Asia/Shanghai")
PATIENCE = 10 * TIMEOUT  # many wait for one another
DEGREE_M = 111_195.08  # a degree of latitude


def make_database(server: Postgres) -> str:
    """Makes an empty database on the groups' server, where all rows are the test's own; its URL."""
    return schema.make_database(server, "groups", SCHEMA)


def by_event(member: str) -> dict[str, Any]:
    """What a command has that an event asks for: each time another event, of another service."""
    name = fresh("event")
    return {"event": InboxKey(member, "groups", "elsewhere", name, "ELSEWHERE", 1)}


def on_street(metres: float) -> Point:
    """A place so many metres north of the town's gate."""
    return Point(30.0 + metres / DEGREE_M, 120.0)


def shop(site_id: str, metres: float, **more: Any) -> Site:
    """A site on the street that leads north from the town's gate."""
    return Site(
        **{"site_id": site_id, "name": site_id.upper(), "city": "", "point": on_street(metres), **more}
    )


def scheme(scheme_id: str, kind: str = "BY_LOCATION", **more: Any) -> pb.Scheme:
    """A scheme of groups of four, three of whom get seats; where it says nothing else, one fewer get one."""
    said = {
        "scheme_id": scheme_id,
        "version": 1,
        "kind": f"SCHEME_KIND_{kind}",
        "name_pattern": "福利群{seq}",
        "capacity": 4,
        "headroom": 1,
        **more,
    }
    return ParseDict(said, pb.Scheme())


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


class Town:
    """Sites, schemes and members, and a process of the service."""

    def __init__(self, database: Database, clock: StandingClock | None = None) -> None:
        self.database = database
        self.clock = clock or StandingClock()
        self.lore = Lore(Terms(ZONE, 1))
        self.batches = Batches(database, self.clock, self.lore, lambda: None)

    @property
    def at(self) -> datetime:
        """Business time."""
        return self.clock.at

    def wait(self, **duration: float) -> None:
        """Lets time pass; nothing is posted."""
        self.clock.at += timedelta(**duration)

    # --- how groups are formed ------------------------------------------------------------------------

    async def put(self, *schemes: pb.Scheme) -> None:
        """Puts versions of schemes."""
        async with self.database.begin() as connection:
            for made in schemes:
                await store.add_scheme(
                    connection,
                    scheme_id=made.scheme_id,
                    version=made.version,
                    kind=pb.SchemeKind.Name(made.kind).removeprefix("SCHEME_KIND_"),
                    withdrawn=made.withdrawn,
                    author="test",
                    create_time=self.at,
                    body=made.SerializeToString(deterministic=True),
                )

    async def put_programme(self, **said: Any) -> None:
        """Puts the next version of the programme."""
        async with self.database.begin() as connection:
            version = await store.programme_head(connection) + 1
            made = ParseDict({"version": version, **said}, pb.Programme())
            await store.add_programme(
                connection,
                version=version,
                author="test",
                create_time=self.at,
                body=made.SerializeToString(deterministic=True),
            )

    async def put_sites(self, *sites: Site) -> closing.Put:
        """Puts sites."""
        return await self._by_hand(closing.put_sites, sites, author="test")

    async def close(self, site_id: str) -> None:
        """Closes a site; its members are still there."""
        await self._by_hand(closing.close_site, site_id, author="test")

    async def open(self, scheme_id: str, **place: Any) -> Group:
        """Opens a group by hand."""
        return await self._by_hand(opening.open_group, scheme_id=scheme_id, **place)

    async def open_flash(self, scheme_id: str, **times: datetime) -> Group:
        """Opens a group for a sale."""
        return await self._by_hand(opening.open_flash_group, scheme_id=scheme_id, **times)

    async def dissolve(self, group_id: str, **more: Any) -> Group:
        """Dissolves a group; its members are still there."""
        return await self._by_hand(opening.dissolve_group, group_id=group_id, **more)

    async def attach(self, group_id: str, **said: str) -> Group:
        """Tells which chat a group is."""
        return await self._by_hand(opening.attach_chat, group_id=group_id, **said)

    async def announce_due(self, *group_ids: str) -> int:
        """Announces what has come of the calendars of groups, and says how many it were."""
        return await self._by_hand(opening.announce_due, group_ids)

    async def _by_hand(self, work: Callable[..., Awaitable[Done]], *given: Any, **said: Any) -> Done:
        """Does something to groups or sites, and tries again, as a client does, where that helps."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    async with self.database.begin() as connection:
                        return await work(connection, self.lore, self.at, *given, **said)
                except INFRASTRUCTURE:
                    continue

    # --- what members do ------------------------------------------------------------------------------

    async def do(self, kind: type[Command], member: str, **fields: Any) -> bytes:
        """Does a command, and tries again, as a client does, where that helps. Raises its refusal."""
        asked = sorted((name, value) for name, value in fields.items() if name != "event")
        command = kind(
            member_id=member,
            request_id=fields.pop("request_id", "") or fresh("request"),
            payload_hash=hashlib.sha256(repr((kind, asked)).encode()).digest(),
            actor="test",
            **fields,
        )
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self.batches.post(command) or b""
                except INFRASTRUCTURE:
                    continue

    async def assign(self, member: str, scheme_id: str = "", **asked: Any) -> pb.AssignMemberResponse:
        """Asks for a seat."""
        answer = await self.do(AssignMember, member, scheme_id=scheme_id, **asked)
        return pb.AssignMemberResponse.FromString(answer)

    async def seat(self, member: str, scheme_id: str, **asked: Any) -> pb.Assignment:
        """Asks for a seat in a scheme."""
        (assignment,) = (await self.assign(member, scheme_id, **asked)).assignments
        return assignment

    async def join(self, member: str, group_id: str, **told: Any) -> pb.JoinGroupResponse:
        """Tells that a member is in a group, by default since now."""
        told = {"occur_time": self.at, **told}
        return pb.JoinGroupResponse.FromString(await self.do(JoinGroup, member, group_id=group_id, **told))

    async def leave(self, member: str, group_id: str, **told: Any) -> pb.LeaveGroupResponse:
        """Tells that a member is no longer in a group, by default since now."""
        told = {"occur_time": self.at, **told}
        return pb.LeaveGroupResponse.FromString(await self.do(LeaveGroup, member, group_id=group_id, **told))

    async def buy(self, member: str, store_id: str, amount_minor: int = 1000) -> None:
        """Tells of an order that was paid now."""
        told = {"store_id": store_id, "city": "", "paid_time": self.at, "amount_minor": amount_minor}
        await self.do(OrderTold, member, order_id=fresh("order"), **told, **by_event(member))

    async def tag(self, member: str, **tags: str) -> None:
        """Sets tags."""
        made = tuple(Tag(key=key, value=tags[key], source="crm", set_time=self.at) for key in tags)
        await self.do(TagMember, member, tags=made)

    # --- what there is --------------------------------------------------------------------------------

    async def profile(self, member: str) -> Profile:
        """What is known of a member, and of each scheme its latest membership."""
        async with self.database.read() as connection:
            found = await store.profiles(connection, [member])
        return found.get(member) or Profile(member)

    async def membership(self, member: str, scheme_id: str) -> Membership:
        """The latest membership in a scheme."""
        latest = (await self.profile(member)).latest(scheme_id)
        assert latest is not None
        return latest

    async def group(self, group_id: str) -> Group:
        """A group."""
        async with self.database.read() as connection:
            return (await store.groups(connection, [group_id]))[group_id]

    async def groups(self, scheme_id: str) -> list[Group]:
        """The groups of a scheme, by age."""
        async with self.database.read() as connection:
            rows = await store.group_page(connection, scheme_id=scheme_id, after=None, most=1000)
        return [store.to_group(row) for row in rows]

    async def told(self, entity: str) -> list[str]:
        """What was announced of a member or a group, by name, in order."""
        query = "SELECT subject FROM outbox WHERE bucket = $1 AND entity_key = $2 ORDER BY position"
        async with self.database.read() as connection:
            rows = await connection.fetch(query, bucket(entity), entity)
        return [row["subject"].rpartition(".")[2] for row in rows]

    async def heard(self, entity: str, kind: type[Announced]) -> list[Announced]:
        """What was announced of a kind about a member or a group, in order."""
        query = """SELECT body FROM outbox WHERE bucket = $1 AND entity_key = $2 AND subject = $3
            ORDER BY position"""
        async with self.database.read() as connection:
            rows = await connection.fetch(query, bucket(entity), entity, kind.DESCRIPTOR.full_name)
        return [kind.FromString(row["body"]) for row in rows]


async def check_seats(database: Database, schemes: Iterable[str]) -> None:
    """What groups say of themselves is what members say, and nobody is over the room by our doing."""
    query = """SELECT g.*, (SELECT count(*) FROM memberships m
               WHERE m.group_id = g.group_id AND m.end_time IS NULL) AS members
        FROM groups g WHERE scheme_id = ANY($1)"""
    async with database.read() as connection:
        rows = await connection.fetch(query, list(schemes))
    for row in rows:
        assert row["seats_taken"] + row["overbooked"] == row["members"], dict(row)
        assert row["seats_taken"] <= row["room"], dict(row)
