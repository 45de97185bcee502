"""The trace that a delivery belongs to.

Revision: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: no row is written anew.
    op.add_column(
        "deliveries",
        sa.Column("traceparent", sa.Text(), nullable=True, comment="the trace that it belongs to, W3C Trace Context"),
    )


def downgrade() -> None:
    op.drop_column("deliveries", "traceparent")
