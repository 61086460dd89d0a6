"""Use cases inside the caller's transaction; none commits.

A batch of commands is *lock, fold, save*: everything it may depend on is locked and read at once, each
command folds over that state in the order of arrival, and what changed is written with a statement per
table. A command that is refused leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from services.cards import chains, renewing, selling, store, using
from services.cards.commands import (
    ActivateGift,
    CancelOrder,
    ClawBack,
    Command,
    ConfirmPayment,
    ConfirmUses,
    GiftOrder,
    GrantReward,
    HoldCaptured,
    HoldEnded,
    HoldPlaced,
    OrderRefunded,
    PlaceOrder,
    RecordNotice,
    RecordRefundPaid,
    Redeem,
    RefundCard,
    ReturnGift,
    ReverseUses,
    SetAutoRenew,
)
from services.cards.domain.cards import Segment
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.refunds import RefundQuote
from services.cards.domain.wallet import KeptCard, Wallet
from services.cards.errors import CardUnknown, MemberUnknown
from services.cards.folding import Answer, Fold
from services.cards.rules import Bill, Compiled, Products
from services.cards.steps import Scene, Terms
from services.cards.store import Changes, Erased, Wanted
from services.cards.using import Price
from services.chassis.clock import wall
from services.chassis.database import Connection

Names = set[tuple[str, int]]
"""Products by code and version."""


async def post(
    connection: Connection,
    commands: Sequence[Command],
    products: Products,
    terms: Terms,
    at: datetime,
    *,
    in_thread: bool = False,
) -> tuple[list[Answer], int]:
    """Applies commands of any members in order of arrival, at business time `at`.

    Answers each with its serialized answer, its error, or None (an event, or the clock, waits for none), and
    says how many events went to the outbox. `in_thread` folds beside the event loop, which goes on.
    """
    latest = await _latest(connection, _codes(commands))
    compiled = await _compiled(connection, products, set(latest.items()))
    seen = await store.lock(connection, _wanted(commands, compiled, latest, terms, at), terms.zone)
    scene = Scene(seen, compiled, latest, terms, at)
    await _load_products(connection, products, scene, commands)
    fold = Fold(scene)

    def answer_all() -> list[Answer]:
        return [fold.answer(command) for command in commands]

    answers = await asyncio.to_thread(answer_all) if in_thread else answer_all()
    received = wall()
    await store.save(connection, fold.changes, received)
    await store.OUTBOX.add(connection, fold.announcements, received)
    return answers, len(fold.announcements)


# --- products -----------------------------------------------------------------------------------------


def _codes(commands: Sequence[Command]) -> set[str]:
    """The products that commands name: they are asked for in their latest version."""
    named = (c for c in commands if isinstance(c, PlaceOrder | GiftOrder | GrantReward | SetAutoRenew))
    return {command.product_code for command in named if command.product_code}


async def _latest(connection: Connection, codes: Collection[str]) -> dict[str, int]:
    """The latest version of each product; most batches ask for none."""
    return await store.product_heads(connection, codes) if codes else {}


async def _load_products(
    connection: Connection, products: Products, scene: Scene, commands: Sequence[Command]
) -> None:
    """Loads what the locked state needs: versions that periods, orders and gifts keep, what renewals buy."""
    seen = scene.seen
    codes = {code for wallet in seen.wallets.values() for code in renewing.products(wallet)}
    for command in commands:
        if isinstance(command, SetAutoRenew) and not command.product_code:
            running = _unfinished(seen.wallets[command.member_id], scene.at)
            codes |= {segment.product_code for segment in running}
    scene.latest = {**scene.latest, **await _latest(connection, codes - scene.latest.keys())}
    names = set(scene.latest.items()) | {(g.product_code, g.product_version) for g in seen.gifts.values()}
    for wallet in seen.wallets.values():
        names |= _names(wallet, scene.at)
    scene.compiled = await _compiled(connection, products, names)


def _names(wallet: Wallet, at: datetime) -> Names:
    """The versions that a member's periods and orders keep."""
    orders = {(kept.product_code, kept.product_version) for kept in wallet.orders.values()}
    return orders | {(one.product_code, one.product_version) for one in _unfinished(wallet, at)}


def _unfinished(wallet: Wallet, at: datetime) -> list[Segment]:
    """The periods that run or are queued, also those that were when a rest began."""
    return [
        segment
        for kept in wallet.cards.values()
        for segment in kept.card.live(kept.card.rest.start if kept.card.rest else at)
    ]


async def _compiled(
    connection: Connection, products: Products, names: Names
) -> Mapping[tuple[str, int], Compiled]:
    """Versions of products, each compiled at most once while it is remembered."""
    found = {name: products.get(*name) for name in names}
    missing = [name for name, compiled in found.items() if compiled is None]
    for row in await store.products(connection, missing) if missing else ():
        found[row["code"], row["version"]] = products.keep(row["body"])
    return {name: compiled for name, compiled in found.items() if compiled is not None}


# --- what a batch needs to see ------------------------------------------------------------------------


def _wanted(
    commands: Sequence[Command],
    compiled: Mapping[tuple[str, int], Compiled],
    latest: Mapping[str, int],
    terms: Terms,
    at: datetime,
) -> Wanted:
    wanted = Wanted(at)
    for command in commands:
        wanted.members.add(command.member_id)
        if command.event is None:
            wanted.requests.add((command.member_id, command.request_id))
        else:
            wanted.events.append(command.event)
        _want(wanted, command, command.member_id)
        if isinstance(command, PlaceOrder | GiftOrder):
            product = compiled.get((command.product_code, latest.get(command.product_code, 0)))
            if product is not None and product.product.sales_cap is not None:
                window = product.product.sales_cap[1].key(at, terms.zone)
                wanted.slots.add((command.product_code, window))
    return wanted


def _want(wanted: Wanted, command: Command, member: str) -> None:
    """What one command needs of its member besides its own request."""
    match command:
        case PlaceOrder(product_code=code) | GiftOrder(product_code=code):
            wanted.purchases.add((member, code))
        case ConfirmPayment(order_id=order):
            wanted.orders.add((member, order))
            wanted.payment_claims.add(command.payment_name)
            wanted.requests.add((member, selling.own_name(command)))
        case RecordRefundPaid(channel=channel, payment_id=payment):
            wanted.payments.add((member, channel, payment))
        case CancelOrder(order_id=order) | ReturnGift(order_id=order):
            wanted.orders.add((member, order))
        case HoldPlaced(order_id=order) | HoldEnded(order_id=order) | HoldCaptured(order_id=order):
            wanted.orders.add((member, order))
        case ActivateGift(code_hash=code_hash):
            wanted.gift_claims.add(code_hash)
        case RefundCard(card_id=card):
            wanted.paid_cards.add((member, card))
        case Redeem(bill=bill):
            wanted.baskets.add((member, bill.order_id))
        case ConfirmUses(order_id=order) | ReverseUses(order_id=order) | OrderRefunded(order_id=order):
            wanted.baskets.add((member, order))
        case RecordNotice(renewal_id=renewal):
            wanted.renewals.add((member, renewal))
        case GrantReward(reward_id=reward) | ClawBack(reward_id=reward):
            wanted.rewards.add((member, reward))


# --- reads that need rules ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """What decides about the benefits of members, as of an instant: their wallets by id, and products."""

    wallets: Mapping[str, Wallet]
    compiled: Mapping[tuple[str, int], Compiled]
    at: datetime
    zone: ZoneInfo

    def entitlements(self, member_id: str) -> list[Entitlement]:
        """What a member may use; nothing where nothing is known of it."""
        wallet = self._wallet(member_id)
        return using.entitlements(wallet, self.compiled, self.at, self.zone)

    def price(self, member_id: str, bill: Bill) -> Price:
        """The best price of an order. It may take a second: of a large one it is not for the event loop."""
        return using.price(self._wallet(member_id), bill, self.compiled, self.at, self.zone)

    def _wallet(self, member_id: str) -> Wallet:
        return self.wallets.get(member_id) or Wallet(member_id)


async def known(
    connection: Connection, member_ids: Iterable[str], products: Products, terms: Terms, at: datetime
) -> Known:
    """What members may use at an instant, unlocked."""
    wallets = await store.wallets(connection, set(member_ids), at, terms.zone)
    names: Names = set()
    for wallet in wallets.values():
        names |= _names(wallet, at)
    return Known(wallets, await _compiled(connection, products, names), at, terms.zone)


async def quote_refund(
    connection: Connection, member_id: str, card_id: str, products: Products, terms: Terms, *, at: datetime
) -> tuple[KeptCard, RefundQuote]:
    """A card, and what RefundCard would give back. Raises CardUnknown."""
    kept = await store.card(connection, member_id, card_id, at)
    if kept is None:
        raise CardUnknown(card_id=card_id)
    uses: Counter[str] = Counter()
    for saving in await store.savings(connection, member_id, card_id, at):
        uses[saving.segment_id] += saving.uses
    live = kept.card.as_of(at, terms.zone).live(at)
    names = {(one.product_code, one.product_version) for one in live}
    compiled = await _compiled(connection, products, names)
    return kept, chains.quote_refund(kept, uses, compiled, at, terms.zone)


async def erase(connection: Connection, member_id: str, terms: Terms, at: datetime) -> Erased:
    """Removes a member's baskets, first answers, facts and events. Raises MemberUnknown."""
    seen = await store.lock(connection, Wanted(at, {member_id}), terms.zone)
    erased = await store.erase(connection, member_id)
    if member_id in seen.made:
        if not (erased.events or erased.refused):
            raise MemberUnknown(member_id=member_id)
        await store.save(connection, Changes(seen, seen), wall())
    return erased
