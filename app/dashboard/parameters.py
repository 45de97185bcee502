"""What the addresses of pages carry. An empty field asks for nothing; what is wrong raises InvalidParametersError."""

import re
from uuid import UUID

from starlette.requests import Request

from app.errors import InvalidParametersError
from app.paging import LAST_POSITION

_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")


def position(request: Request, name: str) -> int | None:
    """A position of the feed."""
    given = request.query_params.get(name)
    if not given:
        return None
    if not _WHOLE_NUMBER.fullmatch(given) or int(given) > LAST_POSITION:
        raise InvalidParametersError([{"parameter": name, "detail": "must be a position of the feed"}])
    return int(given)


def last_event_id(request: Request) -> int | None:
    """The position that a browser tells when it comes back to a stream; one that is none was not sent by a browser."""
    given = request.headers.get("last-event-id", "")
    return min(int(given), LAST_POSITION) if _WHOLE_NUMBER.fullmatch(given) else None


def identifier(request: Request, name: str) -> UUID | None:
    """An id of ours."""
    given = request.query_params.get(name)
    if not given:
        return None
    try:
        return UUID(given)
    except ValueError as exc:
        raise InvalidParametersError([{"parameter": name, "detail": "must be a UUID"}]) from exc
