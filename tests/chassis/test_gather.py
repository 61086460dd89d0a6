"""Group commit: what arrives during a batch shares the next one, and each caller gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.chassis.errors import FailedPrecondition, Internal, ServiceError, Unavailable
from services.chassis.gather import Gather, NotStarted, Overloaded


class Bad(FailedPrecondition):
    """This item is refused."""


class Away(Unavailable):
    """Nothing works now."""


class Work:
    """Answers each number with its double, once it is let; keeps the batches it saw."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.started = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> Sequence[int | ServiceError]:
        self.batches.append(list(items))
        self.started.set()
        await self.open.wait()
        return [Bad(item=item) if item < 0 else 2 * item for item in items]


async def running(gather: Gather[int, int], work: Work) -> asyncio.Future[int]:
    """A batch in flight, with the item 0."""
    first = gather.submit(0)
    await work.started.wait()
    return first


async def test_a_lone_item_starts_at_once() -> None:
    work = Work()
    work.open.set()
    assert await Gather("test", work).submit(21) == 42
    assert work.batches == [[21]]


async def test_what_arrives_while_a_batch_is_in_flight_shares_the_next_one() -> None:
    work = Work()
    gather = Gather("test", work)
    first = await running(gather, work)
    others = [gather.submit(item) for item in range(1, 6)]
    assert work.batches == [[0]]
    work.open.set()
    assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10]
    assert work.batches == [[0], [1, 2, 3, 4, 5]]


async def test_what_trickles_in_is_gathered_where_batches_were_shared_of_late() -> None:
    work = Work()
    work.open.set()
    gather = Gather("test", work)
    shared = [gather.submit(item) for item in range(100)]
    await asyncio.gather(*shared)
    trickled = []
    for item in range(20):
        trickled.append(gather.submit(item))
        for _ in range(5):  # as one call after the other comes through the front
            await asyncio.sleep(0)
    await asyncio.gather(*trickled)
    assert len(work.batches) <= 3


async def test_who_is_alone_again_waits_for_nobody() -> None:
    work = Work()
    work.open.set()
    gather = Gather("test", work)
    await asyncio.gather(*(gather.submit(item) for item in range(100)))
    for item in range(100):  # of late nothing was shared
        await gather.submit(item)
    turns = 0
    future = gather.submit(0)
    while not future.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns < 10


async def test_a_batch_has_a_largest_size() -> None:
    work = Work()
    gather = Gather("test", work, max_batch=2)
    first = await running(gather, work)
    others = [gather.submit(item) for item in range(1, 6)]
    work.open.set()
    await asyncio.gather(first, *others)
    assert work.batches == [[0], [1, 2], [3, 4], [5]]


async def test_an_item_that_is_answered_with_a_refusal_leaves_its_neighbours_alone() -> None:
    work = Work()
    gather = Gather("test", work)
    work.open.set()
    answers = await asyncio.gather(*map(gather.submit, [1, -2, 3]), return_exceptions=True)
    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], Bad)
    assert answers[1].metadata == {"item": "-2"}


async def test_a_batch_that_breaks_is_run_item_by_item() -> None:
    batches: list[list[int]] = []

    async def work(items: Sequence[int]) -> Sequence[int | ServiceError]:
        batches.append(list(items))
        if -1 in items:
            raise ZeroDivisionError
        if -2 in items:
            raise Bad
        return items

    gather: Gather[int, int] = Gather("test", work)
    answers = await asyncio.gather(*map(gather.submit, [1, -1, -2, 4]), return_exceptions=True)
    assert (answers[0], answers[3]) == (1, 4)
    assert isinstance(answers[1], Internal)
    assert isinstance(answers[1].__cause__, ZeroDivisionError)
    assert isinstance(answers[2], Bad)
    assert batches == [[1, -1, -2, 4], [1], [-1], [-2], [4]]


async def test_what_is_away_for_one_is_away_for_all_and_is_asked_once() -> None:
    batches: list[list[int]] = []

    async def work(items: Sequence[int]) -> Sequence[int | ServiceError]:
        batches.append(list(items))
        raise Away

    gather: Gather[int, int] = Gather("test", work)
    answers = await asyncio.gather(*map(gather.submit, [1, 2, 3]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Away] * 3
    assert batches == [[1, 2, 3]]


async def test_a_gather_goes_on_after_a_batch_that_broke() -> None:
    broken = iter([True, False])

    async def work(items: Sequence[int]) -> Sequence[int | ServiceError]:
        if next(broken):
            raise Away
        return items

    gather: Gather[int, int] = Gather("test", work)
    with pytest.raises(Away):
        await gather.submit(1)
    assert await gather.submit(2) == 2


async def test_an_item_whose_caller_left_before_it_started_is_not_run() -> None:
    work = Work()
    gather = Gather("test", work)
    first = await running(gather, work)
    left, stayed = gather.submit(1), gather.submit(2)
    left.cancel()
    work.open.set()
    assert list(await asyncio.gather(first, stayed)) == [0, 4]
    assert work.batches == [[0], [2]]


async def test_an_item_once_started_runs_to_its_end_although_its_caller_left() -> None:
    work = Work()
    finished = asyncio.Event()

    async def noted(items: Sequence[int]) -> Sequence[int | ServiceError]:
        answers = await work(items)
        finished.set()
        return answers

    gather = Gather("test", noted)
    first = await running(gather, work)
    beside = gather.submit(1)
    first.cancel()
    work.open.set()
    assert await beside == 2
    assert finished.is_set()
    assert work.batches == [[0], [1]]


async def test_an_item_that_was_not_started_in_time_is_not_run() -> None:
    work = Work()
    gather = Gather("test", work)
    first = await running(gather, work)
    late, patient = gather.submit(1, timeout=0), gather.submit(2, timeout=600)
    work.open.set()
    with pytest.raises(NotStarted):
        await late
    assert list(await asyncio.gather(first, patient)) == [0, 4]
    assert work.batches == [[0], [2]]


async def test_more_than_may_wait_are_turned_away_at_once_and_the_rest_is_served() -> None:
    work = Work()
    gather = Gather("test", work, max_waiting=2)
    first = await running(gather, work)
    waiting = [gather.submit(1), gather.submit(2)]
    with pytest.raises(Overloaded) as refusal:
        gather.submit(3)
    assert refusal.value.metadata == {"waiting": "2"}
    assert refusal.value.retry_after
    work.open.set()
    assert await asyncio.gather(first, *waiting) == [0, 2, 4]
    assert await gather.submit(3) == 6
