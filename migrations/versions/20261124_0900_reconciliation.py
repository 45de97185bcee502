"""Reconciliations and how far they have come, when the service was last there, and entities whose data is to be fetched.

Revision: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reconciliations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False, comment="delete however many are gone"),
        sa.Column("compared", sa.BigInteger(), nullable=False, comment="entities of Jasper's that were compared"),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True, comment="why it failed or waits for a confirmation, in words"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("first_sequence", sa.BigInteger(), nullable=False, comment="the newest event when it began"),
        sa.Column("stage", sa.Text(), nullable=False, comment="list, absent or delete"),
        sa.Column("page", sa.Text(), nullable=True, comment="address of the page to be read next; null: the first"),
        sa.Column("total", sa.BigInteger(), nullable=True, comment="how many entities the last page said there are"),
        sa.Column(
            "items_are_whole",
            sa.Boolean(),
            nullable=True,
            comment="whether the list carries all that a single item does; null: not known",
        ),
        sa.CheckConstraint(
            "status IN ('running', 'succeeded', 'failed', 'needs_confirmation')",
            name=op.f("reconciliations_status_check"),
        ),
        sa.CheckConstraint("stage IN ('list', 'absent', 'delete')", name=op.f("reconciliations_stage_check")),
        sa.CheckConstraint("(status = 'running') = (finished_at IS NULL)", name=op.f("reconciliations_finished_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("reconciliations_pkey")),
    )
    op.create_index(op.f("reconciliations_entity_type_id_idx"), "reconciliations", ["entity_type", "id"])
    op.create_index(
        "reconciliations_running_key",
        "reconciliations",
        ["entity_type"],
        unique=True,
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "reconciled_entities",
        sa.Column("reconciliation_id", sa.Uuid(), nullable=False),
        sa.Column("entity_id", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "gone_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when Jasper said that there is none, by its clock",
        ),
        sa.Column(
            "known_until",
            sa.BigInteger(),
            nullable=True,
            comment="the newest event before Jasper was asked; null: it is there",
        ),
        sa.ForeignKeyConstraint(
            ["reconciliation_id"],
            ["reconciliations.id"],
            name=op.f("reconciled_entities_reconciliation_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("reconciliation_id", "entity_id", name=op.f("reconciled_entities_pkey")),
    )
    op.create_index(
        "reconciled_entities_gone_idx",
        "reconciled_entities",
        ["reconciliation_id", "entity_id"],
        postgresql_where=sa.text("known_until IS NOT NULL"),
    )
    op.create_table(
        "attendance",
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column(
            "alive_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when callbacks could last be committed",
        ),
        sa.Column(
            "away_from",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the last time that was too long for Jasper's retries: from when",
        ),
        sa.Column(
            "away_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="and until when; both go when a reconciliation has made good for it",
        ),
        sa.CheckConstraint("(away_from IS NULL) = (away_until IS NULL)", name=op.f("attendance_away_check")),
        sa.PrimaryKeyConstraint("entity_type", name=op.f("attendance_pkey")),
    )
    op.create_table(
        "pending_fetches",
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Text(collation="C"), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("entity_type", "entity_id", name=op.f("pending_fetches_pkey")),
    )
    op.create_index(op.f("pending_fetches_due_at_idx"), "pending_fetches", ["due_at"])
    op.create_table(
        "fetch_position",
        sa.Column("is_only", sa.Boolean(), nullable=False, comment="true: there is one row"),
        sa.Column(
            "position",
            sa.BigInteger(),
            nullable=False,
            comment="the last event that was looked at for missing data",
        ),
        sa.CheckConstraint("is_only", name=op.f("fetch_position_only_check")),
        sa.PrimaryKeyConstraint("is_only", name=op.f("fetch_position_pkey")),
    )


def downgrade() -> None:
    op.drop_table("fetch_position")
    op.drop_index(op.f("pending_fetches_due_at_idx"), table_name="pending_fetches")
    op.drop_table("pending_fetches")
    op.drop_table("attendance")
    op.drop_index("reconciled_entities_gone_idx", table_name="reconciled_entities")
    op.drop_table("reconciled_entities")
    op.drop_index("reconciliations_running_key", table_name="reconciliations")
    op.drop_index(op.f("reconciliations_entity_type_id_idx"), table_name="reconciliations")
    op.drop_table("reconciliations")
