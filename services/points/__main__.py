"""The composition root: `python -m services.points serve | migrate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from loyalty.activities.v1.activities_service_pb2_grpc import add_ActivitiesServiceServicer_to_server
from loyalty.orders.v1.orders_service_pb2_grpc import add_OrdersServiceServicer_to_server
from loyalty.points.v1.points_service_pb2_grpc import add_PointsServiceServicer_to_server

from services.chassis import process, server
from services.chassis.process import Process, Schema
from services.points import events, store, tables
from services.points.api import METHODS, BrandApi, PointsApi
from services.points.batches import Batches
from services.points.rules import Programmes
from services.points.settings import PointsSettings
from services.points.subscriptions import STREAMS, Subscriptions
from services.points.sweeps import Sweeps

SCHEMA = Schema(tables.metadata, Path(__file__).parent / "migrations", tables.grants)
OWNED = {events.STREAM: events.SUBJECTS, events.BRAND_STREAM: events.BRAND_SUBJECTS}
SERVICES = (
    "loyalty.points.v1.PointsService",
    "loyalty.orders.v1.OrdersService",
    "loyalty.activities.v1.ActivitiesService",
)


async def build(settings: PointsSettings) -> server.Parts:
    """Wires the service together."""
    own = await Process.open("points", settings, SCHEMA, store.OUTBOX, OWNED)
    database, clock = own.database, own.clock
    async with database.read() as connection:
        epoch = await store.epoch(connection)
    programmes = Programmes()
    batches = Batches(database, clock, programmes, epoch, own.relay.wake)
    brand = BrandApi(database, batches)
    jobs = Sweeps(database, clock, batches).jobs()
    return server.Parts(
        domain="points.loyalty",
        methods=METHODS,
        servicers=[
            partial(add_PointsServiceServicer_to_server, PointsApi(database, clock, programmes, batches)),
            partial(add_OrdersServiceServicer_to_server, brand),
            partial(add_ActivitiesServiceServicer_to_server, brand),
        ],
        services=SERVICES,
        background=own.background(STREAMS, Subscriptions(batches).handle, jobs),
        ready=database.ready,
        close=own.close,
    )


if __name__ == "__main__":
    process.main("points", PointsSettings, SCHEMA, build)
