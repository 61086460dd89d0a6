"""Bad input gets a precise error and changes nothing: every field of every method, and broken bytes."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc import StatusCode
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.referral.api import METHODS
from tests.contract import refuses_bad_fields, refuses_broken_bytes
from tests.referral.calls import a_campaign, bind, invite, made, points, put
from tests.referral.requests import GOOD, fingerprint
from tests.support import Referral, fresh, read_refusal, refused

EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])


def test_every_method_has_a_good_request_here() -> None:
    assert set(GOOD) == set(METHODS)


@EACH_METHOD
def test_a_bad_field_is_refused_precisely_and_changes_nothing(referral: Referral, method: str) -> None:
    refuses_bad_fields(referral, method, lambda: GOOD[method](referral), lambda: fingerprint(referral))


@EACH_METHOD
def test_broken_bytes_are_refused_and_change_nothing(referral: Referral, method: str) -> None:
    refuses_broken_bytes(referral, method, GOOD[method](referral), lambda: fingerprint(referral))


def _step(**said: Any) -> dict[str, Any]:
    return {"step_id": "step", "at": 1, "reward": points(1), **said}


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"ladder": [_step(at=0)]}, "campaign.ladder[0].at"),
        ({"ladder": [{"step_id": "step", "reward": points(1)}]}, "campaign.ladder[0].position"),
        ({"ladder": [{"step_id": "step", "at": 1}]}, "campaign.ladder[0]"),
        ({"ladder": []}, "campaign.ladder"),
        ({"ladder": [_step(), _step(at=2)]}, "campaign.ladder"),
        ({"qualify": {"kind": 0}}, "campaign.qualify.kind"),
        ({"qualify": {"kind": 5}}, "campaign.qualify.kind"),
        ({"close_time": "2026-01-01T00:00:00Z"}, "campaign"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_ladder_that_pays_for_nothing_breaks_the_contract(
    referral: Referral, said: dict[str, Any], field: str
) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        put(referral, a_campaign(**said))
    assert field in refusal.fields


@pytest.mark.parametrize("said", [{"max_depth": 3}, {"ladder": [_step(depth=3)]}], ids=["campaign", "step"])
def test_three_levels_are_refused(referral: Referral, said: dict[str, Any]) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "MULTI_LEVEL"):
        put(referral, a_campaign(**said))


@pytest.mark.parametrize("what", ["inviter_eligible[0].expression", "qualify.when"])
@pytest.mark.parametrize(
    "expression",
    ["(" * 990 + "true" + ")" * 990, "!" * 1999 + "a", "tier", "nobody.knows == 1", "1 + 1"],
    ids=lambda expression: expression[:12],
)
def test_a_wild_condition_is_compiled_or_refused_with_its_place(
    referral: Referral, what: str, expression: str
) -> None:
    said: dict[str, Any] = (
        {"qualify": {"kind": "QUALIFICATION_KIND_ORDER", "when": expression}}
        if what == "qualify.when"
        else {"inviter_eligible": [{"name": "wild", "expression": expression}]}
    )
    try:
        put(referral, a_campaign(**said), validate_only=True)
    except grpc.RpcError as error:
        refusal = read_refusal(error)
        assert (refusal.code, refusal.reason) == (StatusCode.INVALID_ARGUMENT, "CAMPAIGN_INVALID")
        assert refusal.fields == {f"campaign.{what}"}


@pytest.mark.parametrize("token", ["", "garbage", "AAAA", "x" * 512], ids=["none", "words", "short", "long"])
def test_a_page_token_is_ours_or_refused(referral: Referral, token: str) -> None:
    request = pb.ListOpenRewardsRequest(campaign_id="campaign", page_token=token)
    if token:
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            referral.call(referral.referral.ListOpenRewards, request)
    else:
        assert not referral.call(referral.referral.ListOpenRewards, request).rewards


def test_what_is_no_code_is_as_unknown_as_a_code_that_nobody_has(referral: Referral) -> None:
    campaign, inviter = made(referral), fresh("inviter")
    code = invite(referral, campaign, inviter).code
    wrong = code[:-1] + ("A" if code[-1] != "A" else "B")
    for typed in (wrong, "张三", "'; DROP TABLE codes; --", "0" * 12, code + code, " "):
        with refused(StatusCode.NOT_FOUND, "CODE_UNKNOWN") as refusal:
            bind(referral, campaign, fresh("member"), typed)
        assert not refusal.metadata
    assert bind(referral, campaign, fresh("member"), f" {code.lower()} ".strip()).inviter_member_id == inviter
