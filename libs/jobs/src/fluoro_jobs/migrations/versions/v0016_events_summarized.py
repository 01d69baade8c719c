"""The index of all owners' events keeps up with them: unsummarized pages are read whole."""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run("ALTER INDEX events_transaction_id_idx SET (autosummarize = on)")
