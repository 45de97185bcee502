"""The first page: is it well, what is not, and how it went over the last hours."""

from starlette.responses import Response

from app.clock import utc_now
from app.dashboard import charts, queries
from app.dashboard.figures import RANGES
from app.dashboard.findings import PAGES, Seen, findings
from app.dashboard.pages import NAVIGATION, Visit
from app.db.engine import reading
from app.status import look


async def overview(visit: Visit) -> Response:
    """Findings first, then figures and charts."""
    state = visit.request.state
    now = utc_now()
    chosen = visit.request.query_params.get("range", "hour")
    chosen = chosen if chosen in RANGES else "hour"
    figures = await state.figures_view.now(chosen)
    async with reading(visit.engine) as connection:
        parked = await queries.parked(connection)
    status = await look(visit.engine, state.sealer, state.sealed_view.last(), kept_for=state.settings.event_retention)
    seen = Seen("callbacks" in state.settings.roles, state.writer.alive, figures.last_hour, parked)
    return visit.show(
        "overview.html",
        findings=findings(seen, status, state.settings, now),
        pages=PAGES,
        page_names=dict(NAVIGATION),
        standing=status,
        figures=figures,
        ranges={name: words for name, (words, _, _) in RANGES.items()},
        chosen=chosen,
        outcomes=charts.OUTCOMES,
        speeds=charts.SPEEDS,
    )
