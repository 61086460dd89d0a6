"""What must add up, whatever happened: the audit's rules over plain facts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.cards.domain.cards import Segment
from services.cards.domain.quotas import Use, UseStatus

WindowName = tuple[str, str, str]
"""Card, benefit and key."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not add up."""

    rule: str
    subject: str
    expected: str
    found: str


def overlapping(card_id: str, segments: Iterable[Segment]) -> list[Finding]:
    """Periods of a card never hold at the same time, and none ends before it starts."""
    held = sorted((s for s in segments if s.start < s.over), key=lambda s: (s.start, s.over))
    return [
        Finding("segments overlap", card_id, f"{after.segment_id} from {before.over}", str(after.start))
        for before, after in pairwise(held)
        if after.start < before.over
    ]


@dataclass(frozen=True, slots=True)
class KeptWindow:
    """What is kept of a quota's window: uses, and the limit when it was last used."""

    used: int
    limit: int


def windows(kept: Mapping[WindowName, KeptWindow], uses: Iterable[Use]) -> list[Finding]:
    """What is used in a window is what its uses that were not reversed sum up to, and within its limit.

    A reservation that lapsed counts until it is reversed, as it is kept until then.
    """
    summed: defaultdict[WindowName, int] = defaultdict(int)
    for use in uses:
        if use.window_key and use.status is not UseStatus.REVERSED:
            summed[use.card_id, use.benefit_code, use.window_key] += use.uses
    findings = []
    for name in sorted({*kept, *summed}):
        window = kept.get(name, KeptWindow(0, 0))
        subject = " ".join(name)
        if window.used != summed[name]:
            findings.append(Finding("uses of a window", subject, str(summed[name]), str(window.used)))
        if not 0 <= window.used <= window.limit:
            findings.append(Finding("limit of a window", subject, f"0 to {window.limit}", str(window.used)))
    return findings


@dataclass(frozen=True, slots=True)
class Money:
    """A member's money in one currency, in minor units; or points."""

    received: int
    """What payments brought."""
    segments: int
    """What periods cost, credits included, less what was given back for them."""
    credits: int
    """What of that unused days paid: signed, so negative."""
    refunds: int
    """What was given back for periods."""
    refund_due: int
    """Payments that were not applied."""


def money(subject: str, books: Money) -> list[Finding]:
    """Everything that was paid went into a period, or went or is to go back."""
    spent = books.segments + books.credits + books.refunds + books.refund_due
    if spent == books.received:
        return []
    return [Finding("what was paid", subject, str(spent), str(books.received))]


def savings(subject: str, kept: Mapping[str, int], uses: Sequence[Use]) -> list[Finding]:
    """What a period saved, by its id, is what its uses that were not reversed saved."""
    summed: defaultdict[str, int] = defaultdict(int)
    for use in uses:
        if use.status is not UseStatus.REVERSED:
            summed[use.segment_id] += use.saved_minor
    return [
        Finding("savings", f"{subject} {segment_id}", str(summed[segment_id]), str(kept.get(segment_id, 0)))
        for segment_id in sorted({*kept, *summed})
        if kept.get(segment_id, 0) != summed[segment_id]
    ]
