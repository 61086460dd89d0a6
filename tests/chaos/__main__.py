"""`make chaos`: everything dies, freezes and forgets at random; a client's journal is the oracle."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.cli.house import House
from services.cli.servers import Nats, Postgres
from services.points.audit import audit
from tests.chaos.journal import Journal, Outcome, until
from tests.chaos.listener import Listener
from tests.conftest import NOON
from tests.support import apply_programme, defects

COMMANDS = 600  # a round
MEMBERS = 24
FREEZE = 3.0  # seconds


class Chaos:
    """A house, and the ways in which it suffers."""

    def __init__(self, house: House, seed: int) -> None:
        self.house = house
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.recoveries: list[float] = []
        self.commands = self.attempts = self.verified = 0

    async def run(self, minutes: float) -> None:
        """Rounds of load, a fault in each, until the time is up; every round's journal is verified."""
        deadline = time.monotonic() + 60 * minutes
        listener = Listener(self.house.nats.url)
        while time.monotonic() < deadline:
            journal = Journal(self.house, seed=self.random.getrandbits(32), members=MEMBERS)
            async with asyncio.TaskGroup() as group:
                group.create_task(journal.run(COMMANDS))
                group.create_task(self._strike(journal))
            ledger = await journal.verify()
            await listener.hear_all(ledger)
            self.verified += len(ledger)  # what is lost, doubled or negative ends the run
            self.commands += len(journal.entries)
            self.attempts += sum(entry.attempts for entry in journal.entries)

    async def _strike(self, journal: Journal) -> None:
        await journal.acknowledged(self.random.randint(1, COMMANDS // 3))
        name, fault = self.random.choice(list(self._levers().items()))
        self.faults[name] += 1
        await fault()
        struck, before = time.monotonic(), journal.count(Outcome.ACKNOWLEDGED)

        async def recovered() -> bool:
            done = not any(entry.outcome is Outcome.UNKNOWN for entry in journal.entries)
            return done or journal.count(Outcome.ACKNOWLEDGED) > before

        await until(recovered)
        self.recoveries.append(time.monotonic() - struck)

    def _levers(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "points killed": self._points_killed,
            "points frozen": self._points_frozen,
            "PostgreSQL killed": self._postgres_killed,
            "PostgreSQL frozen": self._postgres_frozen,
            "NATS killed": self._nats_killed,
            "NATS killed and its store wiped": self._nats_wiped,
        }

    async def _points_killed(self) -> None:
        await asyncio.to_thread(self.house.process("points").kill)
        await asyncio.to_thread(self.house.start_service, "points")

    async def _points_frozen(self) -> None:
        process = self.house.process("points")
        process.freeze()
        await asyncio.sleep(FREEZE)
        process.thaw()

    async def _postgres_killed(self) -> None:
        await asyncio.to_thread(self.house.postgres.kill)
        folder, port = self.house.data / "postgres", self.house.postgres.port
        self.house.postgres = await asyncio.to_thread(Postgres.start, folder, port)

    async def _postgres_frozen(self) -> None:
        self.house.postgres.freeze()
        await asyncio.sleep(FREEZE)
        self.house.postgres.thaw()

    async def _nats_killed(self) -> None:
        await self._restart_nats(wipe=False)

    async def _nats_wiped(self) -> None:
        await self._restart_nats(wipe=True)

    async def _restart_nats(self, *, wipe: bool) -> None:
        await asyncio.to_thread(self.house.nats.kill)
        folder, port = self.house.data / "nats", self.house.nats.port
        if wipe:
            shutil.rmtree(folder / "jetstream")
        self.house.nats = await asyncio.to_thread(Nats.start, folder, port)


def main() -> None:
    """Prints what was done and lost, or how to run the failing seed again."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--front", choices=["grpcio", "native"], default="grpcio")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="loyalty-chaos-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user must get in
        house = House(Path(folder), front=arguments.front)
        try:
            house.start(NOON)
            apply_programme(house)
            chaos = Chaos(house, arguments.seed)
            started = time.monotonic()
            asyncio.run(chaos.run(arguments.minutes))
            seconds = time.monotonic() - started
            report = asyncio.run(audit(house.database_url("points"), stream_url=house.nats.url))
            assert not defects(house), "a fault of what we stand on is no defect of ours"
        except BaseException:
            console.print(f"again: make chaos MINUTES={arguments.minutes:g} SEED={arguments.seed}")
            raise
        finally:
            house.close()
    console.print(_table(chaos, arguments.seed, seconds))
    for meaning, _, offenders in report.lines:
        for offender in offenders:
            console.print(f"[red]{meaning}: {offender}")
    sys.exit(0 if report.clean else 1)


def _table(chaos: Chaos, seed: int, seconds: float) -> Table:
    table = Table(title="Chaos", show_header=False)
    rows = {
        "seed": str(seed),
        "minutes": f"{seconds / 60:.1f}",
        "commands, each acknowledged or refused": f"{chaos.commands:,}",
        "attempts": f"{chaos.attempts:,}",
        "transactions, each of an acknowledged command": f"{chaos.verified:,}",
        "recovery after a fault, median and longest": _spread(chaos.recoveries),
        **dict(sorted((name, str(count)) for name, count in chaos.faults.items())),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.1f} s, {ordered[-1]:.1f} s" if ordered else "none"


if __name__ == "__main__":
    main()
