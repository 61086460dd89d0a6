"""`make chaos`: everything goes wrong in every way, again and again; a client's journal is the oracle."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from services.cli.house import House
from tests.chaos import deaths, report, storage, traffic
from tests.chaos.follower import Follower
from tests.chaos.journal import until
from tests.chaos.levers import between, sql
from tests.chaos.load import PARTS, Load
from tests.chaos.site import Fault, Site
from tests.conftest import NOON
from tests.support import defects

FAULTS = [*deaths.FAULTS, *storage.FAULTS, *traffic.FAULTS]
FOLLOW_TIMEOUT = 300.0  # seconds for the subscriber to hear all at the end
TOO_LATE = ["HOLD_EXPIRED", "HOLD_CLOSED"]  # what a hold is refused with that ran out as the clock leapt
CALM = 0.5  # seconds between two faults at most

console = Console()


class Chaos:
    """A load at a site, subscribers, and every fault in turn."""

    def __init__(self, site: Site, names: str) -> None:
        self.site = site
        self.faults = [fault for fault in FAULTS if names in fault.name]
        self.load = Load(site)
        self.followers = [Follower(site.house.nats.url, part) for part in PARTS]
        self._first = {fault.name: site.random.randrange(len(fault.services) or 1) for fault in self.faults}
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.skipped = {} if site.small_disk else {"disk full": "it takes root, and the right to mount"}

    async def run(self, minutes: float, times: int) -> float:
        """Strikes until the time is up and each fault has struck so often, then verifies everything.

        Returns the seconds that the load took.
        """
        over, started = asyncio.Event(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for follower in self.followers:
                group.create_task(follower.follow())
            load = group.create_task(self.load.run(over))
            try:
                await self._strike_until(started + 60 * minutes, times)
                seconds = time.monotonic() - started
                over.set()
                await load
                self.load.chains["points"].update(self.site.chains)
                for follower in self.followers:
                    await follower.heard_all(self.load.chains[follower.service], FOLLOW_TIMEOUT)
            finally:
                for follower in self.followers:
                    follower.over = True
        for service in self.site.house.services:
            unreconciled = await storage.audited(self.site.house, "--stream", service=service)
            assert not unreconciled, (service, unreconciled)
            await self._nothing_sound_was_refused(service)
        return seconds

    async def _nothing_sound_was_refused(self, service: str) -> None:
        """What the services tell one another, that is; a client may tell what nobody can apply."""
        query = "SELECT subject, reason FROM dead_letters WHERE source = ANY($1) AND reason <> ALL($2)"
        services = list(self.site.house.services)
        letters = await sql(self.site.house, query, services, TOO_LATE, service=service)
        own = tuple(f"loyalty.{each}." for each in services)
        unread = Counter(tuple(row) for row in letters if row["subject"].startswith(own))
        assert not unread, (service, unread)

    async def _strike_until(self, deadline: float, times: int) -> None:
        """All faults in another order each time; every other time one service or the other runs twice."""
        site = self.site
        faults = [fault for fault in self.faults if fault.name not in self.skipped]

        def wanted(fault: Fault) -> bool:
            return time.monotonic() < deadline or len(self.recoveries[fault.name]) < times

        while any(map(wanted, faults)):
            await asyncio.sleep(CALM)
            twice = site.house.services[site.round // 2 % len(site.house.services)]
            if site.round % 2:
                await site.start_replica(twice)
            for fault in site.random.sample(faults, len(faults)):
                if wanted(fault):
                    await self._strike(fault)
            if site.round % 2:
                await site.stop_replica(twice)
            site.round += 1

    async def _strike(self, fault: Fault) -> None:
        site = self.site
        await asyncio.sleep(site.random.uniform(0, CALM))
        turns = fault.services
        site.service = turns[(site.round + self._first[fault.name]) % len(turns)] if turns else ""
        name = f"{fault.name} ({site.service})" if len(turns) > 1 else fault.name
        site.lifted = 0.0
        began = time.monotonic()
        try:
            await fault.strike(site)
            lifted = site.lifted or time.monotonic()

            async def recovered() -> bool:
                return not self.load.waits(lifted)

            await until(recovered)
        except BaseException:
            console.print(f"[red]while: {name}[/red], in round {site.round}")
            raise
        took = time.monotonic() - lifted
        self.recoveries[fault.name].append(took)
        done = f"{self.load.counts['commands']:,} commands so far"
        console.log(f"{name}: struck for {lifted - began:.1f} s, recovered in {took:.1f} s; {done}")


def main() -> None:
    """Prints what was done and what came of it, or how to run the failing seed again."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--times", type=int, default=0, help="goes on until each fault has struck so often")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--front", choices=["grpcio", "native"], default="grpcio")
    parser.add_argument("--only", default="", help="faults whose names have this in them")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was mounted is unmounted also then
    try:
        chaos, seconds = _run(arguments)
    except BaseException:
        how = f"MINUTES={arguments.minutes:g} TIMES={arguments.times}"
        console.print(f"again: make chaos {how} SEED={arguments.seed} FRONT={arguments.front}")
        raise
    console.print(
        report.figures(
            chaos.load,
            seed=arguments.seed,
            front=arguments.front,
            seconds=seconds,
            events=sum(follower.received for follower in chaos.followers),
        )
    )
    console.print(report.faults(chaos.faults, chaos.recoveries, chaos.skipped))


def _run(arguments: argparse.Namespace) -> tuple[Chaos, float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loyalty-chaos-")))
        folder.chmod(0o755)  # PostgreSQL's user must get in
        house = House(
            folder / "house",
            front=arguments.front,
            postgres_settings={"deadlock_timeout": storage.DEADLOCK_TIMEOUT},
            services=[part.service for part in PARTS],
        )
        stack.callback(house.close)
        house.start(NOON)
        for part in PARTS:
            part.prepare(house)
        for service in house.services:
            house.process(service).stop()
        disk = stack.enter_context(storage.small_disk(house, folder / "disk"))
        network = stack.enter_context(between(house))
        for service in house.services:
            house.start_service(service)
        for service in house.services:
            house.wait_ready(service)
        site = Site(house, network, random.Random(arguments.seed), small_disk=disk)
        chaos = Chaos(site, arguments.only)
        seconds = asyncio.run(chaos.run(arguments.minutes, arguments.times))
        found = defects(house)
        assert not found, found[:5]  # a fault of what we stand on is no defect of ours
        return chaos, seconds


if __name__ == "__main__":
    main()
