"""Products: put in versions, each validated whole before."""

from __future__ import annotations

from datetime import datetime

from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import store
from services.cards.errors import FamilyFixed, ProductInvalid
from services.chassis.database import Connection
from services.chassis.errors import Violation
from services.chassis.timestamps import timestamp


async def put_product(connection: Connection, at: datetime, message: pb.Product, author: str) -> pb.Product:
    """Keeps the next version of a product, which was compiled before. Raises FamilyFixed, ProductInvalid."""
    last = await store.lock_last_product(connection, message.code)
    if last is not None and last["family"] != message.family:
        raise FamilyFixed(family=last["family"])
    for row in await store.product_page(connection, message.family, withdrawn=True, after=None, most=1):
        # A card adds up what its periods cost and save; so each of the family is as the first one was.
        currency_code = pb.Product.FromString(row["body"]).currency_code
        if message.currency_code != currency_code:
            fault = Violation("product.currency_code", f"the family is priced in {currency_code}")
            raise ProductInvalid(violations=[fault])
    made = pb.Product()
    made.CopyFrom(message)
    made.version = 1 if last is None else last["version"] + 1
    made.create_time.CopyFrom(timestamp(at))
    await store.add_product(
        connection,
        code=made.code,
        version=made.version,
        family=made.family,
        withdrawn=made.withdrawn,
        author=author,
        create_time=at,
        body=made.SerializeToString(),
    )
    return made
