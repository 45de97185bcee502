"""Secrets are blanked in every spelling, and nothing else is touched."""

import json
from random import Random

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from app.jasper.redact import BLANK, redact_body, redact_headers
from tests.pure.strategies import HOSTILE, Json, damaged, objects, parse, spell, spellings, texts, values

SECRET = "whsec_7f/Zs+9aQ=="
OTHER = 'whsec_another\\one"é'
SHORT = "s3cret"

randoms = st.randoms(use_true_random=False)
secrets = st.lists(
    st.sampled_from([SECRET, OTHER, SHORT, SECRET[:13], "nothing/in/it", "u0041u0041u0041", "\U0001f511" * 12]),
    min_size=1,
    max_size=3,
)


def _spell(text: str, random: Random) -> str:
    return "".join(random.choice(spellings(char)) for char in text)


@given(objects, texts, texts, randoms, st.sampled_from([SECRET, OTHER, "\U0001f511" * 12]))
@example({}, "\\", "", Random(1), SECRET)
@example({}, "\\u005", "", Random(1), SECRET)
def test_a_secret_is_blanked_in_every_spelling_and_place(
    around: dict[str, Json], before: str, after: str, random: Random, secret: str
) -> None:
    """As a whole string, as part of one, as a name; what stands around it is the same as before."""
    assume(secret not in before + after)
    body = {
        **around,
        "whole": secret,
        "part": [f"{before}{secret}{after}"],
        "nested": {secret: {"x": f"Bearer {secret}"}},
    }
    found = parse(redact_body(spell(body, random), [secret]))
    expected = before + BLANK + after if before or after else BLANK
    assert found == {**around, "whole": BLANK, "part": [expected], "nested": {BLANK: {"x": BLANK}}}


@given(values, randoms, secrets)
def test_what_holds_no_secret_stays_byte_for_byte(value: Json, random: Random, known: list[str]) -> None:
    body = spell(value, random)
    assert redact_body(body, known) == body


@given(texts, randoms)
def test_the_rest_of_a_string_keeps_its_spelling(text: str, random: Random) -> None:
    rest = _spell(text, random)
    body = f'{{"a":"{rest}{_spell(SECRET, random)} {rest}"}}'.encode()
    expected = f'{{"a":"{rest}{BLANK} {rest}"}}'
    assert redact_body(body, [SECRET]) == expected.encode()


@given(damaged(), st.integers(0, 200), randoms, secrets)
def test_no_long_secret_survives_as_it_is_in_what_begins_with_anything_but_json(
    body: bytes, position: int, random: Random, known: list[str]
) -> None:
    body = b"x" + body[:position] + random.choice(known).encode() + body[position:]
    redacted = redact_body(body, known)
    assert not any(secret.encode() in redacted for secret in known)


@given(damaged(), st.integers(0, 200), randoms, st.sampled_from(["whsec_7f/Zs+9aQ==", "key-of-another-kind"]))
@example(b'{"a":"\\', 7, Random(1), "whsec_7f/Zs+9aQ==")
def test_no_long_secret_survives_in_what_only_looks_like_json(
    body: bytes, position: int, random: Random, secret: str
) -> None:
    """Such a body is quarantined whole, so a backslash that begins no escape must not hide what stands behind it."""
    spelled = random.choice([secret, secret.replace("/", "\\/"), "".join(f"\\u{ord(char):04x}" for char in secret)])
    redacted = redact_body(body[:position] + spelled.encode() + body[position:], [secret])
    assert secret.encode() not in redacted.replace(b"\\/", b"/")


def test_an_escaped_secret_is_blanked_in_what_is_no_json_too() -> None:
    escaped = "".join(f"\\u{ord(char):04x}" for char in SECRET)
    assert redact_body(f"x={escaped}&y={SECRET}".encode(), [SECRET]) == f"x={BLANK}&y={BLANK}".encode()


@given(damaged(), secrets)
def test_redaction_is_total_and_can_be_repeated(body: bytes, known: list[str]) -> None:
    redacted = redact_body(body, known)
    assert redact_body(redacted, known) == redacted


@given(values, randoms, secrets)
def test_json_stays_json(value: Json, random: Random, known: list[str]) -> None:
    body = spell([value, *known, dict.fromkeys(known, value)], random)
    assert len(parse(redact_body(body, known))) == len(known) + 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":"s3cret","b":"not s3cret"}', b'{"a":"[redacted]","b":"not s3cret"}'),
        (b'{"a":"Bearer s3cret","b":"s3crets"}', b'{"a":"[redacted]","b":"s3crets"}'),
        (rb'{"a":"\u0073\u0033cret","b":"\\u0073\u0033cret"}', rb'{"a":"[redacted]","b":"\\u0073\u0033cret"}'),
        (rb'{"a":"x\"s3cret"}', rb'{"a":"x\"s3cret"}'),
        (b'{"s3cret":1}', b'{"[redacted]":1}'),
    ],
)
def test_a_short_secret_is_blanked_only_as_a_whole_value(body: bytes, expected: bytes) -> None:
    """Inside other text it may be there by chance."""
    assert redact_body(body, [SHORT]) == expected


def test_an_escaped_backslash_is_not_the_begin_of_another_escape() -> None:
    """The string is a backslash and `u0077hsec…`, in which no secret stands."""
    body = rb'{"a":"\\u0077%b"}' % SECRET[1:].encode()
    assert redact_body(body, [SECRET]) == body


def test_digits_are_never_taken_out_of_a_number() -> None:
    body = b'{"id":123456789012,"price":9123456789012.5,"a":"123456789012"}'
    assert redact_body(body, ["123456789012"]) == body.replace(b'"123456789012"', b'"[redacted]"')


def test_of_two_secrets_that_begin_alike_the_longer_one_is_blanked_whole() -> None:
    known = [SECRET, f"{SECRET}-and-more"]
    for order in (known, known[::-1]):
        assert redact_body(json.dumps({"a": f"x {known[1]}"}).encode(), order) == b'{"a": "x [redacted]"}'
        assert redact_headers((("a", f"x {known[1]}"),), order, []) == (("a", f"x {BLANK}"),)


def test_a_byte_order_mark_hides_nothing() -> None:
    escaped = "".join(f"\\u{ord(char):04X}" for char in SECRET)
    assert redact_body(b'\xef\xbb\xbf{"a":"%b"}' % escaped.encode(), [SECRET]) == b'\xef\xbb\xbf{"a":"[redacted]"}'


def test_an_empty_secret_blanks_nothing() -> None:
    body = b'{"a":"","b":"\\u0041"}'
    assert redact_body(body, [""]) == body
    assert redact_headers((("a", ""),), [""], []) == (("a", ""),)


def test_headers_lose_secrets_required_values_and_proof() -> None:
    headers = (
        ("host", "here"),
        ("authorization", "Basic abc"),
        ("cookie", "a=b"),
        ("x-secret", SECRET),
        ("x-bearer", f"bearer  {SHORT}"),
        ("x-both", f"key={SECRET}; v=1"),
        ("my-header", "abc123"),
        ("x-copy", "a long required value"),
        ("signature", "sha256=00"),
        ("x-status", "abc123"),
    )
    required = [{"My-Header": "abc123"}, {"X-Long": "a long required value"}]
    redacted = redact_headers(headers, [SECRET, SHORT], required, "signature")
    assert dict(redacted) == {
        "host": "here",
        "authorization": BLANK,
        "cookie": BLANK,
        "x-secret": BLANK,
        "x-bearer": BLANK,
        "x-both": f"key={BLANK}; v=1",
        "my-header": BLANK,
        "x-copy": BLANK,
        "signature": BLANK,
        "x-status": "abc123",  # an ordinary word elsewhere
    }


@pytest.mark.timeout(20)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_are_redacted_in_a_moment(body: bytes) -> None:
    assert redact_body(body, [SECRET, SHORT]) == body
    assert len(redact_body(body + SECRET.encode(), [SECRET, SHORT])) <= len(body) + len(SECRET)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", [SECRET[:-1], "whsec_", "\\u0077", "\\/", '"\\"'])
def test_bodies_full_of_almost_secrets_are_redacted_in_a_moment(piece: str) -> None:
    body = b'{"a":"' + piece.encode() * (200_000 // len(piece)) + b'"}'
    assert redact_body(body, [SECRET, SHORT]) == body
