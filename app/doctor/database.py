"""Whether Postgres is there, can be written to, and keeps what it was given."""

from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from app.clock import spoken, utc_now
from app.db.engine import UNREACHABLE, connect, create_engine
from app.db.migrate import check_schema
from app.db.tables import event_sequence, metadata
from app.doctor.report import Examined, Verdict, judged
from app.errors import DatabaseUnavailableError, SchemaError
from app.settings import Settings

OLDEST_POSTGRES = 14
"""The oldest major version of Postgres that the receiver is made for."""

CLOCKS_APART = timedelta(seconds=30)

_AREA = "database"


async def examine_database(settings: Settings, dsn: str) -> AsyncIterator[Examined]:
    """Server, permissions, schema; ends with the first thing without which the rest cannot be tried."""
    try:
        connection = await connect(dsn, application_name="jasper-receiver doctor", writable=False)
    except DatabaseUnavailableError as exc:
        refusal = exc.__cause__
        detail = f"Postgres refuses: {refusal}" if isinstance(refusal, asyncpg.PostgresError) else str(exc)
        yield Examined(_AREA, Verdict.WRONG, detail, "look at DATABASE_URL, at the server, and at the way there")
        return
    try:
        for one in await _server(connection):
            yield one
        for one in await _permissions(connection, settings):
            yield one
    except (asyncpg.PostgresError, *UNREACHABLE) as exc:
        yield Examined(_AREA, Verdict.WRONG, f"Postgres fails: {exc}", "look at its log")
    finally:
        await connection.close()
    engine = create_engine(dsn)
    try:
        await check_schema(engine)
        yield Examined(_AREA, Verdict.OK, "the schema is at head")
    except SchemaError as exc:
        yield Examined(_AREA, Verdict.WRONG, str(exc), "`jasper-receiver migrate`")
    except (DatabaseUnavailableError, SQLAlchemyError) as exc:
        yield Examined(
            _AREA, Verdict.WRONG, f"the schema cannot be read ({type(exc).__name__})", "look at the log of Postgres"
        )
    finally:
        await engine.dispose()


async def _server(connection: asyncpg.Connection) -> list[Examined]:
    asked = utc_now()
    [row] = await connection.fetch(
        """
        SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
            pg_is_in_recovery() AS standby, current_setting('transaction_read_only') AS read_only,
            current_setting('server_encoding') AS encoding, current_setting('fsync') AS fsync,
            current_setting('full_page_writes') AS full_page_writes,
            current_setting('synchronous_commit') AS synchronous_commit, clock_timestamp() AS now
        """
    )
    found = [judged(_AREA, row["number"] >= OLDEST_POSTGRES * 10_000, f"Postgres {row['version']} answers",
                     f"the receiver is made for {OLDEST_POSTGRES} and later: use a newer server")]  # fmt: skip
    if row["standby"] or row["read_only"] == "on":
        kind = "a standby" if row["standby"] else "read-only"
        found.append(Examined(_AREA, Verdict.WRONG, f"it is {kind}, so nothing can be committed", "name the primary"))
    if row["encoding"] != "UTF8":
        what = f"its encoding is {row['encoding']}, which cannot hold every text"
        found.append(Examined(_AREA, Verdict.WRONG, what, "make a database with ENCODING 'UTF8' and move there"))
    found += [
        judged(
            _AREA,
            row[name] == "on",
            f"{name} is {row[name]}",
            f"a crash of the machine may destroy the database: set {name} = on",
        )
        for name in ("fsync", "full_page_writes")
    ]
    if row["synchronous_commit"] == "off":
        what = "synchronous_commit is off: callbacks are committed safely all the same, but not registrations"
        found.append(Examined(_AREA, Verdict.WARNING, what, "set synchronous_commit = on"))
    apart = abs(row["now"] - asked)
    if apart > CLOCKS_APART:
        what = f"its clock and the one here are {spoken(apart)} apart"
        found.append(Examined(_AREA, Verdict.WARNING, what, "let both be set by NTP"))
    return found


async def _permissions(connection: asyncpg.Connection, settings: Settings) -> list[Examined]:
    """Whether this user may do with our tables what the receiver does."""
    user = await connection.fetchval("SELECT quote_ident(current_user)")
    missing = await connection.fetch(
        """
        SELECT privilege || ' on ' || relname AS missing
        FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE oid IN (SELECT to_regclass(name) FROM unnest($1::text[]) AS name)
            AND NOT has_table_privilege(oid, privilege)
        UNION ALL
        SELECT 'USAGE on ' || relname FROM pg_class
        WHERE oid = to_regclass($2) AND NOT has_sequence_privilege(oid, 'USAGE')
        ORDER BY missing
        """,
        sorted(metadata.tables),
        event_sequence.name,
    )
    lacking = ", ".join(one["missing"] for one in missing)
    found = [
        judged(
            _AREA,
            not missing,
            f"the user {user} lacks {lacking}"
            if missing
            else f"the user {user} lacks no right to the tables that are there",
            f"make {user} the owner of the tables, or: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public "
            f"TO {user}; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {user}",
        )
    ]
    may_create = await connection.fetchval("SELECT has_schema_privilege(current_schema(), 'CREATE')")
    if settings.auto_migrate and not may_create:
        what = f"the user {user} may not create tables, so `serve` cannot migrate"
        todo = f"GRANT CREATE ON SCHEMA public TO {user}; or set AUTO_MIGRATE=false and migrate as another user"
        found.append(Examined(_AREA, Verdict.WARNING, what, todo))
    return found
