"""Names that the services make: ids, buckets, and hashes of what was asked."""

from __future__ import annotations

import base64
import hashlib
import uuid
import zlib
from datetime import datetime
from functools import lru_cache

import uuid_utils

from services.chassis.clock import from_micros

BUCKETS = 1024
REMEMBERED = 65_536  # entities whose bucket a process keeps in mind: a write asks for it a dozen times


@lru_cache(REMEMBERED)
def bucket(entity_key: str) -> int:
    """The partition that a member (or another entity) belongs to: crc32 modulo 1,024."""
    return zlib.crc32(entity_key.encode()) % BUCKETS


def new_id(prefix: str) -> str:
    """A fresh UUIDv7 with a prefix that shows its kind."""
    return f"{prefix}_{uuid_utils.uuid7().hex}"


def numbered_id(prefix: str, number: int) -> str:
    """A fresh UUIDv7 whose last 32 bits say which row it names, so that finding it needs no index."""
    return f"{prefix}_{uuid_utils.uuid7().hex[:24]}{number:08x}"


def number_of(numbered: str) -> int:
    """The number that `numbered_id` put in."""
    return int(numbered[-8:], 16)


def made_at(made: str) -> datetime:
    """When an id of ours was made, to the millisecond."""
    return from_micros((uuid.UUID(made.rpartition("_")[2]).int >> 80) * 1000)


def own_request_id(*parts: str) -> str:
    """The request_id of a use case that no caller asked for: `~` and a hash of its business id."""
    digest = hashlib.sha256("\x00".join(parts).encode()).digest()
    return "~" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
