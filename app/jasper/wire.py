"""Jasper's names: the words for actions and the usual places of each part of a payload.

Jasper documents neither the field names of a callback's payload nor the header in which the secret travels, so everything
in this module is assumption: vocabulary gathered from the house styles of such services. An operator overrides it with
JASPER_PAYLOAD_MAPPING; nothing here is ever trusted to decide identity.
"""

import re
from functools import cache, lru_cache

from app.domain.values import Action, EntityType

ACTION_WORDS = {
    "create": Action.CREATE,
    "created": Action.CREATE,
    "creation": Action.CREATE,
    "add": Action.CREATE,
    "added": Action.CREATE,
    "insert": Action.CREATE,
    "inserted": Action.CREATE,
    "new": Action.CREATE,
    "update": Action.UPDATE,
    "updated": Action.UPDATE,
    "change": Action.UPDATE,
    "changed": Action.UPDATE,
    "edit": Action.UPDATE,
    "edited": Action.UPDATE,
    "modify": Action.UPDATE,
    "modified": Action.UPDATE,
    "delete": Action.DELETE,
    "deleted": Action.DELETE,
    "deletion": Action.DELETE,
    "destroy": Action.DELETE,
    "destroyed": Action.DELETE,
    "remove": Action.DELETE,
    "removed": Action.DELETE,
}

ENTITY_NOUNS = {
    "product": EntityType.PRODUCT,
    "products": EntityType.PRODUCT,
    "category": EntityType.CATEGORY,
    "categories": EntityType.CATEGORY,
    "brand": EntityType.BRAND,
    "brands": EntityType.BRAND,
    "concrete": EntityType.CONCRETE_ENTITY,
    "concreteentity": EntityType.CONCRETE_ENTITY,
    "concreteentities": EntityType.CONCRETE_ENTITY,
}

ACTION_NAMES = (
    "action",
    "event",
    "event_type",
    "eventType",
    "event_name",
    "eventName",
    "operation",
    "topic",
    "trigger",
)
"""Members that state the action: a word in them that is not understood is a reason to ask, not to guess."""

WEAK_ACTION_NAME = "type"
"""May state the action and often means something else (`simple`): only a word that is understood counts."""

ACTION_HEADERS = (
    "x-jasper-event",
    "x-jasper-action",
    "x-jasper-topic",
    "x-webhook-event",
    "x-webhook-topic",
    "x-event",
    "x-event-type",
    "x-event-name",
    "x-action",
)

DELIVERY_NAMES = ("delivery_id", "deliveryId", "event_id", "eventId", "message_id", "messageId")
DELIVERY_HEADERS = (
    "x-jasper-delivery",
    "x-jasper-delivery-id",
    "x-webhook-delivery",
    "x-webhook-delivery-id",
    "x-delivery-id",
    "x-delivery",
    "x-event-id",
    "x-message-id",
    "idempotency-key",
)
"""A plain `id` of the envelope is not among them, nor a header named after the webhook: either may be the webhook's own
id, the same on every callback, and would make all callbacks but the first a duplicate."""

CERTAIN_TIME_NAMES = ("occurred_at", "occurredAt", "timestamp")
"""Mean the event's time wherever they stand."""

VAGUE_TIME_NAMES = ("time", "date")
"""Mean the event's time beside an entity; within one they may be an attribute that never changes."""

TIME_NAMES = (
    *CERTAIN_TIME_NAMES,
    "event_time",
    "eventTime",
    "triggered_at",
    "triggeredAt",
    "fired_at",
    *VAGUE_TIME_NAMES,
)
ENVELOPE_TIME_NAMES = ("created_at", "createdAt")
"""Mean the event's time only in an envelope around the entity; in an entity they mean its birth."""

ENTITY_TIME_NAMES = ("updated_at", "updatedAt", "modified_at", "modifiedAt")
VERSION_NAMES = ("version", "revision", "lock_version")

SIDE_OBJECTS = ("event", "meta", "metadata", "webhook", "header", "headers")
"""Members of an envelope that may hold facts about the event, but never the entity."""

ENTITY_TYPE_NAMES = ("entity_type", "entityType", "resource_type", "resourceType")

DELETION_TIME_NAMES = ("deleted_at", "deletedAt")

_WRAPPERS = ("data", "entity", "payload", "resource", "object", "record", "item", "body")


@cache
def wrappers(entity_type: EntityType) -> tuple[str, ...]:
    """Members that may hold the entity, the most telling first."""
    return (*own_names(entity_type), *_WRAPPERS)


@cache
def reference_names(entity_type: EntityType) -> tuple[str, ...]:
    """Members of an envelope that can only be the entity's id."""
    own = (f"{name}{suffix}" for name in own_names(entity_type) for suffix in ("_id", "Id"))
    return (*own, "entity_id", "entityId", "resource_id", "resourceId", "object_id", "objectId")


@cache
def id_names(entity_type: EntityType) -> tuple[str, ...]:
    """Members of an entity that may be its id, the most telling first."""
    return ("id", *reference_names(entity_type), "uuid")


@cache
def own_names(entity_type: EntityType) -> tuple[str, ...]:
    """The entity type as the name of a member."""
    if entity_type is EntityType.CONCRETE_ENTITY:
        return ("concrete_entity", "concreteEntity")
    return (entity_type.value,)


@cache
def says_nothing(entity_type: EntityType) -> frozenset[str]:
    """Members that tell which entity, when and by whom, but nothing of the entity itself: alone they are no data."""
    return frozenset(
        (
            "id",
            "uuid",
            *own_names(entity_type),
            *reference_names(entity_type),
            *ACTION_NAMES,
            *DELIVERY_NAMES,
            *TIME_NAMES,
            *ENVELOPE_TIME_NAMES,
            *ENTITY_TIME_NAMES,
            *DELETION_TIME_NAMES,
            *VERSION_NAMES,
            *ENTITY_TYPE_NAMES,
            *SIDE_OBJECTS,
            *_WRAPPERS,
            WEAK_ACTION_NAME,
            "webhook_id",
            "webhookId",
            "tenant",
        )
    )


NAMES = frozenset(
    (
        "name",
        *VERSION_NAMES,
        *(name for entity_type in EntityType for name in (*says_nothing(entity_type), *id_names(entity_type))),
    )
)
"""All members whose name alone may mean something."""

_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@lru_cache  # the same few words come for ever
def _tokens(word: str) -> tuple[str, ...]:
    return tuple(token.lower() for token in _TOKEN.findall(word))


def action_of(word: str) -> Action | None:
    """`created`, `product.updated`, `ProductDeleted`, `PRODUCT_DESTROY` … as an action; None where it names none or several.

    A word that also names something else is believed for an update only: `product.image.deleted` deletes an image and
    `product.category.removed` an assignment, not the product.
    """
    return _action_of(word) if len(word) <= _LONGEST_WORD else None


@lru_cache(maxsize=256)  # one sender uses few words
def _action_of(word: str) -> Action | None:
    tokens = _tokens(word)
    found = {ACTION_WORDS[token] for token in tokens if token in ACTION_WORDS}
    if len(found) != 1:
        return None
    action = found.pop()
    if action is not Action.UPDATE and (
        any(token not in _UNDERSTOOD for token in tokens) or len(entity_types_of(word)) > 1
    ):
        return None
    return action


_LONGEST_WORD = 200


_FILLERS = {"entity", "entities", "event", "webhook", "jasper", "pim", "was", "has", "been", "soft", "hard", "force"}
_UNDERSTOOD = {*ACTION_WORDS, *ENTITY_NOUNS, *_FILLERS}


def entity_types_of(word: str) -> frozenset[EntityType]:
    """The entity types that a word such as `product.updated` names; empty where it names none."""
    return _entity_types_of(word[:_LONGEST_WORD])


@lru_cache(maxsize=256)
def _entity_types_of(word: str) -> frozenset[EntityType]:
    return frozenset(ENTITY_NOUNS[token] for token in _tokens(word) if token in ENTITY_NOUNS)
