"""The page of events that people write first: the ORM's objects in, pydantic's models out. Reads the service's own table."""

import json
import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel, ConfigDict, field_validator
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from app.db.tables import events

engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=10)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The tables."""


class Event(Base):
    """One event."""

    __table__ = events


class EventOut(BaseModel):
    """One event as it is answered."""

    model_config = ConfigDict(from_attributes=True)

    sequence: int
    id: UUID
    entity_type: str
    action: str
    entity_id: str
    occurred_at: datetime | None
    received_at: datetime
    source: str
    delivery_id: UUID | None
    action_inferred: bool
    stale: bool
    data: dict[str, Any] | None
    changed: list[str]
    changes: list[dict[str, Any]]

    @field_validator("data", "changes", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value


class EventPage(BaseModel):
    """A page of them."""

    events: list[EventOut]
    after: int
    has_more: bool


async def get_session() -> AsyncIterator[AsyncSession]:
    """A session for each request."""
    async with sessions() as session:
        yield session


app = FastAPI()


@app.get("/v1/events")
async def list_events(
    session: Annotated[AsyncSession, Depends(get_session)],
    after: int = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> EventPage:
    """The events behind a position."""
    query = select(Event).where(events.c.sequence > after, events.c.stale.is_(False))
    found = list(await session.scalars(query.order_by(events.c.sequence).limit(limit + 1)))
    page = [EventOut.model_validate(event) for event in found[:limit]]
    return EventPage(events=page, after=page[-1].sequence if page else after, has_more=len(found) > limit)
