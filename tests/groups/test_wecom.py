"""WeCom: what it signs and seals is read and done, what it is asked for is asked as it documents it.

The published examples of its documentation are the oracle of signature and seal.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb
from pydantic import ValidationError

from services.chassis.database import Database
from services.chassis.errors import ServiceError
from services.chassis.jobs import Lease
from services.cli.house import House
from services.cli.servers import Postgres
from services.groups.api import GroupsApi
from services.groups.chats import Chats
from services.groups.domain.profile import Ending, MembershipStatus
from services.groups.domain.seats import Group, GroupStatus
from services.groups.errors import CallbackRefused, PlatformRefused, PlatformUnavailable
from services.groups.messaging import Callback, Chat, ChatChange, Closed, Contact, Told
from services.groups.nearby import Nearby
from services.groups.settings import GroupsSettings
from services.groups.wecom import Wecom
from tests.conftest import NOON
from tests.groups.calls import a_scheme, open_group, put_scheme, settle
from tests.groups.fake_wecom import (
    AES_KEY,
    BUSY,
    CORP,
    NO_CHAT,
    OTHER_CORP,
    SECRET,
    TOKEN,
    TOO_MANY,
    TOO_MANY_AT_ONCE,
    FakeChat,
    FakeWecom,
    a_message,
    enveloped,
    forwarded,
    seal,
    signed,
)
from tests.groups.town import StandingClock, Town, make_database, scheme, shop
from tests.support import Groups, eventually, fresh, refused

CHAT = "wrOgQhDgAAMYQiS5ol9G7gK9JVAAAA"
PUBLISHED_ECHO = "P9nAzCzyDtyTWESHep1vC5X9xho/qYX3Zpb4yKa9SKld1DsH3Iyt3tP3zNdtp+4RPcs8TgAE7OaBO+FZXvnaqQ=="
PUBLISHED_TEXT = (
    "RypEvHKD8QQKFhvQ6QleEB4J58tiPdvo+rtK1I9qca6aM/wvqnLSV5zEPeusUiX5L5X/0lWfrf0QADHHhGd3QczcdCUpj911L3vg3W/s"
    "YYvuJTs3TUUkSUXxaccAS0qhxchrRYt66wiSpGLYL42aM6A8dTT+6k4aSknmPj48kzJs8qLjvd4Xgpue06DOdnLxAUHzM6+kDZ+HMZfJ"
    "YuR+LtwGc2hgf5gsijff0ekUNXZiqATP7PF5mZxZ3Izoun1s4zG4LUMnvw2r+KqCKIw+3IQH03v+BCA9nMELNqbSf6tiWSrXJB3LAVGU"
    "callcrw8V2t9EL4EhzJWrQUax5wLVMNS0+rUPA3k22Ncx4XXZS9o0MBH27Bo6BpNelZpS+/uh9KsNlY6bHCmJU9p8g7m3fVKn28H3KDY"
    "A5Pl/T8Z1ptDAVe0lXdQ2YoyyH2uyPIGHBZZIs2pDBS8R07+qN+E7Q=="
)
GROUP = Group(
    group_id="grp_" + "ab" * 16,
    scheme_id="scheme",
    scheme_version=1,
    anchor="shop",
    seq=1,
    name="汉堡王西湖店福利群",
    capacity=500,
    room=480,
    chat_id=CHAT,
    open_time=NOON,
)
LEASE = Lease("link", 1)
WRONG_SECRET = "another-secret-0123456789"  # noqa: S105 - nobody's

patiently = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def at_wecom(url: str = "http://127.0.0.1:9", **more: str) -> Wecom:
    """An app of the corp; by default nobody is there whom it could ask."""
    return Wecom(
        **{"corp_id": CORP, "secret": SECRET, "token": TOKEN, "aes_key": AES_KEY, "url": url, **more}
    )


@pytest.fixture(scope="module")
async def reader() -> AsyncIterator[Wecom]:
    """One that is only told."""
    made = at_wecom()
    yield made
    await made.close()


@pytest.fixture
def fake() -> Iterator[FakeWecom]:
    made = FakeWecom()
    yield made
    made.close()


@pytest.fixture
async def asker(fake: FakeWecom) -> AsyncIterator[Wecom]:
    """One that asks the fake."""
    made = at_wecom(fake.url)
    yield made
    await made.close()


# --- what it tells ------------------------------------------------------------------------------------


def callback(message: bytes, *, corp_id: str = CORP, aes_key: str = AES_KEY, **how: str) -> Callback:
    """As WeCom calls."""
    return calling(seal(message, corp_id=corp_id, aes_key=aes_key), **how)


def calling(sealed: str, **how: str) -> Callback:
    """As WeCom calls with what is sealed already."""
    query = signed(sealed, **how)
    return Callback(query["msg_signature"], query["timestamp"], query["nonce"], enveloped(sealed))


def cause(reader: Wecom, called: Callback) -> str:
    """Why it is refused; nothing secret is in what the refusal carries."""
    with pytest.raises(CallbackRefused) as caught:
        reader.read(called)
    shown = f"{caught.value!r} {caught.value.message}"
    assert not any(secret in shown for secret in (SECRET, TOKEN, AES_KEY))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.metadata["cause"]


def test_the_published_check_of_an_address_is_answered_as_published(reader: Wecom) -> None:
    signature = "5c45ff5e21c57e6ad56bac8758b79b1d9ac89fd3"
    assert reader.echo(signature, "1409659589", "263014780", PUBLISHED_ECHO) == "1616140317555161061"
    with pytest.raises(CallbackRefused):
        reader.echo(signature, "1409659590", "263014780", PUBLISHED_ECHO)


def test_the_published_message_is_opened_and_is_about_no_chat(reader: Wecom) -> None:
    signature = "477715d11cdb4164915debcba66cb864d751f3e6"
    published = Callback(signature, "1409659813", "1372623149", enveloped(PUBLISHED_TEXT))
    assert b"<Content><![CDATA[hello]]>" in reader._open(
        signature, "1409659813", "1372623149", PUBLISHED_TEXT
    )
    assert reader.read(published) is None


PEOPLE = "<Item>wmJack</Item><Item><![CDATA[wmRose]]></Item>"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (a_message(NOON, CHAT, "create"), {"change": ChatChange.NAMED}),
        (a_message(NOON, CHAT, "update", "change_name"), {"change": ChatChange.NAMED}),
        (
            a_message(
                NOON, CHAT, "update", "add_member", MemChangeList=PEOPLE, JoinScene="3", CurMemVer="7a"
            ),
            {"change": ChatChange.CAME, "contact_ids": ("wmJack", "wmRose"), "version": "7a"},
        ),
        (
            a_message(NOON, CHAT, "update", "add_member", MemChangeList="<![CDATA[wmJack,wmRose]]>"),
            {"change": ChatChange.CAME, "contact_ids": ("wmJack", "wmRose")},
        ),
        (a_message(NOON, CHAT, "update", "add_member"), {"change": ChatChange.CAME}),
        (
            a_message(NOON, CHAT, "update", "del_member", MemChangeList="<Item>wmJack</Item>", QuitScene="0"),
            {"change": ChatChange.LEFT, "contact_ids": ("wmJack",)},
        ),
        (
            a_message(NOON, CHAT, "update", "del_member", MemChangeList="<Item>wmJack</Item>", QuitScene="1"),
            {"change": ChatChange.LEFT, "contact_ids": ("wmJack",), "removed": True},
        ),
        (a_message(NOON, CHAT, "dismiss"), {"change": ChatChange.DISMISSED}),
    ],
    ids=["made", "renamed", "came", "came, as of old", "came, unsaid who", "left", "removed", "dismissed"],
)
def test_a_change_is_read_as_wecom_tells_it(reader: Wecom, message: bytes, told: dict[str, Any]) -> None:
    assert reader.read(callback(message)) == Told(chat_id=CHAT, occur_time=NOON, **told)


@pytest.mark.parametrize(
    "message",
    [
        a_message(NOON, CHAT, "update", "change_owner"),
        a_message(NOON, CHAT, "update", "change_notice"),
        a_message(NOON, CHAT, "something_new"),
        b"<xml><Event>change_external_contact</Event><ChangeType>add_external_contact</ChangeType></xml>",
        b"<xml/>",
    ],
)
def test_what_concerns_no_group_is_passed_over(reader: Wecom, message: bytes) -> None:
    assert reader.read(callback(message)) is None


GOOD = a_message(NOON, CHAT, "dismiss")
BOMB = b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><xml><Encrypt>&c;</Encrypt></xml>'
FAULTS: dict[str, tuple[Callable[[], Callback], str]] = {
    "another token": (lambda: callback(GOOD, token=WRONG_SECRET), "msg_signature is not WeCom's"),
    "another nonce": (lambda: replace(callback(GOOD), nonce="1"), "msg_signature is not WeCom's"),
    "another time": (lambda: replace(callback(GOOD), timestamp="1"), "msg_signature is not WeCom's"),
    "another text": (
        lambda: replace(callback(GOOD), body=enveloped(seal(GOOD))),
        "msg_signature is not WeCom's",
    ),
    "no signature": (lambda: replace(callback(GOOD), signature=""), "msg_signature is malformed"),
    "another corp": (lambda: callback(GOOD, corp_id=OTHER_CORP), "it is sealed for another corp"),
    "another key": (
        lambda: callback(GOOD, aes_key="A" * 43),
        "it is not sealed with the EncodingAESKey",
    ),
    "no block": (
        lambda: calling("AAAA"),
        "Encrypt is not base64 of whole blocks",
    ),
    "no base64": (
        lambda: calling("*"),
        "Encrypt is not base64 of whole blocks",
    ),
    "nothing sealed": (
        lambda: replace(callback(GOOD), body=b"<xml/>"),
        "Encrypt is absent or malformed",
    ),
    "no XML": (lambda: replace(callback(GOOD), body=b"{}"), "the body is not plain XML in UTF-8"),
    "a bomb": (lambda: replace(callback(GOOD), body=BOMB), "the body is not plain XML in UTF-8"),
    "a bomb in UTF-16": (
        lambda: replace(callback(GOOD), body=BOMB.decode().encode("utf-16")),
        "the body is not plain XML in UTF-8",
    ),
    "a sealed bomb": (lambda: callback(BOMB), "what was sealed is not plain XML in UTF-8"),
    "too much": (
        lambda: replace(callback(GOOD), body=b" " * 65_537),
        "the body does not have 1 to 65536 bytes",
    ),
    "no chat": (lambda: callback(a_message(NOON, "", "dismiss")), "ChatId is absent or malformed"),
    "no time": (
        lambda: callback(GOOD.replace(b"<CreateTime>", b"<CreateTime>9999999999")),
        "CreateTime is not a time",
    ),
}


@pytest.mark.parametrize(("fault", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_what_wecom_did_not_sign_and_seal_for_us_is_refused(
    reader: Wecom, fault: Callable[[], Callback], said: str
) -> None:
    assert cause(reader, fault()) == said


GENUINE = callback(GOOD)


@patiently
@given(st.sampled_from(["signature", "timestamp", "nonce", "sealed"]), st.data())
def test_no_byte_of_what_came_can_be_changed(reader: Wecom, part: str, data: st.DataObject) -> None:
    body = GENUINE.body.decode()
    whole = body[body.index("<Encrypt><![CDATA[") + 18 : body.index("]]></Encrypt>")]
    whole = whole if part == "sealed" else getattr(GENUINE, part)
    place = data.draw(st.integers(0, len(whole) - 1))
    letter = data.draw(st.sampled_from("0123456789abcdefABCDEF+/=~").filter(lambda one: one != whole[place]))
    changed = whole[:place] + letter + whole[place + 1 :]
    changes: dict[str, Any] = {"body": enveloped(changed)} if part == "sealed" else {part: changed}
    assert cause(reader, replace(GENUINE, **changes))


@pytest.mark.parametrize("key", ["", "A" * 42, "A" * 44, "A" * 42 + "="])
def test_a_key_that_is_none_stops_the_start(key: str) -> None:
    with pytest.raises(ValueError, match="43 letters and digits"):
        at_wecom(aes_key=key)


# --- what it is asked ---------------------------------------------------------------------------------


async def test_a_chat_is_read_with_its_customers_and_without_staff(fake: FakeWecom, asker: Wecom) -> None:
    made = fake.make("福利群")
    fake.add(made, "wmAnn", NOON, unionid="oAnn")
    ann = Contact(contact_id="wmAnn", union_id="oAnn", join_time=NOON)
    assert await asker.chat(made.chat_id) == Chat(chat_id=made.chat_id, name="福利群", contacts=(ann,))


@pytest.mark.parametrize(
    ("group", "goes_on", "further"),
    [
        (GROUP, True, {"auto_create_room": 1, "room_base_name": GROUP.name, "room_base_id": 2}),
        (
            replace(GROUP, seq=12, name=f"{GROUP.name}12"),
            True,
            {"auto_create_room": 1, "room_base_name": GROUP.name, "room_base_id": 13},
        ),
        (replace(GROUP, seq=2, name="第2群"), True, {"auto_create_room": 0}),
        (replace(GROUP, name="长" * 41), True, {"auto_create_room": 0}),
        (GROUP, False, {"auto_create_room": 0}),
    ],
    ids=["first", "twelfth", "number inside", "long", "alone"],
)
async def test_a_link_opens_further_chats_where_these_are_called_as_the_next_groups(
    fake: FakeWecom, asker: Wecom, group: Group, goes_on: bool, further: dict[str, Any]
) -> None:
    chat = fake.make(group.name)
    link = await asker.entry_link(replace(group, chat_id=chat.chat_id), goes_on=goes_on)
    (way,) = fake.ways.values()
    assert link == way["qr_code"]
    asked = fake.calls("externalcontact/groupchat/add_join_way")
    assert asked == [
        {"scene": 2, "chat_id_list": [chat.chat_id], "state": "q6urq6urq6urq6urq6urqw", **further}
    ]


async def test_an_access_token_is_asked_for_once_and_again_once_it_has_ended(
    fake: FakeWecom, asker: Wecom
) -> None:
    chat = fake.make("群").chat_id
    for times, end in enumerate((lambda: None, fake.end_tokens, fake.forget_tokens), start=1):
        end()
        await asyncio.gather(*(asker.chat(chat) for _ in range(4)))
        await asker.chat(chat)
        assert len(fake.calls("gettoken")) == times


async def test_an_access_token_is_not_used_in_its_last_minute(fake: FakeWecom, asker: Wecom) -> None:
    fake.expires_in, chat = 60, fake.make("群").chat_id
    await asker.chat(chat)
    fake.expires_in = 7200
    await asker.chat(chat)
    await asker.chat(chat)
    assert len(fake.calls("gettoken")) == 2


@pytest.mark.parametrize("errcode", [TOO_MANY, TOO_MANY_AT_ONCE])
async def test_wecom_is_left_alone_once_it_says_that_there_were_too_many_calls(
    fake: FakeWecom, asker: Wecom, errcode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = fake.make("群").chat_id
    await asker.chat(chat)
    asked = len(fake.asked)
    fake.faults.append({"errcode": errcode})
    for _ in range(3):
        with pytest.raises(PlatformUnavailable):
            await asker.chat(chat)
    assert len(fake.asked) == asked + 1
    monkeypatch.setattr(asker._calls, "_quiet_until", 0.0)  # a minute later
    assert (await asker.chat(chat)).name == "群"


@pytest.mark.parametrize(
    "fault",
    [
        503,
        302,
        b"<html>",
        b"[]",
        b"\xff",
        {"errcode": BUSY},
        {"errcode": 0},
        {"group_chat": {"member_list": [{}]}},
    ],
    ids=str,
)
async def test_an_answer_that_says_nothing_is_as_good_as_none(
    fake: FakeWecom, asker: Wecom, fault: int | bytes | dict[str, Any]
) -> None:
    chat = fake.make("群").chat_id
    await asker.chat(chat)
    fake.faults.append(fault)
    with pytest.raises(PlatformUnavailable):
        await asker.chat(chat)
    assert (await asker.chat(chat)).name == "群"


async def test_what_wecom_refuses_is_told_by_its_number_and_nothing_secret_with_it(fake: FakeWecom) -> None:
    asker, stranger = at_wecom(fake.url), at_wecom(fake.url, secret=WRONG_SECRET)
    nobody = at_wecom("http://127.0.0.1:9")
    refusals: list[ServiceError] = []
    for one, kind in ((asker, PlatformRefused), (stranger, PlatformRefused), (nobody, PlatformUnavailable)):
        with pytest.raises(kind) as caught:
            await one.chat("wrNobody")
        refusals.append(caught.value)
        await one.close()
    assert [error.metadata.get("errcode") for error in refusals] == [str(NO_CHAT), "40001", None]
    for error in refusals:
        assert not any(
            secret in f"{error!r} {error.message}" for secret in (SECRET, WRONG_SECRET, "127.0.0.1")
        )
        assert error.__suppress_context__ or error.__context__ is None


async def test_where_no_platform_is_set_up_nothing_is_read_and_nothing_asked() -> None:
    closed = Closed()
    with pytest.raises(CallbackRefused):
        closed.read(GENUINE)
    with pytest.raises(CallbackRefused):
        closed.echo("", "", "", "")
    with pytest.raises(PlatformRefused):
        await closed.chat(CHAT)
    with pytest.raises(PlatformRefused):
        await closed.entry_link(GROUP, goes_on=True)


def test_a_corp_without_its_secrets_is_refused_and_so_is_a_way_that_can_be_listened_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = {"WECOM_SECRET": SECRET, "WECOM_TOKEN": TOKEN, "WECOM_AES_KEY": AES_KEY}
    for name, value in {**secrets, "WECOM_CORP_ID": CORP}.items():
        monkeypatch.setenv(f"GROUPS_{name}", value)
    assert not any(secret in repr(GroupsSettings()) for secret in secrets.values())
    for name in secrets:
        with monkeypatch.context() as without:
            without.setenv(f"GROUPS_{name}", "")
            with pytest.raises(ValidationError, match="WECOM_CORP_ID needs") as caught:
                GroupsSettings()
            assert SECRET not in str(caught.value)
    monkeypatch.setenv("GROUPS_WECOM_URL", "http://qyapi.weixin.qq.com")
    with pytest.raises(ValidationError, match="wecom_url"):
        GroupsSettings()


# --- what is done -------------------------------------------------------------------------------------


_places = itertools.count()


class Plaza(Town):
    """A town whose groups are chats in WeCom, of a scheme with a site of its own each time."""

    def __init__(self, database: Database, clock: StandingClock, messaging: Wecom) -> None:
        super().__init__(database, clock)
        self.chats = Chats(database, clock, self.lore, self.batches, messaging)
        nearby = Nearby(database, clock, self.lore)
        self.api = GroupsApi(database, clock, self.lore, self.batches, nearby=nearby, chats=self.chats)

    async def settle(self, **more: Any) -> tuple[str, Group]:
        """A scheme with its first group."""
        name = fresh("plaza")
        await self.put_sites(shop(name, 10_000 * next(_places)))
        await self.put(scheme(name, **{"name_pattern": f"{name}福利群{{seq}}", **more}))
        return name, await self.open(name, site_id=name)

    async def tell(self, message: bytes, **member_ids: str) -> pb.VerifyWecomCallbackResponse:
        """WeCom tells the brand, and the brand tells us."""
        return await self.api.VerifyWecomCallback(forwarded(message, **member_ids), None)  # type: ignore[arg-type]

    async def made(self, chat: FakeChat, **member_ids: str) -> pb.VerifyWecomCallbackResponse:
        """Tells that a chat was made."""
        return await self.tell(a_message(self.at, chat.chat_id, "create"), **member_ids)

    async def link(self) -> None:
        """Asks for all the links that groups lack."""
        (job,) = self.chats.jobs()
        while await job.run(LEASE):
            pass


@pytest.fixture(scope="module")
def plaza_url(groups_server: Postgres) -> str:
    """A database of the module's own: links are asked for by all groups."""
    return make_database(groups_server)


@pytest.fixture
async def plaza(plaza_url: str, asker: Wecom) -> AsyncIterator[Plaza]:
    database = await Database.open(plaza_url, size=4, name="plaza")
    yield Plaza(database, StandingClock(), asker)
    await database.close()


async def test_a_chat_under_a_groups_name_becomes_the_groups_and_gets_its_link(
    fake: FakeWecom, plaza: Plaza
) -> None:
    _, group = await plaza.settle()
    chat = fake.make("新群")
    early = await plaza.made(chat)
    assert (early.change, early.chat_id, early.HasField("group")) == (
        pb.CHAT_CHANGE_NAMED,
        chat.chat_id,
        False,
    )
    chat.name = group.name
    fake.add(chat, "wmAnn", plaza.at)
    answer = await plaza.tell(a_message(plaza.at, chat.chat_id, "update", "change_name"))
    assert (answer.group.group_id, answer.group.chat_id) == (group.group_id, chat.chat_id)
    assert [one.external_userid for one in answer.unknown] == ["wmAnn"]
    await plaza.link()
    linked = await plaza.group(group.group_id)
    (way,) = [way for way in fake.ways.values() if chat.chat_id in way["chat_id_list"]]
    assert linked.entry_link == way["qr_code"]
    await plaza.link()
    asked = fake.calls("externalcontact/groupchat/add_join_way")
    assert [way["chat_id_list"] for way in asked].count([chat.chat_id]) == 1


async def test_what_was_attached_by_hand_stays_and_a_name_of_two_is_nobodys(
    fake: FakeWecom, plaza: Plaza
) -> None:
    _, group = await plaza.settle()
    chat = fake.make(group.name)
    await plaza.attach(group.group_id, chat_id=chat.chat_id, entry_link="https://by.hand")
    assert not (await plaza.made(fake.make(group.name))).HasField("group")
    await plaza.link()
    assert (await plaza.group(group.group_id)).entry_link == "https://by.hand"
    name, first = await plaza.settle(name_pattern=fresh("同名"))
    await plaza.open(name, site_id=name)
    assert not (await plaza.made(fake.make(first.name))).HasField("group")


async def test_who_comes_by_either_id_is_a_member_who_joins_and_who_is_unknown_is_asked_for(
    fake: FakeWecom, plaza: Plaza
) -> None:
    scheme_id, group = await plaza.settle(capacity=10)
    chat = fake.make(group.name)
    await plaza.made(chat)
    ann, ben, cid = (fresh(name) for name in ("ann", "ben", "cid"))
    await plaza.seat(ann, scheme_id, home_site_id=scheme_id, entry_source="till")
    plaza.wait(seconds=5)
    for contact in ("wmAnn", "wmBen", "wmCid"):
        fake.add(chat, contact, plaza.at)
    came = fake.came(chat, plaza.at, "wmAnn", "wmBen", "wmCid", "staff")
    answer = await plaza.tell(came, wmAnn=ann, owmBen=ben)
    assert sorted(answer.member_ids) == sorted([ann, ben])
    assert [(one.external_userid, one.unionid) for one in answer.unknown] == [
        ("wmCid", "owmCid"),
        ("staff", ""),
    ]
    assert answer.group.seats_taken == 2
    assert [one.entry_source for one in await plaza.heard(ann, epb.MemberJoined)] == ["till"]
    plaza.wait(days=3)
    again = await plaza.tell(came, wmAnn=ann, owmBen=ben, wmCid=cid)
    assert (again.group.seats_taken, len(again.unknown)) == (3, 1)
    for member, joins in ((ann, 1), (ben, 1), (cid, 1)):
        assert len(await plaza.heard(member, epb.MemberJoined)) == joins
        membership = await plaza.membership(member, scheme_id)
        assert (membership.status, membership.join_time) == (
            MembershipStatus.JOINED,
            NOON + timedelta(seconds=5),
        )


async def test_who_leaves_or_is_removed_is_out_and_no_replay_brings_anybody_back(
    fake: FakeWecom, plaza: Plaza
) -> None:
    scheme_id, group = await plaza.settle(capacity=10)
    chat = fake.make(group.name)
    await plaza.made(chat)
    ann, ben = fresh("ann"), fresh("ben")
    known = {"wmAnn": ann, "wmBen": ben}
    for contact in known:
        fake.add(chat, contact, plaza.at)
    came = fake.came(chat, plaza.at, *known)
    await plaza.tell(came, **known)
    # All within a second, in which WeCom's times are the same.
    left = fake.left(chat, plaza.at, "wmAnn")
    removed = fake.left(chat, plaza.at, "wmBen", removed=True)
    for message in (left, removed, came, left):
        await plaza.tell(message, **known)
    endings = [(await plaza.membership(member, scheme_id)).ending for member in (ann, ben)]
    assert endings == [Ending.LEFT, Ending.REMOVED]
    fake.add(chat, "wmAnn", plaza.at)
    back = await plaza.tell(fake.came(chat, plaza.at, "wmAnn"), **known)
    assert back.group.seats_taken == 1
    assert (await plaza.membership(ann, scheme_id)).number == 2
    unsaid = await plaza.tell(a_message(plaza.at, chat.chat_id, "update", "del_member"), **known)
    assert (unsaid.change, unsaid.group.seats_taken) == (pb.CHAT_CHANGE_LEFT, 1)


async def test_when_a_chat_is_full_the_chat_that_follows_is_that_of_the_next_group(
    fake: FakeWecom, plaza: Plaza
) -> None:
    scheme_id, first = await plaza.settle(capacity=3, headroom=1)
    chat = fake.make(first.name, room=2)
    await plaza.made(chat)
    await plaza.link()
    link = (await plaza.group(first.group_id)).entry_link
    members = {f"wm{number}": fresh("member") for number in range(3)}
    for member in members.values():
        await plaza.seat(member, scheme_id, home_site_id=scheme_id)
    for contact in (*members, "wmLate"):
        entered, made = fake.enter(link, contact, plaza.at)
        if made:
            await plaza.made(entered)
        await plaza.tell(fake.came(entered, plaza.at, contact), **members)
    first, second = await plaza.groups(scheme_id)
    assert (second.seq, second.chat_id, second.previous_group_id) == (2, entered.chat_id, first.group_id)
    assert [(await plaza.membership(one, scheme_id)).group_id for one in members.values()] == [
        *(first.group_id, first.group_id),
        second.group_id,
    ]
    await plaza.link()
    assert (await plaza.group(second.group_id)).entry_link not in ("", link)


async def test_a_chat_that_is_no_more_dissolves_its_group_once(fake: FakeWecom, plaza: Plaza) -> None:
    _, group = await plaza.settle()
    chat = fake.make(group.name)
    await plaza.made(chat)
    gone = a_message(plaza.at, chat.chat_id, "dismiss")
    for _ in range(2):
        answer = await plaza.tell(gone)
        assert (answer.change, answer.group.status) == (pb.CHAT_CHANGE_DISMISSED, pb.GROUP_STATUS_DISSOLVED)
    assert (await plaza.group(group.group_id)).status is GroupStatus.DISSOLVED
    assert len(await plaza.heard(group.group_id, epb.GroupDissolved)) == 1
    stranger = await plaza.tell(a_message(plaza.at, "wrStranger", "dismiss"))
    assert not stranger.HasField("group")


async def test_a_chat_without_a_link_holds_up_no_other_and_a_wecom_that_is_away_is_asked_later(
    fake: FakeWecom, plaza: Plaza
) -> None:
    groups = [(await plaza.settle())[1] for _ in range(3)]
    gone, *chats = (fake.make(group.name) for group in groups)
    for group, chat in zip(groups, (gone, *chats), strict=True):
        await plaza.attach(group.group_id, chat_id=chat.chat_id)
    del fake.chats[gone.chat_id]
    fake.faults.extend([503, {"errcode": BUSY}])
    for _ in range(2):
        await plaza.link()
    assert not fake.ways
    await plaza.link()
    links = [(await plaza.group(group.group_id)).entry_link for group in groups]
    assert [bool(link) for link in links] == [False, True, True]


async def test_wecom_is_answered_what_it_sealed_where_it_checks_the_address(plaza: Plaza) -> None:
    sealed = seal(b"1616140317555161061")
    request = ParseDict({**signed(sealed), "echostr": sealed}, pb.VerifyWecomCallbackRequest())
    answer = await plaza.api.VerifyWecomCallback(request, None)  # type: ignore[arg-type]
    assert answer == pb.VerifyWecomCallbackResponse(echo="1616140317555161061")
    request.msg_signature = "0" * 40
    with pytest.raises(CallbackRefused):
        await plaza.api.VerifyWecomCallback(request, None)  # type: ignore[arg-type]


def test_a_process_that_is_set_up_asks_for_links_and_does_what_callbacks_tell(
    houses: Callable[[str], House], fake: FakeWecom
) -> None:
    house, name, ann = houses("grpcio"), fresh("福利群"), fresh("ann")
    secrets = {"wecom_secret": SECRET, "wecom_token": TOKEN, "wecom_aes_key": AES_KEY}
    with Groups(house) as groups:
        _, (site,) = settle(groups)
        made = put_scheme(groups, a_scheme(name_pattern=f"{name}{{seq}}"))
        group = open_group(groups, made, site_id=site.site_id)
        chat = fake.make(name)
        attached = pb.AttachChatRequest(
            request_id=fresh("attach"), group_id=group.group_id, chat_id=chat.chat_id
        )
        groups.call(groups.groups.AttachChat, attached)
    process = house.start_replica("groups", wecom_corp_id=CORP, wecom_url=fake.url, **secrets)
    try:
        house.wait_ready(process)
        with Groups(house, service=process) as groups:
            asked = pb.GetGroupRequest(group_id=group.group_id)
            eventually(lambda: bool(groups.call(groups.groups.GetGroup, asked).entry_link))
            fake.enter(groups.call(groups.groups.GetGroup, asked).entry_link, "wmAnn", groups.now)
            came = forwarded(fake.came(chat, groups.now, "wmAnn"), owmAnn=ann)
            told = groups.call(groups.groups.VerifyWecomCallback, came)
            assert (list(told.member_ids), told.group.seats_taken) == ([ann], 1)
            came.msg_signature = "0" * 40
            with refused(StatusCode.PERMISSION_DENIED, "CALLBACK_REFUSED"):
                groups.call(groups.groups.VerifyWecomCallback, came)
            made.withdrawn = True
            put_scheme(groups, made)
    finally:
        house.process(process).stop()
    log = (house.data / f"{process}.log").read_text()
    assert not any(secret in log for secret in secrets.values())
