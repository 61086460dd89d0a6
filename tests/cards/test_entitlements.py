"""What a card gives: the running period's benefits, what is left of them, until when."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from services.cards.domain import cards
from services.cards.domain.cards import Card, Purchase
from services.cards.domain.entitlements import Entitlement, Giver
from services.cards.domain.periods import Period
from services.cards.domain.products import Benefit, BenefitKind, BundlePart, Daypart, FreezePolicy
from services.cards.domain.quotas import Quota, Window

ZONE = ZoneInfo("Asia/Shanghai")
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
NOON = datetime(2027, 1, 31, 4, 0, tzinfo=UTC)
END = datetime(2027, 2, 28, 4, 0, tzinfo=UTC)
NEXT_MIDNIGHT = datetime(2027, 2, 28, 16, 0, tzinfo=UTC)


def cup(limit: int, window: Window = Window.DAY) -> Benefit:
    return Benefit("cup", BenefitKind.FIXED_PRICE, 800, quota=Quota(limit, window))


DELIVERY = Benefit("delivery", BenefitKind.FREE_DELIVERY)
BREAKFAST = Benefit("breakfast", BenefitKind.PERCENT_OFF, 50, dayparts=(Daypart(time(5), time(10, 30)),))


def card(*versions: int) -> Card:
    made = Card("c")
    for version in versions:
        bought = Purchase(f"s{len(made.segments)}", "coffee", version, Period(months=1), 0, NOON)
        made = cards.extend(made, bought, NOON, ZONE)
    return made


def given(made: Card, at: datetime, used: int = 0, key: str = "2027-02-28") -> list[Entitlement]:
    benefits = {
        ("coffee", 1): [cup(3), DELIVERY],
        ("coffee", 2): [cup(1), BREAKFAST],
        ("coffee", 3): [cup(5, Window.PERIOD)],
    }
    return Giver(made, benefits, {("cup", key): used}, ZONE).entitlements(at)


def test_what_was_used_today_stays_used_in_the_period_that_begins_today() -> None:
    made = card(1, 2)
    before, _ = given(made, END - TICK, used=2)
    assert (before.remaining, before.segment_id, before.window_key) == (1, "s0", "2027-02-28")
    (after,) = given(made, END, used=2)
    assert (after.remaining, after.segment_id, after.window_key) == (0, "s1", "2027-02-28")
    assert after.reset == NEXT_MIDNIGHT


def test_a_benefit_is_valid_until_the_last_period_that_gives_it() -> None:
    made = card(1, 2)
    coffee, delivery = given(made, NOON)
    assert coffee.valid_until == made.segments[1].end
    assert delivery.valid_until == END
    assert (delivery.remaining, delivery.reset) == (None, None)


def test_a_quota_that_fills_only_after_the_card_is_over_does_not_fill() -> None:
    last_day = given(card(1), END - TICK)[0]
    assert last_day.reset is None
    assert given(card(1), END - DAY)[0].reset == NEXT_MIDNIGHT - DAY


def test_a_quota_of_the_period_fills_with_the_next_period() -> None:
    (alone,) = given(card(3), NOON, used=4, key="s0")
    assert (alone.remaining, alone.reset) == (1, None)
    (first,) = given(card(3, 3), NOON, used=5, key="s0")
    assert (first.remaining, first.reset) == (0, END)
    (second,) = given(card(3, 3), END, used=5, key="s0")
    assert second.remaining == 5


def test_a_benefit_holds_in_its_dayparts() -> None:
    morning = END + 3 * timedelta(hours=1) + 14 * timedelta(hours=1)  # 05:00 the next day
    assert [one.benefit.code for one in given(card(1, 2), morning)] == ["cup", "breakfast"]
    assert [one.benefit.code for one in given(card(1, 2), morning - TICK)] == ["cup"]


def test_a_card_that_rests_or_is_over_gives_nothing_and_its_quota_does_not_fill_meanwhile() -> None:
    made = cards.freeze(card(3), FreezePolicy(1, 30, 1), 10, NOON + DAY, ZONE)
    assert given(made, NOON + DAY) == []
    (after,) = given(made, NOON + 11 * DAY, used=5, key="s0")
    assert after.remaining == 0
    assert after.valid_until == END + 10 * DAY
    assert given(made, END + 10 * DAY) == []


def test_an_entitlement_becomes_an_offer_for_an_order() -> None:
    (coffee,) = given(card(2), END - DAY, used=0)
    offer = coffee.offer(frozenset({"a"}), [])
    assert (offer.name, offer.limit, offer.value) == (("c", "cup"), 1, 800)
    menu = Benefit(
        "menu",
        BenefitKind.BUNDLE_PRICE,
        2900,
        quota=Quota(5, Window.WEEK),
        max_per_order=2,
        parts=(BundlePart("burger", 1), BundlePart("drink", 2)),
    )
    bundle = Entitlement("c", "s", ("p", 1), menu, "2027-W08", 2, 3, None, END).offer(
        frozenset(), [frozenset("a"), frozenset("b")]
    )
    assert [(part.quantity, *part.lines) for part in bundle.parts] == [(1, "a"), (2, "b")]
    assert bundle.limit == 2
