"""The same request again: every write gets its first answer and changes nothing more."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.groups.api import METHODS, READ
from tests.contract import call
from tests.groups.calls import (
    Maker,
    a_region,
    a_scheme,
    a_site,
    assign,
    at,
    join,
    open_group,
    seat,
    settle,
    stamp,
    tag,
)
from tests.groups.requests import a_programme, fingerprint
from tests.support import Groups, fresh, refused

SERVICE = "/loyalty.groups.v1.GroupsService/"
ASKERS = 8


@dataclass(frozen=True)
class Repeated:
    """A write that succeeds, and what makes it another one."""

    make: Callable[[Groups, Maker], Message]
    other: Callable[[Any], None]


def _request(kind: Any, **fields: Any) -> Any:
    return kind(request_id=fresh("request"), **fields)


def _of_member(kind: Any, **fields: Any) -> Any:
    return _request(kind, member_id=fields.pop("member_id", None) or fresh("member"), **fields)


def _of_another(field: str, value: Any) -> Callable[[Any], None]:
    return lambda request: setattr(request, field, value)


def _assigned(groups: Groups, make: Maker) -> Message:
    region, _ = settle(groups)
    made: Message = _of_member(
        pb.AssignMemberRequest, scheme_id=make().scheme_id, location=at(region), entry_source="notice"
    )
    return made


def _joined(groups: Groups, make: Maker) -> Message:
    group, now = open_group(groups, make()), stamp(groups.now)
    made: Message = _of_member(pb.JoinGroupRequest, group_id=group.group_id, occur_time=now)
    return made


def _left(groups: Groups, make: Maker) -> Message:
    group, member = open_group(groups, make()), fresh("member")
    join(groups, member, group)
    about = {"member_id": member, "group_id": group.group_id, "occur_time": stamp(groups.now)}
    made: Message = _of_member(pb.LeaveGroupRequest, **about)
    return made


def _flash(groups: Groups, make: Maker) -> Message:
    sale = stamp(groups.now + timedelta(hours=1))
    made: Message = _request(pb.OpenFlashGroupRequest, scheme_id=make("FLASH").scheme_id, sale_time=sale)
    return made


def _reconciled(groups: Groups, make: Maker) -> Message:
    group = open_group(groups, make())
    about = {"group_id": group.group_id, "list_time": stamp(groups.now), "apply": True}
    made: Message = _request(pb.ReconcileGroupRequest, member_ids=[fresh("member")], **about)
    return made


def _tagged(member_id: str = "") -> Any:
    tags = [pb.NewTag(key="wish", value="tea")]
    return _of_member(pb.TagMemberRequest, member_id=member_id, tags=tags, source="crm")


def _untagged(groups: Groups) -> Message:
    member = fresh("member")
    tag(groups, member, wish="tea")
    made: Message = _of_member(pb.UntagMemberRequest, member_id=member, keys=["wish"])
    return made


def _closed(groups: Groups, make: Maker) -> Message:
    region, [site, _] = settle(groups, 0, 100)
    seat(groups, fresh("member"), make(), location=at(region))
    made: Message = _request(pb.CloseSiteRequest, site_id=site.site_id)
    return made


def _erased(groups: Groups) -> Message:
    member = fresh("member")
    tag(groups, member, wish="tea")
    made: Message = _of_member(pb.EraseMemberRequest, member_id=member)
    return made


WRITES = {
    "AssignMember": Repeated(_assigned, _of_another("entry_source", "another")),
    "JoinGroup": Repeated(_joined, _of_another("entry_source", "another")),
    "LeaveGroup": Repeated(_left, _of_another("removed", True)),
    "OpenGroup": Repeated(
        lambda _, make: _request(pb.OpenGroupRequest, scheme_id=make().scheme_id),
        _of_another("site_id", "another"),
    ),
    "OpenFlashGroup": Repeated(_flash, _of_another("scheme_id", "another")),
    "AttachChat": Repeated(
        lambda groups, make: _request(
            pb.AttachChatRequest, group_id=open_group(groups, make()).group_id, chat_id=fresh("chat")
        ),
        _of_another("entry_link", "another"),
    ),
    "DissolveGroup": Repeated(
        lambda groups, make: _request(pb.DissolveGroupRequest, group_id=open_group(groups, make()).group_id),
        _of_another("group_id", "grp_" + "1" * 32),
    ),
    "ReconcileGroup": Repeated(_reconciled, _of_another("apply", False)),
    "TagMember": Repeated(lambda _, __: _tagged(), _of_another("source", "another")),
    "UntagMember": Repeated(
        lambda groups, _: _untagged(groups), lambda request: request.keys.append("another")
    ),
    "PutSite": Repeated(
        lambda _, __: _request(pb.PutSiteRequest, site=a_site(a_region())),
        lambda request: setattr(request.site, "name", "another"),
    ),
    "BatchPutSites": Repeated(
        lambda _, __: _request(pb.BatchPutSitesRequest, sites=[a_site(a_region())]),
        lambda request: setattr(request.sites[0], "name", "another"),
    ),
    "CloseSite": Repeated(_closed, _of_another("site_id", "another")),
    "PutScheme": Repeated(
        lambda _, __: _request(pb.PutSchemeRequest, scheme=a_scheme(withdrawn=True)),
        lambda request: setattr(request.scheme, "capacity", 9),
    ),
    "PutProgramme": Repeated(
        lambda _, __: _request(pb.PutProgrammeRequest, programme=pb.Programme(horizon_days=400)),
        lambda request: request.programme.CopyFrom(a_programme()),
    ),
    "EraseMember": Repeated(
        lambda groups, _: _erased(groups),
        lambda _: None,  # it has nothing else
    ),
}
EACH_WRITE = pytest.mark.parametrize("name", WRITES)


def test_every_write_is_repeated_here() -> None:
    writes = {method.removeprefix(SERVICE) for method, row in METHODS.items() if row.scope != READ}
    # Two reads, a list of writes of others, and one that has no request_id.
    assert set(WRITES) == writes - {"ExportMember", "PreviewScheme", "BatchTag", "VerifyWecomCallback"}


@EACH_WRITE
def test_a_write_that_is_repeated_gets_the_first_answer_and_changes_nothing(
    groups: Groups, make: Maker, name: str
) -> None:
    request = WRITES[name].make(groups, make)
    first = call(groups, SERVICE + name, request)
    before = fingerprint(groups)
    again = call(groups, SERVICE + name, request)
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    assert fingerprint(groups) == before
    other = type(request)()
    other.CopyFrom(request)
    WRITES[name].other(other)
    if other != request:
        with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED") as refusal:
            call(groups, SERVICE + name, other)
        assert refusal.metadata == {"request_id": request.request_id}  # type: ignore[attr-defined]
        assert fingerprint(groups) == before


@EACH_WRITE
def test_a_write_that_is_sent_many_times_at_once_happens_once(groups: Groups, make: Maker, name: str) -> None:
    request = WRITES[name].make(groups, make)
    with ThreadPoolExecutor(ASKERS) as pool:
        answers = list(pool.map(lambda _: call(groups, SERVICE + name, request), range(ASKERS)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1


def test_a_request_id_is_its_members_and_no_methods(groups: Groups) -> None:
    request_id = fresh("request")
    one, other = fresh("member"), fresh("member")
    for member in (one, other):
        assert tag(groups, member, request_id, wish="tea").changes
    removed = pb.UntagMemberRequest(member_id=one, request_id=request_id, keys=["wish"])
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        groups.call(groups.groups.UntagMember, removed)


def test_a_refusal_is_not_remembered(groups: Groups, make: Maker) -> None:
    region, _ = settle(groups)
    scheme = make(threshold=[{"name": "fan", "expression": "tags.fan == 'yes'"}])
    member, request_id = fresh("member"), fresh("assign")
    asked = {"scheme_id": scheme.scheme_id, "location": at(region)}
    with refused(StatusCode.FAILED_PRECONDITION, "THRESHOLD_NOT_MET"):
        assign(groups, member, request_id, **asked)
    tag(groups, member, fan="yes")
    assert assign(groups, member, request_id, **asked).assignments


def test_what_is_only_checked_is_asked_again_in_earnest_under_the_same_name(groups: Groups) -> None:
    site, request_id = a_site(a_region()), fresh("put")
    for validate_only in (True, False):
        request = pb.PutSiteRequest(request_id=request_id, site=site, validate_only=validate_only)
        assert groups.call(groups.groups.PutSite, request).site_id == site.site_id
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        request.validate_only = True
        groups.call(groups.groups.PutSite, request)
