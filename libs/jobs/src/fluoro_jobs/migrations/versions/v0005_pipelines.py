"""The pipeline that a job was made from, and its version. Releases from before it work on too."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run("ALTER TABLE jobs ADD COLUMN pipeline text, ADD COLUMN pipeline_version int")
    run("COMMENT ON COLUMN jobs.pipeline IS 'that its steps were made from; null for none'")
