"""`loyalty demo`: a real month and four stories through the whole house, and the proof that all is right."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import stamina.instrumentation
import typer
import yaml
from google.protobuf.json_format import ParseDict
from loyalty.cards.v1 import cards_service_pb2 as cards_pb
from loyalty.points.v1 import points_service_pb2 as points_pb
from loyalty.points.v1.points_events_pb2 import PointsPosted
from rich.console import Console
from rich.table import Table

from services.cards import audit as of_cards
from services.chassis import operations
from services.chassis.audit import Report
from services.cli import baskets, replay
from services.cli.house import House
from services.cli.listener import Listener
from services.cli.stories import Scene, Stage, cards, groups, points, referral, stage
from services.groups import audit as of_groups
from services.points import audit as of_points
from services.referral import audit as of_referral

EVE = datetime(2016, 12, 31, 4, 0, tzinfo=UTC)  # where the clock stands when the programme is put
MONTH = (date(2017, 1, 1), date(2017, 1, 31))
SHOWN = 12  # events printed of each stream, and faults
AUDITS = {
    "points": of_points.audit,
    "cards": of_cards.audit,
    "groups": of_groups.audit,
    "referral": of_referral.audit,
}
# Whose events are printed of what each service told.
HEROES = {
    "points": (points.MEMBER,),
    "cards": (cards.MEMBER,),
    "groups": groups.MEMBERS,
    "referral": referral.MEMBERS,
}
BANK = replay.PROGRAMME.with_name("china-merchants-bank.yaml")
# The check that sees every event which a service wrote.
WRITTEN = {
    "points": of_points.CHECKS["outbox"],
    "cards": of_cards.CHECKS["events"],
    "groups": of_groups.CHECKS["events"],
    "referral": of_referral.CHECKS["events"],
}
# What is printed of an event, where it has that.
TELLING = (
    "group_name",
    "plan_id",
    "benefit_code",
    "amount_minor",
    "paid_minor",
    "saved_minor",
    "refund_minor",
    "code",
    "step_id",
    "qualified_count",
)


def command(
    programme: Annotated[
        Path, typer.Option(help="The programme, the cards on sale, the groups, and the campaigns.")
    ] = replay.PROGRAMME,
) -> None:
    """Run one real month and four stories on servers of their own, verify all, and print what came out."""
    stamina.instrumentation.set_on_retry_hooks([])
    console = Console()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="loyalty-demo-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL does not run as root: its user must get in
        house = House(Path(folder), services=tuple(AUDITS))
        try:
            with _step(console, "Starting PostgreSQL, NATS, and all services"):
                house.start(EVE)
            with stage(house) as on:
                played = _play(console, on, programme)
            proofs = prove(console, house)
        finally:
            house.close()
    _print(console, played, proofs, round(time.monotonic() - started))
    if faults(played, proofs):
        raise typer.Exit(1)


# --- what is played -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """What the month and the stories came to."""

    first: replay.Outcome
    second: replay.Outcome
    month_end: int
    """Points that members could spend then."""
    ann: Sequence[Scene]
    ben: Sequence[Scene]
    cleo_and_dora: Sequence[Scene]
    emma_and_felix: Sequence[Scene]

    @property
    def scenes(self) -> Sequence[Scene]:
        """Of all stories."""
        return [*self.ann, *self.ben, *self.cleo_and_dora, *self.emma_and_felix]


def _play(console: Console, on: Stage, programme: Path) -> Played:
    said = yaml.safe_load(programme.read_text(encoding="utf-8"))
    rules = with_stories(said["points"])
    with _step(console, f"Putting the programme and the cards of {programme.name}"):
        put_programme(on, rules)
        put_products(on, said["cards"]["products"])
    frame = baskets.load(*MONTH)
    with _step(console, f"Replaying {frame['order_id'].n_unique():,} real orders of {MONTH[0]:%B %Y}"):
        first = _replay(console, on.house, frame, rules)
    with _step(console, "Replaying them once more, as a caller does that lost its answers"):
        second = _replay(console, on.house, frame, None)
    with _step(console, "One more member checks out with points, and returns the fries"):
        ann = list(points.checkout(on))
    month_end = asyncio.run(of_points.audit(on.house.database_url("points"))).totals["liability"]
    with _step(console, "Another buys cards, uses, renews and upgrades them, and gives one back"):
        ben = list(cards.play(on))
    with _step(console, "490 guests of a store, and a bank's customer, find their groups"):
        bank = yaml.safe_load(BANK.read_text(encoding="utf-8"))
        cleo_and_dora = list(groups.play(on, said["groups"], bank["groups"]))
    with _step(console, "A guest brings friends, and loses some; a customer others to the bank"):
        emma_and_felix = list(referral.play(on, said, bank))
    with _step(console, "A year passes: everybody is told what expires, and it does"):
        ann += points.a_year_later(on)
    return Played(first, second, month_end, ann, ben, cleo_and_dora, emma_and_felix)


def with_stories(rules: Mapping[str, Any]) -> dict[str, Any]:
    """A programme of points, and what the stories' brand says besides."""
    return {**rules, "earn_rules": [*rules["earn_rules"], *referral.RULES]}


def put_programme(on: Stage, rules: Mapping[str, Any]) -> None:
    """Puts a programme in force."""
    programme = ParseDict(dict(rules), points_pb.Programme())
    request = points_pb.PutProgrammeRequest(request_id="demo", programme=programme)
    on.call(on.points.PutProgramme, request)


def put_products(on: Stage, products: Iterable[Mapping[str, Any]]) -> None:
    """Puts cards on sale."""
    for said in products:
        product = ParseDict(dict(said), cards_pb.Product())
        request = cards_pb.PutProductRequest(request_id=f"demo-{product.code}", product=product)
        on.call(on.cards.PutProduct, request)


def _replay(
    console: Console, house: House, frame: pl.DataFrame, rules: Mapping[str, Any] | None
) -> replay.Outcome:
    with replay.progress_bar(console, "orders", frame["order_id"].n_unique()) as tick:
        return replay.replay(house.describe(), frame, rules, tick)


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    console.print(f"{what} …", end=" " if not console.is_terminal else "\n")
    started = time.monotonic()
    yield
    console.print(f"{time.monotonic() - started:.1f} s")


# --- what proves it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """What the audit of a service found, and what another team heard of it."""

    report: Report
    dead_letters: Sequence[str]
    written: int
    """Events."""
    heard: Sequence[Any]
    """Them, each once."""


def prove(console: Console, house: House) -> dict[str, Proof]:
    """Audits each service's books and stream, and listens to what was written."""
    proofs = {}
    for service, audit in AUDITS.items():
        with _step(console, f"Auditing the books of {service}, and the stream against them"):
            database = house.database_url(service)
            report = asyncio.run(audit(database, stream_url=house.nats.url))
            dead = asyncio.run(operations.waiting(database))
        with _step(console, "Hearing the stream, as another team does that has the protos alone"):
            written = sum(seen for meaning, seen, _ in report.lines if meaning == WRITTEN[service])
            heard = Listener(house.nats.url, service).heard(written)
        proofs[service] = Proof(report, dead, written, heard)
    return proofs


def faults(played: Played, proofs: Mapping[str, Proof]) -> list[str]:
    """Everything that is not as it should be."""
    found = list(played.first.differences or [])
    if made := played.second.new_transactions:
        found.append(f"the second replay made {made} new transactions")
    found += [str(scene) for scene in played.scenes if not scene.right]
    for service, proof in proofs.items():
        found += [f"{service}: {line}" for _, _, lines in proof.report.lines for line in lines]
        found += [f"{service}: dead letter {letter}" for letter in proof.dead_letters]
        if len(proof.heard) != proof.written:
            found.append(f"{service}: {len(proof.heard)} events arrived of {proof.written}")
    return found


# --- what is printed ----------------------------------------------------------------------------------


def _print(console: Console, played: Played, proofs: Mapping[str, Proof], seconds: int) -> None:
    console.print("\nWhat another team's subscriber sees, with nothing of ours but the protos:")
    for service, heroes in HEROES.items():
        theirs = [event for event in proofs[service].heard if getattr(event, "member_id", "") in heroes]
        for event in theirs[-SHOWN:]:
            console.print(f"  {_line(event)}", soft_wrap=True)
    console.print(_scenes(f"What {points.MEMBER} owned after", points.COLUMNS, played.ann))
    console.print(_scenes(f"What {cards.MEMBER} bought, used and gave back", cards.COLUMNS, played.ben))
    console.print(_scenes("Where they were seated", groups.COLUMNS, played.cleo_and_dora))
    console.print(_scenes("What their friends brought them", referral.COLUMNS, played.emma_and_felix))
    console.print(_table(_figures(played, proofs) | {"seconds in all": seconds}))
    for fault in faults(played, proofs)[:SHOWN]:
        console.print(f"[red]{fault}")


def _line(event: Any) -> str:
    """An event on one line."""
    if not isinstance(event, PointsPosted):
        known = [name for name in TELLING if name in event.DESCRIPTOR.fields_by_name]
        told = "  ".join(f"{name} {getattr(event, name)}" for name in known if getattr(event, name))
        return f"{type(event).__name__:16} {event.member_id:8} {told}".rstrip()
    tx = event.transaction
    kind = points_pb.TransactionKind.Name(tx.kind).removeprefix("TRANSACTION_KIND_")
    after = f"available after {tx.balance.available:<5} hash {tx.hash.hex()[:12]}…"
    return f"{kind:16} {event.member_id:8} seq {tx.seq:<3} {after}"


def _scenes(title: str, columns: Sequence[str], scenes: Iterable[Scene]) -> Table:
    table = Table("", title=f"\n{title}")
    for name in columns:
        table.add_column(name, justify="right")
    for scene in scenes:
        table.add_row(scene.what, *scene.said)
    return table


def _figures(played: Played, proofs: Mapping[str, Proof]) -> dict[str, int]:
    first = played.first
    books, passes, chats, bonds = (proofs[service].report.totals for service in AUDITS)
    return {
        "members": books["members"],
        "orders": first.orders,
        "redemptions": first.redemptions,
        "redemptions and holds with too few points": first.too_few,
        "holds": first.holds,
        "refunds": first.refunds,
        "points earned": books["earned"],
        "points redeemed": books["redeemed"],
        "liability at the month's end (points)": played.month_end,
        "points expired a year later": books["expired"],
        "transactions": books["transactions"],
        "new transactions in the second replay": played.second.new_transactions,
        "differences to the oracle": len(first.differences or []),
        "cards": passes["cards"],
        "periods bought": passes["periods"],
        "benefits used": passes["redemptions"],
        "groups": chats["groups"],
        "memberships": chats["memberships"],
        "friends brought": bonds["attributions"],
        "rewards": bonds["rewards"],
        "scenes that came out otherwise": sum(not scene.right for scene in played.scenes),
        "audit findings": sum(len(f) for proof in proofs.values() for _, _, f in proof.report.lines),
        **{f"events of {service} published": proof.written for service, proof in proofs.items()},
        **{f"events of {service} received": len(proof.heard) for service, proof in proofs.items()},
        "orders a second": round(first.orders / first.seconds),
    }


def _table(figures: Mapping[str, int]) -> Table:
    table = Table(title="\nOne month, and four stories", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}")
    return table
