"""The first page: is it well, what is not, and how it went over the last hours."""

from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from app.clock import utc_now
from app.dashboard import charts, queries
from app.dashboard.findings import Seen, findings
from app.dashboard.pages import Visit
from app.db.engine import reading
from app.feed import consumers
from app.feed import queries as feed

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
        counts = await queries.counts(connection)
        position = await feed.head(connection)
        shown = await queries.stretches(connection, since=_beginning(now, step, count), step=step, count=count)
        [last_hour] = await queries.stretches(connection, since=now - hour, step=hour, count=1)
    registrations = await state.registrar.store.load_all()
    seen = Seen(
        has_jasper=state.registrar.has_jasper,
        receives="callbacks" in state.settings.roles,
        writer_alive=state.writer.alive,
        registrations=registrations,
        counts=counts,
        last_hour=last_hour,
        consumers=await consumers.listed(visit.engine, kept_for=state.settings.event_retention),
        now=now,
    )
    return visit.show(
        "overview.html",
        findings=findings(seen),
        seen=seen,
        position=position,
        last_callback_at=max((one.last_callback_at for one in registrations if one.last_callback_at), default=None),
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
