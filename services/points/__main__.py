"""The composition root: `python -m services.points serve | migrate`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from loyalty.activities.v1.activities_service_pb2_grpc import add_ActivitiesServiceServicer_to_server
from loyalty.orders.v1.orders_service_pb2_grpc import add_OrdersServiceServicer_to_server
from loyalty.points.v1.points_service_pb2_grpc import add_PointsServiceServicer_to_server

from services.chassis import clock, server, streams
from services.chassis.consumer import Consumer
from services.chassis.database import Database
from services.chassis.jobs import Jobs, run_job
from services.chassis.relay import Relay
from services.points import events, store, tables
from services.points.api import METHODS, BrandApi, PointsApi
from services.points.batches import Batches
from services.points.rules import Programmes
from services.points.settings import PointsSettings
from services.points.subscriptions import CONSUMER, STREAMS, Subscriptions
from services.points.sweeps import Sweeps

MIGRATIONS = Path(__file__).parent / "migrations"
SERVICES = (
    "loyalty.points.v1.PointsService",
    "loyalty.orders.v1.OrdersService",
    "loyalty.activities.v1.ActivitiesService",
)


async def build(settings: PointsSettings) -> server.Parts:
    """Wires the service together."""
    name = server.process_name("points")
    database = await Database.open(
        settings.database_url.get_secret_value(), size=settings.database_pool, name=name
    )
    async with database.read() as connection:
        epoch = await store.epoch(connection)
    client = await streams.connect(settings.nats_url, name)
    business = clock.open_clock(settings.test_clock, "points")
    jobs = Jobs(tables.jobs, name)
    relay = Relay(
        source="points",
        database=database,
        jobs=jobs,
        client=client,
        tables=(tables.outbox, tables.stream_erasures),
        outbox=store.OUTBOX,
        owned={events.STREAM: events.SUBJECTS, events.BRAND_STREAM: events.BRAND_SUBJECTS},
        replicas=settings.stream_replicas,
    )
    programmes = Programmes()
    batches = Batches(database, business, programmes, epoch, relay.wake)
    subscriptions = Subscriptions(batches)
    consumers = [
        Consumer(
            name=CONSUMER,
            stream=stream,
            stream_subjects=stream_subjects,
            subjects=subjects,
            handle=subscriptions.handle,
            database=database,
            client=client,
            dead_letters=tables.dead_letters,
            replicas=settings.stream_replicas,
        )
        for stream, (stream_subjects, subjects) in STREAMS.items()
    ]
    brand = BrandApi(database, batches)
    sweeps = Sweeps(database, business, batches).jobs()
    return server.Parts(
        domain="points.loyalty",
        methods=METHODS,
        servicers=[
            partial(add_PointsServiceServicer_to_server, PointsApi(database, business, programmes, batches)),
            partial(add_OrdersServiceServicer_to_server, brand),
            partial(add_ActivitiesServiceServicer_to_server, brand),
        ],
        services=SERVICES,
        background={
            "relay": relay.run,
            **{f"consumer of {consumer.stream}": consumer.run for consumer in consumers},
            **{job.name: partial(run_job, database, jobs, job) for job in sweeps},
        },
        ready=database.ready,
        close=[client.close, database.close],
    )


def main() -> None:
    """Serves, or migrates and exits."""
    settings = PointsSettings()
    match sys.argv[1:]:
        case ["serve"]:
            server.run(settings, "points", lambda: build(settings))
        case ["migrate"]:
            from services.chassis import migrations  # noqa: PLC0415 - Alembic, a quarter of a start's CPU

            owner = settings.owner_url or settings.database_url
            migrations.upgrade(
                owner.get_secret_value(), MIGRATIONS, tables.metadata, tables.grants(settings.database_role)
            )
        case _:
            sys.exit("usage: python -m services.points serve | migrate")


if __name__ == "__main__":
    main()
