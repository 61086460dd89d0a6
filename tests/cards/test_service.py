"""The service on a real database: what is asked by many at once, from two processes, and asked again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import codes, service, store
from services.cards.batches import SMALL, Batches, Visit
from services.cards.commands import (
    ActivateGift,
    Command,
    ConfirmPayment,
    ConfirmUses,
    FreezeCard,
    GiftOrder,
    GrantReward,
    HoldCaptured,
    HoldPlaced,
    PlaceOrder,
    Redeem,
    RefundCard,
    ReturnGift,
    Settle,
)
from services.cards.domain.payments import Payment
from services.cards.errors import CardUnknown, GiftClaimed, PaymentAlreadyTold, SoldOut
from services.cards.rules import Products
from services.chassis.clock import TestClock
from services.chassis.database import Database
from services.chassis.errors import INFRASTRUCTURE, RequestIdReused, ServiceError
from services.chassis.inbox import InboxKey
from tests.cards.shop import LENIENT, RESTS, TERMS
from tests.cards.till import NOON, basket, benefit, product
from tests.support import TIMEOUT, fresh

PROCESSES = 2
PATIENCE = 5 * TIMEOUT  # a thousand wait for one another


@dataclass
class Town:
    """Two processes of the service on one database, and a clock that the test moves."""

    database: Database
    clock: TestClock
    shops: list[Batches]
    made: list[int] = field(default_factory=list)

    @property
    def at(self) -> datetime:
        """Business time."""
        return self.clock.now()

    def wait(self, **duration: float) -> None:
        """Lets time pass; nothing is posted."""
        self.clock.set(self.clock.now() + timedelta(**duration))

    async def put(self, made: pb.Product) -> str:
        """Puts a product, and says what it is called."""
        async with self.database.begin() as connection:
            await store.add_product(
                connection,
                code=made.code,
                version=made.version,
                family=made.family,
                withdrawn=made.withdrawn,
                author="test",
                create_time=self.at,
                body=made.SerializeToString(deterministic=True),
            )
        return made.code

    async def ask(self, kind: type[Command], member: str, *, process: int = 0, **fields: Any) -> bytes:
        """Does a command, and tries again, as a client does, where that helps. Raises its refusal."""
        command = a_command(kind, member, **fields)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    answer = await self.shops[process].post(command)
                except INFRASTRUCTURE:
                    continue
                assert answer is None or isinstance(answer, bytes)
                return answer or b""

    async def order(self, code: str, member: str, **fields: Any) -> pb.CardOrder:
        """Orders a period."""
        return pb.CardOrder.FromString(await self.ask(PlaceOrder, member, product_code=code, **fields))

    async def pay(self, order: pb.CardOrder, **fields: Any) -> pb.ConfirmPaymentResponse:
        """Tells of the payment of an order."""
        fields |= {"order_id": order.order_id, "channel": "wechat", "payment_id": fresh("pay")}
        payment = Payment(order.amount_minor, order.currency_code, self.at)
        answer = await self.ask(ConfirmPayment, order.member_id, payment=payment, **fields)
        return pb.ConfirmPaymentResponse.FromString(answer)

    async def buy(self, code: str, member: str) -> pb.Card:
        """Orders and pays a period."""
        answer = await self.pay(await self.order(code, member))
        assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED
        return answer.card

    async def told(self, member: str) -> list[str]:
        """What was announced of a member, in order."""
        query = "SELECT subject FROM outbox WHERE entity_key = $1 ORDER BY position"
        async with self.database.read() as connection:
            rows = await connection.fetch(query, member)
        return [str(row["subject"]).rpartition(".")[2] for row in rows]


def a_command(kind: type[Command], member: str, **fields: Any) -> Command:
    request_id = fields.pop("request_id", None) or fresh("request")
    by_event = fields.pop("by_event", False)
    return kind(
        member_id=member,
        request_id=request_id,
        payload_hash=hashlib.sha256(repr((kind, sorted(fields.items()))).encode()).digest(),
        actor="test",
        event=InboxKey(member, "cards", "source", request_id, "POINTS", 1) if by_event else None,
        **fields,
    )


@pytest.fixture
async def town(cards_url: str, tmp_path: Path) -> AsyncIterator[Town]:
    clock = TestClock.create(tmp_path / "clock", NOON)
    databases = [await Database.open(cards_url, size=2, name=f"shop {n}") for n in range(PROCESSES)]
    town = Town(databases[0], clock, [])
    town.shops = [Batches(each, clock, Products(), TERMS, lambda: town.made.append(1)) for each in databases]
    yield town
    for each in databases:
        await each.close()


def coffee(**more: Any) -> pb.Product:
    """A product of a family of its own, with a cup a day."""
    code = fresh("coffee")
    return product(
        benefit("tea", limit=1), code=code, family=code, period="P30D", price_minor=3000, points_price=300,
        refund_policy=LENIENT, freeze_policy=RESTS, gift_claim_days=10, **more,
    )  # fmt: skip


def outcomes(answers: Sequence[Any]) -> Counter[str]:
    """How often what came of it; a defect is raised."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, ServiceError):
            raise answer
    return Counter(each.reason if isinstance(each, ServiceError) else "DONE" for each in answers)


# --- races --------------------------------------------------------------------------------------------


async def test_a_thousand_take_the_five_hundred_that_there_are(town: Town) -> None:
    code = await town.put(coffee(sales_cap={"limit": 500, "window": "SALES_WINDOW_YEAR"}))
    takers = [fresh("taker") for _ in range(1000)]
    answers = await asyncio.gather(
        *(
            town.ask(PlaceOrder, taker, process=number % PROCESSES, product_code=code)
            for number, taker in enumerate(takers)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 500, SoldOut().reason: 500}
    async with town.database.read() as connection:
        held = await connection.fetch("SELECT number FROM sales_slots WHERE product_code = $1", code)
        ordered = await connection.fetchval("SELECT count(*) FROM orders WHERE product_code = $1", code)
        kept = await connection.fetchval("SELECT count(*) FROM members WHERE member_id = ANY($1)", takers)
    assert sorted(row["number"] for row in held) == list(range(1, 501))
    assert (ordered, kept) == (500, 500)


async def test_a_payment_told_by_fifty_callers_is_one_payment_and_one_answer(town: Town) -> None:
    member = fresh("member")
    order = await town.order(await town.put(coffee()), member)
    told = {"order_id": order.order_id, "channel": "wechat", "payment_id": fresh("pay")}
    payment = Payment(3000, "CNY", town.at)
    answers = await asyncio.gather(
        *(
            town.ask(ConfirmPayment, member, process=number % PROCESSES, **told, payment=payment)
            for number in range(50)
        )
    )
    assert len(set(answers)) == 1
    assert pb.ConfirmPaymentResponse.FromString(answers[0]).outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert await town.told(member) == ["CardOrdered", "CardActivated"]


async def test_of_members_who_are_told_to_have_made_one_payment_one_has(town: Town) -> None:
    members = [fresh("member") for _ in range(6)]
    code = await town.put(coffee())
    orders = [await town.order(code, member) for member in members]
    told = {"channel": "wechat", "payment_id": fresh("pay"), "payment": Payment(3000, "CNY", town.at)}
    answers = await asyncio.gather(
        *(
            town.ask(
                ConfirmPayment, order.member_id, process=number % PROCESSES, order_id=order.order_id, **told
            )
            for number, order in enumerate(orders)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 1, PaymentAlreadyTold().reason: 5}


async def test_a_gift_that_fifty_claim_is_claimed_by_one(town: Town) -> None:
    giver, takers = fresh("giver"), [fresh("taker") for _ in range(50)]
    code = await town.put(coffee())
    gift = pb.GiftCardResponse.FromString(await town.ask(GiftOrder, giver, product_code=code))
    await town.pay(gift.order)
    secret = codes.make(TERMS.gift_code_key, gift.order.order_id)
    answers = await asyncio.gather(
        *(
            town.ask(ActivateGift, taker, process=number % PROCESSES, code_hash=codes.hash_of(secret.lower()))
            for number, taker in enumerate(takers)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 1, GiftClaimed().reason: 49}


async def test_a_cup_a_day_is_had_once_by_a_hundred_orders(town: Town) -> None:
    member = fresh("member")
    await town.buy(await town.put(coffee()), member)
    answers = await asyncio.gather(
        *(
            town.ask(
                Redeem,
                member,
                process=number % PROCESSES,
                bill=basket(f"order-{number}", tea=1),
                expected_saved_minor=1200,
            )
            for number in range(100)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 1, "QUOTE_CHANGED": 99}


async def test_the_same_request_from_two_processes_is_done_once(town: Town) -> None:
    member, code = fresh("member"), await town.put(coffee())
    answers = await asyncio.gather(
        *(
            town.ask(PlaceOrder, member, process=n % PROCESSES, product_code=code, request_id="r")
            for n in range(20)
        )
    )
    assert len(set(answers)) == 1
    with pytest.raises(RequestIdReused):
        await town.ask(PlaceOrder, member, product_code=code, by_points=True, request_id="r")


# --- one after the other ------------------------------------------------------------------------------


async def test_a_card_lives_its_life_in_the_database(town: Town) -> None:
    member, code = fresh("member"), await town.put(coffee())
    card = await town.buy(code, member)
    await town.ask(Redeem, member, bill=basket("order", tea=1), expected_saved_minor=1200)
    await town.ask(ConfirmUses, member, order_id="order")
    await town.ask(FreezeCard, member, card_id=card.card_id, days=5)
    town.wait(days=10)
    order = await town.order(code, member, by_points=True)
    held: dict[str, Any] = {"order_id": order.order_id, "by_event": True}
    await town.ask(HoldPlaced, member, **held)
    await town.ask(HoldCaptured, member, **held, capture_time=town.at)
    async with town.database.read() as connection:
        kept, quoted = await service.quote_refund(
            connection, member, card.card_id, Products(), TERMS, at=town.at
        )
    answer = pb.RefundCardResponse.FromString(
        await town.ask(RefundCard, member, card_id=card.card_id, expected_minor=1300, expected_points=300)
    )
    assert kept.saved == {card.segments[0].segment_id: 1200}
    assert (answer.quote.refund_minor, answer.quote.refund_points) == (quoted.minor, quoted.points)
    assert (quoted.minor, quoted.points) == (2500 - 1200, 300)
    assert answer.card.status == pb.CARD_STATUS_REFUNDED
    assert await town.told(member) == [
        *("CardOrdered", "CardActivated", "BenefitUsed", "CardFrozen", "CardResumed", "CardOrdered"),
        *("CardOrderSettled", "CardActivated", "CardRefunded", "RefundDue"),
    ]


async def test_what_falls_due_is_found_and_posted_once(town: Town) -> None:
    member, code = fresh("member"), await town.put(coffee())
    gift = pb.GiftCardResponse.FromString(await town.ask(GiftOrder, member, product_code=code))
    await town.pay(gift.order)
    await town.buy(code, member)
    town.wait(days=40)
    async with town.database.read() as connection:
        assert member in await store.due_members(connection, town.at, 10_000)
        gifts = await store.unclaimed_gifts(connection, town.at, 10_000)
    assert gift.order.order_id in {claim.order_id for claim in gifts}
    for _ in range(2):
        await town.ask(Settle, member)
        await town.ask(ReturnGift, member, order_id=gift.order.order_id)
    assert (await town.told(member))[-3:] == ["CardExpiring", "CardExpired", "RefundDue"]
    async with town.database.read() as connection:
        assert member not in await store.due_members(connection, town.at, 10_000)


async def test_an_event_has_its_effect_once(town: Town) -> None:
    member, code = fresh("member"), await town.put(coffee())
    told = {"reward_id": fresh("reward"), "product_code": code, "by_event": True, "request_id": fresh("evt")}
    for process in (0, 1, 0):
        await town.ask(GrantReward, member, process=process, **told)
    assert await town.told(member) == ["CardActivated", "RewardFulfilled"]


async def test_a_refused_command_leaves_its_neighbours_alone(town: Town) -> None:
    members = [fresh("member") for _ in range(9)]
    code = await town.put(coffee())
    answers = await asyncio.gather(
        *(
            town.ask(PlaceOrder, member, product_code=code if number % 3 else "nothing")
            for number, member in enumerate(members)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 6, "PRODUCT_UNKNOWN": 3}


# --- reads --------------------------------------------------------------------------------------------


async def test_what_many_members_may_use_is_read_together(town: Town) -> None:
    code = await town.put(coffee())
    owners, others = [fresh("owner") for _ in range(5)], [fresh("other") for _ in range(5)]
    for owner in owners:
        await town.buy(code, owner)
    await town.ask(Redeem, owners[0], bill=basket("order", tea=1), expected_saved_minor=0)
    read = town.shops[1].entitlements
    found = await asyncio.gather(*(read.submit(Visit(member)) for member in (*owners, *others)))
    assert [[one.remaining for one in each] for each in found] == [[0], *[[1]] * 4, *[[]] * 5]
    later = await asyncio.gather(
        read.submit(Visit(owners[0], at=town.at + timedelta(days=1))),
        read.submit(Visit(owners[0], at=town.at + timedelta(days=30))),
        read.submit(Visit(owners[0], at=town.at + timedelta(minutes=30))),
    )
    assert [[one.remaining for one in each] for each in later] == [[1], [], [1]]


async def test_an_order_costs_what_it_is_redeemed_for_also_a_large_one(town: Town) -> None:
    member, code = fresh("member"), await town.put(coffee())
    await town.buy(code, member)
    bill = basket("large", tea=SMALL + 1, cake=SMALL)
    price = await town.shops[0].price(member, bill, None)
    answer = pb.RedeemBenefitsResponse.FromString(
        await town.ask(Redeem, member, bill=bill, expected_saved_minor=price.quote.saved)
    )
    assert answer.quote.saved_minor == price.quote.saved == 1200
    assert [one.benefit_code for one in answer.redemptions] == ["tea"]
    with pytest.raises(ServiceError) as refused:
        await town.ask(Redeem, member, bill=bill, expected_saved_minor=1200)
    assert refused.value.reason == "ORDER_ALREADY_REDEEMED"


async def test_nobody_elses_card_is_quoted(town: Town) -> None:
    card = await town.buy(await town.put(coffee()), fresh("member"))
    async with town.database.read() as connection:
        with pytest.raises(CardUnknown):
            await service.quote_refund(
                connection, fresh("other"), card.card_id, Products(), TERMS, at=town.at
            )


async def test_a_lapsed_reservation_no_longer_lowers_a_refund(town: Town) -> None:
    member, code = fresh("member"), await town.put(coffee())
    card = await town.buy(code, member)
    await town.ask(Redeem, member, bill=basket("order", tea=1), expected_saved_minor=0)
    for minutes, minor in ((0, 3000 - 1200), (30, 3000)):
        town.wait(minutes=minutes)
        async with town.database.read() as connection:
            _, quoted = await service.quote_refund(
                connection, member, card.card_id, Products(), TERMS, at=town.at
            )
        assert quoted.minor == minor
