"""Keeps the webhooks at Jasper registered for as long as the process runs: registers, then looks again and again.

At the start the settings are applied, as often as it takes. From then on what was registered is watched: a webhook that
somebody deleted, changed or switched off is mended and said so, a token that was rotated away is told, and a rotation that
was broken off is finished. Replicas share the looks through the database. Nothing here ever ends the process or keeps it
from receiving.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from app.db.engine import UNREACHABLE
from app.domain.values import EntityType
from app.errors import JasperRefusedError, JasperUnavailableError, ReceiverError, SealingError
from app.registration.register import Outcome, Registrar
from app.registration.store import State

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds. Between attempts after a failure: growing from `first` to `longest`, longer where Jasper refuses.

    `glance` is how often a process looks into the database whether a look at Jasper is due. Up to a half of each is added
    at random, so that replicas and entity types do not ask in step.
    """

    first: float = 1.0
    longest: float = 60.0
    first_when_refused: float = 30.0
    longest_when_refused: float = 600.0
    glance: float = 10.0


async def keep_registered(
    registrar: Registrar, entity_type: EntityType, interval: timedelta, pauses: Pauses | None = None
) -> None:
    """Register an entity type, then look at it every `interval`, for ever. Run as a task, once the socket listens.

    Returns only where the settings name no Jasper, and then at once. With an interval of 0 it looks only at what was left
    undone. Failures are logged, stored with the registration, and never raised.
    """
    if registrar.has_jasper:
        await _Keeper(registrar, entity_type, interval, pauses or Pauses()).keep()


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a webhook is not in order. `refused` asks for longer pauses, `retry_after` are seconds that Jasper named."""

    problem: str
    refused: bool = False
    retry_after: float = 0.0


@dataclass
class _Keeper:
    """Keeps one entity type's webhook."""

    registrar: Registrar
    entity_type: EntityType
    interval: timedelta
    pauses: Pauses

    async def keep(self) -> None:
        await self._until_done(lambda: self.registrar.register(self.entity_type))
        _log.info("webhook in order", extra={"entity_type": str(self.entity_type)})
        while True:
            await asyncio.sleep(_spread(self.pauses.glance))
            outcome = await self._until_done(lambda: self.registrar.look(self.entity_type, self.interval))
            if outcome is not None and outcome.done:
                _log.warning(
                    "webhook was not as it had been registered, and was mended",
                    extra={
                        "entity_type": str(self.entity_type),
                        "done": "; ".join(outcome.done),
                        "reason": outcome.problem,
                    },
                )

    async def _until_done(self, attempt: Callable[[], Awaitable[Outcome | None]]) -> Outcome | None:
        said, failures = None, 0
        while isinstance(result := await self._try(attempt), _Failure):
            if result.problem != said:
                said = result.problem
                _log.warning(
                    "webhook not in order, will try again", extra={"entity_type": str(self.entity_type), "reason": said}
                )
            await asyncio.sleep(_pause(self.pauses, failures, result))
            failures += 1
        return result

    async def _try(self, attempt: Callable[[], Awaitable[Outcome | None]]) -> Outcome | _Failure | None:
        try:
            outcome = await attempt()
        except JasperUnavailableError as exc:
            return _Failure(str(exc), retry_after=exc.retry_after or 0.0)
        except ReceiverError as exc:
            return _Failure(str(exc), refused=isinstance(exc, (JasperRefusedError, SealingError)))
        except (SQLAlchemyError, *UNREACHABLE) as exc:
            return _Failure(f"Postgres went away ({type(exc).__name__})")
        except Exception as exc:  # noqa: BLE001 - whatever it is, callbacks are to be received
            _log.exception("registration failed for a reason nobody thought of; callbacks are received all the same")
            return _Failure(type(exc).__name__)
        if outcome is None or outcome.state is State.REGISTERED:
            return outcome
        return _Failure(outcome.problem or outcome.state, refused=True)


def _pause(pauses: Pauses, failures: int, failure: _Failure) -> float:
    """Seconds until the next attempt. What Jasper asked for counts, up to the longest pause there is."""
    first, longest = pauses.first, pauses.longest
    if failure.refused:
        first, longest = pauses.first_when_refused, pauses.longest_when_refused
    pause = min(longest, first * 2.0 ** min(failures, _MOST_DOUBLINGS))
    return _spread(max(pause, min(failure.retry_after, pauses.longest_when_refused)))


def _spread(seconds: float) -> float:
    return seconds * random.uniform(1.0, 1.5)  # noqa: S311 - spreads load, hides nothing


_MOST_DOUBLINGS = 30
