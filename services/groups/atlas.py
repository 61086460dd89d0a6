"""The sites as a process keeps them, and where members go by them. A change makes another atlas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.groups.domain.coordinates import Point, distance_m
from services.groups.domain.sites import Site
from services.groups.nearest import Near, SiteIndex


class Atlas:
    """All sites at a revision; members go to those that are open."""

    def __init__(self, revision: int = 0, sites: Iterable[Site] = ()) -> None:
        self.revision = revision
        self._sites = {site.site_id: site for site in sites}
        self._open = SiteIndex(site for site in self._sites.values() if site.open)

    def site(self, site_id: str) -> Site | None:
        """A site, open or closed."""
        return self._sites.get(site_id)

    def name(self, site_id: str) -> str:
        """What a site is called; empty where there is none."""
        site = self._sites.get(site_id)
        return site.name if site is not None else ""

    def nearest(self, point: Point, count: int) -> list[Near]:
        """The nearest open sites, in order."""
        return self._open.nearest(point, count)

    def outward(self, site: Site) -> Iterator[Near]:
        """The open sites, from a site on: itself first if it is open."""
        return self._open.outward(site.point)

    def of_city(self, city: str, home_site_id: str) -> Site | None:
        """The open site for a member of a city: the home site if it is there, else the most central one."""
        home = self._sites.get(home_site_id)
        if home is not None and home.open and home.city == city:
            return home
        return self._open.central(city)

    def distance_m(self, point: Point, site_id: str) -> float:
        """How far a site is; without one, infinitely."""
        site = self._sites.get(site_id)
        return distance_m(point, site.point) if site is not None else float("inf")
