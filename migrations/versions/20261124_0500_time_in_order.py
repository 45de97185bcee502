"""The time at which events were received grows with their sequence, so that a time is found as a position of the feed.

Revision: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_OF_ENTITY = "events_entity_type_entity_id_sequence_idx"
_INDEXED = ["entity_type", "entity_id", "sequence"]


def upgrade() -> None:
    # Until now events that were committed in another order than they came had their times in that other order.
    op.execute(
        """
        UPDATE events e SET received_at = so_far.newest
        FROM (SELECT sequence, max(received_at) OVER (ORDER BY sequence) AS newest FROM events) so_far
        WHERE so_far.sequence = e.sequence AND e.received_at < so_far.newest
        """
    )
    op.alter_column("events", "received_at", comment="never before that of an event with a lower sequence")
    op.drop_index("events_received_at_idx", table_name="events")
    op.create_index("events_received_at_sequence_idx", "events", ["received_at", "sequence"])
    op.drop_index(_OF_ENTITY, table_name="events")
    op.create_index(_OF_ENTITY, "events", _INDEXED)


def downgrade() -> None:
    op.drop_index(_OF_ENTITY, table_name="events")
    op.create_index(_OF_ENTITY, "events", _INDEXED, postgresql_include=["received_at"])
    op.drop_index("events_received_at_sequence_idx", table_name="events")
    op.create_index("events_received_at_idx", "events", ["received_at"], postgresql_using="brin")
    op.alter_column("events", "received_at", comment=None)
