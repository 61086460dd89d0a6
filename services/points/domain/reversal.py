"""Taking back what was credited, and giving back what was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.points.domain.calendar import local_midnight
from services.points.domain.ledger import (
    Account,
    Clawback,
    Lot,
    Member,
    Posting,
    Terms,
    Transaction,
    TransactionKind,
    Unit,
)
from services.points.domain.verbs import credit, new_lots, take
from services.points.errors import ClawbackBlocked, NotReversible, ReversalExceedsTransaction

# The issuer's side of what can be reversed.
_COUNTERS = {
    TransactionKind.EARN: Account.ISSUER_EARNED,
    TransactionKind.REDEEM: Account.ISSUER_REDEEMED,
    TransactionKind.CAPTURE: Account.ISSUER_REDEEMED,
    TransactionKind.ADJUST: Account.ISSUER_ADJUSTED,
    TransactionKind.SEND: Account.ISSUER_IN_TRANSIT,
}


@dataclass(slots=True)
class Past:
    """A transaction of the ledger with what it took from lots, and what reversed it since."""

    transaction: Transaction
    uses: dict[tuple[int, int], int] = field(default_factory=dict)
    reversals: list[Past] = field(default_factory=list)

    @property
    def counter(self) -> Account:
        """The issuer's account that it moved. Raises NotReversible."""
        tx = self.transaction
        if tx.kind not in _COUNTERS:
            raise NotReversible(transaction_id=tx.transaction_id, kind=tx.kind.value)
        return _COUNTERS[tx.kind]

    def credited(self, unit: Unit) -> int:
        """What the member got of a unit; negative where it was taken."""
        return _flow([self.transaction], unit, self.counter)

    def taken_back(self, unit: Unit) -> int:
        """What of that was reversed; negative where it was given back."""
        return -_flow([past.transaction for past in self.reversals], unit, self.counter)

    def left(self, unit: Unit) -> int:
        """What can still be reversed of a unit, without sign."""
        return abs(self.credited(unit) - self.taken_back(unit))


def _flow(transactions: Sequence[Transaction], unit: Unit, source: Account) -> int:
    """What left an account less what came to it."""
    moves = [m for tx in transactions for m in tx.transfers if m.unit is unit]
    return sum(m.amount for m in moves if m.debit is source) - sum(
        m.amount for m in moves if m.credit is source
    )


def reverse(member: Member, past: Past, amounts: Mapping[Unit, int], terms: Terms, at: datetime) -> Posting:
    """Undoes a transaction: amounts of its units, or without any the whole that is left.

    Raises NotReversible, ReversalExceedsTransaction, ClawbackBlocked.
    """
    left = {unit: past.left(unit) for unit in Unit}
    for unit, amount in amounts.items():
        if amount > left[unit]:
            raise ReversalExceedsTransaction(unit=unit.value, left=left[unit], requested=amount)
    undoing = _Undoing(member, past, terms, at, Posting(TransactionKind.REVERSE))
    for unit, amount in (amounts or left).items():
        if past.credited(unit) > 0:
            undoing.take_back(unit, amount)
        else:
            undoing.return_debit(unit, amount)
    return undoing.posting


def refund(member: Member, past: Past, targets: Mapping[Unit, int], terms: Terms, at: datetime) -> Posting:
    """Takes back of an earn what its refunds are worth in all, or gives back what is too much by now.

    What a reversal took besides counts too: together they never pass what was earned. Raises ClawbackBlocked.
    """
    undoing = _Undoing(member, past, terms, at, Posting(TransactionKind.REFUND))
    refunds = [each.transaction for each in past.reversals if each.transaction.kind is TransactionKind.REFUND]
    for unit, target in targets.items():
        refunded = -_flow(refunds, unit, past.counter)
        reversed_ = past.taken_back(unit) - refunded
        change = min(target, past.credited(unit) - reversed_) - refunded
        if change > 0:
            undoing.take_back(unit, change)
        else:
            undoing.give_back(unit, -change)
    return undoing.posting


@dataclass(slots=True)
class _Undoing:
    """A posting in the making that undoes part of a past transaction."""

    member: Member
    past: Past
    terms: Terms
    at: datetime
    posting: Posting

    def __post_init__(self) -> None:
        self.posting.growth_day = self.terms.local_day(self.past.transaction.occur_time)

    def take_back(self, unit: Unit, amount: int) -> None:
        """Takes back part of a credit. Raises ClawbackBlocked.

        In this order: what expired unspent of its lots, what is left of them, what is pending, other lots in
        spend order; what is missing then is owed, written off, or blocks, as the programme says. What holds
        have pinned is not touched. Growth cannot be owed: what is missing of it is written off.
        """
        posting, counter = self.posting, self.past.counter
        if unit is Unit.GROWTH:
            there = min(amount, self.member.balances[Account.GROWTH])
            posting.move(unit, Account.GROWTH, counter, there)
            self._bear(unit, amount - there)
            return
        own = [lot for lot in self.member.lots if lot.seq == self.past.transaction.seq]
        others = [lot for lot in self.member.lots if lot.seq != self.past.transaction.seq]
        missing = amount
        for lot in own:
            gone = min(missing, lot.expired)
            if gone:
                posting.expired[lot.name] = -gone
                missing -= gone
        taken = {Account.ISSUER_EXPIRED: amount - missing, Account.PENDING: 0, Account.AVAILABLE: 0}
        for lots in (own, [o for o in others if o.pending], [o for o in others if not o.pending]):
            pending = {lot.name for lot in lots if lot.pending}
            for name, part in take(lots, missing):
                posting.uses[name] = part
                taken[Account.PENDING if name in pending else Account.AVAILABLE] += part
                missing -= part
        for account, part in taken.items():
            posting.move(unit, account, counter, part)
        self._bear(unit, missing)

    def _bear(self, unit: Unit, missing: int) -> None:
        policy = self.terms.clawback
        if missing and policy is Clawback.BLOCK:
            raise ClawbackBlocked(unit=unit.value, missing=missing)
        owed = policy is Clawback.DEBT and unit is Unit.POINTS
        source = Account.OWED if owed else Account.ISSUER_WRITTEN_OFF
        self.posting.move(unit, source, self.past.counter, missing)

    def give_back(self, unit: Unit, amount: int) -> None:
        """Gives back part of what was taken back of an earn: the way of `take_back` backwards."""
        written_off = min(amount, self._flowed(unit, Account.ISSUER_WRITTEN_OFF))
        self.posting.move(unit, self.past.counter, Account.ISSUER_WRITTEN_OFF, written_off)
        amount -= written_off
        if unit is Unit.GROWTH:
            self.posting.move(unit, self.past.counter, Account.GROWTH, amount)
            return
        debt = min(amount, self.member.owed, self._flowed(unit, Account.OWED))
        self.posting.move(unit, self.past.counter, Account.OWED, debt)
        amount -= debt
        uses = self._last_taken_first()
        again = min(
            self._flowed(unit, Account.ISSUER_EXPIRED), max(0, amount - sum(part for _, part in uses))
        )
        self._return(uses, amount - again)
        self._expire_again(again)

    def _expire_again(self, amount: int) -> None:
        for lot in self.member.lots:
            if lot.seq == self.past.transaction.seq and lot.expired_by(self.at):
                part = min(amount, lot.amount - lot.remaining - lot.expired)
                if part:
                    self.posting.expired[lot.name] = part
                    self.posting.move(Unit.POINTS, self.past.counter, Account.ISSUER_EXPIRED, part)
                    amount -= part

    def return_debit(self, unit: Unit, amount: int) -> None:
        """Returns part of what a debit took, points to the very lots, what expires last first."""
        if unit is Unit.GROWTH:
            self.posting.move(unit, self.past.counter, Account.GROWTH, amount)
            return
        uses = [(self.member.lot(name), part) for name, part in self.past.uses.items()]
        uses.sort(key=lambda use: use[0].spend_order, reverse=True)
        returned = -self.past.taken_back(unit)
        left: list[tuple[Lot, int]] = []
        for lot, part in uses:
            skipped = min(part, returned)
            returned -= skipped
            left.append((lot, part - skipped))
        self._return(left, amount)

    def _return(self, uses: Sequence[tuple[Lot, int]], amount: int) -> None:
        """Returns points to the lots they came from; what cannot live there comes back as a lot of grace."""
        member, posting, counter = self.member, self.posting, self.past.counter
        back: list[tuple[Lot, int]] = []
        revived = pending = 0
        for lot, used in uses:
            part = min(used, amount)
            amount -= part
            if lot.expired_by(self.at):
                revived += part
            elif part:
                posting.use(lot, -part)
                if lot.pending:
                    pending += part
                else:
                    back.append((lot, part))
        revived += amount
        if revived:
            day = self.terms.local_day(self.at) + timedelta(days=self.terms.grace_days + 1)
            end = local_midnight(day, self.terms.zone)
            (grace,) = new_lots(member, posting, [(end, revived)], self.at)
            back.append((grace, revived))
        posting.move(Unit.POINTS, counter, Account.PENDING, pending)
        credit(member, posting, counter, back, self.at)

    def _last_taken_first(self) -> list[tuple[Lot, int]]:
        """What earlier reversals took of lots, in the opposite order of `take_back`."""
        net: dict[tuple[int, int], int] = {}
        for each in self.past.reversals:
            for name, part in each.uses.items():
                net[name] = net.get(name, 0) + part
        uses = [(self.member.lot(name), part) for name, part in net.items() if part > 0]
        return sorted(uses, key=self._order_of_taking, reverse=True)

    def _order_of_taking(self, use: tuple[Lot, int]) -> tuple[bool, bool, tuple[datetime, int, int]]:
        lot = use[0]
        other = lot.seq != self.past.transaction.seq
        return (other, other and not lot.pending, lot.spend_order)

    def _flowed(self, unit: Unit, source: Account) -> int:
        """What earlier reversals moved from an account to the issuer's, less what went back."""
        moves = [m for each in self.past.reversals for m in each.transaction.transfers if m.unit is unit]
        there = sum(m.amount for m in moves if (m.debit, m.credit) == (source, self.past.counter))
        back = sum(m.amount for m in moves if (m.debit, m.credit) == (self.past.counter, source))
        return max(0, there - back)
