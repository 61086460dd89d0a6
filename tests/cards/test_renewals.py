"""Renewals are charged only after a notice, five days ahead, and not above it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cards.domain import renewals
from services.cards.domain.renewals import Renewal, RenewalStatus, record_notice
from services.cards.errors import NoticeNotDue, NoticeRecorded, NoticeTimeAhead, RenewalClosed

ZONE = ZoneInfo("Asia/Shanghai")
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
END = datetime(2027, 2, 28, 4, 0, tzinfo=UTC)
RENEWAL = Renewal.of(END, 7, 1900, ZONE)
S = RenewalStatus


def noticed(at: datetime, amount: int = 1900) -> Renewal:
    return record_notice(RENEWAL, at, amount, at, ZONE)


def test_times_are_counted_back_from_the_end() -> None:
    assert (RENEWAL.notice_due, RENEWAL.notice_deadline, RENEWAL.charge, RENEWAL.charge_until) == (
        END - 11 * DAY,
        END - 6 * DAY,
        END - DAY,
        END + 7 * DAY,
    )
    assert Renewal.of(END, 0, 1900, ZONE).charge_until == END + DAY


def test_without_a_notice_it_is_never_chargeable() -> None:
    statuses = [
        RENEWAL.status(at, ZONE) for at in (END - 11 * DAY - TICK, END - 11 * DAY, END, END + 7 * DAY)
    ]
    assert statuses == [S.SIGNED, S.NOTICE_DUE, S.NOTICE_DUE, S.FAILED]
    assert not any(RENEWAL.allows(1900, END + hours * timedelta(hours=1), ZONE) for hours in range(-300, 300))


def test_it_is_chargeable_five_days_after_the_notice_and_not_before_the_day() -> None:
    early = noticed(END - 10 * DAY)
    assert early.status(END - DAY - TICK, ZONE) is S.NOTIFIED
    assert early.status(END - DAY, ZONE) is S.CHARGEABLE
    late = noticed(END - 2 * DAY)
    assert late.status(END + 3 * DAY - TICK, ZONE) is S.NOTIFIED
    assert late.status(END + 3 * DAY, ZONE) is S.CHARGEABLE
    assert late.status(END + 7 * DAY, ZONE) is S.FAILED


def test_never_more_than_was_announced_is_charged() -> None:
    less = noticed(END - 10 * DAY, 1500)
    assert less.allows(1500, END, ZONE)
    assert not less.allows(1501, END, ZONE)
    assert not noticed(END - 10 * DAY, 2500).allows(1901, END, ZONE)
    assert not less.allows(1500, END - DAY - TICK, ZONE)


def test_a_notice_is_recorded_once_when_due_and_not_ahead_of_the_clock() -> None:
    with pytest.raises(NoticeNotDue):
        noticed(END - 11 * DAY - TICK)
    with pytest.raises(NoticeTimeAhead):
        record_notice(RENEWAL, END - DAY, 1900, END - 2 * DAY, ZONE)
    with pytest.raises(NoticeRecorded):
        record_notice(noticed(END - 9 * DAY), END - 8 * DAY, 1900, END - 8 * DAY, ZONE)
    with pytest.raises(RenewalClosed):
        noticed(END + 7 * DAY)


def test_it_is_cancelled_at_any_moment_and_charged_once() -> None:
    for renewal, at in ((RENEWAL, END - 300 * DAY), (RENEWAL, END - 9 * DAY), (noticed(END - 9 * DAY), END)):
        cancelled = renewals.cancel(renewal, at, ZONE)
        assert cancelled.status(at, ZONE) is S.CANCELLED
        assert not cancelled.allows(1900, END, ZONE)
        assert renewals.cancel(cancelled, at, ZONE) == cancelled
        with pytest.raises(RenewalClosed):
            record_notice(cancelled, at, 1900, at, ZONE)
    charged = renewals.charged(noticed(END - 9 * DAY))
    assert charged.status(END, ZONE) is S.CHARGED
    assert renewals.cancel(charged, END, ZONE) == charged
    assert not charged.allows(1900, END, ZONE)


@given(st.integers(-400, 300), st.integers(-400, 300))
def test_whatever_is_charged_was_announced_five_days_before(told: int, paid: int) -> None:
    notice, payment = END + told * timedelta(hours=1), END + paid * timedelta(hours=1)
    if notice < RENEWAL.notice_due or notice >= RENEWAL.charge_until:
        return
    if noticed(notice).allows(1900, payment, ZONE):
        assert payment - notice >= 5 * DAY
        assert END - DAY <= payment < END + 7 * DAY
