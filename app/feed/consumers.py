"""SQL for consumers: named positions in the feed, leases on the page behind them, events they have set aside.

A row is the only truth: every change of a consumer is decided by Postgres, on the row that it locks, by its own clock.
So however many pods of however many replicas call at once, one of them holds a page, and a slow one that lost its lease
can move nothing any more.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    case,
    cast,
    delete,
    extract,
    false,
    func,
    insert,
    null,
    select,
    text,
    true,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import reading, writing
from app.db.locks import Lock
from app.db.tables import consumers, events, parked_events
from app.errors import ConflictError, LeasedError, NotFoundError
from app.feed import queries
from app.feed.consumer_schemas import Ack, Consumer, ConsumerPageRecord, Park, ParkedEvent
from app.feed.filters import Filters
from app.feed.queries import HEAD, OLDEST_AFTER
from app.feed.schemas import EventPageRecord

MOST_CONSUMERS = 1000
MOST_PARKED = 1000
"""For each consumer: they are left out of its pages by number."""

COUNTED = 100_000
"""Numbers of the feed within which `lag` is exact. Counting so many in a million takes some 5 ms (index-only scan), and 40
where they are so new that Postgres has not vacuumed them yet."""

Start = Literal["earliest", "latest"] | int | None

_EARLIEST = (
    select(func.coalesce(func.min(events.c.sequence) - 1, OLDEST_AFTER))
    .where(events.c.sequence > OLDEST_AFTER)
    .scalar_subquery()
)
_IS_LEASED = func.coalesce(consumers.c.leased_until > func.now(), false())
_NO_LEASE: dict[str, None] = {"lease_id": None, "leased_until": None}

_Found = Row[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: where the consumer stood, what it had set aside behind that, and its page."""

    position: int
    without: list[int]
    page: ConsumerPageRecord


async def put(engine: AsyncEngine, name: str, start: Start, *, kept_for: timedelta | None) -> tuple[Consumer, bool]:
    """Create the consumer, or move it where `start` says; returns it, and whether it is new.

    A move ends a lease, so that whoever held it cannot undo the move. `kept_for` is for how long events are kept, None
    for ever, here and below. Raises ConflictError where the position is past the end of the feed, or there are too many
    consumers, and GoneError where events behind the position have been removed.
    """
    async with writing(engine) as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": Lock.CONSUMERS.key})
        known = await _lock(connection, name)
        count = select(func.count()).select_from(consumers)
        if known is None and (await connection.scalar(count) or 0) >= MOST_CONSUMERS:
            raise ConflictError(f"there are {MOST_CONSUMERS} consumers already: delete one that nobody uses any more")
        if known is None or start is not None:
            moved = {"position": await _position(connection, start), "updated_at": func.now(), **_NO_LEASE}
            if known is None:
                await connection.execute(insert(consumers).values(name=name, **moved))
            else:
                await connection.execute(update(consumers).where(consumers.c.name == name).values(**moved))
        return await _one(connection, name, kept_for), known is None


async def _position(connection: AsyncConnection, start: Start) -> int:
    """The position that is meant.

    Raises ConflictError where it is past the end of the feed, GoneError where it is before the oldest kept.
    """
    earliest, head, oldest_after = (await connection.execute(select(_EARLIEST, HEAD, OLDEST_AFTER))).one()
    match start:
        case None | "earliest":
            return int(earliest)
        case "latest":
            return int(head)
    if start > head:
        raise ConflictError(f"{start} is past the end of the feed: its newest event is number {head}")
    if start < oldest_after:
        raise queries.removed(f"a consumer cannot start at position {start}", oldest_after)
    return start


async def listed(engine: AsyncEngine, *, kept_for: timedelta | None) -> list[Consumer]:
    """All consumers, by name."""
    async with reading(engine) as connection:
        rows = await connection.execute(_with_lag(select(consumers), kept_for).order_by("name"))
        return [_consumer(row) for row in rows]


async def one(engine: AsyncEngine, name: str, *, kept_for: timedelta | None) -> Consumer:
    """The consumer of this name. Raises NotFoundError."""
    async with reading(engine) as connection:
        return await _one(connection, name, kept_for)


async def remove(engine: AsyncEngine, name: str) -> None:
    """Forget the consumer and what it has parked. Raises NotFoundError."""
    async with writing(engine) as connection:
        gone = await connection.execute(delete(consumers).where(consumers.c.name == name).returning(consumers.c.name))
        if gone.one_or_none() is None:
            raise _unknown(name)


async def page(
    engine: AsyncEngine, name: str, filters: Filters, *, limit: int, lease: int | None, before: Look | None = None
) -> Look:
    """The page behind the consumer's position; with `lease`, where it is not empty, it is held for so many seconds.

    `before` is an empty look from a moment ago: what it has passed is not looked at again, unless the consumer was moved or
    has set other events aside.
    Raises NotFoundError, LeasedError while somebody holds the page, and GoneError where events of it have been removed.
    """
    while True:
        async with reading(engine) as connection:
            position = await _free_position(connection, name)
            without = await _set_aside(connection, name, position)
            is_as_before = before is not None and (before.position, before.without) == (position, without)
            after = before.page.after if before and is_as_before else position
            found = await queries.page(connection, filters, after=after, limit=limit, without=without)
        if lease is None or not found.events:
            return Look(position, without, _page(found, None))
        lease_id = await _take(engine, name, position, lease)
        if lease_id is not None:
            return Look(position, without, _page(found, lease_id))
        # Another reader came first: look again at what it left.


async def _free_position(connection: AsyncConnection, name: str) -> int:
    """Where the consumer stands. Raises NotFoundError, and LeasedError while somebody holds the page there."""
    left = extract("epoch", consumers.c.leased_until - func.now())
    row = (
        await connection.execute(select(consumers.c.position, _IS_LEASED, left).where(consumers.c.name == name))
    ).one_or_none()
    if row is None:
        raise _unknown(name)
    position, is_leased, seconds = row
    if is_leased:
        raise LeasedError(
            f"another reader of {name} holds the page, until it acknowledges it or {seconds:.1f} s have passed",
            retry_after=float(seconds),
        )
    return int(position)


async def _set_aside(connection: AsyncConnection, name: str, position: int) -> list[int]:
    """The numbers of the consumer's parked events behind `position`, in order."""
    own = parked_events.c.consumer == name, parked_events.c.sequence > position
    return list(
        await connection.scalars(select(parked_events.c.sequence).where(*own).order_by(parked_events.c.sequence))
    )


def _page(found: EventPageRecord, lease_id: UUID | None) -> ConsumerPageRecord:
    return ConsumerPageRecord(found.events, found.after, found.has_more, lease_id)


async def _take(engine: AsyncEngine, name: str, position: int, seconds: int) -> UUID | None:
    """Lease the page behind `position`, if that still is the page and it is free: this one statement decides who has it."""
    lease_id = uuid4()
    this = consumers.c.name == name, consumers.c.position == position, ~_IS_LEASED
    async with writing(engine) as connection:
        taken = await connection.execute(
            update(consumers)
            .where(*this)
            .values(lease_id=lease_id, leased_until=_in(seconds))
            .returning(consumers.c.lease_id)
        )
        return None if taken.one_or_none() is None else lease_id


async def acknowledge(engine: AsyncEngine, name: str, ack: Ack, *, kept_for: timedelta | None) -> Consumer:
    """Move the consumer forward; its lease ends, unless `ack.lease` keeps it. To repeat an ack changes nothing.

    Raises NotFoundError; ConflictError where that would be backwards or past the end of the feed, or somebody else holds
    the page or has taken it since.
    """
    async with writing(engine) as connection:
        found = await _lock(connection, name)
        if found is None:
            raise _unknown(name)
        is_holder = ack.lease_id is not None and ack.lease_id == found.lease_id
        is_repeated = ack.after == found.position and ack.lease is None and not is_holder
        if not is_repeated:
            _refuse_wrong(ack, found, is_holder=is_holder, head=await connection.scalar(select(HEAD)) or 0)
            values: dict[str, Any] = {"position": ack.after, **_NO_LEASE}
            if ack.lease is not None:
                values |= {"lease_id": ack.lease_id, "leased_until": _in(ack.lease)}
            if ack.after != found.position:
                values["updated_at"] = func.now()
            await connection.execute(update(consumers).where(consumers.c.name == name).values(**values))
        return await _one(connection, name, kept_for)


def _refuse_wrong(ack: Ack, found: _Found, *, is_holder: bool, head: int) -> None:
    """Raise ConflictError for an ack that does not fit the consumer as it stands."""
    if ack.lease_id is not None and not is_holder:
        raise ConflictError(
            "this lease is over: it was acknowledged, or it ran out and another reader took the page, or the consumer was "
            "moved; ask for the next page"
        )
    if ack.lease_id is None and found.is_leased:
        raise ConflictError("another reader holds the page: only an ack with its lease_id moves the consumer")
    if ack.after < found.position:
        raise ConflictError(
            f"{ack.after} is behind the position {found.position}; to go back on purpose, PUT the consumer with a start"
        )
    if ack.after > max(head, found.position):
        raise ConflictError(f"{ack.after} is past the end of the feed: its newest event is number {head}")


async def park(engine: AsyncEngine, name: str, given: Park) -> ParkedEvent:
    """Set an event aside, so that no page of the consumer has it; one that is parked already stays as it is.

    Raises NotFoundError; ConflictError where there is no such event or too many are parked.
    """
    async with writing(engine) as connection:
        if await _lock(connection, name) is None:
            raise _unknown(name)
        this = _parked(name).where(parked_events.c.sequence == given.sequence)
        if (known := (await connection.execute(this)).one_or_none()) is not None:
            return _parked_event(known)
        wanted = events.c.sequence == given.sequence, events.c.sequence > OLDEST_AFTER
        if await connection.scalar(select(events.c.id).where(*wanted)) is None:
            raise ConflictError(f"there is no event number {given.sequence}")
        own = select(func.count()).select_from(parked_events).where(parked_events.c.consumer == name)
        if (await connection.scalar(own) or 0) >= MOST_PARKED:
            raise ConflictError(
                f"{name} has parked {MOST_PARKED} events, the most there may be: see to them and take them off the list"
            )
        row = {"consumer": name, "sequence": given.sequence, "reason": given.reason, "parked_at": func.now()}
        await connection.execute(insert(parked_events).values(**row))
        return _parked_event((await connection.execute(this)).one())


async def parked(engine: AsyncEngine, name: str) -> list[ParkedEvent]:
    """What the consumer has set aside, in the order of the feed. Raises NotFoundError."""
    async with reading(engine) as connection:
        if await connection.scalar(select(consumers.c.name).where(consumers.c.name == name)) is None:
            raise _unknown(name)
        rows = await connection.execute(_parked(name).order_by(parked_events.c.sequence))
        return [_parked_event(row) for row in rows]


async def unpark(engine: AsyncEngine, name: str, sequence: int) -> None:
    """Take an event off the list of parked ones. Raises NotFoundError where it is not there."""
    this = (parked_events.c.consumer == name, parked_events.c.sequence == sequence)
    async with writing(engine) as connection:
        gone = await connection.execute(delete(parked_events).where(*this).returning(parked_events.c.sequence))
        if gone.one_or_none() is None:
            raise NotFoundError(f"no consumer {name} has parked event number {sequence}")


async def _lock(connection: AsyncConnection, name: str) -> _Found | None:
    """The consumer as it stands, which nobody else can change before the transaction ends; None where there is none."""
    row = select(consumers.c.position, consumers.c.lease_id, _IS_LEASED.label("is_leased"))
    return (await connection.execute(row.where(consumers.c.name == name).with_for_update(key_share=True))).one_or_none()


async def _one(connection: AsyncConnection, name: str, kept_for: timedelta | None) -> Consumer:
    chosen = select(consumers).where(consumers.c.name == name)
    row = (await connection.execute(_with_lag(chosen, kept_for))).one_or_none()
    if row is None:
        raise _unknown(name)
    return _consumer(row)


def _with_lag(chosen: Select[*tuple[Any, ...]], kept_for: timedelta | None) -> Select[*tuple[Any, ...]]:
    """The chosen consumers, how far they are behind and how long they may be, in one statement.

    Numbers have holes, so events have to be counted. Each stretch between one position and the next is counted once,
    however many consumers are behind it, and nothing further back than `COUNTED` numbers.
    """
    feed = select(_EARLIEST.label("start"), HEAD.label("head"), OLDEST_AFTER.label("oldest_after")).cte("feed")
    which = chosen.subquery("which")
    behind = func.greatest(which.c.position, feed.c.start)
    counted_from = func.greatest(behind, feed.c.head - COUNTED)
    shown = (
        select(*which.c, *feed.c, behind.label("behind"), counted_from.label("counted_from"))
        .select_from(which.join(feed, true()))
        .cte("shown")
    )
    marks = select(shown.c.counted_from, shown.c.head).distinct().subquery("marks")
    until = func.lead(marks.c.counted_from, 1, marks.c.head).over(order_by=marks.c.counted_from)
    stretches = select(marks.c.counted_from, until.label("until")).subquery("stretches")
    in_stretch = (
        select(func.count())
        .select_from(events)
        .where(events.c.sequence > stretches.c.counted_from, events.c.sequence <= stretches.c.until)
        .scalar_subquery()
    )
    counted = func.sum(in_stretch).over(order_by=stretches.c.counted_from.desc())
    counts = select(stretches.c.counted_from, counted.label("counted")).subquery("counts")
    oldest = (
        select(events.c.received_at)
        .where(events.c.sequence > shown.c.behind)
        .order_by(events.c.sequence)
        .limit(1)
        .scalar_subquery()
    )
    expires_at = null() if kept_for is None else oldest + kept_for
    return select(
        shown.c.name,
        shown.c.position,
        cast(counts.c.counted + shown.c.counted_from - shown.c.behind, BigInteger).label("lag"),
        func.greatest(func.coalesce(extract("epoch", func.now() - oldest), 0), 0).label("lag_seconds"),
        shown.c.updated_at,
        case((shown.c.leased_until > func.now(), shown.c.leased_until)).label("leased_until"),
        expires_at.label("expires_at"),
        (shown.c.position < shown.c.oldest_after).label("overtaken"),
    ).select_from(shown.join(counts, counts.c.counted_from == shown.c.counted_from))


def _consumer(row: _Found) -> Consumer:
    return Consumer.model_validate(row._asdict())


def _parked(name: str) -> Select[*tuple[Any, ...]]:
    parts = (parked_events.c.reason, parked_events.c.parked_at, events.c.entity_type, events.c.entity_id)
    return (
        select(parked_events.c.sequence, events.c.id.label("event_id"), *parts)
        .select_from(
            parked_events.outerjoin(
                events, (events.c.sequence == parked_events.c.sequence) & (events.c.sequence > OLDEST_AFTER)
            )
        )
        .where(parked_events.c.consumer == name)
    )


def _parked_event(row: _Found) -> ParkedEvent:
    return ParkedEvent.model_validate(row._asdict())


def _in(seconds: int) -> ColumnElement[datetime]:
    """That many seconds from now, by the clock of Postgres."""
    return func.now() + timedelta(seconds=seconds)


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"there is no consumer {name}; create it with PUT")
