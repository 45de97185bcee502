"""How long a proof takes tells nothing about how much of a guess was right; and all accepted secrets are always compared.

Measured on a secret so long that a comparison which stops early would show, by the fastest of many rounds in turn, which is
what a busy machine disturbs least. That the measuring would notice is a test of its own.
"""

import hmac
import time
from collections.abc import Callable

import pytest

from app.domain.values import Headers
from app.jasper import proof
from app.jasper.proof import Location, prove

AUTO = Location("auto")
LENGTH = 256 * 1024
SECRET = "s" * LENGTH
ROUNDS = 24

GUESSES = {
    "nothing right": "x" * LENGTH,
    "the first half right": "s" * (LENGTH // 2) + "x" * (LENGTH // 2),
    "the second half right": "x" * (LENGTH // 2) + "s" * (LENGTH // 2),
    "all but the last letter right": "s" * (LENGTH - 1) + "x",
}

Callback = tuple[Headers, bytes]


def in_a_header(guess: str) -> Callback:
    return (("x-secret", guess),), b"{}"


def in_the_body(guess: str) -> Callback:
    return (), b'{"secret":"%b"}' % guess.encode()


def spread(place: Callable[[str], Callback]) -> float:
    """By how much the slowest guess takes longer than the fastest: 0.1 is a tenth."""
    callbacks = [place(guess) for guess in GUESSES.values()]
    fastest = [float("inf")] * len(callbacks)
    for _ in range(ROUNDS):
        for number, (headers, body) in enumerate(callbacks):
            begun = time.perf_counter()
            assert prove(headers, body, (SECRET,), AUTO) is None
            fastest[number] = min(fastest[number], time.perf_counter() - begun)
    return max(fastest) / min(fastest) - 1


@pytest.mark.parametrize("place", [in_a_header, in_the_body])
def test_the_time_of_a_proof_does_not_depend_on_how_much_was_right(place: Callable[[str], Callback]) -> None:
    found = [spread(place) for _ in range(3)]
    assert min(found) < 0.06, found  # a busy machine may spoil one or two


def stops_early(given: str, secret: str) -> bool:
    return given == secret


def letter_by_letter(given: str, secret: str) -> bool:
    return all(one == other for one, other in zip(given, secret, strict=True))


@pytest.mark.parametrize("naive", [stops_early, letter_by_letter])
@pytest.mark.parametrize("place", [in_a_header, in_the_body])
def test_the_measuring_notices_a_comparison_that_stops_early(
    monkeypatch: pytest.MonkeyPatch, place: Callable[[str], Callback], naive: Callable[[str, str], bool]
) -> None:
    monkeypatch.setattr(proof, "_same", naive)
    monkeypatch.setattr(f"{__name__}.ROUNDS", 12)
    assert spread(place) > 0.12


@pytest.mark.parametrize("right", [0, 1, 2, None])
@pytest.mark.parametrize("signed", [True, False])
def test_every_accepted_secret_is_compared_whichever_fits(
    monkeypatch: pytest.MonkeyPatch, right: int | None, signed: bool
) -> None:
    secrets = ("first-secret-of-some-length", "other-secret-of-some-length", "third-secret-of-some-length")
    secret = "a-guess-with-the-same-lengths" if right is None else secrets[right]
    value = hmac.digest(secret.encode(), b"{}", "sha256").hex() if signed else secret
    seen: list[bytes] = []
    compare = hmac.compare_digest

    def note(given: bytes, expected: bytes) -> bool:
        seen.append(expected)
        return compare(given, expected)

    monkeypatch.setattr("app.jasper.proof.hmac.compare_digest", note)
    assert (prove((("x-secret", value),), b"{}", secrets, AUTO) is None) == (right is None)
    expected = [hmac.digest(one.encode(), b"{}", "sha256") if signed else one.encode() for one in secrets]
    assert set(expected) <= set(seen)
