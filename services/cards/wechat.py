"""WeChat Pay v3: a notification checked, opened and read.

The platform signs timestamp, nonce and body with the key that its serial names; the payment lies in the body,
sealed with the merchant's APIv3 key. Keys come from files that operators put there, never over the network.
"""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Protocol

import structlog
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from services.cards.channels import Paid
from services.cards.errors import NotificationRefused
from services.chassis.clock import to_micros

CHANNEL = "wechat"
SIGNATURE = "Wechatpay-Signature"
SERIAL = "Wechatpay-Serial"
TIMESTAMP = "Wechatpay-Timestamp"
NONCE = "Wechatpay-Nonce"
MAX_SKEW = 300  # seconds between the platform's clock and ours; WeChat signs each repeat anew
MAX_BODY = 65_536  # bytes, as in the contract
MAX_AMOUNT = 10**12  # minor units, as in the contract
SEAL_KEY_BYTES = 32
MIN_KEY_BITS = 2048
LOOK_AGAIN = 5.0  # seconds between looks at the folder of keys

_SECOND = 1_000_000  # microseconds
_UNIX_SECONDS = re.compile(r"[0-9]{1,20}")
_VISIBLE = re.compile(r"[!-~]{1,128}")  # a line break would let the nonce end where the body begins
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # what the contract takes for ids of orders and payments
_CURRENCY = re.compile(r"[A-Z]{3}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_UUID = re.compile(r"[0-9a-f]{32}")
_KEY_ID = "PUB_KEY_ID_"
_YEAR_9999 = datetime(9999, 1, 1, tzinfo=UTC)  # where the contract's times end
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALWAYS = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PlatformKey:
    """A public key of the platform, and when it is good: a certificate's has an end, a mere key none."""

    public: RSAPublicKey
    not_before: datetime = _ALWAYS[0]
    not_after: datetime = _ALWAYS[1]


class PlatformKeys(Protocol):
    """Keys by serial: a mapping, or a KeyFolder."""

    def get(self, serial: str, /) -> PlatformKey | None:
        """The key, or None where there is none of that serial."""
        ...


class WechatPay:
    """The notifications of one merchant. Raises ValueError for an APIv3 key that is not 32 bytes."""

    def __init__(
        self, keys: PlatformKeys, merchant_id: str, app_ids: Collection[str], api_v3_key: bytes
    ) -> None:
        if len(api_v3_key) != SEAL_KEY_BYTES:
            raise ValueError(f"an APIv3 key has {SEAL_KEY_BYTES} bytes")
        self._keys = keys
        self._merchant_id = merchant_id
        self._app_ids = frozenset(app_ids)
        self._seal = AESGCM(api_v3_key)

    def read(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Paid:
        """What a notification of a successful payment tells. Raises NotificationRefused, nothing else.

        One payment may be told many times, each time under a new nonce: its payment_id tells that.
        """
        self._check(headers, body, now)
        notification = _object(body, "the body")
        _expect(notification, "event_type", "TRANSACTION.SUCCESS")
        _expect(notification, "resource_type", "encrypt-resource")
        payment = _object(self._open(_part(notification, "resource")), "the resource")
        _expect(payment, "mchid", self._merchant_id)
        _expect(payment, "appid", *self._app_ids)
        _expect(payment, "trade_state", "SUCCESS")
        amount = _part(payment, "amount")
        return Paid(
            order_id=_order_id(_text(payment, "out_trade_no", _NAME)),
            channel=CHANNEL,
            payment_id=_text(payment, "transaction_id", _NAME),
            amount_minor=_amount(amount, "total"),
            currency_code=_text(amount, "currency", _CURRENCY),
            paid_time=_time(payment, "success_time"),
        )

    def _check(self, headers: Mapping[str, str], body: bytes, now: datetime) -> None:
        """Whether the platform signed it, and just now."""
        timestamp = _text(headers, TIMESTAMP, _UNIX_SECONDS)
        nonce = _text(headers, NONCE, _VISIBLE)
        if not 1 <= len(body) <= MAX_BODY:
            _refuse(f"the body does not have 1 to {MAX_BODY} bytes")
        if abs(to_micros(now) - int(timestamp) * _SECOND) > MAX_SKEW * _SECOND:
            _refuse(f"{TIMESTAMP} is more than {MAX_SKEW} seconds away")
        key = self._keys.get(headers.get(SERIAL, ""))
        if key is None:
            _refuse(f"{SERIAL} names no key of the platform")
        if not key.not_before <= now <= key.not_after:
            _refuse(f"{SERIAL} names a key that is not good now")
        signed = f"{timestamp}\n{nonce}\n".encode() + body + b"\n"
        try:
            key.public.verify(_decoded(headers, SIGNATURE), signed, PKCS1v15(), SHA256())
        except InvalidSignature:
            _refuse(f"{SIGNATURE} is not the platform's")

    def _open(self, resource: Mapping[str, object]) -> bytes:
        _expect(resource, "algorithm", "AEAD_AES_256_GCM")
        nonce, sealed = _text(resource, "nonce"), _decoded(resource, "ciphertext")
        beside = "" if resource.get("associated_data") is None else _text(resource, "associated_data")
        try:
            return self._seal.decrypt(nonce.encode(), sealed, beside.encode())
        except (InvalidTag, ValueError):  # ValueError: a nonce of no good length, or no Unicode
            _refuse("the resource is not sealed with the APIv3 key")


def _order_id(out_trade_no: str) -> str:
    """WeChat takes 32 characters at most, so out_trade_no is what follows `ord_` in an order's id."""
    return f"ord_{out_trade_no}" if _UUID.fullmatch(out_trade_no) else out_trade_no


def _refuse(cause: str) -> NoReturn:
    """Says what is wrong by names alone: a cause quotes neither keys nor what was sealed."""
    raise NotificationRefused(cause=cause) from None


def _object(text: bytes, name: str) -> dict[str, object]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_once_each, parse_constant=_no_number)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        _refuse(f"{name} is not a JSON object in UTF-8 with each name once")
    return value


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name comes twice")
    return fields


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _expect(fields: Mapping[str, object], name: str, *expected: str) -> None:
    if fields.get(name) not in expected:
        _refuse(f"{name} is not what it must be")


def _part(fields: Mapping[str, object], name: str) -> dict[str, object]:
    part = fields.get(name)
    if not isinstance(part, dict):
        _refuse(f"{name} is not an object")
    return part


def _text(fields: Mapping[str, object], name: str, pattern: re.Pattern[str] | None = None) -> str:
    text = fields.get(name)
    if not isinstance(text, str) or (pattern and not pattern.fullmatch(text)):
        _refuse(f"{name} is absent or malformed")
    return text


def _decoded(fields: Mapping[str, object], name: str) -> bytes:
    """Base64 in its one proper form, so that nothing that was sent can be changed and still pass."""
    text = _text(fields, name)
    try:
        data = b64decode(text)
    except ValueError:
        data = b""
    if not data or b64encode(data).decode() != text:
        _refuse(f"{name} is not base64")
    return data


def _amount(fields: Mapping[str, object], name: str) -> int:
    amount = fields.get(name)
    if type(amount) is not int or not 1 <= amount <= MAX_AMOUNT:  # a bool is an int, but no amount
        _refuse(f"{name} is not an amount")
    return amount


def _time(fields: Mapping[str, object], name: str) -> datetime:
    try:
        at = datetime.fromisoformat(_text(fields, name, _TIME)).astimezone(UTC)
    except (ValueError, OverflowError):
        at = None
    if at is None or not _EPOCH <= at < _YEAR_9999:
        _refuse(f"{name} is not a time")
    return at


class KeyFolder:
    """The platform's keys: the `.pem` files of a folder, which is read again when they change.

    A certificate goes by its own serial number, a public key by the name of its file, `PUB_KEY_ID_….pem`.
    Raises ValueError or OSError if they cannot be read at start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys: dict[str, PlatformKey] = {}
        self._stamp: list[tuple[str, int, int]] | None = None
        self._looked = 0.0
        self._load()

    def get(self, serial: str, /) -> PlatformKey | None:
        """The key of a serial, as of the last few seconds."""
        if time.monotonic() - self._looked > LOOK_AGAIN:
            self._reload()
        return self._keys.get(serial)

    def _reload(self) -> None:
        """Takes up changed files; an unreadable one, perhaps half written, leaves the keys as they are."""
        try:
            self._load()
        except (OSError, ValueError) as error:
            log.warning("platform_keys_unreadable", error=repr(error))

    def _load(self) -> None:
        self._looked = time.monotonic()
        files = sorted(file for file in self._folder.iterdir() if file.suffix == ".pem")
        stats = [(file.name, file.stat()) for file in files]
        stamp = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]
        if stamp == self._stamp:
            return
        self._keys = dict(_platform_key(file) for file in files)
        self._stamp = stamp


def _platform_key(file: Path) -> tuple[str, PlatformKey]:
    """A key and its serial. Raises ValueError, which names the file and quotes nothing of it."""
    pem = file.read_bytes()
    try:
        if b"BEGIN CERTIFICATE" in pem:
            certificate = load_pem_x509_certificate(pem)
            serial = _hex(certificate.serial_number)
            good = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            return serial, PlatformKey(_strong(certificate.public_key()), *good)
        public = _strong(load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            f"{file.name} holds no certificate and no public key of RSA with {MIN_KEY_BITS} bits, in PEM"
        ) from None
    if not file.stem.startswith(_KEY_ID):
        raise ValueError(f"{file.name} holds a public key: its name must be the key's id, {_KEY_ID}….pem")
    return file.stem, PlatformKey(public)


def _strong(key: object) -> RSAPublicKey:
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise ValueError
    return key


def _hex(serial_number: int) -> str:
    """As WeChat writes it: capital letters, two digits a byte."""
    return serial_number.to_bytes((serial_number.bit_length() + 7) // 8).hex().upper()
