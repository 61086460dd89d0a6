"""Campaigns as they are put: what is refused and where, how they read, and what conditions see."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb
from prometheus_client import REGISTRY

from services.chassis.errors import MalformedRequest
from services.chassis.interceptors import validate
from services.referral import rules
from services.referral.domain.campaigns import (
    Campaign,
    Caps,
    Condition,
    FactKind,
    Gift,
    GiftKind,
    OnDrop,
    Qualify,
    Signal,
    SignalLimit,
    Step,
)
from services.referral.domain.profile import Fact, Profile
from services.referral.errors import CampaignInvalid, MultiLevel
from tests.referral.plain import DAY, HOUR, NOON

POINTS = {"points": {"amount": 1000}}


def step(step_id: str = "one", **more: Any) -> dict[str, Any]:
    return {"step_id": step_id, "reward": POINTS} | (more or {"at": 1})


def message(**more: Any) -> pb.Campaign:
    """A campaign as it comes in, whether the contract lets it pass or not."""
    said = {
        "campaign_id": "king",
        "name": "邀请好友",
        "open_time": NOON.isoformat(),
        "close_time": (NOON + 60 * DAY).isoformat(),
        "settle_time": (NOON + 90 * DAY).isoformat(),
        "qualify": {"kind": "QUALIFICATION_KIND_ORDER"},
        "ladder": [step()],
        "attribution_window_hours": 720,
    }
    return ParseDict(said | more, pb.Campaign())


def put(**more: Any) -> rules.CompiledCampaign:
    """A campaign that the contract lets pass, compiled."""
    made = message(**more)
    validate(made)
    return rules.compile_campaign(made)


def faults(**more: Any) -> dict[str, str]:
    """What a campaign is refused for, by field."""
    with pytest.raises(CampaignInvalid) as refusal:
        put(**more)
    return {violation.field: violation.description for violation in refusal.value.violations}


def condition(expression: str, name: str = "asked") -> dict[str, str]:
    return {"name": name, "expression": expression}


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"max_depth": 3},
        {"max_depth": 2, "ladder": [step(), step("three", at=1, depth=3)]},
        {"ladder": [step(at=1, depth=3)]},
    ],
)
def test_three_levels_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(MultiLevel) as refusal:
        put(**more)
    assert refusal.value.metadata == {"limit": "2"}


@pytest.mark.parametrize(
    "more",
    [
        {"qualify": {}},
        {"qualify": {"kind": "QUALIFICATION_KIND_UNSPECIFIED"}},
        {"qualify": {"kind": 5}},  # nothing else qualifies: not that an invite was shared
        {"ladder": [step(at=0)]},
        {"ladder": [step(each_from=0)]},
        {"ladder": [step(every={"count": 0, "first": 1})]},
        {"ladder": [step(every={"count": 1, "first": 0})]},
        {"ladder": [{"step_id": "free", "reward": POINTS}]},
        {"ladder": []},
    ],
)
def test_nobody_is_paid_for_sharing_or_for_taking_part(more: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest):
        put(**more)


@pytest.mark.parametrize(
    ("expression", "place", "complaint"),
    [
        ("1 +", "1:4", "Syntax error"),
        ("tier", "1:1", "must be a bool, is STRING"),
        ("cards == 'king'", "1:7", "no matching overload"),
        ("member_days > 'a'", "1:13", "no matching overload"),
        ("amount_minor > 0", "1:1", "undeclared reference to 'amount_minor"),
    ],
)
def test_a_condition_on_members_that_does_not_compile_is_refused_with_its_place(
    expression: str, place: str, complaint: str
) -> None:
    found = faults(
        inviter_eligible=[condition("true", "fine"), condition(expression)],
        invitee_eligible=[condition(expression)],
    )
    assert list(found) == [
        "campaign.inviter_eligible[1].expression",
        "campaign.invitee_eligible[0].expression",
    ]
    for description in found.values():
        assert description.startswith(f"{place}: ")
        assert complaint in description


def test_what_is_asked_for_reads_facts_alone_and_faults_are_told_together() -> None:
    found = faults(
        qualify={"kind": "QUALIFICATION_KIND_ORDER", "when": "tier == 'gold'"},
        ladder=[step(at=2), step("two", at=1)],
        hold_period_hours=1,
    )
    assert list(found) == ["campaign.qualify.when", "campaign.hold_period_hours", "campaign.ladder[1].at"]
    assert "undeclared reference to 'tier'" in found["campaign.qualify.when"]


# --- how it reads -------------------------------------------------------------------------------------


def test_a_campaign_reads_as_it_was_put() -> None:
    rewards: list[dict[str, Any]] = [
        {"points": {"amount": 5}, "cost_minor": 7},
        {"card": {"plan_id": "king-month"}},
        {"coupon": {"coupon_code": "tea", "quantity": 2}},
        {"group_entry": {"scheme_id": "stores", "group_id": "g1"}},
        {"cash": {"amount_minor": 900}},
    ]
    ladder = [step(f"at-{n}", at=n, reward=reward) for n, reward in enumerate(rewards, 1)]
    compiled = put(
        version=3,
        inviter_eligible=[condition("tier == 'gold'", "gold")],
        invitee_eligible=[condition("member_days < 7", "new")],
        qualify={"kind": "QUALIFICATION_KIND_ORDER", "when": "amount_minor >= 3000", "within_hours": 72},
        ladder=[
            *ladder,
            step("more", every={"count": 5, "first": 15}, depth=2),
            {"step_id": "kol", "each_from": 2, "invitee_reward": {"cash": {"share_basis_points": 500}}},
        ],
        max_depth=2,
        hold_period_hours=24,
        clawback_window_hours=48,
        caps={"per_day": 20, "lifetime": 300},
        budget_minor=10_000,
        currency_code="CNY",
        signal_limits=[{"signal": "SIGNAL_DEVICE", "limit": 1, "score": 40}],
        review_score=40,
        reject_score=90,
        on_drop="ON_DROP_REVOKE_UNCLAIMED",
        auto_invite_scheme_id="stores",
        share_title="一起吃",
        poster_fields={"headline": "{name}: {code}"},
        fulfil_within_hours=2,
    )  # fmt: skip
    gifts = [
        Gift(kind=GiftKind.POINTS, quantity=5, cost_minor=7),
        Gift(kind=GiftKind.CARD, code="king-month"),
        Gift(kind=GiftKind.COUPON, code="tea", quantity=2),
        Gift(kind=GiftKind.GROUP_ENTRY, code="stores", group_id="g1"),
        Gift(kind=GiftKind.CASH, quantity=900, currency_code="CNY", cost_minor=900),
    ]
    share = Gift(kind=GiftKind.CASH, currency_code="CNY", share_basis_points=500)
    thousand = Gift(kind=GiftKind.POINTS, quantity=1000)
    assert compiled.name == ("king", 3)
    assert compiled.campaign == Campaign(
        campaign_id="king",
        version=3,
        name="邀请好友",
        open_time=NOON,
        close_time=NOON + 60 * DAY,
        settle_time=NOON + 90 * DAY,
        inviter_eligible=(Condition(name="gold", expression="tier == 'gold'"),),
        invitee_eligible=(Condition(name="new", expression="member_days < 7"),),
        qualify=Qualify(kind=FactKind.ORDER, when="amount_minor >= 3000", within=3 * DAY),
        ladder=(
            *(Step(step_id=f"at-{n}", at=n, reward=gift) for n, gift in enumerate(gifts, 1)),
            Step(step_id="more", depth=2, every=5, every_from=15, reward=thousand),
            Step(step_id="kol", each_from=2, invitee_reward=share),
        ),
        max_depth=2,
        attribution_window=30 * DAY,
        hold_period=DAY,
        clawback_window=2 * DAY,
        caps=Caps(per_day=20, per_month=10_000, lifetime=300),
        budget_minor=10_000,
        currency_code="CNY",
        signal_limits=(SignalLimit(signal=Signal.DEVICE, limit=1, score=40),),
        review_score=40,
        reject_score=90,
        on_drop=OnDrop.REVOKE_UNCLAIMED,
        auto_invite_scheme_id="stores",
        share_title="一起吃",
        poster_fields={"headline": "{name}: {code}"},
        fulfil_within=2 * HOUR,
    )


def test_what_is_left_out_is_as_the_contract_says() -> None:
    campaign = put().campaign
    assert (campaign.max_depth, campaign.ladder[0].depth) == (1, 1)
    assert campaign.caps == Caps(per_day=10_000, per_month=10_000, lifetime=10_000)
    assert (campaign.on_drop, campaign.fulfil_within) == (OnDrop.KEEP, DAY)
    assert campaign.qualify.within is None


def test_whatever_the_contract_can_say_is_understood() -> None:
    for kind in epb.QualificationKind.values()[1:]:
        read = put(qualify={"kind": kind}).campaign.qualify.kind
        assert epb.QualificationKind.Name(kind) == f"QUALIFICATION_KIND_{read}"
    limits = [{"signal": signal, "limit": 1, "score": 1} for signal in pb.Signal.values()[1:]]
    named = [f"SIGNAL_{limit.signal}" for limit in put(signal_limits=limits).campaign.signal_limits]
    assert named == pb.Signal.keys()[1:]
    for on_drop in pb.OnDrop.values()[1:]:
        assert pb.OnDrop.Name(on_drop) == f"ON_DROP_{put(on_drop=on_drop).campaign.on_drop}"


# --- what conditions see ------------------------------------------------------------------------------

TOLD = {
    "tier": "gold",
    "card:king": "king",
    "card:tea": "tea",
    "group:g1": "stores",
    "group:g2": "stores",
    "group:g3": "offices",
}


def asked(expression: str, told: Mapping[str, str] = TOLD, since: datetime | None = None) -> bool:
    """Whether a condition lets a member pass."""
    compiled = put(inviter_eligible=[condition(expression)], invitee_eligible=[condition(expression)])
    profile = Profile("ann", told=told)
    invited = compiled.invitee_failing(profile, since, NOON) is None
    if since is None:
        assert (compiled.inviter_failing(profile, NOON) is None) is invited
    return invited


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("tier == 'gold'", True),
        ("'king' in cards && size(cards) == 2", True),
        ("groups == ['offices', 'stores']", True),
        ("'g1' in groups", False),
        ("member_days == 0", True),
        ("cards[5] == 'x'", False),  # has no value: it does not hold
    ],
)
def test_conditions_see_what_is_known_of_a_member(expression: str, holds: bool) -> None:
    assert asked(expression) is holds


def test_of_a_member_of_whom_nothing_is_known_everything_is_empty() -> None:
    assert asked("tier == '' && size(cards) == 0 && size(groups) == 0", {})


@pytest.mark.parametrize(
    ("ago", "days"), [(7 * DAY - timedelta(microseconds=1), 6), (7 * DAY, 7), (-HOUR, 0), (HOUR, 0)]
)
def test_days_of_membership_are_whole_days(ago: timedelta, days: int) -> None:
    assert asked(f"member_days == {days}", since=NOON - ago)


def test_the_first_condition_that_fails_is_named() -> None:
    compiled = put(
        inviter_eligible=[
            condition("true", "a"),
            condition("1 / size(cards) > 1", "b"),
            condition("false", "c"),
        ]
    )
    before = _failed("king b")
    assert compiled.inviter_failing(Profile("ann"), NOON) == "b"
    assert _failed("king b") == before + 1
    assert put().inviter_failing(Profile("ann"), NOON) is None


def _failed(rule: str) -> float:
    """How often a condition had no value."""
    return REGISTRY.get_sample_value("rule_errors_total", {"rule": rule}) or 0


DONE = Fact(
    kind=FactKind.ORDER,
    reference_id="o1",
    occur_time=NOON,
    amount_minor=5000,
    currency_code="CNY",
    attributes={
        "store_id": "s1",
        "city": "上海",
        "channel": "app",
        "product": "king-month",
        "scheme_id": "stores",
        "group_id": "g1",
        "renewal": "true",
        "gift": "false",
    },
)


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("", True),
        ("amount_minor == 3000 && currency_code == 'CNY'", True),
        ("store_id == 's1' && city == '上海' && channel == 'app'", True),
        ("product == 'king-month' && scheme_id == 'stores' && group_id == 'g1'", True),
        ("renewal && !gift", True),
        ("gift", False),
        ("1 / amount_minor == 1 && amount_minor / 0 > 1", False),
    ],
)
def test_what_is_asked_for_sees_the_fact_at_what_is_left_of_its_amount(when: str, holds: bool) -> None:
    compiled = put(qualify={"kind": "QUALIFICATION_KIND_ORDER", "when": when})
    assert compiled.when(DONE, 3000) is holds


def test_of_a_fact_that_tells_little_the_rest_is_empty() -> None:
    compiled = put(
        qualify={
            "kind": "QUALIFICATION_KIND_ORDER",
            "when": "store_id == '' && city == '' && product == '' && !renewal && !gift",
        }
    )
    assert compiled.when(Fact(kind=FactKind.ORDER, reference_id="o", attributes={}), 0)


# --- compiled once ------------------------------------------------------------------------------------


def test_a_stored_version_is_compiled_as_it_was_put_whatever_would_be_refused_now() -> None:
    campaigns = rules.Campaigns()
    body = message(version=2, ladder=[step(at=2), step("two", at=1)]).SerializeToString()
    kept = campaigns.keep(body, 1)
    assert campaigns.get("king", 2) is kept
    assert campaigns.get("king", 1) is None


def test_only_so_many_versions_are_kept_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "COMPILED", 2)
    campaigns = rules.Campaigns()
    for version in (1, 2, 3):
        campaigns.keep(message(version=version).SerializeToString(), 1)
    assert campaigns.get("king", 1) is None
    assert campaigns.get("king", 3) is not None
