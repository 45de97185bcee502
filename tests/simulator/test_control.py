"""The simulator's own controls, through which a checker in another process compares and provokes."""

from collections.abc import Callable
from typing import Any

import pytest

Jasper = Callable[..., Any]
WEBHOOK = {"name": "x", "callback_url": "http://127.0.0.1:1/", "entity_type": "product"}


async def test_controls_need_no_token_and_show_what_goes_on(jasper: Jasper) -> None:
    async with jasper() as client:
        del client.headers["Authorization"]
        overview = (await client.get("/_simulator/")).json()
    assert overview["entities"]["product"] == {"live": 25, "gone": 0}
    assert overview["api_mode"] == "up"
    assert overview["callbacks"]["attempts"] == 0


async def test_the_state_is_shown_whole_or_in_pages(jasper: Jasper) -> None:
    async with jasper(page_size=100) as client:
        listed = (await client.get("/api/v1/products")).json()["data"]
        whole = (await client.get("/_simulator/state")).json()
        page = (await client.get("/_simulator/state?offset=20&limit=10")).json()
        brands = (await client.get("/_simulator/state?entity_type=brand")).json()
    assert whole == {"entity_type": "product", "total": 25, "items": listed, "gone": []}
    assert page["items"] == listed[20:]
    assert brands["entity_type"] == "brand"


async def test_changes_are_made_on_demand_and_listed(jasper: Jasper) -> None:
    async with jasper() as client:
        made = (await client.post("/_simulator/mutate", json={"count": 3})).json()["changes"]
        price = (await client.post("/_simulator/mutate", json={"kind": "price", "entity_id": 1001})).json()["changes"]
        gone = (await client.post("/_simulator/mutate", json={"kind": "gone", "entity_id": "1002"})).json()["changes"]
        listed = (await client.get("/_simulator/changes")).json()
        first = (await client.get("/_simulator/changes?limit=1")).json()
        rest = (await client.get(f"/_simulator/changes?after={first['changes'][0]['sequence']}")).json()
        state = (await client.get("/_simulator/state")).json()
        assert (await client.get("/api/v1/products/1002")).status_code == 404
    assert listed == {"changes": made + price + gone, "has_more": False}
    assert first["has_more"] is True
    assert first["changes"] + rest["changes"] == listed["changes"]
    assert (price[0]["kind"], price[0]["entity_id"]) == ("price", 1001)
    assert [entity["id"] for entity in state["gone"]] == [1002]


async def test_an_impossible_change_is_a_conflict(jasper: Jasper) -> None:
    async with jasper() as client:
        answer = await client.post("/_simulator/mutate", json={"entity_id": "nobody"})
    assert answer.status_code == 409
    assert "nobody" in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("mutate", b'{"count": 0}'),
        ("mutate", b'{"kind": "magic"}'),
        ("mutate", b'{"number": 1}'),
        ("mutate", b"{"),
        ("api", b"{}"),
        ("api", b'{"mode": "down"}'),
        ("token", b'{"token": ""}'),
        ("drain", b'{"timeout": 0}'),
    ],
)
async def test_wrong_wishes_are_refused_with_reasons(jasper: Jasper, path: str, body: bytes) -> None:
    async with jasper() as client:
        answer = await client.post(f"/_simulator/{path}", content=body)
        query = await client.get("/_simulator/state?entity=product")
    assert answer.status_code == 422
    assert answer.json()["message"]
    assert query.status_code == 422


async def test_a_stream_is_paused_and_resumed(jasper: Jasper) -> None:
    async with jasper() as client:
        assert (await client.post("/_simulator/pause")).json()["stream"]["paused"] is True
        assert (await client.post("/_simulator/resume")).json()["stream"]["paused"] is False


async def test_deliveries_and_webhooks_are_listed_without_secrets(jasper: Jasper) -> None:
    async with jasper(time_scale=0.0) as client:
        created = (await client.post("/api/v1/webhooks", json=WEBHOOK)).json()["data"]
        await client.post("/_simulator/mutate", json={"kind": "stock", "entity_id": 1001})
        assert (await client.post("/_simulator/drain")).json()["drained"] is True
        listed = await client.get("/_simulator/deliveries")
        webhooks = await client.get("/_simulator/webhooks")
    (delivery,) = listed.json()["deliveries"]
    assert delivery["entity_id"] == 1001
    assert delivery["status"] is None
    assert "ConnectError" in delivery["error"]
    assert webhooks.json()["webhooks"][0]["id"] == created["id"]
    assert created["signing_secret"] not in listed.text + webhooks.text


async def test_a_drain_that_takes_too_long_says_so(jasper: Jasper) -> None:
    async with jasper(time_scale=1.0) as client:
        await client.post("/api/v1/webhooks", json={**WEBHOOK, "retry_policy": "linear", "minimum_retry_interval": 60})
        await client.post("/_simulator/mutate", json={"kind": "stock"})
        answer = (await client.post("/_simulator/drain", json={"timeout": 0.1})).json()
    assert answer["drained"] is False
    assert answer["pending_callbacks"] == 1


async def test_a_load_can_be_repeated_and_a_secret_rotated(jasper: Jasper) -> None:
    async with jasper(repeat_secret=True) as client:
        created = (await client.post("/api/v1/webhooks", json=WEBHOOK)).json()["data"]
        assert (await client.post("/_simulator/webhooks/1/load")).status_code == 202
        drained = (await client.post("/_simulator/drain")).json()
        rotation = await client.post("/_simulator/webhooks/1/rotate-secret")
        now = (await client.get("/api/v1/webhooks/1")).json()["data"]
        assert (await client.post("/_simulator/webhooks/9/load")).status_code == 404
    assert drained["callbacks"]["callbacks"] == 25
    assert now["signing_secret"] != created["signing_secret"]
    assert now["signing_secret"] not in rotation.text
