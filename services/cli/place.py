"""Where the house is and how to reach it, for the commands that talk to one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import grpc
import nats
import typer
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceStub
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceStub
from nats.aio.client import Client
from nats.errors import Error as NatsError
from rich.console import Console

from services.cli.house import FILE

T = TypeVar("T")
Stub = TypeVar("Stub")

DEFAULT = Path(".loyalty")
TIMEOUT = 30.0  # seconds a call may take
CONNECT_TIMEOUT = 5  # seconds
# What a service is told by the same variables, so that commands also run beside it in production.
VARIABLES = {"grpc": "GRPC_ADDRESS", "database": "DATABASE_URL", "nats": "NATS_URL"}
# Every call that commands make may be repeated: reads, and puts with a request_id.
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"],
            },
        }
    ]
}

HouseOption = Annotated[
    Path | None,
    typer.Option(
        "--house",
        envvar="LOYALTY_HOUSE",
        help="Data folder of the house; without it what POINTS_…, CARDS_… and so on say, or .loyalty.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ServiceOption = Annotated[str, typer.Option(help="Which service's database.")]

err = Console(stderr=True, soft_wrap=True, highlight=False)


class Failure(Exception):
    """A command cannot do what it was asked to; the message says why, in one line."""


def describe(house: Path | None) -> dict[str, Any]:
    """What `loyalty up` wrote into its data folder. Raises Failure."""
    file = (house or DEFAULT) / FILE
    try:
        described: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise Failure(f"no house is running here: {file} is missing; start one by `loyalty up`") from None
    return described


def find(house: Path | None, what: str, service: str = "points") -> str:
    """An address of a service: grpc, database or nats. Raises Failure."""
    variable = f"{service}_{VARIABLES[what]}".upper()
    if house is None and variable in os.environ:
        return os.environ[variable]
    described = describe(house)
    if service not in described:
        raise Failure(f"the house has no service {service}")
    return str(described["nats"] if what == "nats" else described[service][what])


class Service(Generic[Stub]):
    """Blocking calls to a service, with the token in LOYALTY_TOKEN if there is one."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        token = os.environ.get("LOYALTY_TOKEN")
        self._metadata = [("authorization", f"Bearer {token}")] if token else None

    def call(self, method: Callable[..., T], request: Any) -> T:
        """Calls with a deadline. Raises grpc.RpcError."""
        return method(request, timeout=TIMEOUT, metadata=self._metadata)


Points = Service[PointsServiceStub]
Cards = Service[CardsServiceStub]
Groups = Service[GroupsServiceStub]
Referral = Service[ReferralServiceStub]


def points(house: Path | None) -> AbstractContextManager[Points]:
    """The points service of the house."""
    return _service(house, "points", PointsServiceStub)


def cards(house: Path | None) -> AbstractContextManager[Cards]:
    """The cards service of the house."""
    return _service(house, "cards", CardsServiceStub)


def groups(house: Path | None) -> AbstractContextManager[Groups]:
    """The groups service of the house."""
    return _service(house, "groups", GroupsServiceStub)


def referral(house: Path | None) -> AbstractContextManager[Referral]:
    """The referral service of the house."""
    return _service(house, "referral", ReferralServiceStub)


@contextmanager
def _service(house: Path | None, name: str, stub: Callable[[grpc.Channel], Stub]) -> Iterator[Service[Stub]]:
    options = [("grpc.service_config", json.dumps(RETRIES))]
    with grpc.insecure_channel(find(house, "grpc", name), options=options) as channel:
        yield Service(stub(channel))


@asynccontextmanager
async def stream(house: Path | None) -> AsyncIterator[Client]:
    """NATS of the house. Raises Failure."""
    url = find(house, "nats")
    try:
        client = await nats.connect(
            url,
            name="loyalty",
            connect_timeout=CONNECT_TIMEOUT,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # counts first connections too, and 0 means for ever
            reconnect_time_wait=0.1,
            error_cb=_quiet,
        )
    except (NatsError, OSError) as error:
        raise Failure(f"NATS at {url} does not answer: {error}; is the house running?") from None
    try:
        yield client
    finally:
        await client.close()


async def _quiet(_error: Exception) -> None:
    """Whoever awaits gets the error; the library's own log would be a second line about it."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end."""
    return asyncio.run(work)


def refusal(error: Any) -> tuple[str, Sequence[tuple[str, str]]]:
    """The RpcError of a call in one line, reason first, and its violations as (path, description)."""
    status = rpc_status.from_call(error)
    reason, message = error.code().name, error.details() or ""
    violations: list[tuple[str, str]] = []
    for detail in status.details if status else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            violations += [(v.field, v.description) for v in bad.field_violations]
    if status is None and error.code() is grpc.StatusCode.UNAVAILABLE:
        message += "; is the house running?"
    return f"{reason}: {message}", violations
