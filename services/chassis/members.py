"""Members with what they have: locked by their one row, and written where something is not the same object.

For services that keep of a member a row of its own, and collections of records by name, in tables whose keys
begin with the member's. Records are never changed; a change replaces one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import sqlalchemy as sa

from services.chassis.database import Connection, Row
from services.chassis.statements import Lockable, Upsert, Values, dropping, keys, replaced

ToRows = Callable[[str, Any, Any], Sequence[Values]]
"""The rows of a record, of a member, by the name that it has in its collection."""


class Members:
    """The members of one service."""

    def __init__(
        self,
        table: sa.Table,
        to_rows: Callable[[Any], Sequence[Values]],
        collections: Iterable[tuple[str, sa.Table, ToRows]],
        changing: Mapping[str, Sequence[str]],
    ) -> None:
        """`to_rows` gives a member's own row; `changing` says by table what may change of a row."""
        self._lockable = Lockable(table)
        self._drop = dropping(table)
        self._upsert, self._to_rows = Upsert(table, changing[table.name]), to_rows
        self._collections = [
            (name, Upsert(kept, changing[kept.name]), rows) for name, kept, rows in collections
        ]

    async def lock(self, connection: Connection, member_ids: Iterable[str]) -> tuple[list[Row], set[str]]:
        """Locks members in the order of their keys; returns their rows, and who had to be made."""
        rows, made = await self._lockable.lock(connection, keys(member_ids))
        return rows, {row["member_id"] for row in made}

    async def save(
        self, connection: Connection, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> set[str]:
        """Writes what is not as it was, a statement per table; returns the members of whom something is."""
        members = [(before[name], now) for name, _, now in replaced(before, after)]
        rows = self._upsert.changed((self._to_rows(was), self._to_rows(now)) for was, now in members)
        await self._upsert.write(connection, rows)
        touched = {row[1] for row in chain(*rows)}
        for name, upsert, to_rows in self._collections:
            rows = upsert.changed(
                (to_rows(now.member_id, key, old) if old else (), to_rows(now.member_id, key, new))
                for was, now in members
                for key, old, new in replaced(getattr(was, name), getattr(now, name))
            )
            await upsert.write(connection, rows)
            touched |= {row[1] for row in chain(*rows)}
        return touched

    async def drop(self, connection: Connection, member_ids: Iterable[str]) -> None:
        """Drops members who were made for the lock, and to whom nothing came."""
        await self._drop.execute_rows(connection, keys(member_ids))
