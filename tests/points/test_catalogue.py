"""The programmes that are delivered: their rules are valid, and give what the other parts promise."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.interceptors import validate
from services.points import rules
from services.points.domain.ledger import Unit
from tests.support import delivered, order

FILES = ("burger-king", "china-merchants-bank")
NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)  # 12:00 of a Monday in Shanghai


def programme(name: str) -> rules.Programme:
    message = ParseDict(delivered(name)["points"], pb.Programme())
    validate(message)
    return rules.compile_programme(message)


def points_for(
    name: str,
    what: rules.Source,
    *,
    facts: dict[str, str] | None = None,
    used: dict[str, int] | None = None,
) -> dict[str, int]:
    """The points that each rule of a file gives."""
    gains = programme(name).gains(what, NOON, "", facts or {}, used or {})
    assert [gain.error for gain in gains if gain.error] == []
    return {gain.rule_id: gain.amount for gain in gains if gain.unit is Unit.POINTS and gain.amount}


def activity(kind: str, amount_minor: int = 0) -> rules.Source:
    done = Activity(activity_id="done", kind=kind, amount_minor=amount_minor)
    done.occur_time.FromDatetime(NOON)
    return rules.read_activity(done)


def spend(amount_minor: int) -> rules.Source:
    return rules.read_order(order(amount_minor, NOON))


def gifts(said: Any) -> list[dict[str, Any]]:
    """What the steps of all campaigns give."""
    ladders = [
        step for campaign in said.get("referral", {}).get("campaigns", ()) for step in campaign["ladder"]
    ]
    return [step[whose] for step in ladders for whose in ("reward", "invitee_reward") if whose in step]


@pytest.mark.parametrize("name", FILES)
def test_who_rewards_with_points_has_a_programme_of_them(name: str) -> None:
    assert any("points" in gift for gift in gifts(delivered(name)))
    assert programme(name).book.rules


def test_a_card_that_promises_more_points_gives_them() -> None:
    promised = {
        product["code"]: Decimal(benefit["value"]) / 1_000_000
        for product in delivered("burger-king")["cards"]["products"]
        for benefit in product["benefits"]
        if benefit["kind"] == "BENEFIT_KIND_POINTS_MULTIPLIER"
    }
    assert promised.keys() == {"king-quarter", "king-founder"}
    plain = sum(points_for("burger-king", spend(4_000)).values())
    for code, factor in promised.items():
        given = points_for("burger-king", spend(4_000), facts={f"card.{code}": f"{factor:f}"})
        assert sum(given.values()) == plain * factor


@pytest.mark.parametrize(
    "facts", [{"card.king-quarter": "1"}, {"card.king-month": "1"}, {"group.fans": "1.2"}]
)
def test_without_a_promise_there_are_no_more_points(facts: dict[str, str]) -> None:
    assert points_for("burger-king", spend(4_000), facts=facts) == points_for("burger-king", spend(4_000))


@pytest.mark.parametrize(
    ("done", "given"),
    [
        (spend(1_999), {}),
        (spend(4_000), {"points-per-spend": 2}),
        (activity("group_joined"), {"group-welcome": 100}),
        (activity("bill_settled", 123_456), {"bill-settled": 50}),
        (activity("instalment_taken", 1_200_000), {"instalment-taken": 120}),
        (activity("instalment_taken", 100_000_000), {"instalment-taken": 5_000}),
        (activity("app_task_done"), {"app-task": 5}),
        (activity("card_spent", 10_000), {}),
    ],
)
def test_what_the_bank_gives(done: rules.Source, given: dict[str, int]) -> None:
    assert points_for("china-merchants-bank", done) == given


@pytest.mark.parametrize("name", FILES)
def test_who_comes_into_a_group_again_that_day_is_not_given_to_again(name: str) -> None:
    first = points_for(name, activity("group_joined"))
    assert first
    assert points_for(name, activity("group_joined"), used=first) == {}
