"""Named consumers and the events they set aside.

Revision: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "consumers",
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "position", sa.BigInteger(), nullable=False, comment="sequence of the last event acknowledged; 0: none"
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), nullable=False, comment="when the position was set or moved"
        ),
        sa.Column(
            "lease_id", sa.Uuid(), nullable=True, comment="who holds the page behind the position, or held it last"
        ),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("position >= 0", name=op.f("consumers_position_check")),
        sa.CheckConstraint("(lease_id IS NULL) = (leased_until IS NULL)", name=op.f("consumers_lease_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("consumers_pkey")),
    )
    op.create_table(
        "parked_events",
        sa.Column("consumer", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "sequence",
            sa.BigInteger(),
            nullable=False,
            comment="the event; no reference, as retention may remove it",
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("parked_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["consumer"], ["consumers.name"], name=op.f("parked_events_consumer_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("consumer", "sequence", name=op.f("parked_events_pkey")),
    )


def downgrade() -> None:
    op.drop_table("parked_events")
    op.drop_table("consumers")
