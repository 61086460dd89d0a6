"""What the process of any service is made of: what it holds open, its work beside the calls, its commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from nats.aio.client import Client

from services.chassis import server, streams
from services.chassis.clock import Clock, open_clock
from services.chassis.consumer import Consumer, Handler
from services.chassis.database import Database
from services.chassis.jobs import Job, Jobs, run_job
from services.chassis.outbox import Outbox
from services.chassis.relay import Relay
from services.chassis.settings import ServiceSettings

Settings = TypeVar("Settings", bound=ServiceSettings)
Work = Callable[[], Coroutine[Any, Any, None]]
"""Something that runs for ever."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A service's tables, with the folder of their revisions and what a role is granted on them."""

    metadata: sa.MetaData
    migrations: Path
    grants: Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Process:
    """What every service holds open."""

    service: str
    settings: ServiceSettings
    tables: Mapping[str, sa.Table]
    database: Database
    client: Client
    clock: Clock
    jobs: Jobs
    relay: Relay

    @classmethod
    async def open(
        cls,
        service: str,
        settings: ServiceSettings,
        schema: Schema,
        outbox: Outbox,
        owned: Mapping[str, Sequence[str]],
    ) -> Self:
        """Opens it; `owned` are the streams that the service makes, with their subjects."""
        name = f"{service}-{os.uname().nodename}-{os.getpid()}"  # among the replicas
        url = settings.database_url.get_secret_value()
        database = await Database.open(url, size=settings.database_pool, name=name)
        client = await streams.connect(settings.nats_url, name)
        tables = schema.metadata.tables
        jobs = Jobs(tables["jobs"], name)
        relay = Relay(
            source=service,
            database=database,
            jobs=jobs,
            client=client,
            tables=(tables["outbox"], tables["stream_erasures"]),
            outbox=outbox,
            owned=owned,
            replicas=settings.stream_replicas,
        )
        clock = open_clock(settings.test_clock, service)
        return cls(service, settings, tables, database, client, clock, jobs, relay)

    def background(
        self,
        consumed: Mapping[str, tuple[Sequence[str], Sequence[str]]],
        handle: Handler,
        jobs: Iterable[Job],
    ) -> Mapping[str, Work]:
        """The relay, a consumer of each stream, and periodic jobs, by name.

        `consumed` are streams of others, each with all its subjects and with those that `handle` is for.
        """
        consumers = [
            Consumer(
                name=self.service,
                stream=stream,
                stream_subjects=stream_subjects,
                subjects=subjects,
                handle=handle,
                database=self.database,
                client=self.client,
                dead_letters=self.tables["dead_letters"],
                replicas=self.settings.stream_replicas,
            )
            for stream, (stream_subjects, subjects) in consumed.items()
        ]
        return {
            "relay": self.relay.run,
            **{f"consumer of {consumer.stream}": consumer.run for consumer in consumers},
            **{job.name: partial(run_job, self.database, self.jobs, job) for job in jobs},
        }

    @property
    def close(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """What is called last, in order."""
        return [self.client.close, self.database.close]


def main(
    service: str,
    read_settings: Callable[[], Settings],
    schema: Schema,
    build: Callable[[Settings], Awaitable[server.Parts]],
) -> None:
    """`serve`, or `migrate` and exit: the commands of `python -m services.{service}`."""
    match sys.argv[1:]:
        case ["serve"]:
            settings = read_settings()
            server.run(settings, service, partial(build, settings))
        case ["migrate"]:
            from services.chassis import migrations  # noqa: PLC0415 - Alembic, a quarter of a start's CPU

            settings = read_settings()
            migrations.upgrade(
                (settings.owner_url or settings.database_url).get_secret_value(),
                schema.migrations,
                schema.metadata,
                schema.grants(settings.database_role),
            )
        case _:
            sys.exit(f"usage: python -m services.{service} serve | migrate")
