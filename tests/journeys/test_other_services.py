"""What other services tell, and what they hear in return: cards, groups, referrals, a brand's refunds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as groups
from loyalty.orders.v1.orders_pb2 import Order, OrderPaid, OrderRefunded, Refund
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import (
    FulfilmentRefused,
    HoldCaptured,
    HoldPlaced,
    HoldRefused,
    HoldReleased,
    PointsPosted,
    RewardFulfilled,
)
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.cli.house import House
from services.points.audit import audit
from services.points.commands import Adjust
from services.points.domain.ledger import MAX_BALANCE, Unit
from tests.chaos.levers import sql
from tests.chaos.listener import Listener
from tests.conftest import NOON, OpenHouse
from tests.filling import gift, post
from tests.journeys.publisher import Publisher
from tests.points.calls import capture, place
from tests.support import PROGRAMME, Points, apply_programme, defects, fresh, order, refused

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
Event = TypeVar("Event", bound=Message)


def rule(rule_id: str, when: str, **gives: Any) -> dict[str, Any]:
    """A rule that gives points on orders, or with `fixed` on activities."""
    scope = "RULE_SCOPE_ACTIVITY" if "fixed" in gives else "RULE_SCOPE_ORDER"
    stack = {"unit": "UNIT_POINTS", "stack": "RULE_STACK_ADD"}
    return {"rule_id": rule_id, "scope": scope, "when": when, **stack, **gives}


RULES: dict[str, Any] = PROGRAMME | {
    "earn_rules": [
        *PROGRAMME["earn_rules"],
        rule("king", "'card.king' in member.facts", multiplier="2"),
        rule(
            "by-benefit",
            "'card.gold' in member.facts && member.facts['card.gold'] == '1.5'",
            multiplier="1.5",
        ),
        rule(
            "group-2",
            "'group.street' in member.facts && member.facts['group.street'] == 'g2'",
            multiplier="3",
        ),
        rule("activation", "activity.kind == 'card_activated'", fixed=50),
        rule("joined", "activity.kind == 'group_joined'", fixed=30, cap_per_day=45),
    ]
}


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """One front is enough: what is told and heard does not go through it."""
    with open_house(data, test_clock=NOON) as house:
        apply_programme(house, RULES)
        yield house
        report = asyncio.run(audit(house.database_url("points")))
        assert report.clean, report.lines
        assert not defects(house)


@pytest_asyncio.fixture
async def publisher(house: House) -> AsyncIterator[Publisher]:
    async with Publisher(house.nats.url, fresh("service")) as publisher:
        yield publisher


async def heard(house: House, member: str, kind: type[Event], many: int) -> list[Event]:
    """The member's events of a kind, once there are as many."""
    listener = Listener(house.nats.url)
    await listener.hear(lambda: len(listener.about(member, kind)) >= many)
    return listener.about(member, kind)


async def kinds(house: House, member: str) -> list[str]:
    """What is in the member's ledger, oldest first."""
    rows = await sql(house, "SELECT kind FROM transactions WHERE member_id = $1 ORDER BY seq", member)
    return [row["kind"] for row in rows]


async def letters(house: House, publisher: Publisher) -> list[str]:
    """Why what a publisher told was refused."""
    rows = await sql(
        house, "SELECT reason FROM dead_letters WHERE source = $1 ORDER BY create_time", publisher.source
    )
    return [row["reason"] for row in rows]


def stamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


def head(member: str, at: datetime, version: int = 1, epoch: int = 1) -> dict[str, Any]:
    """What every event of another service begins with."""
    return {"member_id": member, "occur_time": stamp(at), "epoch": epoch, "version": version}


# --- refunds ------------------------------------------------------------------------------------------


def refunded(member: str, what: Order, amount: int = 0, refund_id: str = "") -> OrderRefunded:
    """A refund of an amount, or of everything."""
    refund = Refund(order_id=what.order_id, refund_id=refund_id or fresh("refund"), refund_time=stamp(NOON))
    if amount:
        refund.amount_minor = amount
    else:
        refund.all = True
    return OrderRefunded(member_id=member, refund=refund)


def paid(member: str, what: Order) -> OrderPaid:
    return OrderPaid(member_id=member, order=what)


async def test_a_refund_told_after_its_order_takes_back_what_the_order_earned_too_much(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, what = fresh("member"), order(2190, NOON)
    told = refunded(member, what, 900)
    await publisher.tell(paid(member, what), told)
    earned, undone = (event.transaction for event in await heard(house, member, PointsPosted, 2))
    assert (undone.kind, undone.order_id) == (pb.TRANSACTION_KIND_REFUND, what.order_id)
    assert undone.reference_id == told.refund.refund_id
    assert undone.reverses_transaction_id == earned.transaction_id
    assert (undone.balance.available, undone.balance.growth) == (12, 12)
    assert points.balance(member).available == 12


async def test_a_refund_told_before_its_order_waits_for_it_and_is_applied_once(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, what = fresh("member"), order(2190, NOON)
    told = refunded(member, what, 900)
    await publisher.tell(told)
    await publisher.tell(told)  # the same under another id
    assert await kinds(house, member) == []
    await publisher.tell(paid(member, what))
    await publisher.tell(told)
    assert await kinds(house, member) == ["EARN", "REFUND"]
    assert points.balance(member).available == 12
    assert await letters(house, publisher) == []


async def test_a_refund_that_its_order_cannot_bear_is_a_dead_letter_and_the_earn_stands(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, what = fresh("member"), order(1000, NOON)
    too_much, sound, unknown = (
        refunded(member, what, 1001),
        refunded(member, what, 400),
        refunded(member, what),
    )
    unknown.refund.lines.lines.add(line_id="9", amount_minor=1)
    for early in (too_much, sound, unknown):
        await publisher.tell(early)
    assert await letters(house, publisher) == []
    await publisher.tell(paid(member, what))
    assert points.balance(member).available == 6
    assert await kinds(house, member) == ["EARN", "REFUND"]
    assert sorted(await letters(house, publisher)) == ["LINE_UNKNOWN", "REFUND_EXCEEDS_ORDER"]
    await publisher.tell(too_much)  # and it is no better afterwards
    assert (await letters(house, publisher)).count("REFUND_EXCEEDS_ORDER") == 2
    buried = await sql(
        house,
        "SELECT subject, body FROM dead_letters WHERE source = $1 AND reason = 'LINE_UNKNOWN'",
        publisher.source,
    )
    assert [OrderRefunded.FromString(row["body"]) for row in buried] == [unknown]


async def test_refunds_and_their_orders_told_in_one_breath_end_as_if_told_one_by_one(
    house: House, points: Points, publisher: Publisher
) -> None:
    many = [(fresh("member"), order(1000, NOON)) for _ in range(30)]
    for member, what in many:
        await publisher.publish(refunded(member, what, 400), refunded(member, what, 601), paid(member, what))
    await publisher.consumed()
    for member, _what in many:
        assert await kinds(house, member) == ["EARN", "REFUND"]
        assert points.balance(member).available in (3, 6)  # the one or the other came first
    assert await letters(house, publisher) == ["REFUND_EXCEEDS_ORDER"] * len(many)


async def test_refunds_of_what_is_left_add_up_with_those_before_whatever_their_names(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, what = fresh("member"), order(1000, NOON)
    await publisher.tell(paid(member, what))
    for amount, refund_id in ((300, "z"), (100, "y"), (0, "a"), (0, "b")):
        await publisher.tell(refunded(member, what, amount, refund_id))
    await publisher.tell(refunded(member, what, 1, "c"))
    assert points.balance(member).available == 0
    assert await kinds(house, member) == ["EARN", *["REFUND"] * 4]
    assert await letters(house, publisher) == ["REFUND_EXCEEDS_ORDER"]


async def test_a_refund_by_call_and_by_event_at_once_is_one_refund(
    house: House, points: Points, publisher: Publisher
) -> None:
    for _ in range(8):
        member, what = fresh("member"), order(2190, NOON)
        points.earn(member, what)
        told = refunded(member, what, 900)
        request = pb.RefundOrderRequest(member_id=member, request_id=fresh("refund"), refund=told.refund)
        answer, _ = await asyncio.gather(
            asyncio.to_thread(points.call, points.points.RefundOrder, request), publisher.tell(told)
        )
        _, posted = await heard(house, member, PointsPosted, 2)
        assert posted.transaction == answer
        assert await kinds(house, member) == ["EARN", "REFUND"]
    assert await letters(house, publisher) == []


# --- cards paid by points -----------------------------------------------------------------------------


def ordered(member: str, at: datetime, amount: int, card_order_id: str = "", **fields: Any) -> Any:
    """A card was ordered, to be paid by points, or with 0 by money."""
    what = cards.CardOrdered(
        **head(member, at),
        card_order_id=card_order_id or fresh("card-order"),
        plan_id="king",
        plan_version=1,
        family="king",
        points_amount=amount,
        pay_deadline_time=stamp(at + timedelta(minutes=15)),
        **fields,
    )
    if amount and not fields:
        what.hold_expire_time.FromDatetime(at + DAY)
    return what


def settled(of: Any, at: datetime, outcome: Any) -> Any:
    """It was decided what becomes of the points."""
    return cards.CardOrderSettled(
        **head(of.member_id, at, 2), card_order_id=of.card_order_id, outcome=outcome
    )


async def test_points_for_a_card_are_held_and_captured_once(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 100)
    wanted = ordered(member, NOON, 80)
    await publisher.tell(wanted)
    await publisher.tell(wanted)
    (placed,) = await heard(house, member, HoldPlaced, 1)
    assert (placed.hold.amount, placed.hold.reference_id) == (80, wanted.card_order_id)
    assert placed.hold.expire_time == wanted.hold_expire_time
    assert (points.balance(member).available, points.balance(member).held) == (20, 80)
    end = settled(wanted, NOON, cards.CARD_ORDER_OUTCOME_CAPTURE)
    await publisher.tell(end)
    await publisher.tell(end)
    (captured,) = await heard(house, member, HoldCaptured, 1)
    assert (captured.hold.hold_id, captured.hold.captured) == (placed.hold.hold_id, 80)
    assert captured.hold.state == pb.HOLD_STATE_CAPTURED
    assert (points.balance(member).available, points.balance(member).held) == (20, 0)
    assert await kinds(house, member) == ["ADJUST", "HOLD", "CAPTURE"]
    found = await sql(
        house,
        "SELECT transaction_id FROM transactions WHERE member_id = $1 AND kind = 'CAPTURE'",
        member,
    )
    assert [row["transaction_id"] for row in found] == [captured.transaction_id]
    assert await letters(house, publisher) == []


async def test_points_for_a_card_that_is_not_sold_come_back(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 100)
    wanted = ordered(member, NOON, 80)
    await publisher.tell(wanted)
    await publisher.tell(settled(wanted, NOON, cards.CARD_ORDER_OUTCOME_RELEASE))
    (released,) = await heard(house, member, HoldReleased, 1)
    assert (released.hold.reference_id, released.hold.amount) == (wanted.card_order_id, 80)
    assert released.hold.state == pb.HOLD_STATE_RELEASED
    assert (points.balance(member).available, points.balance(member).held) == (100, 0)


@pytest.mark.parametrize("known", [True, False], ids=["a known member", "an unknown member"])
async def test_points_for_a_card_that_are_not_there_are_refused_by_an_event(
    house: House, points: Points, publisher: Publisher, known: bool
) -> None:
    member = fresh("member")
    if known:
        points.adjust(member, 79)
    wanted = ordered(member, NOON, 80)
    await publisher.tell(wanted)
    (answer,) = await heard(house, member, HoldRefused, 1)
    assert (answer.reference_id, answer.amount) == (wanted.card_order_id, 80)
    assert answer.reason == "INSUFFICIENT_POINTS"
    assert await kinds(house, member) == ["ADJUST"] * known
    assert await letters(house, publisher) == []


async def test_a_release_of_what_was_refused_is_no_dead_letter(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 79)
    wanted = ordered(member, NOON, 80)
    await publisher.tell(wanted, settled(wanted, NOON, cards.CARD_ORDER_OUTCOME_RELEASE))
    await heard(house, member, HoldRefused, 1)
    assert await letters(house, publisher) == []
    assert points.balance(member).available == 79


async def test_points_cannot_be_held_beyond_their_time(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 100)
    await publisher.tell(
        ordered(member, NOON, 80, hold_expire_time=stamp(NOON)),
        ordered(member, NOON, 80, hold_expire_time=stamp(NOON + 30 * DAY + SECOND)),
    )
    answers = await heard(house, member, HoldRefused, 2)
    assert [answer.reason for answer in answers] == ["HOLD_TIME_INVALID"] * 2


async def test_a_card_paid_by_money_holds_nothing(house: House, points: Points, publisher: Publisher) -> None:
    member = fresh("member")
    points.adjust(member, 100)
    await publisher.tell(ordered(member, NOON, 0))
    assert await kinds(house, member) == ["ADJUST"]


async def test_the_end_of_an_order_that_nothing_was_held_for_is_a_dead_letter(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 100)
    await publisher.tell(settled(ordered(member, NOON, 80), NOON, cards.CARD_ORDER_OUTCOME_CAPTURE))
    assert await letters(house, publisher) == ["HOLD_UNKNOWN"]
    assert points.balance(member).available == 100


# --- what a card is good for --------------------------------------------------------------------------


def of_card(member: str, at: datetime, version: int, segment: str, plan: str = "king") -> dict[str, Any]:
    """What every event about a card begins with."""
    return {
        **head(member, at, version),
        "card_id": f"card-of-{member}"[:64],
        "plan_id": plan,
        "family": plan,
        "segment_id": segment,
    }


def activated(
    member: str, start: datetime, end: datetime, segment: str, version: int = 1, **fields: Any
) -> cards.CardActivated:
    plan, at = fields.pop("plan", "king"), fields.pop("at", NOON)
    return cards.CardActivated(
        **of_card(member, at, version, segment, plan),
        plan_version=1,
        start_time=stamp(start),
        end_time=stamp(end),
        **fields,
    )


def worth(points: Points, member: str, at: datetime) -> int:
    """The points that an order of ten yuan earns."""
    request = pb.QuoteEarnRequest(member_id=member, order=order(1000, at))
    return points.call(points.points.QuoteEarn, request).points


async def test_a_card_multiplies_what_is_earned_from_its_start_to_before_its_end(
    points: Points, publisher: Publisher
) -> None:
    member, start, end = fresh("member"), NOON - 10 * DAY, NOON - 5 * DAY
    assert worth(points, member, start) == 10
    await publisher.tell(activated(member, start, end, fresh("segment")))
    moments = [start - SECOND, start, end - SECOND, end]
    assert [worth(points, member, at) for at in moments] == [10, 20, 20, 10]
    for at in moments:
        await publisher.tell(paid(member, order(1000, at)))
    assert points.balance(member).available == 50 + 60


async def test_a_card_carries_its_multiplier_to_the_rules(points: Points, publisher: Publisher) -> None:
    lucky, plain = fresh("member"), fresh("member")
    await publisher.tell(
        activated(lucky, NOON, NOON + DAY, fresh("segment"), plan="gold", points_multiplier="1.5"),
        activated(plain, NOON, NOON + DAY, fresh("segment"), plan="gold", points_multiplier="1"),
    )
    assert [worth(points, member, NOON) for member in (lucky, plain)] == [15, 10]


async def test_the_bonus_for_a_card_comes_once_a_period_however_often_it_is_told(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, first, second = fresh("member"), fresh("segment"), fresh("segment")
    told = activated(member, NOON, NOON + 30 * DAY, first)
    for _ in range(3):
        await publisher.tell(told)
    assert points.balance(member).available == 50
    (posted,) = await heard(house, member, PointsPosted, 1)
    assert [c.rule_id for c in posted.transaction.contributions] == ["activation"]
    renewed = activated(
        member, NOON + 30 * DAY, NOON + 60 * DAY, second, version=2, renewal=True, points_multiplier="2"
    )
    await publisher.tell(renewed)
    assert points.balance(member).available == 100
    assert await kinds(house, member) == ["EARN", "EARN"]


async def test_an_upgrade_ends_the_period_that_it_replaces(points: Points, publisher: Publisher) -> None:
    member, old, new = fresh("member"), fresh("segment"), fresh("segment")
    await publisher.tell(
        activated(member, NOON - 10 * DAY, NOON + 20 * DAY, old, at=NOON - 10 * DAY),
        activated(
            member,
            NOON - 2 * DAY,
            NOON + 28 * DAY,
            new,
            version=2,
            at=NOON - 2 * DAY,
            plan="gold",
            points_multiplier="1.5",
            replaced_segment_ids=[old],
        ),
    )
    assert [worth(points, member, NOON - days * DAY) for days in (3, 2, 0)] == [20, 15, 15]


async def test_a_card_rests_while_it_is_frozen_and_ends_when_it_expires_or_is_given_back(
    points: Points, publisher: Publisher
) -> None:
    member, running_, queued = fresh("member"), fresh("segment"), fresh("segment")
    start = NOON - 20 * DAY
    await publisher.tell(
        activated(member, start, start + 30 * DAY, running_),
        activated(member, start + 30 * DAY, start + 60 * DAY, queued, version=2),
        cards.CardFrozen(**of_card(member, start + DAY, 3, running_), resume_time=stamp(start + 40 * DAY)),
    )
    assert [worth(points, member, start + days * DAY) for days in (0, 1, 10)] == [20, 10, 10]
    later = cards.CardSegment(
        segment_id=queued,
        plan_id="king",
        start_time=stamp(start + 40 * DAY),
        end_time=stamp(start + 70 * DAY),
    )
    await publisher.tell(
        cards.CardResumed(
            **of_card(member, start + 11 * DAY, 4, running_),
            end_time=stamp(start + 40 * DAY),
            later_segments=[later],
        )
    )
    assert [worth(points, member, start + days * DAY) for days in (10, 11, 20)] == [10, 20, 20]
    await publisher.tell(
        cards.CardRefunded(**of_card(member, start + 15 * DAY, 5, running_), later_segment_ids=[queued])
    )
    assert [worth(points, member, start + days * DAY) for days in (14, 15, 20)] == [20, 10, 10]


async def test_a_period_that_would_begin_while_the_card_rests_is_good_for_nothing(
    points: Points, publisher: Publisher
) -> None:
    member, running_, queued = fresh("member"), fresh("segment"), fresh("segment")
    start = NOON - 20 * DAY
    told: list[Message] = [
        activated(member, start, start + 10 * DAY, running_),
        activated(member, start + 10 * DAY, start + 20 * DAY, queued, version=2),
        cards.CardFrozen(**of_card(member, start + 5 * DAY, 3, running_), resume_time=stamp(NOON + 9 * DAY)),
    ]
    for each in told:
        await publisher.tell(each)
    assert [worth(points, member, start + days * DAY) for days in (4, 5, 10, 19)] == [20, 10, 10, 10]
    back = cards.CardRefunded(**of_card(member, start + 15 * DAY, 5, running_), later_segment_ids=[queued])
    bought_again = activated(member, start + 16 * DAY, start + 18 * DAY, fresh("segment"), version=6)
    await publisher.tell(back, bought_again)
    assert [worth(points, member, start + days * DAY) for days in (10, 16, 18)] == [10, 20, 10]


@pytest.mark.parametrize("told_after", [timedelta(), 12 * SECOND], ids=["at once", "late"])
async def test_a_card_that_expired_is_good_for_nothing_more(
    points: Points, publisher: Publisher, told_after: timedelta
) -> None:
    member, segment, end = fresh("member"), fresh("segment"), NOON - DAY
    await publisher.tell(activated(member, NOON - 9 * DAY, NOON + DAY, segment))
    expired = cards.CardExpired(**of_card(member, end + told_after, 2, segment), end_time=stamp(end))
    await publisher.tell(expired)
    assert [worth(points, member, at) for at in (end - SECOND, end, NOON)] == [20, 10, 10]


async def test_events_of_a_card_in_any_order_and_number_end_in_the_same(
    house: House, points: Points, publisher: Publisher
) -> None:
    start = NOON - 20 * DAY
    moments = [start + days * DAY for days in range(-1, 21)]

    def story(member: str) -> list[Message]:
        first, second = f"{member}-1", f"{member}-2"
        shifted = cards.CardSegment(
            segment_id=second,
            plan_id="king",
            start_time=stamp(start + 12 * DAY),
            end_time=stamp(start + 18 * DAY),
        )
        return [
            activated(member, start, start + 10 * DAY, first),
            activated(member, start + 10 * DAY, start + 16 * DAY, second, version=2),
            cards.CardFrozen(
                **of_card(member, start + 3 * DAY, 3, first), resume_time=stamp(start + 9 * DAY)
            ),
            cards.CardResumed(
                **of_card(member, start + 5 * DAY, 4, first),
                end_time=stamp(start + 12 * DAY),
                later_segments=[shifted],
            ),
            cards.CardRefunded(**of_card(member, start + 8 * DAY, 5, first), later_segment_ids=[second]),
            activated(member, start + 13 * DAY, start + 19 * DAY, f"{member}-3", version=6),
            cards.CardExpired(
                **of_card(member, start + 17 * DAY, 7, f"{member}-3"), end_time=stamp(start + 17 * DAY)
            ),
        ]

    straight = fresh("member")
    for told in story(straight):
        await publisher.tell(told)
    expected = [worth(points, straight, at) for at in moments]
    assert set(expected) == {10, 20}
    assert points.balance(straight).available == 3 * 50

    members = [fresh("member") for _ in range(12)]
    for number, member in enumerate(members):
        copies = story(member) * 2
        random.Random(number).shuffle(copies)
        await publisher.publish(*copies)
    await publisher.consumed()
    for member in members:
        assert [worth(points, member, at) for at in moments] == expected
        assert points.balance(member).available == 3 * 50
        assert await kinds(house, member) == ["EARN"] * 3
    assert await letters(house, publisher) == []


async def test_what_a_restored_service_tells_counts_above_what_it_told_before(
    points: Points, publisher: Publisher
) -> None:
    member, segment = fresh("member"), fresh("segment")
    await publisher.tell(activated(member, NOON - DAY, NOON + DAY, segment, version=7))
    end = cards.CardExpired(**of_card(member, NOON, 2, segment), end_time=stamp(NOON))
    await publisher.tell(end)
    assert worth(points, member, NOON) == 20  # older than what is known
    end.epoch = 2
    await publisher.tell(end)
    assert worth(points, member, NOON) == 10


# --- points that come back ----------------------------------------------------------------------------


async def sold(
    publisher: Publisher, member: str, amount: int, name: str, version: int = 1, **fields: Any
) -> tuple[Any, str]:
    """Sells a period for points, from the order to its activation. Returns the order and the period."""
    wanted, segment = ordered(member, NOON, amount), fresh("segment")
    await publisher.tell(wanted)
    await publisher.tell(settled(wanted, NOON, cards.CARD_ORDER_OUTCOME_CAPTURE))
    told = activated(
        member, NOON, NOON + 30 * DAY, segment, version, card_order_id=wanted.card_order_id, **fields
    )
    told.card_id = name
    await publisher.tell(told)
    return wanted, segment


def given_back(member: str, amount: int, segment: str, *later: str, version: int = 9) -> Any:
    """A card was given back, for points."""
    about = of_card(member, NOON, version, segment)
    return cards.CardRefunded(**about, refund_points=amount, later_segment_ids=later)


async def undone(house: House, member: str) -> list[tuple[str, int]]:
    """What was held for which order, and came back, in the order in which it came."""
    rows = await sql(
        house,
        """SELECT held.reference_id AS bought, (back.transfers->0->>3)::bigint AS amount
        FROM transactions back
        JOIN transactions spent ON spent.transaction_id = back.reverses_transaction_id
        JOIN holds held ON held.hold_id = spent.reference_id AND held.member_id = spent.member_id
        WHERE back.member_id = $1 AND back.kind = 'REVERSE' ORDER BY back.seq""",
        member,
    )
    return [(row["bought"], row["amount"]) for row in rows]


async def test_points_for_a_card_that_is_given_back_return_to_the_lots_they_came_from_once(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    for days in (60, 0):
        points.earn(member, order(5000, NOON - days * DAY))
    before = [(part.amount, part.expire_time) for part in points.balance(member).expiring]
    (old, first_end), (new, second_end) = before
    assert (old, new) == (50, 50)
    _, segment = await sold(publisher, member, 80, fresh("card"))
    told = given_back(member, 60, segment)
    for _ in range(3):  # each time under another id
        await publisher.tell(told)
    # Of the first lot 50 had been taken and of the second 30; what ends last comes back first. The bonus for
    # the card ends with the second.
    left = {part.expire_time.seconds: part.amount for part in points.balance(member).expiring}
    assert left == {first_end.seconds: 30, second_end.seconds: 50 + 50}
    assert (await kinds(house, member)).count("REVERSE") == 1
    assert points.balance(member).lifetime_earned == 100 + 50
    assert await letters(house, publisher) == []


async def test_points_that_come_back_are_those_that_the_card_had_cost_whatever_was_bought_since(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 200)
    first, coffee = await sold(publisher, member, 80, fresh("card"))
    second, _ = await sold(publisher, member, 60, fresh("card"), plan="gold")
    third, queued = await sold(publisher, member, 40, fresh("card"), 2)
    await publisher.tell(given_back(member, 100, coffee, queued))
    assert await undone(house, member) == [(third.card_order_id, 40), (first.card_order_id, 60)]
    assert second.card_order_id not in dict(await undone(house, member))
    assert points.balance(member).available == 200 - 180 + 100 + 3 * 50


async def test_points_that_paid_what_an_upgrade_replaced_come_back_with_it(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, card = fresh("member"), fresh("card")
    points.adjust(member, 100)
    month, replaced = await sold(publisher, member, 30, card)
    year, segment = await sold(
        publisher, member, 70, card, 2, replaced_segment_ids=[replaced], paid_points=100
    )
    told = given_back(member, 100, segment)
    for _ in range(2):
        await publisher.tell(told)
    assert await undone(house, member) == [(year.card_order_id, 70), (month.card_order_id, 30)]
    assert points.balance(member).available == 100 + 2 * 50
    assert await letters(house, publisher) == []


async def test_points_come_back_although_the_card_is_told_of_only_then(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, wanted, segment = fresh("member"), None, fresh("segment")
    points.adjust(member, 100)
    wanted = ordered(member, NOON, 80)
    await publisher.tell(wanted)
    await publisher.tell(settled(wanted, NOON, cards.CARD_ORDER_OUTCOME_CAPTURE))
    await publisher.tell(given_back(member, 80, segment))
    assert points.balance(member).available == 100
    late = activated(member, NOON, NOON + 30 * DAY, segment, card_order_id=wanted.card_order_id)
    await publisher.tell(late)
    assert worth(points, member, NOON) == 10  # it is good for nothing any more
    assert points.balance(member).available == 150
    assert await undone(house, member) == [(wanted.card_order_id, 80)]


async def test_cards_given_back_at_once_give_back_what_they_cost_together(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 300)
    bought = [await sold(publisher, member, 100, fresh("card"), plan=f"plan-{n}") for n in range(3)]
    told = [
        given_back(member, amount, segment) for amount, (_, segment) in zip((100, 1, 99), bought, strict=True)
    ]
    await publisher.publish(*told, *told)
    await publisher.consumed()
    assert sorted(await undone(house, member)) == sorted(
        (wanted.card_order_id, amount) for amount, (wanted, _) in zip((100, 1, 99), bought, strict=True)
    )
    assert points.balance(member).available == 200 + 3 * 50


async def test_more_than_cards_had_cost_does_not_come_back(
    house: House, points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    points.adjust(member, 200)
    capture(points, member, place(points, member, 50).hold_id)  # by a call, for something else
    _, segment = await sold(publisher, member, 80, fresh("card"))
    await publisher.tell(given_back(member, 81, segment))
    assert await letters(house, publisher) == ["REVERSAL_EXCEEDS_TRANSACTION"]
    assert points.balance(member).available == 200 - 50 - 80 + 50
    await publisher.tell(given_back(member, 80, segment))
    assert points.balance(member).available == 200 - 50 + 50
    await publisher.tell(given_back(fresh("member"), 1, fresh("segment")))
    assert (await letters(house, publisher))[1:] == ["REVERSAL_EXCEEDS_TRANSACTION"]


# --- groups -------------------------------------------------------------------------------------------


def in_group(member: str, at: datetime, version: int, membership: str, group: str = "g1") -> dict[str, Any]:
    return {
        **head(member, at, version),
        "membership_id": membership,
        "group_id": group,
        "scheme_id": "street",
    }


async def test_joining_gives_once_per_membership_and_the_group_counts_while_it_lasts(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, first, second = fresh("member"), fresh("stay"), fresh("stay")
    joined = groups.MemberJoined(**in_group(member, NOON - 9 * DAY, 1, first), membership_number=1)
    moved = groups.MemberMoved(
        **in_group(member, NOON - 6 * DAY, 2, first, "g2"),
        from_group_id="g1",
        reason=groups.MEMBER_MOVE_REASON_OPERATOR,
    )
    left = groups.MemberLeft(
        **in_group(member, NOON - 3 * DAY, 3, first, "g2"), reason=groups.MEMBER_LEAVE_REASON_LEFT
    )
    await publisher.tell(joined)
    await publisher.tell(joined)
    assert points.balance(member).available == 30
    assert worth(points, member, NOON) == 10
    await publisher.tell(moved)
    assert [worth(points, member, NOON - days * DAY) for days in (7, 6, 0)] == [10, 30, 30]
    await publisher.tell(left)
    assert [worth(points, member, NOON - days * DAY) for days in (4, 3, 0)] == [30, 10, 10]
    assert points.balance(member).available == 30
    again = groups.MemberJoined(**in_group(member, NOON - 2 * DAY, 4, second, "g2"), membership_number=2)
    for told in (again, left, moved, joined):  # only the newest counts
        await publisher.tell(told)
    assert [worth(points, member, NOON - days * DAY) for days in (3, 2, 0)] == [10, 30, 30]
    assert points.balance(member).available == 60
    assert await kinds(house, member) == ["EARN", "EARN"]


async def test_a_member_of_whom_only_a_move_is_known_is_quoted_what_the_move_is_good_for(
    points: Points, publisher: Publisher
) -> None:
    member = fresh("member")
    reason = groups.MEMBER_MOVE_REASON_OPERATOR
    told = in_group(member, NOON - DAY, 2, fresh("stay"), "g2")
    await publisher.tell(groups.MemberMoved(**told, from_group_id="g1", reason=reason))
    quoted = worth(points, member, NOON)
    points.earn(member, order(1000, NOON))
    assert points.balance(member).available == quoted == 30


async def test_a_gift_that_is_told_late_counts_on_the_day_it_happened(
    house: House, publisher: Publisher
) -> None:
    member = fresh("member")
    for number, at in enumerate((NOON - DAY, NOON, NOON - DAY, NOON), 1):
        told = in_group(member, at, number, fresh("stay"))
        await publisher.tell(groups.MemberJoined(**told, membership_number=number))
    posted = [event.transaction for event in await heard(house, member, PointsPosted, 4)]
    given = [[c.amount for c in tx.contributions] for tx in posted]
    assert given == [[30], [30], [15], [15]]  # at most 45 a day
    assert [tx.occur_time.ToDatetime(NOON.tzinfo) for tx in posted] == [NOON - DAY, NOON] * 2


# --- referral -----------------------------------------------------------------------------------------


def granted(member: str, amount: int, reward: str) -> referral.RewardGranted:
    return referral.RewardGranted(
        **head(member, NOON),
        reward_id=reward,
        campaign_id="spring",
        campaign_version=1,
        step_id="first",
        round=1,
        attempt=1,
        role=referral.REWARD_ROLE_INVITER,
        points=referral.PointsReward(amount=amount),
    )


def clawed_back(member: str, amount: int, reward: str) -> referral.RewardClawedBack:
    return referral.RewardClawedBack(
        **head(member, NOON, 2),
        reward_id=reward,
        campaign_id="spring",
        step_id="first",
        role=referral.REWARD_ROLE_INVITER,
        points=referral.PointsReward(amount=amount),
        reason=referral.REVOKE_REASON_REFUNDED,
    )


async def test_a_reward_in_points_is_credited_and_confirmed_once(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, reward = fresh("member"), fresh("reward")
    for _ in range(3):
        await publisher.tell(granted(member, 88, reward))
    assert points.balance(member).available == 88
    posted = await heard(house, member, PointsPosted, 1)
    done = await heard(house, member, RewardFulfilled, 1)
    assert [event.transaction.reference_id for event in posted] == [reward]
    assert [(event.reward_id, event.transaction_id) for event in done] == [
        (reward, posted[0].transaction.transaction_id)
    ]
    assert await letters(house, publisher) == []


async def test_a_reward_told_again_with_another_amount_is_a_dead_letter(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, reward = fresh("member"), fresh("reward")
    await publisher.tell(granted(member, 88, reward), granted(member, 89, reward))
    assert points.balance(member).available == 88
    assert await letters(house, publisher) == ["REQUEST_ID_REUSED"]


async def test_a_reward_that_cannot_be_credited_is_refused_by_an_event(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, reward = fresh("rich"), fresh("reward")
    await post(house, [gift(member, MAX_BALANCE)])
    await publisher.tell(granted(member, 1, reward))
    (answer,) = await heard(house, member, FulfilmentRefused, 1)
    assert (answer.reward_id, answer.reason) == (reward, "BALANCE_LIMIT")
    await publisher.tell(clawed_back(member, 1, reward))  # what was not given is not taken
    assert points.balance(member).available == MAX_BALANCE
    assert await letters(house, publisher) == []


async def test_a_reward_that_was_refused_is_credited_once_when_it_is_told_again(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, reward = fresh("rich"), fresh("reward")
    whose: dict[str, Any] = {"member_id": member, "request_id": "full", "payload_hash": b"", "actor": "test"}
    await post(house, [Adjust(**whose, unit=Unit.POINTS, amount=MAX_BALANCE, reason="a test")])
    await publisher.tell(granted(member, 1, reward))
    points.redeem(member, 10)
    for _ in range(2):
        await publisher.tell(granted(member, 1, reward))
    assert points.balance(member).available == MAX_BALANCE - 9
    assert await kinds(house, member) == ["ADJUST", "REDEEM", "EARN"]
    (refusal,) = await heard(house, member, FulfilmentRefused, 1)
    (done,) = await heard(house, member, RewardFulfilled, 1)
    assert (refusal.reward_id, done.reward_id) == (reward, reward)
    assert await letters(house, publisher) == []


async def test_a_reward_of_another_kind_is_not_for_us(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, told = fresh("member"), granted(fresh("member"), 1, fresh("reward"))
    told.member_id = member
    told.card.plan_id = "king"
    back = clawed_back(member, 1, told.reward_id)
    back.card.plan_id = "king"
    await publisher.tell(told, back)
    with refused(grpc.StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        points.balance(member)
    assert await letters(house, publisher) == []


async def test_a_reward_taken_back_is_owed_where_it_was_spent_and_credits_pay_it_first(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, reward = fresh("member"), fresh("reward")
    await publisher.tell(granted(member, 88, reward))
    points.redeem(member, 50)
    for _ in range(2):
        await publisher.tell(clawed_back(member, 88, reward))
    balance = points.balance(member)
    assert (balance.available, balance.owed) == (0, 50)
    assert await kinds(house, member) == ["EARN", "REDEEM", "REVERSE"]
    given, _spent, back = (event.transaction for event in await heard(house, member, PointsPosted, 3))
    assert back.reverses_transaction_id == given.transaction_id
    points.earn(member, order(7000, NOON))
    assert (points.balance(member).available, points.balance(member).owed) == (20, 0)


async def test_a_reward_that_was_taken_back_first_is_not_given_any_more(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, reward = fresh("member"), fresh("reward")
    points.adjust(member, 100)
    await publisher.tell(clawed_back(member, 88, reward))
    await publisher.tell(granted(member, 88, reward))
    (refusal,) = await heard(house, member, FulfilmentRefused, 1)
    assert (refusal.reward_id, refusal.reason) == (reward, "REWARD_TAKEN_BACK")
    assert points.balance(member).available == 100


async def test_taking_back_a_reward_that_was_never_given_does_nothing(
    house: House, points: Points, publisher: Publisher
) -> None:
    known, unknown = fresh("member"), fresh("member")
    points.adjust(known, 100)
    await publisher.tell(clawed_back(known, 88, fresh("reward")), clawed_back(unknown, 88, fresh("reward")))
    assert points.balance(known).available == 100
    assert await kinds(house, known) == ["ADJUST"]
    with refused(grpc.StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        points.balance(unknown)
    assert await letters(house, publisher) == []


# --- all of them --------------------------------------------------------------------------------------


async def test_a_member_told_of_many_things_at_once_gets_each_once(
    house: House, points: Points, publisher: Publisher
) -> None:
    member, what = fresh("member"), order(1000, NOON)
    told: list[Message] = [
        paid(member, what),
        refunded(member, what),
        activated(member, NOON + DAY, NOON + 2 * DAY, fresh("segment")),
        groups.MemberJoined(**in_group(member, NOON, 1, fresh("stay")), membership_number=1),
        granted(member, 88, fresh("reward")),
    ]
    copies = told * 4
    random.Random(5).shuffle(copies)
    await asyncio.gather(*(publisher.publish(copy) for copy in copies))
    await publisher.consumed()
    assert points.balance(member).available == 50 + 30 + 88
    assert sorted(await kinds(house, member)) == ["EARN"] * 4 + ["REFUND"]
    assert await letters(house, publisher) == []
