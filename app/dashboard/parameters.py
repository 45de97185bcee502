"""What the addresses of pages carry. An empty field asks for nothing; what is wrong raises InvalidParametersError."""

from uuid import UUID

from starlette.requests import Request

from app.errors import InvalidParametersError
from app.paging import LAST_POSITION


def position(request: Request, name: str) -> int | None:
    """A position of the feed."""
    given = request.query_params.get(name)
    if not given:
        return None
    if not (given.isascii() and given.isdigit()) or int(given) > LAST_POSITION:
        raise InvalidParametersError([{"parameter": name, "detail": "must be a position of the feed"}])
    return int(given)


def identifier(request: Request, name: str) -> UUID | None:
    """An id of ours."""
    given = request.query_params.get(name)
    if not given:
        return None
    try:
        return UUID(given)
    except ValueError as exc:
        raise InvalidParametersError([{"parameter": name, "detail": "must be a UUID"}]) from exc
