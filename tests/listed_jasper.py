"""A Jasper of which only its lists and entities matter, and a service beside it: for tests of reconciliation.

It stands behind httpx's mock transport, so that a test can say what happens between any two answers.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import connect
from app.domain.values import Delivery, EntityType, Entry, Receipt
from app.jasper.client import open_http
from app.jasper.reading import interpret
from app.ledger.writer import Writer
from app.reconciliation.reconciler import Reconciler
from app.reconciliation.store import Reconciliation
from tests.fake_jasper import IMPATIENT, jasper_settings

Product = dict[str, Any]
BEGIN = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


async def _nothing(_request: httpx.Request) -> None:
    """Between two answers nothing happens."""


@dataclass
class ListedJasper:
    """Products by their ids, listed in the order of the ids, with `links` and `meta`.

    `before` is awaited before each answer. `hidden` products are there, but not in the list; `fields` are those of items in
    the list, None for all. `dated` answers carry the time by Jasper's clock.
    """

    products: dict[str, Product] = field(default_factory=dict)
    page_size: int = 3
    hidden: set[str] = field(default_factory=set)
    fields: set[str] | None = None
    dated: datetime | None = None
    before: Callable[[httpx.Request], Awaitable[None]] = _nothing
    trouble: Callable[[httpx.Request], httpx.Response | None] = lambda _request: None
    calls: list[str] = field(default_factory=list)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """What Jasper answers to one call."""
        await self.before(request)
        path = request.url.raw_path.decode().removeprefix("/api/v1/")
        self.calls.append(path)
        response = self.trouble(request) or self._answer(request)
        if self.dated is not None:
            response.headers["Date"] = f"{self.dated:%a, %d %b %Y %H:%M:%S} GMT"
        return response

    @property
    def pages_read(self) -> list[int]:
        """The numbers of the pages that were asked for."""
        return [int(call.partition("page=")[2] or 1) for call in self.calls if "/" not in call]

    @property
    def singles_read(self) -> list[str]:
        """The ids of the products that were asked for alone."""
        return [call.partition("/")[2] for call in self.calls if "/" in call]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        _, _, entity_id = request.url.path.removeprefix("/api/v1/").partition("/")
        if entity_id:
            found = self.products.get(entity_id)
            return httpx.Response(404, json={}) if found is None else httpx.Response(200, json={"data": found})
        number = int(request.url.params.get("page", "1"))
        listed = [
            self.products[key]
            for key in sorted(self.products, key=lambda key: (len(key), key))
            if key not in self.hidden
        ]
        last = max(1, -(-len(listed) // self.page_size))
        shown = listed[(number - 1) * self.page_size : number * self.page_size]
        if self.fields is not None:
            shown = [{name: value for name, value in one.items() if name in self.fields} for one in shown]
        link = f"https://behind.a.proxy/api/v1/products?page={number + 1}" if number < last else None
        meta = {"current_page": number, "last_page": last, "total": len(listed)}
        return httpx.Response(200, json={"data": shown, "links": {"next": link}, "meta": meta})


class World:
    """Jasper and the service, and what goes on between them. Each change of a product is a second after the one before."""

    def __init__(self, dsn: str, engine: AsyncEngine, writer: Writer, sql: asyncpg.Connection) -> None:
        self.jasper = ListedJasper()
        self.sql = sql
        self.writer = writer
        self.engine = engine
        self._dsn = dsn
        self._seconds = 0

    def changed(self, entity_id: int, **fields: Any) -> Product:
        """Jasper creates or changes a product, and nobody is told; returns its state."""
        self._seconds += 1
        key = str(entity_id)
        moment = (BEGIN + timedelta(seconds=self._seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        before = self.jasper.products.get(key, {"id": entity_id, "name": f"Product {entity_id}"})
        self.jasper.products[key] = {**before, **fields, "updated_at": moment}
        return self.jasper.products[key]

    def deleted(self, entity_id: int) -> Product:
        """Jasper deletes a product, and nobody is told; returns its last state."""
        self._seconds += 1
        return self.jasper.products.pop(str(entity_id))

    async def told(self, event: str, product: Product, **around: Any) -> Receipt:
        """A callback about a product arrives."""
        body = json.dumps({"event": f"product.{event}", **around, "data": product}).encode()
        delivery = Delivery(EntityType.PRODUCT, utc_now(), "127.0.0.1", (), body, "header:x-secret")
        what = interpret(EntityType.PRODUCT, (), body, {})
        return await self.writer.commit(Entry(EntityType.PRODUCT, what, delivery.received_at, delivery))

    @property
    def now(self) -> datetime:
        """Jasper's time."""
        return BEGIN + timedelta(seconds=self._seconds)

    @asynccontextmanager
    async def reconciler(self, **settings: Any) -> AsyncIterator[Reconciler]:
        """A service's reconciler of its own, as another process would have it."""
        given = jasper_settings(**({"reconcile_most_deleted": 1.0} | settings))
        transport = httpx.MockTransport(self.jasper.answer)
        async with (
            open_http(given, transport=transport) as http,
            Reconciler(given, dsn=self._dsn, engine=self.engine, http=http, patience=IMPATIENT) as reconciler,
        ):
            yield reconciler

    async def reconcile(self, *, force: bool = False, **settings: Any) -> Reconciliation:
        """One reconciliation, from its beginning or from where it was left, to its end."""
        async with self.reconciler(**settings) as reconciler:
            return await reconciler.reconcile(EntityType.PRODUCT, force=force, on_progress=lambda _: None)

    async def events(self, after: int = 0) -> list[dict[str, Any]]:
        """The feed behind a position."""
        rows = await self.sql.fetch("SELECT * FROM events WHERE sequence > $1 ORDER BY sequence", after)
        return [dict(row) for row in rows]

    async def told_by(self, after: int = 0) -> list[tuple[str, str]]:
        """What reconciliation wrote behind a position: (action, id) in the order of the ids."""
        found = [event for event in await self.events(after) if event["source"] == "reconciliation"]
        assert all(event["delivery_id"] is None and not event["stale"] for event in found)
        return sorted((event["action"], event["entity_id"]) for event in found)

    async def head(self) -> int:
        """The newest sequence."""
        return int(await self.sql.fetchval("SELECT coalesce(max(sequence), 0) FROM events"))

    async def state(self) -> dict[str, Product]:
        """Every product that is here, by id."""
        rows = await self.sql.fetch(
            "SELECT n.entity_id, e.data FROM entities n JOIN events e ON e.sequence = n.data_sequence"
            " WHERE n.deleted_at IS NULL"
        )
        return {row["entity_id"]: json.loads(row["data"]) for row in rows}


@asynccontextmanager
async def a_world(dsn: str, engine: AsyncEngine) -> AsyncIterator[World]:
    """A Jasper without products, and a service that knows none."""
    sql = await connect(dsn, application_name="test")
    async with Writer(dsn) as writer:
        yield World(dsn, engine, writer, sql)
    await sql.close()
