"""Who signs tokens, and a process of a service that believes them and nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message
from grpc import StatusCode
from jwt.algorithms import OKPAlgorithm

from services.cli.house import House
from tests.contract import call, empty
from tests.support import Caller, Cards, Groups, Points, Referral, refused

C = TypeVar("C", Points, Cards, Groups, Referral)


@dataclass
class Issuer:
    """Signs tokens; `process` of the house checks them against the keys in the file."""

    house: House
    process: str
    key: Ed25519PrivateKey
    file: Path
    everything: str
    """All scopes of the service."""

    def token(self, scope: str | None = None, *, seconds: float = 600, **claims: Any) -> str:
        """A token; without a scope it has all."""
        scope = self.everything if scope is None else scope
        claims = {"sub": "till-7", "exp": time.time() + seconds, "scope": scope, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.key, algorithm="EdDSA", headers={"kid": "one"})

    def open(self, kind: type[C], scope: str | None = None, **claims: Any) -> C:
        """A channel to the process, with such a token."""
        return kind(self.house, self.token(scope, **claims), service=self.process)


@contextmanager
def guarded(house: House, service: str, folder: Path, everything: str) -> Iterator[Issuer]:
    """A further process of a service of the house, with a key file and no open door."""
    key = Ed25519PrivateKey.generate()
    public = {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "one", "alg": "EdDSA"}
    file = folder / f"keys-{service}-{house.front}.json"
    file.write_text(json.dumps({"keys": [public]}))
    process = house.start_replica(service, jwks_file=str(file), open_on_loopback="false")
    house.wait_ready(process)
    try:
        yield Issuer(house, process, key, file, everything)
    finally:
        house.process(process).stop()


def bad_tokens(issuer: Issuer) -> dict[str, list[str | None]]:
    """What opens nothing, by the reason that is given."""
    stranger = Issuer(
        issuer.house, issuer.process, Ed25519PrivateKey.generate(), issuer.file, issuer.everything
    )
    claims = {"sub": "till-7", "exp": time.time() + 600, "scope": issuer.everything}
    return {
        "TOKEN_MISSING": [None],
        "TOKEN_INVALID": [
            "garbage",
            issuer.token()[:-8],
            issuer.token(seconds=-60),
            stranger.token(),
            issuer.token(sub=None),
            issuer.token(exp=None),
            issuer.token(member_id=7),
            jwt.encode(claims, issuer.key, algorithm="EdDSA"),  # names no key
            jwt.encode(claims, issuer.key, algorithm="EdDSA", headers={"kid": "two"}),
            jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": "one"}),
            jwt.encode(claims, "", algorithm="none", headers={"kid": "one"}),
        ],
    }


# --- what holds for every method ----------------------------------------------------------------------


def refuses_bad_tokens(issuer: Issuer, caller: Caller, method: str, request: Message) -> None:
    """Asserts that a method opens to no bad token, and that the reason is given."""
    kept = caller.metadata
    for reason, bad in bad_tokens(issuer).items():
        for token in bad:
            caller.metadata = [("authorization", f"Bearer {token}")] if token else None
            try:
                with refused(StatusCode.UNAUTHENTICATED, reason):
                    call(caller, method, request)
            finally:
                caller.metadata = kept


def refuses_other_scopes(
    caller: Caller, method: str, needed: str, request: Message, fingerprint: Callable[[], object]
) -> None:
    """Asserts that who lacks the scope is told so, before shape and existence; nothing may be written."""
    before = fingerprint()
    for each in (request, empty(method)):
        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
            call(caller, method, each)
        assert refusal.metadata == {"scope": needed}
    assert fingerprint() == before


def refuses_other_members(
    caller: Caller, method: str, mine: Message, another: Message, *, opened: bool
) -> None:
    """Asserts that a member's token opens a method for that member alone, or nobody if it is not opened.

    `mine` is about the member, and `another` about another one.
    """
    reason = "MEMBER_MISMATCH" if opened else "MEMBER_TOKEN_REFUSED"
    for request in (another,) if opened else (mine, another):
        with refused(StatusCode.PERMISSION_DENIED, reason):
            call(caller, method, request)
