"""The real service on a real database against a plain model, driven by Hypothesis.

Batches of commands of every kind are posted while the clock jumps; after each, what the service says and
what the members own must be what the model works out from the whole history (ledger_model). After each
sequence the books are added up and audited. HYPOTHESIS_EXAMPLES raises how often it runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from loyalty.points.v1 import points_events_pb2 as epb
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis import migrations
from services.chassis.consumer import Delivery
from services.chassis.database import Connection, Database
from services.chassis.timestamps import instant
from services.cli.servers import Postgres
from services.points import service, store, tables
from services.points.audit import audit
from services.points.commands import Command, RefundOrder, Send, Settle
from services.points.domain import ledger
from services.points.domain.ledger import Account, Member, Transaction
from services.points.rules import Programmes
from tests.points.ledger_model import (
    COFFEE,
    COFFEE_A_DAY,
    COFFEE_MONTHS,
    FOREVER,
    JOINED,
    JOINED_A_DAY,
    SMALL_GIFT,
    SMALL_ORDER,
    TEA,
    TIER_DAYS,
    TIERS,
    UNNAMED,
    ZONE,
    Book,
    Heard,
    Outcome,
    Shown,
    Terms,
)
from tests.points.ledger_wishes import FOLLOW, GAIN, SPEND, WHICH, WHO, Clerk, Wish

T = TypeVar("T")
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "150"))
STEPS = 12
MIGRATIONS = Path(service.__file__).parent / "migrations"
TRANSFER_SENT = epb.TransferSent.DESCRIPTOR.full_name


def year(number: int) -> datetime:
    """When a year begins in the programmes' zone."""
    return datetime(number, 1, 1, tzinfo=ZONE).astimezone(UTC)


# Which programme an example meets depends on when it begins; one that begins before a change meets both.
PROGRAMMES = [
    Terms(year(2026), months=1, sends=40, ladder="rolling", tier_grace=2),
    Terms(year(2030), "CLAMP", pending_days=3, years=0, ladder="calendar"),
    Terms(year(2034), "BLOCK", months=1, points=2, sends=25, grace=2),
    Terms(year(2038), pending_days=3, years=0, sends=60, ladder="calendar", tier_grace=5),
    Terms(year(2042), "BLOCK", pending_days=3, months=1, ladder="rolling"),
    Terms(year(2046), points=2, sends=40, ladder="rolling"),
    Terms(year(2050), "CLAMP", months=2, grace=1, sends=10, ladder="rolling", tier_grace=2),
    Terms(year(2054), pending_days=3, months=1, ladder="rolling"),
]
STARTS = [
    terms.effective + wait
    for terms in PROGRAMMES
    for wait in (timedelta(days=58, hours=16), timedelta(days=362), timedelta(days=4 * 365 - 8))
]
# What is earned three days before a year ends is pending until it expires.
STARTS += [year(number) - timedelta(days=3) for number in (2039, 2040, 2041)]


def programme(version: int, terms: Terms) -> pb.Programme:
    """The programme that the model knows as these terms."""
    message = ParseDict({**_rules(terms), **_terms(terms)}, pb.Programme(version=version))
    message.effective_time.FromDatetime(terms.effective)
    return message


def _rules(terms: Terms) -> dict[str, Any]:
    def gives(rule_id: str, scope: str = "ORDER", *, unit: str = "POINTS", **more: Any) -> dict[str, Any]:
        names = {"rule_id": rule_id, "unit": f"UNIT_{unit}", "scope": f"RULE_SCOPE_{scope}"}
        return {**names, "stack": "RULE_STACK_ADD", **more}

    coffee: dict[str, Any] = {
        "fixed": COFFEE,
        "cap_per_day": COFFEE_A_DAY,
        "expiry": {"rolling_months": COFFEE_MONTHS},
    }
    joined: dict[str, Any] = {"fixed": JOINED, "cap_per_day": JOINED_A_DAY}
    return {
        "time_zone": ZONE.key,
        "currency_code": "CNY",
        "earn_rules": [
            gives("base", per={"amount_minor": 100, "points": terms.points}),
            gives("growth", unit="GROWTH", per={"amount_minor": 100, "points": 1}),
            gives("tea", "LINE", when="line.category == 'tea'", per={"amount_minor": TEA, "points": 1}),
            gives("small", when=f"order.total_minor < {SMALL_ORDER}", fixed=SMALL_GIFT),
            gives("coffee", "LINE", when="line.category == 'coffee'", **coffee),
            gives("gold", when="member.tier == 'gold'", multiplier="1.5"),
            gives("card", when="'card.plus' in member.facts", multiplier="2"),
            gives("joined", "ACTIVITY", when="activity.kind == 'group_joined'", **joined),
        ],
    }


def _terms(terms: Terms) -> dict[str, Any]:
    message: dict[str, Any] = {
        "clawback": f"CLAWBACK_{terms.clawback}",
        "pending_days": terms.pending_days,
        "grace_days": terms.grace,
        "transfers_per_day": terms.sends,
    }
    if terms.months is not None:
        message["expiry"] = {"rolling_months": terms.months}
    elif terms.years is not None:
        message["expiry"] = {"calendar_years": terms.years}
    if terms.ladder:
        tiers = [{"tier_id": tier, "growth": growth} for tier, growth in TIERS]
        window = {"rolling_days": TIER_DAYS} if terms.ladder == "rolling" else {"calendar_year": True}
        message["tier_ladder"] = {"tiers": tiers, "grace_days": terms.tier_grace, **window}
    return message


class LedgerMachine(RuleBasedStateMachine):
    """Posts batches, moves the clock, and compares."""

    url: ClassVar[str]
    database: ClassVar[Database]
    loop: ClassVar[asyncio.AbstractEventLoop]
    programmes: ClassVar[Programmes]

    def __init__(self) -> None:
        super().__init__()
        self.members = ["member-a", "member-b"]
        self.histories: dict[str, list[Heard]] = {member: [] for member in self.members}
        self.clerk = Clerk(self.members, STARTS[0])
        self.answers: dict[str, Transaction] = {}
        self.wait(self.empty())

    @property
    def now(self) -> datetime:
        """The service's clock."""
        return self.clerk.now

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def books(self) -> dict[str, Book]:
        """The members as of now, worked out from the beginning."""
        books = {member: Book(PROGRAMMES, history) for member, history in self.histories.items()}
        for book in books.values():
            book.pass_until(self.now)
        return books

    # --- what happens ---------------------------------------------------------------------------------

    @initialize(start=st.sampled_from(STARTS), gains=st.lists(GAIN, min_size=2, max_size=6))
    def begin(self, start: datetime, gains: list[Wish]) -> None:
        self.clerk.now = start
        self.play(gains)

    @rule(days=st.sampled_from([0, 1, 2, 3, 7, 10, 24, 31]), hours=st.integers(0, 23))
    def time_passes(self, days: int, hours: int) -> None:
        self.clerk.now += timedelta(days=days, hours=hours)

    @rule(which=WHICH, aside=st.sampled_from([-1, 0, 0, 0, 1]), swept=st.none() | WHO)
    def something_falls_due(self, which: int, aside: int, swept: int | None) -> None:
        """At the very moment, or a microsecond aside."""
        books = self.books()
        near = sorted({m for book in books.values() for m in book.moments() if m > self.now})[:9]
        if near:
            self.clerk.now = near[which % len(near)] + timedelta(microseconds=aside)
        if swept is not None:
            self.check([self.clerk.settle(swept)], books)

    @rule(gained=st.lists(GAIN, min_size=1, max_size=4), spent=st.lists(SPEND, min_size=2, max_size=5))
    def members_gain_and_spend(self, gained: list[Wish], spent: list[Wish]) -> None:
        self.play([*gained, *spent])

    @rule(spent=st.lists(SPEND, max_size=2), followed=st.lists(FOLLOW, min_size=3, max_size=8))
    def what_was_is_followed_up(self, spent: list[Wish], followed: list[Wish]) -> None:
        self.play([*spent, *followed])

    @rule(wishes=st.lists(st.one_of(GAIN, SPEND, FOLLOW), min_size=3, max_size=9))
    def anything_happens(self, wishes: list[Wish]) -> None:
        self.play(wishes)

    def play(self, wishes: Sequence[Wish]) -> None:
        books = self.books()
        self.check(self.clerk.commands(wishes, books), books)

    def check(self, commands: Sequence[Command], books: dict[str, Book]) -> None:
        """Posts commands, and compares each answer with the model's."""
        if not commands:
            return
        answers = self.wait(self.post(commands))
        sent: list[str] = []
        for command, answer in zip(commands, answers, strict=True):
            transaction_id = answer.transaction_id if isinstance(answer, Transaction) else ""
            outcome, heard = books[command.member_id].hear(command, self.now, transaction_id)
            self.check_answer(command, answer, outcome)
            self.histories[command.member_id] += [heard] if heard is not None else []
            if outcome == transaction_id and transaction_id not in {"", *self.answers}:
                self.answers[transaction_id] = answer
                self.clerk.made.append((command, transaction_id))
                sent += [transaction_id] if isinstance(command, Send) else []
        if sent:
            self.clerk.sent += self.wait(self.departures(sent))

    def check_answer(self, command: Command, answer: Any, outcome: Outcome) -> None:
        """Compares the answer with the transaction, the refusal, or the silence that it must be."""
        if isinstance(command, Settle):
            assert answer is None or answer.actor == "due"
        elif isinstance(outcome, type):
            assert type(answer) is outcome, (command, answer)
        elif outcome is None:
            assert answer is None, (command, answer)
        else:
            assert isinstance(answer, Transaction), (command, answer)
            if outcome == UNNAMED:
                assert isinstance(command, RefundOrder)
                assert (answer.kind, answer.reference_id) == ("REFUND", command.refund_id)
            else:
                assert answer == self.answers.get(outcome, answer)
                assert answer.transaction_id == outcome

    @invariant()
    def balances_are_those_of_the_model(self) -> None:
        found = self.wait(self.read())
        for member, book, shown in zip(self.members, self.books().values(), found, strict=True):
            if shown is None:
                assert not book.requests
            else:
                found_, expected = seen(shown), book.show(self.now)
                assert found_ == expected, (member, found_, expected)

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None:
            return  # it has failed already
        books = self.books()
        self.check([self.clerk.settle(who) for who in range(len(self.members))], books)
        self.wait(self.check_books())
        self.wait(self.check_letters())
        report = self.wait(audit(self.url))
        assert report.clean, report.lines

    # --- the service ----------------------------------------------------------------------------------

    async def empty(self) -> None:
        """So that an audit sees this sequence alone."""
        names = [table.name for table in tables.metadata.sorted_tables if table.name not in KEPT]
        async with self.database.begin() as connection:
            await connection.execute(";".join(f"DELETE FROM {name}" for name in names))  # noqa: S608

    async def post(self, commands: Sequence[Command]) -> list[Any]:
        async with self.database.begin() as connection:
            answers, _ = await service.post(connection, commands, self.programmes, 1, self.now)
        return answers

    async def read(self) -> list[Member | None]:
        async with self.database.read() as connection:
            return await service.balances(connection, self.members, self.programmes, self.now)

    async def departures(self, sent: Sequence[str]) -> list[Delivery]:
        """Points that have left, as their consumer hears of them."""
        query = "SELECT * FROM outbox WHERE subject = $1 ORDER BY position"
        async with self.database.read() as connection:
            rows = await connection.fetch(query, TRANSFER_SENT)
        found = {epb.TransferSent.FromString(row["body"]).transfer_id: row for row in rows}
        return [
            Delivery(TRANSFER_SENT, found[name]["body"], "points", found[name]["event_id"], "", "POINTS", 1)
            for name in sent
        ]

    # --- the books ------------------------------------------------------------------------------------

    async def check_letters(self) -> None:
        async with self.database.read() as connection:
            letters = await connection.fetchval("SELECT count(*) FROM dead_letters")
        assert letters == sum(book.letters for book in self.books().values())

    async def check_books(self) -> None:
        async with self.database.read() as connection:
            for member, book in self.books().items():
                rows = await of_member(connection, "transactions", member, "seq")
                asked = [row["transaction_id"] for row in rows if row["actor"] != "due"]
                assert asked == [t for t in self.answers if self.answers[t].member_id == member]
                for stored in await of_member(connection, "members", member, "seq"):
                    check_ledger(rows, stored)
                    await check_lots(connection, member, stored)
                events = await of_member(connection, "outbox", member, "position", "entity_key")
                check_events(events, rows, book)


KEPT = ("programmes", "meta")


def seen(member: Member) -> Shown:
    """A member in the model's words."""
    lots: dict[tuple[datetime, bool], int] = {}
    for lot in member.lots:
        if lot.free:
            key = (lot.expires_at or FOREVER, lot.pending)
            lots[key] = lots.get(key, 0) + lot.free
    b = member.snapshot()
    return Shown(
        *(b.available, b.pending, b.held, b.owed, b.growth, b.lifetime_earned),
        tier=member.tier,
        tier_until=member.tier_until,
        lots=lots,
    )


async def of_member(
    connection: Connection, table: str, member: str, order_by: str, key: str = "member_id"
) -> list[Any]:
    query = f"SELECT * FROM {table} WHERE {key} = $1 ORDER BY {order_by}"  # noqa: S608 - our own names
    rows: list[Any] = await connection.fetch(query, member)
    return rows


def check_ledger(rows: Sequence[Any], stored: Any) -> None:
    """Numbers without gaps, a whole chain, and transfers that explain every balance."""
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    head = b""
    accounts = dict.fromkeys(Account, 0)
    for row in rows:
        transaction = store.to_transaction(row)
        head = ledger.transaction_hash(head, transaction)
        assert transaction.hash == head
        for transfer in transaction.transfers:
            assert transfer.amount > 0
            accounts[transfer.debit] -= transfer.amount
            accounts[transfer.credit] += transfer.amount
        assert_balances(row, accounts)
    assert (stored["seq"], stored["head_hash"]) == (len(rows), head)
    assert_balances(stored, accounts)
    assert [row["create_time"] for row in rows] == sorted(row["create_time"] for row in rows)


def assert_balances(row: Any, accounts: dict[Account, int]) -> None:
    """Balances are what the transfers add up to; what is owed is a debit."""
    mine = {account: n for account, n in accounts.items() if not account.startswith("issuer/")}
    mine[Account.OWED] = -mine[Account.OWED]
    assert all(row[account.value] == n >= 0 for account, n in mine.items())
    assert sum(accounts.values()) == 0


async def check_lots(connection: Connection, member: str, stored: Any) -> None:
    """What is left of the lots is what the member has, and what is not left was taken by somebody."""
    lots = await of_member(connection, "lots", member, "seq")
    uses = await of_member(connection, "lot_uses", member, "seq")
    held = sum(lot["held"] for lot in lots)
    assert held == stored["held"]
    assert stored["available"] + held == sum(lot["remaining"] for lot in lots if not lot["pending"])
    assert stored["pending"] == sum(lot["remaining"] for lot in lots if lot["pending"])
    for lot in lots:
        name = (lot["seq"], lot["part"])
        taken = sum(use["amount"] for use in uses if (use["lot_seq"], use["lot_part"]) == name)
        assert 0 <= lot["remaining"] == lot["amount"] - taken


def check_events(events: Sequence[Any], rows: Sequence[Any], book: Book) -> None:
    """Each transaction is announced; what else is announced is what the model has; versions have no gaps."""
    messages = [read_event(event) for event in events]
    assert [message.version for message in messages] == list(range(1, len(messages) + 1))
    posted = [m.transaction.transaction_id for m in messages if isinstance(m, epb.PointsPosted)]
    assert posted == [row["transaction_id"] for row in rows]
    others = [said(message) for message in messages if not isinstance(message, epb.PointsPosted)]
    assert sorted(others, key=repr) == sorted(book.announced, key=repr)
    notices = [(m.expire_time.ToDatetime(), m.occur_time.ToDatetime()) for m in messages if _is_notice(m)]
    assert len(set(notices)) == len(notices)
    assert all(ends - told in (timedelta(days=30), timedelta(days=7)) for ends, told in notices)


def read_event(row: Any) -> Any:
    """An event as the message that it is."""
    return getattr(epb, row["subject"].rsplit(".", 1)[-1]).FromString(row["body"])


def _is_notice(message: Any) -> bool:
    return isinstance(message, epb.PointsExpiring)


def said(message: Any) -> tuple[Any, ...]:
    """An event in the model's words."""
    name = type(message).__name__
    match message:
        case epb.PointsExpiring():
            return (name, instant(message.occur_time), message.amount, instant(message.expire_time))
        case epb.TierChanged():
            until = instant(message.valid_until_time) if message.HasField("valid_until_time") else None
            reason = epb.TierChangeReason.Name(message.reason).removeprefix("TIER_CHANGE_REASON_")
            return (name, message.from_tier, message.to_tier, reason, message.growth, until)
        case epb.HoldPlaced():
            return (name, message.hold.amount, instant(message.hold.expire_time))
        case epb.HoldCaptured():
            return (name, message.hold.captured)
        case epb.HoldReleased():
            return (name, pb.HoldState.Name(message.hold.state).removeprefix("HOLD_STATE_"))
        case epb.HoldRefused():
            return (name, message.amount)
        case epb.TransferSent():
            parts = ((p.amount, _ends(p)) for p in message.points)
            return (name, message.transfer_id, message.to_member_id, tuple(parts))
        case epb.TransferReturned():
            return (name, message.transfer_id)
        case epb.RewardFulfilled() | epb.FulfilmentRefused():
            return (name, message.reward_id)
    return (name,)


def _ends(part: epb.SentPoints) -> datetime:
    return instant(part.expire_time) if part.HasField("expire_time") else FOREVER


# --- the run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with Postgres.start(data / "postgres", settings={"fsync": "off"}) as server:
        migrations.upgrade(server.url(), MIGRATIONS, tables.metadata, grants=[])
        yield server.url()


async def open_database(url: str) -> Database:
    database = await Database.open(url, size=2, name="ledger-machine")
    async with database.begin() as connection:
        for version, terms in enumerate(PROGRAMMES, 1):
            await store.add_programme(
                connection,
                version=version,
                effective_time=terms.effective,
                create_time=terms.effective,
                author="a test",
                body=programme(version, terms).SerializeToString(),
            )
    return database


def test_the_service_keeps_the_books_of_a_plain_model(url: str) -> None:
    loop = asyncio.new_event_loop()
    try:
        database = loop.run_until_complete(open_database(url))
        LedgerMachine.database, LedgerMachine.loop = database, loop
        LedgerMachine.url, LedgerMachine.programmes = url, Programmes()
        run_state_machine_as_test(
            LedgerMachine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
        loop.run_until_complete(database.close())
    finally:
        loop.close()
