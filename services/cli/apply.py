"""`loyalty apply`: a brand's programme from a file, checked whole, shown as a diff, put once.

Each top-level key is a service's part: `points` has its programme, `cards` its products, `groups` its own
programme, sites and schemes, `referral` its campaigns. A part that is not in the file stays as it is, and so
does a product, site, scheme or campaign that the file does not name: to end its sale, withdraw or close it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
import yaml
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_service_pb2 as cards_pb
from loyalty.groups.v1 import groups_service_pb2 as groups_pb
from loyalty.points.v1 import points_service_pb2 as points_pb
from loyalty.referral.v1 import referral_service_pb2 as referral_pb

from services.cli.place import (
    Cards,
    Failure,
    Groups,
    HouseOption,
    JsonOption,
    Points,
    Referral,
    cards,
    groups,
    points,
    referral,
    refusal,
)

SERVICES = ("points", "cards", "groups", "referral")
OUTPUT_ONLY = ("version", "create_time", "update_time")
PAGE = 1_000  # products, schemes or campaigns read at once
_TRUTHS = {"true": True, "false": False}


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


@dataclass(frozen=True)
class Draft:
    """What the file says of something that a service keeps in versions."""

    name: str
    said: Any
    node: yaml.Node
    path: str = ""
    """Of the node, within its part of the file."""


@dataclass(frozen=True)
class Change:
    """A draft beside the newest version of it, which may not be in force yet; version 0 is none.

    Of what is kept in no versions, as sites are, it stands beside what there is.
    """

    draft: Draft
    before: Any
    send: Callable[..., Any]
    """Puts the draft, given request_id and validate_only."""

    @cached_property
    def diff(self) -> str:
        """What changes; empty where both say the same."""
        return difference(self.draft.name, self.before, self.draft.said)

    def put(self, file: Path, *, validate_only: bool) -> int:
        """Puts the draft, or only has it checked; returns the version that it gets. Raises Faulty."""
        body = self.draft.said.SerializeToString(deterministic=True)
        before = self.before.SerializeToString(deterministic=True)
        digest = hashlib.sha256(before + b"\0" + body).hexdigest()
        try:
            answer = self.send(request_id=f"apply-{digest[:40]}", validate_only=validate_only)
        except grpc.RpcError as error:
            _, violations = refusal(error)
            if not violations:
                raise
            raise Faulty([located(self.draft, file, path, text) for path, text in violations]) from None
        return _version(answer)


def _version(message: Any) -> int:
    """The number of a version; 0 where there is none yet, or where none are kept."""
    return int(getattr(message, "version", 0))


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", exists=True, dir_okay=False, help="The programme.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show, put nothing.")] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a programme in force: what of it differs from what there is."""
    try:
        drafts = Reader(file).drafts()
        changes: list[Change] = []
        with ExitStack() as channels:
            if "points" in drafts:
                changes += against_programme(channels.enter_context(points(house)), drafts["points"])
            if "cards" in drafts:
                changes += against_products(channels.enter_context(cards(house)), drafts["cards"])
            if "groups" in drafts:
                changes += against_groups(channels.enter_context(groups(house)), drafts["groups"])
            if "referral" in drafts:
                changes += against_campaigns(channels.enter_context(referral(house)), drafts["referral"])
            outcomes = put(changes, file, dry_run=dry_run)
    except Faulty as failure:
        if as_json:
            typer.echo(json.dumps({"faults": [asdict(f) for f in failure.faults]}, ensure_ascii=False))
        raise
    if as_json:
        typer.echo(json.dumps(outcomes, ensure_ascii=False))
        return
    for name, outcome in outcomes.items():
        typer.echo(outcome["diff"], nl=False)
        version = outcome["version"]
        if not outcome["changed"]:
            typer.echo(f"{name}: unchanged" + (f", version {version} says the same" if version else ""))
        elif dry_run:
            typer.echo(f"{name}: valid" + (f", would become version {version}" if version else ""))
        else:
            typer.echo(f"{name}: version {version} is put" if version else f"{name}: is put")


def put(changes: Sequence[Change], file: Path, *, dry_run: bool) -> dict[str, dict[str, Any]]:
    """Puts what changes something, after all of it was found valid. Raises Faulty with every fault."""
    changing = [change for change in changes if change.diff]
    versions = {change.draft.name: _version(change.before) for change in changes}
    faults: list[Fault] = []
    for change in changing:
        try:
            versions[change.draft.name] = change.put(file, validate_only=True)
        except Faulty as faulty:
            faults += faulty.faults
    if faults:
        raise Faulty(faults)
    for change in [] if dry_run else changing:
        versions[change.draft.name] = change.put(file, validate_only=False)
    return {
        change.draft.name: {
            "changed": bool(change.diff),
            "version": versions[change.draft.name],
            "dry_run": dry_run,
            "diff": change.diff,
        }
        for change in changes
    }


def against_programme(service: Points, drafts: Sequence[Draft]) -> Iterator[Change]:
    """A programme beside the newest version."""
    newest = service.call(service.stub.ListProgrammes, points_pb.ListProgrammesRequest(page_size=1))
    before = newest.programmes[0] if newest.programmes else points_pb.Programme()
    for draft in drafts:
        yield Change(draft, before, partial(_put_programme, service, draft.said))


def _put_programme(service: Points, programme: points_pb.Programme, **how: Any) -> points_pb.Programme:
    request = points_pb.PutProgrammeRequest(programme=programme, **how)
    return service.call(service.stub.PutProgramme, request)


def against_products(service: Cards, drafts: Sequence[Draft]) -> Iterator[Change]:
    """Products beside their newest versions."""
    newest: dict[str, cards_pb.Product] = {}
    request = cards_pb.ListProductsRequest(page_size=PAGE, include_withdrawn=True)
    while True:
        page = service.call(service.stub.ListProducts, request)
        newest |= {product.code: product for product in page.products}
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    for draft in drafts:
        before = newest.get(draft.said.code, cards_pb.Product())
        yield Change(draft, before, partial(_put_product, service, draft.said))


def _put_product(service: Cards, product: cards_pb.Product, **how: Any) -> cards_pb.Product:
    return service.call(service.stub.PutProduct, cards_pb.PutProductRequest(product=product, **how))


def against_groups(service: Groups, drafts: Sequence[Draft]) -> Iterator[Change]:
    """A programme, sites and schemes beside what there is of them."""
    newest: dict[str, groups_pb.Scheme] = {}
    request = groups_pb.ListSchemesRequest(page_size=PAGE, include_withdrawn=True)
    while True:
        page = service.call(service.stub.ListSchemes, request)
        newest |= {scheme.scheme_id: scheme for scheme in page.schemes}
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    told: set[str] = set()  # sites and schemes that the file names before
    for draft in drafts:
        match draft.said:
            case groups_pb.Programme():
                yield Change(draft, _rules(service), partial(_put_rules, service, draft.said))
            case groups_pb.Site():
                yield Change(
                    _as_kept(service, draft), _site(service, draft), partial(_put_site, service, draft.said)
                )
                told.add(draft.said.site_id)
            case groups_pb.Scheme():
                before = newest.get(draft.said.scheme_id, groups_pb.Scheme())
                yield Change(draft, before, partial(_put_scheme, service, draft.said, frozenset(told)))
                told.add(draft.said.scheme_id)


def _rules(service: Groups) -> groups_pb.Programme:
    try:
        return service.call(service.stub.GetProgramme, groups_pb.GetProgrammeRequest())
    except grpc.RpcError as error:
        _check_absent(error)
        return groups_pb.Programme()


def _site(service: Groups, draft: Draft) -> groups_pb.Site:
    try:
        return service.call(service.stub.GetSite, groups_pb.GetSiteRequest(site_id=draft.said.site_id))
    except grpc.RpcError as error:
        _check_absent(error)
        return groups_pb.Site()


def _check_absent(error: Any) -> None:
    """That something is not there, or is named so that it cannot be. Raises what else it is."""
    if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
        raise error


def _as_kept(service: Groups, draft: Draft) -> Draft:
    """The site as the service would keep it, whose datum is another; as it is, where it is faulty."""
    try:
        kept = _put_site(service, draft.said, request_id=f"apply-{uuid.uuid4().hex}", validate_only=True)
    except grpc.RpcError:
        return draft
    kept.ClearField("update_time")
    return replace(draft, said=kept)


def _put_rules(service: Groups, programme: groups_pb.Programme, **how: Any) -> groups_pb.Programme:
    request = groups_pb.PutProgrammeRequest(programme=programme, **how)
    return service.call(service.stub.PutProgramme, request)


def _put_site(service: Groups, site: groups_pb.Site, **how: Any) -> groups_pb.Site:
    return service.call(service.stub.PutSite, groups_pb.PutSiteRequest(site=site, **how))


def _put_scheme(
    service: Groups, scheme: groups_pb.Scheme, told: Collection[str], *, validate_only: bool, **how: Any
) -> groups_pb.Scheme:
    """Where it is only checked it may name what the file puts before it."""
    sent = groups_pb.Scheme()
    sent.CopyFrom(scheme)
    for name in ("default_site_id", "successor_scheme_id") if validate_only else ():
        if getattr(sent, name) in told:
            sent.ClearField(name)
    request = groups_pb.PutSchemeRequest(scheme=sent, validate_only=validate_only, **how)
    return service.call(service.stub.PutScheme, request)


def against_campaigns(service: Referral, drafts: Sequence[Draft]) -> Iterator[Change]:
    """Campaigns beside their newest versions."""
    newest: dict[str, referral_pb.Campaign] = {}
    request = referral_pb.ListCampaignsRequest(page_size=PAGE, include_closed=True)
    while True:
        page = service.call(service.stub.ListCampaigns, request)
        newest |= {campaign.campaign_id: campaign for campaign in page.campaigns}
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    for draft in drafts:
        before = newest.get(draft.said.campaign_id, referral_pb.Campaign())
        yield Change(draft, before, partial(_put_campaign, service, draft.said))


def _put_campaign(service: Referral, campaign: referral_pb.Campaign, **how: Any) -> referral_pb.Campaign:
    request = referral_pb.PutCampaignRequest(campaign=campaign, **how)
    return service.call(service.stub.PutCampaign, request)


def difference(name: str, before: Any, after: Message) -> str:
    """A unified diff of what the two say; when it holds counts only if `after` says so."""
    ignored = {*OUTPUT_ONLY, "effective_time"} - {field.name for field, _ in after.ListFields()}
    version = _version(before)
    was = f"{name}, version {version}" if version else (name if before.ListFields() else "nothing")
    lines = difflib.unified_diff(_lines(before, ignored), _lines(after, ignored), was, f"{name} in the file")
    return "".join(lines)


def _lines(message: Message, ignored: Set[str]) -> list[str]:
    said = MessageToDict(message, preserving_proto_field_name=True, unquote_int64_if_possible=True)
    for field, _ in message.ListFields():
        if _is_map(field):  # its entries have no order
            said[field.name] = dict(sorted(said[field.name].items()))
    kept = {name: value for name, value in said.items() if name not in ignored}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) if kept else ""
    return text.splitlines(keepends=True)


class Reader:
    """Reads a file into messages, field by field, so that each fault has its line."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._faults: list[Fault] = []

    def drafts(self) -> dict[str, list[Draft]]:
        """What the file says, by service. Raises Faulty."""
        read = {
            "points": self._programme,
            "cards": self._products,
            "groups": self._groups,
            "referral": self._campaigns,
        }
        drafts = {name: list(read[name](node)) for name, node in self._parts().items()}
        if self._faults:
            raise Faulty(self._faults)
        return drafts

    def _parts(self) -> dict[str, yaml.Node]:
        """The top-level keys with their nodes. Raises Faulty."""
        place = str(self._file)
        try:
            root = yaml.compose(self._file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError:
            raise Faulty([Fault(place, 1, "", "is not UTF-8 text")]) from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise Faulty([Fault(place, line, "", error.problem or "is not YAML")]) from None
        except yaml.YAMLError as error:
            raise Faulty([Fault(place, 1, "", str(error))]) from None
        parts = {key.value: (key, value) for key, value in _pairs(root)}
        known = ", ".join(SERVICES)
        for name, (key, _) in parts.items():
            if name not in SERVICES:
                self._fault(key, str(name), f"no service has this name; known: {known}")
        if not parts:
            self._faults.append(Fault(place, 1, "", f"must be a mapping with one of the keys {known}"))
        if self._faults:
            raise Faulty(self._faults)
        return {name: value for name, (_, value) in parts.items()}

    def _programme(self, node: yaml.Node) -> Iterator[Draft]:
        programme = points_pb.Programme()
        self._fill(programme, node, "")
        yield Draft("points", programme, node)

    def _products(self, node: yaml.Node) -> Iterator[Draft]:
        parts = self._fields(node, ("products",))
        yield from self._listed(parts.get("products", node), "products", cards_pb.Product, "code", "cards")

    def _groups(self, node: yaml.Node) -> Iterator[Draft]:
        parts = self._fields(node, ("programme", "sites", "schemes"))
        if "programme" in parts:
            programme = groups_pb.Programme()
            self._fill(programme, parts["programme"], "programme")
            yield Draft("groups", programme, parts["programme"], "programme")
        if "sites" in parts:
            yield from self._listed(parts["sites"], "sites", groups_pb.Site, "site_id", "groups/site")
        if "schemes" in parts:
            yield from self._listed(parts["schemes"], "schemes", groups_pb.Scheme, "scheme_id", "groups")

    def _campaigns(self, node: yaml.Node) -> Iterator[Draft]:
        parts = self._fields(node, ("campaigns",))
        campaigns = parts.get("campaigns", node)
        yield from self._listed(campaigns, "campaigns", referral_pb.Campaign, "campaign_id", "referral")

    def _fields(self, node: yaml.Node, known: Sequence[str]) -> dict[str, yaml.Node]:
        """What a part has under the names that it may have."""
        parts = {str(key.value): (key, value) for key, value in _pairs(node)}
        for name, (key, _) in parts.items():
            if name not in known:
                self._fault(key, name, f"there is no such field; known: {', '.join(known)}")
        return {name: value for name, (_, value) in parts.items() if name in known}

    def _listed(
        self, node: yaml.Node, field: str, kind: type[Message], key: str, prefix: str
    ) -> Iterator[Draft]:
        """A list of what is named by `key`."""
        if not isinstance(node, yaml.SequenceNode):
            return self._fault(node, field, "must be a list")
        names: set[str] = set()
        for index, item in enumerate(node.value):
            said, path = kind(), f"{field}[{index}]"
            self._fill(said, item, path)
            name = getattr(said, key)
            if name in names:
                self._fault(item, f"{path}.{key}", f"{name} is listed twice")
            names.add(name)
            yield Draft(f"{prefix}/{name}", said, item, path)
        return None

    def _fill(self, message: Message, node: yaml.Node, path: str) -> None:
        """Reads a YAML mapping into a message."""
        if not isinstance(node, yaml.MappingNode):
            return self._fault(node, path, "must be a mapping")
        seen: set[str] = set()
        for key, value in node.value:
            name, where = str(key.value), f"{path}.{key.value}".removeprefix(".")
            field = message.DESCRIPTOR.fields_by_name.get(name)
            if field is None:
                known = ", ".join(message.DESCRIPTOR.fields_by_name)
                self._fault(key, where, f"there is no such field; known: {known}")
            elif name in seen:
                self._fault(key, where, "is given twice")
            elif field.containing_oneof and (other := message.WhichOneof(field.containing_oneof.name)):
                self._fault(key, where, f"excludes {other}, which is given too")
            elif not _is_nested(field):
                try:
                    ParseDict({name: _as_written(value, field)}, message)
                except (ParseError, TypeError, ValueError) as error:
                    self._fault(key, where, str(error).removeprefix(f"Failed to parse {name} field: "))
            elif not field.is_repeated:
                getattr(message, name).SetInParent()
                self._fill(getattr(message, name), value, where)
            elif isinstance(value, yaml.SequenceNode):
                for index, item in enumerate(value.value):
                    self._fill(getattr(message, name).add(), item, f"{where}[{index}]")
            else:
                self._fault(key, where, "must be a list")
            seen.add(name)
        return None

    def _fault(self, node: yaml.Node, field: str, text: str) -> None:
        self._faults.append(Fault(str(self._file), _line(node), field, text))


def _as_written(node: yaml.Node, field: Any) -> Any:
    """What a node says, as text: a factor of 1.20 is text to the contract, whatever YAML thinks it is."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: _as_written(value, field) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_as_written(item, field) for item in node.value]
    return _TRUTHS.get(node.value, node.value) if field.type == field.TYPE_BOOL else node.value


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _is_nested(field: Any) -> bool:
    """Whether its value is a message, or are messages, to be read field by field."""
    kind = field.message_type
    return kind is not None and kind.full_name != Timestamp.DESCRIPTOR.full_name and not _is_map(field)


def located(draft: Draft, file: Path, path: str, text: str) -> Fault:
    """A service's fault, with the line of the deepest node that its path leads to."""
    node, line = draft.node, _line(draft.node)
    path = path.partition(".")[2]  # the request calls the draft `programme`, `product` or so
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", path):
        pair = next(((k, v) for k, v in _pairs(node) if k.value == name), None)
        if pair is None:
            break
        line, node = _line(pair[0]), pair[1]
        if index and isinstance(node, yaml.SequenceNode) and int(index) < len(node.value):
            node = node.value[int(index)]
            line = _line(node)
    return Fault(str(file), line, f"{draft.path}.{path}".strip("."), text)


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
