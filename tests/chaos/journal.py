"""A client that journals each command with its request_id and what came of it; the oracles are made of it.

What is the same for every service is here. `points`, `cards`, `groups` and `referral` say what the commands
are, and hold the books against what their journals have.
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar

import asyncpg
import grpc
from google.protobuf.message import Message
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceStub
from loyalty.orders.v1.orders_service_pb2_grpc import OrdersServiceStub
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceStub

from services.chassis.ids import bucket
from services.cli.house import House
from tests.support import fresh, read_refusal

SETTLE_TIMEOUT = 180.0  # seconds for a command to be acknowledged or refused, whatever happens meanwhile
POLL, MAX_POLL = 0.05, 0.5  # seconds between looks, at first and at last
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
REFUSED = {grpc.StatusCode.FAILED_PRECONDITION}
# A killed server is looked for again at once, not after gRPC's own backoff of up to two minutes.
# A connection that is dead without a word is noticed by pings: the server allows one every ten seconds.
CHANNEL = [
    *((f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # without this one, a minute
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]
STUBS: Mapping[str, tuple[Callable[[Any], Any], ...]] = {
    "points": (PointsServiceStub, OrdersServiceStub),
    "cards": (CardsServiceStub,),
    "groups": (GroupsServiceStub,),
    "referral": (ReferralServiceStub,),
}
"""What each service is called by."""


class Outcome(Enum):
    """What the client knows of a command."""

    UNKNOWN = "unknown"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


@dataclass(eq=False)
class Entry:
    """One command."""

    method: str
    request: Any
    outcome: Outcome = Outcome.UNKNOWN
    answer: Message | None = None
    reason: str = ""
    """Why it was refused."""
    attempts: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    """Seconds, as `time.monotonic` has them."""
    at: datetime | None = None
    """The business time at which it was done; None where that moved meanwhile."""

    @property
    def member(self) -> str:
        """Whom it is about; empty where it is about no member."""
        return str(getattr(self.request, "member_id", ""))


class Client:
    """Stubs on channels to one or several processes of a service."""

    def __init__(self, addresses: Sequence[str], service: str = "points") -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=CHANNEL) for address in addresses]
        self._stubs = [[stub(channel) for stub in STUBS[service]] for channel in self._channels]

    def method(self, name: str, turn: int) -> Callable[..., Any]:
        """A method, on the channel whose turn it is."""
        stubs = self._stubs[turn % len(self._stubs)]
        found: Callable[..., Any] = next(getattr(stub, name) for stub in stubs if hasattr(stub, name))
        return found

    def raw(self, path: str, turn: int) -> Any:
        """A method by its path, of bytes."""
        return self._channels[turn % len(self._channels)].unary_unary(path)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


class Journal(ABC):
    """A seeded load on members of its own, one command per member at a time, and its record.

    `cancelling` cancels the first attempt of each command at a random instant. The journal of a service says
    what the next command of a member is (`_command`), what to keep of an answer (`_note`), and what must be
    true of the books in the end (`verify`).
    """

    service: ClassVar = "points"
    reads: ClassVar = frozenset[str]()
    """Methods that write nothing."""
    by_hand: ClassVar = frozenset[str]()
    """Methods that name a member, and whose answers are kept with who asks."""
    refused: ClassVar = REFUSED
    """What a command may be refused with."""

    def __init__(
        self, house: House, *, seed: int, members: int = 12, timeout: float = 3.0, cancelling: bool = False
    ) -> None:
        self.house = house
        self.entries: list[Entry] = []
        self.members = [fresh(f"m{seed}") for _ in range(members)]
        self.waiting: set[Entry] = set()
        self._random = random.Random(seed)
        self._began = self._now
        self._turns: Counter[str] = Counter()
        self._timeout = timeout
        self.cancelling = cancelling

    @abstractmethod
    def _command(self, member: str) -> Entry:
        """The member's next command."""

    def _note(self, entry: Entry) -> None:  # noqa: B027 - some keep nothing
        """Keeps what later commands may name of one that was acknowledged, and checks its answer."""

    @abstractmethod
    async def verify(self, patience: float = SETTLE_TIMEOUT) -> Sequence[Mapping[str, Any]]:
        """Holds the books against the journal, once what it caused elsewhere is done: in `patience` seconds.

        Returns what a subscriber must hear, in order per member, each by `member_id` and `hash`.
        """

    # --- the load -------------------------------------------------------------------------------------

    async def run(self, commands: int, *addresses: str, struck: asyncio.Event | None = None) -> None:
        """Sends that many commands, and goes on until the event; returns when each got its answer."""
        client = Client(addresses or [self.house.describe()[self.service]["grpc"]], self.service)
        each = -(-commands // len(self.members))
        struck = struck or _already()
        try:
            await self._lay_ground(client)
            async with asyncio.TaskGroup() as group:
                for worker in self._workers(client, each, struck):
                    group.create_task(worker)
        finally:
            await client.close()

    def count(self, outcome: Outcome) -> int:
        """How many commands came to this."""
        return sum(entry.outcome is outcome for entry in self.entries)

    async def acknowledged(self, many: int) -> None:
        """Waits until that many are acknowledged."""

        async def reached() -> bool:
            return self.count(Outcome.ACKNOWLEDGED) >= many

        await until(reached)

    async def _lay_ground(self, client: Client) -> None:  # noqa: B027 - some need nothing
        """Makes what the members need, before their first command."""

    def _workers(
        self, client: Client, each: int, struck: asyncio.Event
    ) -> Iterable[Coroutine[Any, Any, None]]:
        for turn, member in enumerate(self.members):
            self._turns[member] = turn
            yield self._member(client, member, each, struck)

    async def _member(self, client: Client, member: str, commands: int, struck: asyncio.Event) -> None:
        sent = 0
        while sent < commands or not struck.is_set():
            sent += 1
            await self._do(client, self._command(member))

    async def _do(self, client: Client, entry: Entry) -> None:
        """Sends a command until it has its answer."""
        self._begin(entry)
        if self.cancelling:
            await self._cancelled(client, entry, self._turns[entry.member])
        async with asyncio.timeout(SETTLE_TIMEOUT):
            while entry.outcome is Outcome.UNKNOWN:
                await self._attempt(client, entry)
        self._end(entry)

    def _begin(self, entry: Entry) -> None:
        entry.at = self._now
        self.entries.append(entry)
        self.waiting.add(entry)

    def _end(self, entry: Entry) -> None:
        entry.ended = time.monotonic()
        entry.at = entry.at if entry.at == self._now else None
        self.waiting.remove(entry)
        if entry.outcome is Outcome.ACKNOWLEDGED:
            self._note(entry)

    async def _cancelled(self, client: Client, entry: Entry, turn: int) -> None:
        call = client.method(entry.method, turn)(entry.request, timeout=self._timeout)
        with suppress(grpc.aio.AioRpcError, TimeoutError):
            await asyncio.wait_for(call.wait_for_connection(), self._timeout)
        await asyncio.wait([asyncio.ensure_future(call.code())], timeout=self._random.uniform(0, 0.03))
        call.cancel()

    async def _attempt(self, client: Client, entry: Entry) -> None:
        call = client.method(entry.method, self._turns[entry.member])
        entry.attempts += 1
        try:
            entry.answer = await call(entry.request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() in self.refused:
                entry.outcome, entry.reason = Outcome.REFUSED, read_refusal(error).reason
            elif error.code() in RETRIED:
                self._turns[entry.member] += 1  # who fails once is not asked again at once
                await asyncio.sleep(min(POLL * entry.attempts, MAX_POLL))
            else:
                raise
        else:
            entry.outcome = Outcome.ACKNOWLEDGED

    def _of(self, outcome: Outcome) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome is outcome]

    def _check_answers(self, answers: Sequence[Any]) -> None:
        """Each acknowledged write of a member is kept with its answer, each refused one is not."""
        assert not self._of(Outcome.UNKNOWN)
        kept = {(row["member_id"], row["request_id"]): row["body"] for row in answers}
        assert {key: body for key, body in kept.items() if key[1][0] != "~"} == {
            (entry.member, entry.request.request_id): entry.answer.SerializeToString(deterministic=True)
            for entry in self._of(Outcome.ACKNOWLEDGED)
            if entry.member and entry.method not in self.reads | self.by_hand and entry.answer is not None
        }

    @property
    def _now(self) -> datetime:
        assert self.house.clock is not None
        return self.house.clock.now()


# --- the books ------------------------------------------------------------------------------------------


async def owner(house: House, service: str = "points") -> Any:
    """A connection as the owner of a service's tables."""
    return await asyncpg.connect(house.database_url(service, owner=True))


@asynccontextmanager
async def snapshot(connection: Any) -> AsyncIterator[None]:
    """What is read inside is as it was at one instant."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield


async def rows_of(
    connection: Any,
    table: str,
    members: Sequence[str],
    columns: str = "*",
    *,
    order: str = "",
    member: str = "member_id",
) -> list[Any]:
    """What a table has about some members, in order per member; `member` is the column that names them."""
    query = (
        f"SELECT {columns} FROM {table}"  # noqa: S608 - names of ours
        f" WHERE (bucket, {member}) IN (SELECT * FROM unnest($1::smallint[], $2::text[]))"
        f" ORDER BY {', '.join(filter(None, (member, order)))}"
    )
    return list(await connection.fetch(query, [bucket(each) for each in members], members))


def _already() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = SETTLE_TIMEOUT) -> None:
    """Waits for a condition. Raises TimeoutError."""
    pause = POLL
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(pause)
            pause = min(1.2 * pause, MAX_POLL)
