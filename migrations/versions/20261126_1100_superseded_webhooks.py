"""Where a webhook was registered, and which ones it replaced that may still be there.

Revision: 0011
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("registrations", sa.Column("api_url", sa.Text(), comment="the Jasper that webhook_id is of"))
    op.add_column(
        "registrations",
        sa.Column(
            "superseded",
            postgresql.JSONB(),
            nullable=False,
            server_default="[]",
            comment="webhooks that were replaced and may still be at Jasper",
        ),
    )


def downgrade() -> None:
    op.drop_column("registrations", "superseded")
    op.drop_column("registrations", "api_url")
