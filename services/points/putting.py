"""The programme: put in versions, each validated whole before, each in force from an instant on."""

from __future__ import annotations

from datetime import datetime

from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.database import Connection, Row
from services.chassis.timestamps import instant_of, timestamp
from services.points import store
from services.points.errors import CurrencyFixed, EffectiveTimePast, TimeZoneFixed
from services.points.rules import Programmes


async def put_programme(
    connection: Connection, at: datetime, message: pb.Programme, author: str
) -> pb.Programme:
    """Keeps the next version of the programme, which was compiled before.

    Raises EffectiveTimePast, TimeZoneFixed, CurrencyFixed.
    """
    last = await store.lock_last_programme(connection)
    effective = instant_of(message, "effective_time") or at
    floor = at if last is None else max(at, last["effective_time"])
    if effective < floor:
        raise EffectiveTimePast(effective_time=effective.isoformat(), not_before=floor.isoformat())
    if last is not None and await store.any_transaction(connection):
        _check_fixed(last, message)
    made = pb.Programme()
    made.CopyFrom(message)
    made.version = 1 if last is None else last["version"] + 1
    made.effective_time.CopyFrom(timestamp(effective))
    made.create_time.CopyFrom(timestamp(at))
    await store.add_programme(
        connection,
        version=made.version,
        effective_time=effective,
        create_time=at,
        author=author,
        body=made.SerializeToString(),
    )
    return made


def _check_fixed(last: Row, message: pb.Programme) -> None:
    terms = Programmes().keep(last["body"]).terms
    if terms.zone.key != message.time_zone:
        raise TimeZoneFixed(time_zone=terms.zone.key)
    if terms.currency_code != message.currency_code:
        raise CurrencyFixed(currency_code=terms.currency_code)
