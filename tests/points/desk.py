"""The service's fold over one member, without a database and in a time of its own.

Commands go the way they go in the service, from due work to the events; only the locking, the loading and
the saving are left out. After each command the books must close.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from hypothesis import strategies as st
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.errors import ServiceError
from services.chassis.inbox import InboxKey
from services.chassis.outbox import Event
from services.points import rules
from services.points.commands import Adjust, CloseHold, Command, Earn, PlaceHold, Redeem, Reverse, Settle
from services.points.domain.ledger import (
    Account,
    Hold,
    HoldState,
    Member,
    Transaction,
    Unit,
    new_member,
    transaction_hash,
)
from services.points.folding import Fold
from services.points.steps import Scene
from services.points.store import Changes, Seen

Announced = TypeVar("Announced", bound=Message)
Drawn = TypeVar("Drawn")

NOON = datetime(2026, 6, 15, 4, tzinfo=UTC)  # 12:00 of a Monday in Shanghai
MEMBER = "member"
MONTHS = range(1, 7)
ISSUERS = [account for account in Account if account.value.startswith("issuer/")]


def earn_rule(rule_id: str, **more: Any) -> dict[str, Any]:
    """A rule on activities that gives a point for each minor unit, but for what is said otherwise."""
    give = {} if more.keys() & {"fixed", "multiplier"} else {"per": {"amount_minor": 1, "points": 1}}
    common = {"scope": "RULE_SCOPE_ACTIVITY", "unit": "UNIT_POINTS", "stack": "RULE_STACK_ADD"}
    return {"rule_id": rule_id, **common, **give, **more}


# Points that never end, points that end after some months, and growth: by the kind of the activity.
EARNING = [
    earn_rule("lasting", when="activity.kind in ['points', 'both', 'parts']"),
    earn_rule("growth", when="activity.kind in ['growth', 'both']", unit="UNIT_GROWTH"),
    earn_rule("parts", when="activity.kind == 'parts'", expiry={"rolling_months": 1}),
    *(
        earn_rule(f"months-{m}", when=f"activity.kind == 'points-{m}'", expiry={"rolling_months": m})
        for m in MONTHS
    ),
]


@lru_cache(maxsize=64)
def _compiled(body: bytes) -> rules.Programme:
    return rules.compile_programme(pb.Programme.FromString(body))


class Desk:
    """One member, and everything that happened to it. Time stands at `at` until it is moved."""

    def __init__(self, at: datetime = NOON, earn_rules: Sequence[dict[str, Any]] = (), **terms: Any) -> None:
        self.at = at
        born = new_member(MEMBER)
        born.growth_days = {}
        self.seen = Seen({MEMBER: born}, head=None)
        self.programmes: dict[int, rules.Programme] = {}
        self.transactions: list[Transaction] = []
        self.events: list[Event] = []
        self.uses: dict[tuple[int, int], int] = {}
        self.holds: dict[int, Hold] = {}
        self._numbers = itertools.count(1)
        self.put(earn_rules, **terms)

    def put(self, earn_rules: Sequence[dict[str, Any]] = (), **terms: Any) -> None:
        """Puts a version of the programme."""
        version = len(self.programmes) + 1
        message = {"time_zone": "Asia/Shanghai", "currency_code": "CNY", **terms, "version": version}
        message["earn_rules"] = [*EARNING, *earn_rules]
        body = ParseDict(message, pb.Programme()).SerializeToString(deterministic=True)
        self.programmes[version] = _compiled(body)
        self.seen.head = version

    @property
    def member(self) -> Member:
        """The member as it stands."""
        return self.seen.members[MEMBER]

    @property
    def balances(self) -> tuple[int, int, int, int]:
        """What is available, pending, held and owed."""
        b = self.member.snapshot()
        return b.available, b.pending, b.held, b.owed

    @property
    def growth(self) -> int:
        """The member's growth."""
        return self.member.balances[Account.GROWTH]

    def wait(self, **duration: float) -> None:
        """Lets time pass, and what falls due be posted."""
        self.at += timedelta(**duration)
        self.settle()

    # --- commands -------------------------------------------------------------------------------------

    def tell(self, kind: type[Command], *, event: bool = False, **fields: Any) -> Transaction | None:
        """Does a command, by event if so said. Raises its refusal, which leaves everything as it was."""
        request_id = fields.pop("request_id", None) or f"request-{next(self._numbers)}"
        key = InboxKey(MEMBER, "points", "source", request_id, "STREAM", 1) if event else None
        payload = hashlib.sha256(repr((kind, sorted(fields.items()))).encode()).digest()
        command = kind(
            member_id=MEMBER,
            request_id=request_id,
            payload_hash=payload,
            actor="test",
            may_backdate=True,
            event=key,
            **fields,
        )
        before = self.member
        fold = Fold(Scene(self.seen, self.programmes, 1, self.at))
        answer = fold.answer(command)
        if isinstance(answer, ServiceError):
            assert self.member is before
            assert not fold.announcements
            raise answer
        self._note(fold.changes())
        self.events += fold.announcements
        self.check()
        return answer

    def do(self, kind: type[Command], **fields: Any) -> Transaction:
        """Does a command that posts something."""
        transaction = self.tell(kind, **fields)
        assert transaction is not None
        return transaction

    def settle(self) -> None:
        """Posts what has fallen due."""
        self.tell(Settle)

    def earn(
        self, amount: int, kind: str = "points", *, months: int = 0, occur: datetime | None = None
    ) -> Transaction:
        """Earns `points` that never end, or end after some months; `growth`; `both`; or `parts`: points of
        which half never end and half end after a month.
        """
        number = next(self._numbers)
        kind = f"{kind}-{months}" if months else kind
        activity = Activity(activity_id=f"activity-{number}", kind=kind, amount_minor=amount)
        activity.occur_time.FromDatetime(occur or self.at)
        return self.do(Earn, source=rules.read_activity(activity))

    def buy(self, order: Order) -> Transaction:
        """Earns an order."""
        return self.do(Earn, source=rules.read_order(order))

    def redeem(self, amount: int) -> Transaction:
        """Spends points."""
        return self.do(Redeem, amount=amount, reference_id="gift")

    def adjust(self, amount: int, unit: Unit = Unit.POINTS) -> Transaction:
        """Corrects a balance."""
        return self.do(Adjust, unit=unit, amount=amount, reason="why")

    def place(self, amount: int, **deadline: float) -> Hold:
        """Sets points aside for some time, by default for 15 minutes."""
        ends = self.at + timedelta(**(deadline or {"minutes": 15}))
        placed = self.do(PlaceHold, amount=amount, reference_id="checkout", expire_time=ends)
        return self.holds[placed.seq]

    def capture(self, hold: Hold, amount: int = 0) -> Transaction:
        """Spends a hold, whole or in part."""
        return self.do(CloseHold, hold_id=hold.hold_id, capture=amount)

    def release(self, hold: Hold) -> Transaction:
        """Gives a hold back."""
        return self.do(CloseHold, hold_id=hold.hold_id, capture=None)

    def reverse(self, past: Transaction, points: int = 0, growth: int = 0) -> Transaction:
        """Undoes a transaction, whole unless amounts are given."""
        amounts = {unit: n for unit, n in ((Unit.POINTS, points), (Unit.GROWTH, growth)) if n}
        return self.do(Reverse, transaction_id=past.transaction_id, amounts=amounts)

    # --- what happened --------------------------------------------------------------------------------

    def announced(self, kind: type[Announced]) -> list[Announced]:
        """The events of a kind, in order."""
        name = kind.DESCRIPTOR.full_name
        return [kind.FromString(event.body) for event in self.events if event.subject == name]

    def lots(self) -> dict[tuple[int, int], int]:
        """What remains of each lot that is not used up."""
        return {lot.name: lot.remaining for lot in self.member.lots if lot.remaining}

    def net(self, unit: Unit, counter: Account) -> int:
        """What came from an issuer's account, less what went back."""
        moves = [m for tx in self.transactions for m in tx.transfers if m.unit is unit]
        return sum(m.amount * ((m.debit is counter) - (m.credit is counter)) for m in moves)

    def _note(self, changes: Changes) -> None:
        for entry in changes.entries:
            self.transactions.append(entry.transaction)
            for name, amount in entry.uses.items():
                self.uses[name] = self.uses.get(name, 0) + amount
        for _, hold in changes.holds:
            self.holds[hold.seq] = hold

    # --- what is always true --------------------------------------------------------------------------

    def check(self) -> None:
        """The books close: every account by its transfers, the lots by their uses, the hashes as a chain."""
        member = self.member
        sums = dict.fromkeys(member.balances, 0)
        previous = b""
        for number, tx in enumerate(self.transactions, 1):
            for m in tx.transfers:
                assert m.amount > 0
                assert m.debit is not m.credit
                for account, amount in ((m.debit, -m.amount), (m.credit, m.amount)):
                    if account in sums:
                        sums[account] += -amount if account is Account.OWED else amount
            assert tx.seq == number
            assert tx.hash == transaction_hash(previous, tx)
            previous = tx.hash
        assert sums == member.balances
        assert self.transactions == [] or self.transactions[-1].balance == member.snapshot()
        assert (member.seq, member.head_hash) == (len(self.transactions), previous)
        self._check_balances(member)
        self._check_lots(member)
        for past in self.seen.pasts.values():
            for unit in Unit:
                if past.reversals:
                    credited, back = past.credited(unit), past.taken_back(unit)
                    assert min(credited, 0) <= back <= max(credited, 0)

    def _check_balances(self, member: Member) -> None:
        b = member.balances
        assert all(amount >= 0 for amount in b.values())
        assert not (b[Account.OWED] and b[Account.AVAILABLE])
        assert member.lifetime_earned == self.net(Unit.POINTS, Account.ISSUER_EARNED) >= 0
        mine = b[Account.AVAILABLE] + b[Account.PENDING] + b[Account.HELD] - b[Account.OWED]
        assert mine == sum(self.net(Unit.POINTS, account) for account in ISSUERS)
        assert b[Account.GROWTH] == sum(self.net(Unit.GROWTH, account) for account in ISSUERS)
        assert b[Account.GROWTH] == sum((member.growth_days or {}).values())

    def _check_lots(self, member: Member) -> None:
        b, lots = member.balances, member.lots
        assert len({lot.name for lot in lots}) == len(lots)
        for lot in lots:
            assert 0 <= lot.held <= lot.remaining
            assert lot.expired >= 0
            assert lot.remaining + lot.expired <= lot.amount
            assert lot.remaining == lot.amount - self.uses.get(lot.name, 0)
        assert b[Account.PENDING] == sum(lot.remaining for lot in lots if lot.pending)
        assert b[Account.AVAILABLE] == sum(lot.free for lot in lots if not lot.pending)
        assert b[Account.HELD] == sum(lot.held for lot in lots)
        pinned = dict.fromkeys((lot.name for lot in lots), 0)
        for hold in self.holds.values():
            assert 0 <= hold.captured <= hold.amount
            assert (hold.state is HoldState.CAPTURED) == (hold.captured > 0)
            if hold.state is HoldState.PLACED:
                for name, amount in hold.pins.items():
                    pinned[name] += amount
        assert pinned == {lot.name: lot.held for lot in lots}


def sequences(steps: st.SearchStrategy[Drawn], most: int) -> st.SearchStrategy[list[Drawn]]:
    """Lists of any length alike; `lists` alone makes mostly short ones."""
    return st.integers(0, most).flatmap(lambda length: st.lists(steps, min_size=length, max_size=length))
