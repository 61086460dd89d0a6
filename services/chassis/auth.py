"""Who calls, and what they may: bearer tokens checked once and remembered, and a table of methods.

A token's claims: `sub`, `exp`, `scope` (words separated by spaces), optionally `aud`, and `member_id` for a
*member token*, which a mini-program holds for one member and which may call only what the table says.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import jwt
import structlog
from jwt import InvalidTokenError, PyJWK, PyJWTError

from services.chassis.errors import PermissionDenied, Unauthenticated

ALGORITHMS = ["EdDSA", "RS256"]
REMEMBERED = 10_000  # tokens
LEEWAY = 5  # seconds of skew between us and the issuer
KEYS_MAX_AGE = 5.0  # seconds between looks at the JWKS file

log = structlog.get_logger()


class TokenMissing(Unauthenticated):
    """The call carries no bearer token."""


class TokenInvalid(Unauthenticated):
    """The token is malformed, expired, or not signed by a known key."""


class ScopeMissing(PermissionDenied):
    """The token lacks the scope that this method needs."""


class MemberTokenRefused(PermissionDenied):
    """A member token may not call this method."""


class MemberMismatch(PermissionDenied):
    """A member token may name only its own member."""


class MemberAccess(Enum):
    """What a member token may do with a method."""

    NONE = "none"
    READ = "read"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Access:
    """One row of a service's method table."""

    scope: str
    member: MemberAccess = MemberAccess.NONE


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    subject: str
    scopes: frozenset[str]
    member_id: str | None = None
    expires: float = float("inf")  # Unix seconds, the leeway included
    everything: bool = False

    def has(self, scope: str) -> bool:
        """Whether the caller holds a scope."""
        return self.everything or scope in self.scopes


OPEN = Caller("loopback", frozenset(), everything=True)
CALLER: ContextVar[Caller] = ContextVar("caller", default=OPEN)


class Authenticator:
    """Checks tokens against a JWKS file, read again when it changes; with no file, lets everybody in."""

    def __init__(self, jwks_file: Path | None, audience: str | None) -> None:
        self._file = jwks_file
        self._audience = audience
        self._keys: dict[str, PyJWK] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = 0.0
        self._known: OrderedDict[bytes, Caller] = OrderedDict()
        if jwks_file:
            self._load()

    def caller(self, authorization: str | None) -> Caller:
        """Who holds the token. Raises TokenMissing or TokenInvalid."""
        if self._file is None:
            return OPEN
        if not authorization or not authorization.startswith("Bearer "):
            raise TokenMissing
        if time.monotonic() - self._looked > KEYS_MAX_AGE:
            self._reload()
        digest = hashlib.sha256(authorization.encode()).digest()
        caller = self._known.get(digest)
        if caller is None:
            caller = self._verify(authorization.removeprefix("Bearer "))
            self._known[digest] = caller
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        elif caller.expires <= time.time():
            raise TokenInvalid
        return caller

    def _reload(self) -> None:
        """Takes up a changed file; an unreadable one, perhaps half written, leaves the keys as they are."""
        try:
            self._load()
        except (OSError, ValueError, KeyError, TypeError, PyJWTError) as error:
            log.warning("keys_unreadable", error=repr(error))

    def _load(self) -> None:
        assert self._file is not None  # noqa: S101 - narrows the type
        self._looked = time.monotonic()
        stat = self._file.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return
        keys = json.loads(self._file.read_text())["keys"]  # PyJWKSet refuses none, which withdraws them all
        self._keys = {key["kid"]: PyJWK.from_dict(key) for key in keys if key.get("kid")}
        self._stamp = stamp
        self._known.clear()  # a key may have been withdrawn

    def _verify(self, token: str) -> Caller:
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys[header["kid"]]
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[a for a in ALGORITHMS if a == (key.algorithm_name or a)],
                audience=self._audience,
                leeway=LEEWAY,
                options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
            )
            scopes = frozenset(str(claims.get("scope", "")).split())
            member = claims.get("member_id")
            if member is not None and not isinstance(member, str):
                raise TokenInvalid
            return Caller(str(claims["sub"]), scopes, member, float(claims["exp"]) + LEEWAY)
        except (InvalidTokenError, KeyError, ValueError, TypeError):
            raise TokenInvalid from None


def authorise(caller: Caller, access: Access, member_id: str | None) -> None:
    """Lets a call pass, or raises ScopeMissing, MemberTokenRefused or MemberMismatch.

    `member_id` is the member that the request names, None where it names none.
    """
    if not caller.has(access.scope):
        raise ScopeMissing(scope=access.scope)
    if caller.member_id is not None:
        if access.member is MemberAccess.NONE:
            raise MemberTokenRefused
        if member_id != caller.member_id:
            raise MemberMismatch
