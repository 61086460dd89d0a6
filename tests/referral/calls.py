"""Calls about invitations, as tests write them: campaigns of their own, bonds, what members do; and time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.points.v1.points_events_pb2 import FulfilmentRefused
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from tests.conftest import NOON
from tests.journeys.publisher import Publisher
from tests.support import Referral, eventually, fresh


def stamp(at: datetime) -> Timestamp:
    """An instant as the contract writes it."""
    made = Timestamp()
    made.FromDatetime(at)
    return made


def instant(at: Timestamp) -> datetime:
    """An instant that the contract wrote."""
    return at.ToDatetime(tzinfo=UTC)


def wait(referral: Referral, **duration: float) -> None:
    """Lets time pass."""
    assert referral.house.clock is not None
    referral.house.clock.set(referral.now + timedelta(**duration))


# --- campaigns ----------------------------------------------------------------------------------------


def points(amount: int, cost_minor: int = 0) -> dict[str, Any]:
    """A reward of points."""
    return {"points": {"amount": amount}, "cost_minor": cost_minor}


def cash(amount_minor: int) -> dict[str, Any]:
    """A reward of money."""
    return {"cash": {"amount_minor": amount_minor}}


def a_campaign(**said: Any) -> pb.Campaign:
    """A campaign of its own, which asks for a first order and grants at once, unless said otherwise."""
    whole = {
        "campaign_id": fresh("campaign"),
        "name": "邀请好友",
        "open_time": (NOON - timedelta(days=30)).isoformat(),
        "close_time": (NOON + timedelta(days=330)).isoformat(),
        "settle_time": (NOON + timedelta(days=360)).isoformat(),
        "qualify": {"kind": "QUALIFICATION_KIND_ORDER"},
        "ladder": [{"step_id": "first", "at": 1, "reward": points(1_000)}],
        "attribution_window_hours": 720,
        "clawback_window_hours": 168,
        "on_drop": "ON_DROP_CLAW_BACK",
        **said,
    }
    return ParseDict(whole, pb.Campaign())


def put(referral: Referral, campaign: pb.Campaign, request_id: str = "", **how: Any) -> pb.Campaign:
    """Puts a campaign's next version."""
    request = pb.PutCampaignRequest(request_id=request_id or fresh("put"), campaign=campaign, **how)
    return referral.call(referral.referral.PutCampaign, request)


def made(referral: Referral, **said: Any) -> pb.Campaign:
    """A campaign of its own, put."""
    return put(referral, a_campaign(**said))


def close(referral: Referral, campaign: pb.Campaign, request_id: str = "") -> pb.Campaign:
    """Closes a campaign."""
    request = pb.CloseCampaignRequest(
        request_id=request_id or fresh("close"), campaign_id=campaign.campaign_id
    )
    return referral.call(referral.referral.CloseCampaign, request)


# --- inviting -----------------------------------------------------------------------------------------


def invite(
    referral: Referral, campaign: pb.Campaign, member: str, request_id: str = "", **said: Any
) -> pb.Invite:
    """Has a member's invite."""
    request = pb.CreateInviteRequest(
        member_id=member,
        request_id=request_id or fresh("invite"),
        campaign_id=campaign.campaign_id,
        **said,
    )
    return referral.call(referral.referral.CreateInvite, request)


def bind(
    referral: Referral, campaign: pb.Campaign, member: str, code: str, request_id: str = "", **said: Any
) -> pb.Attribution:
    """Binds a member by a code."""
    request = pb.BindInviteeRequest(
        member_id=member,
        request_id=request_id or fresh("bind"),
        campaign_id=campaign.campaign_id,
        code=code,
        **said,
    )
    return referral.call(referral.referral.BindInvitee, request).attribution


def bring(referral: Referral, campaign: pb.Campaign, inviter: str, member: str = "") -> str:
    """Binds a member, by default a new one, to an inviter; returns which."""
    member = member or fresh("invitee")
    bind(referral, campaign, member, invite(referral, campaign, inviter).code)
    return member


# --- what members do ----------------------------------------------------------------------------------


def qualify(
    referral: Referral, campaign: pb.Campaign, member: str, request_id: str = "", **said: Any
) -> pb.RecordQualificationResponse:
    """Tells of an order of 30.00, paid now, unless said otherwise."""
    whole: dict[str, Any] = {
        "kind": epb.QUALIFICATION_KIND_ORDER,
        "reference_id": fresh("order"),
        "amount_minor": 3_000,
        "currency_code": "CNY",
        "occur_time": stamp(referral.now),
        **said,
    }
    request = pb.RecordQualificationRequest(
        member_id=member,
        request_id=request_id or fresh("qualify"),
        campaign_id=campaign.campaign_id,
        **whole,
    )
    return referral.call(referral.referral.RecordQualification, request)


def revoke(
    referral: Referral, campaign: pb.Campaign, member: str, reference: str, **said: Any
) -> pb.RevokeQualificationResponse:
    """Tells that something is undone, now."""
    whole: dict[str, Any] = {
        "request_id": fresh("revoke"),
        "reason": epb.REVOKE_REASON_REFUNDED,
        "occur_time": stamp(referral.now),
        **said,
    }
    request = pb.RevokeQualificationRequest(
        member_id=member, campaign_id=campaign.campaign_id, reference_id=reference, **whole
    )
    return referral.call(referral.referral.RevokeQualification, request)


# --- what becomes of it -------------------------------------------------------------------------------


def progress(referral: Referral, campaign: pb.Campaign, member: str) -> pb.Progress:
    """Where a member stands."""
    request = pb.GetProgressRequest(member_id=member, campaign_id=campaign.campaign_id)
    return referral.call(referral.referral.GetProgress, request)


def rewards(referral: Referral, member: str, **asked: Any) -> list[pb.Reward]:
    """Every page of a member's rewards."""
    request = pb.ListRewardsRequest(member_id=member, **asked)
    return list(_pages(referral, referral.referral.ListRewards, request, "rewards"))


def invitees(referral: Referral, campaign: pb.Campaign, member: str, **asked: Any) -> list[pb.Invitee]:
    """Every page of whom a member brought."""
    request = pb.ListInviteesRequest(member_id=member, campaign_id=campaign.campaign_id, **asked)
    return list(_pages(referral, referral.referral.ListInvitees, request, "invitees"))


def leaderboard(referral: Referral, campaign: pb.Campaign, **asked: Any) -> pb.Leaderboard:
    """Who brought most."""
    request = pb.GetLeaderboardRequest(campaign_id=campaign.campaign_id, **asked)
    return referral.call(referral.referral.GetLeaderboard, request)


def reviews(referral: Referral, campaign: pb.Campaign, **asked: Any) -> list[pb.Review]:
    """Every page of a campaign's reviews."""
    request = pb.ListReviewsRequest(campaign_id=campaign.campaign_id, **asked)
    return list(_pages(referral, referral.referral.ListReviews, request, "reviews"))


def open_rewards(referral: Referral, campaign: pb.Campaign, **asked: Any) -> list[pb.Reward]:
    """Every page of a campaign's rewards that are not handed over."""
    request = pb.ListOpenRewardsRequest(campaign_id=campaign.campaign_id, **asked)
    return list(_pages(referral, referral.referral.ListOpenRewards, request, "rewards"))


def until_granted(referral: Referral, member: str) -> pb.Reward:
    """The member's only reward, once it is granted."""
    found: list[pb.Reward] = []

    def look() -> bool:
        found[:] = rewards(referral, member)
        return bool(found) and found[0].status != pb.REWARD_STATUS_PENDING

    eventually(look)
    [one] = found
    return one


def tell(referral: Referral, message: Message) -> None:
    """Publishes an event, as its owner would."""

    async def publish() -> None:
        async with Publisher(referral.house.nats.url, "points") as publisher:
            await publisher.publish(message)

    asyncio.run(publish())


def refuse(referral: Referral, reward: pb.Reward, reason: str = "PROGRAMME_UNKNOWN") -> None:
    """The points service refuses a reward, and that was heard."""
    at = stamp(referral.now)
    about = {"member_id": reward.receiver_member_id, "reward_id": reward.reward_id, "reason": reason}
    tell(referral, FulfilmentRefused(**about, occur_time=at, epoch=1, version=1))

    def failed() -> bool:
        mine = rewards(referral, reward.receiver_member_id, status=pb.REWARD_STATUS_FAILED)
        return reward.reward_id in {one.reward_id for one in mine}

    eventually(failed)


def _pages(referral: Referral, method: Any, request: Any, field: str) -> Iterator[Any]:
    while True:
        page: Any = referral.call(method, request)
        yield from getattr(page, field)
        request.page_token = page.next_page_token
        if not request.page_token:
            return
