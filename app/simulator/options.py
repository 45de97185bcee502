"""Every switch of the simulator, as one frozen value.

Jasper documents little of what its callbacks look like; whatever it leaves open is a field here, so that a receiver can
be tried against each way it may fall. The console command derives its options from these fields and their one-line
descriptions, so the two cannot drift apart. Reads no environment and no file.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

EntityType = Literal["product", "category", "brand", "concrete_entity"]
Shape = Literal["event_data", "action_entity", "flat", "nested", "headers", "id_only"]
ActionWords = Literal["updated", "product.updated", "ProductUpdated", "update"]
TimeResolution = Literal["second", "microsecond"]
TimeFormat = Literal["zulu", "offset", "space"]
JsonStyle = Literal["compact", "php"]
ListStyle = Literal["laravel", "links", "meta", "flat", "bare"]

ENTITY_TYPES: tuple[EntityType, ...] = get_args(EntityType)

# RFC 9110, section 5.6.2
HEADER_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SECRET_PLACE = re.compile(rf"bearer|header:{HEADER_NAME}|hmac:{HEADER_NAME}|body:(/[^/]+){{1,2}}")


class OptionsError(ValueError):
    """The options cannot be used; the message names each wrong one and says what it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """What the simulated Jasper is like. All durations are seconds; probabilities run from 0 to 1.

    Raises OptionsError, naming every wrong field at once.
    """

    # The catalogue
    catalog: Annotated[Path | None, "Products, one JSON object a line; without it a small built-in catalogue."] = None
    categories: Annotated[Path | None, "Categories, one JSON object a line; without it they follow the products."] = (
        None
    )
    seed: Annotated[int, "Equal seeds give equal changes and equal trouble."] = 1
    time_resolution: Annotated[TimeResolution, "How fine created_at, updated_at and event timestamps are."] = "second"
    time_format: Annotated[
        TimeFormat, "How times are written: 2026-01-31T08:00:00Z, …+00:00, or 2026-01-31 08:00:00 (in UTC)."
    ] = "zulu"
    same_tick_changes: Annotated[
        bool, "Let an entity change again within one tick of the resolution; updated_at then stays equal."
    ] = False

    # The stream of changes
    initial_load: Annotated[bool, "Send a create for every entity of its type once a webhook has been created."] = False
    initial_load_delay: Annotated[float, "Pause between creating a webhook and its initial load."] = 0.5
    rate: Annotated[float, "Changes a second, from the first webhook on; 0: only when asked for."] = 1.0
    changes: Annotated[int, "Stop the stream after this many changes; 0: never."] = 0
    burst_size: Annotated[int, "Make this many changes at once, then pause so that the rate holds on average."] = 1
    changing_types: Annotated[tuple[EntityType, ...], "Entity types that the stream changes."] = ("product",)

    # The API
    token: Annotated[str, "The bearer token that the API wants."] = "simulator-token"  # noqa: S105 # not one of Jasper's
    page_size: Annotated[int, "Items on a page of a list, unless ?per_page= asks for another number up to 1000."] = 25
    list_style: Annotated[
        ListStyle,
        "How a list tells of its pages: by links and meta, by one of them, by numbers beside the items,"
        " or not at all, as a bare array.",
    ] = "laravel"
    list_fields: Annotated[str, "Comma-separated members that entities have in lists; without it all."] = ""
    list_failing_page: Annotated[int, "The page of every list of entities that answers 500; 0: none."] = 0
    wrap_resources: Annotated[bool, 'Answer single resources as {"data": …}.'] = True
    update_verb: Annotated[
        Literal["put", "patch", "both", "none"], "How a webhook may be updated; any other verb answers 405."
    ] = "put"
    repeat_secret: Annotated[bool, "Repeat signing_secret whenever a webhook is read, not only at its creation."] = (
        False
    )
    webhook_ids: Annotated[Literal["integer", "string"], "Kind of a webhook's id."] = "integer"

    # What a callback looks like
    secret_place: Annotated[
        str,
        "Where the signing secret travels: header:NAME, bearer, body:/json/pointer (one or two levels),"
        " or hmac:NAME for an HMAC-SHA256 of the raw body in that header.",
    ] = "header:X-Signing-Secret"  # noqa: S105 # a place, not a secret
    hmac_encoding: Annotated[Literal["hex", "base64"], "How an HMAC is written."] = "hex"
    hmac_prefix: Annotated[bool, "Write sha256= before an HMAC."] = False
    shape: Annotated[Shape, "Layout of the payload."] = "event_data"
    action_words: Annotated[ActionWords, "How actions are named, by the example of an update."] = "product.updated"
    delivery_id: Annotated[bool, "Give each callback an id, where the shape has a place for it."] = True
    timestamp: Annotated[bool, "Say when the change happened, where the shape has a place for it."] = True
    delete_carries: Annotated[Literal["entity", "id"], "Whether a delete carries the last state or only the id."] = (
        "entity"
    )
    json_style: Annotated[JsonStyle, "compact, or as PHP writes it: escaped slashes and non-ASCII, [] for {}."] = (
        "compact"
    )

    # How callbacks are delivered
    concurrency: Annotated[int, "Callbacks under way at once."] = 8
    callback_timeout: Annotated[float, "How long a receiver may take to answer (never scaled)."] = 3.0
    time_scale: Annotated[float, "Multiplies the waits before retries: 0.001 turns 300 s into 0.3 s."] = 1.0
    overlap: Annotated[bool, "Send the next callback of an entity before the one before has been settled."] = True
    retry_state: Annotated[
        Literal["frozen", "current"],
        "Retries repeat the first attempt, whatever became of the webhook, or follow the webhook as it is then.",
    ] = "frozen"
    backlog_limit: Annotated[int, "Unsettled callbacks held at most; a full backlog stops the changes."] = 20_000

    # Trouble
    duplicate_probability: Annotated[float, "How often a callback is sent a second time."] = 0.0
    duplicate_envelope: Annotated[
        Literal["same", "new"], "A second time with the very same body, or with a new delivery id and timestamp."
    ] = "same"
    disorder_probability: Annotated[float, "How often the first attempt of a callback is held back."] = 0.0
    disorder_delay: Annotated[float, "For how long at most it is held back."] = 1.0
    api_delay: Annotated[float, "How long every answer of the API takes."] = 0.0
    api_error_probability: Annotated[float, "How often the API answers 500."] = 0.0
    api_rate_limit: Annotated[int, "Requests that the API takes in a second before it answers 429; 0: any number."] = 0
    api_throttle_probability: Annotated[float, "How often the API answers 429 with Retry-After."] = 0.0
    api_hang_probability: Annotated[float, "How often the API does not answer until the caller gives up."] = 0.0
    api_retry_after: Annotated[int, "The Retry-After of 429 and 503 answers."] = 1
    api_hang: Annotated[float, "How long the API holds a hanging request at most, before it answers 504."] = 60.0

    def __post_init__(self) -> None:
        wrong = [
            *(f"{name} must not be negative" for name in _NOT_NEGATIVE if not getattr(self, name) >= 0),
            *(f"{name} must be greater than 0" for name in _POSITIVE if not getattr(self, name) > 0),
            *(f"{name} must lie between 0 and 1" for name in _PROBABILITIES if not 0 <= getattr(self, name) <= 1),
        ]
        if not _SECRET_PLACE.fullmatch(self.secret_place):
            wrong.append(
                "secret_place must be header:NAME, bearer, hmac:NAME, or body:/pointer with one or two levels"
                f" (it is {self.secret_place!r})"
            )
        if sum(getattr(self, name) for name in _API_PROBABILITIES) > 1:
            wrong.append(f"{', '.join(_API_PROBABILITIES)} must not exceed 1 together")
        if not self.token:
            wrong.append("token must not be empty")
        if not self.changing_types:
            wrong.append("changing_types must name at least one entity type")
        if wrong:
            raise OptionsError("; ".join(wrong))

    def random_for(self, purpose: str) -> random.Random:
        """A source of chance of its own for each purpose, so that one part never disturbs another's sequence."""
        return random.Random(f"{self.seed}:{purpose}")  # noqa: S311 # repeatable on purpose, guards nothing


_NOT_NEGATIVE = (
    "initial_load_delay",
    "rate",
    "changes",
    "time_scale",
    "disorder_delay",
    "list_failing_page",
    "api_delay",
    "api_rate_limit",
    "api_retry_after",
    "api_hang",
)
_POSITIVE = ("burst_size", "page_size", "concurrency", "callback_timeout", "backlog_limit")
_API_PROBABILITIES = ("api_error_probability", "api_throttle_probability", "api_hang_probability")
_PROBABILITIES = ("duplicate_probability", "disorder_probability", *_API_PROBABILITIES)
