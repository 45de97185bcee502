"""`/metrics`: what Prometheus is told. What the process counts of itself, and what the database says about the whole.

What comes from the database is the same whichever process is asked, but for whether this one can open what is sealed there.
It is read in one short transaction with a time-out, of queries that are bounded and have their indexes, and read again only
after some seconds, however often somebody asks. Where it cannot be read the answer says so (`jasper_receiver_database_up 0`),
leaves out what is not known, and comes all the same.
"""

import asyncio
import logging
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

import asyncpg
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import ARRAY, Row, Select, Text, cast, func, literal, select, text, true
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from app import metrics
from app.clock import utc_now
from app.db.engine import Lookups, reading
from app.db.tables import (
    attendance,
    consumers,
    events,
    parked_events,
    reconciliations,
    registrations,
    retention,
    unproven,
)
from app.deliveries.queries import COUNTED, quarantined
from app.domain.values import EntityType
from app.errors import DatabaseUnavailableError
from app.feed import queries
from app.intake.body import Room
from app.ledger.writer import Writer
from app.reconciliation.store import Status
from app.registration.retry_window import RetryPlan, retry_span
from app.registration.store import PENDING_AT_MOST, State

_log = logging.getLogger(__name__)

KEPT = 5.0
"""Seconds for which what the database said is told again."""

PATIENCE = 2.0
"""Seconds that an answer waits for the database; Prometheus itself waits 10 by default."""

_TO_GIVE_UP = 1.0
"""Seconds beyond that in which a reading that was given up may end."""

MOST_CONSUMERS = 100
"""How many consumers have series of their own: those that are the farthest behind."""

SAMPLED_EVERY = 1.0
"""Seconds between looks at queues and pools, so that a process that is not asked itself is not told wrongly for longer."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the database says, in one snapshot."""

    position: int
    quarantined: int
    unproven: int
    parked: int
    consumers: int
    farthest_behind: Sequence[Row[*tuple[Any, ...]]]
    registrations: Sequence[Row[*tuple[Any, ...]]]
    removed_up_to: int
    reconciliations: Sequence[Row[*tuple[Any, ...]]]
    attendance: Sequence[Row[*tuple[Any, ...]]]


class LedgerView:
    """What the database said last, read again when it is older than `kept` seconds and somebody asks."""

    def __init__(self, engine: AsyncEngine, *, kept: float = KEPT, patience: float = PATIENCE) -> None:
        self._engine = engine
        self._kept = kept
        self._patience = patience
        self._ledger: Ledger | None = None
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def now(self) -> Ledger | None:
        """None where the database cannot be read in time. Whoever asks meanwhile shares the reading."""
        if time.monotonic() - self._read_at > self._kept:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(), name="metrics of the ledger")
            # A server that hangs also holds up the orderly end of a reading that was given up.
            done, _ = await asyncio.wait({self._reading}, timeout=self._patience + _TO_GIVE_UP)
            if not done:
                return None
            self._reading.result()
        return self._ledger

    async def _read(self) -> None:
        was_known = self._ledger is not None
        try:
            async with asyncio.timeout(self._patience), reading(self._engine) as connection:
                await connection.execute(text(f"SET LOCAL statement_timeout = {int(1000 * self._patience)}"))
                self._ledger = await _look(connection)
        except (TimeoutError, DatabaseUnavailableError, DBAPIError, asyncpg.PostgresError) as exc:
            self._ledger = None
            if was_known:
                _log.warning("metrics without what the database says", extra={"reason": type(exc).__name__})
        self._read_at = time.monotonic()


async def _look(connection: AsyncConnection) -> Ledger:
    position = await queries.head(connection)
    return Ledger(
        position=position,
        quarantined=await quarantined(connection),
        unproven=await _count(connection, select(unproven.c.id)),
        parked=await _count(connection, select(parked_events.c.sequence)),
        consumers=await _count(connection, select(consumers.c.name)),
        farthest_behind=(await connection.execute(_FARTHEST_BEHIND)).all(),
        registrations=(await connection.execute(_REGISTRATIONS)).all(),
        removed_up_to=await connection.scalar(select(retention.c.oldest_after)) or 0,
        reconciliations=(await connection.execute(_RECONCILIATIONS)).all(),
        attendance=(await connection.execute(_ATTENDANCE)).all(),
    )


async def _count(connection: AsyncConnection, rows: Select[Any]) -> int:
    """How many there are, up to COUNTED."""
    return await connection.scalar(select(func.count()).select_from(rows.limit(COUNTED).subquery())) or 0


_behind = select(consumers.c.name, consumers.c.position).order_by(consumers.c.position).limit(MOST_CONSUMERS).subquery()
_FARTHEST_BEHIND = select(
    _behind.c.name,
    _behind.c.position,
    select(events.c.received_at)
    .where(events.c.sequence > _behind.c.position)
    .order_by(events.c.sequence)
    .limit(1)
    .scalar_subquery()
    .label("oldest"),
)
_REGISTRATIONS = select(
    *(
        registrations.c[name]
        for name in (
            *("entity_type", "state", "pending_since", "last_callback_at"),
            *("retry_policy", "minimum_retry_interval", "retry_limit"),
        )
    )
).limit(literal(len(State) * 4))


_wanted = func.unnest(cast(list(EntityType), ARRAY(Text))).table_valued("entity_type", name="wanted").render_derived()
_newest = (
    select(reconciliations.c.status)
    .where(reconciliations.c.entity_type == _wanted.c.entity_type)
    .order_by(reconciliations.c.id.desc())
    .limit(1)
    .lateral("newest")
)
_RECONCILIATIONS = select(
    _wanted.c.entity_type,
    _newest.c.status,
    select(reconciliations.c.finished_at)
    .where(reconciliations.c.entity_type == _wanted.c.entity_type, reconciliations.c.status == Status.SUCCEEDED)
    .order_by(reconciliations.c.id.desc())
    .limit(1)
    .scalar_subquery()
    .label("succeeded_at"),
).select_from(_wanted.join(_newest, true()))


_ATTENDANCE = select(attendance.c.entity_type, attendance.c.away_from.is_not(None).label("has_missed"))


class Vitals:
    """Queues and pools of this process, looked at once a second and when somebody asks."""

    def __init__(self, engine: AsyncEngine, lookups: Lookups, writer: Writer, room: Room) -> None:
        self._pool = engine.pool
        self._lookups = lookups
        self._writer = writer
        self._room = room

    async def keep_fresh(self, interval: float = SAMPLED_EVERY) -> None:
        """Look every `interval` seconds, for ever; run it as a task and cancel it."""
        while True:
            self.sample()
            await asyncio.sleep(interval)

    def sample(self) -> None:
        """Set the gauges."""
        metrics.PROCESSES.set(1)
        metrics.QUEUED.set(self._writer.queued)
        metrics.HELD_BYTES.set(self._room.held)
        if isinstance(self._pool, QueuePool):
            _IN_USE.set(self._pool.checkedout() + self._lookups.in_use)
            _IDLE.set(self._pool.checkedin() + self._lookups.idle)


_IN_USE, _IDLE = map(metrics.POOL.labels, ("in_use", "idle"))


class LedgerCollector(Collector):
    """What the database said, and which program this is, as Prometheus wants it.

    `ledger` is None where the database is away; `kept_for` is how long events are kept, None: for ever; `knows_secret` tells
    whether this process has a secret for callbacks of a type.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        now: datetime,
        *,
        kept_for: timedelta | None,
        knows_secret: Callable[[EntityType], bool],
    ) -> None:
        self._ledger = ledger
        self._now = now
        self._kept_for = kept_for
        self._knows_secret = knows_secret

    def collect(self) -> Iterable[Metric]:
        """Every family; those from the database only where it is there."""
        build = _gauge("build_info", "Which program this is; always 1", ["version", "python"])
        build.add_metric([version("jasper-receiver"), platform.python_version()], 1)
        yield build
        up = "Whether the database could be read for these numbers; where not, those that come from it are left out"
        yield _gauge("database_up", up, value=int(self._ledger is not None))
        if self._ledger is not None:
            yield from _feed(self._ledger)
            yield from _consumers(self._ledger, self._now, self._kept_for)
            yield from _registrations(self._ledger, self._now, self._knows_secret)
            yield from _reconciliations(self._ledger, self._now)


def _feed(ledger: Ledger) -> Iterable[Metric]:
    counted = f"counted up to {COUNTED}"
    yield _gauge("feed_position", "Sequence of the newest event; 0: there is none", value=ledger.position)
    removed = "Sequence up to which retention has removed events; 0: none"
    yield _gauge("removed_position", removed, value=ledger.removed_up_to)
    yield _gauge("quarantined_deliveries", f"Deliveries that could not be read, {counted}", value=ledger.quarantined)
    yield _gauge("unproven_callbacks", f"Callbacks kept apart, {counted}", value=ledger.unproven)
    yield _gauge("parked_events", f"Events that consumers have set aside, {counted}", value=ledger.parked)


def _consumers(ledger: Ledger, now: datetime, kept_for: timedelta | None) -> Iterable[Metric]:
    yield _gauge("consumers", "Consumers there are", value=ledger.consumers)
    lag = _gauge(
        "consumer_lag_events",
        f"Numbers of the feed behind each consumer, for the {MOST_CONSUMERS} that have the most; holes are counted too",
        ["consumer"],
    )
    age = _gauge("consumer_lag_seconds", "Age of the oldest event behind each of these consumers", ["consumer"])
    left = _gauge(
        "consumer_expires_seconds",
        "Seconds until retention removes an event that one of these has not read; 0: it has done so; missing: kept for ever",
        ["consumer"],
    )
    for consumer in ledger.farthest_behind:
        lag.add_metric([consumer.name], max(0, ledger.position - consumer.position))
        age.add_metric([consumer.name], _seconds(consumer.oldest, now))
        if consumer.position < ledger.removed_up_to:
            left.add_metric([consumer.name], 0.0)
        elif kept_for is not None:
            left.add_metric([consumer.name], max(0.0, kept_for.total_seconds() - _seconds(consumer.oldest, now)))
    yield from (lag, age, left)


def _registrations(ledger: Ledger, now: datetime, knows_secret: Callable[[EntityType], bool]) -> Iterable[Metric]:
    states = _gauge("registration_state", "1 for the state of each webhook, 0 for all others", ["entity_type", "state"])
    secrets = _gauge(
        "signing_secret_known",
        "Whether this process can judge callbacks of a type: there is a secret, and ENCRYPTION_KEYS opened it",
        ["entity_type"],
    )
    silence = _gauge(
        "seconds_since_last_callback", "Age of the last authentic callback; missing: none ever came", ["entity_type"]
    )
    window = _gauge(
        "retry_window_seconds", "How long Jasper retries a callback before it is lost to it", ["entity_type"]
    )
    for one in ledger.registrations:
        is_pending = one.pending_since is not None and now - one.pending_since < PENDING_AT_MOST
        for state in State:
            states.add_metric([one.entity_type, state], int(state == (State.PENDING if is_pending else one.state)))
        secrets.add_metric([one.entity_type], int(knows_secret(EntityType(one.entity_type))))
        if one.last_callback_at is not None:
            silence.add_metric([one.entity_type], _seconds(one.last_callback_at, now))
        if one.retry_policy is not None:
            plan = RetryPlan(one.retry_policy, one.minimum_retry_interval, one.retry_limit)
            window.add_metric([one.entity_type], retry_span(plan).total_seconds())
    yield from (states, secrets, silence, window)


def _reconciliations(ledger: Ledger, now: datetime) -> Iterable[Metric]:
    statuses = _gauge(
        "reconciliation_status",
        "1 for what came of the newest reconciliation, 0 for all else",
        ["entity_type", "status"],
    )
    age = _gauge(
        "seconds_since_reconciliation", "Age of the last one that succeeded; missing: none ever did", ["entity_type"]
    )
    missed = _gauge(
        "callbacks_missed",
        "1 where callbacks may be missing because they could not be taken for longer than Jasper retries, until a "
        "reconciliation has made good for it",
        ["entity_type"],
    )
    for one in ledger.attendance:
        missed.add_metric([one.entity_type], int(one.has_missed))
    for one in ledger.reconciliations:
        for status in Status:
            statuses.add_metric([one.entity_type, status], int(status == one.status))
        if one.succeeded_at is not None:
            age.add_metric([one.entity_type], _seconds(one.succeeded_at, now))
    yield from (statuses, age, missed)


def _gauge(
    name: str, documentation: str, labels: Sequence[str] | None = None, value: float | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{metrics.PREFIX}_{name}", documentation, value=value, labels=labels)


def _seconds(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


router = APIRouter(tags=["operations"])


_EXAMPLE = """\
# TYPE jasper_receiver_database_up gauge
jasper_receiver_database_up 1.0
"""


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus text or OpenMetrics, as accepted",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": _EXAMPLE}},
        }
    },
)
async def get_metrics(request: Request) -> Response:
    """What this process counts, or all processes behind its address, and what the database says. Wants no key.

    Comes also while Postgres is away; `jasper_receiver_database_up` is 0 then.
    """
    request.state.vitals.sample()
    registry: CollectorRegistry = metrics.registry()
    ledger = await request.state.ledger_view.now()
    kept_for, keyring = request.state.settings.event_retention, request.state.keyring
    registry.register(LedgerCollector(ledger, utc_now(), kept_for=kept_for, knows_secret=keyring.knows_secret))
    try:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # it asks for a version that is none
        encode, media_type = choose_encoder("")
    return Response(encode(registry), headers={"Content-Type": media_type})
