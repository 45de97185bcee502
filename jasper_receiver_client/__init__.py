"""Follows the feed of a jasper-receiver: typed, synchronous, and with nothing but `httpx` beneath it.

    from jasper_receiver_client import Feed

    for event in Feed("https://receiver.example.com", key, consumer="search").follow():
        index(event)

Stands alone: it imports nothing of the receiver, so that a service may take this directory as it is. What it speaks is the
API that `docs/reading.md` describes.
"""

from jasper_receiver_client.errors import (
    FeedError,
    KeyRefusedError,
    PositionGoneError,
    RequestRefusedError,
    UnreachableError,
)
from jasper_receiver_client.feed import Feed, Filters, Snapshot
from jasper_receiver_client.records import Change, Entity, Event
from jasper_receiver_client.service import read_exact_json

__all__ = [
    "Change",
    "Entity",
    "Event",
    "Feed",
    "FeedError",
    "Filters",
    "KeyRefusedError",
    "PositionGoneError",
    "RequestRefusedError",
    "Snapshot",
    "UnreachableError",
    "read_exact_json",
]
