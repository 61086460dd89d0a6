"""A village of members and groups: the service's fold over their state, in a time of its own.

Commands go the way they go in the service, from due work to the events; only the locking, the loading and the
saving are left out. After each command the books must close.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.errors import ServiceError
from services.chassis.interceptors import validate
from services.groups import events
from services.groups.atlas import Atlas
from services.groups.commands import Command, Settle
from services.groups.domain.coordinates import Point
from services.groups.domain.profile import Membership, Profile, Tag
from services.groups.domain.sites import Site
from services.groups.folding import HANDLERS, Answer, Fold
from services.groups.rules import NO_PROGRAMME, CompiledScheme, compile_programme, compile_scheme
from services.groups.steps import Again, Scene, Terms
from services.groups.store import Seen

Announced = TypeVar("Announced", bound=Message)

ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2027, 1, 31, 4, 0, tzinfo=UTC)  # 12:00 in Shanghai
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MIDNIGHT = NOON + 12 * HOUR
TICK = timedelta(microseconds=1)
ANN, BEN = "ann", "ben"
PLENTY = 1000  # seats of a series that a batch looks for


def condition(name: str, expression: str) -> dict[str, str]:
    return {"name": name, "expression": expression}


def segments(**by_id: str) -> list[dict[str, str]]:
    """Segments by id, in order, with their expressions."""
    return [{"segment_id": name, "name": name, "expression": text} for name, text in by_id.items()]


def scheme(kind: str, scheme_id: str = "scheme", **more: Any) -> pb.Scheme:
    """A scheme; a seat is kept for a month, so that it lapses in no test that is about something else."""
    said = {"scheme_id": scheme_id, "version": 1, "kind": f"SCHEME_KIND_{kind}", "name_pattern": "群{seq}"}
    numbers = {"capacity": 3, "headroom": 1, "seat_hold_minutes": 44640}
    made = ParseDict({**said, **numbers, **more}, pb.Scheme())
    validate(made)
    return made


def site(site_id: str, east_m: float = 0, *, is_open: bool = True) -> Site:
    """A site on one street in Beijing."""
    return Site(
        site_id=site_id, name=site_id, city="北京", point=Point(39.9, 116.4 + east_m / 85_000), open=is_open
    )


def tag(key: str, value: str = "yes", source: str = "crm", expire_time: datetime | None = None) -> Tag:
    return Tag(key=key, value=value, source=source, expire_time=expire_time, set_time=NOON - DAY)


class Village:
    """Members, and everything that happened to them. Time stands at `at` until it is moved."""

    def __init__(self, *schemes: pb.Scheme, sites: tuple[Site, ...] = (), **tag_rules: Any) -> None:
        self.at = NOON
        self.seen = Seen()
        self.schemes: dict[str, CompiledScheme] = {}
        self.programme = NO_PROGRAMME
        self.atlas = Atlas(1, sites)
        self.events: dict[str, list[Message]] = defaultdict(list)
        self._numbers = itertools.count(1)
        self._forgotten: dict[str, int] = {}
        for made in schemes:
            self.put(made)
        self.put_programme(pb.Programme(), **tag_rules)

    def put(self, made: pb.Scheme) -> None:
        """Puts a version of a scheme."""
        self.schemes[made.scheme_id] = compile_scheme(made)

    def put_programme(self, said: pb.Programme, **tag_rules: str) -> None:
        """Puts a version of the programme, with these rules."""
        for key, expression in tag_rules.items():
            said.tag_rules.add(key=key, expression=expression)
        self.programme = compile_programme(said)

    # --- commands -------------------------------------------------------------------------------------

    def answer(self, kind: type[Command], member: str = ANN, **fields: Any) -> Answer:
        """Does a command, and gives what the fold gives."""
        self.seen.profiles.setdefault(member, Profile(member, known=True, whole=True))
        request_id = f"request-{next(self._numbers)}"
        command = kind(member_id=member, request_id=request_id, payload_hash=b"", actor="test", **fields)
        while True:
            fold = Fold(self.scene())
            answer = fold.answer(command)
            if not isinstance(answer, Again):
                break
            assert not answer.series <= self.seen.series.keys()
            self.seen.series |= dict.fromkeys(answer.series, 0)
        for event in fold.announcements:
            kind_of_event = getattr(epb, event.subject.rpartition(".")[2])
            told = kind_of_event.FromString(event.body)
            validate(told)
            self.events[event.entity_key].append(told)
            assert told.version == len(self.events[event.entity_key])
            assert event.stream == events.STREAM
        self.check()
        return answer

    def scene(self) -> Scene:
        """What the next command sees: all there is, locked."""
        groups = sorted(self.seen.groups.values(), key=lambda group: group.seq, reverse=True)
        rooms = {group.series: group for group in groups if group.has_seat}
        return Scene(
            self.seen,
            self.schemes,
            self.programme,
            self.atlas,
            Terms(ZONE, 1),
            self.at,
            wanted=dict.fromkeys(self.seen.series, PLENTY),
            rooms=rooms,
            full={group.series for group in groups if group.living} - rooms.keys(),
        )

    def do(self, kind: type[Command], member: str = ANN, **fields: Any) -> Any:
        """Does a command that must not be refused, and gives its answer."""
        answer = self.answer(kind, member, **fields)
        if isinstance(answer, ServiceError):
            raise answer
        returned = HANDLERS[kind].__annotations__.get("return", "None")
        return None if answer is None else getattr(pb, str(returned).split(" ")[0][3:]).FromString(answer)

    def wait(self, until: datetime | timedelta, member: str = ANN) -> None:
        """Lets time pass, and has what is due posted."""
        self.at = until if isinstance(until, datetime) else self.at + until
        self.do(Settle, member)

    # --- what there is --------------------------------------------------------------------------------

    def profile(self, member: str = ANN) -> Profile:
        return self.seen.profiles[member]

    def tags(self, member: str = ANN) -> dict[str, str]:
        return {key: one.value for key, one in self.profile(member).tags.items()}

    def stay(self, scheme_id: str = "scheme", member: str = ANN) -> Membership | None:
        """The active membership in a scheme."""
        return self.profile(member).active(scheme_id)

    def anchor(self, scheme_id: str = "scheme", member: str = ANN) -> str | None:
        """The segment, or the site, whose group is the member's."""
        current = self.stay(scheme_id, member)
        return None if current is None else current.anchor

    def told(self, kind: type[Announced], about: str = ANN) -> list[Announced]:
        """What was announced about somebody, of one kind."""
        return [one for one in self.events[about] if isinstance(one, kind)]

    def forget(self) -> None:
        """From here on `kinds` counts anew."""
        self._forgotten = {name: len(told) for name, told in self.events.items()}

    def kinds(self, member: str = ANN) -> list[str]:
        """What was announced about a member since `forget`, in order."""
        return [one.DESCRIPTOR.name for one in self.events[member][self._forgotten.get(member, 0) :]]

    def check(self) -> None:
        """Every seat has its member, and nobody two in a scheme; what is due is known."""
        active: Counter[str] = Counter()
        for profile in self.seen.profiles.values():
            stays = [one for one in profile.memberships.values() if one.active]
            assert len({one.scheme_id for one in stays}) == len(stays)
            active.update(one.group_id for one in stays)
            seats = [one.seat_expire_time for one in stays]
            times = [at for at in (profile.evaluate_time, *seats) if at is not None]
            assert profile.next_due_time == min(times, default=None)
        for group in self.seen.groups.values():
            assert group.members == active[group.group_id]
            assert group.seats_taken <= group.room
