"""Signed renewals: told five days ahead, charged once and only as told, for the card's end as it is.

RENEWING_EXAMPLES raises how often the machine is tried.
"""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.commands import (
    CancelAutoRenew,
    CancelOrder,
    ClawBack,
    ConfirmPayment,
    FreezeCard,
    GrantReward,
    PlaceOrder,
    RecordNotice,
    RefundCard,
    ResumeCard,
    SetAutoRenew,
)
from services.cards.domain.cards import CardStatus
from services.cards.domain.payments import OrderStatus, Payment
from services.cards.domain.renewals import RenewalStatus
from services.cards.domain.wallet import KeptRenewal
from services.cards.errors import (
    AutoRenewSigned,
    CardNotActive,
    CardUnknown,
    NotForMoney,
    NoticeNotDue,
    NoticeRecorded,
    NoticeTimeAhead,
    ProductUnknown,
    ProductWithdrawn,
    RenewalClosed,
    RenewalUnknown,
)
from services.chassis.errors import ServiceError
from services.chassis.timestamps import instant
from tests.cards.till import CARD, DAY, NOON, TICK, ZONE, Till, product

EXAMPLES = int(os.environ.get("RENEWING_EXAMPLES", "150"))
MONTH: dict[str, Any] = {"period": "P31D", "grace_days": 7, "freeze_policy": {"longest_days": 60, "count": 9}}
END = NOON + 31 * DAY
S = RenewalStatus


class Signed(Till):
    """A member with a card of a month, and what happens to its renewal."""

    def __init__(self, **more: Any) -> None:
        super().__init__(product(**{**MONTH, **more}))
        self.buy()
        self._payments = itertools.count(1)

    def sign(self, product_code: str = "", card_id: str = CARD, **fields: Any) -> pb.Renewal:
        body = self.tell(
            SetAutoRenew,
            card_id=card_id,
            product_code=product_code,
            contract_id="contract-1",
            sign_time=self.at,
            **fields,
        )
        return pb.Renewal.FromString(body)

    def notice(self, renewal_id: str = "", amount: int = 1900, at: datetime | None = None) -> pb.Renewal:
        """Tells that the member was told, of the open renewal if none is named."""
        body = self.tell(
            RecordNotice,
            renewal_id=renewal_id or self.open.renewal_id,
            notice_time=at or self.at,
            amount_minor=amount,
            medium="wechat_template",
        )
        return pb.Renewal.FromString(body)

    def pay(
        self, order_id: str, amount: int = 1900, paid: datetime | None = None
    ) -> pb.ConfirmPaymentResponse:
        body = self.tell(
            ConfirmPayment,
            order_id=order_id,
            channel="wechat",
            payment_id=f"payment-{next(self._payments)}",
            payment=Payment(amount, "CNY", paid or self.at),
        )
        return pb.ConfirmPaymentResponse.FromString(body)

    def cancel(self) -> pb.CancelAutoRenewResponse:
        return pb.CancelAutoRenewResponse.FromString(self.tell(CancelAutoRenew, card_id=CARD))

    def prolong(self) -> None:
        """Buys another period, by hand."""
        placed = pb.CardOrder.FromString(self.tell(PlaceOrder, product_code="coffee"))
        assert self.pay(placed.order_id).outcome == pb.PAYMENT_OUTCOME_APPLIED

    def rest(self, days: int) -> None:
        self.tell(FreezeCard, card_id=CARD, days=days)

    @property
    def all_open(self) -> list[KeptRenewal]:
        return [kept for kept in self.wallet.renewals.values() if kept.renewal.outcome is None]

    @property
    def open(self) -> KeptRenewal:
        (kept,) = self.all_open
        return kept

    @property
    def outcomes(self) -> list[RenewalStatus | None]:
        return [kept.renewal.outcome for kept in self.wallet.renewals.values()]

    @property
    def renewed(self) -> bool:
        """Whether the card has a contract."""
        return self.card.contract is not None


def noticed(days_before: int = 10, **more: Any) -> tuple[Signed, str]:
    """A member who was told of the renewal so long before the end, and the order to pay."""
    member = Signed(**more)
    member.sign()
    member.at = END - days_before * DAY
    return member, member.notice().order_id


# --- signing ------------------------------------------------------------------------------------------


def test_a_signed_renewal_is_for_the_end_of_the_last_period_at_the_price_of_now() -> None:
    member = Signed()
    member.put(product(version=2, **{**MONTH, "price_minor": 1700}))
    signed = member.sign()
    assert (signed.status, signed.segment_id, signed.amount_minor) == (
        pb.RENEWAL_STATUS_SIGNED,
        "seg_0",
        1700,
    )
    assert instant(signed.notice_due_time) == END - 11 * DAY
    assert instant(signed.notice_deadline_time) == END - 6 * DAY
    assert instant(signed.charge_time) == END - DAY
    assert instant(signed.charge_until_time) == END + 7 * DAY
    assert (signed.order_id, signed.HasField("notice_time")) == ("", False)
    assert member.wallet.next_due_time == END - 11 * DAY
    assert member.events == []


def test_only_a_card_that_runs_is_signed_and_once() -> None:
    member = Signed()
    with pytest.raises(CardUnknown):
        member.sign(card_id=f"card_{9:032x}")
    member.sign()
    with pytest.raises(AutoRenewSigned):
        member.sign()
    resting = Signed()
    resting.rest(3)
    with pytest.raises(CardNotActive):
        resting.sign()
    over = Signed()
    over.at = END
    with pytest.raises(CardNotActive):
        over.sign()


def test_what_is_signed_is_a_product_of_the_family_that_is_sold_for_money() -> None:
    member = Signed()
    member.put(product(code="king", family="king"))
    member.put(product(code="old", withdrawn=True))
    member.put(product(code="points", price_minor=0, points_price=500))
    member.put(product(code="quarter", price_minor=4900, period="P3M"))
    for code, refusal in (
        ("none", ProductUnknown),
        ("king", ProductUnknown),
        ("old", ProductWithdrawn),
        ("points", NotForMoney),
    ):
        with pytest.raises(refusal):
            member.sign(code)
    signed = member.sign("quarter")
    assert (signed.product_code, signed.amount_minor) == ("quarter", 4900)


# --- telling ------------------------------------------------------------------------------------------


def test_the_notice_is_asked_for_once_when_it_is_due() -> None:
    member = Signed()
    signed = member.sign()
    member.at = END - 11 * DAY - TICK
    member.settle()
    assert member.events == []
    member.at = END - 9 * DAY
    member.settle()
    member.settle()
    (due,) = member.heard(epb.RenewalDue)
    assert (due.renewal_id, due.amount_minor, due.plan_id) == (signed.renewal_id, 1900, "coffee")
    assert instant(due.occur_time) == END - 11 * DAY
    assert (instant(due.notice_deadline_time), instant(due.charge_time)) == (END - 6 * DAY, END - DAY)


def test_a_renewal_signed_late_is_asked_for_at_once() -> None:
    member = Signed()
    member.at = END - 3 * DAY
    assert member.sign().status == pb.RENEWAL_STATUS_NOTICE_DUE
    (due,) = member.heard(epb.RenewalDue)
    assert instant(due.occur_time) == member.at
    order_id = member.notice().order_id
    member.at = END + 2 * DAY - TICK
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_NO_NOTICE
    member.at += TICK
    assert member.pay(order_id).outcome == pb.PAYMENT_OUTCOME_APPLIED


def test_a_notice_makes_the_order_to_pay() -> None:
    member = Signed()
    member.sign()
    member.at = END - 10 * DAY
    told = member.notice(amount=1800)
    assert (told.status, told.amount_minor) == (pb.RENEWAL_STATUS_NOTIFIED, 1800)
    assert instant(told.notice_time) == member.at
    order = member.wallet.orders[told.order_id]
    assert (order.order.amount_minor, order.order.pay_deadline) == (1800, END + 7 * DAY)
    assert (order.renewal_id, order.card_id, order.capped) == (told.renewal_id, CARD, False)
    (ordered,) = member.heard(epb.CardOrdered)
    assert (ordered.card_order_id, ordered.amount_minor, ordered.points_amount) == (told.order_id, 1800, 0)
    assert member.open.medium == "wechat_template"


def test_a_notice_is_refused_that_comes_at_the_wrong_time() -> None:
    member = Signed()
    signed = member.sign()
    with pytest.raises(RenewalUnknown):
        member.notice(f"rnw_{9:032x}")
    member.at = END - 11 * DAY - TICK
    with pytest.raises(NoticeNotDue):
        member.notice()
    with pytest.raises(NoticeTimeAhead):
        member.notice(at=END - 10 * DAY)
    member.at = END - 10 * DAY
    member.notice()
    with pytest.raises(NoticeRecorded):
        member.notice()
    member.cancel()
    with pytest.raises(RenewalClosed):
        member.notice(signed.renewal_id)


def test_a_notice_that_comes_as_it_falls_due_is_not_asked_for_any_more() -> None:
    member = Signed()
    member.sign()
    member.at = END - 11 * DAY - timedelta(minutes=1)
    member.notice(at=END - 11 * DAY)  # by a clock that is ahead of ours
    member.at = END - 10 * DAY
    member.settle()
    assert member.heard(epb.RenewalDue) == []


def test_what_money_no_longer_buys_is_not_renewed() -> None:
    member, order_id = noticed()
    member.put(product(version=2, **{**MONTH, "price_minor": 0, "points_price": 500}))
    member.at = END - DAY
    assert member.pay(order_id).outcome == pb.PAYMENT_OUTCOME_APPLIED  # as it was announced
    assert (member.outcomes, member.renewed) == ([S.CHARGED], False)


def test_a_renewal_that_is_over_is_not_asked_for() -> None:
    member = Signed()
    member.sign()
    member.at = END + 7 * DAY
    member.settle()
    assert (member.outcomes, member.heard(epb.RenewalDue)) == ([S.FAILED], [])


# --- charging -----------------------------------------------------------------------------------------


def test_a_renewal_is_charged_after_its_notice_and_the_next_one_is_signed() -> None:
    member, order_id = noticed()
    member.at = END - DAY
    answer = member.pay(order_id)
    assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert [instant(one.start_time) for one in answer.card.segments] == [NOON, END]
    assert answer.order.status == pb.CARD_ORDER_STATUS_PAID
    assert member.outcomes == [S.CHARGED, None]
    following = member.open
    assert following.segment_id == answer.card.segments[1].segment_id
    assert following.renewal.charge == END + 30 * DAY
    assert answer.card.auto_renew
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ALREADY_PAID


def test_what_is_paid_too_early_or_otherwise_than_told_is_paid_back() -> None:
    member, order_id = noticed()
    member.at = END - DAY - TICK
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_NO_NOTICE
    member.at += TICK
    assert member.pay(order_id, 1901).reason == epb.REFUND_DUE_REASON_WRONG_AMOUNT
    assert member.outcomes == [None]
    assert [one.amount_minor for one in member.heard(epb.RefundDue)] == [1900, 1901]


def test_a_renewal_that_is_not_charged_in_time_fails_and_ends_the_contract() -> None:
    member, order_id = noticed()
    member.at = END + 7 * DAY - TICK
    member.settle()
    assert (member.outcomes, member.renewed) == ([None], True)
    member.at += TICK
    member.settle()
    assert (member.outcomes, member.renewed) == ([S.FAILED], False)
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ORDER_EXPIRED
    assert member.wallet.next_due_time is None


def test_what_was_paid_in_time_is_kept_though_it_is_told_after_the_renewal_failed() -> None:
    member, order_id = noticed()
    member.at = END + 8 * DAY
    member.settle()
    answer = member.pay(order_id, paid=END)
    assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert instant(answer.card.segments[-1].start_time) == END  # as it was paid, though told too late
    assert member.outcomes == [S.CHARGED]
    assert not answer.card.auto_renew


def test_a_renewal_buys_the_version_of_the_day_of_its_notice() -> None:
    member = Signed()
    member.sign()
    member.put(product(version=2, withdrawn=True, **{**MONTH, "price_minor": 9900}))
    member.at = END - 10 * DAY
    order_id = member.notice().order_id
    assert member.wallet.orders[order_id].product_version == 2
    member.at = END
    card = member.pay(order_id).card  # at the price that was announced
    assert (card.segments[-1].product_version, card.segments[-1].paid_minor) == (2, 1900)


# --- cancelling ---------------------------------------------------------------------------------------


def test_cancelling_is_free_at_any_moment_and_the_paid_periods_stay() -> None:
    member, order_id = noticed()
    member.at = END - DAY
    answer = member.cancel()
    assert answer.renewal.status == pb.RENEWAL_STATUS_CANCELLED
    assert (answer.card.status, answer.card.auto_renew) == (pb.CARD_STATUS_ACTIVE, False)
    assert member.wallet.orders[order_id].order.status is OrderStatus.CANCELLED
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ORDER_CANCELLED
    again = member.cancel()
    assert not again.HasField("renewal")
    assert again.card.card_id == CARD
    with pytest.raises(CardUnknown):
        member.tell(CancelAutoRenew, card_id=f"card_{9:032x}")


def test_a_cancelled_renewal_can_be_signed_anew() -> None:
    member, _ = noticed()
    member.cancel()
    signed = member.sign()
    assert signed.status == pb.RENEWAL_STATUS_NOTICE_DUE
    assert len(member.heard(epb.RenewalDue)) == 2
    assert member.outcomes == [S.CANCELLED, None]


def test_who_cancels_the_order_of_a_renewal_cancels_the_renewal() -> None:
    member, order_id = noticed()
    for _ in range(2):
        cancelled = pb.CardOrder.FromString(member.tell(CancelOrder, order_id=order_id))
        assert cancelled.status == pb.CARD_ORDER_STATUS_CANCELLED
        assert (member.outcomes, member.renewed) == ([S.CANCELLED], False)
    assert member.sign().status == pb.RENEWAL_STATUS_NOTICE_DUE
    member.at = END
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ORDER_CANCELLED


def test_a_cancelled_order_of_an_earlier_renewal_leaves_the_renewal_of_now_alone() -> None:
    member, order_id = noticed()
    member.prolong()
    member.tell(CancelOrder, order_id=order_id)
    assert (member.outcomes, member.renewed) == ([S.CANCELLED, None], True)


# --- the end of the card moves ------------------------------------------------------------------------


def test_a_period_bought_by_hand_moves_the_renewal_to_the_new_end() -> None:
    member, order_id = noticed()
    member.prolong()
    assert member.outcomes == [S.CANCELLED, None]
    assert member.wallet.orders[order_id].order.status is OrderStatus.CANCELLED
    assert member.open.renewal.charge == END + 30 * DAY
    assert member.renewed
    member.at = END - DAY
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ORDER_CANCELLED


def test_while_the_card_rests_nothing_is_charged_and_then_its_renewal_is_signed_for_the_later_end() -> None:
    member, order_id = noticed()
    member.rest(20)
    assert member.outcomes == [S.CANCELLED]
    assert member.card.contract is not None
    assert member.card.contract.holds(END + 999 * DAY)
    member.at = END
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ORDER_CANCELLED
    member.tell(ResumeCard, card_id=CARD)
    assert member.open.renewal.charge == END + 10 * DAY - DAY
    assert len(member.heard(epb.RenewalDue)) == 2


def test_a_rest_that_ends_by_itself_signs_the_renewal_for_the_later_end() -> None:
    member = Signed()
    member.sign()
    member.rest(20)
    member.at = END + 12 * DAY
    member.settle()
    assert member.open.renewal.charge == END + 20 * DAY - DAY
    (due,) = member.heard(epb.RenewalDue)
    assert instant(due.occur_time) == END + 9 * DAY


def test_a_card_that_is_given_back_is_not_renewed() -> None:
    member, order_id = noticed(refund_policy={"otherwise": "REFUND_RULE_NONE"})
    member.tell(RefundCard, card_id=CARD, expected_minor=0, expected_points=0)
    assert (member.outcomes, member.renewed) == ([S.CANCELLED], False)
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ORDER_CANCELLED


def test_a_card_whose_only_period_is_taken_back_is_not_renewed() -> None:
    member = Signed(family="other")  # this one has a card of its own
    member.put(product(code="gift", **MONTH))
    member.tell(GrantReward, event=True, reward_id="reward-1", product_code="gift")
    given = next(kept for kept in member.wallet.cards.values() if kept.family == "food")
    member.sign(card_id=given.card_id)
    member.tell(ClawBack, event=True, reward_id="reward-1")
    assert member.outcomes == [S.CANCELLED]
    assert member.wallet.cards[given.card_id].contract is None


def test_a_card_taken_back_before_its_last_period_began_is_not_renewed_for_the_one_before() -> None:
    member = Signed()
    for reward in ("reward-1", "reward-2"):
        member.tell(GrantReward, event=True, reward_id=reward, product_code="coffee")
    member.sign()
    member.tell(ClawBack, event=True, reward_id="reward-1")
    assert member.open.renewal.charge == END + 61 * DAY  # the period behind stays where it is
    member.at = END + DAY
    member.tell(ClawBack, event=True, reward_id="reward-2")
    assert (member.outcomes, member.renewed) == ([S.CANCELLED], False)


def test_a_member_who_renews_by_hand_within_grace_is_not_charged_again() -> None:
    member, order_id = noticed()
    member.at = END + 2 * DAY
    member.prolong()
    assert member.pay(order_id).reason == epb.REFUND_DUE_REASON_ORDER_CANCELLED
    assert member.open.renewal.charge == member.at + 30 * DAY


# --- whatever happens ---------------------------------------------------------------------------------

waits = st.sampled_from([TICK, DAY, 4 * DAY, 5 * DAY, 6 * DAY, 9 * DAY, 20 * DAY, 31 * DAY])
acts = st.sampled_from(
    ["sign", "notice", "pay", "pay", "pay early", "cancel", "prolong", "rest", "resume", "refund", "settle"]
)


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(acts, acts, waits), max_size=30))
def test_whatever_happens_a_renewal_is_charged_only_as_it_was_told(done: list[str | timedelta]) -> None:
    member = Signed(refund_policy={"otherwise": "REFUND_RULE_NONE"})
    member.at += TICK
    for deed in done:
        if isinstance(deed, timedelta):
            member.at += deed
        else:
            with suppress(ServiceError):
                _do(member, deed)
            member.settle()
            _check(member)
    asked = [due.renewal_id for due in member.heard(epb.RenewalDue)]
    assert len(set(asked)) == len(asked)


def _do(member: Signed, deed: str) -> None:
    renewals = list(member.wallet.renewals.values())
    match deed:
        case "notice" if renewals:
            member.notice(renewals[-1].renewal_id)
        case "pay" | "pay early":
            for kept in renewals[-2:]:
                if kept.order_id:
                    _pay(member, kept, member.at - 5 * DAY if deed == "pay early" else member.at)
        case "resume":
            member.tell(ResumeCard, card_id=CARD)
        case "refund":
            member.tell(RefundCard, card_id=CARD, expected_minor=0, expected_points=0)
        case "rest":
            member.rest(12)
        case "sign" | "cancel" | "prolong" | "settle":
            getattr(member, deed)()


def _pay(member: Signed, kept: KeptRenewal, paid: datetime) -> None:
    """What is kept was announced five days before, in time, and not below what was paid."""
    answer = member.pay(kept.order_id, paid=paid)
    if answer.outcome != pb.PAYMENT_OUTCOME_APPLIED:
        return
    told = kept.renewal.noticed
    assert told is not None
    assert told + 5 * DAY <= paid < kept.renewal.charge_until
    assert kept.renewal.charge <= paid
    assert kept.renewal.amount_minor == 1900
    assert member.wallet.renewals[kept.renewal_id].renewal.outcome is S.CHARGED


def _check(member: Signed) -> None:
    """The open renewal is that of the card's end, and there is one exactly where there should be."""
    contract, status = member.card.contract, member.card.card.status(member.at, ZONE)
    if contract is None or status is CardStatus.FROZEN:
        assert member.all_open == []
        return
    last = member.card.card.segments[-1]
    assert (member.open.segment_id, member.open.renewal.charge) == (last.segment_id, last.over - DAY)
    assert contract.until == member.open.renewal.charge_until
    assert contract.holds(member.at)
    for kept in member.wallet.renewals.values():
        order = member.wallet.orders.get(kept.order_id)
        if order is not None and kept.renewal.outcome is S.CANCELLED:
            assert order.order.status_at(member.at) is not OrderStatus.PENDING_PAYMENT
