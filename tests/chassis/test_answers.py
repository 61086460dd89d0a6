"""A repeat gets the first answer, an event has its effect once, and what was refused is as if never asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.chassis.answers import Answered, Done
from services.chassis.asked import Asked, by_clock
from services.chassis.errors import AnswerErased, Internal, RequestIdReused, ServiceError
from services.chassis.inbox import InboxKey

CALL = Asked(member_id="ann", request_id="one", payload_hash=b"hash", actor="test")
EVENT = replace(CALL, event=InboxKey("ann", "consumer", "source", "event", "STREAM", 1))


class Deeds:
    """What is done, and how often."""

    def __init__(self, *outcomes: bytes | ServiceError | None) -> None:
        self._outcomes = iter(outcomes)
        self.done: list[Asked] = []

    def do(self, asked: Asked) -> bytes | None:
        self.done.append(asked)
        outcome = next(self._outcomes)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome


def test_a_repeat_is_not_done_again_and_gets_the_first_answer() -> None:
    done, deeds = Done(), Deeds(b"first", b"second")
    assert [done.answer(CALL, deeds.do) for _ in range(2)] == [b"first", b"first"]
    assert (deeds.done, done.has(CALL)) == ([CALL], True)
    assert done.new_answers == {("ann", "one"): Answered(b"hash", b"first")}
    assert done.answer(replace(CALL, member_id="ben"), deeds.do) == b"second"


def test_a_request_id_that_says_something_else_is_refused_and_so_is_an_answer_that_was_erased() -> None:
    done, deeds = Done({("ann", "one"): Answered(b"hash", None)}), Deeds()
    assert isinstance(done.answer(CALL, deeds.do), AnswerErased)
    assert isinstance(done.answer(replace(CALL, payload_hash=b"other"), deeds.do), RequestIdReused)
    assert (deeds.done, done.new_answers) == ([], {})


def test_an_event_is_done_once_and_nobody_waits_for_its_answer() -> None:
    done, deeds = Done(), Deeds(b"kept")
    assert [done.answer(EVENT, deeds.do) for _ in range(2)] == [None, None]
    again = replace(EVENT, request_id="two")  # the event is what tells a repeat
    assert (done.answer(again, deeds.do), done.has(again), deeds.done) == (None, True, [EVENT])
    assert done.new_events == [EVENT.event]
    assert done.new_answers == {("ann", "one"): Answered(b"hash", b"kept")}


@pytest.mark.parametrize("asked", [CALL, EVENT], ids=["call", "event"])
def test_what_is_refused_leaves_nothing_and_is_done_when_it_is_asked_again(asked: Asked) -> None:
    done, deeds = Done(), Deeds(Internal(), b"later")
    assert isinstance(done.answer(asked, deeds.do), Internal)
    assert (done, done.has(asked)) == (Done(), False)
    assert done.answer(asked, deeds.do) == (None if asked.event else b"later")
    assert len(deeds.done) == 2


def test_what_the_clock_asks_has_no_answer_and_nothing_is_kept_of_it() -> None:
    done, first, second = Done(), Asked(**by_clock("ann")), Asked(**by_clock("ann"))
    assert first.request_id != second.request_id
    assert [done.answer(one, Deeds(None).do) for one in (first, second)] == [None, None]
    assert done == Done()


def test_an_answer_may_be_kept_under_another_name_too_and_the_first_one_stays() -> None:
    done = Done()
    for answer in (b"first", b"second"):
        done.remember("ann", "own name", b"hash", answer)
    assert done.first("ann", "own name", b"hash") == b"first"
    assert done.first("ann", "another", b"hash") is None
