"""Tasks count how often they came back for the fault of a store."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "tasks",
        sa.Column(
            "returned",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="claims that a store's fault ended, which cost nothing",
        ),
    )
