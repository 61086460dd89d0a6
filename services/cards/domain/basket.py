"""The best price of a basket: which benefit for which piece, under quotas, explained.

A line's pieces cost the same, the first ones a minor unit more where the amount does not divide. A piece gets
one benefit, and after it an AMOUNT_OFF that may come after another; a piece of a bundle gets nothing more.
All amounts are whole minor units: what PERCENT_OFF saves is rounded down, piece by piece; a bundle's price is
shared out among its pieces in proportion to theirs, by largest remainder.

Of combinations that save the same, one with the fewest uses of limited benefits is taken; of those again
the one that the solver finds first, with lines by id and benefits by card and code. So the answer does not
depend on the order in which lines or benefits come.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from services.cards.domain.products import BenefitKind


@dataclass(frozen=True, slots=True)
class Line:
    """A position of an order, before any benefit."""

    line_id: str
    quantity: int
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Part:
    """So many pieces of these lines, in each bundle."""

    quantity: int
    lines: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A benefit that a member may use on this order now; conditions are evaluated already."""

    card_id: str
    code: str
    kind: BenefitKind
    value: int = 0
    lines: frozenset[str] = frozenset()
    """The lines it is for. Of FREE_DELIVERY: any, where it is for the order."""
    limit: int | None = None
    """Uses that quota and order allow; None means as many as wanted."""
    after_other: bool = False
    parts: tuple[Part, ...] = ()
    """Of a bundle."""
    failed: bool = False
    """Its condition could not be evaluated."""

    @property
    def name(self) -> tuple[str, str]:
        """What tells it from others."""
        return (self.card_id, self.code)

    def saves(self, price: int) -> int:
        """What it takes off a piece of this price; not for bundles."""
        match self.kind:
            case BenefitKind.FIXED_PRICE:
                return max(0, price - self.value)
            case BenefitKind.PERCENT_OFF:
                return price * self.value // 100
            case BenefitKind.AMOUNT_OFF:
                return min(price, self.value)
            case BenefitKind.FREE_ITEM:
                return price
            case _:
                return 0


class Piece(NamedTuple):
    """One piece of a line, with its price."""

    line_id: str
    price: int


class Plan(NamedTuple):
    """What is done for a piece: one benefit, and perhaps an AMOUNT_OFF after it."""

    saved: int = 0
    first: Offer | None = None
    second: Offer | None = None


NOTHING = Plan()


def combine(piece: Piece, first: Offer, second: Offer | None = None) -> Plan:
    """Two benefits on one piece: the second comes off what the first leaves."""
    saved = first.saves(piece.price)
    if second is None:
        return Plan(saved, first)
    return Plan(saved + second.saves(piece.price - saved), first, second)


def best_plan(plans: Iterable[Plan]) -> Plan:
    """The one that saves most; of equals one with fewer benefits, then the first."""
    return max(plans, key=lambda plan: (plan.saved, plan.first is None, plan.second is None), default=NOTHING)


class Note(StrEnum):
    """Why a benefit is used, or not."""

    APPLIED = "APPLIED"
    APPLIED_AFTER_OTHER = "APPLIED_AFTER_OTHER"
    APPLIED_AS_BUNDLE = "APPLIED_AS_BUNDLE"
    NOTHING_MATCHES = "NOTHING_MATCHES"
    QUOTA_USED = "QUOTA_USED"
    SAVES_NO_MORE = "SAVES_NO_MORE"
    SCOPE_FAILED = "SCOPE_FAILED"


class Step(NamedTuple):
    """One line of the explanation: what these pieces cost before and after."""

    note: Note
    offer: Offer
    line_id: str = ""
    """Empty for the delivery, and where a benefit is not used."""
    quantity: int = 0
    before: int = 0
    after: int = 0


class LineUse(NamedTuple):
    """What one benefit does for a line."""

    offer: Offer
    quantity: int
    saved: int


class QuotedLine(NamedTuple):
    """What is to be paid for a line."""

    line_id: str
    pay: int
    uses: tuple[LineUse, ...]


class Taken(NamedTuple):
    """How often the order uses a benefit: once per piece, per bundle, or per delivery."""

    offer: Offer
    uses: int
    saved: int


@dataclass(frozen=True, slots=True)
class Quote:
    """The best price, in minor units."""

    lines: tuple[QuotedLine, ...]
    delivery_pay: int
    delivery_uses: tuple[LineUse, ...]
    saved: int
    exact: bool
    bound: int
    """What no legal combination can pass; `saved` where it is exact."""
    taken: tuple[Taken, ...]
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Chosen:
    """What is done for every piece: how often which plan on which piece, and whole bundles."""

    plans: Counter[tuple[Piece, Plan]]
    bundles: Mapping[Offer, tuple[int, Sequence[Piece]]]
    """How many of each, and their pieces together."""
    exact: bool = True
    bound: int = 0
    """What the pieces can save at most."""


def pieces_of(lines: Iterable[Line]) -> Counter[Piece]:
    """The pieces of an order, alike ones counted."""
    pieces: Counter[Piece] = Counter()
    for line in lines:
        if line.quantity:
            price, dearer = divmod(line.amount_minor, line.quantity)
            pieces[Piece(line.line_id, price)] = line.quantity - dearer
            if dearer:
                pieces[Piece(line.line_id, price + 1)] = dearer
    return pieces


def share(total: int, prices: Sequence[int]) -> list[int]:
    """Shares a total out in proportion to prices that sum up to no less, by largest remainder."""
    whole = sum(prices)
    if not whole:
        return [0] * len(prices)
    parts = [divmod(total * price, whole) for price in prices]
    missing = total - sum(part for part, _ in parts)
    dearest = sorted(range(len(prices)), key=lambda index: (-parts[index][1], index))[:missing]
    return [part + (index in dearest) for index, (part, _) in enumerate(parts)]


def deliver(fee: int, offers: Sequence[Offer]) -> LineUse | None:
    """The one benefit for the delivery: what saves most, of equals an unlimited one, then the first."""
    uses = [
        LineUse(offer, 1, min(fee, offer.value or fee))
        for offer in offers
        if offer.kind is BenefitKind.FREE_DELIVERY and offer.lines and offer.limit != 0
    ]
    best = max(uses, key=lambda use: (use.saved, use.offer.limit is None), default=None)
    return best if best and best.saved else None


def explain(lines: Sequence[Line], fee: int, offers: Sequence[Offer], chosen: Chosen) -> Quote:
    """What was chosen, line by line, and why what was not used is not."""
    steps, taken = _line_steps(chosen)
    delivery = deliver(fee, offers)
    if delivery:
        steps.append(Step(Note.APPLIED, delivery.offer, "", 1, fee, fee - delivery.saved))
        taken[delivery.offer] = Taken(delivery.offer, 1, delivery.saved)
    uses: defaultdict[str, list[LineUse]] = defaultdict(list)
    for step in steps:
        uses[step.line_id].append(LineUse(step.offer, step.quantity, step.before - step.after))
    quoted = tuple(
        QuotedLine(
            line.line_id,
            line.amount_minor - sum(use.saved for use in uses[line.line_id]),
            tuple(_merged(uses[line.line_id])),
        )
        for line in lines
    )
    saved = sum(use.saved for use in taken.values())
    off_delivery = delivery.saved if delivery else 0
    return Quote(
        quoted,
        fee - off_delivery,
        (delivery,) if delivery else (),
        saved,
        chosen.exact,
        saved if chosen.exact else chosen.bound + off_delivery,
        tuple(taken[offer] for offer in sorted(taken, key=lambda offer: offer.name)),
        (*steps, *(Step(_why_not(offer), offer) for offer in offers if offer not in taken)),
    )


def _line_steps(chosen: Chosen) -> tuple[list[Step], dict[Offer, Taken]]:
    steps: list[Step] = []
    uses: Counter[Offer] = Counter()
    for (piece, plan), times in sorted(chosen.plans.items(), key=_by_line):
        if plan.first is not None:
            left = piece.price - plan.first.saves(piece.price)
            before, after = times * piece.price, times * left
            steps.append(Step(Note.APPLIED, plan.first, piece.line_id, times, before, after))
            uses[plan.first] += times
        if plan.second is not None:
            before, after = times * left, times * (piece.price - plan.saved)
            steps.append(Step(Note.APPLIED_AFTER_OTHER, plan.second, piece.line_id, times, before, after))
            uses[plan.second] += times
    for offer in sorted(chosen.bundles, key=lambda bundle: bundle.name):
        uses[offer], pieces = chosen.bundles[offer]
        steps += _bundle_steps(offer, offer.value * uses[offer], pieces)
    saved: Counter[Offer] = Counter()
    for step in steps:
        saved[step.offer] += step.before - step.after
    return steps, {offer: Taken(offer, times, saved[offer]) for offer, times in uses.items()}


def _bundle_steps(offer: Offer, price: int, pieces: Sequence[Piece]) -> list[Step]:
    pays: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for piece, pay in zip(pieces, share(price, [piece.price for piece in pieces]), strict=True):
        pays[piece.line_id].append((piece.price, pay))
    return [
        Step(
            Note.APPLIED_AS_BUNDLE,
            offer,
            line_id,
            len(amounts),
            sum(before for before, _ in amounts),
            sum(after for _, after in amounts),
        )
        for line_id, amounts in sorted(pays.items())
    ]


def _by_line(item: tuple[tuple[Piece, Plan], int]) -> tuple[object, ...]:
    (piece, plan), _ = item
    names = [offer.name if offer else ("", "") for offer in (plan.first, plan.second)]
    return (piece.line_id, -piece.price, *names)


def _merged(uses: Sequence[LineUse]) -> list[LineUse]:
    """Uses of the same benefit on a line as one."""
    merged: dict[Offer, LineUse] = {}
    for use in uses:
        known = merged.get(use.offer, LineUse(use.offer, 0, 0))
        merged[use.offer] = LineUse(use.offer, known.quantity + use.quantity, known.saved + use.saved)
    return list(merged.values())


def _why_not(offer: Offer) -> Note:
    if offer.failed:
        return Note.SCOPE_FAILED
    matches = all(part.lines for part in offer.parts) if offer.parts else bool(offer.lines)
    if not matches:
        return Note.NOTHING_MATCHES
    return Note.QUOTA_USED if offer.limit == 0 else Note.SAVES_NO_MORE
