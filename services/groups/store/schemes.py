"""The versions of the schemes and of the programme, and the jobs over all members that they start."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from services.chassis.database import Connection, Insert, Row, Statement
from services.chassis.statements import By, Lookup, one_of, unless_null
from services.groups import tables as t
from services.groups.domain.seats import GroupStatus

_ONE: sa.ColumnElement[int] = sa.literal_column("1")
_MOST = sa.bindparam("most", type_=sa.BigInteger)
_AT = sa.bindparam("at", type_=t.INSTANT)

# --- schemes ------------------------------------------------------------------------------------------

_VERSIONS = Lookup(t.schemes, named=By(("scheme_id", "version")))
_LATEST = Statement(
    sa.select(t.schemes)
    .where(t.schemes.c.scheme_id == sa.bindparam("scheme"))
    .order_by(t.schemes.c.version.desc())
    .limit(_ONE)
)
_HEADS = Statement(
    sa.select(t.schemes.c.scheme_id, sa.func.max(t.schemes.c.version).label("version")).group_by(
        t.schemes.c.scheme_id
    )
)
_LOCK_SCHEMES = Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("schemes"))))
_ADD_SCHEME = Insert(t.schemes, "scheme_id", "version", "kind", "withdrawn", "author", "create_time", "body")


def _page_statement() -> Statement:
    """The latest version of each; whether it takes members is asked of that one alone."""
    latest = (
        sa.select(t.schemes)
        .ext(distinct_on(t.schemes.c.scheme_id))
        .where(unless_null("after", sa.Text, lambda after: t.schemes.c.scheme_id > after))
        .where(unless_null("kind", sa.Text, lambda kind: t.schemes.c.kind == kind))
        .order_by(t.schemes.c.scheme_id, t.schemes.c.version.desc())
        .subquery()
    )
    return Statement(
        sa.select(latest)
        .where(sa.or_(sa.bindparam("withdrawn", type_=sa.Boolean), sa.not_(latest.c.withdrawn)))
        .order_by(latest.c.scheme_id)
        .limit(_MOST)
    )


_PAGE = _page_statement()


async def scheme(connection: Connection, scheme_id: str, version: int | None = None) -> Row | None:
    """A version of a scheme; the latest where none is named."""
    if version is None:
        return await _LATEST.fetch_one(connection, scheme=scheme_id)
    return next(iter(await schemes(connection, [(scheme_id, version)])), None)


async def schemes(connection: Connection, names: Collection[tuple[str, int]]) -> list[Row]:
    """Versions of schemes by id and number."""
    return await _VERSIONS.fetch(connection, named=names)


async def scheme_heads(connection: Connection) -> dict[str, int]:
    """The latest version of each scheme, by id."""
    return {row["scheme_id"]: row["version"] for row in await _HEADS.fetch(connection)}


async def scheme_page(
    connection: Connection, kind: str | None, withdrawn: bool, after: str | None, most: int
) -> list[Row]:
    """The latest version of each scheme, by id; `withdrawn` means also those that take no more members."""
    return await _PAGE.fetch(connection, kind=kind, withdrawn=withdrawn, after=after, most=most)


async def lock_last_scheme(connection: Connection, scheme_id: str) -> Row | None:
    """The latest version of a scheme; nobody else puts any until commit."""
    await _LOCK_SCHEMES.fetch(connection)
    return await scheme(connection, scheme_id)


async def add_scheme(
    connection: Connection,
    *,
    scheme_id: str,
    version: int,
    kind: str,
    withdrawn: bool,
    author: str,
    create_time: datetime,
    body: bytes,
) -> None:
    """Keeps a version of a scheme."""
    row = (scheme_id, version, kind, withdrawn, author, create_time, body)
    await _ADD_SCHEME.rows(connection, [row])


_LOCK_SERIES = Statement(
    sa.select(t.series.c.anchor)
    .where(t.series.c.scheme_id == sa.bindparam("scheme"))
    .order_by(t.series.c.anchor)
    .with_for_update()
)
_RESCHEDULE = Statement(
    sa.update(t.groups)
    .where(
        t.groups.c.scheme_id == sa.bindparam("scheme"),
        one_of(t.groups.c.status, GroupStatus.OPEN, GroupStatus.FULL),
    )
    .values(
        next_occasion_time=sa.case(
            (t.groups.c.next_occasion_time <= _AT, t.groups.c.next_occasion_time),
            else_=sa.bindparam("next", type_=t.INSTANT),
        )
    )
)


async def reschedule(
    connection: Connection, scheme_id: str, at: datetime, next_time: datetime | None
) -> None:
    """Notes when the calendar of a scheme's living groups has to be looked at next; locks its series.

    Of those that were to be looked at by `at` nothing is forgotten: they still are.
    """
    await _LOCK_SERIES.fetch(connection, scheme=scheme_id)
    await _RESCHEDULE.execute(connection, scheme=scheme_id, at=at, next=next_time)


# --- the programme ------------------------------------------------------------------------------------

_PROGRAMME = Statement(
    sa.select(t.programmes)
    .where(unless_null("v", sa.BigInteger, lambda version: t.programmes.c.version == version))
    .order_by(t.programmes.c.version.desc())
    .limit(_ONE)
)
_HEAD = Statement(sa.select(sa.func.max(t.programmes.c.version)))
_LOCK_PROGRAMMES = Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("programmes"))))
_ADD_PROGRAMME = Insert(t.programmes, "version", "author", "create_time", "body")


async def programme(connection: Connection, version: int | None = None) -> Row | None:
    """A version of the programme; the latest where none is named."""
    return await _PROGRAMME.fetch_one(connection, v=version)


async def programme_head(connection: Connection) -> int:
    """The latest version of the programme; 0 before the first."""
    return await _HEAD.fetch_value(connection) or 0


async def lock_last_programme(connection: Connection) -> Row | None:
    """The latest version of the programme; nobody else puts one until commit."""
    await _LOCK_PROGRAMMES.fetch(connection)
    return await programme(connection)


async def add_programme(
    connection: Connection, *, version: int, author: str, create_time: datetime, body: bytes
) -> None:
    """Keeps a version of the programme."""
    await _ADD_PROGRAMME.rows(connection, [(version, author, create_time, body)])


# --- evaluations --------------------------------------------------------------------------------------

SCHEME = "SCHEME"
PROGRAMME = "PROGRAMME"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A job over all members, since a scheme or the programme has changed."""

    kind: str
    """SCHEME or PROGRAMME."""
    subject_id: str
    """The scheme; empty for the programme."""
    version: int
    """Of it; the job begins again where this rises."""
    after: tuple[int, str]
    """Bucket and member up to which it is done."""
    done: int
    """Members."""
    start_time: datetime

    @property
    def name(self) -> tuple[str, str, int]:
        """What tells it from others, and from itself before it began again."""
        return (self.kind, self.subject_id, self.version)


def _start() -> Statement:
    names = [column.name for column in t.evaluations.columns]
    statement = insert(t.evaluations).values(
        {name: sa.bindparam(name, type_=t.evaluations.c[name].type) for name in names}
    )
    return Statement(
        statement.on_conflict_do_update(
            index_elements=list(t.evaluations.primary_key.columns),
            set_={name: statement.excluded[name] for name in t.CHANGING["evaluations"]},
        )
    )


def _advance() -> Statement:
    e = t.evaluations.c
    mine = [e[name] == sa.bindparam(f"of_{name}", type_=e[name].type) for name in ("kind", "subject_id")]
    return Statement(
        sa.update(t.evaluations)
        .where(*mine, e.version == sa.bindparam("of_version"), e.end_time.is_(None))
        .where(e.done == sa.bindparam("before", type_=sa.BigInteger))
        .values(
            after_bucket=sa.bindparam("bucket"),
            after_member=sa.bindparam("member"),
            done=e.done + sa.bindparam("more", type_=sa.BigInteger),
            end_time=sa.bindparam("end", type_=t.INSTANT),
        )
    )


_START = _start()
_ADVANCE = _advance()
_OPEN = Statement(
    sa.select(t.evaluations)
    .where(t.evaluations.c.end_time.is_(None))
    .order_by(t.evaluations.c.start_time, t.evaluations.c.kind, t.evaluations.c.subject_id)
    .limit(_MOST)
)


async def start_evaluation(
    connection: Connection, kind: str, subject_id: str, version: int, at: datetime
) -> None:
    """Has all members evaluated, from the first on; one that runs for the same thing begins again."""
    await _START.execute(
        connection,
        kind=kind,
        subject_id=subject_id,
        version=version,
        after_bucket=-1,
        after_member="",
        done=0,
        start_time=at,
        end_time=None,
    )


async def open_evaluations(connection: Connection, most: int) -> list[Evaluation]:
    """The evaluations that are not done, the oldest first."""
    return [
        Evaluation(
            row["kind"],
            row["subject_id"],
            row["version"],
            (row["after_bucket"], row["after_member"]),
            row["done"],
            row["start_time"],
        )
        for row in await _OPEN.fetch(connection, most=most)
    ]


async def advance_evaluation(
    connection: Connection,
    evaluation: Evaluation,
    after: tuple[int, str],
    more: int,
    end: datetime | None = None,
) -> bool:
    """Notes that `more` members up to `after` are done, and with `end` that all are.

    Returns whether it was still where it is said to be: where it has begun again meanwhile, or somebody else
    went on with it, nothing is noted.
    """
    touched = await _ADVANCE.execute(
        connection,
        of_kind=evaluation.kind,
        of_subject_id=evaluation.subject_id,
        of_version=evaluation.version,
        before=evaluation.done,
        bucket=after[0],
        member=after[1],
        more=more,
        end=end,
    )
    return bool(touched)


# --- what may still go by an older version ------------------------------------------------------------


def _older() -> Statement:
    """What the service's processes began by then and still do; they are told by what they call themselves."""
    names = ("pid", "datname", "usename", "application_name", "xact_start")
    activity = sa.table("pg_stat_activity", *(sa.column(name) for name in names))
    a, function = activity.c, sa.func
    return Statement(
        sa.select(function.count())
        .select_from(activity)
        .where(
            a.pid != function.pg_backend_pid(),
            a.datname == function.current_database(),
            a.usename == function.current_user(),
            a.application_name == function.current_setting(sa.literal_column("'application_name'")),
            a.xact_start <= sa.bindparam("since", type_=t.INSTANT),
        )
    )


_OLDER = _older()
_DATABASE_TIME = Statement(sa.select(sa.func.clock_timestamp()))


async def database_time(connection: Connection) -> datetime:
    """The database's own time."""
    found: datetime = await _DATABASE_TIME.fetch_value(connection)
    return found


async def older_transactions(connection: Connection, since: datetime) -> int:
    """How many transactions of the service's processes began by `since` (database time) and go on."""
    return int(await _OLDER.fetch_value(connection, since=since))
