"""The lists of entities in the ways that Jasper's documentation leaves open."""

from collections.abc import Callable
from typing import Any

import pytest

Jasper = Callable[..., Any]
PATH = "/api/v1/products"


@pytest.mark.parametrize(
    ("style", "members"),
    [
        ("laravel", {"data", "links", "meta"}),
        ("links", {"data", "links"}),
        ("meta", {"data", "meta"}),
        (
            "flat",
            {"data", "next_page_url", "current_page", "from", "last_page", "path", "per_page", "to", "total"},
        ),
    ],
)
async def test_a_list_tells_of_its_pages_in_the_style_that_is_wanted(
    jasper: Jasper, style: str, members: set[str]
) -> None:
    async with jasper(list_style=style, page_size=2) as client:
        page = (await client.get(PATH)).json()
        assert page.keys() == members
        assert len(page["data"]) == 2


async def test_a_bare_list_tells_nothing(jasper: Jasper) -> None:
    async with jasper(list_style="bare", page_size=2) as client:
        assert len((await client.get(PATH)).json()) == 2
        assert (await client.get(PATH, params={"page": 1000})).json() == []


async def test_a_list_may_carry_less_than_a_single_item(jasper: Jasper) -> None:
    async with jasper(list_fields="id,updated_at") as client:
        [first, *_] = (await client.get(PATH)).json()["data"]
        assert list(first) == ["id", "updated_at"]
        assert len((await client.get(f"{PATH}/{first['id']}")).json()["data"]) > 2


async def test_one_page_may_fail(jasper: Jasper) -> None:
    async with jasper(list_failing_page=2, page_size=2) as client:
        answers = [(await client.get(PATH, params={"page": page})).status_code for page in (1, 2, 3)]
        assert answers == [200, 500, 200]


async def test_the_size_of_a_page_may_be_asked_for_within_bounds(jasper: Jasper) -> None:
    async with jasper(page_size=2) as client:
        for wanted, shown in (("3", 3), ("0", 2), ("-1", 2), ("x", 2)):
            assert len((await client.get(PATH, params={"per_page": wanted})).json()["data"]) == shown
        assert (await client.get(PATH, params={"per_page": "5000"})).json()["meta"]["per_page"] == 1000


async def test_more_requests_than_the_rate_limit_are_throttled(jasper: Jasper) -> None:
    async with jasper(api_rate_limit=3, api_retry_after=7) as client:
        answers = [await client.get(PATH) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["Retry-After"] == "7"
