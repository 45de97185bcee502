"""What the overview tells besides what `jasper-receiver status` does (`app.status`), and the page that goes with each finding.

Only what a process that runs can know, or what is worth a word on a page but no alarm. Pure: everything is handed in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from app.dashboard.presentation import number
from app.dashboard.queries import MOST_COUNTED, Stretch
from app.intake.tally import Outcome
from app.settings import Settings
from app.status import Finding, Level, Status
from app.status import findings as findings_of_status

_REGISTRATIONS = "/dashboard/registrations"
_RECONCILIATIONS = "/dashboard/reconciliations"
_REJECTIONS = "/dashboard/rejections"
_CONSUMERS = "/dashboard/consumers"

PAGES = {
    "writer-stopped": _REJECTIONS,
    "callbacks-refused": _REJECTIONS,
    "callbacks-put-off": _REGISTRATIONS,
    "events-parked": _CONSUMERS,
    "no-jasper": _REGISTRATIONS,
    "not-registered": _REGISTRATIONS,
    "not-followed": _REGISTRATIONS,
    "secret-locked": _REGISTRATIONS,
    "secret-unknown": _REGISTRATIONS,
    "token-refused": _REGISTRATIONS,
    "webhook-disabled": _REGISTRATIONS,
    "registration-failed": _REGISTRATIONS,
    "webhook-trouble": _REGISTRATIONS,
    "unfinished": _REGISTRATIONS,
    "not-watched": _REGISTRATIONS,
    "mended": _REGISTRATIONS,
    "settings-differ": _REGISTRATIONS,
    "proof-not-pinned": _REGISTRATIONS,
    "key-lost": _REGISTRATIONS,
    "key-older": _REGISTRATIONS,
    "no-callback-yet": _REJECTIONS,
    "quiet": _REJECTIONS,
    "quarantined": "/dashboard/quarantine",
    "unproven": "/dashboard/unproven",
    "callbacks-missed": _RECONCILIATIONS,
    "reconciliation-failed": _RECONCILIATIONS,
    "reconciliation-waits": _RECONCILIATIONS,
    "consumer-overtaken": _CONSUMERS,
    "consumer-expiring": _CONSUMERS,
    "consumer-behind": _CONSUMERS,
}
"""Where the matter of a finding is seen closer or mended, by the finding's code."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What this process sees. `last_hour` counts the answers of all replicas, `parked` what consumers have set aside."""

    receives: bool
    writer_alive: bool
    last_hour: Stretch
    parked: int


def findings(seen: Seen, status: Status, settings: Settings, now: datetime) -> list[Finding]:
    """Everything that is wrong or good to know, problems first."""
    found = [*_of_process(seen), *findings_of_status(status, settings, now)]
    return sorted(found, key=lambda finding: finding.level is not Level.PROBLEM)


def _of_process(seen: Seen) -> Iterator[Finding]:
    if seen.receives and not seen.writer_alive:
        yield Finding(
            Level.PROBLEM,
            "writer-stopped",
            "the writer of this process has stopped: it commits no callback any more",
            "restart it, and look at its log for the reason",
        )
    if refused := seen.last_hour.outcomes.get(Outcome.REFUSED, 0):
        yield Finding(
            Level.NOTE,
            "callbacks-refused",
            f"{number(refused)} refused with 401 within the last hour",
            "see why; somebody else may be knocking, or Jasper's headers or secret are not those that are known here",
        )
    if put_off := seen.last_hour.outcomes.get(Outcome.PUT_OFF, 0):
        yield Finding(
            Level.NOTE,
            "callbacks-put-off",
            f"{number(put_off)} put off with 503 within the last hour",
            "Jasper sends them again; if it goes on, look at Postgres, at the registration and at the load",
        )
    if seen.parked:
        many = f"more than {number(MOST_COUNTED)}" if seen.parked > MOST_COUNTED else number(seen.parked)
        yield Finding(
            Level.NOTE,
            "events-parked",
            f"events that their consumers could not handle and have set aside: {many}",
            "see why, mend the consumer, and have it handle them",
        )
