"""What is left of an order after its refunds: cumulative and exact, so that their split does not matter.

A is what was refunded by amount and L(i) what was refunded of line i. Line i of amount a(i) remains as
(a(i) - L(i)) * (1 - A / S), where S is the sum of a(j) - L(j) over all lines; the delivery fee is one more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from services.points.errors import LineUnknown, RefundExceedsOrder


@dataclass(frozen=True, slots=True)
class Refund:
    """What one refund gives back: an amount, parts of lines, or everything that is left. Minor units."""

    amount: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Refunded:
    """What was refunded of an order so far."""

    amount: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)
    everything: bool = False

    @property
    def total(self) -> int:
        """By amount and by lines together."""
        return self.amount + sum(self.lines.values())

    def plus(self, refund: Refund, lines: Mapping[str, int] | None, total: int) -> Refunded:
        """The state after one more refund of an order with these lines (None: erased) and total.

        Raises LineUnknown, RefundExceedsOrder.
        """
        left = total - self.total
        if refund.everything:
            return Refunded(self.amount + left, self.lines, everything=True)
        amounts = dict(self.lines)
        for line_id, amount in refund.lines.items():
            if lines is None or line_id not in lines:
                raise LineUnknown(line_id=line_id)
            amounts[line_id] = amounts.get(line_id, 0) + amount
            if amounts[line_id] > lines[line_id]:
                refundable = lines[line_id] - self.lines.get(line_id, 0)
                raise RefundExceedsOrder(refundable=refundable, requested=amount)
        requested = refund.amount + sum(refund.lines.values())
        if requested > left:
            raise RefundExceedsOrder(refundable=left, requested=requested)
        return Refunded(self.amount + refund.amount, amounts, self.everything)

    def nothing_left(self, total: int) -> bool:
        """Whether the whole order was refunded."""
        return self.everything or (total > 0 and self.total == total)

    def remaining(self, amount: int, refunded: int, total: int) -> Fraction:
        """What remains of a line (or of the fee) of which that much was refunded by itself."""
        rest = total - sum(self.lines.values())
        return (amount - refunded) * (1 - Fraction(self.amount, rest)) if rest else Fraction(0)
