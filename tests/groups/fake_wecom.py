"""A WeCom of our own: an HTTP server that checks what it is asked and answers as WeCom documents it.

It has customer chats, which staff make and customers enter by a link; it signs and seals what it tells of
them. Paths are of https://developer.work.weixin.qq.com/document/path/: 92229, 92122, 92130, 90968, 91039.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from base64 import b64decode, b64encode
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from loyalty.groups.v1 import groups_service_pb2 as pb

CORP, OTHER_CORP = "wx5823bf96d3bd56c7", "wwffffffffffffffff"
SECRET = "a-secret-of-the-app-0123456789"  # noqa: S105 - nobody's
TOKEN = "QDG6eK"  # noqa: S105 - as published, like the corp and the key
AES_KEY = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"

STAFF, CUSTOMER = 1, 2
ADDED_BY_LINK = 3  # a JoinScene
WAY_FIELDS = {
    *("scene", "remark", "auto_create_room", "room_base_name", "room_base_id", "chat_id_list", "state"),
}

NO_ACCESS_TOKEN, TOKEN_ENDED, WRONG_SECRET, NO_CORP = 40014, 42001, 40001, 40013
NO_CHAT, MALFORMED, TOO_MANY, TOO_MANY_AT_ONCE, BUSY = 40050, 40058, 45009, 45033, -1


# --- what it signs and seals --------------------------------------------------------------------------


def seal(text: bytes, *, corp_id: str = CORP, aes_key: str = AES_KEY) -> str:
    key = b64decode(aes_key + "=")
    plain = os.urandom(16) + len(text).to_bytes(4, "big") + text + corp_id.encode()
    padding = 32 - len(plain) % 32
    encryptor = Cipher(AES(key), CBC(key[:16])).encryptor()
    return b64encode(encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize()).decode()


def signed(sealed: str, *, token: str = TOKEN, timestamp: str = "", nonce: str = "") -> dict[str, str]:
    """The query of a callback."""
    timestamp, nonce = timestamp or str(int(time.time())), nonce or str(int.from_bytes(os.urandom(4)))
    text = "".join(sorted([token, timestamp, nonce, sealed]))
    return {
        "msg_signature": hashlib.sha1(text.encode()).hexdigest(),  # noqa: S324 - WeCom's choice
        "timestamp": timestamp,
        "nonce": nonce,
    }


def enveloped(sealed: str, corp_id: str = CORP) -> bytes:
    """The body of a callback."""
    return (
        f"<xml><ToUserName><![CDATA[{corp_id}]]></ToUserName><Encrypt><![CDATA[{sealed}]]></Encrypt>"
        "<AgentID><![CDATA[218]]></AgentID></xml>"
    ).encode()


def a_message(at: datetime, chat_id: str, change: str, detail: str = "", **more: str) -> bytes:
    """What is told of a chat, before it is sealed; `more` are elements, written as they are."""
    texts = {
        "ToUserName": CORP,
        "FromUserName": "sys",
        "MsgType": "event",
        "Event": "change_external_chat",
        "ChatId": chat_id,
        "ChangeType": change,
        **({"UpdateDetail": detail} if detail else {}),
    }
    elements = "".join(f"<{name}><![CDATA[{text}]]></{name}>" for name, text in texts.items())
    extra = "".join(f"<{name}>{text}</{name}>" for name, text in more.items())
    return f"<xml>{elements}<CreateTime>{int(at.timestamp())}</CreateTime>{extra}</xml>".encode()


def forwarded(message: bytes, **member_ids: str) -> pb.VerifyWecomCallbackRequest:
    """A callback as the brand forwards it."""
    sealed = seal(message)
    query = signed(sealed)
    return pb.VerifyWecomCallbackRequest(
        msg_signature=query["msg_signature"],
        timestamp=query["timestamp"],
        nonce=query["nonce"],
        body=enveloped(sealed),
        member_ids=member_ids,
    )


# --- its chats ----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class FakeChat:
    """A chat, with `room` for so many customers."""

    chat_id: str = field(default_factory=lambda: f"wr{uuid4().hex[:30]}")
    name: str
    room: int = 500
    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 0


class FakeWecom:
    """One corp with one app."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Calls, by path, the access token's included."""
        self.chats: dict[str, FakeChat] = {}
        self.ways: dict[str, dict[str, Any]] = {}
        self.faults: deque[int | bytes | dict[str, Any]] = deque()
        """What comes instead of the next answers: a status, a body, or an answer."""
        self.expires_in = 7200
        self._tokens: dict[str, bool] = {}
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def calls(self, path: str) -> list[dict[str, Any]]:
        """What was asked of one path, so far."""
        return [body for asked, body in self.asked if asked == path]

    def end_tokens(self) -> None:
        """Every access token given so far has ended."""
        self._tokens = dict.fromkeys(self._tokens, False)

    def forget_tokens(self) -> None:
        """No access token given so far is known."""
        self._tokens = {}

    # --- what people do -------------------------------------------------------------------------------

    def make(self, name: str, **more: Any) -> FakeChat:
        """Staff make a chat."""
        chat = FakeChat(name=name, **more)
        chat.members["boss"] = {"userid": "boss", "type": STAFF, "join_time": 1, "join_scene": 1}
        self.chats[chat.chat_id] = chat
        return chat

    def enter(self, link: str, contact_id: str, at: datetime) -> tuple[FakeChat, bool]:
        """Somebody enters by a link: the chat they are in, and whether it was made for them."""
        way = next(way for way in self.ways.values() if way["qr_code"] == link)
        rooms = (self.chats[chat_id] for chat_id in way["chat_id_list"])
        chat = next((chat for chat in rooms if self.customers(chat) < chat.room), None)
        made = chat is None
        if chat is None:
            assert way.get("auto_create_room", 1), "the chat is full, and no other follows"
            chat = self.make(f"{way['room_base_name']}{way['room_base_id']}")
            way["chat_id_list"].append(chat.chat_id)
            way["room_base_id"] += 1
        self.add(chat, contact_id, at, state=way.get("state", ""))
        return chat, made

    def add(
        self, chat: FakeChat, contact_id: str, at: datetime, *, unionid: str = "", state: str = ""
    ) -> None:
        """Somebody is in a chat."""
        chat.version += 1
        chat.members[contact_id] = {
            "userid": contact_id,
            "type": CUSTOMER,
            "unionid": unionid or f"o{contact_id}",
            "join_time": int(at.timestamp()),
            "join_scene": ADDED_BY_LINK,
            **({"state": state} if state else {}),
        }

    def customers(self, chat: FakeChat) -> int:
        return sum(member["type"] == CUSTOMER for member in chat.members.values())

    def came(self, chat: FakeChat, at: datetime, *contact_ids: str) -> bytes:
        """Tells that people came."""
        return self._people(chat, at, "add_member", contact_ids, JoinScene="3")

    def left(self, chat: FakeChat, at: datetime, *contact_ids: str, removed: bool = False) -> bytes:
        """Tells that people left; from then on they are not in it."""
        chat.version += 1
        for contact_id in contact_ids:
            chat.members.pop(contact_id, None)
        return self._people(chat, at, "del_member", contact_ids, QuitScene="1" if removed else "0")

    def _people(
        self, chat: FakeChat, at: datetime, detail: str, contact_ids: tuple[str, ...], **scene: str
    ) -> bytes:
        items = "".join(f"<Item><![CDATA[{contact_id}]]></Item>" for contact_id in contact_ids)
        return a_message(
            at,
            chat.chat_id,
            "update",
            detail,
            **scene,
            MemChangeCnt=str(len(contact_ids)),
            MemChangeList=items,
            CurMemVer=hashlib.sha256(f"{chat.chat_id}{chat.version}".encode()).hexdigest()[:32],
        )

    # --- what it answers ------------------------------------------------------------------------------

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        wecom = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])))

            def _answer(self, body: bytes) -> None:
                url = urlsplit(self.path)
                with wecom._lock:
                    query = {name: values[0] for name, values in parse_qs(url.query).items()}
                    path = url.path.removeprefix("/cgi-bin/")
                    status, answer = wecom._respond(self.command, path, query, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """It would tell of access tokens."""

        return Handler

    def _respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body) if body else query
        self.asked.append((path, asked))
        if self.faults:
            fault = self.faults.popleft()
            if isinstance(fault, int):
                return fault, b""
            return 200, fault if isinstance(fault, bytes) else json.dumps(fault).encode()
        answers = {
            ("GET", "gettoken"): self._give_token,
            ("POST", "externalcontact/groupchat/get"): self._get_chat,
            ("POST", "externalcontact/groupchat/add_join_way"): self._add_way,
            ("POST", "externalcontact/groupchat/get_join_way"): self._get_way,
        }
        answer = answers.get((method, path))
        if answer is None:
            return 404, b""
        errcode = 0 if path == "gettoken" else self._no_access(query.get("access_token", ""))
        said = {"errcode": errcode} if errcode else answer(asked)
        return 200, json.dumps({"errcode": 0, "errmsg": "ok", **said}, ensure_ascii=False).encode()

    def _no_access(self, token: str) -> int:
        if token not in self._tokens:
            return NO_ACCESS_TOKEN
        return 0 if self._tokens[token] else TOKEN_ENDED

    def _give_token(self, query: dict[str, Any]) -> dict[str, Any]:
        if query.get("corpid") != CORP:
            return {"errcode": NO_CORP}
        if query.get("corpsecret") != SECRET:
            return {"errcode": WRONG_SECRET}
        token = next(
            (token for token, good in self._tokens.items() if good), None
        )  # while it is good, the same
        if token is None:
            token = uuid4().hex
            self._tokens[token] = True
        return {"access_token": token, "expires_in": self.expires_in}

    def _get_chat(self, asked: dict[str, Any]) -> dict[str, Any]:
        chat = self.chats.get(asked.get("chat_id", ""))
        if chat is None:
            return {"errcode": NO_CHAT}
        members = list(chat.members.values())
        return {"group_chat": {"chat_id": chat.chat_id, "name": chat.name, "member_list": members}}

    def _add_way(self, asked: dict[str, Any]) -> dict[str, Any]:
        chats = asked.get("chat_id_list", [])
        base, number = asked.get("room_base_name", ""), asked.get("room_base_id", 1)
        good = (
            asked.keys() <= WAY_FIELDS
            and asked.get("scene") in (1, 2)
            and asked.get("auto_create_room", 1) in (0, 1)
            and 1 <= len(chats) <= 5
            and len(asked.get("state", "")) <= 30
            and len(asked.get("remark", "")) <= 30
            and len(base) <= 40
            and isinstance(number, int)
        )
        if not good:
            return {"errcode": MALFORMED}
        if not self.chats.keys() >= set(chats):
            return {"errcode": NO_CHAT}
        config_id = uuid4().hex
        link = f"https://work.weixin.qq.com/gm/{config_id}"
        self.ways[config_id] = {**asked, "config_id": config_id, "qr_code": link}
        return {"config_id": config_id}

    def _get_way(self, asked: dict[str, Any]) -> dict[str, Any]:
        way = self.ways.get(asked.get("config_id", ""))
        return {"errcode": MALFORMED} if way is None else {"join_way": way}
