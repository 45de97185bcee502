"""Who may see and do what at the dashboard: sessions, forms, headers."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest

from app.access.keys import Scope, revoke_key
from app.clock import utc_now
from app.dashboard import pages, router
from app.dashboard.sessions import LIFE
from app.db.engine import create_engine
from app.sealing import Sealer, generate_key
from tests.http.conftest import ADMIN_KEY, Receiver, Start
from tests.http.dashboard import Visitor, a_key, visiting

PAGES = [
    *("/", "/dashboard/feed", "/dashboard/entities", "/dashboard/deliveries", "/dashboard/quarantine"),
    *("/dashboard/unproven", "/dashboard/rejections", "/dashboard/registrations"),
    *("/dashboard/reconciliations", "/dashboard/consumers"),
]
OPEN = {"/dashboard/login", "/dashboard/static/{digest}/{name}"}
UNREADABLE = {"nothing": "to read here"}


@pytest.fixture
async def visitor(receiver: Receiver) -> AsyncIterator[Visitor]:
    async with visiting(receiver) as visitor:
        yield visitor


def examples(method: str) -> list[str]:
    """An address for each route that takes the method, but for those that are open to everybody."""
    values = {
        "delivery_id": "01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10",
        "entity_type": "product",
        "change": "rotate",
        "way": "start",
        "name": "search",
        "path": "nothing",
    }
    return [
        re.sub(r"{(\w+)[^}]*}", lambda found: values[found.group(1)], route.path)
        for route in router.routes
        if method in (route.methods or ()) and route.path not in OPEN
    ]


async def test_without_a_login_the_start_page_asks_for_a_key(visitor: Visitor) -> None:
    page = await visitor.get("/")
    assert '<form method="post" action="/dashboard/login">' in page
    assert "Overview" not in page


async def test_every_page_leads_to_the_login_and_from_there_back(visitor: Visitor) -> None:
    for path in [path for path in examples("GET") if path != "/"]:
        response = await visitor.http.get(path, params={"a": "1"})
        assert response.status_code == 303
        assert response.headers["location"] == f"/dashboard/login?next={quote(path, safe='')}%3Fa%3D1"


async def test_nothing_can_be_done_without_a_login(visitor: Visitor) -> None:
    for path in examples("POST"):
        response = await visitor.http.post(path, data={"csrf": "x"})
        assert (response.status_code, response.headers["location"]) == (303, "/dashboard/login")


async def test_a_login_leads_to_the_page_that_was_wanted_and_nowhere_else(visitor: Visitor) -> None:
    for wanted, where in {
        "/dashboard/feed?q=a": "/dashboard/feed?q=a",
        "https://elsewhere.example/": "/",
        "//elsewhere.example/dashboard/": "/",
        "/v1/events": "/",
    }.items():
        response = await visitor.http.post("/dashboard/login", data={"key": ADMIN_KEY, "next": wanted})
        assert (response.status_code, response.headers["location"]) == (303, where)


@pytest.mark.parametrize(
    ("forwarded", "attributes"),
    [("http", "jasper-receiver={}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict"),
     ("https", "__Host-jasper-receiver={}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict; Secure")],
)  # fmt: skip
async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
    visitor: Visitor, forwarded: str, attributes: str
) -> None:
    response = await visitor.http.post(
        "/dashboard/login", data={"key": ADMIN_KEY}, headers={"X-Forwarded-Proto": forwarded}
    )
    cookie = response.headers["set-cookie"]
    assert re.sub(r"=gAAAA[^;]+", "={}", cookie) == attributes
    assert ADMIN_KEY not in cookie


async def test_a_wrong_key_opens_nothing(visitor: Visitor, database: str) -> None:
    cannot_read = await a_key(database, Scope.WRITE, Scope.ADMIN)
    for key, status in {"": 401, "jr_" + "x" * 43: 401, "x" * 501: 401, "\0é": 401, cannot_read: 403}.items():
        response = await visitor.http.post("/dashboard/login", data={"key": key})
        assert response.status_code == status
        assert "set-cookie" not in response.headers
        assert 'role="alert"' in response.text
        assert key not in response.text or not key


async def test_a_revoked_key_ends_its_session_at_once(visitor: Visitor, database: str) -> None:
    await visitor.log_in(await a_key(database, Scope.READ))
    await visitor.get("/dashboard/feed")
    engine = create_engine(database)
    await revoke_key(engine, "somebody", now=utc_now())
    await engine.dispose()
    assert (await visitor.http.get("/dashboard/feed")).status_code == 303


async def test_another_admin_key_ends_the_sessions_of_the_one_before(start: Start) -> None:
    key = generate_key()
    async with start(encryption_keys=[key]) as receiver, visiting(receiver) as visitor:
        await visitor.log_in()
        cookies = visitor.http.cookies
    other = {"encryption_keys": [key], "secret": None, "admin_api_key": "another-admin-key"}
    async with start(**other) as receiver, visiting(receiver) as visitor:
        visitor.http.cookies = cookies
        assert (await visitor.http.get("/dashboard/feed")).status_code == 303


async def test_a_session_is_over_after_its_time(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    await visitor.log_in()
    began = utc_now()
    monkeypatch.setattr(pages, "utc_now", lambda: began + LIFE - timedelta(minutes=1))
    await visitor.get("/dashboard/feed")
    monkeypatch.setattr(pages, "utc_now", lambda: began + LIFE)
    assert (await visitor.http.get("/dashboard/feed")).status_code == 303


async def test_a_cookie_that_was_not_sealed_here_is_none(visitor: Visitor) -> None:
    await visitor.log_in()
    [good] = visitor.http.cookies.values()
    foreign = Sealer([generate_key()]).seal(b"{}").decode()
    for cookie in ("", "x", good[:-4], good[:50] + "A" + good[51:], foreign, "é", good * 10):
        response = await visitor.http.get(
            "/dashboard/feed", headers={b"Cookie": b"jasper-receiver=" + cookie.encode("latin-1")}
        )
        assert response.status_code == 303, cookie


async def test_after_the_logout_the_browser_has_no_session(visitor: Visitor) -> None:
    await visitor.log_in()
    response = await visitor.send("/dashboard/logout")
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert not visitor.http.cookies
    assert (await visitor.http.get("/dashboard/feed")).status_code == 303


FOREIGN: dict[str, dict[str, Any]] = {
    "no token": {"data": {}},
    "another token": {"data": {"csrf": "x" * 32}},
    "from another site": {"headers": {"Sec-Fetch-Site": "cross-site"}},
    "from another host of the same site": {"headers": {"Sec-Fetch-Site": "same-site"}},
    "typed into the address bar": {"headers": {"Sec-Fetch-Site": "none"}},
    "with another origin": {"headers": {"Origin": "https://elsewhere.example"}},
    "with the origin of another port": {"headers": {"Origin": "http://127.0.0.1:1"}},
    "with a hidden origin": {"headers": {"Origin": "null"}},
    "from who does not say": {"headers": {"Origin": ""}},
}


async def test_a_form_that_is_not_of_this_dashboard_does_nothing(receiver: Receiver, visitor: Visitor) -> None:
    await receiver.callback(UNREADABLE)
    [delivery] = (await receiver.http.get("/v1/deliveries")).json()["deliveries"]
    await visitor.log_in()
    form = {"csrf": await visitor.csrf(), "mapping": '{"entity_id": ["/nothing"]}'}

    async def status_after(**how: Any) -> tuple[int, str]:
        response = await visitor.http.post("/dashboard/quarantine/reprocess", **{"data": form} | how)
        now = (await receiver.http.get(f"/v1/deliveries/{delivery['id']}")).json()
        return response.status_code, now["status"]

    for name, how in FOREIGN.items():
        assert await status_after(**how) == (403, "quarantined"), name
    # The very same form does, where it comes from where it should.
    assert await status_after(headers={"Sec-Fetch-Site": "same-origin"}) == (303, "accepted")


async def test_a_consumer_whose_name_nothing_can_hold_is_not_there(visitor: Visitor) -> None:
    await visitor.log_in()
    for name in ("nobody", "%00", "%ed%a0%80"):
        assert (await visitor.http.get(f"/dashboard/consumers/{name}")).status_code == 404


async def test_a_token_is_worth_nothing_in_another_session(receiver: Receiver, visitor: Visitor) -> None:
    await visitor.log_in()
    async with visiting(receiver) as other:
        await other.log_in()
        token = await other.csrf()
    response = await visitor.http.post("/dashboard/unproven/release", data={"csrf": token})
    assert response.status_code == 403


@pytest.mark.parametrize("origin", ["https://a.example", "http://["])
async def test_a_login_from_another_site_is_refused(visitor: Visitor, origin: str) -> None:
    response = await visitor.http.post("/dashboard/login", data={"key": ADMIN_KEY}, headers={"Origin": origin})
    assert response.status_code == 403
    assert "set-cookie" not in response.headers


async def test_nothing_is_changed_without_the_scope_admin(visitor: Visitor, database: str) -> None:
    await visitor.log_in(await a_key(database, Scope.READ, Scope.WRITE))
    for path in [path for path in examples("POST") if path != "/dashboard/logout"]:
        response = await visitor.send(path)
        assert response.status_code == 403, path
        assert "scope admin" in response.text


async def test_who_only_reads_is_offered_nothing_to_change(start: Start, database: str) -> None:
    async with start(jasper_webhook_headers={"My-Header": "abc"}) as receiver, visiting(receiver) as visitor:
        await receiver.callback(UNREADABLE, x_secret="a-signing-secret-of-32-characters", my_header="abc")
        await receiver.callback({"id": 1}, my_header="abc")
        [delivery] = (await receiver.http.get("/v1/deliveries")).json()["deliveries"]
        shown = ["/dashboard/quarantine", "/dashboard/unproven", f"/dashboard/deliveries/{delivery['id']}"]
        await visitor.log_in()
        for path in shown:
            assert len(re.findall('method="post"', await visitor.get(path))) == 2, path
        await visitor.log_in(await a_key(database, Scope.READ))
        for path in shown:
            assert re.findall('method="post" action="([^"]+)"', await visitor.get(path)) == ["/dashboard/logout"], path


async def test_every_answer_carries_the_headers_that_keep_browsers_strict(visitor: Visitor) -> None:
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
    paths = [*PAGES, "/dashboard/login", "/dashboard/nothing", "/dashboard/feed?before=x"]
    statuses = set()
    for _ in ("before the login", "after it"):
        for path in paths:
            response = await visitor.http.get(path)
            statuses.add(response.status_code)
            assert response.headers["content-security-policy"] == policy, path
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["x-frame-options"] == "DENY"
            assert response.headers["referrer-policy"] == "same-origin"
            assert response.headers["cache-control"] == "no-store"
        await visitor.log_in()
    assert statuses == {200, 303, 400, 404}


async def test_files_may_be_kept_for_ever_and_change_their_address_with_their_content(visitor: Visitor) -> None:
    page = await visitor.get("/")
    addresses = set(re.findall(r'(?:href|src)="(/dashboard/static/[^"]+)"', page))
    assert {address.rpartition("/")[2] for address in addresses} == {"dashboard.css", "dashboard.js", "icon.svg"}
    for address in addresses:
        response = await visitor.http.get(address)
        assert response.status_code == 200
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert (await visitor.http.get(re.sub(r"/[0-9a-f]{16}/", f"/{'0' * 16}/", address))).status_code == 404
    assert (await visitor.http.get("/dashboard/static/x/..%2Fpages.py")).status_code in {303, 404}


async def test_a_page_has_no_script_and_no_style_within_it(visitor: Visitor) -> None:
    """The policy would forbid it, and the page would be broken."""
    await visitor.log_in()
    for path in PAGES:
        page = await visitor.get(path)
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?! src=)", page), path


async def test_an_address_without_a_page_says_so(visitor: Visitor) -> None:
    await visitor.log_in()
    for path in ("/dashboard/nothing", "/dashboard/deliveries/01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10",
                 "/dashboard/entity?type=product&id=nobody", "/dashboard/entity?type=nothing&id=1",
                 "/dashboard/consumers/nobody", "/dashboard/registrations/nothing/rotate",
                 "/dashboard/registrations/product/nothing"):  # fmt: skip
        response = await visitor.http.get(path)
        assert (response.status_code, response.headers["content-type"]) == (404, "text/html; charset=utf-8"), path


async def test_an_address_that_somebody_may_guess_leads_to_the_start(visitor: Visitor) -> None:
    await visitor.log_in()
    for path in ("/dashboard", "/dashboard/"):
        response = await visitor.http.get(path)
        assert (response.status_code, response.headers["location"]) == (303, "/")


async def test_a_form_that_is_too_large_is_refused(visitor: Visitor) -> None:
    response = await visitor.http.post("/dashboard/login", data={"key": "x" * 70_000})
    assert response.status_code == 413


async def test_a_process_without_the_role_has_no_dashboard(start: Start) -> None:
    async with start(roles=["callbacks", "api"]) as receiver:
        for path in ("/", *PAGES, "/dashboard/login"):
            assert (await receiver.http.get(path)).status_code == 404


async def test_a_process_may_be_a_dashboard_and_nothing_else(start: Start) -> None:
    async with start(roles=["dashboard"]) as receiver, visiting(receiver) as visitor:
        await visitor.log_in()
        for path in PAGES:
            await visitor.get(path)
        assert (await receiver.http.get("/v1/events")).status_code == 404
        assert (await receiver.callback()).status_code == 404


async def test_a_session_opens_nothing_under_v1(visitor: Visitor) -> None:
    """Scripts of other pages could else read with it."""
    await visitor.log_in()
    assert (await visitor.http.get("/v1/events")).status_code == 401
