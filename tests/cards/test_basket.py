"""The best price of a basket, against a model that tries every combination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.cards.domain.basket import Line, LineUse, Note, Offer, Part, Piece, Quote, pieces_of, share
from services.cards.domain.products import BenefitKind
from services.cards.domain.search import quote

patiently = settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])

K = BenefitKind
PER_PIECE = [K.FIXED_PRICE, K.PERCENT_OFF, K.AMOUNT_OFF, K.FREE_ITEM]


def offer(code: str, kind: K, value: int = 0, lines: str = "", **more: Any) -> Offer:
    """A benefit of card `c` for the lines whose ids are the letters of `lines`."""
    return Offer("c", code, kind, value, frozenset(lines), **more)


def bundle(code: str, value: int, *parts: tuple[int, str], limit: int | None = None) -> Offer:
    return Offer(
        "c",
        code,
        K.BUNDLE_PRICE,
        value,
        limit=limit,
        parts=tuple(Part(quantity, frozenset(lines)) for quantity, lines in parts),
    )


def basket(*amounts: int) -> list[Line]:
    """Lines `a`, `b`, … of one piece each."""
    return [Line(chr(ord("a") + index), 1, amount) for index, amount in enumerate(amounts)]


def used(answer: Quote) -> dict[str, int]:
    return {taken.offer.code: taken.uses for taken in answer.taken}


# --- the model ----------------------------------------------------------------------------------------


class Model:
    """Tries everything that may be done with each piece."""

    def __init__(self, pieces: Sequence[Piece], offers: Sequence[Offer]) -> None:
        self.offers = [o for o in offers if not o.failed and o.kind in (*PER_PIECE, K.BUNDLE_PRICE)]
        self.pieces = list(pieces)

    def best(self) -> tuple[int, int]:
        """The most that can be saved, and the fewest uses of limited benefits that save as much."""
        left = {o: 10**9 if o.limit is None else o.limit for o in self.offers}
        saved, negative_uses = max(self._rest(tuple(range(len(self.pieces))), left))
        return saved, -negative_uses

    def _rest(self, open_pieces: tuple[int, ...], left: dict[Offer, int]) -> Iterator[tuple[int, int]]:
        if not open_pieces:
            yield 0, 0
            return
        index, *others = open_pieces
        for saved, offers, also in self._ways(index, others):
            spent = Counter(offers)
            if any(left[o] < times for o, times in spent.items()):
                continue
            after = {o: count - spent[o] for o, count in left.items()}
            uses = sum(times for o, times in spent.items() if o.limit is not None or o.parts)
            rest = tuple(i for i in others if i not in also)
            best_saved, best_uses = max(self._rest(rest, after))
            yield saved + best_saved, best_uses - uses

    def _ways(
        self, index: int, others: Sequence[int]
    ) -> Iterator[tuple[int, tuple[Offer, ...], frozenset[int]]]:
        yield 0, (), frozenset()
        piece = self.pieces[index]
        single = [o for o in self.offers if not o.parts and piece.line_id in o.lines]
        for first in single:
            saved = first.saves(piece.price)
            yield saved, (first,), frozenset()
            for second in single:
                if second.after_other and second is not first:
                    more = min(second.value, piece.price - saved)
                    yield saved + more, (first, second), frozenset()
        for whole in (o for o in self.offers if o.parts):
            slots = [part.lines for part in whole.parts for _ in range(part.quantity)]
            for rest in combinations(others, len(slots) - 1):
                taken = (index, *rest)
                if any(
                    all(self.pieces[i].line_id in slot for i, slot in zip(order, slots, strict=True))
                    for order in permutations(taken)
                ):
                    yield sum(self.pieces[i].price for i in taken) - whole.value, (whole,), frozenset(rest)


def check_legal(lines: Sequence[Line], fee: int, answer: Quote) -> None:
    """What must hold of every quote."""
    assert [line.line_id for line in answer.lines] == [line.line_id for line in lines]
    amounts = {line.line_id: line.amount_minor for line in lines}
    quantities = {line.line_id: line.quantity for line in lines}
    for line in answer.lines:
        assert 0 <= line.pay == amounts[line.line_id] - sum(use.saved for use in line.uses)
        assert all(use.quantity <= quantities[line.line_id] for use in line.uses)
    assert (
        answer.saved == sum(amounts.values()) + fee - sum(x.pay for x in answer.lines) - answer.delivery_pay
    )
    assert answer.saved == sum(taken.saved for taken in answer.taken)
    assert all(taken.uses <= taken.offer.limit for taken in answer.taken if taken.offer.limit is not None)
    on_lines = [use for line in answer.lines for use in line.uses]
    for taken in answer.taken:
        pieces = sum(use.quantity for use in (*on_lines, *answer.delivery_uses) if use.offer is taken.offer)
        assert pieces == taken.uses * (sum(part.quantity for part in taken.offer.parts) or 1)
    assert answer.bound >= answer.saved
    assert answer.exact == (answer.bound == answer.saved)


# --- everything, small --------------------------------------------------------------------------------

LETTERS = "abcd"
prices = st.one_of(st.integers(0, 12), st.integers(0, 4000))
some_lines = st.frozensets(st.sampled_from(LETTERS), min_size=1)
limits = st.one_of(st.none(), st.integers(0, 3))


@st.composite
def offers_(draw: st.DrawFn, bundles: int) -> list[Offer]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(PER_PIECE))
        value = draw(st.integers(1, 100)) if kind is K.PERCENT_OFF else draw(prices)
        after = kind is K.AMOUNT_OFF and draw(st.booleans())
        found.append(
            Offer(
                f"c{draw(st.integers(0, 1))}",
                f"b{number}",
                kind,
                value,
                draw(some_lines),
                draw(limits),
                after,
            )
        )
    for number in range(draw(st.integers(0, bundles))):
        parts = draw(st.lists(st.builds(Part, st.integers(1, 2), some_lines), min_size=1, max_size=2))
        found.append(
            Offer("c0", f"s{number}", K.BUNDLE_PRICE, draw(prices), limit=draw(limits), parts=tuple(parts))
        )
    return found


def lines_(pieces: int) -> st.SearchStrategy[list[Line]]:
    return st.lists(prices, min_size=1, max_size=pieces).flatmap(
        lambda amounts: st.just(
            [
                Line(letter, len(amounts[place::4]), sum(amounts[place::4]))
                for place, letter in enumerate(LETTERS)
            ]
        )
    )


@patiently
@given(lines_(5), offers_(bundles=0))
def test_without_bundles_nothing_saves_more_and_nothing_that_saves_as_much_uses_less(
    lines: list[Line], offers: list[Offer]
) -> None:
    answer = quote(lines, 0, offers)
    check_legal(lines, 0, answer)
    assert answer.exact
    uses = sum(taken.uses for taken in answer.taken if taken.offer.limit is not None)
    assert (answer.saved, uses) == Model(list(pieces_of(lines).elements()), offers).best()


@patiently
@given(lines_(5), offers_(bundles=3))
@example(
    basket(10, 2, 10, 2),
    [bundle("s", 5, (1, "ac"), (1, "bd")), offer("half", K.PERCENT_OFF, 50, "bd", limit=1)],
)
def test_with_bundles_nothing_saves_more(lines: list[Line], offers: list[Offer]) -> None:
    answer = quote(lines, 0, offers)
    check_legal(lines, 0, answer)
    assert answer.exact
    uses = sum(taken.uses for taken in answer.taken if taken.offer.limit is not None or taken.offer.parts)
    assert (answer.saved, uses) == Model(list(pieces_of(lines).elements()), offers).best()


scarce = st.tuples(
    st.sampled_from([K.FIXED_PRICE, K.PERCENT_OFF, K.AMOUNT_OFF, K.AMOUNT_OFF]),
    st.integers(1, 12),
    some_lines,
    st.integers(1, 2),
)


@patiently
@given(
    st.lists(st.integers(1, 14), min_size=1, max_size=4),
    st.lists(scarce, min_size=2, max_size=5),
    st.lists(st.tuples(st.integers(0, 12), st.builds(Part, st.just(1), some_lines)), max_size=1),
)
@example([10], [(K.PERCENT_OFF, 11, frozenset("a"), 1), (K.AMOUNT_OFF, 8, frozenset("a"), 1)], [])
@example([10, 10], [(K.PERCENT_OFF, 11, frozenset("ab"), 1), (K.AMOUNT_OFF, 8, frozenset("ab"), 2)], [])
def test_two_scarce_benefits_on_a_piece_save_no_more_than_it_costs(
    amounts: list[int], benefits: list[tuple[K, int, frozenset[str], int]], sets: list[tuple[int, Part]]
) -> None:
    lines = basket(*amounts)
    offers = [
        Offer(
            "c",
            f"b{n}",
            kind,
            value * (8 if kind is K.PERCENT_OFF else 1),
            names,
            limit,
            kind is K.AMOUNT_OFF,
        )
        for n, (kind, value, names, limit) in enumerate(benefits)
    ]
    offers += [
        Offer("c", f"s{n}", K.BUNDLE_PRICE, price, parts=(part,)) for n, (price, part) in enumerate(sets)
    ]
    answer = quote(lines, 0, offers)
    check_legal(lines, 0, answer)
    assert answer.exact
    uses = sum(taken.uses for taken in answer.taken)
    assert (answer.saved, uses) == Model(list(pieces_of(lines).elements()), offers).best()


@patiently
@given(lines_(8), offers_(bundles=2), st.randoms())
def test_the_order_in_which_lines_and_benefits_come_does_not_matter(
    lines: list[Line], offers: list[Offer], random: Any
) -> None:
    once = quote(lines, 0, offers)
    other_lines, other_offers = random.sample(lines, len(lines)), random.sample(offers, len(offers))
    again = quote(other_lines, 0, other_offers)
    assert {line.line_id: line for line in once.lines} == {line.line_id: line for line in again.lines}
    assert (once.taken, once.steps, once.bound) == (again.taken, again.steps, again.bound)


@patiently
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.data())
def test_a_price_is_shared_out_to_the_last_minor_unit_and_no_piece_pays_more_than_its_price(
    amounts: list[int], data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, sum(amounts)))
    shares = share(total, amounts)
    assert sum(shares) == total
    assert all(0 <= part <= amount for part, amount in zip(shares, amounts, strict=True))
    exact = [total * amount / (sum(amounts) or 1) for amount in amounts]
    assert all(abs(part - fair) <= 1 for part, fair in zip(shares, exact, strict=True))


# --- one by one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benefit", "price", "pay"),
    [
        (offer("x", K.FIXED_PRICE, 800, "a"), 1500, 800),
        (offer("x", K.FIXED_PRICE, 800, "a"), 700, 700),  # never dearer
        (offer("x", K.PERCENT_OFF, 40, "a"), 1000, 600),  # 6折
        (offer("x", K.PERCENT_OFF, 50, "a"), 999, 500),  # 5折: what is saved is rounded down
        (offer("x", K.PERCENT_OFF, 100, "a"), 999, 0),
        (offer("x", K.AMOUNT_OFF, 300, "a"), 1000, 700),
        (offer("x", K.AMOUNT_OFF, 300, "a"), 200, 0),
        (offer("x", K.FREE_ITEM, 0, "a"), 1234, 0),
        (offer("x", K.POINTS_MULTIPLIER, 2_000_000, "a"), 1000, 1000),
        (offer("x", K.FREE_DELIVERY, 0, "a"), 1000, 1000),
        (bundle("x", 1000, (1, "a")), 1500, 1000),
        (bundle("x", 1000, (1, "a")), 900, 900),
        (offer("x", K.FREE_ITEM, 0, "b"), 1234, 1234),  # for another line
    ],
)
def test_each_kind_lowers_the_price_of_a_piece_in_its_way(benefit: Offer, price: int, pay: int) -> None:
    answer = quote(basket(price), 0, [benefit])
    assert answer.lines[0].pay == pay
    assert answer.exact
    check_legal(basket(price), 0, answer)


def test_one_cup_a_day_is_one_cup_and_the_dearest() -> None:
    coffee = offer("coffee", K.FIXED_PRICE, 800, "abc", limit=1)
    answer = quote(basket(1500, 2200, 1800), 0, [coffee])
    assert [line.pay for line in answer.lines] == [1500, 800, 1800]
    assert used(answer) == {"coffee": 1}
    (step,) = answer.steps
    assert (step.note, step.line_id, step.quantity, step.before, step.after) == (
        Note.APPLIED,
        "b",
        1,
        2200,
        800,
    )


def test_a_limited_benefit_is_not_used_where_an_unlimited_one_saves_as_much() -> None:
    """国王卡 and 咖啡卡 both sell coffee at 8.00; the daily cup stays."""
    king = offer("king", K.FIXED_PRICE, 800, "a")
    cup = offer("cup", K.FIXED_PRICE, 800, "a", limit=1)
    answer = quote(basket(1500), 0, [cup, king])
    assert used(answer) == {"king": 1}
    assert [(step.note, step.offer.code) for step in answer.steps] == [
        (Note.APPLIED, "king"),
        (Note.SAVES_NO_MORE, "cup"),
    ]


def test_a_scarce_benefit_goes_where_nothing_else_helps() -> None:
    """Greedy would spend the free item on the dearest piece, which the other benefit needs."""
    free = offer("free", K.FREE_ITEM, 0, "ab", limit=1)
    half = offer("half", K.PERCENT_OFF, 50, "a", limit=1)
    answer = quote(basket(1000, 900), 0, [free, half])
    assert answer.saved == 500 + 900
    assert used(answer) == {"free": 1, "half": 1}


def test_an_amount_comes_off_after_another_benefit_only_where_it_may() -> None:
    half = offer("half", K.PERCENT_OFF, 50, "a")
    for after, saved in ((True, 800), (False, 500)):
        off = offer("off", K.AMOUNT_OFF, 300, "a", after_other=after, limit=5)
        answer = quote(basket(1000), 0, [half, off])
        assert answer.saved == saved
    steps = quote(basket(1000), 0, [half, offer("off", K.AMOUNT_OFF, 300, "a", after_other=True)]).steps
    assert [(s.note, s.offer.code, s.before, s.after) for s in steps] == [
        (Note.APPLIED, "half", 1000, 500),
        (Note.APPLIED_AFTER_OTHER, "off", 500, 200),
    ]


def test_never_three_benefits_on_a_piece() -> None:
    off = [offer(f"off{n}", K.AMOUNT_OFF, 100, "a", after_other=True) for n in range(3)]
    assert quote(basket(1000), 0, [offer("half", K.PERCENT_OFF, 50, "a"), *off]).saved == 600


def test_nothing_comes_off_a_piece_of_a_bundle() -> None:
    menu = bundle("menu", 2500, (1, "a"), (1, "b"))
    off = offer("off", K.AMOUNT_OFF, 300, "a", after_other=True)
    answer = quote(basket(2000, 1500), 0, [menu, off])
    assert answer.saved == 1000
    assert used(answer) == {"menu": 1}


def test_a_bundle_is_one_use_and_its_price_is_shared_out() -> None:
    menu = bundle("menu", 2500, (1, "a"), (1, "bc"), limit=1)
    answer = quote(basket(2000, 900, 1000), 0, [menu])
    assert [line.pay for line in answer.lines] == [1667, 900, 833]
    assert [(taken.uses, taken.saved) for taken in answer.taken] == [(1, 500)]
    assert {step.note for step in answer.steps} == {Note.APPLIED_AS_BUNDLE}


def test_a_bundle_is_left_where_its_pieces_are_cheaper_otherwise() -> None:
    menu = bundle("menu", 2500, (1, "a"), (1, "b"))
    half = offer("half", K.PERCENT_OFF, 50, "ab", limit=2)
    assert used(quote(basket(2000, 1500), 0, [menu, half])) == {"half": 2}
    once = offer("half", K.PERCENT_OFF, 50, "ab", limit=1)
    assert quote(basket(2000, 1500), 0, [menu, once]).saved == 1000


def test_delivery_is_free_once_by_the_benefit_that_saves_most() -> None:
    some = offer("some", K.FREE_DELIVERY, 300, "a", limit=1)
    whole = offer("whole", K.FREE_DELIVERY, 0, "a")
    late = offer("late", K.FREE_DELIVERY, 0, "a", limit=1)
    answer = quote(basket(1000), 600, [some, late, whole])
    assert answer.delivery_pay == 0
    assert answer.delivery_uses == (LineUse(whole, 1, 600),)
    assert answer.saved == 600
    assert quote(basket(1000), 600, [some]).delivery_pay == 300
    assert quote(basket(1000), 0, [whole]).taken == ()


def test_what_is_not_used_says_why() -> None:
    offers = [
        offer("a", K.FREE_ITEM, 0, "z", limit=0),
        offer("b", K.FREE_ITEM, 0, "a", limit=0),
        offer("c", K.FIXED_PRICE, 5000, "a"),
        offer("d", K.FREE_ITEM, 0, "a", failed=True),
        offer("e", K.FREE_ITEM),
        bundle("f", 1, (1, "a"), (1, "")),
    ]
    notes = {step.offer.code: step.note for step in quote(basket(1000), 0, offers).steps}
    assert notes == {
        "a": Note.QUOTA_USED,
        "b": Note.QUOTA_USED,
        "c": Note.SAVES_NO_MORE,
        "d": Note.SCOPE_FAILED,
        "e": Note.NOTHING_MATCHES,
        "f": Note.NOTHING_MATCHES,
    }


def test_lines_of_nothing_and_of_no_price_are_left_as_they_are() -> None:
    lines = [Line("a", 0, 500), Line("b", 3, 0), Line("c", 1, 100)]
    answer = quote(lines, 0, [offer("free", K.FREE_ITEM, 0, "abc", limit=1)])
    assert [line.pay for line in answer.lines] == [500, 0, 0]
    assert quote([], 0, []).saved == 0


def test_a_line_that_does_not_divide_has_its_dearer_pieces_first() -> None:
    assert pieces_of([Line("a", 3, 1000)]) == {Piece("a", 334): 1, Piece("a", 333): 2}
    answer = quote([Line("a", 3, 1000)], 0, [offer("free", K.FREE_ITEM, 0, "a", limit=1)])
    assert answer.lines[0].pay == 666


def test_amounts_as_large_as_the_contract_allows_stay_exact() -> None:
    huge = 10**12
    lines = [Line(f"l{n:03}", 1, huge - n) for n in range(500)]
    everywhere = frozenset(line.line_id for line in lines)
    free = Offer("c", "free", K.FREE_ITEM, 0, everywhere, 3)
    half = Offer("c", "half", K.PERCENT_OFF, 50, everywhere, 2)
    answer = quote(lines, huge, [free, half])
    assert answer.saved == 3 * huge - 3 + (huge - 3) // 2 + (huge - 4) // 2
    assert answer.exact


def test_a_line_of_a_million_million_pieces_is_quoted_without_counting_them() -> None:
    many = Line("a", 10**12, 10**12)
    free = offer("free", K.FREE_ITEM, 0, "a", limit=5)
    half = offer("off", K.AMOUNT_OFF, 1, "a", limit=None)
    assert quote([many], 0, [free]).saved == 5
    assert quote([many], 0, [half]).saved == 10**12
    answer = quote([many], 0, [offer(f"o{n}", K.FREE_ITEM, 0, "a", limit=1000) for n in range(3)])
    assert not answer.exact
    assert 500 <= answer.saved <= 3000 <= answer.bound
    check_legal([many], 0, answer)
    lines = [Line(f"l{n}", 10**9, (1000 + n) * 10**9) for n in range(500)]
    everywhere = frozenset(line.line_id for line in lines)
    answer = quote(lines, 0, [Offer("c", f"o{n}", K.AMOUNT_OFF, 9, everywhere, 1000, True) for n in range(3)])
    check_legal(lines, 0, answer)


def test_beyond_what_can_be_searched_the_bound_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Line(f"l{n:02}", 2, 2 * (1000 + 37 * n)) for n in range(20)]
    names = [line.line_id for line in lines]
    offers = [
        Offer(
            "c",
            f"s{n}",
            K.BUNDLE_PRICE,
            2100 + 10 * n,
            parts=(Part(1, frozenset(names[n::3])), Part(2, frozenset(names[n::5]))),
        )
        for n in range(4)
    ]
    best = quote(lines, 0, offers)
    assert best.exact
    monkeypatch.setattr("services.cards.domain.search.WORK", 1)
    answer = quote(lines, 0, offers)
    check_legal(lines, 0, answer)
    assert answer.saved <= best.saved <= answer.bound


def test_the_king_card_beside_the_coffee_and_the_breakfast_card() -> None:
    """国王卡, 咖啡卡 and 早餐卡 are a union: each piece gets what is best for it."""
    lines = [
        Line("latte", 3, 3 * 1600),
        Line("set", 1, 1800),
        Line("burger", 1, 2600),
        Line("fries", 1, 1200),
    ]

    def of(card: str, code: str, kind: K, value: int, *names: str, limit: int | None = None) -> Offer:
        return Offer(card, code, kind, value, frozenset(names), limit)

    menu = Offer(
        "king",
        "menu",
        K.BUNDLE_PRICE,
        2900,
        parts=(Part(1, frozenset({"burger"})), Part(1, frozenset({"fries"}))),
    )
    offers = [
        of("king", "breakfast", K.PERCENT_OFF, 40, "set"),
        of("king", "delivery", K.FREE_DELIVERY, 0, "latte"),
        menu,
        of("coffee", "cup", K.FIXED_PRICE, 800, "latte", limit=1),
        of("breakfast", "half", K.PERCENT_OFF, 50, "set"),
    ]
    answer = quote(lines, 900, offers)
    check_legal(lines, 900, answer)
    assert {line.line_id: line.pay for line in answer.lines} == {
        "latte": 800 + 2 * 1600,
        "set": 900,
        "burger": 1984,
        "fries": 916,
    }
    assert answer.delivery_pay == 0
    assert answer.saved == 800 + 900 + 900 + 900
