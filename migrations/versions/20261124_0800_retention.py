"""How far retention has come; what it has removed is hidden from the SQL face too.

Revision: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_EVENTS = """
    CREATE OR REPLACE VIEW feed.events AS SELECT
        sequence, id, entity_type || '.' || action || 'd' AS type, entity_type, action, entity_id, occurred_at,
        received_at, source, delivery_id, action_inferred, stale, data, changed, changes
    FROM public.events
"""
_ONLY_WHOLE = "WHERE sequence > (SELECT oldest_after FROM public.retention)"


def upgrade() -> None:
    op.create_table(
        "retention",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "oldest_after",
            sa.BigInteger(),
            nullable=False,
            comment="events up to this number have been removed; 0: none",
        ),
        sa.CheckConstraint("id = 1", name=op.f("retention_one_row_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("retention_pkey")),
    )
    op.execute("INSERT INTO retention (id, oldest_after) VALUES (1, 0)")
    op.execute(_EVENTS + _ONLY_WHOLE)


def downgrade() -> None:
    # What was hidden shows again: states of entities stand on it, so it cannot be removed.
    op.execute(_EVENTS)
    op.drop_table("retention")
