"""A good request of each method, and the database as one number."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.groups.v1 import groups_service_pb2 as pb

from tests import database
from tests.groups.calls import NO_GROUP, a_region, a_scheme, a_site, at, stamp
from tests.support import Groups, fresh

# --- the database, as one number ----------------------------------------------------------------------


def fingerprint(groups: Groups) -> dict[str, str]:
    """A hash over all rows of each table, once every event is sent and what follows by itself is done."""
    waits = "EXISTS (SELECT FROM groups WHERE leaving)"
    evaluated = "EXISTS (SELECT FROM evaluations WHERE end_time IS NULL)"
    return database.fingerprint(groups.house, "groups", f"sent_at IS NULL OR {waits} OR {evaluated}")


# --- a good request of each kind ----------------------------------------------------------------------

CALENDAR = [
    {
        "entry_id": "kings-day",
        "recurrence": "RECURRENCE_WEEKLY",
        "weekdays": [3],
        "local_time": "10:00",
        "claim_minutes": 720,
        "valid_from_time": "2026-01-01T00:00:00+08:00",
        "valid_until_time": "2027-01-01T00:00:00+08:00",
        "benefit_code": "kings-day",
        "text": "买一送一",
    },
    {
        "entry_id": "payday",
        "recurrence": "RECURRENCE_MONTHLY",
        "days_of_month": [31],
        "local_time": "09:00",
        "claim_minutes": 60,
        "benefit_code": "payday",
    },
    {
        "entry_id": "holiday",
        "recurrence": "RECURRENCE_DATE",
        "dates": ["2026-10-01"],
        "local_time": "09:00",
        "claim_minutes": 60,
        "benefit_code": "holiday",
    },
]


def a_whole_scheme() -> pb.Scheme:
    """A scheme with everything that one can have; what only others can have is left to these."""
    return a_scheme(
        "BY_TAG",
        threshold=[{"name": "bought", "expression": "facts.orders_total > 0"}],
        audience=[{"name": "gold", "expression": "tier == 'gold'"}],
        segments=[{"segment_id": "loyal", "name": "忠实", "expression": "'coffee' in cards"}],
        priority=5,
        cooldown_hours=24,
        seat_hold_minutes=60,
        lifetime_minutes=10_080,
        on_threshold_lost="THRESHOLD_LOST_POLICY_NOTIFY",
        welcome="欢迎来到{group}",
        notice="{segment}",
        calendar=CALENDAR,
    )


def a_programme() -> pb.Programme:
    """A programme with everything."""
    rule = {"key": fresh("rule"), "expression": "facts.recency_days > 30 ? 'silent' : ''"}
    numbers = {"horizon_days": 365, "moves_per_day": 300, "moves_per_group": 2, "offer_cooldown_hours": 24}
    said = {"tag_rules": [rule], **numbers, "opt_out_key": "no-offers", "seat_hold_minutes": 60}
    return ParseDict(said, pb.Programme())


def _write(name: str, **fields: Any) -> Any:
    """A request of a write about a member of its own."""
    made = getattr(pb, f"{name}Request")
    return made(member_id=fresh("member"), request_id=fresh("request"), **fields)


def _read(name: str, **fields: Any) -> Any:
    return getattr(pb, f"{name}Request")(member_id=fresh("member"), **fields)


def _put(name: str, **fields: Any) -> Any:
    """A request of the operators'."""
    return getattr(pb, f"{name}Request")(request_id=fresh("request"), **fields)


def _list(name: str, **fields: Any) -> Any:
    return getattr(pb, f"{name}Request")(**fields)


def _tags() -> pb.TagMemberRequest:
    tags = [pb.NewTag(key="wish", value="coffee", expire_time=Timestamp(seconds=4_000_000_000))]
    made: pb.TagMemberRequest = _write("TagMember", tags=tags, source="crm")
    return made


def _flash(groups: Groups) -> Message:
    sale, close = (stamp(groups.now + timedelta(hours=hours)) for hours in (1, 2))
    made: Message = _put("OpenFlashGroup", scheme_id="scheme", sale_time=sale, close_time=close)
    return made


_SERVICE = "/loyalty.groups.v1.GroupsService/"
_MAKE: dict[str, Callable[[Groups], Message]] = {
    "ListNearbyGroups": lambda _: _read(
        "ListNearbyGroups", scheme_id="scheme", location=at(a_region()), page_size=5
    ),
    "AssignMember": lambda _: _write(
        "AssignMember", scheme_id="scheme", location=at(a_region()), entry_source="notice"
    ),
    "JoinGroup": lambda groups: _write(
        "JoinGroup", group_id=NO_GROUP, occur_time=stamp(groups.now), entry_source="notice"
    ),
    "LeaveGroup": lambda groups: _write(
        "LeaveGroup", group_id=NO_GROUP, occur_time=stamp(groups.now), removed=True
    ),
    "ListMemberGroups": lambda _: _read("ListMemberGroups", page_size=5, include_ended=True),
    "ListGroupMembers": lambda _: _list("ListGroupMembers", group_id=NO_GROUP, page_size=5),
    "GetGroup": lambda _: _list("GetGroup", group_id=NO_GROUP),
    "ListGroups": lambda _: _list(
        "ListGroups",
        page_size=5,
        scheme_id="scheme",
        site_id="site",
        status=pb.GROUP_STATUS_OPEN,
        chat_id="chat",
    ),
    "OpenGroup": lambda _: _put("OpenGroup", scheme_id="scheme", site_id="site"),
    "OpenFlashGroup": _flash,
    "AttachChat": lambda _: _put("AttachChat", group_id=NO_GROUP, chat_id="chat", entry_link="https://a/b"),
    "DissolveGroup": lambda _: _put("DissolveGroup", group_id=NO_GROUP),
    "ReconcileGroup": lambda groups: _put(
        "ReconcileGroup", group_id=NO_GROUP, member_ids=["ann"], list_time=stamp(groups.now), apply=True
    ),
    "VerifyWecomCallback": lambda _: pb.VerifyWecomCallbackRequest(
        msg_signature="0" * 40,
        timestamp="1750000000",
        nonce="nonce",
        body=b"<xml/>",
        member_ids={"external": "ann"},
    ),
    "TagMember": lambda _: _tags(),
    "UntagMember": lambda _: _write("UntagMember", keys=["wish"]),
    "BatchTag": lambda _: pb.BatchTagRequest(items=[pb.BatchTagItem(tag=_tags())]),
    "GetMemberTags": lambda _: _read("GetMemberTags"),
    "PreviewScheme": lambda _: _list("PreviewScheme", scheme=a_whole_scheme(), page_size=5),
    "PutSite": lambda _: _put("PutSite", site=a_site(a_region()), validate_only=True),
    "BatchPutSites": lambda _: _put("BatchPutSites", sites=[a_site(a_region())], validate_only=True),
    "CloseSite": lambda _: _put("CloseSite", site_id="site", validate_only=True),
    "GetSite": lambda _: _list("GetSite", site_id="site"),
    "ListSites": lambda _: _list("ListSites", page_size=5, city="城", include_closed=True),
    "PutScheme": lambda _: _put("PutScheme", scheme=a_whole_scheme(), validate_only=True),
    "GetScheme": lambda _: _list("GetScheme", scheme_id="scheme", version=1),
    "ListSchemes": lambda _: _list("ListSchemes", page_size=5, kind=pb.SCHEME_KIND_FLASH),
    "PutProgramme": lambda _: _put("PutProgramme", programme=a_programme(), validate_only=True),
    "GetProgramme": lambda _: _list("GetProgramme", version=1),
    "ExportMember": lambda _: _read("ExportMember", page_size=5),
    "EraseMember": lambda _: _write("EraseMember"),
}
GOOD = {_SERVICE + name: make for name, make in _MAKE.items()}
"""By method; every set field is then made bad in turn."""
