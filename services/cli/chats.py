"""`loyalty groups`: what operators tell the groups service of its chats."""

from __future__ import annotations

import json
import uuid
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.cli.place import Failure, HouseOption, JsonOption, groups

app = typer.Typer(help="Chats of groups.", no_args_is_help=True)


@app.callback()
def chats() -> None:
    """Chats of groups."""  # so that the one command keeps its name


@app.command()
def attach(
    group_id: Annotated[str, typer.Argument(help="The group.")],
    *,
    chat_id: Annotated[str, typer.Option(help="The messaging side's id of it.")] = "",
    entry_link: Annotated[str, typer.Option(help="Where it is entered.")] = "",
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which chat a group is, and where it is entered; what is left out stays as it is."""
    if not (chat_id or entry_link):
        raise Failure("nothing to attach: give --chat-id, --entry-link or both")
    request = pb.AttachChatRequest(
        request_id=f"attach-{uuid.uuid4().hex}", group_id=group_id, chat_id=chat_id, entry_link=entry_link
    )
    with groups(house) as service:
        group = service.call(service.stub.AttachChat, request)
    if as_json:
        typer.echo(json.dumps(MessageToDict(group, preserving_proto_field_name=True), ensure_ascii=False))
    else:
        typer.echo(f"{group.name}: chat {group.chat_id or 'unknown'}, entry {group.entry_link or 'unknown'}")
