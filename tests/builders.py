"""Puts rows into the tables directly, each with believable values for all that a test does not name.

For tests of the reading side, which need many states quickly. What the ledger makes of callbacks has its own tests.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.locks import Lock
from app.db.tables import deliveries, entities, event_sequence, events
from app.ids import new_id

NOW = datetime(2026, 11, 23, 10, 0, 0, 250_000, tzinfo=UTC)


async def an_event(engine: AsyncEngine, **given: Any) -> dict[str, Any]:
    """One event in the feed, announced as the ledger does it; returns its row."""
    async with engine.begin() as connection:
        # Numbers and commits in one order, as in the ledger.
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": Lock.FEED.key})
        sequence = given.get("sequence") or await connection.scalar(select(event_sequence.next_value()))
        row = event_row(**given | {"sequence": sequence})
        await connection.execute(insert(events), row)
        await connection.execute(text("SELECT pg_notify('feed', :position)"), {"position": str(sequence)})
    return row


def event_row(sequence: int | None, **given: Any) -> dict[str, Any]:
    """An event as it stands in its table."""
    return {
        "sequence": sequence,
        "id": new_id(),
        "entity_type": "product",
        "entity_id": "1001",
        "action": "update",
        "action_inferred": False,
        "stale": False,
        "source": "webhook",
        "occurred_at": NOW - timedelta(seconds=1),
        "received_at": NOW,
        "delivery_id": new_id(),
        "changed": [],
        "changes": "[]",
        "data": '{"id": 1001}',
    } | given


async def events_of(engine: AsyncEngine, count: int, **given: Any) -> list[dict[str, Any]]:
    """Several events that have all of `given` in common."""
    return [await an_event(engine, **given) for _ in range(count)]


async def an_entity(engine: AsyncEngine, *, data: str | None = '{"id": 1001}', **given: Any) -> dict[str, Any]:
    """The state of one entity and the event that brought it there; returns the state's row."""
    identity = {"entity_type": given.get("entity_type", "product"), "entity_id": given.get("entity_id", "1001")}
    event = await an_event(engine, **identity, data=data)
    row = (
        identity
        | {
            "version": 1,
            "sequence": event["sequence"],
            "data_sequence": None if data is None else event["sequence"],
            "created_at": NOW,
            "updated_at": NOW,
            "source_updated_at": None,
            "newest_at": None,
            "deleted_at": None,
        }
        | given
    )
    statement = upsert(entities).values(row)
    statement = statement.on_conflict_do_update(
        index_elements=["entity_type", "entity_id"],
        set_={name: statement.excluded[name] for name in row if name not in identity},
    )
    async with engine.begin() as connection:
        await connection.execute(statement)
    return row


async def a_delivery(
    engine: AsyncEngine, *, headers: list[tuple[str, str]] | None = None, **given: Any
) -> dict[str, Any]:
    """One kept callback; returns its row. `headers` are given as pairs, everything else as it is stored."""
    body = given.get("body", b'{"id": 1001}')
    row = {
        "id": new_id(),
        "entity_type": "product",
        "status": "accepted",
        "received_at": NOW,
        "client": "203.0.113.7",
        "proof": "header:x-secret",
        "headers": json.dumps(headers or [("host", "receiver.example.com")]),
        "body": body,
        "data_offset": None,
        "size": len(body),
        "reading": json.dumps({"proof": "header:x-secret", "entity_id": "/id"}),
        "reason": None,
        "event_sequence": None,
        "duplicate_of": None,
    } | given
    async with engine.begin() as connection:
        await connection.execute(insert(deliveries), row)
    return row
