"""The groups service: seats given by place, members who come, and the nearest site, in process and by SQL."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from functools import cache

import asyncpg
import uvloop
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.cli import sites
from services.groups.atlas import Atlas
from services.groups.domain.coordinates import Point
from services.groups.domain.sites import Site as Shop
from tests.bench import load
from tests.bench.goals import Goal, Memory, Rate
from tests.bench.messages import fresh
from tests.bench.paths import TPCB, Figure, Figures, Plan, WrongRows, call, memory, path, some
from tests.bench.site import PATIENCE, PGBENCH, Served, Site

ASSIGN, JOIN = "AssignMember, 256 in flight", "JoinGroup, 256 in flight"
NEAREST, NEAREST_OF_MANY = (f"nearest in process, {number} sites" for number in ("1,400", "100,000"))
KNN, KNN_OF_MANY = (f"KNN by PostgreSQL, {number} sites" for number in ("1,400", "100,000"))
MEMORY = "memory of groups"
PATHS = (ASSIGN, JOIN, NEAREST, KNN, NEAREST_OF_MANY, KNN_OF_MANY, MEMORY)
GOALS: Sequence[Goal] = (
    Rate(ASSIGN, 0.5, TPCB),
    Rate(JOIN, 0.5, TPCB),
    Rate(NEAREST, 20, KNN),
    Rate(NEAREST_OF_MANY, 8, KNN_OF_MANY),
    Memory(MEMORY),
)

SCHEME = "store"  # of the programme: groups of 500 by location, the site's next one where one is full
SITES, MANY = 1_400, 100_000
PLACES = 20_000  # where members are: as sites, more where more people live
SEED, ELSEWHERE = 1, 2  # what sites and members' places are drawn by

ALL_SITES = "SELECT count(*) FROM sites WHERE site_id LIKE 'site-%'"
ASSIGNED = "SELECT count(*) FROM memberships WHERE scheme_id = 'store' AND status = 'ASSIGNED'"
JOINED = "SELECT count(*) FROM memberships WHERE scheme_id = 'store' AND status = 'JOINED'"
SEATS = """
    SELECT array_agg((member_id, group_id)) FROM memberships
    WHERE scheme_id = 'store' AND status = 'ASSIGNED'"""
KNN_TABLES = {SITES: "few_sites", MANY: "many_sites"}


# --- what it is called with ---------------------------------------------------------------------------


@cache
def shops(number: int) -> list[Shop]:
    """Made-up sites of real cities."""
    rows = sites.made_up(sites.cities(), number, SEED)
    return [
        Shop(site_id=row[0], name=row[1], city=row[2], point=Point(float(row[3]), float(row[4])))
        for row in rows
    ]


@cache
def places() -> list[Point]:
    """Where members are."""
    return [Point(float(row[3]), float(row[4])) for row in sites.made_up(sites.cities(), PLACES, ELSEWHERE)]


def assignments() -> Iterator[bytes]:
    """Members whom nobody knows yet, each at its place."""
    for place in itertools.cycle(places()):
        request = pb.AssignMemberRequest(
            member_id=fresh("g"),
            request_id=fresh("a"),
            scheme_id=SCHEME,
            location=_location(place),
            entry_source="bench",
        )
        yield request.SerializeToString()


def _joins(seats: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    now = int(time.time())
    for member, group in seats:
        request = pb.JoinGroupRequest(member_id=member, request_id=fresh("j"), group_id=group)
        request.occur_time.FromSeconds(now)
        yield request.SerializeToString()


def _puts() -> Iterator[bytes]:
    made = shops(SITES)
    for at in range(0, SITES, sites.CHUNK):
        request = pb.BatchPutSitesRequest(request_id=fresh("s"))
        for shop in made[at : at + sites.CHUNK]:
            location = _location(shop.point)
            request.sites.add(site_id=shop.site_id, name=shop.name, city=shop.city, location=location)
        yield request.SerializeToString()


def _location(point: Point) -> pb.Location:
    return pb.Location(latitude=point.latitude, longitude=point.longitude, datum=pb.DATUM_WGS84)


# --- what is measured ---------------------------------------------------------------------------------


def prepare(site: Site, plan: Plan) -> None:  # noqa: ARG001 - as every service
    """Puts the sites, and as many and more into the bench's own database."""
    with site.serving("groups", "native") as served:
        call(served, "BatchPutSites", _puts(), PATIENCE, 1)
        served.quiet()
        if (found := served.sql(ALL_SITES)) != SITES:
            raise WrongRows(f"{SITES} sites were acknowledged, {found} are there")
    site.sql("groups", "VACUUM ANALYZE")
    for number, table in KNN_TABLES.items():
        points = [shop.point for shop in shops(number)]
        site.sql(PGBENCH, f"CREATE TABLE {table} (place point)")
        fill = f"INSERT INTO {table} SELECT point(x, y) FROM unnest($1::float8[], $2::float8[]) p (x, y)"  # noqa: S608
        site.sql(PGBENCH, fill, [one.longitude for one in points], [one.latitude for one in points])
        site.sql(PGBENCH, f"CREATE INDEX ON {table} USING gist (place)")
        site.sql(PGBENCH, f"VACUUM ANALYZE {table}")


def measure(site: Site, front: str, plan: Plan) -> Figures:
    """Measures every path on one front; what is nearest is found without one."""
    found: Figures = {}
    with site.serving("groups", front) as served:
        call(served, "AssignMember", assignments(), 1.0)  # warms everything up
        made = some(assignments(), plan.seconds)
        found[ASSIGN] = path(served, "AssignMember", made, plan.seconds, gather="posts", committed=ASSIGNED)
        found[JOIN] = _join(served, plan.seconds)
        found[MEMORY] = memory(served)
    for number, nearest, knn in ((SITES, NEAREST, KNN), (MANY, NEAREST_OF_MANY, KNN_OF_MANY)):
        found[nearest] = _nearest(number, plan.seconds / 4)
        found[knn] = uvloop.run(_knn(site, KNN_TABLES[number], plan.seconds / 4))
    return found


def _join(served: Served, seconds: float) -> Figure:
    """Has the members come who have a seat."""
    made = list(_joins(served.sql(SEATS)))
    return path(served, "JoinGroup", made, seconds, gather="posts", committed=JOINED)


@cache
def _atlas(number: int) -> Atlas:
    return Atlas(1, shops(number))


def _nearest(number: int, seconds: float) -> Figure:
    """The nearest site as the service finds it, one look after the other."""
    atlas, waits = _atlas(number), []
    until = time.perf_counter() + seconds
    for place in itertools.cycle(places()):
        started = time.perf_counter()
        atlas.nearest(place, 1)
        ended = time.perf_counter()
        waits.append(ended - started)
        if ended > until:
            break
    return _figure(waits)


async def _knn(site: Site, table: str, seconds: float) -> Figure:
    """The nearest by the plane's distance, one statement after the other; on a sphere it may be another."""
    connection = await asyncpg.connect(site.house.postgres.url(PGBENCH))
    query = f"SELECT place FROM {table} ORDER BY place <-> point($1, $2) LIMIT 1"  # noqa: S608 - our own name
    statement = await connection.prepare(query)
    waits = []
    until = time.perf_counter() + seconds
    for place in itertools.cycle(places()):
        started = time.perf_counter()
        await statement.fetchval(place.longitude, place.latitude)
        ended = time.perf_counter()
        waits.append(ended - started)
        if ended > until:
            break
    await connection.close()
    return _figure(waits)


def _figure(waits: list[float]) -> Figure:
    waits.sort()
    return Figure(
        rate=len(waits) / sum(waits),
        p50=load.quantile(waits, 0.5) * 1e3,
        p99=load.quantile(waits, 0.99) * 1e3,
    )
