"""The composition root: `python -m services.referral serve | migrate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from loyalty.referral.v1.referral_service_pb2_grpc import add_ReferralServiceServicer_to_server

from services.chassis import process, server
from services.chassis.process import Process, Schema
from services.referral import events, store, tables
from services.referral.api import METHODS, ReferralApi
from services.referral.batches import Batches
from services.referral.service import Lore
from services.referral.settings import ReferralSettings
from services.referral.steps import Terms
from services.referral.subscriptions import STREAMS, Subscriptions
from services.referral.sweeps import Sweeps

SCHEMA = Schema(tables.metadata, Path(__file__).parent / "migrations", tables.grants)
OWNED = {events.STREAM: events.SUBJECTS}
SERVICES = ("loyalty.referral.v1.ReferralService",)


async def build(settings: ReferralSettings) -> server.Parts:
    """Wires the service together."""
    own = await Process.open("referral", settings, SCHEMA, store.OUTBOX, OWNED)
    database, clock = own.database, own.clock
    async with database.read() as connection:
        epoch = await store.epoch(connection)
    lore = Lore(Terms(ZoneInfo(settings.time_zone), epoch, settings.code_tries_per_minute))
    batches = Batches(database, clock, lore, own.relay.wake)
    api = ReferralApi(database, clock, lore, batches)
    jobs = Sweeps(database, clock, own.jobs, lore, batches).jobs()
    return server.Parts(
        domain="referral.loyalty",
        methods=METHODS,
        servicers=[partial(add_ReferralServiceServicer_to_server, api)],
        services=SERVICES,
        background=own.background(STREAMS, Subscriptions(database, clock, batches).handle, jobs),
        ready=database.ready,
        close=own.close,
    )


if __name__ == "__main__":
    process.main("referral", ReferralSettings, SCHEMA, build)
