"""`loyalty clock`: moves the test clock of a house forward, and waits for what fell due."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.clock import TestClock
from services.cli.house import POLL
from services.cli.place import Failure, HouseOption, describe

UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
HEALTH_TIMEOUT = 5.0  # seconds

app = typer.Typer(help="Show or move the clock of a house started with --test-clock.", no_args_is_help=True)

WaitOption = Annotated[float, typer.Option("--wait", min=0, help="Seconds that due work may take.")]


def instant(text: str) -> datetime:
    """Reads an ISO 8601 time; without an offset it is UTC."""
    try:
        read = datetime.fromisoformat(text)
        return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a time such as 2026-06-15T12:00:00+08:00") from None


def duration(text: str) -> timedelta:
    """Reads a duration such as 90m, 36h or 1d12h."""
    if not re.fullmatch(r"(\d+[wdhms])+", text):
        raise typer.BadParameter(f"{text!r} is not a duration such as 90m, 36h or 1d12h")
    try:
        return sum(
            (timedelta(**{UNITS[unit]: int(number)}) for number, unit in re.findall(r"(\d+)([wdhms])", text)),
            timedelta(),
        )
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long") from None


@app.command()
def show(*, house: HouseOption = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Print where the clock stands."""
    _print(_clock(house), as_json)


@app.command("set")
def set_(
    to: Annotated[datetime, typer.Argument(metavar="TIME", parser=instant, help="ISO 8601.")],
    *,
    house: HouseOption = None,
    wait: WaitOption = 60.0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Move the clock forward to a time, and return when what fell due is done."""
    _move(house, _clock(house), to, wait, as_json)


@app.command()
def advance(
    by: Annotated[timedelta, typer.Argument(metavar="DURATION", parser=duration, help="As 90m, 36h, 1d12h.")],
    *,
    house: HouseOption = None,
    wait: WaitOption = 60.0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Move the clock forward by a duration, and return when what fell due is done."""
    clock = _clock(house)
    try:
        to = clock.now() + by
    except OverflowError:
        raise Failure("no clock goes that far") from None
    _move(house, clock, to, wait, as_json)


def _clock(house: Path | None) -> TestClock:
    path = describe(house)["test_clock"]
    if path is None:
        raise Failure("this house runs on the real time; start one with `loyalty up --test-clock TIME`")
    return TestClock(Path(path))


def _move(house: Path | None, clock: TestClock, to: datetime, wait: float, as_json: bool) -> None:
    described = describe(house)
    for service in described["services"]:
        _must_live(described[service]["health"])
    move(clock, to, wait, described["services"])
    _print(clock, as_json)


def move(clock: TestClock, to: datetime, wait: float, services: Sequence[str]) -> None:
    """Sets a clock, and waits until each of these services has done what fell due. Raises Failure."""
    try:
        clock.set(to)
    except ValueError as error:
        raise Failure(str(error)) from None
    deadline = time.monotonic() + wait
    while not clock.all_settled(list(services)):
        if time.monotonic() > deadline:
            raise Failure(f"the clock is set, but after {wait:g} s not everything due is done")
        time.sleep(POLL)


def _must_live(address: str) -> None:
    """Nobody would do what falls due in a house that has stopped. Raises grpc.RpcError."""
    with grpc.insecure_channel(address) as channel:
        health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="live"), timeout=HEALTH_TIMEOUT
        )


def _print(clock: TestClock, as_json: bool) -> None:
    now = clock.now().isoformat()
    typer.echo(json.dumps({"now": now}) if as_json else now)
