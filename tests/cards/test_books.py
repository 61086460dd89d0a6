"""The audit's rules find what does not add up, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from services.cards.domain import cards
from services.cards.domain.books import KeptWindow, Money, money, overlapping, savings, windows
from services.cards.domain.cards import Card, Ending, Purchase
from services.cards.domain.periods import Period
from services.cards.domain.quotas import Use, UseStatus

ZONE = ZoneInfo("Asia/Shanghai")
NOW = datetime(2027, 3, 1, 4, 0, tzinfo=UTC)
DAY = timedelta(days=1)
CUP = ("c", "cup", "2027-03-01")


def purchase(name: str, months: int = 1) -> Purchase:
    return Purchase(name, "king", 1, Period(months=months), 0, NOW, 1900)


def card() -> Card:
    return cards.extend(cards.extend(Card("c"), purchase("a"), NOW, ZONE), purchase("b"), NOW, ZONE)


def use(uses: int, saved: int, status: UseStatus = UseStatus.CONFIRMED) -> Use:
    return Use("c", "a", "cup", CUP[2], uses, saved, status, NOW)


def test_periods_that_overlap_are_found() -> None:
    a, b = card().segments
    assert overlapping("c", [b, a]) == []
    (finding,) = overlapping("c", [a, replace(b, start=a.end - timedelta(microseconds=1))])
    assert finding.subject == "c"
    replaced = cards.upgrade(card(), purchase("q", 3), NOW + DAY, ZONE)
    assert overlapping("c", replaced.segments) == []
    given_back = cards.end_live(replaced, Ending.REFUNDED, NOW + 2 * DAY, ZONE)
    again = cards.extend(given_back, purchase("n"), NOW + 2 * DAY, ZONE)
    assert overlapping("c", again.segments) == []


def test_windows_hold_what_their_uses_sum_up_to_and_not_more_than_the_limit() -> None:
    uses = [use(1, 700), use(1, 700, UseStatus.RESERVED), use(5, 700, UseStatus.REVERSED)]
    assert windows({CUP: KeptWindow(2, 2)}, uses) == []
    assert [f.rule for f in windows({CUP: KeptWindow(3, 3)}, uses)] == ["uses of a window"]
    assert [f.rule for f in windows({CUP: KeptWindow(2, 1)}, uses)] == ["limit of a window"]
    assert [f.rule for f in windows({}, uses)] == ["uses of a window"]
    assert windows({}, [replace(use(1, 5), window_key="")]) == []


def test_what_was_paid_is_what_became_of_it() -> None:
    """A month of 19.00; an upgrade to 39.00 with 10.00 of unused days; 5.00 given back; 1.00 too much."""
    books = Money(
        received=1900 + 2900 + 100, segments=1900 + 3900 - 500, credits=-1000, refunds=500, refund_due=100
    )
    assert money("m", books) == []
    assert [f.rule for f in money("m", replace(books, refund_due=0))] == ["what was paid"]


def test_savings_are_what_the_uses_saved() -> None:
    uses = [use(1, 700), use(1, 300), use(1, 50, UseStatus.REVERSED)]
    assert savings("c", {"a": 1000}, uses) == []
    assert [f.found for f in savings("c", {"a": 999}, uses)] == ["999"]
    assert [f.expected for f in savings("c", {"a": 1000, "b": 1}, uses)] == ["0"]
