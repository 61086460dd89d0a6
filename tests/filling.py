"""The ledger filled from within: what no caller may ask for, and more than callers could ask for in time."""

from __future__ import annotations

from collections.abc import Sequence

from services.chassis.database import Database
from services.chassis.errors import ServiceError
from services.cli.house import House
from services.points import service, store
from services.points.commands import Command, EarnFixed
from services.points.domain.ledger import Unit
from services.points.rules import Programmes
from tests.support import fresh

BATCH = 1_000  # commands a transaction


async def post(house: House, commands: Sequence[Command]) -> None:
    """Applies commands as the service would; none may be refused."""
    assert house.clock is not None
    now = house.clock.now()
    database = await Database.open(house.database_url("points"), size=1, name="filling")
    programmes = Programmes()
    try:
        for first in range(0, len(commands), BATCH):
            async with database.begin() as connection:
                epoch = await store.epoch(connection)
                batch = commands[first : first + BATCH]
                answers, _ = await service.post(connection, batch, programmes, epoch, now)
            assert not [answer for answer in answers if isinstance(answer, ServiceError)]
    finally:
        await database.close()


def gift(member: str, amount: int, unit: Unit = Unit.POINTS) -> EarnFixed:
    """An amount outside the rules, also more than a caller may give at once."""
    return EarnFixed(
        member_id=member,
        request_id=fresh("gift"),
        payload_hash=b"a gift",
        actor="a test",
        unit=unit,
        amount=amount,
        reason="",
    )
