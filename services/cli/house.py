"""The whole house on one machine: PostgreSQL, NATS, and each service as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.clock import TestClock
from services.cli.servers import HOST, Guarded, Nats, Postgres, ServerError, free_port

SERVICES = ("points", "cards", "groups", "referral")
OWN_SECRETS = {"cards": ("gift_code_key",)}  # settings of services that nobody else knows
POLL = 0.05  # seconds between looks
START_TIMEOUT = 180.0  # seconds until a service must be ready; one that ends before is noticed at once
ADDRESSES = ("grpc", "health", "metrics")
FILE = "house.json"
# A look that came too early must not make the next ones wait: by itself a channel backs off for seconds.
IMPATIENT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]


@dataclass(frozen=True)
class Ports:
    """Where things listen: from a base port upwards, or wherever there is room."""

    base: int | None

    def of(self, index: int) -> int:
        """The port of the index-th thing."""
        return free_port() if self.base is None else self.base + index


class House:
    """Running servers and services. `close` stops all; nothing outlives this process in any case.

    `services` are those that it runs. `migrate` False says that the data folder's databases have this code's
    newest revision already.
    """

    def __init__(
        self,
        data: Path,
        *,
        base_port: int | None = None,
        front: str = "grpcio",
        postgres_settings: Mapping[str, str] = {},
        migrate: bool = True,
        services: Sequence[str] = SERVICES,
    ) -> None:
        self.data = data
        self.front = front
        self.services = tuple(services)
        self.settings: dict[str, dict[str, str]] = {service: {} for service in services}
        """Of each service, beyond the house's own, from its next start on."""
        self._postgres_settings = postgres_settings
        self._migrate = migrate
        self._ports = Ports(base_port)
        self._processes: dict[str, Guarded] = {}
        self._addresses: dict[str, dict[str, str]] = {}
        self.postgres: Postgres
        self.nats: Nats
        self.clock: TestClock | None = None

    def start(self, test_clock: datetime | None = None) -> None:
        """Starts everything; returns when each service is ready. Raises ServerError."""
        self.data.mkdir(parents=True, exist_ok=True)
        clock = self.data / "clock"
        if test_clock is not None or clock.exists():
            self.clock = TestClock.create(clock, test_clock or datetime.min.replace(tzinfo=UTC))
        self.start_postgres()
        self.start_nats()
        self._secrets = _secrets(self.data / "secrets.json")
        asyncio.run(self._make_databases())
        for service in self.services:
            number = SERVICES.index(service)  # its ports are the same, whoever else is there
            ports = (self._ports.of(10 + 10 * number + index) for index in range(len(ADDRESSES)))
            self._addresses[service] = {
                name: f"{HOST}:{port}" for name, port in zip(ADDRESSES, ports, strict=True)
            }
            if self._migrate:
                self.migrate(service)
            self.start_service(service)
        for service in self.services:
            self.wait_ready(service)
        described = self.data / FILE
        described.touch(mode=0o600)  # it holds passwords
        described.write_text(json.dumps(self.describe()))

    def describe(self) -> dict[str, Any]:
        """Where everything is, as `loyalty up` prints it."""
        described: dict[str, Any] = {name: dict(found) for name, found in self._addresses.items()}
        for service in self.services:
            described[service]["database"] = self.database_url(service)
        described["services"] = list(self.services)
        described["nats"] = self.nats.url
        described["postgres"] = self.postgres.url()
        described["data"] = str(self.data)
        described["test_clock"] = str(self.data / "clock") if self.clock else None
        return described

    def database_url(self, service: str, *, owner: bool = False) -> str:
        """Where a service's database is, for its own role or for the owner of its tables."""
        role = f"{service}_owner" if owner else service
        return self.postgres.url(service, role, self._secrets[role])

    def start_postgres(self) -> None:
        """Starts PostgreSQL, where it was if it ran before. Raises ServerError."""
        port = self.postgres.port if hasattr(self, "postgres") else self._ports.of(0)
        self.postgres = Postgres.start(self.data / "postgres", port, settings=self._postgres_settings)

    def start_nats(self) -> None:
        """Starts NATS, where it was if it ran before. Raises ServerError."""
        port = self.nats.port if hasattr(self, "nats") else self._ports.of(1)
        self.nats = Nats.start(self.data / "nats", port)

    def start_service(self, service: str, **extra: str) -> Guarded:
        """Starts a service's process. `extra` are settings beyond the house's own, for this once."""
        process = Guarded(
            [sys.executable, "-m", f"services.{service}", "serve"],
            env=self._environment(service, extra),
            log=self.data / f"{service}.log",
        )
        self._processes[service] = process
        return process

    def start_replica(self, service: str, **extra: str) -> str:
        """Starts a further process of a service, on ports of its own. Returns the name it goes by here.

        `extra` are settings beyond the house's own.
        """
        name = f"{service}-{len(self._processes)}"
        self._addresses[name] = {part: f"{HOST}:{free_port()}" for part in ADDRESSES}
        settings = {f"{part}_address": address for part, address in self._addresses[name].items()}
        self._processes[name] = Guarded(
            [sys.executable, "-m", f"services.{service}", "serve"],
            env=self._environment(service, settings | extra),
            log=self.data / f"{name}.log",
        )
        return name

    def process(self, service: str) -> Guarded:
        """A service's process."""
        return self._processes[service]

    def wait_ready(self, service: str) -> None:
        """Waits until a service serves. Raises ServerError with the end of its log."""
        process = self._processes[service]
        with grpc.insecure_channel(self._addresses[service]["health"], options=IMPATIENT) as channel:
            request = health_pb2.HealthCheckRequest(service="ready")
            stub = health_pb2_grpc.HealthStub(channel)
            deadline = time.monotonic() + START_TIMEOUT
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(grpc.RpcError):
                    if stub.Check(request, timeout=1).status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(POLL)
        raise ServerError(f"{service} did not become ready:\n{process.tail()}")

    def migrate(self, service: str) -> None:
        """Brings a service's schema to the newest revision. Raises ServerError."""
        with Guarded(
            [sys.executable, "-m", f"services.{service}", "migrate"],
            env=self._environment(service, {}),
            log=self.data / f"{service}-migrate.log",
        ) as process:
            try:
                failed = process.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                raise ServerError(f"migrating {service} took more than {START_TIMEOUT:.0f} s") from None
            if failed:
                raise ServerError(f"migrating {service} failed:\n{process.tail()}")

    def close(self) -> None:
        """Stops the services, then what they stand on."""
        for process in self._processes.values():
            process.stop()
        for server in ("nats", "postgres"):
            if hasattr(self, server):
                getattr(self, server).stop()

    def _environment(self, service: str, extra: Mapping[str, str]) -> dict[str, str]:
        settings = {
            "database_url": self.database_url(service),
            "owner_url": self.database_url(service, owner=True),
            "database_role": service,
            "nats_url": self.nats.url,
            "open_on_loopback": "true",
            "reflection": "true",
            "front": self.front,
            **{f"{name}_address": address for name, address in self._addresses[service].items()},
            **{name: self._secrets[f"{service}_{name}"] for name in OWN_SECRETS.get(service, ())},
            **self.settings[service],
            **extra,
        }
        if self.clock:
            settings["test_clock"] = str(self.data / "clock")
        return {
            **os.environ,
            **{f"{service}_{name}".upper(): value for name, value in settings.items()},
        }

    async def _make_databases(self) -> None:
        connection = await asyncpg.connect(self.postgres.url())
        try:
            for service in self.services:
                for role in (service, f"{service}_owner"):
                    if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                        password = self._secrets[role]
                        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", service):
                    await connection.execute(f"CREATE DATABASE {service} OWNER {service}_owner")
        finally:
            await connection.close()


@contextmanager
def running(
    data: Path,
    *,
    base_port: int | None = None,
    test_clock: datetime | None = None,
    front: str = "grpcio",
    postgres_settings: Mapping[str, str] = {},
    migrate: bool = True,
    services: Sequence[str] = SERVICES,
) -> Iterator[House]:
    """A house for as long as the block runs."""
    house = House(
        data,
        base_port=base_port,
        front=front,
        postgres_settings=postgres_settings,
        migrate=migrate,
        services=services,
    )
    try:
        house.start(test_clock)
        yield house
    finally:
        house.close()


def _secrets(path: Path) -> dict[str, str]:
    """Passwords of the database roles, and what services keep secret, made once per data folder."""
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    names = [name for service in SERVICES for name in (service, f"{service}_owner")]
    names += [f"{service}_{name}" for service, own in OWN_SECRETS.items() for name in own]
    missing = [name for name in names if name not in found]
    if missing:
        found |= {name: secrets.token_hex(16) for name in missing}
        scratch = path.with_suffix(".new")
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(found))
        scratch.replace(path)
    return found
