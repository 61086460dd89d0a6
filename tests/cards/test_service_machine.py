"""The service on a real database does as its fold does over wallets that hold all there ever was.

Each command is done twice: over wallets in memory, and by the service, which loads of a member only what it
takes to be needed. Answers, refusals and events must be the same, but for the names that are made anew.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import chains, codes, commands, service, store, using
from services.cards.commands import ActivateGift, Command, Settle
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.refunds import RefundQuote
from services.cards.domain.wallet import KeptCard
from services.cards.folding import Answer
from services.cards.rules import Products
from services.chassis.database import Database
from services.chassis.errors import ServiceError
from tests.cards.shop import SHELF, TERMS, Shop, read_event
from tests.cards.test_selling_machine import Buying
from tests.cards.till import ZONE
from tests.support import fresh

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "12"))
STEPS = 30
NAME = re.compile(r"\b(?:ord|card|seg|red|rnw)_[0-9a-f]{32}\b")

ANSWERS: Mapping[type[Command], type[Message]] = {
    commands.PlaceOrder: pb.CardOrder,
    commands.GiftOrder: pb.GiftCardResponse,
    commands.ConfirmPayment: pb.ConfirmPaymentResponse,
    commands.CancelOrder: pb.CardOrder,
    commands.ActivateGift: pb.Card,
    commands.RefundCard: pb.RefundCardResponse,
    commands.FreezeCard: pb.Card,
    commands.ResumeCard: pb.Card,
    commands.Redeem: pb.RedeemBenefitsResponse,
    commands.ConfirmUses: pb.ConfirmRedemptionsResponse,
    commands.ReverseUses: pb.ReverseRedemptionsResponse,
    commands.SetAutoRenew: pb.Renewal,
    commands.RecordNotice: pb.Renewal,
    commands.CancelAutoRenew: pb.CancelAutoRenewResponse,
}


class Twins(Shop):
    """A shop whose every command is done by the service too, under names of its own."""

    runner: ClassVar[asyncio.Runner]
    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__(*SHELF)
        self._prefix = fresh("twin") + "-"
        self._twins: dict[str, str] = {}
        self._known = Products()
        self.runner.run(self._put_products())

    def apply(self, command: Command) -> tuple[Answer, list[Message]]:
        """Does a command twice, and says what came of it in memory."""
        answer, told = super().apply(command)
        there, told_there, next_due = self.runner.run(self._post(self._renamed(command)))
        assert next_due == self.wallet(command.member_id).next_due_time
        self._compare(_text(command, answer), _text(command, there))
        self._compare("\n".join(map(_shown, told)), "\n".join(map(_shown, told_there)))
        return answer, told

    async def _post(self, command: Command) -> tuple[Answer, list[Message], datetime | None]:
        async with self.database.begin() as connection:
            [answer], announced = await service.post(connection, [command], self._known, TERMS, self.at)
        query = "SELECT subject, body FROM outbox WHERE entity_key = $1 ORDER BY position DESC LIMIT $2"
        async with self.database.read() as connection:
            rows = await connection.fetch(query, command.member_id, announced)
            kept = await store.member(connection, command.member_id)
        told = [read_event(row["subject"], row["body"]) for row in reversed(rows)]
        return answer, told, None if kept is None else kept.next_due_time

    async def _put_products(self) -> None:
        async with self.database.begin() as connection:
            for made in SHELF:
                named = pb.Product()
                named.CopyFrom(made)
                named.code = self._prefix + made.code
                await store.add_product(
                    connection,
                    code=named.code,
                    version=named.version,
                    family=named.family,
                    withdrawn=False,
                    author="test",
                    create_time=self.at,
                    body=named.SerializeToString(deterministic=True),
                )

    def compare_reads(self, at: datetime) -> None:
        """What members may use at an instant, and what their cards would give back now, is the same."""
        for member in self.seen.wallets:
            here = using.entitlements(self.wallet(member), self.products, at, ZONE)
            known = self.runner.run(self._known_of(member, at))
            there = known.entitlements(self._prefix + member)
            assert sorted(map(self._given, here)) == sorted((one.card_id, *_given(one)) for one in there)
            for card_id in self.wallet(member).cards:
                self._compare_quotes(member, card_id)

    async def _known_of(self, member: str, at: datetime) -> service.Known:
        async with self.database.read() as connection:
            return await service.known(connection, [self._prefix + member], self._known, TERMS, at)

    def _given(self, one: Entitlement) -> tuple[Any, ...]:
        return (self._twins[one.card_id], *_given(one))

    def _compare_quotes(self, member: str, card_id: str) -> None:
        shop = self.copy()
        Shop.apply(shop, Settle(member_id=member, request_id="~", payload_hash=b"", actor="test"))
        wallet = shop.wallet(member)
        here = chains.quote_refund(
            wallet.cards[card_id], chains.uses_of(wallet), self.products, self.at, ZONE
        )
        _, there = self.runner.run(self._quote(member, self._twins[card_id]))
        assert (here.minor, here.points) == (there.minor, there.points)
        assert [step.amount for step in here.steps] == [step.amount for step in there.steps]

    async def _quote(self, member: str, card_id: str) -> tuple[KeptCard, RefundQuote]:
        async with self.database.read() as connection:
            return await service.quote_refund(
                connection, self._prefix + member, card_id, self._known, TERMS, at=self.at
            )

    # --- names ----------------------------------------------------------------------------------------

    def _renamed(self, command: Command) -> Command:
        """The same command, as it is to be told to the service."""
        changed: dict[str, Any] = {"member_id": self._prefix + command.member_id}
        if command.event is not None:
            changed["event"] = command.event._replace(member_id=changed["member_id"])
        for field in fields(command):
            value = getattr(command, field.name)
            if field.name in ("product_code", "payment_id"):
                changed[field.name] = value and self._prefix + value
            elif isinstance(value, str) and value in self._twins:
                changed[field.name] = self._twins[value]
        if isinstance(command, ActivateGift):
            order_id = self._twins[self.seen.gifts[command.code_hash].order_id]
            changed["code_hash"] = codes.hash_of(codes.make(TERMS.gift_code_key, order_id))
        return replace(command, **changed)

    def _compare(self, here: str, there: str) -> None:
        """Both say the same; a name that is new to one is new to the other."""
        names = list(zip(NAME.findall(here), NAME.findall(there), strict=False))
        for mine, its in names:
            self._twins.setdefault(mine, its)
        assert NAME.sub(lambda found: self._twins[found[0]], here) == there.replace(self._prefix, "")
        assert len(set(self._twins.values())) == len(self._twins)


def _text(command: Command, answer: Answer) -> str:
    if isinstance(answer, ServiceError):
        return f"{answer.reason} {answer.metadata}"
    return "" if answer is None else str(ANSWERS[type(command)].FromString(answer))


def _given(one: Entitlement) -> tuple[Any, ...]:
    return (one.benefit.code, one.remaining, str(one.reset), one.valid_until)


def _shown(message: Message) -> str:
    return f"{type(message).__name__}\n{message}"


class BuyingTwice(Buying):
    """Members who do all of it twice."""

    def open_shop(self) -> Shop:
        """A shop with its twin."""
        return Twins()

    def teardown(self) -> None:
        """What is read without a lock is what the wallets in memory come to."""
        assert isinstance(self.shop, Twins)
        for days in (-1, 0, 1, 20):
            self.shop.compare_reads(self.shop.at + timedelta(days=days))


def test_the_service_does_in_the_database_what_its_fold_does_in_memory(cards_url: str) -> None:
    with asyncio.Runner() as runner:
        Twins.runner, Twins.database = runner, runner.run(Database.open(cards_url, size=2, name="twins"))
        try:
            run_state_machine_as_test(
                BuyingTwice,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(Twins.database.close())
