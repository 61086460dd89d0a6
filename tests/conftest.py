"""What tests share: real houses, and real channels into them."""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.cli.house import House, running
from tests.scheduling import ByPackage
from tests.support import Points, apply_programme

NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)  # 12:00 of a Monday in Shanghai
FRONTS = ("grpcio", "native")
# What a house keeps of itself before anything happens in it.
KEPT = ("postgres", "secrets.json")
TEMPLATE = pytest.StashKey[str]()

OpenHouse = Callable[..., AbstractContextManager[House]]


def pytest_configure(config: pytest.Config) -> None:
    """Gives all workers one folder for the template."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[TEMPLATE] = workerinput["template"]
        return
    stack = ExitStack()
    config.stash[TEMPLATE] = str(stack.enter_context(a_folder()))
    config.add_cleanup(stack.close)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker which folder."""
    node.workerinput["template"] = node.config.stash[TEMPLATE]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByPackage:
    """Which worker runs what."""
    return ByPackage(config, log)


@contextmanager
def a_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="loyalty test ") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A folder of the module's own."""
    with a_folder() as folder:
        yield folder


@pytest.fixture(scope="module", params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    """Each of the two fronts in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def template(pytestconfig: pytest.Config) -> Path:
    """The data folder of a house that was opened and closed: its cluster, its roles, its empty tables.

    Whichever worker wants it first makes it, for all of them.
    """
    folder = Path(pytestconfig.stash[TEMPLATE])
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "house").exists():
            with running(folder / "new"):
                pass
            (folder / "new").rename(folder / "house")
    return folder / "house"


@pytest.fixture(scope="session")
def open_house(template: Path) -> OpenHouse:
    """Opens houses as `running` does, sooner: on a copy of the template, and not safe from a power cut.

    They run the points service alone, unless told otherwise.
    """

    @contextmanager
    def opened(
        data: Path,
        services: Sequence[str] = ("points",),
        *,
        postgres_settings: Mapping[str, str] = {},
        **asked: Any,
    ) -> Iterator[House]:
        data.mkdir(parents=True, exist_ok=True)
        for kept in KEPT:
            subprocess.run(["cp", "-a", template / kept, data / kept], check=True)  # noqa: S607 - with its owner
        settings = {"fsync": "off", "full_page_writes": "off", **postgres_settings}
        with running(data, services=services, migrate=False, postgres_settings=settings, **asked) as house:
            yield house

    return opened


@pytest.fixture(scope="session")
def houses(open_house: OpenHouse) -> Iterator[Callable[[str], House]]:
    """The houses that modules share, by front; each is opened once somebody wants it."""
    with a_folder() as folder, ExitStack() as stack:

        @cache
        def on(front: str) -> House:
            house = stack.enter_context(open_house(folder / front, test_clock=NOON, front=front))
            apply_programme(house)
            return house

        yield on


@pytest.fixture(scope="module")
def house(houses: Callable[[str], House], front: str) -> House:
    """A house in which it is NOON and the test programme is in force, once on each front.

    Modules share it: a test brings members of its own, and leaves the clock and the programme as they are.
    A module that cannot has a `house` of its own instead.
    """
    return houses(front)


@pytest.fixture(scope="module")
def points(house: House) -> Iterator[Points]:
    """A real channel into the house."""
    with Points(house) as points:
        yield points
