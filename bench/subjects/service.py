"""This service as it runs in production: `serve` with its own settings, a secret that it knows, and everything on."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from app.access.keys import Scope, create_key
from app.db.engine import create_engine
from app.db.migrate import migrate
from app.domain.values import EntityType
from app.registration.store import RegistrationStore
from app.sealing import Sealer, generate_key
from bench.postgres import Postgres
from bench.subjects.web import HEADERS, SECRET, WebSubject

TEMPLATE = "service_template"

_ENCRYPTION_KEY = generate_key()
# Where all is well, there are as many of each.
_ROWS = """
    SELECT greatest(deliveries, events), least(deliveries, events, changes)
    FROM (
        SELECT (SELECT count(*) FROM deliveries WHERE status = 'accepted') AS deliveries,
               (SELECT count(*) FROM events) AS events,
               (SELECT count(*) FROM (SELECT DISTINCT entity_id, occurred_at FROM events) one) AS changes
    ) counted
"""


def service(processes: int = 1) -> WebSubject:
    """The service as one process, or as several replicas."""
    return WebSubject(
        name="service" if processes == 1 else f"service x{processes}",
        about="this service, everything on" + ("" if processes == 1 else f", {processes} replicas on one Postgres"),
        command=(sys.executable, "-m", "app.cli.commands", "serve"),
        ready="/readyz",
        rows=_ROWS,
        environment={
            "ENCRYPTION_KEYS": _ENCRYPTION_KEY,
            "JASPER_WEBHOOK_HEADERS": json.dumps({"X-From": HEADERS["X-From"]}),
            "DELIVERY_RETENTION_DAYS": "0",  # a past that is made up is older than the default
        },
        template=TEMPLATE,
        processes=processes,
    )


@asynccontextmanager
async def service_template(postgres: Postgres) -> AsyncIterator[str]:
    """A database that others are copied from: the schema at head and a signing secret, as after a registration.

    Yields a key that may read, such as each reading service has one.
    """
    async with postgres.database(TEMPLATE) as dsn:
        engine = create_engine(dsn)
        try:
            await migrate(engine)
            now = datetime.now(UTC)
            await RegistrationStore(engine, Sealer([_ENCRYPTION_KEY])).commit(
                EntityType.PRODUCT,
                webhook_id="1",
                signing_secret=SECRET,
                registered=None,
                now=now,
                retire_until=now,
            )
            _, key = await create_key(engine, "benchmark", [Scope.READ], now=now)
        finally:
            await engine.dispose()
        yield key
