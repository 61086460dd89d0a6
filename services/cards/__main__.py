"""The composition root: `python -m services.cards serve | migrate`."""

from __future__ import annotations

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
from services.cards.subscriptions import STREAMS, Subscriptions
from services.cards.sweeps import Sweeps
from services.cards.wechat import KeyFolder, WechatPay
from services.chassis import process, server
from services.chassis.process import Process, Schema

SCHEMA = Schema(tables.metadata, Path(__file__).parent / "migrations", tables.grants)
OWNED = {events.STREAM: events.SUBJECTS}
SERVICES = ("loyalty.cards.v1.CardsService",)


async def build(settings: CardsSettings) -> server.Parts:
    """Wires the service together."""
    wechat_pay = _wechat_pay(settings)
    own = await Process.open("cards", settings, SCHEMA, store.OUTBOX, OWNED)
    database, clock = own.database, own.clock
    async with database.read() as connection:
        terms = _terms(settings, await store.epoch(connection))
    products = Products()
    batches = Batches(database, clock, products, terms, own.relay.wake)
    api = CardsApi(database, clock, products, terms, batches, wechat_pay=wechat_pay)
    jobs = Sweeps(database, clock, batches).jobs()
    return server.Parts(
        domain="cards.loyalty",
        methods=METHODS,
        servicers=[partial(add_CardsServiceServicer_to_server, api)],
        services=SERVICES,
        background=own.background(STREAMS, Subscriptions(batches).handle, jobs),
        ready=database.ready,
        close=own.close,
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


if __name__ == "__main__":
    process.main("cards", CardsSettings, SCHEMA, build)
