"""Uploads that were given up are not among those that are open."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.drop_index("uploads_open_idx", "uploads")
    op.create_index(
        "uploads_open_idx",
        "uploads",
        ["owner"],
        postgresql_where="blob_id IS NULL AND NOT expired",
    )
