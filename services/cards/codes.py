"""Claim codes of gifts: made from the order's id and a key, so that nobody has to keep them."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict

from services.cards.errors import TooManyCodes
from services.chassis.codes import normalise, spell

GUESSES = 10  # codes that nobody has, for one who claims, within
GUESSED_WITHIN = 600.0  # seconds
REMEMBERED = 10_000  # of those who guessed of late

LENGTH = 20  # characters of five bits each


def make(key: bytes, order_id: str) -> str:
    """The claim code of an order: the first 100 bits of its HMAC-SHA256."""
    digest = hmac.digest(key, order_id.encode(), "sha256")
    return spell(int.from_bytes(digest) >> (len(digest) * 8 - LENGTH * 5), LENGTH)


def hash_of(typed: str) -> bytes:
    """What is kept of a code, and what finds it: SHA-256 of its normal form."""
    return hashlib.sha256(normalise(typed).encode()).digest()


class Guesses:
    """Who named codes of late that nobody has, as far as this process knows. Times are in seconds."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[tuple[str, ...], list[float]] = OrderedDict()

    def check(self, who: tuple[str, ...], now: float) -> None:
        """Raises TooManyCodes for one who has guessed too often."""
        if len(self._late(who, now)) >= GUESSES:
            raise TooManyCodes(limit=GUESSES)

    def wrong(self, who: tuple[str, ...], now: float) -> None:
        """Notes a code that nobody has."""
        self._wrong[who] = [*self._late(who, now), now]
        self._wrong.move_to_end(who)
        while len(self._wrong) > REMEMBERED:
            self._wrong.popitem(last=False)

    def _late(self, who: tuple[str, ...], now: float) -> list[float]:
        return [then for then in self._wrong.get(who, ()) if now - then < GUESSED_WITHIN]
