"""What the overview tells besides what `status` does, problems first; and texts that say no more than is so."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.dashboard import presentation
from app.dashboard.findings import Seen, findings
from app.dashboard.presentation import ChangeLine
from app.dashboard.queries import Stretch
from app.intake.tally import Outcome
from app.status import Level
from app.status import findings as findings_of_status
from tests.pure.test_status import NOW, SETTINGS, WELL, with_registration

THOUSAND = "1\u202f000"


def an_hour_with(outcome: Outcome) -> Stretch:
    return Stretch(NOW, {outcome: 3}, None, None)


def seen(**given: Any) -> Seen:
    well: dict[str, Any] = {
        "receives": True,
        "writer_alive": True,
        "last_hour": Stretch(NOW, {Outcome.ACCEPTED: 5, Outcome.DUPLICATE: 1}, 3.0, 9.0),
        "parked": 0,
    }
    return Seen(**well | given)


def test_where_all_is_well_nothing_is_found() -> None:
    assert findings(seen(), WELL, SETTINGS, NOW) == []


def test_what_status_finds_is_told_word_for_word_and_problems_come_first() -> None:
    status = replace(with_registration(last_callback_at=NOW - timedelta(days=3)), quarantined=2)
    found = findings(seen(parked=1, writer_alive=False), status, SETTINGS, NOW)
    assert [one.code for one in found] == ["writer-stopped", "quarantined", "events-parked", "quiet"]
    assert [found[1], found[3]] == findings_of_status(status, SETTINGS, NOW)


@pytest.mark.parametrize(
    ("given", "level", "code", "what"),
    [
        ({"writer_alive": False}, Level.PROBLEM, "writer-stopped", "the writer of this process has stopped"),
        ({"last_hour": an_hour_with(Outcome.REFUSED)}, Level.NOTE, "callbacks-refused", "3 refused with 401"),
        ({"last_hour": an_hour_with(Outcome.PUT_OFF)}, Level.NOTE, "callbacks-put-off", "3 put off with 503"),
        ({"parked": 2}, Level.NOTE, "events-parked", "set aside: 2"),
        ({"parked": 1001}, Level.NOTE, "events-parked", f"set aside: more than {THOUSAND}"),
    ],
)  # fmt: skip
def test_what_a_process_sees_itself_is_told_with_what_to_do(
    given: dict[str, Any], level: Level, code: str, what: str
) -> None:
    [found] = findings(seen(**given), WELL, SETTINGS, NOW)
    assert (found.level, found.code) == (level, code)
    assert what in found.what
    assert len(found.todo) > 10


def test_a_process_that_receives_nothing_is_not_told_that_it_cannot() -> None:
    assert findings(seen(receives=False, writer_alive=False), WELL, SETTINGS, NOW) == []


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
    deep = b"[" * 1500 + b"]" * 1500
    assert presentation.json_excerpt(deep) == presentation.Excerpt(deep.decode(), 3000, is_cut=False)
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
