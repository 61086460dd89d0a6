"""Using benefits: what an order costs with them, and the uses that are reserved, confirmed and given back.

A use counts in the window of the instant at which it was reserved, and in the savings of the period whose
benefit it is, until it is given back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from functools import partial
from zoneinfo import ZoneInfo

from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import events, messages, rules
from services.cards.commands import ConfirmUses, OrderRefunded, Redeem, ReverseUses, Solved
from services.cards.domain import quotas, search
from services.cards.domain.basket import Quote, Taken
from services.cards.domain.books import KeptWindow
from services.cards.domain.entitlements import Entitlement, Giver
from services.cards.domain.quotas import RESERVED_FOR, Use, UseStatus
from services.cards.domain.wallet import Basket, KeptCard, KeptUse, UseEnding, Wallet
from services.cards.errors import (
    OrderAlreadyRedeemed,
    QuoteChanged,
    RedemptionLapsed,
    RedemptionReversed,
    RedemptionUnknown,
)
from services.cards.rules import Bill, Compiled
from services.cards.steps import Step
from services.chassis.due import Due
from services.chassis.ids import new_id

Products = Mapping[tuple[str, int], Compiled]
"""By code and version: those of every period of the member that runs or is queued."""
WHOLE = ""  # among refunded lines: the order as a whole; among lines to pay: the delivery


# --- what an order costs ------------------------------------------------------------------------------


def entitlements(wallet: Wallet, products: Products, at: datetime, zone: ZoneInfo) -> list[Entitlement]:
    """What a member's cards give at an instant; reservations that have lapsed by then do not count."""
    givers = [_giver(kept, wallet, products, at, zone) for kept in wallet.cards.values()]
    return [given for giver in givers for given in giver.entitlements(at)]


def _giver(kept: KeptCard, wallet: Wallet, products: Products, at: datetime, zone: ZoneInfo) -> Giver:
    used = {
        name[1:]: quotas.used(
            window.used, [one.use for one in wallet.uses.values() if _window(one.use) == name], at
        )
        for name, window in wallet.windows.items()
        if name[0] == kept.card_id
    }
    kinds = {(one.product_code, one.product_version) for one in kept.card.segments}
    benefits = {name: products[name].product.benefits for name in kinds & products.keys()}
    return Giver(kept.card, benefits, used, zone)


@dataclass(frozen=True, slots=True)
class Price:
    """What an order costs, and what gives the benefits that lower it, by card and benefit."""

    solved: Solved
    given: Mapping[tuple[str, str], Entitlement]

    @property
    def quote(self) -> Quote:
        """What it costs."""
        return self.solved.quote


def price(
    wallet: Wallet,
    bill: Bill,
    products: Products,
    at: datetime,
    zone: ZoneInfo,
    *,
    known: Solved | None = None,
) -> Price:
    """The best price of an order: what QuoteOrder shows, and what RedeemBenefits takes.

    Only where the offers are other than those under which it is known, it is searched for.
    """
    given = entitlements(wallet, products, at, zone)
    offers = rules.offers(given, bill, products)
    if known is None or list(map(astuple, known.offers)) != list(map(astuple, offers)):
        known = Solved(offers, search.quote(bill.lines, bill.delivery_fee, offers))
    return Price(known, {(one.card_id, one.benefit.code): one for one in given})


# --- reserving ----------------------------------------------------------------------------------------


def redeem(step: Step, command: Redeem) -> pb.RedeemBenefitsResponse:
    """Reserves the uses that lower an order most. Raises OrderAlreadyRedeemed, QuoteChanged."""
    bill = command.bill
    known = step.wallet.baskets.get(bill.order_id)
    if known is not None and _live(step, known):
        raise OrderAlreadyRedeemed(order_id=bill.order_id)
    found = price(step.wallet, bill, step.scene.compiled, step.at, step.zone, known=command.solved)
    quote = found.quote
    if quote.saved < command.expected_saved_minor:
        raise QuoteChanged(expected_saved_minor=command.expected_saved_minor, saved_minor=quote.saved)
    kept = [_reserve(step, bill, quote, taken, found.given[taken.offer.name]) for taken in quote.taken]
    basket = Basket(
        order_id=bill.order_id,
        body_hash=bill.body_hash,
        body=bill.body,
        pays={WHOLE: quote.delivery_pay} | {line.line_id: line.pay for line in quote.lines},
        redemption_ids=tuple(one.redemption_id for one in kept),
        create_time=step.at,
    )
    step.keep(basket)
    return pb.RedeemBenefitsResponse(
        redemptions=_shown(step, kept), quote=messages.quote(quote, bill.currency_code)
    )


def _reserve(step: Step, bill: Bill, quote: Quote, taken: Taken, given: Entitlement) -> KeptUse:
    use = Use(
        given.card_id,
        given.segment_id,
        given.benefit.code,
        given.window_key,
        taken.uses,
        taken.saved,
        UseStatus.RESERVED,
        step.at + RESERVED_FOR,
    )
    kept = KeptUse(
        redemption_id=new_id("red"),
        order_id=bill.order_id,
        use=use,
        lines={
            line.line_id: one.quantity
            for line in quote.lines
            for one in line.uses
            if one.offer is taken.offer
        },
        currency_code=bill.currency_code,
        create_time=step.at,
    )
    step.keep(kept)
    if given.benefit.quota is not None:
        window = step.wallet.windows.get(_window(use), KeptWindow(0, 0))
        step.wallet.windows[_window(use)] = KeptWindow(window.used + use.uses, given.benefit.quota.limit)
    _save(step, use, use.saved_minor)
    return kept


# --- confirming and giving back -----------------------------------------------------------------------


def confirm(step: Step, command: ConfirmUses) -> pb.ConfirmRedemptionsResponse:
    """Makes an order's uses final. Raises RedemptionUnknown, RedemptionLapsed, RedemptionReversed."""
    basket = _basket(step, command.order_id)
    live = _live(step, basket)
    if basket.redemption_ids and not live:
        endings = {step.wallet.uses[name].ending for name in basket.redemption_ids}
        refusal = RedemptionLapsed if UseEnding.LAPSED in endings else RedemptionReversed
        raise refusal(order_id=command.order_id)
    final = [_confirm(step, kept) if kept.use.status is UseStatus.RESERVED else kept for kept in live]
    return pb.ConfirmRedemptionsResponse(redemptions=_shown(step, final))


def _confirm(step: Step, kept: KeptUse) -> KeptUse:
    use = replace(kept.use, status=UseStatus.CONFIRMED)
    final = replace(kept, use=use)
    step.keep(final)
    card = step.card(use.card_id)
    given = _giver(card, step.wallet, step.scene.compiled, step.at, step.zone).whenever(step.at)
    left = next((one for one in given if one.benefit.code == use.benefit_code), None)
    step.announce(card, events.benefit_used, (final, _product_code(card, use), left))
    return final


def reverse(step: Step, command: ReverseUses) -> pb.ReverseRedemptionsResponse:
    """Gives an order's uses back. Raises RedemptionUnknown."""
    basket = _basket(step, command.order_id)
    for kept in _live(step, basket):
        _give_back(step, kept, UseEnding.CANCELLED)
    uses = [step.wallet.uses[name] for name in basket.redemption_ids]
    return pb.ReverseRedemptionsResponse(redemptions=_shown(step, uses))


def refunded(step: Step, command: OrderRefunded) -> None:
    """Gives back the uses whose lines were refunded whole, by this refund and those before it.

    Refunds name amounts, not pieces; so a line is refunded whole once that comes to what was to be paid for
    it. An order that no benefit was asked for, or that was refunded before its basket came, is no matter.
    """
    basket = step.wallet.baskets.get(command.order_id)
    if basket is None or command.refund_id in basket.refunds:
        return
    amounts = {WHOLE: command.amount_minor} if command.amount_minor else dict(command.lines)
    basket = replace(basket, refunds={**basket.refunds, command.refund_id: amounts})
    step.keep(basket)
    whole = command.all_left or _nothing_left(basket)
    lines = _refunded_lines(basket)
    for kept in _live(step, basket):
        if whole or (kept.lines and lines.issuperset(kept.lines)):
            _give_back(step, kept, UseEnding.REFUNDED)


def _nothing_left(basket: Basket) -> bool:
    total = sum(basket.pays.values())
    return 0 < total <= sum(sum(amounts.values()) for amounts in basket.refunds.values())


def _refunded_lines(basket: Basket) -> set[str]:
    """The lines that were refunded whole."""
    summed: Counter[str] = Counter()
    for amounts in basket.refunds.values():
        summed.update(amounts)
    return {
        line_id for line_id, amount in summed.items() if line_id and amount >= basket.pays.get(line_id, 0)
    }


def _give_back(step: Step, kept: KeptUse, ending: UseEnding) -> None:
    """Gives a use back to the window that it came from; that of a reserved one is nobody's business."""
    use = kept.use
    given_back = replace(kept, use=replace(use, status=UseStatus.REVERSED), ending=ending)
    step.keep(given_back)
    if use.window_key:
        window = step.wallet.windows[_window(use)]
        step.wallet.windows[_window(use)] = replace(window, used=window.used - use.uses)
    _save(step, use, -use.saved_minor)
    if use.status is UseStatus.CONFIRMED:
        card = step.card(use.card_id)
        step.announce(card, events.benefit_reversed, (given_back, _product_code(card, use), ending))


# --- by the clock -------------------------------------------------------------------------------------


def upcoming(step: Step) -> Iterator[Due]:
    """Reservations that lapse."""
    for kept in step.wallet.uses.values():
        if kept.use.status is UseStatus.RESERVED:
            yield Due(kept.use.lapse_time, partial(_lapse, step, kept))


def _lapse(step: Step, kept: KeptUse, _: datetime) -> None:
    _give_back(step, kept, UseEnding.LAPSED)


# --- what they share ----------------------------------------------------------------------------------


def _basket(step: Step, order_id: str) -> Basket:
    basket = step.wallet.baskets.get(order_id)
    if basket is None:
        raise RedemptionUnknown(order_id=order_id)
    return basket


def _live(step: Step, basket: Basket) -> list[KeptUse]:
    """The uses of an order that count."""
    uses = [step.wallet.uses[name] for name in basket.redemption_ids]
    return [kept for kept in uses if kept.use.live(step.at)]


def _shown(step: Step, uses: Sequence[KeptUse]) -> list[pb.Redemption]:
    return [messages.redemption(kept, step.at) for kept in uses]


def _window(use: Use) -> tuple[str, str, str]:
    return (use.card_id, use.benefit_code, use.window_key)


def _save(step: Step, use: Use, amount: int) -> None:
    """Counts what a use saves, or saves no more, in its period."""
    kept = step.card(use.card_id)
    before = kept.saved.get(use.segment_id, 0)
    step.keep(replace(kept, saved={**kept.saved, use.segment_id: before + amount}))


def _product_code(kept: KeptCard, use: Use) -> str:
    return next(one.product_code for one in kept.card.segments if one.segment_id == use.segment_id)
