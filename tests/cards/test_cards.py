"""A card at an instant: what it is, how rests, upgrades and refunds change its chain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cards.domain import cards
from services.cards.domain.books import overlapping
from services.cards.domain.cards import Card, CardStatus, Credit, Ending, Gift, Purchase
from services.cards.domain.periods import Period
from services.cards.domain.products import FreezePolicy
from services.cards.errors import (
    CardFrozen,
    CardNotActive,
    CardNotFrozen,
    ChainTooLong,
    CreditExceedsPrice,
    FreezeCount,
    FreezeLength,
    FreezeNotAllowed,
    FreezeTooShort,
    GiftClaimed,
    GiftExpired,
    GiftNotPaid,
    GiftRefunded,
    UpgradeUnitMismatch,
)

ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2027, 1, 31, 4, 0, tzinfo=UTC)  # 12:00 in Shanghai
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
MONTH, QUARTER = Period(months=1), Period(months=3)
POLICY = FreezePolicy(shortest_days=3, longest_days=30, count=2)


def purchase(name: str, at: datetime = NOON, period: Period = MONTH, paid: int = 1900) -> Purchase:
    return Purchase(name, "king", 1, period, 7, at, paid)


def bought(*names: str) -> Card:
    """A card of a month each, all bought at NOON."""
    card = Card("c")
    for name in names:
        card = cards.extend(card, purchase(name), NOON, ZONE)
    return card


def at_shanghai(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2027, month, day, hour, tzinfo=ZONE).astimezone(UTC)


# --- status -------------------------------------------------------------------------------------------


def test_status_is_right_at_the_boundary_instants() -> None:
    card = bought("a")
    end = card.segments[0].end
    assert end == at_shanghai(2, 28)
    assert card.status(NOON - TICK, ZONE) is CardStatus.SCHEDULED
    assert card.status(NOON, ZONE) is CardStatus.ACTIVE
    assert card.status(end - TICK, ZONE) is CardStatus.ACTIVE
    assert card.status(end, ZONE) is CardStatus.EXPIRED


def test_between_periods_of_a_chain_there_is_no_instant_without_one() -> None:
    card = bought("a", "b")
    boundary = card.segments[0].end
    before, after = card.running(boundary - TICK, ZONE), card.running(boundary, ZONE)
    assert before is not None
    assert after is not None
    assert (before.segment_id, after.segment_id) == ("a", "b")


def test_a_card_renewed_late_was_expired_in_between() -> None:
    card = bought("a")
    late = card.segments[0].end + 3 * DAY
    card = cards.extend(card, purchase("b", late), late, ZONE)
    assert card.status(late - TICK, ZONE) is CardStatus.SCHEDULED  # as seen from today: it will run
    assert card.status(late, ZONE) is CardStatus.ACTIVE
    assert card.segments[1].streak == 2


def test_a_card_given_back_is_refunded_from_that_instant_on() -> None:
    now = NOON + 3 * DAY
    card = cards.end_live(bought("a", "b"), Ending.REFUNDED, now, ZONE)
    assert card.status(now - TICK, ZONE) is CardStatus.ACTIVE
    assert card.status(now, ZONE) is CardStatus.REFUNDED
    assert card.status(card.segments[1].start, ZONE) is CardStatus.REFUNDED
    assert card.live(now) == []


def test_a_card_that_was_upgraded_and_given_back_at_one_instant_is_refunded() -> None:
    upgraded = cards.upgrade(bought("a"), purchase("q", period=QUARTER), NOON, ZONE)
    card = cards.end_live(upgraded, Ending.REFUNDED, NOON, ZONE)
    assert [segment.ending for segment in card.segments] == [Ending.REPLACED, Ending.REFUNDED]
    assert card.status(NOON, ZONE) is CardStatus.REFUNDED


def test_what_is_bought_after_a_refund_starts_a_new_chain_at_once() -> None:
    now = NOON + 3 * DAY
    card = cards.end_live(bought("a", "b"), Ending.REFUNDED, now, ZONE)
    card = cards.extend(card, purchase("c", now), now + DAY, ZONE)
    assert (card.segments[2].start, card.segments[2].streak) == (now + DAY, 1)
    assert card.status(now + DAY, ZONE) is CardStatus.ACTIVE
    assert overlapping("c", card.segments) == []


def test_a_chain_has_an_end() -> None:
    card = bought(*(str(n) for n in range(cards.LONGEST_CHAIN)))
    with pytest.raises(ChainTooLong):
        cards.extend(card, purchase("more"), NOON, ZONE)


# --- rests --------------------------------------------------------------------------------------------


def test_a_rest_moves_what_runs_and_what_is_queued_by_its_length_and_anchors_them_anew() -> None:
    card = bought("a", "b")
    since, until = NOON + 10 * DAY, NOON + 15 * DAY
    rested = cards.resume(cards.freeze(card, POLICY, 0, since, ZONE), POLICY, until, ZONE)
    for before, after in zip(card.segments, rested.segments, strict=True):
        assert after.end == before.end + 5 * DAY
    assert rested.segments[0].start == NOON
    assert rested.segments[1].start == rested.segments[0].end
    assert rested.segments[1].end == at_shanghai(4, 5)
    renewed = cards.extend(rested, purchase("c", until), until, ZONE)
    assert renewed.segments[2].end == at_shanghai(5, 5)


def test_a_rest_ends_by_itself_at_the_instant_without_any_sweep() -> None:
    since = NOON + 10 * DAY
    card = cards.freeze(bought("a"), POLICY, 5, since, ZONE)
    until = since + 5 * DAY
    assert card.status(since, ZONE) is CardStatus.FROZEN
    assert card.running(until - TICK, ZONE) is None
    assert card.status(until - TICK, ZONE) is CardStatus.FROZEN
    assert card.status(until, ZONE) is CardStatus.ACTIVE
    end = at_shanghai(2, 28) + 5 * DAY
    assert card.status(end - TICK, ZONE) is CardStatus.ACTIVE
    assert card.status(end, ZONE) is CardStatus.EXPIRED


def test_before_its_rest_began_a_card_runs_as_it_did() -> None:
    card = bought("a", "b")
    frozen = cards.freeze(card, POLICY, 10, NOON + 5 * DAY, ZONE)
    before = NOON + 5 * DAY - TICK
    assert frozen.status(before, ZONE) is CardStatus.ACTIVE
    assert [s.end for s in frozen.as_of(before, ZONE).segments] == [s.end for s in card.segments]
    assert frozen.status(NOON + 5 * DAY, ZONE) is CardStatus.FROZEN


def test_a_card_that_rests_over_its_end_has_not_expired() -> None:
    since = at_shanghai(2, 27)
    card = cards.freeze(bought("a"), POLICY, 30, since, ZONE)
    assert card.status(at_shanghai(3, 10), ZONE) is CardStatus.FROZEN
    resumed = cards.resume(card, POLICY, at_shanghai(3, 10), ZONE)
    assert resumed.segments[0].end == at_shanghai(3, 11)
    assert resumed.status(at_shanghai(3, 10), ZONE) is CardStatus.ACTIVE


def test_what_is_bought_while_a_card_rests_is_queued_and_moved_with_it() -> None:
    since = at_shanghai(2, 27)
    card = cards.freeze(bought("a"), POLICY, 30, since, ZONE)
    now = at_shanghai(3, 10)
    card = cards.extend(card, purchase("b", now), now, ZONE)
    assert card.status(now, ZONE) is CardStatus.FROZEN
    assert card.segments[1].paid_at == now
    resumed = cards.resume(card, POLICY, at_shanghai(3, 12), ZONE)
    a, b = resumed.segments
    assert (a.end, b.start) == (at_shanghai(3, 13), at_shanghai(3, 13))
    assert b.end == at_shanghai(3, 31) + 13 * DAY
    assert b.streak == 2


def test_rests_have_a_shortest_and_a_longest_length_and_a_number() -> None:
    card, now = bought("a"), NOON + DAY
    with pytest.raises(FreezeNotAllowed):
        cards.freeze(card, None, 0, now, ZONE)
    for days in (2, 31):
        with pytest.raises(FreezeLength):
            cards.freeze(card, POLICY, days, now, ZONE)
    with pytest.raises(CardNotFrozen):
        cards.resume(card, POLICY, now, ZONE)
    for _ in range(POLICY.count):
        card = cards.freeze(card, POLICY, 3, now, ZONE)
        with pytest.raises(CardFrozen):
            cards.freeze(card, POLICY, 3, now + DAY, ZONE)
        with pytest.raises(FreezeTooShort):
            cards.resume(card, POLICY, now + 3 * DAY - TICK, ZONE)
        now += 3 * DAY
    with pytest.raises(FreezeCount):
        cards.freeze(card, POLICY, 3, now, ZONE)
    with pytest.raises(CardNotActive):
        cards.freeze(card, POLICY, 3, at_shanghai(3, 28), ZONE)
    renewed = cards.extend(card, purchase("b", now), now, ZONE)
    later = renewed.as_of(now, ZONE).segments[0].end
    assert cards.freeze(renewed, POLICY, 3, later, ZONE).status(later, ZONE) is CardStatus.FROZEN


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(3, 30), st.integers(1, 20)), max_size=4), st.integers(1, 4))
def test_rests_neither_add_nor_take_time_nor_make_periods_overlap(
    rests: list[tuple[int, int]], periods: int
) -> None:
    card = bought(*(str(n) for n in range(periods)))
    lengths = [segment.end - segment.start for segment in card.segments]
    policy = FreezePolicy(0, 366, 100)
    now, frozen = NOON, {segment.segment_id: timedelta() for segment in card.segments}
    for length, gap in rests:
        now += gap * DAY
        running = card.running(now, ZONE)
        if running is None:
            break
        card = cards.freeze(card, policy, length, now, ZONE)
        frozen[running.segment_id] += length * DAY
        now += length * DAY
    card = card.as_of(now, ZONE)
    for segment, bought_for in zip(card.segments, lengths, strict=True):
        assert segment.end - segment.start - frozen[segment.segment_id] == bought_for
    assert overlapping("c", card.segments) == []
    assert all(a.end == b.start for a, b in zip(card.segments, card.segments[1:], strict=False))


# --- upgrades -----------------------------------------------------------------------------------------


def test_a_quarter_queues_behind_a_month() -> None:
    card = cards.extend(bought("a"), purchase("q", NOON, QUARTER, 3900), NOON + DAY, ZONE)
    assert card.segments[1].start == at_shanghai(2, 28)
    assert card.segments[1].end == at_shanghai(5, 31)


def test_an_upgrade_starts_now_and_ends_what_runs_and_is_queued() -> None:
    now = NOON + 8 * DAY
    card = cards.upgrade(bought("a", "b"), purchase("q", now, QUARTER, 3900), now, ZONE)
    a, b, q = card.segments
    assert (a.over, a.ending, b.ending) == (now, Ending.REPLACED, Ending.REPLACED)
    assert not any(b.runs(at) for at in (b.start, b.end - TICK))
    assert (q.start, q.end) == (now, at_shanghai(5, 8))
    assert q.streak == 2
    assert card.status(now, ZONE) is CardStatus.ACTIVE
    assert overlapping("c", card.segments) == []


def test_the_unused_days_pay_for_an_upgrade() -> None:
    """31 January to 28 February are 28 days; after 8 days and a bit 19 have not begun."""
    card = bought("a", "b")
    assert cards.unused_credit(card, NOON, ZONE) == Credit(3800, 0)
    credit = cards.unused_credit(card, NOON + 8 * DAY + TICK, ZONE)
    assert credit == Credit(1900 * 19 // 28 + 1900, 0)
    assert cards.upgrade_price(3900, credit, by_points=False) == (3900 - credit.minor, credit.minor)
    with pytest.raises(CreditExceedsPrice):
        cards.upgrade_price(3000, credit, by_points=False)
    with pytest.raises(UpgradeUnitMismatch):
        cards.upgrade_price(3000, credit, by_points=True)
    with pytest.raises(UpgradeUnitMismatch):
        cards.upgrade_price(3000, Credit(0, 5), by_points=False)


def test_an_upgrade_ends_a_rest_and_counts_the_days_that_rested_as_unused() -> None:
    since = NOON + 8 * DAY
    card = cards.freeze(bought("a"), POLICY, 10, since, ZONE)
    now = since + 6 * DAY
    assert cards.unused_credit(card, now, ZONE).minor == 1900 * 20 // 28
    card = cards.upgrade(card, purchase("q", now, QUARTER), now, ZONE)
    assert card.rest is None
    assert card.status(now, ZONE) is CardStatus.ACTIVE


def test_an_upgrade_of_nothing_is_a_purchase() -> None:
    late = at_shanghai(6, 1)
    card = cards.upgrade(bought("a"), purchase("q", late, QUARTER), late, ZONE)
    assert card.segments[0].ending is None
    assert card.segments[1].start == late


# --- rewards and gifts --------------------------------------------------------------------------------


def test_a_reward_taken_back_ends_its_own_period_alone() -> None:
    card, now = bought("a", "b", "c"), NOON + DAY
    without_b = cards.claw_back(card, "b", now, ZONE)
    assert [segment.segment_id for segment in without_b.live(now)] == ["a", "c"]
    assert without_b.status(at_shanghai(3, 15), ZONE) is CardStatus.SCHEDULED
    without_a = cards.claw_back(card, "a", now, ZONE)
    assert without_a.segments[0].over == now
    assert cards.claw_back(card, "a", at_shanghai(3, 1), ZONE) == card
    alone = cards.claw_back(bought("a"), "a", now, ZONE)
    assert alone.status(now, ZONE) is CardStatus.REFUNDED


def test_a_reward_can_be_taken_back_while_the_card_rests() -> None:
    since, now = NOON + DAY, NOON + 5 * DAY
    card = cards.freeze(bought("a", "b"), POLICY, 30, since, ZONE)
    queued = cards.claw_back(card, "b", now, ZONE)
    assert queued.status(now, ZONE) is CardStatus.FROZEN
    assert [segment.segment_id for segment in queued.as_of(now, ZONE).live(now)] == ["a"]
    resting = cards.claw_back(card, "a", now, ZONE)
    assert resting.status(now, ZONE) is CardStatus.SCHEDULED
    assert resting.segments[1].start == at_shanghai(2, 28) + 4 * DAY


def test_a_gift_is_claimed_once_in_time_and_when_it_is_paid() -> None:
    gift = Gift(paid=True, claim_until=NOON)
    gift.check_claim(NOON - TICK)
    for refused, error in (
        (Gift(paid=False, claim_until=NOON), GiftNotPaid),
        (Gift(paid=True, claim_until=NOON, claimed=True), GiftClaimed),
        (Gift(paid=True, claim_until=NOON, refunded=True), GiftRefunded),
        (Gift(paid=True, claim_until=NOON - TICK), GiftExpired),
    ):
        with pytest.raises(error):
            refused.check_claim(NOON - TICK)
