"""The index against a walk over all sites."""

from __future__ import annotations

import random
from math import asin, cos, degrees, pi, radians

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.groups.domain.coordinates import EARTH_RADIUS_M, Point, distance_m
from services.groups.domain.sites import Site
from services.groups.nearest import Near, SiteIndex

METRE = degrees(1 / EARTH_RADIUS_M)  # of latitude


def site(site_id: str, latitude: float, longitude: float, priority: int = 0, city: str = "") -> Site:
    return Site(site_id=site_id, name=site_id, city=city, point=Point(latitude, longitude), priority=priority)


def ids(found: list[Near]) -> list[str]:
    return [near.site.site_id for near in found]


def walk(sites: list[Site], point: Point) -> list[str]:
    """All sites in order, by looking at each."""
    ranked = sorted((round(distance_m(point, site.point), 3), site.priority, site.site_id) for site in sites)
    return [site_id for _, _, site_id in ranked]


# Places that repeat, that lie a few metres from one another, and those where longitude means little.
corners = st.sampled_from([0.0, 90.0, -90.0, 45.0, 45.00001, -45.0, 89.9999])
sides = st.sampled_from([0.0, 180.0, -180.0, 90.0, -90.0, 179.9999, -179.9999])
places = st.one_of(
    st.builds(Point, corners, sides),
    st.builds(Point, st.floats(-90, 90), st.floats(-180, 180)),
)


@st.composite
def site_lists(draw: st.DrawFn) -> list[Site]:
    points = draw(st.lists(st.tuples(places, st.integers(0, 2)), min_size=1, max_size=60))
    return [site(f"s{n}", p.latitude, p.longitude, priority) for n, (p, priority) in enumerate(points)]


@given(site_lists(), places, st.integers(1, 70))
@settings(max_examples=150, deadline=None)
def test_the_nearest_are_those_that_a_walk_finds(sites: list[Site], point: Point, count: int) -> None:
    index = SiteIndex(sites)
    expected = walk(sites, point)
    assert ids(index.nearest(point, count)) == expected[:count]
    assert ids(list(index.outward(point))) == expected
    for near in index.nearest(point, count):
        assert near.distance_m == distance_m(point, near.site.point)


def test_a_hundred_thousand_sites_are_as_exact() -> None:
    source = random.Random(20270301)
    centres = [(source.uniform(20, 45), source.uniform(85, 125)) for _ in range(300)]
    sites = []
    for number in range(100_000):
        if number % 2:  # all over the Earth, evenly
            where = degrees(asin(source.uniform(-1, 1))), source.uniform(-180, 180)
        else:  # in towns
            latitude, longitude = source.choice(centres)
            where = latitude + source.gauss(0, 0.05), longitude + source.gauss(0, 0.05)
        sites.append(site(f"s{number:06}", *where, source.randrange(3)))
    index = SiteIndex(sites)
    assert len(index) == 100_000
    asked = [Point(90, 0), Point(-90, 0), Point(12, 180), *(Point(*centre) for centre in centres[:3])]
    for point in asked:
        assert ids(index.nearest(point, 50)) == walk(sites, point)[:50]


def test_a_city_has_more_sites_in_one_house_than_are_asked_for() -> None:
    sites = [site(f"s{number:05}", 31.23, 121.47, number % 3) for number in range(5_000)]
    sites.append(site("away", 31.24, 121.47))
    index = SiteIndex(sites)
    assert ids(index.nearest(Point(31.23, 121.47), 3)) == ["s00000", "s00003", "s00006"]
    assert ids(list(index.outward(Point(31.23, 121.47))))[-1] == "away"


def test_degrees_taken_for_a_plane_pick_the_wrong_store_in_beijing() -> None:
    """A kilometre east is 1.304 km if a degree of longitude is taken to be as long as one of latitude."""
    member = Point(39.9087, 116.3975)
    east = site("east", 39.9087, 116.3975 + 1000 * METRE / cos(radians(39.9087)))
    north = site("north", 39.9087 + 1200 * METRE, 116.3975)

    def planar(there: Site) -> float:
        away = abs(complex(there.point.latitude - 39.9087, there.point.longitude - 116.3975))
        return away / METRE

    assert (round(planar(east)), round(planar(north))) == (1304, 1200)
    found = SiteIndex([north, east]).nearest(member, 2)
    assert [(near.site.site_id, round(near.distance_m)) for near in found] == [
        ("east", 1000),
        ("north", 1200),
    ]


def test_neighbours_are_found_across_the_antimeridian_and_the_pole() -> None:
    index = SiteIndex(
        [
            site("suva", -18.14, 178.44),
            site("apia", -13.83, -171.77),
            site("one side", 89.9, 10),
            site("other side", 89.95, -170),
            site("tromso", 69.65, 18.96),
        ]
    )
    assert ids(index.nearest(Point(-17, -179.9), 2)) == ["suva", "apia"]
    assert ids(index.nearest(Point(89.9, -160), 2)) == ["other side", "one side"]
    assert ids(index.nearest(Point(90, 0), 3)) == ["other side", "one side", "tromso"]


@given(st.floats(-80, 80), st.floats(-179, 179), st.floats(0.0001, 1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_of_sites_on_either_side_priority_decides(
    latitude: float, longitude: float, away: float, west_first: bool
) -> None:
    west = site("west", latitude, longitude - away, priority=1 - west_first)
    east = site("east", latitude, longitude + away, priority=int(west_first))
    found = SiteIndex([west, east]).nearest(Point(latitude, longitude), 2)
    assert ids(found) == (["west", "east"] if west_first else ["east", "west"])


def test_at_the_far_side_of_the_earth_order_holds_to_the_millimetre() -> None:
    sites = [site("a", -39.9, -63.6), site("b", -39.9 + 0.002 * METRE, -63.6), site("c", 0, 0)]
    found = SiteIndex(sites).nearest(Point(39.9, 116.4), 3)
    assert ids(found) == ["c", "b", "a"]
    assert found[-1].distance_m == pytest.approx(pi * EARTH_RADIUS_M, abs=0.001)


def test_where_there_are_no_sites_none_is_near() -> None:
    index = SiteIndex([])
    assert index.nearest(Point(31.2, 121.5), 3) == []
    assert list(index.outward(Point(31.2, 121.5))) == []
    assert index.central("上海") is None


def test_the_central_site_of_a_city_is_the_one_in_the_middle_of_its_sites() -> None:
    index = SiteIndex(
        [
            site("s1", 31.10, 121.40, city="上海"),
            site("s2", 31.30, 121.40, city="上海"),
            site("s3", 31.21, 121.41, city="上海"),
            site("s4", 31.20, 121.47, city="上海", priority=1),
            site("s5", 30.29, 120.16, city="杭州"),
        ]
    )
    found = [index.central(city) for city in ("上海", "杭州", "上海", "")]
    assert [None if there is None else there.site_id for there in found] == ["s3", "s5", "s3", None]
