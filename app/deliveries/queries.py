"""SQL for callbacks as they came. A body is put together again from what its delivery and its event keep of it."""

import json
from base64 import b64encode
from collections.abc import Sequence
from uuid import UUID

import msgspec
from sqlalchemy import RowMapping, case, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.tables import deliveries, events
from app.deliveries.schemas import DeliveryPageRecord, DeliveryRecord, DeliverySummaryRecord
from app.domain.values import Delivery, DeliveryStatus, EntityType
from app.feed.queries import OLDEST_AFTER

_SUMMARY = [
    *(
        deliveries.c[name]
        for name in ("id", "entity_type", "status", "received_at", "client", "proof", "size", "reason")
    ),
    # Some events that have been removed are still there, hidden, for their entities.
    case((events.c.sequence > OLDEST_AFTER, events.c.id)).label("event_id"),
    deliveries.c.duplicate_of,
]
COUNTED = 10_000
"""How far what waits for a hand is counted."""

_WITH_EVENT = deliveries.outerjoin(events, events.c.sequence == deliveries.c.event_sequence)


async def quarantined(connection: AsyncConnection) -> int:
    """How many deliveries could not be read, counted up to COUNTED."""
    # With the value in the text Postgres sees that the partial index will do.
    is_quarantined = deliveries.c.status == literal(DeliveryStatus.QUARANTINED.value, literal_execute=True)
    some = select(deliveries.c.id).where(is_quarantined).limit(COUNTED).subquery()
    return await connection.scalar(select(func.count()).select_from(some)) or 0


async def page(
    connection: AsyncConnection,
    status: DeliveryStatus | None,
    *,
    after: UUID | None,
    limit: int,
    newest_first: bool = False,
) -> DeliveryPageRecord:
    """Deliveries in the order of their ids, which is that of their arrival, or against it, from the first behind `after`."""
    order = deliveries.c.id.desc() if newest_first else deliveries.c.id
    query = select(*_SUMMARY).select_from(_WITH_EVENT).order_by(order).limit(limit + 1)
    if after is not None:
        query = query.where(deliveries.c.id < after if newest_first else deliveries.c.id > after)
    if status is not None:
        query = query.where(deliveries.c.status == status)
    if status not in {None, DeliveryStatus.ACCEPTED}:
        # Lets Postgres see, whatever the parameter, that the index of the others will do.
        query = query.where(deliveries.c.status != DeliveryStatus.ACCEPTED.value)
    rows = (await connection.execute(query)).mappings().all()
    found = [DeliverySummaryRecord(**row) for row in rows[:limit]]
    return DeliveryPageRecord(found, after=found[-1].id if found else after, has_more=len(rows) > limit)


async def one(connection: AsyncConnection, delivery_id: UUID) -> DeliveryRecord | None:
    """The delivery with this id, whole."""
    parts = [deliveries.c[name] for name in ("traceparent", "headers", "reading", "body", "data_offset")]
    query = select(*_SUMMARY, *parts, events.c.data).select_from(_WITH_EVENT).where(deliveries.c.id == delivery_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    body, encoding = _as_text(_whole(row))
    return DeliveryRecord(
        **{column.name: row[column.name] for column in _SUMMARY},
        traceparent=row["traceparent"],
        reading=msgspec.Raw(row["reading"].encode()),
        headers=msgspec.Raw(row["headers"].encode()),
        body=body,
        body_encoding=encoding,
    )


async def kept(connection: AsyncConnection, ids: Sequence[UUID], *, hold: bool = False) -> list[tuple[UUID, Delivery]]:
    """The deliveries with these ids as they came, in the order of their ids; unknown ones are left out.

    With `hold`, which takes a transaction that may write, they are not removed before it has ended: one that was written
    again after that would be new to the ledger.
    """
    parts = [
        deliveries.c[name]
        for name in ("id", "entity_type", "received_at", "client", "proof", "headers", "body", "data_offset")
    ]
    query = select(*parts, events.c.data).select_from(_WITH_EVENT).where(deliveries.c.id.in_(ids))
    query = query.order_by(deliveries.c.id)
    if hold:
        query = query.with_for_update(key_share=True, read=True, of=deliveries)
    return [(row["id"], _delivery(row)) for row in (await connection.execute(query)).mappings()]


def _delivery(row: RowMapping) -> Delivery:
    return Delivery(
        entity_type=EntityType(row["entity_type"]),
        received_at=row["received_at"],
        client=row["client"],
        headers=tuple((name, value) for name, value in json.loads(row["headers"])),
        body=_whole(row),
        proof=row["proof"],
    )


async def summaries(connection: AsyncConnection, ids: Sequence[UUID]) -> list[DeliverySummaryRecord]:
    """The deliveries with these ids as a list shows them, in the order of their ids; unknown ones are left out."""
    query = select(*_SUMMARY).select_from(_WITH_EVENT).where(deliveries.c.id.in_(ids)).order_by(deliveries.c.id)
    return [DeliverySummaryRecord(**row) for row in (await connection.execute(query)).mappings()]


def _whole(row: RowMapping) -> bytes:
    """The body as it came. Whatever removes the event that keeps the middle of it puts that back first."""
    body: bytes = row["body"]
    offset: int | None = row["data_offset"]
    if offset is None:
        return body
    data: str = row["data"]
    return body[:offset] + data.encode() + body[offset:]


def _as_text(body: bytes) -> tuple[str, str]:
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        return b64encode(body).decode(), "base64"
