"""What readers are told when Postgres cannot answer: come again, never that something failed."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import reading, writing
from app.errors import DatabaseUnavailableError

TROUBLE = {
    "a statement that takes too long": ["SET LOCAL statement_timeout = '1ms'", "SELECT pg_sleep(1)"],
    "a lock that is not to be had": ["DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$"],
    "a full disk": ["DO $$ BEGIN RAISE SQLSTATE '53100'; END $$"],
    "a connection that is cut": ["SELECT pg_terminate_backend(pg_backend_pid())"],
}


@pytest.mark.parametrize("statements", TROUBLE.values(), ids=TROUBLE)
async def test_trouble_of_the_moment_asks_to_come_again(engine: AsyncEngine, statements: list[str]) -> None:
    async def run() -> None:
        async with writing(engine) as connection:
            for statement in statements:
                await connection.execute(text(statement))

    with pytest.raises(DatabaseUnavailableError):
        await run()


async def test_a_wrong_statement_is_a_fault_of_ours_and_no_trouble_of_the_moment(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError):
        async with reading(engine) as connection:
            await connection.execute(text("SELECT 1 / 0"))
