"""`/healthz` says that the process lives; `/readyz` whether it can do its work, with a reason for each check."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import UNREACHABLE
from app.db.migrate import check_schema
from app.domain.values import EntityType
from app.errors import DatabaseUnavailableError, SchemaError
from app.registration.store import Registration, State

router = APIRouter(tags=["operations"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"]


class Check(BaseModel):
    """One thing that has to be so, and what is known of it."""

    name: Annotated[str, Field(examples=["postgres"])]
    ok: Annotated[bool, Field(examples=[True])]
    required: Annotated[bool, Field(description="Whether the process is ready only where this is ok", examples=[True])]
    reason: Annotated[str, Field(examples=["Postgres answers, the schema is at head"])]


class Readiness(BaseModel):
    """Whether the process can do its work."""

    status: Literal["ready", "not_ready"]
    checks: list[Check]


@router.get("/healthz", operation_id="getHealth", summary="Does the process live?")
async def healthz() -> Live:
    """Answers as long as the process does; asks nothing else, so that a database that is down restarts nobody."""
    return Live(status="live")


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can the process do its work?",
    responses={
        status.HTTP_503_SERVICE_UNAVAILABLE: {"model": Readiness, "description": "It cannot; the checks say why"}
    },
)
async def readyz(request: Request, response: Response) -> Readiness:
    """200 where every required check passes, else 503. Trouble with the registration is told, but what Jasper sends is
    received all the same, so it is not required.
    """  # noqa: D205 - one sentence
    checks = [check async for check in _checks(request)]
    ready = all(check.ok for check in checks if check.required)
    response.status_code = status.HTTP_200_OK if ready else status.HTTP_503_SERVICE_UNAVAILABLE
    return Readiness(status="ready" if ready else "not_ready", checks=checks)


async def _checks(request: Request) -> AsyncIterator[Check]:
    state = request.state
    yield await _postgres(state.engine)
    if "callbacks" in state.settings.roles:
        alive = state.writer.alive
        yield Check(
            name="writer",
            ok=alive,
            required=True,
            reason=f"{state.writer.queued} callbacks wait" if alive else "the writer has stopped",
        )
        for entity_type in state.settings.jasper_webhook_entity_types:
            known = bool(state.keyring.accepted(EntityType(entity_type), utc_now()).secrets)
            yield Check(
                name=f"secret:{entity_type}",
                ok=known,
                required=True,
                reason="a signing secret is known"
                if known
                else "no signing secret is known: callbacks are answered with 503",
            )
        yield await _registration(request)
        yield await _reconciliation(request)


async def _registration(request: Request) -> Check:
    """How it stands with Jasper. Never a reason not to be ready: what Jasper sends is received all the same."""
    registrar = request.state.registrar
    if not registrar.has_jasper:
        reason = "nothing is registered: JASPER_API_URL, JASPER_API_TOKEN and PUBLIC_URL are not set"
        return Check(name="registration", ok=True, required=False, reason=reason)
    try:
        registrations: list[Registration] = await registrar.store.load_all()
    except DatabaseUnavailableError:
        return Check(name="registration", ok=False, required=False, reason="not known while Postgres is away")
    states = (
        f"{one.entity_type}: {one.state}" + (f" ({one.last_error})" if one.last_error else "") for one in registrations
    )
    followed = set(request.state.settings.jasper_webhook_entity_types)
    in_order = {one.entity_type.value for one in registrations if one.state is State.REGISTERED and not one.last_error}
    return Check(
        name="registration",
        ok=followed <= in_order,
        required=False,
        reason="; ".join(states) or "not registered yet",
    )


async def _reconciliation(request: Request) -> Check:
    """Whether something may have been missed. Never a reason not to be ready: what comes now is received all the same."""
    try:
        absences = await request.state.reconciler.absences()
    except DatabaseUnavailableError:
        return Check(name="reconciliation", ok=True, required=False, reason="not known while Postgres is away")
    offered = "; ".join(f"{entity_type}: {absence.in_words(entity_type)}" for entity_type, absence in absences.items())
    return Check(
        name="reconciliation", ok=True, required=False, reason=offered or "nothing says that callbacks were missed"
    )


async def _postgres(engine: AsyncEngine) -> Check:
    try:
        await check_schema(engine)
    except SchemaError as exc:
        return Check(name="postgres", ok=False, required=True, reason=str(exc))
    except (SQLAlchemyError, DatabaseUnavailableError, *UNREACHABLE) as exc:
        return Check(
            name="postgres", ok=False, required=True, reason=f"Postgres cannot be reached ({type(exc).__name__})"
        )
    return Check(name="postgres", ok=True, required=True, reason="Postgres answers, the schema is at head")
