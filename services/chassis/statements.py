"""What is done to every table alike: finding rows in several ways, and writing what changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Connection, Insert, Row, Statement, columns, insert_rows, rows_of
from services.chassis.ids import bucket

MEMBER = ("bucket", "member_id")
Values = tuple[Any, ...]
K = TypeVar("K")
T = TypeVar("T")


def given_members() -> tuple[sa.TableValuedAlias, Any]:
    """Members given as rows of keys, and the condition that a table is about them."""
    given = rows_of(bucket=sa.SmallInteger, member_id=sa.Text)
    return given, lambda table: sa.and_(
        table.c.bucket == given.c.bucket, table.c.member_id == given.c.member_id
    )


def keys(member_ids: Iterable[str]) -> list[tuple[int, str]]:
    """Keys in the order in which members are locked."""
    return sorted((bucket(member_id), member_id) for member_id in member_ids)


def keyed(named: Iterable[tuple[str, ...]]) -> list[tuple[Any, ...]]:
    """Keys of members, each with something of its own."""
    return [(bucket(names[0]), *names) for names in named]


def word(text: str) -> sa.ColumnElement[str]:
    """A word of our own, written out so that a partial index may serve."""
    return sa.literal_column(f"'{text}'")


def one_of(column: sa.ColumnElement[str], *words: str) -> sa.ColumnElement[bool]:
    """That a column says one of some words of our own."""
    return column.in_([word(text) for text in words])


def of_member(table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
    """That a table is about the member given as `b` and `member`."""
    return (table.c.bucket == sa.bindparam("b"), table.c.member_id == sa.bindparam("member"))


def unless_null(name: str, kind: Any, condition: Callable[[Any], Any]) -> Any:
    """A filter by an argument that holds for everything when the argument is null."""
    argument = sa.bindparam(name, type_=kind)
    return sa.or_(argument.is_(None), condition(argument))


class By(NamedTuple):
    """A way to find rows: the columns that are given, and what holds besides."""

    columns: tuple[str, ...]
    where: sa.ColumnElement[bool] | None = None


class Lookup:
    """Rows of a table, found in several ways by one statement; a row may be found more than once."""

    def __init__(self, table: sa.Table, **ways: By) -> None:
        self._ways = ways
        self._statement = Statement(sa.union_all(*(_found(table, name, *by) for name, by in ways.items())))

    async def fetch(self, connection: Connection, **keys: Collection[Sequence[Any]]) -> list[Row]:
        """The rows of these keys, by way; nothing is sent for none."""
        if not any(keys.values()):
            return []
        arguments = {
            f"{way}_{column}": values
            for way, by in self._ways.items()
            for column, values in zip(
                by.columns, columns(list(keys.get(way, ())), len(by.columns)), strict=True
            )
        }
        return await self._statement.fetch(connection, **arguments)


def _found(
    table: sa.Table, way: str, names: Iterable[str], where: sa.ColumnElement[bool] | None
) -> sa.Select[Any]:
    given = rows_of(way, **{name: table.c[name].type for name in names})
    matches = [table.c[name] == given.c[name] for name in names]
    if where is not None:
        matches.append(where)
    # OFFSET 0 keeps it one lookup after the other: a plan made for a small table would read all of it.
    found = sa.select(table).where(*matches).offset(sa.literal_column("0")).lateral()
    return sa.select(found).join_from(given, found, sa.true())


class Gathered:
    """Rows of a member table within one row, each column an array over them: all is of one instant."""

    def __init__(self, table: sa.Table) -> None:
        self._table = table
        self._names = [column.name for column in table.columns if column.name not in MEMBER]
        self._labels = [f"{table.name}_{name}" for name in self._names]
        self.columns = [
            sa.func.array_agg(table.c[name]).label(label)
            for name, label in zip(self._names, self._labels, strict=True)
        ]

    def where(self, *which: sa.ColumnElement[bool]) -> sa.FromClause:
        """Those of which something holds, to be joined to their member."""
        return sa.select(*self.columns).where(*which).lateral(f"all_{self._table.name}")

    def rows(self, row: Row) -> list[dict[str, Any]]:
        """The rows within a row."""
        if row[self._labels[0]] is None:
            return []
        arrays = [row[label] for label in self._labels]
        return [dict(zip(self._names, values, strict=True)) for values in zip(*arrays, strict=True)]


class Lockable:
    """Rows of a table that are locked by their keys, which are its first columns, and made if need be."""

    def __init__(self, table: sa.Table) -> None:
        key = list(table.primary_key.columns)
        given = rows_of(**{column.name: column.type for column in key})
        self._lock = Statement(
            sa.select(table)
            .join_from(given, table, sa.and_(*(column == given.c[column.name] for column in key)))
            .order_by(*key)
            .with_for_update(of=table)
        )
        sorted_keys = sa.select(*given.c[: len(key)]).order_by(*given.c[: len(key)])
        self._add = Statement(
            insert(table)
            .from_select([column.name for column in key], sorted_keys)
            .on_conflict_do_nothing()
            .returning(*key)
        )

    async def lock(self, connection: Connection, wanted: Sequence[Values]) -> tuple[list[Row], list[Row]]:
        """Locks the rows of these keys, which are sorted; returns them, and those that had to be made.

        Most are there: only where some are not does it take a second and a third statement. Rows are made
        after the locks are taken, so two processes that make the same ones wait for each other in the order
        of the keys; where that fails, PostgreSQL ends one, and its items run singly.
        """
        rows = await self._lock.fetch_rows(connection, wanted)
        there = {tuple(row)[: len(wanted[0])] for row in rows}
        missing = [key for key in wanted if key not in there]
        made = await self._add.fetch_rows(connection, missing)
        return rows + await self._lock.fetch_rows(connection, missing), made


def dropping(table: sa.Table) -> Statement:
    """Deletes rows, given by their keys."""
    key = list(table.primary_key.columns)
    given = rows_of(**{column.name: column.type for column in key})
    return Statement(sa.delete(table).where(*(column == given.c[column.name] for column in key)))


def copied(seen: T, *names: str) -> T:
    """A record with the collections of these names copied: its own may be changed then."""
    changes: dict[str, Any] = {name: copy(getattr(seen, name)) for name in names}
    return replace(seen, **changes)  # type: ignore[type-var]


def replaced(was: Mapping[K, T], now: Mapping[K, T]) -> Iterator[tuple[K, T | None, T]]:
    """What is not the same object any more, by name, with what it was."""
    for key, record in now.items():
        known = was.get(key)
        if record is not known:
            yield key, known, record


class Changed(NamedTuple):
    """Rows that are not as they were: those that are known, and those that are new."""

    known: list[Values]
    new: list[Values]


class Upsert:
    """Writes rows of a table as they are now: new ones whole, of known ones what may change.

    A row has a value for each column that the database does not compute, those of its key first.
    """

    def __init__(self, table: sa.Table, changing: Collection[str]) -> None:
        names = [column.name for column in table.c if column.computed is None]
        # For known rows too it finds each by its key, whatever the plan: an UPDATE over arrays is a join.
        upsert = insert_rows(table, *names)
        self._upsert = Statement(
            upsert.on_conflict_do_update(
                index_elements=list(table.primary_key.columns),
                set_={name: upsert.excluded[name] for name in changing},
            )
        )
        self._insert = Insert(table, *names)
        self._table = table.name
        self._key = len(table.primary_key.columns)
        self._facts = [index for index, name in enumerate(names) if name not in changing]

    def changed(self, records: Iterable[tuple[Sequence[Values], Sequence[Values]]]) -> Changed:
        """Of records, each with its rows as they were and as they are: the rows that are not the same.

        Raises RuntimeError where a fact was to change, which is a defect.
        """
        changed = Changed([], [])
        for old, new in records:
            known = {row[: self._key]: row for row in old}
            for row in new:
                was = known.get(row[: self._key])
                if was is None:
                    changed.new.append(row)
                elif row != was:
                    if any(was[index] != row[index] for index in self._facts):
                        raise RuntimeError(f"a fact in {self._table} was to change: from {was} to {row}")
                    changed.known.append(row)
        return changed

    async def write(self, connection: Connection, rows: Changed) -> None:
        """Writes rows, in the order given; nothing is sent for none.

        Known ones come first: where one of a kind may be open, it closes before the next is made.
        """
        await self._upsert.execute_rows(connection, rows.known)
        await self._insert.rows(connection, rows.new)
