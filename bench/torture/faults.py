"""The faults: each strikes once, at what chance picks, and puts everything back afterwards."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import StrEnum

import asyncpg

from app.db.locks import Lock
from bench.torture.postgres import PATIENCE, UNREACHABLE, Postgres
from bench.torture.receiver import ReceiverDiedError, ReceiverProcess

_LONGER_THAN_PATIENCE = (2.6, 5.0)
"""Seconds for which locks are held: longer than a receiver lets a callback wait for its commit."""

_FULL = """
CREATE FUNCTION torture_disk_full() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
"""


class Fault(StrEnum):
    """What may go wrong, as the command line and the report name it."""

    RECEIVER_KILL = "receiver-kills"
    RECEIVER_STOP = "receiver-stops"
    POSTGRES_KILL = "postgres-kills"
    POSTGRES_STOP = "postgres-stops"
    POSTGRES_FREEZE = "postgres-freezes"
    CUT = "connection-cuts"
    DISK_FULL = "disk-fulls"
    NO_SPACE = "full-disks"
    LOCK = "locks"


class Stage:
    """What the faults strike: receivers and their Postgres.

    `answered` returns when the sender is answered next. `stop_seconds` is how long a stopped Postgres stays away.
    """

    def __init__(
        self,
        receivers: Sequence[ReceiverProcess],
        postgres: Postgres,
        answered: Callable[[], Awaitable[None]],
        *,
        stop_seconds: float,
        seed: int,
    ) -> None:
        self.chance = random.Random(f"faults {seed}")
        self.struck: Counter[Fault] = Counter()
        self.wrong: list[str] = []
        self.failed_starts = 0
        """Starts that a receiver gave up, because Postgres was away for too long or went away meanwhile."""
        self._postgres = postgres
        self._answered = answered
        self._stop_seconds = stop_seconds
        self._busy = {id(receiver): asyncio.Lock() for receiver in receivers}
        self._receivers = receivers
        self._faults: Mapping[Fault, Callable[[], Awaitable[None]]] = {
            Fault.RECEIVER_KILL: self._kill_receiver,
            Fault.RECEIVER_STOP: self._stop_receiver,
            Fault.POSTGRES_KILL: self._kill_postgres,
            Fault.POSTGRES_STOP: self._stop_postgres,
            Fault.POSTGRES_FREEZE: self._freeze_postgres,
            Fault.CUT: self._cut_connections,
            Fault.DISK_FULL: self._pretend_full_disk,
            Fault.NO_SPACE: self._fill_disk,
            Fault.LOCK: self._hold_lock,
        }

    async def strike(self, fault: Fault) -> None:
        """Let one fault happen; returns when everything has been put back."""
        await self._faults[fault]()

    async def restart(self, receiver: ReceiverProcess) -> None:
        """Start a receiver as a supervisor does: again and again."""
        while True:
            try:
                await receiver.start()
            except ReceiverDiedError:
                self.failed_starts += 1
            else:
                return

    @asynccontextmanager
    async def _one_receiver(self) -> AsyncIterator[ReceiverProcess]:
        """A running receiver that nobody else strikes meanwhile."""
        receiver = self.chance.choice(self._receivers)
        async with self._busy[id(receiver)]:
            yield receiver

    async def _moment(self) -> None:
        """Any moment, or the one just after an answer: then a promise that was not kept in time is found out."""
        if self.chance.choice((True, False)):
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._answered()

    async def _kill_receiver(self) -> None:
        async with self._one_receiver() as receiver:
            await self._moment()
            await receiver.kill()
            self.struck[Fault.RECEIVER_KILL] += 1
            await asyncio.sleep(self.chance.uniform(0, 1))
            await self.restart(receiver)

    async def _stop_receiver(self) -> None:
        """SIGTERM: it has to end by itself and in order."""
        async with self._one_receiver() as receiver:
            self.struck[Fault.RECEIVER_STOP] += 1
            try:
                code = await receiver.stop()
            except TimeoutError:
                self.wrong.append("a receiver did not end after SIGTERM")
                await receiver.kill()
            else:
                if code != 0:
                    self.wrong.append(f"a receiver exited with {code} after SIGTERM")
            await self.restart(receiver)

    async def _kill_postgres(self) -> None:
        async with self._postgres.busy:
            self.struck[Fault.POSTGRES_KILL] += 1
            await self._moment()
            await self._postgres.kill(down=self.chance.choice([0, self.chance.uniform(0, 2)]))

    async def _stop_postgres(self) -> None:
        async with self._postgres.busy:
            self.struck[Fault.POSTGRES_STOP] += 1
            await self._postgres.stop(down=self._stop_seconds)

    async def _freeze_postgres(self) -> None:
        async with self._postgres.busy:
            self.struck[Fault.POSTGRES_FREEZE] += 1
            await self._postgres.freeze(seconds=self.chance.uniform(1, 6))

    async def _cut_connections(self) -> None:
        """`pg_terminate_backend`: all of the service's connections, or some."""
        share = self.chance.choice([0.3, 1])
        query = """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name LIKE 'jasper-receiver%' AND random() < $1
        """
        await self._with_postgres(Fault.CUT, lambda connection: connection.execute(query, share))

    async def _fill_disk(self) -> None:
        async with self._postgres.busy:
            self.struck[Fault.NO_SPACE] += 1
            await self._postgres.fill_disk(seconds=self.chance.uniform(1, 4))

    async def _pretend_full_disk(self) -> None:
        """What Postgres says when its disk is full (SQLSTATE 53100), by a trigger on one of the tables."""
        table = self.chance.choice(["deliveries", "events", "entities", "idempotency_keys"])
        trigger = f"CREATE TRIGGER torture_disk_full BEFORE INSERT ON {table} EXECUTE FUNCTION torture_disk_full()"

        async def fill(connection: asyncpg.Connection) -> None:
            await connection.execute(_FULL)
            await connection.execute(trigger)

        async def empty(connection: asyncpg.Connection) -> None:
            await connection.execute("DROP FUNCTION IF EXISTS torture_disk_full CASCADE")

        await self._with_postgres(Fault.DISK_FULL, fill)
        await asyncio.sleep(self.chance.uniform(1, 4))
        await self._with_postgres(None, empty)

    async def _hold_lock(self) -> None:
        """Another session holds what every commit needs for longer than a receiver is patient."""
        seconds = self.chance.uniform(*_LONGER_THAN_PATIENCE)
        lock = self.chance.choice(
            [
                f"SELECT pg_advisory_lock({Lock.FEED.key})",
                "LOCK TABLE events IN ACCESS EXCLUSIVE MODE",
                "LOCK TABLE deliveries IN SHARE MODE",
                "LOCK TABLE entities IN ROW EXCLUSIVE MODE; SELECT FROM entities FOR UPDATE",
            ]
        )

        async def hold(connection: asyncpg.Connection) -> None:
            async with connection.transaction():
                await connection.execute(lock)
                await asyncio.sleep(seconds)

        await self._with_postgres(Fault.LOCK, hold)

    async def _with_postgres(
        self, fault: Fault | None, work: Callable[[asyncpg.Connection], Awaitable[object]]
    ) -> None:
        """Do harm by SQL, again where another fault came between. Raises TimeoutError where that never ends."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(*UNREACHABLE):
                    async with self._postgres.connection() as connection:
                        await work(connection)
                    break
                await asyncio.sleep(0.1)
        if fault is not None:
            self.struck[fault] += 1
