"""Page tokens continue the question they were made for, and nothing else is one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis import pagination
from services.chassis.pagination import PageTokenInvalid, make_token, read_name, read_token

patiently = settings(deadline=None)
numbers = st.integers(0, 2**63 - 1)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@patiently
@given(st.binary(), numbers)
def test_a_token_names_the_last_row_of_its_question(question: bytes, last: int) -> None:
    assert read_token(question, make_token(question, last)) == last


@patiently
@given(st.binary(), names)
def test_rows_may_go_by_names(question: bytes, last: str) -> None:
    token = make_token(question, last)
    assert read_name(question, token) == last
    if not last.isdecimal():
        with pytest.raises(PageTokenInvalid):
            read_token(question, token)


@patiently
@given(st.binary(), st.binary(), numbers)
def test_a_token_is_worth_nothing_for_another_question(question: bytes, other: bytes, last: int) -> None:
    if question != other:
        with pytest.raises(PageTokenInvalid):
            read_token(other, make_token(question, last))


@patiently
@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_what_was_not_made_here_is_refused(token: str) -> None:
    with pytest.raises(PageTokenInvalid):
        read_token(b"question", token)


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "A", lambda t: "A" + t, lambda t: f" {t}"]
)
def test_a_token_that_was_changed_is_refused(change: object) -> None:
    assert callable(change)
    for last, read in ((7, read_token), ("king", read_name), ("kings", read_name), ("a king", read_name)):
        with pytest.raises(PageTokenInvalid):
            read(b"question", change(make_token(b"question", last)))


@pytest.mark.parametrize("last", [-1, 2**63, "", "\0", "１", " 1", "+1", "1_0"])
def test_what_is_no_row_is_refused(last: int | str) -> None:
    with pytest.raises(PageTokenInvalid):
        read_token(b"question", make_token(b"question", last))


def test_no_token_asks_for_the_first_page() -> None:
    assert read_token(b"question", "") is None


def test_a_page_has_fifty_rows_unless_told_otherwise() -> None:
    assert [pagination.page_size(asked) for asked in (0, 1, 1000)] == [50, 1, 1000]
