"""One command, done to a working copy of its member's profile: what it changes, takes and announces.

What can be done is functions over a `Step`, by command (`folding.HANDLERS`): `assigning` for seats, `joining`
for who came and left, `relocating` for who has to go, `tagging` and `learning` for what is known, on `moving`
and `seating`. What the clock will ask for, `joining` and `tagging` say in `upcoming`. What is done to groups
alone (`opening`, `closing`) is functions over `Work`, which a step is too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from services.chassis import outbox
from services.groups import rules
from services.groups.atlas import Atlas
from services.groups.commands import Command
from services.groups.domain import calendar
from services.groups.domain.calendar import Occurrence
from services.groups.domain.coordinates import Point
from services.groups.domain.facts import Facts
from services.groups.domain.profile import KeptOrder, Membership, Profile, Tag
from services.groups.domain.schemes import Programme, Scheme, SchemeKind
from services.groups.domain.seats import Group, SeriesName
from services.groups.errors import GroupUnknown, SchemeUnknown
from services.groups.nearest import Near
from services.groups.rules import CompiledProgramme, CompiledScheme, Known
from services.groups.store import Seen

Kept = Membership | Tag | KeptOrder
Given = TypeVar("Given")


class Again(Exception):
    """A command needs what its batch did not lock or load: it has to go into another one, which does."""

    def __init__(self, *series: SeriesName, facts: bool = False) -> None:
        super().__init__(*series)
        self.series = frozenset(series)
        self.facts = facts  # whether it needs what is known of its member


def together(attempts: Iterable[Callable[[], Given]]) -> list[Given]:
    """What each attempt gives. Raises Again with all that any of them lacks: so one more batch will do."""
    given, lacked, facts = [], set[SeriesName](), False
    for attempt in attempts:
        try:
            given.append(attempt())
        except Again as again:
            lacked |= again.series
            facts = facts or again.facts
    if lacked or facts:
        raise Again(*lacked, facts=facts)
    return given


@dataclass(frozen=True, slots=True)
class Terms:
    """What a deployment goes by."""

    zone: ZoneInfo
    epoch: int


@dataclass(slots=True)
class Scene:
    """What the commands of a batch see: the locked state, how groups are formed, the sites, and the time."""

    seen: Seen
    schemes: Mapping[str, CompiledScheme]
    """The latest versions, by id."""
    programme: CompiledProgramme
    atlas: Atlas
    terms: Terms
    at: datetime
    wanted: Mapping[SeriesName, int] = field(default_factory=dict)
    """How many seats of each series the batch looked for; more it cannot give."""
    rooms: Mapping[SeriesName, Group] = field(default_factory=dict)
    """Of series that were looked at before the locks the first group with a seat."""
    full: Set[SeriesName] = frozenset()
    """Those of them that had none, and no room for another group."""
    taken: Counter[SeriesName] = field(default_factory=Counter)
    """Seats that commands of the batch took."""
    _near: dict[tuple[Point, int], list[Near]] = field(default_factory=dict)
    _groups: dict[SeriesName, list[str]] | None = None
    _upcoming: dict[str, Sequence[Occurrence]] = field(default_factory=dict)

    def groups_of(self, series: SeriesName) -> Sequence[str]:
        """The groups of a series that are seen, by id."""
        if self._groups is None:
            self._groups = {}
            for group in self.seen.groups.values():
                self._groups.setdefault(group.series, []).append(group.group_id)
        return self._groups.get(series, ())

    def keep(self, work: Work) -> None:
        """Makes what was done to groups part of the state."""
        self.taken += work.taken
        self.seen.series |= work.series
        self.seen.moves |= work.moves
        for group_id in work.groups.keys() - self.seen.groups.keys():
            if self._groups is not None:
                self._groups.setdefault(work.groups[group_id].series, []).append(group_id)
        self.seen.groups |= work.groups

    def known(self, profile: Profile) -> Known:
        """What conditions read of a member. Raises Again."""
        return rules.known(_loaded(profile), self.programme.programme, self.at, self.terms.zone)

    def facts(self, profile: Profile) -> Facts:
        """What follows from a member's orders. Raises Again."""
        return rules.facts_of(_loaded(profile), self.programme.programme, self.at, self.terms.zone)

    def upcoming(self, scheme: Scheme) -> Sequence[Occurrence]:
        """What the calendar of a scheme announces next; each is looked up once."""
        name = scheme.scheme_id
        if name not in self._upcoming:
            self._upcoming[name] = calendar.upcoming(scheme.calendar, self.at, self.terms.zone)
        return self._upcoming[name]

    def look_at(self, atlas: Atlas) -> None:
        """Goes by the sites as they are by now."""
        if atlas is not self.atlas:
            self.atlas, self._near = atlas, {}

    def nearest(self, point: Point, count: int) -> list[Near]:
        """The nearest open sites; each place is looked up once."""
        key = (point, count)
        if key not in self._near:
            self._near[key] = self.atlas.nearest(point, count)
        return self._near[key]


def _loaded(profile: Profile) -> Profile:
    if not profile.known:
        raise Again(facts=True)
    return profile


class Work:
    """What is done to groups, over what is seen of them; nothing comes of it until it is kept."""

    def __init__(self, scene: Scene, traceparent: str) -> None:
        self.scene = scene
        self.at = scene.at
        self.zone = scene.terms.zone
        self.series: dict[SeriesName, int] = {}
        self.groups: dict[str, Group] = {}
        self.moves: dict[date, int] = {}
        self.taken: Counter[SeriesName] = Counter()
        self.events: list[outbox.Event] = []
        self._traceparent = traceparent

    # --- what there is --------------------------------------------------------------------------------

    def compiled(self, scheme_id: str) -> CompiledScheme:
        """The latest version of a scheme. Raises SchemeUnknown."""
        found = self.scene.schemes.get(scheme_id)
        if found is None:
            raise SchemeUnknown(scheme_id=scheme_id)
        return found

    def scheme(self, scheme_id: str) -> Scheme:
        """The latest version of a scheme. Raises SchemeUnknown."""
        return self.compiled(scheme_id).scheme

    def group(self, group_id: str) -> Group:
        """A group that was looked for by its name. Raises GroupUnknown."""
        found = self.groups.get(group_id) or self.scene.seen.groups.get(group_id)
        if found is None:
            raise GroupUnknown(group_id=group_id)
        return found

    def groups_of(self, series: SeriesName) -> list[Group]:
        """The groups of a series that are seen, by number. Raises Again."""
        if series not in self.scene.seen.series:
            raise Again(series)
        changed = {group.group_id: group for group in self.groups.values() if group.series == series}
        others = (name for name in self.scene.groups_of(series) if name not in changed)
        found = [*changed.values(), *(self.scene.seen.groups[name] for name in others)]
        return sorted(found, key=lambda group: group.seq)

    def last_seq(self, series: SeriesName) -> int:
        """The last number that was given in a locked series."""
        return self.series.get(series, self.scene.seen.series[series])

    def moves_on(self, day: date) -> int:
        """Members that were moved on a local day, which is locked."""
        return self.moves.get(day, self.scene.seen.moves[day])

    def place_name(self, scheme: Scheme, anchor: str) -> str:
        """What the place of a series is called: its site, or its segment."""
        if scheme.kind is SchemeKind.BY_LOCATION:
            return self.scene.atlas.name(anchor)
        return next((segment.name for segment in scheme.segments if segment.segment_id == anchor), "")

    def rendered(self, text: str, group: Group) -> str:
        """A text of a scheme, for one of its groups."""
        place = self.place_name(self.scheme(group.scheme_id), group.anchor)
        return text.replace("{group}", group.name).replace("{site}", place).replace("{segment}", place)

    # --- what is done ---------------------------------------------------------------------------------

    def take_seat(self, series: SeriesName) -> None:
        """Counts a seat that is taken. Raises Again where the batch looked for no more of them."""
        if self.scene.taken[series] + self.taken[series] >= self.scene.wanted.get(series, 0):
            raise Again(series)
        self.taken[series] += 1

    def announce_group(self, group: Group, make: outbox.Make, what: Any = None) -> Group:
        """Announces something about a group, and keeps and returns it counted; `make` gets it with `what`."""
        counted = replace(group, version=group.version + 1)
        self.events.append(make(self.about(group.group_id, counted.version, self.at), (counted, what)))
        self.groups[group.group_id] = counted
        return counted

    def about(self, entity: str, version: int, occur: datetime) -> outbox.About:
        """What an event begins with."""
        return outbox.About(entity, occur, self.scene.terms.epoch, version, self._traceparent)


class Step(Work):
    """What one command does; all of it is dropped if the command is refused, or needs another batch."""

    def __init__(self, scene: Scene, command: Command) -> None:
        super().__init__(scene, command.traceparent)
        self.command = command
        self.profile = scene.seen.profiles[command.member_id].copy()

    # --- what there is --------------------------------------------------------------------------------

    @property
    def programme(self) -> Programme:
        """What all schemes go by."""
        return self.scene.programme.programme

    def known(self) -> Known:
        """What conditions read of the member, as it is by now. Raises Again."""
        return self.scene.known(self.profile)

    def group_of(self, membership: Membership) -> Group:
        """The group that a membership is in. Raises Again."""
        found = self.groups.get(membership.group_id) or self.scene.seen.groups.get(membership.group_id)
        if found is None:
            raise Again(membership.series)
        return found

    def seat_hold(self, scheme: Scheme) -> timedelta:
        """How long a scheme keeps a seat."""
        return scheme.seat_hold or self.programme.seat_hold

    # --- what is done ---------------------------------------------------------------------------------

    def keep(self, record: Kept) -> None:
        """Puts a record in the place of the one before it."""
        match record:
            case Membership():
                self.profile.memberships[record.membership_id] = record
            case Tag():
                self.profile.tags[record.key] = record
            case KeptOrder():
                self.profile.orders[record.order_id] = record

    def announce(self, make: outbox.Make, what: Any, occur: datetime | None = None) -> None:
        """Announces something about the member. `occur` is when it happened, where that was before now."""
        profile = self.profile
        profile.version += 1
        self.events.append(make(self.about(profile.member_id, profile.version, occur or self.at), what))
