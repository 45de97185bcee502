"""Logging for the whole process: one line for each thing that happened, as JSON or for people, on standard error.

Uvicorn's and SQLAlchemy's lines go through the same formatter. Log sizes, ids, counts and durations; never a body, a
header's value or a secret.
"""

import logging
import sys
import time
from contextvars import ContextVar

import stamina
import structlog

_MOST_KINDS = 1000

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered, which every line that it causes carries (`app.middleware`)."""

MOST_ALIKE = 20
PERIOD = 10.0
"""How many warnings and errors of one kind are logged in so many seconds: whoever sends nonsense shall not fill a disk."""


def configure(level: str, log_format: str) -> None:
    """Send everything from `level` (`debug`, `info`, `warning`, `error`) on to stderr, as `json` or for the `console`."""
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _add_request_id,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S" if log_format == "console" else "iso", utc=log_format != "console"
        ),
        _drop_colours,
    ]
    last: list[structlog.types.Processor] = (
        # A plain traceback: a prettier one would print local variables, and with them secrets.
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if log_format == "console"
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(FloodGuard())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook])
    for chatty in ("httpx", "httpcore", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


def _drop_colours(
    _logger: structlog.types.WrappedLogger, _name: str, line: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Uvicorn says everything twice, the second time with colours."""
    line.pop("color_message", None)
    return line


def _add_request_id(
    _logger: structlog.types.WrappedLogger, _name: str, line: structlog.types.EventDict
) -> structlog.types.EventDict:
    request_id = REQUEST_ID.get()
    if request_id is not None:
        line["request_id"] = request_id
    return line


class FloodGuard(logging.Filter):
    """Lets `most` warnings or errors of one kind through in a period; the next one after it says how many were left out.

    Alike is what the same logger says in the same words; its members do not matter.
    """

    def __init__(self, *, most: int = MOST_ALIKE, period: float = PERIOD) -> None:
        super().__init__()
        self._most = most
        self._period = period
        self._seen: dict[tuple[str, str], tuple[int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.levelno < logging.WARNING:
            return True
        kind, period = (record.name, str(record.msg)), int(time.monotonic() // self._period)
        since, count = self._seen.get(kind, (period, 0))
        if since != period:
            if count > self._most:
                record.left_out = count - self._most
            count = 0
        if len(self._seen) >= _MOST_KINDS:
            self._seen.clear()
        self._seen[kind] = (period, count + 1)
        return count < self._most
