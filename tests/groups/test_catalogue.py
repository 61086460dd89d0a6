"""The programmes that are delivered: what their groups say is valid, and means what its comments say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.interceptors import validate
from services.groups import rules
from services.groups.domain import calendar
from services.groups.domain.profile import KeptOrder, Profile
from services.groups.rules import CompiledProgramme, CompiledScheme
from tests.support import delivered

FILES = ("burger-king", "china-merchants-bank")
ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)  # 12:00 of a Monday in Shanghai
DAY = timedelta(days=1)


def part(name: str) -> dict[str, Any]:
    said: dict[str, Any] = delivered(name)["groups"]
    return said


def valid(said: dict[str, Any], kind: type[Message]) -> Any:
    made = ParseDict(said, kind())
    validate(made)
    return made


def schemes(name: str) -> dict[str, CompiledScheme]:
    made = [rules.compile_scheme(valid(one, pb.Scheme)) for one in part(name)["schemes"]]
    return {one.scheme.scheme_id: one for one in made}


def programme(name: str) -> CompiledProgramme:
    return rules.compile_programme(valid(part(name)["programme"], pb.Programme))


@pytest.mark.parametrize("name", FILES)
def test_what_is_delivered_is_valid(name: str) -> None:
    assert schemes(name)
    assert programme(name).rules
    for site in part(name).get("sites", ()):
        valid(site, pb.Site)


@pytest.mark.parametrize(
    ("name", "scheme_id", "announced"),
    [
        (
            "burger-king",
            "store",
            {
                "voucher-pack-50": (1, "10:00"),
                "kings-day": (3, "10:00"),
                "draw-fries": (5, "11:00"),
                "group-exclusive": (6, "10:00"),
            },
        ),
        ("china-merchants-bank", "nearby", {"breakfast": (2, "07:30"), "cinema": (5, "16:00")}),
    ],
)
def test_the_week_is_announced_when_the_programme_says(
    name: str, scheme_id: str, announced: dict[str, tuple[int, str]]
) -> None:
    entries = schemes(name)[scheme_id].scheme.calendar
    week = calendar.occurrences(entries, NOON, NOON + 7 * DAY, ZONE)
    first = {one.occasion.benefit_code: one.at.astimezone(ZONE) for one in reversed(week)}
    for benefit, (weekday, hour) in announced.items():
        assert (first[benefit].isoweekday(), first[benefit].strftime("%H:%M")) == (weekday, hour)


@pytest.mark.parametrize(
    ("bought", "lifecycle"),
    [
        ([], ""),
        ([3], "new"),
        ([3, 60], "growing"),
        ([3, 10, 20, 30, 40, 50], "mature"),
        ([31], "silent"),
        ([91], "lost"),
    ],
)
def test_a_lifecycle_follows_from_when_a_member_bought(bought: list[int], lifecycle: str) -> None:
    orders = [
        KeptOrder(order_id=str(days), store_id="store", paid_time=NOON - days * DAY, amount_minor=100)
        for days in bought
    ]
    profile = Profile("ann", known=True, orders={one.order_id: one for one in orders})
    compiled = programme("burger-king")
    known = rules.known(profile, compiled.programme, NOON, ZONE)
    tags = compiled.tags_of(profile, known, NOON)
    assert (tags["lifecycle"].value if "lifecycle" in tags else "") == lifecycle


def test_the_upper_levels_have_a_group_each() -> None:
    fans = schemes("burger-king")["fans"]
    compiled = programme("burger-king")
    for tier, segment in (("挚爱粉", "devoted"), ("铁粉", "iron"), ("新粉", None)):
        profile = Profile("ann", known=True, facts={"tier": tier})
        found = fans.segment(rules.known(profile, compiled.programme, NOON, ZONE))
        assert (found and found.segment_id) == segment
