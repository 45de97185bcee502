"""`/v1/reconciliations`: compare with Jasper's own lists, and what came of it."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

from app.access.dependencies import AdminKey, lacking
from app.access.keys import Scope
from app.domain.values import EntityType
from app.errors import (
    BodyTooLargeError,
    ConflictError,
    DatabaseUnavailableError,
    InvalidParametersError,
    KeyMissingError,
    NotFoundError,
    RequestTimeoutError,
)
from app.paging import Body, NoParameters, described_body, read_body
from app.problems import documented
from app.reconciliation import store
from app.reconciliation.reconciler import Reconciler
from app.reconciliation.store import Reconciliation

_ERRORS = (KeyMissingError, lacking(Scope.ADMIN), InvalidParametersError, DatabaseUnavailableError)

router = APIRouter(prefix="/v1/reconciliations", tags=["reconciliations"])


class ReconciliationRequest(Body):
    """What to compare."""

    entity_type: Annotated[EntityType, Field(strict=False, description="What to compare", examples=["product"])]
    force: Annotated[
        bool,
        Field(description="Delete what is gone, however many that are", examples=[False]),
    ] = False


class ReconciliationList(BaseModel):
    """The newest reconciliations, newest first."""

    model_config = ConfigDict(frozen=True)

    reconciliations: list[Reconciliation]


@router.post(
    "",
    operation_id="startReconciliation",
    summary="Compare with Jasper's own list",
    status_code=status.HTTP_202_ACCEPTED,
    responses={
        status.HTTP_202_ACCEPTED: {
            "headers": {
                "Location": {
                    "description": "Where it can be watched",
                    "schema": {"type": "string"},
                    "example": "/v1/reconciliations/01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10",
                }
            }
        },
        **documented(*_ERRORS, ConflictError, BodyTooLargeError, RequestTimeoutError),
    },
    openapi_extra=described_body(ReconciliationRequest),
)
async def start_reconciliation(
    request: Request,
    response: Response,
    _key: AdminKey,
    _none: NoParameters,
    wanted: Annotated[ReconciliationRequest, Depends(read_body(ReconciliationRequest))],
) -> Reconciliation:
    """Reads Jasper's list page by page and writes what was missed, in the background: differences only.

    An absence is believed only after a 404 on the single item. Callbacks that arrive meanwhile win. One that a process left
    unfinished is gone on with; while one is running, another is refused with 409.
    """
    reconciler: Reconciler = request.state.reconciler
    begun = await reconciler.start(wanted.entity_type, force=wanted.force)
    response.headers["Location"] = f"/v1/reconciliations/{begun.id}"
    return begun


@router.get(
    "",
    operation_id="listReconciliations",
    summary="The newest reconciliations",
    responses=documented(*_ERRORS),
)
async def list_reconciliations(request: Request, _key: AdminKey, _none: NoParameters) -> ReconciliationList:
    """The newest first, a hundred at most."""
    return ReconciliationList(reconciliations=await store.newest(request.state.engine))


@router.get(
    "/{reconciliation_id:uuid}",
    operation_id="getReconciliation",
    summary="One reconciliation",
    responses=documented(*_ERRORS, NotFoundError("there is no reconciliation with this id")),
)
async def get_reconciliation(
    request: Request,
    _key: AdminKey,
    reconciliation_id: Annotated[
        UUID, Path(description="The reconciliation's `id`", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"])
    ],
    _none: NoParameters,
) -> Reconciliation:
    """How it stands, and while it is running, how far it has come."""
    found = await store.one(request.state.engine, reconciliation_id)
    if found is None:
        raise NotFoundError("there is no reconciliation with this id")
    return found
