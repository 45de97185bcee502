"""Everything the doctor tries, in order, each thing told as soon as it was tried."""

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from app.clock import spoken
from app.db.engine import UNREACHABLE, create_engine
from app.doctor.database import examine_database
from app.doctor.jasper import examine_jasper
from app.doctor.report import Examined, Verdict
from app.doctor.way_in import examine_way_in
from app.errors import ReceiverError
from app.registration.retry_window import RetryPlan, retry_span
from app.registration.store import Registration, RegistrationStore
from app.sealing import Sealer
from app.settings import Settings


async def examine(settings: Settings, dsn: str, sealer: Sealer) -> AsyncIterator[Examined]:
    """Try everything, one thing after the other; never raises for what it finds."""
    for one in _settings(settings):
        yield one
    async for one in examine_database(settings, dsn):
        yield one
    registrations = await _stored(dsn, sealer)
    if not settings.names_jasper:
        yield Examined(
            "jasper",
            Verdict.WARNING,
            "no Jasper is named, so neither its API nor the way back in was tried",
            "set JASPER_API_URL, JASPER_API_TOKEN and PUBLIC_URL, all three",
        )
        return
    async for one in examine_jasper(settings, registrations):
        yield one
    async for one in examine_way_in(settings):
        yield one


def _settings(settings: Settings) -> Iterator[Examined]:
    area = "settings"
    yield Examined(area, Verdict.OK, "all settings can be read")
    plan = RetryPlan(
        settings.jasper_webhook_retry_policy,
        settings.jasper_webhook_minimum_retry_interval,
        settings.jasper_webhook_retry_limit,
    )
    if plan.retries == 0:
        yield Examined(
            area,
            Verdict.WARNING,
            "Jasper is told not to retry, so a callback that meets a restart is lost",
            "set JASPER_WEBHOOK_RETRY_POLICY and JASPER_WEBHOOK_RETRY_LIMIT",
        )
    else:
        yield Examined(area, Verdict.OK, f"Jasper retries a callback for {spoken(retry_span(plan))} before it is lost")
    if not settings.jasper_webhook_headers:
        yield Examined(
            area,
            Verdict.WARNING,
            "no custom header is set, so a callback whose secret cannot be proven is refused and not kept apart",
            "set JASPER_WEBHOOK_HEADERS to a header with a random value",
        )
    if settings.public_url is not None and urlsplit(settings.public_url).scheme != "https":
        yield Examined(
            area,
            Verdict.WARNING,
            "PUBLIC_URL is not https, so the signing secret travels in the clear",
            "put TLS in front, and name the https address",
        )


async def _stored(dsn: str, sealer: Sealer) -> list[Registration]:
    """What is registered, as far as the database can tell."""
    engine = create_engine(dsn)
    try:
        return await RegistrationStore(engine, sealer).load_all()
    except (ReceiverError, SQLAlchemyError, asyncpg.PostgresError, *UNREACHABLE):
        return []  # what is wrong with the database has been told
    finally:
        await engine.dispose()
