"""Places under a sales cap: the lowest that is free, and those that lapsed until somebody takes them."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.cards.domain.places import Places
from services.cards.domain.wallet import Slot
from tests.cards.till import NOON, TICK

DEADLINE = NOON + timedelta(minutes=15)


def slot(number: int, order_id: str, *, firm: bool = False) -> Slot:
    return Slot(
        product_code="coffee",
        window_key="2027",
        number=number,
        order_id=order_id,
        pay_deadline=DEADLINE,
        firm=firm,
    )


def test_a_place_lapses_with_the_deadline_unless_it_is_firm() -> None:
    slots = [slot(1, "a"), slot(2, "b", firm=True)]
    assert Places(slots, DEADLINE - TICK).held == 2
    lapsed = Places(slots, DEADLINE)
    assert (lapsed.held, lapsed.free(2), lapsed.of("a")) == (1, 1, 1)
    lapsed.take(1, "c")
    assert (lapsed.held, lapsed.free(2), lapsed.of("a"), lapsed.of("c")) == (2, None, None, 1)


def test_a_copy_changes_nothing_of_what_it_is_a_copy_of() -> None:
    places = Places([slot(1, "a", firm=True)], NOON)
    copied = places.copy()
    copied.take(2, "b")
    copied.give_back("a")
    assert (places.held, places.of("a"), places.of("b"), places.free(9)) == (1, 1, None, 2)
    assert (copied.held, copied.of("a"), copied.of("b"), copied.free(9)) == (1, None, 2, 1)


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_no_more_are_held_than_may_be_and_the_lowest_free_one_is_given(
    limit: int, wishes: list[tuple[int, bool]]
) -> None:
    places, held = Places(), dict[str, int]()
    for number, takes in wishes:
        order_id = f"order-{number}"
        if not takes:
            if held.pop(order_id, None):
                places.give_back(order_id)
        elif order_id not in held:
            free = next((n for n in range(1, limit + 1) if n not in held.values()), None)
            assert places.free(limit) == free
            if free:
                places.take(free, order_id)
                held[order_id] = free
        assert (places.held, {name: places.of(name) for name in held}) == (len(held), held)
