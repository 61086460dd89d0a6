"""Houses that run one service, which modules share, and whose books must close in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any

from services.chassis.audit import Report
from services.cli.house import House
from tests.conftest import NOON, OpenHouse, a_folder
from tests.support import defects

Audit = Callable[..., Coroutine[Any, Any, Report]]


@contextmanager
def proved(service: str, audit: Audit, opened: AbstractContextManager[House]) -> Iterator[House]:
    """A house for as long as the block runs, whose books must close after all that was done in it."""
    with opened as house:
        yield house
        assert not defects(house)
        report = asyncio.run(audit(house.database_url(service), stream_url=house.nats.url))
        assert report.clean, report.lines


@contextmanager
def by_front(service: str, audit: Audit, open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """Houses in which it is NOON, by front; each is opened once somebody wants it."""
    with a_folder() as folder, ExitStack() as stack:

        @cache
        def on(front: str) -> House:
            house = open_house(folder / front, (service,), test_clock=NOON, front=front)
            return stack.enter_context(proved(service, audit, house))

        yield on
