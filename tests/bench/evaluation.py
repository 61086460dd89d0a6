"""`python -m tests.bench.evaluation [--members N] [--kill]`: how fast all members are looked at anew.

The job that a changed tag rule starts sets a tag of each member, in the place of those of the brand's own
rules, and gives it a seat in the groups of its segment; the next change moves each to the groups of another;
the last changes nothing of anybody. With `--kill` the service is killed in the middle of each and started
again. Afterwards SQL counts whether each member is in exactly one group of the scheme, that of its tag,
whether groups have as many seats taken, and whether each change was told once.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.cli.servers import ServerError
from tests.bench import report
from tests.bench.messages import fresh
from tests.bench.paths import WrongRows, call
from tests.bench.site import CLIENTS, FRONTS, PATIENCE, Served, Site, site

CHUNK = 100  # members a call tags
CALLS = 8  # of them at once
PART = 50_000  # members that are tagged over one set of connections, which a server ends after some minutes
SLOWEST = 100  # members a second; who is slower is given up
TPCB_SECONDS = 5
POLL = 0.2  # seconds
SHARES = 5  # segments that a rule spreads the members over
RULES = ("first", "second")  # each gives the members other tags than the one before
PASSES = (
    ("first", "a tag and a seat"),
    ("second", "another tag and another group"),
    ("second", "nothing new"),
)

OPEN_JOBS = "SELECT count(*) FROM evaluations WHERE end_time IS NULL"
DONE = "SELECT coalesce(max(done), 0) FROM evaluations WHERE end_time IS NULL"
TAGGED = "SELECT count(*) FROM tags WHERE key = 'share'"
JOB = """
    SELECT extract(epoch FROM end_time - start_time)::float8 FROM evaluations WHERE kind = 'PROGRAMME'"""
TOLD = "SELECT count(*) FROM outbox WHERE subject LIKE '%.TagsChanged'"
SIZE = "SELECT pg_database_size(current_database())"
# Members with the rule's tag whose only group is of the tag's segment.
SEATED = """
    SELECT count(*) FROM (
        SELECT FROM memberships m JOIN tags t USING (bucket, member_id)
        WHERE m.scheme_id = 'bands' AND m.end_time IS NULL AND t.key = 'band' AND t.value LIKE $1
        GROUP BY bucket, member_id HAVING count(*) = 1 AND min(m.anchor) = min(t.value)) AS seated"""
TAKEN = "SELECT coalesce(sum(seats_taken + overbooked), 0)::bigint FROM groups WHERE scheme_id = 'bands'"


@dataclass(frozen=True, slots=True)
class Pass:
    """One job over all members."""

    what: str
    rate: float
    """Members a second."""
    cpu: float
    """Of the service, in microseconds a member; its relay is in it. Unknown where it was killed."""
    memory_mib: float
    """Of the service, at the end."""
    disk_gib: float
    """Of its database, at the end."""


def _scheme() -> bytes:
    """Groups for each value that any of the rules gives."""
    request = pb.PutSchemeRequest(request_id=fresh("p"))
    scheme = request.scheme
    scheme.scheme_id, scheme.kind, scheme.name_pattern = "bands", pb.SCHEME_KIND_BY_TAG, "{segment}{seq}"
    scheme.capacity, scheme.headroom = 500, 10  # without headroom, seats of full groups would be given up
    for rule in RULES:
        for share in range(SHARES):
            name = f"{rule}-{share}"
            expression = f'"band" in tags && tags.band == "{name}"'
            scheme.segments.add(segment_id=name, name=name, expression=expression)
    return request.SerializeToString()


def _rule(name: str) -> bytes:
    request = pb.PutProgrammeRequest(request_id=fresh("p"))
    expression = f'"share" in tags ? "{name}-" + tags.share : ""'
    request.programme.tag_rules.add(key="band", expression=expression)
    return request.SerializeToString()


def _taggings(start: int, members: int) -> Iterator[bytes]:
    for first in range(start, min(start + PART, members), CHUNK):
        request = pb.BatchTagRequest()
        for number in range(first, min(first + CHUNK, members)):
            tag = request.items.add().tag
            tag.member_id, tag.request_id, tag.source = f"e-{number:07d}", fresh("t"), "bench"
            tag.tags.add(key="share", value=str(number % SHARES))
        yield request.SerializeToString()


def evaluate(here: Site, front: str, members: int, *, kill: bool) -> Iterator[Pass]:
    """Has all members looked at, by one rule after the other. Raises WrongRows."""
    patience = PATIENCE + members / SLOWEST
    with here.serving("groups", front) as served:
        _say(f"tagging {members:,} members")
        call(served, "PutScheme", [_scheme()], PATIENCE, 1)
        for start in range(0, members, PART):
            call(served, "BatchTag", _taggings(start, members), patience, CALLS)
        if (found := served.sql(TAGGED)) != members:
            raise WrongRows(f"{members} members were to be tagged, {found} are")
        _finish(served, patience)
        served.sql("VACUUM ANALYZE")
        told = members
        for name, what in PASSES:
            _say(f"looking at them anew: {what}")
            before = math.nan if kill else _cpu(served)
            call(served, "PutProgramme", [_rule(name)], PATIENCE, 1)
            if kill:
                _kill(here, front, served, members, patience)
            _finish(served, patience)
            spent = _cpu(served) - before
            told += members if what != PASSES[-1][1] else 0
            _check(served, name, members, told)
            yield Pass(
                what,
                members / served.sql(JOB),
                spent / members * 1e6,
                served.metrics()["process_resident_memory_bytes"] / 2**20,
                served.sql(SIZE) / 2**30,
            )


def _cpu(served: Served) -> float:
    return served.metrics()["process_cpu_seconds_total"]


def _kill(here: Site, front: str, served: Served, members: int, patience: float) -> None:
    """Kills the service when half of the members were looked at, and starts it again."""
    deadline = time.monotonic() + patience
    while served.sql(DONE) < members // 2:
        if time.monotonic() > deadline:
            raise TimeoutError(f"half of the members are not looked at after {patience:.0f} s")
        time.sleep(POLL)
    here.house.process(served.service).kill()
    _say(f"killed when {served.sql(DONE):,} were done")
    here.house.start_service(served.service, front=front, jwks_file=str(here.jwks))
    here.house.wait_ready(served.service)


def _check(served: Served, name: str, members: int, told: int) -> None:
    """That every member is where the rule of this name puts it, and that every change was told once."""
    seated, taken = served.sql(SEATED, f"{name}-%"), served.sql(TAKEN)
    if not seated == taken == members:
        raise WrongRows(f"of {members} members {seated} are in one group, and {taken} seats are taken")
    if (found := served.sql(TOLD)) != told:
        raise WrongRows(f"{told} changes of tags were to be told, {found} were")


def _finish(served: Served, patience: float) -> None:
    """Waits until no job is open and every event is published."""
    deadline = time.monotonic() + patience
    while served.sql(OPEN_JOBS):
        if time.monotonic() > deadline:
            raise TimeoutError(f"members are looked at for more than {patience:.0f} s")
        time.sleep(POLL)
    served.quiet()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Prints the rates."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.evaluation", description=__doc__)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--front", choices=FRONTS, default="grpcio")
    parser.add_argument("--kill", action="store_true", help="kill the service in the middle of each job")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loyalty-evaluation-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user must get in
        with site(Path(folder), CLIENTS) as here:
            tpcb = here.tpcb(TPCB_SECONDS)
            passes = list(evaluate(here, arguments.front, arguments.members, kill=arguments.kill))
            tpcb = (tpcb + here.tpcb(TPCB_SECONDS)) / 2
            surroundings = report.surroundings(here, (0.0,))
    print("| each member gets | members a second | × TPC-B | service CPU µs | MiB | database GiB |")
    print("|---|---|---|---|---|---|")
    for one in passes:
        cost = f"{one.rate:,.0f} | {one.rate / tpcb:.2f} | {one.cpu:.0f}"
        print(f"| {one.what} | {cost} | {one.memory_mib:.0f} | {one.disk_gib:.2f} |")
    print(f"\n{arguments.members:,} members, each in one group of the scheme; {surroundings}.")


if __name__ == "__main__":
    try:
        main()
    except (WrongRows, ServerError) as error:
        sys.exit(f"the bench stops: {error}")
