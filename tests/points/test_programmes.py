"""The programme: its versions, when each takes effect, what it may not change, and how faults are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from grpc import StatusCode
from loyalty.points.v1 import points_service_pb2 as pb

from services.cli.house import House, running
from tests.conftest import NOON
from tests.points.requests import fingerprint
from tests.support import PROGRAMME, Points, fresh, order, refused


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
def house(data: Path) -> Iterator[House]:
    """A house on one front, whose clock and programme the tests move on; each starts from what it finds."""
    with running(data / "programmes", test_clock=NOON) as house:
        yield house


@pytest.fixture
def now(points: Points) -> datetime:
    """An instant with a programme in force and none to come: one point a yuan."""
    assert points.house.clock is not None
    points.house.clock.set(points.now + timedelta(days=1))
    put(points, programme())
    points.earn(fresh("member"), order(100, points.now))  # the first transaction fixes zone and currency
    return points.now


def test_without_a_programme_nothing_is_earned_and_everything_may_be_put(data: Path) -> None:
    with running(data / "bare", test_clock=NOON) as house, Points(house) as points:
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
    assert points.house.clock is not None
    points.house.clock.set(start - timedelta(microseconds=1))
    assert points.earn(member, order(100, now)).balance.available == 2
    points.house.clock.set(start)
    assert read(points) == coming
    # The clock at posting decides, not when the order was paid.
    earned = points.earn(member, order(100, now))
    assert (earned.programme_version, earned.balance.available) == (coming.version, 5)


def test_a_version_cannot_take_effect_before_now_or_before_the_one_it_follows(
    points: Points, now: datetime
) -> None:
    with refused(StatusCode.FAILED_PRECONDITION, "EFFECTIVE_TIME_PAST") as refusal:
        put(points, programme(now - timedelta(microseconds=1)))
    assert refusal.metadata["not_before"] == now.isoformat()
    start = now + timedelta(hours=1)
    put(points, programme(start))
    for sooner in (None, now, start - timedelta(microseconds=1)):
        with refused(StatusCode.FAILED_PRECONDITION, "EFFECTIVE_TIME_PAST") as refusal:
            put(points, programme(sooner))
        assert refusal.metadata["not_before"] == start.isoformat()
    follows = put(points, programme(start, points_per_yuan=2))
    assert points.house.clock is not None
    points.house.clock.set(start)
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
    assert points.house.clock is not None
    points.house.clock.set(now + timedelta(days=1))  # its effective time is past by now
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


def test_every_fault_is_named_at_once_and_a_condition_with_its_place_in_the_text(points: Points) -> None:
    faulty = [rule(when="order.city == 'a' &&\n order.town == 'b'"), rule(rule_id="other", when="1 +")]
    with refused(StatusCode.INVALID_ARGUMENT, "PROGRAMME_INVALID") as refusal:
        put(points, programme(time_zone="Asia/Atlantis", earn_rules=faulty))
    assert refusal.fields == {
        *("programme.earn_rules[0].when", "programme.earn_rules[1].when", "programme.time_zone")
    }
    assert "2:7" in refusal.message  # line and column of `.town`
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        put(points, programme(earn_rules=[rule(), rule()]))
    assert refusal.fields == {"programme.earn_rules"}
