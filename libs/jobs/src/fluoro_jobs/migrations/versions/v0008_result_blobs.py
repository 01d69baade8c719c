"""An index of large results: whether a blob is one is asked before it is deleted."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_index(
        "tasks_result_blob_idx",
        "tasks",
        ["result_blob"],
        postgresql_where="result_blob IS NOT NULL",
    )
