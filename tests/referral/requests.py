"""A good request of each method, and the database as one number."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from google.protobuf.message import Message
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from tests import database
from tests.referral.calls import a_campaign, points, stamp
from tests.support import Referral, fresh

# --- the database, as one number ----------------------------------------------------------------------


def fingerprint(referral: Referral) -> dict[str, str]:
    """A hash over all rows of each table, once every event is sent and what follows by itself is done."""
    heard = "EXISTS (SELECT FROM inbox i WHERE i.event_id = o.event_id)"
    unheard = f"o.subject LIKE '%.Invitee%' AND NOT {heard}"
    granting = "status = 'PENDING' AND grant_after = reach_time"
    returning = "status = 'CLAWED_BACK' AND NOT returned"
    spending = f"EXISTS (SELECT FROM rewards WHERE {granting} OR {returning})"
    return database.fingerprint(referral.house, "referral", f"sent_at IS NULL OR ({unheard}) OR {spending}")


# --- a good request of each kind ----------------------------------------------------------------------


def a_whole_campaign() -> pb.Campaign:
    """A campaign with everything that one can have."""
    ladder = [
        {
            "step_id": "first",
            "depth": 1,
            "at": 1,
            "reward": points(1_000, 1_000),
            "invitee_reward": {"coupon": {"coupon_code": "fries", "quantity": 1}, "cost_minor": 600},
        },
        {"step_id": "third", "at": 3, "reward": {"card": {"plan_id": "king-month"}, "cost_minor": 1_900}},
        {
            "step_id": "again",
            "every": {"count": 5, "first": 10},
            "reward": {"group_entry": {"scheme_id": "vip", "group_id": "grp_1"}},
        },
        {"step_id": "share", "depth": 2, "each_from": 1, "reward": {"cash": {"share_basis_points": 100}}},
    ]
    return a_campaign(
        inviter_eligible=[{"name": "gold", "expression": "tier == 'gold'"}],
        invitee_eligible=[{"name": "new", "expression": "member_days <= 7"}],
        qualify={
            "kind": "QUALIFICATION_KIND_ORDER",
            "when": "amount_minor >= 1500",
            "within_hours": 336,
        },
        ladder=ladder,
        max_depth=2,
        hold_period_hours=24,
        caps={"per_day": 10, "per_month": 100, "lifetime": 1_000},
        budget_minor=1_000_000,
        currency_code="CNY",
        signal_limits=[{"signal": "SIGNAL_DEVICE", "limit": 2, "score": 50}],
        review_score=50,
        reject_score=100,
        auto_invite_scheme_id="store",
        share_title="一起来",
        poster_fields={"headline": "{name}请客", "code": "{code}"},
        fulfil_within_hours=48,
    )


def _write(name: str, **fields: Any) -> Any:
    """A request of a write about a member of its own."""
    made = getattr(pb, f"{name}Request")
    return made(member_id=fresh("member"), request_id=fresh("request"), **fields)


def _read(name: str, **fields: Any) -> Any:
    return getattr(pb, f"{name}Request")(member_id=fresh("member"), **fields)


def _put(name: str, **fields: Any) -> Any:
    """A request of the operators'."""
    return getattr(pb, f"{name}Request")(request_id=fresh("request"), **fields)


def _list(name: str, **fields: Any) -> Any:
    return getattr(pb, f"{name}Request")(**fields)


def _bind(referral: Referral) -> Message:
    signals = pb.Signals(device="a1", ip_prefix="b2", payment_account="c3", address="d4")
    since = stamp(referral.now - timedelta(days=1))
    made: Message = _write(
        "BindInvitee", campaign_id="campaign", code="ABCDEFGHJKMN", signals=signals, member_since=since
    )
    return made


def _record(referral: Referral) -> Message:
    details = pb.FactDetails(
        store_id="store-1",
        city="杭州",
        channel="app",
        product="king-month",
        scheme_id="store",
        group_id="grp_1",
        renewal=True,
        gift=True,
    )
    made: Message = _write(
        "RecordQualification",
        campaign_id="campaign",
        kind=epb.QUALIFICATION_KIND_ORDER,
        reference_id="order",
        amount_minor=3_000,
        currency_code="CNY",
        occur_time=stamp(referral.now),
        details=details,
    )
    return made


_SERVICE = "/loyalty.referral.v1.ReferralService/"
_MAKE: dict[str, Callable[[Referral], Message]] = {
    "CreateInvite": lambda _: _write("CreateInvite", campaign_id="campaign", display_name="张三"),
    "GetInvite": lambda _: _read("GetInvite", campaign_id="campaign"),
    "BindInvitee": _bind,
    "RecordQualification": _record,
    "RevokeQualification": lambda referral: _write(
        "RevokeQualification",
        campaign_id="campaign",
        reference_id="order",
        reason=epb.REVOKE_REASON_REFUNDED,
        occur_time=stamp(referral.now),
    ),
    "GetProgress": lambda _: _read("GetProgress", campaign_id="campaign"),
    "ListInvitees": lambda _: _read("ListInvitees", campaign_id="campaign", page_size=5, depth=1),
    "ListRewards": lambda _: _read(
        "ListRewards",
        page_size=5,
        side=pb.REWARD_SIDE_REACHED,
        campaign_id="campaign",
        status=pb.REWARD_STATUS_GRANTED,
    ),
    "GetLeaderboard": lambda _: _read("GetLeaderboard", campaign_id="campaign", size=5),
    "ListReviews": lambda _: _list("ListReviews", page_size=5, campaign_id="campaign", include_resolved=True),
    "ResolveReview": lambda _: _put(
        "ResolveReview", review_id="rvw_1", verdict=pb.REVIEW_STATUS_PASSED, note="known"
    ),
    "ListOpenRewards": lambda _: _list("ListOpenRewards", page_size=5, campaign_id="campaign", troubled=True),
    "RetryReward": lambda _: _put("RetryReward", reward_id="rwd_1"),
    "WriteOffReward": lambda _: _put("WriteOffReward", reward_id="rwd_1"),
    "RecordRewardPaid": lambda _: _put("RecordRewardPaid", reward_id="rwd_1", reference_id="payment"),
    "PutCampaign": lambda _: _put("PutCampaign", campaign=a_whole_campaign(), validate_only=True),
    "GetCampaign": lambda _: _list("GetCampaign", campaign_id="campaign", version=1),
    "ListCampaigns": lambda _: _list("ListCampaigns", page_size=5, include_closed=True),
    "CloseCampaign": lambda _: _put("CloseCampaign", campaign_id="campaign"),
    "GetBudget": lambda _: _list("GetBudget", campaign_id="campaign"),
    "BlockInviter": lambda _: _put(
        "BlockInviter", member_id=fresh("member"), campaign_id="campaign", reason="bought-invitees"
    ),
    "UnblockInviter": lambda _: _put("UnblockInviter", member_id=fresh("member"), campaign_id="campaign"),
    "ExportMember": lambda _: _read("ExportMember", page_size=5),
    "EraseMember": lambda _: _write("EraseMember"),
}
GOOD = {_SERVICE + name: make for name, make in _MAKE.items()}
"""By method; every set field is then made bad in turn."""
