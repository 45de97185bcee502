"""The first page: is it well, what is not, and how it went over the last hours."""

from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from app.clock import utc_now
from app.dashboard import charts, queries
from app.dashboard.findings import PAGES, Seen, findings
from app.dashboard.pages import NAVIGATION, Visit
from app.db.engine import reading
from app.status import look

RANGES = {
    "hour": ("last hour", timedelta(minutes=1), 60),
    "day": ("last 24 hours", timedelta(minutes=15), 96),
    "week": ("last 7 days", timedelta(hours=2), 84),
}
"""What the charts may show: in words, the length of a stretch, how many of them."""


async def overview(visit: Visit) -> Response:
    """Findings first, then figures and charts."""
    state = visit.request.state
    now = utc_now()
    chosen = visit.request.query_params.get("range", "hour")
    chosen = chosen if chosen in RANGES else "hour"
    words, step, count = RANGES[chosen]
    hour = timedelta(hours=1)
    async with reading(visit.engine) as connection:
        parked = await queries.parked(connection)
        shown = await queries.stretches(connection, since=_beginning(now, step, count), step=step, count=count)
        [last_hour] = await queries.stretches(connection, since=now - hour, step=hour, count=1)
    status = await look(
        visit.engine, state.sealer, await state.sealed_view.now(), kept_for=state.settings.event_retention
    )
    seen = Seen("callbacks" in state.settings.roles, state.writer.alive, last_hour, parked)
    return visit.show(
        "overview.html",
        findings=findings(seen, status, state.settings, now),
        pages=PAGES,
        page_names=dict(NAVIGATION),
        standing=status,
        last_hour=last_hour,
        ranges={name: words for name, (words, _, _) in RANGES.items()},
        chosen=chosen,
        range_words=words,
        stretches=shown,
        outcomes=charts.OUTCOMES,
        speeds=charts.SPEEDS,
        callbacks_chart=charts.callbacks(shown, step),
        latency_chart=charts.latencies(shown, step),
    )


def _beginning(now: datetime, step: timedelta, count: int) -> datetime:
    """The start of the first stretch, so that the last one has `now` in it and all begin at whole steps."""
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    return epoch + ((now - epoch) // step - count + 1) * step
