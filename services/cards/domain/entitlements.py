"""What a card gives at an instant: the benefits of the period that runs, and what is left of their quotas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from services.cards.domain.basket import Offer, Part
from services.cards.domain.cards import Card, Segment
from services.cards.domain.products import Benefit
from services.cards.domain.quotas import Window, available

Benefits = Mapping[tuple[str, int], Sequence[Benefit]]
"""By product code and version."""
Used = Mapping[tuple[str, str], int]
"""Uses by benefit and window key."""


@dataclass(frozen=True, slots=True)
class Entitlement:
    """A benefit that a card gives."""

    card_id: str
    segment_id: str
    product: tuple[str, int]
    """Code and version of the product that gives it."""
    benefit: Benefit
    window_key: str
    """Empty without a quota."""
    used: int
    remaining: int | None
    """None without a quota."""
    reset: datetime | None
    """When the quota fills again; None where it does not while the card gives the benefit."""
    valid_until: datetime
    """From this instant on the card no longer gives it, queued periods included."""

    def offer(self, lines: frozenset[str], parts: Sequence[frozenset[str]], *, failed: bool = False) -> Offer:
        """What it is for an order: the lines that it is for, and those of each part of a bundle."""
        benefit = self.benefit
        return Offer(
            self.card_id,
            benefit.code,
            benefit.kind,
            benefit.value,
            lines,
            available(benefit.quota, self.used, benefit.max_per_order),
            benefit.after_other,
            tuple(Part(part.quantity, fitting) for part, fitting in zip(benefit.parts, parts, strict=True)),
            failed,
        )


@dataclass(frozen=True, slots=True)
class Giver:
    """A card with what decides about its benefits."""

    card: Card
    benefits: Benefits
    used: Used
    zone: ZoneInfo

    def entitlements(self, at: datetime) -> list[Entitlement]:
        """What it gives at an instant, as the product lists it; also what is used up."""
        return [given for given in self.whenever(at) if given.benefit.holds(at, self.zone)]

    def whenever(self, at: datetime) -> list[Entitlement]:
        """As `entitlements`, whatever the time of day."""
        present = self.card.as_of(at, self.zone)
        running = present.running(at, self.zone)
        if running is None:
            return []
        chain = [segment for segment in present.live(at) if segment.start >= running.start]
        return [
            self._entitlement(benefit, self._giving(chain, benefit.code), at) for benefit in self._of(running)
        ]

    def _of(self, segment: Segment) -> Sequence[Benefit]:
        return self.benefits[segment.product_code, segment.product_version]

    def _giving(self, chain: Sequence[Segment], code: str) -> list[Segment]:
        """The periods, the one that runs first, that give a benefit without a gap."""
        giving: list[Segment] = []
        for segment in chain:
            adjoins = not giving or segment.start == giving[-1].over
            if not adjoins or all(benefit.code != code for benefit in self._of(segment)):
                break
            giving.append(segment)
        return giving

    def _entitlement(self, benefit: Benefit, giving: Sequence[Segment], at: datetime) -> Entitlement:
        running, until = giving[0], giving[-1].over
        product = (running.product_code, running.product_version)
        if benefit.quota is None:
            return Entitlement(
                self.card.card_id, running.segment_id, product, benefit, "", 0, None, None, until
            )
        window = benefit.quota.window
        key = window.key(at, running.segment_id, self.zone)
        used = self.used.get((benefit.code, key), 0)
        reset = running.over if window is Window.PERIOD else window.resets(at, self.zone)
        return Entitlement(
            self.card.card_id,
            running.segment_id,
            product,
            benefit,
            key,
            used,
            benefit.quota.remaining(used),
            reset if reset is not None and reset < until else None,
            until,
        )
