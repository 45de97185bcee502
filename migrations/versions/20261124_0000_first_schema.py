"""The first schema.

Revision: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("event_sequence", data_type=sa.BigInteger)))
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the key"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("digest", name=op.f("api_keys_digest_key")),
    )
    op.create_index(
        "api_keys_name_key", "api_keys", ["name"], unique=True, postgresql_where=sa.text("revoked_at IS NULL")
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("proof", sa.Text(), nullable=False, comment="where the secret was proven, e.g. header:x-secret"),
        sa.Column("headers", sa.Text(), nullable=False, comment="JSON: list of [name, value], secrets blanked"),
        sa.Column(
            "body", sa.LargeBinary(), nullable=False, comment="as it came, secrets blanked, without the event's data"
        ),
        sa.Column(
            "data_offset",
            sa.Integer(),
            nullable=True,
            comment="where the event's data belongs in the body; null: the body is whole",
        ),
        sa.Column("size", sa.Integer(), nullable=False, comment="bytes of the whole body"),
        sa.Column("reading", sa.Text(), nullable=False, comment="JSON: which place gave each part of the event"),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it was quarantined or what it repeats"),
        sa.Column(
            "event_sequence", sa.BigInteger(), nullable=True, comment="its event; of a duplicate: the original's"
        ),
        sa.Column("duplicate_of", sa.Uuid(), nullable=True, comment="the delivery that was committed first"),
        sa.CheckConstraint("status IN ('accepted', 'duplicate', 'quarantined')", name=op.f("deliveries_status_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("deliveries_pkey")),
    )
    op.create_index(
        "deliveries_status_id_idx",
        "deliveries",
        ["status", "id"],
        unique=False,
        postgresql_where=sa.text("status <> 'accepted'"),
    )
    op.create_table(
        "entities",
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Text(collation="C"), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="how many non-stale events"),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="the newest non-stale event"),
        sa.Column("data_sequence", sa.BigInteger(), nullable=True, comment="the event that holds the data"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "source_updated_at", sa.DateTime(timezone=True), nullable=True, comment="occurred_at of its newest event"
        ),
        sa.Column(
            "newest_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="newest occurred_at ever seen, also of a repeated delete",
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("entity_type", "entity_id", name=op.f("entities_pkey")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_table(
        "events",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Text(collation="C"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("action_inferred", sa.Boolean(), nullable=False),
        sa.Column("stale", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivery_id", sa.Uuid(), nullable=True),
        sa.Column("changed", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("changes", sa.Text(), nullable=False, comment="JSON: list of changes"),
        sa.Column("data", sa.Text(), nullable=True, comment="JSON: the entity as it came"),
        sa.CheckConstraint("action IN ('create', 'update', 'delete')", name=op.f("events_action_check")),
        sa.PrimaryKeyConstraint("sequence", name=op.f("events_pkey")),
        sa.UniqueConstraint("id", name=op.f("events_id_key")),
    )
    op.create_index(op.f("events_changed_idx"), "events", ["changed"], unique=False, postgresql_using="gin")
    op.create_index(op.f("events_action_sequence_idx"), "events", ["action", "sequence"], unique=False)
    op.create_index(
        op.f("events_entity_type_entity_id_sequence_idx"),
        "events",
        ["entity_type", "entity_id", "sequence"],
        unique=False,
    )
    op.create_index(op.f("events_received_at_idx"), "events", ["received_at"], unique=False, postgresql_using="brin")
    # The payload is only given back, never searched: kept in the row as it is up to a page, it costs a third of what
    # compressing and moving it out of line does.
    op.execute("ALTER TABLE events ALTER COLUMN data SET STORAGE EXTERNAL, SET (toast_tuple_target = 8160)")
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.LargeBinary(), nullable=False, comment="digest of what makes two deliveries the same"),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="the event that came first"),
        sa.PrimaryKeyConstraint("key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_table(
        "registrations",
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="pending, registered, disabled or failed"),
        sa.Column(
            "pending_since",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="since when Jasper is being asked for a new webhook or secret",
        ),
        sa.Column("webhook_id", sa.Text(), nullable=True, comment="Jasper's id of the webhook"),
        sa.Column("webhook_name", sa.Text(), nullable=True),
        sa.Column("callback_url", sa.Text(), nullable=True),
        sa.Column("retry_policy", sa.Text(), nullable=True),
        sa.Column("minimum_retry_interval", sa.Integer(), nullable=True, comment="seconds"),
        sa.Column("retry_limit", sa.Integer(), nullable=True),
        sa.Column("signing_secret", sa.LargeBinary(), nullable=True, comment="sealed"),
        sa.Column(
            "headers", sa.LargeBinary(), nullable=True, comment="sealed JSON object: the headers registered with Jasper"
        ),
        sa.Column(
            "registered_at", sa.DateTime(timezone=True), nullable=True, comment="when the present secret was stored"
        ),
        sa.Column(
            "checked_at", sa.DateTime(timezone=True), nullable=True, comment="when Jasper last confirmed the webhook"
        ),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_error_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("proof", sa.Text(), nullable=True, comment="where the secret was last proven"),
        sa.Column(
            "last_callback_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the last authentic callback came",
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'registered', 'disabled', 'failed')", name=op.f("registrations_state_check")
        ),
        sa.PrimaryKeyConstraint("entity_type", name=op.f("registrations_pkey")),
    )
    op.create_table(
        "retiring_credentials",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="signing_secret or headers"),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column(
            "accepted_until", sa.DateTime(timezone=True), nullable=False, comment="after Jasper's last retry with it"
        ),
        sa.CheckConstraint("kind IN ('signing_secret', 'headers')", name=op.f("retiring_credentials_kind_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("retiring_credentials_pkey")),
    )
    op.create_index(
        op.f("retiring_credentials_entity_type_accepted_until_idx"),
        "retiring_credentials",
        ["entity_type", "accepted_until"],
        unique=False,
    )
    op.create_table(
        "unproven",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="of the body, so that a retry is kept once"),
        sa.Column("header_names", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("outline", sa.ARRAY(sa.Text()), nullable=False, comment="names in the two top levels of the body"),
        sa.Column(
            "sealed",
            sa.LargeBinary(),
            nullable=False,
            comment="headers and body, encrypted: the secret may stand in them",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("unproven_pkey")),
        sa.UniqueConstraint("entity_type", "digest", name=op.f("unproven_entity_type_digest_key")),
    )


def downgrade() -> None:
    op.drop_table("unproven")
    op.drop_index(op.f("retiring_credentials_entity_type_accepted_until_idx"), table_name="retiring_credentials")
    op.drop_table("retiring_credentials")
    op.drop_table("registrations")
    op.drop_table("idempotency_keys")
    op.drop_index(op.f("events_received_at_idx"), table_name="events", postgresql_using="brin")
    op.drop_index(op.f("events_entity_type_entity_id_sequence_idx"), table_name="events")
    op.drop_index(op.f("events_changed_idx"), table_name="events", postgresql_using="gin")
    op.drop_index(op.f("events_action_sequence_idx"), table_name="events")
    op.drop_table("events")
    op.drop_table("entities")
    op.drop_index("deliveries_status_id_idx", table_name="deliveries", postgresql_where=sa.text("status <> 'accepted'"))
    op.drop_table("deliveries")
    op.drop_index("api_keys_name_key", table_name="api_keys", postgresql_where=sa.text("revoked_at IS NULL"))
    op.drop_table("api_keys")
    op.execute(sa.schema.DropSequence(sa.Sequence("event_sequence")))
