"""The search for the combination that saves most, by relaxing rules and branching on those that break.

What each piece can save with unlimited benefits is the base line. The limited ones are then given to the
pieces that gain most over it: an assignment, solved exactly (`assignment`). Two rules do not fit into an
assignment and are relaxed in it:

- A bundle's pieces belong together. Relaxed, each carries a share of the bundle's price and comes or not.
  Which pieces share a bundle does not matter, as what they save is the sum of their prices less the bundles',
  so the search branches only on how many bundles there are.
- Two limited benefits on one piece may save less than the sum of what they save alone. Relaxed, the second
  saves as much as it can after any other; the search branches on what the piece gets.

Where the relaxed answer keeps both rules it is the best there is. Best first, so the first bound that no open
node passes proves the answer. Work is limited: beyond, the best found is given with the bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from itertools import count

from services.cards.domain.assignment import Taker, Worths, assign, fits
from services.cards.domain.basket import (
    NOTHING,
    Chosen,
    Line,
    Offer,
    Part,
    Piece,
    Plan,
    Quote,
    best_plan,
    combine,
    explain,
    pieces_of,
)
from services.cards.domain.products import BenefitKind

MAX_CELLS = 2_500_000  # of one matrix: uses of limited benefits × pieces that they could be for
SMALL = (3, 20)  # bundles and pieces up to which the answer is exact
WORK_SMALL = 20_000_000  # cells of the matrices that are solved: more than such baskets take
WORK = 2_000_000  # for all others, within about half a second
_PER_PIECE = (
    BenefitKind.FIXED_PRICE,
    BenefitKind.PERCENT_OFF,
    BenefitKind.AMOUNT_OFF,
    BenefitKind.FREE_ITEM,
)


def quote(lines: Sequence[Line], delivery_fee: int, offers: Sequence[Offer]) -> Quote:
    """The best price of an order under these benefits."""
    offers = sorted(offers, key=lambda offer: offer.name)
    usable = [offer for offer in offers if offer.limit != 0 and not offer.failed]
    chosen = choose(pieces_of(lines), usable)
    lowering = [offer for offer in offers if offer.kind is not BenefitKind.POINTS_MULTIPLIER]
    return explain(lines, delivery_fee, lowering, chosen)


def choose(pieces: Counter[Piece], offers: Sequence[Offer]) -> Chosen:
    """What is done for every piece."""
    single = [offer for offer in offers if offer.kind in _PER_PIECE]
    free = [offer for offer in single if offer.limit is None]
    limited = [offer for offer in single if offer.limit is not None]
    bundles = [offer for offer in offers if offer.kind is BenefitKind.BUNDLE_PRICE]
    base = {piece: _unlimited(piece, free) for piece in sorted(pieces, key=lambda p: (p.line_id, -p.price))}
    takes, listed, cut = _takes(pieces, limited, bundles)
    problem = Problem.of(listed, base, free, takes)
    found, bound = _search(problem)
    chosen = _chosen(problem, found, pieces, base)
    saved = sum(plan.saved * times for (_, plan), times in chosen.plans.items()) + sum(
        sum(piece.price for piece in taken) - offer.value * times
        for offer, (times, taken) in chosen.bundles.items()
    )
    most = sum(plan.saved * pieces[piece] for piece, plan in base.items())
    chosen.bound = _crude_bound(pieces, single, bundles) if cut else most + bound
    chosen.exact = chosen.bound <= saved
    return chosen


def _unlimited(piece: Piece, free: Sequence[Offer]) -> Plan:
    """The most that unlimited benefits save on a piece."""
    mine = [offer for offer in free if piece.line_id in offer.lines]
    return best_plan((NOTHING, *_plans(piece, mine, mine)))


def _plans(piece: Piece, firsts: Sequence[Offer], seconds: Sequence[Offer]) -> Iterator[Plan]:
    """Every way to use one of the first on a piece, alone or with one of the second after it."""
    for first in firsts:
        yield combine(piece, first)
        for second in seconds:
            if second.after_other and second is not first:
                yield combine(piece, first, second)


def _takes(
    pieces: Counter[Piece], limited: Sequence[Offer], bundles: Sequence[Offer]
) -> tuple[dict[Offer, int], dict[Piece, int], bool]:
    """How often each benefit can be used at most, on which pieces, and whether that had to be cut short."""
    takes: dict[Offer, int] = {}
    for offer in limited:
        takes[offer] = min(offer.limit or 0, _count(pieces, offer.lines))
    for offer in bundles:
        most = min(_count(pieces, part.lines) // part.quantity for part in offer.parts)
        takes[offer] = most if offer.limit is None else min(offer.limit, most)
    takes = {offer: times for offer, times in takes.items() if times}
    listed, cut = _listed(pieces, takes), False
    while _rows(takes) * (_rows(takes) + sum(listed.values())) > MAX_CELLS:
        takes = {offer: times - (times // 4 or 1) for offer, times in takes.items() if times > 1}
        listed, cut = _listed(pieces, takes), True
    return takes, listed, cut


def _rows(takes: Mapping[Offer, int]) -> int:
    """How many pieces can be taken."""
    return sum(times * (sum(part.quantity for part in offer.parts) or 1) for offer, times in takes.items())


def _listed(pieces: Counter[Piece], takes: Mapping[Offer, int]) -> dict[Piece, int]:
    """The pieces that could be taken; of those that are alike as many as could be used."""
    return {piece: min(times, _wanted(piece, takes)) for piece, times in pieces.items()}


def _count(pieces: Counter[Piece], lines: frozenset[str]) -> int:
    return sum(times for piece, times in pieces.items() if piece.line_id in lines)


def _crude_bound(pieces: Counter[Piece], single: Sequence[Offer], bundles: Sequence[Offer]) -> int:
    """What pieces would save if nothing were limited and bundles cost nothing."""
    bundled = {line for offer in bundles for part in offer.parts for line in part.lines}
    return sum(
        times * (piece.price if piece.line_id in bundled else _unlimited(piece, single).saved)
        for piece, times in pieces.items()
    )


@dataclass(frozen=True)
class Problem:
    """The pieces that limited benefits could be for, and what these are worth on them.

    Worth is gain over the base line, scaled, less `toll` for each use: so fewer uses win among equals.
    """

    pieces: list[Piece]
    base: list[Plan]
    singles: dict[Offer, list[Plan | None]]
    """Per limited benefit and piece, the best plan that uses it and unlimited ones."""
    pairs: dict[tuple[int, Offer, Offer], Plan]
    """Two limited benefits on a piece, where that saves more than one of them."""
    takes: dict[Offer, int]
    scale: int
    toll: int

    @classmethod
    def of(
        cls,
        counts: Mapping[Piece, int],
        base: dict[Piece, Plan],
        free: Sequence[Offer],
        takes: dict[Offer, int],
    ) -> Problem:
        """With so many of the pieces that are alike."""
        listed = [piece for piece in base for _ in range(counts[piece])]
        plans = {
            (offer, piece): _with(piece, offer, free) for offer in takes for piece in base if not offer.parts
        }
        singles = {offer: [plans[offer, piece] for piece in listed] for offer in takes if not offer.parts}
        rows = _rows(takes)
        dearest = max((piece.price for piece in listed), default=0)
        dearest = max(dearest, *(offer.value for offer in takes), 0)
        scale, toll = (rows + 1, 1) if fits(rows, (rows + 1) * (dearest + 1)) else (1, 0)
        pairs = {
            (index, first, second): plan
            for index, piece in enumerate(listed)
            for second in singles
            if second.after_other and (other := plans[second, piece]) is not None
            for first in singles
            if second is not first and (alone := plans[first, piece]) is not None
            if (plan := combine(piece, first, second)).saved > max(alone.saved, other.saved)
        }
        return cls(listed, [base[piece] for piece in listed], singles, pairs, takes, scale, toll)

    @cached_property
    def worth(self) -> dict[Offer, list[int | None]]:
        """Of each limited benefit, for each piece, as the one limited benefit on it."""
        return {
            offer: [
                None if plan is None or plan.saved <= base.saved else self.scaled(plan.saved - base.saved, 1)
                for plan, base in zip(plans, self.base, strict=True)
            ]
            for offer, plans in self.singles.items()
        }

    @cached_property
    def worth_second(self) -> dict[Offer, list[int | None]]:
        """Of each limited benefit that may come second, for each piece, at most what it adds to another."""
        added: dict[Offer, list[int | None]] = {
            offer: [None] * len(self.pieces) for offer in self.singles if offer.after_other
        }
        for (index, first, second), plan in self.pairs.items():
            extra = self.pair_worth(index, plan) - (self.worth[first][index] or 0)
            if extra > 0:
                added[second][index] = max(added[second][index] or 0, extra)
        return added

    @cached_property
    def doubled(self) -> list[int]:
        """The pieces that two limited benefits could be for."""
        return sorted({index for index, _, _ in self.pairs})

    @cached_property
    def second(self) -> dict[int, int]:
        """Of each of these pieces, the thing that stands for its second benefit."""
        return {index: len(self.pieces) + place for place, index in enumerate(self.doubled)}

    @property
    def things(self) -> int:
        """What is given away: the pieces, and the second places on some."""
        return len(self.pieces) + len(self.doubled)

    @cached_property
    def on_pieces(self) -> dict[Offer, Worths]:
        """What each limited benefit takes."""
        none: list[int | None] = [None] * len(self.pieces)
        return {
            offer: Worths([*worth, *map(self.worth_second.get(offer, none).__getitem__, self.doubled)])
            for offer, worth in self.worth.items()
        }

    @cached_property
    def in_bundles(self) -> dict[Offer, list[Worths]]:
        """What each part of each bundle takes."""
        return {
            offer: [
                Worths([*self._bundled(part, carried), *(None for _ in self.doubled)])
                for part, carried in zip(offer.parts, shares, strict=True)
            ]
            for offer, shares in self.shares.items()
        }

    def _bundled(self, part: Part, carried: int) -> list[int | None]:
        return [
            (piece.price - base.saved) * self.scale - carried if piece.line_id in part.lines else None
            for piece, base in zip(self.pieces, self.base, strict=True)
        ]

    def pair_worth(self, index: int, plan: Plan) -> int:
        """Of two limited benefits on a piece."""
        return self.scaled(plan.saved - self.base[index].saved, 2)

    def scaled(self, gain: int, uses: int) -> int:
        """A gain as it is reckoned with."""
        return gain * self.scale - uses * self.toll

    def gain(self, value: int) -> int:
        """The most minor units that an answer of such a value can gain; it has fewer uses than the scale."""
        return value if not self.toll else (value + self.scale - 1) // self.scale

    @cached_property
    def shares(self) -> dict[Offer, list[int]]:
        """What a piece of each part of a bundle carries of the bundle's price, at most in sum the price.

        In proportion to the dearest piece of the part, which makes good bounds; any other shares would do.
        """
        return {offer: self._shares(offer) for offer in self.takes if offer.parts}

    def _shares(self, offer: Offer) -> list[int]:
        price = offer.value * self.scale + self.toll
        dearest = [
            max((piece.price for piece in self.pieces if piece.line_id in part.lines), default=0) + 1
            for part in offer.parts
        ]
        whole = sum(part.quantity * most for part, most in zip(offer.parts, dearest, strict=True))
        shares = [price * most // whole for most in dearest]
        rest = price - sum(part.quantity * share for part, share in zip(offer.parts, shares, strict=True))
        for index, part in enumerate(offer.parts):  # nothing is left where a part is a single piece
            more, rest = divmod(rest, part.quantity)
            shares[index] += more
        return shares

    @cached_property
    def uncharged(self) -> dict[Offer, int]:
        """What of a bundle's price the shares of its pieces leave."""
        return {
            offer: offer.value * self.scale
            + self.toll
            - sum(part.quantity * share for part, share in zip(offer.parts, shares, strict=True))
            for offer, shares in self.shares.items()
        }


def _wanted(piece: Piece, takes: Mapping[Offer, int]) -> int:
    """How many pieces like this one all the limited benefits together could use."""
    return sum(
        times * sum(part.quantity for part in offer.parts if piece.line_id in part.lines)
        if offer.parts
        else times * (piece.line_id in offer.lines)
        for offer, times in takes.items()
    )


def _with(piece: Piece, offer: Offer, free: Sequence[Offer]) -> Plan | None:
    """The best plan for a piece that uses a limited benefit, alone or with an unlimited one."""
    if piece.line_id not in offer.lines:
        return None
    mine = [other for other in free if piece.line_id in other.lines]
    before = (combine(piece, other, offer) for other in mine if offer.after_other)
    return best_plan((*_plans(piece, [offer], mine), *before))


@dataclass(frozen=True, slots=True)
class Node:
    """What was decided so far."""

    least: tuple[tuple[Offer, int], ...] = ()
    most: tuple[tuple[Offer, int], ...] = ()
    """How many of each bundle there are, at least and at most."""
    lone: frozenset[int] = frozenset()
    """Pieces that get one limited benefit at most."""
    paired: frozenset[tuple[int, Offer, Offer]] = frozenset()
    """Pieces that get two."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The best answer of a node with the rules relaxed: the pieces that each benefit takes."""

    node: Node
    value: int
    first: dict[Offer, list[int]]
    second: dict[Offer, list[int]]
    parts: dict[Offer, list[list[int]]]
    """Of each bundle and part."""


class _Work:
    """Counts what is left to be spent."""

    def __init__(self, problem: Problem) -> None:
        small = len(problem.shares) <= SMALL[0] and len(problem.pieces) <= SMALL[1]
        self.left = WORK_SMALL if small else WORK

    def relaxed(self, problem: Problem, node: Node) -> Answer | None:
        """Solves a node; None where it has no answer."""
        used = Counter(offer for _, *both in node.paired for offer in both)
        least, most = dict(node.least), dict(node.most)
        takers = [
            Taker(worths, 0, problem.takes[offer] - used[offer])
            for offer, worths in problem.on_pieces.items()
        ]
        for offer, rows in problem.in_bundles.items():
            fewest, highest = least.get(offer, 0), most.get(offer, problem.takes[offer])
            takers += [
                Taker(worths, fewest * part.quantity, (highest - fewest) * part.quantity)
                for part, worths in zip(offer.parts, rows, strict=True)
            ]
        gone = {index for index, _, _ in node.paired}
        barred = [*gone, *(problem.second[index] for index in gone | node.lone if index in problem.second)]
        takes = sum(taker.must + taker.may for taker in takers)
        self.left -= takes * (problem.things + takes)
        given = assign(takers, problem.things, barred)
        return None if given is None else _answer(problem, node, takers, given)


def _answer(problem: Problem, node: Node, takers: Sequence[Taker], given: Sequence[Sequence[int]]) -> Answer:
    value = sum(
        taker.worths.of[thing] or 0 for taker, things in zip(takers, given, strict=True) for thing in things
    )
    value += sum(problem.pair_worth(key[0], problem.pairs[key]) for key in node.paired)
    value -= sum(problem.uncharged[offer] * fewest for offer, fewest in node.least)
    rest = iter(given)
    first, second = {}, {}
    pieces = len(problem.pieces)
    for offer in problem.on_pieces:
        things = next(rest)
        first[offer] = [thing for thing in things if thing < pieces]
        second[offer] = [problem.doubled[thing - pieces] for thing in things if thing >= pieces]
    parts = {offer: [list(next(rest)) for _ in offer.parts] for offer in problem.in_bundles}
    return Answer(node, value, first, second, parts)


def _broken_bundle(problem: Problem, answer: Answer) -> tuple[Offer, int] | None:
    """A bundle whose pieces are not whole bundles, and how many of it are whole."""
    least, most = dict(answer.node.least), dict(answer.node.most)
    for offer, parts in answer.parts.items():
        whole = min(len(taken) // part.quantity for part, taken in zip(offer.parts, parts, strict=True))
        exact = all(
            len(taken) == whole * part.quantity for part, taken in zip(offer.parts, parts, strict=True)
        )
        decided = least.get(offer, 0) == most.get(offer, problem.takes[offer])
        if not exact or (whole and problem.uncharged[offer] and not decided):
            return offer, whole
    return None


def _broken_piece(problem: Problem, answer: Answer) -> int | None:
    """A piece on which two limited benefits do not save what was reckoned with."""
    holder = {index: offer for offer, taken in answer.first.items() for index in taken}
    for offer, taken in answer.second.items():
        for index in taken:
            first = holder.get(index)
            plan = problem.pairs.get((index, first, offer)) if first else None
            if first is None or plan is None:
                return index
            reckoned = (problem.worth[first][index] or 0) + (problem.worth_second[offer][index] or 0)
            if reckoned != problem.pair_worth(index, plan):
                return index
    return None


def _branches(problem: Problem, answer: Answer) -> list[Node]:
    """The nodes that decide a rule that an answer breaks; none where it breaks none."""
    node = answer.node
    bundle = _broken_bundle(problem, answer)
    if bundle is not None:
        offer, whole = bundle
        least, most = dict(node.least), dict(node.most)
        fewest, highest = least.get(offer, 0), most.get(offer, problem.takes[offer])
        low = whole if whole < highest else whole - 1  # the two halves of fewest … highest
        return [
            replace(node, least=((*_others(node.least, offer), (offer, low + 1)))),
            *([replace(node, most=((*_others(node.most, offer), (offer, low))))] if low >= fewest else []),
        ]
    piece = _broken_piece(problem, answer)
    if piece is None:
        return []
    # Of pieces that are alike it may be the first ones that get two benefits: either all that are left get
    # one at most, or the first of them gets two.
    gone = {index for index, _, _ in node.paired}
    alike = [
        index
        for index, other in enumerate(problem.pieces)
        if other == problem.pieces[piece] and index not in gone
    ]
    used = Counter(offer for _, *both in node.paired for offer in both)
    pairs = [
        key
        for key in problem.pairs
        if key[0] == alike[0] and all(used[offer] < problem.takes[offer] for offer in key[1:])
    ]
    return [
        replace(node, lone=node.lone.union(alike)),
        *(replace(node, paired=node.paired | {key}) for key in pairs),
    ]


def _others(counts: tuple[tuple[Offer, int], ...], offer: Offer) -> tuple[tuple[Offer, int], ...]:
    return tuple(pair for pair in counts if pair[0] is not offer)


def _search(problem: Problem) -> tuple[Answer, int]:
    """The best answer that keeps all rules, and the gain in minor units that none can pass."""
    work = _Work(problem)
    root = work.relaxed(problem, Node())
    assert root is not None  # noqa: S101 - nothing must be taken yet
    branches = _branches(problem, root)
    if not branches:
        return root, problem.gain(root.value)
    best = work.relaxed(problem, _repaired(problem, root))
    assert best is not None  # noqa: S101 - the pieces that were whole bundles still are
    number = count()
    open_nodes = [(-root.value, next(number), branches)]
    while open_nodes and -open_nodes[0][0] > best.value and work.left > 0:
        _, _, nodes = heappop(open_nodes)
        for node in nodes:
            answer = work.relaxed(problem, node)
            if answer is None or answer.value <= best.value:
                continue
            branches = _branches(problem, answer)
            if branches:
                heappush(open_nodes, (-answer.value, next(number), branches))
            else:
                best = answer
    bound = max([best.value, *(-value for value, _, _ in open_nodes)])
    return best, problem.gain(bound)


def _repaired(problem: Problem, answer: Answer) -> Node:
    """The node that keeps only what of a relaxed answer is legal: whole bundles, one benefit a piece."""
    counts = tuple(
        (offer, min(len(taken) // part.quantity for part, taken in zip(offer.parts, parts, strict=True)))
        for offer, parts in answer.parts.items()
    )
    return Node(counts, counts, frozenset(range(len(problem.pieces))))


def _chosen(problem: Problem, answer: Answer, pieces: Counter[Piece], base: dict[Piece, Plan]) -> Chosen:
    """What an answer that keeps all rules does for every piece, those that were left out included."""
    plans: dict[int, Plan] = {key[0]: problem.pairs[key] for key in answer.node.paired}
    first = {index: offer for offer, taken in answer.first.items() for index in taken}
    second = {index: offer for offer, taken in answer.second.items() for index in taken}
    for index, offer in first.items():
        plan = (
            problem.pairs[index, offer, second[index]] if index in second else problem.singles[offer][index]
        )
        plans[index] = plan or NOTHING
    bundles = {
        offer: (
            len(parts[0]) // offer.parts[0].quantity,
            [problem.pieces[index] for index in sorted(index for taken in parts for index in taken)],
        )
        for offer, parts in answer.parts.items()
        if parts[0]
    }
    bundled = {index for parts in answer.parts.values() for taken in parts for index in taken}
    done: Counter[tuple[Piece, Plan]] = Counter()
    left = Counter(pieces)
    for index, piece in enumerate(problem.pieces):
        left[piece] -= 1
        if index not in bundled:
            done[piece, plans.get(index, problem.base[index])] += 1
    for piece, times in left.items():
        if times:
            done[piece, base[piece]] += times
    return Chosen(done, bundles)
