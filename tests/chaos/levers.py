"""What can be done to a house, and how to wait until it took effect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import nats
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from services.cli.house import House
from services.cli.servers import HOST
from tests.chaos.journal import MAX_POLL, SETTLE_TIMEOUT, owner, until
from tests.chaos.listener import ignore
from tests.chaos.proxy import Proxies

CONSUMED = {
    "points": ("ORDERS", "POINTS", "CARDS", "REFERRAL"),
    "cards": ("POINTS", "REFERRAL"),
    "groups": ("ORDERS", "POINTS", "CARDS"),
    "referral": ("ORDERS", "POINTS", "CARDS", "GROUPS", "REFERRAL"),
}
"""The streams that each service applies and that something comes on here."""


@contextlib.contextmanager
def between(house: House) -> Iterator[Proxies]:
    """Proxies on every path, by the name of what is at its end.

    They lie between the services and PostgreSQL, the services and NATS, from the services' next start on, and
    between clients and each service.
    """
    servers = {"postgres": house.postgres.port, "nats": house.nats.port}
    targets = {name: f"{HOST}:{port}" for name, port in servers.items()}
    targets |= {service: house.describe()[service]["grpc"] for service in house.services}
    with Proxies(targets) as proxies:
        for service in house.services:
            database = urlsplit(house.database_url(service))
            credentials = database.netloc.rpartition("@")[0]
            there = f"{credentials}@{HOST}:{proxies.ports['postgres']}"
            house.settings[service] |= {
                "database_url": database._replace(netloc=there).geturl(),
                "nats_url": f"nats://{HOST}:{proxies.ports['nats']}",
            }
        yield proxies


async def start(house: House, service: str = "points", **settings: str) -> None:
    """Starts a service, ending the process that there was; returns when it is ready."""
    await stop(house, service)
    await lapse(house, service)
    await asyncio.to_thread(house.start_service, service, **settings)
    await asyncio.to_thread(house.wait_ready, service)


async def stop(house: House, service: str = "points") -> None:
    """Asks a service to end."""
    await asyncio.to_thread(house.process(service).stop)


async def kill(house: House, service: str = "points") -> None:
    """Kills a service."""
    await asyncio.to_thread(house.process(service).kill)


async def start_postgres(house: House) -> None:
    """Starts PostgreSQL again."""
    await asyncio.to_thread(house.start_postgres)


async def start_nats(house: House) -> None:
    """Starts NATS again."""
    await asyncio.to_thread(house.start_nats)


async def lapse(house: House, service: str = "points") -> None:
    """Lets a service's leases end, as six seconds of silence would."""
    await sql(house, "UPDATE jobs SET lease_until = now() - interval '1 second'", service=service)


async def redeliver(house: House, ack_wait: float = 1.0, service: str = "points") -> None:
    """Has JetStream deliver again after so many seconds what a service left unacknowledged."""
    async with broker(house) as client:
        stream = client.jetstream()
        for name in CONSUMED[service]:
            config = (await stream.consumer_info(name, service)).config
            config.ack_wait = ack_wait
            await stream.add_consumer(name, config)


async def sql(house: House, statement: str, *arguments: Any, service: str = "points") -> list[Any]:
    """Asks as the owner of a service's tables."""
    connection = await owner(house, service)
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


async def all_sent(house: House) -> None:
    """Waits until what is in the services' outboxes now has been sent, as long as some of it still is."""
    newest = "SELECT max(position) FROM outbox"
    last = {service: (await sql(house, newest, service=service))[0][0] for service in house.services}
    query = "SELECT min(position) FROM outbox WHERE sent_at IS NULL AND position <= $1"

    async def unsent() -> dict[str, int]:
        """Where an outbox has the first that is to be sent, of those that have one."""
        firsts = {
            service: (await sql(house, query, position, service=service))[0][0]
            for service, position in last.items()
        }
        return {service: first for service, first in firsts.items() if first is not None}

    await _worked_off(unsent)


async def all_heard(house: House) -> None:
    """Waits until the services have acknowledged what is in the streams now, as long as they go on."""
    async with await nats.connect(house.nats.url, error_cb=ignore) as client:
        stream = client.jetstream()
        heard = [(service, name) for service in house.services for name in CONSUMED[service]]
        last = {name: (await stream.stream_info(name)).state.last_seq for _, name in heard}

        async def unheard() -> dict[tuple[str, str], int]:
            """Up to where a service has heard a stream, of those that it has not heard to the end."""
            found: dict[tuple[str, str], int] = {}
            for service, name in heard:
                try:
                    info = await stream.consumer_info(name, service)
                except NotFoundError:
                    found[service, name] = 0
                    continue
                floor = info.ack_floor.stream_seq if info.ack_floor else 0
                if floor < last[name] and (info.num_pending or info.num_ack_pending):
                    found[service, name] = floor
            return found

        await _worked_off(unheard)


async def _worked_off(backlog: Callable[[], Awaitable[dict[Any, int]]]) -> None:
    """Waits until nothing is left of a backlog, as long as it moves. Raises TimeoutError."""
    left: dict[Any, int] | None = None
    async with asyncio.timeout(SETTLE_TIMEOUT) as limit:
        while left != {}:
            before, left = left, await backlog()
            if left != before:
                limit.reschedule(asyncio.get_running_loop().time() + SETTLE_TIMEOUT)
            await asyncio.sleep(MAX_POLL)


async def consumed(client: Any) -> None:
    """Waits until the service has acknowledged all of ORDERS."""

    async def done() -> bool:
        stored = (await client.jetstream().stream_info("ORDERS")).state.last_seq
        info = await client.jetstream().consumer_info("ORDERS", "points")
        return bool(info.ack_floor.stream_seq >= stored)

    await until(done)


async def relay_holder(house: House, *names: str, other_than: str = "", service: str = "points") -> str:
    """Waits until one of these processes of a service, other than that one, has the lease of the relay."""
    found: list[str] = []

    async def held() -> bool:
        ((holder,),) = await sql(house, "SELECT holder FROM jobs WHERE name = 'relay'", service=service)
        found[:] = [name for name in names if holder.endswith(f"-{house.process(name).pid}")]
        return bool(found) and found[0] != other_than

    await until(held)
    return found[0]
