"""Begins reconciliations: for the command, for the API, at an interval, and where another process left one unfinished.

One at a time for each entity type, over all replicas, by an advisory lock that ends with the connection that does the
work. So a process that dies lets go at once, and whichever looks next goes on with what it left.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import NoReturn, Self

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.locks import Lock
from app.domain.values import EntityType
from app.errors import ConflictError, DatabaseUnavailableError
from app.jasper.client import JasperClient, Patience
from app.reconciliation import store
from app.reconciliation.attendance import Absence, absences
from app.reconciliation.ledger import ledger_connection
from app.reconciliation.run import Rules, Run
from app.reconciliation.store import Reconciliation, Status
from app.settings import Settings

_log = logging.getLogger(__name__)

LOOK_EVERY = 15.0
"""Seconds between two looks for a reconciliation that is due or was left unfinished; up to a half is added at random."""

AFTER_A_FAILURE = 900.0
"""Seconds after which one that failed is tried again, where the interval is longer."""

_LOCKS = {
    EntityType.PRODUCT: Lock.RECONCILE_PRODUCT,
    EntityType.CATEGORY: Lock.RECONCILE_CATEGORY,
    EntityType.BRAND: Lock.RECONCILE_BRAND,
    EntityType.CONCRETE_ENTITY: Lock.RECONCILE_CONCRETE_ENTITY,
}


def patience_of(settings: Settings) -> Patience:
    """How to ask Jasper for entities: nobody waits for an answer, so there is more of it than for a registration."""
    return Patience(attempts=6, first_wait=1.0, longest_wait=120.0, pace=1 / settings.reconcile_rate)


class Reconciler:
    """Reconciliations of one process; an async context manager that leaves what it cannot finish to the next process."""

    def __init__(
        self,
        settings: Settings,
        *,
        dsn: str,
        engine: AsyncEngine,
        http: httpx.AsyncClient,
        patience: Patience | None = None,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.jasper = JasperClient(http, patience or patience_of(settings))
        self._settings = settings
        self._dsn = dsn
        self._engine = engine
        self._look_every = look_every
        self._rules = Rules(
            mapping=settings.payload_mapping,
            most_deleted=settings.reconcile_most_deleted,
            query=settings.reconcile_list_query or "",
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Nothing is begun yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Break off; what is running goes on in another process, or in the next one."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def start(self, entity_type: EntityType, *, force: bool = False, only_if_due: bool = False) -> Reconciliation:
        """Begin one in the background, or go on with one that was left unfinished.

        Raises ConflictError where the settings name no Jasper or another process is at it, and DatabaseUnavailableError.
        """
        async with AsyncExitStack() as stack:
            run = await stack.enter_async_context(self._run(entity_type, force=force, only_if_due=only_if_due))
            task = asyncio.create_task(self._finish(stack.pop_all(), run), name=f"reconcile {entity_type}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run.shown

    async def reconcile(
        self, entity_type: EntityType, *, force: bool = False, on_progress: Callable[[Reconciliation], None]
    ) -> Reconciliation:
        """Do one from its beginning, or from where it was left, to its end. Cancelled, it ends as failed.

        Raises as `start`; where Postgres goes away meanwhile, the same call goes on from there.
        """
        async with self._run(entity_type, force=force) as run:
            run.on_progress = on_progress
            try:
                return await run.finish()
            except asyncio.CancelledError:
                await run.stop()
                raise

    async def keep(self) -> NoReturn:
        """Look again and again for one that is due or was left unfinished. Run as a task."""
        while True:
            await asyncio.sleep(self._look_every * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, hides nothing
            with suppress(DatabaseUnavailableError):
                await self.look()

    async def look(self) -> None:
        """Begin whatever is due now, and go on with what was left unfinished. Raises DatabaseUnavailableError."""
        if not self._settings.names_jasper:
            return
        latest = await store.latest(self._engine)
        for entity_type in EntityType:
            if self._is_due(entity_type, latest.get(entity_type)):
                with suppress(ConflictError):  # another process is at it
                    await self.start(entity_type, only_if_due=True)

    async def absences(self) -> Mapping[EntityType, Absence]:
        """Times without callbacks that a reconciliation should make good for. Raises DatabaseUnavailableError."""
        return await absences(self._engine)

    def _is_due(self, entity_type: EntityType, last: Reconciliation | None) -> bool:
        if last is not None and last.status is Status.RUNNING:
            return True
        interval: float = self._settings.reconcile_interval
        if not interval or entity_type not in self._settings.jasper_webhook_entity_types:
            return False
        if last is None:
            return True
        if last.status is Status.FAILED:
            interval = min(interval, AFTER_A_FAILURE)
        return last.started_at + timedelta(seconds=interval) <= utc_now()

    @asynccontextmanager
    async def _run(self, entity_type: EntityType, *, force: bool, only_if_due: bool = False) -> AsyncIterator[Run]:
        """A run on a connection of its own that holds the lock of the entity type for as long as the block lasts."""
        if not self._settings.names_jasper:
            raise ConflictError(
                "there is no Jasper to compare with: set JASPER_API_URL, JASPER_API_TOKEN and PUBLIC_URL, then restart"
            )
        async with ledger_connection(self._dsn, _LOCKS[entity_type]) as connection:
            if connection is None:
                raise ConflictError(
                    f"{entity_type} is being reconciled already: GET /v1/reconciliations tells how far that has come"
                )
            if only_if_due and not self._is_due(entity_type, (await store.latest(self._engine)).get(entity_type)):
                raise ConflictError("another process was quicker")
            yield await Run.begin(connection, self.jasper, self._rules, entity_type, force=force)

    async def _finish(self, held: AsyncExitStack, run: Run) -> None:
        try:
            async with held:
                await run.finish()
        except DatabaseUnavailableError as exc:
            _log.warning("reconciliation broken off, goes on later", extra={"reason": str(exc)})
