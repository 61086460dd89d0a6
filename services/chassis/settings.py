"""Settings that every service has, read from the environment (and from files, for secrets)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings

from services.chassis.logs import Format


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone") from None
    return name


ZoneName = Annotated[str, AfterValidator(_known_zone)]
"""IANA name of a time zone."""


class ServiceSettings(BaseSettings):
    """Each field is an environment variable with the service's prefix, for instance POINTS_GRPC_ADDRESS."""

    database_url: SecretStr = SecretStr("postgresql://127.0.0.1:5432")
    """Where the service's role connects."""
    owner_url: SecretStr | None = None
    """Where the migrations' role connects; only `migrate` reads it."""
    database_role: str = Field("loyalty", pattern="^[a-z_][a-z0-9_]*$")
    """The service's role, to which `migrate` grants what it needs."""
    database_pool: int = Field(8, ge=2, le=100)
    """Connections that a process holds at most."""
    nats_url: str = "nats://127.0.0.1:4222"
    """Where JetStream is."""
    stream_replicas: int = Field(1, ge=1, le=5)
    """Copies that JetStream keeps of each message; 3 in production."""

    grpc_address: str = "127.0.0.1:50051"
    health_address: str = "127.0.0.1:50052"
    metrics_address: str = "127.0.0.1:9090"
    front: Literal["grpcio", "native"] = "grpcio"
    """Who speaks HTTP/2: grpc.aio, or pygrpc-native."""
    reflection: bool = False
    """Whether tools may ask for the contract; off in production."""
    stop_grace: float = Field(20.0, ge=0, le=600)
    """Seconds that calls in flight get at shutdown."""
    call_timeout: float = Field(10.0, gt=0, le=300)
    """Seconds that a call without a deadline of its own gets."""

    jwks_file: Path | None = None
    """Public keys that tokens are checked against."""
    token_audience: str | None = None
    """The `aud` that a token must carry, if any."""
    open_on_loopback: bool = False
    """Lets callers in without a token; refused unless every address is a loopback one."""

    otlp_endpoint: str | None = None
    """Where spans go; needs the extra `traces`."""
    test_clock: Path | None = None
    """The house's test clock; never set in production."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Format = "auto"
    failpoint: str | None = None
    """Name of a point at which the process kills itself; fault tests set it."""
