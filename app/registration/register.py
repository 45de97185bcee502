"""Makes Jasper's webhooks be what the settings say, and keeps the secrets that come with them. Idempotent.

One replica at a time. Whatever Jasper answers with a secret is committed before Jasper is asked anything else; before
Jasper is asked for a change that may bring a new secret, that is noted and committed too, so that after a crash at any
point the next run knows what it cannot know. A new webhook is created before an old one is deleted, so that no change
of an entity falls between the two. Never logs or shows a secret, and never touches a webhook that is not ours.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

import httpx
import stamina
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.locks import Lock, try_lock
from app.domain.values import EntityType
from app.errors import (
    ConflictError,
    JasperError,
    JasperRefusedError,
    JasperUnavailableError,
    SealingError,
    UnavailableError,
)
from app.jasper.client import (
    Enabling,
    JasperClient,
    Patience,
    Webhook,
    WebhookProperties,
    method_is_unknown,
    same_headers,
    same_url,
)
from app.registration.retry_window import RetryPlan, retirement
from app.registration.store import PENDING_AT_MOST, Registration, RegistrationStore, State, Superseded
from app.sealing import Sealer
from app.settings import Settings

_log = logging.getLogger(__name__)

NO_JASPER = "there is no Jasper to register with: set JASPER_API_URL, JASPER_API_TOKEN and PUBLIC_URL, then restart"

TOO_MANY_MENDS = 3
"""Looks in a row that each had to mend something, from which on that is a trouble of its own."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found and did, in words. `problem` is what an operator still has to do, if anything."""

    entity_type: EntityType
    webhook_id: str
    state: State
    done: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class Turn:
    """How to wait for another replica that is registering: poll and give up after so many seconds."""

    poll: float = 0.25
    give_up: float = 120.0


def wanted_webhook(settings: Settings, entity_type: EntityType) -> WebhookProperties:
    """What the settings want of one entity type's webhook. They must name Jasper."""
    name = settings.jasper_webhook_name
    return WebhookProperties(
        name=name if entity_type is EntityType.PRODUCT else f"{name} ({entity_type})",
        callback_url=f"{settings.public_url}/callbacks/{entity_type.collection}",
        entity_type=entity_type,
        include_entity_data=settings.jasper_webhook_include_entity_data,
        headers={name: value.get_secret_value() for name, value in settings.jasper_webhook_headers.items()},
        retry_policy=settings.jasper_webhook_retry_policy,
        minimum_retry_interval=settings.jasper_webhook_minimum_retry_interval,
        retry_limit=settings.jasper_webhook_retry_limit,
    )


class Registrar:
    """Registers webhooks of one tenant.

    `http` is made by `app.jasper.client.open_http` and closed by its maker.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine: AsyncEngine,
        sealer: Sealer,
        http: httpx.AsyncClient,
        patience: Patience | None = None,
        turn: Turn | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.store = RegistrationStore(engine, sealer)
        self._settings = settings
        self._engine = engine
        self._patience = patience or Patience()
        self._jasper = JasperClient(http, self._patience)
        self._turn = turn or Turn()
        self._clock = clock

    @property
    def has_jasper(self) -> bool:
        """Whether there is a Jasper to register with."""
        return self._settings.names_jasper

    async def register(self, entity_type: EntityType) -> Outcome:
        """Bring one webhook in order: as the settings want it.

        Finishes a rotation that was broken off. Raises ConflictError where the settings name no Jasper,
        JasperRefusedError or JasperUnavailableError, SealingError where the stored secret cannot be opened, and
        UnavailableError where Postgres cannot be reached or another replica does not come to an end.
        """
        return await self._in_turn(entity_type, rotate=False)

    async def rotate(self, entity_type: EntityType) -> Outcome:
        """Replace one webhook by a new one with a new secret; the old secret is accepted until its retries are over.

        Works without the old secret, too, so it is the way out where no key opens that any more. Raises as `register`;
        where the process dies or Postgres goes away on the way, the next run finishes it.
        """
        return await self._in_turn(entity_type, rotate=True)

    async def look(self, entity_type: EntityType, interval: timedelta) -> Outcome | None:
        """Look whether one webhook still is as it was registered, and bring it in order; None where no look is due.

        What was registered counts, not the settings: replicas with others may be running while a new version is rolled
        out, and would undo each other's work; nor does one look that talks to another Jasper. Of several replicas one looks.
        Raises as `register`.
        """
        if not (await self.store.load(entity_type)).is_due(self._clock(), interval):
            return None
        async with try_lock(self._engine, Lock.REGISTRATION) as held:
            if not held:
                return None
            stored = await self.store.load(entity_type)
            if not stored.is_due(self._clock(), interval) or self._is_elsewhere(stored):
                return None
            wanted = stored.recorded or wanted_webhook(self._settings, entity_type)
            return await self._noting_failure(wanted, rotate=False, watching=True)

    async def _in_turn(self, entity_type: EntityType, *, rotate: bool) -> Outcome:
        if not self.has_jasper:
            raise ConflictError(NO_JASPER)
        give_up_at = time.monotonic() + self._turn.give_up
        while time.monotonic() < give_up_at:
            async with try_lock(self._engine, Lock.REGISTRATION) as held:
                if held:
                    return await self._noting_failure(wanted_webhook(self._settings, entity_type), rotate=rotate)
            await asyncio.sleep(self._turn.poll)
        raise UnavailableError("another replica is registering and does not come to an end: try again")

    async def _noting_failure(self, wanted: WebhookProperties, *, rotate: bool, watching: bool = False) -> Outcome:
        entity_type = wanted.entity_type
        if rotate:
            await self.store.mark_rotating(entity_type, self._clock())
        try:
            # Where an answer was lost, Jasper may have done what it was asked: the whole run, which begins with a look
            # at what there is, is the only thing that can safely be done again.
            again = stamina.AsyncRetryingCaller(
                attempts=2,
                timeout=None,
                wait_initial=self._patience.first_wait,
                wait_jitter=self._patience.jitter,
            )
            outcome = await again(_is_worth_another_look, self._run, wanted, watching)
        except (JasperError, SealingError) as exc:
            status = exc.status if isinstance(exc, JasperError) else None
            # Whoever asked for a rotation is told that it failed; one that was broken off is nobody's but ours.
            await self.store.fail(
                entity_type, problem=str(exc), status=status, now=self._clock(), rotation_given_up=rotate
            )
            raise
        if outcome.done:
            _log.info(
                "webhook brought in order",
                extra={
                    "entity_type": entity_type.value,
                    "webhook_id": outcome.webhook_id,
                    "done": "; ".join(outcome.done),
                },
            )
        return outcome

    async def _run(self, wanted: WebhookProperties, watching: bool) -> Outcome:
        stored = await self.store.load(wanted.entity_type)
        rotate = stored.rotating_since is not None
        if stored.locked and not rotate:
            raise SealingError(
                "the stored signing secret cannot be opened with any of ENCRYPTION_KEYS: put back the key it was "
                f"sealed with, or run `jasper-receiver rotate-secret {wanted.entity_type}` to replace it"
            )
        if self._is_elsewhere(stored):  # so are the ids
            stored = replace(stored, webhook_id=None, superseded=())
        api_url = str(self._settings.jasper_api_url)
        run = _Run(wanted, api_url, self._jasper, self.store, self._clock, stored, watching)
        return await run.rotate() if rotate else await run.register()

    def _is_elsewhere(self, stored: Registration) -> bool:
        """Whether it was registered at another Jasper than that of the settings."""
        return stored.api_url not in {None, self._settings.jasper_api_url}


@dataclass
class _Run:
    """One run for one entity type: what is wanted, what is stored by now, and what was done.

    `watching` says that nobody asked for the run, so that what it has to mend was undone by somebody. `there` are the ids of
    the webhooks that Jasper has, as far as is known.
    """

    wanted: WebhookProperties
    api_url: str
    jasper: JasperClient
    store: RegistrationStore
    clock: Callable[[], datetime]
    stored: Registration
    watching: bool
    done: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    retire_for: timedelta = timedelta(0)
    there: set[str] = field(default_factory=set)

    async def register(self) -> Outcome:
        """Look, and do only what is needed."""
        known, others = await self._find()
        if known is None:
            return await self._settle(await self._replace(others, "re-created, its secret was not known"))
        await self._delete(others)
        shown = known if known.is_complete else await self.jasper.webhook(known.id) or known
        await self._hear(shown, "took over a new secret that Jasper shows")
        return await self._settle(await self._mend(shown))

    async def rotate(self) -> Outcome:
        """A new webhook in any case."""
        known, others = await self._find()
        return await self._settle(await self._replace([*others, *([known] if known else [])], "rotated its secret"))

    async def _find(self) -> tuple[Webhook | None, list[Webhook]]:
        """Our webhook whose secret is known; beside it those that it superseded, and those of our name and callback URL."""
        known, others = None, []
        for webhook in await self.jasper.webhooks():
            self.there.add(webhook.id)
            if webhook.id == self.stored.webhook_id and self._recognise(webhook):
                known = webhook
            elif self._is_superseded(webhook) or await self._is_namesake(webhook):
                others.append(webhook)
        if known is not None and self.stored.signing_secret is None:
            others.append(known)
            known = None
        for webhook in [] if known or self.stored.locked else list(others):
            shown = webhook if webhook.signing_secret else await self.jasper.webhook(webhook.id) or webhook
            if shown.signing_secret is not None:
                others.remove(webhook)
                await self._hear(shown, "found its secret, which Jasper shows")
                return shown, others
        return known, others

    def _recognise(self, webhook: Webhook) -> bool:
        """Whether a webhook with our id is ours, and not another tenant's that happens to have it.

        Somebody may have changed its name or its callback URL by hand, but hardly both.
        """
        if webhook.callback_url is None:
            return webhook.name in {None, self.stored.webhook_name, self.wanted.name}
        urls = [url for url in (self.stored.callback_url, self.wanted.callback_url) if url is not None]
        return any(same_url(url, webhook.callback_url) for url in urls) or (
            webhook.name is not None and webhook.name in {self.stored.webhook_name, self.wanted.name}
        )

    def _known_as(self, webhook: Webhook) -> Superseded:
        """By what a webhook is found again once it is superseded: what was registered, not what Jasper shows of it now."""
        name, callback_url = self.wanted.name, self.wanted.callback_url
        if webhook.id == self.stored.webhook_id:
            name, callback_url = self.stored.webhook_name or name, self.stored.callback_url or callback_url
        return Superseded(webhook.id, name, callback_url)

    def _is_superseded(self, webhook: Webhook) -> bool:
        """Whether it is one that was to be deleted, by its id and by its name or its callback URL of then."""
        return any(
            one.webhook_id == webhook.id
            and (
                one.name == webhook.name
                or (webhook.callback_url is not None and same_url(one.callback_url, webhook.callback_url))
            )
            for one in self.stored.superseded
        )

    async def _is_namesake(self, webhook: Webhook) -> bool:
        if webhook.name != self.wanted.name:
            return False
        if webhook.callback_url is None:
            webhook = await self.jasper.webhook(webhook.id) or webhook
        return webhook.callback_url is not None and same_url(self.wanted.callback_url, webhook.callback_url)

    async def _replace(self, old: list[Webhook], why: str) -> Webhook:
        """Create a webhook, commit its secret, then delete the old ones; more than one old one is deleted first.

        So a run that fails again and again leaves two webhooks behind at most.
        """
        await self._delete(old[:-1])
        self._retire_after(old)
        async with self._noted_as_pending():
            created = await self.jasper.create_webhook(self.wanted)
        if created.signing_secret is None:
            shown = await self.jasper.webhook(created.id)
            if shown is None or shown.signing_secret is None:
                raise JasperRefusedError(
                    f"Jasper created webhook {created.id}, but shows no signing_secret for it, "
                    "without which no callback can be proven: ask Jasper's support"
                )
            created = shown
        await self._commit(created, self.wanted, superseded=[self._known_as(webhook) for webhook in old[-1:]])
        self.done.append(why if old else "created")
        await self._delete(old[-1:])
        return created

    async def _mend(self, webhook: Webhook) -> Webhook:
        """Make a webhook be as wanted: by PUT, else by PATCH, else by a new one in its place."""
        differences = self.wanted.differences(webhook)
        self._retire_after([webhook])
        if not differences and self.stored.pending_since is None:
            if self._is_recorded():
                return webhook
            if webhook.is_complete and same_headers(self.wanted.headers, webhook.headers or {}):
                await self._commit(webhook, self.wanted)
                return webhook
        shown, taken = webhook, False
        for method in ("PUT", "PATCH"):
            answer = await self._update(shown, method)
            if answer is None:
                continue
            shown, taken = answer, True
            if not (left := self.wanted.differences(shown)):
                self.done.append(f"mended {', '.join(differences)}" if differences else "confirmed")
                return shown
            differences = left
        if not differences:
            return webhook
        if taken and self._is_recorded():
            # It was registered like this before, and Jasper shows it otherwise still: a new one would be no different.
            self.problems.append(
                f"Jasper accepts {', '.join(differences)} but then shows something else: "
                f"look at webhook {shown.id} in Jasper"
            )
            return shown
        return await self._replace([shown], f"replaced, as Jasper would not change {', '.join(differences)}")

    async def _update(self, webhook: Webhook, method: Literal["PUT", "PATCH"]) -> Webhook | None:
        """Update a webhook; None where Jasper has no such call."""
        try:
            async with self._noted_as_pending():
                answer = await self.jasper.update_webhook(webhook.id, self.wanted, method)
        except JasperRefusedError as exc:
            if method_is_unknown(exc):
                return None
            raise
        await self._commit(answer, None if self.wanted.differences(answer) else self.wanted)
        return answer if answer.enabled is not None else replace(answer, enabled=webhook.enabled, switch=webhook.switch)

    async def _enable(self, webhook: Webhook) -> Webhook:
        """Switch a webhook on again, in whichever way Jasper takes."""
        for way in Enabling:
            try:
                async with self._noted_as_pending():
                    answer = await self.jasper.enable_webhook(webhook, self.wanted, way)
            except JasperRefusedError as exc:
                if exc.status in {401, 403}:
                    raise
                continue
            await self._commit(answer, None)
            if answer.enabled is None:
                answer = await self.jasper.webhook(webhook.id) or answer
            if answer.enabled:
                self.done.append("switched on again")
                return answer
        return webhook

    async def _settle(self, webhook: Webhook) -> Outcome:
        if webhook.enabled is False:
            webhook = await self._enable(webhook)
        state = State.REGISTERED
        if webhook.enabled is False:
            state = State.DISABLED
            self.problems.insert(
                0,
                f"webhook {webhook.id} is switched off in Jasper and could not be switched on again, so no callbacks "
                "come: enable it in Jasper, then register again",
            )
        mends = self.stored.mends_in_a_row + 1 if self.done and self.watching else 0
        if mends >= TOO_MANY_MENDS:
            self.problems.append(
                f"{mends} looks in a row had to mend the webhook, so somebody or something undoes it at Jasper each time: "
                "find out who, and until then it is looked at more rarely"
            )
        problem = "; ".join(self.problems) or None
        await self.store.settle(
            self.wanted.entity_type,
            state=state,
            problem=problem,
            done=self.done,
            mends_in_a_row=mends,
            superseded=[one for one in self.stored.superseded if one.webhook_id in self.there],
            now=self.clock(),
        )
        return Outcome(self.wanted.entity_type, webhook.id, state, tuple(self.done), problem)

    @asynccontextmanager
    async def _noted_as_pending(self) -> AsyncIterator[None]:
        """Note that Jasper is asked for a change that may bring a new secret; `_commit` takes the note away.

        So does a refusal, after which nothing has changed; but what an earlier run left open stays open. Headers that
        replace others are accepted everywhere from here on, and for as long as the note counts.
        """
        before, now = self.stored.pending_since, self.clock()
        if self.stored.headers is not None and not same_headers(self.wanted.headers, self.stored.headers):
            await self.store.announce(self.wanted.entity_type, self.wanted.headers, now + PENDING_AT_MOST)
        # Since when it is not known counts on, or a Jasper that is in trouble for long would have it never end.
        await self.store.mark_pending(self.wanted.entity_type, before or now)
        try:
            yield
        except JasperRefusedError:
            await self.store.mark_pending(self.wanted.entity_type, before)
            raise

    async def _hear(self, webhook: Webhook, what: str) -> None:
        """Keep a secret that Jasper shows and that is not the stored one."""
        if webhook.signing_secret is not None and webhook.signing_secret != self.stored.signing_secret:
            self._retire_after([webhook])
            await self._commit(webhook, None)
            self.done.append(what)

    async def _commit(
        self, webhook: Webhook, registered: WebhookProperties | None, *, superseded: Sequence[Superseded] = ()
    ) -> None:
        now = self.clock()
        self.stored = await self.store.commit(
            self.wanted.entity_type,
            webhook_id=webhook.id,
            signing_secret=webhook.signing_secret,
            registered=registered,
            now=now,
            retire_until=now + self.retire_for,
            api_url=self.api_url,
            superseded=[*self.stored.superseded, *superseded],
        )

    def _retire_after(self, old: list[Webhook]) -> None:
        """What is replaced stays accepted for the longest plan by which Jasper may be retrying with it."""
        plans = [plan for webhook in old if (plan := _plan(webhook)) is not None]
        if self.stored.plan is not None:
            plans.append(self.stored.plan)
        self.retire_for = max(map(retirement, [*plans, _plan_of(self.wanted)]))

    def _is_recorded(self) -> bool:
        """Whether what is wanted is what was last registered."""
        wanted, stored = self.wanted, self.stored
        return (
            (wanted.name, wanted.callback_url, _plan_of(wanted), wanted.include_entity_data)
            == (stored.webhook_name, stored.callback_url, stored.plan, stored.include_entity_data)
            and stored.headers is not None
            and same_headers(wanted.headers, stored.headers)
        )

    async def _delete(self, superfluous: list[Webhook]) -> None:
        for webhook in superfluous:
            try:
                await self.jasper.delete_webhook(webhook.id)
            except JasperRefusedError as exc:
                self.problems.append(f"webhook {webhook.id} is superfluous, delete it in Jasper by hand: {exc}")
            else:
                self.there.discard(webhook.id)
                self.done.append(f"deleted webhook {webhook.id}, which was superfluous")


def _is_worth_another_look(error: Exception) -> bool:
    """Whether a run that failed is worth repeating at once; not where Jasper named a time to wait."""
    return isinstance(error, JasperUnavailableError) and error.retry_after is None


def _plan_of(properties: WebhookProperties) -> RetryPlan:
    return RetryPlan(properties.retry_policy, properties.minimum_retry_interval, properties.retry_limit)


def _plan(webhook: Webhook) -> RetryPlan | None:
    policy, interval, limit = webhook.retry_policy, webhook.minimum_retry_interval, webhook.retry_limit
    return None if policy is None or interval is None or limit is None else RetryPlan(policy, interval, limit)
