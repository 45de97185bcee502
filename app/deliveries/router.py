"""`/v1/deliveries`: every authentic callback as it came, secrets blanked."""

from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import Field

from app.access.dependencies import ReadKey
from app.db.engine import reading
from app.deliveries import queries
from app.deliveries.schemas import Delivery, DeliveryPage
from app.domain.values import DeliveryStatus
from app.errors import (
    DatabaseUnavailableError,
    InvalidParametersError,
    KeyMissingError,
    NotFoundError,
    ScopeMissingError,
)
from app.paging import NoParameters, Page, link_header, next_link, read_query
from app.problems import documented

router = APIRouter(prefix="/v1", tags=["deliveries"])

_READING_ERRORS = (KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError)


class DeliveryListParameters(Page):
    """What `GET /v1/deliveries` takes."""

    status: DeliveryStatus | None = Field(
        None, description="Only deliveries of which this came", examples=["quarantined"]
    )
    after: UUID | None = Field(
        None,
        description="Only deliveries behind this id: the `after` of the page before",
        examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"],
    )


@router.get(
    "/deliveries",
    operation_id="listDeliveries",
    summary="Callbacks as they came, oldest first",
    response_model=DeliveryPage,
    responses={
        200: {"headers": link_header("/v1/deliveries?after=01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10")},
        **documented(*_READING_ERRORS),
    },
)
async def list_deliveries(
    request: Request,
    _key: ReadKey,
    query: Annotated[DeliveryListParameters, Depends(read_query(DeliveryListParameters))],
) -> Response:
    """Authentic callbacks with what came of them; headers and body are in the single delivery.

    For looking things up. To follow what happens, read the feed: several replicas give out ids, so that one may appear
    here a moment after a later one.
    """
    async with reading(request.state.engine) as connection:
        page = await queries.page(connection, query.status, after=query.after, limit=query.limit)
    headers = next_link(request, page.after) if page.has_more else {}
    return Response(msgspec.json.encode(page), media_type="application/json", headers=headers)


@router.get(
    "/deliveries/{delivery_id:uuid}",
    operation_id="getDelivery",
    summary="One callback as it came",
    response_model=Delivery,
    responses=documented(*_READING_ERRORS, NotFoundError("there is no delivery with this id, or it is kept no longer")),
)
async def get_delivery(
    request: Request,
    _key: ReadKey,
    delivery_id: Annotated[
        UUID, Path(description="The delivery's `id`", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"])
    ],
    _none: NoParameters,
) -> Response:
    """The callback with its headers and body, byte for byte except for blanked secrets, and how it was read."""
    async with reading(request.state.engine) as connection:
        delivery = await queries.one(connection, delivery_id)
    if delivery is None:
        raise NotFoundError("there is no delivery with this id, or it is kept no longer")
    return Response(msgspec.json.encode(delivery), media_type="application/json")
