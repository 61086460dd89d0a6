"""The ledger's pure functions: spend order, what falls due, ends of local days, and refusals."""

from __future__ import annotations

import calendar
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.points.commands import Command, Receive
from services.points.domain import ledger, verbs
from services.points.domain.calendar import add_months, local_midnight
from services.points.domain.ledger import (
    FACT_KEPT,
    MAX_BALANCE,
    NEVER,
    Account,
    Balances,
    Expiry,
    Fact,
    Gain,
    Lot,
    Member,
    Posting,
    Terms,
    Transaction,
    TransactionKind,
    Unit,
)
from services.points.errors import (
    BackdatingNeedsAdmin,
    BalanceLimit,
    InsufficientGrowth,
    InsufficientPoints,
    OccurTimeAhead,
)
from services.points.folding import HANDLERS
from tests.points.desk import Desk

NOON = datetime(2026, 6, 15, 4, tzinfo=UTC)
SHANGHAI = ZoneInfo("Asia/Shanghai")
TERMS = Terms(1, SHANGHAI, "CNY", None, 0)
TICK = timedelta(microseconds=1)
# Midnight is skipped in Havana, Cairo and Beirut when summer begins, and comes twice in Havana when it ends.
ZONES = [
    "Asia/Shanghai",
    "Asia/Kathmandu",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Africa/Cairo",
    "Asia/Beirut",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "UTC",
]

patiently = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])

earns = st.tuples(
    st.integers(1, 1000),
    st.none() | st.integers(1, 6),  # months until it ends
    st.integers(0, 300),  # days before NOON
    st.sampled_from([0, 0, 10]),  # days until it can be spent
)
histories = st.lists(earns, max_size=8)


def test_every_command_can_be_done() -> None:
    kinds = {kind.__name__ for kind in Command.__subclasses__()}
    assert {kind.__name__ for kind in HANDLERS} == kinds


def member_with(history: Sequence[tuple[int, int | None, int, int]]) -> Member:
    """A member with these earns, of which nothing has fallen due yet."""
    member = ledger.new_member("member")
    for points, months, days_ago, pending_days in history:
        gain = Gain("rule", Unit.POINTS, points, Expiry(rolling_months=months) if months else None)
        terms = replace(TERMS, pending_days=pending_days)
        member.apply(verbs.earn(member, [gain], terms, NOON - timedelta(days=days_ago)))
        member.seq += 1
    return member


def settled(member: Member, at: datetime) -> Member:
    for _, fallen in verbs.due(member, at, TERMS):
        if isinstance(fallen, Posting):
            member.apply(fallen)
    return member


def change(posting: Posting, account: Account) -> int:
    """What the transfers do to an account."""
    received = sum(t.amount for t in posting.transfers if t.credit is account)
    return received - sum(t.amount for t in posting.transfers if t.debit is account)


def spendable(member: Member) -> list[Lot]:
    """Lots by end, those without one last, then by age."""
    lots = [lot for lot in member.lots if not lot.pending]
    return sorted(lots, key=lambda lot: (lot.expires_at or NEVER, lot.name))


# --- spending -----------------------------------------------------------------------------------------


@patiently
@given(histories, st.data())
def test_spending_empties_what_expires_first_before_it_touches_the_next(
    history: list[tuple[int, int | None, int, int]], data: st.DataObject
) -> None:
    member = settled(member_with(history), NOON)
    before = [lot.name for lot in spendable(member) if lot.remaining]
    sizes = {lot.name: lot.remaining for lot in member.lots}
    amount = data.draw(st.integers(0, member.available))
    posting = verbs.redeem(member, amount)
    member.apply(posting)
    taken = list(posting.uses)
    assert taken == before[: len(taken)]
    assert sum(posting.uses.values()) == amount
    assert all(posting.uses[name] == sizes[name] for name in taken[:-1])
    assert all(lot.remaining >= 0 for lot in member.lots)


def test_what_never_expires_is_spent_last_and_ties_go_by_age() -> None:
    member = member_with([(1, None, 0, 0), (2, 1, 0, 0), (4, 2, 0, 0), (8, 1, 0, 0)])
    assert list(verbs.redeem(member, 15).uses.values()) == [2, 8, 4, 1]


@patiently
@given(histories, st.integers(0, 300))
def test_balances_change_by_their_transfers_and_match_the_lots(
    history: list[tuple[int, int | None, int, int]], days: int
) -> None:
    member = member_with(history)
    for _, posting in verbs.due(member, NOON + timedelta(days=days), TERMS):
        if not isinstance(posting, Posting):
            continue
        before = dict(member.balances)
        member.apply(posting)
        assert {account: before[account] + change(posting, account) for account in before} == member.balances
        for account, pending in ((Account.AVAILABLE, False), (Account.PENDING, True)):
            assert member.balances[account] == sum(x.remaining for x in member.lots if x.pending is pending)


# --- what falls due -----------------------------------------------------------------------------------


@patiently
@given(histories, st.integers(0, 300))
def test_what_is_due_is_posted_in_order_of_time_and_only_once(
    history: list[tuple[int, int | None, int, int]], days: int
) -> None:
    at = NOON + timedelta(days=days)
    member = member_with(history)
    moments = []
    for moment, fallen in verbs.due(member, at, TERMS):
        moments.append(moment)
        if isinstance(fallen, Posting):
            member.apply(fallen)
    assert moments == sorted(moments)
    assert all(moment <= at for moment in moments)
    assert list(verbs.due(member, at, TERMS)) == []
    live = [lot for lot in member.lots if (lot.expires_at or NEVER) > at]
    assert member.available == sum(lot.remaining for lot in live if lot.available_at <= at)
    assert member.balances[Account.PENDING] == sum(x.remaining for x in live if x.available_at > at)
    assert member.next_due_time is None or member.next_due_time > at


def test_points_that_end_before_they_can_be_spent_expire_from_pending() -> None:
    member = ledger.new_member("member")
    terms = replace(TERMS, pending_days=366, expiry=Expiry(rolling_months=1))
    member.apply(verbs.earn(member, [Gain("rule", Unit.POINTS, 5)], terms, NOON))
    (posting,) = [posting for _, posting in _applying(member, NOON + timedelta(days=400))]
    assert posting.kind is TransactionKind.EXPIRE
    assert [(t.debit, t.amount) for t in posting.transfers] == [(Account.PENDING, 5)]


def test_a_backdated_lot_falls_due_although_the_other_lots_are_not_loaded() -> None:
    """Two earns in one batch: the first matures before the second is posted."""
    later = NOON + timedelta(days=1)
    member = replace(ledger.new_member("member"), seq=1, next_due_time=later, unloaded_due_time=later)
    terms = replace(TERMS, pending_days=3)
    member.apply(verbs.earn(member, [Gain("rule", Unit.POINTS, 5)], terms, NOON - timedelta(days=10)))
    kinds = [posting.kind for _, posting in _applying(member, NOON)]
    assert kinds == [TransactionKind.MATURE]
    assert (member.available, member.next_due_time) == (5, later)


def _applying(member: Member, at: datetime) -> list[tuple[datetime, Posting]]:
    """What is due, each applied before the next; fails instead of going on for ever."""
    posted = []
    for moment, fallen in verbs.due(member, at, TERMS):
        if isinstance(fallen, Posting):
            member.apply(fallen)
            posted.append((moment, fallen))
        assert len(posted) <= 2 * len(member.lots)
    return posted


# --- between members ----------------------------------------------------------------------------------


def test_points_that_travel_keep_their_end_and_those_that_ended_on_the_way_are_gone() -> None:
    desk = Desk(NOON)
    later = NOON + timedelta(days=5)
    receive(desk, (NOON, 3), (NOON - TICK, 4), (NOON + TICK, 2), (later, 5), (None, 6))
    assert desk.balances == (13, 0, 0, 0)
    desk.wait(microseconds=1)
    assert desk.balances == (11, 0, 0, 0)
    desk.wait(days=5)
    assert desk.balances == (6, 0, 0, 0)
    assert desk.net(Unit.POINTS, Account.ISSUER_EXPIRED) == -14
    assert desk.net(Unit.POINTS, Account.ISSUER_IN_TRANSIT) == 20


@pytest.mark.parametrize(("ended", "lasting", "owed"), [(5, 3, 7), (5, 12, 0), (5, 0, 10)])
def test_points_that_travel_pay_what_is_owed_but_not_with_what_ended_on_the_way(
    ended: int, lasting: int, owed: int
) -> None:
    desk = Desk(NOON)
    spent = desk.earn(10)
    desk.redeem(10)
    desk.reverse(spent)
    receive(desk, (NOON - timedelta(days=1), ended), *([(None, lasting)] if lasting else []))
    assert desk.balances == (max(0, lasting - 10), 0, 0, owed)


def receive(desk: Desk, *parts: tuple[datetime | None, int]) -> None:
    desk.do(Receive, transfer_id="txn_transfer", from_member_id="another", parts=parts)


# --- days ---------------------------------------------------------------------------------------------


@patiently
@given(st.sampled_from(ZONES), st.dates(date(2020, 1, 1), date(2040, 12, 31)), st.integers(1, 1200))
def test_points_end_with_the_last_instant_of_a_local_day(zone: str, earned: date, months: int) -> None:
    where = ZoneInfo(zone)
    last = add_months(earned, months)
    ends = Expiry(rolling_months=months).ends(earned, where)
    assert (ends - TICK).astimezone(where).date() == last
    assert ends.astimezone(where).date() == last + timedelta(days=1)


@pytest.mark.parametrize("zone", ZONES)
def test_calendar_points_end_with_the_year(zone: str) -> None:
    where = ZoneInfo(zone)
    for years in (0, 1, 100):
        ends = Expiry(calendar_years=years).ends(date(2026, 12, 31), where)
        assert ends.astimezone(where) == datetime(2027 + years, 1, 1, tzinfo=where)


@pytest.mark.parametrize(
    ("zone", "day", "instant"),
    [
        ("Asia/Shanghai", date(2026, 6, 15), datetime(2026, 6, 14, 16, tzinfo=UTC)),
        ("Africa/Cairo", date(2026, 4, 24), datetime(2026, 4, 23, 22, tzinfo=UTC)),  # 00:00 does not exist
        ("America/Havana", date(2026, 11, 1), datetime(2026, 11, 1, 4, tzinfo=UTC)),  # the first 00:00 of two
        ("Europe/Berlin", date(2026, 3, 30), datetime(2026, 3, 29, 22, tzinfo=UTC)),
    ],
)
def test_a_local_day_begins_with_its_first_instant(zone: str, day: date, instant: datetime) -> None:
    assert local_midnight(day, ZoneInfo(zone)) == instant


def test_a_lot_is_there_until_the_midnight_after_its_last_day_and_gone_from_then_on() -> None:
    member = ledger.new_member("member")
    earned = datetime(2026, 1, 31, 15, 59, 59, tzinfo=UTC)  # 23:59:59 on 31 January in Shanghai
    gain = Gain("rule", Unit.POINTS, 5, Expiry(rolling_months=1))
    member.apply(verbs.earn(member, [gain], TERMS, earned))
    midnight = datetime(2026, 3, 1, tzinfo=SHANGHAI)
    assert settled(member, midnight - TICK).available == 5
    assert settled(member, midnight).available == 0


@patiently
@given(st.dates(date(1970, 1, 1), date(2100, 12, 31)), st.integers(0, 1200))
def test_a_month_later_is_the_same_day_or_the_month_s_last(day: date, months: int) -> None:
    later = add_months(day, months)
    assert (later.year * 12 + later.month) - (day.year * 12 + day.month) == months
    assert later.day == min(day.day, calendar.monthrange(later.year, later.month)[1])


@pytest.mark.parametrize(
    ("day", "months", "later"),
    [
        (date(2026, 1, 31), 1, date(2026, 2, 28)),
        (date(2028, 1, 31), 1, date(2028, 2, 29)),
        (date(2028, 2, 29), 12, date(2029, 2, 28)),
        (date(2026, 12, 31), 2, date(2027, 2, 28)),
        (date(2026, 11, 30), 1, date(2026, 12, 30)),
    ],
)
def test_months_are_clamped(day: date, months: int, later: date) -> None:
    assert add_months(day, months) == later


# --- refusals -----------------------------------------------------------------------------------------


def gain_of(unit: Unit, amount: int) -> Callable[[Member], Posting]:
    return lambda member: verbs.earn(member, [Gain("rule", unit, amount)], TERMS, NOON)


def adjustment(unit: Unit, amount: int) -> Callable[[Member], Posting]:
    return lambda member: verbs.adjust(member, unit, amount, TERMS, NOON)


@pytest.mark.parametrize(
    ("command", "error", "metadata"),
    [
        (lambda m: verbs.redeem(m, 11), InsufficientPoints, {"available": "10", "requested": "11"}),
        (adjustment(Unit.POINTS, -11), InsufficientPoints, {"available": "10", "requested": "11"}),
        (adjustment(Unit.GROWTH, -1), InsufficientGrowth, {"growth": "0", "requested": "1"}),
        (adjustment(Unit.POINTS, MAX_BALANCE - 9), BalanceLimit, {"limit": str(MAX_BALANCE)}),
        (adjustment(Unit.GROWTH, MAX_BALANCE + 1), BalanceLimit, {"limit": str(MAX_BALANCE)}),
        (gain_of(Unit.POINTS, MAX_BALANCE - 9), BalanceLimit, {"limit": str(MAX_BALANCE)}),
        (gain_of(Unit.GROWTH, MAX_BALANCE + 1), BalanceLimit, {"limit": str(MAX_BALANCE)}),
    ],
)
def test_what_is_refused_changes_nothing(
    command: Callable[[Member], Posting],
    error: type[InsufficientPoints | InsufficientGrowth | BalanceLimit],
    metadata: dict[str, str],
) -> None:
    member = member_with([(10, None, 0, 0), (7, None, 0, 10)])  # the seven are pending
    before = deepcopy(member)
    with pytest.raises(error) as refusal:
        command(member)
    assert refusal.value.metadata == metadata
    assert member == before


def test_facts_may_lie_five_minutes_ahead_and_thirty_days_back() -> None:
    ahead, back = NOON + timedelta(minutes=5), NOON - timedelta(days=30)
    for occur in (ahead, NOON, back):
        verbs.check_occur_time(occur, NOON, may_backdate=False)
    verbs.check_occur_time(back - TICK, NOON, may_backdate=True)
    with pytest.raises(OccurTimeAhead):
        verbs.check_occur_time(ahead + TICK, NOON, may_backdate=True)
    with pytest.raises(BackdatingNeedsAdmin):
        verbs.check_occur_time(back - TICK, NOON, may_backdate=False)


# --- posting ------------------------------------------------------------------------------------------


def draft(at: datetime) -> Transaction:
    return Transaction(
        transaction_id="txn_1",
        member_id="member",
        kind=TransactionKind.EARN,
        request_id="request",
        payload_hash=b"",
        order_id="",
        activity_id="",
        reference_id="",
        reverses_transaction_id="",
        occur_time=at,
        create_time=at,
        programme_version=0,
        seq=0,
        transfers=(),
        contributions=(),
        balance=Balances(),
    )


def test_transactions_are_numbered_chained_and_never_dated_before_their_predecessor() -> None:
    member = ledger.new_member("member")
    first = ledger.post(member, gain_of(Unit.POINTS, 3)(member), draft(NOON))
    second = ledger.post(member, verbs.redeem(member, 2), draft(NOON - timedelta(hours=1)))
    assert [first.seq, second.seq, member.seq, member.version] == [1, 2, 2, 2]
    assert first.create_time == second.create_time == NOON
    assert first.hash == ledger.transaction_hash(b"", first)
    assert second.hash == ledger.transaction_hash(first.hash, second) == member.head_hash
    assert (first.balance, second.balance) == (
        Balances(available=3, lifetime_earned=3),
        Balances(available=1, lifetime_earned=3),
    )


def test_points_with_different_ends_become_different_lots_and_growth_none() -> None:
    member = ledger.new_member("member")
    short = Expiry(rolling_months=1)
    gains = [
        Gain("a", Unit.POINTS, 3),
        Gain("b", Unit.POINTS, 4, short),
        Gain("c", Unit.POINTS, 5),
        Gain("d", Unit.GROWTH, 6),
        Gain("e", Unit.POINTS, 0, Expiry(calendar_years=1)),
    ]
    posting = verbs.earn(member, gains, TERMS, NOON)
    assert [(lot.part, lot.remaining, lot.expires_at is None) for lot in posting.lots] == [
        (0, 8, True),
        (1, 4, False),
    ]
    assert (change(posting, Account.AVAILABLE), change(posting, Account.GROWTH)) == (12, 6)


def test_a_fact_counts_for_what_happened_in_its_time_until_ninety_days_after_its_end() -> None:
    member = ledger.new_member("member")
    end = NOON + timedelta(days=30)
    member.facts["segment/1"] = Fact("card.plus", "2", NOON, end, 1, 1, begun=(1, 1))
    assert member.told(NOON, now=NOON) == {"card.plus": "2"}
    assert member.told(NOON - TICK, now=NOON) == member.told(end, now=end) == {}
    assert member.told(NOON, now=end + FACT_KEPT - TICK) == {"card.plus": "2"}
    assert member.told(NOON, now=end + FACT_KEPT) == {}
