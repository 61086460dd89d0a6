"""WeChat Pay notifications: what the platform signed and sealed is read, all else is refused and says why.

`wechatpayv3`, the known library, is the oracle of signature and seal; it looks at neither the time, the
merchant, the app nor the kind of event.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wechatpayv3 import WeChatPay, WeChatPayType  # type: ignore[import-untyped]  # it ships no types

from services.cards import wechat
from services.cards.channels import Closed, Paid, PayChannel
from services.cards.errors import NotificationRefused
from services.cards.wechat import (
    MAX_BODY,
    NONCE,
    SERIAL,
    SIGNATURE,
    TIMESTAMP,
    KeyFolder,
    PlatformKey,
    WechatPay,
)

NOW = datetime(2027, 3, 1, 4, 0, tzinfo=UTC)
KEY_ID = "PUB_KEY_ID_0119000001092027030100192101000000"
MERCHANT, APP, SECOND_APP = "1900000109", "wxd678efh567hg6787", "wx8888888888888888"
SEAL_KEY, OTHER_SEAL_KEY = b"a-seal-key-of-exactly-32-bytes-.", b"another-seal-key-of-32-bytes-..."
UUID = "019a0b1c2d3e7f408192a3b4c5d6e7f8"
OPENID = "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o"

PLATFORM = generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = generate_private_key(public_exponent=65537, key_size=2048)
WECHAT = WechatPay({KEY_ID: PlatformKey(PLATFORM.public_key())}, MERCHANT, [APP, SECOND_APP], SEAL_KEY)

PAYMENT: dict[str, Any] = {
    "mchid": MERCHANT,
    "appid": APP,
    "out_trade_no": UUID,
    "transaction_id": "4200001234202703011234567890",
    "trade_type": "JSAPI",
    "trade_state": "SUCCESS",
    "trade_state_desc": "支付成功",
    "bank_type": "CMC",
    "attach": "",
    "success_time": "2027-03-01T11:59:58+08:00",
    "payer": {"openid": OPENID},
    "amount": {"total": 1900, "payer_total": 1400, "currency": "CNY", "payer_currency": "CNY"},
    "promotion_detail": [{"coupon_id": "109519", "amount": 500, "wechatpay_contribute": 500}],
}
PAID = Paid(
    order_id=f"ord_{UUID}",
    channel="wechat",
    payment_id="4200001234202703011234567890",
    amount_minor=1900,
    currency_code="CNY",
    paid_time=NOW - timedelta(seconds=2),
)

patiently = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True)
class Told:
    """A notification on its way."""

    headers: dict[str, str]
    body: bytes

    def header(self, name: str, value: str) -> Told:
        return replace(self, headers={**self.headers, name: value})


def sealed(plain: bytes, *, key: bytes = SEAL_KEY, beside: str = "transaction") -> dict[str, Any]:
    nonce = os.urandom(6).hex()
    return {
        "original_type": "transaction",
        "algorithm": "AEAD_AES_256_GCM",
        "ciphertext": b64encode(AESGCM(key).encrypt(nonce.encode(), plain, beside.encode())).decode(),
        "associated_data": beside,
        "nonce": nonce,
    }


def envelope(resource: object) -> dict[str, Any]:
    return {
        "id": "EV-2027030111595822320873",
        "create_time": "2027-03-01T11:59:59+08:00",
        "resource_type": "encrypt-resource",
        "event_type": "TRANSACTION.SUCCESS",
        "summary": "支付成功",
        "resource": resource,
    }


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def signed(
    body: bytes,
    *,
    at: datetime = NOW,
    nonce: str = "d824f2e086d3c1df967785d13fcd22ef",
    serial: str = KEY_ID,
    key: RSAPrivateKey = PLATFORM,
) -> Told:
    timestamp = str(int(at.timestamp()))
    signature = key.sign(f"{timestamp}\n{nonce}\n".encode() + body + b"\n", PKCS1v15(), SHA256())
    headers = {SIGNATURE: b64encode(signature).decode(), SERIAL: serial, TIMESTAMP: timestamp, NONCE: nonce}
    return Told(headers, body)


def told(payment: object = PAYMENT) -> Told:
    """As WeChat tells a payment."""
    return signed(to_json(envelope(sealed(to_json(payment)))))


def but(fields: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The same with one field otherwise; a deeper one by a path with dots."""
    name, _, deeper = path.partition(".")
    return {**fields, name: but(fields[name], deeper, value) if deeper else value}


def without(fields: dict[str, Any], path: str) -> dict[str, Any]:
    name, _, deeper = path.partition(".")
    if deeper:
        return {**fields, name: without(fields[name], deeper)}
    return {key: value for key, value in fields.items() if key != name}


def read(notification: Told, *, channel: PayChannel = WECHAT, now: datetime = NOW) -> Paid:
    return channel.read(notification.headers, notification.body, now)


def cause(notification: Told, *, channel: PayChannel = WECHAT, now: datetime = NOW) -> str:
    """Why it is refused; nothing secret is in what the refusal carries."""
    with pytest.raises(NotificationRefused) as caught:
        read(notification, channel=channel, now=now)
    shown = f"{caught.value!r} {caught.value.message} {caught.value.metadata} {caught.value.violations}"
    assert not any(secret in shown for secret in (SEAL_KEY.decode(), OPENID, UUID))
    assert caught.value.__suppress_context__
    return caught.value.metadata["cause"]


def oracle(merchant: RSAPrivateKey, **mode: str) -> WeChatPay:
    """The library as a merchant sets it up; its way to the network is shut."""
    private = merchant.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return WeChatPay(
        wechatpay_type=WeChatPayType.JSAPI,
        mchid=MERCHANT,
        private_key=private,
        cert_serial_no="01",
        appid=APP,
        apiv3_key=SEAL_KEY.decode(),
        proxy={"https": "http://127.0.0.1:9"},
        timeout=5,
        **mode,
    )


def public_pem(key: RSAPrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


BY_KEY = oracle(STRANGER, public_key=public_pem(PLATFORM).decode(), public_key_id=KEY_ID)


def oracle_reads(library: WeChatPay, notification: Told) -> Any:
    """The payment that the library found, or None."""
    headers = {**notification.headers, "Wechatpay-Signature-Type": "WECHATPAY2-SHA256-RSA2048"}
    try:
        answer = library.callback(headers, notification.body)
    except Exception:
        return None
    return answer["resource"] if answer else None


def test_a_payment_is_read_as_wechat_told_it() -> None:
    assert read(told()) == PAID


def test_a_payment_told_again_under_another_nonce_is_the_same_payment() -> None:
    body = told().body
    again = signed(body, nonce="another-nonce", at=NOW + timedelta(seconds=15))
    assert read(again) == read(signed(body)) == PAID


@pytest.mark.parametrize("app", [APP, SECOND_APP])
def test_each_of_the_merchants_apps_may_have_taken_the_payment(app: str) -> None:
    assert read(told(but(PAYMENT, "appid", app))) == PAID


@pytest.mark.parametrize("out_trade_no", ["till-4711", UUID.upper(), UUID[1:], f"ord_{UUID}"[:32]])
def test_an_order_that_is_none_of_ours_keeps_its_name(out_trade_no: str) -> None:
    assert read(told(but(PAYMENT, "out_trade_no", out_trade_no))).order_id == out_trade_no


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("2027-03-01T03:59:58Z", NOW - timedelta(seconds=2)),
        ("2027-03-01T03:59:58.5-00:30", NOW + timedelta(minutes=30, seconds=-1.5)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("9998-12-31T23:59:59Z", datetime(9998, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_time_of_any_zone_is_read(written: str, at: datetime) -> None:
    assert read(told(but(PAYMENT, "success_time", written))).paid_time == at


@pytest.mark.parametrize("beside", [None, "", "交易"])
def test_what_stands_beside_the_seal_may_be_empty_or_any_text(beside: str | None) -> None:
    resource = sealed(to_json(PAYMENT), beside=beside or "")
    resource = without(resource, "associated_data") if beside is None else resource
    notification = signed(to_json(envelope(resource)))
    assert read(notification) == PAID
    assert oracle_reads(BY_KEY, notification) == PAYMENT
    if beside is None:
        assert read(signed(to_json(envelope({**resource, "associated_data": None})))) == PAID


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_a_notification_of_up_to_five_minutes_ago_or_ahead_is_taken(seconds: int) -> None:
    assert read(told(), now=NOW + timedelta(seconds=seconds)) == PAID


@pytest.mark.parametrize(
    "off", [timedelta(seconds=300, microseconds=1), timedelta(days=1), timedelta(days=9000)]
)
def test_a_stale_notification_is_refused_though_the_library_takes_it(off: timedelta) -> None:
    notification = told()
    assert oracle_reads(BY_KEY, notification) == PAYMENT
    for now in (NOW + off, NOW - off):
        assert cause(notification, now=now) == "Wechatpay-Timestamp is more than 300 seconds away"


FAULTS: dict[str, Callable[[dict[str, Any]], Told]] = {
    "signed by a stranger": lambda said: signed(to_json(said), key=STRANGER),
    "another serial": lambda said: signed(to_json(said), serial="5F7A"),
    "another nonce": lambda said: signed(to_json(said)).header(NONCE, "d824"),
    "another timestamp": lambda said: signed(to_json(said)).header(TIMESTAMP, str(int(NOW.timestamp()) + 1)),
    "another body": lambda said: replace(signed(to_json(said)), body=to_json({**said, "summary": ""})),
    "no signature": lambda said: signed(to_json(said)).header(SIGNATURE, ""),
    "a probe": lambda said: signed(to_json(said)).header(
        SIGNATURE, "WECHATPAY/SIGNTEST/dGhpcyBpcyBhIHByb2Jl"
    ),
    "another key of the seal": lambda said: signed(
        to_json({**said, "resource": sealed(to_json(PAYMENT), key=OTHER_SEAL_KEY)})
    ),
    "another nonce of the seal": lambda said: signed(to_json(but(said, "resource.nonce", "0123456789ab"))),
    "a short nonce of the seal": lambda said: signed(to_json(but(said, "resource.nonce", "0"))),
    "something else beside": lambda said: signed(to_json(but(said, "resource.associated_data", "refund"))),
    "another text": lambda said: signed(to_json(but(said, "resource.ciphertext", "AAAA" * 20))),
    "nothing sealed": lambda said: signed(to_json(but(said, "resource.ciphertext", ""))),
    "another algorithm": lambda said: signed(to_json(but(said, "resource.algorithm", "AEAD_SM4_GCM"))),
    "another resource type": lambda said: signed(to_json({**said, "resource_type": "plain"})),
    "no resource": lambda said: signed(to_json(without(said, "resource"))),
}

payments = st.builds(
    lambda uuid, payment_id, total, currency, paid, attach: {
        **PAYMENT,
        "out_trade_no": uuid,
        "transaction_id": payment_id,
        "success_time": paid.replace(tzinfo=UTC).isoformat(),
        "amount": {"total": total, "payer_total": 0, "currency": currency, "payer_currency": "CNY"},
        "attach": attach,
    },
    st.from_regex("[0-9a-f]{32}", fullmatch=True),
    st.from_regex("[0-9]{28,32}", fullmatch=True),
    st.integers(1, 10**12),
    st.sampled_from(["CNY", "HKD", "USD"]),
    st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31)),  # noqa: DTZ001 - Hypothesis wants them naive
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)


@patiently
@given(payments)
def test_what_we_read_of_any_payment_is_what_the_library_reads(payment: dict[str, Any]) -> None:
    notification = told(payment)
    assert oracle_reads(BY_KEY, notification) == payment
    assert read(notification) == Paid(
        order_id=f"ord_{payment['out_trade_no']}",
        channel="wechat",
        payment_id=payment["transaction_id"],
        amount_minor=payment["amount"]["total"],
        currency_code=payment["amount"]["currency"],
        paid_time=datetime.fromisoformat(payment["success_time"]),
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_what_the_library_does_not_take_we_do_not(fault: Callable[[dict[str, Any]], Told]) -> None:
    notification = fault(envelope(sealed(to_json(PAYMENT))))
    assert oracle_reads(BY_KEY, notification) is None
    assert cause(notification)


GENUINE = told()


@patiently
@given(st.sampled_from([SIGNATURE, SERIAL, TIMESTAMP, NONCE, "body"]), st.data())
def test_no_byte_of_what_came_can_be_changed(part: str, data: st.DataObject) -> None:
    whole = GENUINE.body if part == "body" else GENUINE.headers[part].encode()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
    if part == "body":
        notification = replace(GENUINE, body=changed)
        assert oracle_reads(BY_KEY, notification) is None
    else:
        notification = GENUINE.header(part, changed.decode("latin-1"))
    assert cause(notification)


@patiently
@given(st.sampled_from([SIGNATURE, SERIAL, TIMESTAMP, NONCE, "body"]), st.data())
def test_nothing_of_what_came_can_be_left_out(part: str, data: st.DataObject) -> None:
    whole = GENUINE.body if part == "body" else GENUINE.headers[part].encode()
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start + 1, len(whole)))
    rest = whole[:start] + whole[end:]
    short = replace(GENUINE, body=rest) if part == "body" else GENUINE.header(part, rest.decode())
    assert cause(short)


def test_bits_of_the_signature_that_mean_nothing_must_be_right_too() -> None:
    signature = GENUINE.headers[SIGNATURE]  # 256 bytes leave four bits of the last letter unused
    assert signature.endswith("==")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    loose = signature[:-3] + alphabet[alphabet.index(signature[-3]) + 1] + "=="
    assert oracle_reads(BY_KEY, GENUINE.header(SIGNATURE, loose)) == PAYMENT
    assert cause(GENUINE.header(SIGNATURE, loose)) == "Wechatpay-Signature is not base64"
    for spaced in (signature + "\n", " " + signature, signature[:9] + "!" + signature[9:]):
        assert cause(GENUINE.header(SIGNATURE, spaced)) == "Wechatpay-Signature is not base64"


def test_the_nonce_cannot_take_over_what_the_body_began_with() -> None:
    body = GENUINE.body
    genuine = signed(b"{}\n" + body)
    moved = Told({**genuine.headers, NONCE: genuine.headers[NONCE] + "\n{}"}, body)
    assert oracle_reads(BY_KEY, moved) == PAYMENT
    assert cause(moved) == "Wechatpay-Nonce is absent or malformed"


@pytest.mark.parametrize("name", [SIGNATURE, SERIAL, TIMESTAMP, NONCE])
def test_every_header_must_be_there(name: str) -> None:
    assert name in cause(
        Told({key: GENUINE.headers[key] for key in GENUINE.headers if key != name}, GENUINE.body)
    )


WRONG_PAYMENTS: list[tuple[str, object, str]] = [
    ("mchid", "1900000110", "mchid is not what it must be"),
    ("mchid", int(MERCHANT), "mchid is not what it must be"),
    ("appid", "wxd678efh567hg6788", "appid is not what it must be"),
    ("appid", [APP], "appid is not what it must be"),
    ("trade_state", "REFUND", "trade_state is not what it must be"),
    ("trade_state", "NOTPAY", "trade_state is not what it must be"),
    ("out_trade_no", "", "out_trade_no is absent or malformed"),
    ("out_trade_no", UUID + "\n", "out_trade_no is absent or malformed"),
    ("out_trade_no", "till|4711", "out_trade_no is absent or malformed"),
    ("out_trade_no", 47112711, "out_trade_no is absent or malformed"),
    ("transaction_id", "4" * 65, "transaction_id is absent or malformed"),
    ("transaction_id", 4200001234, "transaction_id is absent or malformed"),
    ("transaction_id", "４２００", "transaction_id is absent or malformed"),
    ("amount", 1900, "amount is not an object"),
    ("amount.total", 0, "total is not an amount"),
    ("amount.total", -1900, "total is not an amount"),
    ("amount.total", 10**12 + 1, "total is not an amount"),
    ("amount.total", 1900.0, "total is not an amount"),
    ("amount.total", "1900", "total is not an amount"),
    ("amount.total", True, "total is not an amount"),
    ("amount.currency", "cny", "currency is absent or malformed"),
    ("amount.currency", "CNYX", "currency is absent or malformed"),
    ("success_time", "2027-03-01T11:59:58", "success_time is absent or malformed"),
    ("success_time", "2027-03-01", "success_time is absent or malformed"),
    ("success_time", "20270301T115958+0800", "success_time is absent or malformed"),
    ("success_time", "2027-02-29T11:59:58+08:00", "success_time is not a time"),
    ("success_time", "2027-03-01T24:00:01+08:00", "success_time is not a time"),
    ("success_time", "2027-03-01T11:59:58+24:00", "success_time is not a time"),
    ("success_time", "1969-12-31T23:59:59Z", "success_time is not a time"),
    ("success_time", "9999-01-01T00:00:00Z", "success_time is not a time"),
    ("success_time", "0001-01-01T00:00:00+08:00", "success_time is not a time"),
    ("success_time", "9999-12-31T23:59:59-08:00", "success_time is not a time"),
]


@pytest.mark.parametrize(("path", "value", "why"), WRONG_PAYMENTS)
def test_a_payment_that_is_not_ours_or_malformed_is_refused(path: str, value: object, why: str) -> None:
    notification = told(but(PAYMENT, path, value))
    assert cause(notification) == why
    assert oracle_reads(BY_KEY, notification) is not None  # signed and sealed it is


READ = ["mchid", "appid", "trade_state", "out_trade_no", "transaction_id", "success_time"]


@pytest.mark.parametrize("path", [*READ, "amount", "amount.total", "amount.currency"])
def test_a_payment_without_something_that_is_read_is_refused(path: str) -> None:
    assert path.rpartition(".")[2] in cause(told(without(PAYMENT, path)))


@pytest.mark.parametrize(
    "event", ["REFUND.SUCCESS", "TRANSACTION.CLOSED", "transaction.success", "", None, ["x"]]
)
def test_an_event_of_another_kind_is_refused(event: object) -> None:
    said = {**envelope(sealed(to_json(PAYMENT))), "event_type": event}
    assert cause(signed(to_json(said))) == "event_type is not what it must be"


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("resource_type", ["encrypt-resource"], "resource_type is not what it must be"),
        ("resource", [], "resource is not an object"),
        ("resource.algorithm", None, "algorithm is not what it must be"),
        ("resource.nonce", 123456789012, "nonce is absent or malformed"),
        ("resource.associated_data", 0, "associated_data is absent or malformed"),
        ("resource.associated_data", [], "associated_data is absent or malformed"),
        ("resource.ciphertext", {}, "ciphertext is absent or malformed"),
        ("resource.ciphertext", "密文", "ciphertext is not base64"),
    ],
)
def test_a_seal_of_another_shape_is_refused(path: str, value: object, why: str) -> None:
    said = envelope(sealed(to_json(PAYMENT), beside=""))
    assert cause(signed(to_json(but(said, path, value)))) == why


def test_a_payment_of_a_service_provider_is_refused() -> None:
    theirs = {**without(without(PAYMENT, "mchid"), "appid"), "sp_mchid": MERCHANT, "sp_appid": APP}
    assert cause(told({**theirs, "sub_mchid": MERCHANT})) == "mchid is not what it must be"


TEXT = to_json(PAYMENT).decode()
NO_OBJECTS = {
    "nothing": b"\xff",
    "a list": b"[]",
    "a string": b'"TRANSACTION.SUCCESS"',
    "null": b"null",
    "half of it": TEXT[: len(TEXT) // 2].encode(),
    "two of them": (TEXT + TEXT).encode(),
    "a name twice": (TEXT[:-1] + ', "mchid": "1900000109"}').encode(),
    "a name twice, deep down": TEXT.replace('"total": 1900', '"total": 1, "total": 1900').encode(),
    "NaN": TEXT.replace("1400", "NaN").encode(),
    "an infinite number": TEXT.replace("1400", "-Infinity").encode(),
    "a number of 5,000 digits": TEXT.replace("1400", "9" * 5000).encode(),
    "GBK": TEXT.encode("gbk"),
    "UTF-16": TEXT.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "a surrogate in UTF-8": TEXT.encode().replace(b"CMC", b"\xed\xa0\x80"),
    "a line break in a string": TEXT.replace("CMC", "C\nMC").encode(),
}


@pytest.mark.parametrize("text", NO_OBJECTS.values(), ids=NO_OBJECTS.keys())
def test_what_is_no_plain_json_is_refused_outside_and_inside(text: bytes) -> None:
    why = "is not a JSON object in UTF-8 with each name once"
    assert cause(signed(text)) == f"the body {why}"
    if len(text) < 3 / 4 * MAX_BODY - 1024:
        assert cause(signed(to_json(envelope(sealed(text))))) == f"the resource {why}"


@pytest.mark.parametrize("inner", [("[", "]"), ('{"a":', "}")])
def test_no_depth_of_nesting_escapes(inner: tuple[str, str]) -> None:
    deep = f'{{"amount":{inner[0] * 9_000}1{inner[1] * 9_000}}}'.encode()
    assert cause(signed(deep))
    assert cause(signed(to_json(envelope(sealed(deep)))))


def test_a_lone_surrogate_is_no_text() -> None:
    lone = json.dumps({**envelope(sealed(b"{}")), "resource": {**sealed(b"{}"), "nonce": "\ud800" * 12}})
    assert cause(signed(lone.encode())) == "the resource is not sealed with the APIv3 key"
    hidden = json.dumps({**PAYMENT, "out_trade_no": "\ud800" * 12}).encode()
    assert cause(signed(to_json(envelope(sealed(hidden))))) == "out_trade_no is absent or malformed"


def test_a_body_has_a_size() -> None:
    longest = signed(GENUINE.body + b" " * (MAX_BODY - len(GENUINE.body)))
    assert read(longest) == PAID
    for body in (b"", longest.body + b" "):
        assert cause(signed(body)) == "the body does not have 1 to 65536 bytes"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@patiently
@given(st.sampled_from([*READ, "amount", "amount.total", "amount.currency"]), anything)
def test_whatever_stands_in_a_payment_it_is_read_or_refused(path: str, value: object) -> None:
    plain = json.dumps(but(PAYMENT, path, value)).encode()  # with surrogates escaped
    try:
        paid = read(signed(to_json(envelope(sealed(plain)))))
    except NotificationRefused:
        return
    assert 1 <= paid.amount_minor <= 10**12
    assert paid.paid_time == PAID.paid_time


FIELDS = ["event_type", "resource_type", "resource"]


@patiently
@given(st.sampled_from([*FIELDS, *(f"resource.{name}" for name in sealed(b""))]), anything)
def test_whatever_stands_around_a_payment_it_is_read_or_refused(path: str, value: object) -> None:
    said = json.dumps(but(envelope(sealed(to_json(PAYMENT))), path, value)).encode()
    try:
        assert read(signed(said)) == PAID
    except NotificationRefused:
        assert path != "resource.original_type"


@patiently
@given(st.dictionaries(st.sampled_from([SIGNATURE, SERIAL, TIMESTAMP, NONCE]), st.text()), st.binary())
def test_whatever_comes_is_refused(headers: dict[str, str], body: bytes) -> None:
    assert cause(Told(headers, body))
    assert cause(Told({**GENUINE.headers, **headers, SIGNATURE: headers.get(SIGNATURE, "")}, body or b"{}"))


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_seal_key_of_another_length_is_no_key(length: int) -> None:
    with pytest.raises(ValueError, match="an APIv3 key has 32 bytes"):
        WechatPay({}, MERCHANT, [APP], b"k" * length)


def test_a_channel_that_is_not_set_up_refuses_everything() -> None:
    assert cause(GENUINE, channel=WechatPay({}, MERCHANT, [APP], SEAL_KEY)).endswith("no key of the platform")
    with pytest.raises(NotificationRefused, match="the pay channel is not set up"):
        Closed().read(GENUINE.headers, GENUINE.body, NOW)


def certificate(
    key: RSAPrivateKey,
    serial: int,
    start: datetime = datetime(2020, 1, 1, tzinfo=UTC),
    end: datetime = datetime(2060, 1, 1, tzinfo=UTC),
) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Tenpay.com sign")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
        .sign(key, SHA256())
    )
    return made.public_bytes(Encoding.PEM)


SERIAL_NUMBER = (
    0x0A9162C62CE1BCE443D4E362A0BE4B4A1547BF69  # WeChat's have 40 digits, leading zeros among them
)
SERIAL_TEXT = "0A9162C62CE1BCE443D4E362A0BE4B4A1547BF69"


def over(folder: Path) -> WechatPay:
    return WechatPay(KeyFolder(folder), MERCHANT, [APP], SEAL_KEY)


def test_keys_and_certificates_lie_in_one_folder_and_each_signs_under_its_serial(tmp_path: Path) -> None:
    (tmp_path / f"{KEY_ID}.pem").write_bytes(public_pem(PLATFORM))
    (tmp_path / "wechatpay_of_last_year.pem").write_bytes(certificate(STRANGER, SERIAL_NUMBER))
    (tmp_path / "README").write_text("not a key")
    channel = over(tmp_path)
    library = oracle(STRANGER, cert_dir=str(tmp_path))
    body = GENUINE.body
    assert read(signed(body), channel=channel) == PAID
    by_certificate = signed(body, key=STRANGER, serial=SERIAL_TEXT)
    assert read(by_certificate, channel=channel) == PAID
    assert oracle_reads(library, by_certificate) == PAYMENT
    crossed = signed(body, key=PLATFORM, serial=SERIAL_TEXT), signed(body, key=STRANGER, serial=KEY_ID)
    for notification in crossed:
        assert cause(notification, channel=channel) == "Wechatpay-Signature is not the platform's"
    assert oracle_reads(library, crossed[0]) is None


def test_a_certificate_holds_from_its_first_second_to_its_last(tmp_path: Path) -> None:
    start, end = NOW, NOW + timedelta(seconds=60)
    (tmp_path / "platform.pem").write_bytes(certificate(PLATFORM, SERIAL_NUMBER, start, end))
    channel = over(tmp_path)
    notification = signed(GENUINE.body, serial=SERIAL_TEXT)
    for now in (start, end):
        assert read(notification, channel=channel, now=now) == PAID
    for now in (start - timedelta(seconds=1), end + timedelta(seconds=1)):
        assert (
            cause(notification, channel=channel, now=now)
            == "Wechatpay-Serial names a key that is not good now"
        )


def test_keys_are_rotated_while_the_service_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old.pem", tmp_path / f"{KEY_ID}.pem"
    old.write_bytes(certificate(STRANGER, SERIAL_NUMBER))
    channel = over(tmp_path)
    by_old, by_new = signed(GENUINE.body, key=STRANGER, serial=SERIAL_TEXT), signed(GENUINE.body)
    assert cause(by_new, channel=channel) == "Wechatpay-Serial names no key of the platform"
    new.write_bytes(public_pem(PLATFORM))
    assert cause(by_new, channel=channel)  # the folder was looked at just now
    monkeypatch.setattr(wechat, "LOOK_AGAIN", -1.0)
    assert read(by_new, channel=channel) == read(by_old, channel=channel) == PAID
    new.write_bytes(public_pem(PLATFORM)[:100])  # half written
    assert read(by_new, channel=channel) == PAID
    new.write_bytes(public_pem(PLATFORM))
    old.unlink()
    assert read(by_new, channel=channel) == PAID
    assert cause(by_old, channel=channel) == "Wechatpay-Serial names no key of the platform"


def private_pem(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def weak() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - that is the point


@pytest.mark.parametrize(
    "pem",
    [
        lambda: b"",
        lambda: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        lambda: public_pem(PLATFORM)[:200],
        lambda: private_pem(PLATFORM),
        lambda: public_pem(weak()),
        lambda: certificate(weak(), 7),
        lambda: public_pem(Ed25519PrivateKey.generate()),
    ],
    ids=[
        "empty",
        "no certificate",
        "cut off",
        "a private key",
        "1,024 bits",
        "1,024 bits, certified",
        "no RSA",
    ],
)
def test_a_file_that_is_no_key_of_the_platform_stops_the_start(
    tmp_path: Path, pem: Callable[[], bytes]
) -> None:
    content = pem()
    (tmp_path / f"{KEY_ID}.pem").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{KEY_ID}\.pem holds no certificate and no public key") as caught:
        KeyFolder(tmp_path)
    assert caught.value.__suppress_context__


def test_a_public_key_must_be_named_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "pub_key.pem").write_bytes(public_pem(PLATFORM))
    with pytest.raises(ValueError, match=r"pub_key\.pem holds a public key: its name must be the key's id"):
        KeyFolder(tmp_path)


def test_a_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeyFolder(tmp_path / "keys")
