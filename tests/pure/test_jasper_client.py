"""Jasper's API as the client reads it: pages, wrapping, repetition, and refusals in words without secrets."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.domain.values import EntityType
from app.errors import JasperError, JasperRefusedError, JasperUnavailableError
from app.jasper.client import MAX_ANSWER_BYTES, JasperClient, Patience, Webhook, WebhookProperties
from tests.fake_jasper import API_URL, IMPATIENT, TOKEN, FakeJasper, http_answered_by

WANTED = WebhookProperties(
    name="Product Updates Webhook",
    callback_url="https://receiver.test/callbacks/products",
    entity_type=EntityType.PRODUCT,
    include_entity_data=True,
    headers={"X-Custom": "value-that-nobody-may-see"},
    retry_policy="linear",
    minimum_retry_interval=300,
    retry_limit=5,
)


def client_for(jasper: FakeJasper) -> JasperClient:
    return JasperClient(jasper.http, IMPATIENT)


def client_answering(*answers: httpx.Response | Exception) -> JasperClient:
    """A client to which the given answers are given, one after the other."""
    following = iter(answers)
    return JasperClient(http_answered_by(lambda _: _give(following)), IMPATIENT)


def _give(answers: Iterator[httpx.Response | Exception]) -> httpx.Response:
    answer = next(answers)
    if isinstance(answer, Exception):
        raise answer
    return answer


async def test_ping_tells_jaspers_time() -> None:
    assert await client_for(FakeJasper()).ping() == "Tue Feb 7 19:05:03 UTC 2017"


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("numeric_ids", [True, False])
async def test_created_webhook_is_read_wrapped_or_not_with_either_kind_of_id(wrapped: bool, numeric_ids: bool) -> None:
    jasper = FakeJasper(wrapped=wrapped, numeric_ids=numeric_ids)
    created = await client_for(jasper).create_webhook(WANTED)
    assert created.id == ("1" if numeric_ids else "wh_1")
    assert created.signing_secret == "signing-secret-1"
    assert WANTED.differences(created) == ()
    assert jasper.bodies[-1] == {
        "name": "Product Updates Webhook",
        "callback_url": "https://receiver.test/callbacks/products",
        "entity_type": "product",
        "include_entity_data": True,
        "headers": {"X-Custom": "value-that-nobody-may-see"},
        "retry_policy": "linear",
        "minimum_retry_interval": 300,
        "retry_limit": 5,
    }


@pytest.mark.parametrize("bare_list", [True, False])
async def test_list_is_read_to_its_end(bare_list: bool) -> None:
    jasper = FakeJasper(bare_list=bare_list, page_size=2)
    for number in range(5):
        jasper.add(name=f"webhook {number}")
    webhooks = await client_for(jasper).webhooks()
    assert [webhook.name for webhook in webhooks] == [f"webhook {number}" for number in range(5)]


def page(*ids: int, **around: Any) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"id": number} for number in ids], **around})


async def test_list_without_links_is_read_by_page_numbers() -> None:
    client = client_answering(
        page(1, meta={"current_page": 1, "last_page": 2}), page(2, meta={"current_page": 2, "last_page": 2})
    )
    assert [webhook.id for webhook in await client.webhooks()] == ["1", "2"]


async def test_relative_link_to_the_next_page_is_followed() -> None:
    urls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        urls.append(str(request.url))
        return page(1, links={"next": "?cursor=abc"}) if len(urls) == 1 else page(2, links={"next": None})

    client = JasperClient(http_answered_by(answer), IMPATIENT)
    assert len(await client.webhooks()) == 2
    assert urls == [f"{API_URL}/webhooks", f"{API_URL}/webhooks?cursor=abc"]


@pytest.mark.parametrize(
    "foreign", ["https://evil.test/api/v1/webhooks?page=2", "http://acme.eu.jasperpim.test/x?page=2"]
)
async def test_token_never_follows_a_link_to_another_origin(foreign: str) -> None:
    """Behind a proxy a link may name the wrong scheme; the page number is then asked for where we are."""
    urls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        urls.append(str(request.url))
        return page(1, links={"next": foreign}) if len(urls) == 1 else page(2, links={"next": None})

    client = JasperClient(http_answered_by(answer), IMPATIENT)
    assert len(await client.webhooks()) == 2
    assert urls == [f"{API_URL}/webhooks", f"{API_URL}/webhooks?page=2"]


@pytest.mark.parametrize(
    "link",
    [f"{API_URL}/webhooks", f"{API_URL}/webhooks?page=2", "https://evil.test/"],
    ids=["first", "second", "foreign"],
)
async def test_pages_that_go_round_in_circles_are_noticed(link: str) -> None:
    client = JasperClient(http_answered_by(lambda _: page(1, links={"next": link})), IMPATIENT)
    with pytest.raises(JasperUnavailableError, match="round in circles"):
        await client.webhooks()


async def test_pages_without_end_are_given_up() -> None:
    number = 0

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal number
        number += 1
        return page(number, links={"next": f"/api/v1/webhooks?page={number + 1}"})

    client = JasperClient(http_answered_by(answer), IMPATIENT)
    with pytest.raises(JasperUnavailableError, match="does not end"):
        await client.webhooks()


@pytest.mark.parametrize(
    ("shown", "enabled", "switch"),
    [
        ({"enabled": False}, False, {"enabled": True}),
        ({"is_active": 0}, False, {"is_active": True}),
        ({"disabled": True}, False, {"disabled": False}),
        ({"status": "Paused"}, False, {"status": "active"}),
        ({"state": "disabled"}, False, {"state": "enabled"}),
        ({"disabled_at": "2026-01-31T08:00:00Z"}, False, {"disabled_at": None}),
        ({"enabled": True}, True, {}),
        ({"disabled_at": None}, True, {}),
        ({"status": "active"}, True, {}),
        ({"status": "failing"}, None, {}),
        ({}, None, {}),
    ],
)
async def test_switch_is_read_under_any_likely_name(shown: Any, enabled: bool | None, switch: Any) -> None:
    webhook = await client_answering(httpx.Response(200, json={"id": 1, **shown})).webhook("1")
    assert webhook is not None
    assert (webhook.enabled, webhook.switch) == (enabled, switch)


@pytest.mark.parametrize("mask", ["********", "abcd***", "••••", "[redacted]", "", None])
async def test_masked_secret_is_no_secret(mask: str | None) -> None:
    """Taken for the secret, a mask would push the real one out."""
    webhook = await client_answering(httpx.Response(200, json={"id": 1, "signing_secret": mask})).webhook("1")
    assert webhook is not None
    assert webhook.signing_secret is None


async def test_php_list_in_place_of_an_empty_object_means_no_headers() -> None:
    webhook = await client_answering(httpx.Response(200, json={"id": 1, "headers": []})).webhook("1")
    assert webhook is not None
    assert webhook.headers == {}


@pytest.mark.parametrize(
    ("shown", "differences"),
    [
        (Webhook("1"), ()),
        (Webhook("1", name="Other"), ("name",)),
        (Webhook("1", callback_url="HTTPS://Receiver.test/callbacks/products/"), ()),
        (Webhook("1", callback_url="https://receiver.test/callbacks/Products"), ("callback_url",)),
        (Webhook("1", headers={"x-custom": "value-that-nobody-may-see"}), ()),
        (Webhook("1", headers={"x-custom": "********"}), ()),
        (Webhook("1", headers={"x-custom": "VALUE-that-nobody-may-see"}), ("headers",)),
        (Webhook("1", headers={}), ("headers",)),
        (Webhook("1", include_entity_data=False, retry_limit=4), ("include_entity_data", "retry_limit")),
    ],
)
def test_differences_are_what_jasper_shows_otherwise(shown: Webhook, differences: tuple[str, ...]) -> None:
    assert WANTED.differences(shown) == differences


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"message": "Unauthenticated."}, "set JASPER_API_TOKEN"),
        (403, {"message": "Forbidden."}, "set JASPER_API_TOKEN"),
        (404, {}, "look at JASPER_API_URL"),
        (302, {}, "redirect"),
        (400, {"error": "odd"}, "odd"),
        (
            422,
            {
                "message": "The given data was invalid.",
                "errors": {"callback_url": ["Must be https."], "headers.X": ["Bad."]},
            },
            r"callback_url \(PUBLIC_URL\): Must be https.; headers.X \(JASPER_WEBHOOK_HEADERS\): Bad.",
        ),
        (422, {"message": "No more webhooks."}, "No more webhooks"),
        (422, ["odd"], "422"),
    ],
)
async def test_refusal_is_told_in_words_and_not_asked_again(status: int, body: Any, words: str) -> None:
    with pytest.raises(JasperRefusedError, match=words) as caught:
        await client_answering(httpx.Response(status, json=body)).create_webhook(WANTED)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "words"), [(403, "permission to read this"), (422, "look at RECONCILE_LIST_QUERY: The sort is odd")]
)
async def test_a_list_that_is_refused_is_not_told_of_as_a_webhook(status: int, words: str) -> None:
    client = client_answering(httpx.Response(status, json={"message": "The sort is odd"}))
    with pytest.raises(JasperRefusedError, match=words):
        await client.entity_page(EntityType.PRODUCT)


@pytest.mark.parametrize("status", [401, 403, 422, 400, 500, 503, 429])
async def test_no_error_repeats_the_token_or_a_header_value(status: int) -> None:
    """Jasper may echo what it was sent; an error's words are stored, shown and logged."""
    spilled = f"{TOKEN} and value-that-nobody-may-see are wrong"
    answer = httpx.Response(status, json={"message": spilled, "errors": {"headers": [spilled]}})
    with pytest.raises(JasperError) as caught:
        await client_answering(*[answer] * 9).create_webhook(WANTED)
    assert "nobody-may-see" not in f"{caught.value!r}{caught.value}"
    assert "nobody-may-see" not in repr(WANTED)


def test_repr_of_a_webhook_hides_secret_and_headers() -> None:
    assert "hush" not in repr(Webhook("1", headers={"X": "hush"}, signing_secret="hush"))


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(503),
        httpx.Response(500),
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.Response(200, text="<html>maintenance</html>"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("gone"),
    ],
    ids=str,
)
async def test_passing_trouble_is_waited_out_where_repeating_is_harmless(trouble: httpx.Response | Exception) -> None:
    client = client_answering(trouble, trouble, httpx.Response(200, json={"time": "now"}))
    assert await client.ping() == "now"


@pytest.mark.parametrize("harmless", [httpx.ConnectError("refused"), httpx.Response(429)], ids=str)
async def test_creation_is_repeated_where_surely_nothing_was_created(harmless: httpx.Response | Exception) -> None:
    client = client_answering(harmless, httpx.Response(201, json={"id": 1, "signing_secret": "s"}))
    assert (await client.create_webhook(WANTED)).id == "1"


@pytest.mark.parametrize(
    "ambiguous",
    [
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("gone"),
        httpx.Response(500),
        httpx.Response(200, text="<html>"),
    ],
    ids=str,
)
async def test_creation_is_not_repeated_where_it_may_have_succeeded(ambiguous: httpx.Response | Exception) -> None:
    client = client_answering(ambiguous)  # a second call would find no answer
    with pytest.raises(JasperUnavailableError):
        await client.create_webhook(WANTED)


@pytest.mark.parametrize(
    ("value", "seconds"), [("120", 120.0), ("Fri, 31 Dec 2100 23:59:59 GMT", None), ("soon", None), ("-1", None)]
)
async def test_long_retry_after_is_left_to_the_caller(value: str, seconds: float | None) -> None:
    answers = [httpx.Response(503, headers={"Retry-After": value})] * 3
    with pytest.raises(JasperUnavailableError) as caught:
        await client_answering(*answers).ping()
    if seconds is not None:
        assert caught.value.retry_after == seconds
    elif "GMT" in value:
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 1_000_000
    else:
        assert caught.value.retry_after is None


async def test_answer_that_drips_is_given_up() -> None:
    class Dripping(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0)

    client = JasperClient(
        http_answered_by(lambda _: httpx.Response(200, stream=Dripping())),
        Patience(attempts=1, answer_within=0.02),
    )
    with pytest.raises(JasperUnavailableError, match="did not answer within"):
        await client.ping()


async def test_answer_without_end_is_given_up() -> None:
    with pytest.raises(JasperUnavailableError, match="larger than"):
        await client_answering(*[httpx.Response(200, content=b" " * (MAX_ANSWER_BYTES + 1))] * 3).ping()


@pytest.mark.parametrize("nonsense", [b"[" * 100_000, b'"text"', b"\xff", b'{"data": 7}', b'{"data": [7]}'])
async def test_nonsense_is_an_error_in_words(nonsense: bytes) -> None:
    with pytest.raises(JasperUnavailableError):
        await client_answering(*[httpx.Response(200, content=nonsense)] * 3).webhooks()


async def test_deleting_what_is_gone_is_no_error() -> None:
    await client_answering(httpx.Response(404)).delete_webhook("1")


async def test_id_cannot_reach_another_path() -> None:
    paths: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(204)

    client = JasperClient(http_answered_by(answer), IMPATIENT)
    await client.delete_webhook("../products/1?x=")
    assert paths == [b"/api/v1/webhooks/..%2Fproducts%2F1%3Fx%3D"]


async def test_entities_keep_their_text_to_the_last_digit() -> None:
    product = (
        b'{"id": 1,  "price": 1.10, "weight": 1e400, "big": 12345678901234567890123456789, "text": "\\u0000\\ud800"}'
    )
    client = client_answering(
        httpx.Response(200, content=b'{"data": [%b]}' % product), httpx.Response(200, content=b'{"data":%b}' % product)
    )
    assert (await client.entity_page(EntityType.PRODUCT)).items == (product,)
    assert (await client.entity(EntityType.PRODUCT, "1")).data == product


@pytest.mark.parametrize(
    ("answer", "following", "guessed", "total"),
    [
        ({"data": [{}], "links": {"next": f"{API_URL}/products?page=2"}}, "/api/v1/products?page=2", False, None),
        ({"data": [{}], "links": {"next": "https://elsewhere/x?page=2"}}, "/api/v1/products?page=2", False, None),
        ({"data": [{}], "links": {"next": "?cursor=abc"}}, "/api/v1/products?cursor=abc", False, None),
        ({"data": [{}], "links": {"next": None}}, None, False, None),
        (
            {"data": [{}], "meta": {"current_page": 1, "last_page": "2", "total": 5}},
            "/api/v1/products?page=2",
            False,
            5,
        ),
        ({"data": [{}], "meta": {"current_page": 1, "last_page": 1}}, None, False, None),
        ({"data": [{}], "last_page": 3, "total": 9, "current_page": 1}, "/api/v1/products?page=2", False, 9),
        ({"data": [{}], "next_page_url": f"{API_URL}/products?page=2"}, "/api/v1/products?page=2", False, None),
        ({"data": [{}], "next_page_url": None}, None, False, None),
        ({"products": [{}]}, "/api/v1/products?page=2", True, None),
        ([{}], "/api/v1/products?page=2", True, None),
        ([], None, False, None),
    ],
)
async def test_the_next_page_of_entities_is_found_however_it_is_told(
    answer: Any, following: str | None, guessed: bool, total: int | None
) -> None:
    page = await client_answering(httpx.Response(200, json=answer)).entity_page(EntityType.PRODUCT)
    assert (page.following, page.guessed, page.total) == (following, guessed, total)


async def test_an_address_of_a_page_never_leads_to_another_host() -> None:
    urls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        urls.append(str(request.url))
        return httpx.Response(200, json={"data": []})

    client = JasperClient(http_answered_by(answer), IMPATIENT)
    await client.entity_page(EntityType.PRODUCT, at="//evil.test/api", query="per_page=7")
    await client.entity_page(EntityType.PRODUCT, at="3", query="sort=id")
    await client.entity_page(EntityType.BRAND, query="per_page=7&sort=id")
    assert urls == [
        "https://acme.eu.jasperpim.test//evil.test/api?per_page=7",
        f"{API_URL}/products?sort=id&page=3",
        f"{API_URL}/brands?per_page=7&sort=id",
    ]


@pytest.mark.parametrize("status", [404, 410])
async def test_an_entity_that_is_gone_is_told_with_the_time_of_jaspers_clock(status: int) -> None:
    gone = httpx.Response(status, headers={"Date": "Tue, 24 Nov 2026 10:00:00 GMT"})
    answer = await client_answering(gone).entity(EntityType.PRODUCT, "a/b")
    assert answer.data is None
    assert str(answer.answered_at) == "2026-11-24 10:00:00+00:00"


@pytest.mark.parametrize("content", [b"<html>", b"", b"7", b"[1]"])
async def test_an_answer_that_is_no_entity_is_no_entity_that_is_gone(content: bytes) -> None:
    client = client_answering(*[httpx.Response(200, content=content) for _ in range(3)])
    with pytest.raises(JasperUnavailableError):
        await client.entity(EntityType.PRODUCT, "1")


async def test_calls_keep_their_pace() -> None:
    client = JasperClient(http_answered_by(lambda _: httpx.Response(200, json={"data": []})), Patience(pace=0.05))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for _ in range(4):
        await client.entity_page(EntityType.PRODUCT)
    assert loop.time() - begun >= 0.15
