"""The load that goes on over all faults: lanes of each service, each verifying its members slice by slice."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack

import asyncpg
import grpc
from google.protobuf.message import Message

from tests.chaos import cards, groups, points, referral
from tests.chaos.journal import Client, Journal, Outcome
from tests.chaos.site import Site
from tests.contract import breaks_the_contract, mutations

SLICE = 20.0  # seconds that members live
TIMEOUT = 2.0  # seconds of an attempt
# Seconds for what was reported to have its effect, whatever happens meanwhile but that a store was wiped:
# then what is new waits behind all that is sent again.
PATIENCE = 300.0
PAUSE = 1.0  # seconds between attempts to look into a database that is away
BAD_EVERY = 0.02  # seconds between bad inputs
BAD_INPUTS = 50  # on one channel
DATABASE_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
DEFECTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
PARTS = (points.PART, cards.PART, groups.PART, referral.PART)


class Load:
    """What goes on at a site, and what came of it. What is lost, doubled or negative ends it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._random = random.Random(site.random.getrandbits(32))
        self._live: set[Journal] = set()
        self.counts: Counter[str] = Counter()
        self.latencies = array("d")
        """Seconds from the first attempt to the answer, of every command."""
        self.chains: dict[str, dict[str, list[bytes]]] = {part.service: defaultdict(list) for part in PARTS}
        """By service what is to be heard about each member, as it was when it was verified."""

    async def run(self, over: asyncio.Event) -> None:
        """Goes on until it is over, and returns when all is verified."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._throw_bad_inputs(over))
            lanes = [make for part in PARTS for make in part.lanes]
            for number, make in enumerate(lanes):  # one after the other, so that they never all pause at once
                group.create_task(self._lane(group, over, SLICE * (number + 1) / len(lanes), make))

    def waits(self, since: float) -> bool:
        """Whether a command that was there at that time, as `time.monotonic` has it, still has no answer."""
        return any(entry.began <= since for journal in self._live for entry in journal.waiting)

    async def _lane(
        self,
        group: asyncio.TaskGroup,
        over: asyncio.Event,
        seconds: float,
        make: Callable[..., Journal],
    ) -> None:
        while not over.is_set():
            journal = make(self._site.house, seed=self._random.getrandbits(32), timeout=TIMEOUT)
            self._live.add(journal)
            enough = asyncio.Event()
            addresses = self._site.addresses(journal.service)
            load = asyncio.create_task(journal.run(0, *addresses, struck=enough))
            ending = asyncio.create_task(over.wait())
            try:
                await asyncio.wait({load, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                enough.set()
                await load
            finally:
                ending.cancel()
                load.cancel()
            self._live.remove(journal)
            self._count(journal)
            group.create_task(self._verify(journal))
            seconds = SLICE

    def _count(self, journal: Journal) -> None:
        self.counts["members"] += len(journal.members)
        self.counts["commands"] += len(journal.entries)
        self.counts[f"commands of {journal.service}"] += len(journal.entries)
        self.counts["attempts"] += sum(entry.attempts for entry in journal.entries)
        self.counts["acknowledged"] += journal.count(Outcome.ACKNOWLEDGED)
        self.counts["refused"] += journal.count(Outcome.REFUSED)
        self.counts["cancelled"] += journal.cancelling * len(journal.entries)
        self.latencies.extend(entry.ended - entry.began for entry in journal.entries)

    async def _verify(self, journal: Journal) -> None:
        began = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(began + PATIENCE - time.monotonic()):
                    rows = await journal.verify(PATIENCE)
                break
            except TimeoutError:
                if self._site.refilled < began:
                    raise
                began = time.monotonic()
            except DATABASE_AWAY:  # it was struck just now
                await asyncio.sleep(PAUSE)
        for row in rows:
            self.chains[journal.service][row["member_id"]].append(row["hash"])
        self.counts["verified"] += len(rows)

    # --- bad inputs -----------------------------------------------------------------------------------

    async def _throw_bad_inputs(self, over: asyncio.Event) -> None:
        """To one service after the other, each time on a channel of its own."""
        with ExitStack() as stack:
            callers = {part: stack.enter_context(part.caller(self._site.house)) for part in PARTS}
            tries = {
                part: [(*good, how) for good in part.good for _, how in mutations(good[1](caller))]
                for part, caller in callers.items()
            }
            while not over.is_set():
                for part, caller in callers.items():
                    client = Client(self._site.addresses(part.service), part.service)
                    for method, make, how in self._random.sample(tries[part], BAD_INPUTS):
                        request = make(caller)
                        how(request)
                        await self._throw(client, method, request)
                        await asyncio.sleep(BAD_EVERY)
                    await client.close()

    async def _throw(self, client: Client, method: str, request: Message) -> None:
        body, broken = request.SerializeToString(), breaks_the_contract(request)
        if self._random.random() < 0.2:
            body, broken = body + b"\x0b", True  # a group that does not end
        self.counts["bad inputs"] += 1
        call = client.raw(method, self.counts["bad inputs"])(body, timeout=TIMEOUT)
        code = await call.code()
        ours = dict(await call.trailing_metadata()).get("grpc-status-details-bin")  # not the network's
        assert not ours or code not in DEFECTS, (method, await call.details())
        allowed = {grpc.StatusCode.INVALID_ARGUMENT, *TRANSIENT}
        assert not broken or not (ours or code is grpc.StatusCode.OK) or code in allowed, (method, code)
