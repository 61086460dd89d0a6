"""Reading without a lock: what members may use, cards, orders, payments, uses, what is due."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from services.cards import tables as t
from services.cards.domain.payments import OrderStatus
from services.cards.domain.quotas import UseStatus
from services.cards.domain.wallet import (
    GiftClaim,
    KeptCard,
    KeptOrder,
    KeptPayment,
    KeptRenewal,
    Wallet,
)
from services.cards.store.rows import (
    day_and_week,
    to_card,
    to_gift,
    to_order,
    to_payment,
    to_renewal,
    to_use,
    to_wallet,
    to_window,
)
from services.chassis.database import Connection, Row, Statement
from services.chassis.ids import bucket
from services.chassis.statements import (
    MEMBER,
    By,
    Gathered,
    Lookup,
    given_members,
    keyed,
    keys,
    of_member,
    one_of,
    unless_null,
)

_AT = sa.bindparam("at", type_=t.INSTANT)
_MOST = sa.bindparam("most", type_=sa.BigInteger)

_HELD = Gathered(t.cards)
_PERIODS = Gathered(t.segments)
_OPEN_WINDOWS = Gathered(t.quota_windows)
_RESERVED = Gathered(t.redemptions)


# --- what members may use -----------------------------------------------------------------------------


def _wallets_statement() -> Statement:
    """One statement, so that all of a member is of one instant."""
    given, mine = given_members()
    s, c = t.segments.c, t.cards.c
    cards = _HELD.where(mine(t.cards))
    live = (
        sa.select(*_PERIODS.columns)
        .join_from(t.segments, t.cards, sa.and_(*(s[name] == c[name] for name in (*MEMBER, "card_id"))))
        # While the card rests, its periods stand as they stood when the rest began.
        .where(mine(t.segments), sa.func.least(s.end_time, s.ended_time) > sa.func.least(_AT, c.rest_start))
        .lateral("live")
    )
    today = sa.bindparam("today", type_=sa.ARRAY(sa.Text))
    open_keys = sa.func.array_cat(today, live.c.segments_segment_id, type_=sa.ARRAY(sa.Text))
    windows = _OPEN_WINDOWS.where(mine(t.quota_windows), t.quota_windows.c.window_key == sa.any_(open_keys))
    reserved = _RESERVED.where(mine(t.redemptions), one_of(t.redemptions.c.status, UseStatus.RESERVED))
    return Statement(
        sa.select(t.members, cards, live, windows, reserved)
        .join_from(given, t.members, mine(t.members))
        .join(cards, sa.true())
        .join(live, sa.true())
        .join(windows, sa.true())
        .join(reserved, sa.true())
    )


_WALLETS = _wallets_statement()


async def wallets(
    connection: Connection, member_ids: Iterable[str], at: datetime, zone: ZoneInfo
) -> dict[str, Wallet]:
    """Members that are known, with what decides about their benefits, as of one instant, unlocked.

    That is: the cards with a period that is not over at `at`, and those periods alone; the windows that may
    be used then; and reservations, also those that have lapsed. Never to be saved.
    """
    found: dict[str, Wallet] = {}
    today = day_and_week(at, zone)
    for row in await _WALLETS.fetch_rows(connection, keys(member_ids), at=at, today=today):
        wallet = found[row["member_id"]] = to_wallet(row)
        segments: dict[str, list[dict[str, Any]]] = {}
        for segment in _PERIODS.rows(row):
            segments.setdefault(segment["card_id"], []).append(segment)
        for card in _HELD.rows(row):
            if card["card_id"] in segments:
                wallet.cards[card["card_id"]] = to_card(card, segments[card["card_id"]])
        wallet.windows.update(to_window(window) for window in _OPEN_WINDOWS.rows(row))
        wallet.uses.update((use["redemption_id"], to_use(use)) for use in _RESERVED.rows(row))
    return found


_MEMBER = Statement(sa.select(t.members).where(*of_member(t.members)))


async def member(connection: Connection, member_id: str) -> Wallet | None:
    """A member's tier and facts; None where nothing is kept about it."""
    row = await _MEMBER.fetch_one(connection, b=bucket(member_id), member=member_id)
    return None if row is None else to_wallet(row)


# --- cards and what they saved ------------------------------------------------------------------------


def _cards_statement() -> Statement:
    """Cards with their periods. What a reservation saved that has lapsed is saved no more."""
    s, c, r = t.segments.c, t.cards.c, t.redemptions.c
    lapsed = (
        sa.select(sa.cast(sa.func.coalesce(sa.func.sum(r.saved_minor), 0), sa.BigInteger))
        .where(*(r[name] == s[name] for name in (*MEMBER, "segment_id")))
        .where(one_of(r.status, UseStatus.RESERVED), r.lapse_time <= _AT)
        .scalar_subquery()
    )
    periods = (
        sa.select(*_PERIODS.columns, sa.func.array_agg(s.saved_minor - lapsed).label("segments_saved_now"))
        .where(*(s[name] == c[name] for name in (*MEMBER, "card_id")))
        .lateral("periods")
    )
    return Statement(
        sa.select(t.cards, periods)
        .join_from(t.cards, periods, sa.true())
        .where(
            *of_member(t.cards),
            unless_null("card", sa.Text, lambda card: c.card_id == card),
            unless_null("after", sa.Text, lambda after: c.family > after),
        )
        .order_by(c.family)
        .limit(_MOST)
    )


_CARDS = _cards_statement()


async def card(connection: Connection, member_id: str, card_id: str, at: datetime) -> KeptCard | None:
    """A card with all its periods; of what they saved, what still counts at `at`."""
    rows = await _card_rows(connection, member_id, at, card=card_id)
    return to_whole_card(rows[0]) if rows else None


async def card_page(
    connection: Connection, member_id: str, at: datetime, after: str | None, most: int
) -> list[Row]:
    """Cards as `to_whole_card` reads them, by `family`."""
    return await _card_rows(connection, member_id, at, after=after, most=most)


async def _card_rows(
    connection: Connection,
    member_id: str,
    at: datetime,
    *,
    card: str | None = None,
    after: str | None = None,
    most: int = 1,
) -> list[Row]:
    return await _CARDS.fetch(
        connection, b=bucket(member_id), member=member_id, at=at, card=card, after=after, most=most
    )


def to_whole_card(row: Row) -> KeptCard:
    """A card with all its periods, from a row of `card_page`."""
    saved = row["segments_saved_now"] or ()
    periods = _PERIODS.rows(row)
    return to_card(row, [period | {"saved_minor": now} for period, now in zip(periods, saved, strict=True)])


@dataclass(frozen=True, slots=True)
class Saving:
    """What a benefit saved in a period, in minor units."""

    segment_id: str
    benefit_code: str
    uses: int
    saved_minor: int


def _savings_statement() -> Statement:
    r = t.redemptions.c
    live = sa.or_(
        one_of(r.status, UseStatus.CONFIRMED),
        sa.and_(one_of(r.status, UseStatus.RESERVED), r.lapse_time > _AT),
    )
    sums = [sa.cast(sa.func.sum(r[name]), sa.BigInteger).label(name) for name in ("uses", "saved_minor")]
    return Statement(
        sa.select(r.segment_id, r.benefit_code, *sums)
        .where(*of_member(t.redemptions), r.card_id == sa.bindparam("card"), live)
        .group_by(r.segment_id, r.benefit_code)
        .order_by(r.segment_id, r.benefit_code)
    )


_SAVINGS = _savings_statement()


async def savings(connection: Connection, member_id: str, card_id: str, at: datetime) -> list[Saving]:
    """What the uses of a card that count at `at` saved, by period and benefit."""
    rows = await _SAVINGS.fetch(connection, b=bucket(member_id), member=member_id, card=card_id, at=at)
    return [Saving(row["segment_id"], row["benefit_code"], row["uses"], row["saved_minor"]) for row in rows]


# --- orders, payments, uses, renewals -----------------------------------------------------------------

_ORDER = Lookup(t.orders, named=By((*MEMBER, "order_id")))
_MEMBER_OF_ORDER = Statement(
    sa.select(t.orders.c.member_id).where(t.orders.c.order_id == sa.bindparam("order_id"))
)
_PAYMENTS_OF = Lookup(t.payments, order=By((*MEMBER, "order_id")))
_OPEN_RENEWALS = Lookup(t.renewals, open=By(MEMBER, t.renewals.c.outcome.is_(None)))
_CODE_HASH = Statement(sa.select(t.gifts.c.code_hash).where(t.gifts.c.order_id == sa.bindparam("order_id")))


def _newest_first(table: sa.Table, key: str) -> Statement:
    """Rows of a member; the keys begin with the time at which they were made."""
    column = table.c[key]
    return Statement(
        sa.select(table)
        .where(*of_member(table), unless_null("before", sa.Text, lambda before: column < before))
        .order_by(column.desc())
        .limit(_MOST)
    )


_ORDER_PAGE = _newest_first(t.orders, "order_id")
_REDEMPTION_PAGE = _newest_first(t.redemptions, "redemption_id")


def _payments_astray() -> Statement:
    p, o = t.payments.c, t.orders.c
    order = sa.select(o.order_id).where(*(p[name] == o[name] for name in (*MEMBER, "order_id")))
    return Statement(
        sa.select(t.payments)
        .where(*of_member(t.payments), ~order.exists())
        .order_by(p.create_time.desc(), p.channel, p.payment_id)
        .limit(_MOST)
    )


_PAYMENTS_ASTRAY = _payments_astray()


async def order(connection: Connection, member_id: str, order_id: str) -> KeptOrder | None:
    """A member's order, as it is kept."""
    rows = await _ORDER.fetch(connection, named=keyed([(member_id, order_id)]))
    return to_order(rows[0]) if rows else None


async def member_of_order(connection: Connection, order_id: str) -> str | None:
    """Whose an order is."""
    found: str | None = await _MEMBER_OF_ORDER.fetch_value(connection, order_id=order_id)
    return found


async def code_hash(connection: Connection, order_id: str) -> bytes | None:
    """What is kept of the claim code of an order, where it is that of a gift."""
    found: bytes | None = await _CODE_HASH.fetch_value(connection, order_id=order_id)
    return found


async def order_page(connection: Connection, member_id: str, before: str | None, most: int) -> list[Row]:
    """Orders as `to_order` reads them, newest first, by `order_id`."""
    return await _ORDER_PAGE.fetch(
        connection, b=bucket(member_id), member=member_id, before=before, most=most
    )


async def payments_of(connection: Connection, member_id: str, order_ids: Iterable[str]) -> list[KeptPayment]:
    """The payments that name one of these orders."""
    rows = await _PAYMENTS_OF.fetch(connection, order=keyed((member_id, name) for name in order_ids))
    return [to_payment(row) for row in rows]


async def payments_astray(connection: Connection, member_id: str, most: int) -> list[KeptPayment]:
    """The payments that name no order of the member, newest first."""
    rows = await _PAYMENTS_ASTRAY.fetch(connection, b=bucket(member_id), member=member_id, most=most)
    return [to_payment(row) for row in rows]


async def redemption_page(connection: Connection, member_id: str, before: str | None, most: int) -> list[Row]:
    """Uses as `to_use` reads them, newest first, by `redemption_id`."""
    return await _REDEMPTION_PAGE.fetch(
        connection, b=bucket(member_id), member=member_id, before=before, most=most
    )


async def open_renewals(connection: Connection, member_id: str) -> list[KeptRenewal]:
    """A member's renewals without an outcome, though their time may be over."""
    rows = await _OPEN_RENEWALS.fetch(connection, open=keys([member_id]))
    return [to_renewal(row) for row in rows]


# --- what the clock asks for --------------------------------------------------------------------------

_DUE_MEMBERS = Statement(
    sa.select(t.members.c.member_id)
    .where(t.members.c.next_due_time <= _AT)
    .order_by(t.members.c.next_due_time)
    .limit(_MOST)
)
_UNCLAIMED_GIFTS = Statement(
    sa.select(t.gifts)
    .where(t.gifts.c.paid, sa.not_(t.gifts.c.refunded), t.gifts.c.claimed_by == sa.literal_column("''"))
    .where(t.gifts.c.claim_until <= _AT)
    .order_by(t.gifts.c.claim_until)
    .limit(_MOST)
)


def _too_long(name: sa.ColumnElement[str], since: sa.ColumnElement[datetime], *such: Any) -> Statement:
    """The names of such as there have been since an instant, longest first, each with how many there are."""
    count = sa.func.count().over().label("count")
    waiting = sa.select(name.label("name"), count).where(*such, since <= _AT)
    return Statement(waiting.order_by(since, name).limit(_MOST))


_SETTLING = _too_long(
    t.orders.c.order_id, t.orders.c.pay_deadline, one_of(t.orders.c.status, OrderStatus.SETTLING)
)
_UNRETURNED = _too_long(
    t.payments.c.payment_id,
    t.payments.c.due_time,
    t.payments.c.due_time.is_not(None),
    t.payments.c.close_time.is_(None),
)


async def due_members(connection: Connection, at: datetime, most: int) -> list[str]:
    """Members for whom something fell due, longest ago first."""
    rows = await _DUE_MEMBERS.fetch(connection, at=at, most=most)
    return [row["member_id"] for row in rows]


async def unclaimed_gifts(connection: Connection, at: datetime, most: int) -> list[GiftClaim]:
    """Paid gifts that nobody claimed in time, longest ago first."""
    return [to_gift(row) for row in await _UNCLAIMED_GIFTS.fetch(connection, at=at, most=most)]


async def settling(connection: Connection, before: datetime, most: int) -> tuple[int, list[str]]:
    """How many orders settle whose pay deadline was by then, and the first of them."""
    return _counted(await _SETTLING.fetch(connection, at=before, most=most))


async def unreturned(connection: Connection, before: datetime, most: int) -> tuple[int, list[str]]:
    """How many payments have since then something due that was not paid back, and the first of them."""
    return _counted(await _UNRETURNED.fetch(connection, at=before, most=most))


def _counted(rows: list[Row]) -> tuple[int, list[str]]:
    return (rows[0]["count"] if rows else 0, [row["name"] for row in rows])
