"""WeCom (企业微信): customer chats (客户群) made known, their links asked for, callbacks checked and opened.

WeCom has no call that makes a customer chat: staff make them, and so does a link whose chats are full. It
signs a callback with a token and seals it with a key that both sides know; everything else is asked for with
an access token that lives for two hours at most.

Sources, by path under https://developer.work.weixin.qq.com/document/path/: links 92229, chats 92122,
callbacks 92130, seal and signature 90968, access tokens 91039, errors 90313.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from hmac import compare_digest
from http import HTTPStatus
from typing import Any, NoReturn
from uuid import UUID
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from aiohttp import ClientError, ClientSession, ClientTimeout
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from services.groups.domain.seats import Group
from services.groups.errors import CallbackRefused, PlatformRefused, PlatformUnavailable
from services.groups.messaging import Callback, Chat, ChatChange, Contact, Told

URL = "https://qyapi.weixin.qq.com"
TIMEOUT = 5.0  # seconds for a call
QUIET = 60.0  # seconds without a call once WeCom said that there were too many: most limits are by the minute
EARLY = 60.0  # seconds before its end in which an access token is used no more
LONGEST_BASE_NAME = 40  # characters of the name of a chat that a link opens, without its number
SEAL_KEY_BYTES = 32
MAX_BODY = 65_536  # bytes, as in the contract

_BLOCK = 32  # bytes: WeCom pads to its key's length, not to the cipher's
_HEAD = 20  # bytes before the text: 16 at random, and its length
_ENCODED_KEY = re.compile(r"[A-Za-z0-9]{43}")
_SIGNATURE = re.compile(r"[0-9a-f]{40}")
_SECONDS = re.compile(r"[0-9]{1,20}")
_VISIBLE = re.compile(r"[!-~]{1,128}")
_CHAT_ID = re.compile(r"[!-~]{1,200}")
_DECLARATION = re.compile(r"<!(?!\[CDATA\[)")  # of a type or an entity: WeCom sends none
_LAST_SECOND = 253_370_764_800  # of the year 9998, where the contract's times end

_BUSY = -1
_TOKEN_ENDED = frozenset({40014, 42001})
_TOO_MANY = frozenset({45009, 45033})  # calls in a while, and calls at once

_QR_CODE = 2
_CUSTOMER = 2
_REMOVED = "1"

_CHANGES = {
    ("create", ""): ChatChange.NAMED,
    ("update", "change_name"): ChatChange.NAMED,
    ("update", "add_member"): ChatChange.CAME,
    ("update", "del_member"): ChatChange.LEFT,
    ("dismiss", ""): ChatChange.DISMISSED,
}


class Wecom:
    """The customer chats of one corp. Raises ValueError for an EncodingAESKey that is none."""

    def __init__(self, *, corp_id: str, secret: str, token: str, aes_key: str, url: str = URL) -> None:
        if not _ENCODED_KEY.fullmatch(aes_key):
            raise ValueError("an EncodingAESKey has 43 letters and digits")
        self._corp_id = corp_id
        self._token = token
        key = b64decode(f"{aes_key}=")
        self._seal = Cipher(AES(key), CBC(key[:16]))
        self._calls = _Calls(corp_id, secret, url)

    async def close(self) -> None:
        """Lets go of connections."""
        await self._calls.close()

    # --- what it tells --------------------------------------------------------------------------------

    def read(self, callback: Callback) -> Told | None:
        """What a callback tells; None where it is about no customer chat. Raises CallbackRefused.

        One that is told again is read again: that it was done already is known by what it tells.
        """
        if not 1 <= len(callback.body) <= MAX_BODY:
            _refuse(f"the body does not have 1 to {MAX_BODY} bytes")
        sealed = _text(_xml(callback.body, "the body"), "Encrypt")
        opened = self._open(callback.signature, callback.timestamp, callback.nonce, sealed)
        message = _xml(opened, "what was sealed")
        if message.findtext("Event") != "change_external_chat":
            return None
        kind = message.findtext("ChangeType", ""), message.findtext("UpdateDetail", "")
        change = _CHANGES.get(kind)
        if change is None:
            return None
        return Told(
            chat_id=_text(message, "ChatId", _CHAT_ID),
            change=change,
            occur_time=_create_time(message),
            contact_ids=_changed(message),
            removed=message.findtext("QuitScene") == _REMOVED,
            version=message.findtext("CurMemVer", ""),
        )

    def echo(self, signature: str, timestamp: str, nonce: str, sealed: str) -> str:
        """What to answer where WeCom asks whether it calls the right one. Raises CallbackRefused."""
        opened = self._open(signature, timestamp, nonce, sealed)
        try:
            return opened.decode()
        except UnicodeDecodeError:
            _refuse("what was sealed is no text")

    def _open(self, signature: str, timestamp: str, nonce: str, sealed: str) -> bytes:
        """What WeCom sealed for this corp, once it is known that WeCom signed it."""
        for name, value, pattern in (
            ("msg_signature", signature, _SIGNATURE),
            ("timestamp", timestamp, _SECONDS),
            ("nonce", nonce, _VISIBLE),
        ):
            if not pattern.fullmatch(value):
                _refuse(f"{name} is malformed")
        signed = "".join(sorted((self._token, timestamp, nonce, sealed)))
        if not compare_digest(signature, hashlib.sha1(signed.encode()).hexdigest()):  # noqa: S324 - WeCom's choice
            _refuse("msg_signature is not WeCom's")
        text, corp_id = _split(self._decrypted(sealed))
        if corp_id != self._corp_id.encode():
            _refuse("it is sealed for another corp")
        return text

    def _decrypted(self, sealed: str) -> bytes:
        try:
            data = b64decode(sealed, validate=True)
        except ValueError:
            data = b""
        if not data or len(data) % _BLOCK:
            _refuse("Encrypt is not base64 of whole blocks")
        decryptor = self._seal.decryptor()
        return decryptor.update(data) + decryptor.finalize()

    # --- what is asked of it --------------------------------------------------------------------------

    async def chat(self, chat_id: str) -> Chat:
        """A chat with the customers in it. Raises PlatformUnavailable, PlatformRefused."""
        answer = await self._calls.ask("externalcontact/groupchat/get", {"chat_id": chat_id, "need_name": 0})
        with _as_documented():
            chat = answer["group_chat"]
            customers = [one for one in chat["member_list"] if one["type"] == _CUSTOMER]
            contacts = tuple(
                Contact(
                    contact_id=str(one["userid"]),
                    union_id=str(one.get("unionid", "")),
                    join_time=_instant(one["join_time"]),
                )
                for one in customers
            )
            return Chat(chat_id=chat_id, name=str(chat.get("name", "")), contacts=contacts)

    async def entry_link(self, group: Group, *, goes_on: bool) -> str:
        """A new QR code (加入群聊) by which a group's chat is entered; its state names the group.

        With `goes_on` WeCom opens the next chat when that is full, under the name of the next group, as far
        as that name is the group's name and a number. Raises PlatformUnavailable, PlatformRefused.
        """
        base = group.name.removesuffix(str(group.seq)) if group.seq > 1 else group.name
        numbered = group.seq == 1 or base != group.name
        asked: dict[str, object] = {
            "scene": _QR_CODE,
            "chat_id_list": [group.chat_id],
            "state": state(group.group_id),
            "auto_create_room": 0,
        }
        if goes_on and numbered and len(base) <= LONGEST_BASE_NAME:
            asked |= {"auto_create_room": 1, "room_base_name": base, "room_base_id": group.seq + 1}
        made = await self._calls.ask("externalcontact/groupchat/add_join_way", asked)
        config = {"config_id": made.get("config_id")}
        answer = await self._calls.ask("externalcontact/groupchat/get_join_way", config)
        with _as_documented():
            link = str(answer["join_way"]["qr_code"])
        if not link:
            raise PlatformRefused(group_id=group.group_id)
        return link


def state(group_id: str) -> str:
    """A group's id as the state of a link, which has room for 30 characters: 22 of its UUID."""
    uuid = UUID(group_id.removeprefix("grp_"))
    return urlsafe_b64encode(uuid.bytes).decode().rstrip("=")


class _Calls:
    """Calls to WeCom with an access token, which is kept until it ends."""

    def __init__(self, corp_id: str, secret: str, url: str) -> None:
        self._login = {"corpid": corp_id, "corpsecret": secret}
        self._session = ClientSession(f"{url}/cgi-bin/", timeout=ClientTimeout(total=TIMEOUT))
        self._access_token = ""
        self._good_until = 0.0
        self._quiet_until = 0.0
        self._asking_for_token = asyncio.Lock()

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, path: str, asked: Mapping[str, object]) -> dict[str, Any]:
        """The answer to a call; one whose access token had ended before its time is made again."""
        token = await self._token()
        answer = await self._post(path, asked, token)
        if answer.get("errcode") in _TOKEN_ENDED:
            answer = await self._post(path, asked, await self._token(instead_of=token))
        return self._checked(answer)

    async def _post(self, path: str, asked: Mapping[str, object], token: str) -> dict[str, Any]:
        return await self._send("POST", path, {"access_token": token}, asked)

    async def _token(self, instead_of: str = "") -> str:
        """The access token. However many ask at once, WeCom is asked for it once."""
        async with self._asking_for_token:
            ended = self._access_token == instead_of or time.monotonic() >= self._good_until
            if ended:
                answer = self._checked(await self._send("GET", "gettoken", self._login))
                with _as_documented():
                    good_for = float(answer["expires_in"]) - EARLY
                    self._access_token = str(answer["access_token"])
                self._good_until = time.monotonic() + good_for
            return self._access_token

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """What WeCom answers, whatever it says. No error quotes the query, for the secrets in it."""
        if time.monotonic() < self._quiet_until:
            raise PlatformUnavailable(cause="WeCom said that there were too many calls")
        try:
            asked = self._session.request(method, path, params=query, json=body, allow_redirects=False)
            async with asked as response:
                content = await response.read()
        except (ClientError, TimeoutError) as error:
            raise PlatformUnavailable(cause=type(error).__name__) from None
        if response.status != HTTPStatus.OK:
            raise PlatformUnavailable(status=response.status)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise PlatformUnavailable(cause="the answer is no JSON object")
        return answer

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        errcode = answer.get("errcode", 0)
        if errcode in _TOO_MANY:
            self._quiet_until = time.monotonic() + QUIET
        if errcode in _TOO_MANY or errcode == _BUSY:
            raise PlatformUnavailable(errcode=errcode)
        if errcode:
            raise PlatformRefused(errcode=errcode)
        return answer


@contextmanager
def _as_documented() -> Iterator[None]:
    """For what is read out of an answer: one that is not as WeCom says is as good as none."""
    try:
        yield
    except (KeyError, TypeError, ValueError):
        raise PlatformUnavailable(cause="the answer is not as documented") from None


# --- what a callback has in it ------------------------------------------------------------------------


def _refuse(cause: str) -> NoReturn:
    """Says what is wrong by names alone: a cause quotes neither keys nor what was sealed."""
    raise CallbackRefused(cause=cause) from None


def _xml(data: bytes, name: str) -> Element:
    """A document without declarations, so that nothing in it grows or is looked up."""
    try:
        text = data.decode()
        root = None if _DECLARATION.search(text) else ET.fromstring(text)  # noqa: S314 - see above
    except (ValueError, ET.ParseError):  # ValueError: no UTF-8
        root = None
    if root is None:
        _refuse(f"{name} is not plain XML in UTF-8")
    return root


def _text(root: Element, name: str, pattern: re.Pattern[str] | None = None) -> str:
    text = root.findtext(name)
    if not text or (pattern and not pattern.fullmatch(text)):
        _refuse(f"{name} is absent or malformed")
    return text


def _create_time(message: Element) -> datetime:
    try:
        return _instant(int(_text(message, "CreateTime", _SECONDS)))
    except ValueError:
        _refuse("CreateTime is not a time")


def _instant(seconds: int) -> datetime:
    """The instant so many seconds after the Unix epoch. Raises ValueError beyond what the contract takes."""
    if not 0 <= seconds < _LAST_SECOND:
        raise ValueError
    return datetime.fromtimestamp(seconds, UTC)


def _changed(message: Element) -> tuple[str, ...]:
    """Who came or left: a list of items, which it was not always; none where WeCom does not say."""
    changed = message.find("MemChangeList")
    if changed is None:
        return ()
    items = [item.text or "" for item in changed.findall("Item")] or (changed.text or "").split(",")
    names = [item.strip() for item in items]
    return tuple(name for name in names if _VISIBLE.fullmatch(name))


def _split(plain: bytes) -> tuple[bytes, bytes]:
    """The text and for whom it is: random bytes, length, text, receiver, and 1 to 32 bytes of padding."""
    padding = plain[-1]
    good = 1 <= padding <= _BLOCK and plain.endswith(bytes([padding]) * padding)
    length = int.from_bytes(plain[_HEAD - 4 : _HEAD])
    body = plain[_HEAD:-padding] if good else b""
    if not good or length > len(body):
        _refuse("it is not sealed with the EncodingAESKey")
    return body[:length], body[length:]
