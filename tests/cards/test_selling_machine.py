"""Whatever members do, in whatever order, and however late it is told: the books close.

Hypothesis drives the service's fold over three members who share a cap and give one another gifts. After each
command the shop's own checks hold, and what was due is told once. At the end a year passes, and the same is
told whether the clock was read every day or once.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.commands import (
    CancelAutoRenew,
    CancelOrder,
    ClawBack,
    ConfirmUses,
    GrantReward,
    HoldEnded,
    RecordNotice,
    Redeem,
    ReverseUses,
    SetAutoRenew,
    Settle,
)
from services.cards.domain.payments import OrderStatus
from services.cards.domain.wallet import KeptOrder
from services.chassis.errors import AlreadyExists, FailedPrecondition, NotFound
from tests.cards.shop import ANN, BEN, CEM, SHELF, Shop
from tests.cards.till import basket

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "60"))
STEPS = 40
MEMBERS = (ANN, BEN, CEM)
REFUSED = (FailedPrecondition, NotFound, AlreadyExists)
AHEAD = ("CardExpiring", "RenewalDue")

member = st.sampled_from(MEMBERS)
code = st.sampled_from([made.code for made in SHELF])
which = st.integers(0, 1000)
waits = st.sampled_from(
    [{"minutes": 1}, {"minutes": 15}, {"hours": 5}, {"days": 1}, {"days": 3}, {"days": 12}, {"days": 40}]
)


def chosen(things: Any, number: int) -> Any:
    """One of some things; None where there are none."""
    listed = list(things)
    return listed[number % len(listed)] if listed else None


class Buying(RuleBasedStateMachine):
    """Members who buy, give, use, rest, renew and give back."""

    def __init__(self) -> None:
        super().__init__()
        self.shop = self.open_shop()
        self.gifts: list[pb.GiftCardResponse] = []
        self.numbers = iter(range(10_000))

    def open_shop(self) -> Shop:
        """A shop in which nothing has happened yet."""
        return Shop()

    def do(self, work: Any, *arguments: Any, **fields: Any) -> Any:
        """Does something that may be refused; a refusal leaves nothing, as the shop checks."""
        try:
            return work(*arguments, **fields)
        except REFUSED:
            return None

    def some_order(self, who: str, number: int) -> pb.CardOrder | None:
        kept: KeptOrder | None = chosen(self.shop.wallet(who).orders.values(), number)
        if kept is None:
            return None
        return pb.CardOrder(
            order_id=kept.order_id,
            member_id=who,
            amount_minor=kept.order.amount_minor,
            currency_code=kept.order.currency_code,
        )

    def some_card(self, who: str, number: int) -> pb.Card | None:
        kept = chosen(self.shop.wallet(who).cards.values(), number)
        return kept and pb.Card(card_id=kept.card_id, member_id=who)

    # --- buying -----------------------------------------------------------------------------------------

    @rule(who=member, what=code, by_points=st.booleans(), upgrade=st.booleans(), pays=st.booleans())
    def orders(self, who: str, what: str, by_points: bool, upgrade: bool, pays: bool) -> None:
        order = self.do(self.shop.order, what, who, by_points=by_points, upgrade_now=upgrade)
        if order is not None and pays and order.status != pb.CARD_ORDER_STATUS_PAID:
            if by_points:
                self.shop.hold(order)
                self.shop.capture(order)
            else:
                assert self.shop.pay(order).outcome == pb.PAYMENT_OUTCOME_APPLIED

    @rule(who=member, number=which, late=st.booleans(), more=st.sampled_from([0, 0, 0, 1]))
    def pays(self, who: str, number: int, late: bool, more: int) -> None:
        order = self.some_order(who, number)
        if order is not None and order.amount_minor:
            paid = self.shop.kept_order(order).create_time if late else self.shop.at
            answer = self.shop.pay(order, amount=order.amount_minor + more, paid=paid)
            assert answer.outcome == pb.PAYMENT_OUTCOME_REFUND_DUE or not more

    @rule(who=member, number=which, how=st.sampled_from(["hold", "capture", "end", "cancel"]))
    def goes_on(self, who: str, number: int, how: str) -> None:
        order = self.some_order(who, number)
        if order is None:
            return
        status = self.shop.kept_order(order).order.status
        if how == "hold":
            self.shop.hold(order)
        elif how == "capture" and status is OrderStatus.SETTLING:
            self.shop.capture(order)
        elif how == "end":
            self.shop.do(HoldEnded, who, order_id=order.order_id, reason="GONE", by_event=True)
        elif how == "cancel":
            self.do(self.shop.do, CancelOrder, who, order_id=order.order_id)

    @rule(who=member, what=code, by_points=st.booleans())
    def gives(self, who: str, what: str, by_points: bool) -> None:
        gift = self.do(self.shop.gift, what, who, by_points=by_points)
        if gift is not None:
            self.gifts.append(gift)

    @rule(who=member, number=which)
    def claims(self, who: str, number: int) -> None:
        gift = chosen(self.gifts, number)
        if gift is not None:
            self.do(self.shop.claim, gift, who)

    # --- a card -----------------------------------------------------------------------------------------

    @rule(who=member, number=which, days=st.integers(0, 31))
    def rests(self, who: str, number: int, days: int) -> None:
        card = self.some_card(who, number)
        if card is not None and self.do(self.shop.freeze, card, days) is None:
            self.do(self.shop.resume, card)

    @rule(who=member, number=which)
    def gives_back(self, who: str, number: int) -> None:
        card = self.some_card(who, number)
        if card is not None:
            self.do(self.shop.give_back, card)

    @rule(who=member, what=code, reward=st.sampled_from(["x", "y", "z"]), back=st.booleans())
    def is_rewarded(self, who: str, what: str, reward: str, back: bool) -> None:
        if back:
            self.shop.do(ClawBack, who, reward_id=f"{who}-{reward}", by_event=True)
        else:
            self.shop.do(GrantReward, who, reward_id=f"{who}-{reward}", product_code=what, by_event=True)

    @rule(who=member, pieces=st.integers(1, 3), then=st.sampled_from([None, ConfirmUses, ReverseUses]))
    def uses(self, who: str, pieces: int, then: Any) -> None:
        order_id = f"order-{next(self.numbers)}"
        self.shop.do(Redeem, who, bill=basket(order_id, tea=pieces), expected_saved_minor=0)
        if then is not None:
            self.shop.do(then, who, order_id=order_id)

    # --- renewing ---------------------------------------------------------------------------------------

    @rule(who=member, number=which)
    def signs(self, who: str, number: int) -> None:
        card = self.some_card(who, number)
        if card is not None:
            signed = {"product_code": "", "contract_id": "contract", "sign_time": self.shop.at}
            self.do(self.shop.do, SetAutoRenew, who, card_id=card.card_id, **signed)

    @rule(who=member, number=which, less=st.integers(0, 50))
    def is_told(self, who: str, number: int, less: int) -> None:
        kept = chosen(self.shop.wallet(who).renewals.values(), number)
        if kept is not None:
            self.do(
                self.shop.do,
                RecordNotice,
                who,
                renewal_id=kept.renewal_id,
                notice_time=self.shop.at,
                amount_minor=kept.renewal.amount_minor - less,
                medium="letter",
            )

    @rule(who=member, number=which)
    def signs_off(self, who: str, number: int) -> None:
        card = self.some_card(who, number)
        if card is not None:
            self.shop.do(CancelAutoRenew, who, card_id=card.card_id)

    # --- time -------------------------------------------------------------------------------------------

    @rule(by=waits, swept=st.booleans())
    def time_passes(self, by: dict[str, int], swept: bool) -> None:
        self.shop.at += timedelta(**by)
        if swept:
            self.shop.settle()

    @invariant()
    def what_was_due_is_told_once(self) -> None:
        for who in MEMBERS:
            wallet = self.shop.wallet(who)
            told = len(self.shop.events[who])
            self.shop.do(Settle, who)
            settled = self.shop.wallet(who)
            assert settled.next_due_time is None or settled.next_due_time > self.shop.at
            if wallet.next_due_time is None or wallet.next_due_time > self.shop.at:
                assert told == len(self.shop.events[who])
                assert all(settled.cards[name] is card for name, card in wallet.cards.items())

    def teardown(self) -> None:
        """A year later it is all the same whether the clock was read every day or once.

        But for what lay ahead: of that nobody is told once it is over.
        """
        daily, once = self.shop.copy(), self.shop.copy()
        for _ in range(366):
            daily.wait(days=1)
        once.wait(days=366)
        for who in MEMBERS:
            late, told = _in_short(once.events[who]), _in_short(daily.events[who])
            assert [each for each in late if each[0] not in AHEAD] == [
                each for each in told if each[0] not in AHEAD
            ]
            assert set(late) <= set(told)


def _in_short(events: list[Message]) -> list[tuple[str, int, str]]:
    """What was told and when, without names that are made anew."""
    return [
        (type(event).__name__, event.occur_time.ToMicroseconds(), getattr(event, "card_id", ""))  # type: ignore[attr-defined]
        for event in events
        # Those of gifts, which wait for a sweep of their own.
        if not isinstance(event, epb.RefundDue | epb.CardOrderSettled)
    ]


def test_whatever_members_do_the_books_close_and_nothing_is_told_twice() -> None:
    run_state_machine_as_test(
        Buying,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
