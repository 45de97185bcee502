"""The console command: parse, call one function, print, exit.

Exits 0 where it did what was asked, 1 where it failed, 2 where it was called or configured wrongly. Data goes to standard
output, talk to standard error. Commands work on the database of the settings, not through HTTP; the embedded one is
started for them where it does not run.
"""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec
from uuid import UUID

import click
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from app import logs
from app.access.keys import ApiKey, Scope, create_key, list_keys, revoke_key
from app.bootstrap import prepare_database, reach_database
from app.cli.output import print_advice, print_record, print_records, say
from app.cli.simulate import simulate
from app.clock import utc_now
from app.db import sealed
from app.db.embedded import embedded_postgres
from app.db.engine import create_engine, reading
from app.db.migrate import check_schema, migrate
from app.db.wakeup import Wakeup
from app.deliveries.reprocess import Reprocessor
from app.demo import DemoOptions, run_demo
from app.doctor.examine import examine
from app.doctor.report import Verdict
from app.domain.values import Action, DeliveryStatus, EntityType
from app.errors import InvalidParametersError, NotFoundError, ReceiverError, SettingsError
from app.feed import queries
from app.feed.filters import Filters
from app.jasper.client import open_http
from app.ledger.writer import Writer
from app.main import create_app
from app.paging import LAST_POSITION
from app.reconciliation.reconciler import Reconciler
from app.reconciliation.store import Reconciliation
from app.reconciliation.store import Status as ReconciliationStatus
from app.registration.register import Outcome, Registrar
from app.sealing import Sealer, development_keys, generate_key
from app.serving import Server, listen, web_address
from app.settings import Settings
from app.simulator.catalog import CatalogError
from app.status import Finding, Level, Status, describe, findings, look, overview, record
from app.workers import run as run_workers

P = ParamSpec("P")

_log = logging.getLogger(__name__)

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print records as JSON, one a line.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jasper-receiver")
def main() -> None:
    """Receive Jasper PIM's callbacks, and serve what they say in order.

    Settings come from environment variables and a .env file; docs/settings.md lists them.
    """


def with_settings(command: Callable[Concatenate[Settings, P], None]) -> Callable[P, None]:
    """Give a command the settings, and turn errors into words and an exit code."""

    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            settings = Settings.load()
            logs.configure("warning", "console")
            command(settings, *args, **kwargs)
        except (SettingsError, InvalidParametersError) as exc:
            _leave(exc, 2)
        except ReceiverError as exc:
            _leave(exc, 1)
        except KeyboardInterrupt:
            _leave(KeyboardInterrupt("interrupted"), 1)

    return update_wrapper(run, command)


def _leave(error: BaseException, code: int) -> NoReturn:
    say(f"Error: {error}")
    sys.exit(code)


@contextmanager
def database(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """The DSN of the settings' database and the keys that seal its secrets; runs the embedded one where none is named."""
    named = settings.database_url
    place = embedded_postgres(settings.data_dir) if named is None else nullcontext(named.get_secret_value())
    with place as dsn:
        yield dsn, [key.get_secret_value() for key in settings.encryption_keys] or development_keys(settings.data_dir)


@asynccontextmanager
async def engine_at(dsn: str, *, migrated: bool = True) -> AsyncIterator[AsyncEngine]:
    """An engine on a database that answers and has its schema at head, or is to be brought there."""
    engine = create_engine(dsn) if migrated else create_engine(dsn, statement_timeout=None)
    try:
        await reach_database(engine, patience=10)
        if migrated:
            await check_schema(engine)
        yield engine
    finally:
        await engine.dispose()


@main.command()
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that share the port: one a core that it may use.",
)
@with_settings
def serve(settings: Settings, workers: int) -> None:
    """Run the receiver until it is told to stop (SIGTERM, Ctrl-C)."""
    logs.configure(settings.log_level, settings.log_format)
    with database(settings) as (dsn, keys):
        asyncio.run(_prepare(settings, dsn))
        try:
            listener = listen(settings.host, settings.port)
        except OSError as exc:
            _leave(SettingsError(f"cannot listen on HOST {settings.host} PORT {settings.port}: {exc.strerror}"), 1)
        with listener:
            host, port = listener.getsockname()[:2]
            _log.info("listening", extra={"host": host, "port": port, "roles": list(settings.roles)})
            if "dashboard" in settings.roles and settings.database_url is None:
                say(f"dashboard: {web_address(settings.host, port)}/ (log in with an API key that may read)")
            work = partial(_serve, settings, dsn, keys)
            if not (work(listener) if workers == 1 else run_workers(work, listener, workers)):
                sys.exit(1)


def _serve(settings: Settings, dsn: str, keys: Sequence[str], listener: socket.socket) -> bool:
    """Serve the socket until a signal comes, in this process or in one of several; whether it ever came to serve."""
    logs.configure(settings.log_level, settings.log_format)
    server = Server(create_app(settings, dsn, keys))
    with suppress(SystemExit):  # uvicorn's way to say that the application did not start, with an exit code of its own
        server.run(sockets=[listener])
    return server.started


async def _prepare(settings: Settings, dsn: str) -> None:
    """Bring the database in order; in development also make a key where there is none yet, and show it once."""
    engine = create_engine(dsn, statement_timeout=None)
    try:
        await prepare_database(engine, auto_migrate=settings.auto_migrate)
        is_development = settings.database_url is None and settings.admin_api_key is None
        if is_development and not any(key.revoked_at is None for key in await list_keys(engine)):
            _, text = await create_key(engine, "development", list(Scope), now=utc_now())
            say(f"API key for development, shown this once: {text}")
    finally:
        await engine.dispose()


@main.command("migrate")
@as_json_option
@with_settings
def migrate_schema(settings: Settings, *, as_json: bool) -> None:
    """Bring the database schema to the version this program needs."""

    async def work(dsn: str) -> tuple[str | None, str]:
        async with engine_at(dsn, migrated=False) as engine:
            return await migrate(engine)

    with database(settings) as (dsn, _):
        before, after = asyncio.run(work(dsn))
    print_record({"before": before, "after": after}, as_json=as_json)


@main.command()
@click.option("--catalog", type=click.Path(path_type=Path, dir_okay=False), help="Products, one JSON object a line.")
@click.option("--rate", default=1.0, show_default=True, type=click.FloatRange(0), help="Changes a second.")
@click.option(
    "--changes", default=0, show_default=True, type=click.IntRange(0), help="Stop changing after so many; 0: never."
)
@with_settings
def demo(settings: Settings, catalog: Path | None, rate: float, changes: int) -> None:
    """Show everything at work: Postgres, the receiver and a simulated Jasper, in one go, until Ctrl-C."""
    try:
        asyncio.run(_until_signal(run_demo(settings, DemoOptions(catalog, rate, changes), say, click.echo)))
    except CatalogError as exc:
        raise click.UsageError(str(exc)) from exc


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Do work that only a signal ends; being ended so is no failure."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


@main.command("generate-key")
def generate_encryption_key() -> None:
    """Print a new key for ENCRYPTION_KEYS."""
    click.echo(generate_key())


@main.group()
def keys() -> None:
    """API keys of the services that read."""


@keys.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice([str(scope) for scope in Scope]))
@with_settings
def keys_create(settings: Settings, name: str, scopes: tuple[str, ...]) -> None:
    """Make a key and print it; it cannot be shown again."""
    with database(settings) as (dsn, _):
        _, text = asyncio.run(
            _on(dsn, lambda engine: create_key(engine, name, {Scope(s) for s in scopes}, now=utc_now()))
        )
    click.echo(text)
    say(f"This is the only time that the key {name!r} is shown.")


@keys.command("list")
@as_json_option
@with_settings
def keys_list(settings: Settings, *, as_json: bool) -> None:
    """List all keys, revoked ones included."""
    with database(settings) as (dsn, _):
        found = asyncio.run(_on(dsn, list_keys))
    print_records(map(_key_record, found), as_json=as_json)


@keys.command("revoke")
@click.argument("name")
@with_settings
def keys_revoke(settings: Settings, name: str) -> None:
    """Make a key worthless from now on."""
    with database(settings) as (dsn, _):
        asyncio.run(_on(dsn, lambda engine: revoke_key(engine, name, now=utc_now())))
    say(f"The key {name!r} is refused from now on.")


def _key_record(key: ApiKey) -> dict[str, object]:
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at.isoformat(),
        "last_used_at": key.last_used_at and key.last_used_at.isoformat(),
        "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
    }


async def _on(dsn: str, work: Callable[[AsyncEngine], Coroutine[Any, Any, Any]]) -> Any:
    async with engine_at(dsn) as engine:
        return await work(engine)


@main.group()
def events() -> None:
    """The feed of events."""


@events.command("tail")
@click.option(
    "--after",
    type=click.IntRange(0, LAST_POSITION),
    help="Begin behind this position; without it: with what comes next.",
)
@click.option("--entity-type", "entity_types", multiple=True, type=click.Choice([str(one) for one in EntityType]))
@click.option("--action", "actions", multiple=True, type=click.Choice([str(one) for one in Action]))
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on waiting for events at the end.")
@as_json_option
@with_settings
def events_tail(
    settings: Settings,
    after: int | None,
    entity_types: tuple[str, ...],
    actions: tuple[str, ...],
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Print events as they come, until Ctrl-C."""
    filters = Filters(entity_type=entity_types, action=actions)
    with database(settings) as (dsn, _):
        asyncio.run(_until_signal(_tail(dsn, filters, after, follow=follow, as_json=as_json)))


async def _tail(dsn: str, filters: Filters, after: int | None, *, follow: bool, as_json: bool) -> None:
    poll, page_size = 2.0, 200
    async with engine_at(dsn) as engine, Wakeup(dsn) as wakeup:
        while True:
            generation = wakeup.generation
            async with reading(engine) as connection:
                if after is None:
                    after = await queries.head(connection)
                page = await queries.page(connection, filters, after=after, limit=page_size)
            for event in page.events:
                click.echo(msgspec.json.encode(event) if as_json else _event_line(event))
            after = page.after
            if not page.has_more:
                if not follow:
                    return
                await wakeup.wait(generation, timeout=poll)


def _event_line(event: Any) -> str:
    changed = ", ".join(event.changed)
    return (
        f"{event.sequence:>8}  {event.received_at:%H:%M:%S}  {event.type:<24} {event.entity_id:<16} {changed}".rstrip()
    )


@main.command("status")
@as_json_option
@with_settings
def show_status(settings: Settings, *, as_json: bool) -> None:
    """Tell what is wrong and what to do about it, then how things stand. Exits with 1 where something needs a hand."""

    async def work(dsn: str, encryption_keys: list[str]) -> Status:
        async with engine_at(dsn) as engine:
            sealer = Sealer(encryption_keys)
            return await look(engine, sealer, await sealed.count(engine, sealer), kept_for=settings.event_retention)

    with database(settings) as (dsn, encryption_keys):
        status = asyncio.run(work(dsn, encryption_keys))
    now = utc_now()
    found = findings(status, settings, now)
    if as_json:
        print_record(record(status, settings, found, now), as_json=True)
    else:
        _print_status(status, settings, found, now)
    if any(finding.level is Level.PROBLEM for finding in found):
        sys.exit(1)


def _print_status(status: Status, settings: Settings, found: list[Finding], now: datetime) -> None:
    if not any(finding.level is Level.PROBLEM for finding in found):
        click.echo("Nothing needs a hand.")
    for finding in found:
        print_advice(str(finding.level), f"{finding.what} [{finding.code}]", finding.todo)
    click.echo()
    print_record(overview(status, settings), as_json=False)
    for registration in status.registrations:
        click.echo()
        print_record(describe(registration, status.retiring, now), as_json=False)
    for reconciliation in status.reconciliations.values():
        click.echo()
        print_record(reconciliation.model_dump(mode="json"), as_json=False)
    if status.consumers:
        click.echo()
        print_records([one.model_dump(mode="json") for one in status.consumers], as_json=False)


@main.command()
@as_json_option
@with_settings
def doctor(settings: Settings, *, as_json: bool) -> None:
    """Try everything the receiver needs: settings, database, Jasper's API (read-only) and the way back in.

    Says what it learned of what Jasper does not document. Exits with 1 where something is wrong.
    """

    async def work(dsn: str, encryption_keys: list[str]) -> bool:
        is_well = True
        async for one in examine(settings, dsn, Sealer(encryption_keys)):
            is_well = is_well and one.verdict is not Verdict.WRONG
            if as_json:
                print_record(one.as_record(), as_json=True)
            else:
                print_advice(str(one.verdict), f"{one.area}: {one.what}", one.todo)
        return is_well

    with database(settings) as (dsn, encryption_keys):
        is_well = asyncio.run(work(dsn, encryption_keys))
    say("Nothing is wrong." if is_well else "Something is wrong.")
    if not is_well:
        sys.exit(1)


@main.command()
@click.argument("entity_types", nargs=-1, type=click.Choice([str(entity_type) for entity_type in EntityType]))
@as_json_option
@with_settings
def register(settings: Settings, entity_types: tuple[str, ...], *, as_json: bool) -> None:
    """Bring the webhooks at Jasper in order now: all that the settings name, or those given."""
    types = [EntityType(name) for name in entity_types or settings.jasper_webhook_entity_types]
    _change_webhooks(settings, types, Registrar.register, as_json=as_json)


@main.command("rotate-secret")
@click.argument("entity_type", type=click.Choice([str(entity_type) for entity_type in EntityType]))
@as_json_option
@with_settings
def rotate_secret(settings: Settings, entity_type: str, *, as_json: bool) -> None:
    """Replace a webhook by one with a new secret; the old secret is accepted until Jasper's last retry with it."""
    _change_webhooks(settings, [EntityType(entity_type)], Registrar.rotate, as_json=as_json)


def _change_webhooks(
    settings: Settings,
    entity_types: list[EntityType],
    change: Callable[[Registrar, EntityType], Coroutine[Any, Any, Outcome]],
    *,
    as_json: bool,
) -> None:
    async def work(dsn: str, encryption_keys: list[str]) -> list[dict[str, object]]:
        async with engine_at(dsn) as engine, open_http(settings) as http:
            registrar = Registrar(settings, engine=engine, sealer=Sealer(encryption_keys), http=http)
            return [asdict(await change(registrar, entity_type)) for entity_type in entity_types]

    with database(settings) as (dsn, encryption_keys):
        outcomes = asyncio.run(work(dsn, encryption_keys))
    print_records(outcomes, as_json=as_json)
    if any(outcome["problem"] for outcome in outcomes):
        sys.exit(1)


@main.command()
@click.argument("entity_type", type=click.Choice([str(entity_type) for entity_type in EntityType]))
@click.option("--force", is_flag=True, help="Delete what is gone, however many that are.")
@as_json_option
@with_settings
def reconcile(settings: Settings, entity_type: str, *, force: bool, as_json: bool) -> None:
    """Compare with Jasper's own list and write what was missed.

    Goes on with a reconciliation that was left unfinished. May be broken off and run again: only differences are written.
    """

    async def work(dsn: str) -> Reconciliation:
        async with engine_at(dsn) as engine, open_http(settings) as http:
            reconciler = Reconciler(settings, dsn=dsn, engine=engine, http=http)
            return await reconciler.reconcile(EntityType(entity_type), force=force, on_progress=_progress())

    with database(settings) as (dsn, _):
        outcome = asyncio.run(work(dsn))
    print_record(outcome.model_dump(mode="json"), as_json=as_json)
    if outcome.status is not ReconciliationStatus.SUCCEEDED:
        sys.exit(1)


def _progress() -> Callable[[Reconciliation], None]:
    """Says every other second how far a reconciliation has come."""
    pause, said_at = 2.0, time.monotonic()

    def progress(now: Reconciliation) -> None:
        nonlocal said_at
        if time.monotonic() > said_at + pause:
            said_at = time.monotonic()
            say(
                f"{now.compared:,} compared: {now.created:,} created, {now.updated:,} updated, "
                f"{now.deleted:,} deleted so far"
            )

    return progress


@main.command()
@click.argument("delivery_ids", metavar="[DELIVERY_ID]...", nargs=-1, type=click.UUID)
@click.option(
    "--status", type=click.Choice([str(one) for one in DeliveryStatus]), help="All deliveries of this status."
)
@as_json_option
@with_settings
def reprocess(settings: Settings, delivery_ids: tuple[UUID, ...], status: str | None, *, as_json: bool) -> None:
    """Read deliveries again with today's JASPER_PAYLOAD_MAPPING: those given, or all of one status.

    Prints what came of each. May be broken off and run again: no delivery gets a second event.
    """
    if bool(delivery_ids) == (status is not None):
        raise click.UsageError("give either the ids of deliveries or --status")
    with database(settings) as (dsn, _):
        counted = asyncio.run(_reprocess(settings, dsn, delivery_ids, status, as_json=as_json))
    say(_in_words(counted))
    if delivery_ids and counted.total() < len(set(delivery_ids)):
        raise NotFoundError("some of these deliveries do not exist")


async def _reprocess(
    settings: Settings, dsn: str, delivery_ids: tuple[UUID, ...], status: str | None, *, as_json: bool
) -> Counter[str]:
    page_size = 200
    counted: Counter[str] = Counter()

    def note(found: list[Any]) -> None:
        for one in found:
            counted[one.status] += 1
            record = {"delivery_id": one.id, "status": one.status, "event_id": one.event_id, "reason": one.reason}
            if as_json:
                print_record(record, as_json=True)
            else:
                click.echo(f"{one.id}  {one.status:<12} {one.reason or one.event_id}")

    async with engine_at(dsn) as engine, Writer(dsn) as writer:
        reprocessor = Reprocessor(engine, writer, settings.payload_mapping)
        if status is None:
            for start in range(0, len(delivery_ids), page_size):
                note(await reprocessor.reprocess(delivery_ids[start : start + page_size]))
            return counted
        after, has_more = None, True
        while has_more:
            found, has_more = await reprocessor.reprocess_page(DeliveryStatus(status), after=after, limit=page_size)
            note(found)
            after = found[-1].id if found else after
            if has_more:
                say(f"{_in_words(counted)} so far")
    return counted


def _in_words(counted: Counter[str]) -> str:
    return f"{counted.total()} deliveries read again: " + ", ".join(f"{counted[one]} {one}" for one in DeliveryStatus)


main.add_command(simulate)


if __name__ == "__main__":
    main()
