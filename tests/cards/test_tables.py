"""The schema that migrations make is the one in code, safe to run under load, and guards the rules itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from services.cards import tables
from services.cards.__main__ import SCHEMA
from services.cards.domain.cards import Ending
from services.cards.domain.payments import OrderStatus, RefundReason
from services.cards.domain.quotas import UseStatus
from services.cards.domain.renewals import RenewalStatus
from services.cards.domain.wallet import UseEnding
from services.chassis import migrations
from services.chassis.database import Database
from services.cli.servers import Postgres
from tests import schema
from tests.conftest import NOON
from tests.schema import EXCLUDED, put, violated
from tests.support import fresh

# Besides: an anchor is a local time, which has no zone.
CARDS_EXCLUDED = f"{EXCLUDED},prefer-timestamp-tz"
DAY = timedelta(days=1)
MEMBER_TABLES = [table for table in tables.metadata.sorted_tables if "bucket" in table.c]
OWN_TABLES = [tables.metadata.tables[name] for name in tables.CHANGING]
EACH_TABLE = pytest.mark.parametrize("table", OWN_TABLES, ids=str)


def test_the_migrated_database_is_what_the_code_declares(cards_server: Postgres) -> None:
    assert migrations.drift(schema.owner_url(cards_server, "cards"), tables.metadata) == []


def test_the_migrations_pass_the_linter(tmp_path: Path) -> None:
    schema.passes_the_linter(SCHEMA, tmp_path, CARDS_EXCLUDED)


@pytest.mark.parametrize("table", MEMBER_TABLES, ids=str)
def test_every_key_of_a_member_begins_with_its_bucket(table: sa.Table) -> None:
    schema.begins_with_its_bucket(table)


@EACH_TABLE
def test_a_row_begins_with_its_key(table: sa.Table) -> None:
    schema.begins_with_its_key(table, tables.CHANGING[table.name])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (tables.segments.c.ending, set(Ending)),
        (tables.orders.c.status, set(OrderStatus)),
        (tables.payments.c.reason, set(RefundReason)),
        (tables.redemptions.c.status, set(UseStatus)),
        (tables.redemptions.c.ending, set(UseEnding)),
        (tables.renewals.c.outcome, {RenewalStatus.CHARGED, RenewalStatus.FAILED, RenewalStatus.CANCELLED}),
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
async def test_the_service_role_drops_nothing_but_unborn_members_and_slots(
    database: Database, table: sa.Table
) -> None:
    async with database.read() as connection:
        await schema.drops_nothing_but(connection, table, tables.GOING)


async def test_the_service_role_cannot_turn_the_epoch(database: Database) -> None:
    async with database.read() as connection:
        await schema.cannot_turn_the_epoch(connection)


# --- what cannot be, whoever writes it ----------------------------------------------------------------


def period(card: str, number: int, start: datetime, end: datetime, **more: Any) -> dict[str, Any]:
    """A period of a card, and of the member that is called as the card is."""
    chain: dict[str, Any] = {"member_id": card, "card_id": card, "number": number}
    counted = {"days": 1, "streak": 1, "anchor_local": NOON.replace(tzinfo=None)}
    return chain | counted | {"start_time": start, "end_time": end} | more


async def test_two_periods_of_a_card_never_hold_at_once(database: Database) -> None:
    card = fresh("card")
    with violated(asyncpg.ExclusionViolationError, "segments_never_overlap"):
        async with database.begin() as connection:
            await put(connection, tables.segments, **period(card, 0, NOON, NOON + 2 * DAY))
            await put(connection, tables.segments, **period(card, 1, NOON + DAY, NOON + 3 * DAY))


async def test_a_period_begins_at_the_instant_at_which_the_one_before_it_is_over(database: Database) -> None:
    card = fresh("card")
    async with database.begin() as connection:
        await put(connection, tables.segments, **period(card, 0, NOON, NOON + DAY))
        await put(connection, tables.segments, **period(card, 1, NOON + DAY, NOON + 2 * DAY))


async def test_periods_of_two_cards_hold_side_by_side(database: Database) -> None:
    member, other = fresh("card"), fresh("card")
    async with database.begin() as connection:
        await put(connection, tables.segments, **period(member, 0, NOON, NOON + DAY))
        beside = period(member, 0, NOON, NOON + DAY, card_id=other)
        await put(connection, tables.segments, **beside)


async def test_a_period_that_ended_before_its_time_leaves_room(database: Database) -> None:
    card = fresh("card")
    ended = {"ended_time": NOON + DAY, "ending": "REPLACED"}
    async with database.begin() as connection:
        await put(connection, tables.segments, **period(card, 0, NOON, NOON + 2 * DAY, **ended))
        # This one ended before it began, so that it never held.
        await put(connection, tables.segments, **period(card, 1, NOON + 2 * DAY, NOON + 9 * DAY, **ended))
        await put(connection, tables.segments, **period(card, 2, NOON + DAY, NOON + 8 * DAY))


async def test_a_chain_may_move_as_a_whole(database: Database) -> None:
    card = fresh("card")
    async with database.begin() as connection:
        for number in range(3):
            start = NOON + number * DAY
            await put(connection, tables.segments, **period(card, number, start, start + DAY))
    async with database.begin() as connection:
        for number in range(3):
            await connection.execute(
                "UPDATE segments SET start_time = start_time + interval '1 day',"
                " end_time = end_time + interval '1 day' WHERE card_id = $1 AND number = $2",
                card,
                number,
            )


@pytest.mark.parametrize(
    ("table", "same", "other", "constraint"),
    [
        (tables.cards, {"family": "f"}, "card_id", "cards_family_once"),
        (tables.renewals, {"card_id": "c"}, "renewal_id", "renewals_one_open"),
        (tables.gifts, {"order_id": "o"}, "code_hash", "gifts_order_id_once"),
        (tables.payment_claims, {"channel": "c", "payment_id": "p"}, "member_id", "payment_claims_key"),
        (
            tables.sales_slots,
            {"product_code": "p", "window_key": "w", "number": 1},
            "order_id",
            "sales_slots_key",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_there_is_once_is_there_once(
    database: Database, table: sa.Table, same: dict[str, Any], other: str, constraint: str
) -> None:
    first, second = (b"1", b"2") if other == "code_hash" else ("1", "2")
    with violated(asyncpg.UniqueViolationError, constraint):
        async with database.begin() as connection:
            await put(connection, table, **same, **{other: first})
            await put(connection, table, **same, **{other: second})


async def test_a_card_may_be_renewed_again_once_a_renewal_has_its_outcome(database: Database) -> None:
    member = fresh("member")
    async with database.begin() as connection:
        for number, outcome in enumerate(("CHARGED", "CANCELLED", None)):
            renewal = {"renewal_id": f"rnw_{number}", "outcome": outcome, "card_id": "card"}
            await put(connection, tables.renewals, member_id=member, **renewal)


@pytest.mark.parametrize(
    ("table", "row", "constraint"),
    [
        (tables.quota_windows, {"used": 3, "quota": 2}, "quota_windows_within_limit"),
        (tables.quota_windows, {"used": -1, "quota": 2}, "quota_windows_within_limit"),
        (tables.sales_slots, {"number": 0}, "sales_slots_number"),
        (tables.payments, {"amount_minor": 0}, "payments_amount"),
        (
            tables.payments,
            {"amount_minor": 1, "due_minor": 2, "reason": "SOLD_OUT"},
            "payments_due",
        ),
        (tables.payments, {"amount_minor": 1}, "payments_due_for_a_reason"),
        (tables.payments, {"amount_minor": 1, "applied": True, "refund_id": "r"}, "payments_closed"),
        (tables.payments, {"amount_minor": 1, "reason": "MOOD"}, "payments_reason"),
        (tables.orders, {"status": "LOST"}, "orders_status"),
        (tables.orders, {"status": "PAID", "amount_minor": 1}, "orders_paid_in_one_unit"),
        (
            tables.orders,
            {"status": "PAID", "currency_code": "CNY", "amount_points": 1},
            "orders_paid_in_one_unit",
        ),
        (tables.orders, {"status": "SETTLING", "currency_code": "CNY"}, "orders_settling_points"),
        (tables.orders, {"status": "PAID", "credit": -1}, "orders_not_negative"),
        (tables.redemptions, {"status": "RESERVED", "uses": 0}, "redemptions_uses"),
        (tables.redemptions, {"status": "RESERVED", "uses": 1, "saved_minor": -1}, "redemptions_saved"),
        (tables.redemptions, {"status": "REVERSED", "uses": 1}, "redemptions_ended"),
        (tables.cards, {"rest_start": NOON}, "cards_rest"),
        (tables.cards, {"contract_id": "c"}, "cards_contract"),
        (tables.renewals, {"amount_minor": -1}, "renewals_amount"),
        (tables.renewals, {"outcome": "SIGNED"}, "renewals_outcome"),
        (tables.rewards, {"segment_id": "seg"}, "rewards_of_a_card"),
        (tables.gifts, {"code_hash": b"0", "claimed_by": "m", "claim_time": NOON}, "gifts_claimed_are_paid"),
        (tables.gifts, {"code_hash": b"0", "claimed_by": "m", "paid": True}, "gifts_claimed"),
        (tables.products, {"version": 0}, "products_version"),
        (tables.segments, period("c", 0, NOON, NOON - DAY), "segments_period"),
        (tables.segments, period("c", 0, NOON, NOON + DAY, days=0), "segments_counted"),
        (tables.segments, period("c", 0, NOON, NOON + DAY, ended_time=NOON), "segments_ended"),
        (
            tables.segments,
            period("c", 0, NOON, NOON + DAY, paid_minor=1, paid_points=1),
            "segments_paid_in_one_unit",
        ),
        (tables.segments, period("c", 0, NOON, NOON + DAY, saved_minor=-1), "segments_not_negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_row_that_cannot_be_is_refused(
    database: Database, table: sa.Table, row: dict[str, Any], constraint: str
) -> None:
    with violated(asyncpg.CheckViolationError, constraint):
        async with database.begin() as connection:
            await put(connection, table, **row)
