"""Entities: which there are, what one of them is now and was before, and everything that happened to it."""

from starlette.responses import Response

from app.dashboard import queries
from app.dashboard.pages import Visit
from app.dashboard.parameters import position
from app.db.engine import reading
from app.domain.values import EntityType
from app.entities import queries as states
from app.errors import GoneError, NotFoundError
from app.feed import queries as feed
from app.paging import LAST_POSITION, is_storable

_ITEMS = 50
_EVENTS = 30

MOST_STEPS = 200
"""Positions of the slider: the entity's newest events."""

GONE = 410
"""The status of a page for a state that is kept no longer, as the API gives it."""


async def list_entities(visit: Visit) -> Response:
    """Entities of a type by id, from the first behind `after`."""
    query = visit.request.query_params
    entity_type = _entity_type(query.get("type", EntityType.PRODUCT))
    after = query.get("after") or None
    async with reading(visit.engine) as connection:
        page = await states.page(
            connection,
            entity_type,
            after=after if after and is_storable(after) else None,
            limit=_ITEMS,
            include_deleted=True,
            updated_since=None,
        )
    return visit.show("entities.html", page=page, entity_type=entity_type, entity_types=list(EntityType))


async def show_entity(visit: Visit) -> Response:
    """One entity: its state now or at `as_of`, and its history before `before`, as far as its events are kept."""
    entity_type, entity_id = _named(visit)
    before = position(visit.request, "before")
    as_of = position(visit.request, "as_of")
    async with reading(visit.engine) as connection:
        oldest = await feed.oldest_after(connection)
        steps = await queries.positions(connection, entity_type, entity_id, after=oldest, limit=MOST_STEPS)
        history = await queries.history(
            connection,
            entity_type,
            entity_id,
            after=oldest,
            before=LAST_POSITION if before is None else before,
            limit=_EVENTS + 1,
        )
        state = await states.state(connection, entity_type, entity_id)
        if state is None:
            raise NotFoundError(f"no {entity_type} with the id {entity_id} was ever seen")
        try:
            shown = state if as_of is None else await states.state_as_of(connection, entity_type, entity_id, as_of)
            is_gone = False
        except GoneError:
            shown, is_gone = None, True
        entity = shown and await states.with_data(connection, shown)
    return visit.show(
        "entity.html",
        status=GONE if is_gone else 200,
        entity_type=entity_type,
        entity_id=entity_id,
        state=state,
        entity=entity,
        is_gone=is_gone,
        oldest=oldest,
        as_of=as_of,
        steps=steps,
        history=history[:_EVENTS],
        older=history[_EVENTS].sequence if len(history) > _EVENTS else None,
        is_newest=before is None,
    )


async def download_data(visit: Visit) -> Response:
    """The entity's data as it came, whole."""
    entity_type, entity_id = _named(visit)
    as_of = position(visit.request, "as_of")
    async with reading(visit.engine) as connection:
        state = await states.state_as_of(connection, entity_type, entity_id, LAST_POSITION if as_of is None else as_of)
        if state is None:
            raise NotFoundError("there was no such entity by then")
        entity = await states.with_data(connection, state)
    headers = {"Content-Disposition": 'attachment; filename="entity.json"'}
    return Response(bytes(entity.data), media_type="application/json", headers=headers)


def _named(visit: Visit) -> tuple[EntityType, str]:
    """The entity that the address names. Raises NotFoundError where it can name none."""
    query = visit.request.query_params
    entity_id = query.get("id", "").strip()
    if not entity_id or not is_storable(entity_id):
        raise NotFoundError("no entity has such an id")
    return _entity_type(query.get("type", "")), entity_id


def _entity_type(name: str) -> EntityType:
    try:
        return EntityType(name)
    except ValueError as exc:
        raise NotFoundError("there is no such entity type") from exc
