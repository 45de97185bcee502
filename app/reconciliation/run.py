"""One reconciliation, from wherever it stands to its end: read the list, look for what is absent from it, delete what is gone.

Everything goes over one connection, which also holds the lock of the entity type: whoever lost the lock cannot write any
more. How far the run has come is committed together with what it wrote, so that another process goes on from there after
a crash, with nothing written or counted twice. No more than a page of Jasper's list is ever in memory; which entities were
seen is kept in a table. Jasper is never asked inside a transaction.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from app.clock import utc_now
from app.db.engine import OF_THE_MOMENT, UNREACHABLE
from app.domain.values import Action, EntityType, JsonText
from app.errors import DatabaseUnavailableError, JasperError, JasperUnavailableError
from app.ids import new_id
from app.jasper.client import EntityPage, JasperClient
from app.jasper.entities import ShownEntity, shown_entity
from app.jasper.reading import Mappings
from app.reconciliation.compare import carries, difference
from app.reconciliation.ledger import known_entities, newest_event, write_gone, write_shown
from app.reconciliation.store import KEPT, Reconciliation, Status

_log = logging.getLogger(__name__)

_TOGETHER = 100
"""How many entities are written in one transaction: callbacks want the feed's lock, too."""

_SAMPLES = 3
"""How many single items are held against those of the list to see whether it carries them whole."""

_BARREN_PAGES = 20
"""Pages in a row that show nothing new, after which the list is taken to go round in circles."""

_STEPS_BACK = 1000
"""How often at most a run reads pages again because the list has become shorter meanwhile."""

_OPEN = """
    INSERT INTO reconciliations (id, entity_type, status, force, compared, created, updated, deleted, started_at,
                                 first_sequence, stage)
    VALUES ($1, $2, 'running', $3, 0, 0, 0, 0, $4, $5, 'list')
    RETURNING *
"""
_CONTINUE = "UPDATE reconciliations SET force = force OR $2 WHERE entity_type = $1 AND status = 'running' RETURNING *"
_SAVE = """
    UPDATE reconciliations SET
        compared = compared + $2, created = created + $3, updated = updated + $4, deleted = deleted + $5,
        stage = $6, page = $7, total = $8, items_are_whole = $9
    WHERE id = $1
    RETURNING *
"""
_END = "UPDATE reconciliations SET status = $2, error = $3, finished_at = $4 WHERE id = $1 RETURNING *"
_MADE_GOOD = """
    UPDATE attendance SET away_from = NULL, away_until = NULL WHERE entity_type = $1 AND away_until <= $2
"""
_NOTE_SEEN = """
    INSERT INTO reconciled_entities (reconciliation_id, entity_id) SELECT $1, unnest($2::text[])
    ON CONFLICT (reconciliation_id, entity_id) DO NOTHING
"""
_NOTE_GONE = """
    INSERT INTO reconciled_entities (reconciliation_id, entity_id, gone_at, known_until) VALUES ($1, $2, $3, $4)
    ON CONFLICT (reconciliation_id, entity_id) DO NOTHING
"""
_COUNT_ALIVE = "SELECT count(*) FROM entities WHERE entity_type = $1 AND deleted_at IS NULL"
_COUNT_GONE = """
    SELECT count(*) FROM reconciled_entities WHERE reconciliation_id = $1 AND known_until IS NOT NULL
"""
# What has changed here since the run began was told by callbacks, which know better.
_FIND_UNSEEN = """
    SELECT n.entity_id FROM entities n
    WHERE n.entity_type = $1 AND n.entity_id > $4 AND n.deleted_at IS NULL
        AND greatest(n.sequence, n.data_sequence) <= $3
        AND NOT EXISTS (
            SELECT FROM reconciled_entities r WHERE r.reconciliation_id = $2 AND r.entity_id = n.entity_id
        )
    ORDER BY n.entity_id LIMIT $5
"""
_FIND_GONE = """
    SELECT entity_id, gone_at, known_until FROM reconciled_entities
    WHERE reconciliation_id = $1 AND known_until IS NOT NULL
    ORDER BY entity_id LIMIT $2
"""
_SETTLE_GONE = """
    UPDATE reconciled_entities SET known_until = NULL WHERE reconciliation_id = $1 AND entity_id = ANY($2::text[])
"""
_FORGET = """
    DELETE FROM reconciled_entities WHERE ctid = ANY(ARRAY(
        SELECT s.ctid FROM reconciled_entities s JOIN reconciliations r ON r.id = s.reconciliation_id
        WHERE r.entity_type = $1 AND r.status <> 'running' LIMIT $2
    ))
"""
_FORGET_RUNS = """
    DELETE FROM reconciliations WHERE entity_type = $1 AND status <> 'running' AND id < (
        SELECT id FROM reconciliations WHERE entity_type = $1 ORDER BY id DESC OFFSET $2 LIMIT 1
    )
"""


class _Stage(StrEnum):
    LIST = "list"
    ABSENT = "absent"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Rules:
    """How to reconcile. `most_deleted` is the share of the known entities that may be deleted unasked, from 0 to 1.

    `query` is put on the addresses of the list; `mapping` is that of the payloads, for the place of the id.
    """

    mapping: Mappings
    most_deleted: float
    query: str


@dataclass(frozen=True, slots=True)
class _State:
    """A run as it is stored: what all may see of it, and how far it has come."""

    shown: Reconciliation
    force: bool
    first_sequence: int
    stage: _Stage
    page: str | None
    total: int | None
    items_are_whole: bool | None

    @classmethod
    def of(cls, row: asyncpg.Record | None) -> "_State":
        assert row is not None  # noqa: S101 - every statement that stores a state returns it
        return cls(
            shown=Reconciliation.model_validate({name: row[name] for name in Reconciliation.model_fields}),
            force=row["force"],
            first_sequence=row["first_sequence"],
            stage=_Stage(row["stage"]),
            page=row["page"],
            total=row["total"],
            items_are_whole=row["items_are_whole"],
        )


class Run:
    """One run on a connection that holds the lock of its entity type."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        jasper: JasperClient,
        rules: Rules,
        state: _State,
    ) -> None:
        self._connection = connection
        self._jasper = jasper
        self._rules = rules
        self._state = state
        self.on_progress: Callable[[Reconciliation], None] = lambda _: None

    @classmethod
    async def begin(
        cls, connection: asyncpg.Connection, jasper: JasperClient, rules: Rules, entity_type: EntityType, *, force: bool
    ) -> "Run":
        """Go on with the run that another process left, or begin a new one. `force` counts for either."""
        row = await connection.fetchrow(_CONTINUE, entity_type, force)
        if row is None:
            await cls._tidy(connection, entity_type)
            newest = await newest_event(connection)
            row = await connection.fetchrow(_OPEN, new_id(), entity_type, force, utc_now(), newest)
        else:
            _log.info("reconciliation goes on", extra={"id": str(row["id"]), "entity_type": entity_type.value})
        return cls(connection, jasper, rules, _State.of(row))

    @property
    def shown(self) -> Reconciliation:
        """How it stands."""
        return self._state.shown

    async def finish(self) -> Reconciliation:
        """Do what is left of it; how it ended. What Jasper refuses or fails at ends it as failed, in words.

        Raises DatabaseUnavailableError where Postgres went away; it then stays as it stood, to be gone on with.
        """
        try:
            await self._finish()
        except Exception as exc:
            if _is_of_the_moment(exc):
                raise DatabaseUnavailableError(f"Postgres cannot be reached now ({type(exc).__name__})") from exc
            _log.exception("reconciliation failed", extra={"id": str(self.shown.id)})
            # Gone on with it would fail again, and never end.
            await self._end(Status.FAILED, f"an entity could not be written ({type(exc).__name__}): the log tells more")
        return self.shown

    async def stop(self) -> Reconciliation:
        """End it as failed because somebody wants it to; what was written stays."""
        return await self._end(Status.FAILED, "stopped by hand: what was found until then has been written")

    async def _finish(self) -> None:
        stages = {_Stage.LIST: self._read_list, _Stage.ABSENT: self._look_for_absent, _Stage.DELETE: self._delete_gone}
        try:
            while self.shown.status is Status.RUNNING:
                await stages[self._state.stage]()
        except JasperError as exc:
            await self._end(Status.FAILED, f"{exc}; nothing was deleted" if self.shown.deleted == 0 else str(exc))

    # 1. The list

    async def _read_list(self) -> None:
        """Compare page by page, and note who was there."""
        barren = steps_back = 0
        while self._state.stage is _Stage.LIST:
            known_until = await newest_event(self._connection)
            page = await self._jasper.entity_page(self.shown.entity_type, at=self._state.page, query=self._rules.query)
            listed = list({one.entity_id: one for one in map(self._shown, page.items)}.values())
            whole = self._state.items_are_whole
            if whole is None and listed:
                whole = await self._are_whole(listed)
            await self._write(await self._confirmed(listed, known_until, whole=whole or False), known_until)
            back = self._pages_back(page) if steps_back < _STEPS_BACK else 0
            steps_back += back > 0
            async with self._connection.transaction():
                new = await self._note_seen(listed)
                barren = 0 if new or back else barren + 1
                if barren > _BARREN_PAGES or (page.following is not None and page.following == self._state.page):
                    raise JasperUnavailableError("the pages of Jasper's list go round in circles")
                following = str(page.number - back) if back else page.following
                if page.guessed and not new:
                    following = None
                await self._save(
                    compared=new,
                    stage=_Stage.LIST if following else _Stage.ABSENT,
                    page=following,
                    total=page.total,
                    items_are_whole=whole,
                )

    def _shown(self, text: JsonText) -> ShownEntity:
        return shown_entity(self.shown.entity_type, text, self._rules.mapping)

    async def _single(self, entity_id: str) -> tuple[ShownEntity | None, datetime | None]:
        """One entity as Jasper shows it alone, None where there is none; and the time by Jasper's clock."""
        answer = await self._jasper.entity(self.shown.entity_type, entity_id)
        shown = None if answer.data is None else self._shown(answer.data)
        if shown is not None and shown.entity_id != entity_id:
            raise JasperUnavailableError(
                f"Jasper was asked for {self.shown.entity_type} {entity_id} and answered with {shown.entity_id}"
            )
        return shown, answer.answered_at

    async def _are_whole(self, listed: Sequence[ShownEntity]) -> bool:
        """Whether the list carries all that a single item does, by some samples; else single items have to be asked for.

        Raises JasperUnavailableError where single items cannot be asked for, so that no absence could be believed.
        """
        picked = [listed[number * (len(listed) - 1) // (_SAMPLES - 1)] for number in range(_SAMPLES)]
        samples = {one.entity_id: one for one in picked}
        singles = {entity_id: (await self._single(entity_id))[0] for entity_id in samples}
        if not any(singles.values()):
            raise JasperUnavailableError(
                f"Jasper lists {', '.join(samples)}, but answers 404 where it is asked for one alone: "
                "what is gone cannot be told from what is hidden"
            )
        return all(single is not None and carries(samples[id_].members, single.data) for id_, single in singles.items())

    async def _confirmed(self, listed: Sequence[ShownEntity], known_until: int, *, whole: bool) -> list[ShownEntity]:
        """Those that differ, each with all that Jasper has of it.

        What is deleted here is asked for alone in any case: a list may lag behind.
        """
        known = await known_entities(self._connection, self.shown.entity_type, [one.entity_id for one in listed])
        confirmed: list[ShownEntity] = []
        for one in listed:
            state = known.get(one.entity_id)
            if difference(state, one, known_until=known_until) is None:
                continue
            if whole and not (state is not None and state.is_deleted):
                confirmed.append(one)
            elif (single := (await self._single(one.entity_id))[0]) is not None:
                confirmed.append(single)
        return confirmed

    def _pages_back(self, page: EntityPage) -> int:
        """How many pages to go back: where entities of pages before are gone, others have moved there, unseen."""
        before, now = self._state.total, page.total
        if before is None or now is None or now >= before or not page.items:
            return 0
        return min(page.number - 1, math.ceil((before - now) / len(page.items)))

    # 2. What the list left out

    async def _look_for_absent(self) -> None:
        """Ask for each alone: who is there is compared, who is not is noted. Stops before too many would be deleted."""
        entity_type = self.shown.entity_type
        alive = await self._connection.fetchval(_COUNT_ALIVE, entity_type)
        gone = await self._connection.fetchval(_COUNT_GONE, self.shown.id)
        after = ""
        while unseen := await self._unseen(after):
            for entity_id in unseen:
                known_until = await newest_event(self._connection)
                found, answered_at = await self._single(entity_id)
                if found is not None:
                    await self._write([found], known_until)
                    async with self._connection.transaction():
                        await self._save(compared=await self._note_seen([found]))
                    continue
                await self._connection.execute(_NOTE_GONE, self.shown.id, entity_id, answered_at, known_until)
                gone += 1
                if gone > alive * self._rules.most_deleted and not self._state.force:
                    await self._end(
                        Status.NEEDS_CONFIRMATION,
                        f"{gone} or more of {alive} are gone at Jasper, more than RECONCILE_MOST_DELETED "
                        f"({self._rules.most_deleted:g}) lets be deleted unasked; nothing was deleted. If that is right, "
                        f"run `jasper-receiver reconcile {entity_type} --force`",
                    )
                    return
            after = unseen[-1]
            self.on_progress(self.shown)
        await self._save(stage=_Stage.DELETE)

    async def _unseen(self, after: str) -> list[str]:
        rows = await self._connection.fetch(
            _FIND_UNSEEN, self.shown.entity_type, self.shown.id, self._state.first_sequence, after, _TOGETHER
        )
        return [row["entity_id"] for row in rows]

    # 3. What is gone

    async def _delete_gone(self) -> None:
        while rows := await self._connection.fetch(_FIND_GONE, self.shown.id, _TOGETHER):
            async with self._connection.transaction():
                gone = [(row["entity_id"], row["gone_at"], row["known_until"]) for row in rows]
                actions = await write_gone(self._connection, self.shown.entity_type, gone)
                await self._connection.execute(_SETTLE_GONE, self.shown.id, [entity_id for entity_id, *_ in gone])
                await self._save(actions=actions)
        await self._end(Status.SUCCEEDED, None)

    # What all stages do

    async def _write(self, shown: Sequence[ShownEntity], known_until: int) -> None:
        for start in range(0, len(shown), _TOGETHER):
            async with self._connection.transaction():
                actions = await write_shown(
                    self._connection,
                    self.shown.entity_type,
                    shown[start : start + _TOGETHER],
                    known_until=known_until,
                )
                await self._save(actions=actions)

    async def _note_seen(self, shown: Sequence[ShownEntity]) -> int:
        """Note who was there; how many of them were not seen before."""
        done = await self._connection.execute(_NOTE_SEEN, self.shown.id, [one.entity_id for one in shown])
        return int(done.rpartition(" ")[2])

    async def _save(self, *, compared: int = 0, actions: Iterable[Action] = (), **changes: object) -> None:
        """Store how far it has come; `changes` are fields of the state."""
        counted = Counter(actions)
        state = {name: getattr(self._state, name) for name in ("stage", "page", "total", "items_are_whole")} | changes
        row = await self._connection.fetchrow(
            _SAVE,
            self.shown.id,
            compared,
            counted[Action.CREATE],
            counted[Action.UPDATE],
            counted[Action.DELETE],
            *state.values(),
        )
        self._state = _State.of(row)
        self.on_progress(self.shown)

    async def _end(self, status: Status, error: str | None) -> Reconciliation:
        async with self._connection.transaction():
            row = await self._connection.fetchrow(_END, self.shown.id, status, error, utc_now())
            self._state = _State.of(row)
            if status is Status.SUCCEEDED:
                await self._connection.execute(_MADE_GOOD, self.shown.entity_type, self.shown.started_at)
        log = _log.info if status is Status.SUCCEEDED else _log.warning
        log(
            "reconciliation ended",
            extra={
                "id": str(self.shown.id),
                "entity_type": self.shown.entity_type.value,
                "outcome": status.value,
                "reason": error,
                "written": f"{self.shown.created} created, {self.shown.updated} updated, {self.shown.deleted} deleted",
            },
        )
        await self._tidy(self._connection, self.shown.entity_type)
        return self.shown

    @staticmethod
    async def _tidy(connection: asyncpg.Connection, entity_type: EntityType) -> None:
        """Let go of what only runs that have ended needed, in small steps, and of the oldest runs."""
        step = 10_000
        while (await connection.execute(_FORGET, entity_type, step)) == f"DELETE {step}":
            pass
        await connection.execute(_FORGET_RUNS, entity_type, KEPT)


def _is_of_the_moment(error: Exception) -> bool:
    """Whether Postgres is in trouble, and not what was to be written."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in OF_THE_MOMENT
    # A value that the driver refuses is by descent one of its connection errors.
    return isinstance(error, UNREACHABLE) and not isinstance(error, ValueError)
