"""The time, as the service writes it down: aware, in UTC. Handed in as `now` wherever a rule depends on it."""

from datetime import UTC, datetime, timedelta


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def spoken(span: timedelta) -> str:
    """A span of time in words, in its largest unit that is not 1: `25 minutes`, `90 seconds`, `3 days`."""
    seconds = max(0, round(span.total_seconds()))
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return "1 second" if seconds == 1 else f"{seconds} seconds"
