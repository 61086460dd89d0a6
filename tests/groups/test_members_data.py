"""A member's data: handed out whole, and erased everywhere, while its groups go on counting it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
from grpc import StatusCode
from loyalty.groups.v1 import groups_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import OrderPaid
from loyalty.points.v1.points_events_pb2 import TierChanged
from nats.js.errors import NotFoundError

from services.cli.house import House
from services.groups.domain.coordinates import Datum, Point, to_wgs84
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.groups.calls import (
    Maker,
    assign,
    at,
    groups_of,
    instant,
    join,
    known,
    leave,
    nearby,
    read_group,
    seat,
    settle,
    stamp,
    tag,
)
from tests.groups.conftest import sound
from tests.journeys.publisher import Publisher
from tests.support import Groups, eventually, fresh, order, refused


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house of its own. One front is enough: what is kept lies behind it."""
    with sound(open_house(data, ("groups",), test_clock=NOON)) as house:
        yield house


def export(groups: Groups, member: str, page_size: int = 0) -> list[pb.ExportMemberResponse]:
    """Everything kept, page by page."""
    pages: list[pb.ExportMemberResponse] = []
    token = ""
    while True:
        request = pb.ExportMemberRequest(member_id=member, page_size=page_size, page_token=token)
        pages.append(groups.call(groups.groups.ExportMember, request))
        token = pages[-1].next_page_token
        if not token:
            return pages


def erase(groups: Groups, member: str, request_id: str = "") -> pb.EraseMemberResponse:
    request = pb.EraseMemberRequest(member_id=member, request_id=request_id or fresh("erase"))
    return groups.call(groups.groups.EraseMember, request)


def tell(groups: Groups, *messages: OrderPaid | TierChanged) -> None:
    """Publishes events, as their owners would."""

    async def publish() -> None:
        async with Publisher(groups.house.nats.url, "elsewhere") as publisher:
            await publisher.publish(*messages)

    asyncio.run(publish())


def live(groups: Groups, make: Maker, marker: str) -> tuple[str, pb.Group]:
    """A member with some of everything, and a marker wherever text can be."""
    member = fresh("member")
    region, _ = settle(groups, 4000)
    group = seat(groups, member, make(), location=at(region), entry_source=marker).group
    join(groups, member, group)
    tag(groups, member, source=marker, wish=marker)
    bought = [order(2500, groups.now) for _ in range(3)]
    for one in bought:
        one.store_id = one.city = marker
    promoted = TierChanged(member_id=member, occur_time=stamp(groups.now), epoch=1, version=1, to_tier="gold")
    tell(groups, *(OrderPaid(member_id=member, order=one) for one in bought), promoted)
    eventually(lambda: known(groups, member).facts.orders_total == 3 and known(groups, member).tier == "gold")
    return member, group


# --- where a text can be ------------------------------------------------------------------------------


def in_tables(house: House, *markers: str | bytes) -> set[str]:
    """Tables with a row that holds one of the markers, as text or within bytes."""
    names = ask(house, "groups", "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    texts = [marker for marker in markers if isinstance(marker, str)]
    held = [f"%{text}%" for text in (*texts, *(_bytes(marker).hex() for marker in markers))]
    return {
        name
        for (name,) in names
        if ask(house, "groups", f"SELECT FROM {name} t WHERE t::text LIKE ANY($1)", held)
    }


def _bytes(marker: str | bytes) -> bytes:
    return marker.encode() if isinstance(marker, str) else marker


def in_stream(house: House, *markers: str | bytes) -> set[str]:
    """What the service's stream holds with one of the markers in it, by subject."""

    async def look() -> set[str]:
        client = await nats.connect(house.nats.url)
        try:
            jetstream = client.jetstream()
            state = (await jetstream.stream_info("GROUPS")).state
            found = set()
            for sequence in range(max(1, state.first_seq), state.last_seq + 1):
                try:
                    message = await jetstream.get_msg("GROUPS", sequence)
                except NotFoundError:
                    continue
                if any(_bytes(marker) in (message.data or b"") for marker in markers):
                    found.add(str(message.subject).rpartition(".")[2])
            return found
        finally:
            await client.close()

    return asyncio.run(look())


# --- tests --------------------------------------------------------------------------------------------


def test_an_export_has_everything_in_pages_of_any_size(groups: Groups, make: Maker) -> None:
    marker = fresh("marker")
    member, group = live(groups, make, marker)
    [whole] = export(groups, member)
    [mine] = whole.memberships
    assert (mine.membership.group_id, mine.membership.entry_source) == (group.group_id, marker)
    assert mine.cell
    assert {one.key: one.source for one in whole.tags}["wish"] == marker
    assert (whole.facts.orders_total, whole.facts.home_site) == (3, marker)
    assert whole.told["tier"] == "gold"
    assert [(one.store_id, one.amount_minor) for one in whole.orders] == [(marker, 2500)] * 3
    assert all(instant(one.paid_time) == groups.now for one in whole.orders)
    for size in (1, 2):
        first, *others = export(groups, member, size)
        assert [one for page in (first, *others) for one in page.orders] == list(whole.orders)
        assert (first.memberships, first.tags, first.facts) == (whole.memberships, whole.tags, whole.facts)
        assert not any(page.memberships or page.tags or page.HasField("facts") for page in others)
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        export(groups, fresh("nobody"))
    forged = pb.ExportMemberRequest(member_id=member, page_token="AAAA")  # noqa: S106
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        groups.call(groups.groups.ExportMember, forged)


def test_what_is_erased_is_found_nowhere_and_the_seat_stays(groups: Groups, make: Maker) -> None:
    marker, house = fresh("marker"), groups.house
    member, group = live(groups, make, marker)
    assert {"tags", "orders", "memberships", "answers"} <= in_tables(house, marker)
    eventually(lambda: {"MemberAssigned", "MemberJoined", "TagsChanged"} <= in_stream(house, member))
    answer = erase(groups, member, request_id := fresh("erase"))
    assert (answer.orders, answer.cells, instant(answer.erase_time)) == (3, 1, groups.now)
    assert answer.tags >= 1
    assert answer.facts >= 1
    assert answer.events >= 3
    assert erase(groups, member, request_id) == answer
    assert in_tables(house, marker) == set()
    eventually(lambda: not in_stream(house, member))
    [mine] = groups_of(groups, member)
    assert (mine.membership.group_id, mine.membership.entry_source) == (group.group_id, "")
    assert read_group(groups, group).seats_taken == 1
    [left] = export(groups, member)
    assert [(one.membership, one.cell) for one in left.memberships] == [(mine.membership, "")]
    assert not any((left.tags, left.orders, left.told, left.HasField("offer_time")))
    again = erase(groups, member)
    assert (again.tags, again.orders, again.facts, again.cells, again.events) == (0, 0, 0, 0, 0)
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        erase(groups, fresh("nobody"))


def test_an_erased_member_goes_on_and_repeats_are_known_though_their_answer_is_not(
    groups: Groups, make: Maker
) -> None:
    member, request_id = fresh("member"), fresh("assign")
    region, _ = settle(groups)
    asked: dict[str, Any] = {"scheme_id": make().scheme_id, "location": at(region)}
    [mine] = assign(groups, member, request_id, **asked).assignments
    erase(groups, member)
    with refused(StatusCode.FAILED_PRECONDITION, "ANSWER_ERASED"):
        assign(groups, member, request_id, **asked)
    [again] = assign(groups, member, **asked).assignments
    assert again.group.group_id == mine.group.group_id
    join(groups, member, mine.group)
    assert leave(groups, member, mine.group).membership.status == pb.MEMBERSHIP_STATUS_LEFT


def test_a_member_of_whom_only_others_told_is_exported_and_erased(groups: Groups) -> None:
    member = fresh("member")
    told = TierChanged(member_id=member, occur_time=stamp(groups.now), epoch=1, version=1, to_tier="gold")
    tell(groups, told)
    eventually(lambda: known(groups, member).tier == "gold")
    [found] = export(groups, member)
    assert dict(found.told) == {"tier": "gold"}
    assert erase(groups, member).facts == 1
    assert not export(groups, member)[0].told


def as_kept(degrees: float) -> list[str | bytes]:
    """How coordinates might be kept, to a metre: their digits, and their bytes either way round."""
    return [f"{degrees:.6f}"[:-1], struct.pack("<d", degrees), struct.pack(">d", degrees)]


def test_where_a_member_is_stays_nowhere(groups: Groups, make: Maker) -> None:
    house, member = groups.house, fresh("member")
    region, [site] = settle(groups, 4000)
    there = at(region, 4321.098765)
    swapped = pb.Location(latitude=121.4736917, longitude=31.2303917, datum=pb.DATUM_WGS84)
    here = pb.Location(latitude=31.2304321, longitude=121.4737654, datum=pb.DATUM_GCJ02)
    meant = to_wgs84(Point(here.latitude, here.longitude), Datum.GCJ02)
    near, elsewhere = seat(groups, member, make(), location=there), fresh("member")
    assert (near.distance_m, near.membership.site_id) == (321, site.site_id)
    scheme = make(threshold=[{"name": "never", "expression": "false"}])
    nearby(groups, scheme, member, location=there)
    with refused(StatusCode.FAILED_PRECONDITION, "THRESHOLD_NOT_MET"):
        assign(groups, member, scheme_id=scheme.scheme_id, location=there)
    seat(groups, elsewhere, make(), location=here)
    with suppress(grpc.RpcError):
        assign(groups, elsewhere, scheme_id=scheme.scheme_id, location=swapped)
    eventually(lambda: in_stream(house, member, elsewhere) == {"MemberAssigned"})
    degrees = (value for one in (there, here, meant, swapped) for value in (one.latitude, one.longitude))
    # The longitude of a region is that of its site, too.
    kept = [form for value in degrees if value != region[1] for form in as_kept(value)]
    assert in_tables(house, *kept) == set()
    assert in_stream(house, *kept) == set()
    logs = b"".join(log.read_bytes() for log in house.data.glob("*.log"))
    assert not any(_bytes(form) in logs for form in kept)
    assert in_tables(house, *as_kept(site.location.latitude)) == {"sites", "requests"}  # it would be found
