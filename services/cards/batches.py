"""The transaction around a batch. Calls, events and sweeps all post through the same gather."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from services.cards import rules, service
from services.cards.commands import Command, Redeem
from services.cards.domain.entitlements import Entitlement
from services.cards.folding import Answer
from services.cards.rules import Bill, Products
from services.cards.steps import Terms
from services.cards.using import Price
from services.chassis import failpoints
from services.chassis.clock import Clock
from services.chassis.database import Database, shielded
from services.chassis.errors import ServiceError
from services.chassis.gather import Gather

SMALL = 40  # pieces of an order whose best price is found at once, on the event loop


@dataclass(frozen=True, slots=True)
class Visit:
    """A member at a place: store and channel, empty for any, at an instant, None for now."""

    member_id: str
    store_id: str = ""
    channel: str = ""
    at: datetime | None = None


class Batches:
    """Writes commands and reads entitlements, many in a transaction. `wake` tells the relay of new events."""

    def __init__(
        self, database: Database, clock: Clock, products: Products, terms: Terms, wake: Callable[[], None]
    ) -> None:
        self._database = database
        self._clock = clock
        self._products = products
        self._terms = terms
        self.wake = wake
        self.posts: Gather[Command, Answer] = Gather("posts", self._post)
        self.entitlements: Gather[Visit, list[Entitlement]] = Gather("entitlements", self._entitlements)

    async def post(self, command: Command) -> Answer:
        """Writes a command: with others, or, where its order's price may take long, by itself."""
        if isinstance(command, Redeem) and not _small(command.bill):
            # Searched for before the member is locked: under the lock it is only seen whether it still holds.
            price = await self.price(command.member_id, command.bill, None)
            command = replace(command, solved=price.solved)
            answers = await shielded(lambda: self._post([command], in_thread=True))
            if isinstance(answers[0], ServiceError):
                raise answers[0]
            return answers[0]
        return await self.posts.submit(command)

    async def price(self, member_id: str, bill: Bill, at: datetime | None) -> Price:
        """The best price of an order at an instant, None for now."""
        async with self._database.read() as connection:
            known = await service.known(
                connection, [member_id], self._products, self._terms, at or self._clock.now()
            )
        if _small(bill):
            return known.price(member_id, bill)
        return await asyncio.to_thread(known.price, member_id, bill)

    async def _post(self, commands: Sequence[Command], *, in_thread: bool = False) -> list[Answer]:
        async with self._database.begin() as connection:
            answers, announced = await service.post(
                connection, commands, self._products, self._terms, self._clock.now(), in_thread=in_thread
            )
            failpoints.reach("before_commit")
        failpoints.reach("after_commit")
        if announced:
            self.wake()
        return answers

    async def _entitlements(self, visits: Sequence[Visit]) -> list[list[Entitlement] | ServiceError]:
        now = self._clock.now()
        moments = {visit.at or now for visit in visits}
        async with self._database.read() as connection:
            known = {
                moment: await service.known(
                    connection,
                    [visit.member_id for visit in visits if (visit.at or now) == moment],
                    self._products,
                    self._terms,
                    moment,
                )
                for moment in moments
            }
        return [self._usable(known[visit.at or now], visit) for visit in visits]

    @staticmethod
    def _usable(known: service.Known, visit: Visit) -> list[Entitlement]:
        found = known.entitlements(visit.member_id)
        return rules.usable_at(visit.store_id, visit.channel, found, known.compiled)


def _small(bill: Bill) -> bool:
    return sum(line.quantity for line in bill.lines) <= SMALL
