"""Places under a sales cap, numbered from 1: which order has which, and which is free."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from services.cards.domain.wallet import Slot


class Places:
    """The places in a product's window at an instant.

    A place that lapsed is free, and still the order's that had it while nobody takes it.
    """

    def __init__(self, slots: Iterable[Slot] = (), at: datetime | None = None) -> None:
        known = list(slots)
        self._order_of = {slot.number: slot.order_id for slot in known}
        self._number_of = {slot.order_id: slot.number for slot in known}
        self._held = {slot.number for slot in known if at is None or slot.held(at)}
        self._lowest = 1  # those before it are held

    def copy(self) -> Places:
        """A copy to work on."""
        other = Places()
        other._order_of, other._number_of = dict(self._order_of), dict(self._number_of)
        other._held, other._lowest = set(self._held), self._lowest
        return other

    @property
    def held(self) -> int:
        """How many are held."""
        return len(self._held)

    def of(self, order_id: str) -> int | None:
        """The place that an order has or had, if nobody took it since."""
        return self._number_of.get(order_id)

    def free(self, limit: int) -> int | None:
        """The lowest that is free; None where as many are held as may be, also where more could be before."""
        if len(self._held) >= limit:
            return None
        while self._lowest in self._held:
            self._lowest += 1
        return self._lowest

    def take(self, number: int, order_id: str) -> None:
        """An order has a place now, whoever had it."""
        before = self._order_of.get(number)
        if before is not None:
            del self._number_of[before]
        self._order_of[number], self._number_of[order_id] = order_id, number
        self._held.add(number)

    def give_back(self, order_id: str) -> None:
        """An order no longer has its place."""
        number = self._number_of.pop(order_id)
        del self._order_of[number]
        self._held.discard(number)
        self._lowest = min(self._lowest, number)
