"""The alarm before retention removes events that a consumer has not read, for whoever watches the log.

`danger` is the rule; what shows consumers elsewhere uses it too.
"""

import logging
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.feed import consumers
from app.feed.consumer_schemas import Consumer

_log = logging.getLogger(__name__)

_LONGEST_WARNING = timedelta(days=3)
_WARNED_SHARE = 4


class Danger(StrEnum):
    """What retention does to a consumer that is far behind."""

    EXPIRING = "expiring"
    """Events that it has not read will soon be removed."""

    OVERTAKEN = "overtaken"
    """Events that it has not read have been removed."""


def danger(consumer: Consumer, kept_for: timedelta | None, now: datetime) -> Danger | None:
    """In what danger a consumer is, where events are kept for so long (None: for ever, from now on).

    It counts as expiring in the last quarter of that time, at most three days before the first event is removed.
    """
    if consumer.overtaken:
        return Danger.OVERTAKEN
    if kept_for is None or consumer.expires_at is None:
        return None
    warned_for = min(kept_for / _WARNED_SHARE, _LONGEST_WARNING)
    return Danger.EXPIRING if consumer.expires_at - warned_for <= now else None


class Alarm:
    """Tells the log of each danger once, and again only when it had passed or has become another."""

    def __init__(self, engine: AsyncEngine, kept_for: timedelta | None) -> None:
        self._engine = engine
        self._kept_for = kept_for
        self._told: dict[str, Danger] = {}

    async def look(self, now: datetime | None = None) -> None:
        """Look at all consumers. Raises DatabaseUnavailableError."""
        if self._kept_for is None:
            return
        found: dict[str, Danger] = {}
        for consumer in await consumers.listed(self._engine, kept_for=self._kept_for):
            what = danger(consumer, self._kept_for, now or utc_now())
            if what is not None:
                found[consumer.name] = what
                if self._told.get(consumer.name) is not what:
                    _tell(consumer, what)
        self._told = found


def _tell(consumer: Consumer, what: Danger) -> None:
    about = {"consumer": consumer.name, "position": consumer.position, "lag": consumer.lag}
    if what is Danger.OVERTAKEN:
        _log.error("a consumer is overtaken: events it had not read have been removed", extra=about)
    else:
        expires_at = None if consumer.expires_at is None else consumer.expires_at.isoformat()
        _log.warning(
            "a consumer is far behind: events it has not read will be removed", extra=about | {"expires_at": expires_at}
        )
