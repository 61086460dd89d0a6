"""Use cases, one function per verb, inside the caller's transaction; none commits.

A batch of commands is *lock, fold, save*: everything it may depend on is locked and read at once, each
command folds over that state in the order of arrival, and what changed is written with a statement per
table. A command that is refused leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from datetime import date, datetime
from typing import TypeVar

from services.chassis import outbox
from services.chassis.clock import wall
from services.chassis.database import Connection
from services.chassis.errors import RequestIdReused, ServiceError
from services.chassis.ids import numbered_id, own_request_id
from services.chassis.inbox import InboxKey
from services.points import events, store
from services.points.domain import ledger
from services.points.domain.earning import Scope
from services.points.domain.ledger import Balances, Gain, Member, Posting, Transaction, TransactionKind, Unit
from services.points.errors import (
    ActivityAlreadyEarned,
    CurrencyFixed,
    CurrencyMismatch,
    EffectiveTimePast,
    InsufficientGrowth,
    InsufficientPoints,
    MemberUnknown,
    NoProgramme,
    OrderAlreadyEarned,
    TimeZoneFixed,
)
from services.points.rules import Programme, Programmes, Source
from services.points.store import Changes, Entry, Seen, Wanted

FIXED = "~fixed"  # names the contribution of an amount that no rule gave


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something asked of one member. `event` is set where an event asks."""

    member_id: str
    request_id: str
    payload_hash: bytes
    actor: str
    occur_time: datetime | None = None
    may_backdate: bool = False
    event: InboxKey | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earn(Command):
    """Credit what the rules give."""

    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class EarnFixed(Command):
    """Credit an amount that the caller decided."""

    unit: Unit
    amount: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeem(Command):
    """Spend points."""

    amount: int
    reference_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjust(Command):
    """Correct a balance."""

    unit: Unit
    amount: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """Post what has fallen due, and nothing else."""


Answer = Transaction | ServiceError | None


async def post(
    connection: Connection, commands: Sequence[Command], programmes: Programmes, epoch: int, at: datetime
) -> tuple[list[Answer], int]:
    """Applies commands of any members in order of arrival, at business time `at`.

    Answers each with its transaction, its error, or None (nothing to post: the event was applied before,
    or nothing was due), and says how many events went to the outbox.
    """
    seen = await store.lock(connection, _wanted(commands), at)
    programme = await _programme(connection, programmes, seen.head)
    if programme is not None and programme.has_daily_caps:
        seen.caps = await store.caps(connection, _days(commands, programme.terms))
    batch = _Batch(seen, programme, epoch, at)
    answers = [batch.answer(command) for command in commands]
    received = wall()
    await store.save(connection, batch.changes(), received)
    await store.OUTBOX.add(connection, batch.announcements, received)
    return answers, len(batch.announcements)


async def programme_in_force(
    connection: Connection, programmes: Programmes, at: datetime
) -> Programme | None:
    """The version in force at `at`, read in this transaction, compiled at most once."""
    return await _programme(connection, programmes, await store.head_version(connection, at))


async def _programme(connection: Connection, programmes: Programmes, version: int | None) -> Programme | None:
    if version is None:
        return None
    programme = programmes.get(version)
    if programme is None:
        row = await store.programme(connection, version)
        assert row is not None  # noqa: S101 - versions are never deleted
        programme = programmes.keep(row["body"])
    return programme


def _days(commands: Sequence[Command], terms: ledger.Terms) -> set[tuple[str, date]]:
    """The members' local days on which something may count against a cap."""
    return {
        (command.member_id, terms.local_day(command.occur_time or command.source.occur_time))
        for command in commands
        if isinstance(command, Earn)
    }


def _wanted(commands: Sequence[Command]) -> Wanted:
    wanted = Wanted()
    for command in commands:
        member = command.member_id
        taking = isinstance(command, Redeem | Settle) or (isinstance(command, Adjust) and command.amount < 0)
        (wanted.debits if taking else wanted.credits).add(member)
        wanted.requests.add((member, command.request_id))
        if command.event is not None:
            wanted.events.append(command.event)
        if isinstance(command, Earn):
            source = command.source
            kind = wanted.activities if source.scope is Scope.ACTIVITY else wanted.orders
            kind.add((member, source.id))
    return wanted


class _Batch:
    """The state that a batch folds over, and what it did."""

    def __init__(self, seen: Seen, programme: Programme | None, epoch: int, at: datetime) -> None:
        self._seen = seen
        self._programme = programme
        self._epoch = epoch
        self._at = at
        self._changed: dict[str, Member] = {}
        self._touched: dict[tuple[str, int, int], tuple[str, ledger.Lot]] = {}
        self._changes = Changes()
        self.announcements: list[outbox.Event] = []

    def changes(self) -> Changes:
        """What is to be saved."""
        self._changes.members = list(self._changed.values())
        self._changes.lots = list(self._touched.values())
        self._changes.unborn = [m.member_id for m in self._seen.members.values() if not m.seq]
        return self._changes

    def answer(self, command: Command) -> Answer:
        """Folds one command over the state."""
        event = command.event
        if event is not None and event[:4] in self._seen.events:
            return None
        try:
            answer = self._known(command) or self._apply(command)
        except ServiceError as refusal:
            return refusal
        if event is not None:
            self._seen.events.add(event[:4])
            self._changes.events.append(event)
        return answer

    def _known(self, command: Command) -> Transaction | None:
        """The first answer to a repeated request, order or activity; it comes before any rule."""
        first = self._seen.requests.get((command.member_id, command.request_id))
        if first is not None:
            if first.payload_hash != command.payload_hash:
                raise RequestIdReused(request_id=command.request_id)
            return first
        if not isinstance(command, Earn):
            return None
        source = command.source
        activity = source.scope is Scope.ACTIVITY
        earned = (self._seen.activities if activity else self._seen.orders).get(
            (command.member_id, source.id)
        )
        if earned is None:
            return None
        if earned[1] != source.body_hash:
            if activity:
                raise ActivityAlreadyEarned(activity_id=source.id, transaction_id=earned[0].transaction_id)
            raise OrderAlreadyEarned(order_id=source.id, transaction_id=earned[0].transaction_id)
        return earned[0]

    def _apply(self, command: Command) -> Transaction | None:
        occur = self._occur_time(command)
        member = self._seen.members.get(command.member_id)
        if member is None:
            return self._refuse_unknown(command)
        # What is due happened before this command; if the command is refused it waits for the next one.
        settled = _copy(member)
        pending = [
            (moment, posting, self._settle(settled, moment, posting))
            for moment, posting in ledger.due(settled, self._at)
        ]
        posting = self._posting(command, settled, occur)
        if posting is None and not pending:
            return None
        self._seen.members[command.member_id] = self._changed[command.member_id] = settled
        for moment, due, transaction in pending:
            self._record(settled, due, Entry(transaction), moment, command.traceparent)
        if posting is None:
            return pending[-1][2]
        return self._post(command, settled, posting, occur)

    def _occur_time(self, command: Command) -> datetime:
        stated = command.occur_time
        if stated is None:
            stated = command.source.occur_time if isinstance(command, Earn) else self._at
        ledger.check_occur_time(stated, self._at, may_backdate=command.may_backdate)
        return stated

    @staticmethod
    def _refuse_unknown(command: Command) -> None:
        match command:
            case Redeem():
                raise InsufficientPoints(available=0, requested=command.amount)
            case Adjust(unit=Unit.POINTS):
                raise InsufficientPoints(available=0, requested=-command.amount)
            case Adjust():
                raise InsufficientGrowth(growth=0, requested=-command.amount)

    def _posting(self, command: Command, member: Member, occur: datetime) -> Posting | None:
        match command:
            case Earn():
                return self._earn(command, member, occur)
            case EarnFixed():
                gain = Gain(FIXED, command.unit, command.amount)
                return ledger.earn(member, [gain], self._require_programme().terms, occur)
            case Redeem():
                return ledger.redeem(member, command.amount)
            case Adjust():
                terms = self._require_programme().terms
                return ledger.adjust(member, command.unit, command.amount, terms, occur)
        return None

    def _earn(self, command: Earn, member: Member, occur: datetime) -> Posting:
        programme = self._require_programme()
        source, terms = command.source, programme.terms
        check_currency(source, terms)
        day = terms.local_day(occur)
        used = self._seen.caps.setdefault((command.member_id, day), {})
        gains = programme.gains(source, occur, member.tier, {}, used)
        posting = ledger.earn(member, gains, terms, occur)
        for gain in gains:
            if gain.counts_against_day and gain.amount:
                used[gain.rule_id] = used.get(gain.rule_id, 0) + gain.amount
                _add(self._changes.caps, (command.member_id, gain.rule_id, day), gain.amount)
        return posting

    def _require_programme(self) -> Programme:
        if self._programme is None:
            raise NoProgramme
        return self._programme

    def _settle(self, member: Member, moment: datetime, posting: Posting) -> Transaction:
        lots = [lot for lot, _ in posting.uses] + posting.matured
        names = ",".join(f"{lot.seq}.{lot.part}" for lot in lots)
        request_id = own_request_id(posting.kind, moment.isoformat(), names)
        return ledger.post(member, posting, _draft(member, request_id, b"", "due", occur=moment, at=self._at))

    def _post(self, command: Command, member: Member, posting: Posting, occur: datetime) -> Transaction:
        draft = _draft(
            member, command.request_id, command.payload_hash, command.actor, occur=occur, at=self._at
        )
        entry = Entry(draft)
        match command:
            case Earn(source=source):
                if source.scope is Scope.ACTIVITY:
                    draft.activity_id, earned = source.id, self._seen.activities
                else:
                    draft.order_id, earned = source.id, self._seen.orders
                earned[command.member_id, source.id] = (draft, source.body_hash)
                entry.source, entry.source_hash = source.body, source.body_hash
                entry.facts = {"tier": member.tier, "facts": {}}
            case Redeem():
                draft.reference_id = command.reference_id
            case EarnFixed() | Adjust():
                entry.note = command.reason
        ledger.post(member, posting, draft)
        self._record(member, posting, entry, occur, command.traceparent)
        self._seen.requests[command.member_id, command.request_id] = draft
        return draft

    def _record(
        self, member: Member, posting: Posting, entry: Entry, occur: datetime, traceparent: str
    ) -> None:
        entry.uses = posting.uses
        self._changes.entries.append(entry)
        for lot in (*posting.lots, *(lot for lot, _ in posting.uses), *posting.matured):
            self._touched[member.member_id, lot.seq, lot.part] = (member.member_id, lot)
        growth = sum(
            m.amount if m.credit is ledger.Account.GROWTH else -m.amount
            for m in posting.transfers
            if m.unit is Unit.GROWTH
        )
        if growth and self._programme is not None:
            _add(self._changes.growth, (member.member_id, self._programme.terms.local_day(occur)), growth)
        version = member.version - (member.seq - entry.transaction.seq)
        self.announcements.append(events.points_posted(entry.transaction, self._epoch, version, traceparent))


Key = TypeVar("Key")


def _add(counters: dict[Key, int], key: Key, amount: int) -> None:
    counters[key] = counters.get(key, 0) + amount


def _copy(member: Member) -> Member:
    """A working copy: what folds over it is dropped if the command is refused."""
    working = copy(member)
    working.balances = dict(member.balances)
    working.lots = [copy(lot) for lot in member.lots]
    return working


def _draft(
    member: Member, request_id: str, payload_hash: bytes, actor: str, *, occur: datetime, at: datetime
) -> Transaction:
    return Transaction(
        transaction_id=numbered_id("txn", member.seq + 1),
        member_id=member.member_id,
        kind=TransactionKind.EARN,
        request_id=request_id,
        payload_hash=payload_hash,
        order_id="",
        activity_id="",
        reference_id="",
        reverses_transaction_id="",
        occur_time=occur,
        create_time=at,
        programme_version=0,
        seq=0,
        transfers=(),
        contributions=(),
        balance=Balances(),
        actor=actor,
    )


def check_currency(source: Source, terms: ledger.Terms) -> None:
    """An order earns in the programme's currency only. Raises CurrencyMismatch."""
    if source.currency_code is not None and source.currency_code != terms.currency_code:
        raise CurrencyMismatch(order=source.currency_code, programme=terms.currency_code)


async def quote(
    connection: Connection,
    member_id: str,
    source: Source,
    programmes: Programmes,
    *,
    occur_time: datetime | None,
    may_backdate: bool,
    at: datetime,
) -> tuple[Programme, list[Gain]]:
    """What an earn would give now; nothing is written."""
    occur = occur_time or source.occur_time
    ledger.check_occur_time(occur, at, may_backdate=may_backdate)
    programme = await programme_in_force(connection, programmes, at)
    if programme is None:
        raise NoProgramme
    check_currency(source, programme.terms)
    found = await store.read_members(connection, [member_id])
    member = found.get(member_id) or ledger.new_member(member_id)
    today = (member_id, programme.terms.local_day(occur))
    used = (await store.caps(connection, [today])).get(today, {})
    gains = programme.gains(source, occur, member.tier, {}, used)
    ledger.earn(member, gains, programme.terms, occur)  # refuses what EarnPoints would refuse
    return programme, gains


async def balances(connection: Connection, member_ids: Sequence[str], at: datetime) -> list[Member | None]:
    """Members as of `at`: what is due is folded in, and nothing is written."""
    found = await store.read_members(connection, set(member_ids))
    for member in found.values():
        for _moment, posting in ledger.due(member, at):
            member.apply(posting)
    return [found.get(member_id) for member_id in member_ids]


async def next_programme(
    connection: Connection, effective: datetime | None, time_zone: str, currency_code: str, at: datetime
) -> tuple[int, datetime]:
    """Number and effective time of the version to be put.

    Raises EffectiveTimePast, TimeZoneFixed, CurrencyFixed.
    """
    last = await store.lock_last_programme(connection)
    effective = effective or at
    if effective < at or (last is not None and effective < last["effective_time"]):
        floor = at if last is None else max(at, last["effective_time"])
        raise EffectiveTimePast(effective_time=effective.isoformat(), not_before=floor.isoformat())
    if last is None:
        return 1, effective
    if await store.any_transaction(connection):
        terms = Programmes().keep(last["body"]).terms
        if terms.zone.key != time_zone:
            raise TimeZoneFixed(time_zone=terms.zone.key)
        if terms.currency_code != currency_code:
            raise CurrencyFixed(currency_code=terms.currency_code)
    return last["version"] + 1, effective


async def erase(connection: Connection, member_id: str, at: datetime) -> tuple[int, int, int]:
    """Removes a member's free text, sources and events. Raises MemberUnknown."""
    seen = await store.lock(connection, Wanted(debits={member_id}), at)
    if member_id not in seen.members:
        raise MemberUnknown
    return await store.erase(connection, member_id)
