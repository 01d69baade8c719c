"""Uploads that go on after a broken connection."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, BYTEA, TIMESTAMP, UUID

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("owner", sa.Text),
        sa.Column("id", UUID, comment="chosen by the owner"),
        sa.Column("key", UUID, nullable=False, comment="ours, under which the store has the bytes"),
        sa.Column("size_bytes", BIGINT, nullable=False),
        sa.Column("sha256", BYTEA, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column(
            "starts",
            ARRAY(BIGINT),
            nullable=False,
            server_default=sa.text("'{}'"),
            comment="the byte at which each stream began, the newest last",
        ),
        sa.Column("blob_id", UUID, comment="null until all bytes are there"),
        sa.Column(
            "expired",
            sa.Boolean,
            nullable=False,
            server_default=sa.text("false"),
            comment="its bytes are being deleted",
        ),
        sa.Column(
            "update_time",
            TIMESTAMP(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
        ),
        sa.PrimaryKeyConstraint("owner", "id", name="uploads_pkey"),
    )
    op.create_index("uploads_update_time_idx", "uploads", ["update_time"])
    op.create_index("uploads_open_idx", "uploads", ["owner"], postgresql_where="blob_id IS NULL")
