"""A service's process ends when it is asked to, whatever its background work makes of being cancelled."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from services.cli.servers import HOST, Guarded, free_port
from tests.support import TIMEOUT

# As `asyncio.wait_for` does when the cancellation meets what was waited for.
DEAF_ONCE = """
import asyncio, sys
from services.chassis import server
from services.chassis.settings import ServiceSettings

async def deaf_once():
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        print("heard", flush=True)
    await asyncio.sleep(3600)

async def yes():
    return True

stray = []

async def build():
    background = {"deaf": deaf_once} if whose == "ours" else {}
    if whose == "a library's":
        stray.append(asyncio.create_task(deaf_once()))
    return server.Parts("test", methods={}, servicers=[], services=[], background=background, ready=yes)

whose, grpc, health, metrics = sys.argv[1:]
settings = ServiceSettings(
    grpc_address=grpc, health_address=health, metrics_address=metrics, open_on_loopback=True
)
server.run(settings, "test", build)
"""


@pytest.mark.parametrize("whose", ["ours", "a library's"])
def test_a_service_ends_though_a_cancellation_was_lost(tmp_path: Path, whose: str) -> None:
    addresses = [f"{HOST}:{free_port()}" for _ in range(3)]
    with Guarded([sys.executable, "-c", DEAF_ONCE, whose, *addresses], log=tmp_path / "log") as process:
        deadline = time.monotonic() + 3 * TIMEOUT
        while "serving" not in process.tail():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.stop() == 0, process.tail()
    assert "heard" in process.tail()
    assert "stopped" in process.tail()
