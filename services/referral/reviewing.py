"""The operator's desk: bonds that look suspicious, and members who may not invite."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.database import Connection
from services.referral import messages, qualifying, store
from services.referral.commands import ResolveReview
from services.referral.domain.profile import Attribution
from services.referral.errors import CampaignUnknown, ReviewUnknown
from services.referral.steps import Step
from services.referral.store import Block


def resolve(step: Step, command: ResolveReview) -> pb.Review:
    """Judges the member's bond, also anew: from now on no score does. Raises ReviewUnknown."""
    review = step.scene.seen.reviews.get(command.review_id)
    if review is None or review.member_id != command.member_id:
        raise ReviewUnknown(review_id=command.review_id)
    judged = replace(
        review,
        verdict=command.verdict,
        resolve_time=step.at,
        resolved_by=command.actor,
        note=command.note,
    )
    step.reviews[review.review_id] = judged
    bond: Attribution = step.profile.attributions[review.campaign_id]
    step.keep(replace(bond, verdict=command.verdict, resolved=True))
    qualifying.judge(step, review.campaign_id)
    return messages.review(judged)


# --- members who may not invite -----------------------------------------------------------------------


async def block(
    connection: Connection, at: datetime, *, member_id: str, campaign_id: str, reason: str, author: str
) -> Block:
    """Blocks a member as inviter, in a campaign or in all. Raises CampaignUnknown."""
    if campaign_id and await store.campaign(connection, campaign_id) is None:
        raise CampaignUnknown(campaign_id=campaign_id)
    made = Block(member_id=member_id, campaign_id=campaign_id, reason=reason, author=author, create_time=at)
    await store.block(connection, made)
    return made
