"""What follows from an invitee's facts: the same in whatever order, how often and how early they are told.

So nothing is counted on or off. What is told is added to what is known, and where an attribution stands is
found from all of it each time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from services.referral.domain import fraud
from services.referral.domain.campaigns import Campaign, Signal
from services.referral.domain.profile import (
    EVERYTHING,
    Attribution,
    AttributionStatus,
    Fact,
    RevokeReason,
    Verdict,
)

When = Callable[[Fact, int], bool]
"""Whether what the campaign asks for holds for a fact that is worth so much, in minor units."""


# --- facts --------------------------------------------------------------------------------------------


def added(known: Fact | None, told: Fact) -> Fact:
    """What is known of a fact once more of it was told: the first word about each thing holds.

    Of revocations the earliest does. Told again, it is the same object.
    """
    if known is None:
        return told
    now = known
    if known.occur_time is None and told.occur_time is not None:
        now = replace(
            told, refunds=known.refunds, revoke_time=known.revoke_time, revoke_reason=known.revoke_reason
        )
    refunds = {**told.refunds, **known.refunds}
    if len(refunds) > len(known.refunds):
        now = replace(now, refunds=refunds)
    if told.revoke_time is not None and (known.revoke_time is None or told.revoke_time < known.revoke_time):
        now = replace(now, revoke_time=told.revoke_time, revoke_reason=told.revoke_reason)
    return now


@dataclass(frozen=True, slots=True)
class _Deed:
    """A fact that qualifies, or did before it was undone."""

    fact: Fact
    occur_time: datetime
    worth: int
    """In minor units, less the refunds that count."""
    undone: RevokeReason | None


def _deeds(attribution: Attribution, campaign: Campaign, facts: Collection[Fact], when: When) -> list[_Deed]:
    """What of the facts is what the campaign asks for, earliest first."""
    found = (_deed(attribution, campaign, fact, when) for fact in facts)
    deeds = [deed for deed in found if deed is not None]
    return sorted(deeds, key=lambda deed: (deed.occur_time, deed.fact.reference_id))


def _deed(attribution: Attribution, campaign: Campaign, fact: Fact, when: When) -> _Deed | None:
    at = fact.occur_time
    if fact.kind is not campaign.qualify.kind or at is None:
        return None
    if not campaign.open_time <= at < attribution.lapse_time:
        return None
    refunds = [minor for minor, then in fact.refunds.values() if then < at + campaign.clawback_window]
    worth = 0 if EVERYTHING in refunds else max(0, fact.amount_minor - sum(refunds))
    if fact.attributes is None:  # its member was erased: it is as it was judged before
        holds = held = fact.name == (attribution.kind, attribution.reference_id)
    else:
        holds = when(fact, worth)
        held = holds or (bool(refunds) and when(fact, fact.amount_minor))
    if not held:
        return None
    undone = None
    if fact.revoke_time is not None and fact.revoke_time < campaign.undone_until(at):
        undone = fact.revoke_reason
    elif not holds or (refunds and not worth):
        undone = RevokeReason.REFUNDED
    return _Deed(fact, at, worth, undone)


# --- where an attribution stands ----------------------------------------------------------------------


class News(StrEnum):
    """What an inviter has to be told."""

    BOUND = "BOUND"
    """It may count after all: it waits for an operator."""
    QUALIFIED = "QUALIFIED"
    REVOKED = "REVOKED"
    DROPPED = "DROPPED"


@dataclass(frozen=True, slots=True)
class Standing:
    """An attribution as it stands."""

    attribution: Attribution
    reason: RevokeReason
    """Why it does not count any more, where it did."""

    def news(self, was: Attribution) -> News | None:
        """What is new, after what was told last; None if nothing is."""
        now = self.attribution
        if now.status is AttributionStatus.QUALIFIED:
            return None if _qualified_by(now) == _qualified_by(was) else News.QUALIFIED
        if was.status is AttributionStatus.QUALIFIED:
            return News.REVOKED
        if now.status is was.status:
            return None
        if was.status is AttributionStatus.REVOKED and now.status is AttributionStatus.REJECTED:
            return News.REVOKED  # what it had brought may have been kept, and is not for fraud
        match now.status:
            case AttributionStatus.REVOKED:
                return News.REVOKED
            case AttributionStatus.LAPSED | AttributionStatus.REJECTED:
                return News.DROPPED
        return News.BOUND


def _qualified_by(one: Attribution) -> tuple[object, ...]:
    return (one.status, one.kind, one.reference_id, one.qualify_time, one.amount_minor, one.currency_code)


def stand(
    attribution: Attribution, campaign: Campaign, facts: Collection[Fact], when: When, at: datetime
) -> Standing:
    """Where an attribution stands at an instant.

    `campaign` is the version that it was bound under, `facts` all that is known of its invitee. The earliest
    deed that was not undone qualifies. Whether it was too fast is judged by those that were undone, too: so
    it is judged once and for all.
    """
    deeds = _deeds(attribution, campaign, facts, when)
    judged = _judged(attribution, campaign, deeds)
    counting = next((deed for deed in deeds if deed.undone is None), None)
    by = counting or next(iter(deeds), None)
    if by is not None:
        judged = replace(
            judged,
            kind=by.fact.kind,
            reference_id=by.fact.reference_id,
            amount_minor=by.worth,
            currency_code=by.fact.currency_code,
            qualify_time=by.occur_time,
        )
    now = replace(judged, status=_status(judged, by, at))
    reason = RevokeReason.FRAUD if now.verdict is not Verdict.PASS else (by and by.undone)
    return Standing(attribution if now == attribution else now, reason or RevokeReason.REFUNDED)


def lapses(attribution: Attribution) -> datetime | None:
    """When the clock ends it; None if it will not."""
    waits = attribution.status is AttributionStatus.BOUND and not attribution.reference_id
    return attribution.lapse_time if waits else None


def _judged(attribution: Attribution, campaign: Campaign, deeds: Collection[_Deed]) -> Attribution:
    """With the verdict that its signals give, unless an operator gave one."""
    signals = attribution.signals
    if Signal.FAST not in signals and any(
        fraud.too_fast(campaign, attribution.bind_time, deed.occur_time) for deed in deeds
    ):
        signals = (*signals, Signal.FAST)
    if attribution.resolved:
        return replace(attribution, signals=signals)
    verdict = fraud.verdict(campaign, fraud.score(campaign, signals))
    return replace(attribution, signals=signals, verdict=verdict)


def _status(attribution: Attribution, by: _Deed | None, at: datetime) -> AttributionStatus:
    if attribution.verdict is Verdict.REJECT:
        return AttributionStatus.REJECTED
    if by is None and attribution.reference_id:  # a refund of what was left is no longer what is asked for
        return AttributionStatus.REVOKED
    if by is None:
        return AttributionStatus.LAPSED if at >= attribution.lapse_time else AttributionStatus.BOUND
    if by.undone is not None:
        return AttributionStatus.REVOKED
    return AttributionStatus.QUALIFIED if attribution.verdict is Verdict.PASS else AttributionStatus.BOUND
