"""What a client knows of members in groups, and how it holds the books of groups against that.

Who is where is told by events alone: `Register` follows them, in the order in which the service wrote them,
and none may tell of what cannot be. What they come to is what the tables have, and what each answer said is
in them once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.ids import bucket

CLUB = "club"  # the scheme whose groups follow from a tag
DRINK = "drink"  # the tag
LEFT_ALONE = {"LEFT", "REMOVED", "SEAT_LAPSED", None}  # who ended so is not asked again for the same segment
BY_HAND = (epb.GROUP_OPEN_REASON_OPERATOR, epb.GROUP_OPEN_REASON_FLASH)

Rows = Sequence[Any]
Told = tuple[str, Any, bytes]
"""Whom or what an event is about, the event, and its bytes."""


# --- who is where, as events tell it --------------------------------------------------------------------


@dataclass
class Stay:
    """A member's membership in a scheme."""

    membership_id: str
    group_id: str
    here: bool = False
    """The member is in the group, and not only to come."""
    came: bool = False
    """It ever was in one of its groups."""


@dataclass
class Register:
    """Who is where, event by event; `rooms` are the seats of the groups whose members are all heard of."""

    rooms: Mapping[str, int]
    stays: dict[tuple[str, str], Stay] = field(default_factory=dict)
    """By member and scheme."""
    count: Counter[str] = field(default_factory=Counter)
    """Members by group."""
    begun: set[str] = field(default_factory=set)

    def follow(self, events: Iterable[Any]) -> None:
        """Takes events in the order in which they were written; others than those of members pass by."""
        for event in events:
            match event:
                case epb.MemberAssigned():
                    self._begin(event, Stay(event.membership_id, event.group_id))
                    self._seat(event.group_id)
                case epb.MemberJoined():
                    self._join(event)
                case epb.MemberMoved():
                    self._move(event)
                case epb.MemberLeft() | epb.SeatLapsed():
                    self._end(event)

    def _begin(self, event: Any, stay: Stay) -> None:
        key = (event.member_id, event.scheme_id)
        assert key not in self.stays, f"in two groups of a scheme: {event}"
        assert event.membership_id not in self.begun, f"begins again: {event}"
        self.begun.add(event.membership_id)
        self.stays[key] = stay
        self.count[event.group_id] += 1

    def _seat(self, group_id: str) -> None:
        """That there was a seat for who was just counted, where that was ours to say."""
        room = self.rooms.get(group_id)
        assert room is None or self.count[group_id] <= room, f"{group_id} has {room} seats"

    def _stay(self, event: Any, group_id: str) -> Stay:
        """The membership that an event goes on with, in that group."""
        stay = self.stays.get((event.member_id, event.scheme_id))
        assert stay is not None, f"has not begun: {event}"
        assert (stay.membership_id, stay.group_id) == (event.membership_id, group_id), event
        return stay

    def _join(self, event: epb.MemberJoined) -> None:
        stay = self.stays.get((event.member_id, event.scheme_id))
        if stay is None:
            stay = Stay(event.membership_id, event.group_id)
            self._begin(event, stay)
            if not event.overbooked:
                self._seat(event.group_id)
        self._stay(event, event.group_id)
        assert not stay.here, f"is told to have come twice: {event}"
        stay.here = stay.came = True

    def _move(self, event: epb.MemberMoved) -> None:
        stay = self._stay(event, event.from_group_id)
        assert event.group_id != event.from_group_id, event
        self.count[event.from_group_id] -= 1
        self.count[event.group_id] += 1
        if event.reason != epb.MEMBER_MOVE_REASON_JOINED_ELSEWHERE:
            self._seat(event.group_id)
        stay.group_id, stay.here = event.group_id, False

    def _end(self, event: epb.MemberLeft | epb.SeatLapsed) -> None:
        stay = self._stay(event, event.group_id)
        del self.stays[event.member_id, event.scheme_id]
        assert not (stay.came and isinstance(event, epb.SeatLapsed)), f"was there: {event}"
        self.count[event.group_id] -= 1


# --- what the client knows ------------------------------------------------------------------------------


@dataclass
class Guest:
    """What the client knows of a member: nobody else touches it."""

    seats: dict[str, str] = field(default_factory=dict)
    """The group in each scheme, as an answer told it last."""
    drink: str = ""
    strayed: bool = False
    """It came to a group of the club, or left one, since its tag was told last."""
    tags: list[str] = field(default_factory=list)
    """What its tags became, as each change was answered."""
    assigned: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Seats that it was given, by membership and group; and likewise what follows."""
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By its wish."""
    joined: Counter[tuple[str, str]] = field(default_factory=Counter)
    overbooked: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: set[str] = field(default_factory=set)
    """Memberships that it ended."""

    def seated(self, answer: pb.AssignMemberResponse) -> None:
        """It was given seats, or has them, or was moved."""
        for one in answer.assignments:
            seat = (one.membership.membership_id, one.group.group_id)
            notes = {step.note for step in one.explanation}
            if pb.ASSIGN_NOTE_MOVED_FROM in notes:
                self.moved[seat] += 1
            elif notes & {pb.ASSIGN_NOTE_TAKEN, pb.ASSIGN_NOTE_OPENED}:
                self.assigned[seat] += 1
            self.seats[one.membership.scheme_id] = one.group.group_id

    def came(self, answer: pb.JoinGroupResponse) -> None:
        """It came to a group."""
        if answer.stale:
            return
        found = answer.membership
        self.joined[found.membership_id, found.group_id] += 1
        self.overbooked[found.membership_id, found.group_id] += answer.overbooked
        self.seats[found.scheme_id] = found.group_id
        self.strayed |= found.scheme_id == CLUB

    def went(self, request: pb.LeaveGroupRequest, answer: pb.LeaveGroupResponse) -> None:
        """It left a group, in which it may not have been."""
        found = answer.membership
        self.strayed |= found.scheme_id == CLUB
        ended = pb.MEMBERSHIP_STATUS_REMOVED if request.removed else pb.MEMBERSHIP_STATUS_LEFT
        if not answer.stale and found.group_id == request.group_id and found.status == ended:
            self.left.add(found.membership_id)
            self.seats.pop(found.scheme_id, None)

    def retagged(self, answer: pb.TagChanges) -> None:
        """Its tags changed."""
        for change in answer.changes:
            if change.key == DRINK:
                self.drink, self.strayed = change.value, False
        if answer.changes:
            self.tags.append(_said(answer.changes))


def _said(changes: Iterable[Any]) -> str:
    return "".join(map(str, changes))


# --- what the books have --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """What the database has of one member."""

    member: Any
    memberships: Rows
    """In order of scheme and number."""
    tags: Rows
    events: Sequence[Any]
    moved: bool
    """Whether the clock was moved since the load began."""

    def _told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def check(self, guest: Guest, register: Register) -> None:
        """Holds all of it against what the client knows, and what events say."""
        who = self.member["member_id"]
        assert [event.version for event in self.events] == list(range(1, self.member["version"] + 1))
        active = [row for row in self.memberships if row["end_time"] is None]
        stays = {scheme: stay for (name, scheme), stay in register.stays.items() if name == who}
        assert {
            row["scheme_id"]: (row["membership_id"], row["group_id"], row["status"] == "JOINED")
            for row in active
        } == {scheme: (stay.membership_id, stay.group_id, stay.here) for scheme, stay in stays.items()}
        assert len(active) == len(stays)
        self._check_seats(guest)
        self._check_who_came_and_went(guest)
        self._check_tags(guest)

    def _check_seats(self, guest: Guest) -> None:
        """Each seat that was answered was told once, and no other but the club's, which come of tags."""
        own = [event for event in self._told(epb.MemberAssigned) if event.scheme_id != CLUB]
        assert Counter((e.membership_id, e.group_id) for e in own) == guest.assigned
        wished = (epb.MEMBER_MOVE_REASON_NEARER, epb.MEMBER_MOVE_REASON_CHOSEN)
        moves = Counter(
            (e.membership_id, e.group_id) for e in self._told(epb.MemberMoved) if e.reason in wished
        )
        assert moves == guest.moved

    def _check_who_came_and_went(self, guest: Guest) -> None:
        """What the client told is announced once where it is news, and nobody came or left untold."""
        joins = self._told(epb.MemberJoined)
        heard = Counter((event.membership_id, event.group_id) for event in joins)
        assert heard <= guest.joined
        assert heard.keys() == guest.joined.keys()
        without = Counter((e.membership_id, e.group_id) for e in joins if e.overbooked)
        assert without == +guest.overbooked
        own = (epb.MEMBER_LEAVE_REASON_LEFT, epb.MEMBER_LEAVE_REASON_REMOVED)
        left = Counter(e.membership_id for e in self._told(epb.MemberLeft) if e.reason in own)
        assert set(left.values()) <= {1}
        assert left.keys() <= guest.left
        ended = {row["membership_id"] for row in self.memberships if row["end_time"] is not None}
        assert guest.left <= ended
        late = [e for e in self._told(epb.SeatLapsed) if e.reason == epb.SEAT_LAPSE_REASON_TIMEOUT]
        assert self.moved or not late

    def _check_tags(self, guest: Guest) -> None:
        """Tags are as they were told, and whoever has the club's is in the group that it stands for."""
        assert [_said(event.changes) for event in self._told(epb.TagsChanged)] == guest.tags
        assert {row["value"] for row in self.tags if row["key"] == DRINK} == {guest.drink} - {""}
        if guest.strayed:
            return
        latest = next((row for row in reversed(self.memberships) if row["scheme_id"] == CLUB), None)
        if not guest.drink:
            assert latest is None or latest["end_time"] is not None
            return
        assert latest is not None
        assert latest["anchor"] == guest.drink
        assert latest["end_time"] is None or latest["ending"] in LEFT_ALONE


@dataclass
class Ground:
    """What the client knows of its own sites and groups, which nobody else has members at."""

    open: dict[str, bool] = field(default_factory=dict)
    """Whether each site is, as its last command was answered."""
    closed: set[str] = field(default_factory=set)
    """Sites that were ever closed."""
    opened: list[str] = field(default_factory=list)
    """Groups that were opened by hand."""
    dissolved: set[str] = field(default_factory=set)
    """Groups that were dissolved by hand."""
    groups: set[str] = field(default_factory=set)
    """All that were heard of."""

    def check(self, sites: Rows, groups: Rows, events: Mapping[str, Sequence[Any]], moved: bool) -> None:
        """Each thing that was done by hand was done once, and is told of so."""
        assert {row["site_id"]: row["open"] for row in sites} == self.open
        assert self.groups <= {row["group_id"] for row in groups}
        by_hand: Counter[str] = Counter()
        for row in groups:
            told = events.get(row["group_id"], [])
            assert [event.version for event in told] == list(range(1, row["version"] + 1))
            (opening,) = [event for event in told if isinstance(event, epb.GroupOpened)]
            by_hand[row["group_id"]] += opening.reason in BY_HAND
            self._check_end(row, [event for event in told if isinstance(event, epb.GroupDissolved)], moved)
            occasions = [event.occasion_id for event in told if isinstance(event, epb.BenefitDue)]
            assert len(occasions) == len(set(occasions))
        assert +by_hand == Counter(self.opened)

    def _check_end(self, row: Any, ends: Sequence[epb.GroupDissolved], moved: bool) -> None:
        """A group that is dissolved was so once and for a reason, and none lives at a closed site."""
        assert len(ends) == (row["status"] == "DISSOLVED")
        by = {end.reason for end in ends}
        assert epb.GROUP_DISSOLVE_REASON_OPERATOR not in by or row["group_id"] in self.dissolved
        assert epb.GROUP_DISSOLVE_REASON_SITE_CLOSED not in by or row["site_id"] in self.closed
        assert epb.GROUP_DISSOLVE_REASON_LIFETIME not in by or moved
        assert row["group_id"] not in self.dissolved or ends
        if row["status"] in ("OPEN", "FULL") and row["site_id"]:
            assert self.open[row["site_id"]]


def check_counts(groups: Rows, members: Rows, register: Register, mine: set[str]) -> None:
    """Each group has the members that it counts, none of them a stranger, and none beyond its room by us."""
    found = Counter(row["group_id"] for row in members)
    strangers = [dict(row) for row in members if row["member_id"] not in mine]
    assert not strangers, strangers
    for row in groups:
        name = row["group_id"]
        assert row["seats_taken"] + row["overbooked"] == found[name] == register.count[name], name
        assert row["seats_taken"] <= row["room"]


# --- how it is read -------------------------------------------------------------------------------------


GROUPS = "SELECT * FROM groups WHERE scheme_id = $1 OR site_id = ANY($2)"
LEAVING = "SELECT count(*) FROM groups WHERE leaving AND (scheme_id = $1 OR site_id = ANY($2))"
MEMBERS = "SELECT group_id, member_id FROM memberships WHERE group_id = ANY($1) AND end_time IS NULL"
REQUESTS = "SELECT request_id, answer FROM requests WHERE request_id = ANY($1)"
_TOLD = """
SELECT entity_key, subject, body FROM outbox
WHERE (bucket, entity_key) IN (SELECT * FROM unnest($1::smallint[], $2::text[])) ORDER BY position
"""


async def told(connection: Any, entities: Sequence[str]) -> list[Told]:
    """What was announced about some members and groups, in the order in which it was written."""
    rows = await connection.fetch(_TOLD, [bucket(one) for one in entities], entities)
    return [
        (name, getattr(epb, subject.rpartition(".")[2]).FromString(body), body)
        for name, subject, body in rows
    ]
