r"""Every table, in one place: the seam at which the writing and the reading side meet.

The schema is made by the migrations; a test holds the two equal. JSON that came from outside is kept as text, not as
`jsonb`: it is given back exactly as it came, and `jsonb` can hold neither `\u0000` nor lone surrogates nor every number.
The text of an entity's data is kept once, in the event that brought it: a delivery keeps what stands around it, and an
entity points to the event (`docs/decisions/0005-payload-kept-once.md`).
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    }
)

_moment = DateTime(timezone=True)
_bytewise = Text(collation="C")

event_sequence = Sequence("event_sequence", metadata=metadata, data_type=BigInteger)
"""Numbers the events. Drawn only while the feed lock is held until the commit: see `app.ledger.append`."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("entity_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("received_at", _moment, nullable=False),
    Column("client", Text, nullable=False),
    Column("proof", Text, nullable=False, comment="where the secret was proven, e.g. header:x-secret"),
    Column("headers", Text, nullable=False, comment="JSON: list of [name, value], secrets blanked"),
    Column("body", LargeBinary, nullable=False, comment="as it came, secrets blanked, without the event's data"),
    Column("data_offset", Integer, comment="where the event's data belongs in the body; null: the body is whole"),
    Column("size", Integer, nullable=False, comment="bytes of the whole body"),
    Column("reading", Text, nullable=False, comment="JSON: which place gave each part of the event"),
    Column("reason", Text, comment="why it was quarantined or what it repeats"),
    Column("event_sequence", BigInteger, comment="its event; of a duplicate: the original's"),
    Column("duplicate_of", Uuid, comment="the delivery that was committed first"),
    Column("traceparent", Text, comment="the trace that it belongs to, W3C Trace Context"),
    CheckConstraint("status IN ('accepted', 'duplicate', 'quarantined')", name="status"),
    Index("deliveries_status_id_idx", "status", "id", postgresql_where=text("status <> 'accepted'")),
)

events = Table(
    "events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Uuid, nullable=False),
    Column("entity_type", Text, nullable=False),
    Column("entity_id", _bytewise, nullable=False),
    Column("action", Text, nullable=False),
    Column("action_inferred", Boolean, nullable=False),
    Column("stale", Boolean, nullable=False),
    Column("source", Text, nullable=False),
    Column("occurred_at", _moment),
    Column("received_at", _moment, nullable=False, comment="never before that of an event with a lower sequence"),
    Column("delivery_id", Uuid),
    Column("changed", ARRAY(Text), nullable=False),
    Column("changes", Text, nullable=False, comment="JSON: list of changes"),
    Column("data", Text, comment="JSON: the entity as it came"),
    # The state that this event left, so that a state of the past is found without going through what came before it.
    Column("entity_version", BigInteger, nullable=False, comment="the entity's version after it"),
    Column("entity_sequence", BigInteger, nullable=False, comment="the entity's newest non-stale event after it"),
    Column("entity_data_sequence", BigInteger, comment="the event that holds the entity's data after it"),
    Column("entity_source_updated_at", _moment, comment="the entity's source_updated_at after it"),
    CheckConstraint("action IN ('create', 'update', 'delete')", name="action"),
    UniqueConstraint("id"),
    Index(None, "entity_type", "entity_id", "sequence"),
    Index(None, "action", "sequence"),
    # Times grow with the numbers, so a time is looked up as a number once, and never compared with anything else.
    Index(None, "received_at", "sequence"),
    Index(None, "changed", postgresql_using="gin"),
)

entities = Table(
    "entities",
    metadata,
    Column("entity_type", Text, primary_key=True),
    Column("entity_id", _bytewise, primary_key=True),
    Column("version", BigInteger, nullable=False, comment="how many non-stale events"),
    Column("sequence", BigInteger, nullable=False, comment="the newest non-stale event"),
    Column("data_sequence", BigInteger, comment="the event that holds the data"),
    Column("created_at", _moment, nullable=False),
    Column("updated_at", _moment, nullable=False),
    Column(
        "heard_at",
        _moment,
        nullable=False,
        comment="when its newest event was told: before updated_at if that was read late",
    ),
    Column("source_updated_at", _moment, comment="occurred_at of its newest event"),
    Column("newest_at", _moment, comment="newest occurred_at ever seen, also of a repeated delete"),
    Column("deleted_at", _moment),
    # Room in each page for the next version of its rows, so that an update stays there and touches no index.
    postgresql_with={"fillfactor": "70"},
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", LargeBinary, primary_key=True, comment="digest of what makes two deliveries the same"),
    Column("sequence", BigInteger, nullable=False, comment="the event that came first"),
)

unproven = Table(
    "unproven",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("entity_type", Text, nullable=False),
    Column("received_at", _moment, nullable=False),
    Column("client", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="of the body, so that a retry is kept once"),
    Column("header_names", ARRAY(Text), nullable=False),
    Column("size", Integer, nullable=False),
    Column("outline", ARRAY(Text), nullable=False, comment="names in the two top levels of the body"),
    Column("sealed", LargeBinary, nullable=False, comment="headers and body, encrypted: the secret may stand in them"),
    UniqueConstraint("entity_type", "digest"),
)

retention = Table(
    "retention",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("oldest_after", BigInteger, nullable=False, comment="events up to this number have been removed; 0: none"),
    CheckConstraint("id = 1", name="one_row"),
)
"""How far retention has come: one row, made by its migration. Some events up to there stay, see `app.ledger.retention`."""

consumers = Table(
    "consumers",
    metadata,
    Column("name", _bytewise, primary_key=True),
    Column("position", BigInteger, nullable=False, comment="sequence of the last event acknowledged; 0: none"),
    Column("updated_at", _moment, nullable=False, comment="when the position was set or moved"),
    Column("lease_id", Uuid, comment="who holds the page behind the position, or held it last"),
    Column("leased_until", _moment),
    CheckConstraint("position >= 0", name="position"),
    CheckConstraint("(lease_id IS NULL) = (leased_until IS NULL)", name="lease"),
)

parked_events = Table(
    "parked_events",
    metadata,
    Column("consumer", _bytewise, ForeignKey("consumers.name", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, comment="the event; no reference, as retention may remove it"),
    Column("reason", Text, nullable=False),
    Column("parked_at", _moment, nullable=False),
)

registrations = Table(
    "registrations",
    metadata,
    Column("entity_type", Text, primary_key=True),
    Column("state", Text, nullable=False, comment="pending, registered, disabled or failed"),
    Column("pending_since", _moment, comment="since when Jasper is being asked for a new webhook or secret"),
    Column("webhook_id", Text, comment="Jasper's id of the webhook"),
    Column("api_url", Text, comment="the Jasper that webhook_id is of"),
    Column(
        "superseded",
        JSONB,
        nullable=False,
        server_default="[]",
        comment="webhooks that were replaced and may still be at Jasper",
    ),
    Column("webhook_name", Text),
    Column("callback_url", Text),
    Column("retry_policy", Text),
    Column("minimum_retry_interval", Integer, comment="seconds"),
    Column("retry_limit", Integer),
    Column("include_entity_data", Boolean),
    Column("signing_secret", LargeBinary, comment="sealed"),
    Column("headers", LargeBinary, comment="sealed JSON object: the headers registered with Jasper"),
    Column("registered_at", _moment, comment="when the present secret was stored"),
    Column("rotating_since", _moment, comment="since when a rotation is asked for, until it is done"),
    Column("checked_at", _moment, comment="when Jasper last confirmed the webhook"),
    Column("mended", ARRAY(Text), comment="what was last done to the webhook at Jasper, in words"),
    Column("mended_at", _moment),
    Column(
        "mends_in_a_row",
        Integer,
        nullable=False,
        server_default="0",
        comment="looks that each had to mend something",
    ),
    Column("last_error", Text),
    Column("last_error_at", _moment),
    Column("last_error_status", Integer, comment="Jasper's HTTP status with the last error, where it answered"),
    Column("proof", Text, comment="where the secret was last proven"),
    Column("last_callback_at", _moment, comment="when the last authentic callback came"),
    CheckConstraint("state IN ('pending', 'registered', 'disabled', 'failed')", name="state"),
)

retiring_credentials = Table(
    "retiring_credentials",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("entity_type", Text, nullable=False),
    Column("kind", Text, nullable=False, comment="signing_secret or headers"),
    Column("sealed", LargeBinary, nullable=False),
    Column("accepted_until", _moment, nullable=False, comment="after Jasper's last retry with it"),
    CheckConstraint("kind IN ('signing_secret', 'headers')", name="kind"),
    Index(None, "entity_type", "accepted_until"),
)

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("entity_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("force", Boolean, nullable=False, comment="delete however many are gone"),
    Column("compared", BigInteger, nullable=False, comment="entities of Jasper's that were compared"),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("deleted", BigInteger, nullable=False),
    Column("error", Text, comment="why it failed or waits for a confirmation, in words"),
    Column("started_at", _moment, nullable=False),
    Column("finished_at", _moment),
    # How far it has come, so that another process can go on from there.
    Column("first_sequence", BigInteger, nullable=False, comment="the newest event when it began"),
    Column("stage", Text, nullable=False, comment="list, absent or delete"),
    Column("page", Text, comment="address of the page to be read next; null: the first"),
    Column("total", BigInteger, comment="how many entities the last page said there are"),
    Column("items_are_whole", Boolean, comment="whether the list carries all that a single item does; null: not known"),
    CheckConstraint("status IN ('running', 'succeeded', 'failed', 'needs_confirmation')", name="status"),
    CheckConstraint("stage IN ('list', 'absent', 'delete')", name="stage"),
    CheckConstraint("(status = 'running') = (finished_at IS NULL)", name="finished"),
    Index(None, "entity_type", "id"),
    Index("reconciliations_running_key", "entity_type", unique=True, postgresql_where=text("status = 'running'")),
)

reconciled_entities = Table(
    "reconciled_entities",
    metadata,
    Column("reconciliation_id", Uuid, ForeignKey("reconciliations.id", ondelete="CASCADE"), primary_key=True),
    Column("entity_id", _bytewise, primary_key=True),
    Column("gone_at", _moment, comment="when Jasper said that there is none, by its clock"),
    Column("known_until", BigInteger, comment="the newest event before Jasper was asked; null: it is there"),
    Index(
        "reconciled_entities_gone_idx",
        "reconciliation_id",
        "entity_id",
        postgresql_where=text("known_until IS NOT NULL"),
    ),
)

attendance = Table(
    "attendance",
    metadata,
    Column("entity_type", Text, primary_key=True),
    Column("alive_at", _moment, nullable=False, comment="when callbacks could last be committed"),
    Column("away_from", _moment, comment="the last time that was too long for Jasper's retries: from when"),
    Column("away_until", _moment, comment="and until when; both go when a reconciliation has made good for it"),
    CheckConstraint("(away_from IS NULL) = (away_until IS NULL)", name="away"),
)

pending_fetches = Table(
    "pending_fetches",
    metadata,
    Column("entity_type", Text, primary_key=True),
    Column("entity_id", _bytewise, primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("due_at", _moment, nullable=False),
    Index(None, "due_at"),
)

fetch_position = Table(
    "fetch_position",
    metadata,
    Column("is_only", Boolean, primary_key=True, comment="true: there is one row"),
    Column("position", BigInteger, nullable=False, comment="the last event that was looked at for missing data"),
    CheckConstraint("is_only", name="only"),
)

callback_minutes = Table(
    "callback_minutes",
    metadata,
    Column("minute", _moment, primary_key=True),
    Column("entity_type", Text, primary_key=True),
    Column("outcome", Text, primary_key=True, comment="how callbacks were answered"),
    Column("count", BigInteger, nullable=False, comment="by all replicas"),
    Column("latencies", ARRAY(Integer), nullable=False, comment="how many by each bound of the tally"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the key"),
    Column("created_at", _moment, nullable=False),
    Column("last_used_at", _moment),
    Column("revoked_at", _moment),
    UniqueConstraint("digest"),
    # A name may be used again once its key was revoked.
    Index("api_keys_name_key", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)
