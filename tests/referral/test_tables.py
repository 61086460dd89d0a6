"""The schema that migrations make is the one in code, safe to run under load, and guards the rules itself."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from services.chassis import migrations
from services.chassis.database import Database
from services.cli.servers import Postgres
from services.referral import tables
from services.referral.__main__ import SCHEMA
from services.referral.domain.campaigns import FactKind, GiftKind, Signal
from services.referral.domain.profile import (
    AttributionStatus,
    InviteeState,
    RevokeReason,
    RewardStatus,
    Role,
    Verdict,
)
from tests import schema
from tests.conftest import NOON
from tests.schema import put, violated
from tests.support import fresh

DAY = timedelta(days=1)
MEMBER_TABLES = [table for table in tables.metadata.sorted_tables if "bucket" in table.c]
OWN_TABLES = [tables.metadata.tables[name] for name in tables.CHANGING]
EACH_TABLE = pytest.mark.parametrize("table", OWN_TABLES, ids=str)


def test_the_migrated_database_is_what_the_code_declares(referral_server: Postgres) -> None:
    assert migrations.drift(schema.owner_url(referral_server, "referral"), tables.metadata) == []


def test_the_migrations_pass_the_linter(tmp_path: Path) -> None:
    schema.passes_the_linter(SCHEMA, tmp_path)


@pytest.mark.parametrize("table", MEMBER_TABLES, ids=str)
def test_every_key_of_a_member_begins_with_its_bucket(table: sa.Table) -> None:
    schema.begins_with_its_bucket(table)


@EACH_TABLE
def test_a_row_begins_with_its_key(table: sa.Table) -> None:
    schema.begins_with_its_key(table, tables.CHANGING[table.name])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (tables.attributions.c.status, set(AttributionStatus)),
        (tables.attributions.c.verdict, set(Verdict)),
        (tables.attributions.c.kind, set(FactKind)),
        (tables.facts.c.kind, set(FactKind)),
        (tables.facts.c.revoke_reason, set(RevokeReason)),
        (tables.invitees.c.state, set(InviteeState)),
        (tables.invitees.c.kind, set(FactKind)),
        (tables.invitees.c.revoke_reason, set(RevokeReason)),
        (tables.rewards.c.status, set(RewardStatus)),
        (tables.rewards.c.role, set(Role)),
        (tables.rewards.c.gift_kind, set(GiftKind)),
        (tables.reviews.c.verdict, {Verdict.PASS, Verdict.REJECT}),
        # The others are counted, no member comes with them.
        (tables.signals.c.signal, set(Signal) - {Signal.FAST, Signal.VELOCITY}),
        (tables.campaigns.c.kind, set(FactKind)),
    ],
    ids=lambda value: str(value) if isinstance(value, sa.Column) else "",
)
def test_a_word_is_one_of_those_in_the_domain(column: sa.Column[str], words: set[StrEnum]) -> None:
    schema.says_one_of(column, words)


# --- what the service's role may do -------------------------------------------------------------------


@EACH_TABLE
async def test_the_service_role_cannot_change_a_fact(database: Database, table: sa.Table) -> None:
    async with database.read() as connection:
        await schema.changes_nothing_but(connection, table, tables.CHANGING[table.name])


@EACH_TABLE
async def test_the_service_role_drops_nothing_but_what_may_go(database: Database, table: sa.Table) -> None:
    async with database.read() as connection:
        await schema.drops_nothing_but(connection, table, tables.GOING)


async def test_the_service_role_cannot_turn_the_epoch(database: Database) -> None:
    async with database.read() as connection:
        await schema.cannot_turn_the_epoch(connection)


# --- what cannot be, whoever writes it ----------------------------------------------------------------


A_CAMPAIGN: dict[str, Any] = {
    "version": 1,
    "kind": "ORDER",
    "hold_period": DAY,
    "close_time": NOON + DAY,
    "last_time": NOON + DAY,
}


def a_bond(**more: Any) -> dict[str, Any]:
    """A row of an attribution that waits."""
    named = {"member_id": "invitee", "inviter_id": "inviter", "status": "BOUND", "verdict": "PASS"}
    return named | {"signals": "[]", "lapse_time": NOON + DAY} | more


def qualified(**more: Any) -> dict[str, Any]:
    return {"kind": "ORDER", "qualify_time": NOON} | more


def a_rung(**more: Any) -> dict[str, Any]:
    """A row of a rung that was reached."""
    counted = {"round": 1, "campaign_version": 1, "depth": 1, "position": 1, "attempt": 1}
    return {"member_id": "inviter", "attribution_id": "atr", "step_id": "first"} | counted | more


def a_reward(**more: Any) -> dict[str, Any]:
    """A row of a reward of points that waits."""
    rung = {"member_id": "inviter", "receiver_id": "inviter", "role": "INVITER", "step_id": "first"}
    counted = {"round": 1, "attempt": 1, "campaign_version": 1}
    return rung | counted | {"gift_kind": "POINTS", "quantity": 1, "status": "PENDING"} | more


def granted(**more: Any) -> dict[str, Any]:
    """What holds of a reward besides once it was granted."""
    return {"status": "GRANTED", "grant_time": NOON, "fulfil_by": NOON, "version": 1} | more


def ended(status: str, **more: Any) -> dict[str, Any]:
    """What holds of it besides at its end."""
    return granted(status=status, fulfil_by=None, end_time=NOON) | more


@pytest.mark.parametrize(
    ("table", "same", "other", "constraint"),
    [
        (tables.attributions, a_bond(campaign_id="c"), "inviter_id", "attributions_key"),
        (tables.codes, {"campaign_id": "c", "member_id": "m"}, "code", "codes_member_once"),
        (tables.codes, {"code": "code"}, "member_id", "codes_key"),
        (tables.pairs, {"lesser_id": "a", "greater_id": "b"}, "", "pairs_key"),
        (
            tables.invitees,
            {"member_id": "m", "invitee_id": "i", "depth": 1, "state": "BOUND"},
            "attribution_id",
            "invitees_member_once",
        ),
        (tables.steps, a_rung(), "attribution_id", "steps_key"),
        (tables.steps, a_rung(each=True), "round", "steps_invitee_once"),
        (tables.rewards, a_reward(status="WITHDRAWN", end_time=NOON), "reward_id", "rewards_attempt_once"),
        (tables.rewards, a_reward(), "attempt reward_id", "rewards_one_stands"),
        (tables.rewards, a_reward(reward_id="rwd"), "round attempt member_id receiver_id", "rewards_once"),
        (tables.reviews, {"member_id": "m", "signals": "[]"}, "review_id", "reviews_one_open"),
        (tables.reviews, {"review_id": "r", "signals": "[]"}, "member_id", "reviews_once"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_there_is_once_is_there_once(
    database: Database, table: sa.Table, same: dict[str, Any], other: str, constraint: str
) -> None:
    def differing(number: int) -> dict[str, Any]:
        names = other.split()
        return {name: number if name in ("round", "attempt") else f"{number}" for name in names}

    with violated(asyncpg.UniqueViolationError, constraint):
        async with database.begin() as connection:
            await put(connection, table, **same | differing(1))
            await put(connection, table, **same | differing(2))


async def test_a_rung_is_paid_again_once_what_it_brought_is_taken_back(database: Database) -> None:
    member = fresh("member")
    rung = {"member_id": member, "receiver_id": member}
    states = [
        {"status": "WITHDRAWN", "end_time": NOON},
        ended("CLAWED_BACK", reason="REFUNDED"),
        granted(),
    ]
    async with database.begin() as connection:
        for attempt, state in enumerate(states, 1):
            row = a_reward(**rung, reward_id=fresh("rwd"), attempt=attempt)
            await put(connection, tables.rewards, **row | state)
        beside = a_reward(
            **rung | {"role": "INVITEE", "receiver_id": "other"}, reward_id=fresh("rwd"), attempt=1
        )
        await put(connection, tables.rewards, **beside)


async def test_no_more_is_granted_than_there_is_in_the_budget(database: Database) -> None:
    campaign = fresh("campaign")
    async with database.begin() as connection:
        await put(connection, tables.budgets, campaign_id=campaign, budget_minor=10, granted_minor=10)
    grant = "UPDATE budgets SET granted_minor = granted_minor + $2 WHERE campaign_id = $1"
    for more in (1, -11):
        with pytest.raises(asyncpg.CheckViolationError):
            async with database.begin() as connection:
                await connection.execute(grant, campaign, more)


@pytest.mark.parametrize(
    ("table", "row", "constraint"),
    [
        (tables.attributions, a_bond(inviter_id="invitee"), "attributions_of_others"),
        (tables.attributions, a_bond(inviter_id=""), "attributions_of_others"),
        (tables.attributions, a_bond(grand_inviter_id="invitee"), "attributions_of_others"),
        (tables.attributions, a_bond(grand_inviter_id="inviter"), "attributions_of_others"),
        (tables.attributions, a_bond(lapse_time=NOON), "attributions_lapse"),
        (tables.attributions, a_bond(status="QUALIFIED"), "attributions_stand"),
        (
            tables.attributions,
            a_bond(**qualified(status="QUALIFIED", verdict="REVIEW")),
            "attributions_stand",
        ),
        (tables.attributions, a_bond(status="REVOKED"), "attributions_stand"),
        (tables.attributions, a_bond(status="REJECTED"), "attributions_stand"),
        (tables.attributions, a_bond(kind="ORDER"), "attributions_by_a_fact"),
        (tables.attributions, a_bond(kind="SHARE", qualify_time=NOON), "attributions_kind"),
        (tables.attributions, a_bond(score=-1), "attributions_not_negative"),
        (tables.facts, {"kind": "ORDER", "amount_minor": 1}, "facts_told"),
        (tables.facts, {"kind": "ORDER", "revoke_time": NOON}, "facts_revoked"),
        (tables.facts, {"kind": "SHARE"}, "facts_kind"),
        (tables.invitees, {"invitee_id": "i", "depth": 3, "state": "BOUND"}, "invitees_depth"),
        (tables.invitees, {"invitee_id": "i", "depth": 1, "state": "QUALIFIED"}, "invitees_qualified"),
        (tables.invitees, {"depth": 1, "state": "BOUND"}, "invitees_of_others"),
        (tables.steps, a_rung(position=0), "steps_by_an_invitee"),
        (tables.steps, a_rung(attribution_id=""), "steps_by_an_invitee"),
        (tables.steps, a_rung(depth=3), "steps_depth"),
        (tables.steps, a_rung(round=0), "steps_counted"),
        (tables.rewards, a_reward(**ended("LOST")), "rewards_status"),
        (tables.rewards, a_reward(role="INVITEE"), "rewards_receiver"),
        (tables.rewards, a_reward(quantity=0), "rewards_quantity"),
        (tables.rewards, a_reward(gift_kind="CARD"), "rewards_quantity"),
        (tables.rewards, a_reward(share_basis_points=1, order_id="o"), "rewards_share"),
        (tables.rewards, a_reward(gift_kind="CASH", share_basis_points=1), "rewards_share"),
        (tables.rewards, a_reward(order_id="o"), "rewards_share"),
        (tables.rewards, a_reward(cost_minor=-1), "rewards_not_negative"),
        (tables.rewards, a_reward(reach_time=NOON + DAY), "rewards_hold"),
        (tables.rewards, a_reward(version=1), "rewards_granted"),
        (tables.rewards, a_reward(grant_time=NOON), "rewards_granted"),
        (tables.rewards, a_reward(**granted(version=0)), "rewards_granted"),
        (tables.rewards, a_reward(**granted(grant_after=NOON + DAY)), "rewards_granted"),
        (tables.rewards, a_reward(**granted(fulfil_by=None)), "rewards_fulfil_by"),
        (tables.rewards, a_reward(**granted(end_time=NOON)), "rewards_ended"),
        (tables.rewards, a_reward(**ended("FULFILLED", end_time=None)), "rewards_ended"),
        (tables.rewards, a_reward(**granted(reference_id="txn")), "rewards_handed_over"),
        (tables.rewards, a_reward(**ended("FAILED")), "rewards_reason"),
        (tables.rewards, a_reward(**ended("CLAWED_BACK")), "rewards_reason"),
        (tables.rewards, a_reward(**ended("FULFILLED", returned=True)), "rewards_returned"),
        (tables.ranks, {"count": -1}, "ranks_not_negative"),
        (tables.reviews, {"signals": "[]", "verdict": "REVIEW", "resolve_time": NOON}, "reviews_verdict"),
        (tables.reviews, {"signals": "[]", "verdict": "PASS"}, "reviews_resolved"),
        (tables.pairs, {"lesser_id": "b", "greater_id": "a"}, "pairs_ordered"),
        (tables.pairs, {"lesser_id": "a", "greater_id": "a"}, "pairs_ordered"),
        (tables.signals, {"signal": "DEVICE"}, "signals_value"),
        (tables.signals, {"signal": "DEVICE", "value": "x" * 65}, "signals_value"),
        (tables.budgets, {"budget_minor": 1, "granted_minor": 2}, "budgets_not_overspent"),
        (tables.budgets, {"granted_minor": -1}, "budgets_not_negative"),
        (tables.tries, {"count": 0}, "tries_count"),
        (tables.campaigns, A_CAMPAIGN | {"version": 0}, "campaigns_version"),
        (tables.campaigns, A_CAMPAIGN | {"close_time": NOON}, "campaigns_times"),
        (tables.members, {"version": -1, "told": "{}"}, "members_version"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_row_that_cannot_be_is_refused(
    database: Database, table: sa.Table, row: dict[str, Any], constraint: str
) -> None:
    with violated(asyncpg.CheckViolationError, constraint):
        async with database.begin() as connection:
            await put(connection, table, **row)
