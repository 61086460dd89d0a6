"""Invites: asked for by a member, or given to the newcomers of a group by itself."""

from __future__ import annotations

from dataclasses import replace

from loyalty.referral.v1 import referral_service_pb2 as pb

from services.referral import codes, events, messages
from services.referral.commands import CreateInvite, Joined
from services.referral.domain.campaigns import Campaign
from services.referral.domain.profile import Invite
from services.referral.errors import CampaignClosed, InviterBlocked, NotEligible
from services.referral.rules import CompiledCampaign
from services.referral.steps import Step


def create(step: Step, command: CreateInvite) -> pb.Invite:
    """Gives the member an invite, the one that it has if it has one.

    Raises CampaignUnknown, CampaignClosed, InviterBlocked, NotEligible.
    """
    compiled = step.compiled(command.campaign_id)
    campaign = compiled.campaign
    if command.display_name:
        _rename(step, masked(command.display_name))
    invite = step.profile.invites.get(command.campaign_id)
    if invite is None:
        check_open(step, campaign)
        if _blocked(step, campaign):
            raise InviterBlocked
        failing = _failing(step, compiled)
        if failing is not None:
            raise NotEligible(condition=failing)
        invite = _make(step, campaign, name=masked(command.display_name))
    return messages.invite(command.member_id, invite, campaign)


def check_open(step: Step, campaign: Campaign) -> None:
    """Raises CampaignClosed where nobody can be bound."""
    if not campaign.open(step.at):
        raise CampaignClosed(
            open_time=campaign.open_time.isoformat(), close_time=campaign.close_time.isoformat()
        )


def welcome(step: Step, joined: Joined) -> None:
    """Gives a newcomer of a group its invites, in the campaigns that are for it and that it may invite in."""
    for compiled in step.scene.campaigns():
        campaign = compiled.campaign
        if campaign.auto_invite_scheme_id != joined.scheme_id or not campaign.open(step.at):
            continue
        if campaign.campaign_id in step.profile.invites or _blocked(step, campaign):
            continue
        if _failing(step, compiled) is None:
            _make(step, campaign, group_id=joined.group_id)


def masked(name: str) -> str:
    """A name as it may be shown to others; the rest of it is kept nowhere."""
    return f"{name[0]}**" if name else ""


def _make(step: Step, campaign: Campaign, *, name: str = "", group_id: str = "") -> Invite:
    known = next((one.masked_name for one in step.profile.invites.values() if one.masked_name), "")
    invite = Invite(
        campaign_id=campaign.campaign_id,
        campaign_version=campaign.version,
        code=codes.make(),
        create_time=step.at,
        group_id=group_id,
        masked_name=name or known,
    )
    step.keep(invite)
    step.announce(events.invite_created, (invite, campaign))
    return invite


def _rename(step: Step, name: str) -> None:
    for invite in list(step.profile.invites.values()):
        if invite.masked_name != name:
            step.keep(replace(invite, masked_name=name))


def _blocked(step: Step, campaign: Campaign) -> bool:
    return (step.profile.member_id, campaign.campaign_id) in step.scene.seen.blocked


def _failing(step: Step, compiled: CompiledCampaign) -> str | None:
    return compiled.inviter_failing(step.profile, step.at)
