"""Using benefits: what is taken is what was shown, once, under quotas that follow local time.

USING_EXAMPLES raises how often the model is tried.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import messages, using
from services.cards.domain import cards
from services.cards.domain.books import KeptWindow
from services.cards.domain.products import FreezePolicy
from services.cards.domain.quotas import UseStatus
from services.cards.domain.wallet import UseEnding
from services.cards.errors import (
    OrderAlreadyRedeemed,
    QuoteChanged,
    RedemptionLapsed,
    RedemptionReversed,
    RedemptionUnknown,
)
from services.chassis.errors import RequestIdReused
from services.chassis.timestamps import instant
from tests.cards.till import CARD, DAY, FEE, NOON, TICK, ZONE, Till, basket, benefit, product

EXAMPLES = int(os.environ.get("USING_EXAMPLES", "300"))
OTHER = f"card_{1:032x}"
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
HALF_AN_HOUR = timedelta(minutes=30)
LAST = datetime(2027, 3, 1, 15, 59, 59, 999999, tzinfo=UTC)  # the last microsecond of the Monday in Shanghai
RESERVED, REVERSED = pb.REDEMPTION_STATUS_RESERVED, pb.REDEMPTION_STATUS_REVERSED
CONFIRMED = pb.REDEMPTION_STATUS_CONFIRMED

CUP = benefit("cup", limit=2)  # a piece of 20.00 for 8.00, twice a day
TEA = benefit("tea")  # as often as wanted
DELIVERY = benefit("delivery", "FREE_DELIVERY", limit=1, window="WEEK")


def till(*benefits: dict[str, Any], at: datetime = NOON) -> Till:
    """A member with a card of these benefits."""
    made = Till(product(*benefits or (CUP, TEA, DELIVERY)), at=at)
    made.buy()
    return made


def taken(answer: pb.RedeemBenefitsResponse) -> dict[str, int]:
    return {one.benefit_code: one.uses for one in answer.redemptions}


# --- once for an order --------------------------------------------------------------------------------


def test_what_lowers_an_order_is_reserved_and_counted() -> None:
    member = till()
    answer = member.redeem(basket("o", delivery=FEE, cup=3, tea=1))
    assert taken(answer) == {"cup": 2, "tea": 1, "delivery": 1}
    assert answer.quote.saved_minor == 3 * 1200 + FEE == member.card.saved["seg_0"]
    assert [one.benefit_code for one in answer.redemptions] == ["cup", "delivery", "tea"]
    for one in answer.redemptions:
        assert (one.status, one.order_id, one.card_id, one.segment_id) == (RESERVED, "o", CARD, "seg_0")
        assert instant(one.lapse_time) - instant(one.create_time) == HALF_AN_HOUR
    assert member.window("cup", "2027-03-01") == KeptWindow(2, 2)
    assert member.window("delivery", "2027-W09") == KeptWindow(1, 1)
    assert member.window("tea", "") == KeptWindow(0, 0)
    assert member.events == []


def test_the_same_basket_again_is_refused_and_the_same_request_gets_the_first_answer() -> None:
    member, bill = till(), basket("o", cup=1)
    first = member.redeem(bill, request_id="r")
    assert member.redeem(bill, request_id="r") == first
    with pytest.raises(OrderAlreadyRedeemed):
        member.redeem(bill)
    with pytest.raises(RequestIdReused):
        member.redeem(basket("o", cup=2), request_id="r")
    member.confirm("o")
    with pytest.raises(OrderAlreadyRedeemed):
        member.redeem(bill)
    assert member.redeem(bill, request_id="r") == first
    assert member.window("cup", "2027-03-01").used == 1


def test_an_order_whose_uses_were_given_back_may_be_redeemed_again() -> None:
    member, bill = till(), basket("o", cup=2)
    first = member.redeem(bill)
    member.reverse("o")
    second = member.redeem(bill)
    member.wait(minutes=30)
    third = member.redeem(bill)  # what was reserved has lapsed
    ids = {one.redemption_id for answer in (first, second, third) for one in answer.redemptions}
    assert len(ids) == 3
    confirmed = member.confirm("o").redemptions
    assert [one.redemption_id for one in confirmed] == [third.redemptions[0].redemption_id]
    assert [kept.ending for kept in member.uses("o")] == [UseEnding.CANCELLED, UseEnding.LAPSED, None]
    assert member.window("cup", "2027-03-01").used == 2


def test_a_price_that_is_known_is_taken_while_the_same_benefits_hold_and_else_it_is_searched_for() -> None:
    member, bill = till(), basket("o", cup=3)
    known = using.price(member.wallet, bill, member.products, member.at, ZONE).solved
    marked = replace(known, quote=replace(known.quote, bound=known.quote.bound + 1))
    assert member.redeem(bill, solved=marked).quote.saved_bound_minor == marked.quote.bound
    member.reverse("o")
    member.redeem(basket("other", cup=1))
    answer = member.redeem(bill, solved=marked)
    assert (taken(answer), answer.quote.saved_bound_minor) == ({"cup": 1}, 1200)


def test_an_order_that_nothing_lowers_is_remembered_all_the_same() -> None:
    member = till()
    answer = member.redeem(basket("o", cake=1))
    assert (list(answer.redemptions), answer.quote.saved_minor) == ([], 0)
    assert list(member.confirm("o").redemptions) == []
    assert list(member.reverse("o").redemptions) == []
    member.refund("o", all_left=True)
    assert member.events == []
    assert taken(member.redeem(basket("o", cake=1, cup=1))) == {"cup": 1}


def test_an_order_that_was_given_back_and_then_saves_nothing_is_confirmed_with_nothing() -> None:
    member = till()
    member.redeem(basket("o", cup=1))
    member.reverse("o")
    member.redeem(basket("o", cake=1))
    assert list(member.confirm("o").redemptions) == []


def test_less_than_was_shown_is_refused_and_takes_nothing() -> None:
    member = till()
    member.redeem(basket("o", cup=1), expected=1200)
    with pytest.raises(QuoteChanged) as refusal:
        member.redeem(basket("p", cup=2), expected=2400)
    assert refusal.value.metadata == {"expected_saved_minor": "2400", "saved_minor": "1200"}
    assert member.uses("p") == []
    assert taken(member.redeem(basket("p", cup=2), expected=1200)) == {"cup": 1}


def test_an_order_that_nobody_redeemed_is_unknown() -> None:
    member = till()
    for undo in (member.confirm, member.reverse):
        with pytest.raises(RedemptionUnknown):
            undo("o")
    member.refund("o", all_left=True)  # an order without benefits, as most are
    assert member.wallet.baskets == {}


def test_what_is_shown_is_what_is_taken() -> None:
    member, bill = till(), basket("o", delivery=FEE, cup=3, tea=2, cake=1)
    shown = using.price(member.wallet, bill, member.products, member.at, ZONE).quote
    assert member.redeem(bill, expected=shown.saved).quote == messages.quote(shown, "CNY")
    after = using.price(member.wallet, basket("p", cup=1), member.products, member.at, ZONE).quote
    assert after.saved == 0
    lapsed = using.price(member.wallet, basket("p", cup=1), member.products, NOON + HALF_AN_HOUR, ZONE).quote
    assert lapsed.saved == 1200


# --- confirming and giving back -----------------------------------------------------------------------


def test_a_confirmed_use_is_told_with_what_is_left_and_when_it_fills() -> None:
    member = till()
    member.redeem(basket("o", delivery=FEE, cup=1, tea=2))
    assert {one.status for one in member.confirm("o").redemptions} == {CONFIRMED}
    cup, delivery, tea = member.heard(epb.BenefitUsed)
    assert (cup.benefit_code, cup.quantity, cup.saved_minor, cup.remaining) == ("cup", 1, 1200, 1)
    assert (cup.plan_id, cup.segment_id, cup.order_id) == ("coffee", "seg_0", "o")
    assert instant(cup.reset_time) == LAST + TICK
    assert (delivery.limited, delivery.remaining) == (True, 0)
    assert instant(delivery.reset_time) == LAST + TICK + 6 * DAY
    assert (tea.limited, tea.quantity, tea.HasField("reset_time")) == (False, 2, False)
    assert [one.version for one in (cup, delivery, tea)] == [1, 2, 3]
    first = member.confirm("o")
    assert first == member.confirm("o")
    assert len(member.heard(epb.BenefitUsed)) == 3


def test_a_quota_that_does_not_fill_while_the_card_runs_is_told_without_a_time() -> None:
    member = till(benefit("cup", limit=3, window="PERIOD"))
    member.redeem(basket("o", cup=1))
    member.confirm("o")
    (used,) = member.heard(epb.BenefitUsed)
    assert (used.limited, used.remaining, used.HasField("reset_time")) == (True, 2, False)


def test_a_benefit_whose_hours_are_over_is_confirmed_with_what_is_left_of_it() -> None:
    breakfast = benefit("cup", limit=2, dayparts=[{"start": "11:00", "end": "12:10"}])
    member = till(breakfast)
    member.redeem(basket("o", cup=1))
    member.wait(minutes=20)
    assert taken(member.redeem(basket("p", cup=1))) == {}
    member.confirm("o")
    assert [one.remaining for one in member.heard(epb.BenefitUsed)] == [1]


def test_a_use_confirmed_after_its_card_rests_leaves_nothing_to_use() -> None:
    member = till()
    member.redeem(basket("o", cup=1))
    resting = cards.freeze(member.card.card, FreezePolicy(1, 30, 1), 2, member.at, ZONE)
    member.wallet.cards[CARD] = replace(member.card, card=resting)
    member.confirm("o")
    (used,) = member.heard(epb.BenefitUsed)
    assert (used.limited, used.remaining, used.HasField("reset_time")) == (True, 0, False)


def test_a_reservation_lapses_at_its_instant_and_not_before() -> None:
    member = till()
    member.redeem(basket("o", cup=2))
    member.at += HALF_AN_HOUR - TICK
    assert taken(member.redeem(basket("p", cup=1))) == {}
    member.at += TICK
    with pytest.raises(RedemptionLapsed):
        member.confirm("o")
    assert member.uses("o")[0].use.status is UseStatus.RESERVED  # what was refused left nothing
    assert taken(member.redeem(basket("q", cup=1))) == {"cup": 1}
    with pytest.raises(RedemptionLapsed):
        member.confirm("o")
    assert {one.status for one in member.reverse("o").redemptions} == {REVERSED}
    assert member.events == []
    assert member.card.saved == {"seg_0": 1200}


def test_the_member_is_due_when_the_first_reservation_lapses() -> None:
    member = till()
    member.redeem(basket("o", cup=1))
    member.wait(minutes=10)
    member.redeem(basket("p", cup=1))
    assert member.wallet.next_due_time == NOON + HALF_AN_HOUR
    member.confirm("o")
    assert member.wallet.next_due_time == NOON + HALF_AN_HOUR + 10 * MINUTE
    member.wait(minutes=30)
    member.settle()
    assert member.uses("p")[0].ending is UseEnding.LAPSED
    assert member.window("cup", "2027-03-01").used == 1


def test_giving_back_a_reserved_use_tells_nobody_and_a_confirmed_one_is_told() -> None:
    member = till()
    member.redeem(basket("o", cup=1))
    assert {one.status for one in member.reverse("o").redemptions} == {REVERSED}
    assert member.events == []
    with pytest.raises(RedemptionReversed):
        member.confirm("o")
    member.redeem(basket("p", cup=2))
    member.confirm("p")
    member.reverse("p")
    (told,) = member.heard(epb.BenefitReversed)
    assert (told.order_id, told.quantity, told.saved_minor) == ("p", 2, 2400)
    assert (told.reason, told.version) == (epb.BENEFIT_REVERSE_REASON_ORDER_CANCELLED, 2)
    assert {one.status for one in member.reverse("p").redemptions} == {REVERSED}
    assert len(member.heard(epb.BenefitReversed)) == 1
    assert member.card.saved == {"seg_0": 0}


# --- windows ------------------------------------------------------------------------------------------


def test_the_last_microsecond_of_a_day_in_shanghai_is_of_that_day() -> None:
    member = till(CUP, benefit("cake", limit=1, window="WEEK"), at=LAST - 3 * DAY)
    member.at = LAST
    assert taken(member.redeem(basket("o", cup=3, cake=1))) == {"cup": 2, "cake": 1}
    assert taken(member.redeem(basket("p", cup=1, cake=1))) == {}
    member.at += TICK
    assert taken(member.redeem(basket("q", cup=3, cake=1))) == {"cup": 2}
    assert member.window("cup", "2027-03-01") == KeptWindow(2, 2)
    assert member.window("cup", "2027-03-02") == KeptWindow(2, 2)


def test_the_last_microsecond_of_a_week_in_shanghai_is_of_that_week() -> None:
    sunday = LAST + 6 * DAY
    member = till(benefit("cake", limit=1, window="WEEK"), at=sunday - DAY)
    member.at = sunday
    assert taken(member.redeem(basket("o", cake=2))) == {"cake": 1}
    member.at += TICK
    assert taken(member.redeem(basket("p", cake=2))) == {"cake": 1}
    assert [name[2] for name in member.wallet.windows] == ["2027-W09", "2027-W10"]


def test_a_use_given_back_later_returns_to_the_day_it_came_from() -> None:
    member = till(at=LAST)
    member.redeem(basket("o", cup=2))
    member.confirm("o")
    member.at += TICK
    member.redeem(basket("p", cup=1))
    member.reverse("o")
    assert member.window("cup", "2027-03-01") == KeptWindow(0, 2)
    assert member.window("cup", "2027-03-02") == KeptWindow(1, 2)


def test_a_use_confirmed_after_midnight_counts_in_the_day_before_and_tells_of_the_new_one() -> None:
    member = till(at=LAST)
    member.redeem(basket("o", cup=2))
    member.at += 10 * MINUTE
    member.confirm("o")
    (used,) = member.heard(epb.BenefitUsed)
    assert (used.remaining, instant(used.reset_time)) == (2, LAST + TICK + DAY)
    assert member.window("cup", "2027-03-02").used == 0


def test_a_day_survives_a_change_of_period_with_the_limit_of_the_one_that_runs() -> None:
    """Three cups at noon less a moment, then a period with a cup a day, then one with five."""
    versions = [product(benefit("cup", limit=limit), version=v) for v, limit in ((1, 3), (2, 1), (3, 5))]
    member = Till(*versions)
    for version in (1, 2, 3):
        member.buy(version=version)
    member.at = NOON + 7 * DAY - TICK
    assert taken(member.redeem(basket("o", cup=2))) == {"cup": 2}
    member.confirm("o")
    member.at += TICK  # the second period begins at noon of the same day
    assert taken(member.redeem(basket("p", cup=2))) == {}
    assert member.window("cup", "2027-03-08") == KeptWindow(2, 3)
    member.reverse("o")
    answer = member.redeem(basket("p", cup=2))
    assert [(one.uses, one.segment_id) for one in answer.redemptions] == [(1, "seg_1")]
    assert member.window("cup", "2027-03-08") == KeptWindow(1, 1)
    member.at = NOON + 14 * DAY - TICK
    assert taken(member.redeem(basket("q", cup=9))) == {"cup": 1}
    member.at += TICK
    answer = member.redeem(basket("r", cup=9))
    assert [(one.uses, one.segment_id) for one in answer.redemptions] == [(4, "seg_2")]
    assert member.window("cup", "2027-03-15") == KeptWindow(5, 5)
    assert member.card.saved == {"seg_0": 0, "seg_1": 1200, "seg_2": 4800}  # `p` has lapsed


def test_cards_side_by_side_have_windows_of_their_own_and_their_benefits_join() -> None:
    dearer = product(benefit("cup", limit=1, value=1000), code="king", family="king")
    member = Till(product(benefit("cup", limit=1)), dearer)
    member.buy("coffee")
    member.buy("king")
    answer = member.redeem(basket("o", cup=3))
    assert [(one.card_id, one.uses, one.saved_minor) for one in answer.redemptions] == [
        (CARD, 1, 1200),
        (OTHER, 1, 1000),
    ]
    assert {name: window.used for name, window in member.wallet.windows.items()} == {
        (CARD, "cup", "2027-03-01"): 1,
        (OTHER, "cup", "2027-03-01"): 1,
    }
    later = using.entitlements(member.wallet, member.products, NOON + HALF_AN_HOUR, ZONE)
    assert [(one.used, one.remaining) for one in later] == [(0, 1), (0, 1)]  # each lapsed in its own window
    member.confirm("o")
    assert [(one.plan_id, one.version) for one in member.heard(epb.BenefitUsed)] == [
        ("coffee", 1),
        ("king", 1),
    ]


# --- refunds of the order -----------------------------------------------------------------------------


def refundable() -> Till:
    """An order with three uses, confirmed: a cup of 8.00, two teas of 8.00 beside a cake, the delivery."""
    member = till(CUP, TEA, DELIVERY)
    member.redeem(basket("o", delivery=FEE, cup=1, tea=2, cake=1))
    member.confirm("o")
    return member


def given_back(member: Till) -> list[str]:
    told = member.heard(epb.BenefitReversed)
    assert all(one.reason == epb.BENEFIT_REVERSE_REASON_ORDER_REFUNDED for one in told)
    return [one.benefit_code for one in told]


def test_a_refund_of_the_whole_order_gives_everything_back() -> None:
    member = refundable()
    member.refund("o", all_left=True)
    assert given_back(member) == ["cup", "delivery", "tea"]
    assert member.card.saved == {"seg_0": 0}
    member.refund("o", "refund-2", all_left=True)
    assert len(given_back(member)) == 3


def test_a_line_that_was_refunded_whole_gives_its_uses_back_and_the_others_stay() -> None:
    member = refundable()
    member.refund("o", lines={"cake": 2000})
    assert given_back(member) == []
    member.refund("o", "refund-2", lines={"cup": 800})
    assert given_back(member) == ["cup"]
    assert member.window("cup", "2027-03-01").used == 0
    assert [one.benefit_code for one in member.confirm("o").redemptions] == ["delivery", "tea"]


def test_parts_of_a_line_add_up_and_a_refund_told_twice_counts_once() -> None:
    member = refundable()
    member.refund("o", lines={"tea": 800})
    member.refund("o", lines={"tea": 1600})  # the same refund: what was told first counts
    assert given_back(member) == []
    member.refund("o", "refund-2", lines={"tea": 799})
    assert given_back(member) == []
    member.refund("o", "refund-3", lines={"tea": 1})
    assert given_back(member) == ["tea"]


def test_amounts_that_come_to_all_that_was_paid_give_everything_back() -> None:
    member = refundable()
    paid = 800 + 2 * 800 + 2000
    member.refund("o", amount_minor=paid - 1000 - 1)
    member.refund("o", "refund-2", lines={"cake": 1000})
    assert given_back(member) == []
    member.refund("o", "refund-3", amount_minor=1)
    assert given_back(member) == ["cup", "delivery", "tea"]


def test_a_use_on_several_lines_is_given_back_with_the_last_of_them() -> None:
    menu = benefit("menu", "BUNDLE_PRICE", limit=3, scope="true", value=2500)
    menu["parts"] = [{"scope": f"line.category == '{name}'", "quantity": 1} for name in ("burger", "drink")]
    member = till(menu)
    answer = member.redeem(basket("o", burger=1, drink=1))
    assert taken(answer) == {"menu": 1}
    assert [line.pay_minor for line in answer.quote.lines] == [1250, 1250]
    member.confirm("o")
    member.refund("o", lines={"burger": 1250})
    assert given_back(member) == []
    member.refund("o", "refund-2", lines={"drink": 1250})
    assert given_back(member) == ["menu"]


def test_what_was_free_is_given_back_with_the_order() -> None:
    member = till(benefit("cup", "FREE_ITEM", limit=1))
    member.redeem(basket("o", cup=1, cake=1))
    member.confirm("o")
    member.refund("o", lines={"cake": 1999})
    assert given_back(member) == []
    member.refund("o", "refund-2", lines={"cake": 1})
    assert given_back(member) == ["cup"]
    member.redeem(basket("p", cup=1))
    member.confirm("p")
    member.refund("p", all_left=True)  # nothing was paid for it
    assert given_back(member) == ["cup", "cup"]


def test_a_refund_before_the_confirmation_gives_back_without_a_word() -> None:
    member = till()
    member.redeem(basket("o", cup=1, tea=1))
    member.refund("o", lines={"cup": 800})
    assert [one.benefit_code for one in member.confirm("o").redemptions] == ["tea"]
    member.redeem(basket("p", cup=1))
    member.refund("p", all_left=True)
    assert given_back(member) == []
    with pytest.raises(RedemptionReversed):
        member.confirm("p")


# --- a plain model of windows -------------------------------------------------------------------------

# Three periods of a week, one behind the other, each with limits of its own for a day, a week and itself.
LIMITS = [
    {"cup": 3, "cake": 4, "roll": 5},
    {"cup": 1, "cake": 6, "roll": 2},
    {"cup": 2, "cake": 1, "roll": 3},
]
WINDOWS = {"cup": "DAY", "cake": "WEEK", "roll": "PERIOD"}
PERIODS = [
    product(*(benefit(code, limit=limit, window=WINDOWS[code]) for code, limit in limits.items()), version=v)
    for v, limits in enumerate(LIMITS, 1)
]
SHANGHAI = timedelta(hours=8)
MONDAY = datetime(2027, 3, 1)  # noqa: DTZ001 - local time of a place that never changes its clocks
SAVES = 1200


@dataclass
class Used:
    """What the model remembers of a use: minutes since noon of the first day."""

    order: int
    code: str
    uses: int
    made: datetime
    period: int
    status: str = "reserved"

    def counts(self, at: datetime) -> bool:
        lapsed = self.status == "reserved" and at - self.made >= HALF_AN_HOUR
        return self.status != "gone" and not lapsed


class Model:
    """How often what was used, from the definition: every use is looked at, every time."""

    def __init__(self) -> None:
        self.used: list[Used] = []

    def left(self, code: str, at: datetime) -> int:
        period = (at - NOON) // (7 * DAY)
        if not 0 <= period < len(LIMITS):
            return 0
        same = [one for one in self.used if one.code == code and one.counts(at) and self._near(one, at)]
        return max(0, LIMITS[period][code] - sum(one.uses for one in same))

    @staticmethod
    def _near(one: Used, at: datetime) -> bool:
        """Whether a use was made in the window that an instant is in."""
        made, now = ((moment + SHANGHAI).replace(tzinfo=None) for moment in (one.made, at))
        match WINDOWS[one.code]:
            case "DAY":
                return made.date() == now.date()
            case "WEEK":
                return (made - MONDAY) // (7 * DAY) == (now - MONDAY) // (7 * DAY)
            case _:
                return one.period == (at - NOON) // (7 * DAY)

    def of(self, order: int, at: datetime) -> list[Used]:
        return [one for one in self.used if one.order == order and one.counts(at)]

    def end(self, order: int, at: datetime) -> None:
        for one in self.of(order, at):
            one.status = "gone"


pieces = st.fixed_dictionaries({code: st.integers(0, 4) for code in WINDOWS})
waits = st.one_of(
    st.sampled_from(
        [TICK, HALF_AN_HOUR - TICK, HALF_AN_HOUR, 12 * HOUR, 12 * HOUR - TICK, DAY, 7 * DAY - TICK]
    ),
    st.integers(1, 3 * 24 * 60).map(lambda minutes: minutes * MINUTE),
)
orders = st.integers(0, 3)
deeds = st.lists(
    st.one_of(
        st.tuples(st.just("redeem"), orders, pieces),
        st.tuples(st.just("redeem"), orders, pieces),
        st.tuples(st.sampled_from(["confirm", "reverse", "refund"]), orders),
        st.tuples(st.just("wait"), waits),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(deeds)
def test_quotas_are_what_a_plain_count_of_uses_says(done: list[tuple[Any, ...]]) -> None:
    member, model, refunds = Till(*PERIODS), Model(), iter(range(1000))
    for version in (1, 2, 3):
        member.buy(version=version)
    for deed in done:
        match deed:
            case ("wait", duration):
                member.at += duration
            case ("redeem", order, wanted):
                _redeem(member, model, order, wanted)
            case ("confirm", order):
                _confirm(member, model, order)
            case ("reverse", order):
                if f"o{order}" in member.wallet.baskets:
                    member.reverse(f"o{order}")
                    model.end(order, member.at)
            case ("refund", order):
                member.refund(f"o{order}", f"refund-{next(refunds)}", all_left=True)
                model.end(order, member.at)
        _same(member, model)


def _redeem(member: Till, model: Model, order: int, wanted: dict[str, int]) -> None:
    bill, at = basket(f"o{order}", **{code: count for code, count in wanted.items() if count}), member.at
    if model.of(order, at):
        with pytest.raises(OrderAlreadyRedeemed):
            member.redeem(bill)
        return
    expected = {code: min(count, model.left(code, at)) for code, count in wanted.items()}
    expected = {code: count for code, count in expected.items() if count}
    answer = member.redeem(bill, SAVES * sum(expected.values()))
    assert taken(answer) == expected
    period = (at - NOON) // (7 * DAY)
    assert all(one.segment_id == f"seg_{period}" for one in answer.redemptions)
    model.used += [Used(order, code, count, at, period) for code, count in expected.items()]


def _confirm(member: Till, model: Model, order: int) -> None:
    live = model.of(order, member.at)
    basket_ids = member.wallet.baskets.get(f"o{order}")
    if live or (basket_ids and not basket_ids.redemption_ids):
        confirmed = member.confirm(f"o{order}").redemptions
        assert {one.benefit_code: one.uses for one in confirmed} == {one.code: one.uses for one in live}
        for one in live:
            one.status = "confirmed"
    else:
        with pytest.raises((RedemptionUnknown, RedemptionLapsed, RedemptionReversed)):
            member.confirm(f"o{order}")


def _same(member: Till, model: Model) -> None:
    """What may be used now, and what was saved, are what the model says."""
    given = using.entitlements(member.wallet, member.products, member.at, ZONE)
    assert {one.benefit.code: one.remaining for one in given} == {
        code: model.left(code, member.at) for code in (WINDOWS if given else {})
    }
    for period in range(len(LIMITS)):
        mine = (one for one in model.used if one.period == period and one.counts(member.at))
        lapsed = sum(
            kept.use.saved_minor
            for kept in member.wallet.uses.values()
            if kept.use.segment_id == f"seg_{period}"
            and kept.use.status is UseStatus.RESERVED
            and not kept.use.live(member.at)
        )
        saved = member.card.saved.get(f"seg_{period}", 0) - lapsed
        assert saved == SAVES * sum(one.uses for one in mine)
