"""What happens to a member, or why not. Pure: no clock, no database, no messages.

Words: a *transaction* is one business fact with its *transfers*; a *lot* is what is left of one earn; what
*falls due* (points that mature or expire) is posted before anything else touches the member.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from services.points.errors import (
    BackdatingNeedsAdmin,
    BalanceLimit,
    InsufficientGrowth,
    InsufficientPoints,
    OccurTimeAhead,
)

MAX_BALANCE = 10**18
MAX_AHEAD = timedelta(minutes=5)
MAX_BACK = timedelta(days=30)
HASH_VERSION = 1
NEVER = datetime(9999, 12, 31, tzinfo=UTC)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Unit(StrEnum):
    """What is counted."""

    POINTS = "POINTS"
    GROWTH = "GROWTH"


class Account(StrEnum):
    """One side of a transfer: a member's sub-account, or a counter-account of the issuer."""

    AVAILABLE = "available"
    PENDING = "pending"
    HELD = "held"
    OWED = "owed"
    GROWTH = "growth"
    ISSUER_EARNED = "issuer/earned"
    ISSUER_REDEEMED = "issuer/redeemed"
    ISSUER_EXPIRED = "issuer/expired"
    ISSUER_ADJUSTED = "issuer/adjusted"
    ISSUER_WRITTEN_OFF = "issuer/written_off"
    ISSUER_IN_TRANSIT = "issuer/in_transit"


class TransactionKind(StrEnum):
    """Which business fact a transaction records."""

    EARN = "EARN"
    MATURE = "MATURE"
    REDEEM = "REDEEM"
    HOLD = "HOLD"
    CAPTURE = "CAPTURE"
    RELEASE = "RELEASE"
    EXPIRE = "EXPIRE"
    REVERSE = "REVERSE"
    REFUND = "REFUND"
    ADJUST = "ADJUST"
    SEND = "SEND"
    RECEIVE = "RECEIVE"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A positive amount of one unit, from the debit to the credit account."""

    unit: Unit
    debit: Account
    credit: Account
    amount: int


@dataclass(frozen=True, slots=True)
class Contribution:
    """Which rule gave what; `error` says why one that was asked gave nothing."""

    rule_id: str
    unit: Unit
    amount: int
    error: str = ""


@dataclass(slots=True)
class Lot:
    """What is left of one earn. Named by the earning transaction's seq and a part number."""

    seq: int
    part: int
    pending: bool
    available_at: datetime
    expires_at: datetime | None
    remaining: int
    stored: bool = False

    @property
    def spend_order(self) -> tuple[datetime, int, int]:
        """What expires first goes first, ties by age, what never expires last."""
        return (self.expires_at or NEVER, self.seq, self.part)

    @property
    def due_time(self) -> datetime | None:
        """When something happens to it by itself."""
        if not self.remaining:
            return None
        times = [self.expires_at, self.available_at if self.pending else None]
        return min((time for time in times if time is not None), default=None)


@dataclass(frozen=True, slots=True)
class Expiry:
    """Ends a lot with the last instant of a local day; exactly one of the two is set."""

    rolling_months: int | None = None
    calendar_years: int | None = None

    def ends(self, earned: date, zone: ZoneInfo) -> datetime:
        """The first instant at which points earned on a local day are gone."""
        if self.rolling_months is not None:
            last = add_months(earned, self.rolling_months)
        else:
            last = date(earned.year + (self.calendar_years or 0), 12, 31)
        return local_midnight(last + timedelta(days=1), zone)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a programme treats what is earned, whatever rule gave it."""

    version: int
    zone: ZoneInfo
    currency_code: str
    expiry: Expiry | None
    pending_days: int

    def local_day(self, at: datetime) -> date:
        """The programme's local day of an instant."""
        return at.astimezone(self.zone).date()


@dataclass(frozen=True, slots=True)
class Gain:
    """What one rule gives in a transaction, after caps and rounding."""

    rule_id: str
    unit: Unit
    amount: int
    expiry: Expiry | None = None
    counts_against_day: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Balances:
    """A member's stored balances."""

    available: int = 0
    pending: int = 0
    held: int = 0
    owed: int = 0
    growth: int = 0
    lifetime_earned: int = 0


@dataclass(slots=True)
class Transaction:
    """One business fact in the ledger. Times in UTC; `hash` chains it to the member's previous one.

    Not frozen, since `post` completes a draft; nothing changes it afterwards.
    """

    transaction_id: str
    member_id: str
    kind: TransactionKind
    request_id: str
    payload_hash: bytes
    order_id: str
    activity_id: str
    reference_id: str
    reverses_transaction_id: str
    occur_time: datetime
    create_time: datetime
    programme_version: int
    seq: int
    transfers: tuple[Transfer, ...]
    contributions: tuple[Contribution, ...]
    balance: Balances
    hash: bytes = b""
    actor: str = ""
    message: Any = field(default=None, compare=False, repr=False)
    """How the edge shows it, once made; nothing here looks at it."""


@dataclass(slots=True)
class Posting:
    """What a transaction does to a member, before it is numbered and chained."""

    kind: TransactionKind
    transfers: list[Transfer] = field(default_factory=list)
    contributions: list[Contribution] = field(default_factory=list)
    lots: list[Lot] = field(default_factory=list)
    uses: list[tuple[Lot, int]] = field(default_factory=list)
    matured: list[Lot] = field(default_factory=list)
    programme_version: int = 0


@dataclass(slots=True)
class Member:
    """A member's state while a transaction folds over it. `lots` are the live ones that are loaded."""

    member_id: str
    balances: dict[Account, int]
    lifetime_earned: int = 0
    seq: int = 0
    head_hash: bytes = b""
    version: int = 0
    tier: str = ""
    last_time: datetime = LONG_AGO
    next_due_time: datetime | None = None
    lots: list[Lot] = field(default_factory=list)
    unloaded_due_time: datetime | None = None
    """When the first of the lots that are not loaded falls due; whoever loads them takes it away."""

    @property
    def available(self) -> int:
        """Points that can be spent."""
        return self.balances[Account.AVAILABLE]

    def snapshot(self) -> Balances:
        """The balances as they stand."""
        b = self.balances
        return Balances(
            b[Account.AVAILABLE],
            b[Account.PENDING],
            b[Account.HELD],
            b[Account.OWED],
            b[Account.GROWTH],
            self.lifetime_earned,
        )

    def apply(self, posting: Posting) -> None:
        """Moves balances and lots; the only place that does."""
        for transfer in posting.transfers:
            if transfer.debit in self.balances:
                self.balances[transfer.debit] -= transfer.amount
            if transfer.credit in self.balances:
                self.balances[transfer.credit] += transfer.amount
                if posting.kind is TransactionKind.EARN and transfer.unit is Unit.POINTS:
                    self.lifetime_earned += transfer.amount
        for lot, amount in posting.uses:
            lot.remaining -= amount
        for lot in posting.matured:
            lot.pending = False
        self.lots.extend(posting.lots)
        times = [self.unloaded_due_time, *(lot.due_time for lot in self.lots)]
        self.next_due_time = min((time for time in times if time is not None), default=None)


def new_member(member_id: str) -> Member:
    """A member to whom nothing has happened yet."""
    accounts = (Account.AVAILABLE, Account.PENDING, Account.HELD, Account.OWED, Account.GROWTH)
    return Member(member_id, dict.fromkeys(accounts, 0))


def check_occur_time(occur: datetime, now: datetime, *, may_backdate: bool) -> None:
    """Facts may lie 5 minutes ahead and 30 days back. Raises OccurTimeAhead, BackdatingNeedsAdmin."""
    if occur > now + MAX_AHEAD:
        raise OccurTimeAhead(occur_time=occur.isoformat(), now=now.isoformat())
    if occur < now - MAX_BACK and not may_backdate:
        raise BackdatingNeedsAdmin(occur_time=occur.isoformat(), now=now.isoformat())


def due(member: Member, at: datetime) -> Iterator[tuple[datetime, Posting]]:
    """What has fallen due by `at`, in order of due time. Each posting must be applied before the next."""
    while member.next_due_time is not None and member.next_due_time <= at:
        moment = member.next_due_time
        falling = [lot for lot in member.lots if lot.due_time == moment]
        expired = [lot for lot in falling if lot.expires_at == moment]
        if expired:
            yield moment, _expire(expired)
        else:
            yield moment, _mature(falling)


def _expire(lots: list[Lot]) -> Posting:
    posting = Posting(TransactionKind.EXPIRE, uses=[(lot, lot.remaining) for lot in lots])
    for account, pending in ((Account.AVAILABLE, False), (Account.PENDING, True)):
        amount = sum(lot.remaining for lot in lots if lot.pending is pending)
        if amount:
            posting.transfers.append(Transfer(Unit.POINTS, account, Account.ISSUER_EXPIRED, amount))
    return posting


def _mature(lots: list[Lot]) -> Posting:
    amount = sum(lot.remaining for lot in lots)
    transfers = [Transfer(Unit.POINTS, Account.PENDING, Account.AVAILABLE, amount)] if amount else []
    return Posting(TransactionKind.MATURE, transfers=transfers, matured=lots)


def earn(member: Member, gains: Sequence[Gain], terms: Terms, occur: datetime) -> Posting:
    """Credits what the rules give: a lot for each expiry among the points, growth at once."""
    posting = Posting(TransactionKind.EARN, programme_version=terms.version)
    posting.contributions = [Contribution(g.rule_id, g.unit, g.amount, g.error) for g in gains]
    lots: dict[datetime | None, int] = {}
    growth = 0
    day = terms.local_day(occur)
    for gain in gains:
        if gain.unit is Unit.GROWTH:
            growth += gain.amount
        elif gain.amount:
            expiry = gain.expiry or terms.expiry
            ends = expiry.ends(day, terms.zone) if expiry else None
            lots[ends] = lots.get(ends, 0) + gain.amount
    pending = terms.pending_days > 0
    usable = local_midnight(day + timedelta(days=terms.pending_days), terms.zone) if pending else occur
    for part, (ends, amount) in enumerate(lots.items()):
        posting.lots.append(Lot(member.seq + 1, part, pending, usable, ends, amount))
    points = sum(lots.values())
    if points:
        account = Account.PENDING if pending else Account.AVAILABLE
        posting.transfers.append(Transfer(Unit.POINTS, Account.ISSUER_EARNED, account, points))
    if growth:
        posting.transfers.append(Transfer(Unit.GROWTH, Account.ISSUER_EARNED, Account.GROWTH, growth))
    _check_limit(member, points, growth)
    return posting


def redeem(member: Member, amount: int) -> Posting:
    """Takes points from the lots that expire first. Raises InsufficientPoints."""
    posting = Posting(TransactionKind.REDEEM, uses=_take(member, amount))
    posting.transfers.append(Transfer(Unit.POINTS, Account.AVAILABLE, Account.ISSUER_REDEEMED, amount))
    return posting


def adjust(member: Member, unit: Unit, amount: int, terms: Terms, occur: datetime) -> Posting:
    """Corrects a balance by a signed amount. Raises InsufficientPoints, InsufficientGrowth, BalanceLimit."""
    posting = Posting(TransactionKind.ADJUST, programme_version=terms.version)
    account = Account.AVAILABLE if unit is Unit.POINTS else Account.GROWTH
    if amount > 0:
        posting.transfers.append(Transfer(unit, Account.ISSUER_ADJUSTED, account, amount))
        if unit is Unit.POINTS:
            ends = terms.expiry.ends(terms.local_day(occur), terms.zone) if terms.expiry else None
            posting.lots.append(Lot(member.seq + 1, 0, False, occur, ends, amount))
        _check_limit(member, amount if unit is Unit.POINTS else 0, amount if unit is Unit.GROWTH else 0)
        return posting
    if unit is Unit.POINTS:
        posting.uses = _take(member, -amount)
    elif member.balances[Account.GROWTH] < -amount:
        raise InsufficientGrowth(growth=member.balances[Account.GROWTH], requested=-amount)
    posting.transfers.append(Transfer(unit, account, Account.ISSUER_ADJUSTED, -amount))
    return posting


def _take(member: Member, amount: int) -> list[tuple[Lot, int]]:
    if amount > member.available:
        raise InsufficientPoints(available=member.available, requested=amount)
    uses: list[tuple[Lot, int]] = []
    missing = amount
    for lot in sorted((lot for lot in member.lots if not lot.pending), key=lambda lot: lot.spend_order):
        if not missing:
            break
        taken = min(missing, lot.remaining)
        if taken:
            uses.append((lot, taken))
            missing -= taken
    return uses


def _check_limit(member: Member, points: int, growth: int) -> None:
    held = sum(member.balances[a] for a in (Account.AVAILABLE, Account.PENDING, Account.HELD))
    most = max(held + points, member.balances[Account.GROWTH] + growth, member.lifetime_earned + points)
    if most > MAX_BALANCE:
        raise BalanceLimit(limit=MAX_BALANCE)


def post(member: Member, posting: Posting, draft: Transaction) -> Transaction:
    """Applies a posting and completes its transaction: numbered, dated, with balances after, chained.

    `draft` brings what the ledger does not decide; its create_time is the clock's.
    """
    member.apply(posting)
    member.seq += 1
    member.version += 1
    member.last_time = max(draft.create_time, member.last_time)
    draft.kind = posting.kind
    draft.seq = member.seq
    draft.create_time = member.last_time
    draft.transfers = tuple(posting.transfers)
    draft.contributions = tuple(posting.contributions)
    draft.programme_version = posting.programme_version
    draft.balance = member.snapshot()
    draft.hash = member.head_hash = transaction_hash(member.head_hash, draft)
    return draft


def transaction_hash(previous: bytes, transaction: Transaction) -> bytes:
    """Hash version 1: SHA-256 of the previous hash and the fields as netstrings (docs/hash-chain.md)."""
    t, b = transaction, transaction.balance
    fields = [
        str(HASH_VERSION),
        t.member_id,
        str(t.seq),
        t.transaction_id,
        t.kind,
        t.request_id,
        t.payload_hash.hex(),
        t.order_id,
        t.activity_id,
        t.reference_id,
        t.reverses_transaction_id,
        _micros(t.occur_time),
        _micros(t.create_time),
        str(t.programme_version),
        str(len(t.transfers)),
        *(f"{m.unit} {m.debit} {m.credit} {m.amount}" for m in t.transfers),
        str(len(t.contributions)),
        *(f"{c.rule_id} {c.unit} {c.amount} {c.error}" for c in t.contributions),
        f"{b.available} {b.pending} {b.held} {b.owed} {b.growth} {b.lifetime_earned}",
    ]
    encoded = [text.encode() for text in fields]
    return hashlib.sha256(previous + b"".join(b"%d:%b," % (len(e), e) for e in encoded)).digest()


def add_months(day: date, months: int) -> date:
    """The same day of a later month, or that month's last (31 January + 1 month = 28 or 29 February)."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    following = date(year + month // 11, (month + 1) % 12 + 1, 1)
    return date(year, month + 1, min(day.day, (following - timedelta(days=1)).day))


def local_midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local day, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def _micros(at: datetime) -> str:
    return str((at - LONG_AGO) // timedelta(microseconds=1))
