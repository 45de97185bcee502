"""`/v1/webhooks`: what is registered with Jasper, and the calls that register and rotate.

Never tells a secret, nor the value of a header.
"""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from app.access.dependencies import AdminKey, ReadKey, lacking
from app.access.keys import Scope
from app.clock import utc_now
from app.domain.values import EntityType
from app.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InvalidParametersError,
    JasperRefusedError,
    JasperUnavailableError,
    KeyMissingError,
    NotFoundError,
    ScopeMissingError,
    SealingError,
    UnavailableError,
)
from app.paging import NoParameters
from app.problems import documented
from app.registration.register import NO_JASPER, Registrar
from app.registration.retry_window import retry_span
from app.registration.store import Registration, State

_REFUSALS = (KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError)
_CHANGE_REFUSALS = (
    KeyMissingError,
    lacking(Scope.ADMIN),
    InvalidParametersError,
    DatabaseUnavailableError,
    NotFoundError,
    ConflictError(NO_JASPER),
    JasperRefusedError,
    JasperUnavailableError,
    UnavailableError,
)

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

WebhookEntityType = Annotated[
    EntityType, Path(description="The entity type whose webhook is meant", examples=["product"])
]


class WebhookOut(BaseModel):
    """What is registered with Jasper for one entity type, and how it fares."""

    entity_type: Annotated[EntityType, Field(examples=["product"])]
    webhook_id: Annotated[str | None, Field(description="Jasper's id", examples=["17"])]
    name: Annotated[str | None, Field(examples=["Product Updates Webhook"])]
    callback_url: Annotated[str | None, Field(examples=["https://receiver.example.com/callbacks/products"])]
    state: Annotated[
        State, Field(description="`failed` and `disabled` say in `last_error` what to do", examples=["registered"])
    ]
    pending: Annotated[
        bool, Field(description="A new webhook or secret is being asked for at this moment", examples=[False])
    ]
    secret_known: Annotated[
        bool, Field(description="Without a secret every callback is put off with a 503", examples=[True])
    ]
    proof: Annotated[
        str | None, Field(description="Where the secret was last seen", examples=["header:x-signing-secret"])
    ]
    header_names: Annotated[list[str], Field(description="Headers registered with Jasper", examples=[["X-Custom"]])]
    last_callback_at: Annotated[datetime | None, Field(examples=["2026-11-23T10:00:01.250000Z"])]
    registered_at: Annotated[
        datetime | None,
        Field(description="Since when the present secret is known", examples=["2026-11-20T08:00:00Z"]),
    ]
    rotating: Annotated[bool, Field(description="A rotation was asked for and is not done yet", examples=[False])]
    checked_at: Annotated[
        datetime | None,
        Field(description="When the webhook was last seen in order at Jasper", examples=["2026-11-23T09:55:00Z"]),
    ]
    mended: Annotated[
        list[str],
        Field(description="What was last done to the webhook at Jasper, in words", examples=[["mended callback_url"]]),
    ]
    mended_at: Annotated[datetime | None, Field(description="When that was", examples=["2026-11-22T23:10:00Z"])]
    mends_in_a_row: Annotated[
        int,
        Field(
            description="How many looks up to the last one each had to mend something; 0 where all was in order",
            examples=[0],
        ),
    ]
    last_error: Annotated[str | None, Field(description="What is wrong now; null where nothing is", examples=[None])]
    last_error_at: Annotated[datetime | None, Field(examples=[None])]
    token_refused: Annotated[
        bool, Field(description="Jasper refuses the token (401, 403): set `JASPER_API_TOKEN`", examples=[False])
    ]
    retry_policy: Annotated[str | None, Field(examples=["linear"])]
    minimum_retry_interval: Annotated[int | None, Field(description="Seconds", examples=[300])]
    retry_limit: Annotated[int | None, Field(examples=[5])]
    retry_window_seconds: Annotated[
        int | None,
        Field(description="How long Jasper retries a callback before it is lost to it", examples=[1500]),
    ]

    @classmethod
    def of(cls, registration: Registration, now: datetime) -> "WebhookOut":
        """What may be told of a registration."""
        plan = registration.plan
        return cls(
            entity_type=registration.entity_type,
            webhook_id=registration.webhook_id,
            name=registration.webhook_name,
            callback_url=registration.callback_url,
            state=registration.state,
            pending=registration.is_pending(now),
            secret_known=registration.signing_secret is not None,
            proof=registration.proof,
            header_names=list(registration.headers or ()),
            last_callback_at=registration.last_callback_at,
            registered_at=registration.registered_at,
            rotating=registration.rotating_since is not None,
            checked_at=registration.checked_at,
            mended=list(registration.mended),
            mended_at=registration.mended_at,
            mends_in_a_row=registration.mends_in_a_row,
            last_error=registration.last_error,
            last_error_at=registration.last_error_at,
            token_refused=registration.is_token_refused,
            retry_policy=plan and plan.policy,
            minimum_retry_interval=plan and plan.minimum_interval,
            retry_limit=plan and plan.limit,
            retry_window_seconds=plan and int(retry_span(plan).total_seconds()),
        )


class WebhookList(BaseModel):
    """All registrations; there are four at most."""

    webhooks: list[WebhookOut]


class ChangeOut(WebhookOut):
    """What is registered now, and what was done for it."""

    done: Annotated[list[str], Field(description="In words; empty where all was in order", examples=[["created"]])]


@router.get("", operation_id="listWebhooks", summary="What is registered with Jasper", responses=documented(*_REFUSALS))
async def list_webhooks(_key: ReadKey, _none: NoParameters, request: Request) -> WebhookList:
    """Each entity type's webhook, its state, where its secret was seen, and what went wrong last. Never a secret."""
    registrar: Registrar = request.state.registrar
    now = utc_now()
    return WebhookList(webhooks=[WebhookOut.of(registration, now) for registration in await registrar.store.load_all()])


@router.post(
    "/{entity_type}/register",
    operation_id="registerWebhook",
    summary="Bring a webhook in order",
    responses=documented(*_CHANGE_REFUSALS),
)
async def register_webhook(
    _key: AdminKey, _none: NoParameters, entity_type: WebhookEntityType, request: Request
) -> ChangeOut:
    """Look at Jasper's webhook now; create, mend or enable it where that is needed. Running it twice is harmless."""
    return await _change(request, entity_type, rotate=False)


@router.post(
    "/{entity_type}/rotate",
    operation_id="rotateWebhook",
    summary="Replace a webhook and its secret",
    responses=documented(*_CHANGE_REFUSALS),
)
async def rotate_webhook(
    _key: AdminKey, _none: NoParameters, entity_type: WebhookEntityType, request: Request
) -> ChangeOut:
    """Create a new webhook with a new secret, then delete the old one, whose secret is accepted until its retries end."""
    return await _change(request, entity_type, rotate=True)


async def _change(request: Request, entity_type: EntityType, *, rotate: bool) -> ChangeOut:
    registrar: Registrar = request.state.registrar
    try:
        outcome = await (registrar.rotate if rotate else registrar.register)(entity_type)
    except SealingError as exc:
        raise ConflictError(str(exc)) from exc
    finally:
        await request.state.keyring.look_again()
    registration = await registrar.store.load(entity_type)
    return ChangeOut(done=list(outcome.done), **WebhookOut.of(registration, utc_now()).model_dump())
