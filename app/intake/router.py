"""`POST /callbacks/{collection}`: the whole road of a callback, from the socket to the commit, in one function.

A plain ASGI endpoint rather than a FastAPI route: this is the hot path, and it needs nothing of what FastAPI would do for
it. It is described in the OpenAPI document all the same (`app.openapi`).
"""

import logging
import time
from dataclasses import dataclass

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.clock import utc_now
from app.domain.values import ENTITY_TYPE_OF, Delivery, EntityType, Entry, Headers, Receipt
from app.errors import (
    MethodNotAllowedError,
    NotAuthenticError,
    NotFoundError,
    ReceiverError,
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
from app.problems import instance_of, problem_response

_log = logging.getLogger(__name__)


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


async def receive_callback(request: Request, intake: Intake) -> Receipt:
    """Take one callback. Returns what came of it, for the 200, after its commit.

    Raises a ReceiverError for everything else, and Starlette's ClientDisconnect where the sender hung up.
    """
    entity_type = ENTITY_TYPE_OF.get(request.path_params["collection"])
    if entity_type is None:
        raise NotFoundError(f"callbacks come to /callbacks/ followed by one of {', '.join(ENTITY_TYPE_OF)}")
    if request.method != "POST":
        raise MethodNotAllowedError("a callback is a POST", allowed=["POST"])
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"])
    client = request.client.host if request.client else ""
    received_at = utc_now()

    with intake.room.hold() as take:
        body = await read_body(request, limit=intake.max_body_bytes, take=take)
        accepted, proof = await _authenticate(intake, entity_type, headers, body, client)

        delivery = blank(Delivery(entity_type, received_at, client, headers, body, proof), accepted)
        reading = interpret(entity_type, delivery.headers, delivery.body, intake.mapping)
        return await intake.writer.commit(Entry(entity_type, reading, received_at, delivery))


async def _authenticate(
    intake: Intake, entity_type: EntityType, headers: Headers, body: bytes, client: str
) -> tuple[Accepted, str]:
    """The credentials that are accepted now, and the place at which one of them was proven.

    Raises SecretUnknownError where that cannot be judged now, NotAuthenticError where it is not Jasper who calls.
    """
    accepted = intake.keyring.accepted(entity_type, utc_now())
    has_headers, proof = check(accepted, headers, body, intake.location)
    if proof is None:
        await intake.keyring.look_again()
        accepted = intake.keyring.accepted(entity_type, utc_now())
        has_headers, proof = check(accepted, headers, body, intake.location)
    if not accepted.secrets:
        raise SecretUnknownError(f"no signing secret is known for {entity_type.collection} yet", retry_after=10)
    if proof is not None:
        return accepted, proof
    if has_headers and accepted.pending:
        raise SecretUnknownError("the webhook is being registered; the secret may be about to change", retry_after=10)

    reason = "the signing secret is nowhere in the callback" if has_headers else "a required header is missing or wrong"
    path = f"/callbacks/{entity_type.collection}"
    intake.rejections.add(time=utc_now(), path=path, client=client, reason=reason, headers=headers)
    _log.warning("callback rejected", extra={"path": path, "client": client, "reason": reason, "bytes": len(body)})
    if any(names and carries_headers(headers, names) for names in accepted.header_sets):
        await intake.unproven.keep(entity_type, headers, body, received_at=utc_now(), client=client)
    raise NotAuthenticError(reason)


class CallbackEndpoint:
    """The ASGI face of `receive_callback`; its `Intake` stands in the lifespan's state."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        intake: Intake = scope["state"]["intake"]
        started = time.perf_counter()
        try:
            receipt = await receive_callback(request, intake)
            outcome = Outcome(receipt.status)
            response = Response(msgspec.json.encode(receipt), media_type="application/json")
        except ReceiverError as exc:
            outcome = Outcome.of_error(exc)
            response = problem_response(exc, instance_of(scope))
        except ClientDisconnect:
            return
        intake.tally.note(request.path_params["collection"], outcome, time.perf_counter() - started)
        await response(scope, receive, send)


_endpoint = CallbackEndpoint()

routes = [Route("/callbacks/{collection}", _endpoint), Route("/callbacks/{collection}/", _endpoint)]
"""With and without a trailing slash, because a redirect would turn the POST into a GET."""
