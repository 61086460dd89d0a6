"""The `loyalty` command: `python -m services.cli`."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import asyncpg
import grpc
import typer
from nats.errors import Error as NatsError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.chassis.errors import ServiceError
from services.cli import apply, chats, clockwork, desk, events, export, sites, tokens
from services.cli.clockwork import instant
from services.cli.house import POLL, SERVICES, House, running
from services.cli.place import DEFAULT, Failure, HouseOption, JsonOption, err, find, refusal
from services.cli.servers import ServerError

app = typer.Typer(help="A loyalty house on one machine, and what operators do.", no_args_is_help=True)
app.command("apply")(apply.apply)
app.command("token")(tokens.token)
app.add_typer(clockwork.app, name="clock")
app.add_typer(export.app, name="export")
app.add_typer(events.app, name="events")
app.add_typer(chats.app, name="groups")
app.add_typer(desk.app, name="referral")
app.add_typer(sites.app, name="sites")

# Their help and options are their own; their imports need the extra `house`, other commands do not.
_WHOLE = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
def up(
    *,
    data: Annotated[Path, typer.Option(help="Where everything is kept.", file_okay=False)] = DEFAULT,
    base_port: Annotated[int | None, typer.Option(min=1, max=65000, help="First of the ports.")] = None,
    test_clock: Annotated[
        str | None, typer.Option(metavar="TIME", help="Business time stands at this time until moved.")
    ] = None,
    front: Annotated[Literal["grpcio", "native"], typer.Option(help="Who speaks HTTP/2.")] = "grpcio",
) -> None:
    """Run the whole house on this machine until SIGTERM or Ctrl-C."""
    at = instant(test_clock) if test_clock else None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    with running(data.absolute(), base_port=base_port, test_clock=at, front=front) as house:
        typer.echo(json.dumps(house.describe()))
        while not (ended := _ended(house)):
            time.sleep(POLL)
        raise Failure(ended)


def _stop(*_: object) -> NoReturn:
    """Unwinds, which stops everything; a second signal changes nothing about that."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def _ended(house: House) -> str | None:
    """Says which process has ended although nobody asked it to."""
    processes = {"postgres": house.postgres, "nats": house.nats}
    processes |= {service: house.process(service) for service in house.services}
    for name, process in processes.items():
        if (code := process.poll()) is not None:
            return f"{name} ended with {code}; its log is {process.log}"
    return None


@app.command()
def audit(
    service: Annotated[str, typer.Argument(help="Whose books.")] = "points",
    *,
    stream: Annotated[bool, typer.Option("--stream", help="Also the events' hashes.")] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove the books of a service: exit code 1 if anything does not add up."""
    if service not in SERVICES:
        raise typer.BadParameter(f"no service is called {service}; known: {', '.join(SERVICES)}")
    url = find(house, "database", service)
    stream_url = find(house, "nats", service) if stream else None
    module = importlib.import_module(f"services.{service}.audit")
    with Progress(console=err, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(check: str, rows: int) -> None:
            if check not in tasks:
                tasks[check] = progress.add_task(check, total=None)
            progress.update(tasks[check], completed=rows)

        found = asyncio.run(module.audit(url, report, stream_url=stream_url))
    _print_audit(found.lines, found.clean, as_json)
    if not found.clean:
        raise typer.Exit(1)


def _print_audit(lines: list[tuple[str, int, list[str]]], clean: bool, as_json: bool) -> None:
    if as_json:
        checks = [{"check": c, "rows": rows, "offending": list(offending)} for c, rows, offending in lines]
        typer.echo(json.dumps({"clean": clean, "checks": checks}, ensure_ascii=False))
        return
    table = Table("check", "rows", "offending")
    for check, rows, offending in lines:
        table.add_row(check, f"{rows:,}", "\n".join(offending) or "none")
    Console().print(table)


@app.command(context_settings=_WHOLE, add_help_option=False)
def replay(context: typer.Context) -> None:
    """Send the real orders of 2017 through a house, and compare with the oracle."""
    _hand_over("replay", context.args)


@app.command(context_settings=_WHOLE, add_help_option=False)
def lifecycle(context: typer.Context) -> None:
    """Prove what the groups service knows of members through the real orders of 2017."""
    _hand_over("lifecycle", context.args)


@app.command(context_settings=_WHOLE, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Show the whole in a minute, in a house of its own."""
    _hand_over("demo", context.args)


def _hand_over(name: str, arguments: list[str]) -> None:
    try:
        module = importlib.import_module(f"services.cli.{name}")
    except ModuleNotFoundError as error:
        raise Failure(f"{error}: install loyalty[house]") from None
    inner = typer.Typer(add_completion=False)
    inner.command()(module.command)
    inner(arguments, prog_name=f"loyalty {name}")


def main() -> None:
    """Runs a command: exit code 1 and one line on standard error when it fails, 2 when it is misused."""
    try:
        app(prog_name="loyalty")
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except grpc.RpcError as error:
        _fail(refusal(error)[0])
    except (NatsError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        _fail(f"{type(error).__name__}: {error}".rstrip(": "))
    except (Failure, ServerError, ServiceError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"loyalty: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
