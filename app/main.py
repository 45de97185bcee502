"""Puts the web application together: what the process holds, its routes, its answers to errors. The only wiring place.

What the lifespan opens is closed in the reverse order, also where the start fails half-way.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import health, metrics, openapi, problems, scrape, tracing
from app.compression import Compression
from app.dashboard import router as dashboard
from app.dashboard.figures import FiguresView
from app.db.engine import Lookups, create_engine
from app.db.sealed import SealedView, keep_sealed
from app.db.wakeup import Wakeup
from app.deliveries import reprocess
from app.deliveries import router as deliveries
from app.deliveries.reprocess import Reprocessor
from app.domain.values import EntityType
from app.entities import router as entities
from app.feed import consumer_router as consumers
from app.feed import router as feed
from app.feed.alarm import Alarm
from app.feed.plain_page import PlainPageDoor
from app.feed.stream import Streams
from app.head import HeadAsGet
from app.intake import rejections, release, unproven
from app.intake.body import ROOM, Room
from app.intake.keyring import Keyring
from app.intake.rejections import Rejections
from app.intake.router import CallbackDoor, Intake
from app.intake.shortcut import CallbackShortcut
from app.intake.tally import Tally
from app.intake.unproven import UnprovenStore
from app.jasper.client import open_http
from app.jasper.proof import Location
from app.jasper.reading import action_headers
from app.ledger.retention import Periods, keep_removing
from app.ledger.writer import Writer
from app.middleware import Requests
from app.reconciliation import router as reconciliations
from app.reconciliation.attendance import Attendance
from app.reconciliation.fetch import Fetcher
from app.reconciliation.reconciler import Reconciler
from app.registration import router as webhooks
from app.registration.register import Registrar
from app.registration.watch import keep_registered
from app.sealing import Sealer
from app.settings import Settings

_log = logging.getLogger(__name__)

CHORES_BEGIN_ANEW = 10.0
CHORES_ARE_TOLD_AGAIN = 1.0
"""Seconds after which a chore that died begins anew, and after which one that was told to end is told again."""


def create_app(settings: Settings, dsn: str, encryption_keys: Sequence[str]) -> FastAPI:
    """The application on the database at `dsn`, whose schema is at head; secrets there are sealed with `encryption_keys`."""
    with_api = "api" in settings.roles
    with_callbacks = "callbacks" in settings.roles

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as held:
            state = await _open(held, settings, dsn, encryption_keys)
            if with_callbacks:
                state["shortcut"] = CallbackShortcut(state["intake"])
            app.state.drain = state["wakeup"].drain
            for name, chore in _chores(settings, dsn, state):
                await held.enter_async_context(_running(chore, name=name))
            yield state

    described: dict[str, Any] = {
        "title": "jasper-receiver",
        "version": version("jasper-receiver"),
        "description": openapi.DESCRIPTION,
        "openapi_tags": openapi.TAGS,
        "redirect_slashes": False,
        # Our own spans and numbers are enough (`app.tracing`, `app.metrics`); FastAPI's would tell queries, too.
        "telemetry": {"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        "lifespan": lifespan,
    }
    if with_api:  # the pages come with their assets, so that a browser asks no other host
        app = FastAPIOffline(docs_url="/docs", redoc_url=None, **described)
    else:
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, **described)
    problems.install(app)
    app.include_router(health.router)
    app.include_router(scrape.router)
    if "dashboard" in settings.roles:
        app.router.routes.extend(dashboard.routes)
    if with_api:
        for room in (
            *(feed, consumers, deliveries, reprocess, webhooks),
            *(rejections, unproven, release, reconciliations, entities),
        ):
            app.include_router(room.router)
        if with_callbacks:
            openapi.add_callback(app)
        openapi.add_examples(app)
    # Last, because nothing can be put around the layers any more; so also what they answer by themselves has its id.
    stack = app.build_middleware_stack()
    if with_api:
        stack = Compression(PlainPageDoor(stack))
    stack = Requests(HeadAsGet(stack))
    app.middleware_stack = CallbackDoor(stack) if with_callbacks else stack
    return app


async def _open(held: AsyncExitStack, settings: Settings, dsn: str, encryption_keys: Sequence[str]) -> dict[str, Any]:
    """What the process holds, for the requests' state; `held` closes it."""
    engine = create_engine(dsn)
    held.push_async_callback(engine.dispose)
    lookups = await held.enter_async_context(Lookups(dsn))
    await held.enter_async_context(tracing.exporting())
    held.callback(metrics.forget_process)
    sealer = Sealer(encryption_keys)
    jasper = await held.enter_async_context(open_http(settings))
    registrar = Registrar(settings, engine=engine, sealer=sealer, http=jasper)
    keyring = Keyring(registrar.store, _header_values(settings))
    await keyring.try_refresh()  # Postgres may have gone again; callbacks are then told to come later
    tally = Tally(engine)
    held.push_async_callback(tally.flush)  # after the writer's last commits
    writer = await held.enter_async_context(Writer(dsn))
    wakeup = await held.enter_async_context(Wakeup(dsn))
    refused = Rejections()
    intake = Intake(
        keyring=keyring,
        writer=writer,
        unproven=UnprovenStore(engine, sealer, settings.unproven_limit, action_headers(settings.payload_mapping)),
        rejections=refused,
        location=Location.parse(settings.jasper_signing_secret_location),
        mapping=settings.payload_mapping,
        max_body_bytes=settings.max_body_bytes,
        room=Room(max(ROOM, 2 * settings.max_body_bytes)),
        tally=tally,
    )
    return {
        "settings": settings,
        "admin_key": settings.admin_api_key,
        "engine": engine,
        "lookups": lookups,
        "sealer": sealer,
        "sealed_view": SealedView(engine, sealer),
        "figures_view": FiguresView(engine),
        "wakeup": wakeup,
        "streams": Streams(engine, wakeup),
        "writer": writer,
        "keyring": keyring,
        "registrar": registrar,
        "reconciler": await held.enter_async_context(Reconciler(settings, dsn=dsn, engine=engine, http=jasper)),
        "rejections": refused,
        "vitals": scrape.Vitals(engine, lookups, writer, intake.room),
        "ledger_view": scrape.LedgerView(engine),
        "intake": intake,
        "reprocessor": Reprocessor(engine, writer, settings.payload_mapping),
    }


_Chore = Callable[[], Coroutine[Any, Any, None]]


def _chores(settings: Settings, dsn: str, state: dict[str, Any]) -> Iterator[tuple[str, _Chore]]:
    """What goes on beside the requests, each with its name."""
    engine, registrar, reconciler = state["engine"], state["registrar"], state["reconciler"]
    yield "keyring", state["keyring"].keep_fresh
    yield "tally", state["intake"].tally.keep_flushing
    yield "vitals", state["vitals"].keep_fresh
    yield "sealing", partial(keep_sealed, engine, state["sealer"])
    yield "count of sealed values", state["sealed_view"].keep
    yield "reconciliation", reconciler.keep
    if "callbacks" in settings.roles:
        for name in settings.jasper_webhook_entity_types:
            yield f"register {name}", partial(keep_registered, registrar, EntityType(name), settings.registration_check)
        yield "attendance", Attendance(settings, engine, registrar.store).keep
    if settings.jasper_fetch_entity and settings.names_jasper:
        fetcher = Fetcher(dsn, reconciler.jasper, settings.payload_mapping, state["wakeup"])
        yield "fetch", fetcher.keep
    kept = Periods(settings.event_retention, settings.delivery_retention)
    yield "retention", partial(keep_removing, engine, kept, warn=Alarm(engine, settings.event_retention).look)


def _header_values(settings: Settings) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in settings.jasper_webhook_headers.items()}


@asynccontextmanager
async def _running(chore: _Chore, *, name: str) -> AsyncIterator[None]:
    """A task beside the web application, which goes on whatever becomes of it."""
    task = asyncio.create_task(_kept_up(chore, name), name=name)
    try:
        yield
    finally:
        # Told again, should it have missed it: a connection that is cut just then is another error, after which it goes on.
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=CHORES_ARE_TOLD_AGAIN)


async def _kept_up(chore: _Chore, name: str) -> None:
    """Begin a chore anew should it die, of what nobody thought of: nobody would miss it before it is needed."""
    while True:
        try:
            await chore()
        except Exception:  # noqa: BLE001 - whatever it is
            if (task := asyncio.current_task()) is not None and task.cancelling():
                return  # it is to end, and this is what came of it
            _log.exception("a background task died, begins anew", extra={"task": name, "again_in": CHORES_BEGIN_ANEW})
        else:
            return
        await asyncio.sleep(CHORES_BEGIN_ANEW)
