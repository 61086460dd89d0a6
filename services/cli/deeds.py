"""What members do in the replay besides buying: they spend, hold and have refunded.

Everything is decided by the orders and a hash of their ids, so that every replay asks for the very same.
Whether a member has the points for it shows only on the way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import polars as pl

from services.cli.baskets import TIME_ZONE

REDEEM_EVERY: Final = 4  # orders of a member
REDEEM_POINTS: Final = 20
HOLD_POINTS: Final = 30
CAPTURED_POINTS: Final = 12  # of a hold that is captured in part

_ZONE: Final = ZoneInfo(TIME_ZONE)
# Local days from an order to its refund: mostly soon, some when its points have long expired.
_REFUNDED_AFTER: Final = (0, 0, 0, 1, 1, 2, 4, 9, 21, 45, 95, 120)
_CLOSED_AFTER: Final = (0, 0, 1, 1, 2, 3, 7, 14, 21, 28)  # from an order to the end of its hold; at most 30
_AFTER_CLOSING: Final = timedelta(hours=7)  # a hold's deadline, after the evening on which it may be closed


@dataclass(frozen=True, slots=True)
class Redeem:
    """Spends points, all there are where no amount is said; nothing if there are fewer."""

    name: str
    amount: int | None


@dataclass(frozen=True, slots=True)
class Hold:
    """Sets points aside until a deadline; nothing if there are fewer."""

    name: str
    amount: int
    until: datetime


@dataclass(frozen=True, slots=True)
class Close:
    """Captures points of a hold, 0 being all of it, or releases it; nothing if it was not placed."""

    name: str
    hold: str
    capture: int | None


@dataclass(frozen=True, slots=True)
class Refund:
    """Gives back an amount of an order, parts of its lines, or all that is left. Minor units."""

    name: str
    order_id: str
    amount: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)
    everything: bool = False


@dataclass
class Plan:
    """What is asked for, and when. Each deed's name is its request_id."""

    at_once: dict[str, list[Redeem | Hold]] = field(default_factory=dict)
    """By order: what its member does right after it."""
    later: dict[date, dict[str, list[Close | Refund]]] = field(default_factory=dict)
    """By local day and member: what is done after the day's orders, in this order."""

    def add_later(self, day: date, member_id: str, deed: Close | Refund) -> None:
        """Adds what a member does on a day."""
        self.later.setdefault(day, {}).setdefault(member_id, []).append(deed)


def evening(day: date) -> datetime:
    """The last second of a local day: the replay's clock while it sends the day's orders."""
    return (datetime.combine(day + timedelta(days=1), time(), _ZONE) - timedelta(seconds=1)).astimezone(UTC)


def plan(frame: pl.DataFrame) -> Plan:
    """Decide what follows the orders of a frame, the lines of services.cli.baskets.

    Of a hundred orders about six are refunded, whole or in parts, four are followed by a hold, and two by
    spending everything, as are many that will be refunded; besides, every fourth order of a member by
    spending some. What would fall on a day after the last order is left out.
    """
    made = Plan()
    ordinals: Counter[str] = Counter()
    local = pl.col("paid_time").dt.convert_time_zone(TIME_ZONE).dt.date()
    orders = frame.group_by("order_id", maintain_order=True).agg(
        pl.first("member_id"), local.first().alias("day"), pl.col("line_id", "amount_minor")
    )
    for order_id, member_id, day, line_ids, amounts in orders.iter_rows():
        ordinals[member_id] += 1
        dice = _Dice(order_id)
        spending: list[Redeem | Hold] = []
        if ordinals[member_id] % REDEEM_EVERY == 0:
            spending.append(Redeem(f"redeem-{order_id}", REDEEM_POINTS))
        match dice.of(100):
            case 0 | 1:
                spending.append(Redeem(f"spend-{order_id}", None))
            case 2 | 3 | 4 | 5 as which:
                after = dice.one(_CLOSED_AFTER)
                closed = day + timedelta(days=after)
                hold = Hold(f"hold-{order_id}", HOLD_POINTS, evening(closed) + _AFTER_CLOSING)
                spending.append(hold)
                if which != 5:  # otherwise it is left to lapse
                    capture = {2: 0, 3: CAPTURED_POINTS, 4: None}[which]
                    made.add_later(closed, member_id, Close(f"close-{order_id}", hold.name, capture))
        refunded = day
        for refund in _refunds(order_id, dict(zip(line_ids, amounts, strict=True)), dice):
            if not spending:
                spending.append(Redeem(f"spend-{order_id}", None))
            refunded += timedelta(days=dice.one(_REFUNDED_AFTER))
            made.add_later(refunded, member_id, refund)
        if spending:
            made.at_once[order_id] = spending
    last = orders["day"].max()
    made.later = {day: deeds for day, deeds in made.later.items() if day <= last}  # type: ignore[operator]
    return made


def _refunds(order_id: str, lines: Mapping[str, int], dice: _Dice) -> Iterator[Refund]:
    """The refunds of an order, in turn; together never more than was paid."""
    total = sum(lines.values())
    which = dice.of(100)
    if total < 100 or which > 5:
        return
    name = f"refund-{order_id}"
    line_id, most = max(lines.items(), key=lambda line: line[1])  # at least a cent
    part = Refund(f"{name}-1", order_id, lines={line_id: (most + 1) // 2})
    match which:
        case 0:
            yield Refund(name, order_id, everything=True)
        case 1:
            yield Refund(name, order_id, amount=total // 3)
        case 2:  # half of the lines, whole
            chosen = {line: amount for line, amount in lines.items() if amount}
            yield Refund(name, order_id, lines=dict(list(chosen.items())[: (len(chosen) + 1) // 2]))
        case 3:
            yield part
            yield Refund(f"{name}-2", order_id, everything=True)
        case 4:  # by amount, by line, by amount
            yield Refund(f"{name}-0", order_id, amount=total // 4)
            yield part
            yield Refund(f"{name}-2", order_id, amount=total // 8)
        case _:  # the whole, in three parts
            third = total // 3
            for number, amount in enumerate((third, third, total - 2 * third)):
                yield Refund(f"{name}-{number}", order_id, amount=amount)


class _Dice:
    """Throws that are the same for the same order, whenever it is replayed."""

    def __init__(self, order_id: str) -> None:
        self._left = int.from_bytes(hashlib.sha256(order_id.encode()).digest())

    def of(self, sides: int) -> int:
        self._left, thrown = divmod(self._left, sides)
        return thrown

    def one(self, choices: Sequence[int]) -> int:
        return choices[self.of(len(choices))]
