"""PostgreSQL and NATS as the tests, the demo and the bench get them."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import nats
import pytest

from services.cli.servers import Guarded, Nats, Postgres, ServerError

DEADLINE_SECONDS = 60.0
BOTH = """
import sys, time
from pathlib import Path
from services.cli.servers import Nats, Postgres
folder = Path(sys.argv[1])
postgres, nats = Postgres.start(folder / "postgres"), Nats.start(folder / "nats")
if "frozen" in sys.argv:
    postgres.freeze()
print(postgres.pid, nats.pid, flush=True)
time.sleep(3600)
"""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def ask(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="a folder with spaces ") as folder:
        Path(folder).chmod(0o755)  # so that the cluster lives here; pytest's own folders are for root only
        yield Path(folder) / "postgres data"


@pytest.fixture
def postgres(data: Path) -> Iterator[Postgres]:
    with Postgres.start(data) as server:
        yield server


async def test_postgres_serves_durable_utf8_to_those_who_know_the_password(postgres: Postgres) -> None:
    for name, value in {"fsync": "on", "synchronous_commit": "on", "max_connections": "200"}.items():
        assert await ask(postgres.url(), f"SHOW {name}") == value
    locale = (
        "SELECT concat(datlocprovider, ' ', datlocale) FROM pg_database WHERE datname = current_database()"
    )
    assert await ask(postgres.url(), locale) == "b C.UTF-8"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await ask(postgres.url(password="guess"), "SELECT 1")  # noqa: S106 - a wrong one


async def test_a_second_start_finds_the_data_and_takes_settings(data: Path) -> None:
    with Postgres.start(data) as first:
        await ask(first.url(), "CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS number")
    assert first.poll() == 0
    with Postgres.start(data, settings={"work_mem": "5MB", "search_path": "public, pg_catalog"}) as second:
        assert await ask(second.url(), "SELECT number FROM kept") == 7
        assert await ask(second.url(), "SHOW work_mem") == "5MB"
    assert (data / "password").stat().st_mode & 0o777 == 0o600


async def test_a_killed_postgres_recovers_what_it_committed(data: Path) -> None:
    first = Postgres.start(data)
    await ask(first.url(), "CREATE TABLE IF NOT EXISTS committed (number int)")
    before = await ask(first.url(), "SELECT count(*) FROM committed")
    idle = await asyncpg.connect(first.url())
    backend = int(await idle.fetchval("SELECT pg_backend_pid()"))
    await ask(first.url(), "INSERT INTO committed VALUES (1)")
    assert first.kill() == 128 + signal.SIGKILL
    assert not is_running(first.pid)
    eventually(lambda: not is_running(backend))  # a zombie until init takes it
    idle.terminate()
    (data / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n", encoding="ascii")  # a pid used again
    with Postgres.start(data, first.port) as second:
        assert second.port == first.port
        assert await ask(second.url(), "SELECT count(*) FROM committed") == int(str(before)) + 1
        assert first.stop() == 128 + signal.SIGKILL  # harmless, though the folder is a successor's by now


async def test_a_frozen_postgres_answers_once_thawed(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.url())
    try:
        postgres.freeze()
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT 1", timeout=0.2)
        postgres.thaw()
    finally:
        await connection.close()
    assert await ask(postgres.url(), "SELECT 2") == 2


def test_a_cluster_elsewhere_is_found_again_and_removed_with_its_data_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # as root, we have to run the server as a user who cannot get here
    data = tmp_path / "data"
    for statement in ("CREATE TABLE kept ()", "SELECT 1 FROM kept"):
        with Postgres.start(data) as server:
            asyncio.run(ask(server.url(), statement))
    cluster = (data / "cluster").resolve()
    shutil.rmtree(data)
    with Postgres.start(data) as server:
        assert asyncio.run(ask(server.url(), "SELECT to_regclass('kept')")) is None
    assert not cluster.exists() or cluster == (data / "cluster").resolve()


def test_a_frozen_postgres_can_still_be_stopped(postgres: Postgres) -> None:
    postgres.freeze()
    assert postgres.stop() == 0


def test_a_server_that_cannot_start_says_why(data: Path) -> None:
    with pytest.raises(ServerError, match="no_such_setting"):
        Postgres.start(data, settings={"no_such_setting": "1"})


async def test_nats_keeps_an_acknowledged_message_over_a_kill(tmp_path: Path) -> None:
    store = tmp_path / "nats store"
    first = Nats.start(store)
    async with await nats.connect(first.url) as client:
        await client.jetstream().add_stream(name="facts", subjects=["facts.>"])
        await client.jetstream().publish("facts.one", b"kept")
    first.kill()
    assert not is_running(first.pid)
    with Nats.start(store, first.port, max_payload=1 << 16) as second:
        async with await nats.connect(second.url) as client:
            assert client.max_payload == 1 << 16
            assert (await client.jetstream().get_msg("facts", seq=1)).data == b"kept"
        second.freeze()
        second.thaw()


@pytest.mark.parametrize("state", ["serving", "frozen"])
def test_no_server_outlives_a_killed_parent(tmp_path: Path, state: str) -> None:
    command = [sys.executable, "-c", BOTH, str(tmp_path), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        os.killpg(parent.pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, pids)))


def test_a_process_of_ours_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Guarded([sys.executable, "-c", "print('out'); raise SystemExit(7)"], log=log) as process:
        assert process.wait(DEADLINE_SECONDS) == 7
    assert process.tail() == "out"


def test_a_command_that_does_not_exist_is_named_in_the_log(tmp_path: Path) -> None:
    with Guarded([tmp_path / "missing"], log=tmp_path / "log") as process:
        assert process.wait(DEADLINE_SECONDS) == 127
    assert "missing: [Errno 2]" in process.tail()


def test_a_process_that_ignores_its_stop_signal_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(3600)"
    )
    process = Guarded([sys.executable, "-c", stubborn], log=tmp_path / "log")
    eventually(lambda: process.tail() == "up")
    assert process.stop(timeout=0.1) == 128 + signal.SIGKILL
    assert not is_running(process.pid)


def test_a_process_is_killed_even_when_its_guard_was(tmp_path: Path) -> None:
    process = Guarded([sys.executable, "-c", "import time; time.sleep(3600)"], log=tmp_path / "log")
    os.kill(process._guard.pid, signal.SIGKILL)
    process.stop()
    with Guarded([sys.executable, "-c", "pass"], log=tmp_path / "log") as successor:
        assert successor.wait(DEADLINE_SECONDS) == 0
