"""Invite codes: 55 random bits, and a symbol that tells a mistyped code from any that was made.

The check symbol makes the weighted sum of all twelve symbols 0 in GF(32), the weights being distinct powers
of an element that generates the field's group: a Reed-Solomon code with one check symbol (Reed and Solomon,
"Polynomial codes over certain finite fields", 1960), as ISBN-10 is over GF(11). One wrong symbol changes the
sum by error · weight, two that are swapped by the product of both their differences: never by 0.
"""

from __future__ import annotations

import secrets

from services.chassis.codes import ALPHABET, normalise, spell

RANDOM = 11  # symbols of five bits each
LENGTH = RANDOM + 1
_FIELD = 0b100101  # x⁵ + x² + 1, which is primitive: the powers of x are all 31 elements but 0


def make() -> str:
    """A fresh code."""
    random = spell(secrets.randbits(RANDOM * 5), RANDOM)
    return random + ALPHABET[_weighted(random)]


def read(typed: str) -> str:
    """The code that somebody typed, as `make` wrote it; empty, which is nobody's, where it can be none."""
    code = normalise(typed)
    return code if _well_formed(code) else ""


def _well_formed(code: str) -> bool:
    if len(code) != LENGTH or not set(code) <= set(ALPHABET):
        return False
    return ALPHABET[_weighted(code[:RANDOM])] == code[RANDOM]


def _weighted(symbols: str) -> int:
    """The sum in GF(32) of symbols times xⁿ, n being 1 for the last: that of the check symbol is 0."""
    total = 0
    for symbol in symbols:  # Horner's rule: each step multiplies what is there by x
        total = _times_x(total ^ ALPHABET.index(symbol))
    return total


def _times_x(element: int) -> int:
    shifted = element << 1
    return shifted ^ _FIELD if shifted & 32 else shifted
