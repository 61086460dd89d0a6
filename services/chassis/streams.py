"""The wire to JetStream: connecting, ensuring streams, atomic batches, deleting."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError

from services.chassis.errors import Unavailable

CONNECT_TIMEOUT = 2.0  # seconds
PING_EVERY = 2  # seconds; a connection whose other end vanished is given up after three of them
PUBLISH_TIMEOUT = 5.0  # seconds until a PubAck counts as lost
MAX_AGE = 30 * 86400  # seconds that a stream keeps a message
DUPLICATE_WINDOW = 600  # seconds in which JetStream itself recognises a Nats-Msg-Id
MAX_ATOMIC = 1000  # messages, the server's limit of one batch

WHOLE = "outbox-whole"  # the stream's metadata key that `mark_whole` sets

MAX_KEY = 256  # characters of an event's id or source

_DUPLICATE_IN_BATCH = 10201
_CONNECTING: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

log = structlog.get_logger()


class StreamUnavailable(Unavailable):
    """JetStream cannot be reached."""


class DuplicateInBatch(Exception):
    """The stream knows an id of the batch already; nothing of it was stored."""


@dataclass(frozen=True, slots=True)
class Message:
    """What goes over the wire."""

    subject: str
    body: bytes
    headers: Mapping[str, str]


async def connect(url: str, name: str) -> Client:
    """A client that connects, and reconnects, for ever: a service starts and serves while NATS is away."""

    async def note(error: Exception) -> None:
        log.debug("nats", error=str(error))

    client = Client()
    connecting = asyncio.create_task(
        client.connect(
            url,
            name=name,
            connect_timeout=int(CONNECT_TIMEOUT),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # a fraction is fine
            allow_reconnect=True,
            ping_interval=PING_EVERY,
            max_outstanding_pings=2,
            error_cb=note,
        )
    )
    _CONNECTING.add(connecting)
    connecting.add_done_callback(_CONNECTING.discard)
    await asyncio.wait([connecting], timeout=CONNECT_TIMEOUT)
    if connecting.done():
        connecting.result()
    return client


def require(client: Client) -> None:
    """Raises StreamUnavailable while the client is not connected."""
    if not client.is_connected:
        raise StreamUnavailable


async def ensure_stream(
    jetstream: JetStreamContext, name: str, subjects: Sequence[str], replicas: int
) -> StreamInfo:
    """The stream, made if it is not there."""
    config = StreamConfig(
        name=name,
        subjects=list(subjects),
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=MAX_AGE,
        num_replicas=replicas,
        duplicate_window=DUPLICATE_WINDOW,
        allow_atomic=True,
        deny_purge=False,
    )
    try:
        return await jetstream.stream_info(name)
    except NotFoundError:
        try:
            return await jetstream.add_stream(config)
        except BadRequestError as error:  # somebody else made it meanwhile
            log.warning("stream", name=name, error=str(error))
            return await jetstream.stream_info(name)


def is_whole(stream: StreamInfo) -> bool:
    """Whether the stream carries the mark that its outbox is in it; a stream made anew does not."""
    return WHOLE in (stream.config.metadata or {})


async def mark_whole(jetstream: JetStreamContext, stream: StreamInfo) -> None:
    """Marks the stream: what was in the outbox when it was made has been sent to it, or will be."""
    stream.config.metadata = {**(stream.config.metadata or {}), WHOLE: "yes"}
    await jetstream.update_stream(stream.config)


async def publish(client: Client, message: Message) -> int:
    """Publishes one message and returns its sequence; a duplicate returns the first one's."""
    reply = await client.request(
        message.subject, message.body, timeout=PUBLISH_TIMEOUT, headers=dict(message.headers)
    )
    return _sequence(reply.data)


async def publish_batch(client: Client, messages: Sequence[Message]) -> list[int]:
    """Publishes up to MAX_ATOMIC messages of one stream, all or none, and returns their sequences.

    Raises DuplicateInBatch if the stream knows one of the ids, nats' errors and TimeoutError if the
    outcome is not known.
    """
    batch_id = uuid.uuid4().hex
    for number, message in enumerate(messages, 1):
        headers = {**message.headers, "Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
        if number < len(messages):
            await client.publish(message.subject, message.body, headers=headers)
        else:
            headers["Nats-Batch-Commit"] = "1"
            reply = await client.request(
                message.subject, message.body, timeout=PUBLISH_TIMEOUT, headers=headers
            )
    last = _sequence(reply.data)
    return list(range(last - len(messages) + 1, last + 1))


def _sequence(reply: bytes) -> int:
    answer = json.loads(reply)
    if error := answer.get("error"):
        if error.get("err_code") == _DUPLICATE_IN_BATCH:
            raise DuplicateInBatch
        raise APIError.from_error(error)
    return int(answer["seq"])


def text(value: str) -> str:
    """A header's value as PostgreSQL takes it: its text has no NUL."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def key(value: str) -> str:
    """As `text`; one too long for an index is known by its hash."""
    short = text(value)
    return short if len(short) <= MAX_KEY else hashlib.sha256(short.encode()).hexdigest()


def event_id(headers: Mapping[str, str] | None, body: bytes) -> str:
    """What identifies an event however often it comes, also where a brand sends no CloudEvents headers."""
    known = headers or {}
    return key(known.get("ce-id") or known.get("Nats-Msg-Id") or hashlib.sha256(body).hexdigest())


async def delete_message(jetstream: JetStreamContext, stream: str, sequence: int, event: str) -> None:
    """Deletes and overwrites one message, if it is that event: a stream made anew counts from 1 again.

    One that is gone already is fine.
    """
    try:
        found = await jetstream.get_msg(stream, sequence)
        if event_id(found.headers, found.data or b"") == event:
            await jetstream.delete_msg(stream, sequence)
    except NotFoundError:
        return
    except APIError as error:
        if error.code not in (400, 404):  # the stream says so of a sequence it no longer has
            raise


STREAM_FAULTS = (NatsError, ServiceUnavailableError, OSError, asyncio.TimeoutError, StreamUnavailable)
