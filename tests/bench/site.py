"""Where the bench runs: servers with production's durability, both echoes, and one service on one front."""

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
import nats
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from services.cli.house import SERVICES, House, running
from services.cli.servers import HOST, Guarded, free_port, postgres_binaries

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


@dataclass
class Served:
    """A service that is measured, with what the bench asks of it beyond the contract."""

    house: House
    service: str
    token: str
    """For everything."""

    @property
    def address(self) -> str:
        """Where its methods are."""
        return str(self.house.describe()[self.service]["grpc"])

    def method(self, name: str) -> str:
        """A method's path."""
        return f"/loyalty.{self.service}.v1.{self.service.title()}Service/{name}"

    def sql(self, query: str, *values: object) -> Any:
        """One value from its database, asked as superuser."""
        return _ask(self.house, self.service, query, *values)

    def quiet(self) -> None:
        """Waits until it has published every event of its own, and applied every event of the others."""
        deadline = time.monotonic() + PATIENCE
        while self.sql(UNSENT) or asyncio.run(self._unheard()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"events of or for {self.service} wait for more than {PATIENCE:.0f} s")
            time.sleep(POLL)

    async def _unheard(self) -> int:
        """Events of the streams that it consumes and has not acknowledged."""
        client = await nats.connect(self.house.nats.url)
        try:
            stream = client.jetstream()
            consumers = [
                consumer
                for each in await stream.streams_info()
                for consumer in await stream.consumers_info(str(each.config.name))
                if consumer.name == self.service
            ]
            return sum((one.num_pending or 0) + (one.num_ack_pending or 0) for one in consumers)
        finally:
            await client.close()

    def metrics(self) -> dict[str, float]:
        """Its counters, by name and labels."""
        address = self.house.describe()[self.service]["metrics"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}


@dataclass
class Site:
    """A running house whose services run one at a time, while they are measured."""

    house: House
    echoes: Mapping[str, str]
    """Addresses, by front."""
    key: Ed25519PrivateKey
    """What signs the tokens."""
    jwks: Path

    @contextmanager
    def serving(self, service: str, front: str) -> Iterator[Served]:
        """Runs a service on one front, alone, with access control on."""
        process = self.house.start_service(service, front=front, jwks_file=str(self.jwks))
        try:
            self.house.wait_ready(service)
            yield Served(self.house, service, self.token(service))
        finally:
            process.stop()

    def settle(self) -> None:
        """Has each service hear what the others have told, which must cost no path."""
        for service in SERVICES:
            with self.serving(service, "native") as served:
                served.quiet()

    def token(self, service: str) -> str:
        """A token for everything that a service does."""
        scope = f"{service}.read {service}.write {service}.admin"
        claims = {"sub": "bench", "exp": int(time.time()) + 86_400, "scope": scope}
        return jwt.encode(claims, self.key, "EdDSA", headers={"kid": "bench"})

    def sql(self, database: str, query: str, *values: object) -> Any:
        """One value, asked as superuser."""
        return _ask(self.house, database, query, *values)

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


def _ask(house: House, database: str, query: str, *values: object) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(house.postgres.url(database))
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()

    return asyncio.run(ask())


@contextmanager
def site(data: Path, scale: int) -> Iterator[Site]:
    """Everything but the services, with the programme put; pgbench's tables at `scale`."""
    with ExitStack() as stack:
        house = stack.enter_context(running(data / "house", postgres_settings=SETTINGS))
        _apply(house)
        for service in SERVICES:
            house.process(service).stop()
        echoes = {front: f"{HOST}:{free_port()}" for front in FRONTS}
        for front, address in echoes.items():
            argv = [sys.executable, "-m", "tests.bench.echo", front, address]
            stack.enter_context(Guarded(argv, log=data / f"echo-{front}.log"))
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(PATIENCE)
        made = Site(house, echoes, *_key(data))
        made.sql("postgres", f"CREATE DATABASE {PGBENCH}")
        made.pgbench("-i", "-q", "-s", str(scale))
        yield made


def _apply(house: House) -> None:
    """Puts the programme as operators do: each service takes its part."""
    argv = [sys.executable, "-m", "services.cli", "apply", "-f", str(PROGRAMME), "--house", str(house.data)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the programme was not put: {done.stderr.strip()}")


def _key(data: Path) -> tuple[Ed25519PrivateKey, Path]:
    """A key that signs tokens, and the JWKS file that knows it."""
    key = Ed25519PrivateKey.generate()
    public = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    jwks = data / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**public, "kid": "bench", "alg": "EdDSA"}]}))
    return key, jwks
