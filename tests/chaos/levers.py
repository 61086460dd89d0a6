"""What can be done to a house, and how to wait until it took effect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import nats
from nats.errors import Error as NatsError

from services.cli.house import House
from services.cli.servers import HOST
from tests.chaos.journal import SETTLE_TIMEOUT, owner, until
from tests.chaos.listener import ignore
from tests.chaos.proxy import Proxies

# What lies between whom: the service and PostgreSQL, the service and NATS, clients and the service.
PATHS = ("postgres", "nats", "points")


@contextlib.contextmanager
def between(house: House) -> Iterator[Proxies]:
    """Proxies on every path, which the services take from their next start on."""
    targets = (
        f"{HOST}:{house.postgres.port}",
        f"{HOST}:{house.nats.port}",
        house.describe()["points"]["grpc"],
    )
    with Proxies(dict(zip(PATHS, targets, strict=True))) as proxies:
        database = urlsplit(house.database_url("points"))
        credentials, ports = database.netloc.rpartition("@")[0], proxies.ports
        house.settings["points"] |= {
            "database_url": database._replace(netloc=f"{credentials}@{HOST}:{ports['postgres']}").geturl(),
            "nats_url": f"nats://{HOST}:{ports['nats']}",
        }
        yield proxies


async def start(house: House, **settings: str) -> None:
    """Starts the service, ending the process that there was; returns when it is ready."""
    await stop(house)
    await lapse(house)
    await asyncio.to_thread(house.start_service, "points", **settings)
    await asyncio.to_thread(house.wait_ready, "points")


async def stop(house: House) -> None:
    """Asks the service to end."""
    await asyncio.to_thread(house.process("points").stop)


async def kill(house: House) -> None:
    """Kills the service."""
    await asyncio.to_thread(house.process("points").kill)


async def start_postgres(house: House) -> None:
    """Starts PostgreSQL again."""
    await asyncio.to_thread(house.start_postgres)


async def start_nats(house: House) -> None:
    """Starts NATS again."""
    await asyncio.to_thread(house.start_nats)


async def lapse(house: House) -> None:
    """Lets the leases end, as six seconds of silence would."""
    await sql(house, "UPDATE jobs SET lease_until = now() - interval '1 second'")


async def redeliver(house: House, ack_wait: float = 1.0) -> None:
    """Has JetStream deliver again after so many seconds what a consumer left unacknowledged."""
    async with broker(house) as client:
        stream = client.jetstream()
        for name in ("ORDERS", "POINTS"):
            config = (await stream.consumer_info(name, "points")).config
            config.ack_wait = ack_wait
            await stream.add_consumer(name, config)


async def sql(house: House, statement: str, *arguments: Any) -> list[Any]:
    """Asks as the owner of the service's tables."""
    connection = await owner(house)
    try:
        return list(await connection.fetch(statement, *arguments))
    finally:
        await connection.close()


async def eventually(house: House, statement: str, *arguments: Any) -> None:
    """Waits until a statement answers true."""

    async def holds() -> bool:
        return bool((await sql(house, statement, *arguments))[0][0])

    await until(holds)


@contextlib.asynccontextmanager
async def broker(house: House) -> AsyncIterator[Any]:
    """A connection of a stranger to NATS."""
    client = await nats.connect(house.nats.url, max_reconnect_attempts=-1, error_cb=ignore)
    try:
        yield client
    finally:
        await client.close()


async def patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Does something with NATS that can be done twice, also where streams are only just being made again."""

    async def done() -> bool:
        try:
            await work()
        except NatsError:
            return False
        return True

    await until(done)


async def all_sent(house: House, seconds: float = SETTLE_TIMEOUT) -> None:
    """Waits until what is in the outbox now has been sent."""
    ((last,),) = await sql(house, "SELECT max(position) FROM outbox")
    query = "SELECT count(*) = 0 FROM outbox WHERE sent_at IS NULL AND position <= $1"

    async def sent() -> bool:
        return bool((await sql(house, query, last))[0][0])

    await until(sent, seconds)


async def consumed(client: Any) -> None:
    """Waits until the service has acknowledged all of ORDERS."""

    async def done() -> bool:
        stored = (await client.jetstream().stream_info("ORDERS")).state.last_seq
        info = await client.jetstream().consumer_info("ORDERS", "points")
        return bool(info.ack_floor.stream_seq >= stored)

    await until(done)


async def relay_holder(house: House, *names: str, other_than: str = "") -> str:
    """Waits until one of these processes, other than that one, has the lease of the relay."""
    found: list[str] = []

    async def held() -> bool:
        ((holder,),) = await sql(house, "SELECT holder FROM jobs WHERE name = 'relay'")
        found[:] = [name for name in names if holder.endswith(f"-{house.process(name).pid}")]
        return bool(found) and found[0] != other_than

    await until(held)
    return found[0]
