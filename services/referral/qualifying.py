"""What members do, told in any order and as often as others like, and what becomes of their bonds by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial

from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.due import Due
from services.chassis.ids import new_id
from services.referral import events, inviting, messages
from services.referral.commands import Learned, RecordQualification, RevokeQualification, Tell
from services.referral.domain import attributions, fraud
from services.referral.domain.attributions import News
from services.referral.domain.campaigns import FactKind
from services.referral.domain.profile import Attribution, AttributionStatus, Fact, Verdict
from services.referral.errors import WrongKind
from services.referral.steps import Step
from services.referral.store import Review

BY_SCORE = "~score"  # who rejects what is beyond the limit; no caller's name begins so

# --- facts --------------------------------------------------------------------------------------------


def record(step: Step, command: RecordQualification) -> pb.RecordQualificationResponse:
    """Keeps what the member did. Raises CampaignUnknown, WrongKind."""
    kind = step.campaign(command.campaign_id).qualify.kind
    if command.kind is not kind:
        raise WrongKind(kind=kind)
    told = Fact(
        kind=kind,
        reference_id=command.reference_id,
        occur_time=min(command.occur_time, step.at),
        amount_minor=command.amount_minor,
        currency_code=command.currency_code,
        attributes=command.attributes,
    )
    _add(step, told)
    return pb.RecordQualificationResponse(attribution=_shown(step, command.campaign_id))


def revoke(step: Step, command: RevokeQualification) -> pb.RevokeQualificationResponse:
    """Keeps that what the member did was undone. Raises CampaignUnknown."""
    undone = Fact(
        kind=step.campaign(command.campaign_id).qualify.kind,
        reference_id=command.reference_id,
        revoke_time=min(command.occur_time, step.at),
        revoke_reason=command.reason,
    )
    _add(step, undone)
    return pb.RevokeQualificationResponse(attribution=_shown(step, command.campaign_id))


def tell(step: Step, command: Tell) -> None:
    """Notes what another service told, and gives a newcomer its invites."""
    if command.learned is not None:
        _learn(step, command.learned)
    _add(step, *command.facts)
    if command.joined is not None:
        inviting.welcome(step, command.joined)


def _learn(step: Step, learned: Learned) -> None:
    """Notes what holds of the member, unless something newer is known."""
    profile, name = step.profile, learned.name
    if learned.version <= profile.told_versions.get(name, (0, 0)):
        return
    profile.told_versions = {**profile.told_versions, name: learned.version}
    others = {other: value for other, value in profile.told.items() if other != name}
    profile.told = {**others, name: learned.value} if learned.value else others


def _add(step: Step, *told: Fact) -> None:
    """Adds what was told of facts to what is known of them, and sees what follows."""
    kinds: set[FactKind] = set()
    for fact in told:
        known = step.profile.facts.get(fact.name)
        now = attributions.added(known, fact)
        if now is not known:
            step.keep(now)
            kinds.add(now.kind)
    for bond in list(step.profile.attributions.values()):
        if step.campaign(bond.campaign_id, bond.campaign_version).qualify.kind in kinds:
            judge(step, bond.campaign_id)


def _shown(step: Step, campaign_id: str) -> pb.Attribution | None:
    bond = step.profile.attributions.get(campaign_id)
    return None if bond is None else messages.attribution(step.profile.member_id, bond)


# --- bonds --------------------------------------------------------------------------------------------


def judge(step: Step, campaign_id: str) -> None:
    """Sees where the member's bond in a campaign stands by now, and tells what is new.

    The member's facts have to be there, all of them.
    """
    was = step.profile.attributions[campaign_id]
    compiled = step.compiled(campaign_id, was.campaign_version)
    facts = step.profile.facts.values()
    standing = attributions.stand(was, compiled.campaign, facts, compiled.when, step.at)
    now = standing.attribution
    if now is was:
        return
    step.keep(now)
    if was.verdict is Verdict.PASS and now.verdict is not Verdict.PASS:
        _show(step, now, fraud.score(compiled.campaign, now.signals))
    match standing.news(was):
        case News.BOUND:
            step.announce_bond(now, events.invitee_bound, occur=now.bind_time)
        case News.QUALIFIED:
            step.announce_bond(now, events.invitee_qualified)
        case News.REVOKED:
            step.announce_bond(now, events.invitee_revoked, standing.reason)
        case News.DROPPED:
            step.announce_bond(now, events.invitee_dropped)


def _show(step: Step, bond: Attribution, score: int) -> None:
    """Shows a suspicious bond to operators, to be judged, or judged by its score until one says otherwise."""
    review = Review(
        review_id=new_id("rvw"),
        member_id=step.profile.member_id,
        campaign_id=bond.campaign_id,
        attribution_id=bond.attribution_id,
        inviter_id=bond.inviter_id,
        score=score,
        signals=bond.signals,
        create_time=step.at,
    )
    if bond.verdict is Verdict.REJECT:
        review = replace(review, verdict=Verdict.REJECT, resolve_time=step.at, resolved_by=BY_SCORE)
    step.reviews[review.review_id] = review


# --- by the clock -------------------------------------------------------------------------------------


def upcoming(step: Step) -> Iterator[Due]:
    """Bonds that lapse."""
    for bond in step.profile.attributions.values():
        moment = attributions.lapses(bond)
        if moment is not None:
            yield Due(moment, partial(_lapse, step, bond))


def _lapse(step: Step, bond: Attribution, moment: datetime) -> None:
    lapsed = replace(bond, status=AttributionStatus.LAPSED)
    step.announce_bond(lapsed, events.invitee_dropped, occur=moment)
