"""Bonds: who brought a member, told once, and how suspicious that looks at once.

Whose a code is, who brought the inviter and whether somebody is blocked is seen without a lock: it never
changes, or is an operator's word. That two members bring each other is kept from happening by their pair,
which one bond claims. A code is looked up with the same statements whether somebody has it or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.ids import new_id
from services.referral import codes, events, inviting, messages, qualifying
from services.referral.commands import BindInvitee
from services.referral.domain import fraud
from services.referral.domain.campaigns import Campaign, Signal
from services.referral.domain.profile import Attribution
from services.referral.errors import (
    AlreadyBound,
    AlreadyMember,
    CodeUnknown,
    Cycle,
    InviterBlocked,
    SelfReferral,
    TooManyTries,
)
from services.referral.steps import Step
from services.referral.store import Pair, SignalSeen


def bind(step: Step, command: BindInvitee) -> pb.BindInviteeResponse:
    """Binds the member to whom a code belongs, and sees what the member has done counts.

    Raises CampaignUnknown, TooManyTries, CampaignClosed, CodeUnknown, SelfReferral, AlreadyBound,
    InviterBlocked, AlreadyMember, Cycle.
    """
    campaign = step.campaign(command.campaign_id)
    check_tries(step, command)
    inviting.check_open(step, campaign)
    inviter_id = _inviter(step, command)
    _check(step, command, inviter_id)
    bond = _bond(step, command, campaign, inviter_id)
    bond = step.announce_bond(bond, events.invitee_bound)
    qualifying.judge(step, bond.campaign_id)
    return messages.bound(command.member_id, bond)


def check_tries(step: Step, command: BindInvitee) -> None:
    """Raises TooManyTries for a caller who tried too many codes within this minute that nobody has."""
    limit = step.scene.terms.code_tries_per_minute
    if step.scene.seen.tries.get((command.caller, step.scene.minute), 0) >= limit:
        raise TooManyTries(limit=limit)


def pair(campaign_id: str, one: str, other: str) -> Pair:
    """Two members, of whom one brings the other."""
    return Pair(campaign_id, min(one, other), max(one, other))


def _inviter(step: Step, command: BindInvitee) -> str:
    code = codes.read(command.code)
    campaign_id, member_id = step.scene.owners.get(code, ("", ""))
    if campaign_id != command.campaign_id:
        raise CodeUnknown
    return member_id


def _check(step: Step, command: BindInvitee, inviter_id: str) -> None:
    campaign_id, seen = command.campaign_id, step.scene.seen
    if inviter_id == command.member_id:
        raise SelfReferral
    if campaign_id in step.profile.attributions:
        raise AlreadyBound
    if (inviter_id, campaign_id) in seen.blocked:
        raise InviterBlocked
    failing = step.compiled(campaign_id).invitee_failing(step.profile, command.member_since, step.at)
    if failing is not None:
        raise AlreadyMember(condition=failing)
    claim = pair(campaign_id, command.member_id, inviter_id)
    if claim in seen.pairs:
        raise Cycle
    step.pairs.add(claim)


def _bond(step: Step, command: BindInvitee, campaign: Campaign, inviter_id: str) -> Attribution:
    signals = fraud.beyond(campaign, _counts(step, command, inviter_id))
    step.signals |= {
        SignalSeen(command.campaign_id, signal, value, command.member_id)
        for signal, value in command.signals.items()
    }
    step.inviter = (inviter_id, command.campaign_id)
    return Attribution(
        attribution_id=new_id("atr"),
        campaign_id=campaign.campaign_id,
        campaign_version=campaign.version,
        inviter_id=inviter_id,
        grand_inviter_id=_grand_inviter(step, command, campaign, inviter_id),
        code=codes.read(command.code),
        bind_time=step.at,
        lapse_time=campaign.lapse_time(step.at),
        score=fraud.score(campaign, signals),
        signals=signals,
    )


def _counts(step: Step, command: BindInvitee, inviter_id: str) -> Mapping[Signal, int]:
    """How many came with each value, and how many were bound to the inviter of late, this member included."""
    scene, campaign_id = step.scene, command.campaign_id
    counts = {}
    for signal, value in command.signals.items():
        there = scene.seen.signals.get(SignalSeen(campaign_id, signal, value, command.member_id), 0)
        counts[signal] = 1 + there + scene.came[campaign_id, signal, value]
    inviter = (inviter_id, campaign_id)
    return {**counts, Signal.VELOCITY: 1 + scene.seen.binds.get(inviter, 0) + scene.came[inviter]}


def _grand_inviter(step: Step, command: BindInvitee, campaign: Campaign, inviter_id: str) -> str:
    above = step.scene.seen.attributions.get((inviter_id, command.campaign_id))
    if campaign.max_depth < 2 or above is None or above.inviter_id == command.member_id:
        return ""
    return above.inviter_id
