"""What the overview counts and draws: one look for all who watch it.

To draw takes a fifth of a second of the processor, for which callbacks must not wait: it is done in a thread, for one range at
a time, and what came of it is shown to everybody for some seconds.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.dashboard import charts, queries
from app.dashboard.queries import Stretch
from app.db.engine import reading

RANGES = {
    "hour": ("last hour", timedelta(minutes=1), 60),
    "day": ("last 24 hours", timedelta(minutes=15), 96),
    "week": ("last 7 days", timedelta(hours=2), 84),
}
"""What the charts may show: in words, the length of a stretch, how many of them."""

KEPT = 5.0
"""Seconds for which figures are shown again: processes add their counts no more often."""

_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Figures:
    """How callbacks were answered, in the stretches of a range and in the last hour. A chart that would be empty is None."""

    stretches: list[Stretch]
    last_hour: Stretch
    callbacks_chart: Markup | None
    latency_chart: Markup | None


class FiguresView:
    """The figures of each range, made again when they are older than `KEPT` and somebody asks."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._drawing = asyncio.Lock()
        self._made: dict[str, tuple[float, asyncio.Task[Figures]]] = {}

    async def now(self, chosen: str) -> Figures:
        """The figures of one of `RANGES`; whoever asks meanwhile gets the same. Raises DatabaseUnavailableError."""
        begun, task = self._made.get(chosen, (0.0, None))
        if task is None or (task.done() and (task.exception() or time.monotonic() - begun > KEPT)):
            task = asyncio.create_task(self._make(chosen), name=f"figures of the {chosen}")
            self._made[chosen] = time.monotonic(), task
        return await asyncio.shield(task)

    async def _make(self, chosen: str) -> Figures:
        now = utc_now()
        _, step, count = RANGES[chosen]
        async with reading(self._engine) as connection:
            shown = await queries.stretches(connection, since=_beginning(now, step, count), step=step, count=count)
            [last_hour] = await queries.stretches(connection, since=now - _HOUR, step=_HOUR, count=1)
        async with self._drawing:  # two threads would leave the event loop a third of the time
            callbacks_chart = await asyncio.to_thread(charts.callbacks, shown, step)
            latency_chart = await asyncio.to_thread(charts.latencies, shown, step)
        return Figures(shown, last_hour, callbacks_chart, latency_chart)


def _beginning(now: datetime, step: timedelta, count: int) -> datetime:
    """The start of the first stretch, so that the last one has `now` in it and all begin at whole steps."""
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    return epoch + ((now - epoch) // step - count + 1) * step
