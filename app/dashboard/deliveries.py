"""Deliveries with their evidence, and the quarantine: mend the mapping on trial, then read them again."""

import time
from base64 import b64decode
from collections import Counter
from dataclasses import dataclass, replace
from uuid import UUID

import msgspec
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from app.dashboard.pages import Visit
from app.dashboard.parameters import identifier
from app.dashboard.presentation import body_excerpt, number
from app.db.engine import reading
from app.deliveries import queries
from app.deliveries.reprocess import Reprocessor
from app.deliveries.schemas import DeliveryRecord, DeliverySummaryRecord
from app.domain.values import DeliveryStatus, Reading, Unreadable
from app.errors import InvalidParametersError, NotFoundError
from app.jasper.reading import interpret
from app.settings import PayloadMapping

_ROWS = 50
_TRIED = 20
_TRIED_BYTES = 8 * 1024 * 1024
"""How many quarantined deliveries, and bytes of them, a trial reads."""

_PORTION = 100
_LONGEST_RUN = 10.0
"""Seconds after which a run of reading again stops and says that there is more."""

_mapping = TypeAdapter(PayloadMapping)


@dataclass(frozen=True, slots=True)
class Trial:
    """How a delivery would be read with a mapping that is tried: `what` in a few words, `reason` where it cannot be."""

    delivery: DeliverySummaryRecord
    what: str | None
    reason: str | None


async def list_deliveries(visit: Visit) -> Response:
    """Deliveries, newest first, of one status or all."""
    given = visit.request.query_params.get("status", "")
    status = DeliveryStatus(given) if given in set(DeliveryStatus) else None
    after = identifier(visit.request, "before")
    async with reading(visit.engine) as connection:
        page = await queries.page(connection, status, after=after, limit=_ROWS, newest_first=True)
    return visit.show(
        "deliveries.html",
        page=page,
        chosen=status,
        statuses=list(DeliveryStatus),
        is_newest=after is None,
    )


async def show_delivery(visit: Visit) -> Response:
    """One delivery as it came, and how it was read."""
    delivery = await _one(visit)
    return visit.show(
        "delivery.html",
        delivery=delivery,
        body=body_excerpt(delivery.body, delivery.body_encoding),
        headers=msgspec.json.decode(delivery.headers, type=list[tuple[str, str]]),
        places=msgspec.json.decode(delivery.reading, type=dict[str, str]),
    )


async def download_body(visit: Visit) -> Response:
    """The body as it came, whole, secrets blanked."""
    delivery = await _one(visit)
    body = delivery.body.encode() if delivery.body_encoding == "utf-8" else b64decode(delivery.body)
    headers = {"Content-Disposition": 'attachment; filename="callback.bin"'}
    return Response(body, media_type="application/octet-stream", headers=headers)


async def reprocess_delivery(visit: Visit) -> Response:
    """Read one delivery again with today's mapping."""
    delivery_id: UUID = visit.request.path_params["delivery_id"]
    reprocessor: Reprocessor = visit.request.state.reprocessor
    found = await reprocessor.reprocess([delivery_id])
    if not found:
        raise NotFoundError("there is no delivery with this id")
    reason = f": {found[0].reason}" if found[0].reason else ""
    return visit.back_to(f"/dashboard/deliveries/{delivery_id}", f"Read again. It is {found[0].status}{reason}.")


async def show_quarantine(visit: Visit) -> Response:
    """What could not be read, and the form to try a mapping on it."""
    return await _quarantine(visit, _setting(visit), None)


async def try_mapping(visit: Visit) -> Response:
    """How the newest quarantined deliveries would be read with the mapping of the form. Writes nothing."""
    text = visit.form.get("mapping", "")
    mapping = _mapping_of(text)
    async with reading(visit.engine) as connection:
        page = await queries.page(connection, DeliveryStatus.QUARANTINED, after=None, limit=_TRIED, newest_first=True)
        fitting = _fitting(page.deliveries)
        kept = dict(await queries.kept(connection, [one.id for one in fitting]))
    trials = []
    for one in fitting:
        if one.id in kept:
            delivery = kept[one.id]
            trials.append(_trial(one, interpret(delivery.entity_type, delivery.headers, delivery.body, mapping)))
    return await _quarantine(visit, text, trials)


async def reprocess_quarantined(visit: Visit) -> Response:
    """Read all that is quarantined again, oldest first, with the mapping of the form."""
    mapping = _mapping_of(visit.form.get("mapping", ""))
    reprocessor = replace(visit.request.state.reprocessor, mapping=mapping)
    counted: Counter[str] = Counter()
    stop_at = time.monotonic() + _LONGEST_RUN
    after, more = None, True
    while more and time.monotonic() < stop_at:
        found, more = await reprocessor.reprocess_page(DeliveryStatus.QUARANTINED, after=after, limit=_PORTION)
        counted.update(one.status for one in found)
        after = found[-1].id if found else after
    told = ", ".join(f"{number(counted[status])} {status}" for status in DeliveryStatus)
    left = " There are more: read them again once more." if more else ""
    return visit.back_to("/dashboard/quarantine", f"{number(counted.total())} read again: {told}.{left}")


async def _quarantine(visit: Visit, mapping: str, trials: list[Trial] | None) -> Response:
    async with reading(visit.engine) as connection:
        page = await queries.page(connection, DeliveryStatus.QUARANTINED, after=None, limit=_ROWS, newest_first=True)
    return visit.show(
        "quarantine.html",
        page=page,
        mapping=mapping,
        setting=_setting(visit),
        trials=trials,
        tried=_TRIED,
    )


def _setting(visit: Visit) -> str:
    """`JASPER_PAYLOAD_MAPPING` as JSON."""
    return msgspec.json.format(msgspec.json.encode(visit.request.state.settings.payload_mapping), indent=2).decode()


def _mapping_of(text: str) -> dict[str, tuple[str, ...]]:
    """The mapping that was typed in. Raises InvalidParametersError."""
    try:
        return {str(part): places for part, places in _mapping.validate_python(text.strip() or "{}").items()}
    except ValidationError as exc:
        errors = [
            {"parameter": ".".join(["mapping", *map(str, error["loc"])]), "detail": error["msg"]}
            for error in exc.errors()
        ]
        raise InvalidParametersError(errors) from exc


def _fitting(deliveries: list[DeliverySummaryRecord]) -> list[DeliverySummaryRecord]:
    """As many of them, from the first, as a trial may read; one at least."""
    total = 0
    found: list[DeliverySummaryRecord] = []
    for one in deliveries:
        total += one.size
        if found and total > _TRIED_BYTES:
            break
        found.append(one)
    return found


def _trial(delivery: DeliverySummaryRecord, read: Reading | Unreadable) -> Trial:
    match read:
        case Unreadable():
            return Trial(delivery, None, read.reason)
        case Reading():
            action = "created or updated (inferred)" if read.action is None else read.action.past
            return Trial(delivery, f"{read.entity_id} {action}", None)


async def _one(visit: Visit) -> DeliveryRecord:
    async with reading(visit.engine) as connection:
        delivery = await queries.one(connection, visit.request.path_params["delivery_id"])
    if delivery is None:
        raise NotFoundError("there is no delivery with this id")
    return delivery
