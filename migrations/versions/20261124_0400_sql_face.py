"""The SQL face: views that stay as they are, and a role that sees nothing else.

A role belongs to the whole cluster, and whoever migrates may not be allowed to make one: then everything else is made,
and the log says what is left to do.

Revision: 0004
"""

import logging

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_log = logging.getLogger("alembic.runtime.migration")

_GRANTS = (
    "GRANT USAGE ON SCHEMA feed TO jasper_reader",
    "GRANT SELECT ON feed.events, feed.entities TO jasper_reader",
)


def upgrade() -> None:
    op.execute("CREATE SCHEMA feed")
    # `type` is put together as in `Action.past`.
    op.execute(
        """
        CREATE VIEW feed.events AS SELECT
            sequence, id, entity_type || '.' || action || 'd' AS type, entity_type, action, entity_id, occurred_at,
            received_at, source, delivery_id, action_inferred, stale, data, changed, changes
        FROM public.events
        """
    )
    op.execute(
        """
        CREATE VIEW feed.entities AS SELECT
            entities.entity_type, entities.entity_id, events.data, entities.version, entities.sequence,
            entities.created_at, entities.updated_at, entities.source_updated_at, entities.deleted_at
        FROM public.entities LEFT JOIN public.events ON events.sequence = entities.data_sequence
        """
    )
    if _make_role():
        for grant in _GRANTS:
            op.execute(grant)
    else:
        _log.warning(
            "the role jasper_reader is missing, and this user may not make it: have somebody who may run "
            "CREATE ROLE jasper_reader NOLOGIN; then, as the owner of the schema feed: %s;",
            "; ".join(_GRANTS),
        )


def downgrade() -> None:
    op.execute("DROP VIEW feed.events, feed.entities")
    op.execute("DROP SCHEMA feed")
    # Other databases of the cluster may use the role, and people may have been given it.
    op.execute(
        """
        DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_auth_members WHERE roleid = to_regrole('jasper_reader')) THEN
                DROP ROLE IF EXISTS jasper_reader;
            END IF;
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
        END $$
        """
    )


def _make_role() -> bool:
    """Make the role where it is missing and may be made; returns whether it is there."""
    op.execute(
        """
        DO $$ BEGIN
            IF to_regrole('jasper_reader') IS NULL THEN
                CREATE ROLE jasper_reader NOLOGIN;
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL; -- another database of the cluster was quicker
            WHEN insufficient_privilege THEN NULL;
        END $$
        """
    )
    return bool(op.get_bind().scalar(sa.text("SELECT to_regrole('jasper_reader') IS NOT NULL")))
