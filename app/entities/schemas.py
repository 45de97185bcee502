"""What readers of entities get: the record that is written as it is, and the models that describe it.

As in `app.feed.schemas`: `data` is written as the JSON text that was stored, and a test holds record and model together.
"""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from app.domain.values import EntityType


class EntityRecord(msgspec.Struct, frozen=True):
    """The latest state of one entity as it is written."""

    entity_type: str
    entity_id: str
    data: msgspec.Raw
    version: int
    sequence: int
    created_at: datetime
    updated_at: datetime
    source_updated_at: datetime | None
    deleted_at: datetime | None


class EntityPageRecord(msgspec.Struct, frozen=True):
    """One page of entities as it is written."""

    items: list[EntityRecord]
    after: str | None
    has_more: bool


class Entity(BaseModel):
    """The latest state of one entity."""

    model_config = ConfigDict(frozen=True)

    entity_type: Annotated[EntityType, Field(examples=["product"])]
    entity_id: Annotated[str, Field(examples=["1001"])]
    data: Annotated[
        Any,
        Field(
            description="The entity as it last came; null where it never came with its data",
            examples=[{"id": 1001, "name": "Kettle", "price": 49.0}],
        ),
    ]
    version: Annotated[int, Field(description="How many events have moved its state", examples=[3])]
    sequence: Annotated[int, Field(description="The newest of them", examples=[1042])]
    created_at: Annotated[datetime, Field(description="When it was first seen here", examples=["2026-11-20T08:00:00Z"])]
    updated_at: Annotated[
        datetime, Field(description="When it last changed here", examples=["2026-11-23T10:00:01.25Z"])
    ]
    source_updated_at: Annotated[
        datetime | None, Field(description="When it last changed, as Jasper says", examples=["2026-11-23T10:00:00Z"])
    ]
    deleted_at: Annotated[datetime | None, Field(description="When it was deleted here", examples=[None])]


class EntityPage(BaseModel):
    """One page of entities, by id."""

    model_config = ConfigDict(frozen=True)

    items: list[Entity]
    after: Annotated[str | None, Field(description="The id to go on from; null on the last page", examples=["1001"])]
    has_more: Annotated[bool, Field(description="Whether more entities follow", examples=[True])]
