"""The programme: its versions, when each takes effect, what it may not change, and how faults are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.json_format import ParseDict
from grpc import StatusCode
from loyalty.points.v1 import points_service_pb2 as pb

from services.cli.house import House
from tests.conftest import NOON, OpenHouse
from tests.points.calls import a_refund, move, moved, refund, reverse, transfer
from tests.points.requests import fingerprint
from tests.support import PROGRAMME, Points, fresh, order, refused

SHANGHAI = ZoneInfo("Asia/Shanghai")
MOMENT = timedelta(microseconds=1)


def local_day(at: datetime) -> date:
    return at.astimezone(SHANGHAI).date()


def programme(effective: datetime | None = None, points_per_yuan: int = 1, **changed: Any) -> pb.Programme:
    """A programme with one rule."""
    base = {**PROGRAMME["earn_rules"][0], "per": {"amount_minor": 100, "points": points_per_yuan}}
    made = ParseDict({**PROGRAMME, "earn_rules": [base], **changed}, pb.Programme())
    if effective is not None:
        made.effective_time.FromDatetime(effective)
    return made


def put(points: Points, what: pb.Programme, request_id: str = "", *, check: bool = False) -> pb.Programme:
    request = pb.PutProgrammeRequest(
        request_id=request_id or fresh("put"), programme=what, validate_only=check
    )
    return points.call(points.points.PutProgramme, request)


def read(points: Points, version: int = 0) -> pb.Programme:
    return points.call(points.points.GetProgramme, pb.GetProgrammeRequest(version=version))


def versions(points: Points, page_size: int = 0) -> list[int]:
    found: list[int] = []
    token = ""
    while True:
        request = pb.ListProgrammesRequest(page_size=page_size, page_token=token)
        page = points.call(points.points.ListProgrammes, request)
        assert len(page.programmes) <= (page_size or 50)
        found.extend(p.version for p in page.programmes)
        token = page.next_page_token
        if not token:
            return found


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house on one front, whose clock and programme the tests move on; each starts from what it finds."""
    with open_house(data / "programmes", test_clock=NOON) as house:
        yield house


@pytest.fixture
def now(points: Points) -> datetime:
    """An instant with a programme in force and none to come: one point a yuan."""
    move(points, points.now + timedelta(days=1))
    put(points, programme())
    points.earn(fresh("member"), order(100, points.now))  # the first transaction fixes zone and currency
    return points.now


def test_without_a_programme_nothing_is_earned_and_everything_may_be_put(
    data: Path, open_house: OpenHouse
) -> None:
    with open_house(data / "bare", test_clock=NOON) as house, Points(house) as points:
        member, basket = fresh("member"), order(500, points.now)
        fixed = pb.FixedEarn(unit=pb.UNIT_POINTS, amount=1)
        attempts: list[Callable[[], object]] = [
            lambda: points.earn(member, basket),
            lambda: points.adjust(member, 1),
            lambda: points.call(
                points.points.EarnPoints,
                pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"), fixed=fixed),
            ),
            lambda: points.call(points.points.QuoteEarn, pb.QuoteEarnRequest(member_id=member, order=basket)),
        ]
        for attempt in attempts:
            with refused(StatusCode.FAILED_PRECONDITION, "NO_PROGRAMME"):
                attempt()
        for version in (0, 1):
            with refused(StatusCode.NOT_FOUND, "PROGRAMME_UNKNOWN"):
                read(points, version)
        assert versions(points) == []
        # Before the first transaction zone and currency may still change.
        assert put(points, programme(time_zone="Europe/Paris", currency_code="EUR")).version == 1
        assert put(points, programme()).version == 2
        assert points.earn(member, basket).balance.available == 5


def test_a_version_is_numbered_dated_and_read_back(points: Points, now: datetime) -> None:
    last = versions(points)[0]
    made = put(points, programme(points_per_yuan=2))
    assert made.version == last + 1
    assert made.effective_time.ToDatetime(tzinfo=UTC) == made.create_time.ToDatetime(tzinfo=UTC) == now
    assert read(points) == read(points, made.version) == made
    assert read(points, last).version == last
    with refused(StatusCode.NOT_FOUND, "PROGRAMME_UNKNOWN") as refusal:
        read(points, made.version + 1)
    assert refusal.metadata == {"version": str(made.version + 1)}


def test_what_the_caller_says_of_version_and_create_time_counts_for_nothing(
    points: Points, now: datetime
) -> None:
    wished = programme()
    wished.version = 77_777
    wished.create_time.FromDatetime(now - timedelta(days=9))
    made = put(points, wished)
    assert made.version == versions(points)[0] < 77_777
    assert made.create_time.ToDatetime(tzinfo=UTC) == now


def test_a_version_takes_effect_when_the_clock_gets_there(points: Points, now: datetime) -> None:
    member, start = fresh("member"), now + timedelta(hours=1)
    before = read(points)
    coming = put(points, programme(start, points_per_yuan=3))
    assert read(points) == before
    assert points.earn(member, order(100, now)).programme_version == before.version
    move(points, start - MOMENT)
    assert points.earn(member, order(100, now)).balance.available == 2
    move(points, start)
    assert read(points) == coming
    # The clock at posting decides, not when the order was paid.
    earned = points.earn(member, order(100, now))
    assert (earned.programme_version, earned.balance.available) == (coming.version, 5)


def test_a_version_cannot_take_effect_before_now_or_before_the_one_it_follows(
    points: Points, now: datetime
) -> None:
    with refused(StatusCode.FAILED_PRECONDITION, "EFFECTIVE_TIME_PAST") as refusal:
        put(points, programme(now - MOMENT))
    assert refusal.metadata["not_before"] == now.isoformat()
    start = now + timedelta(hours=1)
    put(points, programme(start))
    for sooner in (None, now, start - MOMENT):
        with refused(StatusCode.FAILED_PRECONDITION, "EFFECTIVE_TIME_PAST") as refusal:
            put(points, programme(sooner))
        assert refusal.metadata["not_before"] == start.isoformat()
    follows = put(points, programme(start, points_per_yuan=2))
    move(points, start)
    assert read(points) == follows


def test_zone_and_currency_are_fixed_by_the_first_transaction(points: Points, now: datetime) -> None:
    assert now
    with refused(StatusCode.FAILED_PRECONDITION, "TIME_ZONE_FIXED") as refusal:
        put(points, programme(time_zone="Asia/Tokyo"))
    assert refusal.metadata == {"time_zone": "Asia/Shanghai"}
    with refused(StatusCode.FAILED_PRECONDITION, "CURRENCY_FIXED") as refusal:
        put(points, programme(currency_code="JPY"))
    assert refusal.metadata == {"currency_code": "CNY"}


def test_checking_answers_as_putting_would_and_writes_nothing(points: Points, now: datetime) -> None:
    before, request_id, what = fingerprint(points), fresh("put"), programme(points_per_yuan=5)
    checked = put(points, what, request_id, check=True)
    with refused(StatusCode.FAILED_PRECONDITION, "EFFECTIVE_TIME_PAST"):
        put(points, programme(now - timedelta(seconds=1)), check=True)
    assert fingerprint(points) == before
    assert put(points, what, request_id) == checked


def test_a_put_is_repeated_with_its_first_answer(points: Points, now: datetime) -> None:
    request_id, what = fresh("put"), programme(now, points_per_yuan=2)
    first = put(points, what, request_id)
    move(points, now + timedelta(days=1))  # its effective time is past by now
    assert put(points, what, request_id) == first
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        put(points, programme(points_per_yuan=3), request_id)
    assert versions(points)[0] == first.version


def test_versions_are_listed_newest_first_in_pages(points: Points, now: datetime) -> None:
    assert now
    for _ in range(5):
        put(points, programme())
    whole = versions(points)
    assert whole == list(range(whole[0], 0, -1))
    for size in (1, 2, 1000):
        assert versions(points, size) == whole
    for token in ("x", "AAAA", "分"):
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            points.call(points.points.ListProgrammes, pb.ListProgrammesRequest(page_token=token))


# --- what becomes of points that are undone -----------------------------------------------------------


def spent(points: Points, member: str) -> pb.Transaction:
    """A member earns 20 points with an order, and spends 15."""
    earned = points.earn(member, order(2000, points.now))
    points.redeem(member, 15)
    return earned


def owes(points: Points, member: str) -> tuple[int, int]:
    """What is available, and what is owed."""
    balance = points.balance(member)
    return balance.available, balance.owed


@pytest.mark.parametrize(
    ("policy", "account", "owed"),
    [
        ({}, "owed", 15),
        ({"clawback": "CLAWBACK_DEBT"}, "owed", 15),
        ({"clawback": "CLAWBACK_CLAMP"}, "issuer_written_off", 0),
    ],
    ids=["by default", "a debt", "written off"],
)
def test_what_cannot_be_taken_back_is_owed_or_written_off(
    points: Points, now: datetime, policy: dict[str, Any], account: str, owed: int
) -> None:
    one, other = fresh("member"), fresh("member")
    first, second = spent(points, one), spent(points, other)
    put(points, programme(**policy))  # the policy in force now decides, not the one at earning
    refunded = refund(points, one, a_refund(first.order_id, now))
    reversed_ = reverse(points, other, second.transaction_id)
    for done in (refunded, reversed_):
        assert moved(done) == [("available", "issuer_earned", 5), (account, "issuer_earned", 15)]
    assert owes(points, one) == owes(points, other) == (0, owed)


def test_what_cannot_be_taken_back_may_block(points: Points, now: datetime) -> None:
    member = fresh("member")
    put(points, programme(clawback="CLAWBACK_BLOCK"))
    earned = spent(points, member)
    attempts: list[Callable[[], object]] = [
        lambda: refund(points, member, a_refund(earned.order_id, now)),
        lambda: reverse(points, member, earned.transaction_id),
    ]
    for attempt in attempts:
        with refused(StatusCode.FAILED_PRECONDITION, "CLAWBACK_BLOCKED") as refusal:
            attempt()
        assert refusal.metadata == {"unit": "POINTS", "missing": "15"}
    assert owes(points, member) == (5, 0)
    refund(points, member, a_refund(earned.order_id, now, 500))  # there is enough for a part
    points.adjust(member, 15)
    refund(points, member, a_refund(earned.order_id, now))
    assert owes(points, member) == (0, 0)


@pytest.mark.parametrize(("grace", "days"), [(0, 7), (1, 1), (30, 30)])
def test_returned_points_whose_lot_has_ended_live_for_the_days_of_grace(
    points: Points, now: datetime, grace: int, days: int
) -> None:
    member = fresh("member")
    put(points, programme(expiry={"rolling_months": 1}, grace_days=grace))
    points.earn(member, order(2000, now))
    redeemed = points.redeem(member, 15)
    move(points, now + timedelta(days=40))
    reverse(points, member, redeemed.transaction_id)
    (expiring,) = points.balance(member).expiring
    end = expiring.expire_time.ToDatetime(tzinfo=UTC)
    assert local_day(end) - local_day(points.now) == timedelta(days=days + 1)
    move(points, end - MOMENT)
    assert points.balance(member).available == 15
    move(points, end)
    assert points.balance(member).available == 0


def test_the_limit_of_transfers_is_the_one_in_force(points: Points, now: datetime) -> None:
    member, friend = fresh("member"), fresh("friend")
    points.earn(member, order(2000, now))
    for allowed, left in ((0, ""), (4, "4"), (6, "2"), (5, "0")):
        put(points, programme(transfers_per_day=allowed))
        reason = "TRANSFER_LIMIT" if allowed else "TRANSFERS_NOT_ALLOWED"
        with refused(StatusCode.FAILED_PRECONDITION, reason) as refusal:
            transfer(points, member, friend, 5)
        assert refusal.metadata.get("left", "") == left
        if allowed in (4, 6):
            transfer(points, member, friend, int(left))


# --- tiers --------------------------------------------------------------------------------------------

TIERED = [
    PROGRAMME["earn_rules"][0],
    PROGRAMME["earn_rules"][1],
    {
        "rule_id": "fan",
        "scope": "RULE_SCOPE_ORDER",
        "unit": "UNIT_POINTS",
        "when": "member.tier == '铁粉'",
        "multiplier": "1.2",
        "stack": "RULE_STACK_ADD",
    },
]
TIERS = [{"tier_id": "铁粉", "growth": 100}, {"tier_id": "挚爱粉", "growth": 300}]


def tier(points: Points, member: str) -> tuple[str, datetime | None]:
    """The tier held, and until when."""
    balance = points.balance(member)
    if not balance.HasField("tier_until_time"):
        return balance.tier, None
    return balance.tier, balance.tier_until_time.ToDatetime(tzinfo=UTC)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=SHANGHAI)


def test_a_tier_is_reached_at_once_counts_from_the_next_earn_on_and_ends(
    points: Points, now: datetime
) -> None:
    member = fresh("member")
    put(
        points,
        programme(tier_ladder={"rolling_days": 30, "grace_days": 2, "tiers": TIERS}, earn_rules=TIERED),
    )
    points.earn(member, order(9_900, now))
    assert tier(points, member) == ("", None)
    assert points.earn(member, order(100, now)).balance.available == 100
    until = midnight(local_day(now) + timedelta(days=32))  # 30 days with this one, and the grace
    assert tier(points, member) == ("铁粉", until)
    assert points.balance(member).version == 3  # two earns, and that the tier changed
    asked = pb.QuoteEarnRequest(member_id=member, order=order(10_000, now))
    assert points.call(points.points.QuoteEarn, asked).points == 120
    assert points.earn(member, order(10_000, now)).balance.available == 220
    assert points.earn(member, order(10_000, now)).balance.available == 340
    assert tier(points, member) == ("挚爱粉", until)
    assert points.earn(member, order(10_000, now)).balance.available == 440
    move(points, until - MOMENT)
    assert tier(points, member) == ("挚爱粉", until)
    move(points, until)
    assert tier(points, member) == ("挚爱粉", until + timedelta(days=30))  # its growth was good for it
    move(points, until + timedelta(days=30))
    assert tier(points, member) == ("", None)
    assert points.call(points.points.QuoteEarn, asked).points == 100
    assert points.balance(member).growth == 400  # what it counts for is gone, not the growth


def test_a_tier_outlives_the_growth_that_was_taken_back(points: Points, now: datetime) -> None:
    member = fresh("member")
    put(points, programme(tier_ladder={"rolling_days": 30, "tiers": TIERS}, earn_rules=TIERED))
    earned = points.earn(member, order(10_000, now))
    held = tier(points, member)
    refund(points, member, a_refund(earned.order_id, now))
    assert tier(points, member) == held == ("铁粉", midnight(local_day(now) + timedelta(days=30)))
    assert held[1] is not None
    move(points, held[1])
    assert tier(points, member) == ("", None)


def test_a_tier_of_a_calendar_year_is_held_to_the_end_of_the_next(points: Points, now: datetime) -> None:
    member = fresh("member")
    put(points, programme(tier_ladder={"calendar_year": True, "grace_days": 31, "tiers": TIERS}))
    points.adjust(member, 100, pb.UNIT_GROWTH)
    assert tier(points, member) == ("铁粉", midnight(date(local_day(now).year + 2, 2, 1)))


def test_a_version_without_a_ladder_gives_no_tier(points: Points, now: datetime) -> None:
    member = fresh("member")
    put(points, programme(now, earn_rules=TIERED))
    points.earn(member, order(50_000, now))
    assert tier(points, member) == ("", None)


# --- faults -------------------------------------------------------------------------------------------


def rule(**changed: Any) -> dict[str, Any]:
    made = {**PROGRAMME["earn_rules"][0], **changed}
    return {name: value for name, value in made.items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"time_zone": "Asia/Atlantis"}, "programme.time_zone"),
        ({"time_zone": "Asia"}, "programme.time_zone"),
        ({"time_zone": "/etc/passwd"}, "programme.time_zone"),
        ({"when": "order.city =="}, "programme.earn_rules[1].when"),
        ({"when": "order.town == 'x'"}, "programme.earn_rules[1].when"),
        ({"when": "order.total_minor"}, "programme.earn_rules[1].when"),
        ({"when": "line.sku == 'x'"}, "programme.earn_rules[1].when"),
        ({"when": "activity.kind == 'x'"}, "programme.earn_rules[1].when"),
        ({"per": None, "multiplier": "0.5"}, "programme.earn_rules[1].multiplier"),
        ({"unit": "UNIT_GROWTH", "expiry": {"rolling_months": 1}}, "programme.earn_rules[1].expiry"),
        (
            {"valid_from_time": "2026-02-01T00:00:00Z", "valid_until_time": "2026-02-01T00:00:00Z"},
            "programme.earn_rules[1].valid_until_time",
        ),
    ],
)
def test_a_fault_is_named_with_its_field(points: Points, changed: dict[str, Any], place: str) -> None:
    if "time_zone" in changed:
        what = programme(**changed)
    else:
        what = programme(earn_rules=[rule(), rule(rule_id="second", **changed)])
    with refused(StatusCode.INVALID_ARGUMENT, "PROGRAMME_INVALID") as refusal:
        put(points, what)
    assert refusal.fields == {place}


def ladder(*growth: int, **changed: Any) -> dict[str, Any]:
    tiers = [{"tier_id": f"tier-{number}", "growth": takes} for number, takes in enumerate(growth)]
    return {"rolling_days": 30, "tiers": tiers, **changed}


@pytest.mark.parametrize(
    ("what", "places"),
    [
        (ladder(100, 100), {"tiers[1].growth"}),
        (ladder(300, 200, 300, 250), {"tiers[1].growth", "tiers[3].growth"}),
        (ladder(tiers=[{**TIERS[0]}, {**TIERS[1], "tier_id": "铁粉"}]), {"tiers"}),
        (ladder(tiers=[{**TIERS[1]}, {**TIERS[0], "tier_id": "挚爱粉"}]), {"tiers", "tiers[1].growth"}),
    ],
    ids=["as much", "less", "one name twice", "both"],
)
def test_a_ladder_ascends_and_its_tiers_have_names_of_their_own(
    points: Points, what: dict[str, Any], places: set[str]
) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "PROGRAMME_INVALID") as refusal:
        put(points, programme(tier_ladder=what))
    assert refusal.fields == {f"programme.tier_ladder.{place}" for place in places}


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"tier_ladder": ladder(100, rolling_days=0)}, "tier_ladder.rolling_days"),
        ({"tier_ladder": ladder(100, rolling_days=3661)}, "tier_ladder.rolling_days"),
        ({"tier_ladder": ladder(100, grace_days=367)}, "tier_ladder.grace_days"),
        ({"tier_ladder": {"tiers": TIERS}}, "tier_ladder.window"),
        ({"tier_ladder": {"tiers": TIERS, "calendar_year": False}}, "tier_ladder.calendar_year"),
        ({"tier_ladder": ladder()}, "tier_ladder.tiers"),
        ({"tier_ladder": ladder(*range(1, 22))}, "tier_ladder.tiers"),
        ({"tier_ladder": ladder(0)}, "tier_ladder.tiers[0].growth"),
        ({"tier_ladder": ladder(tiers=[{"tier_id": "a b", "growth": 1}])}, "tier_ladder.tiers[0].tier_id"),
        ({"clawback": 9}, "clawback"),
        ({"grace_days": 367}, "grace_days"),
        ({"transfers_per_day": -1}, "transfers_per_day"),
    ],
)
def test_what_breaks_the_contract_is_named_with_its_place(
    points: Points, changed: dict[str, Any], place: str
) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        put(points, programme(**changed))
    assert refusal.fields == {f"programme.{place}"}


def test_every_fault_is_named_at_once_and_a_condition_with_its_place_in_the_text(points: Points) -> None:
    faulty = [rule(when="order.city == 'a' &&\n order.town == 'b'"), rule(rule_id="other", when="1 +")]
    with refused(StatusCode.INVALID_ARGUMENT, "PROGRAMME_INVALID") as refusal:
        put(points, programme(time_zone="Asia/Atlantis", earn_rules=faulty, tier_ladder=ladder(2, 1)))
    assert refusal.fields == {
        *("programme.earn_rules[0].when", "programme.earn_rules[1].when", "programme.time_zone"),
        "programme.tier_ladder.tiers[1].growth",
    }
    assert "2:7" in refusal.message  # line and column of `.town`
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        put(points, programme(earn_rules=[rule(), rule()]))
    assert refusal.fields == {"programme.earn_rules"}
