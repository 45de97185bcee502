"""Never lost, never doubled, never out of order: short torture runs, one for each sort of fault.

The long one is `python -m bench.torture`; both share all their code. Two real receivers on a real Postgres, a sender that
retries as Jasper does, readers that follow the feed, and a checker that knows only the contract.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.db.locks import Lock
from bench.torture.faults import Fault
from bench.torture.run import TortureOptions, torture
from bench.torture.sender import PATH, SenderOptions
from bench.torture.service import running_service

pytestmark = pytest.mark.timeout(180)

QUICK = {"fsync": "off", "synchronous_commit": "on"}
"""A killed process loses nothing that it gave to the kernel; only a dead machine would, and none dies here."""


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({Fault.RECEIVER_KILL: 3, Fault.RECEIVER_STOP: 1}, id="receivers killed and stopped"),
        pytest.param({Fault.POSTGRES_KILL: 2, Fault.POSTGRES_STOP: 1}, id="Postgres killed and stopped"),
        pytest.param(
            {Fault.CUT: 2, Fault.LOCK: 1, Fault.DISK_FULL: 1, Fault.POSTGRES_FREEZE: 1},
            id="Postgres cuts, locks, is full and hangs",
        ),
        pytest.param(
            {Fault.RECEIVER_KILL: 2, Fault.POSTGRES_KILL: 2, Fault.CUT: 1}, id="all at once", marks=pytest.mark.long
        ),
    ],
)
async def test_nothing_is_lost_doubled_or_out_of_order_whatever_crashes(
    tmp_path: Path, faults: Mapping[Fault, int]
) -> None:
    said: list[str] = []
    options = TortureOptions(
        faults=faults,
        entities=40,
        stop_seconds=3,
        pause=0.3,
        sender=SenderOptions(rate=100, retry_wait=0.4),
        settings=QUICK,
    )
    report = await torture(options, tmp_path, said.append)
    assert report.details == {}, "\n".join([*said, *report.lines()])
    assert report.faults == {fault.value: count for fault, count in faults.items()}
    assert report.answers["200 accepted"] > 100
    assert report.answers["200 duplicate"] > 0


HELD_COMMIT = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold();
SELECT pg_advisory_lock(1);
"""
"""A COMMIT that is sent, and does not come to its end before somebody lets it."""


async def test_a_commit_that_is_cut_off_on_its_way_was_promised_to_nobody(tmp_path: Path) -> None:
    async with (
        running_service(tmp_path, receivers=1, settings=QUICK) as service,
        service.postgres.connection() as elsewhere,
        httpx.AsyncClient(timeout=30) as http,
    ):
        [receiver] = service.receivers
        await elsewhere.execute(HELD_COMMIT)
        body = json.dumps({"event": "product.created", "id": 1})
        callback = asyncio.create_task(http.post(receiver.url + PATH, headers=service.headers, content=body))
        while not await elsewhere.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COMMIT%' AND wait_event = 'advisory'"
        ):
            assert not callback.done(), callback
        assert (await http.get(f"{receiver.url}/healthz")).is_success  # an answer on its way would be there by now
        assert not callback.done(), callback
        await receiver.kill()
        with pytest.raises(httpx.TransportError):
            await callback
        await elsewhere.execute("SELECT pg_advisory_unlock(1)")


async def test_what_waits_for_its_commit_at_sigterm_is_committed_and_answered(tmp_path: Path) -> None:
    async with (
        running_service(tmp_path, receivers=1, settings=QUICK) as service,
        service.postgres.connection() as elsewhere,
        httpx.AsyncClient(timeout=30) as http,
    ):
        [receiver] = service.receivers
        await elsewhere.execute(f"SELECT pg_advisory_lock({Lock.FEED.key})")
        callbacks = [
            asyncio.create_task(
                http.post(
                    receiver.url + PATH,
                    headers=service.headers,
                    content=json.dumps({"event": "product.created", "id": number}),
                )
            )
            for number in range(20)
        ]
        for _ in range(5):  # who asked after the callbacks came, and has an answer, shows that they are in
            assert (await http.get(f"{receiver.url}/healthz")).is_success
        stopping = asyncio.create_task(receiver.stop())
        with suppress(httpx.TransportError):  # it listens no more
            while not stopping.done():
                await http.get(f"{receiver.url}/healthz")
        await asyncio.sleep(0.5)  # the commit takes a while longer, and the shutdown has to wait for it
        assert not stopping.done()
        await elsewhere.execute(f"SELECT pg_advisory_unlock({Lock.FEED.key})")
        answers = await asyncio.gather(*callbacks)
        assert [answer.status_code for answer in answers] == [200] * 20
        assert await stopping == 0

        await receiver.start()
        page = await receiver.get("/v1/events", limit=100)
        assert {event["id"] for event in page["events"]} == {answer.json()["event_id"] for answer in answers}
