"""Wallets as Hypothesis makes them: anything that may be kept, and what may become of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from services.cards.domain.books import KeptWindow
from services.cards.domain.cards import Card, Ending, Rest, Segment
from services.cards.domain.payments import Order, OrderStatus, Payment, RefundReason
from services.cards.domain.periods import Anchor
from services.cards.domain.quotas import Use, UseStatus
from services.cards.domain.renewals import Renewal, RenewalStatus
from services.cards.domain.wallet import (
    Basket,
    Contract,
    KeptCard,
    KeptOrder,
    KeptPayment,
    KeptRenewal,
    KeptUse,
    Reward,
    UseEnding,
    Wallet,
)

MOST = 10**12
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
SOME = st.integers(1, 3)
AMOUNT = st.integers(0, MOST)
VERSION = st.integers(0, 2**62)
INSTANT = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
LOCAL = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001
LENGTH = st.timedeltas(timedelta(microseconds=1), timedelta(days=400))
WAIT = st.timedeltas(timedelta(0), timedelta(days=40))
FLAG = st.booleans()
COUNTS = st.dictionaries(TEXT, AMOUNT, max_size=3)
CONTRACT = st.builds(
    Contract, contract_id=TEXT, product_code=TEXT, sign_time=INSTANT, until=st.none() | INSTANT
)


def many(kind: str) -> st.SearchStrategy[list[str]]:
    """Ids of up to three things of a kind."""
    return st.integers(0, 3).map(lambda count: [f"{kind}_{number}" for number in range(count)])


@st.composite
def wallets(draw: st.DrawFn, member_id: str) -> Wallet:
    """A member with some of everything, as it may be kept."""
    uses = [draw(_use(name)) for name in draw(many("red"))]
    baskets = [draw(_basket(name)) for name in sorted({kept.order_id for kept in uses}) if draw(FLAG)]
    payments = [draw(_payment(name)) for name in draw(many("pay"))]
    told = draw(st.dictionaries(NAME, st.tuples(SOME, VERSION), max_size=3))
    wallet = Wallet(
        member_id,
        draw(TEXT),
        {name: draw(TEXT) for name in told if draw(FLAG)},
        told,
        draw(st.none() | INSTANT),
        cards={name: draw(_card(name)) for name in draw(many("card"))},
        orders={name: draw(_order(name)) for name in draw(many("ord"))},
        payments={kept.name: kept for kept in payments},
        uses={kept.redemption_id: kept for kept in uses},
        baskets={basket.order_id: basket for basket in baskets},
        renewals={name: draw(_renewal(name)) for name in draw(many("rnw"))},
        rewards={name: draw(_reward(name)) for name in draw(many("rew"))},
    )
    wallet.windows = {
        (kept.use.card_id, kept.use.benefit_code, kept.use.window_key): draw(_window())
        for kept in uses
        if kept.use.window_key
    }
    return wallet


@st.composite
def successors(draw: st.DrawFn, wallet: Wallet) -> Wallet:
    """What may become of a member: some records changed, some as they were, some new."""
    later = wallet.copy()
    later.tier = draw(TEXT)
    later.next_due_time = draw(st.none() | INSTANT)
    for name, change in _CHANGES.items():
        records = getattr(later, name)
        for key, record in records.items():
            if draw(FLAG):
                records[key] = draw(change(record))
    later.rewards |= {"rew_new": draw(_reward("rew_new"))}
    later.orders |= {"ord_new": draw(_order("ord_new"))}
    return later


# --- cards --------------------------------------------------------------------------------------------


@st.composite
def _card(draw: st.DrawFn, card_id: str) -> KeptCard:
    card = Card(card_id, draw(_chain(draw(INSTANT), card_id, 0)), draw(_rest()))
    sources = {segment.segment_id: draw(NAME) for segment in card.segments if draw(FLAG)}
    return draw(_kept_card(KeptCard(card=card, family=card_id, currency_code="CNY", sources=sources)))


@st.composite
def _kept_card(draw: st.DrawFn, kept: KeptCard) -> KeptCard:
    """What is kept beside the periods."""
    names = [segment.segment_id for segment in kept.card.segments]
    return replace(
        kept,
        currency_code=draw(TEXT),
        version=draw(VERSION),
        saved={name: draw(st.integers(1, MOST)) for name in names if draw(FLAG)},
        expiring_told=draw(st.none() | INSTANT),
        expired_told=draw(st.none() | INSTANT),
        contract=draw(st.none() | CONTRACT),
    )


@st.composite
def _rest(draw: st.DrawFn) -> Rest | None:
    start = draw(INSTANT)
    return Rest(start, start + draw(LENGTH)) if draw(FLAG) else None


@st.composite
def _chain(draw: st.DrawFn, start: datetime, card_id: str, first: int) -> tuple[Segment, ...]:
    """Periods one after the other, from `start` on, some with a gap, some that ended before their time."""
    segments = []
    for number in range(first, first + draw(st.integers(0, 3))):
        start += draw(WAIT)
        price, by_points = draw(AMOUNT), draw(FLAG)
        segment = Segment(
            segment_id=f"{card_id}_{number}",
            product_code=draw(TEXT),
            product_version=draw(VERSION),
            start=start,
            end=start + draw(LENGTH),
            anchor=Anchor(draw(LOCAL), draw(st.integers(0, 120))),
            days=draw(SOME),
            streak=draw(SOME),
            grace_days=draw(st.integers(0, 366)),
            paid_at=draw(INSTANT),
            freezes=draw(SOME),
            paid_minor=0 if by_points else price,
            paid_points=price if by_points else 0,
        )
        if draw(FLAG):
            ended = start + draw(st.timedeltas(timedelta(days=-2), timedelta(days=500)))
            segment = replace(segment, ended_at=ended, ending=draw(st.sampled_from(Ending)))
        segments.append(segment)
        start = max(start, segment.over)
    return tuple(segments)


@st.composite
def _later_card(draw: st.DrawFn, kept: KeptCard) -> KeptCard:
    """The chain moved as a whole, with further periods behind it."""
    by = draw(WAIT)
    moved = tuple(
        replace(
            segment,
            start=segment.start + by,
            end=segment.end + by,
            ended_at=None if segment.ended_at is None else segment.ended_at + by,
            anchor=Anchor(draw(LOCAL), draw(SOME)),
            freezes=segment.freezes + 1,
        )
        for segment in kept.card.segments
    )
    behind = max((segment.over for segment in moved), default=datetime(2030, 1, 1, tzinfo=UTC))
    more = draw(_chain(behind, kept.card_id, len(moved)))
    card = Card(kept.card_id, (*moved, *more), draw(_rest()))
    sources = {**kept.sources} | {segment.segment_id: "ord_later" for segment in more}
    return draw(_kept_card(replace(kept, card=card, sources=sources)))


# --- orders and payments ------------------------------------------------------------------------------


@st.composite
def _order(draw: st.DrawFn, order_id: str) -> KeptOrder:
    by_points = draw(FLAG)
    order = Order(
        OrderStatus.PENDING_PAYMENT,
        draw(INSTANT),
        amount_minor=0 if by_points else draw(AMOUNT),
        currency_code="" if by_points else "CNY",
        amount_points=draw(AMOUNT) if by_points else 0,
    )
    kept = KeptOrder(
        order_id=order_id,
        order=order,
        product_code=draw(TEXT),
        product_version=draw(VERSION),
        family=draw(TEXT),
        create_time=draw(INSTANT),
        upgrade_now=draw(FLAG),
        credit=draw(AMOUNT),
        renewal_id=draw(TEXT),
        gift=draw(FLAG),
    )
    return draw(_later_order(kept))


@st.composite
def _later_order(draw: st.DrawFn, kept: KeptOrder) -> KeptOrder:
    status = draw(st.sampled_from(OrderStatus))
    if status is OrderStatus.SETTLING and not kept.order.by_points:
        status = OrderStatus.PAID
    return replace(
        kept,
        order=replace(kept.order, status=status, end_reason=draw(TEXT)),
        card_id=draw(TEXT),
        window_key=draw(TEXT),
        capped=draw(FLAG),
        version=draw(VERSION),
    )


@st.composite
def _payment(draw: st.DrawFn, payment_id: str) -> KeptPayment:
    kept = KeptPayment(
        channel=draw(TEXT),
        payment_id=payment_id,
        order_id=draw(TEXT),
        payment=Payment(draw(st.integers(1, MOST)), draw(TEXT), draw(INSTANT)),
        applied=draw(FLAG),
        create_time=draw(INSTANT),
    )
    return draw(_later_payment(kept))


@st.composite
def _later_payment(draw: st.DrawFn, kept: KeptPayment) -> KeptPayment:
    due = not kept.applied or draw(FLAG)
    closed = draw(FLAG)
    return replace(
        kept,
        reason=draw(st.sampled_from(RefundReason)) if due else None,
        due=draw(st.integers(0, kept.payment.amount_minor)) if due else 0,
        due_time=draw(INSTANT) if due else None,
        refund_id=draw(NAME) if closed else "",
        closed=draw(INSTANT) if closed else None,
        version=draw(VERSION),
    )


# --- benefits -----------------------------------------------------------------------------------------


def _window() -> st.SearchStrategy[KeptWindow]:
    return st.tuples(AMOUNT, AMOUNT).map(lambda pair: KeptWindow(min(pair), max(pair)))


@st.composite
def _use(draw: st.DrawFn, redemption_id: str) -> KeptUse:
    use = Use(
        draw(TEXT),
        draw(TEXT),
        draw(TEXT),
        draw(TEXT),
        draw(SOME),
        draw(AMOUNT),
        UseStatus.RESERVED,
        draw(INSTANT),
    )
    kept = KeptUse(
        redemption_id=redemption_id,
        order_id=draw(TEXT),
        use=use,
        lines=draw(COUNTS),
        currency_code=draw(TEXT),
        create_time=draw(INSTANT),
    )
    return draw(_later_use(kept))


@st.composite
def _later_use(draw: st.DrawFn, kept: KeptUse) -> KeptUse:
    status = draw(st.sampled_from(UseStatus))
    ending = draw(st.sampled_from(UseEnding)) if status is UseStatus.REVERSED else None
    return replace(kept, use=replace(kept.use, status=status), ending=ending)


def _basket(order_id: str) -> st.SearchStrategy[Basket]:
    return st.builds(
        Basket,
        order_id=st.just(order_id),
        body_hash=st.binary(max_size=4),
        body=st.binary(max_size=4),
        pays=COUNTS,
        redemption_ids=st.lists(TEXT, max_size=3).map(tuple),
        refunds=st.dictionaries(TEXT, COUNTS, max_size=2),
        create_time=INSTANT,
    )


# --- renewals and rewards -----------------------------------------------------------------------------


@st.composite
def _renewal(draw: st.DrawFn, renewal_id: str) -> KeptRenewal:
    kept = KeptRenewal(
        renewal_id=renewal_id,
        renewal=Renewal(draw(INSTANT), draw(INSTANT), draw(INSTANT), draw(INSTANT), draw(AMOUNT)),
        card_id=f"of {renewal_id}",  # one of a card may be open
        segment_id=draw(TEXT),
        product_code=draw(TEXT),
        currency_code=draw(TEXT),
    )
    return draw(_later_renewal(kept))


@st.composite
def _later_renewal(draw: st.DrawFn, kept: KeptRenewal) -> KeptRenewal:
    closed = st.sampled_from([RenewalStatus.CHARGED, RenewalStatus.FAILED, RenewalStatus.CANCELLED])
    renewal = Renewal(
        draw(INSTANT),
        draw(INSTANT),
        draw(INSTANT),
        draw(INSTANT),
        draw(AMOUNT),
        draw(st.none() | INSTANT),
        draw(st.none() | closed),
    )
    return replace(
        kept,
        renewal=renewal,
        segment_id=draw(TEXT),
        order_id=draw(TEXT),
        medium=draw(TEXT),
        told=draw(FLAG),
    )


def _reward(reward_id: str) -> st.SearchStrategy[Reward]:
    return st.builds(
        Reward,
        reward_id=st.just(reward_id),
        card_id=NAME,
        segment_id=TEXT,
        clawed_back=FLAG,
        version=VERSION,
    )


_CHANGES: Mapping[str, Callable[[Any], st.SearchStrategy[Any]]] = {
    "cards": _later_card,
    "orders": _later_order,
    "payments": _later_payment,
    "uses": _later_use,
    "baskets": lambda basket: _basket(basket.order_id),
    "windows": lambda _window_now: _window(),
    "renewals": _later_renewal,
    "rewards": lambda reward: _reward(reward.reward_id),
}
