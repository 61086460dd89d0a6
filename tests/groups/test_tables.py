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
from services.groups import tables
from services.groups.__main__ import SCHEMA
from services.groups.domain.profile import Basis, Ending, MembershipStatus
from services.groups.domain.schemes import SchemeKind
from services.groups.domain.seats import GroupStatus
from tests import schema
from tests.conftest import NOON
from tests.schema import put, violated
from tests.support import fresh

DAY = timedelta(days=1)
MEMBER_TABLES = [table for table in tables.metadata.sorted_tables if "bucket" in table.c]
OWN_TABLES = [tables.metadata.tables[name] for name in tables.CHANGING]
EACH_TABLE = pytest.mark.parametrize("table", OWN_TABLES, ids=str)


def test_the_migrated_database_is_what_the_code_declares(groups_server: Postgres) -> None:
    assert migrations.drift(schema.owner_url(groups_server, "groups"), tables.metadata) == []


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
        (tables.memberships.c.status, set(MembershipStatus)),
        (tables.memberships.c.basis, set(Basis)),
        (tables.memberships.c.ending, set(Ending)),
        (tables.groups.c.status, set(GroupStatus)),
        (tables.schemes.c.kind, set(SchemeKind)),
    ],
    ids=lambda value: str(value) if isinstance(value, sa.Column) else "",
)
def test_a_word_is_one_of_those_in_the_domain(column: sa.Column[str], words: set[StrEnum]) -> None:
    schema.says_one_of(column, words)


def test_a_group_that_only_gets_a_member_is_written_without_its_indexes() -> None:
    asked: set[str] = set()
    for index in tables.groups.indexes:
        where = index.dialect_options["postgresql"]["where"]
        parts = [*index.columns, *(() if where is None else sa.sql.visitors.iterate(where))]
        asked |= {part.name for part in parts if isinstance(part, sa.Column)}
    assert asked >= {"site_id", "status"}
    assert not asked & {"seats_taken", "overbooked", "version"}


# --- what the service's role may do -------------------------------------------------------------------


@EACH_TABLE
async def test_the_service_role_cannot_change_a_fact(database: Database, table: sa.Table) -> None:
    async with database.read() as connection:
        await schema.changes_nothing_but(connection, table, tables.CHANGING[table.name])


@EACH_TABLE
async def test_the_service_role_drops_nothing_but_unborn_members_tags_and_orders(
    database: Database, table: sa.Table
) -> None:
    async with database.read() as connection:
        await schema.drops_nothing_but(connection, table, tables.GOING)


async def test_the_service_role_cannot_turn_the_epoch(database: Database) -> None:
    async with database.read() as connection:
        await schema.cannot_turn_the_epoch(connection)


# --- what cannot be, whoever writes it ----------------------------------------------------------------


def stay(**more: Any) -> dict[str, Any]:
    """A seat that is kept for somebody."""
    kept = {"status": "ASSIGNED", "seat_expire_time": NOON + DAY}
    return {"scheme_id": "s", "number": 1, "basis": "CHOSEN", **kept} | more


def joined(**more: Any) -> dict[str, Any]:
    """A membership of somebody who came."""
    came = {"join_time": NOON, "arrive_time": NOON}
    return stay(status="JOINED", seat_expire_time=None, **came) | more


def left(**more: Any) -> dict[str, Any]:
    """A membership that has ended."""
    return joined(status="LEFT", end_time=NOON, ending="LEFT") | more


def group(**more: Any) -> dict[str, Any]:
    """A group of two seats for three members."""
    made = {
        "scheme_id": fresh("s"),
        "scheme_version": 1,
        "seq": 1,
        "capacity": 3,
        "room": 2,
        "status": "OPEN",
    }
    return {"group_id": fresh("grp"), **made} | more


async def test_a_member_is_in_a_scheme_once_at_a_time(database: Database) -> None:
    member = fresh("member")
    async with database.begin() as connection:
        await put(connection, tables.memberships, member_id=member, **left(number=1))
        await put(connection, tables.memberships, member_id=member, **joined(number=2))
        await put(connection, tables.memberships, member_id=member, **stay(scheme_id="another"))
    with violated(asyncpg.UniqueViolationError, "memberships_one_active"):
        async with database.begin() as connection:
            await put(connection, tables.memberships, member_id=member, **stay(number=3))


async def test_a_chat_is_one_group(database: Database) -> None:
    chat = fresh("chat")
    async with database.begin() as connection:
        for _ in range(2):
            await put(connection, tables.groups, **group())
    with violated(asyncpg.UniqueViolationError, "groups_chat_once"):
        async with database.begin() as connection:
            for _ in range(2):
                await put(connection, tables.groups, **group(chat_id=chat))


@pytest.mark.parametrize(
    ("table", "same", "other", "constraint"),
    [
        (tables.memberships, left(member_id="m"), "membership_id", "memberships_key"),
        (tables.groups, group(scheme_id="s", anchor="a"), "group_id", "groups_seq_once"),
        (tables.occasions, {"group_id": "g", "occasion_id": "o"}, "", "occasions_key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_there_is_once_is_there_once(
    database: Database, table: sa.Table, same: dict[str, Any], other: str, constraint: str
) -> None:
    with violated(asyncpg.UniqueViolationError, constraint):
        async with database.begin() as connection:
            for value in ("1", "2"):
                await put(connection, table, **same | ({other: value} if other else {}))


@pytest.mark.parametrize(
    ("table", "row", "constraint"),
    [
        (tables.members, {"member_id": "m", "version": -1}, "members_version"),
        (tables.members, {"member_id": "m", "evaluate_time": NOON}, "members_due_when_evaluated"),
        (
            tables.members,
            {"member_id": "m", "evaluate_time": NOON, "next_due_time": NOON + DAY},
            "members_due_when_evaluated",
        ),
        (tables.memberships, stay(number=0), "memberships_number"),
        (tables.memberships, stay(distance_m=-1), "memberships_distance"),
        (tables.memberships, left(status="LOST"), "memberships_status"),
        (tables.memberships, stay(basis="MOOD"), "memberships_basis"),
        (tables.memberships, left(ending="MOOD"), "memberships_ending"),
        (tables.memberships, stay(end_time=NOON), "memberships_active_until_the_end"),
        (tables.memberships, left(end_time=None, ending=None), "memberships_active_until_the_end"),
        (tables.memberships, stay(seat_expire_time=None), "memberships_seat_kept_until_joined"),
        (tables.memberships, joined(seat_expire_time=NOON), "memberships_seat_kept_until_joined"),
        (tables.memberships, joined(arrive_time=None), "memberships_joined"),
        (tables.memberships, stay(arrive_time=NOON), "memberships_arrived"),
        (tables.memberships, joined(ending="LEFT"), "memberships_ended"),
        (tables.memberships, left(ending=None), "memberships_ended"),
        (tables.tags, {"member_id": "m", "key": "k"}, "tags_value"),
        (tables.orders, {"member_id": "m", "paid_time": NOON, "amount_minor": -1}, "orders_amount"),
        (tables.orders, {"member_id": "m", "amount_minor": 1}, "orders_told"),
        (tables.orders, {"member_id": "m", "store_id": "here"}, "orders_told"),
        (tables.series, {"last_seq": -1}, "series_not_negative"),
        (tables.groups, group(seq=0), "groups_counted"),
        (tables.groups, group(room=0, status="CLOSED"), "groups_room"),
        (tables.groups, group(room=4), "groups_room"),
        (tables.groups, group(seats_taken=3, status="CLOSED"), "groups_seats"),
        (tables.groups, group(seats_taken=-1), "groups_seats"),
        (tables.groups, group(overbooked=-1, status="CLOSED"), "groups_overbooked"),
        (tables.groups, group(seats_taken=2), "groups_full_without_a_seat"),
        (tables.groups, group(overbooked=1), "groups_full_without_a_seat"),
        (tables.groups, group(status="FULL"), "groups_full_without_a_seat"),
        (tables.groups, group(status="SHUT"), "groups_status"),
        (tables.groups, group(version=-1), "groups_version"),
        (tables.move_days, {"moves": -1}, "move_days_not_negative"),
        (tables.sites, {"latitude": 90.1}, "sites_on_the_globe"),
        (tables.sites, {"longitude": float("nan")}, "sites_on_the_globe"),
        (tables.schemes, {"version": 0, "kind": "BY_TAG"}, "schemes_version"),
        (tables.schemes, {"version": 1, "kind": "BY_MOOD"}, "schemes_kind"),
        (tables.programmes, {"version": 0}, "programmes_version"),
        (tables.evaluations, {"kind": "MOOD", "version": 1}, "evaluations_kind"),
        (tables.evaluations, {"kind": "SCHEME", "version": 0}, "evaluations_version"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_row_that_cannot_be_is_refused(
    database: Database, table: sa.Table, row: dict[str, Any], constraint: str
) -> None:
    given = {"member_id": "m"} | row if table is tables.memberships else row
    with violated(asyncpg.CheckViolationError, constraint):
        async with database.begin() as connection:
            await put(connection, table, **given)
