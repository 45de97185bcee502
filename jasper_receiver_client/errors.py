"""What a reader of the feed has to know of, as one tree. What passes by itself is waited out and is no error."""

from collections.abc import Mapping
from typing import Any


class FeedError(Exception):
    """Base of everything that this package raises by itself."""


class UnreachableError(FeedError):
    """The service could not be reached, or was not able to answer, for as long as the feed's `patience`."""


class RequestRefusedError(FeedError):
    """The service refused a call, and would refuse it again: `status`, and `problem`, its document (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {problem.get('detail') or problem.get('title') or 'no reason was given'}")
        self.status = status
        self.problem = dict(problem)

    @property
    def type(self) -> str:
        """What kind of problem, such as `/problems/not-found`; empty where the answer is not the service's own."""
        return str(self.problem.get("type", ""))


class KeyRefusedError(RequestRefusedError):
    """The API key is missing, unknown or revoked (401), or lacks a scope that the call needs (403)."""


class PositionGoneError(RequestRefusedError):
    """Events behind the position are no longer kept (410), so that some would be missed.

    Behind `oldest_after` everything is still there. Go on from there if what is missing does no harm; else take a new
    snapshot, and follow from its position.
    """

    @property
    def oldest_after(self) -> int:
        """The lowest position behind which nothing is missing."""
        return int(self.problem["oldest_after"])
