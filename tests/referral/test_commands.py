"""The `loyalty` command and the referral service: campaigns from a file, and the operator's desk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import MessageToDict
from loyalty.referral.v1 import referral_service_pb2 as pb
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.apply import Faulty
from tests.referral.calls import (
    a_campaign,
    bind,
    bring,
    cash,
    invite,
    made,
    qualify,
    reviews,
    rewards,
    until_granted,
)
from tests.support import Referral, eventually, fresh


def loyalty(referral: Referral, *arguments: str | Path) -> str:
    """What a command prints that must succeed."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--house", str(referral.house.data)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def found(referral: Referral, *arguments: str) -> Any:
    """What a command prints for machines."""
    return json.loads(loyalty(referral, *arguments, "--json"))


def test_campaigns_are_put_only_if_they_say_something_else(referral: Referral, tmp_path: Path) -> None:
    said = [
        MessageToDict(a_campaign(share_title=title), preserving_proto_field_name=True)
        for title in ("一起来", "送你一份")
    ]
    file = tmp_path / "campaigns.yaml"

    def applied(*how: str) -> str:
        whole = {"referral": {"campaigns": said}}
        file.write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return loyalty(referral, "apply", "-f", file, *how)

    first, second = (f"referral/{one['campaign_id']}" for one in said)
    assert f"{first}: valid, would become version 1\n" in applied("--dry-run")
    assert f"{second}: version 1 is put\n" in applied()
    said[1]["share_title"] = "再来一次"
    again = applied()
    assert f"{first}: unchanged, version 1 says the same\n" in again
    assert "+share_title: 再来一次\n" in again
    assert f"{second}: version 2 is put\n" in again
    said[0]["qualify"]["when"] = "nobody == 1"
    said[1]["ladder"][0]["at"] = 0
    with pytest.raises(Faulty) as faulty:
        applied()
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [(fault.field, lines[fault.line - 1].strip()) for fault in faulty.value.faults] == [
        ("campaigns[0].qualify.when", "when: nobody == 1"),
        ("campaigns[1].ladder[0].at", "at: 0"),
    ]


def test_an_operator_judges_bonds(referral: Referral) -> None:
    device = [{"signal": "SIGNAL_DEVICE", "limit": 1, "score": 50}]
    campaign, inviter = made(referral, signal_limits=device, review_score=50), fresh("inviter")
    code, same = invite(referral, campaign, inviter).code, pb.Signals(device=fresh("device"))
    members = [fresh("member") for _ in range(3)]
    for member in members:
        bind(referral, campaign, member, code, signals=same)
    here = ("--campaign", campaign.campaign_id)
    waiting = found(referral, "referral", "reviews", *here)
    assert [review["member_id"] for review in waiting] == members[1:]
    shown = loyalty(referral, "referral", "reviews", *here)
    assert all(part in shown for part in (members[1], inviter, "DEVICE", "OPEN"))
    passed = loyalty(referral, "referral", "resolve", waiting[0]["review_id"], "--pass", "--note", "sisters")
    assert passed == f"{members[1]} by {inviter}: PASSED\n"
    rejected = found(referral, "referral", "resolve", waiting[1]["review_id"], "--reject")
    assert rejected["status"] == "REVIEW_STATUS_REJECTED"
    assert found(referral, "referral", "reviews", *here) == []
    assert len(found(referral, "referral", "reviews", *here, "--all")) == 2
    assert [review.note for review in reviews(referral, campaign, include_resolved=True)] == ["sisters", ""]


def test_an_operator_closes_rewards(referral: Referral) -> None:
    ladder = [{"step_id": "one", "at": 1, "reward": cash(500)}]
    campaign, inviter = made(referral, ladder=ladder, currency_code="CNY"), fresh("inviter")
    qualify(referral, campaign, bring(referral, campaign, inviter))
    reward = until_granted(referral, inviter)
    here = ("--campaign", campaign.campaign_id)
    [waiting] = found(referral, "referral", "rewards", *here)
    assert (waiting["reward_id"], waiting["status"]) == (reward.reward_id, "REWARD_STATUS_GRANTED")
    shown = loyalty(referral, "referral", "rewards", *here)
    assert all(part in shown for part in (reward.reward_id, inviter, "cash 500 CNY", "GRANTED"))
    assert found(referral, "referral", "rewards", *here, "--troubled") == []
    for verb in ("retry", "write-off"):  # nothing is wrong with it
        with pytest.raises(Exception, match="there is nothing to do"):
            loyalty(referral, "referral", verb, reward.reward_id)
    assert loyalty(referral, "referral", "paid", reward.reward_id, "wire-7") == (
        f"{reward.reward_id} of {inviter}: FULFILLED\n"
    )
    assert found(referral, "referral", "rewards", *here) == []
    eventually(lambda: rewards(referral, inviter)[0].reference_id == "wire-7")
