"""Every sealed value in the database, whichever table it stands in: sealed anew with the first key, and counted by key.

So an encryption key can be rotated: put a new one in front, have everything sealed anew, and drop the old one once nothing
needs it. Values are read in small portions, as a callback kept apart may be large, and are only ever replaced where they still
are what was read; so any number of processes may do this at a time, and it may be broken off.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import reading, writing
from app.db.tables import registrations, retiring_credentials, unproven
from app.errors import DatabaseUnavailableError, SealingError
from app.sealing import Sealer

_log = logging.getLogger(__name__)

SEALED: tuple[Column[bytes], ...] = (
    registrations.c.signing_secret,
    registrations.c.headers,
    retiring_credentials.c.sealed,
    unproven.c.sealed,
)
"""Every column that holds sealed values."""

PORTION_BYTES = 1024 * 1024
PORTION_VALUES = 500
"""What is read at a time: no more of either, but one value at least."""

INTERVAL = 3600.0
"""Seconds between two runs: while keys are rotated, replicas with the old order of keys go on sealing with the old one."""


@dataclass(frozen=True, slots=True)
class SealedCounts:
    """How many values are sealed with the first key, with another of the list, and with none of them."""

    current: int
    older: int
    lost: int


async def count(engine: AsyncEngine, sealer: Sealer) -> SealedCounts:
    """Count all sealed values by key. Raises DatabaseUnavailableError."""
    current = older = lost = 0
    for column in SEALED:
        async for _, sealed in _values(engine, column):
            if sealer.is_current(sealed):
                current += 1
            elif _can_be_opened(sealer, sealed):
                older += 1
            else:
                lost += 1
    return SealedCounts(current, older, lost)


class SealedView:
    """What `count` found last, counted again when it is older than `kept` seconds and somebody asks.

    Counting reads and opens every value, which may take minutes, so nobody waits for it, and whoever looks shares it.
    """

    def __init__(self, engine: AsyncEngine, sealer: Sealer, *, kept: float = 300.0) -> None:
        self._engine = engine
        self._sealer = sealer
        self._kept = kept
        self._counts: SealedCounts | None = None
        self._counted_at = 0.0
        self._asked = asyncio.Event()

    def last(self) -> SealedCounts | None:
        """The counts; None until they are known for the first time."""
        if self._counts is None or time.monotonic() - self._counted_at > self._kept:
            self._asked.set()
        return self._counts

    async def keep(self) -> None:
        """Count whenever it is asked for, for ever; run it as a task and cancel it."""
        while True:
            await self._asked.wait()
            try:
                self._counts = await count(self._engine, self._sealer)
                self._counted_at = time.monotonic()
            except DatabaseUnavailableError as exc:
                _log.warning("sealed values not counted, will try again", extra={"reason": str(exc)})
            self._asked.clear()


async def seal_anew(engine: AsyncEngine, sealer: Sealer) -> int:
    """Seal with the first key whatever another key of the list opens; returns how many values that were.

    What no key opens stays as it is. Raises DatabaseUnavailableError.
    """
    done = 0
    for column in SEALED:
        async for key, sealed in _values(engine, column):
            if sealer.is_current(sealed) or not _can_be_opened(sealer, sealed):
                continue
            statement = update(column.table).where(_key(column) == key, column == sealed)
            statement = statement.values({column: sealer.seal_anew(sealed)})
            async with writing(engine) as connection:
                done += (await connection.execute(statement)).rowcount
    return done


async def keep_sealed(engine: AsyncEngine, sealer: Sealer, interval: float = INTERVAL) -> None:
    """Seal anew what needs it, now and every `interval` seconds, for ever; run it as a task and cancel it."""
    while True:
        try:
            if done := await seal_anew(engine, sealer):
                _log.info("values sealed anew with the first of ENCRYPTION_KEYS", extra={"count": done})
        except DatabaseUnavailableError as exc:
            _log.warning("values not sealed anew, will try again", extra={"reason": str(exc)})
        await asyncio.sleep(interval)


def _can_be_opened(sealer: Sealer, sealed: bytes) -> bool:
    try:
        sealer.open(sealed)
    except SealingError:
        return False
    return True


def _key(column: Column[bytes]) -> ColumnElement[Any]:
    [key] = column.table.primary_key.columns
    return key


async def _values(engine: AsyncEngine, column: Column[bytes]) -> AsyncIterator[tuple[Any, bytes]]:
    """One value after the other, each behind the key of its row; no connection is held while it is worked on."""
    key, last = _key(column), None
    while True:
        async with reading(engine) as connection:
            found = (await connection.execute(_portion(column, key, last))).all()
        if not found:
            return
        for last, sealed in found:
            yield last, sealed
            await asyncio.sleep(0)  # to open it takes the processor, for which others wait


def _portion(column: Column[bytes], key: ColumnElement[Any], last: Any) -> Select[tuple[Any, bytes]]:
    """The values behind the key `last`, or the first ones (None). Lengths are known without reading the values."""
    is_next = column.is_not(None) if last is None else and_(column.is_not(None), key > last)
    size = func.octet_length(column).label("size")
    sized = select(key.label("key"), size).where(is_next).order_by(key).limit(PORTION_VALUES).subquery()
    so_far = func.sum(sized.c.size).over(order_by=sized.c.key).label("so_far")
    placed = select(sized, so_far).subquery()
    fits = or_(placed.c.so_far <= PORTION_BYTES, placed.c.so_far == placed.c.size)
    return select(key, column).join(placed, key == placed.c.key).where(fits).order_by(key)
