"""Members who come to groups, go, and are moved; `groups_books` holds the books against what came of it.

Each journal has sites, a sale and members of its own; beside the members somebody works by hand, who closes
and opens the sites, and opens and dissolves groups.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.cli.house import House
from tests.chaos.groups_books import (
    CLUB,
    DRINK,
    GROUPS,
    LEAVING,
    MEMBERS,
    REQUESTS,
    Ground,
    Guest,
    Page,
    Register,
    check_counts,
    told,
)
from tests.chaos.journal import (
    SETTLE_TIMEOUT,
    Client,
    Entry,
    Journal,
    Outcome,
    owner,
    rows_of,
    snapshot,
    until,
)
from tests.chaos.parts import Part
from tests.chaos.site import Caller
from tests.groups.calls import a_region, a_scheme, a_site, at, put_scheme, stamp, tagged
from tests.groups.requests import GOOD
from tests.support import Groups, fresh

SITES = (0, 1000, 2000)  # metres north, of each journal's
AROUND = (-500, 2500)  # metres north, where its members are
PAUSE = 0.4  # seconds between two works by hand, at most
SEATS = 7  # in a group of a KOL
MONTH = 44_640  # minutes: seats lapse only if the clock leaps
LUNCH = {
    "entry_id": "lunch",
    "recurrence": "RECURRENCE_DAILY",
    "local_time": "12:30",
    "claim_minutes": 120,
    "benefit_code": "LUNCH",
}
# It is for nobody who does not name it: some bad input is for a seat in whatever scheme there is, for
# somebody anywhere, and the nearest site, however far, is that of a journal.
KING = a_scheme(
    scheme_id="king",
    audience=[{"name": "nobody", "expression": "false"}],
    capacity=5,
    headroom=2,
    margin_m=100,
    calendar=[LUNCH],
    welcome="{group}",
)
SALE = partial(a_scheme, "FLASH", capacity=4, headroom=1)
FANS = a_scheme("INVITE", scheme_id="fans", capacity=SEATS + 2, headroom=2)
TEA = a_scheme(
    "BY_TAG",
    scheme_id=CLUB,
    segments=tagged(DRINK, tea="tea", milk="milk"),
    on_threshold_lost="THRESHOLD_LOST_POLICY_REMOVE",
    seat_hold_minutes=MONTH,
)
# As many may be moved as are; what the quotas are for, other tests try.
PROGRAMME = {
    "tag_rules": [{"key": "thirsty", "expression": f"'{DRINK}' in tags ? tags.{DRINK} : ''"}],
    "moves_per_day": 1_000_000,
    "moves_per_group": 1_000,
}

Make = Callable[[dict[str, Any], Guest], Entry]
ByHand = Callable[[dict[str, Any]], Entry]


class GroupsJournal(Journal):
    """Members who ask for seats, come, leave and are tagged, while sites and groups open and close."""

    service = "groups"
    reads = frozenset({"ListMemberGroups", "ListNearbyGroups"})

    def __init__(self, house: House, **how: Any) -> None:
        super().__init__(house, **how)
        self.guests = {member: Guest() for member in self.members}
        self.ground = Ground()
        self.sale = SALE()
        self._region = a_region()
        self._sites = {site.site_id: site for site in (a_site(self._region, north) for north in SITES)}

    # --- the load -------------------------------------------------------------------------------------

    async def _lay_ground(self, client: Client) -> None:
        scheme = pb.PutSchemeRequest(request_id=fresh("put"), scheme=self.sale)
        await self._do(client, Entry("PutScheme", scheme))
        for site in self._sites.values():
            await self._do(client, Entry("PutSite", pb.PutSiteRequest(request_id=fresh("put"), site=site)))

    def _workers(
        self, client: Client, each: int, struck: asyncio.Event
    ) -> Iterable[Coroutine[Any, Any, None]]:
        yield from super()._workers(client, each, struck)
        yield self._operate(client, each // 4, struck)

    async def _operate(self, client: Client, commands: int, struck: asyncio.Event) -> None:
        sent = 0
        while sent < commands or not struck.is_set():
            sent += 1
            await self._do(client, self._work())
            await asyncio.sleep(self._random.uniform(0, PAUSE))

    def _command(self, member: str) -> Entry:
        guest = self.guests[member]
        make: Make = self._choose(self._wishes(guest))
        return make({"member_id": member, "request_id": fresh("r")}, guest)

    def _work(self) -> Entry:
        make: ByHand = self._choose(self._works())
        return make({"request_id": fresh("r")})

    def _choose(self, wishes: Iterable[tuple[int, bool, Any]]) -> Any:
        possible = [(weight, make) for weight, there_is, make in wishes if there_is]
        (make,) = self._random.choices([make for _, make in possible], [weight for weight, _ in possible])
        return make

    # --- by members -----------------------------------------------------------------------------------

    def _wishes(self, guest: Guest) -> Iterator[tuple[int, bool, Make]]:
        """What a member may want: how much, and whether there is what it is about."""
        known, seated = bool(self.ground.groups), bool(guest.seats)
        yield 14, True, self._ask
        yield 6, known, self._ask_for_a_group
        yield 16, seated, self._arrive
        yield 6, known, self._appear
        yield 10, seated, self._go
        yield 1, known, self._go_from_anywhere
        yield 8, True, self._tag
        yield 3, bool(guest.drink), self._untag
        yield 10, True, self._look
        yield 4, True, self._look_around

    def _somewhere(self) -> pb.Location:
        return at(self._region, self._random.uniform(*AROUND))

    def _some_group(self) -> str:
        return self._random.choice(sorted(self.ground.groups))

    def _ask(self, common: dict[str, Any], _: Guest) -> Entry:
        by: dict[str, Any] = {"scheme_id": KING.scheme_id, "location": self._somewhere()}
        return Entry("AssignMember", pb.AssignMemberRequest(**common, **by))

    def _ask_for_a_group(self, common: dict[str, Any], _: Guest) -> Entry:
        return Entry("AssignMember", pb.AssignMemberRequest(**common, chosen_group_id=self._some_group()))

    def _arrive(self, common: dict[str, Any], guest: Guest) -> Entry:
        return self._coming(common, self._random.choice(sorted(guest.seats.values())))

    def _appear(self, common: dict[str, Any], _: Guest) -> Entry:
        return self._coming(common, self._some_group())

    def _coming(self, common: dict[str, Any], group_id: str) -> Entry:
        now = stamp(self._now)
        return Entry("JoinGroup", pb.JoinGroupRequest(**common, group_id=group_id, occur_time=now))

    def _go(self, common: dict[str, Any], guest: Guest) -> Entry:
        return self._going(common, self._random.choice(sorted(guest.seats.values())))

    def _go_from_anywhere(self, common: dict[str, Any], _: Guest) -> Entry:
        return self._going(common, self._some_group())

    def _going(self, common: dict[str, Any], group_id: str) -> Entry:
        said: dict[str, Any] = {"occur_time": stamp(self._now), "removed": self._random.random() < 0.2}
        return Entry("LeaveGroup", pb.LeaveGroupRequest(**common, group_id=group_id, **said))

    def _tag(self, common: dict[str, Any], _: Guest) -> Entry:
        drink = pb.NewTag(key=DRINK, value=self._random.choice(("tea", "milk")))
        return Entry("TagMember", pb.TagMemberRequest(**common, tags=[drink], source="chaos"))

    def _untag(self, common: dict[str, Any], _: Guest) -> Entry:
        return Entry("UntagMember", pb.UntagMemberRequest(**common, keys=[DRINK]))

    def _look(self, common: dict[str, Any], _: Guest) -> Entry:
        return Entry("ListMemberGroups", pb.ListMemberGroupsRequest(member_id=common["member_id"]))

    def _look_around(self, common: dict[str, Any], _: Guest) -> Entry:
        near: dict[str, Any] = {"location": self._somewhere(), "page_size": len(SITES)}
        request = pb.ListNearbyGroupsRequest(member_id=common["member_id"], scheme_id=KING.scheme_id, **near)
        return Entry("ListNearbyGroups", request)

    # --- by hand --------------------------------------------------------------------------------------

    def _works(self) -> Iterator[tuple[int, bool, ByHand]]:
        """What may be done by hand, likewise. One site at least stays open, so that all find one."""
        yield 4, len(self._open) > 1, self._close
        yield 4, len(self._open) < len(SITES), self._open_again
        yield 3, True, self._open_flash
        yield 1, True, self._open_group
        yield 2, bool(self.ground.groups), self._dissolve
        yield 2, bool(self.ground.groups), self._attach

    @property
    def _open(self) -> list[str]:
        return [site_id for site_id, is_open in self.ground.open.items() if is_open]

    def _close(self, common: dict[str, Any]) -> Entry:
        site_id = self._random.choice(self._open)
        self.ground.closed.add(site_id)
        return Entry("CloseSite", pb.CloseSiteRequest(**common, site_id=site_id))

    def _open_again(self, common: dict[str, Any]) -> Entry:
        site_id = next(site_id for site_id in self._sites if site_id not in self._open)
        return Entry("PutSite", pb.PutSiteRequest(**common, site=self._sites[site_id]))

    def _open_flash(self, common: dict[str, Any]) -> Entry:
        request = pb.OpenFlashGroupRequest(
            **common, scheme_id=self.sale.scheme_id, sale_time=stamp(self._now + timedelta(hours=1))
        )
        return Entry("OpenFlashGroup", request)

    def _open_group(self, common: dict[str, Any]) -> Entry:
        place = {"scheme_id": KING.scheme_id, "site_id": self._random.choice(self._open)}
        return Entry("OpenGroup", pb.OpenGroupRequest(**common, **place))

    def _dissolve(self, common: dict[str, Any]) -> Entry:
        group_id = self._some_group()
        self.ground.dissolved.add(group_id)
        return Entry("DissolveGroup", pb.DissolveGroupRequest(**common, group_id=group_id))

    def _attach(self, common: dict[str, Any]) -> Entry:
        said = {"group_id": self._some_group(), "chat_id": fresh("chat")}
        return Entry("AttachChat", pb.AttachChatRequest(**common, **said))

    # --- what was answered ----------------------------------------------------------------------------

    def _note(self, entry: Entry) -> None:
        request, answer = entry.request, entry.answer
        match answer:
            case pb.Site():
                self.ground.open[answer.site_id] = True
            case pb.CloseSiteResponse():
                self.ground.open[request.site_id] = False
            case pb.Group():
                self.ground.groups.add(answer.group_id)
                if entry.method in ("OpenGroup", "OpenFlashGroup"):
                    self.ground.opened.append(answer.group_id)
            case pb.ListNearbyGroupsResponse():
                shown = {near.group.status for near in answer.groups if near.HasField("group")}
                assert shown <= {pb.GROUP_STATUS_OPEN}
            case pb.Scheme():
                pass
            case _:
                self._note_member(self.guests[request.member_id], request, answer)

    def _note_member(self, guest: Guest, request: Any, answer: Any) -> None:
        match answer:
            case pb.AssignMemberResponse():
                guest.seated(answer)
                self.ground.groups |= {one.group.group_id for one in answer.assignments}
            case pb.JoinGroupResponse():
                assert not answer.stale or self._moved
                guest.came(answer)
            case pb.LeaveGroupResponse():
                assert not answer.stale or self._moved
                guest.went(request, answer)
            case pb.TagChanges():
                guest.retagged(answer)
            case pb.ListMemberGroupsResponse():
                found = {one.membership.scheme_id: one.group.group_id for one in answer.groups}
                assert len(found) == len(answer.groups), answer
                guest.seats = found

    @property
    def _moved(self) -> bool:
        """Whether the clock was moved since the load began."""
        return self._now > self._began

    # --- the audit ------------------------------------------------------------------------------------

    async def verify(self, patience: float = SETTLE_TIMEOUT) -> Sequence[Mapping[str, Any]]:
        """Whoever has to leave a group must have left in `patience` seconds. Returns the events."""
        connection, where = await owner(self.house, "groups"), (self.sale.scheme_id, list(self._sites))
        try:

            async def nobody_has_to_leave() -> bool:
                return not await connection.fetchval(LEAVING, *where)

            await until(nobody_has_to_leave, patience)
            async with snapshot(connection):
                tables = ("members", "memberships", "tags", "answers")
                order = {"memberships": "scheme_id, number"}
                kept = {
                    table: await rows_of(connection, table, self.members, order=order.get(table, ""))
                    for table in tables
                }
                groups = await connection.fetch(GROUPS, *where)
                sites = await connection.fetch("SELECT * FROM sites WHERE site_id = ANY($1)", where[1])
                names = [row["group_id"] for row in groups]
                seated = await connection.fetch(MEMBERS, names)
                events = await told(connection, [*self.members, *names])
                by_hand = [entry.request.request_id for entry in self.entries if not entry.member]
                requests = await connection.fetch(REQUESTS, by_hand)
                moved = self._moved
        finally:
            connection.terminate()  # which cannot fail, whatever happened to it
        self._check_answers(kept["answers"])
        self._check_works(requests)
        register = Register({row["group_id"]: row["room"] for row in groups})
        register.follow(event for _, event, _ in events)
        check_counts(groups, seated, register, set(self.members))
        heard: dict[str, list[Any]] = defaultdict(list)
        for name, event, _ in events:
            heard[name].append(event)
        self.ground.check(sites, groups, heard, moved)
        await self._check_members(kept, heard, register, moved)
        return [{"member_id": name, "hash": _digest(body)} for name, _, body in events]

    async def _check_members(
        self,
        kept: Mapping[str, Sequence[Any]],
        heard: Mapping[str, Sequence[Any]],
        register: Register,
        moved: bool,
    ) -> None:
        rows = {row["member_id"]: row for row in kept["members"]}
        for member, guest in self.guests.items():
            if member not in rows:
                assert not guest.assigned + guest.joined, member
                continue
            mine = {name: [row for row in kept[name] if row["member_id"] == member] for name in kept}
            page = Page(rows[member], mine["memberships"], mine["tags"], heard.get(member, []), moved)
            page.check(guest, register)
            await asyncio.sleep(0)  # others want to go on meanwhile

    def _check_works(self, requests: Sequence[Any]) -> None:
        """What was done by hand is kept with its answer, what was refused is not; and why it was."""
        done = [entry for entry in self._of(Outcome.ACKNOWLEDGED) if not entry.member and entry.answer]
        assert {row["request_id"]: row["answer"] for row in requests} == {
            entry.request.request_id: entry.answer.SerializeToString(deterministic=True)
            for entry in done
            if entry.answer is not None
        }
        assert len(requests) == len(done)
        for entry in self._of(Outcome.REFUSED):
            match entry.method:
                case "AssignMember":  # where no group is chosen there is always a seat
                    assert (entry.reason, bool(entry.request.chosen_group_id)) == ("GROUP_FULL", True)
                case "AttachChat":
                    assert entry.reason == "GROUP_DISSOLVED"
                case _:
                    assert (entry.reason, self._moved) == ("FLASH_TIME_INVALID", True)


# --- what a run, and its faults, ask for ----------------------------------------------------------------


def prepare(house: House) -> None:
    """Puts how groups are formed."""
    with Groups(house) as groups:
        programme = ParseDict(PROGRAMME, pb.Programme())
        request = pb.PutProgrammeRequest(request_id=fresh("put"), programme=programme)
        groups.call(groups.groups.PutProgramme, request)
        for scheme in (KING, FANS, TEA):
            put_scheme(groups, scheme)


async def open_fan_group(caller: Caller, inviter_id: str) -> str:
    """A group of a KOL's fans, with one of them in it."""
    request = pb.AssignMemberRequest(
        member_id=fresh("m"), request_id=fresh("r"), scheme_id=FANS.scheme_id, inviter_id=inviter_id
    )
    answer = await caller.insist("AssignMember", request)
    assert isinstance(answer, pb.AssignMemberResponse), answer
    return answer.assignments[0].group.group_id


def about(event: Any) -> str:
    """The member or the group that an event is about."""
    return str(getattr(event, "member_id", "") or event.group_id)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8).digest()


PART = Part(
    service="groups",
    prepare=prepare,
    lanes=[partial(GroupsJournal, members=10), partial(GroupsJournal, members=4, cancelling=True)],
    caller=Groups,
    good=list(GOOD.items()),
    entity=lambda event: (about(event),),
    link=lambda _, body: _digest(body),
    about=about,
)
