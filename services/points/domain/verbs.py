"""What may happen to a member, or why not: each verb makes the posting that does it.

What *falls due* by itself (points that expire or mature, holds that lapse, a tier that ends, a notice of
what will expire) is posted before anything else touches the member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.points.domain.calendar import local_midnight
from services.points.domain.ledger import (
    NOTICES,
    Account,
    Contribution,
    Expiry,
    Gain,
    Hold,
    HoldState,
    Lot,
    Member,
    Posting,
    Terms,
    TransactionKind,
    Unit,
    check_limit,
)
from services.points.domain.tiers import TierChange, TierReason
from services.points.errors import (
    BackdatingNeedsAdmin,
    CaptureExceedsHold,
    HoldClosed,
    HoldExpired,
    HoldTimeInvalid,
    InsufficientGrowth,
    InsufficientPoints,
    OccurTimeAhead,
)

MAX_AHEAD = timedelta(minutes=5)
MAX_BACK = timedelta(days=30)
MAX_HOLD = timedelta(days=30)


def check_occur_time(occur: datetime, now: datetime, *, may_backdate: bool) -> None:
    """Facts may lie 5 minutes ahead and 30 days back. Raises OccurTimeAhead, BackdatingNeedsAdmin."""
    if occur > now + MAX_AHEAD:
        raise OccurTimeAhead(occur_time=occur.isoformat(), now=now.isoformat())
    if occur < now - MAX_BACK and not may_backdate:
        raise BackdatingNeedsAdmin(occur_time=occur.isoformat(), now=now.isoformat())


# --- what falls due -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notice:
    """Points that will expire, of which their member is told."""

    amount: int
    expire_time: datetime


Due = Posting | TierChange | Notice


def due(member: Member, at: datetime, terms: Terms | None) -> Iterator[tuple[datetime, Due]]:
    """What has fallen due by `at`, in order of time; at one moment EXPIRE, MATURE, RELEASE, tier, notices.

    Each posting must be applied before the next is asked for; tiers are changed here.
    """
    while (moment := member.next_due_time) is not None and moment <= at:
        posting = _falling(member, moment)
        if posting is not None:
            yield moment, posting
        elif member.tier_until is not None and member.tier_until <= moment:
            yield moment, _end_tier(member, moment, terms)
        else:
            notices = _notices(member, moment, at)
            member.told_until = moment
            member.look_ahead()
            for notice in notices:
                yield moment, notice
    member.told_until = max(member.told_until, at)


def _falling(member: Member, moment: datetime) -> Posting | None:
    expired = [lot for lot in member.lots if lot.free and lot.expired_by(moment)]
    if expired:
        return _expire(expired)
    matured = [lot for lot in member.lots if lot.free and lot.pending and lot.available_at <= moment]
    if matured:
        return _mature(member, matured, moment)
    lapsed = (h for h in member.holds if h.state is HoldState.PLACED and h.expire_time <= moment)
    hold = min(lapsed, key=lambda hold: (hold.expire_time, hold.seq), default=None)
    return None if hold is None else _release(member, hold, HoldState.EXPIRED, moment)


def _expire(lots: list[Lot]) -> Posting:
    posting = Posting(TransactionKind.EXPIRE)
    for account, pending in ((Account.AVAILABLE, False), (Account.PENDING, True)):
        amount = sum(lot.free for lot in lots if lot.pending is pending)
        posting.move(Unit.POINTS, account, Account.ISSUER_EXPIRED, amount)
    posting.uses = {lot.name: lot.free for lot in lots}
    posting.expired = dict(posting.uses)
    return posting


def _mature(member: Member, lots: list[Lot], at: datetime) -> Posting:
    posting = Posting(TransactionKind.MATURE, matured=lots)
    credit(member, posting, Account.PENDING, [(lot, lot.free) for lot in lots], at)
    return posting


def _end_tier(member: Member, moment: datetime, terms: Terms | None) -> TierChange:
    if terms is None or terms.ladder is None:
        change = TierChange(member.tier, "", TierReason.DEMOTED, None, 0)
    else:
        growth = member.balances[Account.GROWTH]
        change = terms.ladder.end(member.tier, growth, member.growth_days or {}, moment)
    change_tier(member, change)
    return change


def change_tier(member: Member, change: TierChange) -> None:
    """Gives a member the tier of a change."""
    member.tier, member.tier_until = change.after, change.until
    member.look_ahead()


def _notices(member: Member, moment: datetime, at: datetime) -> list[Notice]:
    """What to tell at a moment; not of what is gone at `at`, nor what is told again by then."""
    told = member.told_until
    ends = {
        lot.expires_at
        for lot in member.lots
        if lot.expires_at is not None and lot.free and any(n <= moment for n in lot.notices(told))
    }
    return [
        Notice(sum(lot.free for lot in member.lots if lot.expires_at == end), end)
        for end in sorted(ends)
        if end > at and not any(moment < end - ahead <= at for ahead in NOTICES)
    ]


# --- credits ------------------------------------------------------------------------------------------


def earn(member: Member, gains: Sequence[Gain], terms: Terms, occur: datetime) -> Posting:
    """Credits what the rules give: a lot for each expiry among the points, growth at once."""
    posting = Posting(TransactionKind.EARN, programme_version=terms.version)
    posting.contributions = [Contribution(g.rule_id, g.unit, g.amount, g.error) for g in gains]
    amounts: dict[Expiry | None, int] = {}
    growth = 0
    day = posting.growth_day = terms.local_day(occur)
    for gain in gains:
        if gain.unit is Unit.GROWTH:
            growth += gain.amount
        elif gain.amount:
            expiry = gain.expiry or terms.expiry
            amounts[expiry] = amounts.get(expiry, 0) + gain.amount
    ends: dict[datetime | None, int] = {}
    for expiry, amount in amounts.items():
        end = expiry.ends(day, terms.zone) if expiry else None
        ends[end] = ends.get(end, 0) + amount
    check_limit(member, sum(ends.values()), growth)
    if terms.pending_days:
        usable = local_midnight(day + timedelta(days=terms.pending_days), terms.zone)
        lots = new_lots(member, posting, ends.items(), usable, pending=True)
        posting.move(Unit.POINTS, Account.ISSUER_EARNED, Account.PENDING, sum(lot.amount for lot in lots))
    else:
        lots = new_lots(member, posting, ends.items(), occur)
        credit(member, posting, Account.ISSUER_EARNED, [(lot, lot.amount) for lot in lots], occur)
    posting.move(Unit.GROWTH, Account.ISSUER_EARNED, Account.GROWTH, growth)
    return posting


def new_lots(
    member: Member,
    posting: Posting,
    parts: Iterable[tuple[datetime | None, int]],
    usable: datetime,
    *,
    pending: bool = False,
) -> list[Lot]:
    """Adds a lot to a posting for each end and amount."""
    lots = [
        Lot(member.seq + 1, part, pending, usable, end, amount, amount)
        for part, (end, amount) in enumerate(parts)
    ]
    posting.lots += lots
    return lots


def credit(
    member: Member, posting: Posting, source: Account, parts: Sequence[tuple[Lot, int]], at: datetime
) -> None:
    """Makes parts of lots spendable. What is owed is paid first, from what expires first and still lives."""
    total = sum(amount for _, amount in parts)
    paid = 0
    if member.owed:
        owed = member.owed - sum(m.amount for m in posting.transfers if m.credit is Account.OWED)
        for lot, amount in sorted(parts, key=lambda part: part[0].spend_order):
            pay = min(amount, owed - paid) if not lot.expired_by(at) else 0
            posting.use(lot, pay)
            paid += pay
    posting.move(Unit.POINTS, source, Account.OWED, paid)
    posting.move(Unit.POINTS, source, Account.AVAILABLE, total - paid)


# --- debits -------------------------------------------------------------------------------------------


def redeem(member: Member, amount: int) -> Posting:
    """Takes points from the lots that expire first. Raises InsufficientPoints."""
    posting = Posting(TransactionKind.REDEEM, uses=_choose(member, amount))
    posting.move(Unit.POINTS, Account.AVAILABLE, Account.ISSUER_REDEEMED, amount)
    return posting


def adjust(member: Member, unit: Unit, amount: int, terms: Terms, occur: datetime) -> Posting:
    """Corrects a balance by a signed amount. Raises InsufficientPoints, InsufficientGrowth, BalanceLimit."""
    posting = Posting(TransactionKind.ADJUST, programme_version=terms.version)
    if amount > 0:
        check_limit(member, amount if unit is Unit.POINTS else 0, amount if unit is Unit.GROWTH else 0)
        if unit is Unit.POINTS:
            end = terms.expiry.ends(terms.local_day(occur), terms.zone) if terms.expiry else None
            lots = new_lots(member, posting, [(end, amount)], occur)
            credit(member, posting, Account.ISSUER_ADJUSTED, [(lot, lot.amount) for lot in lots], occur)
        else:
            posting.move(unit, Account.ISSUER_ADJUSTED, Account.GROWTH, amount)
        return posting
    if unit is Unit.POINTS:
        posting.uses = _choose(member, -amount)
        posting.move(unit, Account.AVAILABLE, Account.ISSUER_ADJUSTED, -amount)
        return posting
    if member.balances[Account.GROWTH] < -amount:
        raise InsufficientGrowth(growth=member.balances[Account.GROWTH], requested=-amount)
    posting.move(unit, Account.GROWTH, Account.ISSUER_ADJUSTED, -amount)
    return posting


def _choose(member: Member, amount: int) -> dict[tuple[int, int], int]:
    """How much of which lot, what expires first first. Raises InsufficientPoints."""
    if amount > member.available:
        raise InsufficientPoints(available=member.available, requested=amount)
    return dict(take((lot for lot in member.lots if not lot.pending), amount))


def take(lots: Iterable[Lot], amount: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Up to an amount from lots, in spend order."""
    for lot in sorted(lots, key=lambda lot: lot.spend_order):
        taken = min(amount, lot.free)
        if taken:
            yield lot.name, taken
            amount -= taken


# --- holds --------------------------------------------------------------------------------------------


def hold(member: Member, amount: int, reference_id: str, expire_time: datetime, at: datetime) -> Posting:
    """Sets points aside until a deadline of at most 30 days; their lots cannot expire meanwhile.

    Raises HoldTimeInvalid, InsufficientPoints.
    """
    if not at < expire_time <= at + MAX_HOLD:
        raise HoldTimeInvalid(expire_time=expire_time.isoformat(), now=at.isoformat())
    pins = _choose(member, amount)
    posting = Posting(TransactionKind.HOLD, pins=pins)
    posting.hold = Hold(member.seq + 1, "", reference_id, amount, expire_time, pins)
    posting.move(Unit.POINTS, Account.AVAILABLE, Account.HELD, amount)
    return posting


def capture(member: Member, held: Hold, amount: int, at: datetime) -> Iterator[Posting]:
    """Spends a hold, whole (0) or in part, though its lots have expired; what is left of it is released.

    Each posting must be applied before the next is asked for. Raises HoldClosed, HoldExpired,
    CaptureExceedsHold.
    """
    _require_open(held)
    amount = amount or held.amount
    if amount > held.amount:
        raise CaptureExceedsHold(held=held.amount, requested=amount)
    posting = Posting(TransactionKind.CAPTURE)
    left = amount
    for name, pinned in _in_spend_order(member, held):
        taken = min(left, pinned)
        left -= taken
        if taken:
            posting.uses[name] = taken
            posting.pins[name] = -taken
    posting.move(Unit.POINTS, Account.HELD, Account.ISSUER_REDEEMED, amount)
    posting.hold = replace(held, state=HoldState.CAPTURED, captured=amount)
    yield posting
    if amount < held.amount:
        yield _release(member, posting.hold, HoldState.CAPTURED, at)


def release(member: Member, held: Hold, at: datetime) -> Posting:
    """Gives a hold back to its lots. Raises HoldClosed, HoldExpired."""
    _require_open(held)
    return _release(member, held, HoldState.RELEASED, at)


def _release(member: Member, held: Hold, state: HoldState, at: datetime) -> Posting:
    """Lets go of what was not captured: what has expired is gone, the rest pays what is owed first."""
    posting = Posting(TransactionKind.RELEASE, hold=replace(held, state=state))
    captured = held.captured
    back: list[tuple[Lot, int]] = []
    for name, pinned in _in_spend_order(member, held):
        freed = pinned - min(captured, pinned)
        captured -= pinned - freed
        if not freed:
            continue
        posting.pins[name] = -freed
        lot = member.lot(name)
        if lot.expired_by(at):
            posting.uses[name] = posting.expired[name] = freed
        else:
            back.append((lot, freed))
    posting.move(Unit.POINTS, Account.HELD, Account.ISSUER_EXPIRED, sum(posting.expired.values()))
    credit(member, posting, Account.HELD, back, at)
    return posting


def _in_spend_order(member: Member, held: Hold) -> list[tuple[tuple[int, int], int]]:
    return sorted(held.pins.items(), key=lambda pin: member.lot(pin[0]).spend_order)


def _require_open(held: Hold) -> None:
    if held.state is HoldState.EXPIRED:
        raise HoldExpired(hold_id=held.hold_id, expire_time=held.expire_time.isoformat())
    if held.state is not HoldState.PLACED:
        raise HoldClosed(hold_id=held.hold_id, state=held.state.value)


# --- between members ----------------------------------------------------------------------------------


def send(member: Member, amount: int) -> Posting:
    """Takes points that travel to another member. Raises InsufficientPoints."""
    posting = Posting(TransactionKind.SEND, uses=_choose(member, amount))
    posting.move(Unit.POINTS, Account.AVAILABLE, Account.ISSUER_IN_TRANSIT, amount)
    return posting


def receive(member: Member, parts: Sequence[tuple[datetime | None, int]], at: datetime) -> Posting:
    """Credits points that travelled; each part keeps the end it had, and what ended on the way is gone.

    Raises BalanceLimit.
    """
    check_limit(member, sum(amount for _, amount in parts), 0)
    posting = Posting(TransactionKind.RECEIVE)
    live = [(end, amount) for end, amount in parts if end is None or end > at]
    lots = new_lots(member, posting, live, at)
    gone = sum(amount for _, amount in parts) - sum(amount for _, amount in live)
    posting.move(Unit.POINTS, Account.ISSUER_IN_TRANSIT, Account.ISSUER_EXPIRED, gone)
    credit(member, posting, Account.ISSUER_IN_TRANSIT, [(lot, lot.amount) for lot in lots], at)
    return posting
