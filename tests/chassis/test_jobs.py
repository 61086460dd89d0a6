"""Leases in a real database: one holder at a time, and none that writes after it was overtaken."""

from __future__ import annotations

import asyncio

import pytest

from services.chassis.database import Database, LockTimeout
from services.chassis.jobs import Job, Jobs, Lease, LeaseLost, run_job
from services.points import tables
from tests.support import fresh

FIRST, SECOND = Jobs(tables.jobs, "first"), Jobs(tables.jobs, "second")


async def claimed(database: Database, jobs: Jobs, name: str) -> Lease:
    lease = await jobs.claim(database, name)
    assert lease is not None
    return lease


async def pass_over(database: Database, name: str) -> None:
    """Lets the holder's time run out."""
    async with database.begin() as connection:
        await connection.execute("UPDATE jobs SET lease_until = now() WHERE name = $1", name)


async def checks(database: Database, jobs: Jobs, lease: Lease) -> bool:
    async with database.begin() as connection:
        try:
            await jobs.check(connection, lease)
        except LeaseLost:
            return False
    return True


async def test_of_many_who_want_a_lease_one_gets_it(database: Database) -> None:
    name = fresh("job")
    wanting = [Jobs(tables.jobs, f"holder-{number}") for number in range(8)]
    leases = await asyncio.gather(*(jobs.claim(database, name) for jobs in wanting))
    assert len([lease for lease in leases if lease is not None]) == 1


async def test_who_holds_a_lease_keeps_it_from_others_and_may_claim_it_again(database: Database) -> None:
    name = fresh("job")
    lease = await claimed(database, FIRST, name)
    assert await SECOND.claim(database, name) is None
    await FIRST.renew(database, lease)
    assert await SECOND.claim(database, name) is None
    again = await claimed(database, FIRST, name)
    assert again.token > lease.token
    assert not await checks(database, FIRST, lease)


async def test_a_holder_that_was_overtaken_changes_nothing_more(database: Database) -> None:
    name = fresh("job")
    paused = await claimed(database, FIRST, name)
    assert await checks(database, FIRST, paused)
    await pass_over(database, name)
    assert await checks(database, FIRST, paused)  # nobody took over yet
    taken = await claimed(database, SECOND, name)
    assert taken.token > paused.token
    assert not await checks(database, FIRST, paused)
    with pytest.raises(LeaseLost) as lost:
        await FIRST.renew(database, paused)
    assert lost.value.metadata == {"job": name}
    await FIRST.finish(database, paused, 0)
    assert await checks(database, SECOND, taken)
    assert await FIRST.claim(database, name) is None


async def test_what_an_overtaken_holder_wrote_in_its_transaction_is_rolled_back(database: Database) -> None:
    name, trace = fresh("job"), fresh("job")
    paused = await claimed(database, FIRST, name)
    await pass_over(database, name)
    await claimed(database, SECOND, name)

    async def write() -> None:
        async with database.begin() as connection:
            await connection.execute("INSERT INTO jobs SELECT $1, 0, '', now(), now()", trace)
            await FIRST.check(connection, paused)

    with pytest.raises(LeaseLost):
        await write()
    async with database.read() as connection:
        assert await connection.fetchval("SELECT count(*) FROM jobs WHERE name = $1", trace) == 0


async def test_nobody_takes_over_between_a_holder_s_check_and_its_commit(database: Database) -> None:
    name = fresh("job")
    lease = await claimed(database, FIRST, name)
    await pass_over(database, name)
    async with database.begin() as connection:
        await FIRST.check(connection, lease)
        with pytest.raises(LockTimeout):
            await SECOND.claim(database, name)
    assert await claimed(database, SECOND, name)


async def test_a_lease_given_back_is_free_at_once_if_no_pause_is_asked(database: Database) -> None:
    name = fresh("job")
    await FIRST.finish(database, await claimed(database, FIRST, name), 0)
    assert await claimed(database, SECOND, name)


async def test_after_a_run_nobody_runs_again_before_the_pause_is_over(database: Database) -> None:
    name = fresh("job")
    await FIRST.finish(database, await claimed(database, FIRST, name), 3600)
    assert await FIRST.claim(database, name) is None
    assert await SECOND.claim(database, name) is None


async def test_a_job_runs_until_nothing_waits_and_then_gives_its_lease_back(database: Database) -> None:
    name, steps, done = fresh("job"), iter([True, True, False]), asyncio.Event()
    leases: list[Lease] = []

    async def step(lease: Lease) -> bool:
        leases.append(lease)
        more = next(steps)
        if not more:
            done.set()
        return more

    running = asyncio.create_task(run_job(database, FIRST, Job(name, 3600, step)))
    await asyncio.wait_for(done.wait(), 20)
    deadline = asyncio.get_running_loop().time() + 20
    given_back = "SELECT next_run_time > now() AND lease_until <= now() FROM jobs WHERE name = $1"
    async with database.read() as connection:
        while not await connection.fetchval(given_back, name):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert leases == [leases[0]] * 3


async def test_a_job_goes_on_after_its_lease_was_lost(database: Database) -> None:
    name, done = fresh("job"), asyncio.Event()
    tokens: list[int] = []

    async def step(lease: Lease) -> bool:
        tokens.append(lease.token)
        if len(tokens) == 1:
            await pass_over(database, name)
            await SECOND.finish(database, await claimed(database, SECOND, name), 0)
            return True  # so that the lease is renewed, which fails
        done.set()
        return False

    running = asyncio.create_task(run_job(database, FIRST, Job(name, 0.01, step)))
    await asyncio.wait_for(done.wait(), 20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert tokens[1] > tokens[0] + 1
