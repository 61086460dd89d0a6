"""`python -m tests.bench [--quick] [--json FILE]`: measures the service against pgbench and a bare echo."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from services.cli.servers import ServerError
from tests.bench import paths, report
from tests.bench.paths import Figures
from tests.bench.site import FRONTS, site


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
            _say("preparing members and lots")
            savers = paths.prepare(here, plan)
            for number in range(plan.rounds):
                for front in FRONTS if number % 2 == 0 else reversed(FRONTS):
                    _say(f"round {number + 1} of {plan.rounds}, {front}")
                    blocks[front].append(paths.measure(here, front, plan, savers))
            surroundings = report.surroundings(here, load_before)
            posted = here.sql("SELECT count(*) FROM transactions")
    if arguments.json:
        raw = {front: [{p: asdict(f) for p, f in b.items()} for b in made] for front, made in blocks.items()}
        arguments.json.write_text(json.dumps({"surroundings": surroundings, "blocks": raw}, indent=2) + "\n")
    print(report.table(report.Rounds(blocks)))
    print(f"\n{surroundings}.")
    print(
        f"{plan.rounds} round(s), {posted:,} transactions, each acknowledgement found committed, "
        f"{time.monotonic() - started:.0f} s."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (paths.WrongRows, ServerError) as error:
        sys.exit(f"the bench stops: {error}")
