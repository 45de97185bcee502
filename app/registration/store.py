"""The tables of registrations and of credentials on their way out. Secrets and headers are sealed on the way in.

Says nothing to Jasper and decides nothing, but for one rule that must hold inside a transaction: what is replaced is
retired in the same commit that stores its successor. No repr shows a secret or a header's value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, Select, delete, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import reading, writing
from app.db.tables import registrations, retiring_credentials
from app.domain.values import EntityType
from app.errors import SealingError
from app.ids import new_id
from app.jasper.client import WebhookProperties, same_headers
from app.registration.retry_window import RetryPlan
from app.sealing import Sealer

PENDING_AT_MOST = timedelta(hours=1)
"""How long an unfinished change at Jasper counts as under way. After that a callback whose secret is not proven is
refused like any other, and kept apart where it may be genuine, instead of being put off for ever."""


class State(StrEnum):
    """What is known of a registration."""

    PENDING = "pending"
    REGISTERED = "registered"
    DISABLED = "disabled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Registration:
    """What is stored of one entity type's webhook; the defaults are those of one that was never registered.

    `headers` and `plan` are what was registered with Jasper. `locked` says that a secret or headers are stored, but
    cannot be opened with today's ENCRYPTION_KEYS. `proof` is the place at which the secret was last proven.
    """

    entity_type: EntityType
    state: State = State.PENDING
    pending_since: datetime | None = None
    webhook_id: str | None = None
    webhook_name: str | None = None
    callback_url: str | None = None
    plan: RetryPlan | None = None
    signing_secret: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    locked: bool = False
    registered_at: datetime | None = None
    checked_at: datetime | None = None
    last_error: str | None = None
    last_error_at: datetime | None = None
    proof: str | None = None
    last_callback_at: datetime | None = None

    def is_pending(self, now: datetime) -> bool:
        """Whether Jasper is being asked for a new webhook or secret, or was until a crash shortly before `now`."""
        return self.pending_since is not None and now - self.pending_since < PENDING_AT_MOST


@dataclass(frozen=True, slots=True)
class Retiring:
    """A secret or a set of headers that was replaced, and is accepted while Jasper may still retry with it."""

    entity_type: EntityType
    accepted_until: datetime
    signing_secret: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)


class RegistrationStore:
    """SQL for registrations. Every method raises DatabaseUnavailableError where Postgres cannot be reached."""

    def __init__(self, engine: AsyncEngine, sealer: Sealer) -> None:
        self._engine = engine
        self._sealer = sealer

    async def load(self, entity_type: EntityType) -> Registration:
        """One registration; an empty one where nothing was ever stored."""
        async with reading(self._engine) as connection:
            return await self._load(connection, entity_type)

    async def load_all(self) -> list[Registration]:
        """All registrations, by entity type."""
        async with reading(self._engine) as connection:
            return await self._load_all(connection)

    async def credentials(self) -> tuple[list[Registration], list[Retiring]]:
        """All registrations and all retiring credentials, from one snapshot; what cannot be opened is left out."""
        async with reading(self._engine) as connection:
            rows = await connection.execute(select(retiring_credentials).order_by(retiring_credentials.c.id.desc()))
            retiring = [self._retiring(row) for row in rows.mappings()]
            return await self._load_all(connection), [credential for credential in retiring if credential is not None]

    async def mark_pending(self, entity_type: EntityType, since: datetime | None) -> None:
        """Note that Jasper is about to be asked for a change that may bring a new secret; None takes the note back."""
        await self._note(entity_type, {"pending_since": since})

    async def commit(
        self,
        entity_type: EntityType,
        *,
        webhook_id: str,
        signing_secret: str | None,
        registered: WebhookProperties | None,
        now: datetime,
        retire_until: datetime,
    ) -> Registration:
        """Store what Jasper answered, and retire until `retire_until` what it replaces; returns what is stored then.

        `signing_secret` is None where the answer carried none: the stored one stays. `registered` is None where the
        answer does not prove that the webhook is as it shall be. Nothing is pending afterwards.
        """
        async with writing(self._engine) as connection:
            await connection.execute(_upsert(entity_type, {"pending_since": None}))
            row = (await connection.execute(_one(entity_type).with_for_update())).mappings().one()
            before = self._registration(row)
            values: dict[str, Any] = {"webhook_id": webhook_id}
            if signing_secret is not None and signing_secret != before.signing_secret:
                await _retire(connection, entity_type, "signing_secret", row["signing_secret"], retire_until)
                values |= {"signing_secret": self._sealer.seal(signing_secret.encode()), "registered_at": now}
            if registered is not None:
                values |= _columns(registered)
                if before.headers is None or not same_headers(before.headers, registered.headers):
                    await _retire(connection, entity_type, "headers", row["headers"], retire_until)
                    values["headers"] = self._sealer.seal(json.dumps(dict(registered.headers)).encode())
            await connection.execute(_upsert(entity_type, values))
            await connection.execute(
                delete(retiring_credentials).where(
                    retiring_credentials.c.entity_type == entity_type, retiring_credentials.c.accepted_until < now
                )
            )
            return await self._load(connection, entity_type)

    async def settle(self, entity_type: EntityType, *, state: State, problem: str | None, now: datetime) -> None:
        """Note that Jasper's webhook was seen and brought in order, but for `problem` where there is one."""
        noted = {"last_error": problem, "last_error_at": now if problem else None}
        await self._note(entity_type, {"state": state, "pending_since": None, "checked_at": now} | noted)

    async def fail(self, entity_type: EntityType, *, problem: str, now: datetime) -> None:
        """Note why the registration could not be brought in order. What was pending stays so."""
        await self._note(entity_type, {"state": State.FAILED, "last_error": problem, "last_error_at": now})

    async def _note(self, entity_type: EntityType, values: Mapping[str, Any]) -> None:
        async with writing(self._engine) as connection:
            await connection.execute(_upsert(entity_type, values))

    async def _load(self, connection: AsyncConnection, entity_type: EntityType) -> Registration:
        row = (await connection.execute(_one(entity_type))).mappings().one_or_none()
        return Registration(entity_type) if row is None else self._registration(row)

    async def _load_all(self, connection: AsyncConnection) -> list[Registration]:
        rows = await connection.execute(select(registrations).order_by(registrations.c.entity_type))
        return [self._registration(row) for row in rows.mappings()]

    def _registration(self, row: RowMapping) -> Registration:
        registration = Registration(
            entity_type=EntityType(row["entity_type"]),
            state=State(row["state"]),
            pending_since=row["pending_since"],
            webhook_id=row["webhook_id"],
            webhook_name=row["webhook_name"],
            callback_url=row["callback_url"],
            plan=None
            if row["retry_policy"] is None
            else RetryPlan(row["retry_policy"], row["minimum_retry_interval"], row["retry_limit"]),
            registered_at=row["registered_at"],
            checked_at=row["checked_at"],
            last_error=row["last_error"],
            last_error_at=row["last_error_at"],
            proof=row["proof"],
            last_callback_at=row["last_callback_at"],
        )
        try:
            return replace(
                registration,
                signing_secret=self._open_secret(row["signing_secret"]),
                headers=self._open_headers(row["headers"]),
            )
        except SealingError:
            return replace(registration, locked=True)

    def _retiring(self, row: RowMapping) -> Retiring | None:
        credential = Retiring(EntityType(row["entity_type"]), row["accepted_until"])
        try:
            if row["kind"] == "headers":
                return replace(credential, headers=self._open_headers(row["sealed"]))
            return replace(credential, signing_secret=self._open_secret(row["sealed"]))
        except SealingError:
            return None

    def _open_secret(self, sealed: bytes | None) -> str | None:
        return None if sealed is None else self._sealer.open(sealed).decode()

    def _open_headers(self, sealed: bytes | None) -> Mapping[str, str] | None:
        if sealed is None:
            return None
        headers: dict[str, str] = json.loads(self._sealer.open(sealed))
        return headers


def _one(entity_type: EntityType) -> Select[Any]:
    return select(registrations).where(registrations.c.entity_type == entity_type)


def _upsert(entity_type: EntityType, values: Mapping[str, Any]) -> Insert:
    fresh = {"entity_type": entity_type, "state": State.PENDING} | dict(values)
    return insert(registrations).values(fresh).on_conflict_do_update(index_elements=["entity_type"], set_=dict(values))


def _columns(properties: WebhookProperties) -> dict[str, Any]:
    return {
        "webhook_name": properties.name,
        "callback_url": properties.callback_url,
        "retry_policy": properties.retry_policy,
        "minimum_retry_interval": properties.minimum_retry_interval,
        "retry_limit": properties.retry_limit,
    }


async def _retire(
    connection: AsyncConnection, entity_type: EntityType, kind: str, sealed: bytes | None, until: datetime
) -> None:
    """Move sealed credentials as they are, so that even those that cannot be opened today are not thrown away."""
    if sealed is not None:
        values = {"id": new_id(), "entity_type": entity_type, "kind": kind, "sealed": sealed, "accepted_until": until}
        await connection.execute(insert(retiring_credentials).values(values))
