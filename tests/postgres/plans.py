"""What a query costs Postgres, as it runs: not how long it takes, which depends on the machine, but what it looks at."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asyncpg.connection import LoggedQuery
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import driver_of, reading


async def pages_read(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[object]]) -> int:
    """How many pages of 8 kB Postgres looks at for all the queries of `work`, wherever it finds them."""
    return sum(
        plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in await _plans(engine, work)
    )


async def _plans(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[object]]) -> list[dict[str, Any]]:
    statements: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    def note_at_driver(logged: LoggedQuery) -> None:
        statements.append((logged.query, logged.args))

    async with reading(engine) as connection:
        driver = await driver_of(connection)
        event.listen(engine.sync_engine, "before_cursor_execute", note)
        driver.add_query_logger(note_at_driver)
        try:
            await work(connection)
            await asyncio.sleep(0)  # the driver tells it a moment later
        finally:
            event.remove(engine.sync_engine, "before_cursor_execute", note)
            driver.remove_query_logger(note_at_driver)
        plans = []
        for statement, parameters in statements:
            if statement.lstrip().upper().startswith(("SELECT", "WITH")):
                # SQLAlchemy has its connections decode JSON.
                plans += await driver.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *parameters)
            else:
                await driver.execute(statement, *parameters)
    assert plans
    return plans
