"""The last callbacks that were refused, in memory: enough to see what is wrong, nothing that helps whoever sent them."""

from collections import deque
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from app.access.dependencies import ReadKey
from app.domain.values import Headers
from app.errors import DatabaseUnavailableError, InvalidParametersError, KeyMissingError, ScopeMissingError
from app.paging import NoParameters
from app.problems import documented

MOST_KEPT = 100


class Rejection(BaseModel):
    """One refused callback: names of its headers, never their values."""

    model_config = ConfigDict(frozen=True)

    time: Annotated[datetime, Field(examples=["2026-11-23T10:00:00Z"])]
    path: Annotated[str, Field(examples=["/callbacks/products"])]
    client: Annotated[str, Field(examples=["203.0.113.7"])]
    reason: Annotated[str, Field(examples=["the signing secret is nowhere in the callback"])]
    header_names: Annotated[list[str], Field(examples=[["host", "content-type", "content-length"]])]


class RejectionList(BaseModel):
    """The last refusals, newest first."""

    rejections: list[Rejection]


class Rejections:
    """Keeps the last refusals of this process."""

    def __init__(self) -> None:
        self._kept: deque[Rejection] = deque(maxlen=MOST_KEPT)

    def add(self, *, time: datetime, path: str, client: str, reason: str, headers: Headers) -> None:
        """Note one refusal; the oldest falls out when there are too many."""
        names = sorted({name for name, _ in headers})
        self._kept.append(Rejection(time=time, path=path, client=client, reason=reason, header_names=names))

    def newest_first(self) -> list[Rejection]:
        """What is kept."""
        return list(reversed(self._kept))


router = APIRouter(prefix="/v1", tags=["operations"])


@router.get(
    "/rejections",
    operation_id="listRejections",
    summary="Callbacks refused lately, and why",
    responses=documented(KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError),
)
async def list_rejections(_key: ReadKey, _none: NoParameters, request: Request) -> RejectionList:
    """The last 100 refusals of the process that answers, newest first. Values of headers are not kept."""
    return RejectionList(rejections=request.state.rejections.newest_first())
