"""`loyalty apply`: a brand's programme from a file, checked whole, shown as a diff, put once."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
import yaml
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.points.v1 import points_service_pb2 as pb

from services.cli.place import Failure, HouseOption, JsonOption, Points, points, refusal

SERVICES = ("points",)
OUTPUT_ONLY = ("version", "create_time")


@dataclass(frozen=True)
class Fault:
    """Something wrong in the file, and where."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.field}: " if self.field else ""
        return f"{self.file}:{self.line}: {place}{' '.join(self.message.split())}"


class Faulty(Failure):
    """The file cannot be applied."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("\n".join(map(str, faults)))


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", exists=True, dir_okay=False, help="The programme.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show, put nothing.")] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a programme in force, if it differs from the one there is."""
    try:
        parts = read_parts(file)
        with points(house) as service:
            outcome = put(service, file, parts["points"], dry_run=dry_run)
    except Faulty as failure:
        if as_json:
            typer.echo(json.dumps({"faults": [asdict(f) for f in failure.faults]}, ensure_ascii=False))
        raise
    if as_json:
        typer.echo(json.dumps({"points": outcome}, ensure_ascii=False))
        return
    typer.echo(outcome["diff"], nl=False)
    if not outcome["changed"]:
        typer.echo(f"points: unchanged, version {outcome['version']} says the same")
    elif dry_run:
        typer.echo(f"points: valid, would become version {outcome['version']}")
    else:
        typer.echo(f"points: version {outcome['version']} is put")


def put(service: Points, file: Path, node: yaml.Node, *, dry_run: bool) -> dict[str, Any]:
    """Puts the programme unless the newest version says the same. Raises Faulty."""
    programme = pb.Programme()
    faults: list[Fault] = []
    fill(programme, node, file, "programme", faults)
    if faults:
        raise Faulty(faults)
    # What is put takes the place of the newest version, which may not be in force yet.
    newest = service.call(service.stub.ListProgrammes, pb.ListProgrammesRequest(page_size=1))
    before = newest.programmes[0] if newest.programmes else pb.Programme()
    diff = difference(before, programme)
    if not diff:
        return {"changed": False, "version": before.version, "dry_run": dry_run, "diff": ""}
    content = str(before.version).encode() + b"\0" + programme.SerializeToString(deterministic=True)
    request = pb.PutProgrammeRequest(
        request_id=f"apply-{hashlib.sha256(content).hexdigest()[:40]}",
        programme=programme,
        validate_only=dry_run,
    )
    try:
        answer = service.call(service.stub.PutProgramme, request)
    except grpc.RpcError as error:
        _, violations = refusal(error)
        if not violations:
            raise
        raise Faulty([located(node, file, path, text) for path, text in violations]) from None
    return {"changed": True, "version": answer.version, "dry_run": dry_run, "diff": diff}


def difference(before: pb.Programme, after: pb.Programme) -> str:
    """A unified diff of what the two say; when it holds counts only if `after` says so."""
    ignored = {*OUTPUT_ONLY, *(() if after.HasField("effective_time") else ("effective_time",))}
    name = f"version {before.version}" if before.version else "nothing"
    lines = difflib.unified_diff(_lines(before, ignored), _lines(after, ignored), name, "the file")
    return "".join(lines)


def _lines(programme: pb.Programme, ignored: set[str]) -> list[str]:
    said = MessageToDict(programme, preserving_proto_field_name=True, unquote_int64_if_possible=True)
    kept = {name: value for name, value in said.items() if name not in ignored}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) if kept else ""
    return text.splitlines(keepends=True)


def read_parts(file: Path) -> dict[str, yaml.Node]:
    """The file's top-level keys with their nodes. Raises Faulty."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise Faulty([Fault(str(file), 1, "", "is not UTF-8 text")]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Faulty([Fault(str(file), line, "", error.problem or "is not YAML")]) from None
    except yaml.YAMLError as error:
        raise Faulty([Fault(str(file), 1, "", str(error))]) from None
    parts = {key.value: (key, value) for key, value in _pairs(root)}
    faults = [
        Fault(str(file), _line(key), str(name), f"no service has this name; known: {', '.join(SERVICES)}")
        for name, (key, _) in parts.items()
        if name not in SERVICES
    ]
    if not parts:
        faults = [Fault(str(file), 1, "", "must be a mapping with the key points")]
    if faults:
        raise Faulty(faults)
    return {name: value for name, (_, value) in parts.items()}


def fill(message: Message, node: yaml.Node, file: Path, path: str, faults: list[Fault]) -> None:
    """Reads a YAML mapping into a message, field by field, so that each fault has its line."""

    def fault(at: yaml.Node, where: str, text: str) -> None:
        faults.append(Fault(str(file), _line(at), where.removeprefix("programme."), text))

    if not isinstance(node, yaml.MappingNode):
        return fault(node, path, "must be a mapping")
    seen: set[str] = set()
    for key, value in node.value:
        name, where = str(key.value), f"{path}.{key.value}"
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            known = ", ".join(message.DESCRIPTOR.fields_by_name)
            fault(key, where, f"there is no such field; known: {known}")
        elif name in seen:
            fault(key, where, "is given twice")
        elif field.containing_oneof and (other := message.WhichOneof(field.containing_oneof.name)):
            fault(key, where, f"excludes {other}, which is given too")
        elif field.is_repeated and not isinstance(value, yaml.SequenceNode):
            fault(key, where, "must be a list")
        elif field.is_repeated:
            for index, item in enumerate(value.value):
                fill(getattr(message, name).add(), item, file, f"{where}[{index}]", faults)
        elif _is_nested(field):
            getattr(message, name).SetInParent()
            fill(getattr(message, name), value, file, where, faults)
        else:
            try:
                # As written: a factor of 1.20 is text to the contract, whatever YAML thinks it is.
                ParseDict({name: value.value}, message)
            except (ParseError, TypeError, ValueError) as error:
                fault(key, where, str(error).removeprefix(f"Failed to parse {name} field: "))
        seen.add(name)
    return None


def _is_nested(field: Any) -> bool:
    return field.message_type is not None and field.message_type.full_name != Timestamp.DESCRIPTOR.full_name


def located(root: yaml.Node, file: Path, path: str, text: str) -> Fault:
    """The fault with the line of the deepest node that its path leads to."""
    node, line = root, _line(root)
    path = path.removeprefix("programme").removeprefix(".")
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", path):
        pair = next(((k, v) for k, v in _pairs(node) if k.value == name), None)
        if pair is None:
            break
        line, node = _line(pair[0]), pair[1]
        if index and isinstance(node, yaml.SequenceNode) and int(index) < len(node.value):
            node = node.value[int(index)]
            line = _line(node)
    return Fault(str(file), line, path, text)


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
