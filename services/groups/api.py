"""The gRPC edge: messages to commands, facts to messages, one transaction per call or gathered batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_service_pb2 as pb
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceServicer

from services.chassis import pagination
from services.chassis.asked import by_call, by_caller
from services.chassis.auth import CALLER, Access, MemberAccess, authorise
from services.chassis.clock import Clock, wall
from services.chassis.database import Connection, Database, Row, shielded
from services.chassis.errors import Internal, ServiceError, Violation
from services.chassis.gather import MAX_BATCH
from services.chassis.ids import bucket, own_request_id
from services.chassis.requests import payload_hash
from services.chassis.timestamps import instant, timestamp
from services.groups import closing, events, opening, putting, rules, service, store
from services.groups.batches import Batches
from services.groups.chats import Chats
from services.groups.closing import Closing
from services.groups.commands import (
    AssignMember,
    Command,
    JoinGroup,
    LeaveGroup,
    TagMember,
    UntagMember,
)
from services.groups.domain import coordinates
from services.groups.domain.coordinates import Datum, Fault, Point
from services.groups.domain.profile import TIER, Ending, MembershipStatus, Profile, Tag
from services.groups.domain.schemes import SchemeKind
from services.groups.domain.seats import Group
from services.groups.domain.sites import Site
from services.groups.errors import (
    GroupUnknown,
    LocationInvalid,
    MemberUnknown,
    ProgrammeUnknown,
    SchemeUnknown,
    SiteUnknown,
)
from services.groups.messaging import Callback
from services.groups.nearby import Look, Nearby
from services.groups.rules import CompiledProgramme
from services.groups.service import Lore

Context = grpc.aio.ServicerContext[Any, Any]

Answer = TypeVar("Answer", bound=Message)

EXPORTED = 1_000  # memberships in an export
SHOWN = 10  # nearby groups, unless asked for more
TRIED = 1_000  # members that a preview looks at, unless asked for more
MOVES = 1_000  # groups of a site that is closed, in an answer

READ, WRITE, ADMIN = "groups.read", "groups.write", "groups.admin"
_GROUPS = "/loyalty.groups.v1.GroupsService/"
_OWN, _ACT = MemberAccess.READ, MemberAccess.ACT
TAG, UNTAG = f"{_GROUPS}TagMember", f"{_GROUPS}UntagMember"

# Who may call what. A member token reads its own, and asks for a seat; who came and who left, and what is
# known of a member, is told by the brand alone.
METHODS = {
    f"{_GROUPS}ListNearbyGroups": Access(READ, _OWN),
    f"{_GROUPS}AssignMember": Access(WRITE, _ACT),
    f"{_GROUPS}JoinGroup": Access(WRITE),
    f"{_GROUPS}LeaveGroup": Access(WRITE),
    f"{_GROUPS}ListMemberGroups": Access(READ, _OWN),
    f"{_GROUPS}ListGroupMembers": Access(READ),
    f"{_GROUPS}GetGroup": Access(READ),
    f"{_GROUPS}ListGroups": Access(READ),
    f"{_GROUPS}OpenGroup": Access(ADMIN),
    f"{_GROUPS}OpenFlashGroup": Access(ADMIN),
    f"{_GROUPS}AttachChat": Access(WRITE),
    f"{_GROUPS}DissolveGroup": Access(ADMIN),
    f"{_GROUPS}ReconcileGroup": Access(WRITE),
    f"{_GROUPS}VerifyWecomCallback": Access(WRITE),
    TAG: Access(WRITE),
    UNTAG: Access(WRITE),
    f"{_GROUPS}BatchTag": Access(WRITE),
    f"{_GROUPS}GetMemberTags": Access(READ, _OWN),
    f"{_GROUPS}PreviewScheme": Access(ADMIN),
    f"{_GROUPS}PutSite": Access(ADMIN),
    f"{_GROUPS}BatchPutSites": Access(ADMIN),
    f"{_GROUPS}CloseSite": Access(ADMIN),
    f"{_GROUPS}GetSite": Access(READ),
    f"{_GROUPS}ListSites": Access(READ),
    f"{_GROUPS}PutScheme": Access(ADMIN),
    f"{_GROUPS}GetScheme": Access(READ),
    f"{_GROUPS}ListSchemes": Access(READ),
    f"{_GROUPS}PutProgramme": Access(ADMIN),
    f"{_GROUPS}GetProgramme": Access(READ),
    f"{_GROUPS}ExportMember": Access(ADMIN),
    f"{_GROUPS}EraseMember": Access(ADMIN),
}

_DATUMS = {pb.Datum.Value(f"DATUM_{datum}"): datum for datum in Datum}
_STATUSES = {number: status for status, number in events.GROUP_STATUSES.items()}
_KINDS = {pb.SchemeKind.Value(f"SCHEME_KIND_{kind}"): kind for kind in SchemeKind}
_FAULTS = {
    Fault.NOT_A_NUMBER: "is not a number of degrees",
    Fault.ZERO: "is (0, 0), which devices say that do not know",
    Fault.SWAPPED: "has latitude and longitude exchanged",
    Fault.OUT_OF_RANGE: "is beyond 90 degrees of latitude, or 180 of longitude",
}


class _Checked(Exception):
    """What was only to be checked is done, and taken back; carries what it would have been answered with."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


class GroupsApi(GroupsServiceServicer):
    """loyalty.groups.v1.GroupsService."""

    def __init__(
        self, database: Database, clock: Clock, lore: Lore, batches: Batches, *, nearby: Nearby, chats: Chats
    ) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self._batches = batches
        self._nearby = nearby
        self._chats = chats

    # --- a member's groups ----------------------------------------------------------------------------

    async def ListNearbyGroups(
        self, request: pb.ListNearbyGroupsRequest, context: Context
    ) -> pb.ListNearbyGroupsResponse:
        """See the contract."""
        by = AssignMember(
            member_id=request.member_id,
            request_id="",
            payload_hash=b"",
            actor="",
            scheme_id=request.scheme_id,
            location=_place(request),
            city=request.city,
            home_site_id=request.home_site_id,
        )
        return await self._nearby.looks.submit(Look(by, request.page_size or SHOWN))

    async def AssignMember(
        self, request: pb.AssignMemberRequest, context: Context
    ) -> pb.AssignMemberResponse:
        """See the contract."""
        return await self._write(pb.AssignMemberResponse, _assignment(request))

    async def JoinGroup(self, request: pb.JoinGroupRequest, context: Context) -> pb.JoinGroupResponse:
        """See the contract."""
        return await self._write(
            pb.JoinGroupResponse,
            JoinGroup(
                **_common("JoinGroup", request),
                group_id=request.group_id,
                occur_time=instant(request.occur_time),
                entry_source=request.entry_source,
            ),
        )

    async def LeaveGroup(self, request: pb.LeaveGroupRequest, context: Context) -> pb.LeaveGroupResponse:
        """See the contract."""
        return await self._write(
            pb.LeaveGroupResponse,
            LeaveGroup(
                **_common("LeaveGroup", request),
                group_id=request.group_id,
                occur_time=instant(request.occur_time),
                ending=Ending.REMOVED if request.removed else Ending.LEFT,
            ),
        )

    async def ListMemberGroups(
        self, request: pb.ListMemberGroupsRequest, context: Context
    ) -> pb.ListMemberGroupsResponse:
        """See the contract."""
        question = pagination.question(request)
        before = pagination.read_name(question, request.page_token)
        size, now = pagination.page_size(request.page_size), self._clock.now()
        async with self._database.read() as connection:
            rows = await store.membership_page(
                connection,
                request.member_id,
                ended=request.include_ended,
                before=before,
                most=size + 1,
                at=now,
            )
            groups = await store.groups(connection, {row["group_id"] for row in rows})
            kinds = await self._kinds(connection)
        found, token = pagination.fill(
            question,
            rows,
            size,
            "membership_id",
            lambda row: pb.MemberGroup(
                membership=_membership(row, kinds, now),
                group=events.group(groups[row["group_id"]], kinds[row["scheme_id"]], now),
            ),
        )
        return pb.ListMemberGroupsResponse(groups=found, next_page_token=token)

    # --- groups ---------------------------------------------------------------------------------------

    async def ListGroupMembers(
        self, request: pb.ListGroupMembersRequest, context: Context
    ) -> pb.ListGroupMembersResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size, now = pagination.page_size(request.page_size), self._clock.now()
        async with self._database.read() as connection:
            await _group(connection, request.group_id)
            rows = await store.group_members(connection, request.group_id, _key(after), size + 1, now)
            kinds = await self._kinds(connection)
        found, token = pagination.fill(
            question, rows, size, "member_id", lambda row: _membership(row, kinds, now)
        )
        return pb.ListGroupMembersResponse(memberships=found, next_page_token=token)

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.Group:
        """See the contract."""
        async with self._database.read() as connection:
            found = await _group(connection, request.group_id)
            return await self._shown(connection, found)

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size, now = pagination.page_size(request.page_size), self._clock.now()
        async with self._database.read() as connection:
            rows = await store.group_page(
                connection,
                scheme_id=request.scheme_id or None,
                site_id=request.site_id or None,
                status=_STATUSES.get(request.status),
                chat_id=request.chat_id or None,
                after=after,
                most=size + 1,
                at=now,
            )
            kinds = await self._kinds(connection)
        groups, token = pagination.fill(
            question,
            rows,
            size,
            "group_id",
            lambda row: events.group(store.to_group(row), kinds[row["scheme_id"]], now),
        )
        return pb.ListGroupsResponse(groups=groups, next_page_token=token)

    async def OpenGroup(self, request: pb.OpenGroupRequest, context: Context) -> pb.Group:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Group:
            opened = await opening.open_group(
                connection,
                self._lore,
                now,
                scheme_id=request.scheme_id,
                site_id=request.site_id,
                segment_id=request.segment_id,
                inviter_id=request.inviter_id,
            )
            return await self._shown(connection, opened)

        return await self._administer("OpenGroup", request, pb.Group, work)

    async def OpenFlashGroup(self, request: pb.OpenFlashGroupRequest, context: Context) -> pb.Group:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Group:
            opened = await opening.open_flash_group(
                connection,
                self._lore,
                now,
                scheme_id=request.scheme_id,
                sale_time=instant(request.sale_time),
                close_time=instant(request.close_time) if request.HasField("close_time") else None,
            )
            return await self._shown(connection, opened)

        return await self._administer("OpenFlashGroup", request, pb.Group, work)

    async def AttachChat(self, request: pb.AttachChatRequest, context: Context) -> pb.Group:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Group:
            attached = await opening.attach_chat(
                connection,
                self._lore,
                now,
                group_id=request.group_id,
                chat_id=request.chat_id,
                entry_link=request.entry_link,
            )
            return await self._shown(connection, attached)

        return await self._administer("AttachChat", request, pb.Group, work)

    async def DissolveGroup(self, request: pb.DissolveGroupRequest, context: Context) -> pb.Group:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Group:
            dissolved = await opening.dissolve_group(connection, self._lore, now, group_id=request.group_id)
            return await self._shown(connection, dissolved)

        return await self._administer("DissolveGroup", request, pb.Group, work)

    async def ReconcileGroup(
        self, request: pb.ReconcileGroupRequest, context: Context
    ) -> pb.ReconcileGroupResponse:
        """See the contract."""

        async def work(connection: Connection, _now: datetime) -> pb.ReconcileGroupResponse:
            await _group(connection, request.group_id)
            return await _compare(connection, request)

        answer = await self._administer("ReconcileGroup", request, pb.ReconcileGroupResponse, work)
        if request.apply:
            # The answer is kept first, and says what is to be done: a repeat does what is left of it.
            commands = list(_corrections(request, answer))
            for start in range(0, len(commands), MAX_BATCH):
                await asyncio.gather(*map(self._batches.post, commands[start : start + MAX_BATCH]))
        return answer

    async def VerifyWecomCallback(
        self, request: pb.VerifyWecomCallbackRequest, context: Context
    ) -> pb.VerifyWecomCallbackResponse:
        """See the contract."""
        sealed_by = request.msg_signature, request.timestamp, request.nonce
        if request.HasField("echostr"):
            return pb.VerifyWecomCallbackResponse(echo=self._chats.echo(*sealed_by, request.echostr))
        return await self._chats.tell(Callback(*sealed_by, request.body), request.member_ids)

    async def _shown(self, connection: Connection, group: Group) -> pb.Group:
        kinds = await self._kinds(connection)
        return events.group(group, kinds[group.scheme_id], self._clock.now())

    async def _kinds(self, connection: Connection) -> dict[str, SchemeKind]:
        """The kinds of all schemes, by id."""
        schemes = await self._lore.schemes(connection)
        return {scheme_id: compiled.scheme.kind for scheme_id, compiled in schemes.items()}

    # --- what is known of members ---------------------------------------------------------------------

    async def TagMember(self, request: pb.TagMemberRequest, context: Context) -> pb.TagChanges:
        """See the contract."""
        return await self._write(pb.TagChanges, _tag(request, self._clock.now()))

    async def UntagMember(self, request: pb.UntagMemberRequest, context: Context) -> pb.TagChanges:
        """See the contract."""
        return await self._write(pb.TagChanges, _untag(request))

    async def BatchTag(self, request: pb.BatchTagRequest, context: Context) -> pb.BatchTagResponse:
        """See the contract."""
        answers = await asyncio.gather(*map(self._tag_item, request.items), return_exceptions=True)
        return pb.BatchTagResponse(results=[_result(answer) for answer in answers])

    async def _tag_item(self, item: pb.BatchTagItem) -> pb.TagChanges:
        tags = item.WhichOneof("command") == "tag"
        command = _tag(item.tag, self._clock.now()) if tags else _untag(item.untag)
        authorise(CALLER.get(), METHODS[TAG if tags else UNTAG], command.member_id)
        return await self._write(pb.TagChanges, command)

    async def GetMemberTags(self, request: pb.GetMemberTagsRequest, context: Context) -> pb.MemberTags:
        """See the contract."""
        async with self._database.read() as connection:
            profiles = await store.profiles(connection, [request.member_id])
            compiled = await self._lore.programme(connection)
        profile = profiles.get(request.member_id) or Profile(request.member_id, known=True)
        tags, facts = self._known(profile, compiled)
        return pb.MemberTags(
            member_id=request.member_id,
            tags=tags,
            facts=facts,
            tier=profile.facts.get(TIER, ""),
            cards=rules.cards_of(profile),
            city=rules.city_of(profile),
        )

    def _known(self, profile: Profile, compiled: CompiledProgramme) -> tuple[list[pb.Tag], pb.Facts]:
        """Tags by key, and facts, as of now: where time has changed them, as they are by that."""
        now, zone = self._clock.now(), self._lore.terms.zone
        tags = {key: tag for key, tag in profile.tags.items() if tag.holds(now)}
        if profile.evaluate_time is not None and profile.evaluate_time <= now:
            known = rules.known(profile, compiled.programme, now, zone)
            tags = compiled.tags_of(profile, known, now)
        facts = rules.facts_of(profile, compiled.programme, now, zone)
        return [events.tag(tag) for _, tag in sorted(tags.items())], rules.facts_message(facts)

    # --- sites ----------------------------------------------------------------------------------------

    async def PutSite(self, request: pb.PutSiteRequest, context: Context) -> pb.Site:
        """See the contract."""
        site = _sites([request.site], "site.location")[0]

        async def work(connection: Connection, now: datetime) -> pb.Site:
            await closing.put_sites(connection, self._lore, now, [site], CALLER.get().subject)
            return await _site(connection, site.site_id)

        return await self._administer("PutSite", request, pb.Site, work, check=request.validate_only)

    async def BatchPutSites(
        self, request: pb.BatchPutSitesRequest, context: Context
    ) -> pb.BatchPutSitesResponse:
        """See the contract."""
        sites = _sites(request.sites, "sites[{}].location")

        async def work(connection: Connection, now: datetime) -> pb.BatchPutSitesResponse:
            put = await closing.put_sites(connection, self._lore, now, sites, CALLER.get().subject)
            return pb.BatchPutSitesResponse(added=put.added, changed=put.changed, unchanged=put.unchanged)

        return await self._administer(
            "BatchPutSites", request, pb.BatchPutSitesResponse, work, check=request.validate_only
        )

    async def CloseSite(self, request: pb.CloseSiteRequest, context: Context) -> pb.CloseSiteResponse:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.CloseSiteResponse:
            if not request.validate_only:
                await closing.close_site(connection, self._lore, now, request.site_id, CALLER.get().subject)
            # What others must not know before it is committed is looked up in a lore that nobody keeps.
            found = await closing.closing(connection, Lore(self._lore.terms), now, request.site_id)
            return _closing(found, await _site(connection, request.site_id))

        return await self._administer(
            "CloseSite", request, pb.CloseSiteResponse, work, check=request.validate_only
        )

    async def GetSite(self, request: pb.GetSiteRequest, context: Context) -> pb.Site:
        """See the contract."""
        async with self._database.read() as connection:
            return await _site(connection, request.site_id)

    async def ListSites(self, request: pb.ListSitesRequest, context: Context) -> pb.ListSitesResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size = pagination.page_size(request.page_size)
        async with self._database.read() as connection:
            rows = await store.site_page(
                connection, request.city or None, request.include_closed, after, size + 1
            )
        sites, token = pagination.fill(question, rows, size, "site_id", _shown_site)
        return pb.ListSitesResponse(sites=sites, next_page_token=token)

    # --- schemes and the programme --------------------------------------------------------------------

    async def PutScheme(self, request: pb.PutSchemeRequest, context: Context) -> pb.Scheme:
        """See the contract."""
        put = rules.compile_scheme(request.scheme)

        async def work(connection: Connection, now: datetime) -> pb.Scheme:
            caller = CALLER.get().subject
            return await putting.put_scheme(
                connection, self._lore, now, put, message=request.scheme, author=caller
            )

        return await self._administer("PutScheme", request, pb.Scheme, work, check=request.validate_only)

    async def GetScheme(self, request: pb.GetSchemeRequest, context: Context) -> pb.Scheme:
        """See the contract."""
        async with self._database.read() as connection:
            row = await store.scheme(connection, request.scheme_id, request.version or None)
        if row is None:
            raise SchemeUnknown(scheme_id=request.scheme_id)
        return _shown_scheme(row)

    async def ListSchemes(self, request: pb.ListSchemesRequest, context: Context) -> pb.ListSchemesResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size, kind = pagination.page_size(request.page_size), _KINDS.get(request.kind)
        async with self._database.read() as connection:
            rows = await store.scheme_page(connection, kind, request.include_withdrawn, after, size + 1)
        schemes, token = pagination.fill(question, rows, size, "scheme_id", _shown_scheme)
        return pb.ListSchemesResponse(schemes=schemes, next_page_token=token)

    async def PreviewScheme(
        self, request: pb.PreviewSchemeRequest, context: Context
    ) -> pb.PreviewSchemeResponse:
        """See the contract."""
        tried = rules.compile_scheme(request.scheme)
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size = request.page_size or TRIED
        async with self._database.read() as connection:
            keys = await store.member_page(connection, _key(after), size + 1)
            members = [member_id for _, member_id in keys[:size]]
            found = await putting.preview(connection, self._lore, self._clock.now(), tried, members)
        return pb.PreviewSchemeResponse(
            looked_at=found.looked_at,
            in_audience=found.in_audience,
            meet_threshold=found.meet_threshold,
            segments=[
                pb.SegmentCount(segment_id=one.segment_id, members=found.segments[one.segment_id])
                for one in tried.scheme.segments
            ],
            in_no_segment=found.in_no_segment,
            failed=found.failed,
            next_page_token=pagination.make_token(question, members[-1]) if len(keys) > size else "",
        )

    async def PutProgramme(self, request: pb.PutProgrammeRequest, context: Context) -> pb.Programme:
        """See the contract."""
        rules.compile_programme(request.programme)

        async def work(connection: Connection, now: datetime) -> pb.Programme:
            return await putting.put_programme(connection, now, request.programme, CALLER.get().subject)

        return await self._administer(
            "PutProgramme", request, pb.Programme, work, check=request.validate_only
        )

    async def GetProgramme(self, request: pb.GetProgrammeRequest, context: Context) -> pb.Programme:
        """See the contract."""
        async with self._database.read() as connection:
            row = await store.programme(connection, request.version or None)
        if row is None:
            raise ProgrammeUnknown
        return pb.Programme.FromString(row["body"])

    # --- a member's data ------------------------------------------------------------------------------

    async def ExportMember(
        self, request: pb.ExportMemberRequest, context: Context
    ) -> pb.ExportMemberResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size, member_id = pagination.page_size(request.page_size), request.member_id
        async with self._database.read() as connection:
            profile = (await store.profiles(connection, [member_id])).get(member_id)
            if profile is None:
                raise MemberUnknown(member_id=member_id)
            rows = await store.order_page(connection, member_id, after, size + 1)
            orders, token = pagination.fill(question, rows, size, "order_id", _exported)
            answer = pb.ExportMemberResponse(orders=orders, told=profile.facts, next_page_token=token)
            if after is None:
                await self._export_first(connection, profile, answer)
        return answer

    async def _export_first(
        self, connection: Connection, profile: Profile, answer: pb.ExportMemberResponse
    ) -> None:
        """Adds what the first page has beside orders."""
        now, compiled = self._clock.now(), await self._lore.programme(connection)
        rows = await store.membership_page(connection, profile.member_id, True, None, EXPORTED)
        kinds = await self._kinds(connection)
        for row in rows:
            answer.memberships.add(membership=_membership(row, kinds, now), cell=row["cell"])
        tags, facts = self._known(profile, compiled)
        answer.tags.extend(tags)
        answer.facts.CopyFrom(facts)
        if profile.offer_time is not None:
            answer.offer_time.CopyFrom(timestamp(profile.offer_time))

    async def EraseMember(self, request: pb.EraseMemberRequest, context: Context) -> pb.EraseMemberResponse:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.EraseMemberResponse:
            erased = await service.erase(connection, request.member_id, now)
            return pb.EraseMemberResponse(
                erase_time=timestamp(now),
                tags=erased.tags,
                orders=erased.orders,
                facts=erased.facts,
                cells=erased.cells,
                events=erased.events,
            )

        return await self._administer(
            "EraseMember", request, pb.EraseMemberResponse, work, scope=request.member_id
        )

    # --- writes ---------------------------------------------------------------------------------------

    async def _write(self, answer: type[Answer], command: Command) -> Answer:
        body = await self._batches.post(command)
        assert body is not None  # noqa: S101 - only events and sweeps are answered with nothing
        return answer.FromString(body)

    async def _administer(
        self,
        method: str,
        request: Any,
        kind: type[Answer],
        work: Callable[[Connection, datetime], Awaitable[Answer]],
        *,
        scope: str = "",
        check: bool = False,
    ) -> Answer:
        """The first answer to a request of the caller, or of what `scope` names; `check` takes all back."""
        payload, scope = payload_hash(_GROUPS + method, request), scope or CALLER.get().subject

        async def once() -> Answer:
            async with self._database.begin() as connection:
                first = await store.REQUESTS.find(connection, scope, request.request_id, payload)
                if first is not None:
                    return kind.FromString(first)
                answer = await work(connection, self._clock.now())
                if check:
                    raise _Checked(answer)
                body = answer.SerializeToString(deterministic=True)
                await store.REQUESTS.keep(
                    connection, scope, request.request_id, payload, answer=body, at=wall()
                )
            self._batches.wake()
            return answer

        try:
            return await shielded(once)
        except _Checked as checked:
            answer: Answer = checked.answer
            return answer


# --- messages to commands -----------------------------------------------------------------------------


def _common(method: str, request: Any) -> dict[str, Any]:
    return by_call(_GROUPS + method, request)


def _assignment(request: pb.AssignMemberRequest) -> AssignMember:
    """Of a location the payload's hash has the cell: a repeat's is another, and a hash can be guessed."""
    location, method, hashed = _place(request), "AssignMember", pb.AssignMemberRequest()
    hashed.CopyFrom(request)
    if location is not None:
        hashed.ClearField("location")
        method = f"AssignMember {coordinates.coarse_cell(location)}"
    return AssignMember(
        **_common(method, hashed),
        scheme_id=request.scheme_id,
        chosen_group_id=request.chosen_group_id,
        location=location,
        city=request.city,
        home_site_id=request.home_site_id,
        inviter_id=request.inviter_id,
        entry_source=request.entry_source,
    )


def _tag(request: pb.TagMemberRequest, now: datetime) -> TagMember:
    tags = (
        Tag(
            key=tag.key,
            value=tag.value,
            source=request.source,
            expire_time=instant(tag.expire_time) if tag.HasField("expire_time") else None,
            set_time=now,
        )
        for tag in request.tags
    )
    return TagMember(**_common("TagMember", request), tags=tuple(tags))


def _untag(request: pb.UntagMemberRequest) -> UntagMember:
    return UntagMember(**_common("UntagMember", request), keys=tuple(request.keys))


def _place(request: pb.AssignMemberRequest | pb.ListNearbyGroupsRequest) -> Point | None:
    """The place of a request by WGS84. Raises LocationInvalid."""
    if not request.HasField("location"):
        return None
    fault = _fault(request.location)
    if fault is not None:
        raise LocationInvalid(violations=[Violation("location", _FAULTS[fault])])
    return _point(request.location)


def _fault(location: pb.Location) -> Fault | None:
    return coordinates.fault(location.latitude, location.longitude)


def _point(location: pb.Location) -> Point:
    shown = Point(location.latitude, location.longitude)
    return coordinates.to_wgs84(shown, _DATUMS[location.datum])


def _sites(messages: Sequence[pb.Site], path: str) -> list[Site]:
    """Sites as they are put. Raises LocationInvalid with every fault; `path` is a location's, by number."""
    faults = {number: _fault(message.location) for number, message in enumerate(messages)}
    violations = [
        Violation(path.format(number), _FAULTS[fault])
        for number, fault in faults.items()
        if fault is not None
    ]
    if violations:
        raise LocationInvalid(violations=violations)
    return [
        Site(
            site_id=message.site_id,
            name=message.name,
            city=message.city,
            point=_point(message.location),
            priority=message.priority,
            open=not message.closed,
        )
        for message in messages
    ]


def _corrections(
    request: pb.ReconcileGroupRequest, found: pb.ReconcileGroupResponse
) -> Iterable[JoinGroup | LeaveGroup]:
    """What makes our list like the platform's, each named after the request, so that it is done once."""
    occur_time, caller = instant(request.list_time), CALLER.get().subject

    def about(member_id: str) -> dict[str, Any]:
        named = own_request_id("reconciled", caller, request.request_id, member_id)
        common = {"member_id": member_id, "request_id": named, "payload_hash": b"", **by_caller()}
        return {**common, "group_id": request.group_id, "occur_time": occur_time}

    for member_id in found.missing:
        yield LeaveGroup(**about(member_id), ending=Ending.RECONCILED)
    for member_id in (*found.unknown, *found.arrived):
        yield JoinGroup(**about(member_id))


# --- facts to messages --------------------------------------------------------------------------------


async def _group(connection: Connection, group_id: str) -> Group:
    found = (await store.groups(connection, [group_id])).get(group_id)
    if found is None:
        raise GroupUnknown(group_id=group_id)
    return found


async def _compare(connection: Connection, request: pb.ReconcileGroupRequest) -> pb.ReconcileGroupResponse:
    """Where the platform's list of a group's members and ours differ."""
    theirs = set(request.member_ids)
    ours: dict[str, str] = {}
    after = store.BEFORE_ALL
    while rows := await store.group_members(connection, request.group_id, after, EXPORTED):
        ours |= {row["member_id"]: row["status"] for row in rows}
        after = (rows[-1]["bucket"], rows[-1]["member_id"])
    joined = {member_id for member_id, status in ours.items() if status == MembershipStatus.JOINED}
    return pb.ReconcileGroupResponse(
        missing=sorted(joined - theirs),
        unknown=sorted(theirs - ours.keys()),
        arrived=sorted(theirs & (ours.keys() - joined)),
    )


async def _site(connection: Connection, site_id: str) -> pb.Site:
    rows = await store.sites(connection, [site_id])
    if not rows:
        raise SiteUnknown(site_id=site_id)
    return _shown_site(rows[0])


def _shown_site(row: Row) -> pb.Site:
    return events.site(store.to_site(row), row["update_time"])


def _shown_scheme(row: Row) -> pb.Scheme:
    return pb.Scheme.FromString(row["body"])


def _membership(row: Row, kinds: dict[str, SchemeKind], now: datetime) -> pb.Membership:
    return events.membership(row["member_id"], store.to_membership(row), kinds[row["scheme_id"]], now)


def _key(member_id: str | None) -> store.MemberKey:
    """Where a page over members goes on."""
    return store.BEFORE_ALL if member_id is None else (bucket(member_id), member_id)


def _closing(found: Closing, site: pb.Site) -> pb.CloseSiteResponse:
    site.closed = True
    moves = [
        pb.GroupMove(
            group_id=one.group.group_id,
            scheme_id=one.group.scheme_id,
            members=one.group.members,
            next_site_id=one.to.series[1] if one.to is not None else "",
            next_group_id=one.to_group.group_id if one.to_group is not None else "",
            distance_m=one.to.distance_m if one.to is not None else 0,
            blocked=one.blocked,
        )
        for one in found.leaving[:MOVES]
    ]
    return pb.CloseSiteResponse(site=site, moves=moves, members=found.members, local_days=found.local_days)


def _exported(row: Row) -> pb.ExportedOrder:
    order = store.to_order(row)
    purchase = order.purchase
    return pb.ExportedOrder(
        order_id=order.order_id,
        store_id=order.store_id,
        paid_time=timestamp(order.paid_time) if order.paid_time is not None else None,
        amount_minor=order.amount_minor,
        refunded_minor=purchase.refunded_minor if purchase is not None else 0,
    )


def _result(answer: pb.TagChanges | BaseException) -> pb.BatchTagResult:
    if isinstance(answer, pb.TagChanges):
        return pb.BatchTagResult(changes=answer)
    if not isinstance(answer, ServiceError) or isinstance(answer, Internal):
        raise answer  # a defect is not an answer
    error = pb.BatchTagError(
        code=answer.kind.value, reason=answer.reason, message=answer.message, metadata=answer.metadata
    )
    return pb.BatchTagResult(error=error)
