"""The composition root: `python -m services.groups serve | migrate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from loyalty.groups.v1.groups_service_pb2_grpc import add_GroupsServiceServicer_to_server

from services.chassis import process, server
from services.chassis.process import Process, Schema
from services.groups import events, store, tables
from services.groups.api import METHODS, GroupsApi
from services.groups.batches import Batches
from services.groups.chats import Chats
from services.groups.messaging import Closed, Messaging
from services.groups.nearby import Nearby
from services.groups.service import Lore
from services.groups.settings import GroupsSettings
from services.groups.steps import Terms
from services.groups.subscriptions import STREAMS, Subscriptions
from services.groups.sweeps import Sweeps
from services.groups.wecom import Wecom

SCHEMA = Schema(tables.metadata, Path(__file__).parent / "migrations", tables.grants)
OWNED = {events.STREAM: events.SUBJECTS}
SERVICES = ("loyalty.groups.v1.GroupsService",)


async def build(settings: GroupsSettings) -> server.Parts:
    """Wires the service together."""
    messaging = _messaging(settings)
    own = await Process.open("groups", settings, SCHEMA, store.OUTBOX, OWNED)
    database, clock = own.database, own.clock
    async with database.read() as connection:
        terms = Terms(ZoneInfo(settings.time_zone), await store.epoch(connection))
    lore = Lore(terms)
    batches = Batches(database, clock, lore, own.relay.wake)
    nearby, chats = Nearby(database, clock, lore), Chats(database, clock, lore, batches, messaging)
    api = GroupsApi(database, clock, lore, batches, nearby=nearby, chats=chats)
    subscriptions = Subscriptions(batches, settings.currency_code)
    jobs = [*Sweeps(database, clock, lore, batches).jobs(), *chats.jobs()]
    return server.Parts(
        domain="groups.loyalty",
        methods=METHODS,
        servicers=[partial(add_GroupsServiceServicer_to_server, api)],
        services=SERVICES,
        background=own.background(STREAMS, subscriptions.handle, jobs),
        ready=database.ready,
        close=[messaging.close, *own.close],
    )


def _messaging(settings: GroupsSettings) -> Messaging:
    if not settings.wecom_corp_id:
        return Closed()
    return Wecom(
        corp_id=settings.wecom_corp_id,
        secret=settings.wecom_secret.get_secret_value(),
        token=settings.wecom_token.get_secret_value(),
        aes_key=settings.wecom_aes_key.get_secret_value(),
        url=settings.wecom_url,
    )


if __name__ == "__main__":
    process.main("groups", GroupsSettings, SCHEMA, build)
