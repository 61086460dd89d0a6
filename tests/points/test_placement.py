"""The schema and every statement keep a member's rows together: the ledger can be spread by bucket."""

from __future__ import annotations

import gc
import re

import pytest
import sqlalchemy as sa

import services.points.__main__  # noqa: F401 - compiles every statement of the service
from services.chassis.database import Insert, Statement
from services.points import tables

MEMBER_TABLES = [table for table in tables.metadata.sorted_tables if "member_id" in table.c]
# Those of the whole deployment, and those that go with an event or a request rather than with a member.
OTHER_TABLES = {"programmes", "meta", "jobs", "requests", "outbox", "stream_erasures", "dead_letters"}
STATEMENTS = sorted({found.text for found in gc.get_objects() if isinstance(found, Statement)})
# Looks for work over all members by design: each shard answers for itself.
SWEEPS = ("members.next_due_time <=", "inbox.receive_time <")
ANY_ROW = "SELECT EXISTS"


def test_every_other_table_is_known_to_be_one() -> None:
    assert set(tables.metadata.tables) - {table.name for table in MEMBER_TABLES} == OTHER_TABLES


@pytest.mark.parametrize("table", MEMBER_TABLES, ids=lambda table: table.name)
def test_each_key_of_a_member_table_begins_with_bucket_and_member(table: sa.Table) -> None:
    unique = [list(table.primary_key.columns.keys())]
    unique += [list(c.columns.keys()) for c in table.constraints if isinstance(c, sa.UniqueConstraint)]
    unique += [list(index.columns.keys()) for index in table.indexes if index.unique]
    assert all(columns[:2] == ["bucket", "member_id"] for columns in unique)


@pytest.mark.parametrize("table", MEMBER_TABLES, ids=lambda table: table.name)
def test_each_statement_on_a_member_table_names_bucket_and_member(table: sa.Table) -> None:
    for text in STATEMENTS:
        if any(known in text for known in SWEEPS) or ANY_ROW in text:
            continue
        if re.search(rf"INSERT INTO {table.name}\b", text):
            assert re.search(r"INSERT INTO \w+ \(bucket, member_id", text), text
            if "DO UPDATE" in text:
                assert "ON CONFLICT (bucket, member_id" in text, text
        elif re.search(rf"\b(FROM|JOIN|UPDATE) {table.name}\b", text):
            assert f"{table.name}.bucket" in text, text
            assert f"{table.name}.member_id" in text, text


def test_rows_are_copied_with_their_bucket_and_member() -> None:
    copied = {each._table: each._columns for each in gc.get_objects() if isinstance(each, Insert)}
    mine = {table.name for table in MEMBER_TABLES} & set(copied)
    assert mine >= {"transactions", "lots", "lot_uses", "holds", "refunds", "notes", "inbox"}
    assert all(copied[name][:2] == ("bucket", "member_id") for name in mine)


def test_no_update_of_a_member_table_calls_a_volatile_function() -> None:
    names = "|".join(table.name for table in MEMBER_TABLES)
    updates = [text for text in STATEMENTS if re.match(rf"UPDATE ({names})\b", text)]
    assert updates
    for text in updates:
        assert not re.search(r"\b(now|clock_timestamp|random|nextval|gen_random_uuid)\(", text), text
