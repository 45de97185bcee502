"""What an event left of its entity, so that a state of the past is found at once; and when the newest event was told.

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INDEX = "events_entity_type_entity_id_sequence_idx"
_INDEXED = ["entity_type", "entity_id", "sequence"]


def upgrade() -> None:
    op.add_column(
        "events",
        sa.Column("entity_version", sa.BigInteger(), nullable=True, comment="the entity's version after it"),
    )
    op.add_column(
        "events",
        sa.Column(
            "entity_sequence", sa.BigInteger(), nullable=True, comment="the entity's newest non-stale event after it"
        ),
    )
    op.add_column(
        "events",
        sa.Column(
            "entity_data_sequence",
            sa.BigInteger(),
            nullable=True,
            comment="the event that holds the entity's data after it",
        ),
    )
    op.add_column(
        "events",
        sa.Column(
            "entity_source_updated_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the entity's source_updated_at after it",
        ),
    )
    # Until now a stale event moved nothing at all.
    op.execute(
        """
        UPDATE events e SET
            entity_version = s.version,
            entity_sequence = s.newest,
            entity_data_sequence = s.data,
            entity_source_updated_at = s.source_updated_at
        FROM (
            SELECT sequence,
                count(*) FILTER (WHERE NOT stale) OVER so_far AS version,
                max(sequence) FILTER (WHERE NOT stale) OVER so_far AS newest,
                max(sequence) FILTER (WHERE NOT stale AND data IS NOT NULL) OVER so_far AS data,
                max(occurred_at) FILTER (WHERE NOT stale) OVER so_far AS source_updated_at
            FROM events WINDOW so_far AS (PARTITION BY entity_type, entity_id ORDER BY sequence)
        ) s
        WHERE s.sequence = e.sequence
        """
    )
    op.alter_column("events", "entity_version", nullable=False)
    op.alter_column("events", "entity_sequence", nullable=False)
    op.drop_index(_INDEX, table_name="events")
    op.create_index(_INDEX, "events", _INDEXED, postgresql_include=["received_at"])
    op.add_column(
        "entities",
        sa.Column(
            "heard_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when its newest event was told: before updated_at if that was read late",
        ),
    )
    op.execute("UPDATE entities SET heard_at = updated_at")
    op.alter_column("entities", "heard_at", nullable=False)


def downgrade() -> None:
    op.drop_column("entities", "heard_at")
    op.drop_index(_INDEX, table_name="events")
    op.create_index(_INDEX, "events", _INDEXED)
    op.drop_column("events", "entity_source_updated_at")
    op.drop_column("events", "entity_data_sequence")
    op.drop_column("events", "entity_sequence")
    op.drop_column("events", "entity_version")
