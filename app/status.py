"""What a person on call wants to see first: is it registered, does anything arrive, what needs a hand. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import reading
from app.db.migrate import current_revision
from app.db.tables import deliveries, unproven
from app.domain.values import DeliveryStatus, EntityType
from app.feed import queries
from app.reconciliation.attendance import Absence, absences
from app.reconciliation.store import Reconciliation, latest
from app.registration.retry_window import retry_span
from app.registration.store import Registration, RegistrationStore


@dataclass(frozen=True, slots=True)
class Status:
    """`feed_position` is the newest sequence; `quarantined` and `unproven` count callbacks that feed nothing yet.

    `reconciliations` are the newest of each entity type; `absences` are what they should make good for.
    """

    schema: str | None
    feed_position: int
    quarantined: int
    unproven: int
    registrations: tuple[Registration, ...]
    reconciliations: dict[EntityType, Reconciliation]
    absences: Mapping[EntityType, Absence]


async def look(engine: AsyncEngine, store: RegistrationStore) -> Status:
    """Everything at once. Raises DatabaseUnavailableError."""
    waiting = select(func.count()).where(deliveries.c.status == DeliveryStatus.QUARANTINED)
    async with reading(engine) as connection:
        return Status(
            schema=await current_revision(connection),
            feed_position=await queries.head(connection),
            quarantined=await connection.scalar(waiting) or 0,
            unproven=await connection.scalar(select(func.count()).select_from(unproven)) or 0,
            registrations=tuple(await store.load_all()),
            reconciliations=await latest(engine),
            absences=await absences(engine),
        )


def describe(registration: Registration, now: datetime) -> dict[str, object]:
    """A registration as a record for people: never a secret, and in words how long Jasper keeps trying."""
    plan = registration.plan
    return {
        "entity_type": str(registration.entity_type),
        "state": "pending" if registration.is_pending(now) else str(registration.state),
        "webhook_id": registration.webhook_id,
        "callback_url": registration.callback_url,
        "secret": "unreadable" if registration.locked else "known" if registration.signing_secret else "unknown",
        "proof": registration.proof,
        "last_callback_at": registration.last_callback_at and registration.last_callback_at.isoformat(),
        "retried_for_seconds": plan and int(retry_span(plan).total_seconds()),
        "last_error": registration.last_error,
    }
