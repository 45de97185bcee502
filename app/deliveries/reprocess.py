"""Reads kept deliveries again, with today's mapping and rules, and writes what comes of it through the same ledger.

Nothing is taken back and nothing is written twice: an event that a delivery has already stays, and a reading that says the
same again changes nothing. So a run that broke off is simply begun again, and two runs at once do no harm. An event that is
read late gets a new sequence, its own `occurred_at`, and is folded by the same rules.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access.dependencies import AdminKey, lacking
from app.access.keys import Scope
from app.clock import utc_now
from app.db.engine import reading, writing
from app.deliveries import queries
from app.deliveries.schemas import DeliverySummaryRecord
from app.domain.values import Delivery, DeliveryStatus, Entry
from app.errors import (
    BodyTooLargeError,
    DatabaseUnavailableError,
    DrainingError,
    InvalidParametersError,
    KeyMissingError,
    NotFoundError,
    QueueFullError,
    RequestTimeoutError,
)
from app.jasper.reading import Mappings, interpret
from app.ledger.writer import Writer
from app.paging import MOST_ITEMS, Body, NoParameters, described_body, read_body
from app.problems import documented

_TOGETHER = 50
_TOGETHER_BYTES = 4 * 1024 * 1024
"""How many deliveries, and bytes of them, are read at once: callbacks that come meanwhile want room in the queue, too."""


@dataclass(frozen=True, slots=True)
class Reprocessor:
    """What reading again takes. `mapping` is that of the settings."""

    engine: AsyncEngine
    writer: Writer
    mapping: Mappings

    async def reprocess(self, ids: Sequence[UUID]) -> list[DeliverySummaryRecord]:
        """Read these deliveries again, in the order of their ids, that is of their arrival; returns what they are then.

        Unknown ones are left out. Raises UnavailableError where something could not be committed; what was before it
        is, and the same call goes on from there.
        """
        async with reading(self.engine) as connection:
            known = await queries.summaries(connection, ids)
        return await self._read_again(known)

    async def reprocess_page(
        self, status: DeliveryStatus, *, after: UUID | None, limit: int
    ) -> tuple[list[DeliverySummaryRecord], bool]:
        """Read at most `limit` deliveries of one status behind `after` again; what they are then, and whether more follow.

        Raises UnavailableError, as `reprocess`.
        """
        async with reading(self.engine) as connection:
            page = await queries.page(connection, status, after=after, limit=limit)
        return await self._read_again(page.deliveries), page.has_more

    async def _read_again(self, known: Sequence[DeliverySummaryRecord]) -> list[DeliverySummaryRecord]:
        after: list[DeliverySummaryRecord] = []
        for ids in _portions(known):
            async with writing(self.engine) as connection:  # locks them, and writes nothing
                kept = await queries.kept(connection, ids, hold=True)
                await asyncio.gather(*(self._commit(delivery_id, delivery) for delivery_id, delivery in kept))
            async with reading(self.engine) as connection:
                after += await queries.summaries(connection, ids)
        return after

    async def _commit(self, delivery_id: UUID, delivery: Delivery) -> None:
        what = interpret(delivery.entity_type, delivery.headers, delivery.body, self.mapping)
        entry = Entry(delivery.entity_type, what, utc_now(), delivery, delivery_id=delivery_id)
        await self.writer.commit(entry)


def _portions(known: Sequence[DeliverySummaryRecord]) -> Iterator[list[UUID]]:
    """Their ids, in portions that may be in memory at once; one that is larger than that stands alone."""
    portion: list[UUID] = []
    size = 0
    for one in known:
        if portion and (len(portion) == _TOGETHER or size + one.size > _TOGETHER_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(one.id)
        size += one.size
    if portion:
        yield portion


class Reprocessed(BaseModel):
    """What came of a delivery that was read again."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    delivery_id: Annotated[UUID, Field(validation_alias="id", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"])]
    status: Annotated[DeliveryStatus, Field(examples=["accepted"])]
    event_id: Annotated[
        UUID | None,
        Field(
            description="Its event, while that is kept; of a duplicate: the original's",
            examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11"],
        ),
    ]
    reason: Annotated[
        str | None, Field(description="Why it is still quarantined, or in what way it is a duplicate", examples=[None])
    ]


class ReprocessRequest(Body):
    """Which deliveries to read again."""

    status: Annotated[DeliveryStatus, Field(description="Deliveries of which this came", examples=["quarantined"])]
    after: Annotated[
        UUID | None,
        Field(
            description="Only deliveries behind this id: the `after` of the answer before",
            examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"],
        ),
    ] = None
    limit: Annotated[int, Field(ge=1, le=MOST_ITEMS, description="How many deliveries at most", examples=[200])] = (
        MOST_ITEMS
    )


class ReprocessedPage(BaseModel):
    """How many deliveries were read again, and what came of them."""

    model_config = ConfigDict(frozen=True)

    accepted: Annotated[int, Field(description="They have an event", examples=[12])]
    duplicate: Annotated[int, Field(description="They repeat another delivery", examples=[1])]
    quarantined: Annotated[int, Field(description="They still cannot be read", examples=[0])]
    after: Annotated[
        UUID | None,
        Field(
            description="The last one that was read: go on from there",
            examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"],
        ),
    ]
    has_more: Annotated[bool, Field(description="Whether more such deliveries follow", examples=[False])]


router = APIRouter(prefix="/v1/deliveries", tags=["deliveries"])

_ERRORS = (
    KeyMissingError,
    lacking(Scope.ADMIN),
    InvalidParametersError,
    DatabaseUnavailableError,
    QueueFullError,
    DrainingError,
)


@router.post(
    "/reprocess",
    operation_id="reprocessDeliveries",
    summary="Read the deliveries of one status again",
    responses=documented(*_ERRORS, BodyTooLargeError, RequestTimeoutError),
    openapi_extra=described_body(ReprocessRequest),
)
async def reprocess_deliveries(
    request: Request,
    _key: AdminKey,
    _none: NoParameters,
    wanted: Annotated[ReprocessRequest, Depends(read_body(ReprocessRequest))],
) -> ReprocessedPage:
    """Reads up to `limit` deliveries again with today's mapping, oldest first, and tells what came of them.

    While `has_more`, call again with the `after` of the answer. A run that broke off can be begun anew: deliveries that
    could be read are not quarantined any more, and none gets a second event.
    """
    reprocessor: Reprocessor = request.state.reprocessor
    found, has_more = await reprocessor.reprocess_page(wanted.status, after=wanted.after, limit=wanted.limit)
    counted = Counter(one.status for one in found)
    return ReprocessedPage(
        **{str(status): counted[status] for status in DeliveryStatus},
        after=found[-1].id if found else wanted.after,
        has_more=has_more,
    )


@router.post(
    "/{delivery_id:uuid}/reprocess",
    operation_id="reprocessDelivery",
    summary="Read one delivery again",
    responses=documented(*_ERRORS, NotFoundError("there is no delivery with this id, or it is kept no longer")),
)
async def reprocess_delivery(
    request: Request,
    _key: AdminKey,
    delivery_id: Annotated[
        UUID, Path(description="The delivery's `id`", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"])
    ],
    _none: NoParameters,
) -> Reprocessed:
    """Reads the delivery again with today's mapping, whatever came of it before.

    An event that it has already is never taken back: where the reading says the same again, nothing changes; where it says
    something else, that becomes an event of its own.
    """
    reprocessor: Reprocessor = request.state.reprocessor
    found = await reprocessor.reprocess([delivery_id])
    if not found:
        raise NotFoundError("there is no delivery with this id, or it is kept no longer")
    return Reprocessed.model_validate(found[0])
