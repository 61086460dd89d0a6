"""A card: the chain of the periods that were bought, and what it is at an instant.

What a card is follows from its periods, its rest and the time alone; nothing needs to be swept first. While
it rests, its periods are kept as they stood when the rest began; they are moved when it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from services.cards.domain.periods import (
    DAY,
    Anchor,
    Period,
    Placement,
    Tail,
    days_after,
    place,
    start_now,
    wall_time,
)
from services.cards.domain.products import FreezePolicy
from services.cards.errors import (
    CardFrozen,
    CardNotActive,
    CardNotFrozen,
    ChainTooLong,
    CreditExceedsPrice,
    FreezeCount,
    FreezeLength,
    FreezeNotAllowed,
    FreezeTooShort,
    GiftClaimed,
    GiftExpired,
    GiftNotPaid,
    GiftRefunded,
    UpgradeUnitMismatch,
)

LONGEST_CHAIN = 100  # periods that run or are queued; an event names them all


class CardStatus(StrEnum):
    """What a card is at an instant."""

    SCHEDULED = "SCHEDULED"
    ACTIVE = "ACTIVE"
    FROZEN = "FROZEN"
    EXPIRED = "EXPIRED"
    REFUNDED = "REFUNDED"


class Ending(StrEnum):
    """Why a period ended before its time."""

    REFUNDED = "REFUNDED"
    REPLACED = "REPLACED"
    CLAWED_BACK = "CLAWED_BACK"


@dataclass(frozen=True, slots=True)
class Purchase:
    """A period that was paid for or given. Price in minor units or points, a credit included."""

    segment_id: str
    product_code: str
    product_version: int
    period: Period
    grace_days: int
    paid_at: datetime
    paid_minor: int = 0
    paid_points: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """One bought period, [start, over)."""

    segment_id: str
    product_code: str
    product_version: int
    start: datetime
    end: datetime
    anchor: Anchor
    """Stands for the end."""
    days: int
    """Local days that were bought; a rest adds none."""
    streak: int
    grace_days: int
    paid_at: datetime
    paid_minor: int = 0
    paid_points: int = 0
    freezes: int = 0
    """Rests that began while it ran."""
    ended_at: datetime | None = None
    ending: Ending | None = None

    @property
    def over(self) -> datetime:
        """From this instant on it no longer holds; not after the start where it never did."""
        return self.end if self.ended_at is None else min(self.end, self.ended_at)

    def runs(self, at: datetime) -> bool:
        """Whether it holds at an instant, rests aside."""
        return self.start <= at < self.over

    def unused_days(self, at: datetime, zone: ZoneInfo) -> int:
        """Local days that have not begun; a day begins at the time of day of the purchase."""
        left = (wall_time(self.end, zone) - wall_time(max(at, self.start), zone)) // DAY
        return min(max(left, 0), self.days) if at > self.start else self.days

    def shifted(self, by: timedelta, zone: ZoneInfo) -> Segment:
        """Moved by a rest that began at or before its end, and anchored anew."""
        end = self.end + by
        return replace(self, end=end, anchor=Anchor.at(end, zone))


@dataclass(frozen=True, slots=True)
class Rest:
    """A freeze that is not known to be over: [start, until)."""

    start: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Card:
    """A member's card of a family: its periods in order."""

    card_id: str
    segments: tuple[Segment, ...] = ()
    rest: Rest | None = None

    def as_of(self, at: datetime, zone: ZoneInfo) -> Card:
        """As it stands at an instant: moved by what has passed of a rest, which is gone where it is over."""
        if self.rest is None:
            return self
        if at < self.rest.start:  # it had not begun, and nothing was moved yet
            return replace(self, rest=None)
        by = min(at, self.rest.until) - self.rest.start
        rest = self.rest if at < self.rest.until else None
        return replace(self, segments=_shift(self.segments, self.rest.start, by, zone), rest=rest)

    def status(self, at: datetime, zone: ZoneInfo) -> CardStatus:
        """What it is at an instant; at the very end of its last period it has expired."""
        card = self.as_of(at, zone)
        if card.rest is not None:
            return CardStatus.FROZEN
        if any(segment.runs(at) for segment in card.segments):
            return CardStatus.ACTIVE
        if any(at < segment.start < segment.over for segment in card.segments):
            return CardStatus.SCHEDULED
        last = max(reversed(card.segments), key=lambda segment: (segment.over, segment.start))
        given_back = last.ending in (Ending.REFUNDED, Ending.CLAWED_BACK)
        return CardStatus.REFUNDED if given_back else CardStatus.EXPIRED

    def running(self, at: datetime, zone: ZoneInfo) -> Segment | None:
        """The period whose benefits hold at an instant: none while it rests."""
        card = self.as_of(at, zone)
        if card.rest is not None:
            return None
        return next((segment for segment in card.segments if segment.runs(at)), None)

    def live(self, at: datetime) -> list[Segment]:
        """The periods that run or are queued, also while it rests. Ask it of a card as of the instant."""
        return [segment for segment in self.segments if at < segment.over and segment.start < segment.over]

    @property
    def tail(self) -> Tail | None:
        """How the chain ends; None where its last period was given back: there is no chain to continue."""
        last = next((segment for segment in reversed(self.segments) if segment.start < segment.over), None)
        if last is None or last.ending is not None:
            return None
        return Tail(last.end, last.anchor, last.streak, last.grace_days)


def _shift(
    segments: tuple[Segment, ...], since: datetime, by: timedelta, zone: ZoneInfo
) -> tuple[Segment, ...]:
    """Moves what was not over when a rest began, what was queued then with its start."""
    if not by:
        return segments
    moved = []
    for segment in segments:
        if segment.over <= since or segment.ended_at is not None:
            moved.append(segment)
            continue
        later = segment.shifted(by, zone)
        moved.append(later if segment.start <= since else replace(later, start=segment.start + by))
    return tuple(moved)


def extend(card: Card, purchase: Purchase, now: datetime, zone: ZoneInfo) -> Card:
    """Queues a bought period behind what there is, or starts it now where there is nothing left.

    A card that rests goes on resting: the period is queued, and moved with the others. Raises ChainTooLong.
    """
    present = card.as_of(now, zone)
    if len(present.live(now)) >= LONGEST_CHAIN:
        raise ChainTooLong(limit=LONGEST_CHAIN)
    if card.rest is None or present.rest is None:
        return _append(present, purchase, purchase.paid_at, now, zone)
    # As kept, the chain stands where it stood when the rest began; then is the time to continue it.
    since = card.rest.start
    return _append(card, purchase, min(purchase.paid_at, since), since, zone)


def _append(card: Card, purchase: Purchase, paid: datetime, now: datetime, zone: ZoneInfo) -> Card:
    where = place(purchase.period, paid, now, card.tail, zone)
    return replace(card, segments=(*card.segments, _segment(purchase, where)))


def _segment(purchase: Purchase, where: Placement) -> Segment:
    return Segment(
        purchase.segment_id,
        purchase.product_code,
        purchase.product_version,
        where.start,
        where.end,
        where.anchor,
        where.days,
        where.streak,
        purchase.grace_days,
        purchase.paid_at,
        purchase.paid_minor,
        purchase.paid_points,
    )


@dataclass(frozen=True, slots=True)
class Credit:
    """What the unused days of a card are worth, in minor units and in points."""

    minor: int
    points: int


def unused_credit(card: Card, at: datetime, zone: ZoneInfo) -> Credit:
    """The unused days' part of what was paid for what runs and is queued, each period rounded down."""
    present = card.as_of(at, zone)
    shares = [(segment, segment.unused_days(at, zone)) for segment in present.live(at)]
    return Credit(
        sum(segment.paid_minor * left // segment.days for segment, left in shares),
        sum(segment.paid_points * left // segment.days for segment, left in shares),
    )


def upgrade_price(price: int, credit: Credit, *, by_points: bool) -> tuple[int, int]:
    """What an upgrade that starts now costs, and the credit in it, in the unit it is paid in.

    Raises UpgradeUnitMismatch where credit in the other unit would be lost, and CreditExceedsPrice.
    """
    own, other = (credit.points, credit.minor) if by_points else (credit.minor, credit.points)
    if other:
        raise UpgradeUnitMismatch
    if own > price:
        raise CreditExceedsPrice(credit=own, price=price)
    return price - own, own


def upgrade(card: Card, purchase: Purchase, now: datetime, zone: ZoneInfo) -> Card:
    """Starts a bought period now. It takes the place of what runs and is queued, and ends a rest."""
    present = card.as_of(now, zone)
    if not present.live(now):
        return extend(card, purchase, now, zone)
    tail = present.running(now, zone) or present.live(now)[0]
    ended = end_live(card, Ending.REPLACED, now, zone)
    where = start_now(purchase.period, now, tail.streak, zone)
    return replace(ended, segments=(*ended.segments, _segment(purchase, where)))


def end_live(card: Card, ending: Ending, now: datetime, zone: ZoneInfo) -> Card:
    """Ends what runs and is queued, and a rest with it."""
    present = card.as_of(now, zone)
    live = present.live(now)
    segments = tuple(
        replace(segment, ended_at=now, ending=ending) if segment in live else segment
        for segment in present.segments
    )
    return replace(present, segments=segments, rest=None)


def claw_back(card: Card, segment_id: str, now: datetime, zone: ZoneInfo) -> Card:
    """Takes a given period back; the others stay where they are. One that is over stays as it was."""
    present = card.as_of(now, zone)
    taken = next((segment for segment in present.live(now) if segment.segment_id == segment_id), None)
    if taken is None:
        return card
    queued = taken.start > now
    # A rest ends with the period that rests; while another rests, the chain stays as it is kept.
    kept = card if queued and present.rest is not None else replace(present, rest=None)
    segments = tuple(
        replace(segment, ended_at=segment.start if queued else now, ending=Ending.CLAWED_BACK)
        if segment.segment_id == segment_id
        else segment
        for segment in kept.segments
    )
    return replace(kept, segments=segments)


def freeze(card: Card, policy: FreezePolicy | None, days: int, now: datetime, zone: ZoneInfo) -> Card:
    """Rests a running card for so many local days at most; 0 means as long as it may.

    Raises CardFrozen, CardNotActive, FreezeNotAllowed, FreezeCount, FreezeLength.
    """
    present = card.as_of(now, zone)
    if present.rest is not None:
        raise CardFrozen
    running = present.running(now, zone)
    if running is None:
        raise CardNotActive
    if policy is None:
        raise FreezeNotAllowed
    if running.freezes >= policy.count:
        raise FreezeCount(limit=policy.count)
    length = days or policy.longest_days
    if not policy.shortest_days <= length <= policy.longest_days:
        raise FreezeLength(shortest_days=policy.shortest_days, longest_days=policy.longest_days)
    counted = replace(running, freezes=running.freezes + 1)
    segments = tuple(counted if segment is running else segment for segment in present.segments)
    return replace(present, segments=segments, rest=Rest(now, days_after(now, length, zone)))


def resume(card: Card, policy: FreezePolicy | None, now: datetime, zone: ZoneInfo) -> Card:
    """Ends a rest before its time. Raises CardNotFrozen, FreezeTooShort."""
    present = card.as_of(now, zone)
    if present.rest is None:
        raise CardNotFrozen
    if policy is not None and now < days_after(present.rest.start, policy.shortest_days, zone):
        raise FreezeTooShort(shortest_days=policy.shortest_days)
    return replace(present, rest=None)


@dataclass(frozen=True, slots=True)
class Gift:
    """A period that was bought for somebody else; its code works once."""

    paid: bool
    claim_until: datetime
    """From this instant on it can no longer be claimed."""
    claimed: bool = False
    refunded: bool = False

    def check_claim(self, at: datetime) -> None:
        """Raises GiftRefunded, GiftClaimed, GiftNotPaid or GiftExpired where it cannot be claimed."""
        if self.refunded:
            raise GiftRefunded
        if self.claimed:
            raise GiftClaimed
        if not self.paid:
            raise GiftNotPaid
        if at >= self.claim_until:
            raise GiftExpired
