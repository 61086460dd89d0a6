"""A branch: the service on a real database, in a time of its own; only gRPC and the streams are left out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import store
from services.cards.__main__ import SCHEMA
from services.cards.batches import Batches
from services.cards.commands import Command, ConfirmPayment, PlaceOrder
from services.cards.domain.payments import Payment
from services.cards.domain.wallet import Wallet
from services.cards.rules import Products
from services.cards.store import Wanted
from services.cards.subscriptions import Subscriptions
from services.chassis.consumer import Delivery, Outcome
from services.chassis.database import Database
from services.chassis.errors import INFRASTRUCTURE
from services.chassis.ids import bucket
from services.chassis.inbox import InboxKey
from services.cli.servers import Postgres
from tests import schema
from tests.cards.shop import TERMS
from tests.cards.till import NOON, ZONE
from tests.support import TIMEOUT, fresh

Announced = TypeVar("Announced", bound=Message)

PATIENCE = 5 * TIMEOUT  # many wait for one another


def make_database(server: Postgres) -> str:
    """Makes an empty database on the cards' server, where all rows are the test's own; its URL."""
    return schema.make_database(server, "cards", SCHEMA)


def by_event(member: str) -> dict[str, Any]:
    """What a command has that an event asks for: each time another event, of another service."""
    name = fresh("event")
    return {"request_id": name, "event": InboxKey(member, "cards", "elsewhere", name, "ELSEWHERE", 1)}


class StandingClock:
    """Business time that stands still until the test moves it; what was settled last is remembered."""

    def __init__(self, at: datetime = NOON) -> None:
        self.at = at
        self.settled_at: datetime | None = None

    def now(self) -> datetime:
        """The instant it stands at."""
        return self.at

    def settled(self, at: datetime) -> None:
        """Remembers it."""
        self.settled_at = at


class Branch:
    """Members of the test's own in a database that others use too."""

    def __init__(self, database: Database, clock: StandingClock | None = None) -> None:
        self.database = database
        self.clock = clock or StandingClock()
        self.batches = Batches(database, self.clock, Products(), TERMS, lambda: None)
        self._subscriptions = Subscriptions(self.batches)
        self._deliveries = 0

    async def put(self, *products: pb.Product) -> None:
        """Puts products on sale."""
        async with self.database.begin() as connection:
            for made in products:
                await store.add_product(
                    connection,
                    code=made.code,
                    version=made.version,
                    family=made.family,
                    withdrawn=made.withdrawn,
                    author="test",
                    create_time=NOON,
                    body=made.SerializeToString(deterministic=True),
                )

    # --- calls ----------------------------------------------------------------------------------------

    async def do(self, kind: type[Command], member: str, **fields: Any) -> bytes:
        """Does a command, and tries again, as a client does, where that helps. Raises its refusal."""
        command = kind(
            member_id=member,
            request_id=fields.pop("request_id", "") or fresh("request"),
            payload_hash=hashlib.sha256(repr((kind, sorted(fields.items()))).encode()).digest(),
            actor="test",
            **fields,
        )
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    answer = await self.batches.post(command)
                except INFRASTRUCTURE:
                    continue
                assert isinstance(answer, bytes | None)
                return answer or b""

    async def order(self, member: str, product: pb.Product, **fields: Any) -> pb.CardOrder:
        """Orders a period."""
        answer = await self.do(PlaceOrder, member, product_code=product.code, **fields)
        return pb.CardOrder.FromString(answer)

    async def pay(self, order: pb.CardOrder, **told: Any) -> pb.ConfirmPaymentResponse:
        """Tells of a payment: by default of what the order costs, now."""
        amount, paid = told.pop("amount", order.amount_minor), told.pop("paid", self.clock.at)
        said = {
            "order_id": order.order_id,
            "channel": "wechat",
            "payment_id": fresh("payment"),
            "payment": Payment(amount, "CNY", paid),
            **told,
        }
        answer = await self.do(ConfirmPayment, said.pop("member", order.member_id), **said)
        return pb.ConfirmPaymentResponse.FromString(answer)

    async def buy(self, member: str, product: pb.Product, **fields: Any) -> pb.Card:
        """Orders and pays a period."""
        answer = await self.pay(await self.order(member, product, **fields))
        assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED
        return answer.card

    # --- events ---------------------------------------------------------------------------------------

    def delivery(self, message: Message, event_id: str = "", subject: str = "") -> Delivery:
        """An event as a consumer gets it."""
        self._deliveries += 1
        return Delivery(
            subject or message.DESCRIPTOR.full_name,
            message.SerializeToString(),
            "elsewhere",
            event_id or fresh("event"),
            "",
            "ELSEWHERE",
            self._deliveries,
        )

    async def tell(self, *messages: Message) -> Sequence[Outcome]:
        """Delivers events at once, each under an id of its own."""
        return await self.deliver(*map(self.delivery, messages))

    async def deliver(self, *deliveries: Delivery) -> Sequence[Outcome]:
        """Delivers at once, and again, as a consumer does, what met a fault of the infrastructure."""
        async with asyncio.timeout(PATIENCE):
            outcomes = list(await self._subscriptions.handle(deliveries))
            for number, delivery in enumerate(deliveries):
                while isinstance(outcomes[number], INFRASTRUCTURE):
                    (outcomes[number],) = await self._subscriptions.handle([delivery])
        return outcomes

    async def heard(self, member: str, kind: type[Announced]) -> list[Announced]:
        """What was announced of a kind about a member, in order."""
        query = """SELECT body FROM outbox WHERE bucket = $1 AND entity_key = $2 AND subject = $3
            ORDER BY position"""
        async with self.database.read() as connection:
            rows = await connection.fetch(query, bucket(member), member, kind.DESCRIPTOR.full_name)
        return [kind.FromString(row["body"]) for row in rows]

    async def announced(self, member: str) -> list[str]:
        """What was announced about a member, by name, in order."""
        query = "SELECT subject FROM outbox WHERE bucket = $1 AND entity_key = $2 ORDER BY position"
        async with self.database.read() as connection:
            rows = await connection.fetch(query, bucket(member), member)
        return [row["subject"].rpartition(".")[2] for row in rows]

    # --- what there is --------------------------------------------------------------------------------

    async def wallet(self, member: str, **wanted: Any) -> Wallet:
        """What a member has, as a batch would see it; `wanted` names what is not always loaded."""
        async with self.database.begin() as connection:
            seen = await store.lock(connection, Wanted(self.clock.at, members={member}, **wanted), ZONE)
            await store.save(connection, store.Changes(seen, seen), NOON)
        return seen.wallets[member]

    def wait(self, **duration: float) -> None:
        """Lets time pass; nothing is posted."""
        self.clock.at += timedelta(**duration)
