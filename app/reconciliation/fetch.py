"""Fetches what a callback did not carry: the entity's data, after the callback was answered, as an event of its own.

Follows the feed from a position of its own, as any reader does, and notes every entity whose newest event came without
data; position and notes are committed together, so nothing is forgotten in a crash, and however many events an entity has
had, it is fetched once. One replica at a time. What Jasper shows is folded by the rules of reconciliation: an event comes
of it only where it differs, and a callback that arrives meanwhile wins and is looked at in its turn.

A 404 is no delete: without the list's word there is only one witness, and an entity that was just created may not be
visible everywhere yet. It is asked for again a few times, then left to its own callback or to the next reconciliation.
"""

import asyncio
import logging
import random
from datetime import timedelta
from http import HTTPStatus
from typing import NoReturn

import asyncpg

from app.clock import utc_now
from app.db.locks import Lock
from app.db.wakeup import Wakeup
from app.domain.values import EntityType
from app.errors import DatabaseUnavailableError, JasperRefusedError, JasperUnavailableError
from app.jasper.client import JasperClient
from app.jasper.entities import shown_entity
from app.jasper.reading import Mappings
from app.reconciliation.compare import is_before
from app.reconciliation.ledger import ledger_connection, newest_event, write_shown

_log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds after which the feed is looked at whether or not anything was announced."""

ATTEMPTS = 8
"""How often an entity that Jasper does not show is asked for before it is left."""

_CLOCKS_APART = timedelta(minutes=1)
_ATTEMPTS_AT_NEWER = 3
"""How far the time of a notification and Jasper's stamp of the entity may differ; and how often an answer is taken for an old
one, as a cache or a replica of Jasper's may give it, where they differ by more, until it is believed."""

_FIRST_WAIT, _LONGEST_WAIT = 2.0, 300.0
"""Seconds until an entity is asked for again: growing from the one to the other."""

_EVENTS_AT_ONCE = 1000
_ENTITIES_AT_ONCE = 50

_POSITION = """
    INSERT INTO fetch_position (is_only, position) VALUES (true, 0)
    ON CONFLICT (is_only) DO UPDATE SET position = fetch_position.position RETURNING position
"""
_MOVE = "UPDATE fetch_position SET position = $1"
_FIND_EVENTS = """
    SELECT sequence, entity_type, entity_id, data IS NULL AND NOT stale AND action <> 'delete' AS lacks_data
    FROM events WHERE sequence > $1 ORDER BY sequence LIMIT $2
"""
_LACKS_DATA = "n.deleted_at IS NULL AND (n.data_sequence IS NULL OR n.data_sequence < n.sequence)"
_NOTE = f"""
    INSERT INTO pending_fetches (entity_type, entity_id, attempts, due_at)
    SELECT DISTINCT n.entity_type, n.entity_id, 0, $3::timestamptz
    FROM unnest($1::text[], $2::text[]) AS told(entity_type, entity_id)
    JOIN entities n ON n.entity_type = told.entity_type AND n.entity_id = told.entity_id
    WHERE {_LACKS_DATA}
    ON CONFLICT (entity_type, entity_id) DO UPDATE SET due_at = excluded.due_at, attempts = 0
"""  # noqa: S608 - made of constants
_FIND_DUE = """
    SELECT entity_type, entity_id, attempts FROM pending_fetches WHERE due_at <= $1 ORDER BY due_at LIMIT $2
"""
_STILL_LACKS_DATA = f"""
    SELECT newest_at FROM entities n WHERE entity_type = $1 AND entity_id = $2 AND {_LACKS_DATA}
"""  # noqa: S608 - made of constants
_UNCHANGED = """
    SELECT greatest(sequence, data_sequence) <= $3 FROM entities WHERE entity_type = $1 AND entity_id = $2
"""
_DONE = "DELETE FROM pending_fetches WHERE entity_type = $1 AND entity_id = $2"
_LATER = "UPDATE pending_fetches SET attempts = $3, due_at = $4 WHERE entity_type = $1 AND entity_id = $2"
_NEXT_DUE = "SELECT min(due_at) FROM pending_fetches"


class Fetcher:
    """Fetches entities for as long as `keep` runs."""

    def __init__(self, dsn: str, jasper: JasperClient, mapping: Mappings, wakeup: Wakeup) -> None:
        self._dsn = dsn
        self._jasper = jasper
        self._mapping = mapping
        self._wakeup = wakeup

    async def keep(self) -> NoReturn:
        """Fetch whatever lacks data, for ever. Run as a task; trouble of any kind is waited out."""
        failures = 0
        while True:
            try:
                async with ledger_connection(self._dsn, Lock.FETCH) as connection:
                    if connection is not None:
                        failures = 0
                        await self._work(connection)
            except DatabaseUnavailableError as exc:
                failures += 1
                _log.warning("entities cannot be fetched now", extra={"reason": str(exc)})
            await asyncio.sleep(_wait(failures) + LOOK_EVERY)

    async def _work(self, connection: asyncpg.Connection) -> NoReturn:
        while True:
            generation = self._wakeup.generation
            await self.note_all(connection)
            pause = await self.fetch_due(connection)
            if pause:
                await asyncio.sleep(pause)
            elif not await connection.fetchval(f"SELECT ({_NEXT_DUE}) <= $1", utc_now()):
                await self._wakeup.wait(generation, timeout=LOOK_EVERY)

    async def note_all(self, connection: asyncpg.Connection) -> None:
        """Go on through the feed to its end, and note what lacks data."""
        position = await connection.fetchval(_POSITION)
        while rows := await connection.fetch(_FIND_EVENTS, position, _EVENTS_AT_ONCE):
            position = rows[-1]["sequence"]
            lacking = [row for row in rows if row["lacks_data"]]
            async with connection.transaction():
                if lacking:
                    types, ids = [row["entity_type"] for row in lacking], [row["entity_id"] for row in lacking]
                    await connection.execute(_NOTE, types, ids, utc_now())
                await connection.execute(_MOVE, position)

    async def fetch_due(self, connection: asyncpg.Connection) -> float:
        """Fetch what is due now, a bounded number; seconds to wait before anything else is asked, 0 in good times."""
        for row in await connection.fetch(_FIND_DUE, utc_now(), _ENTITIES_AT_ONCE):
            entity_type, entity_id = EntityType(row["entity_type"]), row["entity_id"]
            try:
                problem = await self._fetch(connection, entity_type, entity_id, row["attempts"])
            except JasperRefusedError as exc:
                if exc.status == HTTPStatus.UNAUTHORIZED:  # nothing else would be answered either
                    _log.warning("entities cannot be fetched", extra={"reason": str(exc)})
                    return _LONGEST_WAIT
                problem = str(exc)
            except JasperUnavailableError as exc:
                _log.warning("entities cannot be fetched now", extra={"reason": str(exc)})
                pause = min(_LONGEST_WAIT, max(_FIRST_WAIT, exc.retry_after or 0.0))
                # The trouble may be with this one only, so the others go first after the pause.
                due_at = utc_now() + timedelta(seconds=pause)
                await connection.execute(_LATER, entity_type, entity_id, row["attempts"], due_at)
                return pause
            if problem is not None:
                await self._put_off(connection, entity_type, entity_id, row["attempts"] + 1, problem)
        return 0.0

    async def _fetch(
        self, connection: asyncpg.Connection, entity_type: EntityType, entity_id: str, attempts: int
    ) -> str | None:
        """Fetch one entity, after `attempts` in vain; None where that is done with, else what is wrong with it.

        Raises JasperRefusedError and JasperUnavailableError.
        """
        known_until = await newest_event(connection)
        lacking = await connection.fetchrow(_STILL_LACKS_DATA, entity_type, entity_id)
        if lacking is None:
            await connection.execute(_DONE, entity_type, entity_id)
            return None
        answer = await self._jasper.entity(entity_type, entity_id)
        if answer.data is None:
            return "Jasper has none with this id"
        try:
            shown = shown_entity(entity_type, answer.data, self._mapping)
        except JasperUnavailableError as exc:
            return str(exc)
        if shown.entity_id != entity_id:
            return f"Jasper answered with {shown.entity_id}"
        until = None if shown.updated_at is None else shown.updated_at + _CLOCKS_APART
        if attempts < _ATTEMPTS_AT_NEWER and is_before(until, lacking["newest_at"]):
            return "Jasper shows a state from before what it told"
        async with connection.transaction():
            await write_shown(connection, entity_type, [shown], known_until=known_until)
            # Something newer may have come while Jasper was asked; then it is asked again for that.
            if await connection.fetchval(_UNCHANGED, entity_type, entity_id, known_until) or not await connection.fetch(
                _STILL_LACKS_DATA, entity_type, entity_id
            ):
                await connection.execute(_DONE, entity_type, entity_id)
        return None

    async def _put_off(
        self, connection: asyncpg.Connection, entity_type: EntityType, entity_id: str, attempts: int, problem: str
    ) -> None:
        if attempts < ATTEMPTS:
            due_at = utc_now() + timedelta(seconds=_wait(attempts))
            await connection.execute(_LATER, entity_type, entity_id, attempts, due_at)
            return
        _log.warning(
            "entity not fetched, left to its own callback or a reconciliation",
            extra={"entity_type": entity_type.value, "entity_id": entity_id, "reason": problem},
        )
        await connection.execute(_DONE, entity_type, entity_id)


def _wait(attempts: int) -> float:
    if attempts == 0:
        return 0.0
    wait: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempts - 1, 30))
    return wait * random.uniform(1.0, 1.5)  # noqa: S311 - spreads load, hides nothing
