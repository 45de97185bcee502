"""`POST /callbacks/{collection}`: the whole road of a callback, from the socket to the commit, in one function.

Plain ASGI rather than a FastAPI route: this is the hot path, and it needs nothing of what FastAPI would do for it. It is
described in the OpenAPI document all the same (`app.openapi`). The usual callback even takes a shortcut to the same steps
(`app.intake.shortcut`).
"""

import logging
from dataclasses import dataclass
from time import perf_counter

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.clock import utc_now
from app.domain.values import (
    ENTITY_TYPE_OF,
    Delivery,
    DeliveryStatus,
    EntityType,
    Entry,
    Headers,
    Receipt,
    Unreadable,
)
from app.errors import (
    BodyTooLargeError,
    DatabaseUnavailableError,
    DrainingError,
    MethodNotAllowedError,
    NotAuthenticError,
    NotFoundError,
    QueueFullError,
    ReceiverError,
    RequestTimeoutError,
    SecretUnknownError,
)
from app.intake.body import Room, read_body
from app.intake.judge import blank, check
from app.intake.keyring import Accepted, Keyring
from app.intake.rejections import Rejections
from app.intake.tally import Outcome, Tally
from app.intake.unproven import UnprovenStore
from app.jasper.proof import Location, carries_headers
from app.jasper.reading import Mappings, interpret
from app.ledger.writer import Writer
from app.metrics import CALLBACK_SECONDS, CALLBACKS, REJECTIONS
from app.middleware import HEADER, correlate
from app.problems import KINDS, instance_of, kind_of, problem_response, unexpected_response
from app.protocol import RawHeaders
from app.tracing import annotate, handed_on, traced, traceparent_of

_log = logging.getLogger(__name__)

_RECEIVED = {
    (entity_type, status): CALLBACKS.labels(entity_type.collection, status)
    for entity_type in EntityType
    for status in DeliveryStatus
}
_UNKNOWN_COLLECTION = "unknown"
_REFUSED = {
    (collection, KINDS[error].name): CALLBACKS.labels(collection, KINDS[error].name)
    for collection in (*ENTITY_TYPE_OF, _UNKNOWN_COLLECTION)
    for error in (
        *(BodyTooLargeError, DatabaseUnavailableError, DrainingError, MethodNotAllowedError, NotAuthenticError),
        *(NotFoundError, QueueFullError, ReceiverError, RequestTimeoutError, SecretUnknownError),
    )
}
_WITHOUT_HEADER, _WITHOUT_SECRET = REJECTIONS.labels("header"), REJECTIONS.labels("secret")


@dataclass(frozen=True, slots=True)
class Intake:
    """What the endpoint works with. `max_body_bytes` is in bytes."""

    keyring: Keyring
    writer: Writer
    unproven: UnprovenStore
    rejections: Rejections
    location: Location
    mapping: Mappings
    max_body_bytes: int
    room: Room
    tally: Tally


def _caller(scope: Scope, *_: object) -> str | None:
    return traceparent_of((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])


@traced("callback", kind="SERVER", parent=_caller)
async def receive_callback(scope: Scope, receive: Receive, intake: Intake) -> Receipt:
    """Take one callback. Returns what came of it, after its commit.

    Raises a ReceiverError for everything else, and Starlette's ClientDisconnect where the sender hung up.
    """
    entity_type = ENTITY_TYPE_AT.get(scope["path"])
    if entity_type is None:
        raise NotFoundError(f"callbacks come to {PREFIX} followed by one of {', '.join(ENTITY_TYPE_OF)}")
    if scope["method"] != "POST":
        raise MethodNotAllowedError("a callback is a POST", allowed=["POST"])
    headers = decoded(scope["headers"])
    client = scope["client"][0] if scope.get("client") else ""
    received_at = utc_now()
    started = perf_counter()

    with intake.room.hold() as take:
        body = await read_body(scope, receive, limit=intake.max_body_bytes, take=take)
        accepted, proof = await _authenticate(intake, entity_type, headers, body, client)
        delivery = Delivery(entity_type, received_at, client, headers, body, proof, handed_on(headers))
        entry = read(intake, delivery, accepted)
        receipt = await intake.writer.commit(entry)
    note_receipt(intake, entry, receipt, perf_counter() - started)
    return receipt


def decoded(headers: RawHeaders) -> Headers:
    """Headers as text, each byte a character."""
    return tuple([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])


def read(intake: Intake, delivery: Delivery, accepted: Accepted) -> Entry:
    """What the ledger is to write of an authentic delivery, from which every secret is blanked first."""
    delivery = blank(delivery, accepted)
    reading = interpret(delivery.entity_type, delivery.headers, delivery.body, intake.mapping)
    return Entry(delivery.entity_type, reading, delivery.received_at, delivery)


def note_receipt(intake: Intake, entry: Entry, receipt: Receipt, seconds: float) -> None:
    """Count a callback that was committed, and tell the log of it where that is wanted: thousands a second may come."""
    entity_type, reading = entry.entity_type, entry.reading
    _RECEIVED[entity_type, receipt.status].inc()
    CALLBACK_SECONDS.observe(seconds)
    intake.tally.note(entity_type, Outcome(receipt.status), seconds)
    annotate(jasper_receiver__status=receipt.status, jasper_receiver__delivery_id=receipt.delivery_id)
    if receipt.status is DeliveryStatus.QUARANTINED:
        reason = reading.reason if isinstance(reading, Unreadable) else "the event could not be written"
        level, extra = logging.WARNING, {"reason": reason}
    elif _log.isEnabledFor(logging.DEBUG):
        level, extra = logging.DEBUG, {}
    else:
        return
    known = {"entity_type": str(entity_type), "delivery_id": str(receipt.delivery_id)}
    _log.log(level, "callback %s", receipt.status, extra=known | extra)


async def _authenticate(
    intake: Intake, entity_type: EntityType, headers: Headers, body: bytes, client: str
) -> tuple[Accepted, str]:
    """The credentials that are accepted now, and the place at which one of them was proven.

    Raises SecretUnknownError or DatabaseUnavailableError where that cannot be judged now, NotAuthenticError where it is not
    Jasper who calls.
    """
    accepted = intake.keyring.accepted(entity_type, utc_now())
    has_headers, proof = check(accepted, headers, body, intake.location)
    is_certain = True
    if proof is None:
        is_certain = await intake.keyring.look_again()
        accepted = intake.keyring.accepted(entity_type, utc_now())
        has_headers, proof = check(accepted, headers, body, intake.location)
    if not accepted.secrets:
        raise SecretUnknownError(f"no signing secret is known for {entity_type.collection} yet", retry_after=10)
    if proof is not None:
        return accepted, proof
    if has_headers and accepted.pending:
        raise SecretUnknownError("the webhook is being registered; the secret may be about to change", retry_after=10)
    if not is_certain:
        raise DatabaseUnavailableError("it cannot be told now whether the secret was changed meanwhile", retry_after=10)

    reason = "the signing secret is nowhere in the callback" if has_headers else "a required header is missing or wrong"
    (_WITHOUT_SECRET if has_headers else _WITHOUT_HEADER).inc()
    path = f"/callbacks/{entity_type.collection}"
    intake.rejections.add(time=utc_now(), path=path, client=client, reason=reason, headers=headers)
    _log.warning("callback rejected", extra={"path": path, "client": client, "reason": reason, "bytes": len(body)})
    if any(names and carries_headers(headers, names) for names in accepted.header_sets):
        await intake.unproven.keep(entity_type, headers, body, received_at=utc_now(), client=client)
    raise NotAuthenticError(reason)


class CallbackDoor:
    """Takes what comes to `/callbacks/`, before all other layers of the application; everything else goes on to them.

    These layers take as long as a callback does. The `Intake` stands in the lifespan's state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        request_id = correlate(scope)
        started = perf_counter()
        try:
            receipt = await receive_callback(scope, receive, scope["state"]["intake"])
        except ReceiverError as exc:
            note_refusal(scope["state"]["intake"], scope["path"], exc, perf_counter() - started)
            response = problem_response(exc, instance_of(scope))
        except ClientDisconnect:
            return
        except Exception as exc:  # noqa: BLE001 - the layers that would answer it stand behind this door
            note_refusal(scope["state"]["intake"], scope["path"], ReceiverError(), perf_counter() - started)
            response = unexpected_response(exc, scope)
        else:
            headers, body = answer_to(receipt, request_id)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        response.raw_headers.append((HEADER, request_id))
        await response(scope, receive, send)


def answer_to(receipt: Receipt, request_id: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body with which a committed callback is answered."""
    body = msgspec.json.encode(receipt)
    headers = [
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
        (HEADER, request_id),
    ]
    return headers, body


def note_refusal(intake: Intake, path: str, error: ReceiverError, seconds: float) -> None:
    """Count a callback, or what came to an address of callbacks, that was answered with a problem."""
    entity_type = ENTITY_TYPE_AT.get(path)
    if entity_type is not None:
        intake.tally.note(entity_type, Outcome.of_error(error), seconds)
    collection = entity_type.collection if entity_type else _UNKNOWN_COLLECTION
    _REFUSED[collection, kind_of(error).name].inc()


PREFIX = "/callbacks/"

# With and without a trailing slash, because a redirect would turn the POST into a GET.
ENTITY_TYPE_AT = {
    f"{PREFIX}{collection}{slash}": entity_type
    for collection, entity_type in ENTITY_TYPE_OF.items()
    for slash in ("", "/")
}
"""Where callbacks come to."""
