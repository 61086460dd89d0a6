"""The groups API over a real channel: schemes, programme, sites, and groups."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from grpc import StatusCode
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.groups.putting import MOST_ASKED
from tests.groups.calls import (
    NO_GROUP,
    Maker,
    a_region,
    a_scheme,
    a_site,
    assign,
    at,
    attach,
    close_site,
    dissolve,
    flash,
    groups_of,
    instant,
    join,
    listed,
    nearby,
    open_group,
    put_scheme,
    put_site,
    read_group,
    seat,
    settle,
    tagged,
)
from tests.groups.requests import CALENDAR, a_programme, a_whole_scheme
from tests.support import Groups, fresh, refused

# --- schemes ------------------------------------------------------------------------------------------


def read_scheme(groups: Groups, scheme_id: str, version: int = 0) -> pb.Scheme:
    return groups.call(groups.groups.GetScheme, pb.GetSchemeRequest(scheme_id=scheme_id, version=version))


def schemes(groups: Groups, **asked: Any) -> list[pb.Scheme]:
    """Every page of the schemes."""
    found: list[pb.Scheme] = []
    request = pb.ListSchemesRequest(**asked)
    while True:
        page = groups.call(groups.groups.ListSchemes, request)
        found += page.schemes
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


def test_a_scheme_is_kept_in_versions(groups: Groups) -> None:
    asked = a_whole_scheme()
    asked.withdrawn = True
    first = put_scheme(groups, asked)
    assert (first.version, instant(first.create_time)) == (1, groups.now)
    asked.capacity = 500
    larger = put_scheme(groups, asked)
    assert (larger.version, read_scheme(groups, asked.scheme_id)) == (2, larger)
    assert read_scheme(groups, asked.scheme_id, 1) == first
    for cleared in ("version", "create_time"):
        larger.ClearField(cleared)
    assert larger == asked
    for scheme_id, version in ((asked.scheme_id, 3), (fresh("nothing"), 0)):
        with refused(StatusCode.NOT_FOUND, "SCHEME_UNKNOWN"):
            read_scheme(groups, scheme_id, version)


def test_the_kind_of_a_scheme_is_that_of_its_first_version(groups: Groups, make: Maker) -> None:
    made = make("INVITE")
    made.kind = pb.SCHEME_KIND_FLASH
    with refused(StatusCode.FAILED_PRECONDITION, "KIND_FIXED") as refusal:
        put_scheme(groups, made)
    assert refusal.metadata == {"kind": "INVITE"}


def test_only_checking_a_scheme_puts_nothing(groups: Groups) -> None:
    asked = a_scheme("BY_TAG", segments=tagged("wish", tea="tea"))
    assert put_scheme(groups, asked, validate_only=True).version == 1
    with refused(StatusCode.NOT_FOUND, "SCHEME_UNKNOWN"):
        read_scheme(groups, asked.scheme_id)


def test_every_fault_of_a_scheme_is_named_with_its_place(groups: Groups) -> None:
    faulty = a_whole_scheme()
    faulty.threshold[0].expression = "facts.nothing > 0"
    faulty.segments[0].expression = "'text'"
    faulty.calendar[2].dates.append("2026-02-30")
    faulty.name_pattern = "群{site}"
    with refused(StatusCode.INVALID_ARGUMENT, "SCHEME_INVALID") as refusal:
        put_scheme(groups, faulty)
    assert refusal.fields == {
        "scheme.threshold[0].expression",
        "scheme.segments[0].expression",
        "scheme.calendar[2].dates[1]",
        "scheme.name_pattern",
    }


def test_a_scheme_names_what_there_is(groups: Groups) -> None:
    with refused(StatusCode.NOT_FOUND, "SITE_UNKNOWN"):
        put_scheme(groups, a_scheme(default_site_id=fresh("site")))
    with refused(StatusCode.NOT_FOUND, "SCHEME_UNKNOWN"):
        put_scheme(groups, a_scheme(successor_scheme_id=fresh("scheme")))
    itself = a_scheme("INVITE")
    itself.successor_scheme_id = itself.scheme_id
    put_scheme(groups, itself)


def test_only_so_many_schemes_are_asked_where_none_is_named(groups: Groups, make: Maker) -> None:
    made = [make() for _ in range(MOST_ASKED)]
    with refused(StatusCode.FAILED_PRECONDITION, "TOO_MANY_SCHEMES") as refusal:
        make()
    assert refusal.metadata == {"limit": str(MOST_ASKED)}
    put_scheme(groups, made[0])
    put_scheme(groups, a_scheme(withdrawn=True))
    put_scheme(groups, a_scheme("INVITE"))


def test_pages_of_schemes_join_under_each_filter(groups: Groups, make: Maker) -> None:
    made = [make("FLASH") for _ in range(3)]
    made[1].withdrawn = True
    made[1] = put_scheme(groups, made[1])
    made.sort(key=lambda one: one.scheme_id)
    names = {one.scheme_id for one in made}
    for size in (1, 1000):
        asked: dict[str, Any] = {"page_size": size, "kind": pb.SCHEME_KIND_FLASH}
        found = schemes(groups, **asked, include_withdrawn=True)
        assert [one for one in found if one.scheme_id in names] == made
        found = [one for one in schemes(groups, **asked) if one.scheme_id in names]
        assert found == [one for one in made if not one.withdrawn]


# --- the programme ------------------------------------------------------------------------------------


def put_programme(groups: Groups, programme: pb.Programme, **how: Any) -> pb.Programme:
    request = pb.PutProgrammeRequest(request_id=fresh("put"), programme=programme, **how)
    return groups.call(groups.groups.PutProgramme, request)


def test_the_programme_is_kept_in_versions(groups: Groups) -> None:
    first = put_programme(groups, pb.Programme(moves_per_day=300))
    second = put_programme(groups, pb.Programme())
    assert second.version == first.version + 1
    for version, programme in ((first.version, first), (second.version, second), (0, second)):
        request = pb.GetProgrammeRequest(version=version)
        assert groups.call(groups.groups.GetProgramme, request) == programme
    with refused(StatusCode.NOT_FOUND, "PROGRAMME_UNKNOWN"):
        groups.call(groups.groups.GetProgramme, pb.GetProgrammeRequest(version=10**6))


def test_a_programme_is_checked_whole_and_put_only_if_asked_to(groups: Groups) -> None:
    before = put_programme(groups, pb.Programme())
    assert put_programme(groups, a_programme(), validate_only=True).version == before.version + 1
    faulty = a_programme()
    faulty.tag_rules.add(key="wrong", expression="facts.orders_total > 1")
    with refused(StatusCode.INVALID_ARGUMENT, "PROGRAMME_INVALID") as refusal:
        put_programme(groups, faulty)
    assert refusal.fields == {"programme.tag_rules[1].expression"}
    assert groups.call(groups.groups.GetProgramme, pb.GetProgrammeRequest()) == before


# --- sites --------------------------------------------------------------------------------------------


def read_site(groups: Groups, site_id: str) -> pb.Site:
    return groups.call(groups.groups.GetSite, pb.GetSiteRequest(site_id=site_id))


def put_sites(groups: Groups, *sites: pb.Site, **how: Any) -> tuple[int, int, int]:
    """How many were added, changed, and the same."""
    request = pb.BatchPutSitesRequest(request_id=fresh("put"), sites=sites, **how)
    put = groups.call(groups.groups.BatchPutSites, request)
    return put.added, put.changed, put.unchanged


def test_a_site_is_put_changed_and_read_by_wgs84(groups: Groups) -> None:
    there = pb.Location(latitude=31.1753040, longitude=121.5315419, datum=pb.DATUM_GCJ02)
    asked = pb.Site(site_id=fresh("site"), name="一店", city="上海", location=there, priority=3)
    with refused(StatusCode.NOT_FOUND, "SITE_UNKNOWN"):
        read_site(groups, asked.site_id)
    assert put_site(groups, asked, validate_only=True).name == "一店"
    with refused(StatusCode.NOT_FOUND, "SITE_UNKNOWN"):
        read_site(groups, asked.site_id)
    site = put_site(groups, asked)
    assert site.location.datum == pb.DATUM_WGS84
    assert (round(site.location.latitude, 6), round(site.location.longitude, 6)) == (31.177428, 121.527211)
    assert (site.name, site.city, site.priority, site.closed) == ("一店", "上海", 3, False)
    assert instant(site.update_time) == groups.now
    asked.name = "二店"
    assert put_site(groups, asked).name == "二店"
    assert read_site(groups, asked.site_id).name == "二店"


def test_sites_are_put_together_or_not_at_all(groups: Groups, make: Maker) -> None:
    region = a_region()
    one, other, third = (a_site(region, metres) for metres in (0, 100, 200))
    assert put_sites(groups, one, other) == (2, 0, 0)
    other.name = "新店"
    assert put_sites(groups, one, other, third, validate_only=True) == (1, 1, 1)
    assert put_sites(groups, one, other, third) == (1, 1, 1)
    scheme = make()
    open_group(groups, scheme, site_id=other.site_id)
    third.name, other.closed = "不变", True
    with refused(StatusCode.FAILED_PRECONDITION, "SITE_HAS_GROUPS") as refusal:
        put_sites(groups, third, other)
    assert refusal.metadata == {"site_id": other.site_id}
    assert read_site(groups, third.site_id).name == third.site_id + "店"


def test_pages_of_sites_join_by_city(groups: Groups) -> None:
    city = fresh("city")
    _, sites = settle(groups, *range(0, 500, 100), city=city)
    sites[2].closed = True
    sites[2] = put_site(groups, sites[2])
    sites.sort(key=lambda site: site.site_id)
    for size, closed in ((2, True), (2, False), (1000, False)):
        found: list[pb.Site] = []
        request = pb.ListSitesRequest(city=city, page_size=size, include_closed=closed)
        while True:
            page = groups.call(groups.groups.ListSites, request)
            found += page.sites
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert found == [site for site in sites if closed or not site.closed]


def test_closing_a_site_says_where_its_members_go_and_opening_it_again_gives_seats_again(
    groups: Groups, make: Maker
) -> None:
    region, [near, far] = settle(groups, 0, 700)
    scheme, member = make(), fresh("member")
    empty = open_group(groups, make(), site_id=near.site_id)
    mine = seat(groups, member, scheme, location=at(region)).group
    checked = close_site(groups, near, validate_only=True)
    assert [(one.group_id, one.members, one.next_site_id, one.distance_m) for one in checked.moves] == [
        (mine.group_id, 1, far.site_id, 700)
    ]
    assert (checked.site.closed, checked.members, checked.local_days) == (True, 1, 1)
    assert not read_site(groups, near.site_id).closed
    closed = close_site(groups, near)
    assert closed.site.closed
    assert closed.moves == checked.moves
    assert read_group(groups, empty).status == pb.GROUP_STATUS_DISSOLVED
    assert read_site(groups, near.site_id).closed
    # It is nobody's nearest any more.
    elsewhere = seat(groups, fresh("member"), scheme, location=at(region)).group
    assert elsewhere.site_id == far.site_id
    near.closed = False
    assert not put_site(groups, near).closed
    assert seat(groups, fresh("member"), scheme, location=at(region)).group.site_id == near.site_id
    with refused(StatusCode.NOT_FOUND, "SITE_UNKNOWN"):
        close_site(groups, a_site(region))


# --- groups -------------------------------------------------------------------------------------------


def test_a_group_is_opened_by_hand_though_others_have_room(groups: Groups, make: Maker) -> None:
    _, [site] = settle(groups, name="天城店")
    scheme = make(name_pattern="汉堡王{site}福利群{seq}", calendar=CALENDAR, lifetime_minutes=60)
    first = open_group(groups, scheme, site_id=site.site_id)
    second = open_group(groups, scheme, site_id=site.site_id)
    assert first == pb.Group(
        group_id=first.group_id,
        scheme_id=scheme.scheme_id,
        scheme_version=1,
        site_id=site.site_id,
        seq=1,
        name="汉堡王天城店福利群",
        capacity=3,
        seats=2,
        status=pb.GROUP_STATUS_OPEN,
        open_time=first.open_time,
        close_time=first.close_time,
        next_occasion_time=first.next_occasion_time,
        version=1,
    )
    assert instant(first.close_time) == groups.now + timedelta(hours=1)
    assert (second.seq, second.name, second.previous_group_id) == (2, "汉堡王天城店福利群2", first.group_id)
    assert read_group(groups, first) == first
    with refused(StatusCode.NOT_FOUND, "GROUP_UNKNOWN"):
        read_group(groups, NO_GROUP)


@pytest.mark.parametrize(
    ("kind", "where", "reason"),
    [
        ("BY_LOCATION", {"segment_id": "tea"}, "WRONG_KIND"),
        ("BY_LOCATION", {"site_id": "nowhere"}, "SITE_UNKNOWN"),
        ("BY_TAG", {}, "WRONG_KIND"),
        ("BY_TAG", {"segment_id": "coffee"}, "SEGMENT_UNKNOWN"),
        ("INVITE", {"site_id": "nowhere"}, "WRONG_KIND"),
        ("FLASH", {}, "WRONG_KIND"),
    ],
    ids=str,
)
def test_a_group_is_opened_only_where_its_scheme_has_groups(
    groups: Groups, make: Maker, kind: str, where: dict[str, str], reason: str
) -> None:
    scheme = make(kind, **({"segments": tagged("wish", tea="tea")} if kind == "BY_TAG" else {}))
    code = StatusCode.FAILED_PRECONDITION if reason == "WRONG_KIND" else StatusCode.NOT_FOUND
    with refused(code, reason) as refusal:
        open_group(groups, scheme, **where)
    if reason == "WRONG_KIND":
        assert refusal.metadata == {"kind": kind}


def test_no_group_is_opened_of_what_is_withdrawn_closed_or_unknown(groups: Groups, make: Maker) -> None:
    _, [site] = settle(groups)
    scheme = make()
    site.closed = True
    put_site(groups, site)
    with refused(StatusCode.FAILED_PRECONDITION, "SITE_CLOSED"):
        open_group(groups, scheme, site_id=site.site_id)
    scheme.withdrawn = True
    put_scheme(groups, scheme)
    with refused(StatusCode.FAILED_PRECONDITION, "SCHEME_WITHDRAWN"):
        open_group(groups, scheme)
    with refused(StatusCode.NOT_FOUND, "SCHEME_UNKNOWN"):
        open_group(groups, a_scheme())


def test_segments_and_inviters_have_groups_of_their_own(groups: Groups, make: Maker) -> None:
    scheme = make("BY_TAG", segments=tagged("wish", tea="tea"), name_pattern="{segment}群")
    group = open_group(groups, scheme, segment_id="tea")
    assert (group.segment_id, group.inviter_id, group.name) == ("tea", "", "tea群")
    group = open_group(groups, make("INVITE"), inviter_id="kol")
    assert (group.segment_id, group.inviter_id) == ("", "kol")


@pytest.mark.parametrize(("sale", "close"), [(0, 60), (181, 200), (60, 60), (60, 241), (60, 30)], ids=str)
def test_a_flash_group_lives_for_hours(groups: Groups, make: Maker, sale: int, close: int) -> None:
    scheme = make("FLASH", lifetime_minutes=90)
    with refused(StatusCode.FAILED_PRECONDITION, "FLASH_TIME_INVALID") as refusal:
        flash(groups, scheme, sale, close)
    assert set(refusal.metadata) == {"sale_time", "close_time"}
    opened = flash(groups, scheme)
    assert instant(opened.sale_time) == groups.now + timedelta(hours=1)
    assert instant(opened.close_time) == groups.now + timedelta(minutes=90)
    with refused(StatusCode.FAILED_PRECONDITION, "WRONG_KIND"):
        flash(groups, make())


def test_a_chat_is_one_groups(groups: Groups, make: Maker) -> None:
    scheme, chat = make(), fresh("chat")
    one, other = open_group(groups, scheme), open_group(groups, scheme)
    attached = attach(groups, one, chat_id=chat)
    assert (attached.chat_id, attached.entry_link) == (chat, "")
    attached = attach(groups, one, entry_link="https://work.weixin.qq.com/gm/1")
    assert (attached.chat_id, attached.entry_link) == (chat, "https://work.weixin.qq.com/gm/1")
    assert read_group(groups, one) == attached
    with refused(StatusCode.ALREADY_EXISTS, "CHAT_ATTACHED") as refusal:
        attach(groups, other, chat_id=chat)
    assert refusal.metadata == {"group_id": one.group_id}
    with refused(StatusCode.NOT_FOUND, "GROUP_UNKNOWN"):
        attach(groups, pb.Group(group_id=NO_GROUP), chat_id=chat)
    assert listed(groups, chat_id=chat) == [attached]


def test_a_dissolved_group_is_no_more(groups: Groups, make: Maker) -> None:
    group = open_group(groups, make())
    ended = dissolve(groups, group)
    assert (ended.status, instant(ended.close_time)) == (pb.GROUP_STATUS_DISSOLVED, groups.now)
    assert dissolve(groups, group) == ended
    with refused(StatusCode.FAILED_PRECONDITION, "GROUP_DISSOLVED"):
        attach(groups, group, chat_id=fresh("chat"))
    with refused(StatusCode.FAILED_PRECONDITION, "GROUP_FULL"):
        assign(groups, fresh("member"), chosen_group_id=group.group_id)
    with refused(StatusCode.NOT_FOUND, "GROUP_UNKNOWN"):
        dissolve(groups, pb.Group(group_id=NO_GROUP))


def test_pages_of_groups_join_under_each_filter(groups: Groups, make: Maker) -> None:
    _, [one, other] = settle(groups, 0, 100)
    scheme = make()
    made = [open_group(groups, scheme, site_id=site.site_id) for site in (one, other, one)]
    made[0] = dissolve(groups, made[0])
    for _ in range(2):
        join(groups, fresh("member"), made[1])
    made[1] = read_group(groups, made[1])
    assert made[1].status == pb.GROUP_STATUS_FULL
    made += listed(groups, scheme_id=scheme.scheme_id, page_size=1000)[3:]
    for size in (1, 2, 1000):
        asked: dict[str, Any] = {"page_size": size, "scheme_id": scheme.scheme_id}
        assert listed(groups, **asked) == made
        here = [group for group in made if group.site_id == one.site_id]
        assert listed(groups, **asked, site_id=one.site_id) == here
        for status in pb.GroupStatus.values()[1:]:
            so = [group for group in made if group.status == status]
            assert listed(groups, **asked, status=status) == so
    token = groups.call(groups.groups.ListGroups, pb.ListGroupsRequest(page_size=1)).next_page_token
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        listed(groups, page_token=token, site_id=one.site_id)


def test_a_new_calendar_holds_for_groups_that_are_open(groups: Groups, make: Maker) -> None:
    scheme = make()
    group = open_group(groups, scheme)
    assert not group.HasField("next_occasion_time")
    ParseDict({"calendar": CALENDAR}, scheme)
    put_scheme(groups, scheme)
    # The clock stands at Monday noon; the next King's Day is Wednesday at ten.
    told = read_group(groups, group).next_occasion_time
    assert instant(told) == groups.now + timedelta(days=1, hours=22)
    scheme.ClearField("calendar")
    put_scheme(groups, scheme)
    assert not read_group(groups, group).HasField("next_occasion_time")


def test_of_a_member_nobody_knows_there_is_nothing(groups: Groups, make: Maker) -> None:
    assert groups_of(groups, fresh("nobody")) == []
    with refused(StatusCode.FAILED_PRECONDITION, "NO_SITE"):
        nearby(groups, make())
