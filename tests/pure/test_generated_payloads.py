"""The run of generated payloads (`bench/payloads.py`): a small one finds nothing, and it would find what breaks."""

from typing import Any

import pytest
from msgspec.structs import replace

from app.domain.values import JsonText, Reading
from app.jasper.reading import interpret
from bench import payloads
from bench.payloads import Report

COUNT = 1_000


def run(count: int = COUNT) -> Report:
    *_, report = payloads.run(seed=7, first=0, count=count)
    return report


def test_nothing_is_found_in_a_small_run() -> None:
    report = run()
    assert report.violations == []
    assert report.taken == COUNT
    assert report.readings > COUNT // 4
    assert sum(report.reasons.values()) == COUNT - report.readings
    assert len(report.reasons) > 30


def test_a_payload_is_always_the_same_one() -> None:
    assert [payloads.callback(7, number) for number in range(50)] == [
        payloads.callback(7, number) for number in range(50)
    ]
    assert payloads.callback(7, 1) != payloads.callback(8, 1)


def _loses_a_byte(*given: Any) -> Any:
    reading = interpret(*given)
    if isinstance(reading, Reading) and reading.data is not None:
        return replace(reading, data=JsonText(reading.data.replace(b" ", b"").replace(b"a", b"b")))
    return reading


def _raises_at_an_id(*given: Any) -> Any:
    reading = interpret(*given)
    if isinstance(reading, Reading) and reading.entity_id == "17":
        raise KeyError
    return reading


def _reads_white_space(entity_type: Any, headers: Any, body: bytes, mapping: Any) -> Any:
    reading = interpret(entity_type, headers, body, mapping)
    return replace(reading, delivery_key=f"{len(body)}") if isinstance(reading, Reading) else reading


@pytest.mark.parametrize(
    ("name", "broken", "what"),
    [
        ("interpret", _loses_a_byte, "slice of the body"),
        ("interpret", _raises_at_an_id, "KeyError"),
        ("interpret", _reads_white_space, "another delivery_key"),
        ("redact_body", lambda body, _secrets: body, "secret is left"),
        ("redact_body", lambda body, secrets: body.replace(secrets[0].encode(), b"[redacted]"), "secret is left"),
        ("prove", lambda *_given: None, "the proof is None"),
        ("prove", lambda *_given: "header:x", "proven is False"),
        ("idempotency_keys", lambda _type, _reading, body: (body,), "counts as another delivery"),
    ],
)
def test_what_breaks_is_found(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any, what: str) -> None:
    monkeypatch.setattr(payloads, name, broken)
    assert any(what in found for _, found, _ in run().violations)
