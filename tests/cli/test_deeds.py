from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import polars as pl
import protovalidate
import pytest

from services.cli import baskets, deeds
from services.cli.deeds import Close, Hold, Redeem, Refund
from services.cli.delivery import event_of, refund_request

MONTH = (date(2017, 1, 1), date(2017, 1, 31))


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return baskets.load(*MONTH)


@pytest.fixture(scope="module")
def plan(frame: pl.DataFrame) -> deeds.Plan:
    return deeds.plan(frame)


def later(plan: deeds.Plan) -> Iterator[tuple[date, str, Close | Refund]]:
    for day, members in sorted(plan.later.items()):
        for member_id, theirs in members.items():
            for deed in theirs:
                yield day, member_id, deed


def test_a_plan_is_the_same_every_time(frame: pl.DataFrame, plan: deeds.Plan) -> None:
    assert deeds.plan(frame) == plan


def test_every_fourth_order_of_a_member_is_followed_by_a_redemption(
    frame: pl.DataFrame, plan: deeds.Plan
) -> None:
    ordinals: Counter[str] = Counter()
    for member_id, order in baskets.orders(frame):
        ordinals[member_id] += 1
        redemption = Redeem(f"redeem-{order.order_id}", 20)
        assert (redemption in plan.at_once.get(order.order_id, [])) is (ordinals[member_id] % 4 == 0)


def test_there_is_some_of_everything(plan: deeds.Plan) -> None:
    at_once = [deed for done in plan.at_once.values() for deed in done]
    spent = [deed for deed in at_once if isinstance(deed, Redeem) and deed.amount is None]
    holds = [deed for deed in at_once if isinstance(deed, Hold)]
    closed = [deed for _, _, deed in later(plan) if isinstance(deed, Close)]
    refunds = [deed for _, _, deed in later(plan) if isinstance(deed, Refund)]
    assert min(len(spent), len(holds), len(closed), len(refunds)) > 100
    assert Counter(deed.capture for deed in closed).keys() == {0, 12, None}
    assert len(closed) < len(holds), "some are left to lapse"
    for what in ("amount", "lines", "everything"):
        assert sum(bool(getattr(deed, what)) for deed in refunds) > 50
    assert max(Counter(deed.order_id for deed in refunds).values()) == 3


def test_holds_are_closed_in_time_and_none_is_longer_than_thirty_days(
    frame: pl.DataFrame, plan: deeds.Plan
) -> None:
    days = {
        order.order_id: order.paid_time.ToDatetime(UTC).astimezone(deeds._ZONE).date()
        for _, order in baskets.orders(frame)
    }
    until: dict[str, datetime] = {}
    for order_id, done in plan.at_once.items():
        for hold in done:
            if isinstance(hold, Hold):
                placed = deeds.evening(days[order_id])
                assert placed < hold.until <= placed + timedelta(days=30)
                until[hold.name] = hold.until
    for day, _, deed in later(plan):
        if isinstance(deed, Close):
            assert deeds.evening(day) < until[deed.hold]


def test_refunds_come_after_their_order_and_never_pass_what_was_paid(
    frame: pl.DataFrame, plan: deeds.Plan
) -> None:
    orders = {order.order_id: (member_id, order) for member_id, order in baskets.orders(frame)}
    paid: dict[str, int] = {}
    of_lines: Counter[tuple[str, str]] = Counter()
    for day, member_id, deed in later(plan):
        if not isinstance(deed, Refund):
            continue
        owner, order = orders[deed.order_id]
        assert owner == member_id
        assert order.paid_time.ToDatetime(UTC) <= deeds.evening(day)
        left = paid.setdefault(deed.order_id, order.total_minor)
        assert left > 0
        given = left if deed.everything else deed.amount + sum(deed.lines.values())
        paid[deed.order_id] = left - given
        assert paid[deed.order_id] >= 0
        for line_id, amount in deed.lines.items():
            of_lines[deed.order_id, line_id] += amount
            [line] = [line for line in order.lines if line.line_id == line_id]
            assert of_lines[deed.order_id, line_id] <= line.amount_minor
    assert sum(left == 0 for left in paid.values()) > 50


def test_every_name_is_there_once_and_every_refund_is_one_that_services_take(plan: deeds.Plan) -> None:
    names = Counter(deed.name for done in plan.at_once.values() for deed in done)
    names.update(deed.name for _, _, deed in later(plan))
    assert set(names.values()) == {1}
    assert max(len(name) for name in names) <= 64 - len("-again")
    for day, member_id, deed in later(plan):
        if isinstance(deed, Refund):
            request = refund_request(member_id, deed, deeds.evening(day))
            protovalidate.validate(request)
            protovalidate.validate(event_of(request))


def test_an_evening_is_the_last_second_of_a_shanghai_day() -> None:
    assert deeds.evening(date(2017, 1, 31)) == datetime(2017, 1, 31, 15, 59, 59, tzinfo=UTC)
