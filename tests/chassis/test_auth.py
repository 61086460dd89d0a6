"""Tokens against a JWKS file, and what a method lets which token do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from services.chassis.auth import (
    KEYS_MAX_AGE,
    LEEWAY,
    OPEN,
    Access,
    Authenticator,
    Caller,
    MemberAccess,
    MemberMismatch,
    MemberTokenRefused,
    ScopeMissing,
    TokenInvalid,
    TokenMissing,
    authorise,
)

AUDIENCE = "loyalty"
Key = Ed25519PrivateKey | RSAPrivateKey

ED = Ed25519PrivateKey.generate()
RSA = generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = Ed25519PrivateKey.generate()


def jwk(kid: str, key: Key, **more: str) -> dict[str, Any]:
    if isinstance(key, RSAPrivateKey):
        public: dict[str, Any] = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        public = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, **more}


def write(file: Path, **keys: Key) -> Path:
    file.write_text(json.dumps({"keys": [jwk(kid, key) for kid, key in keys.items()]}))
    return file


def bearer(
    key: Key | str = ED, kid: str | None = "ed", algorithm: str | None = None, **claims: object
) -> str:
    """A token that is good but for what is said otherwise; a claim that is None is left out."""
    usual = {"sub": "mall", "exp": time.time() + 600, "aud": AUDIENCE, "scope": "points.read points.write"}
    said = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    algorithm = algorithm or ("RS256" if isinstance(key, RSAPrivateKey) else "EdDSA")
    return f"Bearer {jwt.encode(said, key, algorithm, headers={'kid': kid} if kid else None)}"


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    return write(tmp_path / "jwks.json", ed=ED, rsa=RSA)


@pytest.fixture
def authenticator(jwks: Path) -> Authenticator:
    return Authenticator(jwks, AUDIENCE)


@pytest.mark.parametrize(("key", "kid"), [(ED, "ed"), (RSA, "rsa")], ids=["EdDSA", "RS256"])
def test_a_token_says_who_calls_and_what_for(authenticator: Authenticator, key: Key, kid: str) -> None:
    token = bearer(key, kid, member_id="member-1")
    caller = authenticator.caller(token)
    scopes = frozenset({"points.read", "points.write"})
    assert (caller.subject, caller.scopes, caller.member_id) == ("mall", scopes, "member-1")
    assert caller.has("points.write")
    assert not caller.has("points.admin")
    assert authenticator.caller(token) is caller


@pytest.mark.parametrize("header", [None, "", "Basic bWFsbA==", "bearer", "Token x"])
def test_a_call_without_a_bearer_token_is_refused(authenticator: Authenticator, header: str | None) -> None:
    with pytest.raises(TokenMissing):
        authenticator.caller(header)


def signed_with_the_public_key(_: None) -> str:
    """The old trick: the public key, which everybody has, taken for a shared secret."""
    secret = RSA.public_key().public_numbers().n.to_bytes(256)
    return f"Bearer {jwt.encode({'sub': 'x', 'exp': time.time() + 60}, secret, 'HS256', {'kid': 'rsa'})}"


@pytest.mark.parametrize(
    "token",
    [
        lambda _: bearer(exp=time.time() - LEEWAY - 60),
        lambda _: bearer(exp=None),
        lambda _: bearer(sub=None),
        lambda _: bearer(kid="other"),
        lambda _: bearer(kid=None),
        lambda _: bearer(kid="rsa"),
        lambda _: bearer(STRANGER),
        lambda _: bearer("", algorithm="none"),
        lambda _: bearer(RSA, "rsa", "RS512"),
        lambda _: bearer(RSA, "rsa", "PS256"),
        signed_with_the_public_key,
        lambda _: bearer(aud="cards"),
        lambda _: bearer(aud=None),
        lambda _: bearer(nbf=time.time() + 600),
        lambda _: bearer(member_id=7),
        lambda _: bearer()[:-6],
        lambda _: "Bearer ",
        lambda _: "Bearer a.b.c",
        lambda _: "Bearer " + "é" * 10,
    ],
    ids=[
        *("expired", "without end", "without subject", "unknown kid", "no kid", "another key's kid"),
        *("a stranger's key", "alg none", "RS512", "PS256", "HS256", "wrong audience", "no audience"),
        *("not yet valid", "member not text", "cut", "empty", "nonsense", "not ASCII"),
    ],
)
def test_a_token_that_is_not_wholly_good_is_refused(
    authenticator: Authenticator, token: Callable[[None], str]
) -> None:
    with pytest.raises(TokenInvalid):
        authenticator.caller(token(None))


def test_without_an_audience_any_will_do(jwks: Path) -> None:
    open_to_all = Authenticator(jwks, None)
    assert open_to_all.caller(bearer(aud=None)).subject == "mall"
    assert open_to_all.caller(bearer(aud="cards")).subject == "mall"


def still_opens(authenticator: Authenticator, token: str) -> bool:
    try:
        authenticator.caller(token)
    except TokenInvalid:
        return False
    time.sleep(0.05)
    return True


def test_a_token_ends_at_one_instant_whether_it_was_seen_before_or_not(
    jwks: Path, authenticator: Authenticator
) -> None:
    token = bearer(exp=int(time.time()) - LEEWAY + 2)
    deadline = time.monotonic() + 30
    while still_opens(authenticator, token):
        assert time.monotonic() < deadline
    assert not still_opens(Authenticator(jwks, AUDIENCE), token)


def test_a_key_that_is_taken_out_of_the_file_no_longer_opens(
    jwks: Path, authenticator: Authenticator
) -> None:
    withdrawn, kept = bearer(), bearer(RSA, "rsa")
    assert still_opens(authenticator, withdrawn)
    write(jwks, rsa=RSA)
    deadline = time.monotonic() + KEYS_MAX_AGE + 20
    while still_opens(authenticator, withdrawn):
        assert time.monotonic() < deadline
    assert authenticator.caller(kept).subject == "mall"


def test_a_key_without_a_kid_or_of_another_kind_opens_nothing(tmp_path: Path) -> None:
    nameless = jwk("ed", ED)
    del nameless["kid"]
    keys = [nameless, jwk("rsa", RSA, alg="RS512")]
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": keys}))
    authenticator = Authenticator(tmp_path / "jwks.json", AUDIENCE)
    for token in (bearer(), bearer(RSA, "rsa"), bearer(RSA, "rsa", "RS512")):
        with pytest.raises(TokenInvalid):
            authenticator.caller(token)


def test_with_no_file_everybody_is_let_in() -> None:
    caller = Authenticator(None, None).caller(None)
    assert caller is OPEN
    assert caller.has("points.admin")


# --- what a method lets which token do ----------------------------------------------------------------

READ = Access("points.read", MemberAccess.READ)
ACT = Access("points.read", MemberAccess.ACT)
NONE = Access("points.read")
BRAND = Caller("mall", frozenset({"points.read"}))
MEMBER = Caller("mini-program", frozenset({"points.read"}), member_id="member-1")


@pytest.mark.parametrize("access", [READ, ACT, NONE])
def test_a_scope_that_is_missing_refuses_whoever_calls(access: Access) -> None:
    for caller in (Caller("mall", frozenset()), Caller("mini-program", frozenset(), "member-1")):
        with pytest.raises(ScopeMissing) as refusal:
            authorise(caller, access, "member-1")
        assert refusal.value.metadata == {"scope": "points.read"}


@pytest.mark.parametrize("scope", ["points", "points.readx", "POINTS.READ", "points.*", "cards.read"])
def test_a_scope_is_one_word_and_nothing_like_it(scope: str) -> None:
    with pytest.raises(ScopeMissing):
        authorise(Caller("mall", frozenset({scope})), READ, None)


def test_a_brand_s_token_may_name_any_member_or_none() -> None:
    for access in (READ, ACT, NONE):
        for member in ("member-1", "member-2", None):
            authorise(BRAND, access, member)


def test_a_member_token_calls_only_the_methods_that_are_open_to_it() -> None:
    authorise(MEMBER, READ, "member-1")
    authorise(MEMBER, ACT, "member-1")
    with pytest.raises(MemberTokenRefused):
        authorise(MEMBER, NONE, "member-1")


@pytest.mark.parametrize("named", ["member-2", "member-1 ", "", None])
def test_a_member_token_names_its_own_member_and_nobody_else(named: str | None) -> None:
    with pytest.raises(MemberMismatch):
        authorise(MEMBER, READ, named)


def test_an_empty_member_id_is_still_a_member_token() -> None:
    with pytest.raises(MemberTokenRefused):
        authorise(Caller("mini-program", frozenset({"points.read"}), ""), NONE, "")
