"""What is saved is what is found again, under the locks and without them, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.cards import store
from services.cards.domain.books import KeptWindow
from services.cards.domain.cards import Card, Ending, Rest, Segment
from services.cards.domain.payments import Order, OrderStatus, Payment
from services.cards.domain.periods import Anchor
from services.cards.domain.quotas import Use, UseStatus
from services.cards.domain.renewals import Renewal, RenewalStatus
from services.cards.domain.wallet import (
    Basket,
    GiftClaim,
    KeptCard,
    KeptOrder,
    KeptPayment,
    KeptRenewal,
    KeptUse,
    PaymentClaim,
    Slot,
    UseEnding,
    Wallet,
)
from services.cards.errors import MemberUnknown
from services.cards.store import Changes, Seen, Wanted
from services.chassis.answers import Answered, Done
from services.chassis.consumer import Delivery
from services.chassis.database import Connection, Database
from services.chassis.inbox import InboxKey
from tests.cards.wallets import INSTANT, successors, wallets
from tests.conftest import NOON
from tests.database import blocked, patiently
from tests.support import fresh
from tests.wire import Wire

ZONE = ZoneInfo("Asia/Shanghai")
DAY = timedelta(days=1)


# --- helpers ------------------------------------------------------------------------------------------


def everything(wallet: Wallet) -> Wanted:
    """All that a wallet holds, by name."""
    member = wallet.member_id
    return Wanted(
        NOON,
        members={member},
        orders={(member, name) for name in wallet.orders},
        baskets={(member, kept.order_id) for kept in wallet.uses.values()},
        payments={(member, *name) for name in wallet.payments},
        renewals={(member, name) for name in wallet.renewals},
        rewards={(member, name) for name in wallet.rewards},
    )


async def write(connection: Connection, seen: Seen, *later: Wallet, **more: Any) -> None:
    """Saves what members have become."""
    after = replace(seen, wallets=seen.wallets | {wallet.member_id: wallet for wallet in later}, **more)
    await store.save(connection, Changes(seen, after), NOON)


async def keep(database: Database, *later: Wallet, **more: Any) -> None:
    """Makes members that have all this, in a transaction of its own."""
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={w.member_id for w in later}), ZONE)
        await write(connection, seen, *later, **more)


async def see(database: Database, wanted: Wanted) -> Seen:
    """What a batch would see."""
    async with database.begin() as connection:
        return await store.lock(connection, wanted, ZONE)


async def kept_about(database: Database, member: str) -> bool:
    """Whether there is such a member."""
    async with database.read() as connection:
        return await store.member(connection, member) is not None


def segment(segment_id: str, start: datetime, days: int = 30, **more: Any) -> Segment:
    end = start + days * DAY
    anchor = Anchor.at(end, ZONE)
    return replace(Segment(segment_id, "plus", 1, start, end, anchor, days, 1, 0, start), **more)


def a_card(card_id: str, *segments: Segment, **more: Any) -> KeptCard:
    return KeptCard(card=Card(card_id, segments), family=card_id, currency_code="CNY", **more)


def an_order(order_id: str, **more: Any) -> KeptOrder:
    waiting = Order(OrderStatus.PENDING_PAYMENT, NOON + timedelta(minutes=15), 1900, "CNY")
    made = KeptOrder(
        order_id=order_id,
        order=waiting,
        product_code="plus",
        product_version=1,
        family="plus",
        create_time=NOON,
    )
    return replace(made, **more)


def paid(order: KeptOrder) -> KeptOrder:
    return replace(order, order=replace(order.order, status=OrderStatus.PAID))


def a_payment(payment_id: str, order_id: str) -> KeptPayment:
    told = Payment(1900, "CNY", NOON)
    return KeptPayment(
        channel="wechat",
        payment_id=payment_id,
        order_id=order_id,
        payment=told,
        applied=True,
        create_time=NOON,
    )


def a_use(redemption_id: str, card_id: str, segment_id: str, **more: Any) -> KeptUse:
    """A reserved use of today, which lapses half an hour past noon and saved 7 yuan."""
    ending = more.pop("ending", None)
    lapse = NOON + timedelta(minutes=30)
    use = Use(card_id, segment_id, "cup", "2026-06-15", 1, 700, UseStatus.RESERVED, lapse)
    return KeptUse(
        redemption_id=redemption_id,
        order_id=more.pop("order_id", "basket"),
        use=replace(use, **more),
        lines={"1": 1},
        currency_code="CNY",
        create_time=NOON,
        ending=ending,
    )


def a_renewal(renewal_id: str, card_id: str, outcome: RenewalStatus | None = None) -> KeptRenewal:
    return KeptRenewal(
        renewal_id=renewal_id,
        renewal=Renewal(NOON, NOON, NOON, NOON + DAY, 1900, outcome=outcome),
        card_id=card_id,
        segment_id="seg",
        product_code="plus",
        currency_code="CNY",
    )


def with_cards(member: str, *cards: KeptCard) -> Wallet:
    return Wallet(member, cards={kept.card_id: kept for kept in cards})


# --- saved and found ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """A loop for the tests that Hypothesis calls, which are no coroutines."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def steady(runner: asyncio.Runner, cards_url: str) -> Iterator[Database]:
    """A pool in that loop."""
    database = runner.run(Database.open(cards_url, size=2, name="steady"))
    yield database
    runner.run(database.close())


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_was_saved_is_found_again_and_so_is_what_became_of_it(
    runner: asyncio.Runner, steady: Database, data: st.DataObject
) -> None:
    wallet = data.draw(wallets(fresh("member")))
    later = data.draw(successors(wallet))
    runner.run(keep(steady, wallet))
    found = runner.run(see(steady, everything(wallet)))
    assert found.wallets == {wallet.member_id: wallet}
    runner.run(_rewrite(steady, wallet, later))
    found = runner.run(see(steady, everything(later)))
    assert found.wallets == {wallet.member_id: later}


async def _rewrite(database: Database, before: Wallet, later: Wallet) -> None:
    async with database.begin() as connection:
        seen = await store.lock(connection, everything(before), ZONE)
        await write(connection, seen, later)


async def test_what_did_not_change_is_not_written(database: Database) -> None:
    member = fresh("member")
    first, second = a_card("card_a", segment("seg_a", NOON)), a_card("card_b", segment("seg_b", NOON))
    await keep(database, with_cards(member, first, second))
    query = "SELECT card_id, xmin::text FROM cards WHERE member_id = $1 ORDER BY card_id"
    async with database.begin() as connection:
        before = dict(await connection.fetch(query, member))
        seen = await store.lock(connection, Wanted(NOON, members={member}), ZONE)
        later = seen.wallets[member].copy()
        later.cards["card_b"] = replace(later.cards["card_b"], version=1)
        await write(connection, seen, later)
        after = dict(await connection.fetch(query, member))
    assert (after["card_a"] == before["card_a"], after["card_b"] == before["card_b"]) == (True, False)


async def test_a_fact_that_was_to_change_is_a_defect(database: Database) -> None:
    member = fresh("member")
    told = a_payment(fresh("pay"), "ord")
    await keep(database, Wallet(member, payments={told.name: told}))
    more = replace(told, payment=replace(told.payment, amount_minor=2000))
    async with database.begin() as connection:
        wanted = Wanted(NOON, members={member}, payments={(member, *told.name)})
        seen = await store.lock(connection, wanted, ZONE)
        with pytest.raises(RuntimeError, match="a fact in payments"):
            await write(connection, seen, replace(seen.wallets[member], payments={told.name: more}))


async def test_a_renewal_gives_way_to_the_next_in_one_batch(database: Database) -> None:
    member = fresh("member")
    # The next one comes first by its name, and is saved after the one that it follows all the same.
    await keep(database, Wallet(member, renewals={"rnw_2": a_renewal("rnw_2", "card")}))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={member}), ZONE)
        charged = a_renewal("rnw_2", "card", RenewalStatus.CHARGED)
        following = a_renewal("rnw_1", "card")
        await write(
            connection,
            seen,
            replace(seen.wallets[member], renewals={"rnw_1": following, "rnw_2": charged}),
        )
    assert (await see(database, Wanted(NOON, members={member}))).wallets[member].renewals == {
        "rnw_1": following
    }


# --- members and locks --------------------------------------------------------------------------------


async def test_a_member_to_whom_nothing_came_is_dropped_again(database: Database) -> None:
    idle, asked, told, bought = (fresh("member") for _ in range(4))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={idle, asked, told, bought}), ZONE)
        assert seen.made == {idle, asked, told, bought}
        await write(
            connection,
            seen,
            with_cards(bought, a_card("card", segment("seg", NOON))),
            done=Done(
                new_answers={(asked, "request"): Answered(b"hash", b"answer")},
                new_events=[InboxKey(told, "cards", "points", "event", "POINTS", 1)],
            ),
        )
    assert [await kept_about(database, member) for member in (idle, asked, told, bought)] == [
        *(False, True, True, True)
    ]


async def test_a_member_that_is_known_stays_when_nothing_comes(database: Database) -> None:
    member = fresh("member")
    await keep(database, with_cards(member, a_card("card", segment("seg", NOON))))
    await keep(database, Wallet(member, tier="gold"))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={member}), ZONE)
        assert seen.made == set()
        await write(connection, seen)
    assert await kept_about(database, member)


async def waiting_see(database: Database, wanted: Wanted) -> Seen:
    """What a batch sees that may have to wait for another, for as long as a slow machine takes."""
    async with database.begin() as connection:
        await patiently(connection)
        return await store.lock(connection, wanted, ZONE)


async def test_a_member_that_another_transaction_makes_meanwhile_is_seen_as_it_is(database: Database) -> None:
    member = fresh("member")
    wallet = with_cards(member, a_card("card", segment("seg", NOON)))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={member}), ZONE)
        later = asyncio.create_task(waiting_see(database, Wanted(NOON, members={member})))
        await blocked(database, later)
        await write(connection, seen, wallet)
    found = await later
    assert (found.made, found.wallets) == (set(), {member: wallet})


async def test_of_two_who_claim_a_payment_the_second_sees_the_first(database: Database) -> None:
    first, second, name = fresh("member"), fresh("member"), ("wechat", fresh("pay"))
    claim = PaymentClaim(channel=name[0], payment_id=name[1], member_id=first, payload_hash=b"hash")
    async with database.begin() as connection:
        wanted = Wanted(NOON, members={first}, payment_claims={name})
        seen = await store.lock(connection, wanted, ZONE)
        assert seen.payment_claims == {}
        later = asyncio.create_task(
            waiting_see(database, Wanted(NOON, members={second}, payment_claims={name}))
        )
        await blocked(database, later)
        after = replace(seen, payment_claims={name: claim})
        await store.save(connection, Changes(seen, after), NOON)
    assert (await later).payment_claims == {name: claim}


async def test_batches_that_want_the_same_members_and_claims_never_wait_in_a_circle(
    database: Database,
) -> None:
    members = [fresh("member") for _ in range(6)]
    await keep(database, *(Wallet(member, tier="gold") for member in members))
    gifts, slots = [b"%d" % number for number in range(6)], [(fresh("plus"), "2026") for _ in range(6)]

    async def replica(shift: int) -> None:
        own = {*members[shift:], *members[:shift][:2]}
        wanted = Wanted(NOON, own, gift_claims={*gifts[shift:]}, slots={*slots[: shift + 3]})
        for _ in range(5):
            assert set((await waiting_see(database, wanted)).wallets) == own

    await asyncio.gather(*(replica(number) for number in range(4)))


# --- what a batch sees --------------------------------------------------------------------------------


async def test_first_answers_and_events_are_known_again(database: Database) -> None:
    member, other = fresh("member"), fresh("member")
    event = InboxKey(member, "cards", "points", fresh("event"), "POINTS", 7)
    answered = Answered(b"hash", b"answer")
    done = Done(new_answers={(member, "request"): answered}, new_events=[event])
    await keep(database, Wallet(member), done=done)
    asked = {(member, "request"), (member, "another"), (other, "request")}
    seen = await see(database, Wanted(NOON, {member, other}, requests=asked, events=[event]))
    assert seen.done == Done({(member, "request"): answered}, {tuple(event[:4])})


async def test_of_orders_those_that_can_be_paid_are_seen_and_those_that_are_asked_for(
    database: Database,
) -> None:
    member = fresh("member")
    settling = an_order("settling", order=Order(OrderStatus.SETTLING, NOON, amount_points=5))
    orders = [
        an_order("waiting"),
        settling,
        paid(an_order("asked for", renewal_id="rnw_1")),
        paid(an_order("of the card", card_id="card")),
        an_order("cancelled", card_id="card", order=Order(OrderStatus.CANCELLED, NOON, 1, "CNY")),
        paid(an_order("another")),
    ]
    payments = [a_payment(fresh("pay"), order.order_id) for order in orders]
    renewals = [
        a_renewal("rnw_1", "card", RenewalStatus.CHARGED),
        a_renewal("rnw_2", "card", RenewalStatus.FAILED),
    ]
    await keep(
        database,
        Wallet(
            member,
            orders={order.order_id: order for order in orders},
            payments={payment.name: payment for payment in payments},
            renewals={renewal.renewal_id: renewal for renewal in renewals},
        ),
    )
    wanted = Wanted(NOON, {member}, orders={(member, "asked for")}, paid_cards={(member, "card")})
    wallet = (await see(database, wanted)).wallets[member]
    assert set(wallet.orders) == {"waiting", "settling", "asked for", "of the card"}
    assert {payment.order_id for payment in wallet.payments.values()} == {"asked for", "of the card"}
    assert set(wallet.renewals) == {"rnw_1"}


async def test_of_uses_reservations_are_seen_and_those_of_baskets_that_are_asked_for(
    database: Database,
) -> None:
    member = fresh("member")
    confirmed = {"status": UseStatus.CONFIRMED}
    uses = [
        a_use("reserved", "card", "seg", order_id="one"),
        a_use("confirmed", "card", "seg", order_id="one", **confirmed),
        a_use("asked for", "card", "seg", order_id="two", **confirmed),
        a_use(
            "given back",
            *("card", "seg"),
            order_id="two",
            status=UseStatus.REVERSED,
            ending=UseEnding.LAPSED,
        ),
    ]
    baskets = [
        Basket(order_id=name, body_hash=b"", body=b"x", pays={}, create_time=NOON) for name in ("one", "two")
    ]
    await keep(
        database,
        Wallet(
            member,
            uses={use.redemption_id: use for use in uses},
            baskets={basket.order_id: basket for basket in baskets},
        ),
    )
    wallet = (await see(database, Wanted(NOON, {member}, baskets={(member, "two")}))).wallets[member]
    assert set(wallet.uses) == {"reserved", "asked for", "given back"}
    assert set(wallet.baskets) == {"two"}


async def test_windows_of_today_this_week_and_the_periods_that_are_not_over_are_seen(
    database: Database,
) -> None:
    member = fresh("member")
    card = a_card(
        "card",
        segment("over", NOON - 40 * DAY),
        segment("runs", NOON - 10 * DAY),
        segment("queued", NOON + 20 * DAY),
    )
    kept_ = KeptWindow(1, 2)
    # Noon is of a Monday; the last window is that of a use.
    keys = ["2026-06-14", "2026-06-15", "2026-06-16", "2026-W24", "2026-W25", "over", "runs", "queued"]
    used = a_use("red", "card", "over", window_key="2026-06-01")
    windows = {("card", "cup", key): kept_ for key in [*keys, "2026-06-01"]}
    wallet = replace(with_cards(member, card), windows=windows, uses={"red": used})
    await keep(database, wallet)
    found = (await see(database, Wanted(NOON, {member}))).wallets[member]
    expected = {"2026-06-15", "2026-W25", "runs", "queued", "2026-06-01"}
    assert found.windows == {("card", "cup", key): kept_ for key in expected}


async def test_of_a_card_that_rests_the_window_of_the_period_that_rests_is_seen(database: Database) -> None:
    member = fresh("member")
    rest = Rest(NOON - 20 * DAY, NOON + 10 * DAY)
    card = a_card("card", segment("rests", NOON - 40 * DAY))  # it would be over, did it not rest
    card = replace(card, card=replace(card.card, rest=rest))
    window = {("card", "cup", "rests"): KeptWindow(1, 2)}
    await keep(database, replace(with_cards(member, card), windows=window))
    assert (await see(database, Wanted(NOON, {member}))).wallets[member].windows == window
    async with database.read() as connection:
        found = await store.wallets(connection, [member], NOON, ZONE)
    assert (found[member].windows, found[member].cards) == (window, {"card": card})


async def test_paid_orders_of_a_product_are_counted_besides_those_that_are_seen(database: Database) -> None:
    member = fresh("member")
    orders = [paid(an_order(f"paid {number}")) for number in range(3)]
    orders += [an_order("waiting"), paid(an_order("another", product_code="coffee"))]
    await keep(database, Wallet(member, orders={order.order_id: order for order in orders}))
    wanted = Wanted(NOON, {member}, purchases={(member, "plus"), (member, "tea")})
    wallet = (await see(database, wanted)).wallets[member]
    assert wallet.purchases == {"plus": 3, "tea": 0}
    wallet = (await see(database, replace(wanted, orders={(member, "paid 1")}))).wallets[member]
    assert wallet.purchases == {"plus": 2, "tea": 0}


async def test_confirmed_uses_of_a_card_are_counted_besides_those_that_are_seen(database: Database) -> None:
    member = fresh("member")
    confirmed = {"status": UseStatus.CONFIRMED, "uses": 2}
    uses = [
        a_use("red_1", "card", "seg_1", order_id="one", **confirmed),
        a_use("red_2", "card", "seg_1", order_id="two", **confirmed),
        a_use("red_3", "card", "seg_2", order_id="two", **confirmed),
        a_use("red_4", "card", "seg_1", order_id="three"),
        a_use("red_5", "other", "seg_3", order_id="three", **confirmed),
    ]
    await keep(database, Wallet(member, uses={use.redemption_id: use for use in uses}))
    wanted = Wanted(NOON, {member}, paid_cards={(member, "card")})
    assert (await see(database, wanted)).wallets[member].confirmed == {"seg_1": 4, "seg_2": 2}
    found = (await see(database, replace(wanted, baskets={(member, "two")}))).wallets[member]
    assert found.confirmed == {"seg_1": 2, "seg_2": 0}


# --- claims -------------------------------------------------------------------------------------------


def a_gift(giver: str, order_id: str, code_hash: bytes) -> GiftClaim:
    return GiftClaim(
        code_hash=code_hash,
        giver_id=giver,
        order_id=order_id,
        product_code="plus",
        product_version=1,
        claim_until=NOON + 30 * DAY,
    )


async def test_a_gift_is_found_by_its_code_and_by_its_order(database: Database) -> None:
    giver, order_id = fresh("member"), fresh("ord")
    gift = a_gift(giver, order_id, order_id.encode())
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {giver}), ZONE)
        order = an_order(order_id, gift=True)
        bought = replace(seen.wallets[giver], orders={order_id: order})
        after = replace(seen, wallets={giver: bought}, gifts={gift.code_hash: gift})
        await store.save(connection, Changes(seen, after), NOON)
    by_code = Wanted(NOON, {fresh("member")}, gift_claims={gift.code_hash, b"nobody's"})
    by_order = Wanted(NOON, {giver}, gifts_of={order_id})
    by_the_order_itself = Wanted(NOON, {giver}, orders={(giver, order_id)})
    for wanted in (by_code, by_order, by_the_order_itself):
        assert (await see(database, wanted)).gifts == {gift.code_hash: gift}
    claimed = replace(gift, paid=True, claimed_by="somebody", claim_time=NOON)
    async with database.begin() as connection:
        seen = await store.lock(connection, by_code, ZONE)
        after = replace(seen, gifts={gift.code_hash: claimed})
        await store.save(connection, Changes(seen, after), NOON)
    assert (await see(database, by_order)).gifts == {gift.code_hash: claimed}
    async with database.read() as connection:
        assert await store.code_hash(connection, order_id) == gift.code_hash
        assert await store.code_hash(connection, fresh("ord")) is None


async def test_slots_are_taken_taken_over_and_given_back(database: Database) -> None:
    plus, window = fresh("plus"), "2026"

    def slots(*orders: str | None) -> dict[tuple[str, str, int], Slot]:
        return {
            (plus, window, number): Slot(
                product_code=plus,
                window_key=window,
                number=number,
                order_id=order_id,
                pay_deadline=NOON,
                firm=order_id.isupper(),
            )
            for number, order_id in enumerate(orders, 1)
            if order_id is not None
        }

    wanted = Wanted(NOON, slots={(plus, window)})
    for taken in (slots("a", "b", "C"), slots("D", None, "C"), slots("D", "e", "C", "f"), {}):
        async with database.begin() as connection:
            seen = await store.lock(connection, wanted, ZONE)
            await store.save(connection, Changes(seen, replace(seen, slots=taken)), NOON)
        assert (await see(database, wanted)).slots == taken


async def test_the_slots_of_an_order_that_is_not_paid_are_seen_unasked(database: Database) -> None:
    member, plus, gone = fresh("member"), fresh("plus"), fresh("gone")
    orders = [
        an_order("waiting", product_code=plus, capped=True, window_key="2026"),
        paid(an_order("paid", product_code=gone, capped=True, window_key="2026")),
    ]
    slots = {
        (code, "2026", 1): Slot(
            product_code=code, window_key="2026", number=1, order_id="o", pay_deadline=NOON
        )
        for code in (plus, gone)
    }
    async with database.begin() as connection:
        wanted = Wanted(NOON, {member}, slots={(plus, "2026"), (gone, "2026")})
        seen = await store.lock(connection, wanted, ZONE)
        wallet = Wallet(member, orders={order.order_id: order for order in orders})
        after = replace(seen, wallets={member: wallet}, slots=slots)
        await store.save(connection, Changes(seen, after), NOON)
    seen = await see(database, Wanted(NOON, {member}, orders={(member, "paid")}))
    assert set(seen.slots) == {(plus, "2026", 1)}


# --- what is read without locks -----------------------------------------------------------------------


async def test_what_many_members_may_use_is_one_statement_on_the_wire(
    database: Database, cards_url: str
) -> None:
    members = [fresh("member") for _ in range(20)]
    await keep(database, *(with_cards(m, a_card("card", segment("seg", NOON - DAY))) for m in members))
    wire = Wire(cards_url)
    async with wire.open() as far, far.read() as connection:
        await store.wallets(connection, members, NOON, ZONE)  # what is asked once per connection is asked
        before = wire.statements
        found = await store.wallets(connection, members, NOON, ZONE)
    assert wire.statements - before == 1
    assert len(found) == 20


async def test_what_members_may_use_is_what_is_kept_of_them(database: Database) -> None:
    member, other, nobody = fresh("member"), fresh("member"), fresh("member")
    runs, queued = segment("runs", NOON - 10 * DAY), segment("queued", NOON + 20 * DAY)
    over = segment("over", NOON - 40 * DAY)
    returned = segment("returned", NOON + 50 * DAY, ended_at=NOON - DAY, ending=Ending.REFUNDED)
    card = a_card("card", over, runs, queued, returned, saved={"runs": 700, "over": 500}, version=3)
    finished = a_card("finished", segment("done", NOON - 40 * DAY, 40))  # over at noon itself
    kept_ = KeptWindow(2, 5)
    windows = {
        (card_id, "cup", key): kept_
        for card_id in ("card", "finished")
        for key in ("2026-06-14", "2026-06-15", "2026-W25", "over", "runs", "queued")
    }
    uses = [
        a_use("reserved", "card", "runs"),
        a_use("lapsed", "card", "runs", lapse_time=NOON - DAY),
        a_use("confirmed", "card", "runs", status=UseStatus.CONFIRMED),
    ]
    wallet = Wallet(
        member,
        "gold",
        {"plus": "yes"},
        {"plus": (1, 7)},
        NOON,
        cards={"card": card, "finished": finished},
        orders={"ord": an_order("ord")},
        uses={use.redemption_id: use for use in uses},
        windows=windows,
    )
    await keep(database, wallet, Wallet(other, tier="silver"))
    async with database.read() as connection:
        found = await store.wallets(connection, [member, other, nobody], NOON, ZONE)
    expected = replace(
        wallet,
        cards={
            "card": replace(card, card=Card("card", (runs, queued)), saved={"runs": 700}),
        },
        orders={},
        uses={use.redemption_id: use for use in uses[:2]},
        windows={
            name: window
            for name, window in windows.items()
            if name[2] in ("2026-06-15", "2026-W25", "runs", "queued")
        },
    )
    assert found == {member: expected, other: Wallet(other, "silver")}


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_without_locks_a_card_is_what_it_is_under_them(
    runner: asyncio.Runner, steady: Database, data: st.DataObject
) -> None:
    wallet = data.draw(wallets(fresh("member")))
    at = data.draw(INSTANT)
    runner.run(keep(steady, wallet))
    found = runner.run(_wallet(steady, wallet.member_id, at))
    for card_id, kept in wallet.cards.items():
        present = kept.card.as_of(at, ZONE)
        seen = found.cards[card_id].card.as_of(at, ZONE) if card_id in found.cards else Card(card_id)
        assert seen.live(at) == present.live(at)
        assert seen.running(at, ZONE) == present.running(at, ZONE)
    whole = runner.run(_whole_cards(steady, wallet.member_id))
    assert whole == sorted(wallet.cards.values(), key=lambda kept: kept.family)


async def _wallet(database: Database, member: str, at: datetime) -> Wallet:
    async with database.read() as connection:
        found = await store.wallets(connection, [member], at, ZONE)
    return found.get(member) or Wallet(member)  # a member of whom nothing is kept is none


async def _whole_cards(database: Database, member: str) -> list[KeptCard]:
    """A member's cards, page by page of one; no reservation has lapsed yet."""
    at, after, found = datetime(1999, 1, 1, tzinfo=UTC), None, []
    async with database.read() as connection:
        while rows := await store.card_page(connection, member, at, after, 1):
            after = rows[-1]["family"]
            found += [store.to_whole_card(row) for row in rows]
            assert found[-1] == await store.card(connection, member, found[-1].card_id, at)
    return found


async def test_a_card_saved_nothing_by_reservations_that_have_lapsed(database: Database) -> None:
    member = fresh("member")
    periods = segment("seg_1", NOON - DAY), segment("seg_2", NOON + 29 * DAY)
    uses = [
        a_use("confirmed", "card", "seg_1", status=UseStatus.CONFIRMED, uses=2),
        a_use("reserved", "card", "seg_1", benefit_code="cake"),
        a_use("given back", "card", "seg_1", status=UseStatus.REVERSED, ending=UseEnding.CANCELLED),
        a_use("another's", "card of coffee", "seg_9", status=UseStatus.CONFIRMED),
    ]
    card = a_card("card", *periods, saved={"seg_1": 1400})
    wallet = replace(with_cards(member, card), uses={use.redemption_id: use for use in uses})
    await keep(database, wallet)
    cup, cake = store.Saving("seg_1", "cup", 2, 700), store.Saving("seg_1", "cake", 1, 700)
    lapse = NOON + timedelta(minutes=30)
    async with database.read() as connection:
        for at, saved, by_benefit in (
            (lapse - timedelta(microseconds=1), {"seg_1": 1400}, [cake, cup]),
            (lapse, {"seg_1": 700}, [cup]),
        ):
            found = await store.card(connection, member, "card", at)
            assert found == replace(card, saved=saved)
            assert await store.savings(connection, member, "card", at) == by_benefit
        assert await store.card(connection, member, "another", NOON) is None


async def test_orders_and_uses_are_read_page_by_page_and_payments_and_renewals_with_them(
    database: Database,
) -> None:
    member = fresh("member")
    numbers = range(5)
    orders = [an_order(fresh("ord") if number else f"ord_{member}") for number in numbers]
    payments = [a_payment(fresh("pay"), order.order_id) for order in orders]
    astray = [
        replace(a_payment(fresh("pay"), "unknown"), create_time=NOON - number * DAY) for number in range(3)
    ]
    uses = [a_use(f"red_{number}", "card", "seg", order_id=f"basket {-number}") for number in numbers]
    renewals = [a_renewal(f"rnw_{number}", "card", RenewalStatus.CHARGED) for number in numbers]
    renewals[3] = a_renewal("rnw_3", "card")
    await keep(
        database,
        Wallet(
            member,
            orders={order.order_id: order for order in orders},
            payments={payment.name: payment for payment in (*payments, *astray)},
            uses={use.redemption_id: use for use in uses},
            renewals={renewal.renewal_id: renewal for renewal in renewals},
        ),
    )
    async with database.read() as connection:

        async def pages(page: Any, key: Callable[[Any], Any]) -> list[Any]:
            """All pages of two, each one row more where there are more."""
            found: list[Any] = []
            last = None
            while rows := await page(connection, member, last, 2):
                found += rows
                last = key(rows[-1])
            return found

        found = await pages(store.order_page, lambda row: row["order_id"])
        newest_first = sorted(orders, key=lambda order: order.order_id, reverse=True)
        assert [store.to_order(row) for row in found] == newest_first
        found = await pages(store.redemption_page, lambda row: row["redemption_id"])
        assert [store.to_use(row) for row in found] == uses[::-1]
        assert await store.open_renewals(connection, member) == [renewals[3]]
        of_two = await store.payments_of(connection, member, [orders[1].order_id, orders[4].order_id])
        assert sorted(of_two, key=lambda one: one.name) == sorted(
            (payments[1], payments[4]), key=lambda one: one.name
        )
        assert await store.payments_astray(connection, member, 10) == astray
        assert await store.payments_astray(connection, member, 2) == astray[:2]
        assert await store.order(connection, member, orders[2].order_id) == orders[2]
        assert await store.order(connection, fresh("member"), orders[2].order_id) is None
        assert await store.member_of_order(connection, orders[0].order_id) == member
        assert await store.member_of_order(connection, fresh("ord")) is None


async def test_a_member_is_read_with_what_was_told_of_it(database: Database) -> None:
    member = fresh("member")
    told = Wallet(member, "gold", {"plus": "yes"}, {"plus": (1, 7), "left": (2, 1)}, NOON)
    await keep(database, replace(told, cards={"card": a_card("card", segment("seg", NOON))}))
    async with database.read() as connection:
        assert await store.member(connection, member) == told
        assert await store.member(connection, fresh("member")) is None


# --- what the clock asks for --------------------------------------------------------------------------

LONG_AGO = datetime(1980, 1, 1, tzinfo=UTC)  # before what other tests have fall due


async def test_members_for_whom_something_fell_due_are_found_longest_ago_first(database: Database) -> None:
    late, later, due, coming, idle = (fresh("member") for _ in range(5))
    times = {late: -9 * DAY, later: -5 * DAY, due: 0 * DAY, coming: DAY}
    made = [Wallet(member, next_due_time=LONG_AGO + time) for member, time in times.items()]
    await keep(database, *made, Wallet(idle, tier="gold"))
    async with database.read() as connection:
        assert await store.due_members(connection, LONG_AGO, 100) == [late, later, due]
        assert await store.due_members(connection, LONG_AGO, 2) == [late, later]


async def test_gifts_that_nobody_claimed_in_time_are_found(database: Database) -> None:
    giver = fresh("member")
    unclaimed = replace(a_gift(giver, fresh("ord"), fresh("code").encode()), paid=True, claim_until=LONG_AGO)
    changes: list[dict[str, Any]] = [
        {"paid": False},
        {"refunded": True},
        {"claimed_by": "somebody", "claim_time": LONG_AGO},
        {"claim_until": LONG_AGO + DAY},
    ]
    others = [
        replace(unclaimed, order_id=fresh("ord"), code_hash=fresh("code").encode(), **change)
        for change in changes
    ]
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON), ZONE)
        after = replace(seen, gifts={gift.code_hash: gift for gift in (unclaimed, *others)})
        await store.save(connection, Changes(seen, after), NOON)
    async with database.read() as connection:
        assert await store.unclaimed_gifts(connection, LONG_AGO, 100) == [unclaimed]


async def test_a_database_begins_with_its_first_epoch(database: Database) -> None:
    async with database.read() as connection:
        assert await store.epoch(connection) == 1


# --- products -----------------------------------------------------------------------------------------


async def put(database: Database, code: str, version: int, family: str, *, withdrawn: bool = False) -> None:
    async with database.begin() as connection:
        last = await store.lock_last_product(connection, code)
        assert (last["version"] if last else 0) == version - 1
        await store.add_product(
            connection,
            code=code,
            version=version,
            family=family,
            withdrawn=withdrawn,
            author="a test",
            create_time=NOON,
            body=f"{code} {version}".encode(),
        )


async def test_products_are_read_in_their_latest_version_or_the_one_that_is_named(database: Database) -> None:
    family = fresh("family")
    plus, gone, coffee = f"{family}-b", f"{family}-c", f"{family}-a"
    for code, version, withdrawn in (
        (plus, 1, True),
        (plus, 2, False),
        (gone, 1, False),
        (gone, 2, True),
        (coffee, 1, False),
    ):
        await put(database, code, version, family, withdrawn=withdrawn)

    def named(rows: Iterable[Any]) -> list[tuple[str, int]]:
        return [(row["code"], row["version"]) for row in rows]

    async with database.read() as connection:
        page = await store.product_page(connection, family, False, None, 10)
        assert named(page) == [(coffee, 1), (plus, 2)]
        assert named(await store.product_page(connection, family, True, None, 2)) == [(coffee, 1), (plus, 2)]
        assert named(await store.product_page(connection, family, True, plus, 2)) == [(gone, 2)]
        everything_ = await store.product_page(connection, None, True, None, 1000)
        assert {(coffee, 1), (plus, 2), (gone, 2)} <= set(named(everything_))
        heads = await store.product_heads(connection, [plus, coffee, fresh("none")])
        assert heads == {plus: 2, coffee: 1}
        assert await store.product_heads(connection, []) == {}
        latest, first = await store.product(connection, plus), await store.product(connection, plus, 1)
        assert latest is not None
        assert first is not None
        assert (latest["body"], first["body"]) == (f"{plus} 2".encode(), f"{plus} 1".encode())
        assert await store.product(connection, plus, 3) is None
        assert await store.product(connection, fresh("none")) is None
        assert set(named(await store.products(connection, [(plus, 1), (gone, 2), (gone, 3)]))) == {
            (plus, 1),
            (gone, 2),
        }


# --- erasure ------------------------------------------------------------------------------------------


async def test_of_an_erased_member_amounts_stay_and_what_it_bought_and_is_goes(database: Database) -> None:
    member, other = fresh("member"), fresh("member")

    def wallet(name: str) -> Wallet:
        basket = Basket(order_id="one", body_hash=b"hash", body=b"burgers", pays={"1": 5}, create_time=NOON)
        use = a_use("red", "card", "seg", order_id="one")
        card = a_card("card", segment("seg", NOON))
        made = Wallet(name, "gold", {"plus": "yes"}, {"plus": (1, 7), "left": (1, 8)})
        return replace(made, cards={"card": card}, uses={"red": use}, baskets={"one": basket})

    event = InboxKey(member, "cards", "points", fresh("event"), "POINTS", 11)
    answered = Answered(b"hash", b"an answer")
    for name in (member, other):
        await keep(
            database,
            wallet(name),
            done=Done(
                new_answers={(name, "request"): answered}, new_events=[event] if name == member else []
            ),
        )
    async with database.begin() as connection:
        await store.lock(connection, Wanted(NOON, {member}), ZONE)
        await bury(connection, member)
        assert await store.erase(connection, member) == store.Erased(1, 2, 0, 1)
    wanted = Wanted(
        NOON, {member, other}, requests={(member, "request"), (other, "request")}, baskets={(member, "one")}
    )
    wanted.baskets.add((other, "one"))
    seen = await see(database, wanted)
    assert seen.wallets[other] == wallet(other)
    before = wallet(member)
    blank = replace(before.baskets["one"], body=b"")
    assert seen.wallets[member] == replace(
        before, tier="", facts={}, fact_versions={}, baskets={"one": blank}
    )
    assert seen.done.answers == {
        (member, "request"): Answered(b"hash", None),
        (other, "request"): answered,
    }
    async with database.begin() as connection:
        erased = await connection.fetch(
            "SELECT stream_seq FROM stream_erasures WHERE event_id = ANY($1)",
            [event.event_id, f"of {member}"],
        )
        assert {row["stream_seq"] for row in erased} == {11, 12}
        assert await store.erase(connection, member) == store.Erased(0, 0, 0, 0)


async def bury(connection: Connection, member: str) -> None:
    """A dead letter about a member, which is the first field of its body."""
    body = b"\x0a" + bytes([len(member)]) + member.encode() + b"and more"
    letter = Delivery("points.v1.HoldPlaced", body, "points", f"of {member}", "", "POINTS", 12)
    await store.DEAD_LETTERS.bury(connection, "cards", letter, MemberUnknown(member_id=member))
