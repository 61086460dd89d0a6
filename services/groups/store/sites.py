"""Sites, and the revision that says whether they have changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa

from services.chassis.database import Connection, Row, Statement, insert_rows
from services.chassis.statements import By, Lookup, unless_null
from services.groups import tables as t
from services.groups.domain.coordinates import Point
from services.groups.domain.sites import Site

_MOST = sa.bindparam("most", type_=sa.BigInteger)


_REVISION = Statement(sa.select(t.geography.c.revision))
_RAISE = Statement(
    sa.update(t.geography)
    .values(revision=t.geography.c.revision + sa.literal_column("1"))
    .returning(t.geography.c.revision)
)
_ALL = Statement(sa.select(t.sites))
_NAMED = Lookup(t.sites, named=By(("site_id",)))
_PAGE = Statement(
    sa.select(t.sites)
    .where(
        unless_null("after", sa.Text, lambda after: t.sites.c.site_id > after),
        unless_null("city", sa.Text, lambda city: t.sites.c.city == city),
        sa.or_(sa.bindparam("closed", type_=sa.Boolean), t.sites.c.open),
    )
    .order_by(t.sites.c.site_id)
    .limit(_MOST)
)


def _save_statement() -> Statement:
    statement = insert_rows(t.sites, *t.sites.c.keys())
    return Statement(
        statement.on_conflict_do_update(
            index_elements=list(t.sites.primary_key.columns),
            set_={name: statement.excluded[name] for name in t.CHANGING["sites"]},
        )
    )


_SAVE = _save_statement()


async def revision(connection: Connection) -> int:
    """Rises with every change of a site. Read under the locks of series it misses no site closed before."""
    return int(await _REVISION.fetch_value(connection))


async def change_sites(connection: Connection) -> int:
    """Raises the revision, and returns it; nobody else changes a site until commit."""
    return int(await _RAISE.fetch_value(connection))


async def all_sites(connection: Connection) -> list[Site]:
    """Every site, closed ones too."""
    return [to_site(row) for row in await _ALL.fetch(connection)]


async def sites(connection: Connection, site_ids: Collection[str]) -> list[Row]:
    """Sites by id as `to_site` reads them, with `update_time`, as far as there are such."""
    return await _NAMED.fetch(connection, named=[(site_id,) for site_id in site_ids])


async def site_page(
    connection: Connection, city: str | None, closed: bool, after: str | None, most: int
) -> list[Row]:
    """Sites as `to_site` reads them, with `update_time`, by `site_id`; `closed` means also those."""
    return await _PAGE.fetch(connection, city=city, closed=closed, after=after, most=most)


async def save_sites(connection: Connection, made: Sequence[Site], author: str, at: datetime) -> None:
    """Writes sites as they are now, new ones too; the caller has called `change_sites`."""
    await _SAVE.execute_rows(
        connection,
        [
            (s.site_id, s.name, s.city, s.point.latitude, s.point.longitude, s.priority, s.open, at, author)
            for s in made
        ],
    )


def to_site(row: Row) -> Site:
    """A site."""
    return Site(
        site_id=row["site_id"],
        name=row["name"],
        city=row["city"],
        point=Point(row["latitude"], row["longitude"]),
        priority=row["priority"],
        open=row["open"],
    )
