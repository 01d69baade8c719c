"""Uploads that were given up count for as long as a signed URL may bring their bytes."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column(
        "uploads",
        sa.Column(
            "signed",
            sa.Boolean,
            nullable=False,
            server_default=sa.text("false"),
            comment="has a URL",
        ),
    )
    op.drop_index("uploads_open_idx", "uploads")
    op.create_index(
        "uploads_open_idx",
        "uploads",
        ["owner"],
        postgresql_where="blob_id IS NULL AND (signed OR NOT expired)",
    )
