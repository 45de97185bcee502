"""What is operated: callbacks kept apart or refused, registrations with Jasper, consumers."""

from starlette.responses import Response

from app.clock import utc_now
from app.dashboard.pages import Visit
from app.dashboard.presentation import number
from app.domain.values import EntityType
from app.errors import ConflictError, NotFoundError, SealingError
from app.feed import consumers
from app.feed.alarm import danger
from app.intake.release import release
from app.intake.unproven import kept_apart
from app.paging import is_storable
from app.registration.register import Registrar
from app.registration.router import WebhookOut
from app.status import BEHIND_AFTER

CHANGES = {
    "register": (
        "Register again",
        "Looks at the webhook in Jasper now, and creates, mends or enables it where needed. To run it twice is harmless.",
    ),
    "rotate": (
        "Rotate the secret",
        "Makes a new webhook with a new secret, then deletes the old one, whose secret is accepted until its retries end.",
    ),
}
"""What may be done to a registration: its name, and what it does."""


async def show_unproven(visit: Visit) -> Response:
    """What is kept apart, as far as it may be shown."""
    return visit.show("unproven.html", unproven=await kept_apart(visit.engine))


async def release_unproven(visit: Visit) -> Response:
    """Try the proof of all that is kept apart again."""
    released = await release(visit.request.state.intake)
    counts = ", ".join(
        f"{number(getattr(released, name))} {words}"
        for name, words in (
            ("accepted", "accepted"),
            ("duplicate", "duplicate"),
            ("quarantined", "quarantined"),
            ("unproven", "still unproven"),
        )
    )
    return visit.back_to("/dashboard/unproven", f"Tried again: {counts}.")


async def show_rejections(visit: Visit) -> Response:
    """The last refusals of this process."""
    return visit.show("rejections.html", rejections=visit.request.state.rejections.newest_first())


async def show_registrations(visit: Visit) -> Response:
    """Each webhook, and those that the settings want but that are not there yet."""
    registrar: Registrar = visit.request.state.registrar
    settings = visit.request.state.settings
    now = utc_now()
    known = {one.entity_type: WebhookOut.of(one, now) for one in await registrar.store.load_all()}
    wanted = [EntityType(name) for name in settings.jasper_webhook_entity_types]
    return visit.show(
        "registrations.html",
        webhooks=list(known.values()),
        missing=[entity_type for entity_type in wanted if entity_type not in known],
        has_jasper=registrar.has_jasper,
        location=settings.jasper_signing_secret_location,
        changes=CHANGES,
    )


async def confirm_change(visit: Visit) -> Response:
    """Ask once more, and say what will happen."""
    entity_type, change = _change(visit)
    title, what = CHANGES[change]
    return visit.show(
        "confirm.html", entity_type=entity_type, title=title, what=what, fields={}, back="/dashboard/registrations"
    )


async def change_registration(visit: Visit) -> Response:
    """Register or rotate."""
    entity_type, change = _change(visit)
    registrar: Registrar = visit.request.state.registrar
    try:
        outcome = await (registrar.rotate if change == "rotate" else registrar.register)(entity_type)
    except SealingError as exc:
        raise ConflictError(str(exc)) from exc
    finally:
        await visit.request.state.keyring.look_again()
    done = "; ".join(outcome.done) or "all was in order"
    problem = f" Left to do: {outcome.problem}" if outcome.problem else ""
    return visit.back_to("/dashboard/registrations", f"Webhook for {entity_type}: {done}.{problem}")


async def list_consumers(visit: Visit) -> Response:
    """Every consumer, how far it is behind, and what it has set aside."""
    kept_for = visit.request.state.settings.event_retention
    found = await consumers.listed(visit.engine, kept_for=kept_for)
    now = utc_now()
    return visit.show(
        "consumers.html",
        consumers=found,
        dangers={one.name: danger(one, kept_for, now) for one in found},
        behind_after=BEHIND_AFTER.total_seconds(),
        is_kept_for_ever=kept_for is None,
    )


async def show_consumer(visit: Visit) -> Response:
    """One consumer and the events that it has set aside."""
    name = visit.request.path_params["name"]
    if not is_storable(name):
        raise NotFoundError("there is no consumer of this name")
    kept_for = visit.request.state.settings.event_retention
    consumer = await consumers.one(visit.engine, name, kept_for=kept_for)
    return visit.show(
        "consumer.html",
        consumer=consumer,
        danger=danger(consumer, kept_for, utc_now()),
        parked=await consumers.parked(visit.engine, name),
    )


def _change(visit: Visit) -> tuple[EntityType, str]:
    parameters = visit.request.path_params
    try:
        entity_type = EntityType(parameters["entity_type"])
    except ValueError as exc:
        raise NotFoundError("there is no such entity type") from exc
    if parameters["change"] not in CHANGES:
        raise NotFoundError("there is nothing at this address")
    return entity_type, parameters["change"]
