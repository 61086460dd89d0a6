"""Sites: the stores or branches that groups are at."""

from __future__ import annotations

from dataclasses import dataclass

from services.groups.domain.coordinates import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A store or branch."""

    site_id: str
    name: str
    city: str
    point: Point
    priority: int = 0
    """Of sites that are equally far the lower one is taken."""
    open: bool = True
