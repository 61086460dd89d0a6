"""What is announced and answered: every message keeps to its contract, and says what the domain says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.message import Message
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import events, messages
from services.cards.domain import cards, refunds, renewals, search
from services.cards.domain.basket import Line, Offer, Part
from services.cards.domain.cards import Card, Ending, Purchase
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.payments import Order, OrderStatus, Payment, RefundReason, Settlement
from services.cards.domain.periods import Period
from services.cards.domain.products import Benefit, BenefitKind, FreezePolicy, Product, RefundPolicy
from services.cards.domain.quotas import Quota, Use, UseStatus, Window
from services.cards.domain.renewals import Renewal
from services.cards.domain.wallet import (
    Contract,
    KeptCard,
    KeptOrder,
    KeptPayment,
    KeptRenewal,
    KeptUse,
    Reward,
    UseEnding,
)
from services.cards.store import Saving
from services.chassis.interceptors import validate
from services.chassis.outbox import About, Event
from services.chassis.timestamps import instant

ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2027, 1, 31, 4, 0, tzinfo=UTC)  # 12:00 in Shanghai
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
MEMBER = "member"
CARD, FIRST, SECOND, THIRD = "card_1", "seg_1", "seg_2", "seg_3"
ABOUT = About(MEMBER, NOON + DAY, 3, 7, "")


def product(*factors: int) -> Product:
    benefits = tuple(Benefit(f"b{f}", BenefitKind.POINTS_MULTIPLIER, f) for f in factors)
    return Product("king", 2, "food", {}, 1900, "CNY", 0, Period(months=1), benefits)


def chain(*names: str, minor: int = 1900, points: int = 0) -> Card:
    """A card of a month each, all bought at NOON."""
    made = Card(CARD)
    for name in names:
        bought = Purchase(name, "king", 2, Period(months=1), 7, NOON, minor, points)
        made = cards.extend(made, bought, NOON, ZONE)
    return made


def kept(card: Card, **more: Any) -> KeptCard:
    return KeptCard(card=card, family="food", currency_code="CNY", **more)


def order(**more: Any) -> KeptOrder:
    placed = Order(OrderStatus.PENDING_PAYMENT, NOON + timedelta(minutes=15), 1900, "CNY")
    fields = {"order": placed, "product_code": "king", "product_version": 2, "family": "food"}
    return KeptOrder(**{"order_id": "ord_1", "create_time": NOON, **fields, **more})


def by_points() -> KeptOrder:
    return order(order=Order(OrderStatus.PENDING_PAYMENT, NOON + timedelta(minutes=15), amount_points=500))


def payment(**more: Any) -> KeptPayment:
    return KeptPayment(
        channel="wechat",
        payment_id="pay-1",
        order_id="ord_1",
        payment=Payment(1900, "CNY", NOON),
        applied=False,
        create_time=NOON,
        **{"due": 1900, "reason": RefundReason.ORDER_UNKNOWN, **more},
    )


def renewal(**more: Any) -> KeptRenewal:
    return KeptRenewal(
        **{
            "renewal_id": "rnw_1",
            "renewal": Renewal.of(NOON + 28 * DAY, 7, 1900, ZONE),
            "card_id": CARD,
            "segment_id": FIRST,
            "product_code": "king",
            "currency_code": "CNY",
            **more,
        }
    )


def use(status: UseStatus = UseStatus.CONFIRMED, window_key: str = "2027-02-01") -> KeptUse:
    lapse = NOON + timedelta(minutes=30)
    return KeptUse(
        redemption_id="red_1",
        order_id="order-1",
        use=Use(CARD, FIRST, "cup", window_key, 2, 2400, status, lapse),
        lines={"1": 2},
        currency_code="CNY",
        create_time=NOON,
    )


CUP = Benefit("cup", BenefitKind.FIXED_PRICE, 800, quota=Quota(3, Window.DAY))


def entitlement(
    benefit: Benefit = CUP, remaining: int | None = 1, reset: datetime | None = None
) -> Entitlement:
    return Entitlement(CARD, FIRST, ("king", 2), benefit, "2027-02-01", 2, remaining, reset, NOON + 28 * DAY)


def resting() -> Card:
    return cards.freeze(chain(FIRST, SECOND), FreezePolicy(1, 30, 1), 10, NOON + DAY, ZONE)


# --- what is announced --------------------------------------------------------------------------------

_ONE = chain(FIRST)
_TWO = chain(FIRST, SECOND, THIRD)
_REPLACED = cards.upgrade(
    _TWO, Purchase("seg_4", "king", 2, Period(months=3), 7, NOON + DAY, 4900), NOON + DAY, ZONE
)
_CONTRACT = Contract(contract_id="c-1", product_code="king", sign_time=NOON, until=NOON + 40 * DAY)

ANNOUNCED: dict[str, tuple[Callable[..., Event], Any]] = {
    "a purchase by money": (events.card_ordered, order(card_id=CARD)),
    "a purchase by points": (events.card_ordered, by_points()),
    "a capture": (events.card_order_settled, ("ord_1", Settlement.CAPTURE)),
    "a release": (events.card_order_settled, ("ord_1", Settlement.RELEASE)),
    "a first period": (
        events.card_activated,
        events.Activated(card=kept(_ONE), multiplier="1.5", order_id="ord_1"),
    ),
    "an upgrade": (
        events.card_activated,
        events.Activated(
            card=kept(_REPLACED), multiplier="", order_id="ord_1", replaced=[FIRST, SECOND, THIRD]
        ),
    ),
    "a gift": (
        events.card_activated,
        events.Activated(card=kept(_TWO), multiplier="", order_id="ord_1", gift=True),
    ),
    "a period for points": (
        events.card_activated,
        events.Activated(card=kept(chain(FIRST, minor=0, points=500)), multiplier="", order_id="ord_1"),
    ),
    "a period as a reward": (
        events.card_activated,
        events.Activated(card=kept(chain(FIRST, minor=0)), multiplier="", reward_id="rwd-1"),
    ),
    "an end ahead": (
        events.card_expiring,
        (kept(_ONE, saved={FIRST: 2400}, contract=_CONTRACT), _ONE.segments[0]),
    ),
    "an end ahead of what saved nothing": (events.card_expiring, (kept(_ONE), _ONE.segments[0])),
    "an end": (events.card_expired, (kept(_ONE), _ONE.segments[0])),
    "a rest": (events.card_frozen, (kept(resting()), resting().segments[0], NOON + 11 * DAY)),
    "the end of a rest": (
        events.card_resumed,
        (kept(_TWO), [(one, "2" if one.segment_id == SECOND else "") for one in _TWO.segments]),
    ),
    "a card given back": (events.card_refunded, (kept(_TWO), _TWO.segments, 4100, 0)),
    "a card given back for points": (events.card_refunded, (kept(_ONE), _ONE.segments, 0, 450)),
    "a reward taken back": (events.card_refunded, (kept(_TWO), _TWO.segments[:1], 0, 0)),
    "money to pay back": (events.refund_due, payment()),
    "money of no known order": (events.refund_due, payment(due=1)),
    "a renewal": (events.renewal_due, renewal()),
    "a use": (events.benefit_used, (use(), "king", entitlement(reset=NOON + DAY))),
    "a use of a card that is over": (events.benefit_used, (use(), "king", None)),
    "a use without a quota": (
        events.benefit_used,
        (use(window_key=""), "king", entitlement(replace(CUP, quota=None), None)),
    ),
    "a use of a cancelled order": (
        events.benefit_reversed,
        (use(UseStatus.REVERSED), "king", UseEnding.CANCELLED),
    ),
    "a use of a refunded order": (
        events.benefit_reversed,
        (use(UseStatus.REVERSED), "king", UseEnding.REFUNDED),
    ),
    "a reward": (
        events.reward_fulfilled,
        (Reward(reward_id="rwd-1", card_id=CARD, segment_id=FIRST), "king"),
    ),
    "a reward refused": (events.fulfilment_refused, ("rwd-1", "PRODUCT_UNKNOWN")),
}


def message(event: Event) -> Any:
    """The message of an event, held against its contract."""
    kind = epb.DESCRIPTOR.message_types_by_name[event.subject.rpartition(".")[2]]
    parsed = getattr(epb, kind.name).FromString(event.body)
    validate(parsed)
    return parsed


def announced(name: str) -> Any:
    make, what = ANNOUNCED[name]
    return message(make(ABOUT, what))


@pytest.mark.parametrize("name", ANNOUNCED)
def test_every_event_keeps_to_its_contract_and_says_what_it_is_about(name: str) -> None:
    make, what = ANNOUNCED[name]
    event = make(ABOUT, what)
    assert event.stream == events.STREAM
    assert any(event.subject.startswith(subject[:-1]) for subject in events.SUBJECTS)
    assert event.entity_key == MEMBER
    told = message(event)
    assert (told.member_id, told.epoch, told.version) == (MEMBER, 3, 7)
    assert instant(told.occur_time) == NOON + DAY


def test_every_event_of_the_contract_is_announced_here() -> None:
    made = {make(ABOUT, what).subject.rpartition(".")[2] for make, what in ANNOUNCED.values()}
    declared = {kind.name for kind in epb.DESCRIPTOR.message_types_by_name.values()}
    assert made == declared - {"CardSegment"}


def test_points_are_asked_for_until_a_day_after_the_deadline() -> None:
    by_money, points = announced("a purchase by money"), announced("a purchase by points")
    assert (by_money.amount_minor, by_money.currency_code, by_money.points_amount) == (1900, "CNY", 0)
    assert not by_money.HasField("hold_expire_time")
    assert (points.amount_minor, points.currency_code, points.points_amount) == (0, "", 500)
    assert instant(points.hold_expire_time) == instant(points.pay_deadline_time) + DAY


def test_an_activation_tells_of_the_last_period_and_of_those_it_replaced() -> None:
    first, upgrade = announced("a first period"), announced("an upgrade")
    assert (first.segment_id, first.renewal, first.points_multiplier) == (FIRST, False, "1.5")
    assert (instant(first.start_time), instant(first.end_time)) == (NOON, NOON + 28 * DAY)
    assert (upgrade.segment_id, upgrade.renewal, upgrade.paid_minor) == ("seg_4", True, 4900)
    assert upgrade.replaced_segment_ids == [FIRST, SECOND, THIRD]
    points, reward = announced("a period for points"), announced("a period as a reward")
    assert (points.paid_minor, points.currency_code, points.paid_points) == (0, "", 500)
    assert (reward.reward_id, reward.card_order_id, reward.paid_points) == ("rwd-1", "", 0)


def test_what_ends_and_resumes_is_told_with_its_periods() -> None:
    ending = announced("an end ahead")
    assert (ending.auto_renew, ending.saved_minor, ending.currency_code) == (True, 2400, "CNY")
    resumed = announced("the end of a rest")
    assert resumed.segment_id == FIRST
    assert [(one.segment_id, one.points_multiplier) for one in resumed.later_segments] == [
        (SECOND, "2"),
        (THIRD, ""),
    ]
    back = announced("a card given back")
    assert (back.segment_id, list(back.later_segment_ids)) == (FIRST, [SECOND, THIRD])
    assert announced("a card given back for points").currency_code == ""


def test_a_use_tells_what_is_left_and_when_it_fills() -> None:
    used = announced("a use")
    assert (used.quantity, used.saved_minor, used.limited, used.remaining) == (2, 2400, True, 1)
    assert instant(used.reset_time) == NOON + DAY
    over, unlimited = announced("a use of a card that is over"), announced("a use without a quota")
    assert (over.limited, over.remaining, over.HasField("reset_time")) == (True, 0, False)
    assert (unlimited.limited, unlimited.remaining) == (False, 0)


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ((), ""),
        ((1_000_000,), "1"),
        ((1_500_000,), "1.5"),
        ((10_000_000,), "10"),
        ((2_000_001,), "2.000001"),
        ((999_999_999_999,), "999999.999999"),
    ],
)
def test_a_multiplier_is_told_as_a_decimal(factors: tuple[int, ...], told: str) -> None:
    made = product(*factors)
    assert events.points_multiplier(made) == told
    activated = events.Activated(card=kept(_ONE), multiplier=told, order_id="ord_1")
    assert message(events.card_activated(ABOUT, activated)).points_multiplier == told


# --- answers ------------------------------------------------------------------------------------------


def answers() -> list[Message]:
    """One answer of each kind, with everything in it."""
    found = search.quote(
        [Line("1", 3, 6000), Line("2", 1, 1500)],
        500,
        [
            Offer(CARD, "cup", BenefitKind.FIXED_PRICE, 800, frozenset({"1"}), 1),
            Offer(CARD, "free", BenefitKind.FREE_DELIVERY, 0, frozenset({""})),
            Offer(
                CARD,
                "menu",
                BenefitKind.BUNDLE_PRICE,
                2000,
                parts=(Part(1, frozenset({"1"})), Part(1, frozenset({"2"}))),
            ),
        ],
    )
    terms = dict.fromkeys((FIRST, SECOND), refunds.Terms(RefundPolicy(0, True), 1900, 0, 2, 300))
    back = refunds.quote(chain(FIRST, SECOND), terms, NOON + DAY, ZONE)
    return [
        messages.card(MEMBER, kept(resting(), saved={FIRST: 1}, contract=_CONTRACT), NOON + 2 * DAY, ZONE),
        messages.card_order(MEMBER, order(), NOON),
        messages.renewal(renewal(), NOON, ZONE),
        messages.quote(found, "CNY"),
        messages.refund_quote(back, "CNY"),
        messages.redemption(use(), NOON),
        messages.entitlements([entitlement(), entitlement(replace(CUP, code="a"), None)]),
        messages.savings(kept(chain(FIRST)), [Saving(FIRST, "cup", 2, 2400)]),
    ]


@pytest.mark.parametrize("answer", answers(), ids=lambda answer: answer.DESCRIPTOR.name)
def test_every_answer_keeps_to_its_contract(answer: Message) -> None:
    validate(answer)
    assert type(answer).FromString(answer.SerializeToString()) == answer


def shown(card: Card, at: datetime, **more: Any) -> pb.Card:
    return messages.card(MEMBER, kept(card, **more), at, ZONE)


def test_a_card_reads_as_of_the_instant() -> None:
    card = shown(_TWO, NOON + 30 * DAY, saved={FIRST: 5, SECOND: 7}, version=4)
    assert (card.status, card.streak, card.version) == (pb.CARD_STATUS_ACTIVE, 3, 4)
    assert (card.saved_minor, [one.saved_minor for one in card.segments]) == (12, [5, 7, 0])
    assert (instant(card.start_time), instant(card.end_time)) == (NOON, _TWO.segments[-1].end)
    assert not card.HasField("resume_time")
    end = _TWO.segments[-1].end
    assert shown(_TWO, end - TICK).status == pb.CARD_STATUS_ACTIVE
    assert shown(_TWO, end).status == pb.CARD_STATUS_EXPIRED


def test_a_card_that_rests_would_end_as_much_later_as_it_has_rested() -> None:
    card, end = shown(resting(), NOON + 4 * DAY), chain(FIRST, SECOND).segments[-1].end
    assert card.status == pb.CARD_STATUS_FROZEN
    assert instant(card.resume_time) == NOON + 11 * DAY
    assert instant(card.end_time) == end + 3 * DAY
    later = shown(resting(), NOON + 12 * DAY)
    assert (later.status, later.HasField("resume_time")) == (pb.CARD_STATUS_ACTIVE, False)
    assert instant(later.end_time) == end + 10 * DAY


def test_a_card_begins_with_its_present_chain_without_gaps() -> None:
    late = Purchase("seg_9", "king", 2, Period(months=1), 0, NOON + 40 * DAY)
    card = cards.extend(_ONE, late, NOON + 40 * DAY, ZONE)
    assert instant(shown(card, NOON + 41 * DAY).start_time) == NOON + 40 * DAY
    with_gap = cards.claw_back(_TWO, SECOND, NOON + DAY, ZONE)
    assert instant(shown(with_gap, NOON + DAY).start_time) == NOON
    in_gap = shown(with_gap, NOON + 30 * DAY)
    assert in_gap.status == pb.CARD_STATUS_SCHEDULED
    assert instant(in_gap.start_time) == _TWO.segments[2].start


def test_a_card_given_back_at_once_shows_periods_that_never_held() -> None:
    card = shown(cards.end_live(_TWO, Ending.REFUNDED, NOON, ZONE), NOON)
    assert card.status == pb.CARD_STATUS_REFUNDED
    assert {one.ended for one in card.segments} == {pb.SEGMENT_END_REFUNDED}
    assert all(one.start_time == one.end_time for one in card.segments)


def test_of_very_many_periods_the_last_hundred_are_shown() -> None:
    card, names = Card(CARD), [f"seg_{number}" for number in range(120)]
    for number, name in enumerate(names):
        at = NOON + number * DAY
        card = cards.extend(card, Purchase(name, "king", 2, Period(days=1), 0, at), at, ZONE)
    assert [one.segment_id for one in shown(card, NOON).segments] == names[20:]


def test_an_order_reads_as_of_the_instant_and_names_its_card_once_it_is_paid() -> None:
    placed = order(card_id=CARD, upgrade_now=True, credit=300)
    deadline = placed.order.pay_deadline
    assert messages.card_order(MEMBER, placed, deadline - TICK).status == pb.CARD_ORDER_STATUS_PENDING_PAYMENT
    expired = messages.card_order(MEMBER, placed, deadline)
    assert (expired.status, expired.card_id) == (pb.CARD_ORDER_STATUS_EXPIRED, "")
    assert (expired.upgrade, expired.credit, expired.pay_with) == (pb.UPGRADE_NOW, 300, pb.PAY_WITH_MONEY)
    paid = messages.card_order(
        MEMBER, replace(placed, order=replace(placed.order, status=OrderStatus.PAID)), deadline
    )
    assert (paid.status, paid.card_id) == (pb.CARD_ORDER_STATUS_PAID, CARD)
    points = messages.card_order(MEMBER, by_points(), NOON)
    assert (points.pay_with, points.amount_points, points.currency_code) == (pb.PAY_WITH_POINTS, 500, "")


def test_a_renewal_reads_as_of_the_instant_and_a_late_notice_moves_its_charge() -> None:
    end = NOON + 28 * DAY
    before = messages.renewal(renewal(), end - 11 * DAY, ZONE)
    assert (before.status, before.HasField("notice_time")) == (pb.RENEWAL_STATUS_NOTICE_DUE, False)
    assert instant(before.charge_time) == end - DAY
    told = renewals.record_notice(renewal().renewal, end - 2 * DAY, 1800, end - 2 * DAY, ZONE)
    late = messages.renewal(renewal(renewal=told, order_id="ord_2"), end, ZONE)
    assert (late.status, late.amount_minor, late.order_id) == (pb.RENEWAL_STATUS_NOTIFIED, 1800, "ord_2")
    assert instant(late.charge_time) == end + 3 * DAY


def test_a_reservation_reads_as_given_back_once_it_has_lapsed() -> None:
    reserved = use(UseStatus.RESERVED)
    lapse = reserved.use.lapse_time
    assert messages.redemption(reserved, lapse - TICK).status == pb.REDEMPTION_STATUS_RESERVED
    assert messages.redemption(reserved, lapse).status == pb.REDEMPTION_STATUS_REVERSED
    assert messages.redemption(use(), lapse).status == pb.REDEMPTION_STATUS_CONFIRMED


def test_a_quote_adds_up_and_is_explained() -> None:
    quote = next(answer for answer in answers() if isinstance(answer, pb.Quote))
    full = 6000 + 1500 + 500
    assert sum(line.pay_minor for line in quote.lines) + quote.delivery_pay_minor == full - quote.saved_minor
    assert sum(one.saved_minor for one in quote.taken) == quote.saved_minor
    assert sum(step.before_minor - step.after_minor for step in quote.explanation) == quote.saved_minor
    assert [one.benefit_code for one in quote.taken] == ["cup", "free", "menu"]
    assert (quote.exact, quote.saved_bound_minor) == (True, quote.saved_minor)
