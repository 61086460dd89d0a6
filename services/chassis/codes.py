"""Codes that people read and type: symbols of five bits each, none of which looks like another."""

from __future__ import annotations

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U
_LOOK_ALIKES = str.maketrans("ILOU", "110V", " -")


def spell(bits: int, length: int) -> str:
    """The last five times `length` bits of a number as so many symbols."""
    return "".join(ALPHABET[bits >> shift & 31] for shift in range(5 * (length - 1), -1, -5))


def normalise(typed: str) -> str:
    """A code as it was spelled, whatever a person made of case, hyphens, spaces and look-alikes."""
    return typed.upper().translate(_LOOK_ALIKES)
