"""Tries the proof of callbacks that were kept apart again, with today's settings, and takes in those that pass.

A secret that was accepted when a callback came still proves it, though it was rotated away since then.

One that passes goes the way of every other: its secrets are blanked, it is read, and the ledger writes it, under the id that it
was kept by. So a release that breaks off between that commit and the removal takes nothing in twice.
"""

import logging
from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from app.access.dependencies import AdminKey, lacking
from app.access.keys import Scope
from app.clock import utc_now
from app.domain.values import Delivery, DeliveryStatus, Entry
from app.errors import (
    DatabaseUnavailableError,
    DrainingError,
    InvalidParametersError,
    KeyMissingError,
    QueueFullError,
    SealingError,
)
from app.intake.judge import blank, check
from app.intake.router import Intake
from app.intake.unproven import KeptApart
from app.jasper.reading import interpret
from app.paging import NoParameters
from app.problems import documented
from app.tracing import traceparent_of

_log = logging.getLogger(__name__)


class Released(BaseModel):
    """How many callbacks were kept apart, and what came of them."""

    model_config = ConfigDict(frozen=True)

    accepted: Annotated[int, Field(description="Taken in, with an event", examples=[12])]
    duplicate: Annotated[int, Field(description="Taken in; they repeat another delivery", examples=[1])]
    quarantined: Annotated[int, Field(description="Taken in, but no event could be read from them", examples=[0])]
    unproven: Annotated[int, Field(description="Still not proven, and kept apart as before", examples=[3])]


async def release(intake: Intake) -> Released:
    """Try all that are kept apart, oldest first, one at a time.

    Raises UnavailableError where something could not be committed; what was before it is, and a further call goes on.
    """
    await intake.keyring.refresh()
    counted: Counter[DeliveryStatus] = Counter()
    unproven = 0
    kept = await intake.unproven.next_after(None)
    while kept is not None:
        entry = _proven(intake, kept)
        if entry is None:
            unproven += 1
        else:
            receipt = await intake.writer.commit(entry)
            await intake.unproven.remove(kept)
            counted[receipt.status] += 1
        kept = await intake.unproven.next_after(kept)
    released = Released(**{str(status): counted[status] for status in DeliveryStatus}, unproven=unproven)
    _log.info("callbacks that were kept apart were tried again", extra=released.model_dump())
    return released


def _proven(intake: Intake, kept: KeptApart) -> Entry | None:
    """The callback for the ledger; None where it is still not proven, or cannot be opened."""
    try:
        headers, body = intake.unproven.opened(kept)
    except SealingError as exc:
        _log.warning("a callback that is kept apart cannot be opened", extra={"id": str(kept.id), "reason": str(exc)})
        return None
    # A secret that was rotated away since then proved it when it came.
    accepted = intake.keyring.accepted_since(kept.entity_type, kept.received_at)
    _, proof = check(accepted, headers, body, intake.location)
    if proof is None:
        return None
    traceparent = traceparent_of(headers)
    delivery = Delivery(kept.entity_type, kept.received_at, kept.client, headers, body, proof, traceparent)
    delivery = blank(delivery, accepted)
    reading = interpret(kept.entity_type, delivery.headers, delivery.body, intake.mapping)
    return Entry(kept.entity_type, reading, utc_now(), delivery, delivery_id=kept.id)


router = APIRouter(prefix="/v1", tags=["operations"])


@router.post(
    "/unproven/release",
    operation_id="releaseUnproven",
    summary="Try the proof of callbacks kept apart again",
    responses=documented(
        KeyMissingError,
        lacking(Scope.ADMIN),
        InvalidParametersError,
        DatabaseUnavailableError,
        QueueFullError,
        DrainingError,
    ),
)
async def release_unproven(request: Request, _key: AdminKey, _none: NoParameters) -> Released:
    """Judges each of them again by today's secrets, headers and `JASPER_SIGNING_SECRET_LOCATION`, and takes in what passes.

    What passes becomes a delivery like any other, received when it came; what does not is kept as it was.
    """
    return await release(request.state.intake)
