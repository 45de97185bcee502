"""Reading the JSON bodies of calls under `/v1`: bounded in size and time, strict in what they hold."""

from collections.abc import AsyncIterator

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.types import Message

from app import paging
from app.errors import BodyTooLargeError, RequestTimeoutError
from app.paging import Body, read_body
from tests.pure.test_body import a_request


class Numbered(Body):
    number: int = 0


read = read_body(Numbered)


async def test_a_body_in_pieces_is_read_whole_and_none_is_an_empty_object() -> None:
    assert await read(Request(*a_request(b'{"num', b'ber": 7}'))) == Numbered(number=7)
    assert await read(Request(*a_request())) == Numbered(number=0)


@pytest.mark.parametrize("spelling", [b"7", b"7.0", b"70e-1", b"0.7e1"])
async def test_a_whole_number_is_one_however_it_is_spelled(spelling: bytes) -> None:
    assert await read(Request(*a_request(b'{"number": %b}' % spelling))) == Numbered(number=7)


async def test_a_body_that_never_ends_is_refused_as_soon_as_it_is_too_large() -> None:
    with pytest.raises(BodyTooLargeError):
        await read(Request(*a_request(b" " * 65_536, b" ", then_hang=True)))


async def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_SLOWEST_BODY", 0.01)
    with pytest.raises(RequestTimeoutError):
        await read(Request(*a_request(b"{", then_hang=True)))


async def test_a_caller_that_hangs_up_is_no_error_of_ours() -> None:
    async def messages() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": b"{", "more_body": True}
        yield {"type": "http.disconnect"}

    with pytest.raises(RequestTimeoutError):
        await read(Request({"type": "http", "headers": []}, messages().__anext__))


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"number": "7"}', ("body", "number")),
        (b'{"number": 7.5}', ("body", "number")),
        (b'{"number": 9007199254740994.0}', ("body", "number")),
        (b'{"number": true}', ("body", "number")),
        (b'{"numbr": 7}', ("body", "numbr")),
        (b"7", ("body",)),
        (b"{", ("body",)),
    ],
)
async def test_nothing_is_ignored_or_taken_for_another_type(body: bytes, where: tuple[str, ...]) -> None:
    with pytest.raises(RequestValidationError) as caught:
        await read(Request(*a_request(body)))
    assert [error["loc"] for error in caught.value.errors()] == [where]
