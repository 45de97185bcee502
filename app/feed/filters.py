"""Which events a reader wants: the filters that every call on the feed shares, and what they mean in SQL and in memory."""

from datetime import datetime
from typing import Annotated

from pydantic import Field
from sqlalchemy import ARRAY, ColumnElement, ScalarSelect, Text, cast, func, select

from app.db.tables import events
from app.domain.values import Action, EntityType
from app.feed.schemas import EventRecord
from app.paging import LAST_POSITION, Flag, Moment, Parameters, SearchText

_MOST_VALUES = 100

_EntityId = Annotated[SearchText, Field(min_length=1)]


class Filters(Parameters):
    """Filters for events. Several values of one filter mean any of them; several filters mean all of them."""

    entity_type: tuple[EntityType, ...] = Field(
        (), max_length=_MOST_VALUES, description="Only events of these entity types", examples=[["product"]]
    )
    action: tuple[Action, ...] = Field(
        (), max_length=_MOST_VALUES, description="Only these actions", examples=[["update"]]
    )
    entity_id: tuple[_EntityId, ...] = Field(
        (), max_length=_MOST_VALUES, description="Only events of the entities with these ids", examples=[["1001"]]
    )
    changed: tuple[SearchText, ...] = Field(
        (),
        max_length=_MOST_VALUES,
        description="Only updates in which one of these top-level names changed",
        examples=[["price"]],
    )
    since: Moment | None = Field(
        None, description="Only events received at this time or later", examples=["2026-11-23T10:00:00Z"]
    )
    until: Moment | None = Field(
        None, description="Only events received before this time", examples=["2026-11-24T10:00:00Z"]
    )
    include_stale: Flag = Field(
        False, description="Also events that are older than their entity's state was when they came"
    )

    @property
    def narrow(self) -> bool:
        """Whether few of the events in a row may pass, the entity's id aside."""
        return bool(self.entity_type or self.action or self.changed)

    @property
    def are_dense(self) -> bool:
        """Whether all events pass, but for stale ones."""
        return not (self.narrow or self.entity_id or self.since or self.until)

    def conditions(self) -> list[ColumnElement[bool]]:
        """What holds for an event that is wanted, the entity's id aside: that one has its own way (`feed.queries`)."""
        found: list[ColumnElement[bool]] = []
        if self.entity_type:
            found.append(events.c.entity_type.in_(self.entity_type))
        if self.action:
            found.append(events.c.action.in_(self.action))
        if self.changed:
            found.append(events.c.changed.bool_op("&&")(cast(self.changed, ARRAY(Text))))
        # Times grow with the numbers.
        if self.since is not None:
            found.append(events.c.sequence >= _first_from(self.since))
        if self.until is not None:
            found.append(events.c.sequence < func.coalesce(_first_from(self.until), LAST_POSITION))
        if not self.include_stale:
            found.append(events.c.stale.is_(False))
        return found

    def passes(self, event: EventRecord) -> bool:
        """Whether an event that was read is wanted: the same rules as those of the database."""
        return (
            (not self.entity_type or event.entity_type in self.entity_type)
            and (not self.action or event.action in self.action)
            and (not self.entity_id or event.entity_id in self.entity_id)
            and (not self.changed or not set(self.changed).isdisjoint(event.changed))
            and (self.since is None or event.received_at >= self.since)
            and (self.until is None or event.received_at < self.until)
            and (self.include_stale or not event.stale)
        )


def _first_from(moment: datetime) -> ScalarSelect[int]:
    """The number of the first event received at `moment` or later; null where there is none."""
    in_order = events.c.received_at, events.c.sequence
    return (
        select(events.c.sequence).where(events.c.received_at >= moment).order_by(*in_order).limit(1).scalar_subquery()
    )
