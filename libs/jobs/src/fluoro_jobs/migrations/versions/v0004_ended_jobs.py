"""An index of ended jobs, for lists by end_time."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index(
        "jobs_end_idx",
        "jobs",
        ["owner", "end_time", "id"],
        postgresql_where="end_time IS NOT NULL",
    )
