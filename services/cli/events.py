"""`loyalty events`: watching the stream, and repairing what did not arrive."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import descriptor_pool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from loyalty.activities.v1 import activities_pb2 as _activities_pb2  # noqa: F401 - known to the pool
from loyalty.cards.v1 import cards_events_pb2 as _cards_events_pb2  # noqa: F401 - known to the pool
from loyalty.orders.v1 import orders_pb2 as _orders_pb2  # noqa: F401 - known to the pool
from loyalty.points.v1 import points_events_pb2 as _points_events_pb2  # noqa: F401 - known to the pool
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from rich.console import Console
from rich.table import Table

from services.chassis import operations
from services.cli.place import Failure, HouseOption, JsonOption, ServiceOption, find, run, stream

FETCH = 256  # messages
FETCH_TIMEOUT = 2.0  # seconds to wait for the first message
FORGOTTEN_AFTER = 300.0  # seconds of our silence until the server drops the consumer

app = typer.Typer(help="Watch events, replay dead letters, rebuild streams.", no_args_is_help=True)
dead = typer.Typer(help="What consumers refused.", no_args_is_help=True)
app.add_typer(dead, name="dead")


async def read(
    client: Client, subject: str, *, from_start: bool, follow: bool, headers_only: bool = False
) -> AsyncIterator[Msg]:
    """The messages of a subject, in the order of its stream; without `follow` those there are now.

    Raises Failure if no stream carries the subject.
    """
    jetstream = client.jetstream()
    try:
        name = await jetstream.find_stream_name_by_subject(subject)
    except NotFoundError:
        raise Failure(f"no stream carries {subject}") from None
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        deliver_policy=DeliverPolicy.ALL if from_start else DeliverPolicy.NEW,
        headers_only=headers_only,
        inactive_threshold=FORGOTTEN_AFTER,
    )
    subscription = await jetstream.pull_subscribe(subject, stream=name, config=config)
    waiting = (await subscription.consumer_info()).num_pending
    while follow or waiting:
        try:
            messages = await subscription.fetch(FETCH, timeout=FETCH_TIMEOUT)
        except NatsTimeoutError:
            await subscription.consumer_info()  # says so if the consumer or the server is gone
            continue
        for message in messages:
            yield message
            waiting = message.metadata.num_pending


@app.command()
def tail(
    *,
    subject: Annotated[
        str, typer.Option(help="A message's full name, or a pattern.")
    ] = "loyalty.points.v1.>",
    from_start: Annotated[bool, typer.Option("--from-start", help="Also what is there already.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    house: HouseOption = None,
) -> None:
    """Print events as JSON lines, for ever or until --count."""

    async def work() -> None:
        seen = 0
        async with stream(house) as client:
            async for message in read(client, subject, from_start=from_start, follow=True):
                typer.echo(json.dumps(line(message), ensure_ascii=False))
                seen += 1
                if seen == count:
                    return

    run(work())


def line(message: Msg) -> dict[str, Any]:
    """An event for people and machines; a body that is no message of that name comes in base64."""
    shown: dict[str, Any] = {
        "stream": message.metadata.stream,
        "stream_seq": message.metadata.sequence.stream,
        "subject": message.subject,
        "headers": {k: v for k, v in (message.headers or {}).items() if k.startswith("ce-")},
    }
    try:
        kind = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(message.subject))
        body = kind.FromString(message.data)
        return {**shown, "message": MessageToDict(body, preserving_proto_field_name=True)}
    except (KeyError, DecodeError):
        return {**shown, "body_base64": base64.b64encode(message.data).decode()}


@app.command()
def rebuild(
    *,
    service: ServiceOption = "points",
    only: Annotated[
        str | None, typer.Option("--stream", help="Only this stream, for instance POINTS.")
    ] = None,
    house: HouseOption = None,
) -> None:
    """Have every event of the outbox sent again; consumers know those they have had."""
    sent = run(operations.rebuild(find(house, "database", service), only))
    typer.echo(f"{sent} events will be sent again")


@dead.command("list")
def list_dead(
    *,
    service: ServiceOption = "points",
    everything: Annotated[bool, typer.Option("--all", help="Also those that were replayed.")] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List messages that were refused, with the reason."""
    rows = run(operations.dead_letters(find(house, "database", service)))
    letters = [_letter(row) for row in rows if everything or row["replay_time"] is None]
    if as_json:
        for letter in letters:
            typer.echo(json.dumps(letter, ensure_ascii=False))
        return
    shown = ("dead_letter_id", "create_time", "subject", "event_id", "reason", "message", "replay_time")
    table = Table(*shown)
    for letter in letters:
        table.add_row(*(str(letter[name] or "") for name in shown))
    Console().print(table if letters else "no dead letters")


def _letter(row: Any) -> dict[str, Any]:
    times = {name: row[name] and row[name].isoformat() for name in ("create_time", "replay_time")}
    return {
        **{name: value for name, value in row.items() if name != "body"},
        "headers": json.loads(row["headers"]),
        "body_base64": base64.b64encode(row["body"]).decode(),
        **times,
    }


@dead.command()
def replay(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    service: ServiceOption = "points",
    house: HouseOption = None,
) -> None:
    """Publish refused messages again; what fails again becomes a dead letter again."""
    if bool(ids) == everything:
        raise typer.BadParameter("name dead letters, or say --all")
    replayed = run(_replay(house, find(house, "database", service), ids or []))
    typer.echo(f"{replayed} replayed")


async def _replay(house: Path | None, url: str, ids: list[str]) -> int:
    async with stream(house) as client:
        chosen = ids or await operations.waiting(url)
        try:
            await operations.replay(url, client, chosen)
        except operations.DeadLetterUnknown as error:
            raise Failure(f"there is no dead letter {error}") from None
    return len(chosen)
