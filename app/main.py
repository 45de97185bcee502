"""Puts the web application together: what the process holds, its routes, its answers to errors. The only wiring place.

What the lifespan opens is closed in the reverse order, also where the start fails half-way.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import health, openapi, problems
from app.bootstrap import keep_registered
from app.dashboard import router as dashboard
from app.db.engine import create_engine
from app.db.wakeup import Wakeup
from app.deliveries import reprocess
from app.deliveries import router as deliveries
from app.deliveries.reprocess import Reprocessor
from app.domain.values import EntityType
from app.entities import router as entities
from app.feed import consumer_router as consumers
from app.feed import router as feed
from app.feed.stream import Streams
from app.intake import rejections, release, unproven
from app.intake import router as callbacks
from app.intake.body import ROOM, Room
from app.intake.keyring import Keyring
from app.intake.rejections import Rejections
from app.intake.router import Intake
from app.intake.tally import Tally
from app.intake.unproven import UnprovenStore
from app.jasper.client import open_http
from app.jasper.proof import Location
from app.ledger.writer import Writer
from app.registration import router as webhooks
from app.registration.register import Registrar
from app.sealing import Sealer
from app.settings import Settings

_log = logging.getLogger(__name__)


def create_app(settings: Settings, dsn: str, encryption_keys: Sequence[str]) -> FastAPI:
    """The application on the database at `dsn`, whose schema is at head; secrets there are sealed with `encryption_keys`."""
    with_api = "api" in settings.roles
    with_callbacks = "callbacks" in settings.roles

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as held:
            engine = create_engine(dsn)
            held.push_async_callback(engine.dispose)
            sealer = Sealer(encryption_keys)
            jasper = await held.enter_async_context(open_http(settings))
            registrar = Registrar(settings, engine=engine, sealer=sealer, http=jasper)
            keyring = Keyring(registrar.store, _header_values(settings))
            await keyring.try_refresh()  # Postgres may have gone again; callbacks are then told to come later
            writer = await held.enter_async_context(Writer(dsn))
            wakeup = await held.enter_async_context(Wakeup(dsn))
            app.state.drain = wakeup.drain
            refused = Rejections()
            tally = Tally(engine)
            held.push_async_callback(tally.flush)
            intake = Intake(
                keyring=keyring,
                writer=writer,
                unproven=UnprovenStore(engine, sealer, settings.unproven_limit),
                rejections=refused,
                location=Location.parse(settings.jasper_signing_secret_location),
                mapping=settings.payload_mapping,
                max_body_bytes=settings.max_body_bytes,
                room=Room(max(ROOM, 2 * settings.max_body_bytes)),
                tally=tally,
            )
            await held.enter_async_context(_running(keyring.keep_fresh(), name="keyring"))
            await held.enter_async_context(_running(tally.keep_flushing(), name="tally"))
            if with_callbacks:
                types = [EntityType(name) for name in settings.jasper_webhook_entity_types]
                await held.enter_async_context(_running(keep_registered(registrar, types), name="registration"))
            yield {
                "settings": settings,
                "admin_key": settings.admin_api_key,
                "engine": engine,
                "sealer": sealer,
                "wakeup": wakeup,
                "streams": Streams(engine, wakeup),
                "writer": writer,
                "keyring": keyring,
                "registrar": registrar,
                "rejections": refused,
                "intake": intake,
                "reprocessor": Reprocessor(engine, writer, settings.payload_mapping),
            }

    described: dict[str, Any] = {
        "title": "jasper-receiver",
        "version": version("jasper-receiver"),
        "description": openapi.DESCRIPTION,
        "openapi_tags": openapi.TAGS,
        "redirect_slashes": False,
        "lifespan": lifespan,
    }
    if with_api:  # the pages come with their assets, so that a browser asks no other host
        app = FastAPIOffline(docs_url="/docs", redoc_url=None, **described)
    else:
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, **described)
    problems.install(app)
    app.include_router(health.router)
    if with_callbacks:
        app.router.routes.extend(callbacks.routes)
    if "dashboard" in settings.roles:
        app.router.routes.extend(dashboard.routes)
    if with_api:
        for room in (
            *(feed, consumers, deliveries, reprocess, webhooks),
            *(rejections, unproven, release, entities),
        ):
            app.include_router(room.router)
        if with_callbacks:
            openapi.add_callback(app)
    return app


def _header_values(settings: Settings) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in settings.jasper_webhook_headers.items()}


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """A task beside the web application; one that dies is said so loudly, and the application goes on without it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_say_if_it_died)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def _say_if_it_died(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a background task died", exc_info=task.exception(), extra={"task": task.get_name()})
