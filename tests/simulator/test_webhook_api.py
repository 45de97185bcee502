"""Jasper's API as its documentation and the options say, over ASGI."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

WEBHOOK = {
    "name": "Product Updates Webhook",
    "callback_url": "https://myapi.com/callbacks/products",
    "entity_type": "product",
    "include_entity_data": True,
    "headers": {"My-Custom-Header": "abc123"},
    "retry_policy": "linear",
    "minimum_retry_interval": 300,
    "retry_limit": 5,
}
WEBHOOKS = "/api/v1/webhooks"
Jasper = Callable[..., Any]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "simulator-token", "Bearer ", "Bearer ä"])
async def test_without_the_right_token_nothing_is_answered(jasper: Jasper, authorization: str | None) -> None:
    async with jasper() as client:
        del client.headers["Authorization"]
        headers = {} if authorization is None else {"Authorization": authorization.encode()}
        for path in ("/ping", "/webhooks", "/products", "/products/1001", "/nowhere"):
            answer = await client.get(f"/api/v1{path}", headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"message": "Unauthenticated."})


async def test_a_rotated_token_bites_at_once(jasper: Jasper) -> None:
    async with jasper() as client:
        token = (await client.post("/_simulator/token")).json()["token"]
        assert (await client.get("/api/v1/ping")).status_code == 401
        client.headers["Authorization"] = f"Bearer {token}"
        assert (await client.get("/api/v1/ping")).status_code == 200
        assert (await client.post("/_simulator/token", json={"token": "mine"})).json() == {"token": "mine"}


async def test_ping_tells_the_time_as_documented(jasper: Jasper) -> None:
    async with jasper() as client:
        time = (await client.get("/api/v1/ping")).json()["time"]
    assert re.fullmatch(r"[A-Z][a-z]{2} [A-Z][a-z]{2} \d{1,2} \d\d:\d\d:\d\d UTC \d{4}", time)


async def test_creation_answers_with_everything_and_the_secret(jasper: Jasper) -> None:
    async with jasper() as client:
        answer = await client.post(WEBHOOKS, json=WEBHOOK)
        webhook = answer.json()["data"]
        other = (await client.post(WEBHOOKS, json=WEBHOOK)).json()["data"]
    assert answer.status_code == 201
    assert {name: webhook[name] for name in WEBHOOK} == WEBHOOK
    assert webhook["id"] == 1
    assert webhook["enabled"] is True
    assert len(webhook["signing_secret"]) >= 32
    assert webhook["signing_secret"] != other["signing_secret"]


async def test_ids_can_be_texts(jasper: Jasper) -> None:
    async with jasper(webhook_ids="string") as client:
        webhook = (await client.post(WEBHOOKS, json=WEBHOOK)).json()["data"]
        assert isinstance(webhook["id"], str)
        assert (await client.get(f"{WEBHOOKS}/{webhook['id']}")).status_code == 200


@pytest.mark.parametrize("repeat", [False, True])
async def test_reads_repeat_the_secret_only_where_told_so(jasper: Jasper, repeat: bool) -> None:
    async with jasper(repeat_secret=repeat) as client:
        await client.post(WEBHOOKS, json=WEBHOOK)
        answers = [
            (await client.get(f"{WEBHOOKS}/1")).json()["data"],
            (await client.get(WEBHOOKS)).json()["data"][0],
            (await client.put(f"{WEBHOOKS}/1", json=WEBHOOK)).json()["data"],
            (await client.post(f"{WEBHOOKS}/1/disable")).json()["data"],
        ]
    assert ["signing_secret" in answer for answer in answers] == [repeat] * 4


async def test_single_resources_are_bare_where_told_so(jasper: Jasper) -> None:
    async with jasper(wrap_resources=False) as client:
        assert (await client.post(WEBHOOKS, json=WEBHOOK)).json()["id"] == 1
        assert (await client.get(f"{WEBHOOKS}/1")).json()["id"] == 1
        assert (await client.get("/api/v1/products/1001")).json()["id"] == 1001
        assert isinstance((await client.get("/api/v1/products")).json()["data"], list)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": None}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"callback_url": "myapi.com/callbacks"}, "callback_url"),
        ({"callback_url": "ftp://myapi.com"}, "callback_url"),
        ({"callback_url": "http://host:99999/"}, "callback_url"),
        ({"entity_type": "order"}, "entity_type"),
        ({"include_entity_data": "yes"}, "include_entity_data"),
        ({"headers": ["a"]}, "headers"),
        ({"headers": {"bad name": "x"}}, "headers"),
        ({"headers": {"Name": "a\nb"}}, "headers"),
        ({"headers": {"Name": 1}}, "headers"),
        ({"retry_policy": "sometimes"}, "retry_policy"),
        ({"retry_policy": ["linear"]}, "retry_policy"),
        ({"minimum_retry_interval": -1}, "minimum_retry_interval"),
        ({"retry_limit": True}, "retry_limit"),
        ({"enabled": 1}, "enabled"),
    ],
)
async def test_invalid_properties_are_named(jasper: Jasper, changes: dict[str, Any], field: str) -> None:
    async with jasper() as client:
        answer = await client.post(WEBHOOKS, json={**WEBHOOK, **changes})
        left = (await client.get(WEBHOOKS)).json()["meta"]["total"]
    assert answer.status_code == 422
    assert list(answer.json()["errors"]) == [field]
    assert answer.json()["message"] == answer.json()["errors"][field][0]
    assert left == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff"])
async def test_what_is_no_object_lacks_everything_that_is_required(jasper: Jasper, body: bytes) -> None:
    async with jasper() as client:
        answer = await client.post(WEBHOOKS, content=body)
    assert answer.status_code == 422
    assert set(answer.json()["errors"]) == {"name", "callback_url", "entity_type"}
    assert answer.json()["message"] == "The name field is required. (and 2 more errors)"


@pytest.mark.parametrize(
    ("verb", "put", "patch"), [("put", 200, 405), ("patch", 405, 200), ("both", 200, 200), ("none", 405, 405)]
)
async def test_only_the_chosen_verbs_update(jasper: Jasper, verb: str, put: int, patch: int) -> None:
    async with jasper(update_verb=verb) as client:
        await client.post(WEBHOOKS, json=WEBHOOK)
        answers = [
            await client.request(method, f"{WEBHOOKS}/1", json={**WEBHOOK, "retry_limit": 9})
            for method in ("PUT", "PATCH")
        ]
        kept = (await client.get(f"{WEBHOOKS}/1")).json()["data"]["retry_limit"]
    assert [answer.status_code for answer in answers] == [put, patch]
    assert kept == (5 if verb == "none" else 9)


async def test_a_patch_may_be_partial_and_a_put_may_not(jasper: Jasper) -> None:
    async with jasper(update_verb="both") as client:
        await client.post(WEBHOOKS, json=WEBHOOK)
        assert (await client.patch(f"{WEBHOOKS}/1", json={"retry_limit": 2})).json()["data"]["name"] == WEBHOOK["name"]
        refused = await client.put(f"{WEBHOOKS}/1", json={"retry_limit": 2})
    assert refused.status_code == 422
    assert set(refused.json()["errors"]) == {"name", "callback_url", "entity_type"}


async def test_webhooks_are_enabled_disabled_and_deleted(jasper: Jasper) -> None:
    async with jasper(update_verb="patch") as client:
        await client.post(WEBHOOKS, json=WEBHOOK)
        assert (await client.post(f"{WEBHOOKS}/1/disable")).json()["data"]["enabled"] is False
        assert (await client.patch(f"{WEBHOOKS}/1", json={"enabled": True})).json()["data"]["enabled"] is True
        assert (await client.patch(f"{WEBHOOKS}/1", json={"enabled": False})).json()["data"]["enabled"] is False
        assert (await client.post(f"{WEBHOOKS}/1/enable")).json()["data"]["enabled"] is True
        assert (await client.delete(f"{WEBHOOKS}/1")).status_code == 204
        for method, path in (("GET", "/1"), ("PATCH", "/1"), ("DELETE", "/1"), ("POST", "/1/enable")):
            answer = await client.request(method, WEBHOOKS + path)
            assert answer.status_code == 404
            assert answer.json()["message"]


async def test_lists_are_read_whole_by_following_links(jasper: Jasper) -> None:
    async with jasper(page_size=10) as client:
        url, ids, pages = "/api/v1/products", [], []
        while url:
            page = (await client.get(url)).json()
            ids += [item["id"] for item in page["data"]]
            pages.append(page)
            url = page["links"]["next"]
    assert ids == list(range(1001, 1026))
    assert [page["meta"]["current_page"] for page in pages] == [1, 2, 3]
    assert pages[1]["meta"] == {
        "current_page": 2,
        "from": 11,
        "last_page": 3,
        "path": "http://jasper.test/api/v1/products",
        "per_page": 10,
        "to": 20,
        "total": 25,
    }
    assert pages[1]["links"] == {
        "first": "http://jasper.test/api/v1/products?page=1",
        "last": "http://jasper.test/api/v1/products?page=3",
        "prev": "http://jasper.test/api/v1/products?page=1",
        "next": "http://jasper.test/api/v1/products?page=3",
    }


async def test_pages_that_do_not_exist_are_empty_or_the_first(jasper: Jasper) -> None:
    async with jasper(page_size=10) as client:
        beyond = (await client.get("/api/v1/products?page=9")).json()
        firsts = [(await client.get(f"/api/v1/products?page={page}")).json() for page in ("0", "-1", "x", "", "9" * 50)]
    assert (beyond["data"], beyond["links"]["next"], beyond["meta"]["from"]) == ([], None, None)
    assert [page["meta"]["current_page"] for page in firsts] == [1] * 5


async def test_webhooks_are_paginated_too(jasper: Jasper) -> None:
    async with jasper(page_size=2) as client:
        for _ in range(3):
            await client.post(WEBHOOKS, json=WEBHOOK)
        page = (await client.get(f"{WEBHOOKS}?page=2")).json()
    assert [webhook["id"] for webhook in page["data"]] == [3]
    assert page["meta"]["total"] == 3


@pytest.mark.parametrize("collection", ["products", "categories", "brands", "concrete-entities"])
async def test_every_collection_has_a_list_and_single_items(jasper: Jasper, collection: str) -> None:
    async with jasper() as client:
        first = (await client.get(f"/api/v1/{collection}")).json()["data"][0]
        assert (await client.get(f"/api/v1/{collection}/{first['id']}")).json()["data"] == first
        assert {"id", "name", "created_at", "updated_at"} <= first.keys()
        missing = await client.get(f"/api/v1/{collection}/999999")
    assert missing.status_code == 404
    assert missing.json()["message"]


async def test_what_does_not_exist_is_404_in_json(jasper: Jasper) -> None:
    async with jasper() as client:
        for path in ("/api/v1/orders", "/api/v1/orders/1", "/api/v1/a/b/c", "/nowhere", "/_simulator/nowhere"):
            answer = await client.get(path)
            assert answer.status_code == 404
            assert "message" in answer.json()


@pytest.mark.parametrize(
    ("mode", "status", "retry_after"),
    [("unavailable", 503, "7"), ("error", 500, None), ("throttle", 429, "7"), ("hang", 504, None)],
)
async def test_an_outage_lasts_until_it_is_ended(
    jasper: Jasper, mode: str, status: int, retry_after: str | None
) -> None:
    async with jasper(api_retry_after=7, api_hang=0.05) as client:
        await client.post("/_simulator/api", json={"mode": mode})
        for _ in range(2):
            answer = await client.get("/api/v1/ping")
            assert answer.status_code == status
            assert answer.headers.get("Retry-After") == retry_after
        await client.post("/_simulator/api", json={"mode": "up"})
        assert (await client.get("/api/v1/ping")).status_code == 200


async def test_chance_breaks_the_api_in_a_repeatable_way(jasper: Jasper) -> None:
    async def statuses(seed: int) -> list[int]:
        async with jasper(seed=seed, api_error_probability=0.3, api_throttle_probability=0.3) as client:
            return [(await client.get("/api/v1/ping")).status_code for _ in range(60)]

    one, same, other = await statuses(1), await statuses(1), await statuses(2)
    assert one == same != other
    assert set(one) == {200, 429, 500}


async def test_the_api_can_be_slow(jasper: Jasper) -> None:
    async with jasper(api_delay=0.05) as client:
        started = asyncio.get_running_loop().time()
        assert (await client.get("/api/v1/ping")).status_code == 200
        assert asyncio.get_running_loop().time() - started >= 0.05


async def test_php_json_is_json(jasper: Jasper) -> None:
    async with jasper(json_style="php") as client:
        answer: httpx.Response = await client.post(WEBHOOKS, json={**WEBHOOK, "headers": {}})
        assert answer.json()["data"]["headers"] == []
        assert rb"https:\/\/myapi.com" in answer.content
        returned = await client.put(f"{WEBHOOKS}/1", json=answer.json()["data"])
    assert returned.status_code == 200
