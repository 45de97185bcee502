"""`/v1/{collection}`: the latest state of entities, and the history of one."""

import re
from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Request, Response
from pydantic import Field, WithJsonSchema
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.dependencies import ReadKey
from app.db.engine import reading
from app.entities import queries
from app.entities.paths import Collection, HistoryRoute
from app.entities.schemas import Entity, EntityPage
from app.errors import (
    DatabaseUnavailableError,
    GoneError,
    InvalidParametersError,
    KeyMissingError,
    NotAcceptableError,
    NotFoundError,
    ScopeMissingError,
)
from app.feed import queries as feed
from app.feed.cloudevents import PageType, described_page, page_response
from app.feed.filters import Filters
from app.feed.schemas import EventPage
from app.openapi import example_of_model
from app.paging import (
    Flag,
    Moment,
    Page,
    Parameters,
    PointInTime,
    Position,
    SearchText,
    is_storable,
    link_header,
    next_link,
    read_query,
)
from app.problems import documented

router = APIRouter(prefix="/v1", tags=["entities"])

_READING_ERRORS = (KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError)
_NEVER_SEEN = NotFoundError("no product with this id was ever seen")
_DELETED = "the entity was deleted; `entity` is its last state"
_DELETED_EXAMPLE = example_of_model(Entity) | {"deleted_at": "2026-11-23T10:00:01.25Z"}
_TAG = re.compile(r'(?:W/)?("[^"]*")')

CollectionName = Annotated[Collection, Path(description="The collection", examples=["products"])]
EntityId = Annotated[
    str, Path(description="The entity's id, percent-encoded: a slash in it is `%2F`", examples=["1001"])
]


class EntityListParameters(Page):
    """What `GET /v1/{collection}` takes."""

    after: SearchText | None = Field(
        None, description="Only entities behind this id: the `after` of the page before", examples=["1000"]
    )
    include_deleted: Flag = Field(False, description="Also entities that are deleted")
    updated_since: Moment | None = Field(
        None, description="Only entities that changed here at this time or later", examples=["2026-11-23T10:00:00Z"]
    )


class EntityParameters(Parameters):
    """What `GET /v1/{collection}/{entity_id}` takes."""

    as_of: PointInTime | None = Field(
        None,
        description="The state at this position of the feed, or after what this service had received by this time",
        examples=["2026-11-23T10:00:00Z", 1042],
    )


class HistoryParameters(Page):
    """What `GET /v1/{collection}/{entity_id}/events` takes."""

    after: Position | None = Field(
        None,
        description="Only events behind this position: the `after` of the page before. Missing: from the oldest kept",
        examples=[1041],
    )


@router.get(
    "/{collection:collection}",
    operation_id="listEntities",
    summary="The latest state of all entities of a type",
    response_model=EntityPage,
    responses={
        200: {
            "headers": {
                "Feed-Position": {
                    "description": "The position of the feed that this page shows",
                    "schema": {"type": "integer"},
                    "example": 1042,
                },
                **link_header("/v1/products?after=1001"),
            }
        },
        **documented(*_READING_ERRORS),
    },
)
async def list_entities(
    request: Request,
    _key: ReadKey,
    collection: CollectionName,
    query: Annotated[EntityListParameters, Depends(read_query(EntityListParameters))],
) -> Response:
    """Entities by id, with the position of the feed that they show.

    To copy them and keep the copy up to date: read all pages, then follow `/v1/events` from the `Feed-Position` of the
    **first** page; whatever changed while the pages were read comes again by the feed.
    """
    async with reading(request.state.engine) as connection:
        position = await feed.head(connection)
        page = await queries.page(
            connection,
            collection.entity_type,
            after=query.after,
            limit=query.limit,
            include_deleted=query.include_deleted,
            updated_since=query.updated_since,
        )
    headers = {"Feed-Position": str(position)} | (next_link(request, page.after) if page.has_more else {})
    return Response(msgspec.json.encode(page), media_type="application/json", headers=headers)


async def list_entity_events(
    request: Request,
    _key: ReadKey,
    collection: CollectionName,
    entity_id: EntityId,
    query: Annotated[HistoryParameters, Depends(read_query(HistoryParameters))],
    media_type: PageType,
) -> Response:
    """Everything that is kept of what happened to one entity, oldest first, stale events included. Pages like the feed."""
    async with reading(request.state.engine) as connection:
        await _known(connection, collection, entity_id)
        wanted = Filters(entity_type=(collection.entity_type,), entity_id=(entity_id,), include_stale=True)
        page = await feed.page(connection, wanted, after=query.after, limit=query.limit)
    return await page_response(request, page, media_type)


router.add_api_route(
    "/{collection:collection}/{entity_id:entity_id}/events",
    list_entity_events,
    route_class_override=HistoryRoute,
    operation_id="listEntityEvents",
    summary="The history of one entity",
    response_model=EventPage,
    responses={
        200: described_page("/v1/products/1001/events?after=1042"),
        **documented(*_READING_ERRORS, _NEVER_SEEN, GoneError, NotAcceptableError),
    },
)


@router.get(
    "/{collection:collection}/{entity_id:entity_id}",
    operation_id="getEntity",
    summary="The latest state of one entity",
    response_model=Entity,
    responses={
        200: {
            "headers": {
                "ETag": {"description": "For `If-None-Match`", "schema": {"type": "string"}, "example": '"1042"'}
            }
        },
        304: {"description": "The entity still has this `ETag`"},
        **documented(*_READING_ERRORS, _NEVER_SEEN, GoneError(_DELETED, extra={"entity": _DELETED_EXAMPLE})),
    },
)
async def get_entity(
    request: Request,
    _key: ReadKey,
    collection: CollectionName,
    entity_id: EntityId,
    query: Annotated[EntityParameters, Depends(read_query(EntityParameters))],
    if_none_match: Annotated[
        list[str] | None,
        # One text, of which there may be several lines: generators of clients know of no lists in headers.
        WithJsonSchema({"type": "string", "examples": ['"1042"']}),
        Header(description="Answer 304 if the entity still has this `ETag`", examples=['"1042"']),
    ] = None,
) -> Response:
    """The entity as it is now, or was at some point. Its `ETag` changes with every event that moves its state.

    410 has the last state in `entity` where the entity was deleted, and `oldest_after` where the state of that point is
    kept no longer: every state at that position or later is.
    """
    async with reading(request.state.engine) as connection:
        state = await _known(connection, collection, entity_id, query.as_of)
        if not state.is_deleted and _matches(if_none_match or [], state.tag):
            return Response(status_code=304, headers={"ETag": state.tag})
        entity = await queries.with_data(connection, state)
    if state.is_deleted:
        raise GoneError(_DELETED, extra={"entity": entity})
    return Response(msgspec.json.encode(entity), media_type="application/json", headers={"ETag": state.tag})


async def _known(
    connection: AsyncConnection, collection: Collection, entity_id: str, as_of: int | datetime | None = None
) -> queries.State:
    """The state of an entity, deleted or not.

    Raises NotFoundError where it was never seen, or not by then; GoneError where that state is kept no longer.
    """
    found = None
    if is_storable(entity_id):
        found = (
            await queries.state(connection, collection.entity_type, entity_id)
            if as_of is None
            else await queries.state_as_of(connection, collection.entity_type, entity_id, as_of)
        )
    if found is None:
        when = "was ever seen" if as_of is None else "had been seen by then"
        raise NotFoundError(f"no {collection.entity_type} with this id {when}")
    return found


def _matches(given: list[str], etag: str) -> bool:
    """Whether `If-None-Match` names this tag, by the weak comparison that RFC 9110 asks for."""
    return any(line.strip() == "*" or etag in _TAG.findall(line) for line in given)
