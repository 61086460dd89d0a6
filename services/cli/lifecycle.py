"""`loyalty lifecycle`: what the groups service knows of the members of real orders, proved month by month.

The brand's events of a year go to a house of the groups service alone: orders and refunds, some told twice,
those of a day in no order, so that many a refund comes before its order, and some orders days or weeks late;
besides, who became a KOL. The clock moves from month to month. At each month's end everybody's facts,
lifecycle and stratum are compared with services.cli.standing; the first end with a difference is the last.
After the year, so is what the service had announced of both until each of those evenings. All of it is made
from the orders, so that each proof tells the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import grpc
import nats
import polars as pl
import typer
import yaml
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_service_pb2 as pb
from loyalty.groups.v1.groups_events_pb2 import TagsChanged
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceStub
from loyalty.orders.v1.orders_pb2 import OrderPaid, OrderRefunded
from loyalty.referral.v1 import referral_events_pb2 as referral
from rich.console import Console

from services.chassis.audit import published
from services.chassis.clock import TestClock
from services.cli import baskets, clockwork, deeds, proof
from services.cli.delivery import Publisher, earn_request, event_of, refund_request
from services.cli.house import House
from services.cli.place import JsonOption
from services.cli.replay import PROGRAMME, SETTLE_TIMEOUT, SHOWN
from services.cli.standing import FACTS, TAGS, orders, refunds, standing

if TYPE_CHECKING:  # the generated stub has this name only for type checkers
    from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceAsyncStub

IN_FLIGHT: Final = 64  # reads under way
CALL_TIMEOUT: Final = 30.0  # seconds
ANNOUNCED: Final = 60.0  # seconds until everything is in the stream
AGAIN_EVERY: Final = 8  # events of which one is told again
LATE_EVERY: Final = 40  # orders of which one is told late
LATE_DAYS: Final = (1, 3, 12, 35)
KOL_EVERY: Final = 50  # members

Event = tuple[Message, str]
"""A message and its id."""


@dataclass(frozen=True)
class Evening:
    """Where everybody stood in the evening of a month's last day, as the service says."""

    day: str
    members: int
    """Of whom anything was told by then."""
    lifecycle: dict[str, int]
    stratum: dict[str, int]
    differences: int
    seconds: float


@dataclass
class Outcome:
    """What a proof saw."""

    orders: int = 0
    refunds: int = 0
    refunds_first: int = 0
    """Refunds that were told before their order."""
    late_orders: int = 0
    told_again: int = 0
    announced: int = 0
    """Changes of lifecycle and stratum that the service announced."""
    seconds: float = 0.0
    months: list[Evening] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


class Story:
    """What is told, and when: orders as `paid`, refunds as `back`, KOLs as `kols`, each with its day."""

    def __init__(self, frame: pl.DataFrame) -> None:
        ordered = orders(frame)
        late = {order_id: _late(order_id) for order_id in ordered["order_id"]}
        days = pl.col("order_id").replace_strict(late, return_dtype=pl.Int64)
        self.paid = ordered.with_columns(told=pl.col("day") + pl.duration(days=days))
        self.members: list[str] = ordered["member_id"].unique().sort().to_list()
        self.first: date = ordered["day"][0]
        self.last: date = ordered["day"][-1]
        later = [
            (day, member_id, deed)
            for day, members in deeds.plan(frame).later.items()
            for member_id, each in members.items()
            for deed in each
            if isinstance(deed, deeds.Refund)
        ]
        self.back = refunds(later)
        chosen = ordered.filter(pl.col("member_id").map_elements(_is_kol, return_dtype=pl.Boolean))
        self.kols = chosen.group_by("member_id").agg(told=pl.min("day")).sort("member_id")
        self._events: dict[date, list[Event]] = {}
        self._tell(frame, later)

    def evenings(self) -> Iterator[tuple[date, list[list[Event]]]]:
        """Each month's last day, and the last of all, with what is told on the days until then."""
        day = self.first
        told: list[list[Event]] = []
        while day <= self.last:
            told.append(sorted(self._events.get(day, []), key=lambda event: _hash(event[1], "place")))
            if day == self.last or (day + timedelta(days=1)).day == 1:
                yield day, told
                told = []
            day += timedelta(days=1)

    def _tell(self, frame: pl.DataFrame, later: Sequence[tuple[date, str, deeds.Refund]]) -> None:
        told = dict(zip(self.paid["order_id"], self.paid["told"], strict=True))
        for member_id, order in baskets.orders(frame):
            request = earn_request(member_id, order)
            self._add(told[order.order_id], event_of(request), request.request_id)
        for day, member_id, deed in later:
            self._add(day, event_of(refund_request(member_id, deed, deeds.evening(day))), deed.name)
        for member_id, day in self.kols.iter_rows():
            self._add(day, _share(member_id, day), f"share-{member_id}")

    def _add(self, day: date, message: Message, event_id: str) -> None:
        """Once, or twice: under the same id, or as somebody who forgot that it was told."""
        events = self._events.setdefault(day, [])
        events.append((message, event_id))
        match _hash(event_id, "again") % (2 * AGAIN_EVERY):
            case 0:
                events.append((message, event_id))
            case 1:
                events.append((message, f"{event_id}-again"))


def _hash(name: str, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose} {name}".encode()).digest()[:8])


def _late(order_id: str) -> int:
    """Local days after which an order is told."""
    thrown = _hash(order_id, "late")
    return 0 if thrown % LATE_EVERY else LATE_DAYS[thrown // LATE_EVERY % len(LATE_DAYS)]


def _is_kol(member_id: str) -> bool:
    return _hash(member_id, "kol") % KOL_EVERY == 0


def _share(member_id: str, day: date) -> referral.RewardGranted:
    """What a KOL gets of somebody's order."""
    granted = referral.RewardGranted(
        member_id=member_id,
        epoch=1,
        version=1,
        reward_id=f"share-{member_id}",
        campaign_id="kol",
        campaign_version=1,
        step_id="share",
        round=1,
        attempt=1,
        role=referral.REWARD_ROLE_INVITER,
        cash=referral.CashReward(amount_minor=100, currency_code=baskets.CURRENCY, order_id="shared"),
    )
    granted.occur_time.FromDatetime(deeds.evening(day))
    return granted


# --- the proof ----------------------------------------------------------------------------------------


def prove(
    house: House,
    frame: pl.DataFrame,
    programme: Mapping[str, Any],
    *,
    say: Callable[[str], None] = lambda _line: None,
) -> Outcome:
    """Tells a house of the groups service, with a clock of before, what happened, and compares.

    `frame` has the lines of services.cli.baskets, `programme` is a loyalty.groups.v1.Programme in its JSON
    mapping, `say` gets a line for each month. Raises ReplayError, Failure, grpc.RpcError, NatsError.
    """
    return asyncio.run(_Proof(house, Story(frame), say).run(programme))


class _Proof:
    def __init__(self, house: House, story: Story, say: Callable[[str], None]) -> None:
        self._house = house
        self._story = story
        self._say = say
        self._outcome = Outcome()
        self._expected: dict[date, pl.DataFrame] = {}
        self._seen: set[tuple[str, str]] = set()

    async def run(self, programme: Mapping[str, Any]) -> Outcome:
        started, clock = time.monotonic(), TestClock(self._house.data / "clock")
        async with self._connected() as (stub, events):
            request = pb.PutProgrammeRequest(request_id="proof")
            ParseDict(dict(programme), request.programme)
            await stub.PutProgramme(request, timeout=CALL_TIMEOUT)
            for day, days in self._story.evenings():
                await asyncio.to_thread(
                    clockwork.move, clock, deeds.evening(day), SETTLE_TIMEOUT, self._house.services
                )
                for told in days:
                    self._count(told)
                    await asyncio.gather(*(events.publish(*event) for event in told))
                    await events.consumed()
                await self._compare(stub, day, started)
                if self._outcome.differences:
                    break
        late = (pl.col("told") > pl.col("day")) & (pl.col("told") <= self._story.last)
        self._outcome.late_orders = self._story.paid.filter(late).height
        if not self._outcome.differences:
            self._outcome.differences += await self._announced()
        self._outcome.seconds = time.monotonic() - started
        return self._outcome

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[GroupsServiceAsyncStub, Publisher]]:
        client = await nats.connect(self._house.nats.url)
        try:
            async with grpc.aio.insecure_channel(self._house.describe()["groups"]["grpc"]) as channel:
                yield GroupsServiceStub(channel), Publisher(client, "groups")
        finally:
            await client.close()

    async def _compare(self, stub: GroupsServiceAsyncStub, day: date, started: float) -> None:
        """Reads what is known of everybody, as of now, and notes what ought to be otherwise."""
        story, free = self._story, asyncio.Semaphore(IN_FLIGHT)
        expected = self._expected[day] = await asyncio.to_thread(
            standing, story.paid, story.back, story.kols, day
        )

        async def read(member_id: str) -> dict[str, Any]:
            async with free:
                request = pb.GetMemberTagsRequest(member_id=member_id)
                return _known(await stub.GetMemberTags(request, timeout=CALL_TIMEOUT))

        members = expected["member_id"].to_list()
        known = dict(zip(members, await asyncio.gather(*map(read, members)), strict=True))
        found = [f"{day} {line}" for line in differences(known, expected, (*FACTS, *TAGS))]
        self._outcome.differences += found
        evening = Evening(
            day=day.isoformat(),
            members=len(members),
            lifecycle=_tally(known, "lifecycle"),
            stratum=_tally(known, "stratum"),
            differences=len(found),
            seconds=time.monotonic() - started,
        )
        self._outcome.months.append(evening)
        self._say(
            f"{day}: {self._outcome.orders:,} orders, {evening.seconds:.0f} s, {evening.members:,} members, "
            f"{_told(evening.lifecycle)}; {_told(evening.stratum)}; {evening.differences:,} differences"
        )

    async def _announced(self) -> list[str]:
        """Where what was announced until an evening is not what was expected of it, once all was sent."""
        deadline = time.monotonic() + ANNOUNCED
        while True:
            changes = [
                TagsChanged.FromString(message.data)
                async for message in published(
                    self._house.nats.url, "GROUPS", TagsChanged.DESCRIPTOR.full_name
                )
            ]
            found = self._unlike(changes)
            if not found or time.monotonic() > deadline:
                self._outcome.announced = sum(len(event.changes) for event in changes)
                return found

    def _unlike(self, changes: Sequence[TagsChanged]) -> list[str]:
        said: dict[str, dict[str, str]] = {}
        left = sorted(changes, key=lambda event: (event.occur_time.ToDatetime(tzinfo=UTC), event.version))
        found, done = [], 0
        for day, expected in self._expected.items():
            while done < len(left) and left[done].occur_time.ToDatetime(tzinfo=UTC) <= deeds.evening(day):
                mine = said.setdefault(left[done].member_id, {})
                mine.update({change.key: change.value for change in left[done].changes})
                done += 1
            known = {
                member_id: {key: said.get(member_id, {}).get(key, "") for key in TAGS}
                for member_id in expected["member_id"]
            }
            found += [f"{day} announced: {line}" for line in differences(known, expected, TAGS)]
        return found

    def _count(self, told: Sequence[Event]) -> None:
        """Notes what the events of a day are, in the order in which they are published."""
        outcome, seen = self._outcome, self._seen
        for message, _ in told:
            name = _name(message)
            outcome.told_again += name in seen
            if name not in seen and isinstance(message, OrderPaid):
                outcome.orders += 1
            elif name not in seen and isinstance(message, OrderRefunded):
                outcome.refunds += 1
                outcome.refunds_first += ("order", message.refund.order_id) not in seen
            seen.add(name)


def _name(message: Message) -> tuple[str, str]:
    """What an event is about, whatever its own id."""
    match message:
        case OrderPaid():
            return ("order", message.order.order_id)
        case OrderRefunded():
            return ("refund", message.refund.refund_id)
    return ("share", message.member_id)  # type: ignore[attr-defined]


def _known(answer: pb.MemberTags) -> dict[str, Any]:
    """An answer as the oracle has it."""
    tags = {tag.key: tag.value for tag in answer.tags}
    facts = {name: getattr(answer.facts, name) for name in FACTS}
    return facts | {key: tags.get(key, "") for key in TAGS}


def differences(
    known: Mapping[str, Mapping[str, Any]], expected: pl.DataFrame, names: Sequence[str]
) -> list[str]:
    """Where what is known of members is not what is expected."""
    return [
        f"{row['member_id']}: {name} is {known[row['member_id']][name]}, the oracle says {row[name]}"
        for row in expected.iter_rows(named=True)
        for name in names
        if known[row["member_id"]][name] != row[name]
    ]


def _tally(known: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, int]:
    """How many members have each value."""
    return dict(sorted(Counter(each[key] for each in known.values()).items()))


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{many:,} {value or 'none'}" for value, many in counts.items())


def command(
    *,
    start: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First local day.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last local day.")
    ] = None,
    programme: Annotated[Path, typer.Option(help="The programme that is in force.")] = PROGRAMME,
    as_json: JsonOption = False,
) -> None:
    """Tell a groups service of its own the real orders of 2017, and compare what it knows of their members.

    At each month's end facts, lifecycle and stratum of everybody; in the end what was announced of them, and
    the books. Exit code 1 if anything differs.
    """
    frame = baskets.load(start.date() if start else None, until.date() if until else None)
    rules = yaml.safe_load(programme.read_text())["groups"]["programme"]
    console = Console(stderr=True)
    with proof.house_of("groups") as house:
        proved = prove(
            house, frame, rules, say=lambda line: console.print(line, soft_wrap=True, highlight=False)
        )
        audited = proof.audited(house, "groups")
    if as_json:
        found = {"proved": asdict(proved), "audit": asdict(audited)}
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _print(proved, audited)
    if proved.differences or audited.findings:
        raise typer.Exit(1)


def _print(proved: Outcome, audited: proof.Audited) -> None:
    counts = {name: value for name, value in asdict(proved).items() if isinstance(value, int)}
    typer.echo(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in counts.items()))
    for what, lines in (("differences", proved.differences), ("findings of the audit", audited.findings)):
        typer.echo("\n".join([f"{what}: {len(lines)}", *lines[:SHOWN]]))
