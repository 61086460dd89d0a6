"""Keyset pages: a token names the last row seen, and the question it belongs to."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from services.chassis.database import Row
from services.chassis.errors import InvalidArgument

Answer = TypeVar("Answer", bound=Message)

DEFAULT_SIZE = 50
PAGE_BYTES = 3 * 1024 * 1024  # gRPC takes 4 MiB in all
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_MOST = 2**63 - 1
_DIGEST = 8  # bytes


class PageTokenInvalid(InvalidArgument):
    """The page token was not made by this service for this question."""


def page_size(asked: int) -> int:
    """The page's size; the contract has bounded it already."""
    return asked or DEFAULT_SIZE


def question(request: Message) -> bytes:
    """What a page token belongs to: the request but for where it is in it."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.ClearField("page_token")
    asked.ClearField("page_size")
    return asked.SerializeToString(deterministic=True)


def fill(
    question: bytes,
    rows: Sequence[Row],
    size: int,
    key: str | Callable[[Row], str],
    make: Callable[[Row], Answer],
) -> tuple[list[Answer], str]:
    """The messages of a page, and the token of the next one, empty at the end.

    `rows` are one more than `size` if there are more, `key` is the column that numbers or names them, or
    makes a name of several. A page ends earlier, after at least one message, where the answer would grow over
    PAGE_BYTES.
    """
    messages: list[Answer] = []
    room = PAGE_BYTES
    for row in rows[:size]:
        message = make(row)
        room -= message.ByteSize()
        if messages and room < 0:
            break
        messages.append(message)
    if len(messages) == len(rows):
        return messages, ""
    last = rows[len(messages) - 1]
    return messages, make_token(question, last[key] if isinstance(key, str) else key(last))


def make_token(question: bytes, last: int | str) -> str:
    """A token that continues `question` after the row of this number or name."""
    name = str(last).encode()
    return _written(_digest(question, name) + name)


def read_token(question: bytes, token: str) -> int | None:
    """The number of the last row seen, None for a first page. Raises PageTokenInvalid."""
    last = read_name(question, token)
    if last is None:
        return None
    if not _NUMBER.fullmatch(last) or int(last) > _MOST:
        raise PageTokenInvalid
    return int(last)


def read_name(question: bytes, token: str) -> str | None:
    """The name of the last row seen, None for a first page. Raises PageTokenInvalid."""
    if not token:
        return None
    try:
        read = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        digest, name = read[:_DIGEST], read[_DIGEST:]
        last = name.decode()
    except ValueError:
        raise PageTokenInvalid from None
    if digest != _digest(question, name) or "\0" in last or _written(read) != token:
        raise PageTokenInvalid
    return last


def _written(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def _digest(question: bytes, name: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(question).digest() + name).digest()[:_DIGEST]
