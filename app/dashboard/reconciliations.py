"""Reconciliations: what was compared with Jasper's own lists, how far one that is running has come, and beginning one."""

from starlette.responses import Response

from app.dashboard.pages import Visit
from app.domain.values import EntityType
from app.errors import NotFoundError
from app.reconciliation import store
from app.reconciliation.reconciler import Reconciler

START, FORCE = "start", "force"
_WAYS = {
    START: (
        "Reconcile",
        "Reads Jasper's list and writes what was missed. Where very many are gone, it asks before it deletes them.",
    ),
    FORCE: (
        "Reconcile and delete all that is gone",
        "Deletes whatever Jasper has no more, however many. Make sure that it is not only hidden from this token.",
    ),
}
"""In which way it may be begun: its name, and what it does."""


async def show_reconciliations(visit: Visit) -> Response:
    """The newest of them, and a way to begin one of each entity type."""
    state = visit.request.state
    return visit.show(
        "reconciliations.html",
        reconciliations=await store.newest(visit.engine),
        entity_types=[EntityType(name) for name in state.settings.jasper_webhook_entity_types],
        has_jasper=state.registrar.has_jasper,
    )


async def confirm_reconciliation(visit: Visit) -> Response:
    """Ask once more, and say what will happen."""
    entity_type, way = _wanted(visit)
    title, what = _WAYS[way]
    return visit.show(
        "confirm.html", entity_type=entity_type, title=title, what=what, back="/dashboard/reconciliations"
    )


async def start_reconciliation(visit: Visit) -> Response:
    """Begin one in the background."""
    entity_type, way = _wanted(visit)
    reconciler: Reconciler = visit.request.state.reconciler
    await reconciler.start(entity_type, force=way == FORCE)
    return visit.back_to("/dashboard/reconciliations", f"Reconciliation of {entity_type} has begun.")


def _wanted(visit: Visit) -> tuple[EntityType, str]:
    parameters = visit.request.path_params
    try:
        entity_type = EntityType(parameters["entity_type"])
    except ValueError as exc:
        raise NotFoundError("there is no such entity type") from exc
    if parameters["way"] not in _WAYS:
        raise NotFoundError("there is nothing at this address")
    return entity_type, parameters["way"]
