"""Failed checks of API keys, counted by reason since the process began, so that their rate can be watched.

The log tells of them too, but not of each: whoever tries keys must not fill it. Nobody is locked out after failures. A key
has 256 random bits, so guesses lead nowhere; and a lock would be a means to keep others out.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from app.metrics import KEY_FAILURES

_log = logging.getLogger(__name__)

_SAID_EVERY = 10.0
"""Seconds between two lines in the log of the same reason."""


class FailureReason(StrEnum):
    """Why a call was refused: no key (401), one that is not known (401), one that was revoked (401), a scope (403)."""

    MISSING = "missing"
    WRONG = "wrong"
    REVOKED = "revoked"
    SCOPE = "scope"


_COUNTED = {reason: KEY_FAILURES.labels(reason) for reason in FailureReason}


@dataclass(slots=True)
class KeyFailures:
    """How many calls were refused for each reason. `clock` gives seconds that only grow."""

    clock: Callable[[], float] = time.monotonic
    counts: Counter[FailureReason] = field(default_factory=Counter)
    _said: dict[FailureReason, tuple[float, int]] = field(default_factory=dict)

    def note(self, reason: FailureReason, *, path: str, client: str, key: str | None = None) -> None:
        """One more. `key` is the name of the key where it is known. The line in the log counts those since the one before."""
        self.counts[reason] += 1
        _COUNTED[reason].inc()
        now, total = self.clock(), self.counts[reason]
        at, told = self._said.get(reason, (now - _SAID_EVERY, 0))
        if now - at >= _SAID_EVERY:
            self._said[reason] = now, total
            found = {"reason": str(reason), "path": path, "client": client, "key": key, "count": total - told}
            _log.warning("calls were refused for their key", extra=found)
