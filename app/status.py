"""What a person on call wants to see at three in the morning: what is wrong, what to do about it, and how things stand.

`look` reads everything at once and changes nothing, `findings` judges it and is pure. Each finding has a code under which
the runbook tells more (`docs/operations/runbook.md`). Nothing here ever shows a secret or a header's value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import spoken
from app.db.engine import reading
from app.db.migrate import current_revision
from app.db.sealed import SealedCounts
from app.db.tables import unproven
from app.deliveries.queries import COUNTED
from app.deliveries.queries import quarantined as count_quarantined
from app.domain.values import EntityType
from app.feed import consumers, queries
from app.feed.alarm import Danger, danger
from app.feed.consumer_schemas import Consumer
from app.reconciliation.attendance import Absence, absences
from app.reconciliation.store import Reconciliation, latest
from app.reconciliation.store import Status as ReconciliationStatus
from app.registration.register import wanted_webhook
from app.registration.retry_window import retry_span
from app.registration.store import Registration, RegistrationStore, Retiring, State
from app.sealing import Sealer
from app.settings import Settings

UNFINISHED_AFTER = timedelta(minutes=10)
"""How long a change at Jasper may be under way before somebody should look."""

UNWATCHED_AFTER = timedelta(minutes=15)
"""How much later than due a look at a webhook may be."""

QUIET_AFTER = timedelta(days=1)
"""After how long without a callback that is worth a note."""

BEHIND_AFTER = timedelta(hours=1)
"""How old the oldest event may be that a consumer has not acknowledged."""

MENDED_LATELY = timedelta(days=1)

_ANYWHERE = "auto"


class Level(StrEnum):
    """How grave: a problem needs a hand, a note is good to know."""

    PROBLEM = "problem"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know: what is so, and what to do next. `code` is its heading in the runbook."""

    level: Level
    code: str
    what: str
    todo: str


@dataclass(frozen=True, slots=True)
class Status:
    """How things stand.

    `feed_position` is the newest sequence; `quarantined` and `unproven` count callbacks that feed nothing yet; `sealed`
    counts sealed values by encryption key, None where they are not counted yet; `reconciliations` are the newest of each
    entity type, `absences` what they should make good for.
    """

    postgres: str
    schema: str | None
    feed_position: int
    quarantined: int
    unproven: int
    sealed: SealedCounts | None
    registrations: tuple[Registration, ...]
    retiring: tuple[Retiring, ...]
    consumers: tuple[Consumer, ...]
    reconciliations: Mapping[EntityType, Reconciliation]
    absences: Mapping[EntityType, Absence]

    @property
    def last_callback_at(self) -> datetime | None:
        """When the last authentic callback came, of whatever entity type."""
        return max((one.last_callback_at for one in self.registrations if one.last_callback_at), default=None)


async def look(
    engine: AsyncEngine, sealer: Sealer, sealed: SealedCounts | None, *, kept_for: timedelta | None
) -> Status:
    """Everything at once, on a database at head, where events are kept for so long. Raises DatabaseUnavailableError.

    Sealed values are counted by the caller, as that reads each of them (`app.db.sealed`).
    """
    async with reading(engine) as connection:
        postgres = await connection.scalar(text("SHOW server_version"))
        schema = await current_revision(connection)
        feed_position = await queries.head(connection)
        quarantined = await count_quarantined(connection)
        kept_apart = await connection.scalar(select(func.count()).select_from(unproven)) or 0
    registrations, retiring = await RegistrationStore(engine, sealer).credentials()
    return Status(
        postgres=str(postgres),
        schema=schema,
        feed_position=feed_position,
        quarantined=quarantined,
        unproven=kept_apart,
        sealed=sealed,
        registrations=tuple(registrations),
        retiring=tuple(retiring),
        consumers=tuple(await consumers.listed(engine, kept_for=kept_for)),
        reconciliations=await latest(engine),
        absences=await absences(engine),
    )


def findings(status: Status, settings: Settings, now: datetime) -> list[Finding]:
    """What is wrong and what is good to know, problems first."""
    found = [
        *_about_jasper(status, settings, now),
        *_about_deliveries(status),
        *_about_reconciliations(status),
        *(_about_keys(status.sealed) if status.sealed else ()),
        *_about_consumers(status, settings.event_retention, now),
    ]
    return sorted(found, key=lambda finding: finding.level is not Level.PROBLEM)


def _problem(code: str, what: str, todo: str) -> Finding:
    return Finding(Level.PROBLEM, code, what, todo)


def _note(code: str, what: str, todo: str) -> Finding:
    return Finding(Level.NOTE, code, what, todo)


def _about_jasper(status: Status, settings: Settings, now: datetime) -> Iterator[Finding]:
    known = {one.entity_type: one for one in status.registrations}
    followed = [EntityType(name) for name in settings.jasper_webhook_entity_types]
    if not settings.names_jasper:
        yield _note(
            "no-jasper",
            "nothing is registered with Jasper by this service, and nothing is watched there",
            "set JASPER_API_URL, JASPER_API_TOKEN and PUBLIC_URL, then restart; or leave it so on purpose",
        )
    for entity_type in followed:
        registration = known.get(entity_type)
        if registration is not None:
            yield from _about_registration(registration, settings, now)
        elif settings.names_jasper:
            yield _problem(
                "not-registered",
                f"{entity_type}: no webhook was registered yet, so no callbacks come",
                f"is a receiver running? see its log; or run `jasper-receiver register {entity_type}` and see what it says",
            )
    for entity_type in known.keys() - set(followed) if settings.names_jasper else ():
        yield _note(
            "not-followed",
            f"{entity_type}: is registered, but not among JASPER_WEBHOOK_ENTITY_TYPES, so nobody watches its webhook",
            f"add it there, or delete webhook {known[entity_type].webhook_id} in Jasper",
        )


def _about_registration(registration: Registration, settings: Settings, now: datetime) -> Iterator[Finding]:
    name = registration.entity_type
    if registration.locked:
        yield _problem(
            "secret-locked",
            f"{name}: none of ENCRYPTION_KEYS opens the stored signing secret; callbacks are put off with 503",
            f"put the lost key back, behind the first; if it is lost for good: `jasper-receiver rotate-secret {name}`",
        )
    elif registration.signing_secret is None:
        yield _problem(
            "secret-unknown",
            f"{name}: no signing secret is known; callbacks are put off with 503",
            f"`jasper-receiver register {name}`, and see what it says",
        )
    if settings.names_jasper:
        yield from _about_webhook(registration, settings, now)
    yield from _about_callbacks(registration, settings, now)


def _about_webhook(registration: Registration, settings: Settings, now: datetime) -> Iterator[Finding]:
    name, error = registration.entity_type, registration.last_error
    again = f"it is tried again by itself, and at once by `jasper-receiver register {name}`"
    since = f" (for {spoken(now - registration.last_error_at)})" if registration.last_error_at else ""
    if registration.is_token_refused:
        yield _problem(
            "token-refused",
            f"{name}: {error}{since}; callbacks are received all the same, but nothing at Jasper can be seen or mended",
            f"make a new token in Jasper, set JASPER_API_TOKEN, restart; {again}",
        )
    elif registration.state is State.DISABLED:
        yield _problem("webhook-disabled", f"{name}: {error}{since}", f"enable it in Jasper; {again}")
    elif registration.state is State.FAILED:
        yield _problem("registration-failed", f"{name}: {error}{since}", f"what that says; {again}")
    elif error is not None:
        yield _problem("webhook-trouble", f"{name}: {error}{since}", f"what that says; {again}")
    begun = registration.pending_since or registration.rotating_since
    if begun is not None and now - begun > UNFINISHED_AFTER:
        yield _problem(
            "unfinished",
            f"{name}: a change of the webhook was begun {spoken(now - begun)} ago and is not finished; until it is, callbacks "
            "with an unknown secret are put off with 503",
            "a receiver that runs finishes it within seconds: is one running? " + again,
        )
    next_look = registration.next_look_at(settings.registration_check)
    if registration.state is State.REGISTERED and next_look is not None and now - next_look > UNWATCHED_AFTER:
        yield _problem(
            "not-watched",
            f"{name}: nobody looks at the webhook any more; it was due {spoken(now - next_look)} ago",
            "is a receiver with the role `callbacks` and the settings of Jasper running? see its log",
        )
    if registration.mended and registration.mended_at and now - registration.mended_at < MENDED_LATELY:
        yield _note(
            "mended",
            f"{name}: {spoken(now - registration.mended_at)} ago the webhook was brought in order: "
            + "; ".join(registration.mended),
            "nothing, if you know why; else ask who has changed it in Jasper",
        )
    recorded, wanted = registration.recorded, wanted_webhook(settings, name)
    if recorded is not None and recorded != wanted:
        names = [one for one in wanted.as_json() if getattr(recorded, one) != getattr(wanted, one)]
        yield _note(
            "settings-differ",
            f"{name}: registered with other settings than these ({', '.join(names)})",
            f"if these are the ones that count: `jasper-receiver register {name}`, or restart a receiver that has them",
        )


def _about_callbacks(registration: Registration, settings: Settings, now: datetime) -> Iterator[Finding]:
    name, last = registration.entity_type, registration.last_callback_at
    if last is None and registration.signing_secret is not None:
        yield _note(
            "no-callback-yet",
            f"{name}: no authentic callback has come yet",
            f"change a {name} in Jasper; if nothing comes: `jasper-receiver doctor` tries the way in, and "
            "GET /v1/rejections tells what was refused",
        )
    elif last is not None and now - last > QUIET_AFTER:
        yield _note(
            "quiet",
            f"{name}: no callback for {spoken(now - last)}",
            "nothing, if nothing was changed in Jasper; else `jasper-receiver doctor`",
        )
    is_pinned = settings.jasper_signing_secret_location != _ANYWHERE
    if not is_pinned and registration.proof is not None:
        yield _note(
            "proof-not-pinned",
            f"{name}: Jasper's secret was seen at {registration.proof}, and is still accepted anywhere",
            f"JASPER_SIGNING_SECRET_LOCATION={registration.proof} accepts it there only",
        )


def _about_deliveries(status: Status) -> Iterator[Finding]:
    if status.quarantined:
        yield _problem(
            "quarantined",
            f"{_counted(status.quarantined)} authentic callbacks could not be read with confidence; they are kept, but feed "
            "nothing",
            "see `reason` in GET /v1/deliveries?status=quarantined, mend JASPER_PAYLOAD_MAPPING, restart, then "
            "`jasper-receiver reprocess --status quarantined`",
        )
    if status.unproven:
        yield _problem(
            "unproven",
            f"{status.unproven} callbacks had the right headers but no secret that could be proven; they are kept apart",
            "see GET /v1/unproven for where the secret may be, mend JASPER_SIGNING_SECRET_LOCATION, restart, then "
            "POST /v1/unproven/release",
        )


def _counted(count: int) -> str:
    return f"{COUNTED} or more" if count >= COUNTED else str(count)


def _about_reconciliations(status: Status) -> Iterator[Finding]:
    for entity_type, absence in status.absences.items():
        yield _problem(
            "callbacks-missed",
            absence.in_words(entity_type),
            f"`jasper-receiver reconcile {entity_type}`, or POST /v1/reconciliations",
        )
    for entity_type, last in status.reconciliations.items():
        if last.status is ReconciliationStatus.FAILED:
            yield _problem(
                "reconciliation-failed",
                f"{entity_type}: the last reconciliation failed: {last.error}",
                f"what that says; then `jasper-receiver reconcile {entity_type}`",
            )
        elif last.status is ReconciliationStatus.NEEDS_CONFIRMATION:
            yield _problem(
                "reconciliation-waits",
                f"{entity_type}: the last reconciliation stopped: {last.error}",
                f"if Jasper is right: `jasper-receiver reconcile {entity_type} --force`",
            )


def _about_keys(counts: SealedCounts) -> Iterator[Finding]:
    if counts.lost:
        yield _problem(
            "key-lost",
            f"{counts.lost} sealed values cannot be opened with any of ENCRYPTION_KEYS",
            "put the lost key back, behind the first",
        )
    if counts.older:
        yield _note(
            "key-older",
            f"{counts.older} sealed values still need an older key of ENCRYPTION_KEYS",
            "keep that key; receivers seal them anew with the first one when they start, and every hour",
        )


def _about_consumers(status: Status, kept_for: timedelta | None, now: datetime) -> Iterator[Finding]:
    for consumer in status.consumers:
        behind = timedelta(seconds=consumer.lag_seconds)
        match danger(consumer, kept_for, now):
            case Danger.OVERTAKEN:
                yield _problem(
                    "consumer-overtaken",
                    f"consumer {consumer.name}: events that it has not read have been removed",
                    "let it read all entities anew, then move it: PUT /v1/consumers/{name}",
                )
            case Danger.EXPIRING:
                yield _problem(
                    "consumer-expiring",
                    f"consumer {consumer.name}: events that it has not read will be removed from {consumer.expires_at} on",
                    "start it, or raise EVENT_RETENTION_DAYS",
                )
            case None if behind > BEHIND_AFTER:
                yield _note(
                    "consumer-behind",
                    f"consumer {consumer.name}: {consumer.lag} events behind, the oldest for {spoken(behind)}",
                    "is it running? if it stumbles over one event: POST /v1/consumers/{name}/park sets that aside",
                )


def record(status: Status, settings: Settings, found: list[Finding], now: datetime) -> dict[str, object]:
    """Everything as one record, for programs: findings by level, then how things stand."""
    return {
        "ok": not any(finding.level is Level.PROBLEM for finding in found),
        **{
            f"{level}s": [
                {"code": finding.code, "what": finding.what, "do": finding.todo}
                for finding in found
                if finding.level is level
            ]
            for level in Level
        },
        **overview(status, settings),
        "registrations": [describe(one, status.retiring, now) for one in status.registrations],
        "consumers": [one.model_dump(mode="json") for one in status.consumers],
        "reconciliations": [one.model_dump(mode="json") for one in status.reconciliations.values()],
    }


def overview(status: Status, settings: Settings) -> dict[str, object]:
    """How things stand but for what there are several of."""
    return {
        "jasper": settings.jasper_api_url,
        "postgres": status.postgres,
        "schema": status.schema,
        "feed_position": status.feed_position,
        "last_callback_at": _moment(status.last_callback_at),
        "quarantined": status.quarantined,
        "unproven": status.unproven,
        "sealed_values": status.sealed and asdict(status.sealed),
        "event_retention_days": settings.event_retention_days,
        "delivery_retention_days": settings.delivery_retention_days,
    }


def describe(registration: Registration, retiring: tuple[Retiring, ...], now: datetime) -> dict[str, object]:
    """A registration as a record for people: never a secret, and in words how long Jasper keeps trying."""
    plan = registration.plan
    leaving = [one for one in retiring if one.entity_type is registration.entity_type and now < one.accepted_until]
    return {
        "entity_type": str(registration.entity_type),
        "state": "pending" if registration.is_pending(now) else str(registration.state),
        "webhook_id": registration.webhook_id,
        "callback_url": registration.callback_url,
        "secret": "unreadable" if registration.locked else "known" if registration.signing_secret else "unknown",
        "registered_at": _moment(registration.registered_at),
        "also_accepted": [f"{one.kind} until {_moment(one.accepted_until)}" for one in leaving],
        "proof": registration.proof,
        "last_callback_at": _moment(registration.last_callback_at),
        "lost_to_jasper_after": plan and spoken(retry_span(plan)),
        "retried_for_seconds": plan and int(retry_span(plan).total_seconds()),
        "checked_at": _moment(registration.checked_at),
        "mended": list(registration.mended),
        "mended_at": _moment(registration.mended_at),
        "last_error": registration.last_error,
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
