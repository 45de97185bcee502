"""Logging for the whole process: one line for each thing that happened, as JSON or for people, on standard error.

Uvicorn's and SQLAlchemy's lines go through the same formatter. Log sizes, ids, counts and durations; never a body, a
header's value or a secret.
"""

import logging
import sys

import stamina
import structlog


def configure(level: str, log_format: str) -> None:
    """Send everything from `level` (`debug`, `info`, `warning`, `error`) on to stderr, as `json` or for the `console`."""
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_colours,
    ]
    last: list[structlog.types.Processor] = (
        # A plain traceback: a prettier one would print local variables, and with them secrets.
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
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
