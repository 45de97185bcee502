"""One trace from a callback to its event: kept and handed on always, and made of spans where OpenTelemetry is there."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app import tracing
from app.feed.cloudevents import BATCH, SINGLE
from app.main import create_app
from app.sealing import generate_key
from app.settings import Settings
from tests.http.conftest import SECRET, Receiver

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"

INVALID = [
    "",
    "nonsense",
    f"01-{TRACE_ID}-{PARENT_ID}-01",  # a version that is not known
    f"ff-{TRACE_ID}-{PARENT_ID}-01",
    f"00-{'0' * 32}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{PARENT_ID}-01-more",
    f"00-{TRACE_ID}-{PARENT_ID}",
    f"{TRACEPARENT}x",
]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Everything that was traced."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing.tracing_to(provider):
        yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def kept(receiver: Receiver, delivery_id: str) -> object:
    response = await receiver.http.get(f"/v1/deliveries/{delivery_id}")
    assert response.status_code == 200, response.text
    return response.json()["traceparent"]


async def envelopes(receiver: Receiver) -> list[dict[str, object]]:
    response = await receiver.http.get("/v1/events", headers={"Accept": BATCH})
    found: list[dict[str, object]] = response.json()
    return found


async def test_the_callers_trace_is_kept_with_the_delivery_and_handed_on_with_the_event(receiver: Receiver) -> None:
    answer = (await receiver.callback(x_secret=SECRET, traceparent=TRACEPARENT)).json()
    assert await kept(receiver, answer["delivery_id"]) == TRACEPARENT
    assert [envelope["traceparent"] for envelope in await envelopes(receiver)] == [TRACEPARENT]
    one = await receiver.http.get(f"/v1/events/{answer['event_id']}", headers={"Accept": SINGLE})
    assert one.json()["traceparent"] == TRACEPARENT
    history = await receiver.http.get("/v1/products/1001/events", headers={"Accept": BATCH})
    assert [envelope["traceparent"] for envelope in history.json()] == [TRACEPARENT]


async def test_an_event_without_its_envelope_looks_as_ever(receiver: Receiver) -> None:
    await receiver.callback(x_secret=SECRET, traceparent=TRACEPARENT)
    [event] = (await receiver.http.get("/v1/events")).json()["events"]
    assert "traceparent" not in event


async def test_without_a_trace_there_is_none(receiver: Receiver) -> None:
    answer = (await receiver.callback()).json()
    assert await kept(receiver, answer["delivery_id"]) is None
    assert all("traceparent" not in envelope for envelope in await envelopes(receiver))


@pytest.mark.parametrize("given", INVALID)
async def test_a_trace_that_is_not_valid_is_not_kept(receiver: Receiver, given: str) -> None:
    answer = (await receiver.callback(x_secret=SECRET, traceparent=given)).json()
    assert answer["status"] == "accepted"
    assert await kept(receiver, answer["delivery_id"]) is None


async def test_the_callbacks_span_belongs_to_the_callers_trace_and_is_what_is_handed_on(
    receiver: Receiver, spans: InMemorySpanExporter
) -> None:
    answer = (await receiver.callback(x_secret=SECRET, traceparent=TRACEPARENT)).json()
    [callback] = named(spans, "callback")
    assert callback.parent is not None
    assert f"{callback.context.trace_id:032x}" == TRACE_ID
    assert f"{callback.parent.span_id:016x}" == PARENT_ID
    assert callback.kind is SpanKind.SERVER
    assert dict(callback.attributes or {}) == {
        "jasper_receiver.status": "accepted",
        "jasper_receiver.delivery_id": answer["delivery_id"],
    }
    expected = f"00-{TRACE_ID}-{callback.context.span_id:016x}-01"
    assert await kept(receiver, answer["delivery_id"]) == expected
    assert [envelope["traceparent"] for envelope in await envelopes(receiver)] == [expected]


async def test_without_a_caller_that_traces_the_trace_begins_here(
    receiver: Receiver, spans: InMemorySpanExporter
) -> None:
    answer = (await receiver.callback()).json()
    [callback] = named(spans, "callback")
    assert callback.parent is None
    traceparent = f"00-{callback.context.trace_id:032x}-{callback.context.span_id:016x}-"
    assert str(await kept(receiver, answer["delivery_id"])).startswith(traceparent)


async def test_a_commit_is_linked_to_all_callbacks_that_it_wrote(
    receiver: Receiver, spans: InMemorySpanExporter
) -> None:
    for number in range(3):
        await receiver.callback({"event": "product.updated", "id": number})
    callbacks = {span.context.span_id for span in named(spans, "callback")}
    commits = named(spans, "commit")
    assert {link.context.span_id for commit in commits for link in commit.links} == callbacks
    assert sum((commit.attributes or {})["jasper_receiver.entries"] for commit in commits) == 3  # type: ignore[misc]  # ints


async def test_a_readers_page_belongs_to_the_readers_trace(receiver: Receiver, spans: InMemorySpanExporter) -> None:
    await receiver.http.get("/v1/events?after=0&limit=7", headers={"traceparent": TRACEPARENT})
    [page] = named(spans, "feed page")
    assert f"{page.context.trace_id:032x}" == TRACE_ID
    assert dict(page.attributes or {}) == {"jasper_receiver.after": 0, "jasper_receiver.limit": 7}


async def test_a_failure_is_told_by_its_kind_and_nothing_else(receiver: Receiver, spans: InMemorySpanExporter) -> None:
    await receiver.callback({"id": "body-text"}, x_secret="guessed")
    [callback] = named(spans, "callback")
    assert (callback.status.status_code, callback.status.description) == (StatusCode.ERROR, "NotAuthenticError")
    assert callback.events == ()
    assert "body-text" not in callback.to_json()
    assert "guessed" not in callback.to_json()


def test_without_opentelemetry_nothing_is_wrapped_and_nothing_imported() -> None:
    """As on a machine where the extra is not installed."""
    program = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
from app import main, tracing
from app.feed import queries
from app.intake.router import receive_callback
from app.ledger.writer import Writer
assert not tracing.INSTALLED
for function in (queries.page_of_all, receive_callback, Writer._commit):
    assert not hasattr(function, "__wrapped__"), function
assert tracing.handed_on([("traceparent", "%s")]) == "%s"
assert "google.protobuf" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program % (TRACEPARENT, TRACEPARENT)], check=True)


async def test_spans_are_sent_where_the_standard_variables_say(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", lambda **_: exporter)
    async with tracing.exporting():
        await receiver.callback()
    [callback] = named(exporter, "callback")
    assert callback.resource.attributes["service.name"] == "jasper-receiver"
    await receiver.callback({"event": "product.updated", "id": 7})
    assert len(named(exporter, "callback")) == 1


async def test_fastapi_traces_nothing_beside_whatever_the_environment_says(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its spans tell what stands in the query, and its records the words of exceptions."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    config = create_app(_settings(), "postgresql://", [])._telemetry
    assert (config["tracing"], config["metrics"], config["logs"], config["auto_configure"]) == (False,) * 4
    assert not receiver.app._native_telemetry.enabled()


def _settings() -> Settings:
    return Settings.model_validate({"database_url": "postgresql://", "encryption_keys": [generate_key()]})


async def test_without_an_address_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    async with tracing.exporting():
        assert tracing._tracer is None
