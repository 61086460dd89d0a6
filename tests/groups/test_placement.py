"""The schema and every statement keep a member's rows together, so that members can be spread by bucket."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

import services.groups.store  # noqa: F401 - compiles the statements of the service
from services.chassis.database import Insert, Statement
from services.groups import tables

MEMBER_TABLES = [table for table in tables.metadata.sorted_tables if "member_id" in table.c]
# Looks for work over all members by design: each shard answers for itself.
SWEEPS = ("members.next_due_time <=",)


def _within(value: Any) -> Iterator[Statement | Insert]:
    """What a value of a module sends."""
    if isinstance(value, Statement | Insert):
        yield value
    elif isinstance(value, dict):
        yield from _within(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _within(each)
    elif type(value).__module__.startswith("services.chassis."):
        yield from _within(vars(value))


def _sent() -> list[Statement | Insert]:
    modules = [module for name, module in sys.modules.items() if name.startswith("services.groups.store.")]
    return [each for module in modules for value in vars(module).values() for each in _within(value)]


STATEMENTS = sorted({each.text for each in _sent() if isinstance(each, Statement)})
COPIED = {each._table: each._columns for each in _sent() if isinstance(each, Insert)}


@pytest.mark.parametrize("table", MEMBER_TABLES, ids=lambda table: table.name)
def test_each_key_of_a_member_table_begins_with_bucket_and_member(table: sa.Table) -> None:
    unique = [list(table.primary_key.columns.keys())]
    unique += [list(c.columns.keys()) for c in table.constraints if isinstance(c, sa.UniqueConstraint)]
    unique += [list(index.columns.keys()) for index in table.indexes if index.unique]
    assert all(columns[:2] == ["bucket", "member_id"] for columns in unique)


@pytest.mark.parametrize("table", MEMBER_TABLES, ids=lambda table: table.name)
def test_each_statement_on_a_member_table_names_bucket_and_member(table: sa.Table) -> None:
    mine = [text for text in STATEMENTS if re.search(rf"\b(INTO|FROM|JOIN|UPDATE) {table.name}\b", text)]
    assert mine or table.name in COPIED
    for text in mine:
        if any(known in text for known in SWEEPS):
            continue
        if text.startswith("INSERT"):
            assert re.search(r"INSERT INTO \w+ \(bucket, member_id", text), text
            assert "DO UPDATE" not in text or "ON CONFLICT (bucket, member_id" in text, text
        else:
            assert f"{table.name}.bucket" in text, text
            assert f"{table.name}.member_id" in text, text


def test_rows_are_copied_with_their_bucket_and_member() -> None:
    mine = {table.name for table in MEMBER_TABLES} & set(COPIED)
    assert mine == {table.name for table in MEMBER_TABLES}
    assert all(COPIED[name][:2] == ("bucket", "member_id") for name in mine)


def test_no_update_of_a_member_table_calls_a_volatile_function() -> None:
    names = "|".join(table.name for table in MEMBER_TABLES)
    updates = [text for text in STATEMENTS if re.match(rf"UPDATE ({names})\b", text)]
    assert updates
    for text in updates:
        assert not re.search(r"\b(now|clock_timestamp|random|nextval|gen_random_uuid)\(", text), text
