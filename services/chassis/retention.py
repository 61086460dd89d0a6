"""What was sent and what was received is kept for a while, in wall time, and then no longer."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from services.chassis.clock import wall
from services.chassis.database import Database, Statement
from services.chassis.jobs import Job, Lease
from services.chassis.streams import MAX_AGE

OUTBOX_KEPT = timedelta(seconds=MAX_AGE)  # as long as the streams keep them
INBOX_KEPT = timedelta(days=90)
EVERY = 600.0  # seconds
BATCH = 5_000  # rows a step and table


def _old(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> Statement:
    key = list(table.primary_key.columns)
    most = sa.bindparam("most", type_=sa.BigInteger)
    old = sa.select(*key).where(*conditions).limit(most)
    return Statement(sa.delete(table).where(sa.tuple_(*key).in_(old)))


def retention(database: Database, outbox: sa.Table, inbox: sa.Table) -> Job:
    """A job that drops sent events and receipts once they are older than they are kept."""
    before = sa.bindparam("before", type_=sa.DateTime(timezone=True))
    old_events = _old(outbox, outbox.c.sent_at.is_not(None), outbox.c.create_time < before)
    old_receipts = _old(inbox, inbox.c.receive_time < before)

    async def drop(_lease: Lease) -> bool:
        async with database.begin() as connection:
            events = await old_events.execute(connection, before=wall() - OUTBOX_KEPT, most=BATCH)
            receipts = await old_receipts.execute(connection, before=wall() - INBOX_KEPT, most=BATCH)
        return BATCH in (events, receipts)

    return Job("retention", EVERY, drop)
