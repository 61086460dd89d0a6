"""The load client counts what the servers of both fronts answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from services.cli.servers import HOST, Guarded, free_port
from tests.bench import echo, load
from tests.support import TIMEOUT

LONG_RUN = 60.0  # seconds; the messages run out long before


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[str]:
    address = f"{HOST}:{free_port()}"
    log: Path = tmp_path_factory.mktemp("echo") / "echo.log"
    with Guarded([sys.executable, "-m", "tests.bench.echo", front, address], log=log):
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(TIMEOUT)
        yield address


def run(address: str, messages: list[bytes]) -> load.Result:
    return load.run(address, echo.METHOD, messages, in_flight=7, seconds=LONG_RUN, token="x" * 500)


def test_every_message_is_answered_once(address: str) -> None:
    result = run(address, [b"%d" % number for number in range(3000)])
    assert (result.succeeded, result.refused) == (3000, 0)


def test_refusals_are_counted_apart(address: str) -> None:
    result = run(address, [b"fine", echo.REFUSED, b"fine", echo.REFUSED, b"fine"])
    assert (result.succeeded, result.refused) == (3, 2)


def test_messages_of_many_frames_wait_for_the_flow_control(address: str) -> None:
    result = run(address, [bytes(60_000)] * 50)
    assert (result.succeeded, result.refused) == (50, 0)


def test_an_unknown_method_is_refused(address: str) -> None:
    result = load.run(address, "/no.Such/Method", [b""] * 3, in_flight=1, seconds=LONG_RUN, token="")
    assert (result.succeeded, result.refused) == (0, 3)
