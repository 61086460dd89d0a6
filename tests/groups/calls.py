"""Calls about groups, as tests write them: sites in a region of their own, schemes, seats; and time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.groups.v1 import groups_service_pb2 as pb

from tests.support import Groups, fresh

NO_GROUP = "grp_" + "0" * 32
METRE = 1 / 111_195.08  # degrees of latitude
CITY = "杭州"

_regions = itertools.count()


def stamp(at: datetime) -> Timestamp:
    """An instant as the contract writes it."""
    made = Timestamp()
    made.FromDatetime(at)
    return made


def instant(at: Timestamp) -> datetime:
    """An instant that the contract wrote."""
    return at.ToDatetime(tzinfo=UTC)


def move(groups: Groups, at: datetime) -> None:
    """Sets the house's clock."""
    assert groups.house.clock is not None
    groups.house.clock.set(at)


def wait(groups: Groups, **duration: float) -> None:
    """Lets time pass."""
    move(groups, groups.now + timedelta(**duration))


# --- places -------------------------------------------------------------------------------------------


def a_region() -> tuple[float, float]:
    """Degrees of a place that is a hundred kilometres from that of every other test."""
    number = next(_regions)
    return -5.0 - number % 40, -160.0 + number // 40


def at(region: tuple[float, float], north_m: float = 0) -> pb.Location:
    """A place so many metres north in a region."""
    return pb.Location(latitude=region[0] + north_m * METRE, longitude=region[1], datum=pb.DATUM_WGS84)


def a_site(region: tuple[float, float], north_m: float = 0, **said: Any) -> pb.Site:
    """A site of a name and a city of its own."""
    site_id = said.pop("site_id", None) or fresh("site")
    whole = {"name": f"{site_id}店", "city": site_id, **said}
    return pb.Site(site_id=site_id, location=at(region, north_m), **whole)


def put_site(groups: Groups, site: pb.Site, request_id: str = "", **how: Any) -> pb.Site:
    """Puts a site."""
    request = pb.PutSiteRequest(request_id=request_id or fresh("put"), site=site, **how)
    return groups.call(groups.groups.PutSite, request)


def settle(groups: Groups, *north_m: float, **said: Any) -> tuple[tuple[float, float], list[pb.Site]]:
    """Sites in a new region, so many metres north of its middle."""
    region = a_region()
    return region, [put_site(groups, a_site(region, metres, **said)) for metres in north_m or (0,)]


def close_site(groups: Groups, site: pb.Site, request_id: str = "", **how: Any) -> pb.CloseSiteResponse:
    """Closes a site."""
    request = pb.CloseSiteRequest(request_id=request_id or fresh("close"), site_id=site.site_id, **how)
    return groups.call(groups.groups.CloseSite, request)


# --- schemes ------------------------------------------------------------------------------------------


def a_scheme(kind: str = "BY_LOCATION", **said: Any) -> pb.Scheme:
    """A scheme of its own whose groups have two seats, and room for one more, unless said otherwise."""
    whole = {
        "scheme_id": fresh("scheme"),
        "kind": f"SCHEME_KIND_{kind}",
        "name_pattern": "福利群{seq}",
        "capacity": 3,
        "headroom": 1,
        **said,
    }
    return ParseDict(whole, pb.Scheme())


def put_scheme(groups: Groups, scheme: pb.Scheme, request_id: str = "", **how: Any) -> pb.Scheme:
    """Puts a scheme's next version."""
    request = pb.PutSchemeRequest(request_id=request_id or fresh("put"), scheme=scheme, **how)
    return groups.call(groups.groups.PutScheme, request)


class Maker:
    """Puts schemes, and withdraws them at the end."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._made: list[bytes] = []

    def __call__(self, kind: str = "BY_LOCATION", **said: Any) -> pb.Scheme:
        made = put_scheme(self._groups, a_scheme(kind, **said))
        self._made.append(made.SerializeToString())
        return made

    def withdraw(self) -> None:
        """Ends what was put here."""
        for scheme in map(pb.Scheme.FromString, self._made):
            scheme.withdrawn = True
            put_scheme(self._groups, scheme)


def tagged(key: str, **segments: str) -> list[dict[str, str]]:
    """Segments of those who have a tag, by its value."""
    return [
        {"segment_id": name, "name": name, "expression": f"'{key}' in tags && tags['{key}'] == '{value}'"}
        for name, value in segments.items()
    ]


# --- seats --------------------------------------------------------------------------------------------


def assign(groups: Groups, member: str, request_id: str = "", **by: Any) -> pb.AssignMemberResponse:
    """Asks for seats."""
    request = pb.AssignMemberRequest(member_id=member, request_id=request_id or fresh("assign"), **by)
    return groups.call(groups.groups.AssignMember, request)


def seat(groups: Groups, member: str, scheme: pb.Scheme | None = None, **by: Any) -> pb.Assignment:
    """Asks for a seat in a scheme, or in a chosen group."""
    if scheme is not None:
        by["scheme_id"] = scheme.scheme_id
    [found] = assign(groups, member, **by).assignments
    return found


def join(groups: Groups, member: str, group: pb.Group | str, **told: Any) -> pb.JoinGroupResponse:
    """Tells that a member is in a group, since now."""
    said = {"request_id": fresh("join"), "occur_time": stamp(groups.now), **told}
    group_id = group if isinstance(group, str) else group.group_id
    request = pb.JoinGroupRequest(member_id=member, group_id=group_id, **said)
    return groups.call(groups.groups.JoinGroup, request)


def leave(groups: Groups, member: str, group: pb.Group | str, **told: Any) -> pb.LeaveGroupResponse:
    """Tells that a member is not in a group, since now."""
    said = {"request_id": fresh("leave"), "occur_time": stamp(groups.now), **told}
    group_id = group if isinstance(group, str) else group.group_id
    request = pb.LeaveGroupRequest(member_id=member, group_id=group_id, **said)
    return groups.call(groups.groups.LeaveGroup, request)


def nearby(groups: Groups, scheme: pb.Scheme, member: str = "", **by: Any) -> pb.ListNearbyGroupsResponse:
    """What is near."""
    request = pb.ListNearbyGroupsRequest(
        member_id=member or fresh("member"), scheme_id=scheme.scheme_id, **by
    )
    return groups.call(groups.groups.ListNearbyGroups, request)


def reconcile(groups: Groups, group: pb.Group, *members: str, **how: Any) -> pb.ReconcileGroupResponse:
    """Compares a list of the messaging side's, taken now, with ours."""
    said = {"request_id": fresh("list"), "list_time": stamp(groups.now), **how}
    request = pb.ReconcileGroupRequest(group_id=group.group_id, member_ids=members, **said)
    return groups.call(groups.groups.ReconcileGroup, request)


# --- groups -------------------------------------------------------------------------------------------


def open_group(groups: Groups, scheme: pb.Scheme, request_id: str = "", **where: Any) -> pb.Group:
    """Opens a group by hand."""
    request = pb.OpenGroupRequest(request_id=request_id or fresh("open"), scheme_id=scheme.scheme_id, **where)
    return groups.call(groups.groups.OpenGroup, request)


def flash(groups: Groups, scheme: pb.Scheme, minutes: float = 60, close: float | None = None) -> pb.Group:
    """Opens a group for a sale so many minutes ahead, which closes after so many."""
    request = pb.OpenFlashGroupRequest(
        request_id=fresh("flash"),
        scheme_id=scheme.scheme_id,
        sale_time=stamp(groups.now + timedelta(minutes=minutes)),
        close_time=None if close is None else stamp(groups.now + timedelta(minutes=close)),
    )
    return groups.call(groups.groups.OpenFlashGroup, request)


def attach(groups: Groups, group: pb.Group, **said: Any) -> pb.Group:
    """Tells which chat a group is."""
    request = pb.AttachChatRequest(request_id=fresh("attach"), group_id=group.group_id, **said)
    return groups.call(groups.groups.AttachChat, request)


def dissolve(groups: Groups, group: pb.Group, request_id: str = "") -> pb.Group:
    """Dissolves a group."""
    request = pb.DissolveGroupRequest(request_id=request_id or fresh("end"), group_id=group.group_id)
    return groups.call(groups.groups.DissolveGroup, request)


def read_group(groups: Groups, group: pb.Group | str) -> pb.Group:
    """Reads a group."""
    group_id = group if isinstance(group, str) else group.group_id
    return groups.call(groups.groups.GetGroup, pb.GetGroupRequest(group_id=group_id))


def listed(groups: Groups, **asked: Any) -> list[pb.Group]:
    """Every page of the groups."""
    return list(_pages(groups, groups.groups.ListGroups, pb.ListGroupsRequest(**asked), "groups"))


def members_of(groups: Groups, group: pb.Group, **asked: Any) -> list[pb.Membership]:
    """Every page of a group's members."""
    request = pb.ListGroupMembersRequest(group_id=group.group_id, **asked)
    return list(_pages(groups, groups.groups.ListGroupMembers, request, "memberships"))


def groups_of(groups: Groups, member: str, **asked: Any) -> list[pb.MemberGroup]:
    """Every page of a member's groups."""
    request = pb.ListMemberGroupsRequest(member_id=member, **asked)
    return list(_pages(groups, groups.groups.ListMemberGroups, request, "groups"))


def _pages(groups: Groups, method: Any, request: Any, field: str) -> Iterator[Any]:
    while True:
        page: Any = groups.call(method, request)
        yield from getattr(page, field)
        request.page_token = page.next_page_token
        if not request.page_token:
            return


# --- what is known ------------------------------------------------------------------------------------


def tag(groups: Groups, member: str, request_id: str = "", *, source: str = "crm", **tags: str) -> Any:
    """Sets tags."""
    made = [pb.NewTag(key=key, value=value) for key, value in tags.items()]
    request = pb.TagMemberRequest(
        member_id=member, request_id=request_id or fresh("tag"), tags=made, source=source
    )
    return groups.call(groups.groups.TagMember, request)


def untag(groups: Groups, member: str, *keys: str) -> Any:
    """Removes tags."""
    request = pb.UntagMemberRequest(member_id=member, request_id=fresh("untag"), keys=keys)
    return groups.call(groups.groups.UntagMember, request)


def known(groups: Groups, member: str) -> pb.MemberTags:
    """What is known of a member."""
    return groups.call(groups.groups.GetMemberTags, pb.GetMemberTagsRequest(member_id=member))
