"""The tables of registrations and of credentials on their way out. Secrets and headers are sealed on the way in.

Says nothing to Jasper and decides nothing, but for one rule that must hold inside a transaction: what is replaced is
retired in the same commit that stores its successor. No repr shows a secret or a header's value.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import RowMapping, Select, delete, exists, select, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import reading, writing
from app.db.tables import registrations, retiring_credentials, unproven
from app.domain.values import EntityType
from app.errors import SealingError
from app.ids import new_id
from app.jasper.client import WebhookProperties, same_headers
from app.registration.retry_window import RetryPlan
from app.sealing import Sealer

PENDING_AT_MOST = timedelta(hours=1)
"""How long an unfinished change at Jasper counts as under way. After that a callback whose secret is not proven is
refused like any other, and kept apart where it may be genuine, instead of being put off for ever."""

LONGEST_INTERVAL = timedelta(hours=1)
"""How far apart two looks at a webhook may become that somebody undoes each time; a longer setting stays as it is."""


class State(StrEnum):
    """What is known of a registration."""

    PENDING = "pending"
    REGISTERED = "registered"
    DISABLED = "disabled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Superseded:
    """A webhook that another one replaced, and that may still be at Jasper: as it was registered."""

    webhook_id: str
    name: str
    callback_url: str


@dataclass(frozen=True, slots=True)
class Registration:
    """What is stored of one entity type's webhook; the defaults are those of one that was never registered.

    `headers`, `plan` and `include_entity_data` are what was registered with Jasper. `locked` says that a secret or headers
    are stored, but cannot be opened with today's ENCRYPTION_KEYS. `rotating_since` stands while a rotation was asked for and
    is not done. `mended` is what was last done at Jasper, and `mends_in_a_row` how many looks up to now each had to do
    something. `proof` is the place at which the secret was last proven. `api_url` is the Jasper that all this is of, None
    where that was not noted.
    """

    entity_type: EntityType
    state: State = State.PENDING
    pending_since: datetime | None = None
    webhook_id: str | None = None
    api_url: str | None = None
    superseded: tuple[Superseded, ...] = ()
    webhook_name: str | None = None
    callback_url: str | None = None
    plan: RetryPlan | None = None
    include_entity_data: bool | None = None
    signing_secret: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    locked: bool = False
    registered_at: datetime | None = None
    rotating_since: datetime | None = None
    checked_at: datetime | None = None
    mended: tuple[str, ...] = ()
    mended_at: datetime | None = None
    mends_in_a_row: int = 0
    last_error: str | None = None
    last_error_at: datetime | None = None
    last_error_status: int | None = None
    proof: str | None = None
    last_callback_at: datetime | None = None

    def is_pending(self, now: datetime) -> bool:
        """Whether Jasper is being asked for a new webhook or secret, or was until a crash shortly before `now`."""
        return self.pending_since is not None and now - self.pending_since < PENDING_AT_MOST

    @property
    def is_token_refused(self) -> bool:
        """Whether Jasper refuses the token, as it does at once when that was rotated."""
        return self.last_error_status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

    @property
    def recorded(self) -> WebhookProperties | None:
        """What was last registered with Jasper; None where that is not known wholly."""
        name, url, plan = self.webhook_name, self.callback_url, self.plan
        if name is None or url is None or plan is None or self.headers is None or self.include_entity_data is None:
            return None
        return WebhookProperties(
            name=name,
            callback_url=url,
            entity_type=self.entity_type,
            include_entity_data=self.include_entity_data,
            headers=self.headers,
            retry_policy=plan.policy,
            minimum_retry_interval=plan.minimum_interval,
            retry_limit=plan.limit,
        )

    def next_look_at(self, interval: timedelta) -> datetime | None:
        """When the webhook is to be looked at again; None where only at the next start, as with an interval of 0.

        The interval doubles with each look in a row that has to mend something, up to LONGEST_INTERVAL: whoever undoes it
        each time is not to be outdone.
        """
        if self.checked_at is None or not interval:
            return None
        grown = interval * (1 << min(max(0, self.mends_in_a_row - 1), _MOST_DOUBLINGS))
        return self.checked_at + min(grown, max(interval, LONGEST_INTERVAL))

    def is_due(self, now: datetime, interval: timedelta) -> bool:
        """Whether the webhook is to be looked at now: its time has come, or something was left undone."""
        is_under_way = self.pending_since is not None or self.rotating_since is not None
        if self.state is not State.REGISTERED or is_under_way or self.checked_at is None:
            return True
        next_look = self.next_look_at(interval)
        return next_look is not None and now >= next_look


_MOST_DOUBLINGS = 12


@dataclass(frozen=True, slots=True)
class Retiring:
    """A secret or a set of headers that was replaced, and is accepted while Jasper may still retry with it.

    Also a set of headers that Jasper was asked to send, until that is committed. `locked` says that it cannot be opened with
    today's ENCRYPTION_KEYS, so that it is neither.
    """

    id: UUID
    entity_type: EntityType
    kind: Literal["signing_secret", "headers"]
    accepted_until: datetime
    signing_secret: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    locked: bool = False


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
        """All registrations and all retiring credentials, from one snapshot."""
        async with reading(self._engine) as connection:
            rows = await connection.execute(select(retiring_credentials).order_by(retiring_credentials.c.id.desc()))
            retiring = [self._retiring(row) for row in rows.mappings()]
            return await self._load_all(connection), retiring

    async def mark_pending(self, entity_type: EntityType, since: datetime | None) -> None:
        """Note that Jasper is about to be asked for a change that may bring a new secret; None takes the note back."""
        await self._note(entity_type, {"pending_since": since})

    async def announce(self, entity_type: EntityType, headers: Mapping[str, str], until: datetime) -> None:
        """Accept headers until `until` that Jasper is about to be asked to send.

        It may send them before its answer is heard and committed, to a replica that has other settings.
        """
        async with writing(self._engine) as connection:
            known = select(retiring_credentials).where(
                retiring_credentials.c.entity_type == entity_type, retiring_credentials.c.kind == "headers"
            )
            for row in (await connection.execute(known)).mappings():
                accepted = self._retiring(row)
                if accepted.headers is not None and same_headers(accepted.headers, headers):
                    later = {"accepted_until": max(accepted.accepted_until, until)}
                    is_it = retiring_credentials.c.id == accepted.id
                    await connection.execute(update(retiring_credentials).where(is_it).values(later))
                    return
            await _retire(connection, entity_type, "headers", self._seal_headers(headers), until)

    async def mark_rotating(self, entity_type: EntityType, since: datetime) -> None:
        """Note that a rotation is asked for, so that it is done even where this process does not live to do it."""
        await self._note(entity_type, {"rotating_since": since})

    async def commit(
        self,
        entity_type: EntityType,
        *,
        webhook_id: str,
        signing_secret: str | None,
        registered: WebhookProperties | None,
        now: datetime,
        retire_until: datetime,
        api_url: str | None = None,
        superseded: Sequence[Superseded] = (),
    ) -> Registration:
        """Store what Jasper answered, and retire until `retire_until` what it replaces; returns what is stored then.

        `signing_secret` is None where the answer carried none: the stored one stays. `registered` is None where the
        answer does not prove that the webhook is as it shall be. Nothing is pending afterwards, and with another webhook
        a rotation is done. `superseded` are all that are to be deleted at Jasper, should this process not live to do it.
        """
        async with writing(self._engine) as connection:
            await connection.execute(_upsert(entity_type, {"pending_since": None}))
            row = (await connection.execute(_one(entity_type).with_for_update())).mappings().one()
            before = self._registration(row)
            values: dict[str, Any] = {
                "webhook_id": webhook_id,
                "api_url": api_url,
                "superseded": [asdict(one) for one in superseded],
            }
            if webhook_id != before.webhook_id:
                # What it replaces may still be there, should this be the last that the process does: it is to be looked at.
                values |= {"rotating_since": None, "checked_at": None}
            if signing_secret is not None and signing_secret != before.signing_secret:
                await _retire(connection, entity_type, "signing_secret", row["signing_secret"], retire_until)
                values |= {"signing_secret": self._sealer.seal(signing_secret.encode()), "registered_at": now}
            if registered is not None:
                values |= _columns(registered)
                if before.headers is None or not same_headers(before.headers, registered.headers):
                    await _retire(connection, entity_type, "headers", row["headers"], retire_until)
                    values["headers"] = self._seal_headers(registered.headers)
            await connection.execute(_upsert(entity_type, values))
            await _forget_retired(connection, entity_type, now)
            return await self._load(connection, entity_type)

    async def settle(
        self,
        entity_type: EntityType,
        *,
        state: State,
        problem: str | None,
        done: Sequence[str],
        mends_in_a_row: int,
        superseded: Sequence[Superseded],
        now: datetime,
    ) -> None:
        """Note that Jasper's webhook was seen and brought in order, but for `problem` where there is one.

        What is not accepted any more is forgotten with that; `superseded` are those that could not be deleted.
        """
        noted: dict[str, Any] = {
            "state": state,
            "pending_since": None,
            "checked_at": now,
            "mends_in_a_row": mends_in_a_row,
            "superseded": [asdict(one) for one in superseded],
            "last_error": problem,
            "last_error_at": now if problem else None,
            "last_error_status": None,
        }
        noted |= {"mended": list(done), "mended_at": now} if done else {}
        async with writing(self._engine) as connection:
            await connection.execute(_upsert(entity_type, noted))
            await _forget_retired(connection, entity_type, now)

    async def fail(
        self, entity_type: EntityType, *, problem: str, status: int | None, now: datetime, rotation_given_up: bool
    ) -> None:
        """Note why the registration could not be brought in order. What was pending stays so.

        `status` is Jasper's, where it answered.
        """
        noted = {"state": State.FAILED, "last_error": problem, "last_error_at": now, "last_error_status": status}
        await self._note(entity_type, noted | ({"rotating_since": None} if rotation_given_up else {}))

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
            api_url=row["api_url"],
            superseded=tuple(Superseded(**one) for one in row["superseded"]),
            webhook_name=row["webhook_name"],
            callback_url=row["callback_url"],
            plan=None
            if row["retry_policy"] is None
            else RetryPlan(row["retry_policy"], row["minimum_retry_interval"], row["retry_limit"]),
            include_entity_data=row["include_entity_data"],
            registered_at=row["registered_at"],
            rotating_since=row["rotating_since"],
            checked_at=row["checked_at"],
            mended=tuple(row["mended"] or ()),
            mended_at=row["mended_at"],
            mends_in_a_row=row["mends_in_a_row"],
            last_error=row["last_error"],
            last_error_at=row["last_error_at"],
            last_error_status=row["last_error_status"],
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

    def _retiring(self, row: RowMapping) -> Retiring:
        credential = Retiring(row["id"], EntityType(row["entity_type"]), row["kind"], row["accepted_until"])
        try:
            if row["kind"] == "headers":
                return replace(credential, headers=self._open_headers(row["sealed"]))
            return replace(credential, signing_secret=self._open_secret(row["sealed"]))
        except SealingError:
            return replace(credential, locked=True)

    def _open_secret(self, sealed: bytes | None) -> str | None:
        return None if sealed is None else self._sealer.open(sealed).decode()

    def _seal_headers(self, headers: Mapping[str, str]) -> bytes:
        return self._sealer.seal(json.dumps(dict(headers)).encode())

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
        "include_entity_data": properties.include_entity_data,
    }


async def _retire(
    connection: AsyncConnection, entity_type: EntityType, kind: str, sealed: bytes | None, until: datetime
) -> None:
    """Move sealed credentials as they are, so that even those that cannot be opened today are not thrown away."""
    if sealed is not None:
        values = {"id": new_id(), "entity_type": entity_type, "kind": kind, "sealed": sealed, "accepted_until": until}
        await connection.execute(insert(retiring_credentials).values(values))


async def _forget_retired(connection: AsyncConnection, entity_type: EntityType, now: datetime) -> None:
    """Remove credentials with which no retry can come any more, and which nothing that is kept apart may be proven with."""
    is_over = retiring_credentials.c.accepted_until < now
    came_before = exists().where(
        unproven.c.entity_type == entity_type, unproven.c.received_at <= retiring_credentials.c.accepted_until
    )
    await connection.execute(
        delete(retiring_credentials).where(retiring_credentials.c.entity_type == entity_type, is_over, ~came_before)
    )
