"""How callbacks were answered, minute by minute.

Revision: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "callback_minutes",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False, comment="how callbacks were answered"),
        sa.Column("count", sa.BigInteger(), nullable=False, comment="by all replicas"),
        sa.Column(
            "latencies", postgresql.ARRAY(sa.Integer()), nullable=False, comment="how many by each bound of the tally"
        ),
        sa.PrimaryKeyConstraint("minute", "entity_type", "outcome", name=op.f("callback_minutes_pkey")),
    )


def downgrade() -> None:
    op.drop_table("callback_minutes")
