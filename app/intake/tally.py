"""How many callbacks were answered in which way and how fast, minute by minute: for the charts of the dashboard.

Counted in memory, so that no callback pays for it, and added to Postgres every few seconds, where all replicas' counts come
together. What a process had counted since is lost where it is killed; nothing but charts is made from these numbers.
"""

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import writing
from app.db.tables import callback_minutes
from app.domain.values import DeliveryStatus, EntityType
from app.errors import DatabaseUnavailableError, NotAuthenticError, ReceiverError, UnavailableError

_log = logging.getLogger(__name__)

BOUNDS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000, 5000)
"""Upper bounds, in milliseconds, of what is counted together; what took longer is counted behind the last."""

KEPT = timedelta(days=31)
"""For how long minutes are kept: some 45,000 of them, each with a few rows."""

_FLUSH_INTERVAL = 5.0
_PRUNE_EVERY = 720
"""Flushes between two looks for what is too old: an hour."""

_MOST_ROWS = 2000
"""What is held in memory while Postgres is away: more than an hour of every kind of answer."""

_ADD = text(
    """
    INSERT INTO callback_minutes AS kept (minute, entity_type, outcome, count, latencies)
    VALUES (:minute, :entity_type, :outcome, :count, CAST(:latencies AS integer[]))
    ON CONFLICT (minute, entity_type, outcome) DO UPDATE SET
        count = kept.count + excluded.count,
        latencies = (
            SELECT array_agg(one.before + one.more ORDER BY one.place)
            FROM unnest(kept.latencies, excluded.latencies) WITH ORDINALITY AS one (before, more, place)
        )
    """
)


class Outcome(StrEnum):
    """How a callback was answered."""

    ACCEPTED = DeliveryStatus.ACCEPTED
    DUPLICATE = DeliveryStatus.DUPLICATE
    QUARANTINED = DeliveryStatus.QUARANTINED
    REFUSED = "refused"  # 401
    PUT_OFF = "put_off"  # 503: Jasper comes again
    INVALID = "invalid"  # too large, too slow, not a POST

    @classmethod
    def of_error(cls, error: ReceiverError) -> "Outcome":
        """What an error means for the callback that met it."""
        match error:
            case NotAuthenticError():
                return cls.REFUSED
            case UnavailableError():
                return cls.PUT_OFF
        return cls.INVALID


_Key = tuple[int, EntityType, Outcome]
"""A minute, counted since 1970, and what was answered in it."""


@dataclass(slots=True)
class Tally:
    """Counts the answers of this process, and adds them to those of all."""

    engine: AsyncEngine
    _counted: dict[_Key, list[int]] = field(default_factory=dict)

    def note(self, entity_type: EntityType, outcome: Outcome, seconds: float) -> None:
        """One callback was answered, so many seconds after it had come (its body, where that followed its head at once)."""
        key = (int(time.time()) // 60, entity_type, outcome)
        counts = self._counted.get(key)
        if counts is None:
            if len(self._counted) >= _MOST_ROWS:
                return
            counts = self._counted[key] = [0] * (len(BOUNDS) + 1)
        counts[bisect_left(BOUNDS, seconds * 1000)] += 1

    async def flush(self) -> None:
        """Add what was counted to what is kept; where Postgres is away it is kept for the next time."""
        counted, self._counted = self._counted, {}
        if not counted:
            return
        try:
            async with writing(self.engine) as connection:
                # In one order everywhere, so that replicas wait for each other and never in a circle.
                await connection.execute(_ADD, [_row(key, counted[key]) for key in sorted(counted)])
        except DatabaseUnavailableError:
            self._put_back(counted)

    def _put_back(self, counted: Mapping[_Key, list[int]]) -> None:
        for key, counts in counted.items():
            self._counted[key] = [a + b for a, b in zip(counts, self._counted.get(key, [0] * len(counts)), strict=True)]

    async def keep_flushing(self) -> None:
        """Flush every few seconds, for ever, and forget what is too old now and then; run it as a task and cancel it."""
        while True:
            for _ in range(_PRUNE_EVERY):
                await asyncio.sleep(_FLUSH_INTERVAL)
                await self.flush()
            await self.prune(utc_now())

    async def prune(self, now: datetime) -> None:
        """Forget the minutes that are too old."""
        try:
            async with writing(self.engine) as connection:
                await connection.execute(delete(callback_minutes).where(callback_minutes.c.minute < now - KEPT))
        except DatabaseUnavailableError as exc:
            _log.warning("old minutes of the charts not removed", extra={"reason": str(exc)})


def _row(key: _Key, counts: list[int]) -> dict[str, object]:
    minute, entity_type, outcome = key
    return {
        "minute": datetime.fromtimestamp(minute * 60, UTC),
        "entity_type": entity_type,
        "outcome": outcome,
        "count": sum(counts),
        "latencies": counts,
    }
