"""What the overview makes of what it sees: the worst first, each with what to do; and texts that say no more than is so."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.dashboard import presentation
from app.dashboard.findings import Seen, Severity, findings
from app.dashboard.presentation import ChangeLine
from app.dashboard.queries import Counts, Stretch
from app.domain.values import EntityType
from app.feed.consumer_schemas import Consumer
from app.intake.tally import Outcome
from app.registration.store import Registration, State

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
THOUSAND = "1\u202f000"


def a_consumer(name: str, lag_seconds: float) -> Consumer:
    return Consumer(
        name=name,
        position=1,
        lag=12,
        lag_seconds=lag_seconds,
        updated_at=NOW,
        leased_until=None,
        expires_at=None,
        overtaken=False,
    )


def a_registration(**given: Any) -> Registration:
    return Registration(
        **{"entity_type": EntityType.PRODUCT, "state": State.REGISTERED, "signing_secret": "secret"} | given
    )


def an_hour_with(outcome: Outcome) -> Stretch:
    return Stretch(NOW, {outcome: 3}, None, None)


def seen(**given: Any) -> Seen:
    well: dict[str, Any] = {
        "has_jasper": True,
        "receives": True,
        "writer_alive": True,
        "registrations": [a_registration()],
        "counts": Counts(0, 0, 0),
        "last_hour": Stretch(NOW, {Outcome.ACCEPTED: 5, Outcome.DUPLICATE: 1}, 3.0, 9.0),
        "consumers": [a_consumer("search", 10.0)],
        "now": NOW,
    }
    return Seen(**well | given)


def test_where_all_is_well_nothing_is_found() -> None:
    assert findings(seen()) == []


@pytest.mark.parametrize(
    ("given", "severity", "title"),
    [
        ({"writer_alive": False}, Severity.CRITICAL, "The writer has stopped"),
        ({"has_jasper": False, "registrations": []}, Severity.NOTE, "Nothing is registered with Jasper"),
        ({"registrations": [a_registration(locked=True)]}, Severity.CRITICAL, "The secret for product cannot be opened"),
        ({"registrations": [a_registration(state=State.FAILED)]}, Severity.WARNING, "The webhook for product is failed"),
        (
            {"registrations": [a_registration(state=State.FAILED, signing_secret=None)]},
            Severity.CRITICAL,
            "The webhook for product is failed",
        ),
        (
            {"registrations": [a_registration(state=State.DISABLED)]},
            Severity.CRITICAL,
            "The webhook for product is disabled",
        ),
        ({"counts": Counts(1, 0, 0)}, Severity.WARNING, "1 callback is quarantined: no event could be read from them"),
        (
            {"counts": Counts(0, 1001, 0)},
            Severity.WARNING,
            f"More than {THOUSAND} callbacks are kept apart: the secret could not be proven",
        ),
        ({"counts": Counts(0, 0, 2)}, Severity.NOTE, "2 events are set aside by consumers"),
        ({"last_hour": an_hour_with(Outcome.REFUSED)}, Severity.WARNING, "3 refused with 401 within the last hour"),
        ({"last_hour": an_hour_with(Outcome.PUT_OFF)}, Severity.WARNING, "3 put off with 503 within the last hour"),
        ({"consumers": [a_consumer("search", 301.0)]}, Severity.WARNING, "Consumer search is 5 min behind"),
    ],
)  # fmt: skip
def test_each_thing_that_is_not_well_is_told_with_what_to_do(
    given: dict[str, Any], severity: Severity, title: str
) -> None:
    [found] = findings(seen(**given))
    assert (found.severity, found.title) == (severity, title)
    assert len(found.advice) > 10
    assert found.href.startswith("/dashboard/")


def test_a_process_that_receives_nothing_is_not_told_that_it_cannot() -> None:
    assert findings(seen(receives=False, writer_alive=False, has_jasper=False)) == []


def test_the_worst_comes_first_and_of_many_late_consumers_the_latest_three() -> None:
    late = [a_consumer(f"c{hours}", hours * 3600.0) for hours in range(3, 9)]
    registrations = [a_registration(state=State.DISABLED, last_error="enable it in Jasper")]
    found = findings(seen(consumers=late, counts=Counts(0, 0, 1), registrations=registrations))
    assert [one.severity for one in found] == [0, 1, 1, 1, 2]
    assert [one.title.split()[1] for one in found[1:4]] == ["c8", "c7", "c6"]
    assert found[0].advice == "enable it in Jasper"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_a_span_has_one_unit(seconds: int, words: str) -> None:
    assert presentation.span(seconds) == presentation.span(timedelta(seconds=seconds)) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (5_242_880, "5.2 MB"), (10**12, "1000.0 GB")],
)
def test_a_size_has_a_fitting_unit(count: int, words: str) -> None:
    assert presentation.size(count) == words


def test_an_excerpt_says_whether_it_is_one() -> None:
    assert presentation.excerpt("abc", 3) == presentation.Excerpt("abc", 3, is_cut=False)
    assert presentation.excerpt("abcd", 3) == presentation.Excerpt("abc", 4, is_cut=True)
    assert presentation.excerpt("ü€".encode() * 10, 3) == presentation.Excerpt("ü€ü", 50, is_cut=True)
    assert presentation.excerpt("a\0\ud800", 3).text == "a\ufffd\ufffd"
    assert presentation.json_excerpt(b'{"a":1.10}') == presentation.Excerpt('{\n  "a": 1.10\n}', 10, is_cut=False)
    assert presentation.json_excerpt(b'{"a":"\\ud800"}').text == '{"a":"\\ud800"}'
    assert presentation.body_excerpt("//4=", "base64") == presentation.Excerpt("ff fe", 2, is_cut=False)


def test_changes_are_told_with_their_own_texts_and_no_more_than_fit() -> None:
    changes = '[{"op":"replace","path":"/a","from":1.10,"to":"\\ud800"},{"op":"add","path":"/b","to":null}]'
    assert presentation.change_lines(changes) == [
        ChangeLine("/a", "1.10", '"\\ud800"'),
        ChangeLine("/b", None, "null"),
    ]
    assert presentation.change_lines(None) == []
    many = ",".join(['{"path":"/a"}'] * 300)
    assert len(presentation.change_lines(f"[{many}]")) == 200
    [long] = presentation.change_lines(f'[{{"path":"/a","to":"{"x" * 400}"}}]')
    assert (len(long.after or ""), (long.after or "")[-1]) == (301, "…")


def test_a_list_leaves_out_that_something_was_changed_unless_that_is_all() -> None:
    lines = [ChangeLine("/updated_at", "1", "2"), ChangeLine("/price", "1", "2")]
    assert presentation.telling(lines) == lines[1:]
    assert presentation.telling(lines[:1]) == lines[:1]
