"""Keyset pages: a token names the last row seen, and the question it belongs to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from services.chassis.database import Row
from services.chassis.errors import InvalidArgument

Answer = TypeVar("Answer", bound=Message)

DEFAULT_SIZE = 50
PAGE_BYTES = 3 * 1024 * 1024  # gRPC takes 4 MiB in all
_FORMAT = struct.Struct(">8sq")


class PageTokenInvalid(InvalidArgument):
    """The page token was not made by this service for this question."""


def page_size(asked: int) -> int:
    """The page's size; the contract has bounded it already."""
    return asked or DEFAULT_SIZE


def fill(
    question: bytes, rows: Sequence[Row], size: int, key: str, make: Callable[[Row], Answer]
) -> tuple[list[Answer], str]:
    """The messages of a page, and the token of the next one, empty at the end.

    `rows` are one more than `size` if there are more, `key` is the column that numbers them. A page ends
    earlier, after at least one message, where the answer would grow over PAGE_BYTES.
    """
    messages: list[Answer] = []
    room = PAGE_BYTES
    for row in rows[:size]:
        message = make(row)
        room -= message.ByteSize()
        if messages and room < 0:
            break
        messages.append(message)
    more = len(messages) < len(rows)
    return messages, make_token(question, rows[len(messages) - 1][key]) if more else ""


def make_token(question: bytes, last: int) -> str:
    """A token that continues `question` after the row numbered `last`."""
    return base64.urlsafe_b64encode(_FORMAT.pack(_digest(question), last)).decode().rstrip("=")


def read_token(question: bytes, token: str) -> int | None:
    """The number of the last row seen, None for a first page. Raises PageTokenInvalid."""
    if not token:
        return None
    try:
        digest, last = _FORMAT.unpack(base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True))
    except (binascii.Error, struct.error, ValueError):
        raise PageTokenInvalid from None
    if digest != _digest(question) or last < 0:
        raise PageTokenInvalid
    return int(last)


def _digest(question: bytes) -> bytes:
    return hashlib.sha256(question).digest()[:8]
