"""Datums against published pairs and against their own inverses; distances against other formulas."""

from __future__ import annotations

import random
from math import acos, asin, cos, inf, nan, pi, radians, sin, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.groups.domain.coordinates import (
    EARTH_RADIUS_M,
    Datum,
    Fault,
    Point,
    coarse_cell,
    distance_m,
    fault,
    from_wgs84,
    mean_point,
    to_wgs84,
    unit_vector,
)

MOVED = [Datum.GCJ02, Datum.BD09]
EDGE = 0.06  # degrees; nearer to the edge of China, a point may stand for two places
latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)
points = st.builds(Point, latitudes, longitudes)
in_china = st.builds(Point, st.floats(0.82931, 55.82709), st.floats(72.00401, 137.83469))

# What the converters eviltransform (Shanghai, Shenzhen, Beijing) and coordtransform have published.
PAIRS = [
    (Point(31.1774276, 121.5272106), Datum.GCJ02, Point(31.17530398364597, 121.531541859215)),
    (Point(22.543847, 113.912316), Datum.GCJ02, Point(22.540796131694766, 113.9171764808363)),
    (Point(39.911954, 116.377817), Datum.GCJ02, Point(39.91334545536069, 116.38404722455657)),
    (Point(39.915, 116.404), Datum.GCJ02, Point(39.91640428150164, 116.41024449916938)),
    (Point(39.915, 116.404), Datum.BD09, Point(39.922699552216216, 116.41662724378733)),
]


@pytest.mark.parametrize(("wgs84", "datum", "published"), PAIRS)
def test_published_pairs_are_met_both_ways(wgs84: Point, datum: Datum, published: Point) -> None:
    shown = from_wgs84(wgs84, datum)
    assert shown.latitude == pytest.approx(published.latitude, abs=1e-12)
    assert shown.longitude == pytest.approx(published.longitude, abs=1e-12)
    assert distance_m(to_wgs84(published, datum), wgs84) < 0.001
    assert 450 < distance_m(wgs84, published) < 1_500


@pytest.mark.parametrize("datum", MOVED)
@given(place=in_china)
@settings(max_examples=150, deadline=None)
def test_what_a_datum_shows_leads_back_to_the_place(datum: Datum, place: Point) -> None:
    shown = from_wgs84(place, datum)
    assert distance_m(to_wgs84(shown, datum), place) < 0.001
    assert 10 < distance_m(shown, place) < 2_500


@pytest.mark.parametrize("datum", MOVED)
def test_ten_thousand_places_all_over_china_are_found_again_within_half_a_metre(datum: Datum) -> None:
    dice = random.Random(54)
    places = (Point(dice.uniform(18, 53.6), dice.uniform(73.5, 135.1)) for _ in range(10_000))
    assert max(distance_m(to_wgs84(from_wgs84(place, datum), datum), place) for place in places) < 0.5


@pytest.mark.parametrize("datum", MOVED)
@given(place=points)
@settings(max_examples=150, deadline=None)
def test_nothing_is_moved_outside_china(datum: Datum, place: Point) -> None:
    if _is_near_china(place):
        return
    assert from_wgs84(place, datum) == place
    assert to_wgs84(place, datum) == place


def _is_near_china(place: Point) -> bool:
    return (
        0.8293 - EDGE <= place.latitude <= 55.8271 + EDGE
        and 72.004 - EDGE <= place.longitude <= 137.8347 + EDGE
    )


@given(place=points)
@settings(max_examples=50, deadline=None)
def test_wgs84_is_taken_as_it_is(place: Point) -> None:
    assert to_wgs84(place, Datum.WGS84) is place
    assert from_wgs84(place, Datum.WGS84) is place


def test_a_store_is_picked_wrongly_where_datums_are_mixed() -> None:
    member = Point(39.9087, 116.3975)
    here, elsewhere = Point(39.9095, 116.3990), Point(39.9110, 116.4030)
    assert distance_m(member, here) < distance_m(member, elsewhere)
    shown = from_wgs84(member, Datum.GCJ02)
    assert distance_m(shown, here) > distance_m(shown, elsewhere)  # read as WGS84
    member_again = to_wgs84(shown, Datum.GCJ02)
    assert distance_m(member_again, here) < distance_m(member_again, elsewhere)


# --- what is no place ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latitude", "longitude", "why"),
    [
        (nan, 116.4, Fault.NOT_A_NUMBER),
        (39.9, inf, Fault.NOT_A_NUMBER),
        (-inf, nan, Fault.NOT_A_NUMBER),
        (0.0, 0.0, Fault.ZERO),
        (-0.0, 0.0, Fault.ZERO),
        (121.47, 31.23, Fault.SWAPPED),  # Shanghai
        (87.62, 43.83, Fault.SWAPPED),  # Ürümqi, in range also so
        (75.99, 39.47, Fault.SWAPPED),  # Kashgar
        (-122.42, 37.77, Fault.SWAPPED),  # San Francisco
        (90.000001, 200.0, Fault.OUT_OF_RANGE),
        (91.0, 181.0, Fault.OUT_OF_RANGE),
        (39.9, 180.000001, Fault.OUT_OF_RANGE),
        (-39.9, -180.5, Fault.OUT_OF_RANGE),
        (1e300, -1e300, Fault.OUT_OF_RANGE),
    ],
)
def test_what_is_no_place_is_named(latitude: float, longitude: float, why: Fault) -> None:
    assert fault(latitude, longitude) is why


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        *((90.0, 0.0), (-90.0, 180.0), (0.0, 0.0001), (0.0, 180.0), (51.5, 0.0), (39.9, 116.4)),
        *((78.22, 15.65), (71.17, 25.78), (80.0, -40.0), (18.2, 109.5), (53.5, 122.3)),
    ],
)
def test_places_of_people_are_taken(latitude: float, longitude: float) -> None:
    """Poles and edges; Longyearbyen, the North Cape, Greenland; Sanya and Mohe."""
    assert fault(latitude, longitude) is None


@given(st.builds(Point, st.floats(18, 53.6), st.floats(73.5, 135.1)))
@settings(max_examples=200, deadline=None)
def test_mainland_china_is_recognised_both_ways_round(place: Point) -> None:
    assert fault(place.latitude, place.longitude) is None
    assert fault(place.longitude, place.latitude) is Fault.SWAPPED


# --- distances ----------------------------------------------------------------------------------------


def haversine(one: Point, other: Point) -> float:
    south, north = radians(one.latitude), radians(other.latitude)
    turn = radians(other.longitude - one.longitude)
    half = sin((north - south) / 2) ** 2 + cos(south) * cos(north) * sin(turn / 2) ** 2
    return 2 * EARTH_RADIUS_M * asin(min(1.0, sqrt(half)))


@given(points, points)
@settings(max_examples=200, deadline=None)
def test_distances_are_those_of_haversines_and_of_directions(one: Point, other: Point) -> None:
    found = distance_m(one, other)
    assert 0 <= found <= pi * EARTH_RADIUS_M
    assert found == pytest.approx(distance_m(other, one), abs=1e-6)
    # Each of the two is blind somewhere: haversines to a metre at antipodes, cosines close by.
    assert found == pytest.approx(haversine(one, other), abs=1.0)
    cosine = sum(a * b for a, b in zip(unit_vector(one), unit_vector(other), strict=True))
    assert found == pytest.approx(EARTH_RADIUS_M * acos(max(-1.0, min(1.0, cosine))), abs=1.0)


@given(latitudes, longitudes, st.floats(1e-9, 1e-5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_distances_hold_close_by_and_at_antipodes(
    latitude: float, longitude: float, away: float, to_the_north: bool
) -> None:
    """Along a meridian the distance is the difference of latitudes, whatever the place."""
    place = Point(latitude, longitude)
    moved = Point(latitude + (-away if latitude > 0 else away), longitude)
    really = radians(abs(moved.latitude - latitude)) * EARTH_RADIUS_M
    assert distance_m(place, moved) == pytest.approx(really, abs=1e-6)
    opposite = Point(-moved.latitude, longitude - 180 if to_the_north else longitude + 180)
    assert distance_m(place, opposite) == pytest.approx(pi * EARTH_RADIUS_M - really, abs=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "metres"),
    [
        (Point(31.17530398364597, 121.531541859215), Point(39.91334545536069, 116.38404722455657), 1_076_960),
        (Point(0, 179.9995), Point(0, -179.9995), 111.195),
        (Point(89.9995, 0), Point(89.9995, 180), 111.195),
        (Point(90, 0), Point(90, 77), 0),
        (Point(90, 0), Point(-90, 0), 20_015_114.44),
        (Point(0, 0), Point(0, 180), 20_015_114.44),
    ],
)
def test_known_distances(one: Point, other: Point, metres: float) -> None:
    assert distance_m(one, other) == pytest.approx(metres, rel=1e-5, abs=1e-3)


# --- cells and means ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "cell"),
    [
        (Point(39.911954, 116.377817), "399:1163"),
        (Point(-0.05, -0.05), "-1:-1"),
        (Point(0.05, 0.0), "0:0"),
        (Point(10.0, 180.0), "100:-1800"),
        (Point(10.0, -180.0), "100:-1800"),
        (Point(90.0, 0.0), "900:0"),
    ],
)
def test_a_cell_is_named_by_its_south_west_corner(point: Point, cell: str) -> None:
    assert coarse_cell(point) == cell


@given(points)
@settings(max_examples=200, deadline=None)
def test_a_cell_holds_its_points_and_tells_no_more(point: Point) -> None:
    south, west = (int(part) / 10 for part in coarse_cell(point).split(":"))
    assert south <= point.latitude < south + 0.1 + 1e-9
    assert west <= point.longitude < west + 0.1 + 1e-9 or (point.longitude, west) == (180, -180)


def test_the_middle_of_places_is_theirs_also_across_the_antimeridian() -> None:
    middle = mean_point([Point(10, 179), Point(10, -179)])
    assert middle is not None
    assert distance_m(middle, Point(10, 180)) < 200  # the great circle bends to the north
    assert mean_point([Point(31.2, 121.5)]) == Point(pytest.approx(31.2), pytest.approx(121.5))  # type: ignore[arg-type]
    assert mean_point([]) is None
    assert mean_point([Point(0, 0), Point(0, 180)]) is None
