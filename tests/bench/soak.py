"""`make soak`: the same load for half an hour, and whether anything grows that should not."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import linear_regression

from tests.bench import load, points, report
from tests.bench.paths import QUICK, WrongRows
from tests.bench.points import TRANSACTIONS
from tests.bench.site import FRONTS, Served, site

ROUND = 10.0  # seconds between samples
WARM = 0.25  # of the time, at its start, that no slope counts: caches and pools fill
IN_FLIGHT = 64
EARNS, REDEMPTIONS, READS = 200, 20, 100  # a second; what the savers have lasts for an hour
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'points'"
OLDEST_UNSENT = """
    SELECT coalesce(extract(epoch FROM now() - min(create_time)), 0)::float8
    FROM outbox WHERE sent_at IS NULL"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The service after a round; `hours` since the start."""

    hours: float
    megabytes: float
    descriptors: float
    connections: float
    waiting: float
    """Items that wait for a transaction."""
    outbox_age: float
    """Seconds that the oldest unsent event has waited."""


def soak(here: Served, seconds: float) -> Iterator[Sample]:
    """Calls at a steady rate, over new connections in every round, and looks at the service after each."""
    plan = (
        ("EarnPoints", points.earns(), EARNS),
        ("RedeemPoints", points.redeems(points.savers(QUICK)), REDEMPTIONS),
        ("GetBalance", points.balances(), READS),
    )
    started = time.monotonic()
    for number in itertools.count(1):
        for method, made, rate in plan:
            some = list(itertools.islice(made, int(rate * ROUND)))
            result = load.run(
                *(here.address, here.method(method), some),
                in_flight=IN_FLIGHT,
                seconds=ROUND,
                token=here.token,
            )
            if result.refused:
                raise WrongRows(f"{result.refused} {method} were refused")
        yield _look(here, (time.monotonic() - started) / 3600)
        if (left := started + number * ROUND - time.monotonic()) > 0:
            time.sleep(left)
        if time.monotonic() > started + seconds:
            return


def _look(here: Served, hours: float) -> Sample:
    metrics = here.metrics()
    return Sample(
        hours,
        metrics["process_resident_memory_bytes"] / 2**20,
        metrics["process_open_fds"],
        here.sql(CONNECTIONS),
        metrics['gather_waiting{gather="posts"}'] + metrics['gather_waiting{gather="balances"}'],
        here.sql(OLDEST_UNSENT),
    )


def slopes(samples: Sequence[Sample]) -> list[tuple[str, float, float, float]]:
    """Of what was sampled: name, first and last value after warming up, and growth an hour."""
    settled = [sample for sample in samples if sample.hours >= samples[-1].hours * WARM]
    times = [sample.hours for sample in settled]
    found = []
    for place, field in enumerate(fields(Sample)[1:], 1):
        values = [float(astuple(sample)[place]) for sample in settled]
        found.append((field.name, values[0], values[-1], linear_regression(times, values).slope))
    return found


def main() -> None:
    """Prints the slopes; says nothing of what is too much, that is the reader's to judge."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--front", choices=FRONTS, default="grpcio")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loyalty-soak-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user must get in
        with site(Path(folder), QUICK.scale) as here:
            points.prepare(here, QUICK)
            samples: list[Sample] = []
            with here.serving("points", arguments.front) as served:
                for sample in soak(served, 60 * arguments.minutes):
                    samples.append(sample)
                    print(f"\r{60 * sample.hours:.1f} min", end="", file=sys.stderr, flush=True)
                served.quiet()
            posted = here.sql("points", TRANSACTIONS)
            surroundings = report.surroundings(here, (0.0,))
    print("\n| what | after warming up | at the end | growth an hour |\n|---|---|---|---|")
    for name, first, last, slope in slopes(samples):
        print(f"| {name.replace('_', ' ')} | {first:.1f} | {last:.1f} | {slope:+.2f} |")
    print(f"\n{arguments.front}, {arguments.minutes:g} minutes, {posted:,} transactions; {surroundings}.")


if __name__ == "__main__":
    main()
