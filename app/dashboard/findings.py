"""What is not well, worst first, each with what to do about it. Pure: everything is handed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from app.dashboard.presentation import number, span
from app.dashboard.queries import MOST_COUNTED, Counts, Stretch
from app.feed.consumer_schemas import Consumer
from app.intake.tally import Outcome
from app.registration.store import Registration, State

LATE_SECONDS = 300
"""A consumer whose oldest unread event is older than this is told about."""


class Severity(IntEnum):
    """How bad it is."""

    CRITICAL = 0
    WARNING = 1
    NOTE = 2

    @property
    def word(self) -> str:
        """For the page."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not well, what to do, and the page on which to do it."""

    severity: Severity
    title: str
    advice: str
    href: str
    link: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the findings are made from. `last_hour` counts the answers of all replicas."""

    has_jasper: bool
    receives: bool
    writer_alive: bool
    registrations: Sequence[Registration]
    counts: Counts
    last_hour: Stretch
    consumers: Sequence[Consumer]
    now: datetime


def findings(seen: Seen) -> list[Finding]:
    """Everything that is not well, worst first."""
    found = [*_receiving(seen), *_waiting(seen), *_reading(seen)]
    return sorted(found, key=lambda one: one.severity)


def _receiving(seen: Seen) -> list[Finding]:
    found = []
    to_registrations = ("/dashboard/registrations", "Registrations")
    if seen.receives and not seen.writer_alive:
        found.append(
            Finding(
                Severity.CRITICAL,
                "The writer has stopped",
                "No callback can be committed by this process. Restart it, and look at its log for the reason.",
                "/dashboard/rejections",
                "What was refused",
            )
        )
    if seen.receives and not seen.has_jasper:
        found.append(
            Finding(
                Severity.NOTE,
                "Nothing is registered with Jasper",
                "Set JASPER_API_URL, JASPER_API_TOKEN and PUBLIC_URL, then restart, and callbacks will come.",
                *to_registrations,
            )
        )
    for one in seen.registrations:
        if one.locked:
            found.append(
                Finding(
                    Severity.CRITICAL,
                    f"The secret for {one.entity_type} cannot be opened",
                    "Put back the key of ENCRYPTION_KEYS that it was sealed with, or rotate the secret.",
                    *to_registrations,
                )
            )
        elif one.state in {State.FAILED, State.DISABLED}:
            found.append(
                Finding(
                    Severity.CRITICAL
                    if one.signing_secret is None or one.state is State.DISABLED
                    else Severity.WARNING,
                    f"The webhook for {one.entity_type} is {one.state}",
                    one.last_error or "Register it again.",
                    *to_registrations,
                )
            )
    return found


def _waiting(seen: Seen) -> list[Finding]:
    found = []
    if seen.counts.quarantined:
        found.append(
            Finding(
                Severity.WARNING,
                f"{_counted(seen.counts.quarantined)} quarantined: no event could be read from them",
                "Nothing is lost. Try a mapping on them, and read them again once it fits.",
                "/dashboard/quarantine",
                "Quarantine",
            )
        )
    if seen.counts.unproven:
        found.append(
            Finding(
                Severity.WARNING,
                f"{_counted(seen.counts.unproven)} kept apart: the secret could not be proven",
                "See where the secret may travel, set JASPER_SIGNING_SECRET_LOCATION if need be, and release them.",
                "/dashboard/unproven",
                "Unproven",
            )
        )
    refused = seen.last_hour.outcomes.get(Outcome.REFUSED, 0)
    if refused:
        found.append(
            Finding(
                Severity.WARNING,
                f"{number(refused)} refused with 401 within the last hour",
                "Somebody else may be knocking; or Jasper's headers or secret are not those that are known here.",
                "/dashboard/rejections",
                "Rejections",
            )
        )
    put_off = seen.last_hour.outcomes.get(Outcome.PUT_OFF, 0)
    if put_off:
        found.append(
            Finding(
                Severity.WARNING,
                f"{number(put_off)} put off with 503 within the last hour",
                "Jasper sends them again. If it goes on, look at Postgres, at the registration and at the load.",
                "/dashboard/registrations",
                "Registrations",
            )
        )
    return found


def _reading(seen: Seen) -> list[Finding]:
    late = [one for one in seen.consumers if one.lag_seconds > LATE_SECONDS]
    found = [
        Finding(
            Severity.WARNING,
            f"Consumer {one.name} is {span(one.lag_seconds)} behind",
            f"{number(one.lag)} events wait for it. Is the service that reads under this name running?",
            "/dashboard/consumers",
            "Consumers",
        )
        for one in sorted(late, key=lambda one: -one.lag_seconds)[:3]
    ]
    if seen.counts.parked:
        found.append(
            Finding(
                Severity.NOTE,
                f"{_counted(seen.counts.parked, 'event')} set aside by consumers",
                "Each could not be handled by its reader. See why, mend the reader, and have it handle them.",
                "/dashboard/consumers",
                "Consumers",
            )
        )
    return found


def _counted(count: int, word: str = "callback") -> str:
    if count > MOST_COUNTED:
        return f"More than {number(MOST_COUNTED)} {word}s are"
    return f"{number(count)} {word} is" if count == 1 else f"{number(count)} {word}s are"
