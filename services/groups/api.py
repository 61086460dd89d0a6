"""The gRPC edge: who may call what, and one transaction per call or gathered batch."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_service_pb2 as pb
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceServicer

from services.chassis import pagination
from services.chassis.auth import CALLER, Access, MemberAccess, authorise
from services.chassis.clock import Clock
from services.chassis.database import Connection, Database
from services.chassis.gather import MAX_BATCH
from services.chassis.ids import bucket
from services.chassis.requests import Operators
from services.chassis.timestamps import instant, instant_of, timestamp
from services.groups import closing, messages, opening, putting, rules, service, store
from services.groups.batches import Batches
from services.groups.chats import Chats
from services.groups.closing import Closing
from services.groups.commands import (
    AssignMember,
    Command,
    JoinGroup,
    LeaveGroup,
)
from services.groups.domain.profile import TIER, Ending, MembershipStatus, Profile
from services.groups.domain.schemes import SchemeKind
from services.groups.domain.seats import Group
from services.groups.errors import (
    GroupUnknown,
    MemberUnknown,
    ProgrammeUnknown,
    SchemeUnknown,
    SiteUnknown,
)
from services.groups.messages import SERVICE
from services.groups.messaging import Callback
from services.groups.nearby import Look, Nearby
from services.groups.service import Lore

Context = grpc.aio.ServicerContext[Any, Any]

Answer = TypeVar("Answer", bound=Message)

EXPORTED = 1_000  # memberships in an export
SHOWN = 10  # nearby groups, unless asked for more
TRIED = 1_000  # members that a preview looks at, unless asked for more
MOVES = 1_000  # groups of a site that is closed, in an answer

READ, WRITE, ADMIN = "groups.read", "groups.write", "groups.admin"
_OWN, _ACT = MemberAccess.READ, MemberAccess.ACT
TAG, UNTAG = f"{SERVICE}TagMember", f"{SERVICE}UntagMember"

# Who may call what. A member token reads its own, and asks for a seat; who came and who left, and what is
# known of a member, is told by the brand alone.
METHODS = {
    f"{SERVICE}ListNearbyGroups": Access(READ, _OWN),
    f"{SERVICE}AssignMember": Access(WRITE, _ACT),
    f"{SERVICE}JoinGroup": Access(WRITE),
    f"{SERVICE}LeaveGroup": Access(WRITE),
    f"{SERVICE}ListMemberGroups": Access(READ, _OWN),
    f"{SERVICE}ListGroupMembers": Access(READ),
    f"{SERVICE}GetGroup": Access(READ),
    f"{SERVICE}ListGroups": Access(READ),
    f"{SERVICE}OpenGroup": Access(ADMIN),
    f"{SERVICE}OpenFlashGroup": Access(ADMIN),
    f"{SERVICE}AttachChat": Access(WRITE),
    f"{SERVICE}DissolveGroup": Access(ADMIN),
    f"{SERVICE}ReconcileGroup": Access(WRITE),
    f"{SERVICE}VerifyWecomCallback": Access(WRITE),
    TAG: Access(WRITE),
    UNTAG: Access(WRITE),
    f"{SERVICE}BatchTag": Access(WRITE),
    f"{SERVICE}GetMemberTags": Access(READ, _OWN),
    f"{SERVICE}PreviewScheme": Access(ADMIN),
    f"{SERVICE}PutSite": Access(ADMIN),
    f"{SERVICE}BatchPutSites": Access(ADMIN),
    f"{SERVICE}CloseSite": Access(ADMIN),
    f"{SERVICE}GetSite": Access(READ),
    f"{SERVICE}ListSites": Access(READ),
    f"{SERVICE}PutScheme": Access(ADMIN),
    f"{SERVICE}GetScheme": Access(READ),
    f"{SERVICE}ListSchemes": Access(READ),
    f"{SERVICE}PutProgramme": Access(ADMIN),
    f"{SERVICE}GetProgramme": Access(READ),
    f"{SERVICE}ExportMember": Access(ADMIN),
    f"{SERVICE}EraseMember": Access(ADMIN),
}

_STATUSES = {number: status for status, number in messages.GROUP_STATUSES.items()}
_KINDS = {pb.SchemeKind.Value(f"SCHEME_KIND_{kind}"): kind for kind in SchemeKind}


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
        self._operators = Operators(database, clock, store.REQUESTS, SERVICE, batches.wake)

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
            location=messages.place(request),
            city=request.city,
            home_site_id=request.home_site_id,
        )
        return await self._nearby.looks.submit(Look(by, request.page_size or SHOWN))

    async def AssignMember(
        self, request: pb.AssignMemberRequest, context: Context
    ) -> pb.AssignMemberResponse:
        """See the contract."""
        return await self._write(pb.AssignMemberResponse, messages.assignment(request))

    async def JoinGroup(self, request: pb.JoinGroupRequest, context: Context) -> pb.JoinGroupResponse:
        """See the contract."""
        return await self._write(
            pb.JoinGroupResponse,
            JoinGroup(
                **messages.asked("JoinGroup", request),
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
                **messages.asked("LeaveGroup", request),
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
                membership=messages.kept_membership(row, kinds, now),
                group=messages.group(groups[row["group_id"]], kinds[row["scheme_id"]], now),
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
            question, rows, size, "member_id", lambda row: messages.kept_membership(row, kinds, now)
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
            lambda row: messages.group(store.to_group(row), kinds[row["scheme_id"]], now),
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

        return await self._operators.answer("OpenGroup", request, pb.Group, work)

    async def OpenFlashGroup(self, request: pb.OpenFlashGroupRequest, context: Context) -> pb.Group:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Group:
            opened = await opening.open_flash_group(
                connection,
                self._lore,
                now,
                scheme_id=request.scheme_id,
                sale_time=instant(request.sale_time),
                close_time=instant_of(request, "close_time"),
            )
            return await self._shown(connection, opened)

        return await self._operators.answer("OpenFlashGroup", request, pb.Group, work)

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

        return await self._operators.answer("AttachChat", request, pb.Group, work)

    async def DissolveGroup(self, request: pb.DissolveGroupRequest, context: Context) -> pb.Group:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Group:
            dissolved = await opening.dissolve_group(connection, self._lore, now, group_id=request.group_id)
            return await self._shown(connection, dissolved)

        return await self._operators.answer("DissolveGroup", request, pb.Group, work)

    async def ReconcileGroup(
        self, request: pb.ReconcileGroupRequest, context: Context
    ) -> pb.ReconcileGroupResponse:
        """See the contract."""

        async def work(connection: Connection, _now: datetime) -> pb.ReconcileGroupResponse:
            await _group(connection, request.group_id)
            return await _compare(connection, request)

        answer = await self._operators.answer("ReconcileGroup", request, pb.ReconcileGroupResponse, work)
        if request.apply:
            # The answer is kept first, and says what is to be done: a repeat does what is left of it.
            commands = list(messages.corrections(request, answer))
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
        return messages.group(group, kinds[group.scheme_id], self._clock.now())

    async def _kinds(self, connection: Connection) -> dict[str, SchemeKind]:
        """The kinds of all schemes, by id."""
        schemes = await self._lore.schemes(connection)
        return {scheme_id: compiled.scheme.kind for scheme_id, compiled in schemes.items()}

    # --- what is known of members ---------------------------------------------------------------------

    async def TagMember(self, request: pb.TagMemberRequest, context: Context) -> pb.TagChanges:
        """See the contract."""
        return await self._write(pb.TagChanges, messages.tagging(request, self._clock.now()))

    async def UntagMember(self, request: pb.UntagMemberRequest, context: Context) -> pb.TagChanges:
        """See the contract."""
        return await self._write(pb.TagChanges, messages.untagging(request))

    async def BatchTag(self, request: pb.BatchTagRequest, context: Context) -> pb.BatchTagResponse:
        """See the contract."""
        answers = await asyncio.gather(*map(self._tag_item, request.items), return_exceptions=True)
        return pb.BatchTagResponse(results=[messages.tag_result(answer) for answer in answers])

    async def _tag_item(self, item: pb.BatchTagItem) -> pb.TagChanges:
        tags = item.WhichOneof("command") == "tag"
        command = messages.tagging(item.tag, self._clock.now()) if tags else messages.untagging(item.untag)
        authorise(CALLER.get(), METHODS[TAG if tags else UNTAG], command.member_id)
        return await self._write(pb.TagChanges, command)

    async def GetMemberTags(self, request: pb.GetMemberTagsRequest, context: Context) -> pb.MemberTags:
        """See the contract."""
        async with self._database.read() as connection:
            profiles = await store.profiles(connection, [request.member_id])
            compiled = await self._lore.programme(connection)
        profile = profiles.get(request.member_id) or Profile(request.member_id, known=True)
        tags, facts = messages.known(profile, compiled, self._clock.now(), self._lore.terms.zone)
        return pb.MemberTags(
            member_id=request.member_id,
            tags=tags,
            facts=facts,
            tier=profile.facts.get(TIER, ""),
            cards=rules.cards_of(profile),
            city=rules.city_of(profile),
        )

    # --- sites ----------------------------------------------------------------------------------------

    async def PutSite(self, request: pb.PutSiteRequest, context: Context) -> pb.Site:
        """See the contract."""
        site = messages.sites([request.site], "site.location")[0]

        async def work(connection: Connection, now: datetime) -> pb.Site:
            await closing.put_sites(connection, self._lore, now, [site], CALLER.get().subject)
            return await _site(connection, site.site_id)

        return await self._operators.answer("PutSite", request, pb.Site, work, check=request.validate_only)

    async def BatchPutSites(
        self, request: pb.BatchPutSitesRequest, context: Context
    ) -> pb.BatchPutSitesResponse:
        """See the contract."""
        sites = messages.sites(request.sites, "sites[{}].location")

        async def work(connection: Connection, now: datetime) -> pb.BatchPutSitesResponse:
            put = await closing.put_sites(connection, self._lore, now, sites, CALLER.get().subject)
            return pb.BatchPutSitesResponse(added=put.added, changed=put.changed, unchanged=put.unchanged)

        return await self._operators.answer(
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

        return await self._operators.answer(
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
        sites, token = pagination.fill(question, rows, size, "site_id", messages.kept_site)
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

        return await self._operators.answer(
            "PutScheme", request, pb.Scheme, work, check=request.validate_only
        )

    async def GetScheme(self, request: pb.GetSchemeRequest, context: Context) -> pb.Scheme:
        """See the contract."""
        async with self._database.read() as connection:
            row = await store.scheme(connection, request.scheme_id, request.version or None)
        if row is None:
            raise SchemeUnknown(scheme_id=request.scheme_id)
        return messages.scheme(row)

    async def ListSchemes(self, request: pb.ListSchemesRequest, context: Context) -> pb.ListSchemesResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size, kind = pagination.page_size(request.page_size), _KINDS.get(request.kind)
        async with self._database.read() as connection:
            rows = await store.scheme_page(connection, kind, request.include_withdrawn, after, size + 1)
        schemes, token = pagination.fill(question, rows, size, "scheme_id", messages.scheme)
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

        return await self._operators.answer(
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
            orders, token = pagination.fill(question, rows, size, "order_id", messages.order)
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
            answer.memberships.add(membership=messages.kept_membership(row, kinds, now), cell=row["cell"])
        tags, facts = messages.known(profile, compiled, now, self._lore.terms.zone)
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

        return await self._operators.answer(
            "EraseMember", request, pb.EraseMemberResponse, work, scope=request.member_id
        )

    # --- writes ---------------------------------------------------------------------------------------

    async def _write(self, answer: type[Answer], command: Command) -> Answer:
        body = await self._batches.post(command)
        assert body is not None  # noqa: S101 - only events and sweeps are answered with nothing
        return answer.FromString(body)


# --- what is asked of the store -----------------------------------------------------------------------


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
    return messages.kept_site(rows[0])


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
