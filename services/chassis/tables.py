"""The tables that every service has for itself, and what its role may do to these and to its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from services.chassis.consumer import dead_letters_table
from services.chassis.database import Connection, Statement
from services.chassis.inbox import inbox_table
from services.chassis.jobs import jobs_table
from services.chassis.outbox import outbox_tables
from services.chassis.requests import requests_table

_EPOCH = Statement(sa.select(sa.column("epoch", sa.BigInteger)).select_from(sa.table("meta")))


class Common(NamedTuple):
    """What every service has."""

    meta: sa.Table
    requests: sa.Table
    outbox: sa.Table
    stream_erasures: sa.Table
    inbox: sa.Table
    dead_letters: sa.Table
    jobs: sa.Table


def common(metadata: sa.MetaData) -> Common:
    """Declares them."""
    meta = sa.Table(
        "meta",
        metadata,
        sa.Column("only_row", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
        sa.CheckConstraint("only_row", name="meta_one_row"),
    )
    requests, (outbox, erasures) = requests_table(metadata), outbox_tables(metadata)
    inbox, letters, jobs = inbox_table(metadata), dead_letters_table(metadata), jobs_table(metadata)
    return Common(meta, requests, outbox, erasures, inbox, letters, jobs)


async def epoch(connection: Connection) -> int:
    """Rises when the database was restored from a backup."""
    return int(await _EPOCH.fetch_value(connection))


def grants(role: str, changing: Mapping[str, Sequence[str]], going: Sequence[str] = ()) -> list[str]:
    """What a service's role may do: everything, but no change of a fact.

    `changing` are tables with facts, each with the columns that may change of a row once it is written;
    `going` are those of them that rows may be deleted from.
    """
    return [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
        f"REVOKE UPDATE, DELETE, TRUNCATE ON {', '.join(changing)} FROM {role}",
        *(f"GRANT DELETE ON {table} TO {role}" for table in going),
        *(
            f"GRANT UPDATE ({', '.join(names)}) ON {table} TO {role}"
            for table, names in changing.items()
            if names
        ),
        f"REVOKE INSERT, UPDATE, DELETE ON meta, alembic_version FROM {role}",
    ]
