"""Who may call what: keys, their scopes, and what is said to whom."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access.failures import FailureReason
from app.access.keys import Scope, create_key, digest_of, find_key, list_keys, revoke_key
from app.clock import utc_now
from app.db.engine import Lookups, create_engine
from app.errors import ConflictError, InvalidParametersError, NotFoundError
from app.metrics import registry
from tests.builders import NOW
from tests.http.conftest import ADMIN_KEY, Reader, Start

READING = ["/v1/events", "/v1/products", "/v1/products/1", "/v1/products/1/events", "/v1/deliveries", "/v1/rejections"]


def bearer(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


async def a_key(reader: Reader, *scopes: Scope, name: str = "reader") -> str:
    return (await create_key(reader.engine, name, scopes, now=utc_now()))[1]


@pytest.mark.parametrize("path", READING)
async def test_everything_that_reads_wants_a_key_with_the_scope_read(reader: Reader, path: str) -> None:
    """Also before it says whether there is anything, or what is wrong with the parameters."""
    for asked in (path, f"{path}?unknown=1&unknown=2"):
        problem = await reader.problem(401, asked, headers={"Authorization": ""})
        assert problem["type"] == "/problems/key-missing"
        await reader.problem(
            403, asked, **bearer(await a_key(reader, Scope.WRITE, Scope.ADMIN, name=f"no {asked}"[:100]))
        )
    response = await reader.http.get(path, **bearer(await a_key(reader, Scope.READ)))
    assert response.status_code in {200, 404}


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        f"Basic {ADMIN_KEY}",
        ADMIN_KEY,
        f"Bearer {ADMIN_KEY}x",
        f"Bearer {ADMIN_KEY[:-1]}",
        "Bearer jr_" + "A" * 43,
        "Bearer jr_" + "é" * 43,
        "Bearer " + "x" * 5000,
    ],
)
async def test_a_missing_or_wrong_key_is_401_with_a_challenge(reader: Reader, authorization: str) -> None:
    response = await reader.http.get("/v1/events", headers={b"Authorization": authorization.encode("latin-1")})
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert response.json()["type"] == "/problems/key-missing"
    assert "jr_" not in response.text


async def test_the_scheme_may_be_written_in_any_case(reader: Reader) -> None:
    response = await reader.http.get("/v1/events", headers={"Authorization": f"bearer {ADMIN_KEY}"})
    assert response.status_code == 200


async def test_a_revoked_key_is_refused_by_the_very_next_request(reader: Reader) -> None:
    key = await a_key(reader, Scope.READ)
    assert (await reader.http.get("/v1/events", **bearer(key))).status_code == 200
    await revoke_key(reader.engine, "reader", now=utc_now())
    await reader.problem(401, "/v1/events", **bearer(key))


async def test_a_key_is_revoked_on_every_replica_at_once(reader: Reader, start: Start) -> None:
    """Also on one that has just served it."""
    key = await a_key(reader, Scope.READ)
    async with start() as other:
        for http in (reader.http, other.http):
            assert (await http.get("/v1/events", **bearer(key))).status_code == 200
        await revoke_key(reader.engine, "reader", now=utc_now())
        for http in (reader.http, other.http):
            assert (await http.get("/v1/events", **bearer(key))).status_code == 401
    [stored] = await list_keys(reader.engine)
    assert stored.last_used_at is not None
    assert stored.revoked_at is not None
    assert stored.last_used_at <= stored.revoked_at


def failures() -> dict[str, float]:
    """How often each reason was counted in this process."""
    counted = registry()
    return {
        reason: counted.get_sample_value("jasper_receiver_key_failures_total", {"reason": reason}) or 0
        for reason in FailureReason
    }


async def test_failures_are_counted_by_their_reason_and_told_and_successes_are_not(
    start: Start, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(database)
    _, revoked = await create_key(engine, "old", [Scope.READ], now=NOW)
    await revoke_key(engine, "old", now=NOW)
    _, narrow = await create_key(engine, "narrow", [Scope.WRITE], now=NOW)
    _, fitting = await create_key(engine, "fitting", [Scope.READ], now=NOW)
    await engine.dispose()
    before = failures()
    async with start() as receiver:
        del receiver.http.headers["Authorization"]
        for headers, status in [
            ({}, 401),
            ({"Authorization": "Basic eDp5"}, 401),
            ({"Authorization": "Bearer guess"}, 401),
            ({"Authorization": "Bearer jr_" + "A" * 43}, 401),
            ({"Authorization": f"Bearer {ADMIN_KEY}x"}, 401),
            (bearer(revoked)["headers"], 401),
            (bearer(narrow)["headers"], 403),
            (bearer(fitting)["headers"], 200),
            (bearer(ADMIN_KEY)["headers"], 200),
        ]:
            assert (await receiver.http.get("/v1/events", headers=headers)).status_code == status
        assert (await receiver.http.get("/healthz")).status_code == 200
    expected = ["missing", "missing", "wrong", "wrong", "wrong", "revoked", "scope"]
    assert {reason: count - before[reason] for reason, count in failures().items()} == Counter(expected)
    told = [line for line in caplog.records if line.name == "app.access.failures"]
    assert [vars(line)["reason"] for line in told] == expected
    assert [vars(line)["key"] for line in told[-2:]] == ["old", "narrow"]
    assert {vars(line)["path"] for line in told} == {"/v1/events"}


async def test_many_failures_lock_nobody_out(reader: Reader) -> None:
    key = await a_key(reader, Scope.READ)
    for _ in range(100):
        assert (await reader.http.get("/v1/events", **bearer("jr_" + "A" * 43))).status_code == 401
    assert (await reader.http.get("/v1/events", **bearer(key))).status_code == 200


async def test_a_key_is_stored_hashed_and_shown_once(engine: AsyncEngine) -> None:
    made, key = await create_key(engine, "reader", [Scope.READ, Scope.WRITE, Scope.READ], now=NOW)
    assert key.startswith("jr_")
    async with engine.connect() as connection:
        [row] = (await connection.execute(text("SELECT to_jsonb(k)::text FROM api_keys k"))).scalars()
    assert key not in row
    assert key[3:] not in row
    assert await list_keys(engine) == [made]
    assert made.scopes == {Scope.READ, Scope.WRITE}


async def test_two_keys_are_never_the_same(engine: AsyncEngine) -> None:
    keys = {(await create_key(engine, f"reader {number}", [Scope.READ], now=NOW))[1] for number in range(5)}
    assert len(keys) == 5


async def test_a_name_belongs_to_one_valid_key_at_a_time(engine: AsyncEngine, lookups: Lookups) -> None:
    await create_key(engine, "reader", [Scope.READ], now=NOW)
    with pytest.raises(ConflictError, match="reader"):
        await create_key(engine, "reader", [Scope.READ], now=NOW)
    await revoke_key(engine, "reader", now=NOW)
    _, second = await create_key(engine, "reader", [Scope.READ], now=NOW)
    assert await find_key(lookups, digest_of(second), now=NOW) is not None
    assert [key.revoked_at for key in await list_keys(engine)] == [NOW, None]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\0b", "x" * 101])
async def test_an_unusable_name_is_refused(engine: AsyncEngine, name: str) -> None:
    with pytest.raises(InvalidParametersError, match="name"):
        await create_key(engine, name, [Scope.READ], now=NOW)


async def test_a_key_without_any_scope_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(InvalidParametersError, match="scope"):
        await create_key(engine, "reader", [], now=NOW)


@pytest.mark.parametrize("name", ["never there", "a\0b"])
async def test_revoking_what_is_not_there_says_so(engine: AsyncEngine, name: str) -> None:
    with pytest.raises(NotFoundError, match="no valid key"):
        await revoke_key(engine, name, now=NOW)


async def test_the_last_use_of_a_key_is_noted_once_a_minute(engine: AsyncEngine, lookups: Lookups) -> None:
    _, key = await create_key(engine, "reader", [Scope.READ], now=NOW)
    for seconds, noted in [(0, 0), (59, 0), (60, 60), (61, 60)]:
        assert await find_key(lookups, digest_of(key), now=NOW + timedelta(seconds=seconds)) is not None
        [stored] = await list_keys(engine)
        assert stored.last_used_at == NOW + timedelta(seconds=noted)


async def test_a_key_works_while_another_request_notes_its_use(engine: AsyncEngine, lookups: Lookups) -> None:
    """Neither is the request held up by the other's row lock, nor does it fail."""
    _, key = await create_key(engine, "reader", [Scope.READ], now=NOW)
    async with asyncio.timeout(10), engine.begin() as connection:
        await connection.execute(text("SELECT 1 FROM api_keys FOR UPDATE"))
        assert await find_key(lookups, digest_of(key), now=NOW) is not None
    [stored] = await list_keys(engine)
    assert stored.last_used_at is None
