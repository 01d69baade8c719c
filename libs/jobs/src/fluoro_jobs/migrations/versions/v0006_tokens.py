"""Service tokens."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, TIMESTAMP, UUID

revision = "0006"
down_revision = "0005"

TIME = TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", UUID),
        sa.Column("sha256", BYTEA, nullable=False, comment="of the token, which is kept nowhere"),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("roles", ARRAY(sa.Text), nullable=False),
        sa.Column("display_name", sa.Text, nullable=False, server_default=""),
        sa.Column("creator", sa.Text, nullable=False, comment="the operator who made it"),
        sa.Column("create_time", TIME, nullable=False, server_default=sa.text("now()")),
        sa.Column("expire_time", TIME, nullable=False),
        sa.Column("revoke_time", TIME),
        sa.PrimaryKeyConstraint("id", name="tokens_pkey"),
    )
    op.create_index("tokens_sha256_key", "tokens", ["sha256"], unique=True)
    op.create_index("tokens_owner_id_idx", "tokens", ["owner", "id"])
