"""The composition root: `python -m services.cards serve | migrate`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from loyalty.cards.v1.cards_service_pb2_grpc import add_CardsServiceServicer_to_server

from services.cards import events, store, tables
from services.cards.api import METHODS, CardsApi
from services.cards.batches import Batches
from services.cards.channels import Closed, PayChannel
from services.cards.rules import Products
from services.cards.settings import CardsSettings
from services.cards.steps import Terms
from services.cards.subscriptions import CONSUMER, STREAMS, Subscriptions
from services.cards.sweeps import Sweeps
from services.cards.wechat import KeyFolder, WechatPay
from services.chassis import clock, server, streams
from services.chassis.consumer import Consumer
from services.chassis.database import Database
from services.chassis.jobs import Jobs, run_job
from services.chassis.relay import Relay

MIGRATIONS = Path(__file__).parent / "migrations"
SERVICES = ("loyalty.cards.v1.CardsService",)


async def build(settings: CardsSettings) -> server.Parts:
    """Wires the service together."""
    name = server.process_name("cards")
    wechat_pay = _wechat_pay(settings)
    database = await Database.open(
        settings.database_url.get_secret_value(), size=settings.database_pool, name=name
    )
    async with database.read() as connection:
        terms = _terms(settings, await store.epoch(connection))
    client = await streams.connect(settings.nats_url, name)
    business = clock.open_clock(settings.test_clock, "cards")
    jobs = Jobs(tables.jobs, name)
    relay = Relay(
        source="cards",
        database=database,
        jobs=jobs,
        client=client,
        tables=(tables.outbox, tables.stream_erasures),
        outbox=store.OUTBOX,
        owned={events.STREAM: events.SUBJECTS},
        replicas=settings.stream_replicas,
    )
    products = Products()
    batches = Batches(database, business, products, terms, relay.wake)
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
    api = CardsApi(database, business, products, terms, batches, wechat_pay=wechat_pay)
    sweeps = Sweeps(database, business, batches).jobs()
    return server.Parts(
        domain="cards.loyalty",
        methods=METHODS,
        servicers=[partial(add_CardsServiceServicer_to_server, api)],
        services=SERVICES,
        background={
            "relay": relay.run,
            **{f"consumer of {consumer.stream}": consumer.run for consumer in consumers},
            **{job.name: partial(run_job, database, jobs, job) for job in sweeps},
        },
        ready=database.ready,
        close=[client.close, database.close],
    )


def _terms(settings: CardsSettings, epoch: int) -> Terms:
    if settings.gift_code_key is None:
        raise ValueError("set GIFT_CODE_KEY: the claim codes of gifts are made with it")
    key = settings.gift_code_key.get_secret_value().encode()
    return Terms(ZoneInfo(settings.time_zone), epoch, key)


def _wechat_pay(settings: CardsSettings) -> PayChannel:
    if settings.wechat_keys is None:
        return Closed()
    return WechatPay(
        KeyFolder(settings.wechat_keys),
        settings.wechat_merchant_id,
        settings.wechat_app_ids,
        settings.wechat_api_v3_key.get_secret_value().encode(),
    )


def main() -> None:
    """Serves, or migrates and exits."""
    settings = CardsSettings()
    match sys.argv[1:]:
        case ["serve"]:
            server.run(settings, "cards", lambda: build(settings))
        case ["migrate"]:
            from services.chassis import migrations  # noqa: PLC0415 - Alembic, a quarter of a start's CPU

            owner = settings.owner_url or settings.database_url
            migrations.upgrade(
                owner.get_secret_value(), MIGRATIONS, tables.metadata, tables.grants(settings.database_role)
            )
        case _:
            sys.exit("usage: python -m services.cards serve | migrate")


if __name__ == "__main__":
    main()
