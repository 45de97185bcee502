"""How long a proof takes does not tell how much of a guess was right: measured, and the measuring itself is tested.

CPU time of this thread is taken rather than the clock's, each kind of guess in turn and in a new order every round, and of
each the lowest tenth: whatever else the machine does only ever adds. The secret is far longer than a real one, so that a
comparison which stops at the first difference shows.
"""

import time
from collections.abc import Callable, Mapping
from random import Random

import pytest

from app.jasper import proof
from app.jasper.proof import Location, carries_headers, prove

LENGTH = 400_000
ROUNDS = 60
MOST = 0.1
"""How far the guesses may lie apart, as a share of the fastest. `==` on bytes, the hardest to tell, lies four times as far."""

SECRET = "".join(Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=LENGTH))


def _wrong(text: str) -> str:
    """A text of the same length in which no character is right."""
    return text.translate(str.maketrans("abcdefghijklmnopqrstuvwxyz0123456789", "bcdefghijklmnopqrstuvwxyz0123456789a"))


HALF = LENGTH // 2
GUESSES = {
    "nothing": _wrong(SECRET),
    "the first half": SECRET[:HALF] + _wrong(SECRET[HALF:]),
    "the second half": _wrong(SECRET[:HALF]) + SECRET[HALF:],
    "all but the last": SECRET[:-1] + _wrong(SECRET[-1]),
    "all but the first": _wrong(SECRET[0]) + SECRET[1:],
    "every second one": "".join(
        right if index % 2 else other for index, (right, other) in enumerate(zip(SECRET, _wrong(SECRET), strict=True))
    ),
}


def _spread(judge: Callable[[str], object], guesses: Mapping[str, str], rounds: int) -> float:
    """How far the times of the guesses lie apart, as a share of the fastest."""
    random = Random(1)
    times: dict[str, list[int]] = {name: [] for name in guesses}
    for _ in range(rounds):
        for name in random.sample(list(guesses), len(guesses)):
            begun = time.thread_time_ns()
            judge(guesses[name])
            times[name].append(time.thread_time_ns() - begun)
    lowest = [sorted(taken)[rounds // 10] for taken in times.values()]
    return max(lowest) / min(lowest) - 1


def _spread_of(judge: Callable[[str], object], guesses: Mapping[str, str] = GUESSES, rounds: int = ROUNDS) -> float:
    """The least of three measurements: chance may part what belongs together, but not bring together what is apart."""
    spread = float("inf")
    for _ in range(3):
        spread = min(spread, _spread(judge, guesses, rounds))
        if spread < MOST:
            break
    return spread


def _in_header(guess: str) -> object:
    return prove((("x", guess),), b"", [SECRET], Location("header", "x"))


def _as_bearer(guess: str) -> object:
    return prove((("authorization", f"Bearer {guess}"),), b"", [SECRET], Location("header", "authorization"))


def _in_required_header(guess: str) -> object:
    return carries_headers((("my-header", guess),), {"My-Header": SECRET})


@pytest.mark.parametrize("judge", [_in_header, _as_bearer, _in_required_header])
def test_the_time_of_a_proof_does_not_tell_how_much_of_a_guess_was_right(judge: Callable[[str], object]) -> None:
    assert not judge(GUESSES["all but the last"])
    assert judge(SECRET)
    assert _spread_of(judge) < MOST


def _equal(given: str, secret: str) -> bool:
    return given.encode() == secret.encode()


def _letter_by_letter(given: str, secret: str) -> bool:
    for one, other in zip(given, secret, strict=False):
        if one != other:
            return False
    return len(given) == len(secret)


@pytest.mark.parametrize("naive", [_equal, _letter_by_letter])
@pytest.mark.parametrize("judge", [_in_header, _in_required_header])
def test_a_naive_comparison_would_be_found(
    judge: Callable[[str], object], naive: Callable[[str, str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_same", naive)
    assert judge(SECRET)
    assert _spread_of(judge, rounds=10) > 2 * MOST
