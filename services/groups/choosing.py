"""Where a member may go in a scheme, best first, and which of these still has a seat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.groups import seating
from services.groups.commands import AssignMember
from services.groups.domain.coordinates import Point
from services.groups.domain.profile import Basis, Profile
from services.groups.domain.schemes import Overflow, Scheme, SchemeKind
from services.groups.domain.seats import Group, SeriesName
from services.groups.domain.sites import Site
from services.groups.errors import InviterNeeded, NoSite, NotInSegment, SiteUnknown
from services.groups.steps import Scene, Step

SEARCHED = 50  # sites whose groups are looked at for a seat
LOCKED = 3  # of these, how many of those with a seat a batch locks for a command


@dataclass(frozen=True, slots=True)
class Option:
    """A series that a member may go to, and what speaks for it."""

    series: SeriesName
    basis: Basis
    site_id: str = ""
    distance_m: int = 0
    """To the site from the location that was given; 0 without one."""


def options(scene: Scene, profile: Profile, command: AssignMember, scheme: Scheme) -> list[Option]:
    """Where a member may go by what the command says, best first.

    Raises SiteUnknown, NoSite, NotInSegment, InviterNeeded.
    """
    match scheme.kind:
        case SchemeKind.BY_LOCATION:
            return _by_place(scene, profile, command, scheme)
        case SchemeKind.BY_TAG:
            segment = scene.schemes[scheme.scheme_id].segment(scene.known(profile))
            if segment is None:
                raise NotInSegment(scheme_id=scheme.scheme_id)
            return [Option((scheme.scheme_id, segment.segment_id), Basis.SEGMENT)]
        case SchemeKind.INVITE:
            if not command.inviter_id:
                raise InviterNeeded(scheme_id=scheme.scheme_id)
            return [Option((scheme.scheme_id, command.inviter_id), Basis.INVITER)]
        case SchemeKind.FLASH:
            return [Option((scheme.scheme_id, ""), Basis.DEFAULT)]


def _by_place(scene: Scene, profile: Profile, command: AssignMember, scheme: Scheme) -> list[Option]:
    if command.location is not None:
        found = near(scene, scheme, command.location, Basis.EXACT)
    else:
        basis, site = site_for(scene, profile, command, scheme)
        if site is None:
            return [Option((scheme.scheme_id, ""), Basis.DEFAULT)]
        found = near(scene, scheme, site.point, basis)
    if not found:
        raise NoSite(scheme_id=scheme.scheme_id)
    return found


def site_for(
    scene: Scene, profile: Profile, command: AssignMember, scheme: Scheme
) -> tuple[Basis, Site | None]:
    """The site that stands for where a member is, of whom no location is given. Raises SiteUnknown."""
    if command.home_site_id:
        named = scene.atlas.site(command.home_site_id)
        if named is None:
            raise SiteUnknown(site_id=command.home_site_id)
        return Basis.HOME_SITE, named
    home_site_id = scene.facts(profile).home_site
    if command.city:
        in_city = scene.atlas.of_city(command.city, home_site_id)
        if in_city is not None:
            return Basis.CITY, in_city
    home = scene.atlas.site(home_site_id)
    if home is not None:
        return Basis.HOME_SITE, home
    return Basis.DEFAULT, scene.atlas.site(scheme.default_site_id)


def near(scene: Scene, scheme: Scheme, point: Point, basis: Basis, *, but: str = "") -> list[Option]:
    """The nearest sites that may have a seat: the first, where a site's next group opens by itself.

    `but` is a site that is left out.
    """
    count = SEARCHED if scheme.overflow is Overflow.NEXT_NEAREST else 1
    exact = basis is Basis.EXACT
    found = [one for one in scene.nearest(point, count + bool(but)) if one.site.site_id != but][:count]
    return [
        Option(
            (scheme.scheme_id, one.site.site_id),
            basis,
            one.site.site_id,
            round(one.distance_m) if exact else 0,
        )
        for one in found
    ]


def ends(scene: Scene, series: SeriesName) -> bool:
    """Whether no further group opens by itself where a series is full."""
    return scene.schemes[series[0]].scheme.overflow is Overflow.NEXT_NEAREST


def to_lock(scene: Scene, found: Sequence[Option]) -> list[SeriesName]:
    """The series that a batch locks for a command: the first of those that were not found full."""
    return [option.series for option in found if option.series not in scene.full][:LOCKED]


def take(step: Step, found: Sequence[Option], way: list[pb.AssignStep]) -> tuple[Option, Group] | None:
    """The first option with a seat, and the group that has it; None where all are full. Raises Again, NoSite.

    Of those on the way that are full `way` says so.
    """
    for option in found:
        if option.series not in step.scene.full or option.series in step.scene.seen.series:
            group = seating.find(step, option.series)
            if group is not None:
                return option, group
            by_place = step.scheme(option.series[0]).kind is SchemeKind.BY_LOCATION
            if by_place and not option.series[1] and not step.last_seq(option.series):
                raise NoSite(scheme_id=option.series[0])
        way.append(note(pb.ASSIGN_NOTE_FULL, option))
    return None


def note(what: pb.AssignNote.ValueType, option: Option, group_id: str = "") -> pb.AssignStep:
    """A line of the explanation."""
    return pb.AssignStep(note=what, site_id=option.site_id, group_id=group_id, distance_m=option.distance_m)
