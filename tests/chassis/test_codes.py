"""Codes that people read and type."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.chassis.codes import ALPHABET, normalise, spell


def test_no_symbol_looks_like_another() -> None:
    assert len(set(ALPHABET)) == 32
    assert not set("ILOU") & set(ALPHABET)


@given(st.integers(0, 2**60 - 1))
def test_a_number_is_spelled_by_five_bits_a_symbol_from_the_highest_on(bits: int) -> None:
    code = spell(bits, 12)
    assert len(code) == 12
    assert sum(ALPHABET.index(symbol) << 5 * place for place, symbol in enumerate(reversed(code))) == bits
    assert spell(bits, 3) == code[-3:]


@given(st.lists(st.sampled_from(ALPHABET)).map("".join), st.data())
def test_a_code_is_read_however_it_is_typed(code: str, data: st.DataObject) -> None:
    alike = {"0": "0Oo", "1": "1IiLl", "V": "VvUu"}
    typed = "".join(
        data.draw(st.sampled_from(alike.get(symbol, symbol + symbol.lower())))
        + data.draw(st.sampled_from(["", "-", " ", " - "]))
        for symbol in code
    )
    assert normalise(typed) == code
