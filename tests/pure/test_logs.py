"""Lines of the log: one form for all, bounded where they repeat, pleasant where people read them."""

import json
import logging
import re
from typing import Any

import pytest

from app import logs
from app.logs import FloodGuard


def a_record(message: str = "it broke", level: int = logging.WARNING, name: str = "app.feed", **extra: Any) -> Any:
    return logging.getLogger(name).makeRecord(name, level, "file", 1, message, (), None, extra=extra)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("app.logs.time.monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_of_what_repeats_only_so_much_is_written() -> None:
    guard = FloodGuard(most=3, period=10.0)
    assert [guard.filter(a_record(number=number)) for number in range(5)] == [True] * 3 + [False] * 2


def test_the_first_line_of_the_next_period_says_how_many_were_left_out(clock: list[float]) -> None:
    guard = FloodGuard(most=3, period=10.0)
    for _ in range(8):
        guard.filter(a_record())
    clock[0] += 10.0
    first, second = a_record(), a_record()
    assert guard.filter(first)
    assert guard.filter(second)
    assert first.left_out == 5
    assert not hasattr(second, "left_out")


@pytest.mark.usefixtures("clock")
def test_what_is_said_elsewhere_or_in_other_words_is_counted_apart() -> None:
    guard = FloodGuard(most=1, period=10.0)
    assert guard.filter(a_record())
    assert guard.filter(a_record("it broke otherwise"))
    assert guard.filter(a_record(name="app.intake"))
    assert not guard.filter(a_record())


@pytest.mark.usefixtures("clock")
def test_what_is_no_warning_is_always_written() -> None:
    guard = FloodGuard(most=1, period=10.0)
    assert all(guard.filter(a_record(level=logging.INFO)) for _ in range(5))


@pytest.mark.usefixtures("clock")
def test_words_that_are_always_new_fill_no_memory() -> None:
    guard = FloodGuard(most=1, period=10.0)
    for number in range(5000):
        guard.filter(a_record(f"message {number}"))
    assert len(guard._seen) <= 1000


def written(capsys: pytest.CaptureFixture[str], log_format: str) -> str:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logs.configure("info", log_format)
    token = logs.REQUEST_ID.set("order-7")
    try:
        logging.getLogger("app.intake.router").warning("callback rejected", extra={"reason": "no secret", "bytes": 12})
    finally:
        logs.REQUEST_ID.reset(token)
        root.handlers = before
        root.setLevel(level)
    return capsys.readouterr().err


def test_a_line_of_json_has_everything_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    line = json.loads(written(capsys, "json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "event": "callback rejected",
        "level": "warning",
        "logger": "app.intake.router",
        "reason": "no secret",
        "bytes": 12,
        "request_id": "order-7",
    }


def test_a_line_for_people_begins_with_the_time_and_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    line = written(capsys, "console")
    assert re.match(r"\d\d:\d\d:\d\d \[warning *\] callback rejected ", line)
    assert line.count("\n") == 1
    assert line.rstrip().endswith("reason='no secret' bytes=12 request_id=order-7")  # in the order they were given
