"""The secrets and headers that a callback may prove itself with now: the current ones and those on their way out.

Held in memory, so that no callback waits for Postgres to be judged, and read again every few seconds and where a proof
fails, since another replica may have registered or rotated. Where Postgres is away, what was known last holds. Never logs
or shows a secret or a header's value.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from app.domain.values import EntityType
from app.errors import ReceiverError
from app.jasper.client import same_headers
from app.registration.store import Registration, RegistrationStore, Retiring

_log = logging.getLogger(__name__)

REFRESH_INTERVAL = 5.0
"""Seconds between two looks at the store."""

_FRESH = timedelta(seconds=REFRESH_INTERVAL)

_DISTANCE = 0.1
"""Seconds between two readings that failed proofs ask for."""

_TRUSTED = 2 * REFRESH_INTERVAL
"""Seconds for which what was read counts as certain where a look takes longer than a callback can wait."""

_PATIENCE = 0.25
"""Seconds that a callback waits for a refresh; its answer has to come well within half a second."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What proves a callback of one entity type. Any of the secrets will do, and any whole set of headers.

    `pending` says that Jasper is being asked for a new webhook or secret, so that a secret which is not among these may
    be the new one.
    """

    secrets: tuple[str, ...] = field(repr=False)
    header_sets: tuple[Mapping[str, str], ...] = field(repr=False)
    pending: bool


class Keyring:
    """What is accepted, by entity type. `headers` are those of the settings, which are always accepted."""

    def __init__(self, store: RegistrationStore, headers: Mapping[str, str], *, distance: float = _DISTANCE) -> None:
        self._store = store
        self._distance = distance
        self._headers = dict(headers)
        self._registrations: dict[EntityType, Registration] = {}
        self._retiring: dict[EntityType, list[Retiring]] = {}
        self._tried_at = float("-inf")
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._coming: asyncio.Task[bool] | None = None
        self._trouble: str | None = None
        self._worked_out: dict[EntityType, tuple[Accepted, datetime]] = {}

    def accepted(self, entity_type: EntityType, now: datetime) -> Accepted:
        """What is accepted at `now`, from memory: the current credentials first, then those not expired."""
        known = self._worked_out.get(entity_type)
        if known is not None and now < known[1]:
            return known[0]
        accepted = self._work_out(entity_type, now)
        # Until something expires, or the store is read again; while Jasper is being asked, that may be at any moment.
        ends = [each.accepted_until for each in self._retiring.get(entity_type, ()) if now < each.accepted_until]
        until = now if accepted.pending else min(ends, default=now + _FRESH)
        self._worked_out[entity_type] = accepted, until
        return accepted

    def accepted_since(self, entity_type: EntityType, moment: datetime) -> Accepted:
        """All that was accepted at any time from a moment on, for a callback that came then and is judged now."""
        return self._work_out(entity_type, moment)

    def _work_out(self, entity_type: EntityType, now: datetime) -> Accepted:
        registration = self._registrations.get(entity_type) or Registration(entity_type)
        retiring = [each for each in self._retiring.get(entity_type, ()) if now < each.accepted_until]
        return Accepted(
            secrets=_present([registration.signing_secret, *(each.signing_secret for each in retiring)]),
            header_sets=_distinct([self._headers, registration.headers, *(each.headers for each in retiring)]),
            pending=registration.is_pending(now),
        )

    def knows_secret(self, entity_type: EntityType) -> bool:
        """Whether there is a current secret, so that callbacks can be judged at all."""
        registration = self._registrations.get(entity_type)
        return registration is not None and registration.signing_secret is not None

    async def refresh(self) -> None:
        """Read the store. Raises DatabaseUnavailableError where it cannot be read; what was known last then holds.

        It also holds for what cannot be opened any more: another replica has sealed it anew with a key that this one is
        not given yet.
        """
        async with self._reading:  # else one that began earlier might end later, and bring back what was before
            self._coming = None  # who comes from now on may come for something newer
            begun = self._tried_at = time.monotonic()
            self._take(*await self._store.credentials())
            self._read_at = begun

    def _take(self, registrations: Iterable[Registration], retiring: Iterable[Retiring]) -> None:
        self._worked_out.clear()
        self._registrations = {one.entity_type: self._opened_before(one) for one in registrations}
        known = {each.id: each for several in self._retiring.values() for each in several}
        opened = [known.get(each.id, each) if each.locked else each for each in retiring]
        self._retiring = {
            entity_type: [each for each in opened if each.entity_type is entity_type] for entity_type in EntityType
        }

    def _opened_before(self, registration: Registration) -> Registration:
        """The registration with the secret and headers that were opened before, where it is locked and they are the same."""
        before = self._registrations.get(registration.entity_type)
        if not registration.locked or before is None or before.registered_at != registration.registered_at:
            return registration
        return replace(registration, signing_secret=before.signing_secret, headers=before.headers)

    async def look_again(self) -> bool:
        """Read the store because a proof failed: another replica may just have registered or rotated.

        Whether what is known is certain then: it was read now, or a moment ago where that takes longer than can be waited.
        Calls at the same time share the next reading; one that has begun may not have seen what they came for. Readings
        keep their distance, so that callbacks which prove nothing cost Postgres little, however many come. Waits a quarter
        of a second at most, and never raises for a Postgres that is away.
        """
        if self._coming is None:
            self._coming = asyncio.create_task(self._refresh_at_a_distance(), name="keyring refresh")
        coming = self._coming
        await asyncio.wait({coming}, timeout=_PATIENCE)
        if coming.done():
            return coming.exception() is None and coming.result()
        return time.monotonic() - self._read_at < _TRUSTED

    async def _refresh_at_a_distance(self) -> bool:
        await asyncio.sleep(self._tried_at + self._distance - time.monotonic())
        return await self.try_refresh()

    async def keep_fresh(self, interval: float = REFRESH_INTERVAL) -> None:
        """Read the store every `interval` seconds, for ever; run it as a task and cancel it."""
        while True:
            await self.try_refresh()
            await asyncio.sleep(interval)

    async def try_refresh(self) -> bool:
        """Read the store; where it cannot be read that is logged, and what was known last holds. Whether it was read."""
        trouble, was_read = None, True
        try:
            await self.refresh()
        except ReceiverError as exc:
            trouble, was_read = str(exc), False
        locked = [name.value for name, registration in self._registrations.items() if registration.locked]
        if trouble is None and locked:
            trouble = f"no key of ENCRYPTION_KEYS opens what is stored for {', '.join(locked)}"
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                _log.warning("signing secrets not refreshed, those known before still count", extra={"reason": trouble})
            else:
                _log.info("signing secrets refreshed again")
        return was_read


def _present(secrets: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(secret for secret in secrets if secret is not None))


def _distinct(sets: Iterable[Mapping[str, str] | None]) -> tuple[Mapping[str, str], ...]:
    distinct: list[Mapping[str, str]] = []
    for headers in sets:
        if headers is not None and not any(same_headers(headers, other) for other in distinct):
            distinct.append(headers)
    return tuple(distinct)
