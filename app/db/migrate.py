"""Brings the schema to the version this program needs, or says that it is not there.

One replica migrates at a time; the others wait for it and find nothing left to do. All steps of one run are one
transaction, so that a crash leaves the schema as it was.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import reading, writing
from app.db.locks import Lock
from app.errors import SchemaError

_BESIDE_SOURCE = Path(__file__).parents[2] / "migrations"
_IN_PACKAGE = Path(__file__).parents[1] / "_migrations"
MIGRATIONS = _BESIDE_SOURCE if _BESIDE_SOURCE.is_dir() else _IN_PACKAGE


def alembic_config() -> Config:
    """Alembic's configuration for our migrations, without a database."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def head_revision() -> str:
    """The newest migration this program knows."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise SchemaError(f"no migrations found in {MIGRATIONS}: the installation is incomplete")
    return head


async def current_revision(connection: AsyncConnection) -> str | None:
    """The migration at which the database is; None for an empty one."""
    return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def migrate(engine: AsyncEngine) -> tuple[str | None, str]:
    """Bring the schema to head; returns the revision before and after.

    Raises SchemaError where the database is at a revision this program does not know: it was migrated by a newer one, or
    where its user may not change the schema; and DatabaseUnavailableError.
    """
    try:
        return await _migrate(engine)
    except DBAPIError as exc:
        if getattr(exc.orig, "sqlstate", None) != _NOT_ALLOWED:
            raise
        raise SchemaError(
            "the user of DATABASE_URL may not make the tables: let it own the database, or GRANT CREATE ON SCHEMA public "
            "and, for the views, CREATE ON DATABASE to it"
        ) from exc


_NOT_ALLOWED = "42501"
"""SQLSTATE of a permission that is missing. Since version 15 Postgres lets only the owner of a database make tables in it."""


async def _migrate(engine: AsyncEngine) -> tuple[str | None, str]:
    async with writing(engine) as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": Lock.MIGRATION.key})
        before = await current_revision(connection)
        head = head_revision()
        if before is not None and before not in known_revisions():
            raise SchemaError(
                f"the database is at revision {before}, which this version does not know: deploy the newer version"
            )
        if before != head:
            await connection.run_sync(_upgrade)
        return before, head


async def check_schema(engine: AsyncEngine) -> None:
    """Raises SchemaError unless the schema is at head or was migrated further by a newer version, DatabaseUnavailableError
    where nobody can tell.
    """  # noqa: D205 - one sentence
    async with reading(engine) as connection:
        current = await current_revision(connection)
    if current in known_revisions() - {head_revision()} or current is None:
        raise SchemaError(
            f"the schema is at {current or 'no revision'}, but {head_revision()} is needed: "
            "run `jasper-receiver migrate`, or set AUTO_MIGRATE=true"
        )


def known_revisions() -> set[str]:
    """Every migration this program knows."""
    return {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}


def _upgrade(connection: Connection) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
