"""Orders of periods, from their making to their end, and their places under a sales cap.

A place is held until the pay deadline, and for good once the order is paid or its points are being spent. An
order that was paid in time, though that is told later, has its own place if nobody took it, or a free one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial

from services.cards import events
from services.cards.domain.cards import LONGEST_CHAIN
from services.cards.domain.payments import (
    PAY_WITHIN,
    Demand,
    Order,
    OrderStatus,
    cancel,
    check_sale,
)
from services.cards.domain.places import Places
from services.cards.domain.products import Product
from services.cards.domain.wallet import KeptOrder, Slot
from services.cards.errors import ChainTooLong
from services.cards.rules import Compiled
from services.cards.steps import Step, WindowName
from services.chassis.due import Due
from services.chassis.ids import new_id

CARD_CHANGED = "CARD_CHANGED"  # why an upgrade ended whose card became another one

_OPEN = (OrderStatus.PENDING_PAYMENT, OrderStatus.SETTLING)


def price_of(step: Step, compiled: Compiled, *, by_points: bool) -> int:
    """What the member pays for a product, in points or minor units. Raises what `check_sale` raises."""
    product, wallet = compiled.product, step.wallet
    counting = (*_OPEN, OrderStatus.PAID)
    known = [kept for kept in wallet.orders.values() if kept.product_code == product.code]
    demand = Demand(
        eligible=compiled.sold_to(wallet.tier, wallet.facts),
        purchases=wallet.purchases.get(product.code, 0)
        + sum(kept.order.status_at(step.at) in counting for kept in known),
        sold=_places(step, (product.code, _window_key(step, product))).held if product.sales_cap else 0,
    )
    return check_sale(product, demand, by_points=by_points)


def check_room(step: Step, family: str) -> None:
    """Raises ChainTooLong where what runs, is queued or can still be paid fills the card of a family."""
    kept = step.card_of(family)
    live = len(kept.card.as_of(step.at, step.zone).live(step.at)) if kept else 0
    if live + len(open_orders(step, family)) >= LONGEST_CHAIN:
        raise ChainTooLong(limit=LONGEST_CHAIN)


def open_orders(step: Step, family: str) -> list[KeptOrder]:
    """The member's orders for the card of a family that can still be paid."""
    return [
        kept
        for kept in step.wallet.orders.values()
        if kept.family == family and not kept.gift and kept.order.status_at(step.at) in _OPEN
    ]


def open_order(
    step: Step,
    product: Product,
    amount: int,
    *,
    by_points: bool = False,
    credit: int = 0,
    upgrade_now: bool = False,
    renewal_id: str = "",
    gift: bool = False,
    pay_deadline: datetime | None = None,
) -> KeptOrder:
    """Makes an order to be paid, and announces it; that of a renewal is under no sales cap.

    `amount` and `credit` are in points or minor units. Without a deadline it is PAY_WITHIN from now on.
    """
    card = None if gift else step.card_of(product.family)
    capped = product.sales_cap is not None and not renewal_id
    kept = KeptOrder(
        order_id=new_id("ord"),
        order=Order(
            OrderStatus.PENDING_PAYMENT,
            pay_deadline or step.at + PAY_WITHIN,
            amount_minor=0 if by_points else amount,
            currency_code="" if by_points else product.currency_code,
            amount_points=amount if by_points else 0,
        ),
        product_code=product.code,
        product_version=product.version,
        family=product.family,
        create_time=step.at,
        upgrade_now=upgrade_now,
        credit=credit,
        card_id=card.card_id if card else "",
        renewal_id=renewal_id,
        gift=gift,
        window_key=_window_key(step, product) if capped else "",
        capped=capped,
    )
    if capped:
        take_slot(step, kept, firm=False)
    return step.announce(kept, events.card_ordered, kept)


def end(step: Step, kept: KeptOrder, order: Order) -> KeptOrder:
    """Keeps an order that ended without a card. What place it had is free again."""
    ended = replace(kept, order=order)
    step.keep(ended)
    _give_back(step, kept)
    return ended


def cancel_upgrades(step: Step, family: str, *, but: str = "") -> None:
    """Cancels the upgrades of a card that wait for their payment.

    What they replace has changed, and their price was made for what it was.
    """
    for kept in open_orders(step, family):
        if kept.upgrade_now and kept.order_id != but and kept.order.status is OrderStatus.PENDING_PAYMENT:
            end(step, kept, replace(cancel(kept.order, step.at), end_reason=CARD_CHANGED))


def upgrade_settles(step: Step, family: str) -> bool:
    """Whether points are being spent on an upgrade of a card, so that it has to stay as it is."""
    return any(
        kept.upgrade_now and kept.order.status is OrderStatus.SETTLING for kept in open_orders(step, family)
    )


# --- the sales cap ------------------------------------------------------------------------------------


def slot_left(step: Step, kept: KeptOrder) -> bool:
    """Whether an order has its place, or can have one."""
    return not kept.capped or _number(step, kept) is not None


def take_slot(step: Step, kept: KeptOrder, *, firm: bool) -> None:
    """Gives an order its place, or a free one; `firm` where it does not lapse. Where there is none, none."""
    number = _number(step, kept) if kept.capped else None
    if number is None:
        return
    _own_places(step, kept).take(number, kept.order_id)
    step.slots[kept.product_code, kept.window_key, number] = Slot(
        product_code=kept.product_code,
        window_key=kept.window_key,
        number=number,
        order_id=kept.order_id,
        pay_deadline=kept.order.pay_deadline,
        firm=firm,
    )


def _give_back(step: Step, kept: KeptOrder) -> None:
    window = (kept.product_code, kept.window_key)
    number = _places(step, window).of(kept.order_id) if kept.capped else None
    if number is not None:
        _own_places(step, kept).give_back(kept.order_id)
        step.slots[*window, number] = None


def _number(step: Step, kept: KeptOrder) -> int | None:
    """The place that an order has, or the lowest that is free."""
    places = _places(step, (kept.product_code, kept.window_key))
    cap = step.product(kept.product_code, kept.product_version).sales_cap
    return places.of(kept.order_id) or (places.free(cap[0]) if cap else None)


def _window_key(step: Step, product: Product) -> str:
    return product.sales_cap[1].key(step.at, step.zone) if product.sales_cap else ""


def _places(step: Step, window: WindowName) -> Places:
    """The places in a window, to be read."""
    shared = step.scene.places
    if window not in shared:
        slots = step.scene.seen.slots.values()
        mine = [slot for slot in slots if (slot.product_code, slot.window_key) == window]
        shared[window] = Places(mine, step.at)
    return step.places.get(window, shared[window])


def _own_places(step: Step, kept: KeptOrder) -> Places:
    """The places in an order's window, to be changed."""
    window = (kept.product_code, kept.window_key)
    if window not in step.places:
        step.places[window] = _places(step, window).copy()
    return step.places[window]


# --- by the clock -------------------------------------------------------------------------------------


def upcoming(step: Step) -> Iterator[Due]:
    """Orders that are not paid in time."""
    for kept in step.wallet.orders.values():
        if kept.order.status is OrderStatus.PENDING_PAYMENT:
            yield Due(kept.order.pay_deadline, partial(_expire, step, kept))


def _expire(step: Step, kept: KeptOrder, _: datetime) -> None:
    """Its place lapses by itself: it may still have been paid in time, and nobody may need it."""
    step.keep(replace(kept, order=replace(kept.order, status=OrderStatus.EXPIRED)))
