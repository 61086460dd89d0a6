"""Two members find their groups: by where they are, as guests of a burger chain and customers of a bank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from math import hypot
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.cli.listener import Listener
from services.cli.stories import CALL_TIMEOUT, ZONE, Patience, Scene, Stage

MEMBERS = ("cleo", "dora")
COLUMNS = ("group", "metres", "points", "besides")
# Stores beside the published one, and a bank's branches; the places are ours.
STORES: list[dict[str, Any]] = [
    {
        "site_id": "hangzhou-0002",
        "name": "杭州朝晖店",
        "city": "杭州",
        "location": {"latitude": 30.29961, "longitude": 120.18648, "datum": "DATUM_GCJ02"},
    },
    {
        "site_id": "hangzhou-0003",
        "name": "杭州滨江店",
        "city": "杭州",
        "location": {"latitude": 30.2084, "longitude": 120.2120, "datum": "DATUM_GCJ02"},
    },
]
BRANCHES: list[dict[str, Any]] = [
    {
        "site_id": "shanghai-lujiazui",
        "name": "陆家嘴",
        "city": "上海",
        "location": {"latitude": 31.2397, "longitude": 121.4998, "datum": "DATUM_GCJ02"},
    },
    {
        "site_id": "shanghai-waitan",
        "name": "外滩",
        "city": "上海",
        "location": {"latitude": 31.2382, "longitude": 121.4862, "datum": "DATUM_WGS84"},
    },
    {
        "site_id": "shanghai-xujiahui",
        "name": "徐家汇",
        "city": "上海",
        "location": {"latitude": 31.1995, "longitude": 121.4436, "datum": "DATUM_BD09"},
    },
]
# A kilometre west of the published store, as wx.getLocation tells it; the next store is 1,080 m north.
AT_THE_CANAL = pb.Location(latitude=30.2899, longitude=120.18648, datum=pb.DATUM_GCJ02)
IN_LUJIAZUI = pb.Location(latitude=31.2400, longitude=121.5010, datum=pb.DATUM_GCJ02)
FIRST, SECOND = "汉堡王杭州篮钻天城店福利群", "汉堡王杭州朝晖店福利群"
AT_ONCE = 100  # guests who come at the same time


def play(stage: Stage, chain: Mapping[str, Any], bank: Mapping[str, Any]) -> Iterator[Scene]:
    """Some days after the cards: a chain's groups, then a bank's, each as its programme says."""
    story = _Story(stage)
    cleo, dora = (_Member(story, member_id) for member_id in MEMBERS)
    yield from _nearest_store(story, cleo, chain)
    yield from _full_house(story)
    yield from _closed_store(story, cleo)
    yield from _up_the_tiers(cleo)
    yield from _after_an_order(story, dora, chain, bank)


# --- a burger chain -----------------------------------------------------------------------------------


def _nearest_store(story: _Story, cleo: _Member, chain: Mapping[str, Any]) -> Iterator[Scene]:
    """A degree of longitude is shorter than one of latitude, so by degrees another store would be nearer."""
    story.wait_until("2017-03-21 12:00")
    story.put("chain", chain, STORES)
    seat = cleo.gets(scheme_id="store", location=AT_THE_CANAL)
    wrong = f"by degrees {_nearest_by_degrees([*chain['sites'], *STORES], AT_THE_CANAL)}"
    expected = (FIRST, "1003", "0", "by degrees 杭州朝晖店")
    yield cleo.scene("at the nearest store", _at(seat), wrong, expected)
    cleo.joins(seat.group)
    soonest = f"next {seat.benefits[0].benefit_code}"
    yield cleo.scene("joined", _at(seat), soonest, (FIRST, "1003", "30", "next kings-day"))
    story.wait_until("2017-03-22 10:00")
    story.wait_until("2017-03-22 11:00")  # by when it would have come again
    due = story.hears("BenefitDue", lambda told: told.group_id == seat.group.group_id)
    told = ", ".join(f"{one.benefit_code} until {_local(one.claim_until_time)}" for one in due)
    expected = (FIRST, "", "30", "kings-day until 03-23 00:00")
    yield cleo.scene("Wednesday at ten", (cleo.group("store"), ""), told, expected)


def _full_house(story: _Story) -> Iterator[Scene]:
    """The group has 490 seats; who comes then gets one in the store's second, which who leaves is shown."""
    (first,) = story.groups("store")
    guests = [_Member(story, f"guest-{number:03}") for number in range(1, first.seats)]
    story.join_at_once(guests, first)
    late = _Member(story, "guest-late")
    seat = late.gets(scheme_id="store", location=AT_THE_CANAL)
    first, *_ = story.groups("store")
    taken = f"{first.seats_taken} of {first.seats}"
    yield late.scene("full, the next opens", _at(seat), taken, (f"{FIRST}2", "1003", "0", "490 of 490"))
    leaver = guests[0]
    shown = f"shown {leaver.leaves(first)}"
    yield leaver.scene(
        "a guest leaves", (leaver.group("store"), ""), shown, ("", "", "30", f"shown {FIRST}2")
    )


def _closed_store(story: _Story, cleo: _Member) -> Iterator[Scene]:
    """The platform lets 300 members be moved in a day. Who is moved is not welcomed twice."""
    site_id = story.groups("store")[0].site_id
    tried = story.closes(site_id, dry=True)
    expected = (FIRST, "", "30", "490 in 2 days")
    yield cleo.scene("closing it, tried", (cleo.group("store"), ""), tried, expected)
    story.closes(site_id)
    story.wait_until("2017-03-22 12:00")
    rest = story.closes(site_id, dry=True)
    story.wait_until("2017-03-23 00:30")
    gone = story.closes(site_id, dry=True)
    cleo.joins(cleo.seat("store"))
    expected = (SECOND, "", "30", "190 in 2 days\n0 in 0 days")
    yield cleo.scene("closed, and moved", (cleo.group("store"), ""), f"{rest}\n{gone}", expected)


def _up_the_tiers(cleo: _Member) -> Iterator[Scene]:
    """Points tell the tier; the groups of the tiers go by it."""
    for spent, tier, points in ((30_000, "铁粉", "340"), (70_000, "挚爱粉", "1045")):
        cleo.orders("hangzhou-0002", spent)
        group, tags = f"汉堡王{tier}群", f"tier {tier}"
        cleo.once(lambda: cleo.group("fans"), group)
        said = (cleo.group("fans"), "")
        yield cleo.scene(
            f"spent {spent // 100}.00", said, f"tier {cleo.tags().tier}", (group, "", points, tags)
        )


# --- a bank -------------------------------------------------------------------------------------------


def _after_an_order(
    story: _Story, dora: _Member, chain: Mapping[str, Any], bank: Mapping[str, Any]
) -> Iterator[Scene]:
    """The notice after a spend has the nearest group; the customer looks around and chooses another.

    A deployment is of one brand, so with the bank's schemes the chain's take nobody any more.
    """
    story.wait_until("2017-03-24 12:00")
    over = [{**scheme, "withdrawn": True} for scheme in chain["schemes"]]
    story.put("bank", {**bank, "schemes": [*over, *bank["schemes"]]}, BRANCHES)
    for branch in BRANCHES:
        story.opens("nearby", branch["site_id"])
    dora.orders(BRANCHES[0]["site_id"], 4_500)
    (offer,) = story.hears("EntryOffered", lambda told: told.member_id == dora.member_id)
    (offered,) = offer.groups
    said = (offered.group_name, "")
    yield dora.scene("paid 45.00", said, "offered", ("掌上生活陆家嘴福利群", "", "45", "offered"))
    near = dora.looks_around("nearby", IN_LUJIAZUI)
    listed = "\n".join(f"{one.site.name} {one.distance_m}" for one in near)
    seat = dora.gets(chosen_group_id=near[1].group.group_id, entry_source=offer.scene)
    expected = ("掌上生活外滩福利群", "1071", "45", "陆家嘴 119\n外滩 1071\n徐家汇 8020")
    yield dora.scene("chose the second", (seat.group.name, str(near[1].distance_m)), listed, expected)
    dora.joins(seat.group)
    yield dora.scene("joined", (dora.group("nearby"), ""), "", ("掌上生活外滩福利群", "", "75", ""))
    story.wait_until("2017-03-25 14:00")
    dora.orders(BRANCHES[0]["site_id"], 4_500)
    dora.once(lambda: str(dora.tags().facts.orders_total), "2")
    last = f"offered last {dora.offered_last()}"
    expected = ("掌上生活外滩福利群", "", "120", "offered last 03-24 12:00")
    yield dora.scene("paid 45.00 next day", (dora.group("nearby"), ""), last, expected)


# --- who asks -----------------------------------------------------------------------------------------


class _Story:
    """What the brand's back end does that is about nobody alone."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.of_groups, self.wait_until = stage, stage.groups, stage.wait_until
        self.patience = Patience()
        self._numbers = itertools.count(1)

    def named(self) -> str:
        """A request's name, never used before."""
        return f"groups-{next(self._numbers)}"

    def hears(self, kind: str, wanted: Callable[[Any], bool]) -> list[Any]:
        """What groups told of a kind, as another team hears it."""
        return Listener(self.stage.house.nats.url, "groups").heard_of(kind, wanted)

    def put(self, name: str, said: Mapping[str, Any], more_sites: Iterable[Mapping[str, Any]]) -> None:
        """Puts what a programme says of groups, and further sites."""
        call, of_groups = self.stage.call, self.of_groups
        sites = [ParseDict(dict(site), pb.Site()) for site in (*said.get("sites", ()), *more_sites)]
        call(of_groups.BatchPutSites, pb.BatchPutSitesRequest(request_id=f"{name}-sites", sites=sites))
        programme = ParseDict(said["programme"], pb.Programme())
        request = pb.PutProgrammeRequest(request_id=f"{name}-programme", programme=programme)
        call(of_groups.PutProgramme, request)
        for scheme in said["schemes"]:
            whole = ParseDict(dict(scheme), pb.Scheme())
            asked = pb.PutSchemeRequest(request_id=f"{name}-{whole.scheme_id}", scheme=whole)
            call(of_groups.PutScheme, asked)

    def groups(self, scheme_id: str) -> Sequence[pb.Group]:
        """The groups of a scheme that are not dissolved, oldest first."""
        found = self.stage.call(self.of_groups.ListGroups, pb.ListGroupsRequest(scheme_id=scheme_id)).groups
        return [group for group in found if group.status != pb.GROUP_STATUS_DISSOLVED]

    def opens(self, scheme_id: str, site_id: str) -> pb.Group:
        """Opens a group, and tells where its chat is entered."""
        opened = pb.OpenGroupRequest(request_id=self.named(), scheme_id=scheme_id, site_id=site_id)
        group = self.stage.call(self.of_groups.OpenGroup, opened)
        link = f"https://work.weixin.qq.com/gm/{site_id}"
        chat = pb.AttachChatRequest(
            request_id=self.named(), group_id=group.group_id, chat_id=f"chat-{site_id}", entry_link=link
        )
        return self.stage.call(self.of_groups.AttachChat, chat)

    def join_at_once(self, members: Sequence[_Member], group: pb.Group) -> None:
        """Has many come, as the messaging side tells."""
        for start in range(0, len(members), AT_ONCE):
            coming = [
                self.of_groups.JoinGroup.future(member.joining(group), timeout=CALL_TIMEOUT)
                for member in members[start : start + AT_ONCE]
            ]
            for one in coming:
                one.result()

    def closes(self, site_id: str, *, dry: bool = False) -> str:
        """Closes a site, or says who has still to be moved for that, and how many days it takes."""
        asked = pb.CloseSiteRequest(request_id=self.named(), site_id=site_id, validate_only=dry)
        answer = self.stage.call(self.of_groups.CloseSite, asked)
        return f"{answer.members} in {answer.local_days} days"


class _Member:
    """A member, as the brand's back end and the messaging side act for one."""

    def __init__(self, story: _Story, member_id: str) -> None:
        self.member_id = member_id
        self._story, self._call, self._of_groups = story, story.stage.call, story.of_groups

    def scene(self, what: str, seat: tuple[str, str], besides: str, expected: tuple[str, ...]) -> Scene:
        """The group and how far it is, the points once they are as expected, and more."""
        group, metres = seat
        points = self.once(lambda: str(self._story.stage.available(self.member_id)), expected[2])
        return Scene(f"{self.member_id}: {what}", (group, metres, points, besides), expected)

    def once(self, read: Callable[[], str], expected: str) -> str:
        """What is read once it is as expected, or when patience is at its end."""
        return self._story.patience.once(read, expected)

    # --- what it does -------------------------------------------------------------------------------------

    def gets(self, **where: Any) -> pb.Assignment:
        """A seat at a place, or in a chosen group."""
        asked = pb.AssignMemberRequest(**self._named(), **where)
        (assignment,) = self._call(self._of_groups.AssignMember, asked).assignments
        return assignment

    def joins(self, group: pb.Group) -> None:
        """Is in the chat."""
        self._call(self._of_groups.JoinGroup, self.joining(group))

    def joining(self, group: pb.Group) -> pb.JoinGroupRequest:
        """The request that tells so."""
        return pb.JoinGroupRequest(
            **self._named(), group_id=group.group_id, occur_time=self._story.stage.now_stamp
        )

    def leaves(self, group: pb.Group) -> str:
        """Is in the chat no longer; the group that it is shown instead."""
        gone = pb.LeaveGroupRequest(
            **self._named(), group_id=group.group_id, occur_time=self._story.stage.now_stamp
        )
        return self._call(self._of_groups.LeaveGroup, gone).next_group.name

    def looks_around(self, scheme_id: str, place: pb.Location) -> Sequence[pb.NearbyGroup]:
        """The three nearest groups with a seat."""
        asked = pb.ListNearbyGroupsRequest(
            member_id=self.member_id, scheme_id=scheme_id, location=place, page_size=3
        )
        return self._call(self._of_groups.ListNearbyGroups, asked).groups

    def orders(self, store_id: str, amount_minor: int) -> None:
        """Pays a meal."""
        self._story.stage.pays(self.member_id, self._story.named(), store_id, amount_minor)

    # --- what is known of it ------------------------------------------------------------------------------

    def group(self, scheme_id: str) -> str:
        """The name of its group in a scheme; empty while it has none."""
        return self.seat(scheme_id).name

    def seat(self, scheme_id: str) -> pb.Group:
        """Its group in a scheme; an empty one while it has none."""
        asked = pb.ListMemberGroupsRequest(member_id=self.member_id)
        found = self._call(self._of_groups.ListMemberGroups, asked).groups
        return next((one.group for one in found if one.group.scheme_id == scheme_id), pb.Group())

    def tags(self) -> pb.MemberTags:
        """What is known of it."""
        return self._call(self._of_groups.GetMemberTags, pb.GetMemberTagsRequest(member_id=self.member_id))

    def offered_last(self) -> str:
        """When an entry was offered last."""
        asked = pb.ExportMemberRequest(member_id=self.member_id)
        return _local(self._call(self._of_groups.ExportMember, asked).offer_time)

    def _named(self) -> dict[str, Any]:
        return {"member_id": self.member_id, "request_id": self._story.named()}


def _at(seat: pb.Assignment) -> tuple[str, str]:
    return seat.group.name, str(seat.distance_m)


def _local(at: Timestamp) -> str:
    return at.ToDatetime(tzinfo=UTC).astimezone(ZONE).strftime("%m-%d %H:%M")


def _nearest_by_degrees(sites: Iterable[Mapping[str, Any]], place: pb.Location) -> str:
    """The site that is nearest for whoever takes degrees for lengths; all of the place's datum."""

    def planar(site: Mapping[str, Any]) -> float:
        there = site["location"]
        return hypot(there["latitude"] - place.latitude, there["longitude"] - place.longitude)

    return str(min(sites, key=planar)["name"])
