"""Ways to Postgres: an engine for all that reads or writes a little, lookups beside it, single connections for the ledger.

All are made by asyncpg from the same DSN, so that every option of a `postgresql://` address means the same to all.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import DatabaseUnavailableError

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a new connection."""

STATEMENT_TIMEOUT = 30.0
"""Seconds after which Postgres gives a statement up; none of ours comes near, but for those of a migration."""

POOL_SIZE = 6
"""Connections a process keeps for what takes more than a statement."""

LOOKUPS = 4
"""Connections a process keeps for single statements."""

UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection was cut while the driver was between two messages
)
"""What asyncpg raises where Postgres cannot be reached or went away."""


BY_KEYS = "SET enable_seqscan = off; SET jit = off"
"""For every connection that reads or writes events: rows are found by their keys, as each query has its index.

Left to itself Postgres plans a statement while there is next to nothing in the tables, when to pass all of their rows is the
best that can be done; and it may keep that plan until it has counted the rows again, a minute or so later, while an import
fills the tables. What is passed all the same, such as a table of one row, counts as so expensive then that Postgres would
compile the statement each time."""

PLANNED_ONCE = f"{BY_KEYS}; SET plan_cache_mode = force_generic_plan"
"""For a connection that runs the same few statements all day: to plan one anew takes as long as to run it."""

OF_THE_MOMENT = {"08", "25", "40", "53", "55", "57", "58"}
"""SQLSTATE classes that say nothing about the statement: a connection, a server that became read-only, a conflict, resources
that ran out, a lock or a time-out, an operator, a disk (PostgreSQL manual, appendix A)."""


async def connect(
    dsn: str,
    *,
    application_name: str,
    statement_timeout: float | None = STATEMENT_TIMEOUT,
    idle_in_transaction: float = 60.0,
    writable: bool = True,
) -> asyncpg.Connection:
    """One connection of its own, to a server that takes writes unless that is not asked for. Times are in seconds.

    Whoever came to a server that only reads, as while another takes over, would stay with it for ever. Raises
    DatabaseUnavailableError where there is none to be had, for whatever reason, which is its cause.
    """
    # What is left over is for a server that has stopped answering altogether.
    command_timeout = None if statement_timeout is None else statement_timeout + CONNECT_TIMEOUT
    try:
        return await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT,
            command_timeout=command_timeout,
            target_session_attrs=SessionAttribute.read_write if writable else SessionAttribute.any,
            server_settings={
                "application_name": application_name,
                "statement_timeout": f"{int((statement_timeout or 0) * 1000)}",
                "idle_in_transaction_session_timeout": f"{int(idle_in_transaction * 1000)}",
                "timezone": "UTC",
            },
        )
    except asyncpg.TargetServerAttributeNotMatched as exc:
        raise DatabaseUnavailableError(
            "Postgres takes no writes there: DATABASE_URL has to lead to the primary"
        ) from exc
    except (*UNREACHABLE, asyncpg.PostgresError) as exc:
        raise DatabaseUnavailableError(
            f"Postgres cannot be reached ({type(exc).__name__}): look at DATABASE_URL and at the server"
        ) from exc


async def _prepared(connection: asyncpg.Connection, settings: str) -> asyncpg.Connection:
    """The connection with its settings. Raises DatabaseUnavailableError where it was cut before it had them."""
    try:
        await connection.execute(settings)
    except (*UNREACHABLE, asyncpg.PostgresError) as exc:
        connection.terminate()
        raise DatabaseUnavailableError(f"Postgres went away ({type(exc).__name__})") from exc
    except BaseException:  # who asked for it was told to end
        connection.terminate()
        raise
    return connection


def create_engine(
    dsn: str, *, pool_size: int = POOL_SIZE, statement_timeout: float | None = STATEMENT_TIMEOUT
) -> AsyncEngine:
    """The engine for all but the ledger: a bounded pool that hands out no connection of which it heard that it is closed.

    Without a `statement_timeout` (seconds) it is for migrations, which take as long as they take.
    """

    async def open_connection() -> asyncpg.Connection:
        connection = await connect(dsn, application_name="jasper-receiver", statement_timeout=statement_timeout)
        return await _prepared(connection, BY_KEYS)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=open_connection,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT,
    )
    event.listen(engine.sync_engine, "checkout", _check_open)
    return engine


def _check_open(connection: Any, _record: object, _proxy: object) -> None:
    """Have the pool open another connection where this one was closed; the driver knows, so nothing has to be asked."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


class Lookups:
    """Connections for single statements that run so often that SQLAlchemy's pool and a transaction would cost most of them.

    A statement by itself sees one snapshot. An async context manager; connections are opened when they are needed first.
    """

    def __init__(self, dsn: str, *, size: int = LOOKUPS) -> None:
        async def open_connection(*_: object, **__: object) -> asyncpg.Connection:
            return await _prepared(await connect(dsn, application_name="jasper-receiver"), PLANNED_ONCE)

        async def leave_as_it_is(_: object) -> None:
            """A statement by itself leaves nothing behind that would have to be reset."""

        self._pool = asyncpg.create_pool(
            min_size=0, max_size=size, connect=open_connection, reset=leave_as_it_is, max_queries=1_000_000
        )

    async def __aenter__(self) -> Self:
        """Open nothing yet: Postgres may be away."""
        await self._pool
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections, in order where Postgres answers."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._pool.close()

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """The rows of one statement, with its `$1` and so on. Raises DatabaseUnavailableError."""
        async with reached(), self._pool.acquire(timeout=CONNECT_TIMEOUT) as connection:
            return await connection.fetch(statement, *arguments)

    @property
    def in_use(self) -> int:
        """How many connections run a statement now."""
        return self._pool.get_size() - self.idle

    @property
    def idle(self) -> int:
        """How many open connections wait for one."""
        return self._pool.get_idle_size()


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in one read-only snapshot: Postgres itself refuses a write, and several queries see the same state.

    Its transaction is begun at the driver, so that statements on `driver_of` it see the snapshot, too. Raises
    DatabaseUnavailableError where Postgres cannot be reached.
    """
    async with reached(), engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        driver = await driver_of(connection)
        transaction = driver.transaction(isolation="repeatable_read", readonly=True)
        await transaction.start()
        try:
            yield connection
        except BaseException:
            # The driver's own block would fail on a connection that is closed by now, and so hide that a task was
            # cancelled: it would go on for ever.
            if not driver.is_closed():
                await transaction.rollback()
            raise
        await transaction.commit()


async def driver_of(connection: AsyncConnection) -> asyncpg.Connection:
    """The driver's own connection, for the few statements that run so often that the layer above costs most of them."""
    driver = (await connection.get_raw_connection()).driver_connection
    assert isinstance(driver, asyncpg.Connection)  # noqa: S101 - all of ours are made by `connect`
    return driver


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that is committed when the block ends. Raises DatabaseUnavailableError."""
    async with reached(), engine.begin() as connection:
        yield connection


@asynccontextmanager
async def reached() -> AsyncIterator[None]:
    """Translates whatever means that Postgres could not be reached."""
    try:
        yield
    except PoolTimeoutError as exc:
        raise DatabaseUnavailableError("all connections to Postgres are in use") from exc
    except (OperationalError, InterfaceError, *UNREACHABLE) as exc:
        raise DatabaseUnavailableError("Postgres cannot be reached") from exc
    except (DBAPIError, asyncpg.PostgresError) as exc:
        if isinstance(exc, DBAPIError) and exc.connection_invalidated:
            raise DatabaseUnavailableError("Postgres went away") from exc
        sqlstate = getattr(getattr(exc, "driver_exception", exc), "sqlstate", None) or ""
        if sqlstate[:2] in OF_THE_MOMENT:
            raise DatabaseUnavailableError(f"Postgres cannot answer now (SQLSTATE {sqlstate})") from exc
        raise
