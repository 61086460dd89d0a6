"""The service on a real database: what is asked by many at once, from two processes, and asked again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import codes, service, store
from services.cards.batches import SMALL, Visit
from services.cards.commands import (
    ActivateGift,
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
    ReverseUses,
    Settle,
)
from services.cards.domain.payments import Payment
from services.cards.errors import CardUnknown, GiftClaimed, PaymentAlreadyTold, QuoteChanged, SoldOut
from services.cards.rules import Products
from services.chassis.database import Database
from services.chassis.errors import RequestIdReused, ServiceError
from tests.cards.branch import Branch, StandingClock, by_event
from tests.cards.shop import LENIENT, RESTS, TERMS
from tests.cards.till import basket, benefit, product
from tests.support import fresh

Branches = tuple[Branch, Branch]


@pytest.fixture
async def branches(cards_url: str) -> AsyncIterator[Branches]:
    """Two processes of the service on one database, in one time."""
    clock = StandingClock()
    databases = [await Database.open(cards_url, size=2, name=f"branch {number}") for number in range(2)]
    first, second = (Branch(database, clock) for database in databases)
    yield first, second
    for database in databases:
        await database.close()


@pytest.fixture
def branch(branches: Branches) -> Branch:
    """The first of them."""
    return branches[0]


@pytest.fixture
async def cup(branch: Branch) -> pb.Product:
    """What is sold to begin with: a product of a family of its own."""
    made = coffee()
    await branch.put(made)
    return made


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


async def test_a_thousand_take_the_five_hundred_that_there_are(branches: Branches) -> None:
    branch = branches[0]
    scarce = coffee(sales_cap={"limit": 500, "window": "SALES_WINDOW_YEAR"})
    await branch.put(scarce)
    takers = [fresh("taker") for _ in range(1000)]
    answers = await asyncio.gather(
        *(
            branches[number % 2].do(PlaceOrder, taker, product_code=scarce.code)
            for number, taker in enumerate(takers)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 500, SoldOut().reason: 500}
    async with branch.database.read() as connection:
        held = await connection.fetch("SELECT number FROM sales_slots WHERE product_code = $1", scarce.code)
        ordered = await connection.fetchval(
            "SELECT count(*) FROM orders WHERE product_code = $1", scarce.code
        )
        kept = await connection.fetchval("SELECT count(*) FROM members WHERE member_id = ANY($1)", takers)
    assert sorted(row["number"] for row in held) == list(range(1, 501))
    assert (ordered, kept) == (500, 500)


async def test_a_payment_told_by_fifty_callers_is_one_payment_and_one_answer(
    branches: Branches, cup: pb.Product
) -> None:
    branch, member = branches[0], fresh("member")
    order = await branch.order(member, cup)
    told = {"order_id": order.order_id, "channel": "wechat", "payment_id": fresh("pay")}
    payment = Payment(3000, "CNY", branch.clock.at)
    answers = await asyncio.gather(
        *(branches[number % 2].do(ConfirmPayment, member, **told, payment=payment) for number in range(50))
    )
    assert len(set(answers)) == 1
    assert pb.ConfirmPaymentResponse.FromString(answers[0]).outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert await branch.announced(member) == ["CardOrdered", "CardActivated"]


async def test_of_members_who_are_told_to_have_made_one_payment_one_has(
    branches: Branches, cup: pb.Product
) -> None:
    branch = branches[0]
    members = [fresh("member") for _ in range(6)]
    orders = [await branch.order(member, cup) for member in members]
    told = {"channel": "wechat", "payment_id": fresh("pay"), "payment": Payment(3000, "CNY", branch.clock.at)}
    answers = await asyncio.gather(
        *(
            branches[number % 2].do(ConfirmPayment, order.member_id, order_id=order.order_id, **told)
            for number, order in enumerate(orders)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 1, PaymentAlreadyTold().reason: 5}


async def test_a_gift_that_fifty_claim_is_claimed_by_one(branches: Branches, cup: pb.Product) -> None:
    branch = branches[0]
    giver, takers = fresh("giver"), [fresh("taker") for _ in range(50)]
    gift = pb.GiftCardResponse.FromString(await branch.do(GiftOrder, giver, product_code=cup.code))
    await branch.pay(gift.order)
    secret = codes.make(TERMS.gift_code_key, gift.order.order_id)
    answers = await asyncio.gather(
        *(
            branches[number % 2].do(ActivateGift, taker, code_hash=codes.hash_of(secret.lower()))
            for number, taker in enumerate(takers)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 1, GiftClaimed().reason: 49}


async def test_of_a_thousand_orders_one_has_the_days_cup_and_the_next_once_it_is_given_back(
    branches: Branches, cup: pb.Product
) -> None:
    member = fresh("member")
    await branches[0].buy(member, cup)
    for first, orders in ((0, 1000), (1000, 5)):
        names = [f"order-{number}" for number in range(first, first + orders)]
        answers = await asyncio.gather(
            *(
                branches[number % 2].do(Redeem, member, bill=basket(name, tea=1), expected_saved_minor=1200)
                for number, name in enumerate(names)
            ),
            return_exceptions=True,
        )
        assert outcomes(answers) == {"DONE": 1, "QUOTE_CHANGED": orders - 1}
        told = [answer.metadata["saved_minor"] for answer in answers if isinstance(answer, QuoteChanged)]
        assert set(told) == {"0"}
        (winner,) = [name for name, answer in zip(names, answers, strict=True) if isinstance(answer, bytes)]
        await branches[0].do(ReverseUses, member, order_id=winner)


async def test_the_same_request_from_two_processes_is_done_once(branches: Branches, cup: pb.Product) -> None:
    branch, member = branches[0], fresh("member")
    answers = await asyncio.gather(
        *(branches[n % 2].do(PlaceOrder, member, product_code=cup.code, request_id="r") for n in range(20))
    )
    assert len(set(answers)) == 1
    with pytest.raises(RequestIdReused):
        await branch.do(PlaceOrder, member, product_code=cup.code, by_points=True, request_id="r")


# --- one after the other ------------------------------------------------------------------------------


async def test_a_card_lives_its_life_in_the_database(branch: Branch, cup: pb.Product) -> None:
    member = fresh("member")
    card = await branch.buy(member, cup)
    await branch.do(Redeem, member, bill=basket("order", tea=1), expected_saved_minor=1200)
    await branch.do(ConfirmUses, member, order_id="order")
    await branch.do(FreezeCard, member, card_id=card.card_id, days=5)
    branch.wait(days=10)
    order = await branch.order(member, cup, by_points=True)
    await branch.do(HoldPlaced, member, order_id=order.order_id, **by_event(member))
    captured = {"order_id": order.order_id, "capture_time": branch.clock.at}
    await branch.do(HoldCaptured, member, **captured, **by_event(member))
    async with branch.database.read() as connection:
        kept, quoted = await service.quote_refund(
            connection, member, card.card_id, Products(), TERMS, at=branch.clock.at
        )
    answer = pb.RefundCardResponse.FromString(
        await branch.do(RefundCard, member, card_id=card.card_id, expected_minor=1300, expected_points=300)
    )
    assert kept.saved == {card.segments[0].segment_id: 1200}
    assert (answer.quote.refund_minor, answer.quote.refund_points) == (quoted.minor, quoted.points)
    assert (quoted.minor, quoted.points) == (2500 - 1200, 300)
    assert answer.card.status == pb.CARD_STATUS_REFUNDED
    assert await branch.announced(member) == [
        *("CardOrdered", "CardActivated", "BenefitUsed", "CardFrozen", "CardResumed", "CardOrdered"),
        *("CardOrderSettled", "CardActivated", "CardRefunded", "RefundDue"),
    ]


async def test_what_falls_due_is_found_and_posted_once(branch: Branch, cup: pb.Product) -> None:
    member = fresh("member")
    gift = pb.GiftCardResponse.FromString(await branch.do(GiftOrder, member, product_code=cup.code))
    await branch.pay(gift.order)
    await branch.buy(member, cup)
    branch.wait(days=40)
    async with branch.database.read() as connection:
        assert member in await store.due_members(connection, branch.clock.at, 10_000)
        gifts = await store.unclaimed_gifts(connection, branch.clock.at, 10_000)
    assert gift.order.order_id in {claim.order_id for claim in gifts}
    for _ in range(2):
        await branch.do(Settle, member)
        await branch.do(ReturnGift, member, order_id=gift.order.order_id)
    assert (await branch.announced(member))[-2:] == ["CardExpired", "RefundDue"]
    async with branch.database.read() as connection:
        assert member not in await store.due_members(connection, branch.clock.at, 10_000)


async def test_an_event_has_its_effect_once(branches: Branches, cup: pb.Product) -> None:
    member = fresh("member")
    told = {"reward_id": fresh("reward"), "product_code": cup.code, **by_event(member)}
    for process in (0, 1, 0):
        await branches[process].do(GrantReward, member, **told)
    assert await branches[0].announced(member) == ["CardActivated", "RewardFulfilled"]


async def test_a_refused_command_leaves_its_neighbours_alone(branch: Branch, cup: pb.Product) -> None:
    members = [fresh("member") for _ in range(9)]
    answers = await asyncio.gather(
        *(
            branch.do(PlaceOrder, member, product_code=cup.code if number % 3 else "nothing")
            for number, member in enumerate(members)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 6, "PRODUCT_UNKNOWN": 3}


# --- reads --------------------------------------------------------------------------------------------


async def test_what_many_members_may_use_is_read_together(branches: Branches, cup: pb.Product) -> None:
    branch, other = branches
    owners, others = [fresh("owner") for _ in range(5)], [fresh("other") for _ in range(5)]
    for owner in owners:
        await branch.buy(owner, cup)
    await branch.do(Redeem, owners[0], bill=basket("order", tea=1), expected_saved_minor=0)
    read = other.batches.entitlements
    found = await asyncio.gather(*(read.submit(Visit(member)) for member in (*owners, *others)))
    assert [[one.remaining for one in each] for each in found] == [[0], *[[1]] * 4, *[[]] * 5]
    later = await asyncio.gather(
        read.submit(Visit(owners[0], at=branch.clock.at + timedelta(days=1))),
        read.submit(Visit(owners[0], at=branch.clock.at + timedelta(days=30))),
        read.submit(Visit(owners[0], at=branch.clock.at + timedelta(minutes=30))),
    )
    assert [[one.remaining for one in each] for each in later] == [[1], [], [1]]


async def test_an_order_costs_what_it_is_redeemed_for_also_a_large_one(
    branch: Branch, cup: pb.Product
) -> None:
    member = fresh("member")
    await branch.buy(member, cup)
    bill = basket("large", tea=SMALL + 1, cake=SMALL)
    price = await branch.batches.price(member, bill, None)
    answer = pb.RedeemBenefitsResponse.FromString(
        await branch.do(Redeem, member, bill=bill, expected_saved_minor=price.quote.saved)
    )
    assert answer.quote.saved_minor == price.quote.saved == 1200
    assert [one.benefit_code for one in answer.redemptions] == ["tea"]
    with pytest.raises(ServiceError) as refused:
        await branch.do(Redeem, member, bill=bill, expected_saved_minor=1200)
    assert refused.value.reason == "ORDER_ALREADY_REDEEMED"


async def test_of_large_orders_at_once_one_has_the_days_cup(branches: Branches, cup: pb.Product) -> None:
    member = fresh("member")
    await branches[0].buy(member, cup)
    bills = [basket(f"large-{number}", tea=SMALL + 1, cake=SMALL) for number in range(20)]
    answers = await asyncio.gather(
        *(
            branches[number % 2].do(Redeem, member, bill=bill, expected_saved_minor=1200)
            for number, bill in enumerate(bills)
        ),
        return_exceptions=True,
    )
    assert outcomes(answers) == {"DONE": 1, "QUOTE_CHANGED": 19}


async def test_nobody_elses_card_is_quoted(branch: Branch, cup: pb.Product) -> None:
    card = await branch.buy(fresh("member"), cup)
    async with branch.database.read() as connection:
        with pytest.raises(CardUnknown):
            await service.quote_refund(
                connection, fresh("other"), card.card_id, Products(), TERMS, at=branch.clock.at
            )


async def test_a_lapsed_reservation_no_longer_lowers_a_refund(branch: Branch, cup: pb.Product) -> None:
    member = fresh("member")
    card = await branch.buy(member, cup)
    await branch.do(Redeem, member, bill=basket("order", tea=1), expected_saved_minor=0)
    for minutes, minor in ((0, 3000 - 1200), (30, 3000)):
        branch.wait(minutes=minutes)
        async with branch.database.read() as connection:
            _, quoted = await service.quote_refund(
                connection, member, card.card_id, Products(), TERMS, at=branch.clock.at
            )
        assert quoted.minor == minor
