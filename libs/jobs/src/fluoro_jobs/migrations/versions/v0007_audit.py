"""What operators do: rows that are added and never changed."""

from alembic import op

revision = "0007"
down_revision = "0006"

_TABLE = """
CREATE TABLE audit (
  id uuid NOT NULL, time timestamptz NOT NULL DEFAULT now(), principal text NOT NULL,
  how text NOT NULL, owner text NOT NULL, method text NOT NULL, peer text NOT NULL,
  CONSTRAINT audit_pkey PRIMARY KEY (id)
)
"""

# Whoever removes old rows drops the trigger for that time, which the server's log then tells.
_KEPT = """
CREATE FUNCTION audit_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'rows of audit are added and never changed'; END $$
"""
_TRIGGER = """
CREATE TRIGGER audit_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
  FOR EACH STATEMENT EXECUTE FUNCTION audit_is_kept()
"""

_COMMENTS = {
    "principal": "who made the call",
    "how": "the source that vouched for it",
    "owner": "whose jobs and blobs the call was about",
    "method": "full name of the call, admitted and about to be made",
    "peer": "the address it came from",
}


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    for statement in (_TABLE, _KEPT, _TRIGGER):
        run(statement)
    for column, comment in _COMMENTS.items():
        run(f"COMMENT ON COLUMN audit.{column} IS '{comment}'")
