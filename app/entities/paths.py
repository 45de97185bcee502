"""How an entity is named in an address: `/v1/{collection}/{entity_id}`, its history with `/events` behind it.

Any id can be named, with its slashes written `%2F`. Servers decode a path before it is routed, and then `a%2Fevents`, the
entity "a/events", looks like the history of "a"; so the last segment is judged before it was decoded.
"""

from enum import StrEnum
from urllib.parse import unquote

from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Match
from starlette.types import Scope

from app.domain.values import COLLECTIONS, ENTITY_TYPE_OF, EntityType
from app.paging import raw_path

_HISTORY = "events"


class Collection(StrEnum):
    """The name of an entity type in addresses."""

    PRODUCTS = COLLECTIONS[EntityType.PRODUCT]
    CATEGORIES = COLLECTIONS[EntityType.CATEGORY]
    BRANDS = COLLECTIONS[EntityType.BRAND]
    CONCRETE_ENTITIES = COLLECTIONS[EntityType.CONCRETE_ENTITY]

    @property
    def entity_type(self) -> EntityType:
        """The type whose entities are in it."""
        return ENTITY_TYPE_OF[self]


class _CollectionConvertor(Convertor[str]):
    """Matches the known collections only, so that every other address under `/v1` stays free."""

    regex = "|".join(Collection)

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _EntityIdConvertor(Convertor[str]):
    """Matches any id that is not empty, slashes and line ends included."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("collection", _CollectionConvertor())
register_url_convertor("entity_id", _EntityIdConvertor())


class HistoryRoute(APIRoute):
    """For addresses that name the history of an entity. Stands before the route of the entity itself."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As ever, except for an id that looks like a history only once it is decoded."""
        if unquote(raw_path(scope).rpartition("/")[2]) != _HISTORY:
            return Match.NONE, {}
        return super().matches(scope)
