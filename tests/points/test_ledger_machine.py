"""The real service on a real database against a plain model, driven by Hypothesis.

The model keeps the facts that were accepted and works balances out from them afresh each time: points with
a beginning and an end, of which spending takes what ends first. HYPOTHESIS_EXAMPLES raises how often it runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted

from services.chassis import migrations
from services.chassis.database import Connection, Database
from services.chassis.errors import RequestIdReused, ServiceError
from services.cli.servers import Postgres
from services.points import service, store, tables
from services.points.domain import ledger
from services.points.domain.ledger import Account, Member, Transaction, Unit
from services.points.errors import (
    BackdatingNeedsAdmin,
    InsufficientGrowth,
    InsufficientPoints,
    OccurTimeAhead,
    OrderAlreadyEarned,
)
from services.points.rules import Programmes, read_order
from services.points.service import Adjust, Command, Earn, EarnFixed, Redeem, Settle
from tests.support import fresh, order

pytestmark = pytest.mark.xdist_group("ledger-machine")

T = TypeVar("T")
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "30"))
MIGRATIONS = Path(service.__file__).parent / "migrations"
ZONE = ZoneInfo("America/New_York")  # a zone with summer time
BONUS, BONUS_A_DAY = 5, 8
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)

# Which programme an example meets depends on when it begins; the one that begins late meets both.
FIRST, SECOND = datetime(2026, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
STARTS = [datetime(2026, 2, 27, 16, tzinfo=UTC), SECOND - timedelta(days=9), SECOND + timedelta(days=300)]


def programme(version: int, effective: datetime, **terms: Any) -> pb.Programme:
    """A point and a growth for each yuan, and a bonus on coffee that lives for two months."""
    common = {"scope": "RULE_SCOPE_ORDER", "stack": "RULE_STACK_ADD"}
    per = {"amount_minor": 100, "points": 1}
    message = ParseDict(
        {
            "time_zone": ZONE.key,
            "currency_code": "CNY",
            "earn_rules": [
                {**common, "rule_id": "base", "unit": "UNIT_POINTS", "per": per},
                {**common, "rule_id": "growth", "unit": "UNIT_GROWTH", "per": per},
                {
                    **common,
                    "rule_id": "bonus",
                    "scope": "RULE_SCOPE_LINE",
                    "unit": "UNIT_POINTS",
                    "when": "line.category == 'coffee'",
                    "fixed": BONUS,
                    "cap_per_day": BONUS_A_DAY,
                    "expiry": {"rolling_months": 2},
                },
            ],
            **terms,
        },
        pb.Programme(version=version),
    )
    message.effective_time.FromDatetime(effective)
    return message


PROGRAMMES = [
    programme(1, FIRST, expiry={"rolling_months": 1}),
    programme(2, SECOND, expiry={"calendar_years": 0}, pending_days=3),
]


# --- the model ----------------------------------------------------------------------------------------


@dataclass
class Points:
    """An amount that can be spent from one instant until before another."""

    begins: datetime
    ends: datetime
    left: int

    def lives(self, at: datetime) -> bool:
        return at < self.ends


@dataclass(frozen=True)
class Fact:
    """A command that was accepted, and when."""

    command: Command
    posted: datetime

    @property
    def occur(self) -> datetime:
        if isinstance(self.command, Earn):
            return self.command.occur_time or self.command.source.occur_time
        return self.command.occur_time or self.posted

    @property
    def day(self) -> date:
        return self.occur.astimezone(ZONE).date()

    def midnight(self, day: date) -> datetime:
        return datetime(day.year, day.month, day.day, tzinfo=ZONE).astimezone(UTC)

    def months_later(self, months: int) -> datetime:
        year, month = divmod(self.day.year * 12 + self.day.month - 1 + months, 12)
        for day in range(self.day.day, 0, -1):
            try:
                return self.midnight(date(year, month + 1, day) + timedelta(days=1))
            except ValueError:
                continue
        raise AssertionError

    def points(self, amount: int, *, bonus: bool = False, waits: bool = True) -> Points:
        """What this fact credits, by the programme in force when it was posted."""
        late = self.posted >= SECOND
        begins = self.midnight(self.day + timedelta(days=3)) if late and waits else FIRST
        end_of_year = self.midnight(date(self.day.year + 1, 1, 1))
        ends = self.months_later(2 if bonus else 1) if bonus or not late else end_of_year
        return Points(begins, ends, amount)


@dataclass
class Expected:
    """A member's balances as the facts have them."""

    available: int = 0
    pending: int = 0
    growth: int = 0
    lifetime_earned: int = 0


def has_coffee(fact: Fact) -> bool:
    return isinstance(fact.command, Earn) and b"coffee" in fact.command.source.body


def bonus_of(fact: Fact, earlier: Sequence[Fact]) -> int:
    """What the bonus rule gives: no more than is left of the fact's local day."""
    used = BONUS * sum(other.day == fact.day for other in earlier if has_coffee(other))
    return min(BONUS, max(0, BONUS_A_DAY - used)) if has_coffee(fact) else 0


def work_out(facts: Sequence[Fact], at: datetime) -> Expected:
    """Balances at `at`, from the facts alone."""
    pots: list[Points] = []
    balance = Expected()
    for number, fact in enumerate(facts):
        taken = 0
        match fact.command:
            case Earn(source=source):
                whole = source.basis.total // 100
                bonus = bonus_of(fact, facts[:number])
                pots += [fact.points(whole), fact.points(bonus, bonus=True)]
                balance.lifetime_earned += whole + bonus
                balance.growth += whole
            case EarnFixed(unit=Unit.POINTS, amount=amount):
                pots.append(fact.points(amount))
                balance.lifetime_earned += amount
            case Adjust(unit=Unit.POINTS, amount=amount) if amount > 0:
                pots.append(fact.points(amount, waits=False))
            case Adjust(unit=Unit.POINTS, amount=amount):
                taken = -amount
            case EarnFixed(amount=amount) | Adjust(amount=amount):
                balance.growth += amount
            case Redeem(amount=amount):
                taken = amount
        usable = [pot for pot in pots if pot.begins <= fact.posted < pot.ends]
        for pot in sorted(usable, key=lambda pot: pot.ends):
            part = min(pot.left, taken)
            pot.left -= part
            taken -= part
        assert not taken
    balance.available = sum(pot.left for pot in pots if pot.begins <= at < pot.ends)
    balance.pending = sum(pot.left for pot in pots if at < pot.begins and pot.lives(at))
    return balance


# --- commands -----------------------------------------------------------------------------------------

WHO = st.integers(0, 1)
ages = st.sampled_from([0, 0, 0, 1, 5, 20, 29, 31, 45, -1])  # days before now
amounts = st.integers(1, 60)
new_commands = st.one_of(
    st.tuples(st.just("order"), WHO, st.integers(0, 9_000), st.booleans(), ages, st.booleans()),
    st.tuples(st.just("fixed"), WHO, st.sampled_from(Unit), amounts, ages, st.booleans()),
    st.tuples(st.just("redeem"), WHO, amounts),
    st.tuples(
        st.just("adjust"), WHO, st.sampled_from(Unit), amounts.flatmap(lambda n: st.sampled_from([n, -n]))
    ),
)
repeats = st.tuples(
    st.sampled_from(["again", "other payload", "same order", "other order"]), st.integers(0, 10**6)
)


def payload(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def repeat(kind: str, first: Command) -> Command:
    """A command like the first one, whether that was accepted or not."""
    if kind == "again":
        return first
    if kind == "other payload" or not isinstance(first, Earn):
        return replace(first, payload_hash=payload(kind))
    source = first.source
    if kind == "other order":
        source = read_order(order(source.basis.total + 1, source.occur_time, order_id=source.id))
    return replace(first, request_id=fresh("request"), payload_hash=payload(kind), source=source)


class LedgerMachine(RuleBasedStateMachine):
    """Posts batches, moves the clock, and compares."""

    database: ClassVar[Database]
    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.programmes = Programmes()
        self.now = FIRST
        self.members = [fresh("member") for _ in range(2)]
        self.facts: dict[str, list[Fact]] = {member: [] for member in self.members}
        self.accepted: list[tuple[Command, Transaction]] = []

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(start=st.sampled_from(STARTS))
    def begin(self, start: datetime) -> None:
        self.now = start

    @rule(days=st.sampled_from([0, 1, 2, 3, 10, 30, 40]), hours=st.integers(0, 23))
    def time_passes(self, days: int, hours: int) -> None:
        self.now += timedelta(days=days, hours=hours)

    @rule(wanted=st.lists(st.one_of(new_commands, new_commands, repeats), min_size=1, max_size=8))
    def a_batch_is_posted(self, wanted: list[tuple[Any, ...]]) -> None:
        commands: list[Command] = []
        for each in wanted:
            commands += self.command(each, commands)
        self.play(commands)

    @rule(who=WHO, totals=st.lists(st.integers(0, 9_000), min_size=2, max_size=4))
    def coffee_is_bought_at_once(self, who: int, totals: list[int]) -> None:
        """So that one batch meets a daily cap more than once."""
        orders = [("order", who, total, True, 0, False) for total in totals]
        self.play([command for each in orders for command in self.command(each, [])])

    def play(self, commands: Sequence[Command]) -> None:
        answers = self.wait(self.post(commands))
        for command, answer in zip(commands, answers, strict=True):
            self.check_answer(command, answer)

    @rule(who=WHO)
    def what_is_due_is_swept(self, who: int) -> None:
        sweep = Settle(member_id=self.members[who], request_id=fresh("~due"), payload_hash=b"", actor="due")
        self.wait(self.post([sweep]))

    @invariant()
    def balances_are_those_of_the_model(self) -> None:
        for member, found in zip(self.members, self.wait(self.read()), strict=True):
            if found is None:
                assert not self.facts[member]
            else:
                assert seen(found) == work_out(self.facts[member], self.now), member

    def teardown(self) -> None:
        for who in range(len(self.members)):
            self.what_is_due_is_swept(who)
        self.wait(self.check_books())

    async def post(self, commands: Sequence[Command]) -> list[Any]:
        async with self.database.begin() as connection:
            answers, _ = await service.post(connection, commands, self.programmes, 1, self.now)
        return answers

    async def read(self) -> list[Member | None]:
        async with self.database.read() as connection:
            return await service.balances(connection, self.members, self.now)

    # --- what is asked, and what must come of it ------------------------------------------------------

    def command(self, wanted: tuple[Any, ...], batch: Sequence[Command]) -> list[Command]:
        """None where there is nothing yet to repeat; `batch` goes ahead of it."""
        match wanted:
            case ["order", who, total, coffee, age, admin]:
                bought = order(total, self.now - timedelta(days=age), category="coffee" if coffee else "tea")
                common = self.common(who, wanted, admin=admin)
                return [Earn(**common, source=read_order(bought))]
            case ["fixed", who, unit, amount, age, admin]:
                occur = self.now - timedelta(days=age)
                common = self.common(who, wanted, occur_time=occur, admin=admin)
                return [EarnFixed(**common, unit=unit, amount=amount, reason="a gift")]
            case ["redeem", who, amount]:
                return [Redeem(**self.common(who, wanted), amount=amount, reference_id="a meal")]
            case ["adjust", who, unit, amount]:
                return [Adjust(**self.common(who, wanted), unit=unit, amount=amount, reason="a mistake")]
        kind, which = wanted
        known = [*(command for command, _ in self.accepted), *batch]
        if kind in ("same order", "other order"):
            known = [command for command in known if isinstance(command, Earn)]
        return [repeat(kind, known[which % len(known)])] if known else []

    def common(
        self, who: int, wanted: object, *, occur_time: datetime | None = None, admin: bool = False
    ) -> dict[str, Any]:
        return {
            "member_id": self.members[who],
            "request_id": fresh("request"),
            "payload_hash": payload(wanted, self.now),
            "actor": "a test",
            "occur_time": occur_time,
            "may_backdate": admin,
        }

    def check_answer(self, command: Command, answer: Transaction | ServiceError) -> None:
        for first, transaction in self.accepted:
            if (first.member_id, first.request_id) == (command.member_id, command.request_id):
                if first.payload_hash == command.payload_hash:
                    assert answer == transaction
                else:
                    assert isinstance(answer, RequestIdReused)
                return
            if isinstance(first, Earn) and isinstance(command, Earn) and first.source.id == command.source.id:
                if first.source.body == command.source.body:
                    assert answer == transaction
                else:
                    assert isinstance(answer, OrderAlreadyEarned)
                return
        fact = Fact(command, self.now)
        refusal = self.refusal(fact)
        if refusal:
            assert type(answer) is refusal
        else:
            assert isinstance(answer, Transaction), answer
            self.accepted.append((command, answer))
            self.facts[command.member_id].append(fact)

    def refusal(self, fact: Fact) -> type[ServiceError] | None:
        if fact.occur > self.now + timedelta(minutes=5):
            return OccurTimeAhead
        if fact.occur < self.now - timedelta(days=30) and not fact.command.may_backdate:
            return BackdatingNeedsAdmin
        balance = work_out(self.facts[fact.command.member_id], self.now)
        match fact.command:
            case Redeem(amount=amount) if amount > balance.available:
                return InsufficientPoints
            case Adjust(unit=Unit.POINTS, amount=amount) if -amount > balance.available:
                return InsufficientPoints
            case Adjust(unit=Unit.GROWTH, amount=amount) if -amount > balance.growth:
                return InsufficientGrowth
        return None

    # --- the books ------------------------------------------------------------------------------------

    async def check_books(self) -> None:
        async with self.database.read() as connection:
            for member in self.members:
                rows = await of_member(connection, "transactions", member, "seq")
                (stored,) = await of_member(connection, "members", member, "seq") or [None]
                asked = [row["request_id"] for row in rows if not row["request_id"].startswith("~")]
                assert asked == [fact.command.request_id for fact in self.facts[member]]
                assert (stored is None) == (not rows)
                if stored is not None:
                    check_ledger(rows, stored)
                    await check_lots(connection, member, stored)
                    assert seen(stored) == work_out(self.facts[member], self.now)
                    events = await of_member(connection, "outbox", member, "position", "entity_key")
                    assert [version_of(event["body"]) for event in events] == [row["seq"] for row in rows]


def seen(balance: Any) -> Expected:
    """The balances of a member, or of a member's row."""
    if isinstance(balance, Member):
        balance = {**balance.balances, "lifetime_earned": balance.lifetime_earned}
    assert balance["held"] == balance["owed"] == 0
    return Expected(*(balance[name] for name in ("available", "pending", "growth", "lifetime_earned")))


def version_of(body: bytes) -> int:
    return PointsPosted.FromString(body).version


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
        mine = {account: n for account, n in accounts.items() if not account.startswith("issuer/")}
        assert all(row[account.value] == n >= 0 for account, n in mine.items())
    assert (stored["seq"], stored["version"], stored["head_hash"]) == (len(rows), len(rows), head)
    assert all(stored[account.value] == n for account, n in mine.items())
    assert [row["create_time"] for row in rows] == sorted(row["create_time"] for row in rows)


async def check_lots(connection: Connection, member: str, stored: Any) -> None:
    """What is left of the lots is what the member has, and what is not left was taken by somebody."""
    lots = await of_member(connection, "lots", member, "seq")
    uses = await of_member(connection, "lot_uses", member, "seq")
    for account, pending in (("available", False), ("pending", True)):
        assert stored[account] == sum(lot["remaining"] for lot in lots if lot["pending"] is pending)
    for lot in lots:
        name = (lot["seq"], lot["part"])
        taken = sum(use["amount"] for use in uses if (use["lot_seq"], use["lot_part"]) == name)
        assert 0 <= lot["remaining"] == lot["amount"] - taken


# --- the run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with Postgres.start(data / "postgres", settings={"fsync": "off"}) as server:
        migrations.upgrade(server.url(), MIGRATIONS, tables.metadata, grants=[])
        yield server.url()


async def open_database(url: str) -> Database:
    database = await Database.open(url, size=2, name="ledger-machine")
    async with database.begin() as connection:
        for version in PROGRAMMES:
            await store.add_programme(
                connection,
                version=version.version,
                effective_time=version.effective_time.ToDatetime(UTC),
                create_time=FIRST,
                author="a test",
                body=version.SerializeToString(),
            )
    return database


def test_the_service_keeps_the_books_of_a_plain_model(url: str) -> None:
    loop = asyncio.new_event_loop()
    try:
        database = loop.run_until_complete(open_database(url))
        LedgerMachine.database, LedgerMachine.loop = database, loop
        run_state_machine_as_test(
            LedgerMachine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        loop.run_until_complete(database.close())
    finally:
        loop.close()
