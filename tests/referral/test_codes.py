"""Invite codes: random, found however a person types them, and never taken for another's by a slip."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.codes import ALPHABET, normalise, spell
from services.referral import codes

SAMPLE = "R7P1XQFNERJQ"


@pytest.fixture
def made() -> str:
    return codes.make()


def test_a_code_is_eleven_random_symbols_and_one_that_checks_them(made: str) -> None:
    assert re.fullmatch(f"[{ALPHABET}]{{12}}", made)
    assert codes.read(made) == made
    assert len({codes.make() for _ in range(1000)}) == 1000


def test_a_code_stays_one_from_one_version_to_the_next() -> None:
    assert codes.read("K1NGKVPW0RD1") == "K1NGKVPW0RD1"


def test_all_of_its_bits_are_drawn() -> None:
    """Each of 55 bits is once 0 and once 1 in 200 codes, but for one chance in 10⁵⁸."""
    drawn = [[ALPHABET.index(symbol) for symbol in codes.make()[:11]] for _ in range(200)]
    for place in range(11):
        for bit in range(5):
            assert {symbols[place] >> bit & 1 for symbols in drawn} == {0, 1}


def test_it_is_read_however_it_is_typed() -> None:
    code = "1A0V" + codes.make()[4:11]
    code = next(code + symbol for symbol in ALPHABET if codes.read(code + symbol))
    assert codes.read(f" {code.lower()[:6]}-{code[6:]}") == code
    assert codes.read("lAou" + code[4:]) == code


def test_every_single_wrong_symbol_is_found(made: str) -> None:
    for place, right in enumerate(made):
        for wrong in set(ALPHABET) - {right}:
            assert codes.read(made[:place] + wrong + made[place + 1 :]) == ""


def test_every_swap_of_two_different_symbols_is_found(made: str) -> None:
    for one, other in combinations(range(codes.LENGTH), 2):
        symbols = list(made)
        symbols[one], symbols[other] = symbols[other], symbols[one]
        assert codes.read("".join(symbols)) == (made if made[one] == made[other] else "")


@given(st.integers(0, 2**60 - 1))
def test_of_all_that_has_the_form_of_a_code_one_in_32_is_one(bits: int) -> None:
    typed = spell(bits, 12)
    fitting = [typed[:11] + symbol for symbol in ALPHABET if codes.read(typed[:11] + symbol)]
    assert len(fitting) == 1
    assert codes.read(typed) == (typed if typed in fitting else "")


@pytest.mark.parametrize(
    "typed", ["", " - ", "0", SAMPLE[:11], SAMPLE + "0", "é" * 12, "0" * 11 + "\0", "ß" * 6]
)
def test_what_is_no_code_reads_as_nobodys(typed: str) -> None:
    assert codes.read(typed) == ""


def test_a_code_fits_into_the_scene_of_a_mini_program_code(made: str) -> None:
    assert len(made) <= 32
    assert normalise(made) == made
