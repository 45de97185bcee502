"""API keys: made, listed, revoked and checked. The same functions serve the routes and the command line.

Only the SHA-256 of a key is stored; a key has 256 random bits, so a slow hash would protect nothing. Nothing is cached:
a key that was revoked is refused by the very next request, on every replica.
"""

import hashlib
import logging
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import Lookups, reading
from app.db.tables import api_keys
from app.errors import ConflictError, DatabaseUnavailableError, InvalidParametersError, NotFoundError
from app.ids import new_id

_log = logging.getLogger(__name__)

_PREFIX = "jr_"
_LONGEST_NAME = 100
_USE_NOTED_EVERY = timedelta(minutes=1)


class Scope(StrEnum):
    """What a key allows. None of them includes another."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key, without the key itself. `last_used_at` is right to the minute."""

    id: UUID
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


async def create_key(engine: AsyncEngine, name: str, scopes: Collection[Scope], *, now: datetime) -> tuple[ApiKey, str]:
    """Make a key; returns it together with its text, which cannot be had again.

    Raises InvalidParametersError for an unusable name or no scope, ConflictError where the name is in use.
    """
    if not _is_usable(name):
        raise InvalidParametersError(
            [{"parameter": "name", "detail": f"must have 1 to {_LONGEST_NAME} printable characters"}]
        )
    if not scopes:
        raise InvalidParametersError([{"parameter": "scope", "detail": "give at least one of read, write, admin"}])
    key = _PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(new_id(), name, frozenset(scopes), created_at=now, last_used_at=None, revoked_at=None)
    row = {"id": made.id, "name": name, "scopes": sorted(made.scopes), "digest": digest_of(key), "created_at": now}
    try:
        async with engine.begin() as connection:
            await connection.execute(insert(api_keys), row)
    except IntegrityError as exc:
        raise ConflictError(f"there is a key named {name!r} already; revoke it first, or choose another name") from exc
    return made, key


def _is_usable(name: str) -> bool:
    return bool(name.strip()) and len(name) <= _LONGEST_NAME and name.isprintable()


async def list_keys(engine: AsyncEngine) -> list[ApiKey]:
    """Every key, revoked ones included, oldest first."""
    async with reading(engine) as connection:
        rows = await connection.execute(select(*_COLUMNS).order_by(api_keys.c.id))
        return [_key(row) for row in rows]


async def revoke_key(engine: AsyncEngine, name: str, *, now: datetime) -> ApiKey:
    """Make a key worthless from now on. Raises NotFoundError where none of this name is valid."""
    statement = (
        update(api_keys)
        .where(api_keys.c.name == name, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now)
        .returning(*_COLUMNS)
    )
    row = None
    if _is_usable(name):
        async with engine.begin() as connection:
            row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no valid key named {name!r}")
    return _key(row)


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key: what is stored of it, and what a session of the dashboard carries."""
    return hashlib.sha256(key.encode()).digest()


async def find_key(lookups: Lookups, digest: bytes, *, now: datetime) -> ApiKey | None:
    """The key with this digest, also one that was revoked; None where there is none. Notes the use of a valid one.

    Looked for by its digest, so that how long the search takes says nothing about stored keys.
    """
    rows = await lookups.fetch(_FIND, digest)
    if not rows:
        return None
    found = _key(rows[0])
    if found.revoked_at is not None:
        return found
    if found.last_used_at is None or found.last_used_at <= now - _USE_NOTED_EVERY:
        await _note_use(lookups, found, now)
    return found


async def _note_use(lookups: Lookups, key: ApiKey, now: datetime) -> None:
    """At most once a minute. A nicety: it neither waits for another request that notes the same, nor fails the request."""
    try:
        await lookups.fetch(_NOTE_USE, key.id, now, now - _USE_NOTED_EVERY)
    except (DatabaseUnavailableError, asyncpg.PostgresError):
        _log.warning("use of a key not noted", extra={"key": key.name})


_FIND = "SELECT id, name, scopes, created_at, last_used_at, revoked_at FROM api_keys WHERE digest = $1"
_NOTE_USE = """
    UPDATE api_keys SET last_used_at = $2 WHERE id IN (
        SELECT id FROM api_keys WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= $3) FOR UPDATE SKIP LOCKED
    )
"""
_COLUMNS = [api_keys.c[name] for name in ("id", "name", "scopes", "created_at", "last_used_at", "revoked_at")]


def _key(row: Iterable[Any]) -> ApiKey:
    identifier, name, scopes, created_at, last_used_at, revoked_at = row
    return ApiKey(identifier, name, frozenset(map(Scope, scopes)), created_at, last_used_at, revoked_at)
