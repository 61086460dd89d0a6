"""Group commit: calls that arrive while a transaction is in flight share the next one.

One batch is in flight at a time; two would each take half of what waits, and nothing would gather. A lone
call starts at once, and while it runs the next batch collects itself. It lingers only where batches have been
shared of late and next to nothing waits: a quick read is over before a slow front has brought the next calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.chassis import telemetry
from services.chassis.errors import DeadlineExceeded, Internal, ResourceExhausted, ServiceError, Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_BATCH = 256
MAX_WAITING = 4096
FEW = 4  # waiting items below which it may pay to linger
ENOUGH = 32  # waiting items that share nearly all there is to share
LINGER = 0.005  # seconds at most
QUIET = 60  # turns of the event loop without another item, after which nobody is on the way
SHARED = 2.0  # items of the batches of late from which on they count as shared
LATE = 16  # batches that "of late" spans


class Overloaded(ResourceExhausted):
    """More requests wait than this process takes on."""


class NotStarted(DeadlineExceeded):
    """The deadline passed before the request was started; nothing was done."""


@dataclass(slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    future: asyncio.Future[Answer]
    deadline: float | None  # seconds of the event loop's clock


class Gather(Generic[Item, Answer]):
    """Runs `work` over batches of items; each submitter gets its own answer or its own error.

    `work` answers item by item with a value or a ServiceError. If it raises, the batch's items are run
    one by one, so that one bad item never fails its neighbours.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | ServiceError]]],
        *,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._running: asyncio.Task[None] | None = None
        self._mean = 1.0  # items of the batches of late
        self._sizes = telemetry.BATCH.labels(name)
        self._shed = telemetry.SHED.labels(name)
        telemetry.WAITING.labels(name).set_function(lambda: len(self._waiting))

    def submit(self, item: Item, timeout: float | None = None) -> asyncio.Future[Answer]:
        """Queues an item; the future brings its answer. Raises Overloaded at once when too many wait.

        `timeout` is in seconds: an item not started by then gets NotStarted. An item once started runs to
        its end, whoever still waits for it.
        """
        if len(self._waiting) >= self._max_waiting:
            self._shed.inc()
            raise Overloaded(waiting=len(self._waiting))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        deadline = None if timeout is None else loop.time() + timeout
        self._waiting.append(_Waiting(item, future, deadline))
        if self._running is None:
            self._running = loop.create_task(self._drain())
        return future

    async def _drain(self) -> None:
        try:
            while self._waiting:
                if self._mean > SHARED and len(self._waiting) < FEW:
                    await self._linger()
                batch = self._take()
                if batch:
                    self._mean += (len(batch) - self._mean) / LATE
                    self._sizes.observe(len(batch))
                    await self._run(batch)
        finally:
            self._running = None

    async def _linger(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + LINGER
        quiet, waiting = 0, len(self._waiting)
        while quiet < QUIET and waiting < ENOUGH and loop.time() < end:
            await asyncio.sleep(0)
            before, waiting = waiting, len(self._waiting)
            quiet = quiet + 1 if waiting == before else 0

    def _take(self) -> list[_Waiting[Item, Answer]]:
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
        return self._in_time(taken)

    def _in_time(self, batch: list[_Waiting[Item, Answer]]) -> list[_Waiting[Item, Answer]]:
        """Those whose caller still waits and whose deadline has not passed."""
        now = asyncio.get_running_loop().time()
        for waiting in batch:
            if not waiting.future.done() and waiting.deadline is not None and waiting.deadline <= now:
                waiting.future.set_exception(NotStarted())
        return [waiting for waiting in batch if not waiting.future.done()]

    async def _run(self, batch: list[_Waiting[Item, Answer]]) -> None:
        try:
            answers = await self._work([waiting.item for waiting in batch])
        except Unavailable as error:  # singly they would fare no better, one timeout after the other
            answers = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    await self._run(self._in_time([waiting]))
                return
            answers = [error if isinstance(error, ServiceError) else _defect(error)] * len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.future.done():
                continue
            if isinstance(answer, ServiceError):
                waiting.future.set_exception(answer)
            else:
                waiting.future.set_result(answer)


def _defect(error: Exception) -> ServiceError:
    wrapped = Internal()
    wrapped.__cause__ = error
    return wrapped
