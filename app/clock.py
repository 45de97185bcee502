"""The time, as the service writes it down: aware, in UTC. Handed in as `now` wherever a rule depends on it."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)
