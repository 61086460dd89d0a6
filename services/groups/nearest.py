"""The open sites, in process: which of them are nearest to a place, exactly.

The index finds by straight lines through the Earth who may be among the nearest; who is, in which order, says
the great circle. So an answer is the same as that of a walk over all sites, and needs microseconds of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.groups.domain.coordinates import Point, distance_m, mean_point, unit_vector
from services.groups.domain.sites import Site

# Sites are equally far when they are so to the millimetre: less is an accident of arithmetic, and would
# decide between two sites on either side of somebody, where priority should. The slack, on a sphere of
# radius 1, is two millimetres.
_MILLIMETRES = 3  # digits of a metre
_SLACK = 3.2e-10
_FIRST = 16  # sites looked up at first on the way outward


@dataclass(frozen=True, slots=True)
class Near:
    """A site, and how far it is."""

    site: Site
    distance_m: float

    @property
    def rank(self) -> tuple[float, int, str]:
        """What they are ordered by: distance, priority, id."""
        return round(self.distance_m, _MILLIMETRES), self.site.priority, self.site.site_id


class SiteIndex:
    """Sites by place and by city. It never changes: other sites are another index."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = tuple(sites)
        self._by_city: dict[str, list[Site]] = {}
        for site in self._sites:
            self._by_city.setdefault(site.city, []).append(site)
        self._central: dict[str, Site] = {}
        directions = [unit_vector(site.point) for site in self._sites]
        self._tree = _tree(directions) if directions else None

    def __len__(self) -> int:
        return len(self._sites)

    def nearest(self, point: Point, count: int) -> list[Near]:
        """The so many nearest sites, in order; all of them where there are fewer."""
        count = min(count, len(self._sites))
        if self._tree is None or count < 1:
            return []
        direction = unit_vector(point)
        [radius], _ = self._tree.query(direction, k=[count])
        found = [
            self._near(point, index) for index in self._tree.query_ball_point(direction, radius + _SLACK)
        ]
        return sorted(found, key=lambda near: near.rank)[:count]

    def outward(self, point: Point) -> Iterator[Near]:
        """All sites, in order: for whoever stops at the first that will do."""
        done, size = 0, _FIRST
        while done < len(self._sites):
            yield from self.nearest(point, size)[done:]
            done, size = size, size * 2

    def central(self, city: str) -> Site | None:
        """The site of a city that is nearest to the middle of its sites; None where it has none."""
        sites = self._by_city.get(city)
        if sites is None:
            return None
        if city not in self._central:
            middle = mean_point(site.point for site in sites) or sites[0].point
            ranked = (Near(site, distance_m(middle, site.point)) for site in sites)
            self._central[city] = min(ranked, key=lambda near: near.rank).site
        return self._central[city]

    def _near(self, point: Point, index: int) -> Near:
        site = self._sites[index]
        return Near(site, distance_m(point, site.point))


def _tree(directions: Sequence[tuple[float, float, float]]) -> Any:
    """SciPy takes a quarter of a second and 50 MB: a process without sites goes without it."""
    from scipy.spatial import cKDTree  # noqa: PLC0415

    return cKDTree(directions)
