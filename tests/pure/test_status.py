"""What `status` makes of how things stand: which findings, how grave, and that each says what to do."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from app.clock import spoken
from app.db.sealed import SealedCounts
from app.domain.values import EntityType
from app.feed.consumer_schemas import Consumer
from app.ids import new_id
from app.reconciliation.attendance import Absence
from app.reconciliation.store import Reconciliation
from app.reconciliation.store import Status as ReconciliationStatus
from app.registration.register import wanted_webhook
from app.registration.retry_window import RetryPlan
from app.registration.store import Registration, Retiring, State
from app.settings import Settings
from app.status import Level, Status, findings, record
from tests.fake_jasper import TOKEN, jasper_settings

NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)
PRODUCT = EntityType.PRODUCT
SETTINGS = jasper_settings(
    jasper_webhook_headers={"X-Custom": SecretStr("a-header-value")},
    jasper_signing_secret_location="header:X-Secret",
    event_retention_days=30,
)
WANTED = wanted_webhook(SETTINGS, PRODUCT)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


HEALTHY = Registration(
    PRODUCT,
    state=State.REGISTERED,
    webhook_id="17",
    webhook_name=WANTED.name,
    callback_url=WANTED.callback_url,
    plan=RetryPlan(WANTED.retry_policy, WANTED.minimum_retry_interval, WANTED.retry_limit),
    include_entity_data=True,
    headers=WANTED.headers,
    signing_secret="signing-secret-1",
    registered_at=ago(days=30),
    checked_at=ago(minutes=4),
    proof="header:x-secret",
    last_callback_at=ago(minutes=1),
)
WELL = Status(
    postgres="16.4",
    schema="0008",
    feed_position=1042,
    quarantined=0,
    unproven=0,
    sealed=SealedCounts(2, 0, 0),
    registrations=(HEALTHY,),
    retiring=(),
    consumers=(),
    reconciliations={},
    absences={},
)


def codes(status: Status, settings: Settings = SETTINGS) -> dict[str, Level]:
    return {finding.code: finding.level for finding in findings(status, settings, NOW)}


def with_registration(**changes: Any) -> Status:
    return replace(WELL, registrations=(replace(HEALTHY, **changes),))


def test_where_all_is_well_there_is_nothing_to_say() -> None:
    assert codes(WELL) == {}


def a_reconciliation(status: str) -> Reconciliation:
    return Reconciliation(
        id=new_id(),
        entity_type=PRODUCT,
        status=ReconciliationStatus(status),
        compared=10,
        created=0,
        updated=0,
        deleted=0,
        error=None if status == "succeeded" else "page 2 …",
        started_at=ago(minutes=5),
        finished_at=ago(minutes=4),
    )


def test_a_reconciliation_that_succeeded_is_nothing_to_say() -> None:
    assert codes(replace(WELL, reconciliations={PRODUCT: a_reconciliation("succeeded")})) == {}


FAILED = {"state": State.FAILED, "last_error": "Jasper …", "last_error_at": ago(hours=3)}
CONSUMER = Consumer(
    name="search",
    position=2,
    lag=40,
    lag_seconds=7200.0,
    updated_at=ago(hours=2),
    leased_until=None,
    expires_at=None,
    overtaken=False,
)
EXPIRING = CONSUMER.model_copy(update={"expires_at": NOW + timedelta(days=2)})
OVERTAKEN = CONSUMER.model_copy(update={"expires_at": ago(days=1), "overtaken": True})


@pytest.mark.parametrize(
    ("status", "code", "level"),
    [
        (replace(WELL, registrations=()), "not-registered", Level.PROBLEM),
        (with_registration(**FAILED), "registration-failed", Level.PROBLEM),
        (with_registration(**FAILED, last_error_status=401), "token-refused", Level.PROBLEM),
        (with_registration(**FAILED | {"state": State.DISABLED}), "webhook-disabled", Level.PROBLEM),
        (with_registration(last_error="3 looks in a row …", last_error_at=NOW), "webhook-trouble", Level.PROBLEM),
        (with_registration(signing_secret=None), "secret-unknown", Level.PROBLEM),
        (with_registration(signing_secret=None, headers=None, locked=True), "secret-locked", Level.PROBLEM),
        (with_registration(pending_since=ago(minutes=11)), "unfinished", Level.PROBLEM),
        (with_registration(rotating_since=ago(minutes=11)), "unfinished", Level.PROBLEM),
        (with_registration(checked_at=ago(minutes=21)), "not-watched", Level.PROBLEM),
        (with_registration(mended=("mended name",), mended_at=ago(hours=2)), "mended", Level.NOTE),
        (with_registration(webhook_name="Another"), "settings-differ", Level.NOTE),
        (with_registration(headers={"X-Custom": "another"}), "settings-differ", Level.NOTE),
        (with_registration(last_callback_at=None, proof=None), "no-callback-yet", Level.NOTE),
        (with_registration(last_callback_at=ago(days=3)), "quiet", Level.NOTE),
        (replace(WELL, quarantined=1), "quarantined", Level.PROBLEM),
        (replace(WELL, unproven=1), "unproven", Level.PROBLEM),
        (replace(WELL, sealed=SealedCounts(1, 0, 1)), "key-lost", Level.PROBLEM),
        (replace(WELL, sealed=SealedCounts(1, 1, 0)), "key-older", Level.NOTE),
        (replace(WELL, consumers=(CONSUMER,)), "consumer-behind", Level.NOTE),
        (replace(WELL, absences={PRODUCT: Absence(ago(hours=5), ago(hours=3))}), "callbacks-missed", Level.PROBLEM),
        (replace(WELL, reconciliations={PRODUCT: a_reconciliation("failed")}), "reconciliation-failed", Level.PROBLEM),
        (
            replace(WELL, reconciliations={PRODUCT: a_reconciliation("needs_confirmation")}),
            "reconciliation-waits",
            Level.PROBLEM,
        ),
        (replace(WELL, consumers=(EXPIRING,)), "consumer-expiring", Level.PROBLEM),
        (replace(WELL, consumers=(OVERTAKEN,)), "consumer-overtaken", Level.PROBLEM),
        (
            replace(WELL, registrations=(HEALTHY, replace(HEALTHY, entity_type=EntityType.BRAND))),
            "not-followed",
            Level.NOTE,
        ),
    ],
    ids=lambda value: value if type(value) is str else type(value).__name__.lower(),
)
def test_each_thing_has_its_finding_and_no_other(status: Status, code: str, level: Level) -> None:
    assert codes(status) == {code: level}
    [finding] = findings(status, SETTINGS, NOW)
    assert finding.todo


@pytest.mark.parametrize(
    "status",
    [
        with_registration(pending_since=ago(minutes=9)),
        with_registration(checked_at=ago(minutes=19)),
        with_registration(checked_at=ago(minutes=64), mends_in_a_row=10, last_error=None),
        with_registration(mended=("created",), mended_at=ago(days=2)),
        with_registration(last_callback_at=ago(hours=23)),
        replace(WELL, consumers=(CONSUMER.model_copy(update={"lag_seconds": 3599.0}),)),
    ],
    ids=str,
)
def test_what_is_still_as_it_should_be_is_not_told(status: Status) -> None:
    assert codes(status) == {}


def test_a_consumer_stays_overtaken_where_events_are_kept_for_ever_from_now_on() -> None:
    settings = SETTINGS.model_copy(update={"event_retention_days": 0})
    status = replace(WELL, consumers=(OVERTAKEN.model_copy(update={"expires_at": None}),))
    assert codes(status, settings) == {"consumer-overtaken": Level.PROBLEM}


def test_problems_come_first() -> None:
    status = replace(with_registration(last_callback_at=ago(days=3)), quarantined=2, sealed=SealedCounts(1, 1, 0))
    assert list(codes(status)) == ["quarantined", "quiet", "key-older"]


def test_without_jasper_nothing_is_asked_of_it() -> None:
    settings = Settings(_env_file=None, jasper_signing_secret_location="header:X-Secret")
    assert codes(with_registration(**FAILED), settings) == {"no-jasper": Level.NOTE}


def test_place_that_is_not_pinned_is_told_with_the_setting() -> None:
    settings = SETTINGS.model_copy(update={"jasper_signing_secret_location": "auto"})
    [finding] = findings(WELL, settings, NOW)
    assert finding.todo.startswith("JASPER_SIGNING_SECRET_LOCATION=header:x-secret")


def test_no_secret_and_no_headers_value_is_ever_told() -> None:
    retiring = (
        Retiring(UUID(int=1), PRODUCT, "signing_secret", NOW + timedelta(minutes=5), signing_secret="signing-secret-0"),
        Retiring(UUID(int=2), PRODUCT, "headers", ago(minutes=5), headers={"X-Custom": "older-header-value"}),
    )
    status = replace(with_registration(headers={"X-Custom": "other-header-value"}), retiring=retiring)
    shown = record(status, SETTINGS, findings(status, SETTINGS, NOW), NOW)
    assert isinstance(shown["registrations"], list)
    [registration] = shown["registrations"]
    assert registration["also_accepted"] == ["signing_secret until 2026-01-31T08:05:00Z"]
    assert registration["lost_to_jasper_after"] == "25 minutes"
    for secret in ("signing-secret", "header-value", TOKEN):
        assert secret not in repr(shown)
        assert secret not in repr(status)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 seconds"),
        (1, "1 second"),
        (90, "90 seconds"),
        (1500, "25 minutes"),
        (7200, "2 hours"),
        (200_000, "2 days"),
    ],
)
def test_spans_are_spoken_in_their_largest_unit(seconds: float, words: str) -> None:
    assert spoken(timedelta(seconds=seconds)) == words
