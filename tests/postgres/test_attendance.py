"""When the service was away for longer than Jasper keeps retrying, a reconciliation is offered until one has made good."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.values import EntityType
from app.reconciliation.attendance import Absence, Attendance, absences
from app.registration.store import RegistrationStore
from app.sealing import Sealer
from tests.fake_jasper import jasper_settings
from tests.listed_jasper import a_world

T0 = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


def attendance(engine: AsyncEngine, **settings: Any) -> Attendance:
    store = RegistrationStore(engine, Sealer([Fernet.generate_key().decode()]))
    return Attendance(jasper_settings(**settings), engine, store)


@pytest.mark.parametrize(
    ("settings", "seconds", "offered"),
    [
        ({}, 1500, False),
        ({}, 1501, True),
        ({"jasper_webhook_retry_limit": 7}, 2000, False),
        ({"jasper_webhook_retry_policy": "exponential", "jasper_webhook_retry_limit": 3}, 2100, False),
        ({"jasper_webhook_retry_policy": "exponential", "jasper_webhook_retry_limit": 3}, 2101, True),
        ({"jasper_webhook_retry_policy": "no_retry"}, 60, False),
        ({"jasper_webhook_retry_policy": "no_retry"}, 61, True),
    ],
)
async def test_an_absence_longer_than_jaspers_retries_is_noted(
    engine: AsyncEngine, settings: dict[str, Any], seconds: int, offered: bool
) -> None:
    here = attendance(engine, **settings)
    await here.touch(T0)
    back = T0 + timedelta(seconds=seconds)
    await here.touch(back)
    await here.touch(back + timedelta(seconds=30))
    assert await absences(engine) == ({EntityType.PRODUCT: Absence(T0, back)} if offered else {})


async def test_two_absences_are_one_from_the_first_to_the_last(engine: AsyncEngine) -> None:
    here = attendance(engine)
    for hours in (0, 1, 2):
        await here.touch(T0 + timedelta(hours=hours))
    assert await absences(engine) == {EntityType.PRODUCT: Absence(T0, T0 + timedelta(hours=2))}


async def test_a_clock_that_steps_back_is_no_absence(engine: AsyncEngine) -> None:
    here = attendance(engine)
    await here.touch(T0)
    await here.touch(T0 - timedelta(hours=1))
    await here.touch(T0 + timedelta(seconds=30))
    assert await absences(engine) == {}


async def test_only_a_success_that_began_later_makes_good(engine: AsyncEngine, database: str) -> None:
    here = attendance(engine)
    await here.touch(T0)
    await here.touch(T0 + timedelta(hours=1))
    async with a_world(database, engine) as world:
        world.jasper.trouble = lambda _: None
        world.changed(1)
        world.changed(1).pop("id")
        await world.reconcile()  # fails
        assert await absences(engine) != {}
        world.jasper.products.clear()
        await world.sql.execute("UPDATE attendance SET away_until = now() + interval '1 hour'")
        await world.reconcile()  # began too early
        assert await absences(engine) != {}
        await world.sql.execute("UPDATE attendance SET away_until = now()")
        await world.reconcile()
        assert await absences(engine) == {}
