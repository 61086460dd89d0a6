"""A load client that costs a few µs a call: calls are encoded before the run, answers counted, not parsed.

gRPC's own Python clients cost more than 100 µs a call and would be what is measured. h2load sends one and
the same body with every call, and a write needs a fresh request_id each time.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

CONNECTIONS = 4
STALL = 30.0  # seconds without any answer after which a run is given up
RECEIVE = 1 << 18  # bytes

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW = 1, 2, 4
_MAX_WINDOW = 2**31 - 1
_FIRST_WINDOW = 65_535  # bytes
_MAX_FRAME = 16_384  # bytes

_FRAME = struct.Struct(">BHBBL")  # length in two parts, type, flags, stream
_U32 = struct.Struct(">L")
_SETTING = struct.Struct(">HL")

# `grpc-status: 0` as a literal: name and value each plain or in Huffman's code.
_NAMES = (b"\x0bgrpc-status", bytes.fromhex("889acac8b21234da8f"))
_VALUES = (b"\x010", b"\x81\x07")
_SUCCESS = [name + value for name in _NAMES for value in _VALUES]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    succeeded: int
    refused: int
    seconds: float
    client_seconds: float
    """Of CPU, spent by this client."""
    latencies: list[float]
    """Seconds from sending to the answer, ascending."""

    @property
    def rate(self) -> float:
        """Successful calls a second."""
        return self.succeeded / self.seconds

    def quantile(self, part: float) -> float:
        """Seconds that `part` of the calls took at most."""
        return quantile(self.latencies, part)


def quantile(ascending: Sequence[float], part: float) -> float:
    """The value that `part` of a sorted list does not exceed."""
    return ascending[min(int(len(ascending) * part), len(ascending) - 1)]


def run(
    address: str, method: str, messages: Iterable[bytes], *, in_flight: int, seconds: float, token: str
) -> Result:
    """Calls a unary method until the time is up or the messages run out, then awaits what is under way."""
    supply = iter(messages)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        connections = [
            stack.enter_context(closing(_Connection(address, method, token, share)))
            for share in _shares(in_flight)
        ]
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        cpu, started = time.thread_time(), time.perf_counter()
        for connection in connections:
            connection.send(supply)
        while any(connection.under_way for connection in connections):
            ready = selector.select(STALL)
            if not ready:
                raise TimeoutError(f"{method} has not answered for {STALL:.0f} s")
            for key, _ in ready:
                key.data.receive()
                if time.perf_counter() < started + seconds:
                    key.data.send(supply)
        ended, cpu = time.perf_counter(), time.thread_time() - cpu
    latencies = sorted(latency for connection in connections for latency in connection.latencies)
    refused = sum(connection.refused for connection in connections)
    return Result(len(latencies), refused, ended - started, cpu, latencies)


def _shares(in_flight: int) -> list[int]:
    number = min(CONNECTIONS, in_flight)
    return [in_flight // number + (index < in_flight % number) for index in range(number)]


class _Connection:
    """One HTTP/2 connection with calls of one method; up to `share` of them are under way."""

    def __init__(self, address: str, method: str, token: str, share: int) -> None:
        host, port = address.rsplit(":", 1)
        self.under_way: dict[int, float] = {}  # when each was sent, by stream
        self.latencies: list[float] = []
        self.refused = 0
        self._share = share
        self._stream = 1
        self._rest = b""
        self._held: bytes | None = None  # a call that the flow control does not let go yet
        self._window = self._stream_window = _FIRST_WINDOW
        self._succeeds: dict[bytes, bool] = {}  # by the trailers' bytes
        self._header, self._header_again = _request_headers(address, method, token)
        self._agreed: set[str] = set()
        self.socket = socket.create_connection((host, int(port)), timeout=STALL)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Without a table of its own the server writes every trailer out, and we need no HPACK decoder.
        settings = ((_HEADER_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, _MAX_WINDOW))
        self.socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings))
            + _frame(_WINDOW_UPDATE, 0, 0, _U32.pack(_MAX_WINDOW - _FIRST_WINDOW))
        )
        while self._agreed != {"ours", "theirs"}:
            self.receive()

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()

    def send(self, supply: Iterator[bytes]) -> None:
        """Sends as many calls as may be under way and the flow control allows."""
        frames: list[bytes] = []
        now = time.perf_counter()
        while len(self.under_way) < self._share:
            message = next(supply, None) if self._held is None else self._held
            self._held = message
            if message is None or len(message) + 5 > self._window:
                break
            self._held = None
            self._window -= len(message) + 5
            frames.append(self._call(message))
            self.under_way[self._stream] = now
            self._stream += 2
        if frames:
            self.socket.sendall(b"".join(frames))

    def _call(self, message: bytes) -> bytes:
        if len(message) + 5 > self._stream_window:
            raise ValueError(f"a message of {len(message)} bytes, more than the server takes at once")
        headers = _frame(_HEADERS, _END_HEADERS, self._stream, self._header)
        self._header = self._header_again
        data = b"\0" + _U32.pack(len(message)) + message
        if len(data) <= _MAX_FRAME:
            return headers + _frame(_DATA, _END_STREAM, self._stream, data)
        parts = [data[at : at + _MAX_FRAME] for at in range(0, len(data), _MAX_FRAME)]
        frames = [_frame(_DATA, 0, self._stream, part) for part in parts[:-1]]
        return b"".join((headers, *frames, _frame(_DATA, _END_STREAM, self._stream, parts[-1])))

    def receive(self) -> None:
        """Takes what has come; blocks if nothing has."""
        data = self._rest + self._read()
        now = time.perf_counter()
        at, end = 0, len(data)
        while at + 9 <= end:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            stop = at + 9 + (high << 16) + low
            if stop > end:
                break
            if kind == _HEADERS:
                if flags & _END_STREAM:
                    self._answered(stream, data[at + 9 : stop], now)
            elif kind != _DATA:
                self._control(kind, flags, stream, data[at + 9 : stop])
            at = stop
        self._rest = data[at:]

    def _read(self) -> bytes:
        data = self.socket.recv(RECEIVE)
        if not data:
            raise ConnectionError("the server hung up")
        return data

    def _answered(self, stream: int, trailers: bytes, now: float) -> None:
        sent = self.under_way.pop(stream)
        succeeds = self._succeeds.get(trailers)
        if succeeds is None:
            succeeds = self._succeeds[trailers] = any(success in trailers for success in _SUCCESS)
        if succeeds:
            self.latencies.append(now - sent)
        else:
            self.refused += 1

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and flags & _ACK:
            self._agreed.add("ours")
        elif kind == _SETTINGS:
            self._stream_window = dict(_SETTING.iter_unpack(payload)).get(_INITIAL_WINDOW, _FIRST_WINDOW)
            self._agreed.add("theirs")
            self.socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and not stream:
            self._window += _U32.unpack(payload)[0]
        elif kind == _RST_STREAM and self.under_way.pop(stream, None) is not None:
            self.refused += 1
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server goes away: {payload[8:]!r}")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def _request_headers(address: str, method: str, token: str) -> tuple[bytes, bytes]:
    """The header block of a connection's first call, which fills the server's table, and of all others."""
    fields = {
        ":path": method,
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
        "authorization": f"Bearer {token}",
    }
    fixed = b"\x83\x86"  # :method: POST, :scheme: http
    first = b"".join(b"\x40" + _text(name) + _text(value) for name, value in fields.items())
    newest = 62  # where HPACK's dynamic table begins
    again = bytes(0x80 | newest + index for index in reversed(range(len(fields))))
    return fixed + first, fixed + again


def _text(text: str) -> bytes:
    """A string as HPACK writes it without Huffman's code."""
    size = len(text)
    if size < 127:
        return bytes([size]) + text.encode()
    prefix, size = bytearray([127]), size - 127
    while size >= 128:
        prefix.append(size % 128 | 128)
        size //= 128
    return bytes([*prefix, size]) + text.encode()
