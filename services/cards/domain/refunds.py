"""What giving a card back gives: per period, as signed lines that sum up to the refund.

Whole while unused within cooling-off; else by the product the unused days' part, rounded down, less the value
of the benefits used in the period; or nothing. Never above what was paid for the period, nor below nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from services.cards.domain.cards import Card, Segment
from services.cards.domain.periods import days_after
from services.cards.domain.products import RefundPolicy


class StepKind(StrEnum):
    """One step from what was paid to what is given back."""

    PAID = "PAID"
    USED_DAYS = "USED_DAYS"
    USED_BENEFITS = "USED_BENEFITS"
    NOT_REFUNDABLE = "NOT_REFUNDABLE"


@dataclass(frozen=True, slots=True)
class Step:
    """A signed line, in minor units; in points where the period was paid by points."""

    segment_id: str
    kind: StepKind
    amount: int
    count: int = 0
    """Days or uses that it is about."""
    of_count: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a period was bought under, and what was used in it."""

    policy: RefundPolicy
    price_minor: int
    points_price: int
    uses: int = 0
    """Uses of benefits that count, reserved ones included."""
    saved_minor: int = 0


@dataclass(frozen=True, slots=True)
class RefundQuote:
    """What is given back, and how it comes about."""

    minor: int
    points: int
    steps: tuple[Step, ...]


def quote(card: Card, terms: Mapping[str, Terms], at: datetime, zone: ZoneInfo) -> RefundQuote:
    """What giving back what runs and is queued gives at an instant; `terms` by segment id."""
    present = card.as_of(at, zone)
    minor = points = 0
    steps: list[Step] = []
    for segment in present.live(at):
        lines = _account(segment, terms[segment.segment_id], at, zone)
        back = sum(line.amount for line in lines)
        steps += lines
        if segment.paid_points:
            points += back
        else:
            minor += back
    return RefundQuote(minor, points, tuple(steps))


def _account(segment: Segment, terms: Terms, at: datetime, zone: ZoneInfo) -> list[Step]:
    paid = segment.paid_points or segment.paid_minor
    steps = [Step(segment.segment_id, StepKind.PAID, paid)]
    cooling = at < days_after(segment.paid_at, terms.policy.cooling_off_days, zone)
    if cooling and not terms.uses:
        return steps
    if not terms.policy.pro_rata:
        return [*steps, Step(segment.segment_id, StepKind.NOT_REFUNDABLE, -paid)]
    unused = segment.unused_days(at, zone)
    worth = paid * unused // segment.days
    steps.append(
        Step(segment.segment_id, StepKind.USED_DAYS, worth - paid, segment.days - unused, segment.days)
    )
    if terms.uses:
        value = min(worth, _used_value(segment, terms, worth))
        steps.append(Step(segment.segment_id, StepKind.USED_BENEFITS, -value, terms.uses))
    return steps


def _used_value(segment: Segment, terms: Terms, worth: int) -> int:
    """What the benefits used are worth in the unit of the price, rounded up.

    Points are reckoned by the product's two prices. Where it has none in money, what was used is used up.
    """
    if not segment.paid_points:
        return terms.saved_minor
    if not terms.price_minor:
        return worth if terms.saved_minor else 0
    return -(-terms.saved_minor * terms.points_price // terms.price_minor)
