"""Claim codes: made again from the order alone, and found however a person types them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cards import codes
from services.cards.errors import TooManyCodes
from services.chassis.codes import ALPHABET

KEY = b"0123456789abcdef0123456789abcdef"
OTHER = b"fedcba9876543210fedcba9876543210"
ORDER = "ord_019a0b1c2d3e7f408192a3b4c5d6e7f8"

order_ids = st.from_regex("ord_[0-9a-f]{32}", fullmatch=True)
made = order_ids.map(lambda order_id: codes.make(KEY, order_id))


@given(order_ids)
def test_a_code_is_the_first_100_bits_of_the_orders_hmac(order_id: str) -> None:
    digest = hmac.new(KEY, order_id.encode(), hashlib.sha256).digest()
    rfc4648 = base64.b32encode(digest)[:20].decode()
    to_crockford = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", ALPHABET)
    assert codes.make(KEY, order_id) == rfc4648.translate(to_crockford)


def test_a_code_stays_the_same_from_one_version_to_the_next() -> None:
    assert codes.make(KEY, ORDER) == "F3VH9JCFDRPVCAGS62GD"


def test_a_code_has_twenty_characters_none_of_which_looks_like_another() -> None:
    assert re.fullmatch(f"[{ALPHABET}]{{20}}", codes.make(KEY, ORDER))
    assert not set("ILOU") & set(ALPHABET)
    assert len(set(ALPHABET)) == 32


@given(order_ids, order_ids)
def test_only_the_same_order_under_the_same_key_has_the_same_code(one: str, other: str) -> None:
    assert (codes.make(KEY, one) == codes.make(KEY, other)) == (one == other)
    assert codes.make(KEY, one) != codes.make(OTHER, one)


@given(made, st.data())
def test_case_hyphens_spaces_and_look_alikes_do_not_matter(code: str, data: st.DataObject) -> None:
    alike = {"0": "0Oo", "1": "1IiLl", "V": "VvUu"}
    typed = "".join(
        data.draw(st.sampled_from(alike.get(letter, letter + letter.lower())))
        + data.draw(st.sampled_from(["", "", "-", " ", " - "]))
        for letter in code
    )
    assert codes.hash_of(typed) == codes.hash_of(code)


@given(made, st.integers(0, codes.LENGTH - 1), st.sampled_from(ALPHABET))
def test_another_character_is_another_code(code: str, place: int, letter: str) -> None:
    typed = code[:place] + letter + code[place + 1 :]
    assert (codes.hash_of(typed) == codes.hash_of(code)) == (typed == code)


@pytest.mark.parametrize("typed", ["", " - ", "0", "A" * 64])
def test_what_is_no_code_has_a_hash_that_finds_nothing(typed: str) -> None:
    assert codes.hash_of(typed) != codes.hash_of(codes.make(KEY, ORDER))


def test_the_hash_is_the_plain_sha_256_of_the_code() -> None:
    code = codes.make(KEY, ORDER)
    assert codes.hash_of(code) == hashlib.sha256(code.encode()).digest()


def test_who_guesses_is_stopped_for_a_while_and_others_are_not() -> None:
    guesses = codes.Guesses()
    for second in range(codes.GUESSES):
        guesses.check(("till", "ann"), second)
        guesses.wrong(("till", "ann"), second)
    with pytest.raises(TooManyCodes):
        guesses.check(("till", "ann"), codes.GUESSED_WITHIN - 1)
    guesses.check(("till", "ben"), codes.GUESSED_WITHIN - 1)
    guesses.check(("till", "ann"), codes.GUESSED_WITHIN)


def test_of_those_who_guess_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "REMEMBERED", 2)
    guesses = codes.Guesses()
    for who in ["ann"] * codes.GUESSES + ["ben", "cem"]:
        guesses.wrong((who,), 0)
    guesses.check(("ann",), 0)
