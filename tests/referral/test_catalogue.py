"""The programmes that are delivered: what their campaigns say is valid, and means what its comments say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.interceptors import validate
from services.referral import rules
from services.referral.domain.campaigns import FactKind, GiftKind
from services.referral.domain.profile import GROUP, Fact, Profile
from services.referral.rules import CompiledCampaign
from tests.support import delivered

NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def part(name: str, service: str) -> dict[str, Any]:
    said: dict[str, Any] = delivered(name).get(service, {})
    return said


def campaigns(name: str) -> dict[str, CompiledCampaign]:
    found = {}
    for said in part(name, "referral")["campaigns"]:
        message = ParseDict(said, pb.Campaign())
        validate(message)
        found[message.campaign_id] = rules.compile_campaign(message)
    return found


@pytest.mark.parametrize(
    ("name", "campaign_id", "ladder"),
    [
        (
            "burger-king",
            "friends",
            [(1, "POINTS", 1_000), (3, "POINTS", 5_000), (5, "CARD", 0), (10, "POINTS", 25_000)],
        ),
        (
            "china-merchants-bank",
            "bring-a-friend",
            [(1, "POINTS", 1_000), (3, "POINTS", 5_000), (5, "POINTS", 10_000), (10, "POINTS", 25_000)],
        ),
        ("burger-king", "group-task", [(5, "COUPON", 1)]),
    ],
)
def test_the_ladders_are_those_that_are_promised(
    name: str, campaign_id: str, ladder: list[tuple[int, str, int]]
) -> None:
    campaign = campaigns(name)[campaign_id].campaign
    once = [(step.at, step.reward) for step in campaign.ladder if step.at]
    assert [(at, gift.kind, gift.quantity) for at, gift in once if gift] == ladder
    assert campaign.max_depth == 1
    assert campaign.hold_period <= campaign.clawback_window


def test_after_ten_friends_each_five_more_give_8000_points() -> None:
    [step] = [step for step in campaigns("burger-king")["friends"].campaign.ladder if step.every]
    assert [step.position(number) for number in (1, 2, 3)] == [15, 20, 25]
    assert step.reward is not None
    assert (step.reward.kind, step.reward.quantity) == (GiftKind.POINTS, 8_000)


@pytest.mark.parametrize("name", ["burger-king", "china-merchants-bank"])
def test_what_is_given_is_on_sale_and_who_is_asked_is_there(name: str) -> None:
    products = {product["code"] for product in part(name, "cards").get("products", ())}
    schemes = {scheme["scheme_id"] for scheme in part(name, "groups")["schemes"]}
    for compiled in campaigns(name).values():
        campaign = compiled.campaign
        gifts = [gift for step in campaign.ladder for gift in (step.reward, step.invitee_reward) if gift]
        assert {gift.code for gift in gifts if gift.kind is GiftKind.CARD} <= products
        assert campaign.auto_invite_scheme_id in {"", *schemes}


def test_who_comes_into_a_group_of_the_bank_is_given_an_invite() -> None:
    assert campaigns("china-merchants-bank")["bring-a-friend"].campaign.auto_invite_scheme_id == "nearby"


def test_the_bank_counts_ten_a_month() -> None:
    caps = campaigns("china-merchants-bank")["bring-a-friend"].campaign.caps
    assert (caps.per_month, caps.per_day) == (10, 10_000)


@pytest.mark.parametrize(
    ("amount", "currency", "counts"), [(1500, "CNY", True), (1499, "CNY", False), (9900, "USD", False)]
)
def test_a_real_meal_counts(amount: int, currency: str, counts: bool) -> None:
    fact = Fact(kind=FactKind.ORDER, reference_id="order", occur_time=NOON, currency_code=currency)
    assert campaigns("burger-king")["friends"].when(fact, amount) is counts


@pytest.mark.parametrize(("days", "failing"), [(0, None), (7, None), (8, "new")])
def test_a_friend_is_new(days: int, failing: str | None) -> None:
    friends = campaigns("burger-king")["friends"]
    assert friends.invitee_failing(Profile("ann"), NOON - days * DAY, NOON) == failing


def test_a_kol_shares_in_the_first_meal_and_nobody_else_does() -> None:
    kol = campaigns("burger-king")["kol"]
    assert kol.inviter_failing(Profile("ann"), NOON) == "kol"
    assert kol.inviter_failing(Profile("ann", told={f"{GROUP}grp_1": "kol"}), NOON) is None
    [step] = kol.campaign.ladder
    assert step.reward is not None
    assert (step.each_from, step.reward.share_basis_points) == (1, 300)


def test_a_group_task_counts_who_came_into_a_stores_group() -> None:
    task = campaigns("burger-king")["group-task"]
    for scheme_id, counts in (("store", True), ("fans", False)):
        joined = Fact(
            kind=FactKind.GROUP, reference_id="1", occur_time=NOON, attributes={"scheme_id": scheme_id}
        )
        assert task.when(joined, 0) is counts
