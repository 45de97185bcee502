"""Where alembic meets our database: it runs on the connection it is given, or on the database of the settings."""

import asyncio

from alembic import context
from pydantic import SecretStr
from sqlalchemy import Connection, text

from app.db.engine import create_engine
from app.db.tables import metadata
from app.sealing import generate_key
from app.settings import Settings


def run(connection: Connection) -> None:
    """Run the migrations on one connection.

    Gives up soon where another transaction holds a table, rather than have every reader queue behind it.
    """
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    context.configure(
        connection=connection, target_metadata=metadata, transactional_ddl=True, compare_server_default=True
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_on_database_of_settings() -> None:
    """For the `alembic` command: DATABASE_URL names the database, and nothing else needs to be set."""
    # Migrations open nothing that is sealed, so any key satisfies the settings.
    url = Settings.load(encryption_keys=(SecretStr(generate_key()),)).database_url
    if url is None:
        raise SystemExit("set DATABASE_URL to the database that alembic shall work on")
    engine = create_engine(url.get_secret_value(), statement_timeout=None)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(run_on_database_of_settings())
else:
    run(given)
