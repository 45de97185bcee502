"""What is said about consumers, both ways: the bodies of their calls and what they answer."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.domain.values import EntityType
from app.feed.schemas import EventPage, EventPageRecord
from app.paging import LONGEST_LEASE, Body, SearchText

_LONGEST_REASON = 1000
_HIGHEST = 2**63 - 1


def _start(value: object) -> object:
    """One message for whatever is neither a word nor a position, instead of one for each way to be wrong."""
    is_position = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _HIGHEST
    if value not in (None, "earliest", "latest") and not is_position:
        raise PydanticCustomError("start", 'must be "earliest", "latest" or a position: a whole number from 0')
    return value


class ConsumerStart(Body):
    """Where a consumer shall stand."""

    start: Annotated[
        Literal["earliest", "latest"] | Annotated[int, Field(ge=0, le=_HIGHEST)] | None,
        BeforeValidator(_start),
        Field(
            description=(
                "`earliest`: before the oldest event kept; `latest`: behind the newest; or a position. Missing: a new "
                "consumer begins with the oldest event, an existing one stays where it is"
            ),
            examples=["earliest", "latest", 1042],
        ),
    ] = None


class Ack(Body):
    """How far a consumer has come."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"required": ["lease"], "properties": {"lease": {"type": "integer"}}},
            "then": {"required": ["lease_id"], "properties": {"lease_id": {"type": "string"}}},
        }
    )

    after: Annotated[
        int,
        Field(ge=0, le=_HIGHEST, description="The `after` of the page, or the sequence of an event", examples=[1042]),
    ]
    lease_id: Annotated[
        UUID | None,
        Field(
            description="The `lease_id` of the page, where it was leased",
            examples=["5b2c6a0e-2a5d-4c1f-9b57-0d6f1c1f9a10"],
        ),
    ] = None
    lease: Annotated[
        int | None,
        Field(
            ge=1,
            le=LONGEST_LEASE,
            description="Keep the lease, for this many seconds from now. Missing: it ends",
            examples=[30],
        ),
    ] = None

    @model_validator(mode="after")
    def _keeps_what_it_holds(self) -> Self:
        if self.lease is not None and self.lease_id is None:
            raise PydanticCustomError("lease", "lease keeps a lease that is held: give its lease_id too")
        return self


class Park(Body):
    """An event to set aside."""

    sequence: Annotated[int, Field(ge=1, le=_HIGHEST, description="The event's number", examples=[1042])]
    reason: Annotated[
        SearchText,
        Field(
            min_length=1,
            max_length=_LONGEST_REASON,
            description="Why, for whoever looks after it",
            examples=["the price is no number"],
        ),
    ]


class Consumer(BaseModel):
    """A named position in the feed."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(examples=["search"])]
    position: Annotated[int, Field(description="The sequence up to which everything was acknowledged", examples=[1042])]
    lag: Annotated[
        int,
        Field(
            description=(
                "How many events of the feed are behind the position, filtered or not. Exact within the newest 100,000 "
                "numbers of the feed; further back every number counts as an event, holes included"
            ),
            examples=[3],
        ),
    ]
    lag_seconds: Annotated[
        float, Field(description="The age of the oldest of them, in seconds; 0 where there is none", examples=[1.25])
    ]
    updated_at: Annotated[
        datetime, Field(description="When the position was set or moved", examples=["2026-11-23T10:00:01.250000Z"])
    ]
    leased_until: Annotated[
        datetime | None,
        Field(description="Until when somebody holds the page; null where nobody does", examples=[None]),
    ]
    expires_at: Annotated[
        datetime | None,
        Field(
            description=(
                "When the oldest event behind the position will be removed; null where there is none, or events are kept "
                "for ever"
            ),
            examples=["2026-12-23T10:00:01.250000Z"],
        ),
    ]
    overtaken: Annotated[
        bool,
        Field(
            description="Events behind the position have been removed before they were acknowledged: the page is 410",
            examples=[False],
        ),
    ]


class ConsumerList(BaseModel):
    """All consumers, by name."""

    consumers: list[Consumer]


class ConsumerPageRecord(EventPageRecord, frozen=True):
    """One page of a consumer as it is written."""

    lease_id: UUID | None


class ConsumerPage(EventPage):
    """One page of events, oldest first, with the lease on it."""

    after: Annotated[int, Field(description="The position to acknowledge", examples=[1042])]
    lease_id: Annotated[
        UUID | None,
        Field(
            description="Give it to the ack. Null where no lease was asked for or there was nothing to hold",
            examples=["5b2c6a0e-2a5d-4c1f-9b57-0d6f1c1f9a10"],
        ),
    ]


class ParkedEvent(BaseModel):
    """An event that a consumer has set aside."""

    model_config = ConfigDict(frozen=True)

    sequence: Annotated[int, Field(examples=[1042])]
    event_id: Annotated[
        UUID | None,
        Field(
            description="For `GET /v1/events/{event_id}`; null once the event is no longer kept, and to who may not read",
            examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11"],
        ),
    ]
    entity_type: Annotated[EntityType | None, Field(examples=["product"])]
    entity_id: Annotated[str | None, Field(examples=["1001"])]
    reason: Annotated[str, Field(examples=["the price is no number"])]
    parked_at: Annotated[datetime, Field(examples=["2026-11-23T10:00:01.250000Z"])]


class ParkedList(BaseModel):
    """What a consumer has set aside, in the order of the feed."""

    parked: list[ParkedEvent]
