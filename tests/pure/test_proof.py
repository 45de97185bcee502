"""Who may call: the secret, whole, at every place the contract names, and at no other."""

import base64
import hmac
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.values import Headers
from app.jasper.proof import Location, carries_headers, prove
from tests.pure.strategies import HOSTILE, Json, damaged, names, objects, spell

SECRET = "whsec_7f/Zs+9aQ=="
OTHER = "whsec_another_one"
AUTO = Location("auto")
BODY = b'{"event":"product.updated","data":{"id":1}}'
UTTERLY_LONG = "x" * 5000

secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
randoms = st.randoms(use_true_random=False)


def _signature(body: bytes = BODY, secret: str = SECRET) -> bytes:
    return hmac.digest(secret.encode(), body, "sha256")


def _spelled_signatures() -> dict[str, str]:
    digest = _signature()
    return {
        "hex": digest.hex(),
        "upper case hex": digest.hex().upper(),
        "prefixed hex": f"sha256={digest.hex()}",
        "upper case prefix": f"SHA256={digest.hex()}",
        "base64": base64.b64encode(digest).decode(),
        "base64 without padding": base64.b64encode(digest).decode().rstrip("="),
        "prefixed base64": f"sha256={base64.b64encode(digest).decode()}",
        "base64 for addresses": base64.urlsafe_b64encode(digest).decode(),
    }


@pytest.mark.parametrize("value", [SECRET, f"Bearer {SECRET}", f"bearer {SECRET}", f"BEARER   {SECRET}"])
@pytest.mark.parametrize("location", [AUTO, Location("header", "x-any")])
def test_the_secret_in_a_header_is_proof(value: str, location: Location) -> None:
    headers = (("host", "here"), ("x-any", value))
    assert prove(headers, BODY, [OTHER, SECRET], location) == "header:x-any"


@pytest.mark.parametrize("value", _spelled_signatures().values(), ids=_spelled_signatures())
@pytest.mark.parametrize("location", [AUTO, Location("hmac-sha256", "signature")])
def test_a_signature_of_the_body_in_a_header_is_proof(value: str, location: Location) -> None:
    headers = (("host", "here"), ("signature", value))
    assert prove(headers, BODY, [OTHER, SECRET], location) == "hmac-sha256:signature"
    assert prove(headers, BODY + b" ", [OTHER, SECRET], location) is None
    assert prove(headers, BODY, [OTHER], location) is None


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"secret": SECRET}, "body:/secret"),
        ({"meta": {"secret": SECRET}}, "body:/meta/secret"),
        ({"meta": ["a", SECRET]}, "body:/meta/1"),
        ([SECRET], "body:/0"),
        ([{"secret": SECRET}], "body:/0/secret"),
        ({"a/b": {"~": SECRET}}, "body:/a~1b/~0"),
        ({"secret": "wrong", "meta": {"secret": SECRET}}, "body:/meta/secret"),
    ],
)
def test_the_secret_within_the_two_top_levels_of_the_body_is_proof(body: Json, place: str) -> None:
    text = json.dumps(body).encode()
    assert prove((), text, [OTHER, SECRET], AUTO) == place
    assert prove((), text, [OTHER, SECRET], Location.parse(place)) == place
    assert prove((), text, [OTHER], AUTO) is None


@pytest.mark.parametrize(
    "body",
    [{"a": {"b": {"secret": SECRET}}}, {"a": [[SECRET]]}, [[[SECRET]]], {SECRET: 1}, SECRET, {"a": f"{SECRET} "}],
)
def test_nothing_else_in_the_body_is(body: Json) -> None:
    """No third level, no name of a member, no body that is the secret, no string that only holds it."""
    assert prove((), json.dumps(body).encode(), [SECRET], AUTO) is None


def test_a_pinned_pointer_may_go_deeper() -> None:
    body = json.dumps({"a": {"b": [{"secret": SECRET}]}}).encode()
    assert prove((), body, [SECRET], Location.parse("body:/a/b/0/secret")) == "body:/a/b/0/secret"
    assert prove((), body, [SECRET], Location.parse("body:/a/b/1/secret")) is None
    assert prove((), body, [SECRET], Location.parse("body:/a")) is None


@given(objects, st.lists(names, min_size=1, max_size=2), randoms)
def test_the_secret_is_found_however_the_body_is_spelled(
    around: dict[str, Json], way: list[str], random: Random
) -> None:
    inside: Any = SECRET
    for name in reversed(way):
        inside = {name: inside}
    body = spell(around | inside, random)
    place = prove((), body, [OTHER, SECRET], AUTO)
    assert place is not None
    assert place.startswith("body:/")
    place.encode()
    assert "\0" not in place


@pytest.mark.parametrize("location", ["header:x-secret", "body:/secret", "hmac-sha256:x-signature", "header:X-Secret"])
def test_a_pinned_place_is_the_only_one(location: str) -> None:
    """`auto` never narrows by itself, but an operator may narrow it."""
    headers: Headers = (("x-secret", SECRET), ("x-signature", _signature().hex()))
    body = json.dumps({"secret": SECRET}).encode()
    complete = (("x-secret", SECRET), ("x-signature", _signature(body).hex()))
    assert prove(complete, body, [SECRET], Location.parse(location)) == location.lower()
    elsewhere = tuple((f"{name}-too", value) for name, value in headers)
    assert prove(elsewhere, json.dumps({"too": SECRET}).encode(), [SECRET], Location.parse(location)) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"secret":"%b","data":{"a":1,"a":2}}',
        b'{"data":{"a":1,"a":2},"secret":"%b"}',
        b'{"a":1,"a":2,"secret":"%b"}',
        b'{"data":NaN,"secret":"%b"}',
        b'\xef\xbb\xbf{"secret":"%b"}',
        b'{"data":"\\ud800","secret":"%b"}',
        b'{"n":%b,"secret":"%%b"}' % (b"9" * 5000),
    ],
)
def test_what_makes_a_body_unreadable_does_not_make_the_caller_a_stranger(body: bytes) -> None:
    """It is authentic and quarantined, not refused and lost."""
    body = body.replace(b"%b", SECRET.encode())
    assert prove((), body, [SECRET], AUTO) == "body:/secret"
    assert prove((), body, [SECRET], Location.parse("body:/secret")) == "body:/secret"


@given(secrets, st.integers(0, 40), st.sampled_from(["header", "bearer", "body", "hmac"]))
def test_a_part_of_the_secret_proves_nothing(secret: str, length: int, where: str) -> None:
    part = secret[: length % len(secret)]
    headers: Headers = ()
    body = BODY
    match where:
        case "header":
            headers = (("x", part), ("y", f"{secret}{secret}"), ("z", f"a {secret}"))
        case "bearer":
            headers = (("authorization", f"Bearer {part}"), ("x", f"Basic {secret}"), ("y", f"Bearer{secret}"))
        case "body":
            body = json.dumps({"x": part, "y": secret + "x", "z": ["", part]}).encode()
        case _:
            headers = (("x", _signature(secret=part).hex()), ("y", _signature(secret=secret).hex()[:-1]))
    assert prove(headers, body, [secret], AUTO) is None


@given(damaged(), secrets, st.sampled_from(["auto", "header:x", "body:/data", "hmac-sha256:x"]))
def test_proof_is_total_and_needs_the_secret(body: bytes, secret: str, location: str) -> None:
    """Whatever the body is: no exception, and no proof where the secret stands nowhere."""
    headers = (("x", "\xff\0"), ("y", ""), ("z", "sha256="), ("a", "A" * 43), ("b", "é" * 64), ("c", "=" * 44))
    secret = f"unguessable {secret}"
    assert prove(headers, body, [secret], Location.parse(location)) is None


@pytest.mark.parametrize("secrets", [[], [""]])
def test_no_secret_and_an_empty_one_prove_nothing(secrets: list[str]) -> None:
    headers = (("x", ""), ("authorization", "Bearer "), ("signature", _signature(secret="").hex()))
    assert prove(headers, b'{"a":""}', secrets, AUTO) is None
    assert prove(headers, BODY, secrets, AUTO) is None


def test_the_place_is_fit_to_be_kept_and_shown() -> None:
    """Names in the body are the caller's: one may be the secret, unfit for Postgres or without end."""
    for name in (SECRET, "\0", "\ud800", UTTERLY_LONG):
        place = prove((), json.dumps({name: SECRET}).encode(), [SECRET], AUTO)
        assert place is not None
        assert SECRET not in place
        assert "\0" not in place
        assert len(place.encode()) <= 200


def test_the_first_proof_found_is_named_among_several() -> None:
    headers = (("signature", _signature().hex()), ("x-secret", SECRET))
    assert prove(headers, json.dumps({"secret": SECRET}).encode(), [SECRET], AUTO) == "header:x-secret"


@pytest.mark.parametrize(
    ("headers", "complete"),
    [
        ((("my-header", "abc123"), ("x", "y")), True),
        ((("my-header", "wrong"), ("my-header", "abc123"), ("x", "y")), True),
        ((("my-header", "ABC123"), ("x", "y")), False),
        ((("my-header", "abc12"), ("x", "y")), False),
        ((("my-header", "abc123"),), False),
        ((("x", "abc123"), ("my-header", "y")), False),
        ((), False),
    ],
)
def test_every_required_header_is_needed_with_its_value(headers: Headers, complete: bool) -> None:
    assert carries_headers(headers, {"My-Header": "abc123", "X": "y"}) is complete


@pytest.mark.parametrize("where", ["header", "body", "signature"])
def test_every_secret_is_compared_whichever_fits(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long an answer takes tells neither which secret fitted nor how much of a guess was right."""
    compared: list[int] = []
    genuine = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(1)
        return genuine(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    known = ["whsec_first_of_three", "whsec_second_of_them", "whsec_third_and_last"]
    counts = dict[str, int]()
    for guess in (*known, "whsec_first_of_thre!", "nothing at all......"):
        headers: Headers = ()
        body = BODY
        match where:
            case "header":
                headers = (("x", guess),)
            case "body":
                body = json.dumps({"x": guess}).encode()
            case _:
                headers = (("x", _signature(secret=guess).hex()),)
        compared.clear()
        proven = prove(
            headers,
            body,
            known,
            AUTO if where == "header" else Location.parse("body:/x" if where == "body" else "hmac-sha256:x"),
        )
        assert (proven is not None) is (guess in known)
        counts[guess] = len(compared)
    assert len({counts[guess] for guess in known}) == 1
    assert len({counts[guess] for guess in counts if guess not in known}) == 1
    assert min(counts.values()) >= len(known)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_body_is_refused_in_a_moment(body: bytes) -> None:
    """Anyone can send one: this is the only rule that runs before it is known who calls."""
    assert prove((("x", "y"),), body, [SECRET, OTHER], AUTO) is None


@pytest.mark.parametrize("secret", [SECRET, 'two\\ways"é', "\U0001f511\U0001f511 key", "\u0130"])
@given(random=randoms)
def test_a_secret_of_any_characters_is_found_in_every_spelling(secret: str, random: Random) -> None:
    body = spell({"a": [secret], "b": {"c": f"{secret} "}}, random)
    assert prove((), body, [OTHER, secret], AUTO) == "body:/a/0"
    assert prove((), body, [f"{secret}x"], AUTO) is None


@pytest.mark.parametrize("location", [AUTO, Location("body", "/data/secret")])
@pytest.mark.parametrize(
    "body", [b'{"data":{%b}}' % b",".join(b'"%d":"%024d"' % (n, n) for n in range(100_000)), *HOSTILE.values()]
)
def test_what_a_stranger_sends_is_never_parsed(
    body: bytes, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few megabytes of tiny values take the parser seconds, in which nobody else is served."""
    monkeypatch.setattr("app.jasper.proof._parsed", None)
    assert prove((("x", "y"),), body, [SECRET, "n" * 24], location) is None
