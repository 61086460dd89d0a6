"""PostgreSQL: statements written with SQLAlchemy, compiled once, run by asyncpg.

SQLAlchemy's execution layer costs two to three times asyncpg's own (docs/decisions/0003), so only its
expression language is used at run time. Values are therefore asyncpg's: datetimes, bytes, and text for JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg
import sqlalchemy as sa
from asyncpg import exceptions as pg
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import asyncpg as dialect

from services.chassis.errors import Aborted, ResourceExhausted, Unavailable
from services.chassis.telemetry import LATE_CONNECTIONS

T = TypeVar("T")
Connection: TypeAlias = Any  # asyncpg.Connection, or the pool's proxy of one; asyncpg ships no types
Row: TypeAlias = Any  # asyncpg.Record

CONNECT_TIMEOUT = 5.0  # seconds
ACQUIRE_TIMEOUT = 3.0  # seconds to wait for a connection of the pool
STATEMENT_TIMEOUT = 5.0  # seconds; PostgreSQL ends the statement
COMMAND_TIMEOUT = 8.0  # seconds; we give the connection up, PostgreSQL did not even answer
CLOSE_TIMEOUT = 3.0  # seconds that a goodbye may take
LOCK_TIMEOUT = 1.0  # seconds
IDLE_TIMEOUT = 10.0  # seconds a transaction may sit idle before PostgreSQL ends it

_DIALECT = dialect.dialect()  # type: ignore[no-untyped-call]


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached."""


class DatabaseBusy(ResourceExhausted):
    """Every database connection is in use."""


class LockTimeout(Aborted):
    """Another transaction held the same rows for too long."""


class TransactionConflict(Aborted):
    """Another transaction changed the same rows first."""


class Statement:
    """A statement, compiled. Arguments are passed by the names of its bind parameters."""

    def __init__(self, clause: sa.ClauseElement) -> None:
        compiled = clause.compile(dialect=_DIALECT)
        assert isinstance(compiled, sa.Compiled)  # noqa: S101 - narrows the type
        self.text = str(compiled)
        self._names: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        binds = getattr(compiled, "binds", {})
        self._constants = {name: bind.value for name, bind in binds.items() if not bind.required}

    async def fetch(self, connection: Connection, **arguments: Any) -> list[Row]:
        """All rows."""
        rows: list[Row] = await connection.fetch(self.text, *self._positional(arguments))
        return rows

    async def fetch_one(self, connection: Connection, **arguments: Any) -> Row | None:
        """The first row, or None."""
        return await connection.fetchrow(self.text, *self._positional(arguments))

    async def fetch_value(self, connection: Connection, **arguments: Any) -> Any:
        """The first column of the first row, or None."""
        return await connection.fetchval(self.text, *self._positional(arguments))

    async def execute(self, connection: Connection, **arguments: Any) -> int:
        """The number of rows it touched."""
        status: str = await connection.execute(self.text, *self._positional(arguments))
        return int(status.rsplit(" ", 1)[-1])

    async def execute_rows(
        self, connection: Connection, rows: Sequence[Sequence[Any]], **arguments: Any
    ) -> None:
        """Runs a statement over one `rows_of`, with an array per column; nothing is sent for no rows."""
        if rows:
            await connection.execute(self.text, *self._positional(arguments, rows))

    async def fetch_rows(
        self, connection: Connection, rows: Sequence[Sequence[Any]], **arguments: Any
    ) -> list[Row]:
        """As `execute_rows`, for a statement that answers."""
        if not rows:
            return []
        answer: list[Row] = await connection.fetch(self.text, *self._positional(arguments, rows))
        return answer

    def _positional(self, arguments: dict[str, Any], rows: Sequence[Sequence[Any]] = ()) -> list[Any]:
        known = {**self._constants, **arguments}
        given = iter(columns(rows))
        return [known[name] if name in known else next(given) for name in self._names]


def columns(rows: Sequence[Sequence[Any]], width: int = 0) -> list[list[Any]]:
    """Rows as one list per column; `width` says how many there are of no rows."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


class Insert:
    """Adds rows to a table by COPY, in the order given: half the CPU of an INSERT over arrays."""

    def __init__(self, table: sa.Table, *columns: str) -> None:
        self._table = table.name
        self._columns = columns or tuple(table.c.keys())

    async def rows(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
        """Adds rows, with JSON as text; nothing is sent for no rows."""
        if rows:
            await connection.copy_records_to_table(self._table, records=rows, columns=self._columns)


def rows_of(alias: str = "given", /, **columns: Any) -> sa.TableValuedAlias:
    """A set of rows given as one array per column, numbered from 1 in the column `ordinality`.

    The arrays are bound as `<alias>_<column>`, so that a statement may take several sets. JSON has no array
    of its own here: declare its column as text and cast it in the select.
    """
    binds = [
        sa.bindparam(f"{alias}_{name}", type_=ARRAY(sa.types.to_instance(kind)))
        for name, kind in columns.items()
    ]
    typed = [sa.column(name, sa.types.to_instance(kind)) for name, kind in columns.items()]
    return (
        sa.func.unnest(*binds).table_valued(*typed, with_ordinality="ordinality", name=alias).render_derived()
    )


def insert_rows(table: sa.Table, *columns: str) -> postgresql.Insert:
    """Inserts rows given as one array per named column, where COPY will not do: for an upsert."""
    kinds = {name: table.c[name].type for name in columns}
    given = rows_of(**{name: sa.Text() if _is_json(kind) else kind for name, kind in kinds.items()})
    chosen = [
        sa.cast(given.c[name], kind) if _is_json(kind) else given.c[name] for name, kind in kinds.items()
    ]
    return postgresql.insert(table).from_select(columns, sa.select(*chosen).order_by(given.c.ordinality))


def _is_json(kind: sa.types.TypeEngine[Any]) -> bool:
    return isinstance(kind, sa.JSON)


class _Dropped(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose goodbye may fail: then it is dropped, which is all that was wanted."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        with suppress(TimeoutError, OSError):
            await super().close(timeout=CLOSE_TIMEOUT if timeout is None else timeout)


class Database:
    """A pool of connections with every timeout set."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def open(
        cls, url: str, *, size: int, name: str, command_timeout: float = COMMAND_TIMEOUT
    ) -> Database:
        """Opens the pool. Raises DatabaseUnavailable when the database is away."""
        with _driver_errors():
            pool = await asyncpg.create_pool(
                url,
                min_size=0,
                max_size=size,
                connection_class=_Dropped,
                timeout=CONNECT_TIMEOUT,
                command_timeout=command_timeout,
                max_inactive_connection_lifetime=300,
                reset=_keep_as_is,
                server_settings={
                    "application_name": name,
                    "timezone": "UTC",
                    "jit": "off",
                    "random_page_cost": "1.1",  # as on any SSD: keys are looked up, no table is read
                    "statement_timeout": str(int(STATEMENT_TIMEOUT * 1000)),
                    "lock_timeout": str(int(LOCK_TIMEOUT * 1000)),
                    "idle_in_transaction_session_timeout": str(int(IDLE_TIMEOUT * 1000)),
                },
            )
        return cls(pool)

    async def close(self) -> None:
        """Closes the connections, or drops them after a bounded wait."""
        try:
            await asyncio.wait_for(self._pool.close(), ACQUIRE_TIMEOUT)
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        """A connection where each statement is its own transaction."""
        with _driver_errors():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT) as connection:
                try:
                    yield connection
                except (TimeoutError, asyncpg.InternalClientError, asyncpg.InterfaceError) as error:
                    with suppress(asyncpg.InterfaceError):  # the driver has noticed by itself
                        connection.terminate()
                    if isinstance(error, TimeoutError):
                        # PostgreSQL said nothing for longer than it lets a statement run. What took this
                        # connection has mostly taken the others: each would cost its own timeout.
                        await self._pool.expire_connections()
                    raise

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Connection]:
        """One transaction: committed at the end of the block, rolled back on any error."""
        async with self.read() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """One instant of the whole database, for reading at length."""
        async with (
            self.read() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            # Whoever reads at length also thinks at length between two statements.
            for timeout in ("statement_timeout", "idle_in_transaction_session_timeout"):
                await connection.execute(f"SET LOCAL {timeout} = 0")
            yield connection

    async def ready(self) -> bool:
        """Whether the database answers."""
        try:
            async with self.read() as connection:
                await connection.execute("SELECT 1", timeout=CONNECT_TIMEOUT)
        except Exception:
            return False
        return True


async def shielded(work: Callable[[], Awaitable[T]]) -> T:
    """Runs a unit of work to its end although the caller may leave: it happens whole or not at all."""
    return await asyncio.shield(asyncio.ensure_future(work()))


async def _keep_as_is(_connection: Connection) -> None:
    """We change no session state, so a connection needs no round trip to be given back."""


class _driver_errors:  # noqa: N801 - reads as a statement
    """Turns what the driver raises about the database's state into our errors; defects pass."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        match error:
            case pg.LockNotAvailableError():
                raise LockTimeout from error
            case pg.SerializationError() | pg.DeadlockDetectedError():
                raise TransactionConflict from error
            case pg.TooManyConnectionsError():
                raise DatabaseBusy from error
            case TimeoutError():
                LATE_CONNECTIONS.inc()
                raise DatabaseUnavailable from error
            case pg.InterfaceError() if _is_gone(error):
                raise DatabaseUnavailable from error
            case (
                OSError()
                | pg.PostgresConnectionError()
                | asyncpg.InternalClientError()
                | pg.OperatorInterventionError()
                | pg.IdleInTransactionSessionTimeoutError()
                | pg.DiskFullError()
            ):
                raise DatabaseUnavailable from error


def _is_gone(error: BaseException) -> bool:
    """Whether the driver means a connection that is gone: it says so, or rolling back failed after it was."""
    return "clos" in str(error) or isinstance(error.__context__, asyncpg.InternalClientError)
