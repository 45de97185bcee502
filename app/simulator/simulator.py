"""The simulated Jasper itself: a catalogue, webhooks, and what happens between them.

A change of the catalogue becomes one callback for every enabled webhook of its entity type, in the order of the
changes; the stream makes such changes by itself. Changes are made one at a time, so that an initial load is never
overtaken by a change it does not know of. Speaks no HTTP itself: `app.simulator.api` and `app.simulator.control` do.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

from app.simulator.catalog import Catalog, Change, Kind
from app.simulator.faults import Faults
from app.simulator.options import ENTITY_TYPES, EntityType, SimulatorOptions
from app.simulator.payload import Envelope, render
from app.simulator.sender import Attempt, Callback, Destination, Sender
from app.simulator.webhooks import Webhook, Webhooks

_KEPT_CHANGES = 100_000
_KEPT_ATTEMPTS = 1_000


class Simulator:
    """One Jasper tenant; use it as an async context manager, since delivery runs in the background meanwhile.

    `clock` gives the present time in UTC. Raises CatalogError for a bad catalogue file, and OptionsError where the
    place of the secret does not fit the shape of the payload.
    """

    def __init__(
        self, options: SimulatorOptions | None = None, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.options = options or SimulatorOptions()
        self.token = self.options.token
        self.base_url: str | None = None
        """Where it is served, without a path; None while it is not, or where nobody said so."""
        self.catalog = Catalog(self.options, loaded_at=clock())
        self.webhooks = Webhooks(self.options, now=lambda: self.catalog.format_time(clock()))
        self.faults = Faults(self.options)
        self.sender = Sender(
            concurrency=self.options.concurrency,
            callback_timeout=self.options.callback_timeout,
            time_scale=self.options.time_scale,
            overlap=self.options.overlap,
            backlog_limit=self.options.backlog_limit,
            watch=self._remember,
        )
        self.changes: deque[Change] = deque(maxlen=_KEPT_CHANGES)
        """The latest changes, oldest first; what an initial load sends is none."""
        self.attempts: deque[dict[str, Any]] = deque(maxlen=_KEPT_ATTEMPTS)
        """How the latest attempts to deliver went, oldest first. Holds no header and no body."""
        self._clock = clock
        self._changing = asyncio.Lock()
        self._first_webhook = asyncio.Event()
        self._not_paused = asyncio.Event()
        self._not_paused.set()
        self._streamed = 0
        self._stream_rests = asyncio.Event()
        self._stream_rests.set()
        self._stream_task: asyncio.Task[None] | None = None
        self._loads: set[asyncio.Task[None]] = set()
        self._check_secret_place()

    async def __aenter__(self) -> Self:
        await self.sender.__aenter__()
        self._stream_task = asyncio.create_task(self._stream(), name="stream of changes")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = [*self._loads, *([self._stream_task] if self._stream_task else [])]
        for task in tasks:
            task.cancel()
        endings = await asyncio.gather(*tasks, return_exceptions=True)
        await self.sender.__aexit__(exc_type, exc, traceback)
        for ending in endings:
            if isinstance(ending, Exception):
                raise ending

    def create_webhook(self, properties: Mapping[str, Any]) -> Webhook:
        """Create a webhook and, where the options say so, begin its initial load. Raises ValidationError."""
        webhook = self.webhooks.create(properties)
        if self.options.initial_load:
            self.start_load(webhook)
        self._first_webhook.set()
        self._see_whether_stream_rests()
        return webhook

    def start_load(self, webhook: Webhook) -> None:
        """Begin to send a create for every entity of the webhook's type; changes wait until all are submitted."""
        task = asyncio.create_task(self._load(str(webhook.id)), name=f"initial load of webhook {webhook.id}")
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def change(
        self, *, kind: Kind | None = None, entity_type: EntityType | None = None, entity_id: str | None = None
    ) -> Change:
        """Change the catalogue once, as wanted or as chance has it, and submit the callbacks.

        Waits where the entity, or every one of them, has just been changed within this tick of the time resolution.
        Raises ChangeRefusedError.
        """
        while True:
            await self._loads_to_end()
            async with self._changing:
                change = await self._change_once(kind=kind, entity_type=entity_type, entity_id=entity_id)
            if change is not None:
                return change
            await self._next_tick()

    def pause(self) -> None:
        """Stop the stream; callbacks already submitted go on, and changes can still be asked for."""
        self._not_paused.clear()
        self._see_whether_stream_rests()

    def resume(self) -> None:
        """Let the stream go on."""
        self._not_paused.set()
        self._see_whether_stream_rests()

    async def drained(self) -> None:
        """Wait until nothing is left to come.

        Initial loads are out then, a stream with an end has reached it (or is paused, or still waits for a first
        webhook), and every callback is settled. Of an endless stream that goes on, it only waits for a moment without
        callbacks under way.
        """
        while True:
            await self._stream_rests.wait()
            if self._stream_task and self._stream_task.done():
                self._stream_task.result()
            await self._loads_to_end()
            async with self._changing:
                pass  # a change that was being submitted is out now
            await self.sender.drained()
            if self._stream_rests.is_set() and not self._loads and not self.sender.pending:
                return

    def state(self) -> dict[str, Any]:
        """What it is doing, in numbers."""
        return {
            "base_url": self.base_url,
            "api_mode": self.faults.api_mode,
            "entities": {
                entity_type: {
                    "live": len(self.catalog.entities(entity_type)),
                    "gone": len(self.catalog.gone(entity_type)),
                }
                for entity_type in ENTITY_TYPES
            },
            "stream": {
                "rate": self.options.rate,
                "paused": not self._not_paused.is_set(),
                "changes_made": self._streamed,
                "changes_wanted": self.options.changes or None,
            },
            "initial_loads_under_way": len(self._loads),
            "pending_callbacks": self.sender.pending,
            "callbacks": asdict(self.sender.statistics),
        }

    async def _stream(self) -> None:
        """Make changes at the wanted rate, from the first webhook on."""
        options = self.options
        if not options.rate:
            return
        loop = asyncio.get_running_loop()
        try:
            await self._first_webhook.wait()
            due = loop.time()
            while not self._stream_is_complete():
                await self._not_paused.wait()
                await self._loads_to_end()
                async with self._changing:
                    # It may have been paused while something else was changing.
                    if not self._not_paused.is_set():
                        continue
                    change = await self._change_once()
                if change is None:
                    await self._next_tick()
                    continue
                self._streamed += 1
                if self._streamed % options.burst_size == 0:
                    # Time lost to pauses and full backlogs is not caught up with a flood.
                    due = max(due + options.burst_size / options.rate, loop.time())
                    await asyncio.sleep(due - loop.time())
        finally:
            self._stream_rests.set()

    def _stream_is_complete(self) -> bool:
        return bool(self.options.changes) and self._streamed >= self.options.changes

    def _see_whether_stream_rests(self) -> None:
        """An endless stream counts as resting, since nobody could wait for its end."""
        goes_on = self._first_webhook.is_set() and self._not_paused.is_set() and not self._stream_is_complete()
        if goes_on and self.options.rate and self.options.changes:
            self._stream_rests.clear()
        else:
            self._stream_rests.set()

    async def _loads_to_end(self) -> None:
        """Wait for initial loads; one that has not had its first turn yet does not hold the lock either."""
        if self._loads:
            await asyncio.wait(self._loads)

    async def _next_tick(self) -> None:
        await asyncio.sleep(self.catalog.until_next_tick(self._clock()).total_seconds())

    async def _change_once(
        self, *, kind: Kind | None = None, entity_type: EntityType | None = None, entity_id: str | None = None
    ) -> Change | None:
        """One change and its callbacks, or None if it cannot be made within this tick. The caller holds the lock."""
        change = self.catalog.change(self._clock(), kind=kind, entity_type=entity_type, entity_id=entity_id)
        if change is not None:
            self.changes.append(change)
            for webhook in self.webhooks.all():
                if webhook.enabled and webhook.entity_type == change.entity_type:
                    await self._notify(webhook, change)
        return change

    async def _load(self, webhook_id: str) -> None:
        async with self._changing:
            await asyncio.sleep(self.options.initial_load_delay)
            webhook = self.webhooks.find(webhook_id)
            for change in self.catalog.load(webhook.entity_type) if webhook else ():
                webhook = self.webhooks.find(webhook_id)
                if webhook is None or not webhook.enabled:
                    return
                await self._notify(webhook, change)

    async def _notify(self, webhook: Webhook, change: Change) -> None:
        """Submit the callback of a change to a webhook, with the trouble that befalls it."""
        trouble = self.faults.next_callback()
        envelope = self._new_envelope(change.changed_at)
        await self.sender.submit(self._callback(webhook, change, envelope, duplicate=False), delay=trouble.delay)
        if trouble.duplicate:
            if self.options.duplicate_envelope == "new":
                envelope = self._new_envelope(self._clock())
            await self.sender.submit(self._callback(webhook, change, envelope, duplicate=True), delay=trouble.delay)

    def _new_envelope(self, moment: datetime) -> Envelope:
        # Not from the seed: a receiver that remembers would take the callbacks of a second run for those of the first.
        return Envelope(delivery_id=str(uuid.uuid4()), timestamp=self.catalog.format_time(moment))

    def _callback(self, webhook: Webhook, change: Change, envelope: Envelope, *, duplicate: bool) -> Callback:
        if self.options.retry_state == "frozen":
            fixed = self._destination(webhook, change, envelope)
            destination: Callable[[], Destination | None] = lambda: fixed  # noqa: E731 # reads as one of two ways
        else:
            destination = partial(self._current_destination, str(webhook.id), change, envelope)
        return Callback(
            order_key=f"{webhook.id} {change.entity_type} {change.entity_id}",
            destination=destination,
            retry_policy=webhook.retry_policy,
            minimum_retry_interval=webhook.minimum_retry_interval,
            retry_limit=webhook.retry_limit,
            about={
                "webhook_id": webhook.id,
                "delivery_id": envelope.delivery_id,
                "entity_type": change.entity_type,
                "entity_id": change.entity_id,
                "action": change.action,
                "updated_at": change.entity["updated_at"],
                "duplicate": duplicate,
            },
        )

    def _current_destination(self, webhook_id: str, change: Change, envelope: Envelope) -> Destination | None:
        webhook = self.webhooks.find(webhook_id)
        return self._destination(webhook, change, envelope) if webhook and webhook.enabled else None

    def _destination(self, webhook: Webhook, change: Change, envelope: Envelope) -> Destination:
        message = render(
            change,
            envelope,
            options=self.options,
            include_entity_data=webhook.include_entity_data,
            custom_headers=webhook.headers,
            signing_secret=webhook.signing_secret,
        )
        return Destination(webhook.callback_url, message)

    def _remember(self, attempt: Attempt) -> None:
        self.attempts.append(
            {
                "sequence": self.sender.statistics.attempts,
                "sent_at": attempt.sent_at.isoformat(),
                **attempt.callback.about,
                "attempt": attempt.number,
                "status": attempt.status,
                "error": attempt.error,
                "answer": attempt.answer,
                "seconds": round(attempt.seconds, 4),
            }
        )

    def _check_secret_place(self) -> None:
        """Only a place within something of the payload can be wrong, so only that is tried on every entity."""
        if self.options.secret_place.startswith("body:") and self.options.secret_place.count("/") > 1:
            for entity_type in ENTITY_TYPES:
                for change in self.catalog.load(entity_type):
                    render(
                        change,
                        self._new_envelope(change.changed_at),
                        options=self.options,
                        include_entity_data=True,
                        custom_headers={},
                        signing_secret="",
                    )
