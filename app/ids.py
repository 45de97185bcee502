"""New identifiers: UUIDs of version 7 (RFC 9562), which sort by the time they were made."""

from uuid import UUID

import uuid_utils
from asyncpg.pgproto import pgproto  # its kind of UUID is made and stored in a third of the time


def new_id() -> UUID:
    """A fresh UUIDv7."""
    identifier: UUID = pgproto.UUID(uuid_utils.uuid7().bytes)
    return identifier
