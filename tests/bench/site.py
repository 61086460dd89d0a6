"""Where the bench runs: servers with production's durability, both echoes, and the service on one front."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from services.cli.house import House, running
from services.cli.servers import HOST, Guarded, free_port, postgres_binaries
from tests.support import apply_programme

FRONTS = ("grpcio", "native")
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "fsync": "on",
    "synchronous_commit": "on",
}
PROGRAMME = Path(__file__).parents[2] / "deploy" / "programmes" / "burger-king.yaml"
PGBENCH = "pgbench"
CLIENTS = 16  # of pgbench
PATIENCE = 300.0  # seconds for what must come to an end
POLL = 0.05  # seconds

UNSENT = "SELECT count(*) FROM outbox WHERE sent_at IS NULL"
TRANSACTIONS = "SELECT count(*) FROM transactions"


@dataclass
class Site:
    """A running house, with what the bench asks of it beyond the contract."""

    house: House
    echoes: Mapping[str, str]
    """Addresses, by front."""
    token: str
    jwks: Path

    @property
    def address(self) -> str:
        """Where the service is."""
        return str(self.house.describe()["points"]["grpc"])

    @contextmanager
    def serving(self, front: str) -> Iterator[None]:
        """Runs the service on one front, alone, with access control on."""
        process = self.house.start_service("points", front=front, jwks_file=str(self.jwks))
        try:
            self.house.wait_ready("points")
            yield
        finally:
            process.stop()

    def sql(self, query: str, *values: object, database: str = "points") -> Any:
        """One value, asked as superuser."""

        async def ask() -> Any:
            connection = await asyncpg.connect(self.house.postgres.url(database))
            try:
                return await connection.fetchval(query, *values)
            finally:
                await connection.close()

        return asyncio.run(ask())

    def relayed(self) -> None:
        """Waits until every event is published."""
        deadline = time.monotonic() + PATIENCE
        while self.sql(UNSENT):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the relay did not catch up within {PATIENCE:.0f} s")
            time.sleep(POLL)

    def metrics(self) -> dict[str, float]:
        """The service's counters, by name and labels."""
        address = self.house.describe()["points"]["metrics"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}

    def pgbench(self, *options: str) -> str:
        """Runs pgbench on a database of its own."""
        argv = [str(postgres_binaries() / PGBENCH), *options, self.house.postgres.url(PGBENCH)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")
        return done.stdout

    def tpcb(self, seconds: float) -> float:
        """TPC-B transactions a second."""
        out = self.pgbench("-n", "-c", str(CLIENTS), "-j", "2", "-T", str(max(1, round(seconds))))
        return float(re.findall(r"tps = ([\d.]+)", out)[0])


@contextmanager
def site(data: Path, scale: int) -> Iterator[Site]:
    """Everything but the service, which runs only while it is measured; pgbench's tables at `scale`."""
    with ExitStack() as stack:
        house = stack.enter_context(running(data / "house", postgres_settings=SETTINGS, services=("points",)))
        apply_programme(house, yaml.safe_load(PROGRAMME.read_text(encoding="utf-8"))["points"])
        house.process("points").stop()
        echoes = {front: f"{HOST}:{free_port()}" for front in FRONTS}
        for front, address in echoes.items():
            argv = [sys.executable, "-m", "tests.bench.echo", front, address]
            stack.enter_context(Guarded(argv, log=data / f"echo-{front}.log"))
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(PATIENCE)
        made = Site(house, echoes, *_token(data))
        made.sql(f"CREATE DATABASE {PGBENCH}", database="postgres")
        made.pgbench("-i", "-q", "-s", str(scale))
        yield made


def _token(data: Path) -> tuple[str, Path]:
    """A token and the JWKS file that knows its key."""
    key = Ed25519PrivateKey.generate()
    public = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    jwks = data / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**public, "kid": "bench", "alg": "EdDSA"}]}))
    claims = {"sub": "bench", "exp": int(time.time()) + 86_400, "scope": "points.read points.write"}
    return jwt.encode(claims, key, "EdDSA", headers={"kid": "bench"}), jwks
