"""What the watch over the webhooks at Jasper needs to know: what was registered, what was mended, what was broken off.

Revision: 0007
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COLUMNS: tuple[sa.Column[Any], ...] = (
    sa.Column("include_entity_data", sa.Boolean),
    sa.Column(
        "rotating_since", sa.DateTime(timezone=True), comment="since when a rotation is asked for, until it is done"
    ),
    sa.Column("mended", sa.ARRAY(sa.Text), comment="what was last done to the webhook at Jasper, in words"),
    sa.Column("mended_at", sa.DateTime(timezone=True)),
    sa.Column(
        "mends_in_a_row",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="looks that each had to mend something",
    ),
    sa.Column("last_error_status", sa.Integer, comment="Jasper's HTTP status with the last error, where it answered"),
)


def upgrade() -> None:
    for column in _COLUMNS:
        op.add_column("registrations", column)


def downgrade() -> None:
    for column in _COLUMNS:
        op.drop_column("registrations", column.name)
