"""The ledger against a real Postgres: what is committed, numbered, folded and recognised as a repetition."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from app.db.engine import connect
from app.db.locks import Lock
from app.domain.values import Delivery, DeliveryStatus, EntityType, Entry, Reading, Receipt
from app.errors import DatabaseUnavailableError, DrainingError, QueueFullError
from app.jasper.reading import interpret
from app.ledger import writer as ledger_writer
from app.ledger.append import _LOOK, LOCK
from app.ledger.writer import Writer, WriterLimits, open_ledger_connection

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
Rows = list[dict[str, Any]]


def repr_start(value: object) -> str:
    return ascii(value)[:12]


def a_callback(body: object, *, headers: tuple[tuple[str, str], ...] = (), at: datetime = NOW) -> Entry:
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    delivery = Delivery(EntityType.PRODUCT, at, "127.0.0.1", headers, raw, "header:x-secret")
    return Entry(EntityType.PRODUCT, interpret(EntityType.PRODUCT, headers, raw, {}), at, delivery)


def a_product(entity_id: int = 1, *, event: str = "product.updated", minute: int = 0, **fields: object) -> Entry:
    moment = (NOW + timedelta(minutes=minute)).isoformat()
    return a_callback({"event": event, "data": {"id": entity_id, **fields, "updated_at": moment}})


def a_notification(entity_id: int = 1, event: str = "product.updated") -> Entry:
    return a_callback({"event": event, "id": entity_id})


@pytest.fixture
async def writer(database: str) -> AsyncIterator[Writer]:
    async with Writer(database) as writer:
        yield writer


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(database, application_name="test")
    yield connection
    await connection.close()


async def rows(connection: asyncpg.Connection, query: str, *values: object) -> Rows:
    return [dict(row) for row in await connection.fetch(query, *values)]


async def commit_all(writer: Writer, *entries: Entry) -> list[Receipt]:
    return [await writer.commit(entry) for entry in entries]


async def test_a_callback_becomes_a_delivery_an_event_and_a_state(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    receipt = await writer.commit(a_product(1001, event="product.created", price=52.0))

    [event] = await rows(connection, "SELECT * FROM events")
    [delivery] = await rows(connection, "SELECT * FROM deliveries")
    [entity] = await rows(connection, "SELECT * FROM entities")
    assert receipt == Receipt(DeliveryStatus.ACCEPTED, delivery["id"], event["id"])
    assert (event["entity_id"], event["action"], event["stale"], event["delivery_id"]) == (
        "1001",
        "create",
        False,
        delivery["id"],
    )
    assert (entity["entity_id"], entity["version"], entity["sequence"]) == ("1001", 1, event["sequence"])
    assert entity["data_sequence"] == event["sequence"]
    assert (delivery["status"], delivery["event_sequence"]) == ("accepted", event["sequence"])


async def test_times_grow_with_the_numbers_whatever_the_clocks_say(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """Callbacks are committed in another order than they came, by replicas with clocks of their own."""
    began = await connection.fetchval("SELECT clock_timestamp()")
    hours = (-3, -5, 2, -4, 4, -1)
    for number, hour in enumerate(hours):
        body = {"event": "product.updated", "id": number}
        await writer.commit(a_callback(body, at=began + timedelta(hours=hour)))
    times = [row["received_at"] for row in await rows(connection, "SELECT received_at FROM events ORDER BY sequence")]
    now = await connection.fetchval("SELECT clock_timestamp()")

    assert times[:2] == [began - timedelta(hours=3)] * 2
    assert began < times[2] < now  # not before its time has come
    assert times == sorted(times)
    assert times[-1] < now
    kept = await rows(connection, "SELECT received_at FROM deliveries ORDER BY id")
    heard = [row["received_at"] for row in kept]
    assert [time if time < began else None for time in heard] == [
        began + timedelta(hours=hour) if hour < 0 else None for hour in hours
    ]
    assert max(heard) < now  # else a callback that is read later would seem to be told then


async def test_the_body_of_a_delivery_can_be_put_together_again_byte_for_byte(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    body = b'{ "event": "product.updated",\n "data": {"id": 7, "price": 1.10, "text": "\\u0000\\ud800"} , "x": 1e400 }'
    await writer.commit(a_callback(body))

    [row] = await rows(connection, "SELECT d.*, e.data FROM deliveries d JOIN events e ON e.delivery_id = d.id")
    offset = row["data_offset"]
    assert row["body"][:offset] + row["data"].encode() + row["body"][offset:] == body
    assert row["size"] == len(body)
    assert row["data"] == '{"id": 7, "price": 1.10, "text": "\\u0000\\ud800"}'


async def test_an_update_tells_what_changed(writer: Writer, connection: asyncpg.Connection) -> None:
    await commit_all(writer, a_product(price=52.0, stock={"qty": 1}), a_product(minute=1, price=49.0, stock={"qty": 1}))

    events = await rows(connection, "SELECT changed, changes FROM events ORDER BY sequence")
    assert events[0] == {"changed": [], "changes": "[]"}
    assert events[1]["changed"] == ["price", "updated_at"]
    assert {"op": "replace", "path": "/price", "from": 52.0, "to": 49.0} in json.loads(events[1]["changes"])


async def test_names_that_changed_are_kept_as_they_are_however_odd(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """Whatever they travel in, some characters mean something there."""
    odd = ("", " ", '"', "\\", '\\"', "a,b", "{}", "}", "NULL", "null", "\n\t", "größer", "\U0001f511", "'; --", "$1")
    moment = (NOW + timedelta(minutes=1)).isoformat()
    odd_product = {
        "event": "product.updated",
        "data": {"id": 1, "name": "x", **dict.fromkeys(odd, 1), "updated_at": moment},
    }
    await commit_all(writer, a_product(name="x"), a_callback(odd_product))
    changed = await connection.fetchval("SELECT changed FROM events ORDER BY sequence DESC LIMIT 1")
    assert sorted(changed) == sorted([*odd, "updated_at"])


async def test_callbacks_of_one_batch_are_folded_one_after_the_other(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    entries = [a_product(1, minute=minute, price=minute) for minute in range(20)]
    await asyncio.gather(*(writer.commit(entry) for entry in entries))

    events = await rows(connection, "SELECT data, changed FROM events ORDER BY sequence")
    assert [json.loads(event["data"])["price"] for event in events] == list(range(20))
    assert all(event["changed"] == ["price", "updated_at"] for event in events[1:])
    [entity] = await rows(connection, "SELECT version FROM entities")
    assert entity["version"] == 20


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            a_callback({"event": "updated", "id": 1}, headers=(("x-delivery-id", "d-1"),)),
            a_callback({"event": "updated", "id": 1, "attempt": 2}, headers=(("x-delivery-id", "d-1"),)),
            id="same delivery id",
        ),
        pytest.param(a_product(price=1), a_product(price=1), id="same body with updated_at"),
        pytest.param(
            a_callback({"event": "updated", "id": 1, "timestamp": 1767225600}),
            a_callback(b'{ "timestamp" : 1767225600, "id":1, "event":"updated"}'),
            id="same notification with a timestamp, spelled differently",
        ),
        pytest.param(
            a_callback({"event": "updated", "try": 1, "data": {"id": 1, "version": 3, "a": 1}}),
            a_callback({"event": "updated", "try": 2, "data": {"a": 1, "version": 3, "id": 1}}),
            id="same data with a version in a new envelope",
        ),
        pytest.param(
            a_callback({"id": 1, "name": "x", "updated_at": "2026-01-01T00:00:00Z"}),
            a_callback({"data": {"id": 1, "name": "x", "updated_at": "2026-01-01T00:00:00Z"}}),
            id="same data, action inferred both times",
        ),
    ],
)
async def test_a_repetition_is_recognised_and_names_its_original(
    writer: Writer, connection: asyncpg.Connection, first: Entry, second: Entry
) -> None:
    original, repeated = await commit_all(writer, first, second)

    assert original.status is DeliveryStatus.ACCEPTED
    assert (repeated.status, repeated.event_id) == (DeliveryStatus.DUPLICATE, original.event_id)
    assert repeated.delivery_id != original.delivery_id
    kept = await rows(connection, "SELECT duplicate_of FROM deliveries WHERE id = $1", repeated.delivery_id)
    assert kept == [{"duplicate_of": original.delivery_id}]
    assert await connection.fetchval("SELECT count(*) FROM events") == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(a_notification(), a_notification(), id="a notification without any stamp may be a second change"),
        pytest.param(
            a_callback({"event": "updated", "data": {"id": 1, "a": 1}}),
            a_callback({"event": "updated", "data": {"id": 1, "a": 1}}),
            id="data without updated_at may have changed back",
        ),
        pytest.param(a_product(price=1), a_product(price=2), id="two changes within one second"),
        pytest.param(a_product(1), a_product(2), id="two entities"),
        pytest.param(a_product(event="created"), a_product(event="updated"), id="two actions"),
        pytest.param(
            a_product(price=1),
            a_callback(
                b'{"event":"product.updated","data":{"id":1,"price":1.0000000000000000001,"updated_at":"2026-11-23T10:00:00+00:00"}}'
            ),
            id="numbers that only rounding makes equal",
        ),
        pytest.param(
            a_callback({"id": 1, "timestamp": 1767225600}, headers=(("x-event", "created"),)),
            a_callback({"id": 1, "timestamp": 1767225600}, headers=(("x-event", "updated"),)),
            id="the same body under two actions in the header",
        ),
        pytest.param(
            a_callback({"event": "updated", "id": 1}, headers=(("x-delivery-id", "constant"),)),
            a_callback({"event": "updated", "id": 2}, headers=(("x-delivery-id", "constant"),)),
            id="one delivery id for two entities",
        ),
    ],
)
async def test_what_may_be_a_second_change_is_kept(
    writer: Writer, connection: asyncpg.Connection, first: Entry, second: Entry
) -> None:
    receipts = await commit_all(writer, first, second)
    assert [receipt.status for receipt in receipts] == [DeliveryStatus.ACCEPTED] * 2
    assert await connection.fetchval("SELECT count(*) FROM events") == 2


async def test_a_repetition_within_one_batch_is_recognised(writer: Writer, connection: asyncpg.Connection) -> None:
    receipts = await asyncio.gather(*(writer.commit(a_product(price=1)) for _ in range(5)))
    assert sorted(receipt.status for receipt in receipts) == ["accepted", *["duplicate"] * 4]
    assert await connection.fetchval("SELECT count(*) FROM events") == 1


async def test_a_late_event_is_kept_as_stale_and_moves_nothing(writer: Writer, connection: asyncpg.Connection) -> None:
    await commit_all(writer, a_product(minute=5, price=5), a_product(minute=1, price=1))

    events = await rows(connection, "SELECT stale, changes FROM events ORDER BY sequence")
    assert events == [{"stale": False, "changes": "[]"}, {"stale": True, "changes": "[]"}]
    [entity] = await rows(
        connection, "SELECT n.version, e.data FROM entities n JOIN events e ON e.sequence = n.data_sequence"
    )
    assert (entity["version"], json.loads(entity["data"])["price"]) == (1, 5)


async def test_a_late_event_completes_the_state_that_only_an_older_one_told_of(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """How old the known data is comes from the database here, since each of them is a batch of its own."""
    thin = a_callback({"event": "product.updated", "id": 1, "timestamp": (NOW + timedelta(minutes=5)).isoformat()})
    await commit_all(
        writer, a_product(minute=2, price=2), thin, a_product(minute=3, price=3), a_product(minute=1, price=1)
    )
    events = await rows(connection, "SELECT stale, changed FROM events ORDER BY sequence")
    assert [event["stale"] for event in events] == [False, False, True, True]
    assert [event["changed"] for event in events] == [[], [], ["price", "updated_at"], []]
    [entity] = await rows(
        connection, "SELECT n.version, e.data FROM entities n JOIN events e ON e.sequence = n.data_sequence"
    )
    assert (entity["version"], json.loads(entity["data"])["price"]) == (2, 3)


async def test_an_event_of_the_same_second_is_not_late(writer: Writer, connection: asyncpg.Connection) -> None:
    await commit_all(writer, a_product(price=1), a_product(price=2))
    assert await connection.fetchval("SELECT count(*) FROM events WHERE stale") == 0
    assert await connection.fetchval("SELECT version FROM entities") == 2


async def test_a_delete_of_a_deleted_entity_repeats_and_of_an_unknown_one_leaves_a_tombstone(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    first, second = await commit_all(writer, a_notification(event="deleted"), a_notification(event="deleted"))
    assert first.status is DeliveryStatus.ACCEPTED
    assert (second.status, second.event_id) == (DeliveryStatus.DUPLICATE, first.event_id)
    [entity] = await rows(connection, "SELECT * FROM entities")
    assert entity["deleted_at"] is not None
    assert entity["data_sequence"] is None


async def test_a_repeated_delete_still_tells_how_new_the_deletion_is(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """Else an update from between both deletes would bring the entity back, depending on the order of arrival."""
    await commit_all(
        writer,
        a_product(event="deleted", minute=3),
        a_product(event="deleted", minute=5),
        a_product(event="updated", minute=4, price=1),
    )
    assert await connection.fetchval("SELECT deleted_at IS NOT NULL FROM entities")
    assert await connection.fetchval("SELECT stale FROM events ORDER BY sequence DESC LIMIT 1")


@pytest.mark.parametrize("between", [True, False], ids=["batch by batch", "in one batch"])
async def test_a_retry_of_a_repeated_delete_never_deletes_what_came_back_meanwhile(
    writer: Writer, connection: asyncpg.Connection, between: bool
) -> None:
    repeated = a_callback({"event": "deleted", "id": 1, "delivery_id": "d-2"})
    entries = [a_notification(event="deleted"), repeated, a_product(event="created", minute=1), repeated]
    if between:
        receipts = await commit_all(writer, *entries)
    else:
        receipts = await asyncio.gather(*(writer.commit(entry) for entry in entries))
    assert [receipt.status for receipt in receipts] == ["accepted", "duplicate", "accepted", "duplicate"]
    assert receipts[3].event_id == receipts[1].event_id == receipts[0].event_id
    assert await connection.fetchval("SELECT deleted_at IS NULL FROM entities")


async def test_a_newer_update_brings_a_deleted_entity_back(writer: Writer, connection: asyncpg.Connection) -> None:
    await commit_all(writer, a_product(price=1), a_product(event="deleted", minute=1), a_product(minute=2, price=2))
    [entity] = await rows(connection, "SELECT version, deleted_at FROM entities")
    assert entity == {"version": 3, "deleted_at": None}


async def test_an_event_without_data_leaves_the_data_as_it_was(writer: Writer, connection: asyncpg.Connection) -> None:
    await commit_all(writer, a_product(price=1), a_notification())
    [entity] = await rows(connection, "SELECT version, sequence - data_sequence AS behind FROM entities")
    assert entity["version"] == 2
    assert entity["behind"] > 0


async def test_the_action_is_inferred_from_whether_the_entity_is_known(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    await commit_all(writer, a_callback({"id": 1, "name": "a"}), a_callback({"id": 1, "name": "b"}))
    events = await rows(connection, "SELECT action, action_inferred FROM events ORDER BY sequence")
    assert events == [{"action": "create", "action_inferred": True}, {"action": "update", "action_inferred": True}]


@pytest.mark.parametrize(
    "body", [b"no json", b"", b'{"id": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a":1}', b'[{"id":1},{"id":2}]']
)
async def test_what_cannot_be_read_is_quarantined_whole(
    writer: Writer, connection: asyncpg.Connection, body: bytes
) -> None:
    receipt = await writer.commit(a_callback(body))
    assert (receipt.status, receipt.event_id) == (DeliveryStatus.QUARANTINED, None)
    [delivery] = await rows(connection, "SELECT body, status, reason FROM deliveries")
    assert (delivery["body"], delivery["status"]) == (body, "quarantined")
    assert delivery["reason"]


async def test_a_poison_row_is_quarantined_alone(writer: Writer, connection: asyncpg.Connection) -> None:
    """A constraint that only one row breaks stands for whatever Postgres may refuse."""
    await connection.execute("ALTER TABLE events ADD CONSTRAINT no_13 CHECK (entity_id <> '13')")
    receipts = await asyncio.gather(*(writer.commit(a_product(number)) for number in range(10, 20)))

    assert [receipt.status for receipt in receipts] == [
        DeliveryStatus.QUARANTINED if number == 13 else DeliveryStatus.ACCEPTED for number in range(10, 20)
    ]
    assert await connection.fetchval("SELECT count(*) FROM events") == 9
    assert "23514" in await connection.fetchval("SELECT reason FROM deliveries WHERE status = 'quarantined'")


@pytest.mark.parametrize("entity_id", ["\ud800", "nul\0", Random(1).randbytes(8_000).hex()], ids=repr_start)
async def test_a_row_that_the_driver_or_the_index_refuses_is_quarantined_alone(
    writer: Writer, connection: asyncpg.Connection, entity_id: str
) -> None:
    poison = replace(a_product(1), reading=Reading(entity_id=entity_id))
    good, bad = await asyncio.gather(writer.commit(a_product(2)), writer.commit(poison))
    assert (good.status, bad.status) == (DeliveryStatus.ACCEPTED, DeliveryStatus.QUARANTINED)
    assert await connection.fetchval("SELECT count(*) FROM events") == 1


async def test_a_connection_that_is_cut_at_any_moment_is_never_taken_for_the_fault_of_a_row(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """The driver has many words for it, depending on what it was about when the end came."""
    moments = Random(1)
    for number in range(40):
        await writer.commit(a_product(2 * number))
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE '%ledger' AND datname = current_database()"
        )
        await asyncio.sleep(moments.choice([0, 0, 0.0003, 0.001]))
        try:
            receipt = await writer.commit(a_product(2 * number + 1))
        except DatabaseUnavailableError:  # cut in the commit itself, so that nobody knows
            continue
        assert receipt.status is DeliveryStatus.ACCEPTED


async def test_a_database_that_lets_nobody_in_is_never_taken_for_the_fault_of_a_row(
    writer: Writer, connection: asyncpg.Connection, postgres_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = await connection.fetchval("SELECT current_database()")
    admin = await connect(postgres_server, application_name="test")
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        with pytest.raises(DatabaseUnavailableError):
            await writer.commit(a_product(1))
    finally:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert (await writer.commit(a_product(1))).status is DeliveryStatus.ACCEPTED


async def test_nothing_is_answered_while_the_commit_cannot_be_had(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the feed lock: the caller is told to come again, and what it sent is committed at most once."""
    async with Writer(database, WriterLimits(patience=0.2)) as writer:
        async with connection.transaction():
            await connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(DatabaseUnavailableError):
                await writer.commit(a_product(1))
        monkeypatch.setattr(writer, "_limits", WriterLimits())  # a busy machine may take longer than that
        receipt = await writer.commit(a_product(1))
        assert receipt.status in {DeliveryStatus.ACCEPTED, DeliveryStatus.DUPLICATE}
    assert await connection.fetchval("SELECT count(*) FROM events") == 1


async def test_who_was_told_to_come_again_is_kept_no_longer(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its room is given back, so what it sent must not fill the memory behind a batch that does not end."""
    ended = asyncio.Event()

    async def hang(_self: Writer, _entries: list[Entry]) -> list[Receipt]:
        await ended.wait()
        raise DatabaseUnavailableError("Postgres went away")

    monkeypatch.setattr(Writer, "_commit", hang)
    async with Writer(database, WriterLimits(patience=0.2, batch_rows=1)) as writer:
        results = await asyncio.gather(
            *(writer.commit(a_product(number)) for number in range(5)), return_exceptions=True
        )
        assert {type(result) for result in results} == {DatabaseUnavailableError}
        assert writer.queued == 0
        ended.set()


async def test_who_waited_for_the_lock_in_vain_is_told_and_the_next_one_is_served(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica holds the feed's lock, so a transaction has begun that never came to its first look."""
    async with Writer(database, WriterLimits(patience=0.2)) as writer:
        await connection.execute("SELECT pg_advisory_lock($1)", Lock.FEED.key)
        with pytest.raises(DatabaseUnavailableError):
            await writer.commit(a_product(1))
        await connection.execute("SELECT pg_advisory_unlock($1)", Lock.FEED.key)
        monkeypatch.setattr(writer, "_limits", WriterLimits())  # a busy machine may take longer than that
        await writer.commit(a_product(2))  # on the connection that was there
    assert await connection.fetchval("SELECT count(*) FROM events WHERE entity_id = '2'") == 1


async def test_what_takes_longer_than_its_caller_waits_is_committed_all_the_same(
    database: str, connection: asyncpg.Connection
) -> None:
    """Else a costly callback would come again, be put off again, and never be written."""
    await connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.6); RETURN new; END'"
    )
    await connection.execute("CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()")
    async with Writer(database, WriterLimits(patience=0.2)) as writer:
        with pytest.raises(DatabaseUnavailableError):
            await writer.commit(a_product(1))
    assert await connection.fetchval("SELECT count(*) FROM events") == 1


HANGS_ONCE = """
    CREATE SEQUENCE hung;
    CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN IF nextval(''hung'') = 1 THEN PERFORM pg_sleep(60); END IF; RETURN new; END';
"""


async def test_who_gets_no_answer_from_postgres_goes_to_it_anew(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where what stands between forgets a connection in the middle of a transaction."""
    monkeypatch.setattr(ledger_writer, "CONNECT_TIMEOUT", 0.2)
    await connection.execute(HANGS_ONCE)
    await connection.execute("CREATE TRIGGER hang BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION hang()")
    async with Writer(database, WriterLimits(patience=0.2)) as writer:
        with pytest.raises(DatabaseUnavailableError):
            await writer.commit(a_product(1))
    assert await connection.fetchval("SELECT count(*) FROM events") == 1
    assert await connection.fetchval("SELECT last_value FROM hung") == 2


async def test_who_gets_no_answer_in_the_commit_holds_up_the_next_one_no_longer_than_that(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_writer, "CONNECT_TIMEOUT", 0.2)
    await connection.execute(HANGS_ONCE)
    await connection.execute(
        "CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION hang()"
    )
    async with Writer(database, WriterLimits(patience=0.2)) as writer:
        with pytest.raises(DatabaseUnavailableError):
            await writer.commit(a_product(1))
        monkeypatch.setattr(writer, "_limits", WriterLimits(patience=15))
        async with asyncio.timeout(10):
            assert (await writer.commit(a_product(1))).status is DeliveryStatus.ACCEPTED


async def test_a_full_queue_refuses_and_what_was_queued_is_committed(
    database: str, connection: asyncpg.Connection
) -> None:
    async with Writer(database, WriterLimits(queue_rows=3, patience=5)) as writer:
        results = await asyncio.gather(
            *(writer.commit(a_product(number)) for number in range(10)), return_exceptions=True
        )
    refused = [result for result in results if isinstance(result, QueueFullError)]
    committed = [result for result in results if isinstance(result, Receipt)]
    assert len(committed) == 3
    assert len(refused) == 7
    assert await connection.fetchval("SELECT count(*) FROM events") == 3


async def test_leaving_commits_what_waits_and_refuses_what_comes(database: str, connection: asyncpg.Connection) -> None:
    async with Writer(database) as writer:
        waiting = [asyncio.create_task(writer.commit(a_product(number))) for number in range(50)]
        await asyncio.sleep(0)  # let them queue
    receipts = await asyncio.gather(*waiting)
    assert {receipt.status for receipt in receipts} == {DeliveryStatus.ACCEPTED}
    assert await connection.fetchval("SELECT count(*) FROM events") == 50
    with pytest.raises(DrainingError):
        await writer.commit(a_product(99))


async def test_a_caller_that_vanishes_does_not_take_its_batch_along(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    tasks = [asyncio.create_task(writer.commit(a_product(number))) for number in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, Receipt) for result in results) == 9
    assert await connection.fetchval("SELECT count(*) FROM events") >= 9


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_writers_of_several_replicas_make_one_order_and_no_duplicates(
    database: str, connection: asyncpg.Connection, isolation: str
) -> None:
    """Whatever isolation an administrator made the default: each looks at what the other has committed before."""
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    async with Writer(database) as one, Writer(database) as other:
        entries = [a_product(number % 7, minute=number, price=number) for number in range(60)]
        receipts = await asyncio.gather(*(writer.commit(entry) for entry in entries for writer in (one, other)))
    assert sorted(receipt.status for receipt in receipts) == ["accepted"] * 60 + ["duplicate"] * 60
    assert await connection.fetchval("SELECT count(*) FROM events") == 60


async def test_the_callers_of_one_batch_come_back_a_few_at_a_time(writer: Writer) -> None:
    # All at once, they would be read while Postgres has nothing to do, and waited for while it writes.
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    async def told_in(number: int) -> int:
        await writer.commit(a_product(number))
        return turn

    count()
    turns = Counter(await asyncio.gather(*(told_in(number) for number in range(1, 97))))
    assert max(turns.values()) <= 96 / 16


async def test_readers_are_woken_once_a_commit(writer: Writer, connection: asyncpg.Connection) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    def note(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        heard.put_nowait(str(payload))

    await connection.add_listener("feed", note)
    await writer.commit(a_product(1))
    position = await asyncio.wait_for(heard.get(), 5)
    assert int(position) == await connection.fetchval("SELECT max(sequence) FROM events")


async def fill(connection: asyncpg.Connection, count: int) -> None:
    """Products numbered from 1001 on, each with one event and one key."""
    await connection.execute(
        """
        INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source, received_at, changed,
            changes, data, entity_version, entity_sequence)
        SELECT n, gen_random_uuid(), 'product', n::text, 'update', false, false, 'webhook', now(), '{}', '[]',
            repeat('x', 500), 1, n
        FROM generate_series(1001, 1000 + $1) n
        """,
        count,
    )
    await connection.execute(
        """
        INSERT INTO entities (entity_type, entity_id, version, sequence, data_sequence, created_at, updated_at, heard_at)
        SELECT 'product', n::text, 1, n, n, now(), now(), now() FROM generate_series(1001, 1000 + $1) n
        """,
        count,
    )
    await connection.execute(
        """
        INSERT INTO idempotency_keys (key, sequence)
        SELECT decode(md5(n::text), 'hex'), n FROM generate_series(1001, 1000 + $1) n
        """,
        count,
    )


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_batch_looks_at_its_own_entities_only_whatever_plan_is_kept(
    connection: asyncpg.Connection, mode: str
) -> None:
    await fill(connection, 20_000)
    for table in ("events", "entities", "idempotency_keys"):
        await connection.execute(f"VACUUM ANALYZE {table}")
    await connection.execute(f"SET plan_cache_mode = {mode}")
    await connection.execute(f"PREPARE look AS {_LOOK}")
    for first in (1_001, 10_000, 20_990):
        numbers = range(first, first + 10)
        keys = ",".join(f"\\\\x{md5(str(number).encode(), usedforsecurity=False).hexdigest()}" for number in numbers)
        ids, types = ",".join(map(str, numbers)), ",".join(["product"] * 10)
        compared = ",".join(["true"] * 10)
        asked = f"EXECUTE look(10, '{{{keys}}}', '{{{types}}}', '{{{ids}}}', '{{{compared}}}', 65536)"
        [plan] = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked}"))
        assert plan["Plan"]["Actual Rows"] == 21
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 200, (first, plan)


@pytest.mark.parametrize("counted", [False, True], ids=["never counted", "counted when there was next to nothing"])
async def test_a_batch_passes_no_whole_table_either_where_its_plan_was_made_for_an_empty_one(
    database: str, connection: asyncpg.Connection, counted: bool
) -> None:
    """Postgres plans a statement once and keeps the plan, until it has counted the rows anew: here never."""
    tables = ["events", "entities", "idempotency_keys", "deliveries"]
    for table in tables:
        await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    if counted:
        async with Writer(database) as writer:
            await writer.commit(a_product(1))
        for table in tables:
            await connection.execute(f"VACUUM ANALYZE {table}")
    async with Writer(database) as writer:
        for number in range(10):
            await writer.commit(a_product(number, minute=1))
        await fill(connection, 5_000)
        for number in range(10):
            await writer.commit(a_product(number, minute=2))
    passed = "SELECT sum(seq_tup_read + idx_tup_fetch)::int FROM pg_stat_user_tables WHERE relname = ANY($1)"
    written = "SELECT n_tup_ins::int FROM pg_stat_user_tables WHERE relname = 'deliveries'"
    while await connection.fetchval(written) < 20 + counted:  # what a connection counted is told when it ends
        await asyncio.sleep(0.01)
    assert await connection.fetchval(passed, tables) < 1_000


CUT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name LIKE '%ledger' AND datname = current_database()
"""


async def test_a_server_that_takes_no_writes_is_left_for_one_that_does(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """As while another takes over: the address leads to a standby for a moment, and then to the new primary."""
    name = await connection.fetchval("SELECT current_database()")
    await writer.commit(a_product(1))
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await connection.execute(CUT)
    with pytest.raises(DatabaseUnavailableError):
        await writer.commit(a_product(2))
    await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert (await writer.commit(a_product(2))).status is DeliveryStatus.ACCEPTED


async def test_a_server_that_became_read_only_under_the_connection_is_left(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    await writer.commit(a_product(1))
    assert writer._connection is not None
    await writer._connection.execute("SET default_transaction_read_only = on")
    assert (await writer.commit(a_product(2))).status is DeliveryStatus.ACCEPTED
    assert await connection.fetchval("SELECT count(*) FROM events") == 2


async def test_numbers_go_on_behind_the_events_wherever_the_sequence_stands(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """A number below one that a reader has passed would never be seen, were it free."""
    await commit_all(writer, *(a_product(number) for number in range(3)))
    await connection.execute("DELETE FROM events WHERE sequence = 2")
    await connection.execute("SELECT setval('event_sequence', 1)")
    receipts = await commit_all(writer, *(a_product(number) for number in range(3, 6)))
    assert {receipt.status for receipt in receipts} == {DeliveryStatus.ACCEPTED}
    numbers = [row["sequence"] for row in await rows(connection, "SELECT sequence FROM events ORDER BY sequence")]
    assert numbers == [1, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE events ADD COLUMN later integer NOT NULL",
        "CREATE UNIQUE INDEX ON events ((true)); INSERT INTO events SELECT * FROM events",
    ],
    ids=["a newer version", "a number that is taken"],
)
async def test_tables_that_do_not_fit_are_never_taken_for_the_fault_of_a_callback(
    writer: Writer, connection: asyncpg.Connection, change: str
) -> None:
    if "UNIQUE" in change:
        await writer.commit(a_product(1))
    await connection.execute(change.partition(";")[0])
    before = await connection.fetchval("SELECT count(*) FROM deliveries")
    with pytest.raises(DatabaseUnavailableError):
        await writer.commit(a_product(2))
    assert await connection.fetchval("SELECT count(*) FROM deliveries") == before


async def test_what_postgres_refuses_at_the_commit_is_never_taken_for_the_fault_of_a_row(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    """Such as notifications that find no more room."""
    await connection.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '54000'; END $$;
        CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse()
        """
    )
    with pytest.raises(DatabaseUnavailableError):
        await writer.commit(a_product(1))
    assert await connection.fetchval("SELECT count(*) FROM deliveries") == 0
    await connection.execute("DROP TRIGGER at_commit ON events")
    assert (await writer.commit(a_product(1))).status is DeliveryStatus.ACCEPTED


async def test_differences_to_large_data_are_told_and_large_data_is_loaded_only_for_them(
    writer: Writer, connection: asyncpg.Connection
) -> None:
    text = "x" * 200_000
    await writer.commit(a_product(1, minute=0, text=text, price=1))
    await asyncio.gather(  # one batch
        writer.commit(a_product(1, minute=1, text=text, price=2)),
        writer.commit(a_product(1, minute=2, text=text, price=3)),
        writer.commit(a_product(1, minute=3, price=3)),
        writer.commit(a_notification(1)),
        writer.commit(a_product(1, minute=4, price=4)),
    )
    events = await rows(connection, "SELECT changed, octet_length(changes) AS size FROM events ORDER BY sequence")
    assert [set(event["changed"]) - {"updated_at"} for event in events] == [
        *(set(), {"price"}, {"price"}, {"text"}, set(), {"price"})
    ]
    await writer.commit(a_product(1, minute=5, text=text))
    for compared, most, loaded in [(False, 10**6, 0), (True, 64 * 1024, 0), (True, 10**6, 1)]:
        found = await connection.fetch(_LOOK, 1, [], ["product"], ["1"], [compared], most)
        [entity] = [row for row in found if row["what"] == "entity"]
        assert (entity["data"] is not None) == loaded
        assert entity["data_size"] > len(text)


async def test_who_stands_still_with_the_lock_is_parted_from_it(
    writer: Writer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica whose machine froze or was cut off, so that no word of its end comes to Postgres."""
    monkeypatch.setattr(ledger_writer, "_IDLE", 0.3)
    other = await open_ledger_connection(database, patience=30)
    await other.execute(f"BEGIN; {LOCK}")
    assert (await writer.commit(a_product(1))).status is DeliveryStatus.ACCEPTED
    other.terminate()


async def test_who_holds_the_lock_by_hand_is_found_as_the_docs_say(
    database: str, connection: asyncpg.Connection
) -> None:
    page = (Path(__file__).parents[2] / "docs/operations/scaling.md").read_text()
    [who_holds_it] = [query for query in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if "pg_locks" in query]
    assert await rows(connection, who_holds_it) == []
    somebody = await asyncpg.connect(database)
    await somebody.execute(f"BEGIN; {LOCK}")
    [found] = await rows(connection, who_holds_it)
    assert (found["pid"], found["state"]) == (somebody.get_server_pid(), "idle in transaction")
    await somebody.close()


async def test_who_registers_holds_no_callback_up(
    writer: Writer, database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO registrations (entity_type, state) VALUES ('product', 'pending')")
    other = await connect(database, application_name="test")
    async with other.transaction():
        await other.execute("SELECT * FROM registrations FOR UPDATE")
        await writer.commit(a_product(1))
        assert await connection.fetchval("SELECT proof FROM registrations") is None
    await other.close()
    await writer.commit(a_product(2))
    assert await connection.fetchval("SELECT proof FROM registrations") == "header:x-secret"


async def test_an_idle_connection_that_leads_nowhere_is_replaced_before_a_callback_comes(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What stands between may have forgotten it, and then nothing is heard of it any more, not even its end."""

    class Silent:
        def is_closed(self) -> bool:
            return False

        async def execute(self, _statement: str) -> None:
            await asyncio.sleep(3600)

        async def close(self, *, timeout: float) -> None:  # noqa: ASYNC109 - as the driver has it
            pass

    monkeypatch.setattr(ledger_writer, "HEARTBEAT", 0.05)
    monkeypatch.setattr(ledger_writer, "_HEARTBEAT_PATIENCE", 0.05)
    async with Writer(database) as writer:
        await writer.commit(a_product(1))
        real, writer._connection = writer._connection, Silent()  # type: ignore[assignment]
        async with asyncio.timeout(10):
            while writer._connection is not None:
                await asyncio.sleep(0.005)
        assert "the idle connection of the ledger was lost" in caplog.text
        assert (await writer.commit(a_product(2))).status is DeliveryStatus.ACCEPTED
        assert real is not None
        real.terminate()
