"""What makes two deliveries the same one, as keys that the database keeps unique for ever. Pure.

Only certainty counts: the same delivery id; the same content where it carries something that changes with every change (a
timestamp, `updated_at`, a version). An id-only notification without any of these has no key, because a second one may be
a second change. (A repeated delete is found by the fold, from the entity's state.)
"""

from hashlib import blake2b

from app.domain import jsontext
from app.domain.values import EntityType, JsonText, Reading

_INFERRED = "inferred"
"""Stands for the action where none was stated: the first one is read as a create, its retry must not count as an update."""


def idempotency_keys(entity_type: EntityType, reading: Reading, body: bytes | None) -> tuple[bytes, ...]:
    """The 16-byte keys of one reading; another delivery that shares one of them is a duplicate. `body` is None where the
    reading came from no callback.

    A delivery id counts for its entity only: should some header turn out to be the same on every callback, nothing
    but a repetition for the same entity could be taken for a duplicate.
    """  # noqa: D205 - one sentence
    action = reading.action or _INFERRED
    identity = (entity_type.encode(), reading.entity_id.encode())
    keys = []
    if reading.delivery_key is not None:
        keys.append(_key(b"delivery", *identity, reading.delivery_key.encode("utf-8", "surrogatepass")))
    if reading.data is not None and reading.data_stamped:
        keys.append(_key(b"data", *identity, action.encode(), jsontext.digest(reading.data)))
    elif reading.stamped and body is not None:
        content = jsontext.digest(JsonText(jsontext.document(body)))
        keys.append(_key(b"body", *identity, action.encode(), content))
    return tuple(keys)


def _key(*parts: bytes) -> bytes:
    """A digest of the parts and of where each of them ends."""
    text = b"".join([piece for part in parts for piece in (len(part).to_bytes(4), part)])
    return blake2b(text, digest_size=16).digest()
