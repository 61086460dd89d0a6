"""A member's books: what is kept, how a posting changes it, and how a transaction is chained.

Pure: no clock, no database, no messages. What may be posted, or why not, is in `verbs` and `reversal`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from services.points.domain.calendar import add_months, local_midnight
from services.points.domain.tiers import Ladder
from services.points.errors import BalanceLimit

MAX_BALANCE = 10**18
HASH_VERSION = 1
NEVER = datetime(9999, 12, 31, tzinfo=UTC)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
FACT_KEPT = timedelta(days=90)  # after its end; no event about it comes again after that
NOTICES = (timedelta(days=30), timedelta(days=7))  # how long before points expire their member is told


class Unit(StrEnum):
    """What is counted."""

    POINTS = "POINTS"
    GROWTH = "GROWTH"


class Account(StrEnum):
    """One side of a transfer: a member's sub-account, or a counter-account of the issuer.

    OWED is what a member owes: it is stored as a positive number and, alone among the accounts, rises when
    it is debited.
    """

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
    """What is left of one credit. Named by the crediting transaction's seq and a part number."""

    seq: int
    part: int
    pending: bool
    available_at: datetime
    expires_at: datetime | None
    amount: int
    remaining: int
    held: int = 0
    """Of what remains, what holds have pinned: it neither is spent nor expires."""
    expired: int = 0
    """Of what is gone, what expired unspent and was not taken back since."""
    stored: bool = False

    @property
    def name(self) -> tuple[int, int]:
        """What it is called among the member's lots."""
        return (self.seq, self.part)

    @property
    def spend_order(self) -> tuple[datetime, int, int]:
        """What expires first goes first, ties by age, what never expires last."""
        return (self.expires_at or NEVER, self.seq, self.part)

    @property
    def free(self) -> int:
        """What no hold has pinned."""
        return self.remaining - self.held

    def expired_by(self, at: datetime) -> bool:
        """Whether its points are gone at an instant."""
        return self.expires_at is not None and self.expires_at <= at

    def notices(self, after: datetime) -> list[datetime]:
        """When its member is still to be told that it expires, in order."""
        ends = self.expires_at
        return [] if ends is None else [ends - ahead for ahead in NOTICES if ends - ahead > after]

    def due_time(self, told: datetime) -> datetime | None:
        """When something happens to it by itself; `told` is until when notices were given."""
        ends = self.expires_at
        if self.remaining == self.held or (ends is None and not self.pending):
            return None
        if ends is not None:  # the longest notice is the first
            ends = next((ends - ahead for ahead in NOTICES if ends - ahead > told), ends)
        if not self.pending:
            return ends
        return self.available_at if ends is None else min(ends, self.available_at)

    def copy(self) -> Lot:
        """One to work on. Written out, as this is done for every lot of every command."""
        return Lot(
            self.seq,
            self.part,
            self.pending,
            self.available_at,
            self.expires_at,
            self.amount,
            self.remaining,
            self.held,
            self.expired,
            self.stored,
        )


class HoldState(StrEnum):
    """What became of a hold."""

    PLACED = "PLACED"
    CAPTURED = "CAPTURED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


@dataclass(slots=True)
class Hold:
    """Points set aside for an order in checkout. Named by the placing transaction's seq."""

    seq: int
    hold_id: str
    reference_id: str
    amount: int
    expire_time: datetime
    pins: dict[tuple[int, int], int]
    """How much of which lot; it stays as it was placed."""
    state: HoldState = HoldState.PLACED
    captured: int = 0
    stored: bool = False


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


class Clawback(StrEnum):
    """What becomes of the part of a taken back credit that the member has spent."""

    DEBT = "DEBT"
    CLAMP = "CLAMP"
    BLOCK = "BLOCK"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a programme treats what is earned, whatever rule gave it."""

    version: int
    zone: ZoneInfo
    currency_code: str
    expiry: Expiry | None
    pending_days: int
    clawback: Clawback = Clawback.DEBT
    grace_days: int = 7
    """Local days that returned points live whose lot has expired."""
    transfers_per_day: int = 0
    """Points that a member may give away on a local day; 0: none."""
    ladder: Ladder | None = None

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
class Fact:
    """What another service told of a member, in the state of its latest event."""

    name: str
    value: str
    holds_from: datetime
    holds_until: datetime | None
    epoch: int
    version: int
    begun: tuple[int, int] = (0, 0)
    """Epoch and version of the event that told how it began; of none where only its end is known."""
    unless: str = ""
    """What it is about that, told later than the beginning, suspends this."""

    def with_(self, other: Fact) -> Fact:
        """What two events tell together, whichever came first.

        The newer counts; if it only says that it ended, what it was until then is as the older one tells.
        """
        last = max(self, other, key=lambda fact: (fact.epoch, fact.version))
        first = max(self, other, key=lambda fact: fact.begun)
        return replace(first, holds_until=last.holds_until, epoch=last.epoch, version=last.version)

    def holds_at(self, at: datetime) -> bool:
        """Whether it is so at an instant."""
        return self.holds_from <= at and (self.holds_until is None or at < self.holds_until)

    def remembered_at(self, now: datetime) -> bool:
        """Whether it did not end too long ago for anything to go by it."""
        return self.holds_until is None or self.holds_until > now - FACT_KEPT


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
    """New ones, each with its whole amount."""
    uses: dict[tuple[int, int], int] = field(default_factory=dict)
    """Taken from lots by name; negative where it was given back."""
    pins: dict[tuple[int, int], int] = field(default_factory=dict)
    """Pinned by a hold; negative where it came loose."""
    expired: dict[tuple[int, int], int] = field(default_factory=dict)
    """Gone unspent; negative where that was taken back."""
    matured: list[Lot] = field(default_factory=list)
    hold: Hold | None = None
    """The hold that was placed or closed, as it is afterwards."""
    growth_day: date | None = None
    """The local day whose growth changes, if it is not that of the transaction."""
    programme_version: int = 0

    def move(self, unit: Unit, debit: Account, credit: Account, amount: int) -> None:
        """Adds a transfer; none of nothing."""
        if amount:
            self.transfers.append(Transfer(unit, debit, credit, amount))

    def use(self, lot: Lot, amount: int) -> None:
        """Takes from a lot, or gives back to it."""
        _count(self.uses, lot.name, amount)


def _count(counters: dict[tuple[int, int], int], name: tuple[int, int], amount: int) -> None:
    total = counters.get(name, 0) + amount
    if total:
        counters[name] = total
    else:
        counters.pop(name, None)


@dataclass(slots=True)
class Member:
    """A member's state while a transaction folds over it. `lots` and `holds` are those that are loaded."""

    member_id: str
    balances: dict[Account, int]
    lifetime_earned: int = 0
    seq: int = 0
    head_hash: bytes = b""
    version: int = 0
    tier: str = ""
    tier_until: datetime | None = None
    """Until when the tier is held at least; None while it cannot be lost."""
    last_time: datetime = LONG_AGO
    """When something last happened to the member: everything due until then is done."""
    told_until: datetime = LONG_AGO
    """Until when the member was told what will expire."""
    next_due_time: datetime | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    """What other services told, by what it is about."""
    waiting: int = 0
    """Refunds that came before their orders."""
    lots: list[Lot] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    growth_days: dict[date, int] | None = None
    """Growth per local day of the tier's window, or its sum as of the first; None where it is not loaded."""
    unloaded_due_time: datetime | None = None
    """When the first of what is not loaded falls due; whoever loads it takes this away."""

    def copy(self) -> Member:
        """A working copy: what folds over it leaves this one as it was."""
        return Member(
            self.member_id,
            self.balances.copy(),
            self.lifetime_earned,
            self.seq,
            self.head_hash,
            self.version,
            self.tier,
            self.tier_until,
            self.last_time,
            self.told_until,
            self.next_due_time,
            self.facts,
            self.waiting,
            [lot.copy() for lot in self.lots],
            [replace(hold) for hold in self.holds],
            None if self.growth_days is None else self.growth_days.copy(),
            self.unloaded_due_time,
        )

    @property
    def available(self) -> int:
        """Points that can be spent."""
        return self.balances[Account.AVAILABLE]

    @property
    def owed(self) -> int:
        """Points that later credits pay first."""
        return self.balances[Account.OWED]

    def lot(self, name: tuple[int, int]) -> Lot:
        """A loaded lot."""
        return next(lot for lot in self.lots if lot.name == name)

    def remembered(self, now: datetime) -> dict[str, Fact]:
        """What other services told and did not end too long ago; whether the rest is still stored or not."""
        return {about: fact for about, fact in self.facts.items() if fact.remembered_at(now)}

    def told(self, at: datetime, now: datetime) -> dict[str, str]:
        """The facts that held at an instant as far as they are remembered now, for the rules."""
        so = {about: fact for about, fact in self.remembered(now).items() if fact.holds_at(at)}
        return {
            fact.name: fact.value
            for fact in so.values()
            if fact.name and so.get(fact.unless, fact).begun <= fact.begun
        }

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
        """Moves balances, lots and holds; the only place that does."""
        for transfer in posting.transfers:
            self._move(transfer)
        self.lots.extend(posting.lots)
        if posting.uses or posting.pins or posting.expired:
            for lot in self.lots:
                name = lot.name
                lot.remaining -= posting.uses.get(name, 0)
                lot.held += posting.pins.get(name, 0)
                lot.expired += posting.expired.get(name, 0)
        for lot in posting.matured:
            lot.pending = False
        if posting.hold is not None:
            self.holds = [hold for hold in self.holds if hold.seq != posting.hold.seq] + [posting.hold]
        self.look_ahead()

    def _move(self, transfer: Transfer) -> None:
        amount = transfer.amount
        for account, signed in ((transfer.debit, -amount), (transfer.credit, amount)):
            if account in self.balances:
                self.balances[account] += -signed if account is Account.OWED else signed
            elif account is Account.ISSUER_EARNED and transfer.unit is Unit.POINTS:
                self.lifetime_earned -= signed

    def look_ahead(self) -> None:
        """Works out when something next happens to the member by itself."""
        told = self.told_until
        times = [self.unloaded_due_time, self.tier_until, *[lot.due_time(told) for lot in self.lots]]
        times += [hold.expire_time for hold in self.holds if hold.state is HoldState.PLACED]
        self.next_due_time = min([time for time in times if time is not None], default=None)


def new_member(member_id: str) -> Member:
    """A member to whom nothing has happened yet."""
    accounts = (Account.AVAILABLE, Account.PENDING, Account.HELD, Account.OWED, Account.GROWTH)
    return Member(member_id, dict.fromkeys(accounts, 0))


def check_limit(member: Member, points: int, growth: int) -> None:
    """Raises BalanceLimit where a credit would pass the largest balance that is kept."""
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
        *[" ".join((m.unit, m.debit, m.credit, str(m.amount))) for m in t.transfers],
        str(len(t.contributions)),
        *[" ".join((c.rule_id, c.unit, str(c.amount), c.error)) for c in t.contributions],
        f"{b.available} {b.pending} {b.held} {b.owed} {b.growth} {b.lifetime_earned}",
    ]
    netstrings = [f"{len(text if text.isascii() else text.encode())}:{text}," for text in fields]
    return hashlib.sha256(previous + "".join(netstrings).encode()).digest()


def _micros(at: datetime) -> str:
    return str((at - LONG_AGO) // _MICROSECOND)
