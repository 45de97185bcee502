"""Advisory locks: work that one replica does at a time, and the lock under which the feed is numbered.

The numbers are part of the running system: two versions side by side must agree on them, so none is ever reused.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import IntEnum

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import UNREACHABLE, reached

_NAMESPACE = 0x4A505253
"""The first half of each lock's key ("JPRS"), so that other programs on the database do not meet ours by accident."""


class Lock(IntEnum):
    """What is locked: the second half of the key."""

    FEED = 1
    MIGRATION = 2
    REGISTRATION = 3
    UNPROVEN = 4
    CONSUMERS = 5
    RETENTION = 6
    FETCH = 20
    RECONCILE_PRODUCT = 21
    RECONCILE_CATEGORY = 22
    RECONCILE_BRAND = 23
    RECONCILE_CONCRETE_ENTITY = 24

    @property
    def key(self) -> int:
        """The 64-bit key for `pg_advisory_lock` and its kin."""
        return _NAMESPACE << 32 | self


@asynccontextmanager
async def try_lock(engine: AsyncEngine, lock: Lock) -> AsyncIterator[bool]:
    """Hold `lock` for the block if nobody else does; yields whether it is held. It ends with the connection at the latest.

    The connection that holds it does nothing else and is in no transaction, so the block may take long. Raises
    DatabaseUnavailableError where it cannot be asked for.
    """
    async with AsyncExitStack() as opened:
        async with reached():
            connection = await opened.enter_async_context(engine.connect())
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            held = bool(await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": lock.key}))
        try:
            yield held
        finally:
            if held:
                try:
                    await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": lock.key})
                except (SQLAlchemyError, *UNREACHABLE):
                    # What was done under it is done, and it ends with the connection.
                    await connection.invalidate()
