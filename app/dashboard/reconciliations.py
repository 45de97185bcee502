"""Reconciliations: how each stands, where one is called for, and the form that begins one."""

from starlette.responses import Response

from app.dashboard.pages import Visit
from app.domain.values import EntityType
from app.errors import InvalidParametersError
from app.reconciliation import store
from app.reconciliation.reconciler import Reconciler
from app.reconciliation.store import Status

_PATH = "/dashboard/reconciliations"

_FORCED = (
    "Compares with Jasper's list, and deletes here whatever is gone there, however much that is. Readers get a delete "
    "for each. First make sure that Jasper's list is as it should be."
)


async def list_reconciliations(visit: Visit) -> Response:
    """The newest, how far each has come, and the entity types that need one."""
    reconciler: Reconciler = visit.request.state.reconciler
    latest = await store.latest(visit.engine)
    listed = await store.newest(visit.engine)
    # One may have ended between the two: what the list says was read last, so nothing on the page contradicts it.
    latest |= {one.entity_type: one for one in reversed(listed)}
    return visit.show(
        "reconciliations.html",
        reconciliations=listed,
        absences=await reconciler.absences(),
        running={entity_type for entity_type, one in latest.items() if one.status is Status.RUNNING},
        waiting=[one for one in latest.values() if one.status is Status.NEEDS_CONFIRMATION],
        entity_types=list(EntityType),
        has_jasper=visit.request.state.settings.names_jasper,
    )


async def begin_reconciliation(visit: Visit) -> Response:
    """Begin the one that the form names; where it may delete whatever is gone, ask once more."""
    given = visit.form.get("entity_type", "")
    if given not in set(EntityType):
        raise InvalidParametersError([{"parameter": "entity_type", "detail": "must be an entity type"}])
    entity_type, force = EntityType(given), visit.form.get("force") == "true"
    if force and visit.form.get("confirmed") != "true":
        return visit.show(
            "confirm.html",
            entity_type=entity_type,
            title="Reconcile and delete what is gone",
            what=_FORCED,
            fields={"entity_type": entity_type, "force": "true", "confirmed": "true"},
            back=_PATH,
        )
    reconciler: Reconciler = visit.request.state.reconciler
    await reconciler.start(entity_type, force=force)
    return visit.back_to(_PATH, f"The reconciliation of {entity_type} is running.")
