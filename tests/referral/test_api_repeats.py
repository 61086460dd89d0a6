"""The same request again: every write gets its first answer and changes nothing more."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.referral.api import METHODS, READ
from tests.contract import call
from tests.referral.calls import (
    a_campaign,
    bind,
    bring,
    cash,
    invite,
    made,
    points,
    qualify,
    refuse,
    reviews,
    stamp,
    until_granted,
)
from tests.referral.requests import fingerprint
from tests.support import Referral, fresh, refused

SERVICE = "/loyalty.referral.v1.ReferralService/"
ASKERS = 8


@dataclass(frozen=True)
class Repeated:
    """A write that succeeds, and what makes it another one."""

    make: Callable[[Referral], Message]
    other: Callable[[Any], None]


def _request(kind: Any, **fields: Any) -> Any:
    return kind(request_id=fresh("request"), **fields)


def _of_another(field: str, value: Any) -> Callable[[Any], None]:
    return lambda request: setattr(request, field, value)


def _invited(referral: Referral) -> Message:
    campaign = made(referral)
    made_: Message = _request(
        pb.CreateInviteRequest, member_id=fresh("member"), campaign_id=campaign.campaign_id
    )
    return made_


def _bound(referral: Referral) -> Message:
    campaign = made(referral)
    made_: Message = _request(
        pb.BindInviteeRequest,
        member_id=fresh("member"),
        campaign_id=campaign.campaign_id,
        code=invite(referral, campaign, fresh("inviter")).code,
    )
    return made_


def _about_an_invitee(referral: Referral, request: Any, **more: Any) -> Any:
    # Held, so that nothing is granted while it is watched.
    campaign = made(referral, hold_period_hours=1)
    member = bring(referral, campaign, fresh("inviter"))
    about = {"member_id": member, "campaign_id": campaign.campaign_id, "reference_id": fresh("order")}
    return request(request_id=fresh("request"), **about, occur_time=stamp(referral.now), **more)


def _review(referral: Referral) -> pb.Review:
    device = [{"signal": "SIGNAL_DEVICE", "limit": 1, "score": 50}]
    campaign = made(referral, signal_limits=device, review_score=50)
    code, same = invite(referral, campaign, fresh("inviter")).code, pb.Signals(device=fresh("device"))
    for _ in range(2):
        bind(referral, campaign, fresh("member"), code, signals=same)
    [review] = reviews(referral, campaign)
    return review


def _granted(referral: Referral, reward: dict[str, Any], **said: Any) -> str:
    ladder = [{"step_id": "one", "at": 1, "reward": reward}]
    campaign, inviter = made(referral, ladder=ladder, **said), fresh("inviter")
    qualify(referral, campaign, bring(referral, campaign, inviter))
    return until_granted(referral, inviter).reward_id


def _failed(referral: Referral) -> str:
    """A reward that the points service refused."""
    ladder = [{"step_id": "one", "at": 1, "reward": points(10)}]
    campaign, inviter = made(referral, ladder=ladder), fresh("inviter")
    qualify(referral, campaign, bring(referral, campaign, inviter))
    reward = until_granted(referral, inviter)
    refuse(referral, reward)
    return reward.reward_id


def _blocked(kind: Any, **more: Any) -> Message:
    made_: Message = _request(kind, member_id=fresh("member"), **more)
    return made_


def _erased(referral: Referral) -> Message:
    member = fresh("member")
    invite(referral, made(referral), member)
    made_: Message = _request(pb.EraseMemberRequest, member_id=member)
    return made_


WRITES = {
    "CreateInvite": Repeated(_invited, _of_another("display_name", "another")),
    "BindInvitee": Repeated(_bound, _of_another("code", "another")),
    "RecordQualification": Repeated(
        lambda referral: _about_an_invitee(
            referral, pb.RecordQualificationRequest, kind=epb.QUALIFICATION_KIND_ORDER
        ),
        _of_another("reference_id", "another"),
    ),
    "RevokeQualification": Repeated(
        lambda referral: _about_an_invitee(
            referral, pb.RevokeQualificationRequest, reason=epb.REVOKE_REASON_REFUNDED
        ),
        _of_another("reference_id", "another"),
    ),
    "ResolveReview": Repeated(
        lambda referral: _request(
            pb.ResolveReviewRequest,
            review_id=_review(referral).review_id,
            verdict=pb.REVIEW_STATUS_REJECTED,
        ),
        _of_another("note", "another"),
    ),
    "RetryReward": Repeated(
        lambda referral: _request(pb.RetryRewardRequest, reward_id=_failed(referral)),
        _of_another("reward_id", "rwd_0"),
    ),
    "WriteOffReward": Repeated(
        lambda referral: _request(pb.WriteOffRewardRequest, reward_id=_failed(referral)),
        _of_another("reward_id", "rwd_0"),
    ),
    "RecordRewardPaid": Repeated(
        lambda referral: _request(
            pb.RecordRewardPaidRequest,
            reward_id=_granted(referral, cash(5), currency_code="CNY"),
            reference_id="wire",
        ),
        _of_another("reference_id", "another"),
    ),
    "PutCampaign": Repeated(
        lambda _: _request(pb.PutCampaignRequest, campaign=a_campaign()),
        lambda request: setattr(request.campaign, "name", "another"),
    ),
    "CloseCampaign": Repeated(
        lambda referral: _request(pb.CloseCampaignRequest, campaign_id=made(referral).campaign_id),
        _of_another("campaign_id", "another"),
    ),
    "BlockInviter": Repeated(
        lambda _: _blocked(pb.BlockInviterRequest, reason="sells-codes"), _of_another("reason", "another")
    ),
    "UnblockInviter": Repeated(
        lambda _: _blocked(pb.UnblockInviterRequest), _of_another("member_id", "another")
    ),
    "EraseMember": Repeated(
        _erased,
        lambda _: None,  # it has nothing else
    ),
}
EACH_WRITE = pytest.mark.parametrize("name", WRITES)


def test_every_write_is_repeated_here() -> None:
    writes = {method.removeprefix(SERVICE) for method, row in METHODS.items() if row.scope != READ}
    assert set(WRITES) == writes - {"ListReviews", "ListOpenRewards", "GetBudget", "ExportMember"}


@EACH_WRITE
def test_a_write_that_is_repeated_gets_the_first_answer_and_changes_nothing(
    referral: Referral, name: str
) -> None:
    request = WRITES[name].make(referral)
    first = call(referral, SERVICE + name, request)
    before = fingerprint(referral)
    again = call(referral, SERVICE + name, request)
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    assert fingerprint(referral) == before
    other = type(request)()
    other.CopyFrom(request)
    WRITES[name].other(other)
    if other != request:
        with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
            call(referral, SERVICE + name, other)
        assert fingerprint(referral) == before


@EACH_WRITE
def test_a_write_that_is_sent_many_times_at_once_happens_once(referral: Referral, name: str) -> None:
    request = WRITES[name].make(referral)
    with ThreadPoolExecutor(ASKERS) as pool:
        answers = list(pool.map(lambda _: call(referral, SERVICE + name, request), range(ASKERS)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1


def test_a_bind_that_is_repeated_may_bring_other_signals(referral: Referral) -> None:
    campaign, member, request_id = made(referral), fresh("member"), fresh("bind")
    code = invite(referral, campaign, fresh("inviter")).code
    first = bind(referral, campaign, member, code, request_id, signals=pb.Signals(device="one"))
    assert bind(referral, campaign, member, code, request_id, signals=pb.Signals(device="other")) == first


def test_a_refusal_is_not_remembered(referral: Referral) -> None:
    campaign, member, request_id = a_campaign(), fresh("member"), fresh("invite")
    with refused(StatusCode.NOT_FOUND, "CAMPAIGN_UNKNOWN"):
        invite(referral, campaign, member, request_id)
    request = pb.PutCampaignRequest(request_id=fresh("put"), campaign=campaign)
    referral.call(referral.referral.PutCampaign, request)
    assert invite(referral, campaign, member, request_id).member_id == member
