"""Chats of a messaging platform: what it tells of them becomes facts, and what groups lack is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.auth import CALLER
from services.chassis.clock import Clock
from services.chassis.database import Connection, Database
from services.chassis.gather import MAX_BATCH
from services.chassis.ids import own_request_id
from services.chassis.jobs import Job, Lease
from services.chassis.telemetry import TRACEPARENT
from services.groups import messages, opening, store
from services.groups.batches import Batches
from services.groups.commands import JoinGroup, LeaveGroup
from services.groups.domain.profile import Ending
from services.groups.domain.schemes import Overflow, Scheme, SchemeKind
from services.groups.domain.seats import Group
from services.groups.errors import GroupDissolved, PlatformRefused, PlatformUnavailable
from services.groups.messaging import Callback, Chat, ChatChange, Closed, Contact, Messaging, Told
from services.groups.service import Lore

LINKED = 32  # groups whose links are asked for in a step
LINK_EVERY = 30.0  # seconds

_CHANGES = {change: pb.ChatChange.Value(f"CHAT_CHANGE_{change}") for change in ChatChange}

log = structlog.get_logger()


class Chats:
    """The chats of one platform."""

    def __init__(
        self, database: Database, clock: Clock, lore: Lore, batches: Batches, messaging: Messaging
    ) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self._batches = batches
        self._messaging = messaging
        self._linked_after = ""

    def jobs(self) -> list[Job]:
        """Claimed by one replica at a time; none where no platform is set up."""
        return [] if isinstance(self._messaging, Closed) else [Job("link", LINK_EVERY, self._link_some)]

    # --- what the platform tells ----------------------------------------------------------------------

    def echo(self, signature: str, timestamp: str, nonce: str, sealed: str) -> str:
        """What to answer to a platform that checks where it calls. Raises CallbackRefused."""
        return self._messaging.echo(signature, timestamp, nonce, sealed)

    async def tell(self, callback: Callback, member_ids: Mapping[str, str]) -> pb.VerifyWecomCallbackResponse:
        """Does what a callback tells. `member_ids` are members by the platform's ids of either kind.

        Raises CallbackRefused, PlatformUnavailable, PlatformRefused.
        """
        told = self._messaging.read(callback)
        if told is None:
            return pb.VerifyWecomCallbackResponse()
        answer = pb.VerifyWecomCallbackResponse(change=_CHANGES[told.change], chat_id=told.chat_id)
        group, chat = await self._group(told)
        if group is None:
            return answer
        if told.change is ChatChange.DISMISSED:
            await self._dissolve(group)
        facts: list[JoinGroup | LeaveGroup] = []
        for one in await self._people(told, member_ids, chat):
            member_id = member_ids.get(one.contact_id) or member_ids.get(one.union_id)
            if member_id is None:
                answer.unknown.add(external_userid=one.contact_id, unionid=one.union_id)
            else:
                answer.member_ids.append(member_id)
                facts.append(_fact(told, group, one, member_id))
        for start in range(0, len(facts), MAX_BATCH):
            await asyncio.gather(*map(self._batches.post, facts[start : start + MAX_BATCH]))
        async with self._database.read() as connection:
            answer.group.CopyFrom(await self._shown(connection, group.group_id))
        return answer

    async def _group(self, told: Told) -> tuple[Group | None, Chat | None]:
        """The group that a chat is, or becomes now; and the chat, if the platform had to be asked for it."""
        async with self._database.read() as connection:
            group = await store.group_of_chat(connection, told.chat_id)
        if group is not None or told.change not in (ChatChange.NAMED, ChatChange.CAME):
            return group, None
        chat = await self._messaging.chat(told.chat_id)
        return await self._attach(chat), chat

    async def _attach(self, chat: Chat) -> Group | None:
        """The group that a chat becomes: the only one of its name that has no chat."""
        try:
            async with self._database.begin() as connection:
                waiting = await store.groups_without_chat(connection, chat.name, 2)
                if len(waiting) != 1:
                    return None
                group = await opening.attach_chat(
                    connection,
                    self._lore,
                    self._clock.now(),
                    group_id=waiting[0].group_id,
                    chat_id=chat.chat_id,
                    keep=True,
                )
        except GroupDissolved:
            return None
        if group.chat_id != chat.chat_id:  # another one was faster
            return None
        log.info("chat_attached", group_id=group.group_id, chat_id=chat.chat_id)
        return group

    async def _people(self, told: Told, member_ids: Mapping[str, str], chat: Chat | None) -> list[Contact]:
        """Whom a callback is about: of a chat that got its name everybody who is in it.

        The platform is asked for the other ids of people whom one of their ids does not make known. It does
        not tell them of somebody who left.
        """
        people = [
            Contact(contact_id=contact_id, union_id="", join_time=told.occur_time)
            for contact_id in told.contact_ids
        ]
        named = told.change is ChatChange.NAMED
        asked = told.change is ChatChange.CAME and any(one.contact_id not in member_ids for one in people)
        if not named and not asked:
            return people
        chat = chat or await self._messaging.chat(told.chat_id)
        if named:
            return list(chat.contacts)
        union_ids = {one.contact_id: one.union_id for one in chat.contacts}
        return [
            Contact(
                contact_id=one.contact_id,
                union_id=union_ids.get(one.contact_id, ""),
                join_time=one.join_time,
            )
            for one in people
        ]

    async def _dissolve(self, group: Group) -> None:
        async with self._database.begin() as connection:
            await opening.dissolve_group(connection, self._lore, self._clock.now(), group_id=group.group_id)
        self._batches.wake()

    async def _shown(self, connection: Connection, group_id: str) -> pb.Group:
        group = (await store.groups(connection, [group_id]))[group_id]
        scheme = await self._scheme(connection, group)
        return messages.group(group, scheme.kind, self._clock.now())

    async def _scheme(self, connection: Connection, group: Group) -> Scheme:
        return (await self._lore.schemes(connection))[group.scheme_id].scheme

    # --- what groups ask of it ------------------------------------------------------------------------

    async def _link_some(self, _lease: Lease) -> bool:
        """Asks for links of groups whose chat is known, and notes them; says whether more groups wait.

        A link that was made but not noted is made once more: WeCom has room for half a million.
        """
        async with self._database.read() as connection:
            groups = await store.groups_without_link(connection, self._linked_after, LINKED)
        for group in groups:
            try:
                await self._link(group)
            except PlatformUnavailable as error:
                log.warning("platform_unavailable", **error.metadata)
                return False
            except (PlatformRefused, GroupDissolved) as error:
                log.warning("group_without_link", group_id=group.group_id, reason=error.reason)
        more = len(groups) == LINKED
        self._linked_after = groups[-1].group_id if more else ""
        return more

    async def _link(self, group: Group) -> None:
        async with self._database.read() as connection:
            goes_on = _goes_on(await self._scheme(connection, group))
        link = await self._messaging.entry_link(group, goes_on=goes_on)
        async with self._database.begin() as connection:
            await opening.attach_chat(
                connection,
                self._lore,
                self._clock.now(),
                group_id=group.group_id,
                entry_link=link,
                keep=True,
            )


def _fact(told: Told, group: Group, person: Contact, member_id: str) -> JoinGroup | LeaveGroup:
    """What is told of a member, named after what told it, so that a repeat is known."""
    moment = person.join_time
    what = (told.change, told.chat_id, told.version, group.group_id)
    named = own_request_id(*what, person.contact_id, moment.isoformat())
    common: dict[str, Any] = {
        "member_id": member_id,
        "request_id": named,
        "payload_hash": b"",
        "actor": CALLER.get().subject,
        "traceparent": TRACEPARENT.get(),
    }
    if told.change is ChatChange.LEFT:
        ending = Ending.REMOVED if told.removed else Ending.LEFT
        return LeaveGroup(**common, group_id=group.group_id, occur_time=moment, ending=ending)
    return JoinGroup(**common, group_id=group.group_id, occur_time=moment)


def _goes_on(scheme: Scheme) -> bool:
    """Whether the next group of a full one is the next of its place, and called by the next number."""
    opens = scheme.overflow is Overflow.NEXT_OF_SITE and scheme.kind is not SchemeKind.FLASH
    return opens and not scheme.withdrawn and scheme.name_pattern.endswith("{seq}")
