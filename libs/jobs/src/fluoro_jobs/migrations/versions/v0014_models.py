"""Models that worker processes have."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import BYTEA, UUID

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("worker_id", UUID, sa.ForeignKey("workers.id", ondelete="CASCADE")),
        sa.Column("name", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("ready", sa.Boolean, nullable=False, comment="whether the worker serves it"),
        sa.Column("digest", BYTEA, nullable=False, comment="SHA-256 of about and card"),
        sa.Column("about", BYTEA, nullable=False, comment="a fluoro.v1.Model as the worker has it"),
        sa.Column("card", sa.Text, nullable=False, comment="its card, in Markdown"),
        sa.PrimaryKeyConstraint("worker_id", "name", "version"),
    )
    op.create_index("models_name_idx", "models", ["name"])
