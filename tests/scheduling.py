"""Which worker runs which files of tests: houses are what takes time, so as few as can be are opened."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from xdist.scheduler import LoadFileScheduling

# Begun first: whichever ran last would keep one worker busy while the others have nothing left to do.
LONGEST = (
    "tests/chaos/test_faults.py",
    "tests/cli/test_commands.py",
    "tests/journeys/test_replay.py",
    "tests/journeys/test_cards_and_points.py",
    "tests/journeys/test_longest_chain.py",
)
# Packages whose modules share houses and databases, which each worker opens for itself.
SHARING = frozenset({"points", "cards", "groups", "referral"})


class ByPackage(LoadFileScheduling):  # type: ignore[misc] # it ships no types
    """Gives each worker whole files, of the packages that it works on already as long as there are any."""

    def _assign_work_unit(self, node: Any) -> None:
        taken = {one: set(map(_package, files)) for one, files in self.assigned_work.items()}
        mine = taken.pop(node, set())
        theirs = set().union(*taken.values())

        def cost(file: str) -> int:
            package = _package(file)
            if file in LONGEST:
                return 0
            if package in SHARING:
                return 1 if package in mine else 4 if package in theirs else 2
            return 3

        self.workqueue.move_to_end(min(self.workqueue, key=cost), last=False)
        super()._assign_work_unit(node)


def _package(file: str) -> str:
    return PurePosixPath(file).parent.name
