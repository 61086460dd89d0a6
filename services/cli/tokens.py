"""`loyalty token`: tokens for development, signed with a key that stays in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import jwt
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from services.cli.house import SERVICES

ALGORITHM = "EdDSA"
PRIVATE, PUBLIC = "private.jwk.json", "jwks.json"


def token(
    *,
    subject: Annotated[str, typer.Option(help="Who calls; the operator on record.")] = "developer",
    scope: Annotated[list[str] | None, typer.Option(help="May be repeated. [default: all]")] = None,
    member: Annotated[str | None, typer.Option(help="Makes a member token, for this member alone.")] = None,
    ttl: Annotated[int, typer.Option(min=1, help="Seconds that it is valid.")] = 3600,
    audience: Annotated[str | None, typer.Option(help="The `aud` that the service wants, if any.")] = None,
    keys: Annotated[
        Path, typer.Option(envvar="LOYALTY_KEYS", help="Folder of the keys, made on first use.")
    ] = Path(".loyalty/keys"),
) -> None:
    """Print a token for development. Services check it with JWKS_FILE set to the folder's jwks.json."""
    key = _key(keys)
    scopes = scope or [f"{service}.{right}" for service in SERVICES for right in ("read", "write", "admin")]
    claims = {
        "sub": subject,
        "exp": int(time.time()) + ttl,
        "scope": " ".join(scopes),
        **({"member_id": member} if member else {}),
        **({"aud": audience} if audience else {}),
    }
    signer = OKPAlgorithm.from_jwk(json.dumps(key))
    typer.echo(jwt.encode(claims, signer, algorithm=ALGORITHM, headers={"kid": key["kid"]}))  # type: ignore[arg-type]


def _key(folder: Path) -> dict[str, Any]:
    """The private key, made if there is none, its public half beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    private = folder / PRIVATE
    if not private.exists():
        made = OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate(), as_dict=True)
        made |= {"alg": ALGORITHM, "kid": hashlib.sha256(made["x"].encode()).hexdigest()[:16]}
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(made, file)
    key: dict[str, Any] = json.loads(private.read_text())
    public = {name: value for name, value in key.items() if name != "d"}
    if not (folder / PUBLIC).exists():
        (folder / PUBLIC).write_text(json.dumps({"keys": [public]}))
    return key
