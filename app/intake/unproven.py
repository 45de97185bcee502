"""Callbacks with the right custom headers but no provable secret, kept apart whole and sealed.

A wrong idea of where the secret travels must not lose the first day. They feed nothing until an operator has them tried
again. Their bodies may hold the secret at a place nobody thought of, so they are encrypted, and only their outline is shown.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from hashlib import sha256
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access.dependencies import ReadKey
from app.db.engine import reading, writing
from app.db.locks import Lock
from app.db.tables import unproven
from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import EntityType, Headers, JsonText
from app.errors import DatabaseUnavailableError, InvalidParametersError, KeyMissingError, ScopeMissingError
from app.ids import new_id
from app.paging import NoParameters
from app.problems import documented
from app.sealing import Sealer

_MOST_NAMES = 100
_LONGEST_NAME = 100

_KEEP = text(
    """
    INSERT INTO unproven (id, entity_type, received_at, client, digest, header_names, size, outline, sealed)
    SELECT :id, :entity_type, least(:received_at, clock_timestamp()), :client, :digest, :header_names, :size, :outline, :sealed
    WHERE (SELECT count(*) FROM unproven) < :limit
    ON CONFLICT (entity_type, digest) DO NOTHING
    """
)


@dataclass(frozen=True, slots=True)
class KeptApart:
    """One callback that is kept apart; `sealed` are its headers and body."""

    id: UUID
    entity_type: EntityType
    received_at: datetime
    client: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class UnprovenStore:
    """Keeps unproven callbacks, at most `limit` of them in the whole database; the first ones are kept, later ones not.

    `telling` are the names of headers that may say what happened: with another word there it is no retry, whatever the body.
    """

    engine: AsyncEngine
    sealer: Sealer
    limit: int
    telling: Collection[str] = ()

    async def keep(
        self, entity_type: EntityType, headers: Headers, body: bytes, *, received_at: datetime, client: str
    ) -> None:
        """Keep one callback, unless it is a retry of one already kept or there are too many.

        Raises DatabaseUnavailableError.
        """
        if self.limit == 0:
            return
        sealed = self.sealer.seal(json.dumps([list(headers), body.hex()]).encode())
        async with writing(self.engine) as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": Lock.UNPROVEN.key})
            await connection.execute(
                _KEEP,
                {
                    "id": new_id(),
                    "entity_type": entity_type,
                    "received_at": received_at,
                    "client": client,
                    "digest": self._digest(headers, body),
                    "header_names": sorted({name for name, _ in headers}),
                    "size": len(body),
                    "outline": list(outline(body)),
                    "sealed": sealed,
                    "limit": self.limit,
                },
            )

    def _digest(self, headers: Headers, body: bytes) -> bytes:
        told = [[name, value] for name, value in headers if name in self.telling]
        return sha256(json.dumps(told).encode() + body if told else body).digest()

    async def next_after(self, kept: KeptApart | None) -> KeptApart | None:
        """The first one behind `kept`, oldest first; None where there are no more. Raises DatabaseUnavailableError."""
        columns = [unproven.c[one.name] for one in fields(KeptApart)]
        query = select(*columns).order_by(unproven.c.id).limit(1)
        if kept is not None:
            query = query.where(unproven.c.id > kept.id)
        async with reading(self.engine) as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else KeptApart(**{**row, "entity_type": EntityType(row["entity_type"])})

    def opened(self, kept: KeptApart) -> tuple[Headers, bytes]:
        """Its headers and body as they came. Raises SealingError where no key of ENCRYPTION_KEYS fits."""
        headers, body = json.loads(self.sealer.open(kept.sealed))
        return tuple((name, value) for name, value in headers), bytes.fromhex(body)

    async def remove(self, kept: KeptApart) -> None:
        """Let go of one that was taken in. Raises DatabaseUnavailableError."""
        async with writing(self.engine) as connection:
            await connection.execute(delete(unproven).where(unproven.c.id == kept.id))


def outline(body: bytes) -> Iterator[str]:
    """The pointers and kinds of the members in the two top levels of a JSON body, such as `/data/id: number`; no values."""
    try:
        for number, (pointer, value) in enumerate(_members(jsontext.document(body))):
            if number == _MOST_NAMES:
                return
            yield f"{jsontext.storable(pointer)[:_LONGEST_NAME]}: {jsontext.kind(value)}"
    except NotJsonError as exc:
        yield f"no JSON: {exc}"


def _members(root: JsonText) -> Iterator[tuple[str, JsonText]]:
    for pointer, value in jsontext.children("", root):
        yield pointer, value
        yield from jsontext.children(pointer, value)


class Unproven(BaseModel):
    """A callback that is kept apart: names and kinds, no values, because the secret may be among them."""

    id: Annotated[UUID, Field(examples=["019aaf6e-7c00-7a3e-8f4e-5b1a0c2d3e4f"])]
    entity_type: Annotated[EntityType, Field(examples=["product"])]
    received_at: Annotated[datetime, Field(examples=["2026-11-23T10:00:00Z"])]
    client: Annotated[str, Field(examples=["203.0.113.7"])]
    header_names: Annotated[list[str], Field(examples=[["content-type", "my-custom-header", "x-unknown"]])]
    size: Annotated[int, Field(description="Bytes of the body", examples=[2048])]
    outline: Annotated[
        list[str],
        Field(
            description="Members in the two top levels of the body", examples=[["/event: string", "/data/id: number"]]
        ),
    ]


class UnprovenList(BaseModel):
    """What is kept apart, oldest first."""

    unproven: list[Unproven]


async def kept_apart(engine: AsyncEngine) -> list[Unproven]:
    """All that are kept, oldest first. Raises DatabaseUnavailableError."""
    columns = [unproven.c[name] for name in Unproven.model_fields]
    async with reading(engine) as connection:
        rows = await connection.execute(select(*columns).order_by(unproven.c.id))
        return [Unproven.model_validate(dict(row)) for row in rows.mappings()]


router = APIRouter(prefix="/v1", tags=["operations"])


@router.get(
    "/unproven",
    operation_id="listUnproven",
    summary="Callbacks kept apart because their secret could not be proven",
    responses=documented(KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError),
)
async def list_unproven(_key: ReadKey, _none: NoParameters, request: Request) -> UnprovenList:
    """All that are kept, oldest first; their number is bounded by `UNPROVEN_LIMIT`."""
    return UnprovenList(unproven=await kept_apart(request.state.engine))
