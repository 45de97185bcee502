"""One trace from a callback to its event, for who has OpenTelemetry (`pip install jasper-receiver[tracing]`).

A caller's `traceparent` (W3C Trace Context, level 1) is kept and handed on without it too. Without it nothing is wrapped, so
nothing is paid; with it spans are made once `exporting` has found an address to send them to. A span tells times, counts
and ids; never a body, nor the message of an error that may quote one.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_PATIENCE = 3.0
"""Seconds that sending spans may take, tries included: the process has to end in time also where nobody takes them."""

_ADDRESSES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer: "trace.Tracer | None" = None


def traceparent_of(headers: Iterable[tuple[str, str]]) -> str | None:
    """The caller's `traceparent`, if there is a valid one; names of headers are in lower case."""
    for name, value in headers:
        if name == "traceparent":
            return value if _TRACEPARENT.fullmatch(value) else None
    return None


def handed_on(headers: Iterable[tuple[str, str]]) -> str | None:
    """The `traceparent` for whatever comes of a request: that of the span that is open now, else the caller's."""
    if _tracer is not None:
        now = trace.get_current_span().get_span_context()
        if now.is_valid:
            return f"00-{now.trace_id:032x}-{now.span_id:016x}-{now.trace_flags:02x}"
    return traceparent_of(headers)


def traced(
    name: str,
    *,
    kind: Literal["INTERNAL", "SERVER"] = "INTERNAL",
    parent: Callable[..., str | None] | None = None,
    links: Callable[..., Iterable[str | None]] | None = None,
    attributes: Callable[..., Mapping[str, Any]] | None = None,
) -> Callable[[Callable[_P, Coroutine[Any, Any, _T]]], Callable[_P, Coroutine[Any, Any, _T]]]:
    """A decorator that makes each call a span. What is given as functions is asked with the arguments of the call.

    `parent` and `links` are texts of the form of a `traceparent`, valid ones. Without OpenTelemetry the function stays as
    it is.
    """

    def decorate(work: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
        if not INSTALLED:
            return work

        @wraps(work)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> Coroutine[Any, Any, _T]:
            # No coroutine around the other one where no spans are made.
            return work(*args, **kwargs) if _tracer is None else in_span(_tracer, *args, **kwargs)

        async def in_span(tracer: "trace.Tracer", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
            caller = parent(*args, **kwargs) if parent else None
            with tracer.start_as_current_span(
                name,
                context=_context(caller) if caller else None,
                kind=trace.SpanKind[kind],
                links=[trace.Link(_span_context(one)) for one in links(*args, **kwargs) if one] if links else None,
                attributes=attributes(*args, **kwargs) if attributes else None,
                record_exception=False,  # its message may quote a row
                set_status_on_exception=False,
            ) as span:
                try:
                    return await work(*args, **kwargs)
                except Exception as exc:
                    span.set_status(trace.StatusCode.ERROR, type(exc).__name__)
                    raise

        return run

    return decorate


def is_tracing() -> bool:
    """Whether spans are made."""
    return _tracer is not None


def annotate(**attributes: object) -> None:
    """Say more about the span that is open now, if there is one; dots in names are written as double underscores."""
    if _tracer is not None:
        named = {name.replace("__", "."): str(value) for name, value in attributes.items()}
        trace.get_current_span().set_attributes(named)


@contextmanager
def within(traceparent: str | None) -> Iterator[None]:
    """Spans that are opened in the block belong to the caller's trace, where it has one."""
    if _tracer is None or traceparent is None:
        yield
        return
    token = contexts.attach(_context(traceparent))
    try:
        yield
    finally:
        contexts.detach(token)


@asynccontextmanager
async def exporting() -> AsyncIterator[None]:
    """Send spans where the standard `OTEL_EXPORTER_OTLP_*` variables say, if they say so, for as long as the block lasts."""
    if not any(os.environ.get(name) for name in _ADDRESSES):
        yield
        return
    if not INSTALLED:
        _log.warning("no traces: OpenTelemetry is not installed; add the extra jasper-receiver[tracing]")
        yield
        return
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "jasper-receiver"}
    provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
    patience = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else _PATIENCE
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=patience)))
    try:
        with tracing_to(provider):
            yield
    finally:
        await asyncio.to_thread(provider.shutdown)  # sends what is left


@contextmanager
def tracing_to(provider: "trace.TracerProvider") -> Iterator[None]:
    """Make spans with this provider for as long as the block lasts."""
    global _tracer  # noqa: PLW0603 - decorated functions are the process's, and so is where their spans go
    _tracer = provider.get_tracer("jasper-receiver")
    try:
        yield
    finally:
        _tracer = None


def _context(traceparent: str) -> "contexts.Context":
    return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(traceparent)))


def _span_context(traceparent: str) -> "trace.SpanContext":
    _, trace_id, span_id, flags = traceparent.split("-")
    return trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
