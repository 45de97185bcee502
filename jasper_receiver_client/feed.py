"""The feed as one reader follows it: by a position of its own, or as a consumer whose position the service keeps.

Every event is seen at least once and in order, whatever is killed in between: a position moves only past events that the
loop has done with. So a handler has to bear an event that it has seen before.
"""

import logging
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import quote

import httpx

from jasper_receiver_client.errors import FeedError, RequestRefusedError
from jasper_receiver_client.records import Entity, Event
from jasper_receiver_client.service import Service, read_json

_log = logging.getLogger("jasper_receiver_client")

_ACK_EVERY = 1.0
"""Seconds of work after which a consumer says how far it has come, also within a page: what a crash makes it do again."""

_LEASE_KEPT_AT = 3
"""A lease is prolonged when so small a part of it, one third, is over."""

_CALMEST_PACE = 1.0
"""Seconds between answers that bring nothing: a service that stops lets its readers go at once."""

_SNAPSHOT_PAGE = 1000
_LONGEST_REASON = 1000

EntityType = Literal["product", "category", "brand", "concrete_entity"]
Action = Literal["create", "update", "delete"]
Collection = Literal["products", "categories", "brands", "concrete-entities"]


class Filters(TypedDict, total=False):
    """Which events are wanted. Several values of one filter mean any of them; several filters mean all of them.

    `changed` are top-level names of which one changed. `since` (included) and `until` (not) are when the service received
    the event, and need a time zone. Stale events come only with `include_stale`.
    """

    entity_type: EntityType | Sequence[EntityType]
    action: Action | Sequence[Action]
    entity_id: str | Sequence[str]
    changed: str | Sequence[str]
    since: datetime
    until: datetime
    include_stale: bool


class Feed:
    """The feed of the receiver at `url`, read with the API key `key`.

    With `consumer` the service keeps the position under that name, for one process or several; the key then needs the
    scopes `read` and `write`, else `read` alone. `patience` is for how many seconds a call is tried again while the
    service cannot be reached; without it, for ever. `loads` reads JSON: give `read_exact_json` where prices have to keep their
    digits. Either way a whole number of thousands of digits, which Python reads as no int, is a Decimal.

    Not to be shared by threads. May be used as a context manager, which closes its connections.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        consumer: str | None = None,
        patience: float = float("inf"),
        loads: Callable[[bytes], Any] = read_json,
    ) -> None:
        self._service = Service(url, key, patience=patience, loads=loads)
        self._consumer = consumer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def follow(
        self,
        *,
        after: int | None = None,
        lease: int | None = None,
        limit: int = 100,
        wait: float = 30,
        **filters: Unpack[Filters],
    ) -> Generator[Event, None, None]:
        """Every event that passes the filters, in order, for ever; those that are there first, then each as it comes.

        Without a consumer: from behind `after`, or from the oldest event kept. Store each event's `sequence` with what you
        did, and give the last one as `after` when you come back.

        With a consumer: from its position; a new one begins with the oldest event kept. An event counts as done when the
        loop asks for the next one; acknowledgements are gathered for a second at most. What was not acknowledged comes again.

        `lease`, in seconds, lets several processes follow as one consumer: one of them has the page, the others wait. It is
        kept while the loop goes on, so it has to be longer than the work on one event. `limit` is how many events a page
        has at most, `wait` (up to 60) for how many seconds the service holds a call while there is nothing.

        Raises PositionGoneError, KeyRefusedError and other RequestRefusedErrors; ValueError for arguments that do not go
        together.
        """
        query = _query(filters) | {"limit": limit, "wait": wait}
        if self._consumer is None:
            if lease is not None:
                raise ValueError("a lease is for a consumer: name it, Feed(…, consumer=NAME)")
            return self._by_position(query if after is None else query | {"after": after}, wait)
        if after is not None:
            raise ValueError("the service keeps a consumer's position: to go elsewhere, move() it")
        return self._by_consumer(query if lease is None else query | {"lease": lease}, wait, lease)

    def move(self, start: Literal["earliest", "latest"] | int) -> None:
        """Set the consumer at `start`: before the oldest event kept, behind the newest, or at a position.

        Creates it where it is not there. Ends a lease that somebody holds.
        """
        self._service.call("PUT", self._consumer_path(), body={"start": start})

    def park(self, event: Event | int, reason: str) -> None:
        """Set an event (or its sequence) aside, because it cannot be handled: the consumer is not given it any more.

        Then let the loop go on. `GET /v1/consumers/{name}/parked` lists it with the reason, of which 1000 characters are kept.
        """
        sequence = event.sequence if isinstance(event, Event) else event
        # Whatever an exception says can be sent, so that parking does not fail in its turn.
        sendable = reason.replace("\0", " ").encode(errors="replace").decode()[:_LONGEST_REASON]
        body = {"sequence": sequence, "reason": sendable or "no reason was given"}
        self._service.call("POST", self._consumer_path("/park"), body=body)

    def snapshot(self, collection: Collection, *, include_deleted: bool = False) -> "Snapshot":
        """All entities of a collection as they stand, and the position to follow from, so that nothing is missed.

            snapshot = feed.snapshot("products")
            for entity in snapshot: store(entity)
            for event in feed.follow(after=snapshot.position, entity_type="product"): apply(event)

        A consumer is moved there instead: `feed.move(snapshot.position)`. What changes while the entities are read comes
        again by the feed.
        """
        parameters: dict[str, str | int] = {"limit": _SNAPSHOT_PAGE} | (
            {"include_deleted": "true"} if include_deleted else {}
        )
        return Snapshot(self._service, f"/v1/{collection}", parameters)

    def _by_position(self, query: dict[str, Any], wait: float) -> Generator[Event, None, None]:
        while True:
            page = self._page("/v1/events", query, wait)
            yield from page.events
            query["after"] = page.after

    def _by_consumer(self, query: dict[str, Any], wait: float, lease: int | None) -> Generator[Event, None, None]:
        consumer, _ = self._service.call("PUT", self._consumer_path())
        position: int = consumer["position"]
        while True:
            try:
                page = self._page(self._consumer_path("/events"), query, wait)
            except RequestRefusedError as exc:
                if exc.type != "/problems/leased":
                    raise
                time.sleep(_CALMEST_PACE * random.random())  # noqa: S311 - so that the pods do not ask all at once
                continue
            if page.events:
                yield from self._work_through(page, lease)
            elif page.after > position:
                self._ack(page.after, None)
            position = page.after

    def _work_through(self, page: "_Page", lease: int | None) -> Generator[Event, None, None]:
        """The events of a page, acknowledged as the loop goes on; ends early where the page is no longer ours."""
        every = _ACK_EVERY if lease is None else min(_ACK_EVERY, lease / _LEASE_KEPT_AT)
        done = page.events[0].sequence - 1  # nothing that is wanted stands before
        said = time.monotonic()
        try:
            for event in page.events:
                yield event
                done = event.sequence
                if time.monotonic() - said >= every and event is not page.events[-1]:
                    if not self._ack(done, page.lease_id, keep=lease):
                        return
                    said = time.monotonic()
        except GeneratorExit:
            # The loop was left: say how far it came, and let another have the rest at once. If that fails, the lease runs
            # out by itself.
            has_news = page.lease_id is not None or done >= page.events[0].sequence
            if has_news and not self._service.is_closed:
                with suppress(FeedError):
                    self._ack(done, page.lease_id, once=True)
            raise
        self._ack(page.after, page.lease_id)

    def _ack(self, after: int, lease_id: str | None, *, keep: int | None = None, once: bool = False) -> bool:
        """Say that everything up to `after` is done; whether the page was still ours. `keep` prolongs its lease, in seconds."""
        given = {"after": after, "lease_id": lease_id, "lease": keep}
        body = {name: value for name, value in given.items() if value is not None}
        try:
            self._service.call("POST", self._consumer_path("/ack"), body=body, once=once)
        except RequestRefusedError as exc:
            if exc.status != httpx.codes.CONFLICT:
                raise
            _log.warning("%s was not acknowledged, as another reader has come further: %s", after, exc)
            return False
        return True

    def _page(self, path: str, query: Mapping[str, Any], wait: float) -> "_Page":
        asked = time.monotonic()
        answer, _ = self._service.call("GET", path, parameters=query, held=wait)
        page = _Page(list(map(Event.of, answer["events"])), answer["after"], answer.get("lease_id"))
        if not page.events:
            time.sleep(max(0.0, asked + _CALMEST_PACE - time.monotonic()))
        return page

    def _consumer_path(self, what: str = "") -> str:
        if self._consumer is None:
            raise ValueError("this needs a consumer: name it, Feed(…, consumer=NAME)")
        return f"/v1/consumers/{quote(self._consumer, safe='')}{what}"


@dataclass(frozen=True, slots=True)
class _Page:
    events: list[Event]
    after: int
    lease_id: str | None


@dataclass
class Snapshot:
    """Entities of one collection, by id, read page by page as they are asked for.

    `position` is where to follow the feed from: that of the first page, which is read at once.
    """

    _service: Service = field(repr=False)
    _path: str
    _parameters: Mapping[str, str | int]
    position: int = field(init=False)

    def __post_init__(self) -> None:
        self._first, headers = self._service.call("GET", self._path, parameters=self._parameters)
        self.position = int(headers["Feed-Position"])

    def __iter__(self) -> Iterator[Entity]:
        page = self._first
        while True:
            yield from map(Entity.of, page["items"])
            if page["after"] is None:
                return
            parameters = {**self._parameters, "after": page["after"]}
            page, _ = self._service.call("GET", self._path, parameters=parameters)


def _query(filters: Filters) -> dict[str, Any]:
    """Filters as parameters."""
    query: dict[str, Any] = {}
    for name, value in filters.items():
        match value:
            case bool():
                query[name] = str(value).lower()
            case datetime():
                if value.tzinfo is None:
                    raise ValueError(f"{name} needs a time zone")
                query[name] = value.isoformat()
            case str():
                query[name] = value
            case _:
                query[name] = list(value)  # type: ignore[call-overload]  # what a TypedDict's items() cannot tell
                if not query[name]:  # sent like this it would ask for everything
                    raise ValueError(f"{name} has no value, so no event could pass")
    return query
