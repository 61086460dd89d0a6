"""Who gets what, so that it is worth most: the assignment problem, by SciPy's solver, over whole numbers.

The solver reckons with floats. Below `EXACT` they hold whole numbers exactly, and it only adds and subtracts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT = 2**53


class Worths:
    """What each thing is worth to somebody; None is what they do not take."""

    def __init__(self, of: Sequence[int | None]) -> None:
        self.of = of
        self.taken = frozenset(thing for thing, worth in enumerate(of) if worth is not None)

    @cached_property
    def costs(self) -> NDArray[Any]:
        """The same, as the solver wants it."""
        return np.array([np.inf if worth is None else -worth for worth in self.of])

    def best(self, things: Iterable[int], must: int, may: int) -> list[int]:
        """So many of what is taken, whatever it is worth, and up to so many more where that is something."""
        best = sorted(things, key=lambda thing: (-(self.of[thing] or 0), thing))[: must + may]
        return sorted([*best[:must], *(thing for thing in best[must:] if (self.of[thing] or 0) > 0)])


@dataclass(frozen=True, slots=True)
class Taker:
    """Takes things, by what they are worth to it."""

    worths: Worths
    must: int
    """It takes so many, whatever they are worth …"""
    may: int
    """… and up to so many more where that is worth something."""


def fits(takes: int, largest: int) -> bool:
    """Whether things of such a worth can be given to so many in all without rounding."""
    return 2 * (takes + 1) * largest < EXACT


def assign(takers: Sequence[Taker], things: int, barred: Sequence[int]) -> list[list[int]] | None:
    """The things that each taker gets, each thing given once at most: of all ways one that is worth most.

    `barred` are things that nobody gets. None where what must be taken cannot be. The same input gets the
    same answer.
    """
    counts = [taker.must + taker.may for taker in takers]
    rows, spare = sum(counts), things
    if not rows:
        return [[] for _ in takers]
    open_to = [taker.worths.taken.difference(barred) for taker in takers]
    if any(taker.must > len(mine) for taker, mine in zip(takers, open_to, strict=True)):
        return None
    if len(frozenset().union(*open_to)) == sum(map(len, open_to)):  # nobody stands in another's way
        return [
            taker.worths.best(mine, taker.must, taker.may)
            for taker, mine in zip(takers, open_to, strict=True)
        ]
    matrix = np.full((rows, things + sum(taker.may for taker in takers)), np.inf)
    row = 0
    for taker, count in zip(takers, counts, strict=True):
        matrix[row : row + count, :things] = taker.worths.costs
        free = np.arange(taker.may)
        matrix[row + taker.must + free, spare + free] = 0  # who need not take may take nothing
        row, spare = row + count, spare + taker.may
    matrix[:, list(barred)] = np.inf
    if matrix.shape[1] < rows:
        return None
    try:
        chosen = _solved(matrix)
    except ValueError:  # there is no way to give all that must be taken
        return None
    given, row = [], 0
    for count in counts:
        given.append(sorted(thing for thing in chosen[row : row + count] if thing < things))
        row += count
    return given


def _solved(matrix: NDArray[Any]) -> list[int]:
    """The column of each row. Raises ValueError where there is no way.

    SciPy takes a quarter of a second and 50 MB: a process that has nothing to solve goes without it.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    columns: list[int] = linear_sum_assignment(matrix)[1].tolist()
    return columns
