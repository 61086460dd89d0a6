"""The gate before a renewal is charged: the member is told five days ahead, and may cancel at any moment.

Where a renewal stands follows from what was recorded and the time. A notice that comes late moves the charge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from services.cards.domain.periods import days_after
from services.cards.errors import NoticeNotDue, NoticeRecorded, NoticeTimeAhead, RenewalClosed

NOTICE_DAYS = 5  # between notice and charge, at least
CHARGE_DAYS = 1  # before the period's end the charge may begin
TELL_DAYS = 5  # before the last moment for a notice it is asked for
CLOCK_SKEW = timedelta(minutes=5)


class RenewalStatus(StrEnum):
    """Where a renewal stands."""

    SIGNED = "SIGNED"
    NOTICE_DUE = "NOTICE_DUE"
    NOTIFIED = "NOTIFIED"
    CHARGEABLE = "CHARGEABLE"
    CHARGED = "CHARGED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


_OPEN = (RenewalStatus.SIGNED, RenewalStatus.NOTICE_DUE, RenewalStatus.NOTIFIED, RenewalStatus.CHARGEABLE)


@dataclass(frozen=True, slots=True)
class Renewal:
    """One coming charge, for when a period ends."""

    notice_due: datetime
    """From here on the notice is asked for."""
    notice_deadline: datetime
    """Given by then, it lets the charge come in time."""
    charge: datetime
    """Not charged before this."""
    charge_until: datetime
    """Nor from this instant on."""
    amount_minor: int
    """What is to be announced; once it was, what was, where that is less."""
    noticed: datetime | None = None
    outcome: RenewalStatus | None = None
    """CHARGED, FAILED or CANCELLED, once it is."""

    @classmethod
    def of(cls, end: datetime, grace_days: int, amount_minor: int, zone: ZoneInfo) -> Renewal:
        """The renewal of a period with this end."""
        charge = days_after(end, -CHARGE_DAYS, zone)
        deadline = days_after(charge, -NOTICE_DAYS, zone)
        # At least a day is left to charge what was told at the deadline.
        until = max(days_after(end, grace_days, zone), days_after(charge, 2 * CHARGE_DAYS, zone))
        return cls(days_after(deadline, -TELL_DAYS, zone), deadline, charge, until, amount_minor)

    def chargeable_from(self, zone: ZoneInfo) -> datetime | None:
        """When it may be charged: on the day, and five days after the notice; None without one."""
        if self.noticed is None:
            return None
        return max(self.charge, days_after(self.noticed, NOTICE_DAYS, zone))

    def status(self, at: datetime, zone: ZoneInfo) -> RenewalStatus:
        """Where it stands at an instant."""
        if self.outcome is not None:
            return self.outcome
        if at >= self.charge_until:
            return RenewalStatus.FAILED
        opens = self.chargeable_from(zone)
        if opens is not None:
            return RenewalStatus.CHARGEABLE if at >= opens else RenewalStatus.NOTIFIED
        return RenewalStatus.NOTICE_DUE if at >= self.notice_due else RenewalStatus.SIGNED

    def allows(self, amount_minor: int, paid: datetime, zone: ZoneInfo) -> bool:
        """Whether such a payment may be kept: after a stored notice, in its time, not above the announced."""
        return self.status(paid, zone) is RenewalStatus.CHARGEABLE and amount_minor <= self.amount_minor


def record_notice(
    renewal: Renewal, told: datetime, amount_minor: int, now: datetime, zone: ZoneInfo
) -> Renewal:
    """Keeps that the member was told. A notice told later than it was given counts from when it was given.

    Raises RenewalClosed, NoticeRecorded, NoticeNotDue, NoticeTimeAhead.
    """
    if renewal.noticed is not None and renewal.outcome is None:
        raise NoticeRecorded
    if renewal.status(now, zone) not in _OPEN:
        raise RenewalClosed
    if told > now + CLOCK_SKEW:
        raise NoticeTimeAhead
    if told < renewal.notice_due:
        raise NoticeNotDue(notice_due_time=renewal.notice_due.isoformat())
    return replace(renewal, noticed=told, amount_minor=min(amount_minor, renewal.amount_minor))


def cancel(renewal: Renewal, at: datetime, zone: ZoneInfo) -> Renewal:
    """Ends it, free and at any moment; one that is over stays as it was."""
    if renewal.status(at, zone) not in _OPEN:
        return renewal
    return replace(renewal, outcome=RenewalStatus.CANCELLED)


def charged(renewal: Renewal) -> Renewal:
    """It was paid, in time and as announced."""
    return replace(renewal, outcome=RenewalStatus.CHARGED)
