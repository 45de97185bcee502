"""The start-up, readable as a list: database reached, schema at head, and, once the socket listens, webhooks registered.

What cannot be mended by waiting stops the start in words; a Jasper that is down or refuses never does: the service goes
on receiving with the secret it has, and keeps trying.
"""

import asyncio
import logging
import random
from collections.abc import Collection
from dataclasses import dataclass

import asyncpg
import stamina
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import UNREACHABLE
from app.db.migrate import check_schema, migrate
from app.domain.values import EntityType
from app.errors import (
    DatabaseUnavailableError,
    JasperRefusedError,
    JasperUnavailableError,
    SealingError,
    UnavailableError,
)
from app.registration.register import Registrar
from app.registration.store import State

_log = logging.getLogger(__name__)

DATABASE_PATIENCE = 60.0
"""Seconds that the start waits for a Postgres that is starting itself."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds between two attempts to register: growing from `first` to `longest`, longer where Jasper refuses.

    Up to a half of each is added at random, so that replicas and entity types do not ask in step.
    """

    first: float = 1.0
    longest: float = 60.0
    first_when_refused: float = 30.0
    longest_when_refused: float = 600.0


async def prepare_database(engine: AsyncEngine, *, auto_migrate: bool, patience: float = DATABASE_PATIENCE) -> None:
    """Reach Postgres, waiting `patience` seconds for it, and bring its schema to head, or check that it is there.

    Raises DatabaseUnavailableError or SchemaError.
    """
    await reach_database(engine, patience=patience)
    if not auto_migrate:
        await check_schema(engine)
        return
    before, after = await migrate(engine)
    if before != after:
        _log.info("schema brought to head", extra={"before": before, "after": after})


async def reach_database(engine: AsyncEngine, *, patience: float = DATABASE_PATIENCE) -> None:
    """Wait until Postgres answers, `patience` seconds at most. Raises DatabaseUnavailableError, in words.

    A wrong password or the name of a database that does not exist is not waited for.
    """
    try:
        async for attempt in stamina.retry_context(on=_may_pass, attempts=None, timeout=patience, wait_jitter=0.5):
            with attempt:
                async with engine.connect() as connection:
                    await connection.execute(text("SELECT 1"))
    except DBAPIError as exc:
        raise DatabaseUnavailableError(f"Postgres refuses: {exc.driver_exception}: look at DATABASE_URL") from exc
    except (DatabaseUnavailableError, SQLAlchemyError, *UNREACHABLE) as exc:
        raise DatabaseUnavailableError(
            f"Postgres did not answer for {patience:g} seconds: look at DATABASE_URL and at the server"
        ) from exc


def _may_pass(error: Exception) -> bool:
    """Whether waiting may help. It does not against a wrong password or name, or a permission that is missing."""
    if isinstance(error, DBAPIError) and isinstance(error.driver_exception, asyncpg.PostgresError):
        return not str(error.driver_exception.sqlstate).startswith(("28", "3D", "42"))
    return isinstance(error, (DatabaseUnavailableError, SQLAlchemyError, *UNREACHABLE))


async def keep_registered(
    registrar: Registrar, entity_types: Collection[EntityType], pauses: Pauses | None = None
) -> None:
    """Register every entity type, and where that fails try again until it is done. Run as a task, once the socket listens.

    Returns when every webhook is in order, and at once where the settings name no Jasper. Failures are logged, stored
    with the registration, and never raised.
    """
    if not registrar.has_jasper:
        return
    async with asyncio.TaskGroup() as tasks:
        for entity_type in entity_types:
            tasks.create_task(
                _register_until_done(registrar, entity_type, pauses or Pauses()), name=f"register {entity_type}"
            )


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a webhook is not in order. `refused` asks for longer pauses, `retry_after` are seconds that Jasper named."""

    problem: str
    refused: bool = False
    retry_after: float = 0.0


async def _register_until_done(registrar: Registrar, entity_type: EntityType, pauses: Pauses) -> None:
    said, failures = None, 0
    while failure := await _try_to_register(registrar, entity_type):
        if failure.problem != said:
            said = failure.problem
            _log.warning(
                "webhook not in order, will try again", extra={"entity_type": str(entity_type), "reason": said}
            )
        await asyncio.sleep(_pause(pauses, failures, failure))
        failures += 1
    _log.info("webhook in order", extra={"entity_type": str(entity_type)})


async def _try_to_register(registrar: Registrar, entity_type: EntityType) -> _Failure | None:
    try:
        outcome = await registrar.register(entity_type)
    except (JasperRefusedError, SealingError) as exc:
        return _Failure(str(exc), refused=True)
    except JasperUnavailableError as exc:
        return _Failure(str(exc), retry_after=exc.retry_after or 0.0)
    except UnavailableError as exc:
        return _Failure(str(exc))
    except (SQLAlchemyError, *UNREACHABLE) as exc:
        return _Failure(f"Postgres went away ({type(exc).__name__})")
    except Exception as exc:  # noqa: BLE001 - whatever it is, callbacks are to be received
        _log.exception("registration failed for a reason nobody thought of; callbacks are received all the same")
        return _Failure(type(exc).__name__)
    return None if outcome.state is State.REGISTERED else _Failure(outcome.problem or outcome.state, refused=True)


def _pause(pauses: Pauses, failures: int, failure: _Failure) -> float:
    """Seconds until the next attempt. What Jasper asked for counts, up to the longest pause there is."""
    first, longest = pauses.first, pauses.longest
    if failure.refused:
        first, longest = pauses.first_when_refused, pauses.longest_when_refused
    pause = min(longest, first * 2.0 ** min(failures, _MOST_DOUBLINGS))
    pause = max(pause, min(failure.retry_after, pauses.longest_when_refused))
    return pause * random.uniform(1.0, 1.5)  # noqa: S311 - spreads load, hides nothing


_MOST_DOUBLINGS = 30
