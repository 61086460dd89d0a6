"""What is near: groups with a seat, for the member to choose. Asked by many at once, read together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.clock import Clock
from services.chassis.database import Database
from services.chassis.errors import ServiceError
from services.chassis.gather import Gather
from services.groups import choosing, events, messages, store
from services.groups.commands import AssignMember
from services.groups.domain.coordinates import Point
from services.groups.domain.profile import Basis, Profile
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.domain.seats import Group, SeriesName
from services.groups.errors import NoSite, SchemeUnknown, WrongKind
from services.groups.nearest import Near
from services.groups.service import Lore, scene
from services.groups.steps import Scene

WIDER = 4  # times as many sites are looked at where those before were full

Rooms = Mapping[SeriesName, Group | None]


@dataclass(frozen=True, slots=True)
class Look:
    """What a member asks: where it would get a seat by what a command says, and how many to choose from."""

    by: AssignMember
    size: int


@dataclass(slots=True)
class _Search:
    """A look on its way outward: the sites that were seen, and those of them that have a seat."""

    scene: Scene
    scheme: Scheme
    basis: Basis
    point: Point | None
    """What is gone by; None where the scheme has but groups of no site."""
    size: int
    found: list[pb.NearbyGroup] = field(default_factory=list)
    seen: int = 0
    near: Sequence[Near] = ()

    @property
    def done(self) -> bool:
        """Whether nothing more is to be looked at."""
        return self.scheme.withdrawn or len(self.found) >= self.size

    def next_series(self) -> Iterator[SeriesName]:
        """What is looked at next; nothing once all is seen."""
        if self.point is None:
            yield (self.scheme.scheme_id, "")
            return
        count = max(self.size, self.seen * WIDER)
        self.near = self.scene.nearest(self.point, count)[self.seen :]
        yield from ((self.scheme.scheme_id, one.site.site_id) for one in self.near)

    def take(self, rooms: Rooms) -> bool:
        """Notes which of these have a seat; returns whether there was anything to look at. Raises NoSite."""
        if self.point is None:
            self._take_default(rooms)
            return False
        if not (self.seen or self.near):
            raise NoSite(scheme_id=self.scheme.scheme_id)
        self.seen += len(self.near)
        for one in self.near:
            series = (self.scheme.scheme_id, one.site.site_id)
            if series in rooms or not choosing.ends(self.scene, series):
                self._add(rooms.get(series), one)
        return bool(self.near)

    def _take_default(self, rooms: Rooms) -> None:
        series = (self.scheme.scheme_id, "")
        if series in rooms and rooms[series] is None:
            raise NoSite(scheme_id=self.scheme.scheme_id)
        self._add(rooms.get(series), None)

    def _add(self, group: Group | None, near: Near | None) -> None:
        """Adds a place with a seat: of a group, or of one that opens with it."""
        at, kind = self.scene.at, self.scheme.kind
        shown = messages.group(group, kind, at) if group is not None and not group.over(at) else None
        self.found.append(
            pb.NearbyGroup(
                group=shown,
                site=messages.site(near.site, None) if near is not None else None,
                distance_m=round(near.distance_m) if near is not None else 0,
            )
        )

    def answer(self) -> pb.ListNearbyGroupsResponse:
        """What was found."""
        return pb.ListNearbyGroupsResponse(groups=self.found[: self.size], basis=events.BASES[self.basis])


class Nearby:
    """Looks around, for many at once."""

    def __init__(self, database: Database, clock: Clock, lore: Lore) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self.looks: Gather[Look, pb.ListNearbyGroupsResponse] = Gather("nearby", self._look)

    async def _look(self, looks: Sequence[Look]) -> list[pb.ListNearbyGroupsResponse | ServiceError]:
        async with self._database.read() as connection:
            seen = await scene(connection, self._lore, self._clock.now())
            unplaced = {look.by.member_id for look in looks if _goes_by_facts(look.by)}
            profiles = await store.profiles(connection, unplaced) if unplaced else {}
            answers: list[_Search | ServiceError] = [_begin(look, seen, profiles) for look in looks]
            going = {number for number, one in enumerate(answers) if _goes_on(one)}
            while going:
                wanted = {series for number in going for series in _search(answers, number).next_series()}
                rooms = await store.rooms(connection, wanted) if wanted else {}
                for number in list(going):
                    search = _search(answers, number)
                    try:
                        if not search.take(rooms) or search.done:
                            going.discard(number)
                    except ServiceError as refusal:
                        answers[number] = refusal
                        going.discard(number)
        return [one.answer() if isinstance(one, _Search) else one for one in answers]


def _search(answers: Sequence[_Search | ServiceError], number: int) -> _Search:
    found = answers[number]
    assert isinstance(found, _Search)  # noqa: S101 - only these go on
    return found


def _goes_on(one: _Search | ServiceError) -> bool:
    return isinstance(one, _Search) and not one.done


def _goes_by_facts(by: AssignMember) -> bool:
    return by.location is None and not by.home_site_id


def _begin(look: Look, seen: Scene, profiles: Mapping[str, Profile]) -> _Search | ServiceError:
    """A look that has not begun; or why it cannot."""
    by = look.by
    compiled = seen.schemes.get(by.scheme_id)
    if compiled is None:
        return SchemeUnknown(scheme_id=by.scheme_id)
    scheme = compiled.scheme
    if scheme.kind is not SchemeKind.BY_LOCATION:
        return WrongKind(kind=scheme.kind)
    if by.location is not None:
        return _Search(seen, scheme, Basis.EXACT, by.location, look.size)
    profile = profiles.get(by.member_id) or Profile(by.member_id, known=True)
    try:
        basis, site = choosing.site_for(seen, profile, by, scheme)
    except ServiceError as refusal:
        return refusal
    return _Search(seen, scheme, basis, site.point if site is not None else None, look.size)
