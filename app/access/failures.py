"""Failed checks of API keys, counted by reason and told to the log, so that their rate can be watched.

The log is bounded where it is written (`app.logs`). Nobody is locked out after failures: a key has 256 random bits, so
guesses lead nowhere, and a lock would be a means to keep others out.
"""

import logging
from enum import StrEnum

from app.metrics import KEY_FAILURES

_log = logging.getLogger(__name__)


class FailureReason(StrEnum):
    """Why a call was refused: no key (401), one that is not known (401), one that was revoked (401), a scope (403)."""

    MISSING = "missing"
    WRONG = "wrong"
    REVOKED = "revoked"
    SCOPE = "scope"


_COUNTED = {reason: KEY_FAILURES.labels(reason) for reason in FailureReason}


def note_failure(reason: FailureReason, *, path: str, client: str, key: str | None = None) -> None:
    """One more. `key` is the name of the key where it is known."""
    _COUNTED[reason].inc()
    extra = {"reason": str(reason), "path": path, "client": client, "key": key}
    _log.warning("a call was refused for its key", extra=extra)
