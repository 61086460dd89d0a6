"""Processes that die or stand still: a service, PostgreSQL, NATS."""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from functools import partial

from services.cli.servers import Guarded
from tests.chaos.journal import POLL, SETTLE_TIMEOUT
from tests.chaos.levers import all_heard, all_sent, lapse, relay_holder, start_nats, start_postgres
from tests.chaos.site import EITHER, Caller, Fault, Site
from tests.support import fresh

FAILPOINTS = (
    "before_commit",
    "after_commit",
    "before_reply",
    "relay_before_publish",
    "relay_after_publish",
    "consumer_before_ack",
    "consumer_after_ack",
)
SHORT, LONG = 1.0, 10.0  # seconds that something stands still: shorter and longer than any timeout of ours


async def service_killed(site: Site) -> None:
    """SIGKILL, of either process."""
    name = site.random.choice(site.processes)
    await asyncio.to_thread(site.house.process(name).kill)
    site.lift()
    if name == site.replicas.get(site.service):
        await site.start_replica(site.service)
    else:
        await asyncio.to_thread(site.house.start_service, name)


async def killed_at(point: str, site: Site) -> None:
    """A service kills itself in the middle of its work."""
    await asyncio.to_thread(site.house.process(site.service).kill)
    process = await asyncio.to_thread(site.house.start_service, site.service, failpoint=point)
    async with asyncio.timeout(SETTLE_TIMEOUT):
        while process.poll() is None:
            await lapse(site.house, site.service)  # so that this process, and no other, comes to be the relay
            await asyncio.sleep(10 * POLL)
    assert process.poll() == 128 + 9
    site.lift()
    await asyncio.to_thread(site.house.start_service, site.service)


async def service_frozen(site: Site) -> None:
    """SIGSTOP, of either process; its calls, leases and deliveries go stale."""
    await _frozen(site, site.house.process(site.random.choice(site.processes)))


async def postgres_killed(site: Site) -> None:
    """SIGKILL of all of PostgreSQL."""
    await asyncio.to_thread(site.house.postgres.kill)
    site.lift()
    await start_postgres(site.house)


async def postgres_frozen(site: Site) -> None:
    """SIGSTOP of all of PostgreSQL: connections stand, nothing answers."""
    await _frozen(site, site.house.postgres)


async def nats_killed(site: Site) -> None:
    """SIGKILL of NATS."""
    await asyncio.to_thread(site.house.nats.kill)
    site.lift()
    await start_nats(site.house)
    await all_sent(site.house)


async def nats_wiped(site: Site) -> None:
    """NATS is killed, and all that it kept is gone; meanwhile the services go on.

    All of it is sent and heard again, so what is new waits behind it, minutes long after a million events.
    """
    site.refilled = math.inf
    await asyncio.to_thread(site.house.nats.kill)
    shutil.rmtree(site.house.data / "nats" / "jetstream")
    async with Caller(site) as caller:
        await caller.give(fresh("without-nats"))
    site.lift()
    await start_nats(site.house)
    await all_sent(site.house)
    await all_heard(site.house)
    site.refilled = time.monotonic()


async def nats_frozen(site: Site) -> None:
    """SIGSTOP of NATS."""
    await _frozen(site, site.house.nats)
    await all_sent(site.house)


async def relay_paused(site: Site) -> None:
    """The process with the relay stands still until another has it, and goes on as if nothing had been."""
    async with site.two_processes():
        holder = await relay_holder(site.house, *site.processes, service=site.service)
        process = site.house.process(holder)
        process.freeze()
        try:
            await lapse(site.house, site.service)
            await relay_holder(site.house, *site.processes, other_than=holder, service=site.service)
        finally:
            process.thaw()
            site.lift()


async def _frozen(site: Site, process: Guarded) -> None:
    process.freeze()
    try:
        await asyncio.sleep(site.random.choice((SHORT, LONG)))
    finally:
        process.thaw()
        site.lift()


FAULTS = [
    Fault("service killed", "F1", service_killed, EITHER),
    *(Fault(f"service killed at {point}", "F1", partial(killed_at, point), EITHER) for point in FAILPOINTS),
    Fault("service frozen", "F8", service_frozen, EITHER),
    Fault("PostgreSQL killed", "F2", postgres_killed, ()),
    Fault("PostgreSQL frozen", "F3", postgres_frozen, ()),
    Fault("NATS killed", "F4", nats_killed, ()),
    Fault("NATS killed and its store wiped", "F4", nats_wiped, ()),
    Fault("NATS frozen", "F4", nats_frozen, ()),
    Fault("relay paused beyond its lease", "F6", relay_paused, EITHER),
]
