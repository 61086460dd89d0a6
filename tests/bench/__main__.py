"""`python -m tests.bench [--quick] [--json FILE]`: measures the services against pgbench and a bare echo."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Protocol

from services.cli.servers import ServerError
from tests.bench import cards, groups, paths, points, referral, report
from tests.bench.goals import Goal, Rounds
from tests.bench.paths import ECHO, TPCB, Figure, Figures, Plan
from tests.bench.site import FRONTS, Site, site


class Benched(Protocol):
    """What the module of a service offers."""

    @property
    def PATHS(self) -> Sequence[str]:  # noqa: N802 - a constant of the module
        """What is measured, in the order of the table."""

    @property
    def GOALS(self) -> Sequence[Goal]:  # noqa: N802 - a constant of the module
        """What is asked of these paths."""

    def prepare(self, site: Site, plan: Plan) -> None:
        """Fills the service's database. Raises WrongRows."""

    def measure(self, site: Site, front: str, plan: Plan) -> Figures:
        """Measures every path once on one front. Raises WrongRows."""


SERVICES: Sequence[Benched] = (points, cards, groups, referral)


def main() -> None:
    """Measures and prints; a missed goal is no failure, a missing or superfluous row is."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, within five minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keeps every round's figures")
    arguments = parser.parse_args()
    plan = paths.QUICK if arguments.quick else paths.FULL
    started, load_before = time.monotonic(), os.getloadavg()
    blocks: dict[str, list[Figures]] = {front: [] for front in FRONTS}
    with tempfile.TemporaryDirectory(prefix="loyalty-bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user must get in
        with site(Path(folder), plan.scale) as here:
            _say("preparing members, lots, cards, sites and invites")
            for service in SERVICES:
                service.prepare(here, plan)
            here.settle()
            for number in range(plan.rounds):
                for front in FRONTS if number % 2 == 0 else reversed(FRONTS):
                    _say(f"round {number + 1} of {plan.rounds}, {front}")
                    blocks[front].append(measure(here, front, plan))
            surroundings = report.surroundings(here, load_before)
    if arguments.json:
        raw = {front: [{p: asdict(f) for p, f in b.items()} for b in made] for front, made in blocks.items()}
        arguments.json.write_text(json.dumps({"surroundings": surroundings, "blocks": raw}, indent=2) + "\n")
    rows = [TPCB, ECHO, *(path for service in SERVICES for path in service.PATHS)]
    print(report.table(Rounds(blocks), rows, [goal for service in SERVICES for goal in service.GOALS]))
    print(f"\n{surroundings}.")
    print(
        f"{plan.rounds} round(s), every write acknowledged was found committed, "
        f"{time.monotonic() - started:.0f} s."
    )


def measure(site: Site, front: str, plan: Plan) -> Figures:
    """A block: every path of every service on one front, with what it is compared with."""
    made = itertools.cycle(list(itertools.islice(points.earns(), 1000)))
    # What all is compared with is measured on all sides, as the machine's mood changes meanwhile.
    tpcb = [site.tpcb(plan.seconds)]
    found = {ECHO: paths.bare_echo(site, front, made, plan.seconds / 2)}
    for service in SERVICES:
        found |= service.measure(site, front, plan)
        tpcb.append(site.tpcb(plan.seconds))
    return found | {TPCB: Figure(rate=mean(tpcb))}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (paths.WrongRows, ServerError) as error:
        sys.exit(f"the bench stops: {error}")
