"""The start-up before anything is served, readable as a list: database reached, schema at head.

What cannot be mended by waiting stops the start in words. What comes after, once the socket listens, never does: see
`app.registration.watch`.
"""

import asyncio
import logging

import asyncpg
import stamina
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import CONNECT_TIMEOUT, UNREACHABLE
from app.db.migrate import check_schema, migrate
from app.errors import DatabaseUnavailableError

_log = logging.getLogger(__name__)

DATABASE_PATIENCE = 60.0
"""Seconds that the start waits for a Postgres that is starting itself."""


async def prepare_database(engine: AsyncEngine, *, auto_migrate: bool, patience: float = DATABASE_PATIENCE) -> None:
    """Reach Postgres, waiting `patience` seconds for it, and bring its schema to head, or check that it is there.

    Raises DatabaseUnavailableError or SchemaError.
    """
    await reach_database(engine, patience=patience)
    if not auto_migrate:
        await check_schema(engine)
        return
    before, after = await migrate(engine)
    if before != after:
        _log.info("schema brought to head", extra={"before": before, "after": after})


async def reach_database(engine: AsyncEngine, *, patience: float = DATABASE_PATIENCE) -> None:
    """Wait until Postgres answers, `patience` seconds at most. Raises DatabaseUnavailableError, in words.

    A wrong password or the name of a database that does not exist is not waited for.
    """
    try:
        async for attempt in stamina.retry_context(on=_may_pass, attempts=None, timeout=patience, wait_jitter=0.5):
            with attempt:
                async with asyncio.timeout(2 * CONNECT_TIMEOUT), engine.connect() as connection:
                    await connection.execute(text("SELECT 1"))
    except (DatabaseUnavailableError, SQLAlchemyError, *UNREACHABLE) as exc:
        refusal = _refusal(exc)
        if refusal is not None:
            raise DatabaseUnavailableError(f"Postgres refuses: {refusal}: look at DATABASE_URL") from exc
        raise DatabaseUnavailableError(
            f"Postgres did not answer for {patience:g} seconds: look at DATABASE_URL and at the server"
        ) from exc


def _may_pass(error: Exception) -> bool:
    """Whether waiting may help."""
    return isinstance(error, (DatabaseUnavailableError, SQLAlchemyError, *UNREACHABLE)) and _refusal(error) is None


def _refusal(error: BaseException) -> asyncpg.PostgresError | None:
    """What no waiting helps against: a wrong password or name, or a permission that is missing."""
    cause = error.__cause__
    if isinstance(cause, asyncpg.PostgresError) and str(cause.sqlstate).startswith(("28", "3D", "42")):
        return cause
    return None
