"""The products' versions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from services.cards import tables as t
from services.chassis.database import Connection, Insert, Row, Statement
from services.chassis.statements import By, Lookup, unless_null

_VERSIONS = Lookup(t.products, named=By(("code", "version")))
_LATEST = Statement(
    sa.select(t.products)
    .where(t.products.c.code == sa.bindparam("code"))
    .order_by(t.products.c.version.desc())
    .limit(sa.literal_column("1"))
)
_HEADS = Statement(
    sa.select(t.products.c.code, sa.func.max(t.products.c.version).label("version"))
    .where(t.products.c.code == sa.any_(sa.bindparam("codes", type_=sa.ARRAY(sa.Text))))
    .group_by(t.products.c.code)
)
_LOCK_PRODUCTS = Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("products"))))
_ADD_PRODUCT = Insert(t.products, "code", "version", "family", "withdrawn", "author", "create_time", "body")


def _page_statement() -> Statement:
    """The latest version of each; whether it is still sold is asked of that one alone."""
    latest = (
        sa.select(t.products)
        .ext(distinct_on(t.products.c.code))
        .where(unless_null("after", sa.Text, lambda after: t.products.c.code > after))
        .where(unless_null("family", sa.Text, lambda family: t.products.c.family == family))
        .order_by(t.products.c.code, t.products.c.version.desc())
        .subquery()
    )
    return Statement(
        sa.select(latest)
        .where(sa.or_(sa.bindparam("withdrawn", type_=sa.Boolean), sa.not_(latest.c.withdrawn)))
        .order_by(latest.c.code)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    )


_PAGE = _page_statement()


async def product(connection: Connection, code: str, version: int | None = None) -> Row | None:
    """A version of a product; the latest where none is named."""
    if version is None:
        return await _LATEST.fetch_one(connection, code=code)
    return next(iter(await products(connection, [(code, version)])), None)


async def products(connection: Connection, names: Collection[tuple[str, int]]) -> list[Row]:
    """Versions of products by code and number."""
    return await _VERSIONS.fetch(connection, named=names)


async def product_heads(connection: Connection, codes: Iterable[str]) -> dict[str, int]:
    """The latest version of each product, by code."""
    asked = sorted(codes)
    rows = await _HEADS.fetch(connection, codes=asked) if asked else []
    return {row["code"]: row["version"] for row in rows}


async def product_page(
    connection: Connection, family: str | None, withdrawn: bool, after: str | None, most: int
) -> list[Row]:
    """The latest version of each product, by code; `withdrawn` means also those that are no longer sold."""
    return await _PAGE.fetch(connection, family=family, withdrawn=withdrawn, after=after, most=most)


async def lock_last_product(connection: Connection, code: str) -> Row | None:
    """The latest version of a product; nobody else puts one until commit."""
    await _LOCK_PRODUCTS.fetch(connection)
    return await product(connection, code)


async def add_product(
    connection: Connection,
    *,
    code: str,
    version: int,
    family: str,
    withdrawn: bool,
    author: str,
    create_time: datetime,
    body: bytes,
) -> None:
    """Keeps a version of a product."""
    row = (code, version, family, withdrawn, author, create_time, body)
    await _ADD_PRODUCT.rows(connection, [row])
