"""What tests share: real houses, each with servers and services of its own, and real channels into them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.cli.house import House, running
from tests.support import Points, apply_programme

NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)  # 12:00 of a Monday in Shanghai
FRONTS = ("grpcio", "native")


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="loyalty test ") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module", params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    """Each of the two fronts in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def house(data: Path, front: str) -> Iterator[House]:
    """A house whose test clock stands at NOON, with the test programme in force, once on each front."""
    with running(data / front, test_clock=NOON, front=front) as house:
        apply_programme(house)
        yield house


@pytest.fixture(scope="module")
def points(house: House) -> Iterator[Points]:
    """A real channel into the house."""
    with Points(house) as points:
        yield points
