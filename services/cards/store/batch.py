"""Reading what a batch of commands sees under the locks, and writing what it did: a statement per table."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from services.cards import tables as t
from services.cards.domain.payments import OrderStatus
from services.cards.domain.quotas import UseStatus
from services.cards.domain.wallet import KeptOrder, Wallet
from services.cards.store.boxes import ANSWERS
from services.cards.store.rows import (
    basket_rows,
    card_rows,
    day_and_week,
    gift_rows,
    member_rows,
    order_rows,
    payment_rows,
    renewal_rows,
    reward_rows,
    segment_rows,
    slot_rows,
    to_basket,
    to_card,
    to_gift,
    to_order,
    to_payment,
    to_payment_claim,
    to_renewal,
    to_reward,
    to_slot,
    to_use,
    to_wallet,
    to_window,
    use_rows,
    window_rows,
)
from services.cards.store.wanted import Changes, Seen, Wanted
from services.chassis.answers import Named
from services.chassis.database import Connection, Insert, Row, Statement, rows_of
from services.chassis.members import Members
from services.chassis.statements import (
    MEMBER,
    By,
    Lookup,
    Upsert,
    dropping,
    keyed,
    keys,
    one_of,
    replaced,
)

# --- lock ---------------------------------------------------------------------------------------------


def _counted(table: sa.Table, by: str, group: str, amount: sa.ColumnElement[int], status: str) -> Statement:
    """What a member has of rows in a status, summed up by a column, for given values of one."""
    given = rows_of(bucket=sa.SmallInteger, member_id=sa.Text, key=sa.Text)
    c = table.c
    counted = (
        sa.select(c.member_id, c[group], sa.cast(sa.func.sum(amount), sa.BigInteger).label("amount"))
        .where(c.bucket == given.c.bucket, c.member_id == given.c.member_id, c[by] == given.c.key)
        .where(one_of(c.status, status))
        .group_by(c.member_id, c[group])
        .lateral()
    )
    return Statement(sa.select(counted).join_from(given, counted, sa.true()))


def _lock_claims() -> Statement:
    """The arrays' order is the order of the locks."""
    given = rows_of(name=sa.Text)
    return Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(given.c.name, 0))))


# A wallet, and what it holds, by the name of the collection.
_MEMBERS = Members(
    t.members,
    member_rows,
    (
        ("cards", t.cards, card_rows),
        ("cards", t.segments, segment_rows),
        ("orders", t.orders, order_rows),
        ("payments", t.payments, payment_rows),
        ("uses", t.redemptions, use_rows),
        ("baskets", t.baskets, basket_rows),
        ("windows", t.quota_windows, window_rows),
        ("renewals", t.renewals, renewal_rows),
        ("rewards", t.rewards, reward_rows),
    ),
    t.CHANGING,
)
_CARDS = Lookup(t.cards, all=By(MEMBER))
_SEGMENTS = Lookup(t.segments, all=By(MEMBER))
_ORDERS = Lookup(
    t.orders,
    open=By(MEMBER, one_of(t.orders.c.status, OrderStatus.PENDING_PAYMENT, OrderStatus.SETTLING)),
    named=By((*MEMBER, "order_id")),
    paid=By((*MEMBER, "card_id"), one_of(t.orders.c.status, OrderStatus.PAID)),
)
_PAYMENTS = Lookup(t.payments, named=By((*MEMBER, "channel", "payment_id")), order=By((*MEMBER, "order_id")))
_USES = Lookup(
    t.redemptions,
    reserved=By(MEMBER, one_of(t.redemptions.c.status, UseStatus.RESERVED)),
    order=By((*MEMBER, "order_id")),
)
_BASKETS = Lookup(t.baskets, named=By((*MEMBER, "order_id")))
_WINDOWS = Lookup(t.quota_windows, named=By((*MEMBER, "window_key")))
_RENEWALS = Lookup(
    t.renewals, open=By(MEMBER, t.renewals.c.outcome.is_(None)), named=By((*MEMBER, "renewal_id"))
)
_REWARDS = Lookup(t.rewards, named=By((*MEMBER, "reward_id")))
_PURCHASES = _counted(t.orders, "product_code", "product_code", sa.literal_column("1"), OrderStatus.PAID)
_CONFIRMED = _counted(t.redemptions, "card_id", "segment_id", t.redemptions.c.uses, UseStatus.CONFIRMED)
_LOCK_CLAIMS = _lock_claims()
_PAYMENT_CLAIMS = Lookup(t.payment_claims, named=By(("channel", "payment_id")))
_GIFTS = Lookup(t.gifts, named=By(("code_hash",)))
_GIFTS_OF = Lookup(t.gifts, order=By(("order_id",)))
_SLOTS = Lookup(t.sales_slots, window=By(("product_code", "window_key")))


async def lock(connection: Connection, wanted: Wanted, zone: ZoneInfo) -> Seen:
    """Locks the members in order, then the claims in order, and reads what the batch may depend on.

    Members are made if they are not there. `zone` is the programme's: it says what today is.
    """
    seen = Seen()
    rows, seen.made = await _MEMBERS.lock(connection, wanted.members)
    seen.wallets = {row["member_id"]: to_wallet(row) for row in rows}
    seen.done = await ANSWERS.read(connection, wanted.requests, wanted.events)
    known = keys(seen.wallets.keys() - seen.made)
    await _load_cards(connection, known, seen)
    await _load_orders(connection, wanted, known, seen)
    await _load_uses(connection, wanted, known, seen)
    await _load_windows(connection, wanted.at, zone, seen)
    for row in await _REWARDS.fetch(connection, named=keyed(wanted.rewards)):
        seen.wallets[row["member_id"]].rewards[row["reward_id"]] = to_reward(row)
    await _load_counts(connection, wanted, seen)
    await _lock_and_load_claims(connection, wanted, seen)
    return seen


async def _load_cards(connection: Connection, known: list[tuple[int, str]], seen: Seen) -> None:
    cards = await _CARDS.fetch(connection, all=known)
    segments: dict[Named, list[Row]] = {(row["member_id"], row["card_id"]): [] for row in cards}
    for row in await _SEGMENTS.fetch(connection, all=keys({row["member_id"] for row in cards})):
        segments[row["member_id"], row["card_id"]].append(row)
    for row in cards:
        name = (row["member_id"], row["card_id"])
        seen.wallets[row["member_id"]].cards[row["card_id"]] = to_card(row, segments[name])


async def _load_orders(
    connection: Connection, wanted: Wanted, known: list[tuple[int, str]], seen: Seen
) -> None:
    """Orders with what belongs to them: payments and renewals."""
    found = await _ORDERS.fetch(
        connection, open=known, named=keyed(wanted.orders), paid=keyed(wanted.paid_cards)
    )
    for row in found:
        seen.wallets[row["member_id"]].orders[row["order_id"]] = to_order(row)
    of_orders = set(wanted.orders)
    of_orders |= {
        (member_id, order.order_id)
        for member_id, wallet in seen.wallets.items()
        for order in wallet.orders.values()
        if (member_id, order.card_id) in wanted.paid_cards
    }
    for row in await _PAYMENTS.fetch(connection, named=keyed(wanted.payments), order=keyed(of_orders)):
        payment = to_payment(row)
        seen.wallets[row["member_id"]].payments[payment.name] = payment
    renewals = wanted.renewals | {
        (member_id, order.renewal_id) for member_id, order in _named_orders(wanted, seen) if order.renewal_id
    }
    for row in await _RENEWALS.fetch(connection, open=known, named=keyed(renewals)):
        seen.wallets[row["member_id"]].renewals[row["renewal_id"]] = to_renewal(row)


def _named_orders(wanted: Wanted, seen: Seen) -> list[tuple[str, KeptOrder]]:
    """The orders that are asked for, with their members, as far as there are such."""
    found = ((member_id, seen.wallets[member_id].orders.get(name)) for member_id, name in wanted.orders)
    return [(member_id, order) for member_id, order in found if order is not None]


async def _load_uses(
    connection: Connection, wanted: Wanted, known: list[tuple[int, str]], seen: Seen
) -> None:
    baskets = keyed(wanted.baskets)
    for row in await _USES.fetch(connection, reserved=known, order=baskets):
        seen.wallets[row["member_id"]].uses[row["redemption_id"]] = to_use(row)
    for row in await _BASKETS.fetch(connection, named=baskets):
        seen.wallets[row["member_id"]].baskets[row["order_id"]] = to_basket(row)


async def _load_windows(connection: Connection, at: datetime, zone: ZoneInfo, seen: Seen) -> None:
    """Windows of today, of this week, of live periods, and those that loaded uses are in."""
    names = {
        (member_id, key)
        for member_id, wallet in seen.wallets.items()
        for key in _window_keys(wallet, at, zone)
    }
    for row in await _WINDOWS.fetch(connection, named=keyed(names)):
        name, window = to_window(row)
        seen.wallets[row["member_id"]].windows[name] = window


def _window_keys(wallet: Wallet, at: datetime, zone: ZoneInfo) -> set[str]:
    cards = [kept.card.as_of(at, zone) for kept in wallet.cards.values()]
    live = {segment.segment_id for card in cards for segment in card.live(at)}
    used = {kept.use.window_key for kept in wallet.uses.values() if kept.use.window_key}
    # A card that is over may get a period in this very batch, and today stays used.
    return live | used | (set(day_and_week(at, zone)) if cards else set())


async def _load_counts(connection: Connection, wanted: Wanted, seen: Seen) -> None:
    """What there is besides what is loaded: paid orders of products, confirmed uses of periods."""
    for member_id, code in wanted.purchases:
        paid = [one for one in seen.wallets[member_id].orders.values() if one.product_code == code]
        loaded = sum(one.order.status is OrderStatus.PAID for one in paid)
        seen.wallets[member_id].purchases[code] = -loaded
    for row in await _PURCHASES.fetch_rows(connection, keyed(wanted.purchases)):
        seen.wallets[row["member_id"]].purchases[row["product_code"]] += row["amount"]
    for row in await _CONFIRMED.fetch_rows(connection, keyed(wanted.paid_cards)):
        wallet = seen.wallets[row["member_id"]]
        uses = [kept.use for kept in wallet.uses.values() if kept.use.segment_id == row["segment_id"]]
        loaded = sum(use.uses for use in uses if use.status is UseStatus.CONFIRMED)
        wallet.confirmed[row["segment_id"]] = row["amount"] - loaded


async def _lock_and_load_claims(connection: Connection, wanted: Wanted, seen: Seen) -> None:
    """Locks what members may dispute; a gift of an order is found by its order first, which never changes."""
    orders = [order for _, order in _named_orders(wanted, seen)]
    gifts_of = wanted.gifts_of | {order.order_id for order in orders if order.gift}
    found = await _GIFTS_OF.fetch(connection, order=[(order_id,) for order_id in gifts_of])
    gifts = wanted.gift_claims | {row["code_hash"] for row in found}
    unpaid = [
        order
        for wallet in seen.wallets.values()
        for order in wallet.orders.values()
        if order.capped and order.order.status is not OrderStatus.PAID
    ]
    slots = wanted.slots | {(order.product_code, order.window_key) for order in unpaid}
    names = [
        *("\x1f".join(("pay", *name)) for name in wanted.payment_claims),
        *(f"gift\x1f{code_hash.hex()}" for code_hash in gifts),
        *("\x1f".join(("sales", *name)) for name in slots),
    ]
    await _LOCK_CLAIMS.fetch_rows(connection, [(name,) for name in sorted(names)])
    for row in await _PAYMENT_CLAIMS.fetch(connection, named=wanted.payment_claims):
        claim = to_payment_claim(row)
        seen.payment_claims[claim.channel, claim.payment_id] = claim
    for row in await _GIFTS.fetch(connection, named=[(code_hash,) for code_hash in gifts]):
        seen.gifts[row["code_hash"]] = to_gift(row)
    for row in await _SLOTS.fetch(connection, window=slots):
        slot = to_slot(row)
        seen.slots[slot.product_code, slot.window_key, slot.number] = slot


# --- save ---------------------------------------------------------------------------------------------


_ADD_PAYMENT_CLAIMS = Insert(t.payment_claims)
_SAVE_GIFTS = Upsert(t.gifts, t.CHANGING["gifts"])
_SAVE_SLOTS = Upsert(t.sales_slots, t.CHANGING["sales_slots"])
_DROP_SLOTS = dropping(t.sales_slots)


async def save(connection: Connection, changes: Changes, received: datetime) -> None:
    """Writes what a batch did, a statement per table; `received` is wall time.

    Members who were made for the lock and to whom nothing came are dropped again.
    """
    before, after = changes.before, changes.after
    touched = await _MEMBERS.save(connection, before.wallets, after.wallets)
    touched |= await ANSWERS.write(connection, after.done, received)
    await _MEMBERS.drop(connection, before.made - touched)
    await _save_claims(connection, before, after)


async def _save_claims(connection: Connection, before: Seen, after: Seen) -> None:
    claims = [
        (claim.channel, claim.payment_id, claim.member_id, claim.payload_hash)
        for _, known, claim in replaced(before.payment_claims, after.payment_claims)
        if known is None
    ]
    await _ADD_PAYMENT_CLAIMS.rows(connection, claims)
    gifts = _SAVE_GIFTS.changed(
        (gift_rows(old) if old else (), gift_rows(new)) for _, old, new in replaced(before.gifts, after.gifts)
    )
    await _SAVE_GIFTS.write(connection, gifts)
    await _DROP_SLOTS.execute_rows(connection, sorted(before.slots.keys() - after.slots.keys()))
    slots = _SAVE_SLOTS.changed(
        (slot_rows(old) if old else (), slot_rows(new)) for _, old, new in replaced(before.slots, after.slots)
    )
    await _SAVE_SLOTS.write(connection, slots)
