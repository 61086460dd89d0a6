"""What is asked of paths, and whether it is met: of medians over the rounds, of ratios within each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Protocol

from tests.bench.paths import Figure, Figures
from tests.bench.site import FRONTS

MEMORY_LIMIT = 200  # megabytes that a service may hold


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


class Goal(Protocol):
    """What is asked of a path."""

    @property
    def path(self) -> str:
        """Of which it is asked."""

    @property
    def fronts(self) -> Sequence[str]:
        """Those on which it is asked."""

    def verdict(self, rounds: Rounds, front: str) -> str:
        """What is asked, and whether it is met on a front."""


@dataclass(frozen=True)
class Rate:
    """`path` must reach `factor` times the rate of `than`, which ran in the same block."""

    path: str
    factor: float
    than: str
    fronts: Sequence[str] = FRONTS

    def verdict(self, rounds: Rounds, front: str) -> str:
        """See Goal."""
        found = rounds.ratio(front, self.path, self.than)
        return _verdict("≥", self.factor, found, f" × {self.than.split(',')[0]}")


@dataclass(frozen=True)
class Gain:
    """The native front must reach `factor` times the rate of grpcio's."""

    path: str
    factor: float
    fronts: Sequence[str] = ("native",)

    def verdict(self, rounds: Rounds, front: str) -> str:
        """See Goal."""
        mine, other = rounds.median(front, self.path).rate, rounds.median("grpcio", self.path).rate
        return _verdict("≥", self.factor, mine and other and mine / other, " × on grpcio")


@dataclass(frozen=True)
class Tail:
    """One call in a hundred may take `factor` times as long as the median."""

    path: str
    factor: float
    fronts: Sequence[str] = FRONTS

    def verdict(self, rounds: Rounds, front: str) -> str:
        """See Goal."""
        mine = rounds.median(front, self.path)
        return _verdict("≤", self.factor, mine.p50 and mine.p99 and mine.p99 / mine.p50, " × p50 at p99")


@dataclass(frozen=True)
class Memory:
    """A service may hold so much."""

    path: str
    megabytes: float = MEMORY_LIMIT
    fronts: Sequence[str] = FRONTS

    def verdict(self, rounds: Rounds, front: str) -> str:
        """See Goal."""
        return _verdict("≤", self.megabytes, rounds.median(front, self.path).megabytes, " MB")


def _verdict(sign: str, goal: float, value: float | None, unit: str) -> str:
    if value is None:
        return f"{sign} {goal:g}{unit}: not measured"
    met = value >= goal if sign == "≥" else value <= goal
    return f"{sign} {goal:g}{unit}: {value:.2f}, {'met' if met else 'MISSED'}"
