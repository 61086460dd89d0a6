"""`python -m tests.bench.leaderboard [--inviters N]`: what a leaderboard costs where many bring others.

The inviters are written straight into the database; most brought one or two, and few brought many. Printed is
how long calls take for the first hundred places and for a member's own, one after the other, and how the
database finds them: by one scan of the leaderboard's index, of no more ranks than are shown or counted.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import asyncpg
import grpc
from loyalty.referral.v1 import referral_service_pb2 as pb
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceStub

from services.chassis.database import Connection, Row
from services.chassis.ids import bucket
from services.cli.house import running
from services.cli.servers import ServerError
from services.referral import store
from tests.bench import load
from tests.bench.messages import CHANCE
from tests.bench.referral import CAMPAIGN, opening
from tests.bench.site import FRONTS, PATIENCE, SETTINGS

T = TypeVar("T")

SIZE = 100  # places asked for
CALLS = 200  # of each kind
STEEP = 1.5  # how fast those become fewer who brought more: the shape of a Pareto distribution
SPAN = timedelta(days=100)  # in which invitees qualified
COUNTED = 10_000  # ranks that are read for a member's own place at most
INDEX = "ranks_leaderboard"
LAST = """
    SELECT member_id FROM ranks WHERE campaign_id = $1
    ORDER BY count, reach_time DESC, member_id DESC LIMIT 1"""
COLUMNS = {
    "members": ("bucket", "member_id"),
    "invites": (
        *("bucket", "member_id", "campaign_id", "campaign_version"),
        *("code", "create_time", "group_id", "masked_name", "ladder_version"),
    ),
    "ranks": ("bucket", "member_id", "campaign_id", "count", "reach_time"),
}


class WrongPlan(Exception):
    """A place is found otherwise than by one scan of the leaderboard's index."""


# --- the inviters -------------------------------------------------------------------------------------


async def fill(connection: Any, inviters: int) -> None:
    """Writes inviters, with invites and ranks."""
    for table, columns in COLUMNS.items():
        await connection.copy_records_to_table(table, records=_rows(table, inviters), columns=columns)
    await connection.execute("ANALYZE members, invites, ranks")


def _rows(table: str, inviters: int) -> Iterator[tuple[Any, ...]]:
    since = datetime.now(UTC) - SPAN
    for number in range(inviters):
        member_id = _name(number)
        key = (bucket(member_id), member_id)
        match table:
            case "members":
                yield key
            case "invites":
                yield *key, CAMPAIGN, 1, f"{number:012d}", since, "", "张**", 1
            case "ranks":
                brought = int(CHANCE.paretovariate(STEEP))
                yield *key, CAMPAIGN, brought, since + SPAN * CHANCE.random()


def _name(number: int) -> str:
    return f"i-{number:07d}"


# --- how long it takes --------------------------------------------------------------------------------


def calls(stub: ReferralServiceStub, inviters: int) -> Iterator[tuple[str, float, float]]:
    """What was asked, and the median and the 99th percentile of the times that it took, in milliseconds."""
    first = pb.GetLeaderboardRequest(campaign_id=CAMPAIGN, size=SIZE)
    leaders = [entry.member_id for entry in stub.GetLeaderboard(first, timeout=PATIENCE).entries]
    anybody = (_name(CHANCE.randrange(inviters)) for _ in itertools.count())
    for what, members in (
        ("nobody's own", itertools.repeat("")),
        ("the own of one of them", itertools.cycle(leaders)),
        ("anybody's own", anybody),
    ):
        waits = []
        for member_id in itertools.islice(members, CALLS):
            request = pb.GetLeaderboardRequest(campaign_id=CAMPAIGN, size=SIZE, member_id=member_id)
            started = time.perf_counter()
            stub.GetLeaderboard(request, timeout=PATIENCE)
            waits.append(time.perf_counter() - started)
        waits.sort()
        yield what, load.quantile(waits, 0.5) * 1e3, load.quantile(waits, 0.99) * 1e3


# --- how it is found ----------------------------------------------------------------------------------


class _Explaining:
    """A connection that keeps the plan of each statement which it runs."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.plans: list[Any] = []

    async def fetch(self, query: str, *values: Any) -> list[Row]:
        """All rows."""
        explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}"
        self.plans.append(json.loads(await self._connection.fetchval(explained, *values))[0])
        rows: list[Row] = await self._connection.fetch(query, *values)
        return rows

    async def fetchrow(self, query: str, *values: Any) -> Row | None:
        """The first row."""
        return next(iter(await self.fetch(query, *values)), None)


async def explain(connection: Any) -> list[str]:
    """How places are found: the first ones, that of the leader, and one behind those that are counted.

    Raises WrongPlan.
    """
    explaining = _Explaining(connection)
    asked = cast("Connection", explaining)
    leader = (await store.leaderboard(asked, CAMPAIGN, SIZE))[0]
    last = await connection.fetchval(LAST, CAMPAIGN)
    for member_id, number in ((leader.member_id, 1), (last, COUNTED + 1)):
        place = await store.place(asked, CAMPAIGN, member_id)
        assert place is not None
        assert place.number == number
    asked_for = ((f"the first {SIZE}", SIZE), ("the leader's place", 1), ("the last place", COUNTED))
    return [_found(*one, plan) for one, plan in zip(asked_for, explaining.plans, strict=True)]


def _found(what: str, most: int, plan: Any) -> str:
    """One line of what a plan does. Raises WrongPlan."""
    nodes = list(_nodes(plan["Plan"]))
    kinds = [" ".join(filter(None, (node["Node Type"], node.get("Index Name")))) for node in nodes]
    scans = [node for node in nodes if node.get("Index Name") == INDEX]
    most_rows = max(node["Actual Rows"] for node in nodes)
    if len(scans) != 1 or most_rows > most or any("Seq" in node["Node Type"] for node in nodes):
        raise WrongPlan(f"{what}: {json.dumps(plan, indent=1)}")
    pages = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    milliseconds = plan["Execution Time"]
    ranks = scans[0]["Actual Rows"]
    return f"{what}: {' > '.join(kinds)}; {ranks:.0f} ranks, {pages} pages, {milliseconds:.2f} ms"


def _nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


async def _with(url: str, work: Callable[[Any], Awaitable[T]]) -> T:
    connection = await asyncpg.connect(url)
    try:
        return await work(connection)
    finally:
        await connection.close()


# --- all of it ----------------------------------------------------------------------------------------


def main() -> None:
    """Prints the times and the plans."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.leaderboard", description=__doc__)
    parser.add_argument("--inviters", type=int, default=1_000_000)
    parser.add_argument("--front", choices=FRONTS, default="grpcio")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loyalty-leaderboard-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user must get in
        with running(
            Path(folder), front=arguments.front, postgres_settings=SETTINGS, services=("referral",)
        ) as house:
            url = house.postgres.url("referral")
            with grpc.insecure_channel(house.describe()["referral"]["grpc"]) as channel:
                stub = ReferralServiceStub(channel)
                stub.PutCampaign(opening(), timeout=PATIENCE)
                print(f"writing {arguments.inviters:,} inviters", file=sys.stderr, flush=True)
                asyncio.run(_with(url, lambda connection: fill(connection, arguments.inviters)))
                asyncio.run(_with(url, lambda connection: connection.execute("VACUUM ranks, invites")))
                times: Sequence[tuple[str, float, float]] = list(calls(stub, arguments.inviters))
            found = asyncio.run(_with(url, explain))
    print(f"| GetLeaderboard, the first {SIZE} and | p50 ms | p99 ms |\n|---|---|---|")
    for what, median, late in times:
        print(f"| {what} | {median:.2f} | {late:.2f} |")
    print(f"\n{arguments.inviters:,} inviters, {CALLS} calls of each kind, {arguments.front}.")
    print("\n".join(found))


if __name__ == "__main__":
    try:
        main()
    except (WrongPlan, ServerError) as error:
        sys.exit(f"the bench stops: {error}")
