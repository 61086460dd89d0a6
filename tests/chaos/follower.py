"""Subscribers of other teams that hear a run's streams for long: of an event they keep a hash."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import nats
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import Default
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, DeliverPolicy

from tests.chaos.listener import POLL, ignore
from tests.chaos.parts import Part

Chains = Mapping[str, Sequence[bytes]]
"""What is to be heard about each member, or what else there is, in order."""


class Follower:
    """Hears a service's stream as it grows, each event once in effect, and those about one thing in order.

    It goes on where it was, but begins again where the stream was made anew.
    """

    def __init__(self, url: str, part: Part) -> None:
        self._url = url
        self.service = part.service
        self._part = part
        self.chains: dict[str, list[bytes]] = {}
        """What was heard about each member, in order."""
        self.received = 0
        self.over = False
        self._digests: dict[tuple[Any, ...], list[int]] = {}
        self._made: datetime | None = None
        self._next = 1

    async def follow(self) -> None:
        """Hears until `over` is set. (A cancellation may get lost on its way through `asyncio.wait_for`.)"""
        client = await nats.connect(self._url, max_reconnect_attempts=-1, error_cb=ignore)
        try:
            while not self.over:
                await self._read(client)
        finally:
            await client.close()

    async def heard_all(self, expected: Chains, seconds: float) -> None:
        """Waits for what is to be heard of these members, and compares it. Raises TimeoutError."""
        left = dict(expected)
        async with asyncio.timeout(seconds):
            while left := {m: chain for m, chain in left.items() if len(self.chains.get(m, ())) < len(chain)}:  # noqa: ASYNC110 - another task fills them
                await asyncio.sleep(POLL)
        for member, chain in expected.items():
            assert self.chains.get(member, [])[: len(chain)] == list(chain), member

    async def _read(self, client: Any) -> None:
        """Takes what comes, until nothing more does."""
        stream = self._part.stream
        try:
            made = (await client.jetstream().stream_info(stream)).created
            self._next = self._next if made == self._made else 1
            self._made = made
            config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._next)
            subscription = await client.jetstream().subscribe(
                f"loyalty.{self._part.service}.v1.>", stream=stream, ordered_consumer=True, config=config
            )
        except (NatsError, OSError):
            await asyncio.sleep(POLL)
            return
        try:
            while not self.over:
                message = await subscription.next_msg(timeout=4 * POLL)
                self._take(message.subject, message.data)
                self._next = message.metadata.sequence.stream + 1
        except NatsTimeoutError:
            return
        finally:
            with suppress(NatsError, OSError):
                await subscription.unsubscribe()

    def _take(self, subject: str, body: bytes) -> None:
        self.received += 1
        kind = message_factory.GetMessageClass(Default().FindMessageTypeByName(subject))
        event: Any = kind.FromString(body)
        entity, digest = self._part.entity(event), hash(body)
        known = self._digests.setdefault((*entity, event.epoch), [])
        if event.version <= len(known):
            assert known[event.version - 1] == digest  # a duplicate, not another event of the same version
            return
        assert event.version == len(known) + 1, f"{entity}: {event.version} after {len(known)}"
        known.append(digest)
        if link := self._part.link(event, body):
            self.chains.setdefault(self._part.about(event), []).append(link)
