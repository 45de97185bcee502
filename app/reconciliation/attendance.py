"""When the service was last there to take callbacks, and whether it was away for longer than Jasper keeps retrying.

A heartbeat in the database: one row for each entity type, touched by every process that takes callbacks. What counts is that
something could be committed, so a Postgres that is down is an absence, too. Whoever touches it first after too long a time
notes from when to when; a reconciliation that began later and succeeded makes good for it.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

from sqlalchemy import DateTime, Interval, Text, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import reading, writing
from app.db.tables import attendance
from app.domain.values import EntityType
from app.errors import DatabaseUnavailableError
from app.registration.retry_window import RetryPlan, retry_span
from app.registration.store import RegistrationStore
from app.settings import Settings

HEARTBEAT = 30.0
"""Seconds between two touches."""

_LAST_TOUCH = 2.0
"""Seconds that an orderly end waits for the last touch."""

LEAST_ABSENCE = timedelta(seconds=2 * HEARTBEAT)
"""A shorter time between two touches is no absence: with `no_retry`, what is lost in one is not noticed."""

_TOUCH = text(
    """
    INSERT INTO attendance AS a (entity_type, alive_at) VALUES (:entity_type, :now)
    ON CONFLICT (entity_type) DO UPDATE SET
        alive_at = greatest(a.alive_at, :now),
        away_from = CASE WHEN :now - a.alive_at > :most THEN coalesce(a.away_from, a.alive_at) ELSE a.away_from END,
        away_until = CASE WHEN :now - a.alive_at > :most THEN :now ELSE a.away_until END
    """
).bindparams(
    bindparam("entity_type", type_=Text),
    bindparam("now", type_=DateTime(timezone=True)),
    bindparam("most", type_=Interval),
)


@dataclass(frozen=True, slots=True)
class Absence:
    """From the last moment in which callbacks were certainly taken to the first in which they were again."""

    began_at: datetime
    ended_at: datetime

    def in_words(self, entity_type: EntityType) -> str:
        """What an operator is to know, and to do."""
        return (
            f"no callback could be taken from {self.began_at:%Y-%m-%d %H:%M:%S} to {self.ended_at:%Y-%m-%d %H:%M:%S} UTC, "
            "longer than Jasper keeps retrying, so some may be lost: "
            f"run `jasper-receiver reconcile {entity_type}`"
        )


class Attendance:
    """The heartbeat of this process, and what is known of absences."""

    def __init__(self, settings: Settings, engine: AsyncEngine, registrations: RegistrationStore) -> None:
        self._settings = settings
        self._engine = engine
        self._registrations = registrations

    async def keep(self) -> NoReturn:
        """Touch at once, then at intervals, and once more when it is cancelled: an orderly end is no absence yet."""
        try:
            while True:
                with suppress(DatabaseUnavailableError):  # that is what an absence is
                    await self.touch(utc_now())
                await asyncio.sleep(HEARTBEAT)
        finally:
            with suppress(DatabaseUnavailableError, TimeoutError):
                async with asyncio.timeout(_LAST_TOUCH):
                    await self.touch(utc_now())

    async def touch(self, now: datetime) -> None:
        """Note that callbacks can be committed now. Raises DatabaseUnavailableError."""
        plans = {one.entity_type: one.plan for one in await self._registrations.load_all()}
        async with writing(self._engine) as connection:
            for name in sorted(self._settings.jasper_webhook_entity_types):
                entity_type = EntityType(name)
                most = max(retry_span(plans.get(entity_type) or self._wanted_plan()), LEAST_ABSENCE)
                await connection.execute(_TOUCH, {"entity_type": name, "now": now, "most": most})

    def _wanted_plan(self) -> RetryPlan:
        return RetryPlan(
            self._settings.jasper_webhook_retry_policy,
            self._settings.jasper_webhook_minimum_retry_interval,
            self._settings.jasper_webhook_retry_limit,
        )


async def absences(engine: AsyncEngine) -> Mapping[EntityType, Absence]:
    """Absences that nothing has made good for yet. Raises DatabaseUnavailableError."""
    async with reading(engine) as connection:
        rows = await connection.execute(select(attendance).where(attendance.c.away_from.is_not(None)))
        return {EntityType(row.entity_type): Absence(row.away_from, row.away_until) for row in rows}
