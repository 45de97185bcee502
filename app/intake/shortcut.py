"""The shortcut of the usual callback: between the HTTP parser and the socket, without ASGI, in two steps.

Usual is what came in one piece, proves itself at once and finds room. Its steps are those of `app.intake.router`, and so are
its answers, to the letter; whatever is otherwise is left to that, as if nothing had been tried.
"""

from asyncio import Future
from http import HTTPStatus
from time import perf_counter

from app.clock import utc_now
from app.domain.values import Delivery, Receipt
from app.errors import ReceiverError
from app.intake.judge import check
from app.intake.router import ENTITY_TYPE_AT, Intake, answer_to, decoded, note_receipt, note_refusal, read
from app.logs import REQUEST_ID
from app.middleware import HEADER, request_id_of
from app.problems import problem_response, unexpected_response
from app.protocol import Answer, RawHeaders
from app.tracing import handed_on, is_tracing


class CallbackShortcut:
    """Takes usual callbacks; see `app.protocol.Shortcut`."""

    urls = frozenset(path.encode() for path in ENTITY_TYPE_AT)

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def __call__(self, url: bytes, headers: RawHeaders, client: str, body: bytes, answer: Answer) -> bool:
        """Judge, read and hand a callback to the writer; it is answered after its commit. False where it is not a usual one."""
        intake = self._intake
        size = len(body)
        if size > intake.max_body_bytes or size > intake.room.left or not intake.writer.has_place or is_tracing():
            return False
        path = url.decode()
        entity_type = ENTITY_TYPE_AT[path]
        as_text = decoded(headers)
        received_at = utc_now()
        started = perf_counter()
        accepted = intake.keyring.accepted(entity_type, received_at)
        _, proof = check(accepted, as_text, body, intake.location)
        if proof is None:
            return False
        delivery = Delivery(entity_type, received_at, client, as_text, body, proof, handed_on(as_text))
        entry = read(intake, delivery, accepted)
        intake.room.take(size)

        def finish(committed: Future[Receipt]) -> None:
            intake.room.give_back(size)
            request_id = request_id_of(headers)
            token = REQUEST_ID.set(request_id.decode())
            try:
                receipt = committed.result()
                note_receipt(intake, entry, receipt, perf_counter() - started)
            except ReceiverError as exc:
                note_refusal(intake, path, exc, perf_counter() - started)
                response = problem_response(exc, path)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the caller waits for an answer
                note_refusal(intake, path, ReceiverError(), perf_counter() - started)
                response = unexpected_response(exc, {"method": "POST", "path": path})
            else:
                answer(HTTPStatus.OK, *answer_to(receipt, request_id))
                return
            finally:
                REQUEST_ID.reset(token)
            answer(response.status_code, [*response.raw_headers, (HEADER, request_id)], bytes(response.body))

        intake.writer.submit(entry).add_done_callback(finish)
        return True
