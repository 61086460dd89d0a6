"""Where faults happen, what a fault is, and how whoever makes one calls the services meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from loyalty.points.v1 import points_service_pb2 as pb

from services.cli.house import House
from services.cli.servers import HOST
from tests.chaos.journal import POLL, RETRIED, SETTLE_TIMEOUT, Client
from tests.chaos.proxy import Proxies
from tests.support import fresh

TIMEOUT = 10.0  # seconds of an attempt, as long as a service gives any
EITHER = ("points", "cards", "groups", "referral")  # what strikes a service strikes any of them


@dataclass
class Site:
    """A house behind bad networks, with one or two processes of each service."""

    house: House
    network: Proxies
    random: random.Random
    service: str = "points"
    """The service whose turn it is to be struck."""
    replicas: dict[str, str] = field(default_factory=dict)
    """The names of second processes, by service."""
    small_disk: Path | None = None
    """The file system of the services' databases, if it is one that can be filled."""
    seconds: float = 3.0
    """How long what lasts for a while lasts."""
    round: int = 0
    """How often every fault has happened."""
    lifted: float = 0.0
    """When the last fault was over, as `time.monotonic` has it: from then on the service may recover."""
    refilled: float = 0.0
    """When the streams of a store that was wiped were last heard to their end again; infinite meanwhile."""
    chains: dict[str, list[bytes]] = field(default_factory=dict)
    """Hashes of the transactions of points that faults made themselves, by member: they must be heard too."""

    @property
    def processes(self) -> list[str]:
        """The names of the processes of the service whose turn it is."""
        replica = self.replicas.get(self.service)
        return [self.service, replica] if replica else [self.service]

    def addresses(self, service: str = "points") -> list[str]:
        """Where clients find a service: the first process through its proxy, the second as it is."""
        first, replica = f"{HOST}:{self.network.ports[service]}", self.replicas.get(service)
        return [first, self.house.describe()[replica]["grpc"]] if replica else [first]

    def lift(self) -> None:
        """Says that the fault is over."""
        self.lifted = time.monotonic()

    async def start_replica(self, service: str) -> None:
        """Starts a second process of a service."""
        self.replicas[service] = await asyncio.to_thread(self.house.start_replica, service)
        await asyncio.to_thread(self.house.wait_ready, self.replicas[service])

    async def stop_replica(self, service: str) -> None:
        """Ends it."""
        await asyncio.to_thread(self.house.process(self.replicas.pop(service)).stop)

    @asynccontextmanager
    async def two_processes(self) -> AsyncIterator[None]:
        """The service whose turn it is runs twice for as long as the block runs."""
        service = self.service
        if service in self.replicas:
            yield
            return
        await self.start_replica(service)
        try:
            yield
        finally:
            await self.stop_replica(service)


Strike = Callable[[Site], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong. `numbers` are those of docs/reliability.md."""

    name: str
    numbers: str
    strike: Strike
    services: tuple[str, ...] = ("points",)
    """Which services it may strike, in turn; none where it strikes what all of them stand on."""


class Caller:
    """Calls a service until there is an answer, as every client must; one process after the other."""

    def __init__(self, site: Site, service: str = "points") -> None:
        self._client = Client(site.addresses(service), service)
        self.refusals: list[grpc.aio.AioRpcError] = []
        """Every answer that said: try again."""

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def once(self, method: str, request: Any, turn: int = 0, seconds: float = TIMEOUT) -> Any:
        """The answer, or the error."""
        try:
            return await self._client.method(method, turn)(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return error

    async def insist(self, method: str, request: Any, turn: int = 0) -> Any:
        """The answer, or the refusal, that is final."""
        async with asyncio.timeout(SETTLE_TIMEOUT):
            while True:
                answer = await self.once(method, request, turn)
                if not (isinstance(answer, grpc.aio.AioRpcError) and answer.code() in RETRIED):
                    return answer
                self.refusals.append(answer)
                turn += 1
                await asyncio.sleep(POLL)

    async def give(self, member: str, amount: int = 1) -> pb.Transaction:
        """Adds points to a member's."""
        answer = await self.insist("AdjustPoints", an_adjustment(member, amount))
        assert isinstance(answer, pb.Transaction), answer
        return answer

    async def available(self, member: str) -> int:
        """What a member could spend."""
        balance = await self.insist("GetBalance", pb.GetBalanceRequest(member_id=member))
        assert isinstance(balance, pb.Balance), balance
        return balance.available


def an_adjustment(member: str, amount: int, request_id: str = "") -> pb.AdjustPointsRequest:
    """A request to add points to a member's."""
    return pb.AdjustPointsRequest(
        member_id=member,
        request_id=request_id or fresh("r"),
        unit=pb.UNIT_POINTS,
        amount=amount,
        reason="chaos",
    )
