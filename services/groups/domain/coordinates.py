"""Places on Earth: what clients measure by their datum, brought to WGS84, checked, and measured between.

Chinese phones and maps show coordinates moved on purpose: GCJ-02 by 100 to 700 m, Baidu's BD-09 by as much
again. The formulas are those that converters have published since 2013; the published pairs of the tests hold
to the last digit. Nothing is moved outside China, and China is the converters' usual box: 0.8293° to 55.8271°
north, 72.004° to 137.8347° east. Seoul and Hanoi lie in it too, so points there have to come as WGS84.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import atan2, cos, degrees, floor, hypot, isfinite, pi, radians, sin, sqrt

EARTH_RADIUS_M = 6_371_008.8  # the mean radius of GRS 80 (IUGG), as great-circle distances take it

_AXIS_M = 6_378_245.0  # Krasovsky 1940: the semi-major axis, and the eccentricity squared
_ECCENTRICITY = 0.00669342162296594323
_BAIDU_WAVE = pi * 3000 / 180
_BAIDU_EAST, _BAIDU_NORTH = 0.0065, 0.006  # degrees
_SOUTH, _NORTH, _WEST, _EAST = 0.8293, 55.8271, 72.004, 137.8347  # the box
_FARTHEST = 0.05  # degrees that a datum may move a place, and more
_CLOSE = 1e-10  # degrees, a hundredth of a millimetre
_ROUNDS = 20  # each brings an inverse a hundred times closer
_CELL = 10  # cells a degree
_NOWHERE = 1e-9  # the mean of places this short, of 1, has no direction


class Datum(StrEnum):
    """What a pair of coordinates is counted from."""

    WGS84 = "WGS84"
    """GPS."""
    GCJ02 = "GCJ02"
    """What phones, WeChat and most maps show in China."""
    BD09 = "BD09"
    """What Baidu shows in China."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in degrees, WGS84 unless said otherwise."""

    latitude: float
    longitude: float


class Fault(StrEnum):
    """Why a pair of coordinates is no place that a person can be at."""

    NOT_A_NUMBER = "NOT_A_NUMBER"
    """One of them is not finite."""
    ZERO = "ZERO"
    """Both are 0, which is what devices and programs say that do not know."""
    SWAPPED = "SWAPPED"
    """They are a place only the other way round, or one in mainland China instead of one in Arctic seas."""
    OUT_OF_RANGE = "OUT_OF_RANGE"
    """Latitude lies beyond 90 degrees, or longitude beyond 180."""


def fault(latitude: float, longitude: float) -> Fault | None:
    """What is wrong with coordinates in degrees, of any datum; None if nothing is."""
    if not (isfinite(latitude) and isfinite(longitude)):
        return Fault.NOT_A_NUMBER
    if latitude == longitude == 0:
        return Fault.ZERO
    if not _in_range(latitude, longitude):
        return Fault.SWAPPED if _in_range(longitude, latitude) else Fault.OUT_OF_RANGE
    # Exchanged, the west of mainland China lies in the sea beyond the North Cape, where nobody lives.
    if latitude >= 73.5 and 18 <= longitude <= 53.6:
        return Fault.SWAPPED
    return None


def _in_range(latitude: float, longitude: float) -> bool:
    return abs(latitude) <= 90 and abs(longitude) <= 180


# --- datums -------------------------------------------------------------------------------------------


def to_wgs84(shown: Point, datum: Datum) -> Point:
    """The place that a datum shows so, found within a millimetre.

    At the edges of the box, where one point may be shown for two places, it is the one inside.
    """
    if datum is Datum.WGS84 or not _in_china(shown, _FARTHEST):
        return shown
    found = shown
    for _ in range(_ROUNDS):
        again = _moved(found, datum)
        north, east = shown.latitude - again.latitude, shown.longitude - again.longitude
        found = Point(found.latitude + north, found.longitude + east)
        if abs(north) < _CLOSE and abs(east) < _CLOSE:
            break
    return found if _in_china(found) else shown


def from_wgs84(place: Point, datum: Datum) -> Point:
    """What a datum shows for a place."""
    return place if datum is Datum.WGS84 or not _in_china(place) else _moved(place, datum)


def _in_china(place: Point, margin: float = 0) -> bool:
    return (
        _SOUTH - margin <= place.latitude <= _NORTH + margin
        and _WEST - margin <= place.longitude <= _EAST + margin
    )


def _moved(place: Point, datum: Datum) -> Point:
    gcj02 = _gcj02(place)
    return gcj02 if datum is Datum.GCJ02 else _bd09(gcj02)


def _gcj02(place: Point) -> Point:
    x, y = place.longitude - 105, place.latitude - 35
    both = 20 * sin(6 * pi * x) + 20 * sin(2 * pi * x)
    north_m = both + 20 * sin(pi * y) + 40 * sin(pi / 3 * y) + 160 * sin(pi / 12 * y) + 320 * sin(pi / 30 * y)
    east_m = both + 20 * sin(pi * x) + 40 * sin(pi / 3 * x) + 150 * sin(pi / 12 * x) + 300 * sin(pi / 30 * x)
    north_m = north_m * 2 / 3 - 100 + 2 * x + 3 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * sqrt(abs(x))
    east_m = east_m * 2 / 3 + 300 + x + 2 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * sqrt(abs(x))
    latitude = radians(place.latitude)
    magic = 1 - _ECCENTRICITY * sin(latitude) ** 2
    meridian_m = _AXIS_M * (1 - _ECCENTRICITY) / (magic * sqrt(magic))  # radii of curvature
    parallel_m = _AXIS_M / sqrt(magic) * cos(latitude)
    return Point(
        place.latitude + degrees(north_m / meridian_m), place.longitude + degrees(east_m / parallel_m)
    )


def _bd09(gcj02: Point) -> Point:
    x, y = gcj02.longitude, gcj02.latitude
    radius = hypot(x, y) + 0.00002 * sin(y * _BAIDU_WAVE)
    angle = atan2(y, x) + 0.000003 * cos(x * _BAIDU_WAVE)
    return Point(radius * sin(angle) + _BAIDU_NORTH, radius * cos(angle) + _BAIDU_EAST)


# --- distances ----------------------------------------------------------------------------------------


def distance_m(one: Point, other: Point) -> float:
    """Metres along the great circle on a sphere of radius 6,371,008.8 m.

    Vincenty's formula in its spherical case (Survey Review 23, 1975): exact to a micrometre where haversines
    fail at antipodes and cosines close by. The Earth itself is not round, which is up to 0.5 % of it.
    """
    south, north = radians(one.latitude), radians(other.latitude)
    turn = radians(other.longitude - one.longitude)
    across = cos(north) * sin(turn)
    along = cos(south) * sin(north) - sin(south) * cos(north) * cos(turn)
    inward = sin(south) * sin(north) + cos(south) * cos(north) * cos(turn)
    return EARTH_RADIUS_M * atan2(hypot(across, along), inward)


def unit_vector(point: Point) -> tuple[float, float, float]:
    """The direction of a place from the middle of the Earth."""
    latitude, longitude = radians(point.latitude), radians(point.longitude)
    return cos(latitude) * cos(longitude), cos(latitude) * sin(longitude), sin(latitude)


def mean_point(points: Iterable[Point]) -> Point | None:
    """The middle of places, by their directions; None where there is none, as of two antipodes."""
    x, y, z, count = 0.0, 0.0, 0.0, 0
    for point in points:
        east, north, up = unit_vector(point)
        x, y, z, count = x + east, y + north, z + up, count + 1
    if hypot(x, y, z) <= count * _NOWHERE:
        return None
    return Point(degrees(atan2(z, hypot(x, y))), degrees(atan2(y, x)))


def coarse_cell(point: Point) -> str:
    """The cell of 0.1 degrees that holds a place, by its south-west corner in tenths: 399:1163.

    It is about 11 km high, and as wide as that at the equator and 8.5 km at Beijing.
    """
    east = -180.0 if point.longitude == 180 else point.longitude
    return f"{floor(point.latitude * _CELL)}:{floor(east * _CELL)}"
