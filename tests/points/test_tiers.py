"""Tiers, also against a plain model of local days: reached at once, lost when period and grace are over."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.points.v1 import points_events_pb2 as epb

from services.points.domain.ledger import Unit
from services.points.domain.tiers import Ladder
from tests.points.desk import NOON, Desk, earn_rule, sequences

patiently = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])

TICK = timedelta(microseconds=1)
RUNGS = {"新粉": 10, "铁粉": 100, "挚爱粉": 1000}
# In some, midnight is skipped when summer begins, or comes twice when it ends.
ZONES = ["Asia/Shanghai", "America/New_York", "America/Havana", "Africa/Cairo", "Australia/Lord_Howe", "UTC"]
YEAR_END = datetime(2026, 12, 31, 15, 59, 59, tzinfo=UTC)  # one second before the new year in Shanghai


def ladder(
    rolling_days: int | None = None, grace_days: int = 0, rungs: dict[str, int] = RUNGS
) -> dict[str, Any]:
    window = {"rolling_days": rolling_days} if rolling_days else {"calendar_year": True}
    tiers = [{"tier_id": tier, "growth": growth} for tier, growth in rungs.items()]
    return {"tier_ladder": {**window, "grace_days": grace_days, "tiers": tiers}}


@dataclass(frozen=True)
class Change:
    """What was announced; `until` is the local day with whose first instant the tier can be lost."""

    before: str
    after: str
    reason: str
    until: date | None
    growth: int


def changes(desk: Desk, zone: str = "Asia/Shanghai") -> list[Change]:
    found = []
    for told in desk.announced(epb.TierChanged):
        until = None
        if told.HasField("valid_until_time"):
            instant = told.valid_until_time.ToDatetime(tzinfo=UTC)
            until = instant.astimezone(ZoneInfo(zone)).date()
            assert (instant - TICK).astimezone(ZoneInfo(zone)).date() == until - timedelta(days=1)
        reason = epb.TierChangeReason.Name(told.reason).removeprefix("TIER_CHANGE_REASON_")
        found.append(Change(told.from_tier, told.to_tier, reason, until, told.growth))
    return found


# --- the model ----------------------------------------------------------------------------------------


@dataclass
class Model:
    """Days on which growth came or went, and the tier held until a day."""

    rolling_days: int | None
    grace_days: int
    growth: list[tuple[date, int]] = field(default_factory=list)
    tier: str = ""
    ends: date | None = None
    told: list[Change] = field(default_factory=list)

    def first_counted(self, last: date) -> date:
        if self.rolling_days is None:
            return last.replace(month=1, day=1)
        return last - timedelta(days=self.rolling_days) + timedelta(days=1)

    def counted(self, first: date) -> int:
        return min(sum(n for _, n in self.growth), sum(n for day, n in self.growth if day >= first))

    def reached(self, growth: int) -> str:
        return ["", *RUNGS][sum(growth >= takes for takes in RUNGS.values())]

    def rank(self, tier: str) -> int:
        return ["", *RUNGS].index(tier)

    def change(self, after: str, reason: str, last: date, growth: int) -> None:
        ends = last + timedelta(days=self.grace_days + 1) if after else None
        self.told.append(Change(self.tier, after, reason, ends, growth))
        self.tier, self.ends = after, ends

    def see(self, today: date) -> None:
        """Ends every period that is over."""
        while self.ends is not None and self.ends <= today:
            last = self.ends - timedelta(days=self.grace_days + 1)
            growth = self.counted(self.first_counted(last))
            after = self.reached(growth)
            reason = "DEMOTED" if self.rank(after) < self.rank(self.tier) else "RENEWED"
            following = last.year + 1 if self.rolling_days is None else 0
            next_last = (
                date(following, 12, 31) if following else last + timedelta(days=self.rolling_days or 0)
            )
            self.change(after, reason, next_last, growth)

    def add(self, day: date, amount: int, today: date) -> None:
        """Growth of a day came or went, today."""
        self.growth.append((day, amount))
        growth = self.counted(self.first_counted(today))
        after = self.reached(growth)
        if self.rank(after) > self.rank(self.tier):
            last = date(today.year + 1, 12, 31)
            if self.rolling_days is not None:
                last = today + timedelta(days=self.rolling_days - 1)
            self.change(after, "PROMOTED", last, growth)


steps = st.one_of(
    st.tuples(st.just("earn"), st.integers(1, 1200), st.integers(0, 40 * 24)),
    st.tuples(st.just("earn"), st.integers(1, 120), st.integers(0, 0)),
    st.tuples(st.just("adjust"), st.integers(-200, 200).filter(bool), st.just(0)),
    st.tuples(st.just("undo"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 48), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 400 * 24), st.just(0)),
    st.tuples(st.just("midnight"), st.integers(0, 90), st.sampled_from([-1, 0, 1])),
)


@patiently
@given(
    sequences(steps, 25),
    st.sampled_from(ZONES),
    st.none() | st.sampled_from([1, 7, 30, 365]),
    st.sampled_from([0, 0, 1, 31]),
    st.integers(0, 1000 * 24 * 60),
)
def test_tiers_are_those_of_a_plain_model_of_days(
    story: list[tuple[str, int, int]],
    zone: str,
    rolling_days: int | None,
    grace_days: int,
    start: int,
) -> None:
    where = ZoneInfo(zone)
    desk = Desk(NOON + timedelta(minutes=start), time_zone=zone, **ladder(rolling_days, grace_days))
    model = Model(rolling_days, grace_days)
    earned = []

    def day(at: datetime) -> date:
        return at.astimezone(where).date()

    for what, first, second in story:
        match what:
            case "earn":
                occur = desk.at - timedelta(hours=second)
                earned.append(desk.earn(first, "growth", occur=occur))
                model.see(day(desk.at))
                model.add(day(occur), first, day(desk.at))
            case "adjust":
                model.see(day(desk.at))
                desk.settle()
                if desk.growth + first >= 0:
                    desk.adjust(first, Unit.GROWTH)
                    model.add(day(desk.at), first, day(desk.at))
            case "undo" if earned:
                past = earned.pop(first % len(earned))
                taken = min(desk.growth, past.transfers[0].amount)
                desk.reverse(past)
                model.see(day(desk.at))
                model.add(day(past.occur_time), -taken, day(desk.at))
            case "wait":
                desk.at += timedelta(hours=first)
            case "midnight":  # the first instant of a day, or the last one before it, or the next one
                there = day(desk.at) + timedelta(days=first + 1)
                at = datetime(there.year, there.month, there.day, tzinfo=where).astimezone(UTC)
                desk.at = max(desk.at, at + second * TICK)
        assert desk.growth == sum(amount for _, amount in model.growth)
    desk.wait(days=1)
    model.see(day(desk.at))
    assert changes(desk, zone) == model.told
    assert desk.member.tier == model.tier


# --- what the contract says, in days ------------------------------------------------------------------


def test_who_reaches_a_tier_holds_it_at_once_to_the_end_of_the_year_after_and_the_grace() -> None:
    desk = Desk(**ladder(grace_days=31))
    desk.earn(9, "growth")
    assert desk.member.tier == ""
    desk.earn(1, "growth")
    assert changes(desk) == [Change("", "新粉", "PROMOTED", date(2028, 2, 1), 10)]
    desk.earn(990, "growth")  # past a rung
    assert changes(desk)[1:] == [Change("新粉", "挚爱粉", "PROMOTED", date(2028, 2, 1), 1000)]


def test_points_and_growth_of_another_window_promote_nobody() -> None:
    desk = Desk(**ladder(rolling_days=30))
    desk.earn(10_000)
    desk.earn(9, "growth")
    desk.wait(days=30)
    desk.earn(9, "growth")
    assert changes(desk) == []
    desk.wait(days=29)
    desk.earn(1, "growth")
    assert [change.after for change in changes(desk)] == ["新粉"]


def test_an_order_earns_by_the_tier_held_before_it() -> None:
    double = earn_rule("double", when="member.tier == '新粉' && activity.kind == 'both'", fixed=100)
    desk = Desk(earn_rules=[double], **ladder())
    desk.earn(10, "both")
    assert desk.balances[0] == 10
    desk.earn(10, "both")
    assert desk.balances[0] == 120


def test_a_tier_falls_by_several_rungs_but_not_before_its_period_and_its_grace_are_over() -> None:
    desk = Desk(**ladder(rolling_days=365, grace_days=30))
    desk.earn(1000, "growth")
    desk.wait(days=100)
    desk.earn(1, "growth")
    (held,) = changes(desk)
    assert held.until == NOON.date() + timedelta(days=365 + 30)
    desk.at = datetime(2027, 7, 15, tzinfo=ZoneInfo("Asia/Shanghai")).astimezone(UTC) - TICK
    desk.settle()
    assert desk.member.tier == "挚爱粉"
    desk.reverse(next(tx for tx in desk.transactions if tx.transfers[0].amount == 1000), growth=985)
    assert desk.member.tier == "挚爱粉"
    desk.wait(microseconds=1)
    assert changes(desk)[1:] == [Change("挚爱粉", "新粉", "DEMOTED", date(2028, 7, 14), 16)]


def test_who_has_not_even_the_lowest_tier_left_has_none_and_no_period() -> None:
    desk = Desk(**ladder(rolling_days=30))
    earned = desk.earn(1000, "growth")
    desk.reverse(earned)
    assert desk.member.tier == "挚爱粉"
    desk.wait(days=30)
    assert changes(desk)[1:] == [Change("挚爱粉", "", "DEMOTED", None, 0)]
    assert desk.member.next_due_time is None


def test_growth_of_the_grace_keeps_the_tier_for_another_period() -> None:
    desk = Desk(**ladder(grace_days=31))
    earned = desk.earn(100, "growth")
    desk.reverse(earned, growth=60)
    desk.at = YEAR_END
    desk.wait(days=365)  # one second before 2028
    desk.wait(seconds=2)
    assert desk.member.tier == "铁粉"
    desk.earn(100, "growth")
    desk.wait(days=31)
    assert changes(desk)[1:] == [Change("铁粉", "铁粉", "RENEWED", date(2029, 2, 1), 100)]


def test_a_reversal_does_not_lower_the_tier_before_its_time() -> None:
    desk = Desk(**ladder())
    earned = desk.earn(1000, "growth")
    desk.reverse(earned)
    assert desk.member.tier == "挚爱粉"
    desk.earn(10, "growth")
    assert len(changes(desk)) == 1
    desk.at = YEAR_END
    desk.wait(days=365, seconds=1)
    assert [change.after for change in changes(desk)] == ["挚爱粉", ""]


def test_after_a_long_silence_every_period_ends_in_its_order() -> None:
    desk = Desk(**ladder(rolling_days=30, grace_days=10))
    desk.earn(100, "growth")
    desk.at += timedelta(days=35)
    desk.earn(15, "growth")  # within the grace
    desk.at += timedelta(days=300)
    desk.settle()
    assert [(change.before, change.after, change.reason) for change in changes(desk)] == [
        ("", "铁粉", "PROMOTED"),
        ("铁粉", "铁粉", "RENEWED"),
        ("铁粉", "新粉", "DEMOTED"),
        ("新粉", "", "DEMOTED"),
    ]
    announced = [told.occur_time.ToDatetime(tzinfo=UTC) for told in desk.announced(epb.TierChanged)]
    assert announced == sorted(announced)
    assert announced[-1] < desk.at


@pytest.mark.parametrize(
    ("zone", "earned", "falls"),
    [
        # 00:00 on 24 April 2026 does not exist in Cairo: the day begins at 01:00 summer time.
        ("Africa/Cairo", datetime(2026, 4, 23, 10, tzinfo=UTC), datetime(2026, 4, 23, 22, tzinfo=UTC)),
        # 00:00 on 1 November 2026 comes twice in Havana: the day begins with the first.
        ("America/Havana", datetime(2026, 10, 31, 10, tzinfo=UTC), datetime(2026, 11, 1, 4, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 3, 8, 12, tzinfo=UTC), datetime(2026, 3, 9, 4, tzinfo=UTC)),
    ],
)
def test_a_period_ends_with_its_last_local_day_also_when_the_clocks_change(
    zone: str, earned: datetime, falls: datetime
) -> None:
    desk = Desk(earned, time_zone=zone, **ladder(rolling_days=1))
    desk.reverse(desk.earn(10, "growth"))
    desk.at = falls - TICK
    desk.settle()
    assert desk.member.tier == "新粉"
    desk.wait(microseconds=1)
    assert desk.member.tier == ""


# --- another ladder -----------------------------------------------------------------------------------


def test_a_ladder_put_later_counts_the_growth_that_is_there() -> None:
    desk = Desk()
    desk.earn(50, "growth")
    desk.put(**ladder())
    desk.settle()
    assert changes(desk) == []
    desk.earn(1)
    assert [change.after for change in changes(desk)] == ["新粉"]


@pytest.mark.parametrize("another", [{}, ladder(rolling_days=30, rungs={"黑金": 5000})])
def test_a_tier_that_is_not_on_the_ladder_any_more_is_lost_when_its_time_is_over(another: Any) -> None:
    desk = Desk(**ladder(rolling_days=30))
    desk.earn(100, "growth")
    desk.put(**another)
    desk.wait(days=29)
    assert desk.member.tier == "铁粉"
    desk.wait(days=1)
    assert [(change.after, change.reason) for change in changes(desk)[1:]] == [("", "DEMOTED")]
    assert desk.member.next_due_time is None


def test_a_rung_is_named_or_it_is_no_tier() -> None:
    rungs = Ladder(tuple(RUNGS.items()), None, 0, ZoneInfo("UTC"))
    assert [rungs.rank(tier) for tier in ("", "新粉", "铁粉", "挚爱粉", "黑金")] == [0, 1, 2, 3, 0]
    assert [rungs.next_growth(tier) for tier in ("", "新粉", "铁粉", "挚爱粉")] == [10, 100, 1000, None]
