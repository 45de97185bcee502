"""Registration with the simulated Jasper, whichever way falls what Jasper does not document."""

from typing import Literal

import httpx
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.values import EntityType
from app.jasper.client import Patience, open_http
from app.registration.register import Registrar
from app.registration.store import State
from app.sealing import Sealer
from app.simulator import Simulator, SimulatorOptions, create_simulator
from tests.fake_jasper import jasper_settings


@pytest.mark.parametrize("update_verb", ["put", "patch", "both", "none"])
@pytest.mark.parametrize(("wrap_resources", "repeat_secret"), [(True, False), (False, True)])
async def test_registration_drift_and_rotation(
    engine: AsyncEngine,
    update_verb: Literal["put", "patch", "both", "none"],
    wrap_resources: bool,
    repeat_secret: bool,
) -> None:
    options = SimulatorOptions(
        update_verb=update_verb,
        wrap_resources=wrap_resources,
        repeat_secret=repeat_secret,
        webhook_ids="integer" if wrap_resources else "string",
        page_size=1,
        rate=0,
    )
    simulator = Simulator(options)
    transport = httpx.ASGITransport(create_simulator(simulator=simulator))
    key = Fernet.generate_key().decode()

    async def register(**overrides: object) -> State:
        settings = jasper_settings(jasper_api_token=SecretStr(options.token), **overrides)
        async with open_http(settings, transport=transport) as http:
            registrar = Registrar(
                settings, engine=engine, sealer=Sealer([key]), http=http, patience=Patience(attempts=1)
            )
            outcome = await registrar.register(EntityType.PRODUCT)
            stored = await registrar.store.load(EntityType.PRODUCT)
        [webhook] = [webhook for webhook in simulator.webhooks.all() if webhook.entity_type == "product"]
        assert (str(webhook.id), webhook.signing_secret) == (stored.webhook_id, stored.signing_secret)
        assert dict(webhook.headers) == {
            name: value.get_secret_value() for name, value in settings.jasper_webhook_headers.items()
        }
        assert webhook.retry_limit == settings.jasper_webhook_retry_limit
        assert webhook.enabled
        return outcome.state

    for number in range(3):
        simulator.webhooks.create(
            {"name": f"somebody's {number}", "callback_url": "https://elsewhere.test/", "entity_type": "brand"}
        )
    assert await register() is State.REGISTERED
    assert await register() is State.REGISTERED
    assert await register(jasper_webhook_retry_limit=7) is State.REGISTERED
    assert await register(jasper_webhook_headers={"X-Custom": SecretStr("abc123")}) is State.REGISTERED
    [webhook] = [webhook for webhook in simulator.webhooks.all() if webhook.entity_type == "product"]
    simulator.webhooks.update(webhook, {"enabled": False}, whole=False)
    assert await register() is State.REGISTERED
