"""The whole service as it runs in production, on this machine: replicas side by side on one Postgres, known to a Jasper."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from app.sealing import generate_key
from app.simulator import SimulatorOptions, running_simulator
from bench.torture.postgres import Postgres, running_postgres, small_disk
from bench.torture.receiver import ReceiverProcess

_HEADERS = '{"X-From": "torture"}'


@dataclass(frozen=True, slots=True)
class Service:
    """What runs. `headers` prove a callback: the custom ones, and the secret that came of the registration."""

    postgres: Postgres
    receivers: list[ReceiverProcess]
    headers: dict[str, str] = field(repr=False)


@asynccontextmanager
async def running_service(
    directory: Path,
    *,
    receivers: int = 2,
    settings: Mapping[str, str] = MappingProxyType({}),
    disk_megabytes: int | None = None,
) -> AsyncIterator[Service]:
    """The service, registered and ready, for as long as the block lasts; its files stand in `directory`.

    `settings` are those of Postgres, which gets a disk of its own where `disk_megabytes` says how large. Whatever is left
    of the service when the block ends is stopped.
    """
    async with AsyncExitStack() as held:
        if disk_megabytes is not None:
            held.enter_context(small_disk(directory / "postgres", disk_megabytes))
        postgres = await held.enter_async_context(running_postgres(directory / "postgres", settings))
        jasper = await held.enter_async_context(running_simulator(SimulatorOptions(rate=0)))
        environment = {
            "DATABASE_URL": postgres.dsn,
            "ENCRYPTION_KEYS": generate_key(),
            "JASPER_API_URL": f"{jasper.base_url}/api/v1",
            "JASPER_API_TOKEN": jasper.token,
            "JASPER_WEBHOOK_HEADERS": _HEADERS,
            "PUBLIC_URL": "http://receivers.example",  # one for all, as behind a load balancer
        }
        started = [ReceiverProcess(directory / f"receiver-{number}", environment) for number in range(1, receivers + 1)]
        for receiver in started:
            held.push_async_callback(receiver.close)
        await asyncio.gather(*(receiver.start() for receiver in started))
        await asyncio.gather(*(receiver.ready() for receiver in started))
        [webhook] = jasper.webhooks.all()
        yield Service(postgres, started, {**webhook.headers, "X-Signing-Secret": webhook.signing_secret})
