"""The outbox in a real database: events keep their order, leave with their data, and can be erased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from services.chassis.database import Connection, Database
from services.chassis.outbox import MAX_BODY, Event, EventTooLarge, Outbox, event
from services.points import tables
from tests.support import fresh

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OUTBOX = Outbox(tables.outbox, tables.stream_erasures)


def events_of(entity: str, count: int) -> list[Event]:
    bodies = [b"body %d" % number for number in range(count)]
    return [event("POINTS", "test.v1.Happened", entity, body, TRACE) for body in bodies]


async def add(database: Database, events: Sequence[Event]) -> None:
    async with database.begin() as connection:
        await OUTBOX.add(connection, events)


async def erase(database: Database, entity: str) -> int:
    async with database.begin() as connection:
        return await OUTBOX.erase(connection, entity)


async def rows_of(connection: Connection, *entities: str) -> list[Any]:
    rows: list[Any] = await connection.fetch(
        "SELECT * FROM outbox WHERE entity_key = ANY($1) ORDER BY position", entities
    )
    return rows


async def kept(database: Database, *entities: str) -> list[Any]:
    async with database.read() as connection:
        return await rows_of(connection, *entities)


async def send(database: Database, stream: str, event_id: str, sequence: int) -> None:
    """What the relay does once the stream has the event."""
    async with database.begin() as connection:
        await connection.execute(
            "UPDATE outbox SET sent_at = now(), stream = $1, stream_seq = $2 WHERE event_id = $3",
            stream,
            sequence,
            event_id,
        )


async def to_erase(database: Database, stream: str) -> list[int]:
    async with database.read() as connection:
        rows = await connection.fetch(
            "SELECT stream_seq FROM stream_erasures WHERE stream = $1 ORDER BY stream_seq", stream
        )
    return [row["stream_seq"] for row in rows]


async def test_positions_rise_in_the_order_given_whoever_the_events_are_about(database: Database) -> None:
    names = [fresh("entity") for _ in range(7)]
    events = [made for number in range(60) for made in events_of(names[number * 5 % 7], 1 + number % 3)]
    await add(database, events[:100])
    await add(database, events[100:])
    rows = await kept(database, *names)
    assert [row["event_id"] for row in rows] == [made.event_id for made in events]
    assert [row["body"] for row in rows] == [made.body for made in events]
    assert len({row["position"] for row in rows}) == len(events)


async def test_an_event_is_kept_whole_and_unsent(database: Database) -> None:
    entity = fresh("entity")
    (made,) = events_of(entity, 1)
    await add(database, [made])
    (row,) = await kept(database, entity)
    assert (row["stream"], row["subject"], row["body"]) == ("POINTS", "test.v1.Happened", b"body 0")
    assert row["traceparent"] == TRACE
    assert (row["sent_at"], row["stream_seq"], row["erased"]) == (None, None, False)


async def test_an_event_leaves_only_if_its_data_commits(database: Database) -> None:
    entity = fresh("entity")

    async def fail() -> None:
        async with database.begin() as connection:
            await OUTBOX.add(connection, events_of(entity, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await kept(database, entity) == []


async def test_nothing_is_written_for_no_events(database: Database) -> None:
    entity = fresh("entity")
    await add(database, [])
    assert await kept(database, entity) == []


async def test_erasing_blanks_what_is_there_and_records_what_the_stream_has(database: Database) -> None:
    entity, neighbour, stream = fresh("entity"), fresh("entity"), fresh("stream")
    events = events_of(entity, 3)
    await add(database, [*events, *events_of(neighbour, 1)])
    await send(database, stream, events[0].event_id, 41)
    await send(database, stream, events[2].event_id, 43)
    assert await erase(database, entity) == 3
    assert [(row["body"], row["erased"]) for row in await kept(database, entity)] == [(b"", True)] * 3
    assert [(row["body"], row["erased"]) for row in await kept(database, neighbour)] == [(b"body 0", False)]
    assert await to_erase(database, stream) == [41, 43]


async def test_erasing_leaves_what_something_travels_on(database: Database) -> None:
    carrier = Outbox(tables.outbox, tables.stream_erasures, carrying=("test.v1.Sent", "test.v1.Refused"))
    entity, stream = fresh("entity"), fresh("stream")
    happened, sent, refused = (
        event("POINTS", f"test.v1.{name}", entity, name.encode(), TRACE)
        for name in ("Happened", "Sent", "Refused")
    )
    await add(database, [happened, sent, refused])
    await send(database, stream, happened.event_id, 1)
    await send(database, stream, sent.event_id, 2)
    async with database.begin() as connection:
        assert await carrier.erase(connection, entity) == 1
    assert [row["body"] for row in await kept(database, entity)] == [b"", b"Sent", b"Refused"]
    assert await to_erase(database, stream) == [1]


async def test_what_was_erased_before_is_not_counted_again_and_what_came_later_is(
    database: Database,
) -> None:
    entity, stream = fresh("entity"), fresh("stream")
    first, second = events_of(entity, 2)
    await add(database, [first])
    await send(database, stream, first.event_id, 1)
    assert [await erase(database, entity), await erase(database, entity)] == [1, 0]
    await add(database, [second])
    await send(database, stream, second.event_id, 2)
    assert await erase(database, entity) == 1
    assert await to_erase(database, stream) == [1, 2]
    assert await erase(database, fresh("entity")) == 0


async def test_a_stream_message_is_recorded_once_however_often_it_is_named(database: Database) -> None:
    stream = fresh("stream")
    for sequences in ([7, 8], [8], []):
        messages = [{"stream": stream, "stream_seq": seq, "event_id": f"e{seq}"} for seq in sequences]
        async with database.begin() as connection:
            await OUTBOX.erase_later(connection, messages)
    assert await to_erase(database, stream) == [7, 8]


def test_an_event_that_the_stream_would_not_take_is_refused_when_it_is_made() -> None:
    assert event("POINTS", "test.v1.Happened", "entity", b"x" * MAX_BODY, TRACE)
    with pytest.raises(EventTooLarge):
        event("POINTS", "test.v1.Happened", "entity", b"x" * (MAX_BODY + 1), TRACE)
