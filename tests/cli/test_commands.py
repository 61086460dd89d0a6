"""The `loyalty` command as people run it: real processes, one house."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc
import nats
import pytest
import yaml
from loyalty.cards.v1 import cards_service_pb2 as cards_pb
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.groups.v1 import groups_service_pb2 as groups_pb
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceStub
from loyalty.orders.v1.orders_pb2 import OrderPaid
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub

from services.chassis.auth import Authenticator, TokenInvalid
from services.cli.events import read
from services.cli.house import SERVICES
from services.cli.place import Failure
from tests.support import PROGRAMME, TIMEOUT, fresh, order

START = "2026-06-15T12:00:00+08:00"
DEADLINE = 60.0  # seconds; generous, for slow machines
COMMAND = [sys.executable, "-m", "services.cli"]
ADDRESSES = ("grpc", "health", "metrics")
FIRST = ("--from-start", "--count", "1")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("LOYALTY_", "POINTS_", "CARDS_"))}


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE * 2,
        check=False,
        env={**ENVIRONMENT, **(env or {}), "COLUMNS": "200"},
    )


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(address: str) -> bool:
    place = urlsplit(address if "//" in address else f"//{address}")
    with socket.socket() as probe:
        return probe.connect_ex((place.hostname or "", place.port or 0)) == 0


@dataclass
class Ours:
    """A house that `loyalty up` runs."""

    folder: Path
    where: dict[str, Any]

    def loyalty(self, *arguments: str | Path) -> str:
        """Runs a command that must succeed, and returns what it prints."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attempt(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*arguments, "--house", self.folder)

    def fails(self, *arguments: str | Path) -> str:
        """Runs a command that must fail, and returns what it says."""
        done = self.attempt(*arguments)
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr
        return done.stderr

    def call(self, method: str, request: Any) -> Any:
        with grpc.insecure_channel(self.where["points"]["grpc"]) as channel:
            return getattr(PointsServiceStub(channel), method)(request, timeout=TIMEOUT)

    def earn(self, amount: int, member: str | None = None) -> str:
        """Gives a member points; returns the member."""
        member = member or fresh("member")
        request = pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"))
        request.fixed.unit, request.fixed.amount = pb.UNIT_POINTS, amount
        self.call("EarnPoints", request)
        return member

    async def in_stream(self, member: str) -> list[str]:
        """The ids of the member's events, as the stream holds them."""
        client = await nats.connect(self.where["nats"])
        try:
            messages = read(client, "loyalty.points.v1.>", from_start=True, follow=False)
            headers = [message.headers or {} async for message in messages]
        except Failure:  # there is no such stream at the moment
            return []
        finally:
            await client.close()
        return [found["ce-id"] for found in headers if found["ce-subject"] == member]

    async def await_in_stream(self, member: str, count: int) -> list[str]:
        """As `in_stream`, once there are so many."""
        deadline = time.monotonic() + DEADLINE
        while len(found := await self.in_stream(member)) < count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        return found

    async def publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        client = await nats.connect(self.where["nats"])
        try:
            await client.jetstream().publish(subject, body, headers=headers)
        finally:
            await client.close()

    def dead_letter(self, event_id: str, service: str = "points") -> list[dict[str, Any]]:
        """The event's dead letters, replayed or not."""
        said = self.loyalty("events", "dead", "list", "--all", "--json", "--service", service)
        lines = said.splitlines()
        return [letter for letter in map(json.loads, lines) if letter["event_id"] == event_id]


@pytest.fixture(scope="module")
def ours(data: Path) -> Iterator[Ours]:
    folder = data / "cli"
    with subprocess.Popen(
        [*COMMAND, "up", "--data", folder, "--test-clock", START],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            house = Ours(folder, json.loads(line))
            programme = folder / "first.yaml"
            programme.write_text(yaml.safe_dump({"points": PROGRAMME}))
            house.loyalty("apply", "-f", programme)
            yield house
        finally:
            process.send_signal(signal.SIGTERM)
            rest, complaints = process.communicate(timeout=DEADLINE)
        assert (process.returncode, rest, complaints) == (0, "", "")
        assert not any(map(listens, addresses(house.where)))


def addresses(where: dict[str, Any]) -> list[str]:
    served = [where[service][name] for service in where["services"] for name in ADDRESSES]
    return [where["nats"], where["postgres"], *served]


def programme_file(folder: Path, rule: str, **changes: Any) -> Path:
    """A programme that no test has put before, its first rule named `rule`."""
    first = {**PROGRAMME["earn_rules"][0], "rule_id": rule, **changes}
    programme = {**PROGRAMME, "earn_rules": [first, *PROGRAMME["earn_rules"][1:]]}
    file = folder / f"{rule}.yaml"
    file.write_text(yaml.safe_dump({"points": programme}, sort_keys=False))
    return file


def test_up_says_where_everything_is(ours: Ours) -> None:
    assert ours.where["services"] == list(SERVICES)
    assert all(map(listens, addresses(ours.where)))
    assert run("clock", "show", env={"LOYALTY_HOUSE": str(ours.folder)}).returncode == 0


def test_a_programme_is_put_once_however_often_it_is_applied(ours: Ours, tmp_path: Path) -> None:
    rule = fresh("rule")
    file = programme_file(tmp_path, rule)
    first = json.loads(ours.loyalty("apply", "-f", file, "--json"))["points"]
    assert first["changed"]
    assert f"+- rule_id: {rule}\n" in first["diff"]
    again = ours.loyalty("apply", "-f", file)
    assert again == f"points: unchanged, version {first['version']} says the same\n"
    assert ours.call("GetProgramme", pb.GetProgrammeRequest()).version == first["version"]


def test_a_dry_run_shows_the_difference_and_puts_nothing(ours: Ours, tmp_path: Path) -> None:
    before = ours.call("GetProgramme", pb.GetProgrammeRequest())
    rule = fresh("rule")
    said = ours.loyalty("apply", "-f", programme_file(tmp_path, rule), "--dry-run")
    assert f"+- rule_id: {rule}\n" in said
    assert f"would become version {before.version + 1}" in said
    assert ours.call("GetProgramme", pb.GetProgrammeRequest()) == before


def test_a_factor_may_be_written_as_a_number(ours: Ours, tmp_path: Path) -> None:
    file = programme_file(tmp_path, fresh("rule"))
    file.write_text(file.read_text().replace("multiplier: '2'", "multiplier: 1.50"))
    assert "+  multiplier: '1.50'" in ours.loyalty("apply", "-f", file, "--dry-run")


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"when": "order.nothing == 1"}, "earn_rules[0].when", "undefined field 'nothing'"),
        ({"per": {"amount_minor": 0, "points": 1}}, "earn_rules[0].per.amount_minor", "must be greater"),
        ({"per": {"amount_minor": "many"}}, "earn_rules[0].per.amount_minor", "many"),
        ({"stack": "RULE_STACK_TOWER"}, "earn_rules[0].stack", "RULE_STACK_TOWER"),
        ({"gives": 1}, "earn_rules[0].gives", "there is no such field"),
        ({"fixed": 1}, "earn_rules[0].fixed", "excludes per"),
    ],
    ids=lambda value: value if isinstance(value, str) and "[" in value else "",
)
def test_a_broken_programme_is_refused_with_its_line(
    ours: Ours, tmp_path: Path, change: dict[str, Any], field: str, message: str
) -> None:
    before = ours.call("GetProgramme", pb.GetProgrammeRequest())
    file = programme_file(tmp_path, fresh("rule"), **change)
    name = field.rsplit(".", 1)[1]
    line = 1 + next(i for i, text in enumerate(file.read_text().splitlines()) if f"{name}:" in text)
    said = ours.fails("apply", "-f", file)
    assert f"{file}:{line}: {field}: " in said
    assert message in said
    assert ours.call("GetProgramme", pb.GetProgrammeRequest()) == before


def products_file(folder: Path, *codes: str, **changes: Any) -> Path:
    """A file of products with one benefit each; the last of them is changed."""
    products = [
        {
            "code": code,
            "family": code,
            "names": {"en": f"The {code}", "zh-CN": "卡"},
            "price_minor": 990,
            "currency_code": "CNY",
            "period": "P1M",
            "benefits": [{"benefit_code": "cup", "kind": "BENEFIT_KIND_FIXED_PRICE", "value": 800}],
        }
        for code in codes
    ]
    products[-1] |= changes
    file = folder / f"{codes[0]}.yaml"
    file.write_text(yaml.safe_dump({"cards": {"products": products}}, sort_keys=False))
    return file


def test_only_a_product_that_changed_is_put_again(ours: Ours, tmp_path: Path) -> None:
    one, other = fresh("one"), fresh("other")
    first = json.loads(ours.loyalty("apply", "-f", products_file(tmp_path, one, other), "--json"))
    assert {name: (put["changed"], put["version"]) for name, put in first.items()} == {
        f"cards/{one}": (True, 1),
        f"cards/{other}": (True, 1),
    }
    dearer = products_file(tmp_path, one, other, price_minor=1090)
    said = ours.loyalty("apply", "-f", dearer, "--dry-run")
    assert f"cards/{other}: valid, would become version 2\n" in said
    assert "-price_minor: 990\n+price_minor: 1090\n" in said
    again = ours.loyalty("apply", "-f", dearer)
    assert f"cards/{one}: unchanged, version 1 says the same\n" in again
    assert f"cards/{other}: version 2 is put\n" in again


def test_where_one_part_is_faulty_none_is_put(ours: Ours, tmp_path: Path) -> None:
    one, other, rule = fresh("one"), fresh("other"), fresh("rule")
    cup = {"benefit_code": "cup", "kind": "BENEFIT_KIND_FIXED_PRICE", "scope": "line.nothing == 1"}
    file = products_file(tmp_path, one, other, period="P999W", benefits=[cup])
    points = programme_file(tmp_path, rule).read_text()
    file.write_text(points + file.read_text())
    lines = file.read_text().splitlines()
    scope = 1 + next(number for number, text in enumerate(lines) if "line.nothing" in text)
    said = ours.fails("apply", "-f", file)
    assert f"{file}:{scope}: products[1].benefits[0].scope: " in said
    assert "undefined field 'nothing'" in said
    assert "products[1].period: " in said
    sound = products_file(tmp_path, one, other)
    sound.write_text(points + sound.read_text())
    assert all(put["changed"] for put in json.loads(ours.loyalty("apply", "-f", sound, "--json")).values())


def test_the_catalogue_that_is_delivered_is_put_once(ours: Ours, tmp_path: Path) -> None:
    delivered = Path(__file__).parents[2] / "deploy/programmes/burger-king.yaml"
    _, cards, products = delivered.read_text(encoding="utf-8").partition("\ncards:")
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(cards + products, encoding="utf-8")  # the programme of points stays as it is
    assert "cards/king-month: version 1 is put\n" in ours.loyalty("apply", "-f", catalogue)
    again = json.loads(ours.loyalty("apply", "-f", catalogue, "--json"))
    assert not any(put["changed"] for put in again.values())


def test_groups_are_put_in_the_order_of_the_file_and_only_if_they_say_something_else(
    ours: Ours, tmp_path: Path
) -> None:
    site, first, second = fresh("site"), fresh("scheme"), fresh("scheme")
    location = {"latitude": 31.1753040, "longitude": 121.5315419, "datum": "DATUM_GCJ02"}
    said: dict[str, Any] = {
        "sites": [{"site_id": site, "name": "一店", "city": "上海", "location": location}],
        "schemes": [
            {
                "scheme_id": name,
                "kind": "SCHEME_KIND_BY_LOCATION",
                "name_pattern": "群{seq}",
                "capacity": 500,
                "withdrawn": True,
                **more,
            }
            for name, more in (
                (first, {"default_site_id": site}),
                (second, {"successor_scheme_id": first}),
            )
        ],
    }
    file = tmp_path / "groups.yaml"

    def apply(*how: str) -> dict[str, Any]:
        file.write_text(yaml.safe_dump({"groups": said}, sort_keys=False))
        outcomes = json.loads(ours.loyalty("apply", "-f", file, "--json", *how))
        return {name.rpartition("/")[2]: outcome["changed"] for name, outcome in outcomes.items()}

    for how in (("--dry-run",), ()):
        assert apply(*how) == {site: True, first: True, second: True}
    assert apply() == {site: False, first: False, second: False}
    said["sites"][0]["name"] = "二店"
    assert apply() == {site: True, first: False, second: False}
    said["schemes"][1]["threshold"] = [{"name": "wrong", "expression": "facts.nothing"}]
    said["sites"][0]["location"]["latitude"] = 131.0
    file.write_text(yaml.safe_dump({"groups": said}, sort_keys=False))
    complaints = ours.fails("apply", "-f", file)
    line = 1 + next(n for n, text in enumerate(file.read_text().splitlines()) if "facts.nothing" in text)
    assert f"{file}:{line}: schemes[1].threshold[0].expression: " in complaints
    assert "sites[0].location" in complaints


def test_a_group_is_attached_to_its_chat(ours: Ours) -> None:
    scheme = groups_pb.Scheme(
        scheme_id=fresh("scheme"), kind=groups_pb.SCHEME_KIND_INVITE, name_pattern="群", capacity=9
    )
    with grpc.insecure_channel(ours.where["groups"]["grpc"]) as channel:
        stub = GroupsServiceStub(channel)
        put = groups_pb.PutSchemeRequest(request_id=fresh("put"), scheme=scheme)
        stub.PutScheme(put, timeout=TIMEOUT)
        request = groups_pb.OpenGroupRequest(
            request_id=fresh("open"), scheme_id=scheme.scheme_id, inviter_id="kol"
        )
        group = stub.OpenGroup(request, timeout=TIMEOUT)
    chat = fresh("chat")
    said = ours.loyalty("groups", "attach", group.group_id, "--chat-id", chat)
    assert said == f"群: chat {chat}, entry unknown\n"
    link = "https://work.weixin.qq.com/gm/1"
    found = json.loads(ours.loyalty("groups", "attach", group.group_id, "--entry-link", link, "--json"))
    assert (found["chat_id"], found["entry_link"]) == (chat, link)
    assert "GROUP_UNKNOWN" in ours.fails("groups", "attach", "grp_" + "0" * 32, "--chat-id", chat)
    assert "nothing to attach" in ours.fails("groups", "attach", group.group_id)


def test_the_faults_of_a_file_can_be_read_by_machines(ours: Ours, tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("# one key per service\npiontS: {}\n")
    done = ours.attempt("apply", "-f", file, "--json")
    assert done.returncode == 1
    [fault] = json.loads(done.stdout)["faults"]
    assert (fault["line"], fault["field"]) == (2, "piontS")
    file.write_text("points: {earn_rules: [\n")
    assert f"{file}:2: " in ours.fails("apply", "-f", file)


def test_the_clock_moves_forward_and_what_fell_due_is_done(ours: Ours) -> None:
    before = datetime.fromisoformat(json.loads(ours.loyalty("clock", "show", "--json"))["now"])
    member = ours.earn(30)
    to = before + timedelta(days=400)
    assert datetime.fromisoformat(ours.loyalty("clock", "set", to.isoformat()).strip()) == to
    page = ours.call("ListTransactions", pb.ListTransactionsRequest(member_id=member))
    kinds = [pb.TransactionKind.Name(tx.kind) for tx in page.transactions]
    assert kinds == ["TRANSACTION_KIND_EXPIRE", "TRANSACTION_KIND_EARN"]  # nobody asked for the expiry
    moved = datetime.fromisoformat(ours.loyalty("clock", "advance", "1d12h").strip())
    assert moved == to + timedelta(hours=36)


def test_the_clock_never_moves_backward(ours: Ours) -> None:
    before = ours.loyalty("clock", "show")
    assert "moves only forward" in ours.fails("clock", "set", "2020-01-01T00:00:00Z")
    assert ours.loyalty("clock", "show") == before
    assert ours.attempt("clock", "advance", "soon").returncode == 2


def test_a_token_is_what_services_believe(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = run("token", "--subject", "anna", "--scope", "points.read", "--member", "m-1", "--keys", keys)
    again = run("token", "--ttl", "60", "--keys", keys)
    assert stat.S_IMODE((keys / "private.jwk.json").stat().st_mode) == 0o600
    assert "d" not in json.loads((keys / "jwks.json").read_text())["keys"][0]
    authenticator = Authenticator(keys / "jwks.json", None)
    caller = authenticator.caller(f"Bearer {made.stdout.strip()}")
    assert (caller.subject, caller.scopes, caller.member_id) == ("anna", frozenset({"points.read"}), "m-1")
    caller = authenticator.caller(f"Bearer {again.stdout.strip()}")
    assert caller.has("points.admin")
    assert caller.has("cards.write")
    stranger = run("token", "--keys", tmp_path / "others")
    with pytest.raises(TokenInvalid):
        authenticator.caller(f"Bearer {stranger.stdout.strip()}")


def test_balances_of_all_members_are_exported(ours: Ours, tmp_path: Path) -> None:
    one, other = ours.earn(7), ours.earn(9)
    out = tmp_path / "balances.csv"

    def exported() -> dict[str, dict[str, str]]:
        ours.loyalty("export", "balances", "--out", out)
        with out.open(newline="") as file:
            return {row["member_id"]: row for row in csv.DictReader(file)}

    eventually(lambda: {one, other} <= exported().keys())  # the events are on their way
    rows = exported()
    assert (rows[one]["available"], rows[other]["available"]) == ("7", "9")
    assert os.listdir(tmp_path) == ["balances.csv"]


def test_transactions_of_one_member_are_exported(ours: Ours, tmp_path: Path) -> None:
    member = ours.earn(50)
    redeem = pb.RedeemPointsRequest(member_id=member, request_id=fresh("redeem"), amount=20)
    ours.call("RedeemPoints", redeem)
    out = tmp_path / "transactions.csv"
    ours.loyalty("export", "transactions", "--out", out, "--member", member)
    with out.open(newline="") as file:
        rows = [(r["seq"], r["kind"], r["points_change"], r["available_after"]) for r in csv.DictReader(file)]
    assert rows == [("2", "REDEEM", "-20", "30"), ("1", "EARN", "50", "50")]


def test_events_are_printed_as_json_lines(ours: Ours) -> None:
    ours.earn(1)
    said = ours.loyalty("events", "tail", *FIRST)
    [event] = map(json.loads, said.splitlines())
    assert event["subject"] == event["headers"]["ce-type"] == "loyalty.points.v1.PointsPosted"
    assert event["message"]["member_id"] == event["headers"]["ce-subject"]
    assert "no stream carries" in ours.fails("events", "tail", "--subject", "nobody.says.this")


def test_events_of_each_service_are_told_in_full(ours: Ours) -> None:
    member, code = fresh("member"), fresh("code")
    product = cards_pb.Product(code=code, family=code, price_minor=5, currency_code="CNY", period="P1M")
    with grpc.insecure_channel(ours.where["cards"]["grpc"]) as channel:
        stub = CardsServiceStub(channel)
        stub.PutProduct(cards_pb.PutProductRequest(request_id=code, product=product), timeout=TIMEOUT)
        request = cards_pb.PlaceOrderRequest(member_id=member, request_id=code, product_code=code)
        stub.PlaceOrder(request, timeout=TIMEOUT)
    subject = "loyalty.cards.v1.CardOrdered"
    eventually(lambda: subject in ours.attempt("events", "tail", "--subject", subject, *FIRST).stdout)
    [event] = map(json.loads, ours.loyalty("events", "tail", "--subject", subject, *FIRST).splitlines())
    assert event["message"]["member_id"] == event["headers"]["ce-subject"]


async def test_a_refused_event_can_be_replayed_and_is_refused_again(ours: Ours) -> None:
    event_id = fresh("garbage")
    await ours.publish("loyalty.orders.v1.OrderPaid", b"\xff\xff", {"Nats-Msg-Id": event_id})
    eventually(lambda: len(ours.dead_letter(event_id)) == 1)
    [letter] = ours.dead_letter(event_id)
    assert (letter["reason"], letter["replay_time"]) == ("MALFORMED_REQUEST", None)
    ours.loyalty("events", "dead", "replay", letter["dead_letter_id"])
    eventually(lambda: _waits_again(ours, letter))
    [again] = ours.dead_letter(event_id)
    assert again["headers"]["ce-id"] == event_id
    assert again["source"] == letter["source"]
    # Once more, within the time in which JetStream drops a Nats-Msg-Id it knows.
    ours.loyalty("events", "dead", "replay", "--all")
    eventually(lambda: _waits_again(ours, again))


def _waits_again(ours: Ours, before: dict[str, Any]) -> bool:
    """Whether a dead letter was refused once more: it is the same one, and nobody has replayed it since."""
    [now] = ours.dead_letter(before["event_id"])
    assert now["dead_letter_id"] == before["dead_letter_id"]
    return now["replay_time"] is None and now["create_time"] > before["create_time"]


async def test_dead_letters_are_listed_and_replayed_by_service(ours: Ours) -> None:
    event_id = fresh("garbage")
    await ours.publish("loyalty.orders.v1.OrderRefunded", b"\xff\xff", {"Nats-Msg-Id": event_id})
    for service in SERVICES:
        eventually(lambda: len(ours.dead_letter(event_id, service)) == 1)  # noqa: B023 - at once
    [letter] = ours.dead_letter(event_id, "cards")
    assert (letter["reason"], letter["replay_time"]) == ("MALFORMED_REQUEST", None)
    said = ours.loyalty("events", "dead", "replay", letter["dead_letter_id"], "--service", "cards")
    assert said == "1 replayed\n"
    assert "no dead letter" in ours.fails("events", "dead", "replay", letter["dead_letter_id"])  # of points


async def test_a_replayed_event_has_its_effect_once(ours: Ours) -> None:
    # Refused while it lies ahead of the clock; with a header that is no business of the replay.
    member, event_id = fresh("member"), fresh("late")
    now = datetime.fromisoformat(ours.loyalty("clock", "show").strip())
    paid = OrderPaid(member_id=member, order=order(1000, now + timedelta(days=1)))
    headers = {"ce-id": event_id, "ce-source": "tills", "Nats-Expected-Stream": "ORDERS"}
    await ours.publish("loyalty.orders.v1.OrderPaid", paid.SerializeToString(), headers)
    eventually(lambda: len(ours.dead_letter(event_id)) == 1)
    [letter] = ours.dead_letter(event_id)
    assert (letter["reason"], letter["source"]) == ("OCCUR_TIME_AHEAD", "tills")
    ours.loyalty("clock", "advance", "2d")
    for _ in range(2):
        ours.loyalty("events", "dead", "replay", letter["dead_letter_id"])

    def earned() -> int:
        page = ours.call("ListTransactions", pb.ListTransactionsRequest(member_id=member))
        return len(page.transactions)

    eventually(lambda: earned() == 1)
    ours.earn(1, member)
    assert earned() == 2
    assert len(ours.dead_letter(event_id)) == 1
    assert "no dead letter" in ours.fails("events", "dead", "replay", "dead_0")


async def test_a_lost_stream_is_rebuilt_with_each_event_once(ours: Ours) -> None:
    member = ours.earn(1)
    ours.earn(2, member)
    before = await ours.await_in_stream(member, 2)
    client = await nats.connect(ours.where["nats"])
    await client.jetstream().delete_stream("POINTS")
    await client.close()
    assert "will be sent again" in ours.loyalty("events", "rebuild", "--stream", "POINTS")
    ours.earn(3, member)
    after = await ours.await_in_stream(member, 3)
    assert after[:2] == before
    assert set(Counter(after).values()) == {1}


@pytest.mark.parametrize("service", SERVICES)
def test_the_books_of_the_house_close(ours: Ours, service: str) -> None:
    ours.earn(5)
    found = json.loads(ours.loyalty("audit", service, "--stream", "--json"))
    assert found["clean"], found
    assert all(check["offending"] == [] for check in found["checks"])
    assert "offending" in ours.loyalty("audit", service)


def test_only_services_have_books(ours: Ours) -> None:
    assert ours.attempt("audit", "nobody").returncode == 2


def test_a_refused_call_is_told_in_one_line_with_its_reason(ours: Ours, tmp_path: Path) -> None:
    file = programme_file(tmp_path, fresh("rule"))
    ours.earn(1)
    file.write_text(file.read_text().replace("Asia/Shanghai", "Asia/Tokyo"))
    assert ours.fails("apply", "-f", file).startswith("loyalty: TIME_ZONE_FIXED: ")


@pytest.mark.parametrize(
    "command",
    [
        *(["audit"], ["audit", "cards"], ["clock", "show"], ["events", "tail"], ["events", "rebuild"]),
        *(["events", "dead", "list"], ["export", "balances", "--out", "never.csv"]),
    ],
    ids="-".join,
)
def test_commands_say_when_no_house_is_running(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, "--house", tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "loyalty up" in line


@pytest.mark.parametrize(
    "command",
    [
        *(["audit"], ["events", "tail"], ["events", "rebuild"], ["events", "dead", "list"]),
        ["export", "balances", "--out", "never.csv", "--member", "m-1"],
    ],
    ids="-".join,
)
def test_commands_say_when_nobody_answers(tmp_path: Path, command: list[str]) -> None:
    nowhere = "127.0.0.1:1"
    env = {
        "POINTS_GRPC_ADDRESS": nowhere,
        "POINTS_DATABASE_URL": f"postgresql://points:secret@{nowhere}/points",
        "POINTS_NATS_URL": f"nats://{nowhere}",
    }
    out = [str(tmp_path / word) if word.endswith(".csv") else word for word in command]
    done = run(*out, env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("loyalty: ")
    assert "secret" not in done.stderr


async def service_connection(url: str) -> str:
    """The name that the service's process gives its connections, which ends with its pid."""
    connection = await asyncpg.connect(url)
    try:
        return str(
            await connection.fetchval(
                "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'points-%'"
            )
        )
    finally:
        await connection.close()


def test_up_ends_when_a_service_dies(data: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "up", "--data", data / "dying", "--front", "native"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        try:
            where = json.loads(process.stdout.readline())
            name = asyncio.run(service_connection(where["postgres"]))
            os.kill(int(name.rsplit("-", 1)[1]), signal.SIGKILL)
            _, complaint = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert process.returncode == 1
    assert complaint.startswith("loyalty: points ended with 137")
    assert not any(map(listens, addresses(where)))
