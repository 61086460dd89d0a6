"""Trouble in the database: locks, conflicts, long transactions, a full disk, forged rows. And time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from asyncio import Task
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import grpc
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.database import Database
from services.chassis.ids import bucket
from services.cli.house import House
from services.points import service, store
from services.points.audit import CHECKS
from services.points.rules import Programmes
from tests.chaos.journal import owner, rows_of, until
from tests.chaos.levers import sql
from tests.chaos.site import EITHER, Caller, Fault, Site, an_adjustment
from tests.filling import gift
from tests.support import fresh

SHANGHAI = ZoneInfo("Asia/Shanghai")
DEADLOCK_TIMEOUT = "200ms"  # of PostgreSQL in a house with faults: shorter than the service's lock timeout
SIZE = "8g"  # of a file system that shall be full only when we say so; it takes what it holds
FILLERS = 500  # members whose first points need new pages


async def long_transaction(site: Site) -> None:
    """Somebody writes, as the service does, and commits only when others have long committed after it."""
    assert site.house.clock is not None
    member = fresh("slow")
    database = await Database.open(site.house.database_url("points"), size=1, name="slow")
    try:
        async with database.begin() as connection:
            epoch, now = await store.epoch(connection), site.house.clock.now()
            await service.post(connection, [gift(member, 1)], Programmes(), epoch, now)
            await asyncio.sleep(site.seconds)
    finally:
        await database.close()
        site.lift()
    connection = await owner(site.house)
    try:
        rows = await rows_of(connection, "transactions", [member], order="seq")
    finally:
        await connection.close()
    assert len(rows) == 1
    site.chains[member] = [rows[0]["hash"]]


async def deadlock(site: Site) -> None:
    """Two members' rows are locked in the order that the service never takes."""
    members = sorted((fresh("m"), fresh("m")), key=lambda member: (bucket(member), member))
    async with Caller(site) as caller:
        for member in members:
            await caller.give(member)
        items = [pb.BatchPostItem(adjust=an_adjustment(member, 1)) for member in members]
        connection = await owner(site.house)
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '10s'")
                await _lock(connection, members[1])
                send = partial(caller.once, "BatchPost", pb.BatchPostRequest(items=items))
                call = await _waiting(site, connection, send)
                await _lock(connection, members[0])  # the service has it, and gives way
        except asyncpg.DeadlockDetectedError:  # or we do
            pass
        finally:
            await connection.close()
            site.lift()
        await call
        results = (await caller.insist("BatchPost", pb.BatchPostRequest(items=items))).results
        for member, item, result in zip(members, items, results, strict=True):
            if result.WhichOneof("result") == "error":
                await caller.insist("AdjustPoints", item.adjust)
            assert await caller.available(member) == 2


async def _lock(connection: Any, member: str) -> None:
    query = "SELECT FROM members WHERE (bucket, member_id) = ($1, $2) FOR UPDATE"
    await connection.execute(query, bucket(member), member)


async def _waiting(site: Site, connection: Any, send: Callable[[], Coroutine[Any, Any, Any]]) -> Task[Any]:
    """A call that waits for us; one that gave up before we looked is sent again."""
    calls: list[Task[Any]] = []

    async def waits() -> bool:
        if not calls or calls[-1].done():
            calls.append(asyncio.create_task(send()))
        return await _waits_for_us(site, connection)

    await until(waits)
    return calls[-1]


async def _waits_for_us(site: Site, connection: Any) -> bool:
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
    admin = await asyncpg.connect(site.house.postgres.url("points"))
    try:
        return bool(await admin.fetchval(blocked, connection.get_server_pid()))
    finally:
        await admin.close()


async def lock_timeout(site: Site) -> None:
    """A member's row is held until the service has given up waiting for it, and said so."""
    member = fresh("m")
    async with Caller(site) as caller:
        await caller.give(member)
        connection = await owner(site.house)
        try:
            async with connection.transaction():
                await _lock(connection, member)
                call = asyncio.create_task(caller.give(member))
                await until(partial(_told_to_come_back, caller))
        finally:
            await connection.close()
            site.lift()
        await call
        assert await caller.available(member) == 2


async def _told_to_come_back(caller: Caller) -> bool:
    return any(error.code() is grpc.StatusCode.ABORTED for error in caller.refusals)


async def serialisation_failures(site: Site) -> None:
    """Every third transaction that announces something is told that it cannot be serialised."""
    admin = await asyncpg.connect(site.house.postgres.url(site.service))
    try:
        await admin.execute(_CONFLICTS)
        await asyncio.sleep(site.seconds)
    finally:
        await admin.execute("DROP FUNCTION IF EXISTS chaos_conflict CASCADE")
        await admin.close()
        site.lift()


_CONFLICTS = """
CREATE FUNCTION chaos_conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF random() < 0.3 THEN RAISE 'could not serialize access' USING ERRCODE = 'serialization_failure'; END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER chaos_conflict AFTER INSERT ON outbox
  FOR EACH STATEMENT EXECUTE FUNCTION chaos_conflict();
"""


# --- a disk that can be full --------------------------------------------------------------------------


@contextmanager
def small_disk(house: House, folder: Path) -> Iterator[Path | None]:
    """Moves the services' databases to a file system of their own, and unmounts it in any case afterwards.

    None where this is not allowed: it takes root. The services must not run meanwhile; PostgreSQL is stopped
    at the end.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        shutil.chown(folder, "nobody")
        asyncio.run(_move(house, folder))
        yield folder
    finally:
        house.close()
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


async def _move(house: House, folder: Path) -> None:
    admin = await asyncpg.connect(house.postgres.url())
    try:
        await admin.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        for service in house.services:
            await admin.execute(f"ALTER DATABASE {service} SET TABLESPACE small")
    finally:
        await admin.close()


async def disk_full(site: Site) -> None:
    """PostgreSQL has no room for one more page, until a write was refused for it."""
    assert site.small_disk is not None
    async with Caller(site) as caller:
        try:
            await until(partial(_fills, site.small_disk))
            await until(partial(_refused, caller))
        finally:
            _resize(site.small_disk, SIZE)
            site.lift()


async def _fills(folder: Path) -> bool:
    """Makes a file system as small as what is in it, unless somebody was faster and made that more."""
    disk = os.statvfs(folder)
    return _resize(folder, str((disk.f_blocks - disk.f_bfree) * disk.f_frsize))


def _resize(folder: Path, size: str) -> bool:
    resize = ["mount", "-o", f"remount,size={size}", str(folder)]
    return not subprocess.run(resize, check=False, capture_output=True).returncode


async def _refused(caller: Caller) -> bool:
    items = [pb.BatchPostItem(adjust=an_adjustment(fresh("filler"), 1)) for _ in range(FILLERS)]
    answer = await caller.once("BatchPost", pb.BatchPostRequest(items=items))
    if isinstance(answer, grpc.aio.AioRpcError):
        return False
    codes = {result.error.code for result in answer.results if result.WhichOneof("result") == "error"}
    assert codes <= {grpc.StatusCode.UNAVAILABLE.value[0]}, codes
    return bool(codes)


# --- forged books -------------------------------------------------------------------------------------


FORGED = '[["forged", "POINTS", 1, ""]]'


async def tampered(site: Site) -> None:
    """A row of the ledger is changed behind everybody's back; the audit names it, and nothing else."""
    member = fresh("forged")
    async with Caller(site) as caller:
        await caller.give(member, 7)
        await caller.give(member, 8)
    forge = "UPDATE transactions SET contributions = $3 WHERE (bucket, member_id, seq) = ($1, $2, 1)"
    await sql(site.house, forge, bucket(member), member, FORGED)
    try:
        found = await audited(site.house)
    finally:
        await sql(site.house, forge, bucket(member), member, "[]")
        site.lift()
    assert list(found) == [CHECKS["chain"]], found
    (offender,) = found[CHECKS["chain"]]
    assert member in offender


async def audited(house: House, *options: str, service: str = "points") -> dict[str, list[str]]:
    """The offenders that `loyalty audit` finds, by check; the load goes on meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "audit", service, "--json", "--house", str(house.data)),
        *options,
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    checks = json.loads(output)["checks"]
    return {check["check"]: check["offending"] for check in checks if check["offending"]}


# --- time ---------------------------------------------------------------------------------------------


async def a_day_later(site: Site) -> None:
    """The business clock jumps by a day."""
    await _move_clock(site, _now(site) + timedelta(days=1))


async def midnight(site: Site) -> None:
    """The business clock jumps to the last microsecond of a day in Shanghai, and then into the next one."""
    tomorrow = _now(site).astimezone(SHANGHAI).date() + timedelta(days=1)
    first = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=SHANGHAI).astimezone(UTC)
    await _move_clock(site, first - timedelta(microseconds=1))
    await _move_clock(site, first)


async def leap_day(site: Site) -> None:
    """The business clock jumps to the next 29 February: years in which everybody's points end."""
    year = _now(site).year + 1
    while year % 4 or not year % 100:  # up to 2396, which will do
        year += 1
    await _move_clock(site, datetime(year, 2, 29, 12, tzinfo=SHANGHAI).astimezone(UTC))


def _now(site: Site) -> datetime:
    assert site.house.clock is not None
    return site.house.clock.now()


async def _move_clock(site: Site, to: datetime) -> None:
    clock = site.house.clock
    assert clock is not None
    clock.set(to)
    site.lift()

    async def settled() -> bool:
        return clock.all_settled(list(site.house.services))

    await until(settled)


FAULTS = [
    Fault("long transaction", "F7", long_transaction),
    Fault("deadlock", "F12", deadlock),
    Fault("lock timeout", "F12", lock_timeout),
    Fault("serialisation failures", "F12", serialisation_failures, EITHER),
    Fault("disk full", "F13", disk_full, ()),
    Fault("clock a day later", "F14", a_day_later, ()),
    Fault("clock at midnight in Shanghai", "F14", midnight, ()),
    Fault("clock at 29 February", "F14", leap_day, ()),
    Fault("ledger row forged", "F18", tampered),
]
