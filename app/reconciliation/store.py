"""Reconciliations as they are kept and shown: records, and the SQL that readers of them need."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import reading
from app.db.tables import reconciliations
from app.domain.values import EntityType

SHOWN = 100
"""How many reconciliations are listed."""

KEPT = 100
"""How many reconciliations of one entity type are kept; older ones go when a new one begins."""


class Status(StrEnum):
    """How a reconciliation stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NEEDS_CONFIRMATION = "needs_confirmation"


class Reconciliation(BaseModel):
    """One comparison of an entity type with Jasper's own list."""

    model_config = ConfigDict(frozen=True)

    id: Annotated[UUID, Field(examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"])]
    entity_type: Annotated[EntityType, Field(examples=["product"])]
    status: Annotated[
        Status,
        Field(
            description="`needs_confirmation`: more are gone than may be deleted unasked; begin again with `force`",
            examples=["succeeded"],
        ),
    ]
    compared: Annotated[int, Field(description="Entities of Jasper's that were compared", examples=[100_000])]
    created: Annotated[int, Field(description="Events that were written of each kind", examples=[12])]
    updated: Annotated[int, Field(examples=[340])]
    deleted: Annotated[int, Field(examples=[7])]
    error: Annotated[
        str | None, Field(description="Why it failed or waits for a confirmation, in words", examples=[None])
    ]
    started_at: Annotated[datetime, Field(examples=["2026-11-23T10:00:01.250000Z"])]
    finished_at: Annotated[datetime | None, Field(examples=["2026-11-23T10:09:44.100000Z"])]


_COLUMNS = [reconciliations.c[name] for name in Reconciliation.model_fields]


async def newest(engine: AsyncEngine) -> list[Reconciliation]:
    """The newest reconciliations, newest first. Raises DatabaseUnavailableError."""
    async with reading(engine) as connection:
        rows = await connection.execute(select(*_COLUMNS).order_by(reconciliations.c.id.desc()).limit(SHOWN))
        return [Reconciliation.model_validate(dict(row)) for row in rows.mappings()]


async def one(engine: AsyncEngine, reconciliation_id: UUID) -> Reconciliation | None:
    """One reconciliation. Raises DatabaseUnavailableError."""
    async with reading(engine) as connection:
        rows = await connection.execute(select(*_COLUMNS).where(reconciliations.c.id == reconciliation_id))
        row = rows.mappings().one_or_none()
    return None if row is None else Reconciliation.model_validate(dict(row))


async def latest(engine: AsyncEngine) -> dict[EntityType, Reconciliation]:
    """The newest reconciliation of each entity type. Raises DatabaseUnavailableError."""
    ordered = select(*_COLUMNS).order_by(reconciliations.c.entity_type, reconciliations.c.id.desc())
    async with reading(engine) as connection:
        rows = await connection.execute(ordered.ext(distinct_on(reconciliations.c.entity_type)))
        found = [Reconciliation.model_validate(dict(row)) for row in rows.mappings()]
    return {reconciliation.entity_type: reconciliation for reconciliation in found}
